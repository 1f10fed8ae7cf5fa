//! Deletes expired rows, in the background of every replica and on command.
//!
//! A sweep takes many small steps. Each step locks the row of its task, so that no two replicas work on it at once, reads the
//! next rows, deletes those that are due, records its position, and commits. Then it pauses nine times as long as the step
//! took: so a sweep uses a tenth of one database connection, however much is due and however slow the disk is.
//!
//! A deletion cannot be undone. So each step uses the database's clock, and deletes nothing if this machine's clock
//! contradicts it: one of the two is wrong, and it is unknown which.

use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep;

use crate::store;
use crate::store::AuditTable;
use crate::store::EventLines;
use crate::store::KeyTable;
use crate::store::Progress;
use crate::store::RevocationLines;
use crate::store::Store;
use crate::store::SweepPosition;
use crate::store::Swept;
use crate::store::SweptDelivery;
use crate::store::SweptLine;
use crate::store::SweptRequest;
use crate::store::SweptSession;
use crate::store::SweptUser;
use crate::store::Task;
use crate::store::Tx;
use crate::telemetry::Metrics;
use crate::telemetry::chain;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Disagreement;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::retention;
use sessiond_core::session::retention::AuditRetention;
use sessiond_core::session::retention::RetentionPeriods;

/// How long to wait after a complete pass through a table before the next one.
pub const PASS_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);

/// How often a replica checks whether to begin a pass, or to resume one that another replica has abandoned.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The most rows that one step reads.
const ROWS_MAX: i64 = 1_000;

/// The fewest, for a disk so slow that a larger step would time out.
const ROWS_MIN: i64 = 10;

/// How often a failed step is retried, each time at half the size, before the sweep is postponed.
const TRIES_MAX: usize = 8;

/// A step that takes longer is followed by one of half its size.
const STEP_MAX: Duration = Duration::from_millis(100);

/// What a sweep removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepKind {
    /// Ended sessions.
    Sessions,
    /// Request ids.
    Requests,
    /// Audit lines of revocations.
    Revocations,
    /// Audit lines of other events.
    Events,
    /// Addresses in audit lines, which stay.
    Addresses,
    /// Finished back-channel deliveries.
    Deliveries,
    /// Removed back-channel endpoints.
    Endpoints,
    /// Users without a session.
    Users,
    /// Signing keys.
    SigningKeys,
    /// Refresh-token keys.
    RefreshKeys,
    /// Server keys.
    ServerKeys,
    /// Closed writers of the feed.
    Writers,
}

impl SweepKind {
    /// The name, in metrics and in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Requests => "requests",
            Self::Revocations => "revocations",
            Self::Events => "events",
            Self::Addresses => "addresses",
            Self::Deliveries => "deliveries",
            Self::Endpoints => "endpoints",
            Self::Users => "users",
            Self::SigningKeys => "signing_keys",
            Self::RefreshKeys => "refresh_keys",
            Self::ServerKeys => "server_keys",
            Self::Writers => "writers",
        }
    }
}

/// How many rows of a kind were removed.
pub type Removed = (SweepKind, usize);

/// When a pass may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// When [`PASS_INTERVAL`] has passed since the last one.
    WhenDue,
    /// Now.
    AtOnce,
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepStep {
    /// Nothing was done: another replica holds the task.
    Busy,
    /// Nothing was done: [`PASS_INTERVAL`] has not passed since the last pass.
    Resting,
    /// Rows were read, and those that were due removed.
    Taken(Vec<Removed>),
    /// The same, and they were the last: the next step begins a new pass.
    Last(Vec<Removed>),
    /// Nothing was done: this machine's clock contradicts the database's.
    Contradicted(Disagreement),
}

/// Why a sweep stopped.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The clocks differ, so the time is unknown.
    #[error("the sweep stopped")]
    Clocks(#[from] Disagreement),
}

/// Deletes expired rows. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Sweeper {
    store: Store,
    clock: Clock,
    retention: RetentionPeriods,
    metrics: Metrics,
}

impl Sweeper {
    /// Creates a sweeper.
    pub const fn new(store: Store, clock: Clock, retention: RetentionPeriods, metrics: Metrics) -> Self {
        Self { store, clock, retention, metrics }
    }

