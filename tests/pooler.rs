//! Behind a real pgbouncer: incompatible poolers are detected, and we leave no state on shared connections.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dev_postgres::Cluster;
use sessiond::{
    app::NotReady,
    store::{Options, ReachError, RequiredDurability, Store},
    telemetry::Metrics,
};
use tokio::{io::copy_bidirectional, time::timeout};
use uuid::Uuid;

use crate::{
    binary::{assert_says, sessiond},
    harness::{
        SEALING_KEY, Service,
        database::{Database, connect, fresh_dir, rows},
        eventually, options,
        pair::durable,
        proxy::Proxy,
        serving::free_port,
    },
};

/// For waits that are not about deadlines.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pgbouncer in front of the tests' Postgres. Killed on drop.
pub struct Pooler {
    process: Child,
    pub url: String,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pgbouncer() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places.map(|place| place.join("pgbouncer")).find(|program| program.exists())
}

/// Whether it can track prepared statements: 1.21 or later.
pub fn keeps_track() -> bool {
    let version = pgbouncer().map(|program| Command::new(program).arg("--version").output().expect("runs").stdout);
    let version = String::from_utf8(version.unwrap_or_default()).expect("text");
    let minor = version.split_whitespace().nth(1).and_then(|version| version.split('.').nth(1)?.parse().ok());
    minor.is_some_and(|minor: u32| minor >= 21)
}

impl Pooler {
    /// `None`, with a message, if pgbouncer is not installed: ./test installs it if the package manager has it.
    pub async fn before(database: &Database, settings: &str) -> Option<Self> {
        let Some(program) = pgbouncer() else {
            eprintln!("skipped: pgbouncer is not installed");
            return None;
        };
        let rest = database.url.strip_prefix("postgres://postgres@").expect("the tests' own");
        let (socket, name) = rest.split_once('/').expect("a database");
        let socket = percent_encoding::percent_decode_str(socket).decode_utf8().expect("UTF-8");
        let port = free_port().port();
        let dir = fresh_dir(&format!("pgbouncer-{port}"));
        fs::create_dir_all(&dir).expect("creates");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("opens");
        let file = dir.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={socket} port=5432 user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\nserver_lifetime = 3600\n{settings}\n"
        );
        fs::write(&file, text).expect("writes");
        // It does not run as root, and the socket belongs to the user that runs Postgres.
        let owner = fs::metadata(Path::new(&*socket)).expect("is there");
        let mut command = Command::new(program);
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0) {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let process = command.spawn().expect("starts");
        let url = format!("postgres://postgres@127.0.0.1:{port}/{name}?sslmode=disable");
        let pooler = Self { process, url };
        eventually("pgbouncer answers", async || {
            tokio_postgres::connect(&pooler.url, tokio_postgres::NoTls).await.is_ok()
        })
        .await;
        Some(pooler)
    }
}

/// pgbouncer before 1.21, or a later one with max_prepared_statements = 0, in transaction mode.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_loses_prepared_statements_is_detected_at_the_start() {
    let database = Database::create().await;
    let mut settings = "pool_mode = transaction\ndefault_pool_size = 8".to_owned();
    if keeps_track() {
        settings.push_str("\nmax_prepared_statements = 0");
    }
    let Some(pooler) = Pooler::before(&database, &settings).await else { return };
    let store = Store::new(&options(&pooler.url), Metrics::default()).expect("a good URL");
    for _ in 0..3 {
        assert!(matches!(store.reach().await, Err(ReachError::StatementsLost)));
    }
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let serve = sessiond(&serve, &[("DATABASE_URL", &pooler.url), ("SESSIOND_SEALING_KEY", SEALING_KEY)]);
    assert_says(&serve, false, "loses prepared statements");
    assert_says(&serve, false, "max_prepared_statements");
    assert_says(&serve, false, "pool_mode = session");
}

/// In session mode a connection is ours for as long as it lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_session_mode_works() {
    let database = Database::create().await;
    let Some(pooler) = Pooler::before(&database, "pool_mode = session\ndefault_pool_size = 60").await else { return };
    let url = pooler.url.clone();
    Store::new(&options(&url), Metrics::default()).expect("a good URL").reach().await.expect("nothing is lost");
    let service = Service::start_on(Database { url }).await;
    for _ in 0..3 {
        let mut phone = service.sign_in("ada", "phone").await;
        phone.refresh().await.expect("refreshes");
        phone.sign_out().await.expect("signs out");
    }
    service.becomes_ready().await;
}

