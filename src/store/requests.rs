//! `session_requests`: what a `request_id` was used for (AIP-155).

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::Tx;
use super::error::Error;
use super::rows::to_pg;
use super::schema::session_requests;
use super::statements::RequestClaim;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;

/// What the first request under an id came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// It opened this session.
    Opened(SessionId),
    /// It ended all sessions of a user: this many were live.
    RevokedAll(i32),
}

impl Remembered {
    fn columns(self) -> (Option<Uuid>, Option<i32>) {
        match self {
            Self::Opened(session) => (Some(session.as_uuid()), None),
            Self::RevokedAll(count) => (None, Some(count)),
        }
    }
}

/// Whether a request id is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It is, and now belongs to this request.
    First,
    /// The same request came before, and came to this.
    Again(Remembered),
    /// Another request came before under the same id.
    Another,
}

/// The session, the count, the digest.
type Columns = (Option<Uuid>, Option<i32>, Vec<u8>);

impl Tx {
    /// Claims a request id for what is about to be done. Waits for a transaction that is claiming it just now.
    pub async fn request_claim(
        &mut self,
        project: &ProjectId,
        request: Uuid,
        remembered: Remembered,
        digest: &[u8; 32],
        now: Timestamp,
    ) -> Result<Repeat, Error> {
        let (session, revoked_count) = remembered.columns();
        let claim = RequestClaim {
            project: project.as_str().to_owned(),
            request,
            session,
            revoked_count,
            digest: digest.to_vec(),
            created_at: to_pg(now),
        };
        let claimed: Result<Vec<Uuid>, _> = claim.get_results(self.pg()).await;
        if !claimed.map_err(|error| self.failed(error))?.is_empty() {
            return Ok(Repeat::First);
        }
        let query = session_requests::table.find((project.as_str(), request)).select((
            session_requests::session_id,
            session_requests::revoked_count,
            session_requests::digest,
        ));
        let rows: Result<Vec<Columns>, _> = query.load(self.pg()).await;
        match rows.map_err(|error| self.failed(error))?.pop() {
            Some((Some(session), _, stored)) if stored == digest => {
                Ok(Repeat::Again(Remembered::Opened(SessionId::from_uuid(session))))
            }
            Some((None, Some(count), stored)) if stored == digest => Ok(Repeat::Again(Remembered::RevokedAll(count))),
            Some(_) => Ok(Repeat::Another),
            // It was there a moment ago, and has been swept since: the next try finds the place free.
            None => Err(Error::late("request_claim")),
        }
    }

    /// Writes down what a claimed request came to in the end.
    pub async fn request_answer(
        &mut self,
        project: &ProjectId,
        request: Uuid,
        remembered: Remembered,
    ) -> Result<(), Error> {
        let (session, revoked_count) = remembered.columns();
        let update = diesel::update(session_requests::table.find((project.as_str(), request)))
            .set((session_requests::session_id.eq(session), session_requests::revoked_count.eq(revoked_count)));
        update.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}
