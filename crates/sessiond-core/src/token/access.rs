//! Access tokens: JWTs in the profile of RFC 9068, signed with ES256, that other services verify offline.

use secrecy::SecretString;
use serde::Deserialize;
use serde::Serialize;

use super::jws::SignError;
use super::keys::SigningKey;
use crate::clock::Timestamp;

/// The `typ` of RFC 9068 §2.1. It prevents an ID token or a logout token from being accepted as an access token.
pub(super) const TYPE: &str = "at+jwt";

/// Claim names that the host application may not use.
pub const RESERVED_CLAIMS: [&str; 22] = [
    "iss",
    "sub",
    "aud",
    "client_id",
    "iat",
    "exp",
    "nbf",
    "jti",
    "sid",
    "epoch",
    "session_epoch",
    "project_id",
    "refresh_token_id",
    "auth_time",
    "acr",
    "amr",
    "act",
    "typ",
    "cnf",
    "scope",
    "azp",
    "events",
];

/// The claims of an access token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer: the installation's base URL, with the project's path.
    pub iss: String,
    /// The user.
    pub sub: String,
    /// The audience: the project.
    pub aud: String,
    /// The OAuth client (RFC 9068 §2.2): the project.
    pub client_id: String,
    /// When it was issued, in seconds since the Unix epoch.
    pub iat: i64,
    /// When it expires, in seconds since the Unix epoch. Half-open (RFC 7519 §4.1.4).
    pub exp: i64,
    /// The token's id.
    pub jti: String,
    /// The session.
    pub sid: String,
    /// The project's and the user's epoch when the session was opened.
    pub epoch: [i64; 2],
    /// The session's own epoch: raising it supersedes the tokens issued before. Absent means 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session_epoch: i64,
    /// The project.
    pub project_id: String,
    /// The session again, by the name that Stack Auth clients expect.
    pub refresh_token_id: String,
    /// When the user authenticated, in seconds since the Unix epoch (OpenID Connect Core §2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<i64>,
    /// The authentication context class reference (OpenID Connect Core §2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    /// The authentication methods (RFC 8176).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub amr: Vec<String>,
    /// Who acts as the user, in an impersonation (RFC 8693 §4.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Actor>,
    /// The host application's claims. They have no effect in sessiond.
    #[serde(flatten)]
    pub own: serde_json::Map<String, serde_json::Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Who acts as the user (RFC 8693 §4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Map<String, serde_json::Value>")]
pub struct Actor {
    /// The impersonator's id, as the host application chose it.
    pub sub: String,
}

impl TryFrom<serde_json::Map<String, serde_json::Value>> for Actor {
    type Error = &'static str;

    /// By way of a map, so that everything in it is read as strictly as the other claims are.
    fn try_from(mut members: serde_json::Map<String, serde_json::Value>) -> Result<Self, &'static str> {
        match members.remove("sub") {
            Some(serde_json::Value::String(sub)) => Ok(Self { sub }),
            _ => Err("`act` must have a `sub`, as text"),
        }
    }
}

impl Claims {
    /// Whether the token has expired at this moment. Half-open: at `exp` exactly, it has (RFC 7519 §4.1.4).
    pub fn expired_at(&self, now: Timestamp) -> bool {
        Timestamp::from_seconds(self.exp) <= now
    }

    /// Whether every language can represent its integers: in JavaScript those up to 2⁵³ − 1 are exact.
    pub(super) fn has_safe_integers(&self) -> bool {
        let [project, user] = self.epoch;
        let all = [self.iat, self.exp, project, user, self.session_epoch, self.auth_time.unwrap_or_default()];
        all.iter().all(|number| number.unsigned_abs() < 1 << 53)
    }
}

/// The installation's base URL. With a project's path appended, it is the `iss` of the project's tokens.
#[derive(Clone, Debug)]
pub struct Issuer(String);

impl Issuer {
    /// The issuer with this base URL. A trailing slash is ignored.
    pub fn new(base: &str) -> Self {
        Self(base.trim_end_matches('/').to_owned())
    }

    /// The base URL, without a trailing slash.
    pub fn base(&self) -> &str {
        &self.0
    }

    /// The `iss` of a project's tokens. The JWK Set is below it, at `/.well-known/jwks.json`.
    pub fn of(&self, project: &str) -> String {
        format!("{}/projects/{project}", self.0)
    }
}

impl SigningKey {
    /// Signs the claims.
    ///
    /// # Errors
    ///
    /// See [`SignError`].
    pub fn sign(&self, claims: &Claims) -> Result<SecretString, SignError> {
        self.sign_jwt(TYPE, claims)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::id::ProjectId;

    pub(in crate::token) fn key() -> SigningKey {
        SigningKey::generate(ProjectId::parse("demo").expect("a name")).0
    }

    pub(in crate::token) fn issuer() -> Issuer {
        Issuer::new("https://sessions.example.org/")
    }

    pub(in crate::token) fn claims() -> Claims {
        Claims {
            iss: issuer().of("demo"),
            sub: "ada".into(),
            aud: "demo".into(),
            client_id: "demo".into(),
            iat: 1_000,
            exp: 1_600,
            jti: "j".into(),
            sid: "018bcfe5-6800-7000-8000-000000000001".into(),
            epoch: [0, 3],
            session_epoch: 0,
            project_id: "demo".into(),
            refresh_token_id: "018bcfe5-6800-7000-8000-000000000001".into(),
            auth_time: None,
            acr: None,
            amr: vec![],
            act: None,
            own: serde_json::Map::new(),
        }
    }
}
