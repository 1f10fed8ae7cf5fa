//! Removing what is over, in the background of every replica and by hand.
//!
//! Many small steps: each takes the row of its task, so that no two replicas are at it at once, looks at the next rows,
//! removes those that are due, notes how far it has come, and commits. Then a pause, nine times as long as the step took: so
//! a sweep costs the database a tenth of one connection, however much there is to remove and however slow the disk.
//!
//! What is removed does not come back. So each step goes by the database's clock, and removes nothing where this machine's own
//! clock contradicts it: one of the two is wrong, and nobody can tell which.

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
use sessiond_core::session::retention::AuditFate;
use sessiond_core::session::retention::RetentionPeriods;

/// How long a table is left alone after a pass through it.
pub const PASS_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);

/// How often a replica looks whether there is a pass to begin, or one to go on with that another replica has left.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The most rows that one step looks at.
const ROWS_MAX: i64 = 1_000;

/// The fewest, on a disk so slow that a step with more does not end in time.
const ROWS_MIN: i64 = 10;

/// How often a step that failed is tried again, each time at half the size, before the sweep is put off.
const TRIES_MAX: usize = 8;

/// A step that takes longer is followed by one half its size.
const STEP_MAX: Duration = Duration::from_millis(100);

/// What is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sessions that ended long enough ago.
    Sessions,
    /// Request ids.
    Requests,
    /// Lines of the audit.
    Revocations,
    /// Lines of the audit that ended nothing.
    Events,
    /// Addresses in the audit: the lines stay.
    Addresses,
    /// What others were told.
    Deliveries,
    /// Endpoints that are told nothing any more.
    Endpoints,
    /// Users without a session.
    Users,
    /// Signing keys.
    SigningKeys,
    /// Refresh-token keys.
    RefreshKeys,
    /// Server keys.
    ServerKeys,
}

impl Kind {
    /// The name, in metrics and in print.
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
        }
    }
}

/// How many rows of a kind were removed.
pub type Removed = (Kind, usize);

/// When a pass may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// When the last one is long enough ago.
    WhenDue,
    /// Now.
    AtOnce,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: another replica is at it.
    Busy,
    /// Nothing: the last pass is not long enough ago.
    Resting,
    /// Rows were looked at, and those that were due removed.
    Taken(Vec<Removed>),
    /// The same, and they were the last: the next step begins a new pass.
    Last(Vec<Removed>),
    /// Nothing: this machine's clock contradicts the database's.
    Contradicted(Disagreement),
}

/// Why a sweep did not go on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Nobody knows what time it is.
    #[error("nothing more is removed")]
    Clocks(#[from] Disagreement),
}

/// Removes what is over. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Sweeper {
    store: Store,
    clock: Clock,
    retention: RetentionPeriods,
    metrics: Metrics,
}

impl Sweeper {
    /// Prepares a sweep.
    pub const fn new(store: Store, clock: Clock, retention: RetentionPeriods, metrics: Metrics) -> Self {
        Self { store, clock, retention, metrics }
    }

