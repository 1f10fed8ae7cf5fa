//! The loops around the database: reads when there is news and every so often, leaves signs of life, rings the doorbell, and
//! listens for it.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::sleep_until;
use tokio::time::timeout;
use uuid::Uuid;

use super::HEARTBEAT_INTERVAL;
use super::LEEWAY;
use super::hub::Hub;
use crate::clock;
use crate::clock::Clock;
use crate::clock::Timestamp;
use crate::store::Error;
use crate::store::PageStart;
use crate::store::Store;
use crate::telemetry;

/// One for reading, one for signs of life, one for the bell: none waits for another.
pub(super) const CONNECTIONS: usize = 3;

/// The most that is read at a time: some tens of milliseconds' work.
const PAGE_ROWS: usize = 10_000;

/// How often the feed is read at the latest, bell or no bell.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Readings are at least so far apart, and rings of the bell: under load, one brings what many have ended.
const READING_INTERVAL_MIN: Duration = Duration::from_millis(3);

/// What has ended is told at most this often: under load, one message brings what many have ended.
const TELLING_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How often a sign of life is left in the database.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// How long to wait for a connection that listens.
const DOORBELL_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait after a failure; doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How often what no token outlives is forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(5);

/// How long a replica that gives no sign of life is remembered.
const BEACON_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// Follows the database, for ever.
pub(super) async fn run(hub: &Hub, store: &Store) {
    let replica = clock::new_uuid();
    let rung = Notify::new();
    tokio::join!(
        read(hub, store, replica, &rung),
        beat(hub, store, replica),
        listen(store, replica, &rung),
        ring(hub, store, replica),
        tell(hub),
        forget(hub)
    );
}

/// Reads on and on: from where the last reading stood for as long as that goes well, and otherwise what still matters as a
/// whole.
async fn read(hub: &Hub, store: &Store, replica: Uuid, rung: &Notify) {
    let mut retry = RETRY.0;
    loop {
        match follow(hub, store, replica, rung, &mut retry).await {
            Ok(Stop::AnotherHistory | Stop::FarBehind) => continue,
            Err(error) => tracing::warn!(error = %telemetry::chain(&error), "the feed cannot be read"),
        }
        sleep(retry).await;
        retry = RETRY.1.min(retry * 2);
    }
}

/// Why a reading does not go on from the one before.
enum Stop {
    /// The database tells another history, or the same one from another server.
    AnotherHistory,
    /// So much has come that it is read in pages.
    FarBehind,
}

async fn follow(hub: &Hub, store: &Store, replica: Uuid, rung: &Notify, retry: &mut Duration) -> Result<Stop, Error> {
    // Where it stands comes first: whatever commits while the past is read is found again, as what comes after.
    let asked = hub.clock().elapsed();
    let position = store.feed_position(replica).await?;
    keep_time(hub.clock(), position.at, asked);
    let mut snapshot = position.snapshot.clone();
    hub.found(&position);
    // By the earlier of two clocks: one that is ahead would leave out what still matters.
    let now = position.at.min(hub.clock().now());
    let mut next = Some(PageStart::at(now - LEEWAY));
    while let Some(from) = next {
        let page = store.feed_page(from, PAGE_ROWS).await?;
        hub.take_in_past(page.news, now);
        next = page.next;
    }
    hub.begin(&position);
    *retry = RETRY.0;
    let mut began = Instant::now();
    loop {
        let soonest = began + READING_INTERVAL_MIN;
        // The bell or the clock, whichever comes first.
        let _ = timeout(POLL_INTERVAL, rung.notified()).await;
        sleep_until(soonest).await;
        began = Instant::now();
        let asked = hub.clock().elapsed();
        let reading = store.feed_next(replica, &snapshot, PAGE_ROWS).await?;
        keep_time(hub.clock(), reading.at, asked);
        if reading.news.len() >= PAGE_ROWS {
            return Ok(Stop::FarBehind);
        }
        snapshot = reading.snapshot.clone();
        if hub.go_on(reading).is_err() {
            return Ok(Stop::AnotherHistory);
        }
    }
}

/// Keeps this replica's clock with the database's.
fn keep_time(clock: &Clock, at: Timestamp, asked: Duration) {
    if let Some(micros) = clock.observe(at, asked) {
        let by_ms = micros / 1_000;
        tracing::warn!(by_ms, "the database's clock was set, or another server answers; this replica goes by it");
    }
}

/// Leaves signs of life. Without them, no reading counts as complete.
async fn beat(hub: &Hub, store: &Store, replica: Uuid) {
    // Whatever goes wrong here, the news grows old, and everyone hears of that.
    let _ = store.feed_beacons_forget(hub.clock().now() - BEACON_RETENTION).await;
    let mut ticks = every(BEAT_INTERVAL);
    for beat in 1.. {
        ticks.tick().await;
        let began = Instant::now();
        if store.feed_beat(replica, beat, hub.clock().now()).await.is_ok() {
            hub.beaten(beat, began);
        }
    }
}

/// Hears the other replicas' bells. Each connection begins with a reading: what rang before it was not heard.
async fn listen(store: &Store, replica: Uuid, rung: &Notify) {
    let mut retry = RETRY.0;
    loop {
        match store.doorbell(DOORBELL_PATIENCE).await {
            Ok(mut bell) => {
                retry = RETRY.0;
                rung.notify_one();
                while bell.rung(replica).await {
                    rung.notify_one();
                }
                tracing::info!("the connection that listens for news was lost: a new one is made");
            }
            // The poll goes on meanwhile.
            Err(error) => tracing::debug!(error = %telemetry::chain(&error), "cannot listen for news"),
        }
        sleep(retry).await;
        retry = RETRY.1.min(retry * 2);
    }
}

/// Rings at the other replicas when this one has ended something.
async fn ring(hub: &Hub, store: &Store, replica: Uuid) {
    loop {
        hub.bell.notified().await;
        // Nobody hears it when it fails; the others look by themselves.
        let _ = store.ring(replica).await;
        sleep(READING_INTERVAL_MIN).await;
    }
}

/// Tells subscribers what has ended, and that the stream is alive.
async fn tell(hub: &Hub) {
    let mut heartbeats = every(HEARTBEAT_INTERVAL);
    loop {
        tokio::select! {
            () = hub.pending.notified() => {
                hub.flush();
                sleep(TELLING_INTERVAL_MIN).await;
            }
            _ = heartbeats.tick() => {
                hub.flush();
                hub.heartbeat();
            }
        }
    }
}

async fn forget(hub: &Hub) {
    let mut ticks = every(FORGET_INTERVAL);
    loop {
        ticks.tick().await;
        hub.forget();
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
