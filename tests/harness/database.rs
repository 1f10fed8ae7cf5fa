//! One private Postgres for the whole test process, with one migrated template, which each test copies.

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

use dev_postgres::{Cluster, Durability, Options};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, getrlimit, setrlimit, test_kill_process},
};
use sessiond::{store::Store, telemetry::Metrics};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::divided::{self, Divided};

const TEMPLATE: &str = "template_sessiond";

/// Citus refuses triggers on divided tables otherwise; one Postgres ignores it.
const TRIGGERS_ON_NODES: &str = "SET citus.enable_unsafe_triggers = on";

/// The tables that are divided by slot.
const DIVIDED: [&str; 7] =
    ["users", "sessions", "session_requests", "revocations", "audit_events", "backchannel_deliveries", "feed_writers"];

/// Connects without the server's settings.
pub async fn connect(url: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    tokio::spawn(connection);
    client
}

/// The rows of an answer, as texts; a null is an empty one.
pub async fn rows(client: &Client, query: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(query).await.unwrap_or_else(|error| panic!("{error:?}: {query}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A database for one test. Dropped with the cluster, which stops with the process.
pub struct Database {
    pub url: String,
}

impl Database {
    pub async fn create() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if let Some(url) = divided::cluster() {
            raise_open_files();
            return Self { url: Divided::get(url).create(&name).await };
        }
        // Copying the files is faster than replaying them through the log: 22 ms instead of 45.
        administer(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")).await;
        Self { url: url_of(&name) }
    }

    /// A database on the cluster, whatever the test is about; `None` if there is no cluster.
    pub async fn create_on_cluster(name: &str) -> Option<Self> {
        let url = divided::url()?;
        Some(Self { url: Divided::get(url).create(&format!("test_{name}")).await })
    }

    /// An empty database, without tables.
    pub async fn create_empty() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("empty_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if let Some(url) = divided::cluster() {
            return Self { url: Divided::get(url).create_empty(&name).await };
        }
        administer(&format!("CREATE DATABASE {name}")).await;
        Self { url: url_of(&name) }
    }

    pub async fn migrate(&self) {
        let store = Store::new(&super::options(&self.url), Metrics::default()).expect("a good URL");
        store.migrate().await.expect("migrates");
    }

    /// Runs SQL without the server's knowledge.
    pub async fn run(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.expect("runs");
    }

    /// Runs statements one by one, on one connection: of several together, Citus passes the whole text on.
    pub async fn run_each(&self, statements: &[&str]) {
        let mut connection = self.connect().await;
        for statement in statements {
            connection.batch_execute(statement).await.expect("runs");
        }
    }

    /// From now on statements of a kind, such as `UPDATE ON sessions`, fail with this SQLSTATE and message.
    pub async fn refuse(&self, statements: &str, code: &str, message: &str) {
        self.refuse_if("true", statements, code, message).await;
    }

    /// As [`Database::refuse`], of the rows that meet a condition.
    pub async fn refuse_if(&self, condition: &str, statements: &str, code: &str, message: &str) {
        let message = message.replace('\'', "''");
        let function = "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = TG_ARGV[1]; END $$";
        let trigger = format!(
            "CREATE OR REPLACE TRIGGER refuse BEFORE {statements} FOR EACH ROW WHEN ({condition})
             EXECUTE FUNCTION refuse('{message}', '{code}')"
        );
        self.run_each(&[TRIGGERS_ON_NODES, function, &trigger]).await;
    }

    /// Ends [`Database::refuse`].
    pub async fn accept(&self, table: &str) {
        self.run_each(&[TRIGGERS_ON_NODES, &format!("DROP TRIGGER refuse ON {table}")]).await;
    }

    /// The same as [`Database::run`], if the database may be down.
    pub async fn run_if_it_can(&self, sql: &str) -> Result<(), Box<dyn std::error::Error>> {
        Ok(AsyncPgConnection::establish(&self.url).await?.batch_execute(sql).await?)
    }

    /// Every row of every table that a request may write, as text, to check that nothing has changed.
    pub async fn contents(&self) -> BTreeMap<&'static str, String> {
        let client = connect(&self.url).await;
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
            // When a server key was last used is noted in the background.
            let row = if table == "server_keys" { "(to_jsonb(t) - 'last_used_at')::text" } else { "t::text" };
            let query = format!("SELECT coalesce(string_agg({row}, E'\\n' ORDER BY {row}), '') FROM {table} AS t");
            contents.insert(table, rows(&client, &query).await.concat().concat());
        }
        contents
    }

    /// The first column of a query, as text. The query is sent as it is: in a subquery, Citus loses its order.
    pub async fn lines(&self, query: &str) -> Vec<String> {
        rows(&connect(&self.url).await, query).await.into_iter().map(|mut row| row.swap_remove(0)).collect()
    }

    /// How many statements wait for a lock, on whichever node.
    pub async fn lock_waits(&self) -> usize {
        self.sum_over_nodes("1").await
    }

    /// Calls a function such as `pg_cancel_backend` with each process that waits for a lock, on whichever node. Returns how many
    /// there were.
    pub async fn end_lock_waits(&self, function: &str) -> usize {
        self.sum_over_nodes(&format!("{function}(pid)")).await
    }

    /// Counts what an expression says of each process that waits for a lock, over all nodes.
    async fn sum_over_nodes(&self, of_process: &str) -> usize {
        let count = format!(
            "SELECT count({of_process}) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
        );
        let has_nodes = !self.lines("SELECT 1 FROM pg_extension WHERE extname = 'citus'").await.is_empty();
        let of_nodes = format!("SELECT result FROM run_command_on_all_nodes($${count}$$)");
        let counts = self.lines(if has_nodes { &of_nodes } else { &count }).await;
        counts.iter().map(|count| count.parse::<usize>().expect("a number")).sum()
    }

    /// The slots, in order.
    pub async fn slots(&self) -> Vec<i16> {
        let slots = self.lines("SELECT slot FROM slots ORDER BY slot").await;
        slots.iter().map(|slot| slot.parse().expect("a number")).collect()
    }

    /// Begins a transaction that locks the rows of a table that meet the condition, until it ends. Slot by slot: a divided
    /// database locks rows of one slot in a statement.
    pub async fn hold(&self, table: &str, condition: &str) -> AsyncPgConnection {
        let slots = self.slots().await;
        let lock = |slot: i16| format!("SELECT FROM {table} WHERE slot = {slot} AND {condition} FOR UPDATE;");
        let locks: String = slots.into_iter().map(lock).collect();
        let mut holder = self.connect().await;
        holder.batch_execute(&format!("BEGIN; {locks}")).await.expect("holds the rows");
        holder
    }

    pub async fn connect(&self) -> AsyncPgConnection {
        AsyncPgConnection::establish(&self.url).await.expect("connects")
    }
}

/// A directory for a test's own cluster.
pub fn fresh_dir(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sessiond-test-{}-{name}", process::id()))
}

/// Hundreds of servers and clients in one process need more open files than the usual limit of 1024.
fn raise_open_files() {
    const NEEDED: u64 = 65_536;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < NEEDED) {
        let raised = maximum.map_or(NEEDED, |maximum| maximum.min(NEEDED));
        // If that is refused, tests fail with an error about it.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    }
}

/// Deletes directories of killed test processes, which have the process id in their names.
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
        // On its own thread and runtime: those of the first test end with that test.
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
    let template = Database { url: cluster.database_url(TEMPLATE) };
    template.migrate().await;
    // The statements then name the slots of a divided database, all of them on one server.
    if let Ok(slots) = std::env::var("SESSIOND_TEST_SLOTS") {
        template.run(&format!("DELETE FROM slots; INSERT INTO slots SELECT generate_series(1, {slots})")).await;
        // As a divided database does: it refuses a row whose slot was forgotten.
        for table in DIVIDED {
            template.run(&format!("ALTER TABLE {table} ADD CONSTRAINT {table}_divided_check CHECK (slot > 0)")).await;
        }
    }
}
