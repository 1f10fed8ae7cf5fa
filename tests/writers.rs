//! The writers of the feed: an entry without a number is refused, and a writer that cannot go on is replaced.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use sessiond::{
    app::{SweepKind, Sweeper},
    telemetry::Metrics,
};
use sessiond_core::session::retention::RetentionPeriods;

use crate::harness::{PROJECT, Service, Wire, bearer, database::Database, eventually, watch::Watch};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Begins a transaction that has used a writer's next number.
async fn hold(database: &Database, slot: i16, writer: i64, session: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.expect("connects");
    tokio::spawn(connection);
    let statements = format!(
        "BEGIN; SELECT FROM feed_writers WHERE slot = {slot} AND id = {writer} FOR SHARE;
         INSERT INTO revocations (slot, project_id, id, at, reason, session_id, user_id, access_expires_at, actor, writer, seq)
         VALUES ({slot}, '{PROJECT}', gen_random_uuid(), now() - interval '2 hours', 4, '{session}', 'ada',
           now() + interval '10 minutes', 4, {writer}, 1)"
    );
    client.batch_execute(&statements).await.expect("writes");
    client
}

async fn sweep(service: &Service) -> usize {
    let retention = RetentionPeriods { ended_sessions: DAY * 30, audit: DAY * 400, addresses: DAY * 30 };
    let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
    let removed = sweeper.run_once().await.expect("sweeps");
    removed.into_iter().filter(|(kind, _)| *kind == SweepKind::Writers).map(|(_, rows)| rows).sum()
}

/// Each sign-out fails, with nothing revoked, or is published.
async fn assert_recovers(service: &Service, watch: &mut Watch) {
    let mut refused = 0;
    // Every connection of the pool meets it once.
    for _ in 0..40 {
        let phone = service.sign_in("ada", "phone").await;
        while let Err(error) = phone.sign_out().await {
            assert_eq!(error.reason, "STORE_UNAVAILABLE");
            assert!(service.is_live(&phone.session).await, "nothing is revoked without an entry");
            refused += 1;
        }
        assert_eq!(watch.ended_session().await, phone.session);
    }
    assert!((1..40).contains(&refused), "{refused}");
    assert!(watch.heartbeat().await < 2_000, "and the feed is fresh");
}

/// The sweep took the writer of a connection that was only slow, or its clock was wrong.
#[tokio::test]
async fn a_writer_that_was_closed_is_replaced() {
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    for how in [
        "UPDATE feed_writers SET closed_at = now(),
            last = coalesce((SELECT max(seq) FROM revocations AS r WHERE r.slot = feed_writers.slot AND r.writer = feed_writers.id), 0)",
        "DELETE FROM feed_writers",
    ] {
        // Several times, so that the connection that is used next has a writer: a busy one is passed over.
        for _ in 0..10 {
            let phone = service.sign_in("ada", "phone").await;
            phone.sign_out().await.expect("signs out");
            assert_eq!(watch.ended_session().await, phone.session);
        }
        service.database.run(how).await;
        assert_recovers(&service, &mut watch).await;
    }
}

/// Beneath a pooler another server answers, which lacks the last entry.
#[tokio::test]
async fn a_writer_whose_last_entry_is_gone_is_replaced() {
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    assert_eq!(watch.ended_session().await, phone.session);
    service.database.run("DELETE FROM revocations").await;
    assert_recovers(&service, &mut watch).await;
    let gaps = "SELECT count(*) FROM (SELECT max(seq) - min(seq) + 1 AS wide, count(*) AS rows FROM revocations GROUP BY writer)
        AS numbers WHERE wide <> rows";
    assert_eq!(service.database.lines(gaps).await, ["0"], "no writer has a gap");
}

/// Closed after an hour, deleted two days later; never while a transaction uses it, and with its last number.
#[tokio::test]
async fn an_idle_writer_is_closed_and_one_in_use_is_not() {
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let (database, slot) = (&service.database, service.slot_of("ada").await);
    database
        .run(&format!(
            "INSERT INTO feed_writers (slot, id, opened_at, last, closed_at) VALUES
               ({slot}, 1, now() - interval '2 hours', NULL, NULL), ({slot}, 2, now() - interval '2 hours', NULL, NULL),
               ({slot}, 3, now(), NULL, NULL), ({slot}, 4, now() - interval '9 days', 0, now() - interval '3 days'),
               ({slot}, 5, now() - interval '9 days', 0, now() - interval '1 day')"
        ))
        .await;
    let [one, late] = [(); 2].map(|()| sessiond_core::clock::new_uuid().to_string());
    hold(database, slot, 1, &one).await.batch_execute("COMMIT").await.expect("commits");
    assert_eq!(watch.ended_session().await, one);
    let held = hold(database, slot, 2, &late).await;
    assert_eq!(sweep(&service).await, 1, "the fourth");
    let state = "SELECT format('%s %s', id, coalesce(last::text, 'open')) FROM feed_writers WHERE id < 10 ORDER BY id";
    assert_eq!(database.lines(state).await, ["1 1", "2 open", "3 open", "5 0"]);
    held.batch_execute("COMMIT").await.expect("commits");
    assert_eq!(watch.ended_session().await, late);
    assert_eq!(sweep(&service).await, 0);
    assert_eq!(database.lines(state).await, ["1 1", "2 1", "3 open", "5 0"]);

    // A replica that starts now, and one that was there all along.
    assert_eq!(service.watches(Wire::Grpc).await.snapshot().await.1.len(), 2);
    let young = service.replica().await;
    eventually("it has read everything", async || young.app.feed().size().0 == 2).await;
    assert!(watch.heartbeat().await < 2_000);
}

/// The release before this one writes revocations without a writer: the database refuses them.
#[tokio::test]
async fn a_revocation_without_a_writer_is_refused() {
    let service = Service::start().await;
    let slot = service.slot_of("ada").await;
    let insert = format!(
        "INSERT INTO revocations (slot, project_id, id, at, reason, session_id, user_id, access_expires_at, actor)
         VALUES ({slot}, '{PROJECT}', gen_random_uuid(), now(), 4, gen_random_uuid(), 'ada', now(), 4)"
    );
    let refused = service.database.run_if_it_can(&insert).await.expect_err("refused");
    assert!(format!("{refused:?}").contains("NotNullViolation"), "{refused:?}");
}

/// Revocations from before there were writers: a replica that starts reads them, and they may be changed and deleted.
#[tokio::test]
async fn revocations_from_before_there_were_writers_are_read_at_the_start() {
    let service = Service::start().await;
    let (session, slot) = (sessiond_core::clock::new_uuid(), service.slot_of("ada").await);
    service
        .database
        .run(&format!(
            "INSERT INTO revocations (slot, project_id, id, at, reason, session_id, user_id, access_expires_at, actor, writer, seq)
             SELECT {slot}, '{PROJECT}', gen_random_uuid(), now(), 4, CASE WHEN i = 1 THEN '{session}' ELSE gen_random_uuid() END, 'ada',
               now() + interval '10 minutes', 4, 0, 0 FROM generate_series(1, 3) AS i"
        ))
        .await;
    let young = service.replica().await;
    let mut watch = young.watches(Wire::Grpc).await;
    assert_eq!(watch.snapshot().await.1.len(), 3);
    watch.heartbeat().await;
    // Again from a cursor: they have no number that it could name.
    let mut resumed = young.watches_from(Wire::Grpc, &watch.cursor.clone()).await;
    assert_eq!(resumed.ended().await.len(), 3);
    let admin = bearer(service.admin_key().await.expose_secret());
    service.erase(Wire::Grpc, admin, "ada").await.expect("erases");
}