    /// Sweeps whenever it is due, for as long as it is let.
    pub async fn run(self) {
        loop {
            for task in Task::ALL {
                match self.pass_when_due(task).await {
                    Ok(()) => {}
                    Err(SweepError::Clocks(error)) => {
                        tracing::warn!(error = chain(&error), "no sweep: the clocks differ");
                        // As true for the other tasks.
                        break;
                    }
                    Err(error) => tracing::warn!(task = task.as_str(), error = chain(&error), "a sweep is put off"),
                }
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Removes all that is due, without a pause, and tells how much it was. What somebody is writing at the moment is left
    /// for the next time.
    ///
    /// # Errors
    ///
    /// The store's, and [`SweepError::Clocks`]. What was removed before stays removed.
    pub async fn run_once(&self) -> Result<Vec<Removed>, SweepError> {
        let mut removed = vec![];
        for task in Task::ALL {
            while !self.restart(task).await? {
                sleep(STEP_MAX).await;
            }
            let mut rows_max = ROWS_MAX;
            loop {
                match self.paced(task, &mut rows_max, Start::AtOnce).await?.0 {
                    Step::Taken(some) => add(&mut removed, &some),
                    Step::Last(some) => {
                        add(&mut removed, &some);
                        break;
                    }
                    // A replica's step is short.
                    Step::Busy | Step::Resting => sleep(STEP_MAX / 10).await,
                    Step::Contradicted(disagreement) => return Err(disagreement.into()),
                }
            }
        }
        Ok(removed)
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// The store's. Then nothing was removed.
    pub async fn step(&self, task: Task, rows_max: i64, start: Start) -> Result<Step, store::Error> {
        let (retention, clock) = (self.retention, self.clock.clone());
        let started = Instant::now();
        let work = move |mut tx: Tx| async move {
            let Some(Progress { position, completed_at }) = tx.sweep_claim(task).await? else {
                return tx.commit((Step::Busy, None)).await;
            };
            let now = match clock.agreed(tx.time().await?) {
                Ok(now) => now,
                Err(disagreement) => return tx.commit((Step::Contradicted(disagreement), completed_at)).await,
            };
            let is_due = match start {
                Start::AtOnce => true,
                // A pass that ended in the future was made by a clock that was wrong.
                Start::WhenDue => completed_at.is_none_or(|at| at + PASS_INTERVAL <= now || at > now),
            };
            if position == SweepPosition::start() && !is_due {
                return tx.commit((Step::Resting, completed_at)).await;
            }
            let (removed, next) = remove(&mut tx, task, &position, rows_max, &retention, now).await?;
            let done = next.is_none().then_some(now);
            tx.sweep_note(task, next.unwrap_or_default(), done).await?;
            let step = if done.is_some() { Step::Last(removed) } else { Step::Taken(removed) };
            tx.commit((step, done.or(completed_at))).await
        };
        let (step, completed_at) = self.store.transact("sweep", work).await?;
        if let Some(at) = completed_at {
            self.metrics.sweep_completed(task.as_str(), at.as_seconds());
        }
        if let Step::Taken(removed) | Step::Last(removed) = &step {
            self.metrics.sweep_step(task.as_str(), started.elapsed());
            removed.iter().for_each(|(kind, rows)| self.metrics.swept(kind.as_str(), *rows));
        }
        Ok(step)
    }

    async fn pass_when_due(&self, task: Task) -> Result<(), SweepError> {
        let (mut removed, mut rows_max) = (vec![], ROWS_MAX);
        loop {
            let (step, took) = match self.paced(task, &mut rows_max, Start::WhenDue).await {
                Ok(paced) => paced,
                Err(error) => {
                    tell(task, &removed, "a sweep was put off");
                    return Err(error.into());
                }
            };
            match step {
                // Other replicas may take steps of the same pass; each tells of its own.
                Step::Busy | Step::Resting => {
                    tell(task, &removed, "a sweep goes on at another replica");
                    return Ok(());
                }
                Step::Contradicted(disagreement) => {
                    tell(task, &removed, "a sweep was put off");
                    return Err(disagreement.into());
                }
                Step::Taken(some) => add(&mut removed, &some),
                Step::Last(some) => {
                    add(&mut removed, &some);
                    tell(task, &removed, "a sweep is complete");
                    return Ok(());
                }
            }
            sleep(took * 9).await;
        }
    }

    /// A step, or several tries at a smaller one each, and how long the last one took.
    async fn paced(&self, task: Task, rows_max: &mut i64, start: Start) -> Result<(Step, Duration), store::Error> {
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
                // It may have been too much for the time that an operation has.
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

/// Writes down what was removed. Nothing else remembers it.
fn tell(task: Task, removed: &[Removed], how: &'static str) {
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

/// Removes what is due among the next rows. Returns how much, and where to go on; nowhere at the end of the table.
async fn remove(
    tx: &mut Tx,
    task: Task,
    from: &SweepPosition,
    rows_max: i64,
    retention: &RetentionPeriods,
    now: Timestamp,
) -> Result<(Vec<Removed>, Option<SweepPosition>), store::Error> {
    let step = Batch { from, rows_max, retention, now };
    match task {
        Task::Sessions => step.remove::<SweptSession>(tx, Kind::Sessions).await,
        Task::Requests => step.remove::<SweptRequest>(tx, Kind::Requests).await,
        Task::Revocations => step.remove_lines::<RevocationLines>(tx, Kind::Revocations).await,
        Task::Events => step.remove_lines::<EventLines>(tx, Kind::Events).await,
        Task::Deliveries => {
            let (mut removed, next) = step.remove::<SweptDelivery>(tx, Kind::Deliveries).await?;
            let endpoints = match next {
                Some(_) => 0,
                None => tx.endpoints_sweep(now - retention::REMOVED_ENDPOINT_RETENTION).await?,
            };
            removed.push((Kind::Endpoints, endpoints));
            Ok((removed, next))
        }
        Task::Users => step.remove::<SweptUser>(tx, Kind::Users).await,
        Task::Keys => Ok((keys(tx, retention, now).await?, None)),
    }
}

/// Rows that one step looks at, and what it judges them by.
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
        kind: Kind,
    ) -> Result<(Vec<Removed>, Option<SweepPosition>), store::Error> {
        let mut rows = T::walk(tx, self.from, self.rows_max).await?;
        let next = self.next(&rows);
        rows.retain(|row| row.is_due(self.retention, self.now));
        let removed = delete(tx, &rows).await?;
        Ok((vec![(kind, removed)], next))
    }

    /// As [`Batch::remove`]; and lines that stay may lose their address.
    async fn remove_lines<T: AuditTable>(
        &self,
        tx: &mut Tx,
        kind: Kind,
    ) -> Result<(Vec<Removed>, Option<SweepPosition>), store::Error> {
        let rows = SweptLine::<T>::walk(tx, self.from, self.rows_max).await?;
        let next = self.next(&rows);
        let (mut gone, mut anonymous) = (vec![], vec![]);
        for row in rows {
            match judge(&row, self.retention, self.now) {
                AuditFate::Gone => gone.push(row),
                AuditFate::Anonymous if row.has_address => anonymous.push(row),
                AuditFate::Anonymous | AuditFate::Kept => {}
            }
        }
        let gone = delete(tx, &gone).await?;
        let anonymous = if anonymous.is_empty() { 0 } else { SweptLine::strip(tx, &anonymous).await? };
        Ok((vec![(kind, gone), (Kind::Addresses, anonymous)], next))
    }

    /// Where to go on behind these rows.
    fn next<T: SweepRule>(&self, rows: &[T]) -> Option<SweepPosition> {
        // Fewer than were asked for are the last ones.
        let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= self.rows_max);
        rows.last().filter(|_| is_full).map(|last| match last.has_due_behind(self.retention, self.now) {
            true => SweepPosition::behind(last),
            false => SweepPosition::behind_project(last),
        })
    }
}

async fn delete<T: Swept>(tx: &mut Tx, gone: &[T]) -> Result<usize, store::Error> {
    if gone.is_empty() { Ok(0) } else { T::delete(tx, gone).await }
}

/// The rule for the rows of a table.
trait SweepRule: Swept {
    /// Whether the row goes.
    fn is_due(&self, retention: &RetentionPeriods, now: Timestamp) -> bool;

    /// Whether rows behind this one may go, in the same project.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool;
}

impl SweepRule for SweptSession {
    fn is_due(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        retention.is_session_gone(self.end_times.ends_at(self.present, self.raised), now)
    }

    /// A session that was opened after this one cannot have ended before it was opened.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        retention.is_session_gone(self.created_at, now)
    }
}

impl SweepRule for SweptRequest {
    fn is_due(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        retention::is_request_gone(self.created_at, now)
    }

    /// Each project's oldest come first: behind one that stays, all stay.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        self.is_due(retention, now)
    }
}

impl<T: AuditTable> SweepRule for SweptLine<T> {
    fn is_due(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        judge(self, retention, now) == AuditFate::Gone
    }

    /// The order is that of time: lines behind this one are younger.
    fn has_due_behind(&self, retention: &RetentionPeriods, now: Timestamp) -> bool {
        judge(self, retention, now) != AuditFate::Kept
    }
}

fn judge<T>(line: &SweptLine<T>, retention: &RetentionPeriods, now: Timestamp) -> AuditFate {
    retention.line(line.at, line.access_expires_at, now)
}

impl SweepRule for SweptDelivery {
    fn is_due(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        retention::is_delivery_gone(self.delivered_at, self.dead_at, now)
    }

    /// The order is that of time: what happened later was not delivered before that.
    fn has_due_behind(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        retention::is_delivery_gone(Some(self.at), None, now)
    }
}

impl SweepRule for SweptUser {
    fn is_due(&self, _: &RetentionPeriods, now: Timestamp) -> bool {
        !self.has_session && retention::is_user_gone(self.raised_at, now)
    }

    /// The order is that of names, and says nothing.
    fn has_due_behind(&self, _: &RetentionPeriods, _: Timestamp) -> bool {
        true
    }
}

async fn keys(tx: &mut Tx, retention: &RetentionPeriods, now: Timestamp) -> Result<Vec<Removed>, store::Error> {
    let mut removed = vec![];
    for (table, kind) in [
        (KeyTable::Signing, Kind::SigningKeys),
        (KeyTable::Refresh, Kind::RefreshKeys),
        (KeyTable::Server, Kind::ServerKeys),
    ] {
        let mut gone = tx.keys_unused(table).await?;
        gone.retain(|key| match table {
            KeyTable::Signing | KeyTable::Refresh => retention::is_key_gone(key.since, now),
            KeyTable::Server => retention.is_server_key_gone(key.since, now),
        });
        let rows = if gone.is_empty() { 0 } else { tx.keys_sweep(table, &gone).await? };
        removed.push((kind, rows));
    }
    Ok(removed)
}
