//! Server keys: `sdsk_` followed by 64 characters, which encode an id and 256 random bits. Only the SHA-256 digest is stored: the
//! secret cannot be guessed, so a slow hash would add cost to every call and no protection.

use aws_lc_rs::constant_time;
use secrecy::SecretString;
use uuid::Uuid;

use super::decode;
use super::encode;
use super::fingerprint;
use crate::clock;
use crate::id::KeyId;

/// The prefix of every server key, by which secret scanners find leaked ones.
pub const PREFIX: &str = "sdsk_";

/// A server key. Has no `Debug`: it must not reach a log.
#[derive(Clone)]
pub struct ServerKey {
    id: KeyId,
    secret: [u8; 32],
}

impl ServerKey {
    /// Generates a key.
    pub fn generate() -> Self {
        Self { id: KeyId::from_uuid(clock::new_uuid()), secret: clock::random() }
    }

    /// Parses a key; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 48] = decode(text.strip_prefix(PREFIX)?)?;
        let (id, secret) = bytes.split_first_chunk::<16>()?;
        Some(Self { id: KeyId::from_uuid(Uuid::from_bytes(*id)), secret: secret.try_into().ok()? })
    }

    /// The key's id.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The digest to store.
    pub fn digest(&self) -> Digest {
        Digest(fingerprint(&self.secret))
    }

    /// The text of the key, to be shown once.
    pub fn expose(&self) -> SecretString {
        let bytes = [self.id.as_uuid().as_bytes().as_slice(), &self.secret].concat();
        format!("{PREFIX}{}", encode(&bytes)).into()
    }
}

/// The SHA-256 digest of a server key's secret. Has no `Debug` and no `==`; see [`Digest::matches`].
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes, from the database; `None` if they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time, to prevent timing attacks.
    pub fn matches(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn keys_round_trip_and_match_no_other() {
        let key = ServerKey::generate();
        let read = ServerKey::parse(key.expose().expose_secret()).expect("its own text");
        assert_eq!(read.id(), key.id());
        assert!(read.digest().matches(&key.digest()));
        assert!(!ServerKey::generate().digest().matches(&key.digest()));
    }

    #[test]
    fn malformed_keys_are_refused() {
        let key = ServerKey::generate();
        let text = key.expose().expose_secret().to_owned();
        for refused in ["", PREFIX, &text[1..], &text[..text.len() - 1], &format!("{text}A"), &format!("{text}=")] {
            assert!(ServerKey::parse(refused).is_none(), "{} characters", refused.len());
        }
    }
}
