//! Why we say no. The wire's name, message and code for each are in one table: `reason.rs`.

use std::time::Duration;

use super::policy::StepUp;
use super::violation::Violation;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::token::verified::VerifyError;

/// A refusal: the request was understood, and the answer is no. Nothing has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No credential was presented where one is needed.
    CredentialsMissing,
    /// The access token is not one of ours. One answer for all the ways in which that can be.
    UnparsableAccessToken,
    /// The access token is genuine, and over.
    AccessTokenExpired {
        /// When it expired.
        expired_at: Timestamp,
        /// Its project.
        project: ProjectId,
        /// Its user.
        user: UserId,
        /// Its session.
        session: SessionId,
    },
    /// The access token is of one project where another's is expected: that of its own key, or of whoever asks.
    WrongProject {
        /// The project that is expected.
        expected: String,
        /// The project that the token names.
        actual: String,
    },
    /// The token is genuine, and its session has ended.
    SessionRevoked,
    /// The server key is unknown or revoked.
    InvalidServerKey,
    /// Unknown, malformed, expired, revoked: one answer, so that there is nothing to probe.
    RefreshTokenNotFoundOrExpired,
    /// The refresh token is genuine, and the project takes it only from a client that shows a server key.
    ClientAuthenticationRequired,
    /// The token is genuine, and its user has not authenticated recently or strongly enough for this (RFC 9470): what would
    /// be enough.
    InsufficientUserAuthentication(StepUp),
    /// The right credentials, from the wrong kind of caller.
    InsufficientAccessType,
    /// A server key in a browser: it has no business there.
    ServerKeyInBrowser,
    /// No such session, or none that the caller may know of.
    SessionNotFound,
    /// A user asks about another user.
    NotYourUser,
    /// A user's own current session ends by signing out, not by its id.
    CannotDeleteCurrentSession,
    /// The user has as many sessions as the project allows.
    SessionLimitReached,
    /// No such project, or none was named.
    ProjectNotFound,
    /// The request does not fit its schema.
    Schema(Vec<Violation>),
    /// Too many in too short a time.
    RateLimited {
        /// After how long a repeat has a chance.
        retry_after: Duration,
    },
}

impl Refusal {
    /// The refusal of a request with one violation.
    pub fn invalid(field: &'static str, expected: &'static str) -> Self {
        Self::Schema(vec![Violation { field, expected }])
    }
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Unparsable | VerifyError::UnknownKey(_) => Self::UnparsableAccessToken,
            VerifyError::WrongProject { expected, actual } => Self::WrongProject { expected, actual },
            VerifyError::Expired(token) => Self::AccessTokenExpired {
                expired_at: token.expires_at(),
                project: token.project().clone(),
                user: token.user().clone(),
                session: token.session(),
            },
        }
    }
}
