//! An access token before its signature is checked.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::access::Claims;
use super::access::Issuer;
use super::access::TYPE;
use super::decode;
use super::keys::VerifyingKey;
use super::low_s;
use super::verified::VerifyError;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;

/// The longest access token that is parsed, in bytes. Genuine ones are shorter, because the host application's claims are
/// bounded.
pub const LENGTH_MAX: usize = 16 * 1024;

/// An access token of which only the header was parsed, to find its key.
pub struct UnverifiedToken<'a> {
    text: &'a str,
    key: KeyId,
}

/// Omits the token's text: the output may reach a log.
impl fmt::Debug for UnverifiedToken<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UnverifiedToken").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What counts of a header.
#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
    /// Ignored, whatever their types (RFC 7515 §4). Without this a list would be read as a header.
    #[serde(flatten)]
    _others: serde_json::Map<String, serde_json::Value>,
}

impl Header {
    fn read(text: &str) -> Option<Self> {
        let (message, _) = text.rsplit_once('.')?;
        let (header, _) = message.rsplit_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()
    }
}

impl<'a> UnverifiedToken<'a> {
    /// Parses the header: requires ES256, `typ: at+jwt`, a well-formed `kid`, and no `crit`.
    ///
    /// # Errors
    ///
    /// Returns [`VerifyError::Unparsable`] for anything else.
    pub fn parse(text: &'a str) -> Result<Self, VerifyError> {
        if text.len() > LENGTH_MAX {
            return Err(VerifyError::Unparsable);
        }
        let header = Header::read(text).ok_or(VerifyError::Unparsable)?;
        let typed = header.typ.as_deref().is_some_and(|typ| {
            // RFC 7515 §4.1.9: `application/` may be omitted, and media types are case-insensitive.
            typ.eq_ignore_ascii_case(TYPE) || typ.eq_ignore_ascii_case("application/at+jwt")
        });
        // RFC 7515 §4.1.11: extensions in `crit` must be supported, and none is.
        let key = header.kid.as_deref().and_then(KeyId::parse);
        match key {
            Some(key) if typed && header.alg == "ES256" && header.crit.is_none() => Ok(Self { text, key }),
            _ => Err(VerifyError::Unparsable),
        }
    }

    /// The key that the token names.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Verifies the signature, the issuer, the audience and the project. Does not check the expiry.
    ///
    /// # Errors
    ///
    /// Returns [`VerifyError::Unparsable`] or [`VerifyError::WrongProject`].
    pub fn verify(&self, key: &VerifyingKey, issuer: &Issuer) -> Result<Claims, VerifyError> {
        let claims = self.signed_by(key).ok_or(VerifyError::Unparsable)?;
        check(claims, key.project(), issuer)
    }

    /// Parses the claims without verifying the signature.
    ///
    /// # Errors
    ///
    /// Returns [`VerifyError::Unparsable`] or [`VerifyError::WrongProject`].
    pub(super) fn unverified(&self, project: &ProjectId, issuer: &Issuer) -> Result<Claims, VerifyError> {
        let (message, _) = self.text.rsplit_once('.').ok_or(VerifyError::Unparsable)?;
        check(claims(message).ok_or(VerifyError::Unparsable)?, project, issuer)
    }

    fn signed_by(&self, key: &VerifyingKey) -> Option<Claims> {
        // RFC 7515 §5.2: the signature covers the text before the last dot.
        let (message, signature) = self.text.rsplit_once('.')?;
        let signature = decode(signature)?;
        if !key.verify_signature(message.as_bytes(), &signature) {
            return None;
        }
        let claims = claims(message)?;
        let has_valid_s = low_s::is_low(&signature) || key.accepts_high_s(Timestamp::from_seconds(claims.iat));
        has_valid_s.then_some(claims)
    }
}

