//! Follows the feed, for as long as the guard is there.

use std::time::Duration;

use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;
use tonic::Code;
use tonic::Status;

use super::inner::Inner;
use super::stats::count;
use super::upstream::Replica;
use super::upstream::UpstreamError;
use super::upstream::said;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::pb::Revocation;
use sessiond_core::pb::WatchRevocationsRequest;
use sessiond_core::pb::revocation::Ended as Told;
use sessiond_core::pb::watch_revocations_response::Event;
use sessiond_core::session::revoked::Ended;
use sessiond_core::session::revoked::RevokedSet;

/// Heartbeats come this often.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A stream that is silent for so long is dead, whatever the connection says.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long to wait before the next attempt.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// A replica whose news is older than this part of what the guard puts up with is left for the next one.
const STALE_PART: u32 = 2;

/// Where the news of every replica is old, each is listened to for so long before the next one is tried.
const STALE_STAY: Duration = Duration::from_secs(5);

/// How often what no token outlives is forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// Why a stream came to its end.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Failed(#[from] UpstreamError),
    #[error("{}", said(.0))]
    Status(Box<Status>),
    #[error("the stream ended")]
    Closed,
    #[error("nothing was heard for {SILENCE_MAX:?}")]
    Silence,
    #[error("something has ended that this version does not know of")]
    Unreadable,
    #[error("its news is {0:?} old")]
    Stale(Duration),
}

impl From<Status> for StreamEnd {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Follows one replica after the other.
pub(super) async fn run(inner: &Inner) {
    let mut cursor = String::new();
    let mut retry = RETRY;
    let mut stale = Stale::new(inner.upstream.len(), inner.max_staleness);
    for attempt in 0.. {
        let replica = inner.upstream.replica(attempt);
        let end = follow(inner, replica, &mut cursor, &mut retry, &mut stale).await;
        // A connection that was lost may be one to nowhere, and who answers next another one.
        replica.reconnect();
        let wait = retry.next(clock::dice());
        tracing::warn!(replica = replica.name(), error = %end, "the feed is followed no longer; trying again in {wait:?}");
        if let StreamEnd::Failed(failure) = end {
            inner.reject(failure);
        }
        sleep(wait).await;
    }
}

/// When to leave a replica whose news is old: at once while there is one that was not tried yet, and then every few seconds.
/// Where there is only one address, others may stand behind it.
struct Stale {
    replicas: usize,
    bound: Duration,
    /// How many were left since the news was young.
    left: usize,
    /// Since when the present one is known to be stale.
    since: Option<Instant>,
}

impl Stale {
    fn new(replicas: usize, max_staleness: Duration) -> Self {
        Self { replicas, bound: max_staleness / STALE_PART, left: 0, since: None }
    }

    /// Another stream begins.
    const fn begin(&mut self) {
        self.since = None;
    }

    /// Whether to leave the replica that says that its news is of this age.
    fn leaves(&mut self, age: Duration, now: Instant) -> bool {
        if age <= self.bound {
            (self.left, self.since) = (0, None);
            return false;
        }
        let since = *self.since.get_or_insert(now);
        // Round to the first one again.
        if self.replicas > 1 && self.left < self.replicas {
            self.left += 1;
            return true;
        }
        now.duration_since(since) >= STALE_STAY
    }
}

async fn follow(
    inner: &Inner,
    replica: &Replica,
    cursor: &mut String,
    retry: &mut Backoff,
    stale: &mut Stale,
) -> StreamEnd {
    stale.begin();
    match stream(inner, replica, cursor, retry, stale).await {
        Ok(()) => StreamEnd::Closed,
        Err(StreamEnd::Status(status)) if status.code() == Code::InvalidArgument => {
            // It makes nothing of the cursor: from the beginning, then.
            cursor.clear();
            StreamEnd::Status(status)
        }
        Err(end) => end,
    }
}

async fn stream(
    inner: &Inner,
    replica: &Replica,
    cursor: &mut String,
    retry: &mut Backoff,
    stale: &mut Stale,
) -> Result<(), StreamEnd> {
    inner.upstream.check(replica).await?;
    // From the question on: the first answer may have waited too.
    let mut delay = Delay::new(Instant::now());
    let request = inner.upstream.signed(WatchRevocationsRequest { cursor: cursor.clone() });
    let mut client = replica.client();
    let answer = timeout(SILENCE_MAX, client.watch_revocations(request)).await.map_err(|_| StreamEnd::Silence)?;
    let mut messages = answer?.into_inner();
    count(&inner.counters.connections);

    let mut coming: Option<RevokedSet> = None;
    let mut is_continued = true;
    let mut heard_at = Instant::now();
    loop {
        let message = timeout(SILENCE_MAX, messages.message()).await.map_err(|_| StreamEnd::Silence)?;
        let Some(message) = message? else { return Ok(()) };
        // This process may have been held up itself: what it finds now has waited, nobody knows for how long.
        if heard_at.elapsed() > SILENCE_MAX {
            return Err(StreamEnd::Silence);
        }
        heard_at = Instant::now();
        match message.event {
            Some(Event::SnapshotBegin(_)) => coming = Some(RevokedSet::default()),
            Some(Event::Revocations(batch)) => {
                let present;
                let set = match &coming {
                    Some(coming) => coming,
                    None => {
                        present = inner.revocations.revoked();
                        &present
                    }
                };
                for revocation in &batch.revocations {
                    take_in(set, &inner.project, revocation, inner.time.elapsed()).ok_or(StreamEnd::Unreadable)?;
                }
            }
            Some(Event::SnapshotComplete(_)) => {
                if let Some(coming) = coming.take() {
                    let last = inner.revocations.replace(coming);
                    is_continued = false;
                    // A million entries take their time to go.
                    drop(tokio::task::spawn_blocking(move || drop(last)));
                    count(&inner.counters.snapshots);
                }
            }
            Some(Event::Heartbeat(heartbeat)) if inner.revocations.is_complete() && coming.is_none() => {
                let age = Duration::from_millis(heartbeat.age_ms.try_into().unwrap_or(0));
                let age = age + delay.of_heartbeat(heard_at);
                let leaves = stale.leaves(age, heard_at);
                // What was known before a replica that is further behind stays known, unless its snapshot took the place.
                if !leaves || !is_continued {
                    inner.revocations.is_of(&inner.time, age);
                }
                if leaves {
                    return Err(StreamEnd::Stale(age));
                }
                inner.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.has_news, true));
                retry.reset();
            }
            // A snapshot is not told to its end; or something new that is no news of an end.
            Some(Event::Heartbeat(_)) | None => {}
        }
        // Half a snapshot leads nowhere.
        if let Some(moved) = message.cursor.filter(|_| coming.is_none()) {
            *cursor = moved;
        }
    }
}

