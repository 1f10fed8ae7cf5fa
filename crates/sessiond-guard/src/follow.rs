//! Follows the feed of revocations.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;
use tonic::Code;
use tonic::Status;

use super::state::GuardState;
use super::stats::increment;
use super::upstream::Replica;
use super::upstream::UpstreamError;
use super::upstream::describe;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::pb::Revocation;
use sessiond_core::pb::WatchRevocationsRequest;
use sessiond_core::pb::WatchRevocationsResponse;
use sessiond_core::pb::revocation::Ended as PbTarget;
use sessiond_core::pb::watch_revocations_response::Event;
use sessiond_core::pb::withheld::Concerns;
use sessiond_core::session::revoked::RevocationTarget;
use sessiond_core::session::revoked::RevokedSet;
use sessiond_core::session::revoked::Withheld;

/// How often sessiond sends a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A stream without a message for this long is considered dead.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long to wait before reconnecting.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// The guard leaves a replica whose feed is older than `max_staleness` divided by this.
const STALE_DIVISOR: u32 = 2;

/// If every replica is stale, how long the guard stays with one before it tries the next.
const STALE_STAY: Duration = Duration::from_secs(5);

/// The kinds of revocations that this release understands: names of fields of `Revocation.ended`. sessiond withholds others.
const ACCEPTS: [&str; 5] = ["session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded"];

/// The header with the role of the server key, and the role that is enough.
const KEY_ROLE: &str = "x-sessiond-key-role";
const VERIFIER: &str = "verifier";

/// How often entries that every token has outlived are removed.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(10);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamEnd {
    #[error(transparent)]
    Failed(#[from] UpstreamError),
    #[error("{}", describe(.0))]
    Status(Box<Status>),
    #[error("sessiond closed the stream")]
    Closed,
    #[error("no message for {SILENCE_MAX:?}")]
    Silence,
    #[error("received a revocation of a kind that this version does not know")]
    UnknownRevocation,
    #[error("the replica is stale: its feed is {0:?} old")]
    Stale(Duration),
    #[error("the project has more revocations than max_entries ({0}): raise it")]
    TooManyEntries(usize),
}

impl From<Status> for StreamEnd {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Follows one replica at a time, and switches to the next when its stream ends.
pub(super) async fn run(guard: &GuardState) {
    let mut progress = Progress::new(guard);
    for attempt in 0.. {
        let replica = guard.upstream.replica(attempt);
        let end = match stream(guard, replica, &mut progress).await {
            Ok(()) => StreamEnd::Closed,
            Err(end) => end,
        };
        progress.end(&end);
        // The connection may be dead, and another server may answer at this address next.
        replica.reconnect();
        let wait = progress.retry.next(clock::random_u32());
        tracing::warn!(replica = replica.name(), error = %end, "the stream of revocations ended; reconnecting in {wait:?}");
        if let StreamEnd::Failed(error) = end {
            guard.record_misconfiguration(error);
        }
        sleep(wait).await;
    }
}

/// What one stream leaves to the next.
pub(super) struct Progress {
    /// Where to resume; empty to begin with a snapshot.
    pub(super) cursor: String,
    retry: Backoff,
    stale: StalePolicy,
    logged: Logged,
}

/// What was logged, because it is logged once.
#[derive(Default)]
struct Logged {
    /// That the server key can do more than is needed.
    strong_key: bool,
    /// The kinds of revocations that were withheld: at most [`KINDS_MAX`].
    kinds: Vec<String>,
}

/// The most kinds that are remembered.
const KINDS_MAX: usize = 32;

impl Logged {
    fn key_role(&mut self, role: Option<&str>) {
        if let Some(role) = role.filter(|role| *role != VERIFIER)
            && !std::mem::replace(&mut self.strong_key, true)
        {
            tracing::warn!(
                role,
                "the server key can do more than a guard needs: `sessiond server-key create --role verifier` creates a lesser one, \
                 `sessiond server-key narrow` narrows this one"
            );
        }
    }

    fn withheld(&mut self, kind: &str) {
        if self.kinds.len() < KINDS_MAX && !self.kinds.iter().any(|known| known == kind) {
            tracing::warn!(
                kind,
                "sessiond has a revocation of a kind that this guard does not understand: the fail mode decides on the tokens that it \
                 concerns; upgrade the guard (logged once per kind)"
            );
            self.kinds.push(kind.to_owned());
        }
    }
}

impl Progress {
    pub(super) fn new(guard: &GuardState) -> Self {
        let stale = StalePolicy::new(guard.upstream.len(), guard.max_staleness);
        Self { cursor: String::new(), retry: RETRY, stale, logged: Logged::default() }
    }

