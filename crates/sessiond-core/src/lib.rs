//! The code that the sessiond server and its guard share: identifiers, tokens, and the rules of sessions.
//!
//! To protect a service, use [`sessiond-guard`](https://docs.rs/sessiond-guard) instead. This crate is published because the
//! guard depends on it; its API changes with the server and the guard.
//!
//! Start with:
//!
//! - [`token::verifier::AccessVerifier`] verifies access tokens offline.
//! - [`pb::session_service_client::SessionServiceClient`] is the gRPC client of `sessiond.v1`.
//! - [`reason::Reason`] lists the reasons that an error response may have.
//!
//! The modules, lowest first; a module uses only those above it:
//!
//! | module | contents | must not depend on |
//! |---|---|---|
//! | [`id`] | identifiers of projects, users, sessions and keys | |
//! | [`backoff`], [`clock`] | retry delays; time and randomness | |
//! | [`pb`] | the messages and the client of `sessiond.v1` | |
//! | [`token`] | tokens, their keys, and all cryptography | the rules of sessions |
//! | [`session`] | the rules of sessions, as pure functions | I/O, async, the clock |
//! | [`reason`] | the error reasons on the wire | |

pub mod backoff;
pub mod clock;
pub mod id;
pub mod pb;
pub mod reason;
pub mod session;
pub mod token;
