//! The rules. Pure: no I/O, no clock, no async. Values go in, a decision comes out, and the store records it; so a
//! detected theft is a decision like any other, and a rollback cannot forget it.

/// What ends many sessions at once.
pub mod epoch;

/// What a session is, and when it is over.
#[cfg(feature = "server")]
pub mod lifecycle;

/// What is known of a session's device, and what it learns from a request.
#[cfg(feature = "server")]
pub mod device;

/// Where a request comes from, and what is kept of its description of the device.
#[cfg(feature = "server")]
pub mod origin;

/// What becomes of a presented refresh token.
#[cfg(feature = "server")]
pub mod rotation;

/// What may be asked of a new session, and the session that comes of it.
#[cfg(feature = "server")]
pub mod create;

/// What a project has set.
#[cfg(feature = "server")]
pub mod policy;

/// How many sessions a user may have.
#[cfg(feature = "server")]
pub mod limit;

/// What may be asked of a listing, and what is in it.
#[cfg(feature = "server")]
pub mod listing;

/// What may be changed of a session.
#[cfg(feature = "server")]
pub mod change;

/// How others are told that a session has ended.
#[cfg(feature = "server")]
pub mod backchannel;

/// How long what is over is kept.
#[cfg(feature = "server")]
pub mod retention;

/// What has ended before its time, for whoever verifies tokens by themselves.
pub mod revoked;

/// The faults of a request.
#[cfg(feature = "server")]
pub mod violation;

/// Why we say no.
#[cfg(feature = "server")]
pub mod refusal;

pub use epoch::Epoch;
#[cfg(feature = "server")]
pub use lifecycle::EndedBy;
#[cfg(feature = "server")]
pub use lifecycle::RevokeReason;
#[cfg(feature = "server")]
pub use lifecycle::Session;
#[cfg(feature = "server")]
pub use origin::Origin;
#[cfg(feature = "server")]
pub use policy::Policy;
#[cfg(feature = "server")]
pub use refusal::Refusal;
