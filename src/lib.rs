//! The session half of auth: opens sessions, hands out short access tokens and long refresh tokens, and ends a session so
//! that it is over everywhere.
//!
//! Below is the map, lowest floor first. A module uses only what stands above it in this list, and neighbours on one floor
//! ignore each other; `tests/floors.rs` sees to both. There is one road down and one road up:
//!
//! ```text
//! requests fall:  edge → tonic_rest_layer → rpc → app → store
//! rules decide:                            app ↔ session, token
//! facts rise:     Postgres → store → feed → rpc, app
//! ```
//!
//! | floor | must never know |
//! |---|---|
//! | `session` | I/O, async, the clock: values in, a decision out |
//! | `token` | sessions' rules, the database |
//! | `store` | HTTP, gRPC, why anything is asked |
//! | `feed` | who may listen |
//! | `app` | which wire a request came over |
//! | `rpc` | a rule, a query |
//! | `guard` | anything of the server but its proto |

// What things are called.

/// The names of things: project, user, session, key.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod id;

/// How long to wait before the next attempt.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod backoff;

/// Time and dice.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod clock;

/// What `proto/` compiles to.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod pb;

// What is true of sessions, for the server and the guard alike.

/// Tokens, and the keys that make them.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod token;

/// The rules.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod session;

// The world outside.

/// What a device is called.
#[cfg(feature = "server")]
pub mod device;

/// Work that is done at an interval.
#[cfg(feature = "server")]
mod every;

/// The TLS client.
#[cfg(feature = "server")]
mod tls;

/// Every setting, with its unit, bound and default.
#[cfg(feature = "server")]
pub mod config;

/// Sends requests to other services, and only to permitted ones.
#[cfg(feature = "server")]
pub mod outbound;

/// The log and the metrics.
#[cfg(feature = "server")]
pub mod telemetry;

/// How much any one caller may ask for.
#[cfg(feature = "server")]
pub mod rates;

/// Why a request is refused, in the words of the wire: the table that server and guard share.
#[cfg(any(feature = "server", feature = "guard"))]
pub mod reason;

/// What is remembered, in Postgres.
#[cfg(feature = "server")]
pub mod store;

/// Revocations, live: read as they commit, published to subscribers.
#[cfg(feature = "server")]
pub mod feed;

/// What the service does, a file per verb.
#[cfg(feature = "server")]
pub mod app;

// How it is asked.

/// The wire: decode, one call, encode.
#[cfg(feature = "server")]
pub mod rpc;

/// For other services: verifies access tokens where they are used, and knows at once which sessions have ended.
#[cfg(feature = "guard")]
pub mod guard;

/// HTTP: one port, and the whole stack on one page.
#[cfg(feature = "server")]
pub mod edge;
