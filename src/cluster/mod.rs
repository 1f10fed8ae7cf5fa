//! A Postgres of our own, for `sessiond dev` and for the tests: nothing to set up, nothing left behind.
//!
//! ```text
//! sessiond ── stdin, stdout ──▶ sessiond postgres-watchdog ──▶ postgres ──▶ <home>/.s.PGSQL.5432
//! ```
//!
//! The server listens on a Unix socket in a directory that is closed to other users, and on no network, so it needs no
//! password. It runs for as long as its owner: the watchdog stops it when its standard input closes, which the kernel
//! sees to even after a `kill -9`. If the watchdog was killed too, the next start stops the orphan.

mod binaries;
mod error;
mod lock;
mod place;
mod server;
mod watchdog;

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_encode;
use tokio::time;

use self::binaries::Binaries;
use self::lock::Lock;
use self::place::Place;
use self::server::Server;
use self::watchdog::Orders;

pub use self::error::Error;
pub use self::watchdog::WATCHDOG_COMMAND;
pub use self::watchdog::watchdog_main;

/// The only role of the cluster, and a superuser. Whoever reaches the socket may take it.
const ROLE: &str = "postgres";

/// How often a start is tried again while processes of an older server still hold the data, and the pause between tries.
/// Together they are a bound of about ten seconds.
const ATTEMPTS_MAX: u32 = 100;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a server that was left behind gets to stop before the start gives up.
const ORPHAN_STOP_MAX_SECONDS: u32 = 30;

/// What percent-encoding leaves alone in a URL, for the sake of those who read it.
const URL_PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the cluster belongs, created if need be: it is `postgres` in here.
    ///
    /// For root, whose server runs under another user, it is elsewhere if that user cannot reach this directory.
    pub data_dir: PathBuf,
    /// Where the server's programs are. `None` looks on PATH and where packagers put them.
    pub postgres_bin: Option<PathBuf>,
    /// An executable that calls [`watchdog_main`] when its first argument is [`WATCHDOG_COMMAND`]: usually this one.
    pub watchdog: PathBuf,
    /// More settings of Postgres. They come last, so they win over ours.
    pub settings: Vec<(String, String)>,
    /// What the data are worth.
    pub durability: Durability,
}

/// What a cluster's data are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// What is committed stays, whatever is killed and however the machine goes down.
    Full,
    /// Survives the server's processes but not the machine's, and is deleted when its owner ends. For tests.
    Disposable,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Ends all connections and writes a checkpoint.
    Fast,
    /// Ends all processes at once; the next start recovers from the log, as after a crash.
    Immediate,
}

/// A Postgres that lives as long as this value, or this process, and no longer.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    binaries: Binaries,
    place: Place,
    is_new: bool,
    // The server before the lock: fields are dropped in this order, and the lock outlives what it protects.
    server: Option<Server>,
    lock: Lock,
}

