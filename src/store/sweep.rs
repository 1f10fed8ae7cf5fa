//! `sweeps`, and what a sweep reads and removes. Every table is walked in the order of its keys, which for sessions and the
//! audit is that of time: so what goes lies together, page by page, and no index on a time is needed that each refresh
//! would have to change.

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

/// What is swept by itself, with a place of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Sessions that are over.
    Sessions,
    /// What request ids were used for.
    Requests,
    /// The audit, and the addresses in it.
    Revocations,
    /// The audit's other part: what ended nothing.
    Events,
    /// What others were told of it, and the endpoints that are told nothing any more.
    Deliveries,
    /// Users without a session.
    Users,
    /// Keys of every kind.
    Keys,
}

impl Task {
    /// All of them, in an order in which one makes work for the next: users go after their sessions.
    pub const ALL: [Self; 7] =
        [Self::Sessions, Self::Requests, Self::Revocations, Self::Events, Self::Deliveries, Self::Users, Self::Keys];

    /// The name, as it is stored and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Requests => "requests",
            Self::Revocations => "revocations",
            Self::Events => "events",
            Self::Deliveries => "deliveries",
            Self::Users => "users",
            Self::Keys => "keys",
        }
    }
}

/// A place in a table: everything up to it has been looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPosition {
    project: String,
    key: String,
}

impl SweepPosition {
    /// Before the first row.
    pub const fn start() -> Self {
        Self { project: String::new(), key: String::new() }
    }

    /// Behind the row with this key.
    pub fn behind(row: &impl Swept) -> Self {
        let (project, key) = row.key();
        Self { project: project.to_owned(), key }
    }

    /// Behind the last row of that row's project.
    pub fn behind_project(row: &impl Swept) -> Self {
        Self { project: row.key().0.to_owned(), key: Uuid::max().hyphenated().to_string() }
    }

    /// The id that the key is; the least one where there is none.
    fn id(&self) -> Uuid {
        Uuid::try_parse(&self.key).unwrap_or(Uuid::nil())
    }
}

/// A row of a table that is swept, in the order of its keys.
pub trait Swept: Sized + Send + Sync {
    /// Its project, and what sorts it within that.
    fn key(&self) -> (&str, String);

    /// Reads the next rows, in the order of their keys.
    ///
    /// # Errors
    ///
    /// When the database is away.
    fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> impl Future<Output = Result<Vec<Self>, Error>> + Send;

    /// Deletes rows, but for those that have come to be needed since they were read. Returns how many.
    ///
    /// # Errors
    ///
    /// When the database is away.
    fn delete(tx: &mut Tx, gone: &[Self]) -> impl Future<Output = Result<usize, Error>> + Send;
}

/// How far a sweep has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it goes on.
    pub position: SweepPosition,
    /// When it last came to the end.
    pub completed_at: Option<Timestamp>,
}

impl Tx {
    /// Takes a task for the rest of the transaction; `None` while another replica has it.
    pub async fn sweep_claim(&mut self, task: Task) -> Result<Option<Progress>, Error> {
        let progress = self.rows(SweepClaim { task: task.as_str() }).await?.pop();
        Ok(progress.map(|ProgressRow { project_id: project, key, completed_at }| Progress {
            position: SweepPosition { project, key },
            completed_at: completed_at.map(from_pg),
        }))
    }

    /// Writes down where a task goes on and, if it has come to the end just now, when that was.
    pub async fn sweep_note(
        &mut self,
        task: Task,
        position: SweepPosition,
        completed_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        let SweepPosition { project, key } = position;
        let statement = SweepNote { project, key, completed_at: completed_at.map(to_pg), task: task.as_str() };
        self.execute(statement).await.map(drop)
    }
}

statement! {
    /// Takes the row of a sweep's task until the end of the transaction; no row when another replica has it.
    SweepClaim -> ProgressRow =
    "SELECT project_id, key, completed_at FROM sweeps WHERE task = "
    [task: &'static str as sql::Text]
    " FOR UPDATE SKIP LOCKED"
}

statement! {
    /// Writes down how far a sweep has come.
    SweepNote -> () =
    "UPDATE sweeps SET project_id = "
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
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Text)]
    key: String,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    completed_at: Option<PgTimestamp>,
}

/// The keys of rows, as two arrays.
fn keys<T>(rows: &[T], key: impl Fn(&T) -> (&str, Uuid)) -> (Vec<String>, Vec<Uuid>) {
    rows.iter().map(key).map(|(project, id)| (project.to_owned(), id)).unzip()
}
