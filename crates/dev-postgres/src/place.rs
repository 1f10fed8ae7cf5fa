use std::ffi::OsStr;
use std::fs;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::lchown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use crate::error::Error;
use crate::lock::Lock;

/// A socket's path must fit in `sockaddr_un`, including its NUL: 108 bytes on Linux, 104 on macOS and the BSDs.
const SOCKET_PATH_MAX: usize = 103;

/// The name of Postgres' socket, which contains the port. In a private directory the default port is free.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// A file in a cluster's directory outside the data directory: the path of that data directory.
const DATA_DIR: &str = "data-dir";

/// The parent of a cluster whose data directory the server's user cannot enter, and of sockets whose path would be too
/// long.
const EXTERNAL_PARENT: &str = "/var/tmp";
const SOCKETS: &str = "/tmp";

/// The user that runs Postgres if we are root, as which Postgres does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The paths of one cluster. Both directories belong to the server's user, with mode 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The cluster's data and log.
    pub(crate) home: PathBuf,
    /// The directory of its socket: `home`, unless that path is too long.
    pub(crate) socket_dir: PathBuf,
    /// The user to run as, if not our own.
    pub(crate) user: Option<User>,
}

impl Place {
    /// Determines the paths for the cluster of a data directory, and creates the directories.
    ///
    /// The cluster is `postgres` in that directory. The server's user cannot access root's own directories (such as
    /// below `/root`); then the cluster is in a directory in `/var/tmp` named after the data directory.
    pub(crate) fn settle(data_dir: &Path) -> Result<Self, Error> {
        let us = id("-u", None)?.ok_or(Error::NoUser)?;
        let user = if us == 0 { Some(unprivileged_user()?) } else { None };
        let name = name_of(data_dir);
        let inside = data_dir.join("postgres");
        let home = if can_enter(user, data_dir) { inside } else { Path::new(EXTERNAL_PARENT).join(&name) };
        let fits = home.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_MAX;
        // Not the environment's temporary directory, which may be long, and differ between starts.
        let socket_dir = if fits { home.clone() } else { Path::new(SOCKETS).join(&name) };

        let owner = user.unwrap_or(User { uid: us, gid: id("-g", None)?.ok_or(Error::NoUser)? });
        for dir in [&home, &socket_dir] {
            make_private(dir, us, owner)?;
            if !dir.starts_with(data_dir) {
                let record = dir.join(DATA_DIR);
                fs::write(&record, data_dir.as_os_str().as_bytes()).map_err(Error::file("write", &record))?;
            }
        }
        Ok(Self { home, socket_dir, user })
    }

    /// All directories that may contain the socket of a data directory's cluster.
    pub(crate) fn socket_dirs(data_dir: &Path) -> [PathBuf; 3] {
        let name = name_of(data_dir);
        [data_dir.join("postgres"), Path::new(EXTERNAL_PARENT).join(&name), Path::new(SOCKETS).join(&name)]
    }

    /// Whether the cluster is outside the data directory, so that it stays if that is deleted.
    pub(crate) fn is_outside(&self, data_dir: &Path) -> bool {
        !self.home.starts_with(data_dir)
    }

    /// Deletes clusters outside of temporary data directories that no longer exist: those of killed tests. Directories
    /// that cannot be read or deleted stay.
    pub(crate) fn sweep() {
        let temporary = [PathBuf::from(SOCKETS), PathBuf::from(EXTERNAL_PARENT), std::env::temp_dir()];
        let entries =
            [EXTERNAL_PARENT, SOCKETS].into_iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        for dir in entries.map(|entry| entry.path()) {
            let is_ours = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sessiond-"));
            // Not a symbolic link.
            let is_dir = || fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir());
            if !is_ours || !is_dir() {
                continue;
            }
            let Ok(data_dir) = fs::read(dir.join(DATA_DIR)) else { continue };
            let data_dir = Path::new(OsStr::from_bytes(&data_dir));
            // Any other may be on a disk that is not mounted at present.
            let is_temporary = temporary.iter().any(|temporary| data_dir.starts_with(temporary));
            if is_temporary && !data_dir.exists() && Lock::take(&dir).is_ok() {
                let _ = fs::remove_dir_all(&dir);
            }
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_dir.join(SOCKET_NAME)
    }

