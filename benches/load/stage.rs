//! What a measurement needs: a Postgres with full durability, and `sessiond serve` as a process of its own.

use std::fs;
use std::fs::File;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use dev_postgres::Cluster;
use dev_postgres::Durability;
use rustix::process::Pid;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::Signal;
use rustix::process::getrlimit;
use rustix::process::kill_process;
use rustix::process::setrlimit;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sessiond::app::App;
use sessiond::app::KeyCache;
use sessiond::store::Options;
use sessiond::store::RequiredDurability;
use sessiond::store::Role;
use sessiond::store::Store;
use sessiond::telemetry::Metrics;
use sessiond_core::clock::Clock;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::sealing::Sealer;
use sessiond_core::token::sealing::SealingKey;
use tokio_postgres::NoTls;

use crate::Outcome;
use crate::baseline::Null;
use crate::baseline::Pgbench;
use crate::peers::RunningPeer;
use crate::sessions::Sessions;

pub(crate) const PROJECT: &str = "demo";
pub(crate) const ISSUER: &str = "https://sessions.example.org";
/// The server that was built with the bench.
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_sessiond");

/// How long a process may take to start.
const START_MAX: Duration = Duration::from_secs(30);

/// How long a process may take to stop.
const STOP_MAX: Duration = Duration::from_secs(5);

/// More open files than the usual limit of 1,024: 4,096 connections and some.
const OPEN_FILES: u64 = 16_384;

/// Everything that runs during a measurement. Stops with this process.
pub(crate) struct Stage {
    pub(crate) addr: SocketAddr,
    pub(crate) server_key: String,
    pub(crate) sessions: Sessions,
    pub(crate) pgbench: Pgbench,
    pub(crate) null: Null,
    /// What to know about the run, in words.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// The peer that is being measured.
    pub(crate) peer: Option<RunningPeer>,
    server: Process,
    pub(crate) cluster: Cluster,
}

/// A child that is stopped when it is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    stop: Signal,
}

impl Process {
    /// A child that is killed.
    pub(crate) const fn killed(child: Child) -> Self {
        Self { child, stop: Signal::KILL }
    }

