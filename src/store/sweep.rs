//! `sweeps`, and what a sweep reads and removes. Every table is walked in the order of its keys, which for sessions and the
//! audit is that of time: so what goes lies together, page by page, and no index on a time is needed that each refresh
//! would have to change.

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::Tx;
use super::error::Error;
use super::rows::from_pg;
use super::rows::to_pg;
use super::schema::refresh_keys;
use super::schema::server_keys;
use super::schema::signing_keys;
use super::statements::AddressesSweep;
use super::statements::DeliveriesSweep;
use super::statements::DeliveriesWalk;
use super::statements::EventAddressesSweep;
use super::statements::EventsSweep;
use super::statements::EventsWalk;
use super::statements::RequestsSweep;
use super::statements::RequestsWalk;
use super::statements::RevocationsSweep;
use super::statements::RevocationsWalk;
use super::statements::SessionsSweep;
use super::statements::SessionsWalk;
use super::statements::SweepClaim;
use super::statements::SweepNote;
use super::statements::UsersHold;
use super::statements::UsersSweep;
use super::statements::UsersWalk;
use crate::clock::Timestamp;
use crate::session::Epoch;
use crate::session::lifecycle::Raised;
use crate::session::retention::Course;

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
pub struct Position {
    project: String,
    key: String,
}

impl Position {
    /// Before the first row.
    pub const fn start() -> Self {
        Self { project: String::new(), key: String::new() }
    }

    /// Behind the row with this key.
    pub fn behind(row: &impl Keyed) -> Self {
        let (project, key) = row.key();
        Self { project: project.to_owned(), key }
    }

    /// Behind the last row of that row's project.
    pub fn behind_project(row: &impl Keyed) -> Self {
        Self { project: row.key().0.to_owned(), key: Uuid::max().hyphenated().to_string() }
    }

    /// The id that the key is; the least one where there is none.
    fn id(&self) -> Uuid {
        Uuid::try_parse(&self.key).unwrap_or(Uuid::nil())
    }
}

/// A row that has a place.
pub trait Keyed {
    /// Its project, and what sorts it within that.
    fn key(&self) -> (&str, String);
}

/// How far a sweep has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it goes on.
    pub position: Position,
    /// When it last came to the end.
    pub completed_at: Option<Timestamp>,
}

/// A session, as far as a sweep needs to know it.
#[derive(Clone, Debug)]
pub struct SweptSession {
    project: String,
    id: Uuid,
    /// When it was opened.
    pub created_at: Timestamp,
    /// What decides when it was over.
    pub course: Course,
    /// The present epochs of its project and its user.
    pub present: Epoch,
    /// When each was last raised.
    pub raised: Raised,
}

/// A request that may be repeated.
#[derive(Clone, Debug)]
pub struct SweptRequest {
    project: String,
    id: Uuid,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A line of the audit.
#[derive(Clone, Debug)]
pub struct SweptLine {
    project: String,
    id: Uuid,
    /// When it was written.
    pub at: Timestamp,
    /// Until then some verifier may hold a token that it is about.
    pub access_expires_at: Timestamp,
    /// Whether an address is in it.
    pub has_address: bool,
}

/// What somebody was told, or is to be told.
#[derive(Clone, Debug)]
pub struct SweptDelivery {
    project: String,
    id: Uuid,
    /// When that happened.
    pub at: Timestamp,
    /// When it was delivered.
    pub delivered_at: Option<Timestamp>,
    /// When it was given up.
    pub dead_at: Option<Timestamp>,
}

/// A user.
#[derive(Clone, Debug)]
pub struct SweptUser {
    project: String,
    user: String,
    /// When the epoch was last raised.
    pub raised_at: Option<Timestamp>,
    /// Whether there is a session, in whatever state.
    pub has_session: bool,
}

/// Which table of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTable {
    /// `signing_keys`.
    Signing,
    /// `refresh_keys`.
    Refresh,
    /// `server_keys`.
    Server,
}

/// A key that is no longer in use.
#[derive(Clone, Copy, Debug)]
pub struct SweptKey {
    id: Uuid,
    /// Since when.
    pub since: Timestamp,
}

