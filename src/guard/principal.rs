//! Whom a token speaks for.

use std::fmt;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::Epoch;
use crate::session::revoked::Bearer;
use crate::token::access::Claims;

/// A signed-in user, by an access token that was found good. Clones are one and the same, and cost next to nothing.
#[derive(Clone, PartialEq)]
pub struct Principal(Arc<Facts>);

#[derive(PartialEq)]
struct Facts {
    project: ProjectId,
    user: UserId,
    session: SessionId,
    epoch: Epoch,
    key: KeyId,
    claims: Claims,
}

impl Principal {
    /// Whom these claims speak for; `None` when a name in them is none of ours.
    pub(super) fn of(claims: Claims, key: KeyId) -> Option<Self> {
        Some(Self(Arc::new(Facts {
            project: ProjectId::parse(&claims.project_id)?,
            user: UserId::parse(&claims.sub)?,
            session: SessionId::parse(&claims.sid)?,
            epoch: Epoch { project: claims.epoch[0], user: claims.epoch[1] },
            key,
            claims,
        })))
    }

    /// The user, in the host application's own words.
    pub fn user_id(&self) -> &UserId {
        &self.0.user
    }

    /// The session that the token is of.
    pub fn session_id(&self) -> SessionId {
        self.0.session
    }

    /// The project.
    pub fn project_id(&self) -> &ProjectId {
        &self.0.project
    }

    /// Who acts as the user, when someone does.
    pub fn impersonator_id(&self) -> Option<&str> {
        self.0.claims.act.as_ref().map(|actor| actor.sub.as_str())
    }

    /// From when on the token is over.
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.claims.exp)
    }

    /// All that the token says; what the host application has put there is in [`Claims::own`].
    pub fn claims(&self) -> &Claims {
        &self.0.claims
    }

    pub(super) fn key(&self) -> KeyId {
        self.0.key
    }

    pub(super) fn bearer(&self) -> Bearer<'_> {
        let Facts { project, user, session, epoch, key, .. } = &*self.0;
        Bearer { project, user, session: *session, epoch: *epoch, key: *key }
    }
}

/// Without the user: this may reach a log.
impl fmt::Debug for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Principal")
            .field("project", &self.0.project)
            .field("session", &self.0.session)
            .finish_non_exhaustive()
    }
}
