//! Signing keys, refresh-token keys, and the keyring.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::ParsedPublicKey;
use secrecy::zeroize::Zeroizing;

use super::schedule::Schedule;
use super::schedule::Stage;
use crate::clock;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;

/// A malformed private key in the database.
#[derive(Debug, thiserror::Error)]
#[error("malformed private key: expected a P-256 key in PKCS#8")]
pub struct MalformedKey;

/// An ES256 key pair of one project.
pub struct SigningKey {
    /// Parsed once: parsing checks it against the public half, which takes as long as a signature.
    private: EcdsaKeyPair,
    verifying: VerifyingKey,
}

impl SigningKey {
    /// Generates a key pair for a project. Also returns the private half in PKCS#8, to be sealed and stored.
    pub fn generate(project: ProjectId) -> (Self, Zeroizing<Vec<u8>>) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("the library has randomness");
        let pkcs8 = pair.to_pkcs8v1().expect("a generated key can be written down");
        let private = Zeroizing::new(pkcs8.as_ref().to_vec());
        let key = Self::from_private(KeyId::from_uuid(clock::new_uuid()), project, &private);
        (key.expect("a generated key can be read back"), private)
    }

    /// Parses an unsealed private half. Derives the public half from it, and does not trust a stored one.
    ///
    /// # Errors
    ///
    /// Fails if it is not a P-256 key in PKCS#8.
    pub fn from_private(id: KeyId, project: ProjectId, pkcs8: &[u8]) -> Result<Self, MalformedKey> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map_err(|_| MalformedKey)?;
        let point: [u8; 65] = pair.public_key().as_ref().try_into().map_err(|_| MalformedKey)?;
        let verifying = VerifyingKey::from_point(id, project, point).ok_or(MalformedKey)?;
        Ok(Self { private: pair, verifying })
    }

    /// The `kid`.
    pub const fn id(&self) -> KeyId {
        self.verifying.id
    }

    /// The project whose tokens it signs.
    pub const fn project(&self) -> &ProjectId {
        &self.verifying.project
    }

    /// The public half.
    pub const fn verifying(&self) -> &VerifyingKey {
        &self.verifying
    }

    pub(super) const fn private(&self) -> &EcdsaKeyPair {
        &self.private
    }

    /// Accepts high-S signatures for tokens issued before this moment, because an earlier release signed with this key.
    #[must_use]
    pub fn with_high_s_until(mut self, until: Timestamp) -> Self {
        self.verifying.high_s_until = Some(until);
        self
    }
}

/// The public half of a signing key: an uncompressed point on P-256, 65 bytes.
pub struct VerifyingKey {
    id: KeyId,
    project: ProjectId,
    point: [u8; 65],
    /// Parsed once, because checking that a point is on the curve is expensive.
    parsed: ParsedPublicKey,
    /// Tokens issued before this moment may have a high-S signature. Usually `None`.
    high_s_until: Option<Timestamp>,
}

impl VerifyingKey {
    fn from_point(id: KeyId, project: ProjectId, point: [u8; 65]) -> Option<Self> {
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()?;
        Some(Self { id, project, point, parsed, high_s_until: None })
    }

    /// The key with these coordinates (RFC 7518 §6.2.1); `None` if the point is not on P-256.
    pub fn from_coordinates(id: KeyId, project: ProjectId, x: &[u8; 32], y: &[u8; 32]) -> Option<Self> {
        let point = [[4].as_slice(), x, y].concat().try_into().expect("one byte and twice 32");
        Self::from_point(id, project, point)
    }

    /// The `kid`.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The project whose tokens it verifies.
    pub const fn project(&self) -> &ProjectId {
        &self.project
    }

    /// The coordinates x and y of the point, 32 bytes each (RFC 7518 §6.2.1).
    pub fn coordinates(&self) -> (&[u8], &[u8]) {
        self.point[1..].split_at(32)
    }

    /// Whether a token issued at this moment may have a high-S signature.
    pub(super) fn accepts_high_s(&self, issued_at: Timestamp) -> bool {
        self.high_s_until.is_some_and(|until| issued_at < until)
    }

    /// Verifies an ES256 signature: r and s, 32 bytes each (RFC 7518 §3.4).
    pub(super) fn verify_signature(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VerifyingKey")
            .field("id", &self.id)
            .field("project", &self.project)
            .finish_non_exhaustive()
    }
}

/// The key that authenticates the refresh tokens of one project: HMAC-SHA-256.
pub struct RefreshKey {
    id: KeyId,
    project: ProjectId,
    secret: Zeroizing<[u8; 32]>,
    mac: hmac::Key,
}

impl RefreshKey {
    /// Generates a key for a project.
    pub fn generate(project: ProjectId) -> Self {
        Self::new(KeyId::from_uuid(clock::new_uuid()), project, clock::random())
    }