impl Keyed for SweptSession {
    fn key(&self) -> (&str, String) {
        (&self.project, self.id.hyphenated().to_string())
    }
}

impl Keyed for SweptRequest {
    /// The beginning of its project: what is older is removed, so the next look finds what comes after.
    fn key(&self) -> (&str, String) {
        (&self.project, String::new())
    }
}

impl Keyed for SweptLine {
    fn key(&self) -> (&str, String) {
        (&self.project, self.id.hyphenated().to_string())
    }
}

impl Keyed for SweptDelivery {
    fn key(&self) -> (&str, String) {
        (&self.project, self.id.hyphenated().to_string())
    }
}

impl Keyed for SweptUser {
    fn key(&self) -> (&str, String) {
        (&self.project, self.user.clone())
    }
}

type SessionColumns = (
    String,
    Uuid,
    PgTimestamp,
    Option<PgTimestamp>,
    PgTimestamp,
    PgTimestamp,
    i64,
    i64,
    i64,
    i64,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
);

type LineColumns = (String, Uuid, PgTimestamp, PgTimestamp, bool);

type DeliveryColumns = (String, Uuid, PgTimestamp, Option<PgTimestamp>, Option<PgTimestamp>);

type UserColumns = (String, String, Option<PgTimestamp>, bool);

impl Tx {
    /// Takes a task for the rest of the transaction; `None` while another replica has it.
    pub async fn sweep_claim(&mut self, task: Task) -> Result<Option<Progress>, Error> {
        let rows: Result<Vec<(String, String, Option<PgTimestamp>)>, _> =
            SweepClaim { task: task.as_str() }.get_results(self.pg()).await;
        let progress = rows.map_err(|error| self.failed(error))?.pop();
        Ok(progress.map(|(project, key, completed_at)| Progress {
            position: Position { project, key },
            completed_at: completed_at.map(from_pg),
        }))
    }

    /// Writes down where a task goes on and, if it has come to the end just now, when that was.
    pub async fn sweep_note(
        &mut self,
        task: Task,
        position: Position,
        completed_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        let Position { project, key } = position;
        let statement = SweepNote { project, key, completed_at: completed_at.map(to_pg), task: task.as_str() };
        statement.execute(self.pg()).await.map(drop).map_err(|error| self.failed(error))
    }

    /// The next sessions in the order of their keys.
    pub async fn sessions_walk(&mut self, from: &Position, rows_max: i64) -> Result<Vec<SweptSession>, Error> {
        let walk = SessionsWalk { project: from.project.clone(), id: from.id(), rows_max };
        let rows: Result<Vec<SessionColumns>, _> = walk.get_results(self.pg()).await;
        let mut rows: Vec<_> = rows.map_err(|error| self.failed(error))?.into_iter().map(session).collect();
        // They were chosen in this order; what was joined to them may have stirred them up.
        rows.sort_unstable_by(|one, other| (&one.project, one.id).cmp(&(&other.project, other.id)));
        Ok(rows)
    }

