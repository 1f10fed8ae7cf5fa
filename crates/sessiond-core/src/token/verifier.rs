//! Verifies access tokens, in the server and in other services alike.
//!
//! A client sends the same token with every request until it expires. Its signature is checked the first time, unless this
//! process issued the token; after that the token is found by its digest.

use std::fmt;
use std::sync::Arc;

use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use super::access::Claims;
use super::access::Issuer;
use super::access::RESERVED_CLAIMS;
use super::fingerprint;
use super::fingerprint_cache::Fingerprint;
use super::fingerprint_cache::FingerprintCache;
use super::jws::SignError;
use super::keys::SigningKey;
use super::keys::VerifyingKey;
use super::unverified::LENGTH_MAX;
use super::unverified::UnverifiedToken;
use super::unverified::check;
use super::verified::VerifiedToken;
use super::verified::VerifyError;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;

/// At most how many tokens are cached: about 30 MB. Those that were not used lately are evicted first.
pub const TOKENS_MAX: usize = 16_384;

/// Verifies the signature, the issuer and the audience of access tokens, and caches those that verified or were
/// issued here. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct AccessVerifier {
    issuer: Issuer,
    verified: Arc<FingerprintCache<VerifiedToken>>,
}

/// A parsed token that names its key; see [`AccessVerifier::read`].
pub enum Candidate<'a> {
    /// It verified before, or was issued here.
    Verified(VerifiedToken),
    /// Only its header was parsed.
    Unverified(UnverifiedToken<'a>, Fingerprint),
}

/// Omits the token's text: the output may reach a log.
impl fmt::Debug for Candidate<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Candidate").field("key", &self.key()).finish_non_exhaustive()
    }
}

impl Candidate<'_> {
    /// The key that the token names.
    pub fn key(&self) -> KeyId {
        match self {
            Self::Verified(token) => token.key(),
            Self::Unverified(presented, _) => presented.key(),
        }
    }
}