impl Cluster {
    /// Starts the cluster, and creates it first if there is none. Ready when this returns.
    ///
    /// An error names what is in the way: no server installed, another `sessiond` on the same directory, a directory
    /// that is not private, or the last words of a server that did not start.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let installed = Binaries::installed(options.postgres_bin.as_deref())?;
        let lock = Lock::take(&options.data_dir)?;
        let place = Place::settle(lock.dir())?;
        let binaries = Binaries::choose(installed, &place)?;
        if options.durability == Durability::Disposable {
            // There is something only if an owner and its watchdog were both killed.
            stop_orphan(&place, &binaries).await?;
            remove(&place.data())?;
        }
        let is_new = place.version().is_none();
        if is_new {
            create(&place, &binaries, options.durability).await?;
        }
        let mut cluster = Self { options, binaries, place, is_new, server: None, lock };
        cluster.start_server().await?;
        tracing::info!(home = %cluster.place.home.display(), is_new, "Postgres is ready");
        Ok(cluster)
    }

    /// Whether this start created it, so that it holds nothing yet.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Where a client of libpq's kind finds a database: over the socket, as superuser, without a password.
    pub fn database_url(&self, database: &str) -> String {
        let socket_dir = percent_encode(self.place.socket_dir.as_os_str().as_bytes(), &URL_PLAIN);
        format!("postgres://{ROLE}@{socket_dir}/{}", percent_encode(database.as_bytes(), &URL_PLAIN))
    }

    /// The socket itself, for a proxy in front of it. The same after every start.
    pub fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    /// What the server writes to; what it wrote before its last start is beside it, with `.1` appended.
    pub fn log(&self) -> PathBuf {
        self.place.log()
    }

    /// The process id of the server, while it runs.
    pub fn server_pid(&self) -> Option<u32> {
        self.place.pid_file()?.first()?.parse().ok()
    }

    /// Waits until the server is gone without having been told to: it, or its watchdog, was killed.
    /// [`Cluster::start_server`] brings it back.
    pub async fn exited(&self) {
        if let Some(server) = &self.server {
            server.gone().await;
        }
    }

    /// Stops the server and keeps the rest: the data, the lock and the place of the socket. Twice is fine.
    pub async fn stop_server(&mut self, mode: Mode) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            server.stop(mode).await?;
        }
        // Still there only if its watchdog was killed.
        stop_orphan(&self.place, &self.binaries).await
    }

    /// Starts the server again, over the same data and socket.
    pub async fn start_server(&mut self) -> Result<(), Error> {
        self.stop_server(Mode::Fast).await?;
        server::rotate(&self.place.log())?;
        let orders = self.orders();
        let mut attempts = 1;
        loop {
            let server = Server::spawn(&self.options.watchdog, &orders)?;
            match server.ready().await {
                Ok(()) => {
                    self.server = Some(server);
                    return Ok(());
                }
                Err(Error::Exited { tail, .. }) if attempts < ATTEMPTS_MAX && is_occupied(&tail) => {
                    attempts += 1;
                    forget_strangers(&self.place)?;
                    time::sleep(ATTEMPT_PAUSE).await;
                    stop_orphan(&self.place, &self.binaries).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops the cluster for good. A disposable one leaves nothing behind.
    ///
    /// Dropping it does the same without waiting for the end, or hearing of trouble.
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

    fn orders(&self) -> Orders {
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
        Orders { binaries: self.binaries.dir().to_path_buf(), place: self.place.clone(), discard, postgres }
    }

    /// On the command line and not in `postgresql.conf`, so that they hold for a cluster of any age and for its copies.
    fn settings(&self) -> Vec<(&str, OsString)> {
        // A list of paths, hence the quotes: without them, a comma in the path would end it.
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
            // Costs nothing without fsync, and `serve` refuses a database that has it off.
            ("synchronous_commit", "on".into()),
        ];
        settings.extend(self.options.settings.iter().map(|(name, value)| (name.as_str(), value.into())));
        settings
    }
}

/// Creates the data where they do not look like a cluster's until they are one: a crash in between costs nothing.
async fn create(place: &Place, binaries: &Binaries, durability: Durability) -> Result<(), Error> {
    const UNFINISHED: &str = "data.unfinished.";
    let entries = fs::read_dir(&place.home).map_err(Error::file("read", &place.home))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        // The initdb of an owner that was just killed may still write there; then it stays until the next time.
        let _ = fs::remove_dir_all(entry.path());
    }

    let unfinished = place.home.join(format!("{UNFINISHED}{}", std::process::id()));
    let mut initdb = place.command(&binaries.program("initdb"));
    initdb.arg("--pgdata").arg(&unfinished).args(["--username", ROLE]);
    initdb.args(["--encoding", "UTF8", "--locale", "C", "--auth-local", "trust", "--auth-host", "reject"]);
    match durability {
        Durability::Full => {}
        Durability::Disposable => drop(initdb.arg("--no-sync")),
    }
    let output = run(initdb).await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Failed { program: "initdb", status: output.status, output: said });
    }
    fs::rename(&unfinished, place.data()).map_err(Error::file("rename", &unfinished))?;
    let home = File::open(&place.home).and_then(|home| home.sync_all());
    home.map_err(Error::file("sync", &place.home))
}

/// Stops a server that nobody minds any more. The caller holds the lock, so it is no one else's.
async fn stop_orphan(place: &Place, binaries: &Binaries) -> Result<(), Error> {
    // The process id in a file can by now be any process's. Whoever answers on the socket is the server.
    let is_running = || place.pid_file().is_some() && UnixStream::connect(place.socket()).is_ok();
    if !is_running() {
        return Ok(());
    }
    let mut pg_ctl = place.command(&binaries.program("pg_ctl"));
    pg_ctl.args(["stop", "--mode", "fast", "--wait", "--timeout", &ORPHAN_STOP_MAX_SECONDS.to_string()]);
    pg_ctl.arg("--pgdata").arg(place.data());
    // It also fails if the server's old watchdog was faster. What counts is that it is gone.
    run(pg_ctl).await?;
    if is_running() {
        return Err(Error::TooSlow { action: "stop", seconds: ORPHAN_STOP_MAX_SECONDS.into(), log: place.log() });
    }
    Ok(())
}

/// Whether a start failed only because an older server, or what is left of one, has the data. That passes.
fn is_occupied(tail: &str) -> bool {
    (tail.contains("lock file \"") && tail.contains("\" already exists"))
        || tail.contains("pre-existing shared memory block")
}

/// Removes pid files that outlived a crash of the machine and now name some other program, which Postgres would
/// take for a server and wait for. A file that names a Postgres stays: that one is on its way out.
fn forget_strangers(place: &Place) -> Result<(), Error> {
    let socket_lock = place.socket_dir.join(".s.PGSQL.5432.lock");
    for path in [place.data().join("postmaster.pid"), socket_lock] {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let pid: Option<u32> = text.lines().next().and_then(|line| line.trim().parse().ok());
        let Some(name) = pid.and_then(process_name) else { continue };
        if !name.contains("postgres") && !name.contains("postmaster") {
            tracing::warn!(path = %path.display(), name, "removing the pid file of a server that is long gone");
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

/// What program a process runs, if that can be told.
fn process_name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).or_else(|_| {
        let ps = std::process::Command::new("ps").args(["-o", "comm=", "-p", &pid.to_string()]).output();
        ps.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    name.ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Deletes a directory that may not be there.
fn remove(dir: &Path) -> Result<(), Error> {
    if dir.exists() { fs::remove_dir_all(dir).map_err(Error::file("delete", dir)) } else { Ok(()) }
}

async fn run(command: std::process::Command) -> Result<Output, Error> {
    let program = PathBuf::from(command.get_program());
    // The program is ended when we are cancelled; a stray initdb would be in the next one's way.
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdin(Stdio::null()).output().await.map_err(Error::run(&program))
}
