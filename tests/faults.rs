//! Faults between the database and the subscribers, one at a time: revocations still arrive, or everyone knows that the
//! feed is old.

use std::time::{Duration, Instant};

use dev_postgres::{Cluster, Mode};
use secrecy::ExposeSecret as _;
use sessiond::{feed, pb::revocation::Ended};

use crate::harness::{
    Service, Wire, bearer,
    database::{Database, disposable},
    eventually,
    proxy::Proxy,
};

/// Longer than the poll, with leeway for a busy machine.
const BOUND: Duration = Duration::from_secs(3);

/// The listening connection dies silently: the poll finds what the notification would have announced.
#[tokio::test]
async fn a_lost_notification_delays_revocations_and_loses_none() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "LISTEN sessiond_feed").await;
    let deaf = service.replica_by(&proxy.url).await;
    let mut watch = deaf.watches(Wire::Grpc).await;
    watch.snapshot().await;
    silence.begin();
    for _ in 0..10 {
        let phone = service.sign_in("ada", "phone").await;
        phone.sign_out().await.expect("signs out");
        let started = Instant::now();
        assert_eq!(watch.ended_session().await, phone.session);
        assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
        assert!(watch.heartbeat().await < 2_000, "and the feed is fresh");
    }
}

/// The reader hangs and everything else works: heartbeats arrive, and report the feed's age.
#[tokio::test]
async fn heartbeats_report_that_the_reader_hangs() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let hanging = service.replica_by(&proxy.url).await;
    let mut watch = hanging.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let phone = service.sign_in("ada", "phone").await;
    assert!(watch.heartbeat().await < 2_000);

    silence.begin();
    let began = Instant::now();
    phone.sign_out().await.expect("signs out, at the other replica");
    loop {
        let age = Duration::from_millis(watch.heartbeat().await.try_into().expect("an age"));
        // Never younger than it is, within a heartbeat's travel time.
        assert!(age + BOUND >= began.elapsed(), "{age:?} after {:?}", began.elapsed());
        if age > feed::AGE_MAX {
            break;
        }
    }
    // This replica does not answer from the stale feed.
    assert!(!hanging.is_active(&phone.access_token).await);

    silence.end();
    assert_eq!(watch.ended_session().await, phone.session, "nothing is missed");
    eventually("the feed is fresh again", async || watch.heartbeat().await < 2_000).await;
}

/// While Postgres is down, callers get an error; subscribers learn the feed's age, and resume by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_database_makes_the_feed_old_and_its_return_fresh() {
    let mut cluster = Cluster::start(disposable("feed")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.migrate().await;
    let service = Service::start_on(database).await;
    let phone = service.sign_in("ada", "phone").await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    for mode in [Mode::Fast, Mode::Immediate] {
        cluster.stop_server(mode).await.expect("stops");
        eventually("the feed is old", async || watch.heartbeat().await > 2_000).await;
        let key = bearer(service.server_key.expose_secret());
        let refused = service.introspect(Wire::Grpc, key, &phone.access_token).await.expect_err("cannot decide");
        assert_eq!(refused.reason, "STORE_UNAVAILABLE");
        cluster.start_server().await.expect("starts again");
        eventually("the feed is fresh again", async || watch.heartbeat().await < 2_000).await;
        let laptop = service.sign_in("ada", "laptop").await;
        laptop.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, laptop.session, "on the same stream");
    }
    drop(service);
    cluster.stop().await.expect("stops");
}

/// A write transaction stays open: it holds back neither revocations nor cursors.
#[tokio::test]
async fn an_open_transaction_delays_nobody() {
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let (client, connection) =
        tokio_postgres::connect(&service.database.url, tokio_postgres::NoTls).await.expect("connects");
    tokio::spawn(connection);
    client.batch_execute("BEGIN; CREATE TABLE held (x int)").await.expect("writes");
    let began = Instant::now();
    // `FAULT_SECONDS=60` runs the long version.
    let seconds = std::env::var("FAULT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    while began.elapsed() < Duration::from_secs(seconds) {
        let phone = service.sign_in("ada", "phone").await;
        phone.sign_out().await.expect("signs out");
        let started = Instant::now();
        assert_eq!(watch.ended_session().await, phone.session);
        assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    }
    assert!(watch.heartbeat().await < 2_000);
    client.batch_execute("ROLLBACK").await.expect("gives up");
    // A cursor from that time repeats nothing, and misses nothing.
    let mut again = service.watches_from(Wire::Grpc, &watch.cursor).await;
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    assert_eq!(again.ended_session().await, phone.session);
}

/// A server's clock jumps forward and back: revocations are kept for as long as a token may live.
#[tokio::test]
async fn a_clock_that_jumps_drops_no_revocation_too_early() {
    let service = Service::start().await;
    let hour = Duration::from_secs(60 * 60);
    let ahead = service.replica().await;
    ahead.clock.advance(hour);
    let mut there = ahead.watches(Wire::Grpc).await;
    there.snapshot().await;
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    let seen = there.ended().await;
    assert_eq!(seen[0].ended, Some(Ended::SessionId(phone.session.clone())));
    assert!(
        seen[0].retain_seconds > 600,
        "{}: as long as its token lives, whichever replica issued it",
        seen[0].retain_seconds
    );
    let laptop = ahead.sign_in("ada", "laptop").await;
    let mut here = service.watches(Wire::Grpc).await;
    here.snapshot().await;
    laptop.sign_out().await.expect("signs out");
    let seen = here.ended().await;
    assert!(seen[0].retain_seconds > 4_000, "{}: a token that is good for an hour here", seen[0].retain_seconds);
}
