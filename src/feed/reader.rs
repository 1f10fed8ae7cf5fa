//! The loops around the database: read when the doorbell rings and at intervals, write beats, ring the doorbell, and listen
//! for it.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::sleep_until;
use tokio::time::timeout;
use uuid::Uuid;

use super::broadcaster::Broadcaster;
use super::broadcaster::Continuity;
use super::limits::HEARTBEAT_INTERVAL;
use super::limits::LEEWAY;
use super::position::Beat;
use super::position::Position;
use crate::every::every;
use crate::every::ticks;
use crate::store::Error;
use crate::store::Extent;
use crate::store::FeedWriters;
use crate::store::PageStart;
use crate::store::Store;
use crate::telemetry;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;

/// One for reading, one for beats, one for ringing: none waits for another. The coordinator of a divided database may not answer
/// for a while, and beats do not need it.
pub(super) const CONNECTIONS: usize = 3;

/// The most that is read at a time: some tens of milliseconds' work.
const PAGE_ROWS: usize = 10_000;

/// How often the feed is read if the doorbell does not ring: at least and at most. See [`poll_interval`].
const POLL_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(250);

/// The least time between two readings, and between two rings: under load, one covers many revocations.
const READING_INTERVAL_MIN: Duration = Duration::from_millis(3);

/// The least time between two broadcasts: under load, one message covers many revocations.
const PUBLISH_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How often to check that the database still has what was read. Also done whenever the connection is new; but a pooler may
/// change the server behind the connection.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// How often a beat is written to the database's log.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// How often the coordinator of a divided database is asked whether it lists the node that is asked.
const MEMBERSHIP_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait for a connection that listens.
const DOORBELL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait after a failure.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// How often expired revocations are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(5);

/// How long a replica without a beat is remembered.
const BEACON_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// Follows the database. Does not return. Each store has one connection.
pub(super) async fn run(broadcaster: &Broadcaster, reading: &Store, beating: &Store, ringing: &Store) {
    let replica = clock::new_uuid();
    tokio::join!(
        read(broadcaster, reading),
        beat(broadcaster, beating),
        listen(broadcaster, ringing, replica),
        ring(broadcaster, ringing, replica),
        publish(broadcaster),
        forget_expired(broadcaster)
    );
}

/// Reads in a loop: what was committed since the last reading, as long as the database continues from there, and otherwise
/// the whole backlog.
async fn read(broadcaster: &Broadcaster, store: &Store) {
    let (mut retry, mut progress) = (RETRY, None);
    loop {
        match follow(broadcaster, store, &mut progress, &mut retry).await {
            Ok(Discontinuous) => {
                progress = None;
                continue;
            }
            Err(error) => tracing::warn!(error = %telemetry::chain(&error), "cannot read the revocation feed"),
        }
        sleep(retry.next(clock::random_u32())).await;
    }
}

/// A reading does not continue the previous one.
struct Discontinuous;

/// Where and when the database was last seen to have everything that was read.
struct ReaderProgress {
    connection: u64,
    checked_at: Instant,
}

/// The backlog at a moment, page by page.
struct Pages {
    at: Timestamp,
    next: Option<PageStart>,
}

impl Pages {
    /// Uses the earlier of the two clocks' times: a clock that is ahead would omit revocations that still matter.
    fn new(broadcaster: &Broadcaster, at: Timestamp) -> Self {
        let at = at.min(broadcaster.clock().now());
        Self { at, next: Some(PageStart::at(at - LEEWAY)) }
    }

    /// Reads the next page; `false` after the last.
    async fn read(&mut self, broadcaster: &Broadcaster, store: &Store) -> Result<bool, Error> {
        let Some(from) = self.next else { return Ok(false) };
        let page = store.feed_page(from, PAGE_ROWS).await?;
        broadcaster.insert_backlog(page.revocations, self.at);
        self.next = page.next;
        Ok(self.next.is_some())
    }
}

async fn follow(
    broadcaster: &Broadcaster,
    store: &Store,
    progress: &mut Option<ReaderProgress>,
    retry: &mut Backoff,
) -> Result<Discontinuous, Error> {
    let progress = match progress {
        Some(progress) => progress,
        None => progress.insert(begin(broadcaster, store).await?),
    };
    let (mut began, mut took, mut extent) = (Instant::now(), Duration::ZERO, Extent::Whole);
    loop {
        // Far behind, it continues page by page. Reading the whole backlog instead would take longer than the next page takes to
        // fill, and so never finish.
        if extent == Extent::Whole {
            let soonest = began + READING_INTERVAL_MIN;
            // Until the doorbell rings, or the poll is due.
            let _ = timeout(poll_interval(took), broadcaster.to_read.notified()).await;
            sleep_until(soonest).await;
        }
        began = Instant::now();
        let Some(numbers) = broadcaster.numbers() else { return Ok(Discontinuous) };
        let asked = broadcaster.clock().elapsed();
        let reading = store.feed_next(&numbers, PAGE_ROWS).await?;
        took = began.elapsed();
        keep_time(broadcaster.clock(), reading.present.at, asked);
        let connection = reading.present.connection;
        if connection != progress.connection || progress.checked_at.elapsed() >= CHECK_INTERVAL {
            // Postgres may have restarted, or its files may have been restored.
            let found = store.feed_writers().await?;
            if is_discontinuous(broadcaster, store, &found).await {
                return Ok(Discontinuous);
            }
            *progress = ReaderProgress { connection: found.present.connection, checked_at: Instant::now() };
        }
        extent = reading.extent;
        if broadcaster.advance(reading).is_err() {
            return Ok(Discontinuous);
        }
        retry.reset();
    }
}

