//! The loops around the database: reads when there is news and every so often, leaves signs of life, rings the doorbell, and
//! listens for it.

use std::time::Duration;

use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::sleep_until;
use tokio::time::timeout;
use uuid::Uuid;

use super::HEARTBEAT_INTERVAL;
use super::LEEWAY;
use super::hub::Found;
use super::hub::Hub;
use super::position::Beat;
use super::position::Position;
use crate::clock;
use crate::clock::Clock;
use crate::clock::Timestamp;
use crate::store::Error;
use crate::store::Extent;
use crate::store::PageStart;
use crate::store::Reading;
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

/// How often a sign of life is written to the database's log.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// How long to wait for a connection that listens.
const DOORBELL_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait after a failure; doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How often what no token outlives is forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(5);

/// How long a replica that gives no sign of life is remembered.
const BEACON_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// Follows the database, for ever. The reader has a connection of its own: `reading`.
pub(super) async fn run(hub: &Hub, reading: &Store, store: &Store) {
    let replica = clock::new_uuid();
    tokio::join!(
        read(hub, reading),
        beat(hub, store),
        listen(hub, store, replica),
        ring(hub, store, replica),
        tell(hub),
        forget(hub)
    );
}

/// Reads on and on: from where the last reading stood, for as long as the database continues from there, and otherwise what
/// still matters as a whole.
async fn read(hub: &Hub, store: &Store) {
    let (mut retry, mut reader) = (RETRY.0, None);
    loop {
        match follow(hub, store, &mut reader, &mut retry).await {
            Ok(Stop::Break | Stop::TooMuch) => {
                reader = None;
                continue;
            }
            Err(error) => tracing::warn!(error = %telemetry::chain(&error), "the feed cannot be read"),
        }
        sleep(retry).await;
        retry = RETRY.1.min(retry * 2);
    }
}

/// Why a reading does not go on from the one before.
enum Stop {
    /// The database does not continue what was read.
    Break,
    /// So much has come at once that it is read in pages.
    TooMuch,
}

/// A reader at work.
struct Reader {
    connection: u64,
    /// What is left to be read once more, since the connection was lost.
    again: Option<Pages>,
}

/// What still matters at a moment, page by page.
struct Pages {
    at: Timestamp,
    next: Option<PageStart>,
}

impl Pages {
    /// By the earlier of two clocks: one that is ahead would leave out what still matters.
    fn new(hub: &Hub, at: Timestamp) -> Self {
        let at = at.min(hub.clock().now());
        Self { at, next: Some(PageStart::at(at - LEEWAY)) }
    }

    /// Reads the next page; `false` after the last.
    async fn read(&mut self, hub: &Hub, store: &Store) -> Result<bool, Error> {
        let Some(from) = self.next else { return Ok(false) };
        let page = store.feed_page(from, PAGE_ROWS).await?;
        hub.take_in_past(page.news, self.at);
        self.next = page.next;
        Ok(self.next.is_some())
    }
}

async fn follow(hub: &Hub, store: &Store, reader: &mut Option<Reader>, retry: &mut Duration) -> Result<Stop, Error> {
    let reader = match reader {
        Some(reader) => reader,
        None => reader.insert(begin(hub, store).await?),
    };
    let (mut began, mut extent) = (Instant::now(), Extent::Whole);
    loop {
        // Far behind, it reads on, a page at a time. To begin with everything instead would take longer than the next page
        // takes to come together, and so never end.
        if extent == Extent::Whole {
            let soonest = began + READING_INTERVAL_MIN;
            // The bell or the clock, whichever comes first.
            let _ = timeout(POLL_INTERVAL, hub.rung.notified()).await;
            sleep_until(soonest).await;
        }
        began = Instant::now();
        let Some(unseen) = hub.unseen() else { return Ok(Stop::Break) };
        let asked = hub.clock().elapsed();
        let reading = store.feed_next(&unseen, PAGE_ROWS).await?;
        keep_time(hub.clock(), reading.at, asked);
        if reading.connection != reader.connection {
            // Postgres may have started again meanwhile. The position holds all the same (`position`), unless a commit was
            // seen that was not on disk, or the files were put back. So both are looked for, while the reading goes on.
            let present = store.feed_position(hub.newest()).await?;
            if found(hub, store, &present).await {
                return Ok(Stop::Break);
            }
            reader.connection = present.connection;
            reader.again = Some(Pages::new(hub, present.at));
        }
        extent = reading.extent;
        if extent == Extent::TooMuch {
            return Ok(Stop::TooMuch);
        }
        if hub.go_on(reading).is_err() {
            return Ok(Stop::Break);
        }
        *retry = RETRY.0;
        if let Some(pages) = &mut reader.again
            && !pages.read(hub, store).await?
        {
            reader.again = None;
        }
    }
}

/// Reads what still matters as a whole.
async fn begin(hub: &Hub, store: &Store) -> Result<Reader, Error> {
    // Where it stands comes first: whatever commits while the past is read is found again, as what comes after.
    let asked = hub.clock().elapsed();
    let present = store.feed_position(hub.newest()).await?;
    keep_time(hub.clock(), present.at, asked);
    let present = if found(hub, store, &present).await { store.feed_position(None).await? } else { present };
    let mut pages = Pages::new(hub, present.at);
    while pages.read(hub, store).await? {}
    hub.begin(Position::new(&present));
    Ok(Reader { connection: present.connection, again: None })
}

/// Notes where the database stands. Returns whether that is another history than before, so that all of it is to be read.
async fn found(hub: &Hub, store: &Store, present: &Reading) -> bool {
    match hub.found(present) {
        Found::Continued => false,
        Found::AnotherHistory => true,
        Found::WentBack => {
            tracing::error!(
                "the database lacks revocations that it has shown: were its files put back to an earlier state? Run \
                 `sessiond restored`, or sessions that had ended live again. The feed begins a new history"
            );
            // So that cursors of before are told apart, at every replica.
            if let Err(error) = store.feed_history_begin(present.origin, hub.clock().now()).await {
                tracing::warn!(error = %telemetry::chain(&error), "the feed's new history cannot be written");
            }
            true
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
async fn beat(hub: &Hub, store: &Store) {
    // Whatever goes wrong here, the news grows old, and everyone hears of that. Releases before this one kept their signs of
    // life in a table.
    let _ = store.feed_beacons_forget(hub.clock().now() - BEACON_RETENTION).await;
    let mut ticks = every(BEAT_INTERVAL);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        let beat = store.feed_beat().await;
        if let Ok((origin, xid)) = beat {
            hub.beaten(Beat { origin, xid }, began);
        }
        store.look_after(beat.is_ok()).await;
    }
}

/// Hears the other replicas' bells. Each connection begins with a reading: what rang before it was not heard.
async fn listen(hub: &Hub, store: &Store, replica: Uuid) {
    let mut retry = RETRY.0;
    loop {
        match store.doorbell(DOORBELL_PATIENCE).await {
            Ok(mut bell) => {
                retry = RETRY.0;
                hub.rung.notify_one();
                while bell.rung(replica).await {
                    hub.rung.notify_one();
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