    /// The major version that created the data, if there are any.
    pub(crate) fn version(&self) -> Option<u32> {
        fs::read_to_string(self.data().join("PG_VERSION")).ok()?.trim().parse().ok()
    }

    /// The lines of `postmaster.pid`: process id, data directory, start time, port, socket directory, and more.
    pub(crate) fn pid_file(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        Some(text.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// A command that runs as the server's user, in its home, without our environment: no `PGPORT` or `PGOPTIONS` that
    /// would affect the server, and no secrets that the user could read from its processes.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.home).env_clear().stdin(Stdio::null());
        for kept in ["PATH", "LD_LIBRARY_PATH"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        // Its messages are matched, so they must be in English; UTC saves initdb the search for the local time zone.
        command.env("LC_ALL", "C").env("TZ", "UTC");
        run_as(&mut command, self.user);
        command
    }

    /// Deletes the data, if there are any, and nothing else.
    pub(crate) fn delete_data(&self) -> Result<(), Error> {
        let data = self.data();
        if data.exists() { fs::remove_dir_all(&data).map_err(Error::file("delete", &data)) } else { Ok(()) }
    }

    /// Deletes the cluster.
    pub(crate) fn delete(&self) -> io::Result<()> {
        for dir in [&self.home, &self.socket_dir] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// The name of a cluster's directory outside the data directory.
fn name_of(data_dir: &Path) -> String {
    format!("sessiond-{:016x}", fnv1a(data_dir.as_os_str().as_bytes()))
}

/// Runs a command to its end. Kills it if the caller is cancelled: a stray initdb would disturb the next one.
pub(crate) async fn run(command: Command) -> Result<Output, Error> {
    let program = PathBuf::from(command.get_program());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdin(Stdio::null()).output().await.map_err(Error::run(&program))
}

fn run_as(command: &mut Command, user: Option<User>) {
    if let Some(user) = user {
        // Setting the user also drops root's supplementary groups.
        command.uid(user.uid).gid(user.gid);
    }
}

/// The user for root's server: the one that packages create for Postgres, or else `nobody`.
fn unprivileged_user() -> Result<User, Error> {
    for name in ["postgres", "nobody"] {
        if let (Some(uid), Some(gid)) = (id("-u", Some(name))?, id("-g", Some(name))?) {
            return Ok(User { uid, gid });
        }
    }
    Err(Error::NoUser)
}

/// Runs `id`, which every Unix has; the system calls would need `unsafe`. `None` for an unknown name.
fn id(flag: &str, name: Option<&str>) -> Result<Option<u32>, Error> {
    let mut command = Command::new("id");
    let output = command.arg(flag).args(name).stdin(Stdio::null()).output().map_err(Error::run(Path::new("id")))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok())
}

/// Whether the user can enter a directory. Tested, not computed from modes, which do not cover ACLs and mounts.
fn can_enter(user: Option<User>, dir: &Path) -> bool {
    let mut command = Command::new("true");
    run_as(&mut command, user);
    command.current_dir(dir).stdin(Stdio::null()).status().is_ok()
}

/// Creates a directory that only `owner` can enter, or checks that an existing one is such.
///
/// Others may know the name, and `/tmp` is writable for all, so an existing entry is not trusted.
fn make_private(dir: &Path, us: u32, owner: User) -> Result<(), Error> {
    let refuse = |reason| Err(Error::NotPrivate { path: dir.to_path_buf(), reason });
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::file("create", dir)(error)),
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(dir).map_err(Error::file("examine", dir))?;
    if !found.is_dir() {
        return refuse("it is a symbolic link or a file");
    }
    if found.uid() != owner.uid && found.uid() != us {
        return refuse("it belongs to another user");
    }
    if found.mode() & 0o077 != 0 {
        return refuse("it is open to other users (its mode is not 0700)");
    }
    if found.uid() != owner.uid {
        lchown(dir, Some(owner.uid), Some(owner.gid)).map_err(Error::file("hand over", dir))?;
    }
    Ok(())
}

/// FNV-1a: stable across releases, which the standard library's hasher does not guarantee.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory for one test, deleted at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("sessiond-place-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).expect("the temporary directory is writable");
            Self(dir.canonicalize().expect("it was just created"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ourselves() -> User {
        let number = |flag| id(flag, None).expect("id runs").expect("and prints a number");
        User { uid: number("-u"), gid: number("-g") }
    }

    fn reason(refused: Result<(), Error>) -> String {
        refused.expect_err("it is not private").to_string()
    }

    #[test]
    fn a_private_directory_is_made_once_and_recognised_afterwards() {
        let scratch = Scratch::new("made");
        let (dir, us) = (scratch.0.join("home"), ourselves());
        make_private(&dir, us.uid, us).expect("it is made");
        assert_eq!(fs::metadata(&dir).expect("it exists").mode() & 0o777, 0o700);
        make_private(&dir, us.uid, us).expect("it is recognised");
    }

    #[test]
    fn what_somebody_else_prepared_is_refused() {
        let scratch = Scratch::new("refused");
        let us = ourselves();

        let open = scratch.0.join("open");
        fs::create_dir(&open).expect("it is made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("it is ours");
        assert!(reason(make_private(&open, us.uid, us)).contains("open to other users"));

        let link = scratch.0.join("link");
        symlink(&open, &link).expect("it is made");
        assert!(reason(make_private(&link, us.uid, us)).contains("symbolic link"));

        let foreign = scratch.0.join("foreign");
        make_private(&foreign, us.uid, us).expect("it is made");
        let other = User { uid: us.uid + 1, gid: us.gid };
        assert!(reason(make_private(&foreign, other.uid, other)).contains("another user"));
    }

    #[test]
    fn what_a_killed_test_left_behind_is_swept() {
        let scratch = Scratch::new("swept");
        let [gone, kept] = ["gone", "kept"].map(|name| scratch.0.join(format!("{name}-{}", "a".repeat(120))));
        let places = [&gone, &kept].map(|data_dir| {
            fs::create_dir(data_dir).expect("it is made");
            Place::settle(data_dir).expect("it has a place")
        });
        fs::remove_dir_all(&gone).expect("somebody deletes it");
        let held = Lock::take(&places[0].socket_dir).expect("a live one");
        Place::sweep();
        assert!(places[0].socket_dir.exists(), "in use");
        drop(held);
        // A process that another test is just starting may hold the lock for a moment: it inherits all files until it is another
        // program.
        for _ in 0..100 {
            Place::sweep();
            if !places[0].socket_dir.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(places.each_ref().map(|place| place.socket_dir.exists()), [false, true]);
        places[1].delete().expect("it can be deleted");
    }

    #[test]
    fn a_data_directory_with_a_long_name_gets_a_short_socket() {
        let scratch = Scratch::new("long");
        let long = scratch.0.join("a".repeat(120));
        fs::create_dir(&long).expect("it is made");
        let place = Place::settle(&long).expect("it has a place");
        assert_eq!(place.home, long.join("postgres"));
        assert!(place.socket().as_os_str().len() <= SOCKET_PATH_MAX, "{}", place.socket().display());
        assert_eq!(Place::settle(&long).expect("it is there"), place, "the same directory has the same place");
        place.delete().expect("it can be deleted");
        assert!(!place.home.exists() && !place.socket_dir.exists());
    }
}
