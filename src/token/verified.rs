//! Access tokens whose signature was checked a moment ago. A client shows the same token with every request for as long as
//! it lasts; the second time, its digest is enough.

use std::sync::Arc;

use super::access::Claims;
use super::access::Issuer;
use super::access::Presented;
use super::access::Rejection;
use super::fingerprint;
use super::keys::SigningKey;
use super::slots::Slots;
use crate::id::KeyId;

/// The most tokens that are remembered: some 20 MB.
const TOKENS_MAX: usize = 16_384;

/// A token whose signature is good.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The key that it was signed with.
    pub key: KeyId,
    /// What it says.
    pub claims: Arc<Claims>,
}

/// Genuine tokens by the SHA-256 of their whole text. Clones are one and the same.
///
/// Only what a signature has vouched for is in here. Whether the key still counts, and whether the token has expired, are
/// questions of the moment, and asked anew each time.
#[derive(Clone)]
pub struct VerifiedTokens(Arc<Slots<Verified>>);

impl Default for VerifiedTokens {
    fn default() -> Self {
        Self(Arc::new(Slots::new(TOKENS_MAX)))
    }
}

impl VerifiedTokens {
    /// A token that was found genuine before.
    pub fn find(&self, text: &str) -> Option<Verified> {
        self.0.find(&fingerprint(text.as_bytes()))
    }

    /// Checks everything but the time, as [`Presented::verify`] does; the caller has looked the key up by its id.
    ///
    /// # Errors
    ///
    /// As [`Rejection`] says.
    pub fn verify(
        &self,
        presented: &Presented<'_>,
        key: &SigningKey,
        issuer: &Issuer,
    ) -> Result<Arc<Claims>, Rejection> {
        let digest = fingerprint(presented.text().as_bytes());
        if let Some(known) = self.0.find(&digest) {
            return Ok(known.claims);
        }
        let claims = Arc::new(presented.verify(key.verifying(), issuer)?);
        self.0.insert(digest, Verified { key: key.id(), claims: Arc::clone(&claims) });
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::token::access::tests::claims;
    use crate::token::access::tests::issuer;
    use crate::token::access::tests::key;

    #[test]
    fn what_is_remembered_is_the_whole_token_and_only_a_genuine_one() {
        let (issuer, key, claims) = (issuer(), key(), claims());
        let token = key.sign(&claims).expect("signs");
        let verified = VerifiedTokens::default();
        let verify = |text: &str| verified.verify(&Presented::parse(text)?, &key, &issuer);
        let first = verify(token.expose_secret()).expect("genuine");
        assert!(Arc::ptr_eq(&first, &verify(token.expose_secret()).expect("again")), "no second check");
        let found = verified.find(token.expose_secret()).expect("known by now");
        assert!(found.key == key.id() && Arc::ptr_eq(&found.claims, &first));

        // The same claims under another signature, and another's claims under this one.
        let (body, signature) = token.expose_secret().rsplit_once('.').expect("a signature");
        let cut = format!("{body}.{}", &signature[..signature.len() - 2]);
        let other = key.sign(&Claims { sub: "eve".into(), ..claims }).expect("signs");
        let (eve, _) = other.expose_secret().rsplit_once('.').expect("a signature");
        for forged in [cut, format!("{body}.{}", "A".repeat(86)), format!("{eve}.{signature}")] {
            assert_eq!(verify(&forged), Err(Rejection::Unparsable));
            assert_eq!(verify(&forged), Err(Rejection::Unparsable), "and it stays so");
            assert_eq!(verified.find(&forged), None);
        }
    }
}
