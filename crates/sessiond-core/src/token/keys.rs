//! Signing keys, refresh-token keys, and the ring that holds them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::ParsedPublicKey;
use jsonwebtoken::EncodingKey;
use secrecy::zeroize::Zeroizing;

use super::schedule::Schedule;
use super::schedule::Stage;
use crate::clock;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;

/// A private key that has not the form of one: the database holds something that we never wrote.
#[derive(Debug, thiserror::Error)]
#[error("the private key is not a P-256 key in PKCS#8")]
pub struct MalformedKey;

/// An ES256 key pair of one project.
pub struct SigningKey {
    private: EncodingKey,
    verifying: VerifyingKey,
}

impl SigningKey {
    /// A new key pair for a project, and its private half in PKCS#8 to be sealed and stored.
    pub fn generate(project: ProjectId) -> (Self, Zeroizing<Vec<u8>>) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("the library has randomness");
        let pkcs8 = pair.to_pkcs8v1().expect("a generated key can be written down");
        let private = Zeroizing::new(pkcs8.as_ref().to_vec());
        let key = Self::from_private(KeyId::from_uuid(clock::new_uuid()), project, &private);
        (key.expect("a generated key can be read back"), private)
    }

    /// Reads a private half that was opened. The public half is derived from it: what is stored beside it is not believed.
    ///
    /// # Errors
    ///
    /// When it is not a P-256 key in PKCS#8.
    pub fn from_private(id: KeyId, project: ProjectId, pkcs8: &[u8]) -> Result<Self, MalformedKey> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map_err(|_| MalformedKey)?;
        let point: [u8; 65] = pair.public_key().as_ref().try_into().map_err(|_| MalformedKey)?;
        let verifying = VerifyingKey::from_point(id, project, point).ok_or(MalformedKey)?;
        Ok(Self { private: EncodingKey::from_ec_der(pkcs8), verifying })
    }

    /// The `kid`.
    pub const fn id(&self) -> KeyId {
        self.verifying.id
    }

    /// Whose tokens it signs.
    pub const fn project(&self) -> &ProjectId {
        &self.verifying.project
    }

    /// The public half.
    pub const fn verifying(&self) -> &VerifyingKey {
        &self.verifying
    }

    pub(super) const fn private(&self) -> &EncodingKey {
        &self.private
    }

    /// The key, of which a token that was issued before this moment may have either spelling of its signature: an earlier
    /// release signed with it.
    #[must_use]
    pub fn with_high_s_until(mut self, until: Timestamp) -> Self {
        self.verifying.high_s_until = Some(until);
        self
    }
}

/// The public half, and whose tokens it vouches for: an uncompressed point on P-256, 65 bytes.
pub struct VerifyingKey {
    id: KeyId,
    project: ProjectId,
    point: [u8; 65],
    /// Read once: to find out whether a point lies on the curve takes longer than all else but the signature.
    parsed: ParsedPublicKey,
    /// Until when tokens were issued under it whose signature may have either spelling; as a rule never.
    high_s_until: Option<Timestamp>,
}

impl VerifyingKey {
    fn from_point(id: KeyId, project: ProjectId, point: [u8; 65]) -> Option<Self> {
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()?;
        Some(Self { id, project, point, parsed, high_s_until: None })
    }

    /// A key from the two coordinates of its point (RFC 7518 §6.2.1); `None` when that lies nowhere on P-256.
    pub fn from_coordinates(id: KeyId, project: ProjectId, x: &[u8; 32], y: &[u8; 32]) -> Option<Self> {
        let point = [[4].as_slice(), x, y].concat().try_into().expect("one byte and twice 32");
        Self::from_point(id, project, point)
    }

    /// The `kid`.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Whose tokens it vouches for.
    pub const fn project(&self) -> &ProjectId {
        &self.project
    }

    /// The point's two coordinates, 32 bytes each, as RFC 7518 §6.2.1 names them.
    pub fn coordinates(&self) -> (&[u8], &[u8]) {
        self.point[1..].split_at(32)
    }

    /// Whether a signature of this moment may have either of its two spellings.
    pub(super) fn accepts_high_s(&self, issued_at: Timestamp) -> bool {
        self.high_s_until.is_some_and(|until| issued_at < until)
    }

