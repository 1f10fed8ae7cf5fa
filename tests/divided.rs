//! What only a divided database has, on the cluster of `SESSIOND_TEST_DATABASE_URL`; without one, nothing is tested.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use http::StatusCode;
use sessiond::{
    store::{Options, Store},
    telemetry::{Metrics, chain},
};

use crate::{
    assert_refused,
    harness::{
        Service, Wire, bearer,
        database::{Database, connect, rows},
        divided, eventually, options,
    },
};

/// Reverts the newest migrations by hand, as far as this version: `sessiond` itself only reverts all of them.
async fn revert(database: &Database, first: &str) {
    let all = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).expect("reads");
    let mut all: Vec<_> = all.map(|folder| folder.expect("reads").path()).collect();
    all.sort();
    for folder in all.iter().rev() {
        let name = folder.file_name().expect("named").to_string_lossy().into_owned();
        let version = name.split('_').next().expect("never empty").replace('-', "");
        if version.as_str() < first {
            break;
        }
        let down = fs::read_to_string(folder.join("down.sql")).expect("reads");
        for statement in down.split_inclusive(";\n") {
            database.run(statement).await;
        }
        database.run(&format!("DELETE FROM __diesel_schema_migrations WHERE version = '{version}'")).await;
    }
}

/// What a migration of a later release may do. As one statement: Citus sends the whole text of some to its nodes.
const LATER: &str = "DO $$ BEGIN
    SET LOCAL citus.multi_shard_modify_mode = 'sequential';
    ALTER TABLE sessions ADD COLUMN later bigint NOT NULL DEFAULT 0;
    ALTER TABLE projects ADD COLUMN later bigint;
    UPDATE projects SET later = 1;
    ALTER TABLE projects ADD CONSTRAINT projects_later_check CHECK (later > 0);
    UPDATE sessions SET later = projects.later FROM projects WHERE projects.id = sessions.project_id;
    ALTER TABLE sessions ADD CONSTRAINT sessions_later_check CHECK (later > 0) NOT VALID;
    ALTER TABLE sessions VALIDATE CONSTRAINT sessions_later_check;
    ALTER TABLE sessions ALTER COLUMN later SET DEFAULT 1;
    CREATE INDEX sessions_later_idx ON sessions (slot, later);
    END $$";

/// Migrations change tables on every node, and give what they create its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_divided_database_is_upgraded() {
    let Some(database) = Database::create_on_cluster("upgraded").await else { return };
    let mut service = Service::start_on(database).await;
    let mut phones = vec![];
    for user in 0..40 {
        phones.push(service.sign_in(&format!("user-{user}"), "phone").await);
    }
    let sessions: Vec<String> = phones.iter().map(|phone| phone.session.clone()).collect();
    let tokens: Vec<String> = phones.into_iter().map(|phone| phone.access_token).collect();
    service.stop();

    // A function, and a table at the coordinator alone.
    revert(&service.database, "20261127000029").await;
    let store = Store::new(&options(&service.database.url), Metrics::default()).expect("a good URL");
    let pending = store.pending_migrations().await.expect("answers");
    assert!(pending.len() >= 2, "{pending:?}");
    assert_eq!(store.migrate().await.expect("migrates").len(), pending.len());
    assert!(store.migrate().await.expect("nothing to do").is_empty());
    service.database.run(LATER).await;
    for table in ["sessions", "projects"] {
        let columns = format!(
            "SELECT DISTINCT result FROM run_command_on_placements('{table}', $$SELECT count(*) FROM pg_attribute
             WHERE attrelid = '%s'::regclass AND attname = 'later' AND NOT attisdropped$$)"
        );
        assert_eq!(service.database.lines(&columns).await, ["1"], "{table}");
    }
    let replica = service.replica().await;
    let slots: BTreeSet<_> = service.database.lines("SELECT slot FROM sessions").await.into_iter().collect();
    assert!(slots.len() * 2 > service.database.slots().await.len().min(20), "{slots:?}");
    for (session, token) in sessions.iter().zip(&tokens) {
        replica.revoke_current(Wire::Grpc, bearer(token)).await.expect("signs out");
        assert!(!replica.is_live(session).await);
    }
    eventually("the feed has all of them", async || replica.app.feed().size().0 >= sessions.len()).await;
}

