//! The tests against a Citus cluster that is there already: `SESSIOND_TEST_DATABASE_URL` names a database at its coordinator in
//! which the nodes are registered. Each test gets a database of its own on every node, a copy of one migrated and divided template.
//! The servers of the tests take turns: each asks another node.

use std::{
    collections::VecDeque,
    io::Write as _,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use secrecy::ExposeSecret as _;
use sessiond::{
    store::{Options, Store},
    telemetry::Metrics,
};

use super::database::{Database, connect, rows};

const TEMPLATE: &str = "template_sessiond";

/// How many databases there are at a time: each has three maintenance processes in the cluster.
const KEPT_MAX: usize = 32;

/// The tests that are about features of one node, by the beginning of their names. They run on a Postgres of their own.
const ONE_NODE: &[(&str, &str)] = &[
    ("plans::", "plans of one Postgres; the same statements are explained on the cluster"),
    ("engines::", "a catalog of Citus that the test makes"),
    ("migrations::", "reverts and repeats migrations"),
    ("outage::", "cuts the connection to one server"),
];

/// A cluster.
pub struct Divided {
    /// The URLs of its nodes, with `DATABASE` in place of the name; the coordinator comes first.
    nodes: Vec<String>,
    kept: Mutex<VecDeque<String>>,
}

/// The URL of the cluster; `None` if there is none.
pub fn url() -> Option<&'static str> {
    static URL: OnceLock<Option<String>> = OnceLock::new();
    URL.get_or_init(|| std::env::var("SESSIOND_TEST_DATABASE_URL").ok()).as_deref()
}

/// The cluster of this test; `None` if there is none, or if the test is about features of one node.
pub fn cluster() -> Option<&'static str> {
    let url = url()?;
    let test = thread::current().name().unwrap_or_default().to_owned();
    let reason = ONE_NODE.iter().find(|(name, _)| test.starts_with(name)).map(|(_, reason)| reason);
    if let Some(reason) = reason {
        // Past the test runner, which keeps the output of tests that pass.
        let _ = writeln!(std::io::stderr(), "not on the cluster: {test}: {reason}");
        return None;
    }
    Some(url)
}

/// These options, by way of the next node of the cluster if they name a database of a test there, and no place to listen: it listens
/// at the coordinator.
pub fn by_next_node(options: &Options) -> Options {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let ways = ways(options.url.expose_secret());
    if ways.is_empty() || options.listen_url.is_some() {
        return options.clone();
    }
    by(options, &ways[NEXT.fetch_add(1, Ordering::Relaxed) % ways.len()])
}

/// The URLs by which a database of a test is reached, given that at the coordinator: one for each node. None if it is another
/// database, or if there is no cluster.
pub fn ways(database_url: &str) -> Vec<String> {
    url().map_or(vec![], |url| Divided::get(url).ways(database_url))
}

/// These options, by way of the node with this URL.
pub fn by(options: &Options, node: &str) -> Options {
    let coordinator = options.listen_url.clone().unwrap_or_else(|| options.url.clone());
    Options { url: node.to_owned().into(), listen_url: Some(coordinator), ..options.clone() }
}

impl Divided {
    /// See [`ways`].
    fn ways(&self, url: &str) -> Vec<String> {
        let (before, after) = self.nodes[0].split_once("DATABASE").expect("has a place for the name");
        let name = url.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        let name = name.filter(|name| {
            name.starts_with("test_") && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        });
        name.map_or(vec![], |name| self.nodes.iter().map(|node| at(node, name)).collect())
    }