    /// Records why a stream ended.
    pub(super) fn end(&mut self, end: &StreamEnd) {
        // The replica does not accept the cursor, so start with a snapshot.
        if let StreamEnd::Status(status) = end
            && status.code() == Code::InvalidArgument
        {
            self.cursor.clear();
        }
    }
}

/// Decides when to leave a stale replica: at once while another one has not been tried, and then every [`STALE_STAY`]. A
/// single address may have several replicas behind it.
struct StalePolicy {
    replicas: usize,
    age_max: Duration,
    /// How many replicas were left since the feed was last fresh.
    left: usize,
    /// Since when the present replica is known to be stale.
    stale_since: Option<Instant>,
}

impl StalePolicy {
    fn new(replicas: usize, max_staleness: Duration) -> Self {
        Self { replicas, age_max: max_staleness / STALE_DIVISOR, left: 0, stale_since: None }
    }

    /// Begins another stream.
    const fn begin(&mut self) {
        self.stale_since = None;
    }

    /// Whether to leave the present replica, whose feed has this age.
    fn should_leave(&mut self, age: Duration, now: Instant) -> bool {
        if age <= self.age_max {
            (self.left, self.stale_since) = (0, None);
            return false;
        }
        let since = *self.stale_since.get_or_insert(now);
        // Until each has been tried.
        if self.replicas > 1 && self.left < self.replicas {
            self.left += 1;
            return true;
        }
        now.duration_since(since) >= STALE_STAY
    }
}

async fn stream(guard: &GuardState, replica: &Replica, progress: &mut Progress) -> Result<(), StreamEnd> {
    guard.upstream.check(replica).await?;
    // From the request on, because the first message may have been delayed too.
    let mut reader = StreamReader::new(guard, progress, Instant::now());
    let request = guard.upstream.authorized(WatchRevocationsRequest {
        cursor: progress.cursor.clone(),
        accepts: ACCEPTS.map(str::to_owned).into(),
        max_entries: guard.max_entries.try_into().unwrap_or(i32::MAX),
    });
    let mut client = replica.client();
    let answer = timeout(SILENCE_MAX, client.watch_revocations(request)).await.map_err(|_| StreamEnd::Silence)?;
    let answer = answer?;
    progress.logged.key_role(answer.metadata().get(KEY_ROLE).and_then(|role| role.to_str().ok()));
    let mut messages = answer.into_inner();
    increment(&guard.counters.connections);
    reader.received_at = Instant::now();
    loop {
        let message = timeout(SILENCE_MAX, messages.message()).await.map_err(|_| StreamEnd::Silence)?;
        let Some(message) = message? else { return Ok(()) };
        if let Some(previous) = reader.receive(message, Instant::now(), progress)? {
            // Dropping a million entries takes long enough to block the runtime.
            drop(tokio::task::spawn_blocking(move || drop(previous)));
        }
    }
}

/// Applies the messages of one stream. The caller says when each one arrived, so the result depends on nothing else.
pub(super) struct StreamReader<'a> {
    guard: &'a GuardState,
    delay: Delay,
    snapshot: Option<Snapshot>,
    /// Whether this stream has replaced the set by a snapshot.
    has_new_snapshot: bool,
    received_at: Instant,
}

/// The snapshot that is being received, or waits for a heartbeat, which says how old it is.
#[derive(Default)]
struct Snapshot {
    set: RevokedSet,
    is_whole: bool,
    /// Where to resume once it has replaced the set.
    cursor: Option<String>,
}

impl<'a> StreamReader<'a> {
    pub(super) const fn new(guard: &'a GuardState, progress: &mut Progress, begun_at: Instant) -> Self {
        progress.stale.begin();
        let delay = Delay::new(begun_at);
        Self { guard, delay, snapshot: None, has_new_snapshot: false, received_at: begun_at }
    }

