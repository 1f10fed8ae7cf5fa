//! Tokens and their keys. The only module that uses cryptography; depends on neither the rules of sessions nor the database.
//!
//! | token | verified by | authenticated by |
//! |---|---|---|
//! | [`access`] | anyone, offline | a low-S ES256 signature by the project's [`keys::SigningKey`] |
//! | [`event`] | back-channel endpoints | the same, with a `typ` of its own |
//! | [`refresh`] | sessiond | a MAC by the project's [`keys::RefreshKey`] over its fields and a secret in the session's row |
//! | [`server_key`] | sessiond | its SHA-256 digest, the only part that is stored; or a [`certificate_name`] in its place |

/// Declares a value of 32 random bytes, which the database keeps as they are.
macro_rules! random_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name([u8; 32]);

        impl $name {
            /// Generates a new one.
            pub fn generate() -> Self {
                Self(crate::clock::random())
            }

            /// The one with these bytes, from the database; `None` if they are not 32.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The bytes to store.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }
    };
}

pub mod access;
pub mod bucket;
pub mod certificate_name;
pub mod event;
pub mod fingerprint_cache;
pub mod jwks;
pub mod jws;
pub mod keys;
mod low_s;
pub mod page;
pub mod refresh;
pub mod schedule;
pub mod sealing;
pub mod server_key;
pub mod unverified;
pub mod verified;
pub mod verifier;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The SHA-256 digest of some bytes, as a key for lookups.
pub fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes exactly `N` bytes from base64url. Padding and stray bits are refused, so every value has one spelling.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Checked first, so that a long text is never decoded.
    if text.len() != (N * 4).div_ceil(3) {
        return None;
    }
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}
