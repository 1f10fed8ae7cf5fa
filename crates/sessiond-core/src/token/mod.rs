//! Tokens and the keys that make them. The only home of the JWT crate and of cryptography; it takes plain values and
//! knows neither sessions' rules nor the database.
//!
//! | token | who reads it | what makes it genuine |
//! |---|---|---|
//! | `access` | anyone, offline | an ES256 signature by a `keys::SigningKey` of the project, in its one spelling |
//! | `event` | back-channel endpoints | the same, under a `typ` of its own |
//! | `refresh` | only us | a MAC under a `keys::RefreshKey` over its fields and a secret in the session's row |
//! | `server_key` | only us | its SHA-256 digest, which is all that is stored of it |

/// Access tokens: JWTs that other services verify by themselves.
pub mod access;

/// Logout tokens and security events: what back-channel endpoints receive when a session ends.
pub mod event;

/// Access tokens before their signature is checked.
pub mod unverified;

/// Access tokens whose signature is good.
pub mod verified;

/// Verifies access tokens, and remembers those that verified.
pub mod verifier;

/// A cache of fixed size, keyed by the SHA-256 of a text.
pub mod fingerprint_cache;

/// Refresh tokens: opaque to clients, and never stored.
pub mod refresh;

/// Page tokens: where the next page of a listing begins.
pub mod page;

/// Server keys: how an internal service shows who it is.
pub mod server_key;

/// Signing keys, refresh-token keys, and the ring that holds them.
pub mod keys;

/// When a key does what: published, signing, retired.
pub mod schedule;

/// One spelling per signature.
mod low_s;

/// Private keys at rest: sealed under a key from the configuration.
pub mod sealing;

/// The public halves, for everyone (RFC 7517).
pub mod jwks;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The SHA-256 digest of a request, to know it again.
pub fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads exactly `N` bytes; the decoder refuses padding and stray bits, so every value has one spelling.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Checked first, so that a megabyte of text is never decoded.
    if text.len() != (N * 4).div_ceil(3) {
        return None;
    }
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}
