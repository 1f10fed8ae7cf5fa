//! `session_requests`: the outcome of each `request_id` (AIP-155).

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::Tx;
use super::columns::to_pg;
use super::error::Error;
use super::schema::session_requests;
use super::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;

/// The outcome of the first request with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// It opened this session.
    Opened(SessionId),
    /// It revoked all sessions of a user: this many were live.
    RevokedAll(i32),
}

/// Whether a request id was used before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestIdStatus {
    /// It is new, and now belongs to this request.
    New,
    /// The same request was made before, with this outcome.
    Repeated(RequestOutcome),
    /// A different request was made before with the same id.
    Conflict,
}

impl Tx {
    /// Claims a request id of a user, whose bucket is given, for the request in progress. Waits for a transaction that is claiming the same id.
    pub async fn request_claim(
        &mut self,
        project: &ProjectId,
        bucket: Bucket,
        request: Uuid,
        outcome: RequestOutcome,
        digest: &[u8; 32],
        now: Timestamp,
    ) -> Result<RequestIdStatus, Error> {
        let (session, revoked_count) = outcome.columns();
        let slot = self.slot(bucket).to_column();
        let claim = RequestClaim {
            project: project.as_str().to_owned(),
            request,
            session,
            revoked_count,
            digest: digest.to_vec(),
            created_at: to_pg(now),
            slot,
        };
        if !self.rows(claim).await?.is_empty() {
            return Ok(RequestIdStatus::New);
        }
        let query = session_requests::table.find((project.as_str(), request, slot)).select(RequestRow::as_select());
        match self.load(query).await?.pop() {
            Some(row) if row.digest == digest => {
                Ok(row.outcome().map_or(RequestIdStatus::Conflict, RequestIdStatus::Repeated))
            }
            Some(_) => Ok(RequestIdStatus::Conflict),
            // It existed a moment ago, and has been swept since: a retry finds the id free.
            None => Err(Error::late("request_claim")),
        }
    }

    /// Stores the final outcome of a claimed request.
    pub async fn request_answer(
        &mut self,
        project: &ProjectId,
        bucket: Bucket,
        request: Uuid,
        outcome: RequestOutcome,
    ) -> Result<(), Error> {
        let (session, revoked_count) = outcome.columns();
        let slot = self.slot(bucket).to_column();
        let update = diesel::update(session_requests::table.find((project.as_str(), request, slot)))
            .set((session_requests::session_id.eq(session), session_requests::revoked_count.eq(revoked_count)));
        self.execute(update).await.map(drop)
    }
}

statement! {
    /// Claims a request id; returns no row if it is taken.
    RequestClaim -> Uuid as sql::Uuid =
    "INSERT INTO session_requests (project_id, request_id, session_id, revoked_count, digest, created_at, slot) VALUES ("
    [project: String as sql::Text]
    ", "
    [request: Uuid as sql::Uuid]
    ", "
    [session: Option<Uuid> as sql::Nullable<sql::Uuid>]
    ", "
    [revoked_count: Option<i32> as sql::Nullable<sql::Integer>]
    ", "
    [digest: Vec<u8> as sql::Binary]
    ", "
    [created_at: PgTimestamp as sql::Timestamptz]
    ", "
    [slot: i16 as sql::SmallInt]
    ") ON CONFLICT ON CONSTRAINT session_requests_pkey DO NOTHING RETURNING request_id"
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = session_requests)]
struct RequestRow {
    session_id: Option<Uuid>,
    revoked_count: Option<i32>,
    digest: Vec<u8>,
}

impl RequestRow {
    fn outcome(&self) -> Option<RequestOutcome> {
        match (self.session_id, self.revoked_count) {
            (Some(session), _) => Some(RequestOutcome::Opened(SessionId::from_uuid(session))),
            (None, Some(count)) => Some(RequestOutcome::RevokedAll(count)),
            (None, None) => None,
        }
    }
}

impl RequestOutcome {
    fn columns(self) -> (Option<Uuid>, Option<i32>) {
        match self {
            Self::Opened(session) => (Some(session.as_uuid()), None),
            Self::RevokedAll(count) => (None, Some(count)),
        }
    }
}
