//! A private Postgres, for `sessiond dev` and for the tests: nothing to set up, nothing left behind.
//!
//! ```text
//! sessiond ── stdin, stdout ──▶ sessiond postgres-watchdog ──▶ postgres ──▶ <home>/.s.PGSQL.5432
//! ```
//!
//! The server listens on a Unix socket in a directory that is closed to other users, and on no network, so it needs no
//! password. It runs for as long as its owner: the watchdog stops it when its standard input closes, which the kernel
//! sees to even after a `kill -9`. If the watchdog was killed too, the next start stops the orphan.

mod binaries;
mod create;
mod error;
mod lock;
mod options;
mod orphan;
mod place;
mod server;
mod watchdog;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_encode;
use tokio::time;

use crate::binaries::Binaries;
use crate::lock::Lock;
use crate::options::ROLE;
use crate::place::Place;
use crate::server::Server;
use crate::watchdog::WatchdogArgs;

pub use crate::error::Error;
pub use crate::options::Durability;
pub use crate::options::Mode;
pub use crate::options::Options;
pub use crate::watchdog::WATCHDOG_COMMAND;
pub use crate::watchdog::watchdog_main;

/// How often a start is retried while processes of an older server still use the data, and the pause between attempts:
/// about ten seconds in total.
const ATTEMPTS_MAX: u32 = 100;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// Characters that stay unencoded in the URL, for readability.
const URL_PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn url_of(socket_dir: &Path, database: &str) -> String {
    let socket_dir = percent_encode(socket_dir.as_os_str().as_bytes(), &URL_PLAIN);
    format!("postgres://{ROLE}@{socket_dir}/{}", percent_encode(database.as_bytes(), &URL_PLAIN))
}

/// A Postgres server that runs for as long as this value, or at most this process.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    binaries: Binaries,
    place: Place,
    is_new: bool,
    // Drop order: the server is dropped before the lock that protects it.
    server: Option<Server>,
    lock: Lock,
    // Locks a home outside the data directory, so that no other process deletes it as a leftover.
    _home_lock: Option<Lock>,
}

