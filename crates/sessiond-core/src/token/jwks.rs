//! JWK Sets: the public halves of the signing keys (RFC 7517, RFC 7518 §6.2).

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::decode;
use super::encode;
use super::keys::Keyring;
use super::keys::SigningKey;
use super::keys::VerifyingKey;
use super::schedule::Schedule;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;

/// How long verifiers may cache a JWK Set. A new key is published at least this long before it signs.
///
/// Too long, and rotations take longer and a revoked key stays trusted for longer; too short, and verifiers send more requests.
pub const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// A JWK Set (RFC 7517 §5).
#[derive(Debug, Serialize)]
pub struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Debug, Serialize)]
struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    #[serde(rename = "use")]
    usage: &'static str,
    kid: String,
    x: String,
    y: String,
}

/// The keys of one project that verifiers need now: those that sign, those that will, and retired ones whose tokens may not have
/// expired. `None` for an unknown project.
pub fn of_project(keyring: &Keyring, project: &ProjectId, now: Timestamp, token_ttl_max: Duration) -> Option<JwkSet> {
    let keys = keyring.signing_of(project)?;
    Some(ordered(keys.filter_map(|(schedule, key)| published(schedule, key, now, token_ttl_max)).collect()))
}

/// The same for all projects, for verifiers of a single-project installation.
pub fn of_all(keyring: &Keyring, now: Timestamp, token_ttl_max: Duration) -> JwkSet {
    let sets = keyring.projects().filter_map(|project| of_project(keyring, project, now, token_ttl_max));
    ordered(sets.flat_map(|set| set.keys).collect())
}

/// The next moment at which a key leaves a set because its last token has expired; `None` if no key will.
pub fn next_change(keyring: &Keyring, now: Timestamp, token_ttl_max: Duration) -> Option<Timestamp> {
    let keys = keyring.projects().filter_map(|project| keyring.signing_of(project)).flatten();
    keys.filter_map(|(schedule, _)| schedule.verifies_until(token_ttl_max)).filter(|end| now < *end).min()
}

/// Sorts the keys, so that equal sets have equal documents.
fn ordered(mut keys: Vec<Jwk>) -> JwkSet {
    keys.sort_by(|one, other| one.kid.cmp(&other.kid));
    JwkSet { keys }
}

fn published(schedule: &Schedule, key: &SigningKey, now: Timestamp, token_ttl_max: Duration) -> Option<Jwk> {
    if !schedule.verifies_at(now, token_ttl_max) {
        return None;
    }
    let (x, y) = key.verifying().coordinates();
    let kid = key.id().to_string();
    Some(Jwk { kty: "EC", crv: "P-256", alg: "ES256", usage: "sig", kid, x: encode(x), y: encode(y) })
}

/// The keys of one project, parsed from its JWK Set.
#[derive(Debug, Default)]
pub struct VerifyingKeys(HashMap<KeyId, VerifyingKey>);

/// The document is not a JWK Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the document is not a JWK Set")]
pub struct MalformedJwks;

#[derive(Deserialize)]
struct AnySet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct AnyKey {
    kty: String,
    crv: String,
    kid: String,
    x: String,
    y: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
}

impl VerifyingKeys {
    /// Parses a JWK Set. Skips keys that are not ES256 signature keys with a well-formed `kid`, as RFC 7517 §5 recommends.
    ///
    /// # Errors
    ///
    /// Fails if the document is not a JWK Set.
    pub fn read(text: &[u8], project: &ProjectId) -> Result<Self, MalformedJwks> {
        let set: AnySet = serde_json::from_slice(text).map_err(|_| MalformedJwks)?;
        let keys = set.keys.into_iter().filter_map(|key| verifying(serde_json::from_value(key).ok()?, project));
        Ok(Self(keys.map(|key| (key.id(), key)).collect()))
    }

    /// The key with this `kid`.
    pub fn find(&self, id: KeyId) -> Option<&VerifyingKey> {
        self.0.get(&id)
    }

    /// Whether the set has no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn verifying(key: AnyKey, project: &ProjectId) -> Option<VerifyingKey> {
    let is_ours = key.kty == "EC"
        && key.crv == "P-256"
        && key.alg.is_none_or(|alg| alg == "ES256")
        && key.usage.is_none_or(|usage| usage == "sig");
    let id = KeyId::parse(&key.kid).filter(|_| is_ours)?;
    VerifyingKey::from_coordinates(id, project.clone(), &decode(&key.x)?, &decode(&key.y)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::token::access::tests::key;

    #[test]
    fn a_set_round_trips_and_other_keys_are_skipped() {
        let (one, other) = (key(), key());
        let project = one.project().clone();
        let ours = |key: &SigningKey| {
            let (x, y) = key.verifying().coordinates();
            json!({"kty": "EC", "crv": "P-256", "kid": key.id().to_string(), "x": encode(x), "y": encode(y)})
        };
        let with = |name: &str, value: &str| {
            let mut key = ours(&one);
            key[name] = value.into();
            key
        };
        let set = json!({"keys": [ours(&one), ours(&other), {"kty": "RSA", "n": "AQAB", "e": "AQAB"}]});
        let read = VerifyingKeys::read(set.to_string().as_bytes(), &project).expect("a set");
        for key in [&one, &other] {
            let found = read.find(key.id()).expect("is there");
            assert_eq!(found.coordinates(), key.verifying().coordinates());
            assert_eq!(found.project(), &project);
        }
        for passed_over in [
            with("kty", "OKP"),
            with("crv", "P-384"),
            with("alg", "ES384"),
            with("use", "enc"),
            with("kid", "1"),
            with("x", &encode(&[1; 32])),
            with("y", "AA"),
            json!("key"),
        ] {
            let set = json!({"keys": [passed_over]}).to_string();
            assert!(VerifyingKeys::read(set.as_bytes(), &project).expect("a set").is_empty(), "{set}");
        }
        for no_set in ["", "[]", "{}", r#"{"keys": {}}"#, "<html>"] {
            assert!(VerifyingKeys::read(no_set.as_bytes(), &project).is_err(), "{no_set}");
        }
    }
}