    /// A child that stops its own children when it is told to stop.
    pub(crate) const fn terminated(child: Child) -> Self {
        Self { child, stop: Signal::TERM }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // These fail only if the process has exited.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, self.stop);
        }
        let told = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if told.elapsed() > STOP_MAX {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Stage {
    /// Starts Postgres and the server, with a project of this policy. Each flush of Postgres takes `flush_delay` µs longer.
    pub(crate) async fn start(dir: Option<PathBuf>, server: &Path, policy: Policy, flush_delay: u32) -> Outcome<Self> {
        let dir = dir.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR"))).join("load");
        println!("starting Postgres in {} and {}", dir.display(), server.display());
        let cluster = start_postgres(&dir, flush_delay).await?;
        let url = cluster.database_url("postgres");
        let (database, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);

        let sealing = SealingKey::generate();
        let (app, server_key) = prepare(&url, &sealing, policy).await?;
        let sessions = Sessions::write(database, app.keys().snapshot(), Clock::system()).await?;
        let log = target_dir().join("load.log");
        let (server, addr) = start_server(server, &url, &sealing, &log)?;
        ready(addr).await?;
        let pgbench = Pgbench::prepare(&cluster, &sessions).await?;
        let facts = facts(&sessions, &dir).await?;
        for (name, fact) in &facts {
            println!("  {name:<12} {fact}");
        }
        let server_key = server_key.expose_secret().to_owned();
        Ok(Self { addr, server_key, sessions, pgbench, null: Null::start()?, facts, peer: None, server, cluster })
    }

    pub(crate) fn server_pid(&self) -> u32 {
        self.server.child.id()
    }

    pub(crate) fn postgres_pid(&self) -> u32 {
        self.cluster.server_pid().unwrap_or_default()
    }

    /// Stops everything, and deletes the data.
    pub(crate) async fn stop(self) -> Outcome<()> {
        drop(self.peer);
        drop(self.server);
        delete(self.cluster).await
    }
}

async fn start_postgres(dir: &Path, flush_delay: u32) -> Outcome<Cluster> {
    // As on a server of some size: the defaults are for the smallest machines. They affect all that is compared.
    let settings = [("max_connections", "400"), ("shared_buffers", "1GB"), ("max_wal_size", "4GB")];
    let mut settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    if flush_delay > 0 {
        // The delay comes before the flush, and all commits that wait for the flush share it, as with a slower disk.
        settings.push(("commit_delay".to_owned(), flush_delay.to_string()));
        settings.push(("commit_siblings".to_owned(), "0".to_owned()));
    }
    let options = || dev_postgres::Options {
        data_dir: dir.to_owned(),
        postgres_bin: None,
        watchdog: SERVER.into(),
        settings: settings.clone(),
        durability: Durability::Full,
    };
    let cluster = Cluster::start(options()).await?;
    if cluster.is_new() {
        return Ok(cluster);
    }
    // An earlier run was killed.
    delete(cluster).await?;
    Ok(Cluster::start(options()).await?)
}

async fn delete(cluster: Cluster) -> Outcome<()> {
    let home = cluster.log().parent().ok_or("a log is in a directory")?.to_owned();
    cluster.stop().await?;
    Ok(fs::remove_dir_all(home)?)
}

/// Creates the tables, the project and a server key.
async fn prepare(url: &str, sealing: &SealingKey, policy: Policy) -> Outcome<(App, SecretString)> {
    let options = Options {
        url: url.to_owned().into(),
        password: None,
        listen_url: None,
        trusted_certificates: None,
        connections_max: 4,
        connect_timeout: Duration::from_secs(5),
        operation_timeout: Duration::from_secs(60),
        required_durability: RequiredDurability::Durable,
    };
    let (store, clock) = (Store::new(&options, Metrics::default())?, Clock::system());
    store.migrate().await?;
    store.correct(&clock).await?;
    let keys = KeyCache::new(store.clone(), Sealer::new(sealing, None));
    let app = App::new(store, keys, Issuer::new(ISSUER), clock);
    let project = ProjectId::parse(PROJECT).ok_or("a name")?;
    app.project_create(project.clone(), policy).await?;
    app.keys().reload().await?;
    let (_, key) = app.server_key_create(project, Role::Service).await?;
    Ok((app, key))
}

/// Starts the server in production's settings, without rate limits: all clients have one address and one project.
fn start_server(program: &Path, url: &str, sealing: &SealingKey, log: &Path) -> Outcome<(Process, SocketAddr)> {
    // Free a moment ago.
    let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(program);
    command.args(["serve", "--listen", &addr.to_string(), "--metrics-listen", "127.0.0.1:0", "--issuer", ISSUER]);
    for rate in ["--address-rate", "--verify-rate", "--user-rate", "--project-rate", "--server-key-rate"] {
        command.args([rate, "0"]);
    }
    command.env("DATABASE_URL", url).env("SESSIOND_SEALING_KEY", sealing.expose().as_str());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?);
    Ok((Process::killed(command.spawn()?), addr))
}

async fn ready(addr: SocketAddr) -> Outcome<()> {
    use tokio::io::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;

    let started = Instant::now();
    loop {
        let answered = async {
            let mut socket = tokio::net::TcpStream::connect(addr).await?;
            socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await?;
            Outcome::Ok(answer)
        };
        match answered.await {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(_) | Err(_) if started.elapsed() < START_MAX => tokio::time::sleep(Duration::from_millis(20)).await,
            Ok(answer) => return Err(format!("the server is not ready: {answer}").into()),
            Err(error) => return Err(format!("the server does not answer: {error}").into()),
        }
    }
}

async fn facts(sessions: &Sessions, dir: &Path) -> Outcome<Vec<(&'static str, String)>> {
    let settings = sessions
        .text(
            "SELECT string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name) FROM pg_settings
             WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_sync_method', 'shared_buffers',
                 'max_wal_size', 'commit_delay', 'max_connections')",
        )
        .await?;
    let version = sessions.text("SELECT current_setting('server_version')").await?;
    let data = PathBuf::from(sessions.text("SELECT current_setting('data_directory')").await?);
    let filesystem = filesystem(&data).unwrap_or_else(|| "unknown".to_owned());
    if filesystem == "tmpfs" {
        println!("  WARNING: {} is in memory, where flushes cost nothing; choose a disk with --dir", dir.display());
    }
    if settings.contains("fsync off") || settings.contains("synchronous_commit off") {
        return Err(format!("Postgres is not durable: {settings}").into());
    }
    let build = if cfg!(debug_assertions) { "debug: the results mean nothing" } else { "release" };
    let cores = std::thread::available_parallelism()?;
    Ok(vec![
        ("machine", format!("{cores} cores, shared by clients, server and Postgres")),
        ("build", build.to_owned()),
        ("Postgres", format!("{version} on {filesystem}: {settings}")),
        // They were written at once, and have not changed.
        ("a session", sessions.size("sessions").await?.unwrap_or_default()),
        ("sessiond", "serve, with its defaults, but without rate limits".to_owned()),
    ])
}

/// The type of the file system that holds a directory.
fn filesystem(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    });
    let holding = mounts.filter(|(point, _)| dir.starts_with(point));
    holding.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind)
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp).to_owned()
}

pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < OPEN_FILES) {
        let raised = maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
        // If that is refused, connections fail with an error about it.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    }
}
