//! Verifies sessiond's access tokens where they are used, without a call per request, and rejects the tokens of a revoked
//! session within milliseconds of the revocation.
//!
//! A guard caches the project's public keys and follows its feed of revocations. It accepts a token if the signature is
//! valid, the token has not expired, its session is not revoked, and the feed is recent enough. If it is not, [`FailMode`]
//! decides: a guard that is cut off from sessiond knows it.
//!
//! ```no_run
//! # async fn example(server_key: String) -> Result<(), sessiond_guard::ConnectError> {
//! use sessiond_guard::{Guard, GuardOptions};
//!
//! let options = GuardOptions::new("http://sessiond:8080", "shop", "https://sessions.example.org", server_key);
//! let guard = Guard::connect(options).await?;
//! let app = axum::Router::<()>::new().layer(guard.layer());
//! # drop(app); Ok(()) }
//! ```
//!
//! Behind the layer, a request carries a [`Principal`] in its extensions.
//!
//! Start with:
//!
//! - [`Guard`]: connect, put it in front of a service with [`Guard::layer`], or call [`Guard::verify`] yourself.
//! - [`GuardLayer::require`]: routes that need a recent or a strong authentication.
//! - [`GuardOptions`]: where sessiond is, how stale the feed may be, and what happens when it is.
//! - [`Rejection`]: why a request is rejected, and what the client receives.

#![warn(missing_debug_implementations)]

mod ask;
mod follow;
mod guard;
mod jwks_cache;
mod jwks_reader;
mod layer;
mod options;
mod principal;
mod rejection;
mod revocations;
mod state;
mod stats;
mod time;
mod trace;
mod upstream;
#[cfg(test)]
mod vectors;

pub use guard::Guard;
pub use layer::GuardBody;
pub use layer::GuardFuture;
pub use layer::GuardLayer;
pub use layer::GuardService;
pub use options::CACHED_TOKENS;
pub use options::ClientCertificate;
pub use options::ConnectError;
pub use options::FailMode;
pub use options::GuardOptions;
pub use options::MAX_ENTRIES;
pub use options::MAX_STALENESS_MIN;
pub use principal::Principal;
pub use rejection::Rejection;
pub use rejection::UnavailableReason;
pub use sessiond_core::reason::Reason;
pub use sessiond_core::session::policy::InvalidStepUp;
pub use sessiond_core::session::policy::StepUp;
pub use stats::Stats;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