/// How long to wait for the doorbell after a reading that took so long. A reading of a divided database asks every slot, some
/// thirty times the work of one Postgres: polls take a tenth of the time where they can.
fn poll_interval(took: Duration) -> Duration {
    (took * 9).clamp(*POLL_INTERVAL.start(), *POLL_INTERVAL.end())
}

/// Reads the whole backlog.
async fn begin(broadcaster: &Broadcaster, store: &Store) -> Result<ReaderProgress, Error> {
    // The position is read first: what commits while the backlog is read is found again by the next reading.
    let asked = broadcaster.clock().elapsed();
    let found = store.feed_writers().await?;
    keep_time(broadcaster.clock(), found.present.at, asked);
    let found = if is_discontinuous(broadcaster, store, &found).await { store.feed_writers().await? } else { found };
    let mut pages = Pages::new(broadcaster, found.present.at);
    while pages.read(broadcaster, store).await? {}
    let progress = ReaderProgress { connection: found.present.connection, checked_at: Instant::now() };
    broadcaster.start_at(Position::new(&found));
    Ok(progress)
}

/// Returns whether the database does not continue what was read, so that the whole backlog has to be read again.
async fn is_discontinuous(broadcaster: &Broadcaster, store: &Store, found: &FeedWriters) -> bool {
    match broadcaster.check_continuity(found) {
        Continuity::Continued => false,
        Continuity::AnotherHistory => true,
        Continuity::WentBack => {
            tracing::error!(
                "the database lacks revocations that it has shown: were its files restored to an earlier state? Run \
                 `sessiond restored`, or revoked sessions are active again. The feed begins a new history"
            );
            // So that every replica recognizes the cursors from before.
            if let Err(error) = store.feed_history_begin(found.present.origin, broadcaster.clock().now()).await {
                tracing::warn!(error = %telemetry::chain(&error), "cannot write the feed's new history");
            }
            true
        }
    }
}

/// Adjusts this replica's clock to the database's.
fn keep_time(clock: &Clock, at: Timestamp, asked: Duration) {
    if let Some(micros) = clock.observe(at, asked) {
        let by_ms = micros / 1_000;
        tracing::warn!(by_ms, "the database's clock was set, or another server answers; this replica follows it");
    }
}

/// Writes beats. Without them, no reading counts as complete.
async fn beat(broadcaster: &Broadcaster, store: &Store) {
    // If this fails, the feed grows old, which heartbeats report. Earlier releases kept their beats in a table.
    let _ = store.feed_beacons_forget(broadcaster.clock().now() - BEACON_RETENTION).await;
    every(BEAT_INTERVAL, || async {
        let began = Instant::now();
        let beat = store.feed_beat().await;
        let is_ok = beat.is_ok();
        // A node that has left the cluster may read copies that nobody writes to any more.
        if let Ok((origin, slots)) = beat
            && store.is_listed()
        {
            broadcaster.note_beat(Beat { origin, slots }, began);
        }
        store.check_database(is_ok).await;
    })
    .await;
}

/// Listens to the other replicas' doorbells. Each new connection triggers a reading: earlier rings were missed.
async fn listen(broadcaster: &Broadcaster, store: &Store, replica: Uuid) {
    let mut retry = RETRY;
    loop {
        match store.doorbell(DOORBELL_TIMEOUT).await {
            Ok(mut bell) => {
                retry.reset();
                broadcaster.to_read.notify_one();
                while bell.rung(replica).await {
                    broadcaster.to_read.notify_one();
                }
                tracing::info!("lost the connection that listens for revocations; reconnecting");
            }
            // The poll continues meanwhile.
            Err(error) => tracing::debug!(error = %telemetry::chain(&error), "cannot listen for revocations"),
        }
        sleep(retry.next(clock::random_u32())).await;
    }
}

/// Rings the other replicas' doorbells when this one has revoked something, and checks that the node that is asked still belongs
/// to the cluster. In a divided database both need the coordinator, so they share a connection and a backoff.
async fn ring(broadcaster: &Broadcaster, store: &Store, replica: Uuid) {
    let (mut retry, mut checks, mut is_answered) = (RETRY, ticks(MEMBERSHIP_INTERVAL), true);
    loop {
        let done = tokio::select! {
            biased;
            _ = checks.tick() => {
                let checked = store.check_membership().await.map(drop);
                if let Err(error) = &checked
                    && is_answered
                {
                    let error = telemetry::chain(error);
                    tracing::warn!(%error, "the coordinator does not say whether this node belongs to the cluster; the last answer counts");
                }
                is_answered = checked.is_ok();
                checked
            }
            () = broadcaster.to_ring.notified() => {
                let rung = store.ring(replica).await;
                sleep(READING_INTERVAL_MIN).await;
                rung
            }
        };
        match done {
            Ok(()) => retry.reset(),
            // The other replicas poll. Each attempt costs a connection: in a divided database only the coordinator may be down.
            Err(_) => sleep(retry.next(clock::random_u32())).await,
        }
    }
}

/// Publishes revocations and heartbeats to subscribers.
async fn publish(broadcaster: &Broadcaster) {
    let mut heartbeats = ticks(HEARTBEAT_INTERVAL);
    loop {
        tokio::select! {
            () = broadcaster.to_publish.notified() => {
                broadcaster.publish_pending();
                sleep(PUBLISH_INTERVAL_MIN).await;
            }
            _ = heartbeats.tick() => {
                broadcaster.publish_pending();
                broadcaster.heartbeat();
            }
        }
    }
}

async fn forget_expired(broadcaster: &Broadcaster) {
    every(FORGET_INTERVAL, || async { broadcaster.forget_expired() }).await;
}
