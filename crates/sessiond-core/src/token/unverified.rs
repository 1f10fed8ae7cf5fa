//! An access token before its signature is checked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;

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

/// The longest token that is read, in bytes. Ours stay below it: what the host application
/// adds is bounded.
pub const LENGTH_MAX: usize = 16 * 1024;

/// A token whose header was read, and nothing else: it says which key to look for.
pub struct UnverifiedToken<'a> {
    text: &'a str,
    key: KeyId,
}

impl<'a> UnverifiedToken<'a> {
    /// Reads the header: ES256, `typ: at+jwt`, a `kid` of ours in form, no `crit`.
    ///
    /// # Errors
    ///
    /// [`VerifyError::Unparsable`] for anything else, without a word on what exactly: that would help only a forger.
    pub fn parse(text: &'a str) -> Result<Self, VerifyError> {
        if text.len() > LENGTH_MAX {
            return Err(VerifyError::Unparsable);
        }
        let header = jsonwebtoken::decode_header(text).map_err(|_| VerifyError::Unparsable)?;
        let typed = header.typ.as_deref().is_some_and(|typ| {
            // RFC 7515 §4.1.9: the `application/` may be left out, and media types ignore case.
            typ.eq_ignore_ascii_case(TYPE) || typ.eq_ignore_ascii_case("application/at+jwt")
        });
        // RFC 7515 §4.1.11: what `crit` names must be understood, and we understand none.
        let key = header.kid.as_deref().and_then(KeyId::parse);
        match key {
            Some(key) if typed && header.alg == Algorithm::ES256 && header.crit.is_none() => Ok(Self { text, key }),
            _ => Err(VerifyError::Unparsable),
        }
    }

    /// The key that the token says it was signed with.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Checks everything but the time: the signature, the issuer, the audience, and that they agree on the project.
    ///
    /// # Errors
    ///
    /// As [`VerifyError`] says.
    pub fn verify(&self, key: &VerifyingKey, issuer: &Issuer) -> Result<Claims, VerifyError> {
        let claims = self.signed_by(key).ok_or(VerifyError::Unparsable)?;
        check(claims, key.project(), issuer)
    }

    /// The claims, without a check of the signature.
    ///
    /// # Errors
    ///
    /// As [`VerifyError`] says.
    pub(super) fn unverified(&self, project: &ProjectId, issuer: &Issuer) -> Result<Claims, VerifyError> {
        let (message, _) = self.text.rsplit_once('.').ok_or(VerifyError::Unparsable)?;
        check(claims(message).ok_or(VerifyError::Unparsable)?, project, issuer)
    }

    fn signed_by(&self, key: &VerifyingKey) -> Option<Claims> {
        // RFC 7515 §5.2: signed is what stands before the last dot, as it stands there.
        let (message, signature) = self.text.rsplit_once('.')?;
        let signature = decode(signature)?;
        if !key.verify_signature(message.as_bytes(), &signature) {
            return None;
        }
        let claims = claims(message)?;
        let has_one_spelling = low_s::is_low(&signature) || key.accepts_high_s(Timestamp::from_seconds(claims.iat));
        has_one_spelling.then_some(claims)
    }
}

/// What is between the dots.
fn claims(message: &str) -> Option<Claims> {
    let (_, payload) = message.split_once('.')?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

fn check(claims: Claims, project: &ProjectId, issuer: &Issuer) -> Result<Claims, VerifyError> {
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
    fn a_token_of_ours_is_believed() {
        let key = key();
        let mut said = claims();
        said.own.insert("role".into(), "authenticated".into());
        let token = key.sign(&said).expect("signs");
        let read = verify(token.expose_secret(), &key).expect("its own key");
        assert_eq!(read, said);
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
        let key = key();
        let (x, y) = key.verifying().coordinates();
        let public = [&[4], x, y].concat();
        let kid = Some(key.id().to_string());

        let hmac = Header { typ: Some(TYPE.into()), kid: kid.clone(), ..Header::new(Algorithm::HS256) };
        let confused = jsonwebtoken::encode(&hmac, &claims(), &EncodingKey::from_secret(&public)).expect("signs");
        assert_eq!(verify(&confused, &key), Err(VerifyError::Unparsable));

        for (typ, kid) in [(Some("JWT".into()), kid.clone()), (None, kid), (Some(TYPE.into()), None)] {
            let header = Header { typ, kid, ..Header::new(Algorithm::ES256) };
            let token = jsonwebtoken::encode(&header, &claims(), key.private()).expect("signs");
            assert_eq!(verify(&token, &key), Err(VerifyError::Unparsable));
        }

        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","typ":"at+jwt","kid":"{}"}}"#, key.id()));
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).expect("claims are JSON"));
        for signature in ["", "AA"] {
            assert_eq!(verify(&format!("{header}.{payload}.{signature}"), &key), Err(VerifyError::Unparsable));
        }
    }

    /// Anyone can write down `(r, n − s)` for `(r, s)`: a token has one text all the same.
    #[test]
    fn a_token_has_one_spelling() {
        let key = key();
        for second in 0..32 {
            let said = Claims { iat: second, ..claims() };
            let token = key.sign(&said).expect("signs");
            assert!(verify(token.expose_secret(), &key).is_ok());
            assert_eq!(verify(&respelled(token.expose_secret()), &key), Err(VerifyError::Unparsable), "{second}");
        }
        // But for keys that signed before this was so, up to a moment.
        let key = key.with_high_s_until(Timestamp::from_seconds(1_000));
        for (iat, is_taken) in [(999, true), (1_000, false)] {
            let token = key.sign(&Claims { iat, ..claims() }).expect("signs");
            assert_eq!(verify(&respelled(token.expose_secret()), &key).is_ok(), is_taken, "{iat}");
        }
    }

    #[test]
    fn a_damaged_token_is_refused_wherever_it_is_cut() {
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