    /// Deletes sessions, unless they have changed since they were read. Answers with how many went.
    pub async fn sessions_sweep(&mut self, gone: &[SweptSession]) -> Result<usize, Error> {
        let statement = SessionsSweep {
            projects: gone.iter().map(|one| one.project.clone()).collect(),
            ids: gone.iter().map(|one| one.id).collect(),
            idle_expires_at: gone.iter().map(|one| to_pg(one.course.idle_expires_at)).collect(),
            user_epochs: gone.iter().map(|one| one.course.epoch.user).collect(),
        };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// The next requests, each project's oldest first.
    pub async fn requests_walk(&mut self, from: &Position, rows_max: i64) -> Result<Vec<SweptRequest>, Error> {
        // Minus and plus infinity, to Postgres.
        let created_at = PgTimestamp(if from.key.is_empty() { i64::MIN } else { i64::MAX });
        let walk = RequestsWalk { project: from.project.clone(), created_at, rows_max };
        let rows: Result<Vec<(String, Uuid, PgTimestamp)>, _> = walk.get_results(self.pg()).await;
        let request = |(project, id, created_at)| SweptRequest { project, id, created_at: from_pg(created_at) };
        Ok(rows.map_err(|error| self.failed(error))?.into_iter().map(request).collect())
    }

    /// Forgets requests. Answers with how many there were.
    pub async fn requests_sweep(&mut self, gone: &[SweptRequest]) -> Result<usize, Error> {
        let statement = RequestsSweep {
            projects: gone.iter().map(|one| one.project.clone()).collect(),
            ids: gone.iter().map(|one| one.id).collect(),
        };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// The next lines of the audit, in order.
    pub async fn revocations_walk(&mut self, from: &Position, rows_max: i64) -> Result<Vec<SweptLine>, Error> {
        let walk = RevocationsWalk { project: from.project.clone(), id: from.id(), rows_max };
        let rows: Result<Vec<LineColumns>, _> = walk.get_results(self.pg()).await;
        let line = |(project, id, at, access_expires_at, has_address): LineColumns| SweptLine {
            project,
            id,
            at: from_pg(at),
            access_expires_at: from_pg(access_expires_at),
            has_address,
        };
        Ok(rows.map_err(|error| self.failed(error))?.into_iter().map(line).collect())
    }

    /// Deletes lines of the audit. Answers with how many there were.
    pub async fn revocations_sweep(&mut self, gone: &[SweptLine]) -> Result<usize, Error> {
        let (projects, ids) = keys_of(gone);
        let statement = RevocationsSweep { projects, ids };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// Takes the addresses out of lines of the audit. Answers with how many lines there were.
    pub async fn addresses_sweep(&mut self, lines: &[SweptLine]) -> Result<usize, Error> {
        let (projects, ids) = keys_of(lines);
        let statement = AddressesSweep { projects, ids };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// The next lines of the audit's other part, in order. They are news to nobody.
    pub async fn events_walk(&mut self, from: &Position, rows_max: i64) -> Result<Vec<SweptLine>, Error> {
        let walk = EventsWalk { project: from.project.clone(), id: from.id(), rows_max };
        let rows: Result<Vec<(String, Uuid, PgTimestamp, bool)>, _> = walk.get_results(self.pg()).await;
        let line = |(project, id, at, has_address)| {
            let at = from_pg(at);
            SweptLine { project, id, at, access_expires_at: at, has_address }
        };
        Ok(rows.map_err(|error| self.failed(error))?.into_iter().map(line).collect())
    }

    /// Deletes lines of the audit's other part. Returns how many there were.
    pub async fn events_sweep(&mut self, gone: &[SweptLine]) -> Result<usize, Error> {
        let (projects, ids) = keys_of(gone);
        EventsSweep { projects, ids }.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// Takes the addresses out of lines of the audit's other part. Returns how many lines there were.
    pub async fn event_addresses_sweep(&mut self, lines: &[SweptLine]) -> Result<usize, Error> {
        let (projects, ids) = keys_of(lines);
        EventAddressesSweep { projects, ids }.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// The next deliveries in the order of their keys.
    pub async fn deliveries_walk(&mut self, from: &Position, rows_max: i64) -> Result<Vec<SweptDelivery>, Error> {
        let walk = DeliveriesWalk { project: from.project.clone(), id: from.id(), rows_max };
        let rows: Result<Vec<DeliveryColumns>, _> = walk.get_results(self.pg()).await;
        let delivery = |(project, id, at, delivered_at, dead_at): DeliveryColumns| SweptDelivery {
            project,
            id,
            at: from_pg(at),
            delivered_at: delivered_at.map(from_pg),
            dead_at: dead_at.map(from_pg),
        };
        Ok(rows.map_err(|error| self.failed(error))?.into_iter().map(delivery).collect())
    }

    /// Deletes deliveries, unless an operator has had them tried again. Answers with how many there were.
    pub async fn deliveries_sweep(&mut self, gone: &[SweptDelivery]) -> Result<usize, Error> {
        let (projects, ids) = gone.iter().map(|one| (one.project.clone(), one.id)).unzip();
        DeliveriesSweep { projects, ids }.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// The next users in the order of their keys.
    pub async fn users_walk(&mut self, from: &Position, rows_max: i64) -> Result<Vec<SweptUser>, Error> {
        let walk = UsersWalk { project: from.project.clone(), user: from.key.clone(), rows_max };
        let rows: Result<Vec<UserColumns>, _> = walk.get_results(self.pg()).await;
        let user = |(project, user, raised_at, has_session): UserColumns| SweptUser {
            project,
            user,
            raised_at: raised_at.map(from_pg),
            has_session,
        };
        let mut rows: Vec<_> = rows.map_err(|error| self.failed(error))?.into_iter().map(user).collect();
        rows.sort_unstable_by(|one, other| (&one.project, &one.user).cmp(&(&other.project, &other.user)));
        Ok(rows)
    }

    /// Forgets users, unless they have a session by now, or somebody is at it. Answers with how many there were.
    pub async fn users_sweep(&mut self, gone: &[SweptUser]) -> Result<usize, Error> {
        let hold = UsersHold {
            projects: gone.iter().map(|one| one.project.clone()).collect(),
            users: gone.iter().map(|one| one.user.clone()).collect(),
        };
        let held: Result<Vec<(String, String)>, _> = hold.get_results(self.pg()).await;
        let (projects, users) = held.map_err(|error| self.failed(error))?.into_iter().unzip();
        // A statement of its own: who is signed in now was signed in before we held the user, and so is seen.
        let rows: Result<Vec<i64>, _> = UsersSweep { projects, users }.get_results(self.pg()).await;
        let count = rows.map_err(|error| self.failed(error))?.pop().unwrap_or(0);
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The keys that were retired or revoked, all of them: they are few.
    pub async fn keys_unused(&mut self, table: KeyTable) -> Result<Vec<SweptKey>, Error> {
        let rows: Result<Vec<(Uuid, Option<PgTimestamp>)>, _> = match table {
            KeyTable::Signing => {
                let query = signing_keys::table.filter(signing_keys::retired_at.is_not_null());
                query.select((signing_keys::id, signing_keys::retired_at)).load(self.pg()).await
            }
            KeyTable::Refresh => {
                let query = refresh_keys::table.filter(refresh_keys::retired_at.is_not_null());
                query.select((refresh_keys::id, refresh_keys::retired_at)).load(self.pg()).await
            }
            KeyTable::Server => {
                let query = server_keys::table.filter(server_keys::revoked_at.is_not_null());
                query.select((server_keys::id, server_keys::revoked_at)).load(self.pg()).await
            }
        };
        let rows = rows.map_err(|error| self.failed(error))?;
        Ok(rows.into_iter().filter_map(|(id, since)| Some(SweptKey { id, since: from_pg(since?) })).collect())
    }

    /// Deletes keys. Answers with how many there were.
    pub async fn keys_sweep(&mut self, table: KeyTable, gone: &[SweptKey]) -> Result<usize, Error> {
        let ids: Vec<Uuid> = gone.iter().map(|key| key.id).collect();
        let deleted = match table {
            KeyTable::Signing => {
                diesel::delete(signing_keys::table.filter(signing_keys::id.eq_any(ids))).execute(self.pg()).await
            }
            KeyTable::Refresh => {
                diesel::delete(refresh_keys::table.filter(refresh_keys::id.eq_any(ids))).execute(self.pg()).await
            }
            KeyTable::Server => {
                diesel::delete(server_keys::table.filter(server_keys::id.eq_any(ids))).execute(self.pg()).await
            }
        };
        deleted.map_err(|error| self.failed(error))
    }
}

fn keys_of(lines: &[SweptLine]) -> (Vec<String>, Vec<Uuid>) {
    lines.iter().map(|line| (line.project.clone(), line.id)).unzip()
}

fn session(row: SessionColumns) -> SweptSession {
    let (project, id, created_at, revoked_at, expires_at, idle_expires_at, of_project, of_user, ..) = row;
    let (.., present_project, present_user, project_raised_at, user_raised_at) = row;
    SweptSession {
        project,
        id,
        created_at: from_pg(created_at),
        course: Course {
            revoked_at: revoked_at.map(from_pg),
            expires_at: from_pg(expires_at),
            idle_expires_at: from_pg(idle_expires_at),
            epoch: Epoch { project: of_project, user: of_user },
        },
        present: Epoch { project: present_project, user: present_user },
        raised: Raised { project: project_raised_at.map(from_pg), user: user_raised_at.map(from_pg) },
    }
}
