//! Refusals. Their names, messages and codes on the wire are in `reason.rs`.

use std::time::Duration;

use super::policy::StepUp;
use super::violation::Violation;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::token::verified::VerifyError;

/// Why a request is refused. A refusal is a decision; nothing has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request needs a credential, and has none.
    CredentialsMissing,
    /// The access token is malformed, or was not issued here. Does not say which.
    UnparsableAccessToken,
    /// The access token is genuine, but expired.
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
    /// The access token belongs to one project where another is expected: that of its key, or of the caller.
    WrongProject {
        /// The expected project.
        expected: String,
        /// The token's project.
        actual: String,
    },
    /// The token is genuine, but its session has ended.
    SessionRevoked,
    /// The token is genuine and its session live, but the token was superseded: its claims are out of date.
    AccessTokenSuperseded,
    /// The server key is unknown, revoked or expired.
    InvalidServerKey,
    /// The client certificate, which was to stand in for a server key, does not.
    CertificateRefused(CertificateProblem),
    /// The refresh token is unknown, malformed, expired or revoked. Does not say which, so that tokens cannot be probed.
    RefreshTokenNotFoundOrExpired,
    /// The refresh token is genuine, but the project accepts it only from clients that authenticate.
    ClientAuthenticationRequired,
    /// The token is genuine, but the user's authentication is not recent or strong enough (RFC 9470). Has the requirement.
    InsufficientUserAuthentication(StepUp),
    /// The credentials are valid, but this kind of caller may not do this.
    InsufficientAccessType,
    /// The server key is valid, but has a lesser role than this one.
    InsufficientServerKey(&'static str),
    /// The server key is valid, but may not open sessions in which someone else acts as the user.
    ImpersonationNotGranted,
    /// A server key was sent by a browser.
    ServerKeyInBrowser,
    /// A request with a cookie comes from a page of another origin, or from a client that does not show where it comes from.
    CrossOriginRequest,
    /// A request has several values of one cookie, or cookies of several projects.
    AmbiguousCookie,
    /// The session does not exist, or the caller may not see it.
    SessionNotFound,
    /// A user's request concerns another user.
    NotYourUser,
    /// The current session cannot be revoked by id; it ends by signing out.
    CannotDeleteCurrentSession,
    /// The user has reached the project's session limit.
    SessionLimitReached,
    /// The project does not exist, or none was named.
    ProjectNotFound,
    /// The feed has more revocations of the project than the subscriber can hold.
    TooManyEntries {
        /// How many there are.
        entries: usize,
        /// How many the subscriber can hold.
        entries_max: usize,
    },
    /// The request does not fit its schema.
    Schema(Vec<Violation>),
    /// Too many requests.
    RateLimited {
        /// How long to wait before trying again.
        retry_after: Duration,
    },
}

/// Why a client certificate of a trusted authority does not stand in for a server key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateProblem {
    /// It has no name that an operator has added, or that name was removed.
    Unknown,
    /// Its names stand for different projects or roles.
    Ambiguous,
    /// It has expired since the connection was opened.
    Expired,
}

impl Refusal {
    /// The refusal of a request with one violation.
    pub fn invalid(field: &'static str, expected: &'static str) -> Self {
        Self::Schema(vec![Violation { field, expected }])
    }

    /// Whether it says that there is no genuine token of the project: nobody is signed in by what was presented.
    #[must_use]
    pub const fn is_of_no_session(&self) -> bool {
        matches!(
            self,
            Self::CredentialsMissing
                | Self::UnparsableAccessToken
                | Self::RefreshTokenNotFoundOrExpired
                | Self::WrongProject { .. }
                | Self::ProjectNotFound
        )
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
