//! The signing keys of the vectors, and tokens under them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jwt_compact::Algorithm as _;
use jwt_compact::AlgorithmSignature as _;
use jwt_compact::alg::Es256;
use jwt_compact::alg::SigningKey as _;
use jwt_compact::alg::VerifyingKey as _;
use jwt_compact::jwk::JsonWebKey;
use serde_json::Value;
use serde_json::json;

use crate::ISSUER;
use crate::NOW;
use crate::PROJECT;

type Private = <Es256 as jwt_compact::Algorithm>::SigningKey;

/// A signing key.
pub(crate) struct Key {
    pub(crate) kid: &'static str,
    scalar: [u8; 32],
}

/// The project's two keys, and one that is not published.
pub(crate) const ONE: Key = Key { kid: "11111111-1111-4111-8111-111111111111", scalar: [0x11; 32] };
pub(crate) const TWO: Key = Key { kid: "22222222-2222-4222-8222-222222222222", scalar: [0x22; 32] };
pub(crate) const STRANGER: Key = Key { kid: "33333333-3333-4333-8333-333333333333", scalar: [0x33; 32] };

/// The order of P-256, big-endian (FIPS 186-4, D.1.2.3).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Key {
    fn private(&self) -> Private {
        Private::from_slice(&self.scalar).expect("a scalar")
    }

    /// The coordinates x and y of the public point.
    pub(crate) fn point(&self) -> ([u8; 32], [u8; 32]) {
        let public = self.private().to_verifying_key();
        let JsonWebKey::EllipticCurve { x, y, .. } = JsonWebKey::from(&public) else { unreachable!("an EC key") };
        (x.as_ref().try_into().expect("32 bytes"), y.as_ref().try_into().expect("32 bytes"))
    }

    /// The compressed point, 33 bytes.
    pub(crate) fn compressed(&self) -> Vec<u8> {
        self.private().to_verifying_key().as_bytes().into_owned()
    }

    pub(crate) fn jwk(&self) -> Value {
        let (x, y) = self.point();
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": encode(x), "y": encode(y)
        })
    }

    /// Signs a message: r and s, 32 bytes each, with the low s.
    pub(crate) fn sign(&self, message: &str) -> [u8; 64] {
        let signature = Es256.sign(&self.private(), message.as_bytes());
        let signature: [u8; 64] = signature.as_bytes().as_ref().try_into().expect("64 bytes");
        let other = other(signature);
        if signature[32..] <= other[32..] { signature } else { other }
    }

    /// The header of a genuine token.
    pub(crate) fn header(&self) -> String {
        format!(r#"{{"typ":"at+jwt","alg":"ES256","kid":"{}"}}"#, self.kid)
    }

    /// A token with this header and payload, whatever they are.
    pub(crate) fn jwt(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let message = format!("{}.{}", encode(header), encode(payload));
        format!("{message}.{}", encode(self.sign(&message)))
    }

    /// A token with these claims.
    pub(crate) fn token(&self, claims: &Claims) -> String {
        self.jwt(self.header(), claims.json())
    }
}

/// The same signature with `n − s` for `s`.
pub(crate) fn other(mut signature: [u8; 64]) -> [u8; 64] {
    let mut borrow = false;
    for (digit, order) in signature[32..].iter_mut().zip(ORDER).rev() {
        let (first, under) = order.overflowing_sub(*digit);
        let (difference, under_again) = first.overflowing_sub(borrow.into());
        (*digit, borrow) = (difference, under || under_again);
    }
    signature
}

/// The JWK Set of the project.
pub(crate) fn published() -> Value {
    json!({ "keys": [ONE.jwk(), TWO.jwk()] })
}

/// The claims of a token, each as JSON text, in order.
#[derive(Clone)]
pub(crate) struct Claims(Vec<(&'static str, String)>);

/// The session of most tokens.
pub(crate) const SESSION: &str = "01990000-0000-7000-8000-000000000001";

/// Claims as sessiond writes them.
pub(crate) fn claims() -> Claims {
    let text = |text: &str| format!("{text:?}");
    Claims(vec![
        ("iss", text(&format!("{ISSUER}/projects/{PROJECT}"))),
        ("sub", text("ada")),
        ("aud", text(PROJECT)),
        ("client_id", text(PROJECT)),
        ("iat", NOW.to_string()),
        ("exp", (NOW + 600).to_string()),
        ("jti", text("01990000-0000-7000-8000-00000000000f")),
        ("sid", text(SESSION)),
        ("epoch", "[0,3]".to_owned()),
        ("project_id", text(PROJECT)),
        ("refresh_token_id", text(SESSION)),
    ])
}

impl Claims {
    /// Sets a claim to a JSON text, in its place or at the end.
    pub(crate) fn with(&self, name: &'static str, value: impl Into<String>) -> Self {
        let mut claims = self.clone();
        match claims.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value.into(),
            None => claims.0.push((name, value.into())),
        }
        claims
    }

    /// Adds a claim at the end, even if there is one of this name.
    pub(crate) fn and(&self, name: &'static str, value: impl Into<String>) -> Self {
        let mut claims = self.clone();
        claims.0.push((name, value.into()));
        claims
    }

    pub(crate) fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|(known, _)| *known != name).cloned().collect())
    }

    /// The claims of another user and session.
    pub(crate) fn of(&self, user: &str, session: &str) -> Self {
        self.with("sub", format!("{user:?}"))
            .with("sid", format!("{session:?}"))
            .with("refresh_token_id", format!("{session:?}"))
    }

    /// The payload.
    pub(crate) fn json(&self) -> String {
        let members: Vec<String> = self.0.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    }
}
