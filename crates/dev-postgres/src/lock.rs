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

/// The right to run a Postgres in one data directory. It ends with the process at the latest, however that ends.
#[derive(Debug)]
pub(crate) struct Lock {
    dir: PathBuf,
    // Never read again: the kernel holds the lock for as long as it is open.
    _file: File,
}

impl Lock {
    /// Takes the lock of a directory, which is created if need be, or says who has it.
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
            // A disposable cluster deletes its lock; between our open and our lock that may have been this file.
            if is_at(&file, &path) {
                file.set_len(0).map_err(Error::file("truncate", &path))?;
                writeln!(file, "{}", std::process::id()).map_err(Error::file("write", &path))?;
                return Ok(Self { dir, _file: file });
            }
        }
    }

    /// The directory, absolute and without symbolic links: one directory has one such name.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives up the lock and leaves no trace of it. The directory goes too, unless somebody else keeps something there.
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
        // It has the lock and has not yet written its name.
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
