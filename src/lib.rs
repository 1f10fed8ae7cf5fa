//! The server: opens sessions, issues short access tokens and long refresh tokens, and ends a session everywhere at once.
//!
//! - To follow a request from the socket down: [`edge`].
//! - To see what the service does, a file per verb: [`app`].
//! - To see the rules: [`sessiond_core::session`].
//!
//! The modules below are in order, lowest first. A module uses only those above it in the list, and those on one floor ignore
//! each other; `tests/floors.rs` checks both. There is one road down and one road up:
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
//! | `store` | HTTP, gRPC, why anything is asked |
//! | `feed` | who may listen |
//! | `app` | which wire a request came over |
//! | `rpc` | a rule, a query |

/// The code that is generated from `proto/`.
pub mod pb;

/// Names a device after its `User-Agent`.
pub mod device;

/// Runs work at an interval.
mod every;

/// The TLS client.
mod tls;

/// Every setting, with its unit, bound and default.
pub mod config;

/// Sends requests to other services, and only to permitted ones.
pub mod outbound;

/// The log and the metrics.
pub mod telemetry;

/// Rate limits.
pub mod rates;

/// The tables, in Postgres.
pub mod store;

/// Revocations, live: read as they commit, published to subscribers.
pub mod feed;

/// What the service does, a file per verb.
pub mod app;

/// The wire: decode, one call, encode.
pub mod rpc;

/// HTTP: one port, and the whole stack on one page.
pub mod edge;
