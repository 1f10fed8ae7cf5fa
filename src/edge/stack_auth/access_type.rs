//! The kind of caller that a request claims to be.

use crate::store::Role;

/// The kind of caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessType {
    /// A client: a user's device.
    Client,
    /// A service.
    Server,
    /// A service with an admin key.
    Admin,
}

impl AccessType {
    /// Parses a name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Client, Self::Server, Self::Admin].into_iter().find(|one| one.name() == name)
    }

    /// Its name on the wire.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Admin => "admin",
        }
    }

    /// The least role that the key of such a caller must have. The token of an impersonation names the access type, so a lesser key
    /// must not pass for an admin's.
    pub(super) const fn role(self) -> Role {
        match self {
            Self::Client | Self::Server => Role::Service,
            Self::Admin => Role::Admin,
        }
    }
}