impl Cluster {
    /// Starts the cluster, creating it if needed. Returns once it accepts connections.
    ///
    /// # Errors
    ///
    /// Fails if no server is installed, another process uses the directory, a directory is not private, or the server
    /// does not start.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let installed = Binaries::installed(options.postgres_bin.as_deref())?;
        let lock = Lock::take(&options.data_dir)?;
        let place = Place::settle(lock.dir())?;
        let home_lock = place.is_outside(lock.dir()).then(|| Lock::take(&place.home)).transpose()?;
        Place::sweep();
        let binaries = Binaries::choose(installed, &place)?;
        if options.durability == Durability::Disposable {
            // There is one only if an owner and its watchdog were both killed.
            orphan::stop(&place, &binaries).await?;
            place.delete_data()?;
        }
        let is_new = place.version().is_none();
        if is_new {
            create::cluster(&place, &binaries, options.durability).await?;
        }
        let mut cluster = Self { options, binaries, place, is_new, server: None, lock, _home_lock: home_lock };
        if let Err(error) = cluster.start_server().await {
            // Only to delete a disposable cluster; report the first error.
            let _ = cluster.stop().await;
            return Err(error);
        }
        tracing::info!(home = %cluster.place.home.display(), is_new, "Postgres is ready");
        Ok(cluster)
    }

    /// Deletes a cluster outside the data directory that outlived an earlier data directory at this path; for a new
    /// data directory. Returns the path of what was deleted.
    ///
    /// # Errors
    ///
    /// See [`Cluster::start`]; in particular, fails if another process runs the cluster.
    pub async fn delete_outlived(options: &Options) -> Result<Option<PathBuf>, Error> {
        let installed = Binaries::installed(options.postgres_bin.as_deref())?;
        let lock = Lock::take(&options.data_dir)?;
        let place = Place::settle(lock.dir())?;
        if !place.is_outside(lock.dir()) || place.version().is_none() {
            return Ok(None);
        }
        let _home_lock = Lock::take(&place.home)?;
        // Any version will do: nothing is started.
        if let Some(binaries) = installed.first() {
            orphan::stop(&place, binaries).await?;
        }
        place.delete().map_err(Error::file("delete", &place.home))?;
        Ok(Some(place.home))
    }

    /// Whether this start created the cluster, so that it contains no data yet.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The URL of a database, for libpq and compatible clients: over the socket, as superuser, without a password.
    pub fn database_url(&self, database: &str) -> String {
        url_of(&self.place.socket_dir, database)
    }

    /// Whether `url` is what [`Cluster::database_url`] returns for the cluster of an existing data directory.
    pub fn is_at(data_dir: &Path, database: &str, url: &str) -> bool {
        let dirs = data_dir.canonicalize().map(|data_dir| Place::socket_dirs(&data_dir));
        dirs.is_ok_and(|dirs| dirs.iter().any(|dir| url_of(dir, database) == url))
    }

    /// The path of the socket, for a proxy. It stays the same across restarts.
    pub fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    /// The server's log. The log of the previous run is beside it, with `.1` appended.
    pub fn log(&self) -> PathBuf {
        self.place.log()
    }

    /// The process id of the server; the last one's, if it was killed.
    pub fn server_pid(&self) -> Option<u32> {
        self.place.pid_file()?.first()?.parse().ok()
    }

    /// Waits until the server has exited by itself: it or its watchdog was killed. [`Cluster::start_server`] restarts
    /// it. Returns at once if no server was started.
    pub async fn exited(&self) {
        if let Some(server) = &self.server {
            server.gone().await;
        }
    }

    /// Stops the server, and keeps the data, the lock and the socket's path. Idempotent.
    pub async fn stop_server(&mut self, mode: Mode) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            server.stop(mode).await?;
        }
        // Still running only if its watchdog was killed.
        orphan::stop(&self.place, &self.binaries).await
    }

    /// Starts the server again, with the same data and socket.
    pub async fn start_server(&mut self) -> Result<(), Error> {
        self.stop_server(Mode::Fast).await?;
        server::rotate(&self.place.log())?;
        let args = self.args();
        let mut attempts = 1;
        loop {
            let server = Server::spawn(&self.options.watchdog, &args)?;
            match server.ready().await {
                Ok(()) => {
                    self.server = Some(server);
                    return Ok(());
                }
                Err(Error::Exited { tail, .. }) if attempts < ATTEMPTS_MAX && orphan::is_occupied(&tail) => {
                    attempts += 1;
                    orphan::delete_stale_pid_files(&self.place)?;
                    time::sleep(ATTEMPT_PAUSE).await;
                    orphan::stop(&self.place, &self.binaries).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops the cluster for good. A disposable one is deleted.
    ///
    /// Dropping the cluster does the same, without waiting or reporting errors.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.stop_server(Mode::Fast).await?;
        let Self { options, place, lock, .. } = self;
        match options.durability {
            Durability::Full => Ok(()),
            Durability::Disposable => {
                place.delete().map_err(Error::file("delete", &place.home))?;
                lock.discard().map_err(Error::file("delete", &options.data_dir))
            }
        }
    }

    fn args(&self) -> WatchdogArgs {
        let discard = match self.options.durability {
            Durability::Full => None,
            Durability::Disposable => Some(self.lock.dir().to_path_buf()),
        };
        let mut postgres: Vec<OsString> = vec!["-D".into(), self.place.data().into()];
        for (name, value) in self.settings() {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(value);
            postgres.extend(["-c".into(), setting]);
        }
        WatchdogArgs { binaries: self.binaries.dir().to_path_buf(), place: self.place.clone(), discard, postgres }
    }

    /// On the command line and not in `postgresql.conf`, so that they apply to a cluster of any age and to its copies.
    fn settings(&self) -> Vec<(&str, OsString)> {
        // A list of paths, hence the quotes: otherwise a comma in the path would separate two.
        let mut socket_dir = OsString::from("\"");
        socket_dir.push(&self.place.socket_dir);
        socket_dir.push("\"");
        let flush = match self.options.durability {
            Durability::Full => "on",
            Durability::Disposable => "off",
        };
        let mut settings: Vec<(&str, OsString)> = vec![
            ("listen_addresses", "".into()),
            ("unix_socket_directories", socket_dir),
            ("unix_socket_permissions", "0700".into()),
            ("port", "5432".into()),
            ("logging_collector", "off".into()),
            ("log_destination", "stderr".into()),
            ("fsync", flush.into()),
            ("full_page_writes", flush.into()),
            // Costs nothing without fsync; and `serve` refuses a database that has it off.
            ("synchronous_commit", "on".into()),
        ];
        settings.extend(self.options.settings.iter().map(|(name, value)| (name.as_str(), value.into())));
        let left = |name: &str| self.options.settings.iter().any(|(other, value)| other == name && value.is_empty());
        settings.retain(|(name, _)| !left(name));
        settings
    }
}
