//! `sessions`: one row per sign-in.

use std::collections::HashSet;

use diesel::QueryDsl as _;
use diesel::SelectableHelper as _;
use diesel_async::RunQueryDsl as _;

use super::Store;
use super::Tx;
use super::error::Error;
use super::rows::SessionRow;
use super::rows::chain_columns;
use super::rows::reason_number;
use super::rows::to_pg;
use super::schema::sessions;
use super::statements::SessionRotate;
use super::statements::SessionsRevoke;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::RevokeReason;
use crate::session::Session;
use crate::session::rotation::Chain;
use crate::token::refresh::RowSecret;

/// A session with what only we know of it.
pub struct StoredSession {
    /// The session.
    pub session: Session,
    /// Its chain of refresh tokens.
    pub chain: Chain,
    /// The random half of them.
    pub secret: RowSecret,
    /// The greatest `exp` of an access token issued.
    pub access_expires_at: Timestamp,
}

/// A session to end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revocation {
    /// Its project.
    pub project: ProjectId,
    /// The session.
    pub session: SessionId,
    /// When it ends.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
}

impl Store {
    /// Ends sessions, in one statement and so in one transaction; answers with those that were live until now. Any other
    /// had run out, had been ended before, or is unknown.
    ///
    /// # Errors
    ///
    /// When the database is away. Safe to repeat: what was ended by the first try is no longer live for the second.
    pub async fn sessions_revoke(&self, asked: Vec<Revocation>) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        self.once("sessions_revoke", move |mut tx| {
            let asked = asked.clone();
            async move {
                let ended = tx.sessions_revoke(&asked).await?;
                tx.commit(ended).await
            }
        })
        .await
    }

    /// A session as it is now.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn session_find(&self, project: ProjectId, id: SessionId) -> Result<Option<StoredSession>, Error> {
        self.once("session_find", move |mut tx| {
            let project = project.clone();
            async move {
                let query = sessions::table.find((project.as_str(), id.as_uuid())).select(SessionRow::as_select());
                let rows = query.load(tx.pg()).await;
                let found = rows.map_err(|error| tx.failed(error))?.pop();
                tx.commit(found.map(SessionRow::into_stored).transpose()?).await
            }
        })
        .await
    }
}

impl Tx {
    /// As [`Store::sessions_revoke`], within a transaction.
    pub async fn sessions_revoke(&mut self, asked: &[Revocation]) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        let statement = SessionsRevoke {
            projects: asked.iter().map(|one| one.project.as_str().to_owned()).collect(),
            ids: asked.iter().map(|one| one.session.as_uuid()).collect(),
            at: asked.iter().map(|one| to_pg(one.at)).collect(),
            reasons: asked.iter().map(|one| reason_number(one.reason)).collect(),
        };
        let ended: Result<Vec<(String, uuid::Uuid, bool)>, _> = statement.get_results(self.pg()).await;
        let was_live = |(project, id, live): (String, uuid::Uuid, bool)| {
            live.then(|| Some((ProjectId::parse(&project)?, SessionId::from_uuid(id)))).flatten()
        };
        Ok(ended.map_err(|error| self.failed(error))?.into_iter().filter_map(was_live).collect())
    }

    /// Locks a session until the end of the transaction, and reads it.
    pub async fn session_lock(&mut self, project: &ProjectId, id: SessionId) -> Result<Option<StoredSession>, Error> {
        let query = sessions::table.find((project.as_str(), id.as_uuid())).select(SessionRow::as_select()).for_update();
        let rows = query.load(self.pg()).await;
        rows.map_err(|error| self.failed(error))?.pop().map(SessionRow::into_stored).transpose()
    }

    /// Writes a new session.
    pub async fn session_insert(&mut self, stored: StoredSession) -> Result<(), Error> {
        let insert = diesel::insert_into(sessions::table).values(SessionRow::new(stored));
        insert.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    /// Records a refresh: the session's last use, its device and its chain, and until when its newest access token lasts.
    pub async fn session_rotate(
        &mut self,
        session: &Session,
        chain: &Chain,
        access_expires_at: Timestamp,
    ) -> Result<(), Error> {
        let (generation, attempts, issued_at) = chain_columns(chain);
        let statement = SessionRotate {
            last_used_at: to_pg(session.last_used_at),
            idle_expires_at: to_pg(session.idle_expires_at),
            access_expires_at: to_pg(access_expires_at),
            generation,
            attempts,
            issued_at,
            device_name: session.device.name.clone(),
            user_agent: session.device.user_agent.clone(),
            ip: session.device.ip.map(|ip| ip.to_string()),
            project: session.project.as_str().to_owned(),
            id: session.id.as_uuid(),
        };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}
