//! `kill -9` of the server and of Postgres under load: no acknowledged operation is lost.
//!
//! Clients sign in, refresh and sign out all the time, and keep a ledger of what was acknowledged. Meanwhile the server, the
//! whole of Postgres, or the one process of Postgres that executes a sign-out is killed and started again. At the end the
//! ledger is compared with the database.
//!
//! Here fsync is on, unlike in the other tests: `serve` refuses a Postgres without it. But a `kill -9` leaves the kernel's page
//! cache intact. So this shows that nothing is acknowledged before Postgres has confirmed the commit, and that recovery restores
//! it; not what a power failure leaves on the disk.
//!
//! `FAULT_ROUNDS=20 ./test ledger -- --nocapture` runs the long version: 20 rounds of each kind. It prints what was counted.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dev_postgres::{Cluster, Durability, Options};
use futures_util::future::join_all;
use http::HeaderMap;
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use sessiond::pb::{
    CreateSessionRequest, CreateSessionResponse, RefreshSessionRequest, RefreshSessionResponse, RevokeCurrentRequest,
    RevokeCurrentResponse,
};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::harness::{
    REFUSED_REFRESH, SEALING_KEY, Wire, bearer,
    database::{Database, disposable},
    eventually, refresh_token,
    serving::free_port,
    wire::{Refused, Wires},
};

const CLIENTS: usize = 32;

/// How long the load runs before each kill.
const LOAD: Duration = Duration::from_millis(400);

/// How many operations must be acknowledged after each kill before the next one.
const RESUMED: usize = 2 * CLIENTS;

/// The pause before a call is repeated.
const PAUSE: Duration = Duration::from_millis(20);

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Server,
    /// All processes of Postgres.
    Postgres,
    /// The process of Postgres that executes a sign-out. Postgres restarts all others.
    Backend,
}

/// A `sessiond serve`, always on the same port. Killed on drop.
struct Server {
    addr: SocketAddr,
    env: Vec<(&'static str, String)>,
    log: File,
    process: Child,
}

impl Server {
    fn start(database_url: &str, log: File) -> Self {
        let addr = free_port();
        let mut env = environment(database_url);
        // All clients have one address, and there are few users.
        for rate in ["ADDRESS", "VERIFY", "USER", "PROJECT", "SERVER_KEY"] {
            let name: &'static str = format!("SESSIOND_{rate}_RATE").leak();
            env.push((name, "0".to_owned()));
        }
        let process = Self::spawn(addr, &env, &log);
        Self { addr, env, log, process }
    }

