//! Postgres crashes and recovers, or is restored to an earlier state: positions in the feed stay correct.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use dev_postgres::{Cluster, Mode, Options};
use sessiond::{
    pb::SnapshotReason,
    store::{Extent, WriterId},
};
use sessiond_core::{clock, session::revoked::RevocationTarget};

use crate::harness::{
    Service, Wire,
    database::{Database, disposable},
    eventually,
    proxy::Proxy,
    watch::Watch,
};

/// Assigns thousands of transaction numbers, and writes none to disk.
const BURN: &str = "BEGIN; CREATE TEMPORARY TABLE IF NOT EXISTS burnt (i int); DO $$ BEGIN
    FOR i IN 1..3000 LOOP BEGIN INSERT INTO burnt VALUES (i); EXCEPTION WHEN others THEN END; END LOOP; END $$; ROLLBACK";

/// Kills a process as the kernel does when memory runs out.
fn kill(pid: &str) {
    let killed = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().expect("a shell");
    assert!(killed.success());
}

/// A separate Postgres that writes to disk only when it must.
async fn cluster(name: &str) -> (Cluster, Service) {
    let mut options: Options = disposable(name);
    options.settings.push(("wal_writer_delay".to_owned(), "10s".to_owned()));
    let cluster = Cluster::start(options).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.migrate().await;
    let service = Service::start_on(database).await;
    (cluster, service)
}

/// Kills one of Postgres's processes, which makes it restart all others and recover. Returns once it answers again.
async fn crash(database: &Database) {
    let mut victim = database.lines("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").await;
    kill(&victim.pop().expect("one"));
    let started = Instant::now();
    loop {
        match tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                if client.batch_execute("SELECT 1").await.is_ok() {
                    return;
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(started.elapsed() < Duration::from_secs(20), "it does not recover");
    }
}

/// Waits for revocations of all these sessions, in any order.
async fn expect_revocations(watch: &mut Watch, mut sessions: Vec<String>) {
    let started = Instant::now();
    while !sessions.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(15), "never published: {}", sessions.len());
        for ended in watch.ended_or_beat().await {
            sessions.retain(|session| *session != ended);
        }
    }
}

/// A replica is stopped while Postgres crashes and reassigns transaction numbers that the replica's last snapshot had counted
/// as finished. Sign-outs in those transactions are still published.
#[tokio::test(flavor = "multi_thread")]
async fn transaction_numbers_reassigned_after_a_crash_are_read() {
    let (cluster, service) = cluster("reused").await;
    let (proxy, silence) = Proxy::that_swallows_at(cluster.socket(), "postgres", "pg_current_snapshot").await;
    let paused = service.replica_by(&proxy.url).await;
    let mut watch = paused.watches(Wire::Grpc).await;
    watch.snapshot().await;
    for _ in 0..4 {
        let mut phones = vec![];
        for _ in 0..20 {
            phones.push(service.sign_in("ada", "phone").await);
        }
        service.database.run(BURN).await;
        // Long enough for a read. Occasionally a heartbeat flushes everything to disk: hence the rounds.
        tokio::time::sleep(Duration::from_millis(80)).await;
        silence.begin();
        crash(&service.database).await;
        let mut sessions = vec![];
        for phone in phones {
            eventually("signs out", async || phone.sign_out().await.is_ok()).await;
            sessions.push(phone.session);
        }
        silence.end();
        expect_revocations(&mut watch, sessions).await;
        eventually("the feed is fresh again", async || watch.heartbeat().await < 2_000).await;
    }
    drop((service, paused));
    cluster.stop().await.expect("stops");
}