/// `--database-listen-url`: the way around a pooler.
#[tokio::test(flavor = "multi_thread")]
async fn the_connection_that_listens_may_have_a_url_of_its_own() {
    let database = Database::create().await;
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let around = Proxy::to(&database, move |mut client, mut server| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { drop(copy_bidirectional(&mut client, &mut server).await) }
    })
    .await;
    let options = Options { listen_url: Some(around.url.clone().into()), ..options(&database.url) };
    let store = Store::new(&options, Metrics::default()).expect("good URLs");
    store.writes_refused().await.expect("answers");
    assert_eq!(connections.load(Ordering::Relaxed), 0, "statements go by the first URL");

    let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut doorbell = store.doorbell(PATIENCE).await.expect("listens");
    assert_eq!(connections.load(Ordering::Relaxed), 1, "LISTEN goes by its own");
    store.ring(other).await.expect("rings");
    assert!(timeout(PATIENCE, doorbell.rung(own)).await.expect("in time"), "and hears what rang by the first");

    drop(around);
    assert!(store.doorbell(PATIENCE).await.is_err(), "never by the first URL instead");
    store.writes_refused().await.expect("answers all the same");
}

/// Another application on the same pooler finds its connections unchanged: no setting of ours, no LISTEN.
#[tokio::test(flavor = "multi_thread")]
async fn no_setting_stays_on_a_shared_connection() {
    let database = Database::create_empty().await;
    // One shared connection, so that leftover state is visible and every statement is on it.
    let Some(pooler) = Pooler::before(&database, "pool_mode = transaction\ndefault_pool_size = 1").await else {
        return;
    };
    let url = pooler.url.clone();
    database.migrate().await;
    let service = Service::start_on(Database { url: url.clone() }).await;
    let mut phone = service.sign_in("ada", "phone").await;
    phone.refresh().await.expect("refreshes");
    phone.sign_out().await.expect("signs out");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;

    // State that pgbouncer keeps for each client.
    let query = "SELECT name || ' = ' || setting FROM pg_settings WHERE source = 'session' AND name NOT IN
        ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings',
            -- Those of a transaction, this one's.
            'transaction_isolation', 'transaction_read_only', 'transaction_deferrable')
        UNION ALL SELECT 'LISTEN ' || channel FROM pg_listening_channels() AS channel";
    let left = rows(&connect(&url).await, query).await;
    assert!(left.is_empty(), "{left:?}");
}

/// Commits wait for at least what we require, and for more if the database says so.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_commits_wait_for_what_the_database_says() {
    let cluster = Cluster::start(durable("pooled")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.migrate().await;
    database
        .run(
            "CREATE TABLE seen (commits text);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;
             CREATE CONSTRAINT TRIGGER note AFTER INSERT ON sessions DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .await;
    // One shared connection: every statement is on it.
    let pooled = "pool_mode = transaction\ndefault_pool_size = 1";
    for (version, held) in [("remote_apply", "remote_apply"), ("off", "on")] {
        database.run(&format!("ALTER DATABASE postgres SET synchronous_commit = '{version}'; TRUNCATE seen")).await;
        let Some(pooler) = Pooler::before(&database, pooled).await else { break };
        let demanding = Options { required_durability: RequiredDurability::Durable, ..options(&pooler.url) };
        let service = Service::start_by(Database { url: pooler.url.clone() }, &demanding).await;
        service.sign_in("ada", "phone").await;
        assert_eq!(database.lines("SELECT DISTINCT commits FROM seen").await, [held]);
        database.run("TRUNCATE projects, server_keys, signing_keys, refresh_keys, sessions, users CASCADE").await;
    }
    cluster.stop().await.expect("stops");
}

/// A statement that is lost later, when the server is running.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_starts_to_lose_statements_fails_readiness() {
    let service = Service::start().await;
    assert!(!service.store.loses_statements());
    // As such a pooler behaves: the server no longer knows the prepared statements.
    service.database.refuse("INSERT ON sessions", "26000", "prepared statement \"s7\" does not exist").await;
    let request = sessiond::pb::CreateSessionRequest { user_id: "ada".to_owned(), ..Default::default() };
    let refused = service.create(crate::harness::Wire::Grpc, request).await.err().expect("refused");
    assert_eq!(refused.reason, "STORE_UNAVAILABLE");
    let found = service.app.readiness().await;
    assert!(found.iter().any(|reason| matches!(reason, NotReady::Pooler)), "{found:?}");
}
