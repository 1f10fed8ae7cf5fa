//! What `sessiond` and its guard share: the names of things, the rules of sessions, and the tokens.
//!
//! Most readers want [`sessiond-guard`](https://docs.rs/sessiond-guard), which protects a service, or the server itself. This
//! crate is what both are built on, lowest module first; a module uses only those above it:
//!
//! | module | what it is | what it must never know |
//! |---|---|---|
//! | [`id`] | names: project, user, session, key | |
//! | [`backoff`], [`clock`] | waits; time and randomness | |
//! | [`pb`] | the messages and the client of `sessiond.v1` | |
//! | [`token`] | tokens and their keys; the only home of cryptography | the rules of sessions |
//! | [`session`] | the rules: values in, a decision out | I/O, async, the clock |
//! | [`reason`] | why a request is refused, in the words of the wire | |

/// The names of things: project, user, session, key.
pub mod id;

/// How long to wait before the next attempt.
pub mod backoff;

/// Time and randomness.
pub mod clock;

/// The messages and the client of `sessiond.v1`.
pub mod pb;

/// Tokens, and the keys that make them.
pub mod token;

/// The rules of sessions.
pub mod session;

/// Why a request is refused, in the words of the wire: the table that server and guard share.
pub mod reason;
