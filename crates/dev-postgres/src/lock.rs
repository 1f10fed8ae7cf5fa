use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Error;

/// The exclusive right to run Postgres in one data directory. Released when the process exits, at the latest.
#[derive(Debug)]
pub(crate) struct Lock {
    dir: PathBuf,
    // The kernel holds the lock while the file is open.
    _file: File,
}

impl Lock {
    /// Locks a directory, creating it if needed. Fails with the holder's process id if it is locked.
    pub(crate) fn take(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let dir = dir.canonicalize().map_err(Error::file("resolve", dir))?;
        let path = path_in(&dir);
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = file.map_err(Error::file("open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::InUse { holder: holder(&path), dir }),
                Err(TryLockError::Error(source)) => return Err(Error::file("lock", &path)(source)),
            }
            // A disposable cluster deletes its lock file, possibly between our open and our lock.
            if is_at(&file, &path) {
                file.set_len(0).map_err(Error::file("truncate", &path))?;
                writeln!(file, "{}", std::process::id()).map_err(Error::file("write", &path))?;
                return Ok(Self { dir, _file: file });
            }
        }
    }

    /// The directory, absolute and without symbolic links, so that it has a single name.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Releases the lock and deletes its file; also the directory, if it is empty.
    pub(crate) fn discard(self) -> io::Result<()> {
        fs::remove_file(path_in(&self.dir))?;
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join("postgres.lock")
}

fn holder(path: &Path) -> String {
    let written = fs::read_to_string(path).unwrap_or_default();
    match written.trim() {
        // The holder has not written its process id yet.
        "" => "unknown".to_owned(),
        pid => pid.to_owned(),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}