    /// Sweeps whenever a pass is due. Does not return.
    pub async fn run(self) {
        loop {
            for task in Task::ALL {
                match self.pass_when_due(task).await {
                    Ok(()) => {}
                    Err(SweepError::Clocks(error)) => {
                        tracing::warn!(error = chain(&error), "sweep skipped: the clocks differ");
                        // The other tasks would fail the same way.
                        break;
                    }
                    Err(error) => tracing::warn!(task = task.as_str(), error = chain(&error), "sweep postponed"),
                }
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Removes everything that is due, without pauses. Returns how much was removed. Rows that are locked by a concurrent
    /// transaction are left for the next sweep.
    ///
    /// # Errors
    ///
    /// [`SweepError::Clocks`], or [`SweepError::Store`] if the database operation fails. What was removed before stays removed.
    pub async fn run_once(&self) -> Result<Vec<Removed>, SweepError> {
        let mut removed = vec![];
        for task in Task::ALL {
            while !self.restart(task).await? {
                sleep(STEP_MAX).await;
            }
            let mut rows_max = ROWS_MAX;
            loop {
                match self.step_with_retries(task, &mut rows_max, Start::AtOnce).await?.0 {
                    SweepStep::Taken(some) => add(&mut removed, &some),
                    SweepStep::Last(some) => {
                        add(&mut removed, &some);
                        break;
                    }
                    // A replica's step is short.
                    SweepStep::Busy | SweepStep::Resting => sleep(STEP_MAX / 10).await,
                    SweepStep::Contradicted(disagreement) => return Err(disagreement.into()),
                }
            }
        }
        Ok(removed)
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// Fails if the database operation fails; nothing was removed then.
    pub async fn step(&self, task: Task, rows_max: i64, start: Start) -> Result<SweepStep, store::Error> {
        let (retention, clock) = (self.retention, self.clock.clone());
        let started = Instant::now();
        let work = move |mut tx: Tx| async move {
            let Some(Progress { position, completed_at }) = tx.sweep_claim(task).await? else {
                return tx.commit((SweepStep::Busy, None)).await;
            };
            let now = match clock.agreed(tx.time().await?) {
                Ok(now) => now,
                Err(disagreement) => return tx.commit((SweepStep::Contradicted(disagreement), completed_at)).await,
            };
            let is_due = match start {
                Start::AtOnce => true,
                // A pass that completed in the future was timed by a wrong clock.
                Start::WhenDue => completed_at.is_none_or(|at| at + PASS_INTERVAL <= now || at > now),
            };
            if position == SweepPosition::start() && !is_due {
                return tx.commit((SweepStep::Resting, completed_at)).await;
            }
            let position = tx.sweep_position(position);
            let (removed, next) = remove(&mut tx, task, &position, rows_max, &retention, now).await?;
            let done = next.is_none().then_some(now);
            tx.sweep_note(task, next.unwrap_or_default(), done).await?;
            let step = if done.is_some() { SweepStep::Last(removed) } else { SweepStep::Taken(removed) };
            tx.commit((step, done.or(completed_at))).await
        };
        let (step, completed_at) = self.store.transact("sweep", work).await?;
        if let Some(at) = completed_at {
            self.metrics.sweep_completed(task.as_str(), at.as_seconds());
        }
        if let SweepStep::Taken(removed) | SweepStep::Last(removed) = &step {
            self.metrics.sweep_step(task.as_str(), started.elapsed());
            removed.iter().for_each(|(kind, rows)| self.metrics.swept(kind.as_str(), *rows));
        }
        Ok(step)
    }

    async fn pass_when_due(&self, task: Task) -> Result<(), SweepError> {
        let (mut removed, mut rows_max) = (vec![], ROWS_MAX);
        loop {
            let (step, took) = match self.step_with_retries(task, &mut rows_max, Start::WhenDue).await {
                Ok(paced) => paced,
                Err(error) => {
                    log_removed(task, &removed, "sweep postponed");
                    return Err(error.into());
                }
            };
            match step {
                // Other replicas may take steps of the same pass; each logs its own.
                SweepStep::Busy | SweepStep::Resting => {
                    log_removed(task, &removed, "sweep continues on another replica");
                    return Ok(());
                }
                SweepStep::Contradicted(disagreement) => {
                    log_removed(task, &removed, "sweep postponed");
                    return Err(disagreement.into());
                }
                SweepStep::Taken(some) => add(&mut removed, &some),
                SweepStep::Last(some) => {
                    add(&mut removed, &some);
                    log_removed(task, &removed, "sweep complete");
                    return Ok(());
                }
            }
            sleep(took * 9).await;
        }
    }

    /// Takes a step; retries it with fewer rows if it fails. Returns it, and how long the last attempt took.
    async fn step_with_retries(
        &self,
        task: Task,
        rows_max: &mut i64,
        start: Start,
    ) -> Result<(SweepStep, Duration), store::Error> {
        let mut failed = 0;
        loop {
            let started = Instant::now();
            let outcome = self.step(task, *rows_max, start).await;
            let took = started.elapsed();
            let fits = outcome.is_ok() && took <= STEP_MAX;
            *rows_max = if fits { (*rows_max * 2).min(ROWS_MAX) } else { (*rows_max / 2).max(ROWS_MIN) };
            match outcome {
                Ok(step) => return Ok((step, took)),
                Err(error) if failed == TRIES_MAX => return Err(error),
                // It may have exceeded the operation's time limit.
                Err(_) => failed += 1,
            }
            sleep(took.max(STEP_MAX)).await;
        }
    }

    /// Makes the next step begin a new pass. Returns `false` while another replica holds the task.
    async fn restart(&self, task: Task) -> Result<bool, store::Error> {
        self.store
            .transact("sweep", move |mut tx| async move {
                let claimed = tx.sweep_claim(task).await?.is_some();
                if claimed {
                    tx.sweep_note(task, SweepPosition::start(), None).await?;
                }
                tx.commit(claimed).await
            })
            .await
    }
}

/// Logs what was removed. It is recorded nowhere else.
fn log_removed(task: Task, removed: &[Removed], how: &'static str) {
    let any = removed.iter().any(|(_, rows)| *rows > 0);
    let removed: Vec<_> = removed.iter().map(|(kind, rows)| format!("{rows} {}", kind.as_str())).collect();
    let (task, removed) = (task.as_str(), removed.join(", "));
    match any {
        true => tracing::info!(task, removed, "{how}"),
        false => tracing::debug!(task, removed, "{how}"),
    }
}

fn add(sum: &mut Vec<Removed>, some: &[Removed]) {
    for (kind, rows) in some {
        match sum.iter_mut().find(|(other, _)| other == kind) {
            Some((_, sum)) => *sum += rows,
            None => sum.push((*kind, *rows)),
        }
    }
}

/// Removes what is due among the next rows of a slot. Returns how much, and where to continue; `None` at the end of the table.
async fn remove(
    tx: &mut Tx,
    task: Task,
    from: &SweepPosition,
    rows_max: i64,
    retention: &RetentionPeriods,
    now: Timestamp,
) -> Result<(Vec<Removed>, Option<SweepPosition>), store::Error> {
    let step = Batch { from, rows_max, retention, now };
    let next_slot = tx.sweep_next_slot(from);
    let (mut removed, next) = match task {
        Task::Sessions => step.remove::<SweptSession>(tx, SweepKind::Sessions).await,
        Task::Requests => step.remove::<SweptRequest>(tx, SweepKind::Requests).await,
        Task::Revocations => step.remove_lines::<RevocationLines>(tx, SweepKind::Revocations).await,
        Task::Events => step.remove_lines::<EventLines>(tx, SweepKind::Events).await,
        Task::Deliveries => step.remove::<SweptDelivery>(tx, SweepKind::Deliveries).await,
        Task::Users => step.remove::<SweptUser>(tx, SweepKind::Users).await,
        // In no slot.
        Task::Keys => return Ok((remove_keys(tx, retention, now).await?, None)),
        Task::Writers => {
            let closed = tx.feed_writers_close(from, now - retention::FEED_WRITER_IDLE, now, rows_max).await?;
            let removed = tx.feed_writers_delete(from, now - retention::FEED_WRITER_RETENTION, rows_max).await?;
            // Those that are done are not found again, so the next step begins at the start of the slot too.
            let is_full = i64::try_from(closed.max(removed)).is_ok_and(|rows| rows >= rows_max);
            Ok((vec![(SweepKind::Writers, removed)], is_full.then(|| from.start_of_slot())))
        }
    }?;
    let next = next.or(next_slot);
    if task == Task::Deliveries {
        // Once no delivery is left that names them.
        let endpoints = match next {
            Some(_) => 0,
            None => tx.endpoints_sweep(now - retention::REMOVED_ENDPOINT_RETENTION).await?,
        };
        removed.push((SweepKind::Endpoints, endpoints));
    }
    Ok((removed, next))
}

/// The rows that one step reads, and what the decision depends on.
struct Batch<'a> {
    from: &'a SweepPosition,
    rows_max: i64,
    retention: &'a RetentionPeriods,
    now: Timestamp,
}

impl Batch<'_> {
    async fn remove<T: SweepRule>(
        &self,
        tx: &mut Tx,
        kind: SweepKind,
    ) -> Result<(Vec<Removed>, Option<SweepPosition>), store::Error> {
        let mut rows = T::walk(tx, self.from, self.rows_max).await?;
        let next = self.next(&rows);
        rows.retain(|row| row.is_due(self.retention, self.now));
        let removed = self.delete(tx, &rows).await?;
        Ok((vec![(kind, removed)], next))
    }

    /// As [`Batch::remove`], and removes the addresses of older lines that stay.
    async fn remove_lines<T: AuditTable>(
        &self,
        tx: &mut Tx,
        kind: SweepKind,
    ) -> Result<(Vec<Removed>, Option<SweepPosition>), store::Error> {
        let rows = SweptLine::<T>::walk(tx, self.from, self.rows_max).await?;
        let next = self.next(&rows);
        let (mut gone, mut anonymous) = (vec![], vec![]);
        for row in rows {
            match evaluate(&row, self.retention, self.now) {
                AuditRetention::Delete => gone.push(row),
                AuditRetention::Anonymize if row.has_address => anonymous.push(row),
                AuditRetention::Anonymize | AuditRetention::Keep => {}
            }
        }
        let gone = self.delete(tx, &gone).await?;
        let anonymous = if anonymous.is_empty() { 0 } else { SweptLine::strip(tx, self.from, &anonymous).await? };
        Ok((vec![(kind, gone), (SweepKind::Addresses, anonymous)], next))
    }

    async fn delete<T: Swept>(&self, tx: &mut Tx, gone: &[T]) -> Result<usize, store::Error> {
        if gone.is_empty() { Ok(0) } else { T::delete(tx, self.from, gone, self.now - self.retention.audit).await }
    }

    /// Where to continue after these rows.
    fn next<T: SweepRule>(&self, rows: &[T]) -> Option<SweepPosition> {
        // Fewer rows than requested are the last ones.
        let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= self.rows_max);
        rows.last().filter(|_| is_full).map(|last| match last.has_due_behind(self.retention, self.now) {
            true => self.from.behind(last),
            false => self.from.behind_project(last),
        })
    }
}

/// The retention rule for the rows of a table.
trait SweepRule: Swept {
    /// Whether to delete the row.
    fn is_due(&self, retention: &RetentionPeriods, now: Timestamp) -> bool;