/// A node that was added later compiles statements, until the command runs again.
#[tokio::test(flavor = "multi_thread")]
async fn every_node_gets_its_settings() {
    let Some(database) = Database::create_on_cluster("settings").await else { return };
    let settings = "SELECT DISTINCT unnest(setconfig) FROM pg_db_role_setting WHERE setdatabase =
         (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1";
    let of_all_nodes = format!(
        "SELECT DISTINCT result FROM run_command_on_all_nodes($$SELECT string_agg(s, ' ') FROM ({settings}) AS s (s)$$)"
    );
    let expected = ["enable_seqscan=off jit=off"];
    assert_eq!(database.lines(&of_all_nodes).await, expected);
    let store = Store::new(&options(&database.url), Metrics::default()).expect("a good URL");
    let wait = Duration::from_secs(60);
    assert!(store.distribute(None, wait).await.expect("nothing to do").is_empty());
    let message = store.distribute(Some(1_000), wait).await.expect_err("has others").to_string();
    assert!(message.contains("slots, not 1000, and that cannot be changed"), "{message}");
    let reset = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$";
    database.run(reset).await;
    assert_ne!(database.lines(&of_all_nodes).await, expected);
    assert_eq!(
        store.distribute(None, wait).await.expect("is the owner"),
        ["off on every node: jit", "off on every node: enable_seqscan"]
    );
    assert_eq!(database.lines(&of_all_nodes).await, expected);
}

/// Servers ask any node: each finds what the others have done, and they follow one feed by one clock.
#[tokio::test(flavor = "multi_thread")]
async fn servers_ask_any_node() {
    let Some(database) = Database::create_on_cluster("any").await else { return };
    let all = options(&database.url);
    let ways = divided::ways(&database.url);
    assert!(ways.len() >= 3, "a coordinator and two workers: {ways:?}");
    let first = Service::start_by(database, &divided::by(&all, &ways[1])).await;
    let mut servers = vec![];
    for way in &ways {
        servers.push(first.replica_with(divided::by(&all, way)).await);
    }
    for (at, server) in servers.iter().enumerate() {
        let phone = server.sign_in(&format!("user-{at}"), "phone").await;
        let other = &servers[(at + 1) % servers.len()];
        assert!(other.is_live(&phone.session).await);
        let mut watch = servers[(at + 2) % servers.len()].watches(Wire::Grpc).await;
        watch.snapshot().await;
        other.revoke_current(Wire::Rest, bearer(&phone.access_token)).await.expect("signs out");
        assert_eq!(watch.ended_session().await, phone.session);
        // A position in the feed of one server is one in that of every other.
        watch.heartbeat().await;
        let mut resumed = server.watches_from(Wire::Grpc, &watch.cursor).await;
        assert!(resumed.ended_or_beat().await.is_empty(), "nothing more, and no snapshot");
        for server in &servers {
            assert!(!server.is_live(&phone.session).await);
        }
    }

    // A worker hears no ring, and what changes the tables is the coordinator's.
    let at_worker = Store::new(&Options { url: ways[1].clone().into(), ..all.clone() }, Metrics::default());
    let at_worker = at_worker.expect("a good URL");
    assert!(at_worker.diagnose().await.expect("answers").is_worker);
    assert!(!servers[0].store.diagnose().await.expect("answers").is_worker);
    assert!(at_worker.pending_migrations().await.expect("knows the migrations").is_empty());
    let wait = Duration::from_secs(60);
    for refused in [at_worker.migrate().await.map(drop), at_worker.distribute(None, wait).await.map(drop)] {
        let message = refused.expect_err("is a worker").to_string();
        assert!(message.contains("worker of a Citus cluster"), "{message}");
    }
}

/// A database that an earlier release has divided: its workers do not know all tables, until the command runs again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_know_all_tables_is_refused() {
    let Some(database) = Database::create_on_cluster("uninformed").await else { return };
    let ways = divided::ways(&database.url);
    for table in ["sweeps", "feed_beacons", "__diesel_schema_migrations"] {
        database.run(&format!("SELECT undistribute_table('{table}')")).await;
    }
    let at = |url: &str| Store::new(&Options { url: url.to_owned().into(), ..options(url) }, Metrics::default());
    let refused = at(&ways[1]).expect("a good URL").pending_migrations().await.expect_err("lacks tables");
    let refused = chain(&refused);
    assert!(refused.contains("does not know all tables: run `sessiond migrate --distribute`"), "{refused}");
    let coordinator = at(&database.url).expect("a good URL");
    assert!(coordinator.pending_migrations().await.expect("has the tables").is_empty());
    let done = coordinator.distribute(None, Duration::from_secs(60)).await.expect("is the coordinator");
    assert_eq!(done.len(), 3, "{done:?}");
    assert!(at(&ways[1]).expect("a good URL").pending_migrations().await.expect("knows them").is_empty());
}