    /// Whether the private half has signed this: ES256, both numbers in 32 bytes (RFC 7518 §3.4).
    pub(super) fn verify_signature(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
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
    /// A new key for a project.
    pub fn generate(project: ProjectId) -> Self {
        Self::new(KeyId::from_uuid(clock::new_uuid()), project, clock::random())
    }

    /// Reads a key that was opened; `None` when it is not 32 bytes.
    pub fn from_secret(id: KeyId, project: ProjectId, secret: &[u8]) -> Option<Self> {
        Some(Self::new(id, project, secret.try_into().ok()?))
    }

    fn new(id: KeyId, project: ProjectId, secret: [u8; 32]) -> Self {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Self { id, project, secret: Zeroizing::new(secret), mac }
    }

    /// Which key this is.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Whose tokens it makes.
    pub const fn project(&self) -> &ProjectId {
        &self.project
    }

    /// The bytes to seal and store.
    pub fn secret(&self) -> &[u8] {
        self.secret.as_slice()
    }

    /// Signs the parts in a row. Each caller starts with a text of its own, and only the last part varies in length.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        parts.iter().for_each(|part| context.update(part));
        context.sign()
    }
}

/// Every project's keys, opened, without the revoked ones. Immutable: a change in the database makes a new ring.
#[derive(Default)]
pub struct Keyring {
    signing: HashMap<KeyId, Arc<SigningKey>>,
    refresh: HashMap<KeyId, Arc<RefreshKey>>,
    projects: HashMap<ProjectId, ProjectKeys>,
}

/// One project's keys, each with its schedule, in the order in which they were added.
#[derive(Default)]
struct ProjectKeys {
    signing: Vec<(Schedule, Arc<SigningKey>)>,
    refresh: Vec<(Schedule, Arc<RefreshKey>)>,
}

impl Keyring {
    /// Takes in a signing key.
    pub fn add_signing(&mut self, key: Arc<SigningKey>, schedule: Schedule) {
        self.signing.insert(key.id(), Arc::clone(&key));
        self.projects.entry(key.project().clone()).or_default().signing.push((schedule, key));
    }

    /// Takes in a refresh-token key.
    pub fn add_refresh(&mut self, key: Arc<RefreshKey>, schedule: Schedule) {
        self.refresh.insert(key.id(), Arc::clone(&key));
        self.projects.entry(key.project().clone()).or_default().refresh.push((schedule, key));
    }

    /// The signing key of this `kid`, whatever its project and schedule: it may still have tokens to verify.
    pub fn signing(&self, id: KeyId) -> Option<&Arc<SigningKey>> {
        self.signing.get(&id)
    }

    /// The signing key of this `kid`, as long as a token that it signed may still be good: what it signed is refused from
    /// then on, but for a sign-out, so that a retired key that leaks makes no tokens.
    pub fn verifies(&self, id: KeyId, now: Timestamp, token_ttl_max: Duration) -> Option<&Arc<SigningKey>> {
        let key = self.signing.get(&id)?;
        let keys = &self.projects.get(key.project())?.signing;
        let (schedule, _) = keys.iter().find(|(_, key)| key.id() == id)?;
        schedule.verifies_at(now, token_ttl_max).then_some(key)
    }

    /// The refresh-token key of this id, whatever its project and schedule.
    pub fn refresh(&self, id: KeyId) -> Option<&Arc<RefreshKey>> {
        self.refresh.get(&id)
    }

    /// The key that signs for the project now: of several, the one that began last. Where none has begun yet, the one that
    /// begins first: a clock may be behind the one by which it was made, and a user must not wait for that.
    pub fn signs_for(&self, project: &ProjectId, now: Timestamp) -> Option<&Arc<SigningKey>> {
        newest(&self.projects.get(project)?.signing, now, |key| key.id())
    }

    /// The key that makes the project's refresh tokens now: of several, the one that began last.
    pub fn refreshes_for(&self, project: &ProjectId, now: Timestamp) -> Option<&Arc<RefreshKey>> {
        newest(&self.projects.get(project)?.refresh, now, |key| key.id())
    }

    /// The project's signing keys with their schedules; `None` when it has none at all.
    pub fn signing_of(&self, project: &ProjectId) -> Option<impl Iterator<Item = (&Schedule, &SigningKey)>> {
        Some(self.projects.get(project)?.signing.iter().map(|(schedule, key)| (schedule, &**key)))
    }

    /// Every project that has keys, in no order.
    pub fn projects(&self) -> impl Iterator<Item = &ProjectId> {
        self.projects.keys()
    }
}

fn newest<K>(keys: &[(Schedule, Arc<K>)], now: Timestamp, id: impl Fn(&K) -> KeyId) -> Option<&Arc<K>> {
    keys.iter()
        .filter(|(schedule, _)| schedule.signs_at(now))
        // Of two that began together, every replica takes the same.
        .max_by_key(|(schedule, key)| (schedule.signs_from, id(key)))
        .or_else(|| {
            let waiting = keys.iter().filter(|(schedule, _)| schedule.stage(now) == Stage::Waiting);
            waiting.min_by_key(|(schedule, key)| (schedule.signs_from, id(key)))
        })
        .map(|(_, key)| key)
}
