//! `revocations`: who ended what, when, why and from where. Sessions' own are written by the statement that ends them.

use std::net::IpAddr;

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::Place;
use super::PublishedRevocation;
use super::Store;
use super::Tx;
use super::error::Error;
use super::events::KeyKind;
use super::rows::from_pg;
use super::rows::reason_number;
use super::rows::reason_of;
use super::rows::to_pg;
use super::schema::revocations;
use super::statements::CutOffQueue;
use crate::clock;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::EndedBy;
use crate::session::RevokeReason;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::session::revoked::Ended;

/// The end of many sessions at once, or of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// The project.
    pub project: ProjectId,
    /// What ends.
    pub ended: Ended,
    /// Why.
    pub reason: RevokeReason,
    /// When.
    pub at: Timestamp,
    /// Until then some verifier may hold a token that this ends.
    pub access_expires_at: Timestamp,
    /// Who did it.
    pub by: EndedBy,
    /// From where, as far as is known.
    pub ip: Option<IpAddr>,
}

impl CutOff {
    /// The end of a key, by the operator.
    pub fn of_key(project: ProjectId, key: Ended, at: Timestamp) -> Self {
        // As long as any token under it may be alive.
        let access_expires_at = at + ACCESS_TOKEN_TTL_MAX;
        let (reason, by) = (RevokeReason::KeyRevoked, EndedBy::Operator);
        Self { project, ended: key, reason, at, access_expires_at, by, ip: None }
    }
}

/// A line of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its own id. Their order is that of time.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
    /// The session that ended; none for what ended more than one.
    pub session: Option<SessionId>,
    /// The one session that a cut-off left.
    pub spared: Option<SessionId>,
    /// The key that was revoked.
    pub key: Option<KeyId>,
    /// Which kind of key that is.
    pub key_kind: Option<KeyKind>,
    /// Whose session; none for a whole project, and once the user was erased.
    pub user: Option<String>,
    /// Who did it.
    pub by: EndedBy,
    /// From where, as far as is known, for as long as addresses are kept.
    pub ip: Option<String>,
}

/// What of the audit to read.
#[derive(Clone, Debug)]
pub struct RecordQuery {
    /// The project.
    pub project: ProjectId,
    /// The user; without one, the whole project.
    pub user: Option<UserId>,
    /// The most lines.
    pub rows_max: usize,
}

type Columns = (
    (Uuid, PgTimestamp, i16),
    (Option<Uuid>, Option<Uuid>, Option<Uuid>, Option<Uuid>),
    (Option<String>, i16, Option<Uuid>, Option<String>),
);

/// The columns that say what was ended.
#[derive(Default)]
struct Parts<'a> {
    session: Option<Uuid>,
    is_impersonation: bool,
    user: Option<&'a UserId>,
    user_epoch: Option<i64>,
    spared: Option<Uuid>,
    project_epoch: Option<i64>,
    signing_key: Option<Uuid>,
    server_key: Option<Uuid>,
}

impl<'a> Parts<'a> {
    fn of(ended: &'a Ended) -> Self {
        match ended {
            Ended::Session { id, is_impersonation } => {
                Self { session: Some(id.as_uuid()), is_impersonation: *is_impersonation, ..Self::default() }
            }
            Ended::User { user, epoch, spared } => Self {
                user: Some(user),
                user_epoch: Some(*epoch),
                spared: spared.map(SessionId::as_uuid),
                ..Self::default()
            },
            Ended::Project { epoch } => Self { project_epoch: Some(*epoch), ..Self::default() },
            Ended::SigningKey(key) => Self { signing_key: Some(key.as_uuid()), ..Self::default() },
            Ended::ServerKey(key) => Self { server_key: Some(key.as_uuid()), ..Self::default() },
        }
    }
}

