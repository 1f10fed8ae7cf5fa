//! An access token whose signature is good, or why it is not.

use std::fmt;
use std::sync::Arc;

use super::access::Claims;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;

/// An access token with a good signature, parsed once. Cheap to clone; clones share state.
///
/// It may have expired, its key may have been revoked since, and its session may have ended: those change from moment to
/// moment, and are checked on each use.
#[derive(Clone, PartialEq)]
pub struct VerifiedToken(pub(super) Arc<Parsed>);

#[derive(PartialEq)]
pub(super) struct Parsed {
    project: ProjectId,
    user: UserId,
    session: SessionId,
    key: KeyId,
    claims: Claims,
}

impl VerifiedToken {
    /// Parses the ids in the claims.
    pub(super) fn new(claims: Claims, key: KeyId) -> Result<Self, VerifyError> {
        let parse = |claims: &Claims| {
            let project = ProjectId::parse(&claims.project_id)?;
            Some((project, UserId::parse(&claims.sub)?, SessionId::parse(&claims.sid)?))
        };
        let (project, user, session) = parse(&claims).ok_or(VerifyError::Unparsable)?;
        Ok(Self(Arc::new(Parsed { project, user, session, key, claims })))
    }

    /// The project.
    pub fn project(&self) -> &ProjectId {
        &self.0.project
    }

    /// The user.
    pub fn user(&self) -> &UserId {
        &self.0.user
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.0.session
    }

    /// The project's and the user's epoch when the session was opened.
    pub fn epoch(&self) -> [i64; 2] {
        self.0.claims.epoch
    }

    /// The session's own epoch when the token was issued.
    pub fn session_epoch(&self) -> i64 {
        self.0.claims.session_epoch
    }

    /// The key that signed it.
    pub fn key(&self) -> KeyId {
        self.0.key
    }

    /// Who acts as the user, in an impersonation.
    pub fn impersonator(&self) -> Option<&str> {
        self.0.claims.act.as_ref().map(|actor| actor.sub.as_str())
    }

    /// When it was issued.
    pub fn issued_at(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.claims.iat)
    }

    /// When it expires. Half-open: at this moment exactly, it has expired (RFC 7519 §4.1.4).
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.claims.exp)
    }

    /// All claims.
    pub fn claims(&self) -> &Claims {
        &self.0.claims
    }

    /// Checks that the token has not expired.
    ///
    /// # Errors
    ///
    /// [`VerifyError::Expired`].
    pub fn check_expiry(&self, now: Timestamp) -> Result<(), VerifyError> {
        if self.0.claims.expired_at(now) { Err(VerifyError::Expired(self.clone())) } else { Ok(()) }
    }

    /// Checks that the token belongs to a project.
    ///
    /// # Errors
    ///
    /// [`VerifyError::WrongProject`].
    pub fn check_project(&self, expected: &ProjectId) -> Result<(), VerifyError> {
        if self.0.project == *expected {
            return Ok(());
        }
        Err(VerifyError::WrongProject { expected: expected.to_string(), actual: self.0.project.to_string() })
    }
}

/// Leaves out the user: this may reach a log.
impl fmt::Debug for VerifiedToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VerifiedToken")
            .field("project", &self.0.project)
            .field("session", &self.0.session)
            .finish_non_exhaustive()
    }
}

/// Why an access token does not verify.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// Not a JWT, not ES256, not an access token, a bad signature, or another issuer's.
    #[error("the access token is malformed, or was not issued here")]
    Unparsable,
    /// The token belongs to one project where another is expected: that of its key, or of the caller.
    #[error("the access token belongs to project {actual:?}, not to {expected:?}")]
    WrongProject {
        /// The expected project.
        expected: String,
        /// The project in the token's `aud`.
        actual: String,
    },
    /// The token names a key that is unknown, or not known yet.
    #[error("the access token names the unknown key {0}")]
    UnknownKey(KeyId),
    /// The signature is good, and the token has expired.
    #[error("the access token has expired")]
    Expired(VerifiedToken),
}