/// A worker that does not know yet how a move was decided reads the old copy: until it knows, what it reads is not fresh.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_know_of_a_move_is_not_fresh() {
    let Some(database) = Database::create_on_cluster("undecided").await else { return };
    let ways = divided::ways(&database.url);
    let by = |way: &str| divided::by(&options(&ways[0]), way);
    let at_worker = Service::start_by(database, &by(&ways[1])).await;
    let beside = at_worker.replica_with(by(&ways[2])).await;
    let worker = Database { url: ways[1].clone() };
    worker
        .run_each(&[
            "BEGIN",
            "UPDATE pg_dist_placement SET shardid = shardid WHERE false",
            "PREPARE TRANSACTION 'move'",
        ])
        .await;
    eventually("not fresh", async || !at_worker.app.feed().is_trusted()).await;
    assert!(beside.app.feed().is_trusted(), "of another node");
    worker.run("ROLLBACK PREPARED 'move'").await;
    eventually("fresh again", async || at_worker.app.feed().is_trusted()).await;
}

/// A worker that has left the cluster is told of no move, and could write to old copies: its servers take no writes, say so, and no
/// longer call what they read fresh. If it comes back, they go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_left_the_cluster_takes_no_writes() {
    const UNLISTED: &str = "the coordinator of the database does not list the node that is asked";
    let Some(database) = Database::create_on_cluster("left").await else { return };
    let ways = divided::ways(&database.url);
    let (coordinator, worker) = (Database { url: ways[0].clone() }, Database { url: ways[1].clone() });
    let ask_worker = async |query: &str| rows(&connect(&ways[1]).await, query).await.concat().concat();
    let service = Service::start_by(database, &divided::by(&options(&ways[0]), &ways[1])).await;
    let [phone, laptop] = [service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await];
    let group = ask_worker("SELECT groupid FROM pg_dist_local_group").await;
    // As after citus_disable_node: nobody tells the worker, and it still finds itself in its own list.
    let disable = |is_active| format!("UPDATE pg_dist_node SET isactive = {is_active} WHERE groupid = {group}");
    // As later versions of Citus leave a worker behind that is removed.
    let remove = |group: &str| format!("UPDATE pg_dist_local_group SET groupid = {group}");
    for (device, at, leave, come_back) in
        [(phone, &coordinator, disable(false), disable(true)), (laptop, &worker, remove("0"), remove(&group))]
    {
        at.run(&leave).await;
        eventually("it says so", async || service.readyz().await.1.contains(UNLISTED)).await;
        assert_refused!(device.sign_out(), "STORE_UNAVAILABLE");
        eventually("not fresh", async || !service.app.feed().is_trusted()).await;
        assert!(!service.store.check_membership().await.expect("answers"));

        at.run(&come_back).await;
        eventually("it is ready again", async || service.readyz().await.0 == StatusCode::OK).await;
        device.sign_out().await.expect("signs out");
    }
    assert_eq!(ask_worker("SELECT count(*) FROM pg_dist_node WHERE isactive").await, ways.len().to_string());

    // While the coordinator does not answer, the last answer counts, and beats go on.
    let tablet = service.sign_in("ada", "tablet").await;
    let stop = connect(&ways[0]).await;
    let shard = rows(
        &stop,
        "SELECT shard_name(logicalrelid, shardid) FROM pg_dist_shard WHERE logicalrelid = 'sweeps'::regclass",
    );
    let shard = shard.await.concat().concat();
    let lock = format!("SET citus.enable_manual_changes_to_shards = on; BEGIN; LOCK TABLE {shard}");
    stop.batch_execute(&lock).await.expect("locks");
    service.store.check_membership().await.expect_err("waits for the lock");
    tablet.sign_out().await.expect("signs out");
    assert!(service.app.feed().is_trusted());
    assert_eq!(service.readyz().await.0, StatusCode::OK);
}

/// The extension alone changes nothing, and a cluster without workers has nothing to divide.
#[tokio::test(flavor = "multi_thread")]
async fn citus_without_workers_is_one_postgres() {
    if divided::url().is_none() {
        return;
    }
    let alone = Database::create_empty().await;
    alone.run("CREATE EXTENSION citus").await;
    let store = Store::new(&options(&alone.url), Metrics::default()).expect("a good URL");
    assert!(!store.migrate().await.expect("is no worker").is_empty());
    assert!(!store.diagnose().await.expect("answers").is_worker);
    let message = store.distribute(None, Duration::from_secs(60)).await.expect_err("has no workers").to_string();
    assert!(message.contains("no node for the tables"), "{message}");
    let options = options(&alone.url);
    let service = Service::start_by(alone, &options).await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
}
