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

/// Whether a request id is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It is, and now belongs to this request.
    First,
    /// The same request came before, and made this session.
    Again(SessionId),
    /// Another request came before under the same id.
    Another,
}

impl Tx {
    /// Claims a request id for a session about to be opened. Waits for a transaction that is claiming it just now.
    pub async fn request_claim(
        &mut self,
        project: &ProjectId,
        request: Uuid,
        session: SessionId,
        digest: &[u8; 32],
        now: Timestamp,
    ) -> Result<Repeat, Error> {
        let claim = RequestClaim {
            project: project.as_str().to_owned(),
            request,
            session: session.as_uuid(),
            digest: digest.to_vec(),
            created_at: to_pg(now),
        };
        let claimed: Result<Vec<Uuid>, _> = claim.get_results(self.pg()).await;
        if !claimed.map_err(|error| self.failed(error))?.is_empty() {
            return Ok(Repeat::First);
        }
        let query = session_requests::table
            .filter(session_requests::project_id.eq(project.as_str()))
            .filter(session_requests::request_id.eq(request))
            .select((session_requests::session_id, session_requests::digest));
        let rows: Result<Vec<(Uuid, Vec<u8>)>, _> = query.load(self.pg()).await;
        match rows.map_err(|error| self.failed(error))?.pop() {
            Some((session, stored)) if stored == digest => Ok(Repeat::Again(SessionId::from_uuid(session))),
            Some(_) => Ok(Repeat::Another),
            // It was there a moment ago, and has been swept since: the next try finds the place free.
            None => Err(Error::late("request_claim")),
        }
    }
}
