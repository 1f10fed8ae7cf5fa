//! The rules. Pure: no I/O, no clock, no async. Values go in, a decision comes out, and the store records it; so a
//! detected theft is a decision like any other, and a rollback cannot forget it.

/// What ends many sessions at once.
pub mod epoch;

/// What a session is, and when it is over.
pub mod lifecycle;

/// What is known of a session's device, and what it learns from a request.
pub mod device;

/// Where a request comes from, and what is kept of its description of the device.
pub mod origin;

/// What becomes of a presented refresh token.
pub mod rotation;

/// What may be asked of a new session, and the session that comes of it.
pub mod create;

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

/// The faults of a request.
pub mod violation;

/// Why we say no.
pub mod refusal;

pub use epoch::Epoch;
pub use lifecycle::EndedBy;
pub use lifecycle::RevokeReason;
pub use lifecycle::Session;
pub use origin::Origin;
pub use policy::Policy;
pub use refusal::Refusal;