    /// Prepares the template, once.
    pub fn get(url: &str) -> &'static Self {
        static CLUSTER: OnceLock<Divided> = OnceLock::new();
        CLUSTER.get_or_init(|| {
            let url = url.to_owned();
            // On its own thread and runtime: migrations need several threads.
            let prepare = move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
                runtime.expect("a runtime").block_on(Self::prepare(&url))
            };
            thread::spawn(prepare).join().expect("the cluster is prepared")
        })
    }

    async fn prepare(url: &str) -> Self {
        let (address, query) =
            url.split_once('?').map_or((url, String::new()), |(address, query)| (address, format!("?{query}")));
        let (server, _) = address.rsplit_once('/').expect("a URL with a database");
        let (scheme, host) = server.rsplit_once(['@', '/']).expect("a URL with a host");
        let login = &server[..server.len() - host.len()];
        assert!(!scheme.is_empty() && !host.contains(','), "one address, that of the coordinator");
        let client = connect(url).await;
        let workers =
            "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' AND groupid <> 0 AND isactive";
        let workers = rows(&client, workers).await;
        assert!(!workers.is_empty(), "the cluster has no workers");
        let coordinator = rows(&client, "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid = 0").await;
        let mut nodes = vec![format!("{server}/DATABASE{query}")];
        nodes.extend(workers.iter().map(|node| format!("{login}{}:{}/DATABASE{query}", node[0], node[1])));
        let cluster = Self { nodes, kept: Mutex::default() };
        // What an earlier run has left.
        let left = "SELECT datname FROM pg_database WHERE datname ~ '^(test|empty)_([0-9]+|[a-z]+)$'";
        for node in &cluster.nodes {
            for row in rows(&connect(&at(node, "postgres")).await, left).await {
                drop_database(node, &row[0]).await;
            }
            drop_database(node, TEMPLATE).await;
            connect(&at(node, "postgres"))
                .await
                .batch_execute(&format!("CREATE DATABASE {TEMPLATE}"))
                .await
                .expect("creates");
            connect(&at(node, TEMPLATE)).await.batch_execute("CREATE EXTENSION citus").await.expect("has Citus");
        }
        let template = Database { url: at(&cluster.nodes[0], TEMPLATE) };
        let client = connect(&template.url).await;
        let [host, port] = coordinator.first().map(Vec::as_slice).expect("citus_set_coordinator_host() was called")
        else {
            panic!("two columns")
        };
        client.batch_execute(&format!("SELECT citus_set_coordinator_host('{host}', {port})")).await.expect("is known");
        for node in &workers {
            let add = format!("SELECT citus_add_node('{}', {})", node[0], node[1]);
            client.batch_execute(&add).await.expect("adds a node");
        }
        drop(client);
        let store = Store::new(&super::options(&template.url), Metrics::default()).expect("a good URL");
        store.migrate().await.expect("migrates");
        let slots = std::env::var("SESSIOND_TEST_SLOTS").ok().map(|slots| slots.parse().expect("a number"));
        store.distribute(slots, std::time::Duration::from_secs(60)).await.expect("divides");
        drop(store);
        for node in &cluster.nodes {
            // The processes of Citus itself must not use it while it is copied.
            let client = connect(&at(node, "postgres")).await;
            client
                .batch_execute(&format!("ALTER DATABASE {TEMPLATE} ALLOW_CONNECTIONS false"))
                .await
                .expect("closes it");
        }
        cluster
    }

    /// Copies the template on every node. Returns the URL.
    pub async fn create(&self, name: &str) -> String {
        let copies = self.nodes.iter().map(|node| async move {
            let client = connect(&at(node, "postgres")).await;
            let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{TEMPLATE}'");
            let copy = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY");
            for attempt in 0.. {
                client.batch_execute(&end).await.expect("ends what uses it");
                match client.batch_execute(&copy).await {
                    Ok(()) => break,
                    Err(error) => assert!(attempt < 50, "cannot copy the template: {error}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            // The settings of a database are not copied.
            for setting in ["jit", "enable_seqscan"] {
                client
                    .batch_execute(&format!("ALTER DATABASE {name} SET {setting} = off"))
                    .await
                    .expect("is the owner");
            }
        });
        futures_util::future::join_all(copies).await;
        let oldest = {
            let mut kept = self.kept.lock().expect("no one panics while holding it");
            kept.push_back(name.to_owned());
            if kept.len() > KEPT_MAX { kept.pop_front() } else { None }
        };
        if let Some(oldest) = oldest {
            let used = format!(
                "SELECT pid FROM pg_stat_activity WHERE datname = '{oldest}' AND backend_type = 'client backend'
                 AND application_name NOT LIKE 'citus_internal%' LIMIT 1"
            );
            if rows(&connect(&at(&self.nodes[0], "postgres")).await, &used).await.is_empty() {
                futures_util::future::join_all(self.nodes.iter().map(|node| drop_database(node, &oldest))).await;
            } else {
                // By a test that takes its time.
                self.kept.lock().expect("no one panics while holding it").push_back(oldest);
            }
        }
        at(&self.nodes[0], name)
    }

    /// An empty database at the coordinator, without Citus.
    pub async fn create_empty(&self, name: &str) -> String {
        let client = connect(&at(&self.nodes[0], "postgres")).await;
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("creates");
        at(&self.nodes[0], name)
    }
}

fn at(node: &str, database: &str) -> String {
    node.replace("DATABASE", database)
}

async fn drop_database(node: &str, name: &str) {
    let client = connect(&at(node, "postgres")).await;
    client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.expect("drops");
}
