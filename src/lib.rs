//! The session server: creates sessions, issues short-lived access tokens and long-lived refresh tokens, and ends a session
//! everywhere at once.
//!
//! - [`edge`]: the path of a request, from the socket down.
//! - [`app`]: the service's operations, a file per verb.
//! - [`sessiond_core::session`]: the rules.
//!
//! The modules below are in order, lowest first. A module uses only modules above it in the list, and modules on the same floor
//! do not use each other; `tests/floors.rs` checks both. Requests travel down, and revocations travel up:
//!
//! ```text
//! requests fall:     edge → tonic_rest_layer → rpc → app → store
//! rules decide:                               app ↔ sessiond_core::{session, token}
//! revocations rise:  Postgres → store → feed → rpc, app
//! ```
//!
//! | floor | must never know |
//! |---|---|
//! | `sessiond_core` | I/O, async, the database: values in, a decision out |
//! | `store` | HTTP, gRPC, the purpose of a query |
//! | `feed` | who may subscribe |
//! | `app` | which wire a request came over |
//! | `rpc` | a rule, a query |

/// Code generated from `proto/`.
pub mod pb;

/// Names a device after its `User-Agent`.
pub mod device;

/// Runs work at an interval.
mod every;

/// The TLS client.
mod tls;

/// The settings, each with its unit, bound and default.
pub mod config;

/// Sends requests to other services, only to permitted addresses.
pub mod outbound;

/// Fetches documents for an operator.
pub mod probe;

/// The log and the metrics.
pub mod telemetry;

/// Sends traces to a collector.
pub mod otlp;

/// The client's address, behind trusted proxies.
pub mod forwarded;

/// Rate limits.
pub mod rates;

/// Tokens in cookies: reads and writes them, and decides which requests may use them.
pub mod cookies;

/// Reads and writes the tables in Postgres.
pub mod store;

/// Live revocations: read as they commit, published to subscribers.
pub mod feed;

/// The service's operations, a file per verb.
pub mod app;

/// The API's handlers: decode, one call, encode.
pub mod rpc;

/// HTTP: the listeners and the stack of layers.
pub mod edge;