    /// Applies a message. Returns the previous set if a snapshot has replaced it.
    ///
    /// # Errors
    ///
    /// Returns why nothing more may be read from this stream.
    pub(super) fn receive(
        &mut self,
        message: WatchRevocationsResponse,
        at: Instant,
        progress: &mut Progress,
    ) -> Result<Option<Arc<RevokedSet>>, StreamEnd> {
        let guard = self.guard;
        // This process may have been suspended: the message has waited for an unknown time.
        if at.duration_since(self.received_at) > SILENCE_MAX {
            return Err(StreamEnd::Silence);
        }
        self.received_at = at;
        let mut previous = None;
        match message.event {
            Some(Event::SnapshotBegin(_)) => self.snapshot = Some(Snapshot::default()),
            Some(Event::Revocations(batch)) => {
                let current = guard.revocations.current();
                let sets = match &self.snapshot {
                    None => [Some(&*current), None],
                    Some(Snapshot { set, is_whole: false, .. }) => [Some(set), None],
                    // What comes while a snapshot waits is news for the set in use too.
                    Some(Snapshot { set, .. }) => [Some(set), Some(&*current)],
                };
                let mut sets = sets.into_iter().flatten();
                // Before too: a server that offers more than was asked for must not fill the memory a batch at a time.
                sets.clone().try_for_each(|set| check_size(set, guard.max_entries))?;
                if self.snapshot.is_none() {
                    guard.revocations.note_news(&guard.time);
                }
                for revocation in &batch.revocations {
                    if let Some(PbTarget::Withheld(withheld)) = &revocation.ended {
                        increment(&guard.counters.withheld);
                        progress.logged.withheld(&withheld.kind);
                    }
                    for set in sets.clone() {
                        insert(set, &guard.project, revocation, guard.time.elapsed())
                            .ok_or(StreamEnd::UnknownRevocation)?;
                    }
                }
                sets.try_for_each(|set| check_size(set, guard.max_entries))?;
            }
            Some(Event::SnapshotComplete(_)) => {
                if let Some(snapshot) = &mut self.snapshot {
                    snapshot.is_whole = true;
                }
                // What it revokes counts at once if nothing else is known.
                if !guard.revocations.is_complete() {
                    previous = self.use_snapshot(progress);
                }
            }
            Some(Event::Heartbeat(heartbeat))
                if self.snapshot.as_ref().map_or(guard.revocations.is_complete(), |snapshot| snapshot.is_whole) =>
            {
                let age = Duration::from_millis(heartbeat.age_ms.try_into().unwrap_or(0));
                let stream_age = heartbeat.stream_age_ms.map(|millis| millis.try_into().unwrap_or(0));
                let age = age + self.delay.of_heartbeat(at, stream_age.map(Duration::from_millis));
                let leaves = progress.stale.should_leave(age, at);
                // Not one that is older than the set in use: it may lack what is known to be revoked.
                if guard.revocations.age_of_news(&guard.time).is_none_or(|news| age <= news) {
                    previous = self.use_snapshot(progress);
                }
                // The set is at least as recent as it was before this stream, unless the stream has replaced it. While a snapshot
                // waits, the age is the snapshot's.
                if self.snapshot.is_none() && (!leaves || self.has_new_snapshot) {
                    guard.revocations.set_age(&guard.time, age);
                }
                if leaves {
                    return Err(StreamEnd::Stale(age));
                }
                guard.startup.send_if_modified(|startup| !std::mem::replace(&mut startup.has_snapshot, true));
                progress.retry.reset();
            }
            // A heartbeat within a snapshot, or an event that this version does not know and need not act on.
            Some(Event::Heartbeat(_)) | None => {}
        }
        // A stream cannot be resumed within a snapshot.
        match (message.cursor, &mut self.snapshot) {
            (Some(next), None) => progress.cursor = next,
            (next @ Some(_), Some(snapshot)) if snapshot.is_whole => snapshot.cursor = next,
            (Some(_) | None, _) => {}
        }
        Ok(previous)
    }

    /// Replaces the set by the snapshot, if one is complete. Returns the previous set.
    fn use_snapshot(&mut self, progress: &mut Progress) -> Option<Arc<RevokedSet>> {
        let Snapshot { set, cursor, .. } = self.snapshot.take_if(|snapshot| snapshot.is_whole)?;
        self.has_new_snapshot = true;
        let previous = self.guard.revocations.replace(&self.guard.time, set);
        increment(&self.guard.counters.snapshots);
        if let Some(next) = cursor {
            progress.cursor = next;
        }
        Some(previous)
    }
}

/// Bounds how long heartbeats are delayed on the way: a proxy may pass the stream on more slowly than it comes. A heartbeat says
/// how old its stream was when it was sent; what is missing from the time since the request is its delay, at most.
///
/// Earlier servers do not say it. Their heartbeats are sent one second apart, so one that arrives earlier than that after the
/// previous one was delayed less, and one that arrives later was delayed more.
struct Delay {
    begun_at: Instant,
    previous: Instant,
    delay: Duration,
}

/// How late the sender may be.
const TOLERANCE: Duration = Duration::from_millis(100);