/// Decodes the payload.
fn claims(message: &str) -> Option<Claims> {
    let (_, payload) = message.split_once('.')?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Checks everything in the claims but the time.
pub(super) fn check(claims: Claims, project: &ProjectId, issuer: &Issuer) -> Result<Claims, VerifyError> {
    if !claims.has_safe_integers() {
        return Err(VerifyError::Unparsable);
    }
    if claims.aud != project.as_str() || claims.project_id != project.as_str() {
        return Err(VerifyError::WrongProject { expected: project.to_string(), actual: claims.aud });
    }
    if claims.iss != issuer.of(project.as_str()) {
        return Err(VerifyError::Unparsable);
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use jsonwebtoken::EncodingKey;
    use jsonwebtoken::Header;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::token::access::tests::claims;
    use crate::token::access::tests::issuer;
    use crate::token::access::tests::key;
    use crate::token::keys::SigningKey;
    use crate::token::low_s::tests::respelled;

    fn verify(text: &str, key: &SigningKey) -> Result<Claims, VerifyError> {
        UnverifiedToken::parse(text)?.verify(key.verifying(), &issuer())
    }

    #[test]
    fn a_genuine_token_verifies() {
        let key = key();
        let mut signed = claims();
        signed.own.insert("role".into(), "authenticated".into());
        let token = key.sign(&signed).expect("signs");
        let read = verify(token.expose_secret(), &key).expect("its own key");
        assert_eq!(read, signed);
        assert!(!read.expired_at(Timestamp::from_micros(1_599_999_999)));
        assert!(read.expired_at(Timestamp::from_seconds(1_600)), "half-open");
    }

    #[test]
    fn another_key_issuer_or_project_is_refused() {
        let (ours, theirs) = (key(), key());
        let token = ours.sign(&claims()).expect("signs");
        assert_eq!(verify(token.expose_secret(), &theirs), Err(VerifyError::Unparsable));

        let elsewhere = ours.sign(&Claims { iss: "https://evil.example/projects/demo".into(), ..claims() });
        assert_eq!(verify(elsewhere.expect("signs").expose_secret(), &ours), Err(VerifyError::Unparsable));

        let foreign = ours.sign(&Claims { aud: "other".into(), ..claims() }).expect("signs");
        let expected = VerifyError::WrongProject { expected: "demo".into(), actual: "other".into() };
        assert_eq!(verify(foreign.expose_secret(), &ours), Err(expected));
    }

    #[test]
    fn other_algorithms_and_kinds_of_token_are_refused() {
        let (key, private) = SigningKey::generate(ProjectId::parse("demo").expect("a name"));
        let private = EncodingKey::from_ec_der(&private);
        let (x, y) = key.verifying().coordinates();
        let public = [&[4], x, y].concat();
        let kid = Some(key.id().to_string());

        let hmac = Header { typ: Some(TYPE.into()), kid: kid.clone(), ..Header::new(Algorithm::HS256) };
        let confused = jsonwebtoken::encode(&hmac, &claims(), &EncodingKey::from_secret(&public)).expect("signs");
        assert_eq!(verify(&confused, &key), Err(VerifyError::Unparsable));

        for (typ, kid) in [(Some("JWT".into()), kid.clone()), (None, kid), (Some(TYPE.into()), None)] {
            let header = Header { typ, kid, ..Header::new(Algorithm::ES256) };
            let token = jsonwebtoken::encode(&header, &claims(), &private).expect("signs");
            assert_eq!(verify(&token, &key), Err(VerifyError::Unparsable));
        }

        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","typ":"at+jwt","kid":"{}"}}"#, key.id()));
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).expect("claims are JSON"));
        for signature in ["", "AA"] {
            assert_eq!(verify(&format!("{header}.{payload}.{signature}"), &key), Err(VerifyError::Unparsable));
        }
    }

    /// Anyone can compute the signature `(r, n − s)` from `(r, s)`. Only one of the two verifies.
    #[test]
    fn a_token_has_one_spelling() {
        let key = key();
        for second in 0..32 {
            let signed = Claims { iat: second, ..claims() };
            let token = key.sign(&signed).expect("signs");
            assert!(verify(token.expose_secret(), &key).is_ok());
            assert_eq!(verify(&respelled(token.expose_secret()), &key), Err(VerifyError::Unparsable), "{second}");
        }
        // Except for keys of earlier releases, up to a given time.
        let key = key.with_high_s_until(Timestamp::from_seconds(1_000));
        for (iat, is_taken) in [(999, true), (1_000, false)] {
            let token = key.sign(&Claims { iat, ..claims() }).expect("signs");
            assert_eq!(verify(&respelled(token.expose_secret()), &key).is_ok(), is_taken, "{iat}");
        }
    }

    #[test]
    fn a_truncated_token_is_refused() {
        let key = key();
        let token = key.sign(&claims()).expect("signs");
        let text = token.expose_secret();
        for cut in 0..text.len() {
            assert_eq!(verify(&text[..cut], &key), Err(VerifyError::Unparsable), "cut at {cut}");
        }
        assert_eq!(verify(&"a.".repeat(LENGTH_MAX), &key), Err(VerifyError::Unparsable));
    }

    /// In whichever crate the token is verified: serde_json needs a feature for it, which a server's other crates may turn on.
    #[test]
    fn numbers_in_the_applications_claims_are_read_as_they_were_written() {
        let (key, mut written) = (key(), claims());
        for number in [51.248_178_375_505_404, 97.453_653_200_346_85, 2.003_039_774_426_776_2e-253] {
            written.own.insert("number".into(), number.into());
            let token = key.sign(&written).expect("signs");
            let read = verify(token.expose_secret(), &key).expect("its own key");
            assert_eq!(read.own["number"].as_f64().map(f64::to_bits), Some(f64::to_bits(number)));
        }
    }
}
