use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why there is no Postgres.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No directory that is searched holds the server's programs.
    #[error("no Postgres server is installed: {advice}")]
    NotInstalled {
        /// What to type on this machine.
        advice: &'static str,
    },

    /// The directory named by the caller lacks `postgres`, `initdb` or `pg_ctl`, or they do not run.
    #[error("{} holds no Postgres server (postgres, initdb and pg_ctl)", .dir.display())]
    NotPostgres {
        /// The directory asked for.
        dir: PathBuf,
    },

    /// The data were written by a major version that is not installed, and Postgres reads no version but its own.
    #[error("{} was made by Postgres {wanted}, but only {found} is installed", .data.display())]
    WrongVersion {
        /// The cluster's data.
        data: PathBuf,
        /// The major version that made it.
        wanted: u32,
        /// What there is.
        found: String,
    },

    /// Another process runs its Postgres here.
    #[error("{} is in use by another sessiond (process {holder}); stop that one, or choose another directory", .dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// Its process id, as it wrote it down.
        holder: String,
    },

    /// A directory that must be ours alone is not.
    #[error("refusing to keep a database in {}: {reason}", .path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The process is root, under which Postgres does not run, and the machine has no user to step down to.
    #[error("Postgres does not run as root, and there is neither a user `postgres` nor `nobody`")]
    NoUser,

    /// The file system said no.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// A verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A program did not start.
    #[error("cannot run {}", .program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A program ran and failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        output: String,
    },

    /// The server came to an end before it accepted connections.
    #[error("Postgres did not start; {} ends with:\n{tail}", .log.display())]
    Exited {
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// Something took longer than it may.
    #[error("Postgres did not {action} within {seconds} s; its log is {}", .log.display())]
    TooSlow {
        /// `start` or `stop`.
        action: &'static str,
        /// The bound that was exceeded.
        seconds: u64,
        /// Where it may say why.
        log: PathBuf,
    },
}

impl Error {
    /// For `map_err`: the file system's refusal, and what was being done to which path.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { action, path, source }
    }

    /// For `map_err`: a program that did not start.
    pub(crate) fn run(program: &Path) -> impl FnOnce(io::Error) -> Error {
        let program = program.to_path_buf();
        move |source| Error::Run { program, source }
    }
}
