use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why Postgres could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No searched directory contains the server's programs.
    #[error("no Postgres server is installed: {advice}")]
    NotInstalled {
        /// How to install it on this machine.
        advice: &'static str,
    },

    /// `postgres`, `initdb` or `pg_ctl` is missing from the given directory, or does not run.
    #[error("{} contains no Postgres server (postgres, initdb and pg_ctl)", .dir.display())]
    NotPostgres {
        /// The given directory.
        dir: PathBuf,
    },

    /// The data were created by a major version that is not installed; Postgres cannot read those of another version.
    #[error("{} was created by Postgres {wanted}, but only {found} is installed", .data.display())]
    WrongVersion {
        /// The cluster's data.
        data: PathBuf,
        /// The major version that created the data.
        wanted: u32,
        /// The installed versions.
        found: String,
    },

    /// Another process runs Postgres in this directory.
    #[error("{} is in use by another sessiond (process {holder}); stop that one, or choose another directory", .dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process id of that process, from its lock file.
        holder: String,
    },

    /// A directory is accessible to other users, or belongs to one.
    #[error("refusing to keep a database in {}: {reason}", .path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The process is root, as which Postgres does not run, and no unprivileged user exists.
    #[error("Postgres does not run as root, and this machine has neither a user `postgres` nor `nobody`")]
    NoUser,

    /// A file system operation failed.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// The operation, as a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },

    /// A program could not be started.
    #[error("cannot run {}", .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },

    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// The end of its output.
        output: String,
    },

    /// The server exited before it accepted connections.
    #[error("Postgres did not start; {} ends with:\n{tail}", .log.display())]
    Exited {
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// An operation exceeded its time limit.
    #[error("Postgres did not {action} within {seconds} s; its log is {}", .log.display())]
    TooSlow {
        /// `start` or `stop`.
        action: &'static str,
        /// The time limit, in seconds.
        seconds: u64,
        /// The server's log.
        log: PathBuf,
    },
}

impl Error {
    /// For `map_err`: adds the operation and the path to an I/O error.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { action, path, source }
    }

    /// For `map_err`: adds the program to an I/O error.
    pub(crate) fn run(program: &Path) -> impl FnOnce(io::Error) -> Error {
        let program = program.to_path_buf();
        move |source| Error::Run { program, source }
    }
}
