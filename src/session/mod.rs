//! The rules. Pure: no I/O, no clock, no async. Values go in, a decision comes out, and the store records it; so a
//! detected theft is a decision like any other, and a rollback cannot forget it.

/// What a session is, and when it is over.
pub mod lifecycle;

/// Where a request comes from, and what a session learns from that.
pub mod origin;

/// What becomes of a presented refresh token.
pub mod rotation;

/// What may be asked of a new session.
pub mod opening;

/// What a project has set.
pub mod policy;

/// How many sessions a user may have.
pub mod limit;

/// What may be asked of a listing, and what is in it.
pub mod listing;

/// What may be changed of a session.
pub mod change;

/// How others are told that a session has ended.
pub mod backchannel;

/// How long what is over is kept.
pub mod retention;
/// What has ended before its time, for whoever verifies tokens by themselves.
pub mod revoked;

/// Why we say no.
pub mod refusal;

pub use lifecycle::EndedBy;
pub use lifecycle::Epoch;
pub use lifecycle::RevokeReason;
pub use lifecycle::Session;
pub use origin::Origin;
pub use policy::Policy;
pub use refusal::Refusal;
