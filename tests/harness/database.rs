//! One private Postgres for the whole test process, one migrated template in it, and a copy of that per test.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use diesel::{QueryableByName, sql_query, sql_types::Text};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, getrlimit, setrlimit, test_kill_process},
};
use sessiond::{
    cluster::{Cluster, Durability, Options},
    store::Store,
    telemetry::Metrics,
};

const TEMPLATE: &str = "template_sessiond";

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

/// A database of a test's own. Dropped with the cluster, which ends with the process.
pub struct Database {
    pub url: String,
}

impl Database {
    pub async fn create() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // Copying the files beats replaying them through the log: 22 ms against 45.
        administer(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")).await;
        Self { url: url_of(&name) }
    }

    /// An empty one, without tables.
    pub async fn create_empty() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("empty_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        administer(&format!("CREATE DATABASE {name}")).await;
        Self { url: url_of(&name) }
    }

    pub async fn migrate(&self) {
        let store = Store::new(&super::options(&self.url), Metrics::default()).expect("a good URL");
        store.migrate().await.expect("migrates");
    }

    /// Runs SQL behind the server's back.
    pub async fn run(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.expect("runs");
    }

    /// The same, when the database may be away.
    pub async fn run_if_it_can(&self, sql: &str) -> Result<(), Box<dyn std::error::Error>> {
        Ok(AsyncPgConnection::establish(&self.url).await?.batch_execute(sql).await?)
    }

    /// Every row of every table that a request may write to, as text: equal before and after when nothing has changed.
    pub async fn contents(&self) -> BTreeMap<&'static str, String> {
        let mut connection = self.connect().await;
        let mut contents = BTreeMap::new();
        for table in [
            "projects",
            "server_keys",
            "users",
            "sessions",
            "session_requests",
            "revocations",
            "backchannel_deliveries",
        ] {
            let query =
                format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') AS line FROM {table} AS t");
            let rows: Vec<Line> = sql_query(query).load(&mut connection).await.expect("reads");
            contents.insert(table, rows.into_iter().map(|row| row.line).collect());
        }
        contents
    }

    /// The first column of a query, as text.
    pub async fn lines(&self, query: &str) -> Vec<String> {
        let query = format!("SELECT line::text AS line FROM ({query}) AS q (line)");
        let rows: Vec<Line> = sql_query(query).load(&mut self.connect().await).await.expect("reads");
        rows.into_iter().map(|row| row.line).collect()
    }

    pub async fn connect(&self) -> AsyncPgConnection {
        AsyncPgConnection::establish(&self.url).await.expect("connects")
    }
}

/// Where a cluster of a test's own may be.
pub fn fresh_dir(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sessiond-test-{}-{name}", process::id()))
}

/// Hundreds of servers and clients in one process need more open files than the 1024 that ordinary users begin with.
fn raise_open_files() {
    const NEEDED: u64 = 65_536;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < NEEDED) {
        let raised = maximum.map_or(NEEDED, |maximum| maximum.min(NEEDED));
        // Where even that is refused, the tests say what they lack.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    }
}

/// Deletes what test processes left behind that were killed: directories that are named after one that is no more.
fn sweep() {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("sessiond-") else { continue };
        let is_ours = ["test-", "cluster-", "place-"].iter().any(|kind| rest.starts_with(kind));
        let pid = rest.split('-').find_map(|part| Pid::from_raw(part.parse().ok()?));
        if is_ours && pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

pub fn disposable(name: &str) -> Options {
    Options {
        data_dir: fresh_dir(name),
        postgres_bin: None,
        watchdog: env!("CARGO_BIN_EXE_sessiond").into(),
        settings: vec![("max_connections".to_owned(), "500".to_owned())],
        durability: Durability::Disposable,
    }
}

async fn administer(sql: &str) {
    let mut connection = AsyncPgConnection::establish(&url_of("postgres")).await.expect("connects");
    connection.batch_execute(sql).await.expect("runs");
}

fn url_of(database: &str) -> String {
    static BASE: OnceLock<String> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let (send, receive) = mpsc::channel();
        // On a thread and a runtime of its own: those of the test that comes first end with that test.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            raise_open_files();
            sweep();
            runtime.expect("a runtime").block_on(async {
                let cluster = Cluster::start(disposable("shared")).await.expect("Postgres starts");
                prepare(&cluster).await;
                send.send(cluster.database_url("DATABASE")).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        receive.recv().expect("Postgres starts")
    });
    base.replace("DATABASE", database)
}

async fn prepare(cluster: &Cluster) {
    let mut connection = AsyncPgConnection::establish(&cluster.database_url("postgres")).await.expect("connects");
    connection.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.expect("creates the template");
    Database { url: cluster.database_url(TEMPLATE) }.migrate().await;
}
