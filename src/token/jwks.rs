//! The public halves of the signing keys, for everyone (RFC 7517, RFC 7518 §6.2).

use std::time::Duration;

use serde::Serialize;

use super::encode;
use super::keys::Keyring;
use super::keys::SigningKey;
use super::schedule::Schedule;
use crate::clock::Timestamp;
use crate::id::ProjectId;

/// How long a verifier may keep a set before it asks again. A new key is published at least this long before it signs.
///
/// Longer and a rotation takes longer, and a revoked key is believed for longer; shorter and verifiers ask more often.
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

/// The keys of one project that a verifier may meet now: those that sign, those about to, and those retired whose
/// tokens may still live. `None` when there is no such project.
pub fn of_project(keyring: &Keyring, project: &ProjectId, now: Timestamp, token_ttl_max: Duration) -> Option<JwkSet> {
    let keys = keyring.signing_of(project)?;
    Some(ordered(keys.filter_map(|(schedule, key)| published(schedule, key, now, token_ttl_max)).collect()))
}

/// The same of every project: what a verifier of a single-project installation asks for.
pub fn of_all(keyring: &Keyring, now: Timestamp, token_ttl_max: Duration) -> JwkSet {
    let sets = keyring.projects().filter_map(|project| of_project(keyring, project, now, token_ttl_max));
    ordered(sets.flat_map(|set| set.keys).collect())
}

/// The next moment at which a key leaves a set by itself, because its last token has expired; `None` when none will.
pub fn next_change(keyring: &Keyring, now: Timestamp, token_ttl_max: Duration) -> Option<Timestamp> {
    let keys = keyring.projects().filter_map(|project| keyring.signing_of(project)).flatten();
    keys.filter_map(|(schedule, _)| schedule.verifies_until(token_ttl_max)).filter(|end| now < *end).min()
}

/// The ring has no order; the document has, so that caches see no change where there is none.
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
