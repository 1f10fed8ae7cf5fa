//! The rules of sessions. Pure: no I/O, no clock, no async. A rule takes values and returns a decision, which the store records.
//! A detected theft is such a decision and not an error, so no rollback can lose it.

pub mod backchannel;
pub mod change;
pub mod create;
pub mod device;
pub mod epoch;
pub mod lifecycle;
pub mod limit;
pub mod listing;
pub mod origin;
pub mod policy;
pub mod refusal;
pub mod retention;
pub mod revoked;
pub mod rotation;
pub mod violation;

pub use epoch::Epoch;
pub use lifecycle::EndedBy;
pub use lifecycle::RevokeReason;
pub use lifecycle::Session;
pub use origin::Origin;
pub use policy::Policy;
pub use refusal::CertificateProblem;
pub use refusal::Refusal;
