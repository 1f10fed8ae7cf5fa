//! The user that an accepted token belongs to.

use std::fmt;

use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::token::access::Claims;
use sessiond_core::token::verified::VerifiedToken;

/// The signed-in user of an accepted access token. Cheap to clone; clones share state.
#[derive(Clone, PartialEq)]
pub struct Principal(VerifiedToken);

impl Principal {
    pub(super) const fn new(token: VerifiedToken) -> Self {
        Self(token)
    }

    /// The user's id, as the host application chose it.
    pub fn user_id(&self) -> &UserId {
        self.0.user()
    }

    /// The token's session.
    pub fn session_id(&self) -> SessionId {
        self.0.session()
    }

    /// The token's project.
    pub fn project_id(&self) -> &ProjectId {
        self.0.project()
    }

    /// Who acts as the user, in an impersonation.
    pub fn impersonator_id(&self) -> Option<&str> {
        self.0.impersonator()
    }

    /// When the token expires. Half-open: at this moment exactly, it has expired.
    pub fn expires_at(&self) -> Timestamp {
        self.0.expires_at()
    }

    /// All claims; those of the host application are in [`Claims::own`].
    pub fn claims(&self) -> &Claims {
        self.0.claims()
    }
}

/// For code that uses `sessiond-core`.
impl From<Principal> for VerifiedToken {
    fn from(Principal(token): Principal) -> Self {
        token
    }
}

/// Omits the user: the output may reach a log.
impl fmt::Debug for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Principal")
            .field("project", self.project_id())
            .field("session", &self.session_id())
            .finish_non_exhaustive()
    }
}
