//! Signed JWTs in the compact serialization (RFC 7515 §7.1).

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde::Serialize;

use super::encode;
use super::keys::SigningKey;
use super::low_s;

/// Signing failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign the token")]
pub enum SignError {
    /// The claims cannot be written as JSON.
    Json(#[from] serde_json::Error),
    /// The cryptographic library had no randomness or no memory.
    Library(#[from] Unspecified),
}

#[derive(Serialize)]
struct Header<'a> {
    typ: &'a str,
    alg: &'static str,
    kid: String,
}

impl SigningKey {
    /// Signs claims of any kind under a `typ`, with a low-S signature.
    ///
    /// # Errors
    ///
    /// See [`SignError`].
    pub(super) fn sign_jwt(&self, typ: &str, claims: &impl Serialize) -> Result<SecretString, SignError> {
        let header = Header { typ, alg: "ES256", kid: self.id().to_string() };
        let mut token = encode(&serde_json::to_vec(&header)?);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = self.private().sign(&SystemRandom::new(), token.as_bytes())?;
        let signature = signature.as_ref().try_into().map_err(|_| Unspecified)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(low_s::lowered(signature), &mut token);
        Ok(token.into())
    }
}