impl fmt::Debug for AccessVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessVerifier").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl AccessVerifier {
    /// Verifies the tokens of one issuer.
    pub fn new(issuer: Issuer) -> Self {
        Self::with_cache(issuer, TOKENS_MAX)
    }

    /// The same, caching about this many tokens that verified.
    pub fn with_cache(issuer: Issuer, tokens_max: usize) -> Self {
        Self { issuer, verified: Arc::new(FingerprintCache::new(tokens_max)) }
    }

    /// Looks the token up in the cache; if it is not there, reads its header.
    ///
    /// # Errors
    ///
    /// [`VerifyError::Unparsable`].
    pub fn read<'a>(&self, text: &'a str) -> Result<Candidate<'a>, VerifyError> {
        let digest = fingerprint(text.as_bytes());
        match self.verified.find(&digest) {
            Some(token) => Ok(Candidate::Verified(token)),
            None => Ok(Candidate::Unverified(UnverifiedToken::parse(text)?, digest)),
        }
    }

    /// Verifies a token by the key that it names: everything except the time. Returns at once if it verified before.
    ///
    /// # Errors
    ///
    /// [`VerifyError::Unparsable`], [`VerifyError::WrongProject`].
    pub fn verify(&self, candidate: Candidate<'_>, key: &VerifyingKey) -> Result<VerifiedToken, VerifyError> {
        match candidate {
            Candidate::Verified(token) => Ok(token),
            Candidate::Unverified(presented, digest) => {
                let token = VerifiedToken::new(presented.verify(key, &self.issuer)?, presented.key())?;
                self.verified.insert(digest, token.clone());
                Ok(token)
            }
        }
    }

    /// Verifies a token by the key that it names, and returns the session that it belongs to: everything that a sign-out
    /// needs. A user id that is no longer valid does not matter here.
    ///
    /// # Errors
    ///
    /// As [`AccessVerifier::verify`].
    pub fn verify_session(
        &self,
        candidate: Candidate<'_>,
        key: &VerifyingKey,
    ) -> Result<(ProjectId, SessionId), VerifyError> {
        let (presented, digest) = match candidate {
            Candidate::Verified(token) => return Ok((token.project().clone(), token.session())),
            Candidate::Unverified(presented, digest) => (presented, digest),
        };
        let claims = presented.verify(key, &self.issuer)?;
        let project = ProjectId::parse(&claims.project_id).ok_or(VerifyError::Unparsable)?;
        let session = SessionId::parse(&claims.sid).ok_or(VerifyError::Unparsable)?;
        if let Ok(token) = VerifiedToken::new(claims, presented.key()) {
            self.verified.insert(digest, token);
        }
        Ok((project, session))
    }

    /// Signs the claims of an access token, and caches the token as one that verified: a signature takes longer to check than to
    /// make. A token that would not verify is not cached.
    ///
    /// # Errors
    ///
    /// See [`SignError`].
    pub fn issue(&self, key: &SigningKey, claims: Claims) -> Result<SecretString, SignError> {
        let token = key.sign(&claims)?;
        let text = token.expose_secret();
        // Then the token may have one name twice, and every verifier refuses it.
        let is_ambiguous = claims.own.keys().any(|name| RESERVED_CLAIMS.contains(&name.as_str()));
        if text.len() <= LENGTH_MAX && !is_ambiguous {
            let claims = check(claims, key.project(), &self.issuer);
            if let Ok(verified) = claims.and_then(|claims| VerifiedToken::new(claims, key.id())) {
                self.verified.insert_unless_full(fingerprint(text.as_bytes()), verified);
            }
        }
        Ok(token)
    }

    /// Parses a token without checking its signature: for a token that its issuer has confirmed, or to say what is wrong
    /// with one whose key is unknown. The result is not cached.
    ///
    /// # Errors
    ///
    /// [`VerifyError::Unparsable`], [`VerifyError::WrongProject`].
    pub fn parse_unverified(&self, text: &str, project: &ProjectId) -> Result<VerifiedToken, VerifyError> {
        let presented = UnverifiedToken::parse(text)?;
        VerifiedToken::new(presented.unverified(project, &self.issuer)?, presented.key())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::token::access::Actor;
    use crate::token::access::tests::claims;
    use crate::token::access::tests::issuer;
    use crate::token::access::tests::key;

    #[test]
    fn only_tokens_that_verified_are_cached() {
        let (key, claims) = (key(), claims());
        let token = key.sign(&claims).expect("signs");
        let verifier = AccessVerifier::new(issuer());
        let verify = |text: &str| verifier.verify(verifier.read(text)?, key.verifying());
        let find = |text: &str| match verifier.read(text) {
            Ok(Candidate::Verified(token)) => Some(token),
            Ok(Candidate::Unverified(..)) | Err(_) => None,
        };
        assert_eq!(find(token.expose_secret()), None);
        let first = verify(token.expose_secret()).expect("genuine");
        let again = verify(token.expose_secret()).expect("again");
        assert!(Arc::ptr_eq(&first.0, &again.0), "no second check");
        let found = find(token.expose_secret()).expect("cached");
        assert!(found.key() == key.id() && Arc::ptr_eq(&found.0, &first.0));

        // The same claims under another signature, and another's claims under this one.
        let (body, signature) = token.expose_secret().rsplit_once('.').expect("a signature");
        let cut = format!("{body}.{}", &signature[..signature.len() - 2]);
        let other = key.sign(&Claims { sub: "eve".into(), ..claims }).expect("signs");
        let (eve, _) = other.expose_secret().rsplit_once('.').expect("a signature");
        for forged in [cut, format!("{body}.{}", "A".repeat(86)), format!("{eve}.{signature}")] {
            assert_eq!(verify(&forged), Err(VerifyError::Unparsable));
            assert_eq!(verify(&forged), Err(VerifyError::Unparsable), "again");
            assert_eq!(find(&forged), None);
        }
    }

    #[test]
    fn a_token_that_was_issued_here_is_cached_if_it_would_verify() {
        let (key, elsewhere) = (key(), Issuer::new("https://evil.example"));
        let own = |own: serde_json::Value| own.as_object().expect("an object").clone();
        let full = Claims {
            auth_time: Some(900),
            acr: Some("urn:example:mfa".into()),
            amr: vec!["pwd".into(), "otp".into()],
            act: Some(Actor { sub: "support".into() }),
            session_epoch: 2,
            own: own(json!({"number": 51.248_178_375_505_404, "nested": {"list": [1, -0.0, null, "a\u{2028}"]}})),
            ..claims()
        };
        for (issued, is_cached) in [
            (claims(), true),
            (full, true),
            (Claims { sub: String::new(), ..claims() }, false),
            (Claims { sid: "none".into(), ..claims() }, false),
            (Claims { aud: "other".into(), ..claims() }, false),
            (Claims { iss: elsewhere.of("demo"), ..claims() }, false),
            (Claims { epoch: [1 << 53, 0], ..claims() }, false),
            (Claims { own: own(json!({"scope": "all", "sub": "eve"})), ..claims() }, false),
            (Claims { own: own(json!({"long": "x".repeat(LENGTH_MAX)})), ..claims() }, false),
        ] {
            let (here, there) = (AccessVerifier::new(issuer()), AccessVerifier::new(issuer()));
            let token = here.issue(&key, issued.clone()).expect("signs");
            let text = token.expose_secret();
            assert_eq!(matches!(here.read(text), Ok(Candidate::Verified(_))), is_cached, "{issued:?}");
            let verify = |verifier: &AccessVerifier| verifier.verify(verifier.read(text)?, key.verifying());
            let verified = verify(&there);
            assert_eq!(verified.is_ok(), is_cached, "{issued:?}");
            assert_eq!(verify(&here), verified, "the same as for one who checks it: {issued:?}");
        }
    }

    #[test]
    fn for_a_sign_out_the_session_is_enough() {
        let (key, verifier) = (key(), AccessVerifier::new(issuer()));
        let expected = Ok((key.project().clone(), SessionId::parse(&claims().sid).expect("an id")));
        for sub in ["ada", "", "me", "a\nb"] {
            let text = key.sign(&Claims { sub: sub.into(), ..claims() }).expect("signs");
            let text = text.expose_secret();
            let session = || verifier.verify_session(verifier.read(text)?, key.verifying());
            assert_eq!((session(), session()), (expected.clone(), expected.clone()), "{sub:?}");
            let token = verifier.read(text).and_then(|candidate| verifier.verify(candidate, key.verifying()));
            assert_eq!(token.is_ok(), sub == "ada", "{sub:?}: for anything else, the user counts");
            let (body, _) = text.rsplit_once('.').expect("a signature");
            let forged = format!("{body}.{}", "A".repeat(86));
            let session =
                verifier.read(&forged).and_then(|candidate| verifier.verify_session(candidate, key.verifying()));
            assert_eq!(session, Err(VerifyError::Unparsable));
        }
        let text = key.sign(&Claims { sid: "none".into(), ..claims() }).expect("signs");
        let candidate = verifier.read(text.expose_secret()).expect("a token");
        assert_eq!(verifier.verify_session(candidate, key.verifying()), Err(VerifyError::Unparsable));
    }

    #[test]
    fn expiry_and_project_are_checked_separately() {
        let key = key();
        let text = key.sign(&claims()).expect("signs");
        let verifier = AccessVerifier::new(issuer());
        let token = verifier.verify(verifier.read(text.expose_secret()).expect("a token"), key.verifying());
        let token = token.expect("genuine");
        assert_eq!(token.check_expiry(token.expires_at() - std::time::Duration::from_micros(1)), Ok(()));
        assert_eq!(token.check_expiry(token.expires_at()), Err(VerifyError::Expired(token.clone())), "half-open");
        assert_eq!(token.check_project(key.project()), Ok(()));
        let other = ProjectId::parse("other").expect("a name");
        let wrong = VerifyError::WrongProject { expected: "other".into(), actual: "demo".into() };
        assert_eq!(token.check_project(&other), Err(wrong));
        assert!(!format!("{token:?}").contains("ada"), "no user in a log");
    }
}