/// Crashes under load, one after another; `FAULT_ROUNDS=25` runs the long version. No acknowledged sign-out is missed.
#[tokio::test(flavor = "multi_thread")]
async fn killing_a_server_process_under_load_hides_no_sign_out() {
    let (cluster, service) = cluster("killed").await;
    let follower = service.replica_by(&service.database.url).await;
    let mut watch = follower.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let rounds = std::env::var("FAULT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut acknowledged = 0;
    for _ in 0..rounds {
        let until = Instant::now() + Duration::from_millis(700);
        let load = async || {
            let mut sessions = vec![];
            while Instant::now() < until {
                let created = service.try_sign_in("ada").await;
                let Some(phone) = created else { continue };
                if phone.sign_out().await.is_ok() {
                    sessions.push(phone.session);
                }
            }
            sessions
        };
        let burn = async {
            let _ = service.database.run_if_it_can(BURN).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
            let _ = service.database.run_if_it_can(BURN).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
            crash(&service.database).await;
        };
        let (mut sessions, more, others, ()) = tokio::join!(load(), load(), load(), burn);
        sessions.extend(more.into_iter().chain(others));
        acknowledged += sessions.len();
        expect_revocations(&mut watch, sessions).await;
    }
    assert!(acknowledged > 0, "there was load");
    drop((service, follower));
    cluster.stop().await.expect("stops");
}

/// More revocations than one read returns, and cut-offs of an erased user, which are not published. A stopped replica
/// catches up page by page, and misses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_is_read_to_the_end() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let store = &service.store;
    let writer = 7;
    let slot = service.slot_of("ada").await;
    let open = format!("INSERT INTO feed_writers (id, opened_at, slot) VALUES ({writer}, now(), {slot})");
    service.database.run(&open).await;
    let insert = format!(
        "INSERT INTO revocations (slot, writer, project_id, id, at, reason, session_id, user_epoch, user_id, access_expires_at,
        actor, seq) SELECT {slot}, 7, 'demo', gen_random_uuid(), now(), 1, "
    );
    let mut ended = vec![];
    for seq in 1..8 {
        let id = clock::new_uuid();
        ended.push(id);
        service.database.run(&format!("{insert} '{id}', NULL, 'ada', now() + interval '10 minutes', 1, {seq}")).await;
    }
    // The user of this one was erased: a row of the feed that is not published.
    service.database.run(&format!("{insert} NULL, 1, NULL, now() + interval '10 minutes', 1, 8")).await;
    let last = clock::new_uuid();
    ended.push(last);
    service.database.run(&format!("{insert} '{last}', NULL, 'ada', now() + interval '10 minutes', 1, 9")).await;

    let writer = WriterId::from_number(writer);
    let (mut read, mut pages, mut known) = (vec![], 0, BTreeMap::new());
    loop {
        let reading = store.feed_next(&known, 3).await.expect("reads");
        read.extend(reading.revocations.iter().filter_map(|revocation| match revocation.ended {
            RevocationTarget::Session { id, .. } => Some(id.as_uuid()),
            _ => None,
        }));
        pages += 1;
        if reading.extent == Extent::Whole {
            break;
        }
        assert_eq!(reading.extent, Extent::Part);
        let newest = reading.entries.last().expect("rows");
        assert!(reading.entries.iter().all(|entry| entry.writer == writer && entry.seq <= newest.seq), "in order");
        known.insert(newest.writer, newest.seq);
    }
    assert_eq!(read, ended, "in order, each once");
    assert!(pages > 3, "{pages}");

    // The same for the replica itself, in one transaction: the read is as large as possible.
    let many = 12_000;
    service
        .database
        .run(&format!(
            "BEGIN; {insert} NULL, 1, NULL, now() + interval '10 minutes', 1, 10;
             {insert} gen_random_uuid(), NULL, 'ada', now() + interval '10 minutes', 1, 10 + i
               FROM generate_series(1, {many}) AS i;
             COMMIT"
        ))
        .await;
    eventually("all is known", async || service.app.feed().size().0 >= many + ended.len()).await;
    phone.sign_out().await.expect("signs out");
}

/// The database's files are restored without `sessiond restored`: a replica that had seen more starts a new history,
/// and cursors from the lost future are not accepted.
#[tokio::test(flavor = "multi_thread")]
async fn restored_files_start_a_new_history() {
    let (mut cluster, service) = cluster("put-back").await;
    let data: PathBuf =
        service.database.lines("SELECT current_setting('data_directory')").await.pop().expect("one").into();
    let kept = data.with_extension("kept");
    let phone = service.sign_in("ada", "phone").await;
    cluster.stop_server(Mode::Fast).await.expect("stops");
    copy(&data, &kept);
    cluster.start_server().await.expect("starts");

    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    eventually("signs out", async || phone.sign_out().await.is_ok()).await;
    assert_eq!(watch.ended_session().await, phone.session);
    watch.heartbeat().await;
    watch.heartbeat().await;
    let cursor = watch.cursor.clone();

    cluster.stop_server(Mode::Fast).await.expect("stops");
    std::fs::remove_dir_all(&data).expect("deletes");
    copy(&kept, &data);
    cluster.start_server().await.expect("starts");
    assert_eq!(watch.refusal().await.reason, "FEED_INTERRUPTED");

    // Nor by a replica that has not seen it.
    let young = service.replica_by(&service.database.url).await;
    for replica in [&service, &young] {
        let mut resumed = None;
        eventually("may follow", async || {
            resumed = replica.wires.watch(Wire::Grpc, replica.key(), &cursor).await.ok();
            resumed.is_some()
        })
        .await;
        let (why, past) = resumed.expect("a stream").snapshot().await;
        assert_eq!((why, past.len()), (SnapshotReason::CursorOfAnotherDatabase, 0));
    }
    let laptop = service.sign_in("ada", "laptop").await;
    let mut watch = young.watches(Wire::Grpc).await;
    watch.snapshot().await;
    laptop.sign_out().await.expect("signs out");
    assert_eq!(watch.ended_session().await, laptop.session);
    std::fs::remove_dir_all(&kept).expect("deletes");
    drop((service, young));
    cluster.stop().await.expect("stops");
}

/// Keeps file owners.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().expect("runs").success());
}

/// Another application holds a snapshot for hours, and nothing is vacuumed meanwhile: an idle server leaves nothing to
/// vacuum.
#[tokio::test]
async fn an_idle_server_leaves_no_dead_rows() {
    const WRITTEN: &str = "SELECT concat_ws(' ', relname, n_tup_upd, n_tup_del, n_dead_tup) FROM pg_stat_user_tables
        WHERE n_tup_upd + n_tup_del + n_dead_tup > 0 ORDER BY 1";
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let written = async || {
        // A connection that is idle reports what it has done within ten seconds.
        tokio::time::sleep(Duration::from_secs(11)).await;
        service.database.lines(WRITTEN).await
    };
    let before = written().await;
    for _ in 0..3 {
        assert!(watch.heartbeat().await < 2_000, "and gives signs of life");
    }
    assert_eq!(written().await, before);
}
