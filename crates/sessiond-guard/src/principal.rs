//! Whom a token speaks for.

use std::fmt;

use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::token::access::Claims;
use sessiond_core::token::verifier::VerifiedToken;

/// A signed-in user, by an access token that was accepted. Cheap to clone; clones share state.
#[derive(Clone, PartialEq)]
pub struct Principal(VerifiedToken);

impl Principal {
    pub(super) const fn new(token: VerifiedToken) -> Self {
        Self(token)
    }

    /// The user, in the host application's own words.
    pub fn user_id(&self) -> &UserId {
        self.0.user()
    }

    /// The session that the token is of.
    pub fn session_id(&self) -> SessionId {
        self.0.session()
    }

    /// The project.
    pub fn project_id(&self) -> &ProjectId {
        self.0.project()
    }

    /// Who acts as the user, when someone does.
    pub fn impersonator_id(&self) -> Option<&str> {
        self.0.impersonator()
    }

    /// From when on the token is over.
    pub fn expires_at(&self) -> Timestamp {
        self.0.expires_at()
    }

    /// All that the token says; what the host application has put there is in [`Claims::own`].
    pub fn claims(&self) -> &Claims {
        self.0.claims()
    }
}

/// Without the user: this may reach a log.
impl fmt::Debug for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Principal")
            .field("project", self.project_id())
            .field("session", &self.session_id())
            .finish_non_exhaustive()
    }
}