    fn spawn(addr: SocketAddr, env: &[(&'static str, String)], log: &File) -> Child {
        let output = || log.try_clone().expect("a second handle");
        let mut serve = Command::new(BINARY);
        serve.args(["serve", "--metrics-listen", "127.0.0.1:0", "--listen", &addr.to_string()]);
        serve.env_clear().envs(env.iter().cloned()).stdin(Stdio::null()).stdout(output()).stderr(output());
        serve.spawn().expect("starts")
    }

    /// Kills it, and starts it again.
    fn restart(&mut self) {
        self.process.kill().expect("a child");
        self.process.wait().expect("a child");
        self.process = Self::spawn(self.addr, &self.env, &self.log);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");

fn environment(database_url: &str) -> Vec<(&'static str, String)> {
    vec![("DATABASE_URL", database_url.to_owned()), ("SESSIOND_SEALING_KEY", SEALING_KEY.to_owned())]
}

/// Runs a command, and returns its standard output.
fn sessiond(database_url: &str, args: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    let output = command.args(args).env_clear().envs(environment(database_url)).output().expect("runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// What the clients share.
#[derive(Default)]
struct Load {
    has_ended: AtomicBool,
    created: AtomicUsize,
    refreshed: AtomicUsize,
    signed_out: AtomicUsize,
    /// Sign-outs whose only attempt was answered with `already_revoked`: the server had retried a commit in doubt.
    found_ended: AtomicUsize,
    /// Calls without an answer, or with the answer that the database is unavailable.
    outages: AtomicUsize,
}

impl Load {
    fn acknowledged(&self) -> usize {
        [&self.created, &self.refreshed, &self.signed_out].map(count).iter().sum()
    }
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A session, as acknowledged.
struct Entry {
    session: String,
    refresh_token: String,
    is_signed_out: bool,
}

/// A client that signs in, refreshes and signs out, one call after the other.
struct Client {
    wires: Wires,
    wire: Wire,
    user: String,
    server_key: String,
    load: Arc<Load>,
}

impl Client {
    async fn run(self) -> Vec<Entry> {
        let mut ledger = vec![];
        while !self.load.has_ended.load(Ordering::Relaxed) {
            let entry = self.use_a_session(ledger.len()).await;
            ledger.push(entry);
        }
        ledger
    }

    /// Signs in, and refreshes; of three sessions, two are signed out, one with each kind of token.
    async fn use_a_session(&self, number: usize) -> Entry {
        let request = CreateSessionRequest { user_id: self.user.clone(), ..CreateSessionRequest::default() };
        let (created, _): (CreateSessionResponse, _) =
            self.insist("CreateSession", bearer(&self.server_key), &request).await;
        add(&self.load.created);
        let CreateSessionResponse { mut access_token, mut refresh_token, session, .. } = created;
        for _ in 0..=number % 2 {
            let (refreshed, _): (RefreshSessionResponse, _) = self
                .insist("RefreshSession", self::refresh_token(&refresh_token), &RefreshSessionRequest::default())
                .await;
            add(&self.load.refreshed);
            assert_ne!(refreshed.refresh_token, refresh_token);
            (access_token, refresh_token) = (refreshed.access_token, refreshed.refresh_token);
        }
        let credential = match number % 3 {
            0 => None,
            1 => Some(bearer(&access_token)),
            _ => Some(self::refresh_token(&refresh_token)),
        };
        let is_signed_out = credential.is_some();
        if let Some(credential) = credential {
            let (ended, attempts): (RevokeCurrentResponse, _) =
                self.insist("RevokeCurrent", credential, &RevokeCurrentRequest {}).await;
            add(&self.load.signed_out);
            if ended.already_revoked.is_some() && attempts == 1 {
                add(&self.load.found_ended);
            }
        }
        Entry { session: session.expect("a session").id, refresh_token, is_signed_out }
    }

    /// Repeats a call until it is acknowledged. Returns the answer, and the number of attempts.
    ///
    /// The session is live: any other answer than that of an outage is a fault.
    async fn insist<A, B>(&self, method: &str, headers: HeaderMap, request: &A) -> (B, usize)
    where
        A: Message + Clone + 'static,
        B: Message + Default + 'static,
    {
        for attempt in 1.. {
            match self.wires.call(self.wire, method, headers.clone(), request).await {
                Ok(answer) => return (answer, attempt),
                Err(refused) => assert!(is_outage(&refused), "{method}, attempt {attempt}: {refused:?}"),
            }
            add(&self.load.outages);
            tokio::time::sleep(PAUSE).await;
        }
        unreachable!("it repeats without end")
    }
}

/// Whether the server has not answered, or has answered that it cannot tell at present.
fn is_outage(refused: &Refused) -> bool {
    let is_answer = refused.reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    match (is_answer, refused.http) {
        (true, _) => refused.code == Code::Unavailable,
        (false, Some(status)) => status == http::StatusCode::SERVICE_UNAVAILABLE,
        (false, None) => matches!(refused.code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal),
    }
}

/// Kills the victim while the load runs, and starts it again.
async fn strike(victim: Victim, server: &mut Server, cluster: &mut Cluster, database: &Database) {
    match victim {
        Victim::Server => server.restart(),
        Victim::Postgres => {
            let mut pids = vec![cluster.server_pid().expect("it runs").to_string()];
            pids.extend(database.lines("SELECT pid FROM pg_stat_activity").await);
            pids.iter().for_each(|pid| kill(pid));
            cluster.exited().await;
            cluster.start_server().await.expect("starts");
        }
        Victim::Backend => {
            let signing_out = "SELECT pid FROM pg_stat_activity WHERE state = 'active'
                AND query LIKE '%FROM sessions_revoke(%' AND pid <> pg_backend_pid()";
            let started = Instant::now();
            loop {
                // The load runs: a sign-out is soon executed.
                if let Some(pid) = database.lines(signing_out).await.pop() {
                    kill(&pid);
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(20), "no sign-out is executed");
            }
        }
    }
}

/// A process may have ended by itself.
fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().expect("a number")).expect("a process");
    let _ = kill_process(pid, Signal::KILL);
}

/// What the database knows of a session.
#[derive(Debug, PartialEq)]
struct Row {
    is_revoked: bool,
    records: u32,
}

async fn rows(database: &Database) -> HashMap<String, Row> {
    let query = "SELECT s.id || ' ' || (s.revoked_at IS NOT NULL) || ' ' || coalesce(r.records, 0) FROM sessions AS s
        LEFT JOIN (SELECT session_id, count(*) AS records FROM revocations GROUP BY session_id) AS r ON r.session_id = s.id";
    let row = |line: String| {
        let mut fields = line.split(' ').map(str::to_owned);
        let mut next = || fields.next().expect("three fields");
        let (session, is_revoked, records) = (next(), next() == "true", next().parse().expect("a number"));
        (session, Row { is_revoked, records })
    };
    database.lines(query).await.into_iter().map(row).collect()
}

/// Creates a database that keeps what it has acknowledged.
async fn durable_cluster() -> (Cluster, Database) {
    let options = Options { durability: Durability::Full, ..disposable("ledger") };
    let cluster = Cluster::start(options).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    let durability = "SELECT current_setting('fsync') || ' ' || current_setting('synchronous_commit')";
    assert_eq!(database.lines(durability).await, ["on on"]);
    (cluster, database)
}

/// See the module.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_under_load_loses_nothing_acknowledged() {
    let (mut cluster, database) = durable_cluster().await;
    sessiond(&database.url, &["migrate"]);
    // A repeat after an outage must not look like theft.
    sessiond(&database.url, &["project", "create", "demo", "--refresh-grace", "1h"]);
    let server_key = sessiond(&database.url, &["server-key", "create", "--project", "demo"]);
    let server_key = server_key.split_whitespace().find(|word| word.starts_with("sdsk_")).expect("a key").to_owned();
    let data_dir = disposable("ledger").data_dir;
    let log = File::create(data_dir.join("server.log")).expect("creates");
    let mut server = Server::start(&database.url, log);

    let load = Arc::<Load>::default();
    let client = |number: usize| {
        let (wire, load) = ([Wire::Rest, Wire::Grpc][number % 2], Arc::clone(&load));
        // Several clients share a user.
        let (user, server_key) = (format!("user-{}", number / 4), server_key.clone());
        Client { wires: Wires::to(server.addr), wire, user, server_key, load }
    };
    let clients: Vec<JoinHandle<Vec<Entry>>> = (0..CLIENTS).map(|number| tokio::spawn(client(number).run())).collect();
    let resumes = async |from: usize| {
        eventually("the load resumes", async || {
            assert!(!clients.iter().any(JoinHandle::is_finished), "a client has failed: its message is above");
            load.acknowledged() >= from + RESUMED
        })
        .await;
    };
    resumes(0).await;
    let rounds = std::env::var("FAULT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    for _ in 0..rounds {
        for victim in [Victim::Server, Victim::Postgres, Victim::Backend] {
            tokio::time::sleep(LOAD).await;
            strike(victim, &mut server, &mut cluster, &database).await;
            resumes(load.acknowledged()).await;
        }
    }
    load.has_ended.store(true, Ordering::Relaxed);
    let ledgers = join_all(clients).await;
    let ledger: Vec<Entry> = ledgers.into_iter().flat_map(|ledger| ledger.expect("no fault")).collect();

    // What is in the server's memory does not count.
    server.restart();
    compare(&ledger, &rows(&database).await);
    compare_tokens(&ledger, server.addr).await;
    println!(
        "{} kills; acknowledged: {} sign-ins, {} refreshes, {} sign-outs, of which {} found the session ended by their only \
         attempt; {} calls met an outage; 0 lost",
        3 * rounds,
        count(&load.created),
        count(&load.refreshed),
        count(&load.signed_out),
        count(&load.found_ended),
        count(&load.outages),
    );
    drop(server);
    cluster.stop().await.expect("stops");
    delete(&data_dir);
}

/// Each acknowledged sign-in has its row; each acknowledged sign-out is recorded once, and nothing else has ended.
fn compare(ledger: &[Entry], rows: &HashMap<String, Row>) {
    for Entry { session, is_signed_out, .. } in ledger {
        let expected = Row { is_revoked: *is_signed_out, records: u32::from(*is_signed_out) };
        assert_eq!(rows.get(session), Some(&expected), "{session}");
    }
    // A sign-in that was not acknowledged may have been carried out.
    let is_consistent = |row: &Row| row.records == u32::from(row.is_revoked);
    assert!(rows.values().all(is_consistent), "a session ends with its record, and once");
}

/// The last refresh token of each live session still refreshes, and no other does.
async fn compare_tokens(ledger: &[Entry], addr: SocketAddr) {
    let wires = Wires::to(addr);
    eventually("serves", async || wires.try_http(http::Method::GET, "/readyz", HeaderMap::new(), "").await.is_ok())
        .await;
    for some in ledger.chunks(CLIENTS) {
        join_all(some.iter().map(async |entry| {
            let headers = refresh_token(&entry.refresh_token);
            let request = RefreshSessionRequest::default();
            loop {
                let refreshed: Result<RefreshSessionResponse, Refused> =
                    wires.call(Wire::Grpc, "RefreshSession", headers.clone(), &request).await;
                match refreshed {
                    Err(refused) if is_outage(&refused) => tokio::time::sleep(PAUSE).await,
                    Err(refused) if entry.is_signed_out => return assert_eq!(refused.reason, REFUSED_REFRESH),
                    refreshed => return assert!(refreshed.is_ok() && !entry.is_signed_out, "{}", entry.session),
                }
            }
        }))
        .await;
    }
}

fn delete(dir: &Path) {
    fs::remove_dir_all(dir).expect("deletes");
}