impl Delay {
    const fn new(begun_at: Instant) -> Self {
        Self { begun_at, previous: begun_at, delay: Duration::ZERO }
    }

    fn of_heartbeat(&mut self, at: Instant, stream_age: Option<Duration>) -> Duration {
        if let Some(stream_age) = stream_age {
            return at.duration_since(self.begun_at).saturating_sub(stream_age);
        }
        let apart = at.duration_since(self.previous);
        self.previous = at;
        self.delay = SILENCE_MAX.min((self.delay + apart).saturating_sub(HEARTBEAT_INTERVAL + TOLERANCE));
        self.delay
    }
}

/// Checks that a set has not outgrown its bound.
fn check_size(set: &RevokedSet, max_entries: usize) -> Result<(), StreamEnd> {
    if set.len() <= max_entries { Ok(()) } else { Err(StreamEnd::TooManyEntries(max_entries)) }
}

/// Inserts a revocation. Returns `None` if this version does not know its kind, which sessiond should have withheld: ignoring it
/// would accept revoked tokens.
fn insert(set: &RevokedSet, project: &ProjectId, revocation: &Revocation, now: Duration) -> Option<()> {
    let until = now + Duration::from_secs(revocation.retain_seconds.try_into().unwrap_or(0));
    let target = match revocation.ended.as_ref()? {
        PbTarget::SessionId(id) => RevocationTarget::Session { id: SessionId::parse(id)?, is_impersonation: false },
        PbTarget::UserCutOff(cut) => RevocationTarget::User {
            user: UserId::parse(&cut.user_id)?,
            epoch: cut.epoch,
            spared: match &cut.spared_session_id {
                Some(id) => Some(SessionId::parse(id)?),
                None => None,
            },
        },
        PbTarget::ProjectCutOff(cut) => RevocationTarget::Project { epoch: cut.epoch },
        PbTarget::SigningKeyId(key) => RevocationTarget::SigningKey(KeyId::parse(key)?),
        PbTarget::Superseded(superseded) => RevocationTarget::Superseded {
            id: SessionId::parse(&superseded.session_id)?,
            session_epoch: superseded.session_epoch,
        },
        PbTarget::Withheld(withheld) => {
            let withheld = match &withheld.concerns {
                Some(Concerns::SessionId(id)) => Withheld::Session(SessionId::parse(id)?),
                Some(Concerns::UserId(user)) => Withheld::User(UserId::parse(user)?),
                Some(Concerns::SigningKeyId(key)) => Withheld::SigningKey(KeyId::parse(key)?),
                None => Withheld::Project,
            };
            set.withhold(withheld, until);
            return Some(());
        }
    };
    set.insert(project, &target, until);
    Some(())
}

/// Removes entries that every token has outlived, for as long as the guard runs.
pub(super) async fn expire_entries(guard: &GuardState) {
    let mut ticks = interval(EXPIRE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        guard.revocations.current().forget(guard.time.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_replica_is_left_for_the_next_one() {
        let (start, young, old) = (Instant::now(), Duration::from_millis(900), Duration::from_secs(6));
        let mut stale = StalePolicy::new(3, Duration::from_secs(10));
        assert!(!stale.should_leave(young, start));
        // Each once, and then each for a while.
        for _ in 0..3 {
            stale.begin();
            assert!(stale.should_leave(old, start));
        }
        stale.begin();
        assert!(!stale.should_leave(old, start) && !stale.should_leave(old, start + STALE_STAY / 2));
        assert!(stale.should_leave(old, start + STALE_STAY));
        stale.begin();
        assert!(!stale.should_leave(young, start));
        assert!(stale.should_leave(old, start), "the count starts again");
        // Others may be behind the same address.
        let mut only = StalePolicy::new(1, Duration::from_secs(10));
        assert!(!only.should_leave(old, start) && only.should_leave(old, start + STALE_STAY));
    }

    #[test]
    fn the_delay_follows_the_intervals_between_heartbeats() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        let mut at = |millis: u64| delay.of_heartbeat(start + Duration::from_millis(millis), None);
        // In time, or within the tolerance.
        assert_eq!([at(1_000), at(2_050), at(3_000)], [Duration::ZERO; 3]);
        // Held up for 2.9 s: the first has waited for 1.9 s, the second for 0.9 s, less the tolerance.
        assert_eq!(at(5_900), Duration::from_millis(1_800));
        assert_eq!(at(5_900), Duration::from_millis(700));
        assert_eq!(at(6_000), Duration::ZERO);
    }
}
