//! `sweeps`, and the rows that a sweep reads and deletes. Every table is walked in key order, which for sessions and
//! the audit is time order: so deleted rows are adjacent, page by page, and no index on a time is needed, which each
//! refresh would have to update.

mod audit;
mod deliveries;
mod keys;
mod requests;
mod sessions;
mod users;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::Tx;
use super::columns::from_pg;
use super::columns::to_pg;
use super::error::Error;
use super::statement::statement;
use sessiond_core::clock::Timestamp;

pub use audit::AuditTable;
pub use audit::EventLines;
pub use audit::RevocationLines;
pub use audit::SweptLine;
pub use deliveries::SweptDelivery;
pub use keys::KeyTable;
pub use keys::SweptKey;
pub use requests::SweptRequest;
pub use sessions::SweptSession;
pub use users::SweptUser;

/// A table that is swept on its own, with its own position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Ended sessions.
    Sessions,
    /// Outcomes of request ids.
    Requests,
    /// Revocations in the audit, and the addresses in them.
    Revocations,
    /// The other audit records, and the addresses in them.
    Events,
    /// Deliveries, and removed endpoints.
    Deliveries,
    /// Users without a session.
    Users,
    /// Keys of all kinds.
    Keys,
    /// Writers of the feed.
    Writers,
}

impl Task {
    /// All tasks. Users come after sessions: deleting sessions leaves users without one.
    pub const ALL: [Self; 8] = [
        Self::Sessions,
        Self::Requests,
        Self::Revocations,
        Self::Events,
        Self::Deliveries,
        Self::Users,
        Self::Keys,
        Self::Writers,
    ];

    /// The task's name, as stored and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Requests => "requests",
            Self::Revocations => "revocations",
            Self::Events => "events",
            Self::Deliveries => "deliveries",
            Self::Users => "users",
            Self::Keys => "keys",
            Self::Writers => "writers",
        }
    }
}

/// A position in a table: all rows up to it have been examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPosition {
    /// The slot; zero before the first one.
    slot: i16,
    project: String,
    key: String,
}

impl SweepPosition {
    /// Before the first row.
    pub const fn start() -> Self {
        Self { slot: 0, project: String::new(), key: String::new() }
    }

    /// After the given row of the same slot.
    pub fn behind(&self, row: &impl Swept) -> Self {
        let (project, key) = row.key();
        Self { slot: self.slot, project: project.to_owned(), key }
    }

    /// After the last row of the given row's project in the same slot.
    pub fn behind_project(&self, row: &impl Swept) -> Self {
        Self { slot: self.slot, project: row.key().0.to_owned(), key: Uuid::max().hyphenated().to_string() }
    }

    /// Before the first row of the same slot.
    #[must_use]
    pub const fn start_of_slot(&self) -> Self {
        Self { slot: self.slot, project: String::new(), key: String::new() }
    }

    /// The slot, as its column.
    pub(super) const fn slot(&self) -> i16 {
        self.slot
    }

    /// The key as an id; the lowest id if there is none.
    fn id(&self) -> Uuid {
        Uuid::try_parse(&self.key).unwrap_or(Uuid::nil())
    }
}

/// A row of a swept table, in key order.
pub trait Swept: Sized + Send + Sync {
    /// Its project, and its key within the project.
    fn key(&self) -> (&str, String);

    /// Reads the next rows of the slot in key order.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> impl Future<Output = Result<Vec<Self>, Error>> + Send;

    /// Deletes rows of the slot that is swept, except those that have been needed again since they were read. Returns how
    /// many. What the audit still needs of them is recorded there: events after `audit_from`.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    fn delete(
        tx: &mut Tx,
        from: &SweepPosition,
        gone: &[Self],
        audit_from: Timestamp,
    ) -> impl Future<Output = Result<usize, Error>> + Send;
}

/// How far a sweep has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where to continue.
    pub position: SweepPosition,
    /// When it last reached the end of the table.
    pub completed_at: Option<Timestamp>,
}

impl Tx {
    /// Locks a task until the end of the transaction; `None` if another replica holds it.
    pub async fn sweep_claim(&mut self, task: Task) -> Result<Option<Progress>, Error> {
        let progress = self.rows(SweepClaim { task: task.as_str() }).await?.pop();
        Ok(progress.map(|ProgressRow { slot, project_id: project, key, completed_at }| Progress {
            position: SweepPosition { slot, project, key },
            completed_at: completed_at.map(from_pg),
        }))
    }

    /// The position in the slot that is swept: the first one at the start.
    pub fn sweep_position(&self, position: SweepPosition) -> SweepPosition {
        SweepPosition { slot: position.slot.max(self.slots().all().start().to_column()), ..position }
    }

    /// The start of the next slot; `None` after the last one.
    pub fn sweep_next_slot(&self, position: &SweepPosition) -> Option<SweepPosition> {
        let next = position.slot + 1;
        (next <= self.slots().all().end().to_column()).then(|| SweepPosition { slot: next, ..SweepPosition::start() })
    }

    /// Stores where to continue and, if the end of the table was reached, when.
    pub async fn sweep_note(
        &mut self,
        task: Task,
        position: SweepPosition,
        completed_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        let SweepPosition { slot, project, key } = position;
        let statement = SweepNote { slot, project, key, completed_at: completed_at.map(to_pg), task: task.as_str() };
        self.execute(statement).await.map(drop)
    }
}

statement! {
    /// Locks a task's row until the end of the transaction; returns no row if another replica holds it.
    SweepClaim -> ProgressRow =
    "SELECT slot, project_id, key, completed_at FROM sweeps WHERE task = "
    [task: &'static str as sql::Text]
    " FOR UPDATE SKIP LOCKED"
}

statement! {
    /// Stores how far a sweep has come.
    SweepNote -> () =
    "UPDATE sweeps SET slot = "
    [slot: i16 as sql::SmallInt]
    ", project_id = "
    [project: String as sql::Text]
    ", key = "
    [key: String as sql::Text]
    ", completed_at = coalesce("
    [completed_at: Option<PgTimestamp> as sql::Nullable<sql::Timestamptz>]
    ", completed_at) WHERE task = "
    [task: &'static str as sql::Text]
    ""
}

#[derive(QueryableByName)]
struct ProgressRow {
    #[diesel(sql_type = sql::SmallInt)]
    slot: i16,
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Text)]
    key: String,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    completed_at: Option<PgTimestamp>,
}

/// Splits the keys of rows into two arrays.
fn keys<T>(rows: &[T], key: impl Fn(&T) -> (&str, Uuid)) -> (Vec<String>, Vec<Uuid>) {
    rows.iter().map(key).map(|(project, id)| (project.to_owned(), id)).unzip()
}
