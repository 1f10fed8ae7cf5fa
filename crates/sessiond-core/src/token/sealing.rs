//! Encryption of private keys at rest: AES-256-GCM with a sealing key from the configuration, so that a stolen database is not
//! enough to sign. The purpose, the project and the key's id are associated data, so a sealed key that is moved to another row
//! cannot be unsealed.

use std::fmt;

use aws_lc_rs::aead::AES_256_GCM;
use aws_lc_rs::aead::Aad;
use aws_lc_rs::aead::Nonce;
use aws_lc_rs::aead::RandomizedNonceKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;

use crate::clock;
use crate::id::KeyId;
use crate::id::ProjectId;

/// The purpose of a sealed key; part of its associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Signs access tokens.
    Signing,
    /// Authenticates refresh tokens.
    Refresh,
}

impl fmt::Display for Purpose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Signing => "signing key",
            Self::Refresh => "refresh key",
        })
    }
}

/// A sealed key cannot be unsealed with the configured sealing key.
#[derive(Debug, thiserror::Error)]
#[error("the key {id} of project {project} does not open with the configured sealing key")]
pub struct UnsealError {
    /// The project whose key it is.
    pub project: ProjectId,
    /// The key.
    pub id: KeyId,
}

/// Seals with the current sealing key, and unseals with the current or the previous one, so that the sealing key can be changed
/// without downtime.
pub struct Sealer {
    present: RandomizedNonceKey,
    previous: Option<RandomizedNonceKey>,
}

impl Sealer {
    /// A sealer with the current sealing key, and the previous one during a change.
    pub fn new(present: &SealingKey, previous: Option<&SealingKey>) -> Self {
        Self { present: present.cipher(), previous: previous.map(SealingKey::cipher) }
    }

    /// Seals a private key for its row. Returns nonce, ciphertext and tag.
    pub fn seal(&self, purpose: Purpose, project: &ProjectId, id: KeyId, secret: &[u8]) -> Vec<u8> {
        let mut text = Zeroizing::new(secret.to_vec());
        let bound = Aad::from(associated_data(purpose, project, id));
        let nonce = self
            .present
            .seal_in_place_append_tag(bound, &mut *text)
            .expect("a key of a hundred bytes is far below the cipher's limit");
        [nonce.as_ref().as_slice(), &text].concat()
    }

    /// Unseals the output of [`Sealer::seal`] for the same row.
    ///
    /// # Errors
    ///
    /// Fails if neither sealing key fits, or the data belongs to another row.
    pub fn open(
        &self,
        purpose: Purpose,
        project: &ProjectId,
        id: KeyId,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        std::iter::once(&self.present)
            .chain(&self.previous)
            .find_map(|key| open_with(key, &associated_data(purpose, project, id), sealed))
            .ok_or_else(|| UnsealError { project: project.clone(), id })
    }

    /// Seals again, with the current sealing key, what was sealed with the previous one. Returns `None` if it was sealed with the
    /// current one.
    ///
    /// # Errors
    ///
    /// Fails as [`Sealer::open`] does.
    pub fn reseal(
        &self,
        purpose: Purpose,
        project: &ProjectId,
        id: KeyId,
        sealed: &[u8],
    ) -> Result<Option<Vec<u8>>, UnsealError> {
        if open_with(&self.present, &associated_data(purpose, project, id), sealed).is_some() {
            return Ok(None);
        }
        let secret = self.open(purpose, project, id, sealed)?;
        Ok(Some(self.seal(purpose, project, id, &secret)))
    }
}

/// 32 random bytes that seal the private keys of every project. Without them the keys are lost, so keep a copy.
pub struct SealingKey(Zeroizing<[u8; 32]>);

impl SealingKey {
    /// Generates a sealing key.
    pub fn generate() -> Self {
        Self(Zeroizing::new(clock::random()))
    }

    /// Parses 32 bytes in standard base64; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// The text that [`SealingKey::parse`] reads.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }

    fn cipher(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice()).expect("the key has the cipher's length")
    }
}

const NONCE_LENGTH: usize = 12;

fn open_with(key: &RandomizedNonceKey, bound: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, text) = sealed.split_at_checked(NONCE_LENGTH)?;
    let mut text = Zeroizing::new(text.to_vec());
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let length = key.open_in_place(nonce, Aad::from(bound), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

fn associated_data(purpose: Purpose, project: &ProjectId, id: KeyId) -> Vec<u8> {
    let purpose = match purpose {
        Purpose::Signing => "sessiond signing key v1",
        Purpose::Refresh => "sessiond refresh key v1",
    };
    // Unambiguous: only the project's name, at the end, varies in length.
    [purpose.as_bytes(), id.as_uuid().as_bytes(), project.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> ProjectId {
        ProjectId::parse("demo").expect("a name")
    }

    #[test]
    fn a_sealed_key_opens_only_in_its_own_row() {
        let sealer = Sealer::new(&SealingKey::generate(), None);
        let id = KeyId::from_uuid(clock::new_uuid());
        let sealed = sealer.seal(Purpose::Signing, &demo(), id, b"private");
        assert_eq!(sealer.open(Purpose::Signing, &demo(), id, &sealed).expect("its own row").as_slice(), b"private");

        let other = ProjectId::parse("other").expect("a name");
        assert!(sealer.open(Purpose::Signing, &other, id, &sealed).is_err());
        assert!(sealer.open(Purpose::Refresh, &demo(), id, &sealed).is_err());
        assert!(sealer.open(Purpose::Signing, &demo(), KeyId::from_uuid(clock::new_uuid()), &sealed).is_err());
        for cut in 0..sealed.len() {
            assert!(sealer.open(Purpose::Signing, &demo(), id, &sealed[..cut]).is_err());
        }
    }

    #[test]
    fn the_previous_key_unseals_during_a_change() {
        let (old, new) = (SealingKey::generate(), SealingKey::generate());
        let id = KeyId::from_uuid(clock::new_uuid());
        let sealed = Sealer::new(&old, None).seal(Purpose::Refresh, &demo(), id, b"mac");
        assert!(Sealer::new(&new, Some(&old)).open(Purpose::Refresh, &demo(), id, &sealed).is_ok());
        assert!(Sealer::new(&new, None).open(Purpose::Refresh, &demo(), id, &sealed).is_err());

        let (both, alone) = (Sealer::new(&new, Some(&old)), Sealer::new(&new, None));
        let resealed = both.reseal(Purpose::Refresh, &demo(), id, &sealed).expect("opens").expect("with the old key");
        assert_eq!(alone.open(Purpose::Refresh, &demo(), id, &resealed).expect("the new key").as_slice(), b"mac");
        assert!(both.reseal(Purpose::Refresh, &demo(), id, &resealed).expect("opens").is_none(), "once is enough");
        assert!(alone.reseal(Purpose::Refresh, &demo(), id, &sealed).is_err());
    }

    #[test]
    fn a_sealing_key_is_32_bytes_of_base64() {
        let key = SealingKey::generate();
        assert!(SealingKey::parse(&key.expose()).is_some());
        for refused in ["", "short", &"A".repeat(100)] {
            assert!(SealingKey::parse(refused).is_none());
        }
    }
}