/// How long heartbeats wait on their way: they are sent a second apart, so what comes sooner after the last has waited less
/// than that one, and what comes later has waited longer.
struct Delay {
    last: Instant,
    delay: Duration,
}

/// What a sender may be late by.
const TOLERANCE: Duration = Duration::from_millis(100);

impl Delay {
    const fn new(begun: Instant) -> Self {
        Self { last: begun, delay: Duration::ZERO }
    }

    fn of_heartbeat(&mut self, at: Instant) -> Duration {
        let apart = at.duration_since(self.last);
        self.last = at;
        self.delay = SILENCE_MAX.min((self.delay + apart).saturating_sub(HEARTBEAT_INTERVAL + TOLERANCE));
        self.delay
    }
}

/// `None` for what this version does not understand: to go on as if nothing had ended would be wrong.
fn take_in(set: &RevokedSet, project: &ProjectId, revocation: &Revocation, now: Duration) -> Option<()> {
    let ended = match revocation.ended.as_ref()? {
        Told::SessionId(id) => Ended::Session { id: SessionId::parse(id)?, is_impersonation: false },
        Told::UserCutOff(cut) => Ended::User {
            user: UserId::parse(&cut.user_id)?,
            epoch: cut.epoch,
            spared: match &cut.spared_session_id {
                Some(id) => Some(SessionId::parse(id)?),
                None => None,
            },
        },
        Told::ProjectCutOff(cut) => Ended::Project { epoch: cut.epoch },
        Told::SigningKeyId(key) => Ended::SigningKey(KeyId::parse(key)?),
    };
    let retain = Duration::from_secs(revocation.retain_seconds.try_into().unwrap_or(0));
    set.insert(project, &ended, now + retain);
    Some(())
}

/// Forgets what no token outlives.
pub(super) async fn forget(inner: &Inner) {
    let mut ticks = interval(FORGET_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        inner.revocations.revoked().forget(inner.time.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_whose_news_is_old_is_left_for_the_next_one() {
        let (start, young, old) = (Instant::now(), Duration::from_millis(900), Duration::from_secs(6));
        let mut stale = Stale::new(3, Duration::from_secs(10));
        assert!(!stale.leaves(young, start));
        // Once round, and then each for a while.
        for _ in 0..3 {
            stale.begin();
            assert!(stale.leaves(old, start));
        }
        stale.begin();
        assert!(!stale.leaves(old, start) && !stale.leaves(old, start + STALE_STAY / 2));
        assert!(stale.leaves(old, start + STALE_STAY));
        stale.begin();
        assert!(!stale.leaves(young, start));
        assert!(stale.leaves(old, start), "anew");
        // Behind one address there may be others.
        let mut only = Stale::new(1, Duration::from_secs(10));
        assert!(!only.leaves(old, start) && only.leaves(old, start + STALE_STAY));
    }

    #[test]
    fn a_heartbeat_that_waited_says_so() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        let mut at = |millis: u64| delay.of_heartbeat(start + Duration::from_millis(millis));
        // In time, or nearly.
        assert_eq!([at(1_000), at(2_050), at(3_000)], [Duration::ZERO; 3]);
        // Held up for 2.9 s: the first has waited for 1.9 s, the second for 0.9 s, less the tolerance.
        assert_eq!(at(5_900), Duration::from_millis(1_800));
        assert_eq!(at(5_900), Duration::from_millis(700));
        assert_eq!(at(6_000), Duration::ZERO);
    }
}