impl Store {
    /// The newest lines of the audit, newest first.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn revocations(&self, asked: RecordQuery) -> Result<Vec<Record>, Error> {
        let rows_max = i64::try_from(asked.rows_max).unwrap_or(i64::MAX);
        self.idempotent("revocations", move |mut tx| {
            let asked = asked.clone();
            async move {
                let newest = revocations::table
                    .filter(revocations::project_id.eq(asked.project.as_str()))
                    .order(revocations::id.desc())
                    .limit(rows_max)
                    .select((
                        (revocations::id, revocations::at, revocations::reason),
                        (
                            revocations::session_id,
                            revocations::spared_session_id,
                            revocations::signing_key_id,
                            revocations::server_key_id,
                        ),
                        (revocations::user_id, revocations::actor, revocations::actor_id, revocations::ip),
                    ));
                let rows: Result<Vec<Columns>, _> = match &asked.user {
                    Some(user) => newest.filter(revocations::user_id.eq(user.as_str())).load(tx.pg()).await,
                    None => newest.load(tx.pg()).await,
                };
                let found = rows.map_err(|error| tx.failed(error))?;
                tx.commit(found.into_iter().map(record).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }
}

impl Tx {
    /// Writes down what was ended at once. Answers with the line's id.
    pub async fn cut_off_insert(&mut self, cut_off: CutOff) -> Result<Uuid, Error> {
        let CutOff { project, ended, reason, at, access_expires_at, by, ip } = cut_off;
        let (actor, actor_id) = actor_columns(by);
        let (id, parts) = (clock::new_record_id(at), Parts::of(&ended));
        let insert = diesel::insert_into(revocations::table)
            .values((
                revocations::project_id.eq(project.as_str()),
                revocations::id.eq(id),
                revocations::at.eq(to_pg(at)),
                revocations::reason.eq(reason_number(reason)),
                revocations::session_id.eq(parts.session),
                revocations::is_impersonation.eq(parts.is_impersonation),
                revocations::user_epoch.eq(parts.user_epoch),
                revocations::spared_session_id.eq(parts.spared),
                revocations::user_id.eq(parts.user.map(UserId::as_str)),
                revocations::project_epoch.eq(parts.project_epoch),
                revocations::signing_key_id.eq(parts.signing_key),
                revocations::server_key_id.eq(parts.server_key),
                revocations::access_expires_at.eq(to_pg(access_expires_at)),
                revocations::actor.eq(actor),
                revocations::actor_id.eq(actor_id),
                revocations::ip.eq(ip.map(|ip| ip.to_string())),
            ))
            .returning(revocations::xid);
        let written: Result<Vec<Option<i64>>, _> = insert.get_results(self.pg()).await;
        let xid = written.map_err(|error| self.failed(error))?.pop().flatten().and_then(|xid| u64::try_from(xid).ok());
        let bad = || Error::Inconsistent { table: "revocations", column: "xid", row: id.to_string() };
        let (place, user) = (Place { xid: xid.ok_or_else(bad)?, id }, parts.user.cloned());
        self.will_publish([PublishedRevocation { place, project, ended, user, at, reason, access_expires_at }]);
        Ok(id)
    }

    /// Writes down whom to tell that all sessions of a user were ended: of the sessions that are named, one by one, or of the
    /// user. Of what ends more than one user's sessions, nobody is told so.
    pub async fn cut_off_queue(
        &mut self,
        cut_off: &CutOff,
        record: Uuid,
        told: Option<Vec<SessionId>>,
    ) -> Result<(), Error> {
        let Some(user) = Parts::of(&cut_off.ended).user else { return Ok(()) };
        let (actor, actor_id) = actor_columns(cut_off.by);
        let queue = CutOffQueue {
            record,
            user: user.as_str().to_owned(),
            at: to_pg(cut_off.at),
            reason: reason_number(cut_off.reason),
            actor,
            actor_id,
            sessions: told.map_or_else(|| vec![None], |ids| ids.into_iter().map(|id| Some(id.as_uuid())).collect()),
            project: cut_off.project.as_str().to_owned(),
        };
        let queued: Result<Vec<bool>, _> = queue.get_results(self.pg()).await;
        if queued.map_err(|error| self.failed(error))?.contains(&true) {
            self.ring_on_commit();
        }
        Ok(())
    }

    /// Takes a user's name and addresses out of the audit: at most so many lines of it. Answers with how many there were.
    pub async fn revocations_anonymise(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        rows_max: usize,
    ) -> Result<usize, Error> {
        let some = revocations::table
            .filter(revocations::project_id.eq(project.as_str()))
            .filter(revocations::user_id.eq(user.as_str()))
            .order(revocations::id)
            .limit(i64::try_from(rows_max).unwrap_or(i64::MAX))
            .select(revocations::id)
            .for_update();
        let ids: Result<Vec<Uuid>, _> = some.load(self.pg()).await;
        let ids = ids.map_err(|error| self.failed(error))?;
        let these =
            revocations::table.filter(revocations::project_id.eq(project.as_str())).filter(revocations::id.eq_any(ids));
        let update =
            diesel::update(these).set((revocations::user_id.eq(None::<String>), revocations::ip.eq(None::<String>)));
        update.execute(self.pg()).await.map_err(|error| self.failed(error))
    }
}

/// What is stored for whoever did it. A number is never given a second meaning.
pub(super) const fn actor_columns(by: EndedBy) -> (i16, Option<Uuid>) {
    match by {
        EndedBy::Holder => (1, None),
        EndedBy::User(session) => (2, Some(session.as_uuid())),
        EndedBy::Service(key) => (3, Some(key.as_uuid())),
        EndedBy::Sessiond => (4, None),
        EndedBy::Operator => (5, None),
    }
}

/// Who did it, by what is stored.
pub(super) fn actor(number: i16, id: Option<Uuid>) -> Option<EndedBy> {
    match (number, id) {
        (1, None) => Some(EndedBy::Holder),
        (2, Some(session)) => Some(EndedBy::User(SessionId::from_uuid(session))),
        (3, Some(key)) => Some(EndedBy::Service(KeyId::from_uuid(key))),
        (4, None) => Some(EndedBy::Sessiond),
        (5, None) => Some(EndedBy::Operator),
        _ => None,
    }
}

fn record(columns: Columns) -> Result<Record, Error> {
    let ((id, at, reason), (session, spared, signing_key, server_key), (user, by, by_id, ip)) = columns;
    let bad = |column| Error::Inconsistent { table: "revocations", column, row: id.to_string() };
    Ok(Record {
        id,
        at: from_pg(at),
        reason: reason_of(reason).ok_or_else(|| bad("reason"))?,
        session: session.map(SessionId::from_uuid),
        spared: spared.map(SessionId::from_uuid),
        key: signing_key.or(server_key).map(KeyId::from_uuid),
        key_kind: signing_key.map(|_| KeyKind::Signing).or(server_key.map(|_| KeyKind::Server)),
        user,
        by: actor(by, by_id).ok_or_else(|| bad("actor"))?,
        ip,
    })
}