    /// Parses an unsealed key; `None` if it is not 32 bytes.
    pub fn from_secret(id: KeyId, project: ProjectId, secret: &[u8]) -> Option<Self> {
        Some(Self::new(id, project, secret.try_into().ok()?))
    }

    fn new(id: KeyId, project: ProjectId, secret: [u8; 32]) -> Self {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Self { id, project, secret: Zeroizing::new(secret), mac }
    }

    /// The key's id.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The project whose tokens it authenticates.
    pub const fn project(&self) -> &ProjectId {
        &self.project
    }

    /// The bytes to seal and store.
    pub fn secret(&self) -> &[u8] {
        self.secret.as_slice()
    }

    /// Computes a MAC over the concatenated parts. Each caller starts with its own constant, and only the last part may vary in
    /// length.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        parts.iter().for_each(|part| context.update(part));
        context.sign()
    }
}

/// All projects' keys, unsealed, without revoked ones. Immutable: after a change in the database, a new keyring is built.
#[derive(Default)]
pub struct Keyring {
    signing: HashMap<KeyId, Arc<SigningKey>>,
    refresh: HashMap<KeyId, Arc<RefreshKey>>,
    projects: HashMap<ProjectId, ProjectKeys>,
}

/// One project's keys with their schedules, in insertion order.
#[derive(Default)]
struct ProjectKeys {
    signing: Vec<(Schedule, Arc<SigningKey>)>,
    refresh: Vec<(Schedule, Arc<RefreshKey>)>,
}

impl Keyring {
    /// Adds a signing key.
    pub fn add_signing(&mut self, key: Arc<SigningKey>, schedule: Schedule) {
        self.signing.insert(key.id(), Arc::clone(&key));
        self.projects.entry(key.project().clone()).or_default().signing.push((schedule, key));
    }

    /// Adds a refresh-token key.
    pub fn add_refresh(&mut self, key: Arc<RefreshKey>, schedule: Schedule) {
        self.refresh.insert(key.id(), Arc::clone(&key));
        self.projects.entry(key.project().clone()).or_default().refresh.push((schedule, key));
    }

    /// The signing key with this `kid`, of any project and stage.
    pub fn signing(&self, id: KeyId) -> Option<&Arc<SigningKey>> {
        self.signing.get(&id)
    }

    /// The signing key with this `kid`, if a token that it signed may still be valid. Later its tokens are good only for signing
    /// out, so that a retired key is useless if it leaks.
    pub fn verifies(&self, id: KeyId, now: Timestamp, token_ttl_max: Duration) -> Option<&Arc<SigningKey>> {
        let key = self.signing.get(&id)?;
        let keys = &self.projects.get(key.project())?.signing;
        let (schedule, _) = keys.iter().find(|(_, key)| key.id() == id)?;
        schedule.verifies_at(now, token_ttl_max).then_some(key)
    }

    /// The refresh-token key with this id, of any project and stage.
    pub fn refresh(&self, id: KeyId) -> Option<&Arc<RefreshKey>> {
        self.refresh.get(&id)
    }

    /// The key that signs for the project now; of several, the one that started last. If none has started yet, the one that starts
    /// first: this clock may be behind, and sign-ins must not wait for it.
    pub fn signs_for(&self, project: &ProjectId, now: Timestamp) -> Option<&Arc<SigningKey>> {
        newest(&self.projects.get(project)?.signing, now, |key| key.id())
    }

    /// The key that authenticates the project's new refresh tokens now; of several, the one that started last.
    pub fn refreshes_for(&self, project: &ProjectId, now: Timestamp) -> Option<&Arc<RefreshKey>> {
        newest(&self.projects.get(project)?.refresh, now, |key| key.id())
    }

    /// The project's signing keys with their schedules; `None` if it has none.
    pub fn signing_of(&self, project: &ProjectId) -> Option<impl Iterator<Item = (&Schedule, &SigningKey)>> {
        Some(self.projects.get(project)?.signing.iter().map(|(schedule, key)| (schedule, &**key)))
    }

    /// The projects that have keys, in no particular order.
    pub fn projects(&self) -> impl Iterator<Item = &ProjectId> {
        self.projects.keys()
    }
}

fn newest<K>(keys: &[(Schedule, Arc<K>)], now: Timestamp, id: impl Fn(&K) -> KeyId) -> Option<&Arc<K>> {
    keys.iter()
        .filter(|(schedule, _)| schedule.signs_at(now))
        // A tie is broken by id, so that all replicas choose the same.
        .max_by_key(|(schedule, key)| (schedule.signs_from, id(key)))
        .or_else(|| {
            let waiting = keys.iter().filter(|(schedule, _)| schedule.stage(now) == Stage::Waiting);
            waiting.min_by_key(|(schedule, key)| (schedule.signs_from, id(key)))
        })
        .map(|(_, key)| key)
}