    /// Whether rows after this one, in the same project, may be due.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool;
}

impl SweepRule for SweptSession {
    fn is_due(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        retention.should_delete_session(self.end_times.ends_at(self.present, self.raised), now)
    }

    /// Later rows were created later, and a session cannot end before it is created.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        retention.should_delete_session(self.created_at, now)
    }
}

impl SweepRule for SweptRequest {
    fn is_due(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        retention::should_delete_request(self.created_at, now)
    }

    /// Ordered by age, oldest first: after a row that is not due, none is.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        self.is_due(retention, now)
    }
}

impl<T: AuditTable> SweepRule for SweptLine<T> {
    fn is_due(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        evaluate(self, retention, now) == AuditRetention::Delete
    }

    /// Ordered by time: later lines are younger.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        evaluate(self, retention, now) != AuditRetention::Keep
    }
}

fn evaluate<T>(line: &SweptLine<T>, retention: &RetentionPeriods, now: Timestamp) -> AuditRetention {
    retention.audit_line(line.at, line.access_expires_at, now)
}

impl SweepRule for SweptDelivery {
    fn is_due(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        retention::should_delete_delivery(self.delivered_at, self.dead_at, now)
    }

    /// Ordered by the time of the revocation: a later one cannot have been delivered earlier.
    fn has_due_behind(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        retention::should_delete_delivery(Some(self.at), None, now)
    }
}

impl SweepRule for SweptUser {
    fn is_due(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        !self.has_session && retention::should_delete_user(self.raised_at, now)
    }

    /// Ordered by name, which implies nothing about age.
    fn has_due_behind(&self, _: &RetentionPeriods, _: Timestamp) -> bool {
        true
    }
}

async fn remove_keys(tx: &mut Tx, retention: &RetentionPeriods, now: Timestamp) -> Result<Vec<Removed>, store::Error> {
    let mut removed = vec![];
    for (table, kind) in [
        (KeyTable::Signing, SweepKind::SigningKeys),
        (KeyTable::Refresh, SweepKind::RefreshKeys),
        (KeyTable::Server, SweepKind::ServerKeys),
    ] {
        let mut gone = tx.keys_unused(table).await?;
        gone.retain(|key| match table {
            KeyTable::Signing | KeyTable::Refresh => retention::should_delete_key(key.since, now),
            KeyTable::Server => retention.should_delete_server_key(key.since, now),
        });
        let rows = if gone.is_empty() { 0 } else { tx.keys_sweep(table, &gone).await? };
        removed.push((kind, rows));
    }
    Ok(removed)
}
