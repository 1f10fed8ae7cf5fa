//! The files of a data directory, readable only by their owner.

use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use sessiond_core::token::sealing::Sealer;
use sessiond_core::token::sealing::SealingKey;
use sessiond_core::token::server_key::ServerKey;

/// A data directory, locked for as long as this value lives.
pub(super) struct Files {
    dir: PathBuf,
    /// The kernel holds the lock while this file is open.
    lock: File,
}

impl Files {
    pub(super) const ENV: &str = "dev.env";
    pub(super) const OWN_DATABASE: &str = "own-database";
    pub(super) const SEALING_KEY: &str = "sealing-key";
    pub(super) const SERVER_KEY: &str = "server-key";
    pub(super) const VERIFIER_KEY: &str = "verifier-key";
    const LOCK: &str = "dev.lock";

    /// Opens the directory, creating it if needed. Changes nothing else in it.
    ///
    /// # Errors
    ///
    /// If another `sessiond dev` uses it, or it cannot be written to.
    pub(super) fn open(dir: &Path) -> Result<Self, String> {
        fs::create_dir_all(dir).map_err(|error| refused(dir, &error))?;
        let path = path_in(dir, Self::LOCK);
        let mut options = File::options();
        let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(|error| refused(dir, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = if holder.trim().is_empty() { "just starting" } else { holder.trim() };
                let dir = dir.display();
                return Err(format!(
                    "{dir} is in use by another `sessiond dev` ({holder}); use that one, stop it, or choose another \
                     directory with --data-dir"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(refused(dir, &error)),
        }
        let files = Self { dir: dir.to_owned(), lock };
        files.name_holder(&format!("process {}", std::process::id())).map_err(|error| refused(dir, &error))?;
        Ok(files)
    }

    /// Records which process uses the directory, for the error of the next one.
    pub(super) fn name_holder(&self, holder: &str) -> io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.write_all_at(holder.as_bytes(), 0)
    }

    /// Deletes the `dev.env` of an earlier run: a script may be waiting for the new one.
    pub(super) fn forget_env(&self) -> Result<(), String> {
        match fs::remove_file(self.path(Self::ENV)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(&self.dir, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether the directory holds no data yet.
    pub(super) fn is_new(&self) -> bool {
        [Self::OWN_DATABASE, Self::SEALING_KEY, Self::SERVER_KEY].iter().all(|name| !self.path(name).exists())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        path_in(&self.dir, name)
    }

    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.path(name))
    }

    /// Writes a file atomically: a reader sees all of it, or none.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let unfinished = self.path(&format!("{name}.unfinished"));
        let written = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            fs::rename(&unfinished, self.path(name))
        };
        written().map_err(|error| format!("cannot write {}: {}", self.path(name).display(), cause(&error)))
    }

    pub(super) fn write_env(&self, values: &[(&str, &str)]) -> Result<(), String> {
        let mut text = String::new();
        for (name, value) in values {
            // In single quotes only a single quote is special to a shell.
            let value = value.replace('\'', r"'\''");
            writeln!(text, "export {name}='{value}'").expect("a string takes whatever is written to it");
        }
        self.write(Self::ENV, text.trim_end())
    }

    /// The sealing key. Absent before the first run.
    pub(super) fn sealer(&self) -> Result<Option<Sealer>, String> {
        let path = self.path(Self::SEALING_KEY);
        match self.read(Self::SEALING_KEY) {
            Ok(text) => match SealingKey::parse(&text) {
                Some(key) => Ok(Some(Sealer::new(&key, None))),
                None => {
                    let (path, dir) = (path.display(), self.dir.display());
                    Err(format!("{path} is damaged; delete {dir} to start with a new one"))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot read {}: {}", path.display(), cause(&error))),
        }
    }

    /// Creates the sealing key.
    pub(super) fn new_sealer(&self) -> Result<Sealer, String> {
        let key = SealingKey::generate();
        self.write(Self::SEALING_KEY, &key.expose())?;
        Ok(Sealer::new(&key, None))
    }

    /// The server key in a file.
    pub(super) fn server_key(&self, name: &str) -> Option<ServerKey> {
        ServerKey::parse(self.read(name).ok()?.trim())
    }
}

/// Contains a slash, so that a shell's `.` does not search the PATH.
pub(super) fn path_in(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    if path.components().count() == 1 { Path::new(".").join(path) } else { path }
}

/// Why a data directory cannot be used, and what to do.
fn refused(dir: &Path, error: &io::Error) -> String {
    format!("cannot use {} as data directory: {}; choose another with --data-dir", dir.display(), cause(error))
}

/// The cause without the system's error number.
fn cause(error: &io::Error) -> String {
    let known = match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => "it is, or is in, a file and not a directory",
        io::ErrorKind::StorageFull => "the disk is full",
        io::ErrorKind::QuotaExceeded => "your disk quota is used up",
        _ => return error.to_string(),
    };
    known.to_owned()
}
