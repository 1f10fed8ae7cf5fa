//! Refresh tokens: `sdrt_` and 118 characters of base64url. Opaque to clients; nothing is stored per token issued.
//!
//! ```text
//! key id (16) | session id (16) | generation (4) | attempt (4) | tag (16) | mac (32)
//! ```
//!
//! The *tag* is a MAC by the refresh key over the first four fields: forged tokens are refused without a query, and genuine ones
//! are recognized even after their session was deleted. The *mac* covers the first four fields and a random secret in the
//! session's row, so neither the database nor the key alone suffices to forge a token.

use aws_lc_rs::constant_time;
use aws_lc_rs::hmac;
use secrecy::SecretString;
use uuid::Uuid;

use super::decode;
use super::encode;
use super::keys::RefreshKey;
use crate::id::KeyId;
use crate::id::SessionId;

/// The prefix of every refresh token, by which secret scanners find leaked ones.
pub const PREFIX: &str = "sdrt_";

const FIELDS: usize = 40;
const TAG: usize = 16;
const MAC: usize = 32;
const LENGTH: usize = FIELDS + TAG + MAC;

/// A position in a session's chain of refresh tokens.
///
/// `generation` counts the rotations, `attempt` the successors issued for the same predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number of rotations before it; 0 for the first token of the session.
    pub generation: u32,
    /// The number of successors of the same predecessor that were superseded unused.
    pub attempt: u32,
}

random_bytes! {
    /// The random secret of a session's refresh tokens, stored in its row. Has no `Debug`.
    #[derive(Clone)]
    RowSecret
}

/// A parsed refresh token, not yet verified. Has no `Debug`: it must not reach a log.
#[derive(Clone)]
pub struct RefreshToken {
    fields: [u8; FIELDS],
    tag: [u8; TAG],
    mac: [u8; MAC],
}

impl RefreshToken {
    /// Parses a token; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; LENGTH] = decode(text.strip_prefix(PREFIX)?)?;
        let (fields, rest) = bytes.split_first_chunk::<FIELDS>()?;
        let (tag, mac) = rest.split_first_chunk::<TAG>()?;
        Some(Self { fields: *fields, tag: *tag, mac: mac.try_into().ok()? })
    }

    /// The refresh key that it names. Keys belong to one project, so this identifies the project.
    pub fn key(&self) -> KeyId {
        KeyId::from_uuid(Uuid::from_bytes(self.part(0)))
    }

    /// The session that it names.
    pub fn session(&self) -> SessionId {
        SessionId::from_uuid(Uuid::from_bytes(self.part(16)))
    }

    /// The position in the chain that it names.
    pub fn link(&self) -> Link {
        Link { generation: u32::from_be_bytes(self.part(32)), attempt: u32::from_be_bytes(self.part(36)) }
    }

    fn part<const N: usize>(&self, start: usize) -> [u8; N] {
        *self.fields[start..].first_chunk().expect("the parts lie within the fields")
    }
}

impl RefreshKey {
    /// Creates the token of a session at a position. Deterministic.
    pub fn mint(&self, session: SessionId, link: Link, secret: &RowSecret) -> SecretString {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend_from_slice(self.id().as_uuid().as_bytes());
        bytes.extend_from_slice(session.as_uuid().as_bytes());
        bytes.extend_from_slice(&link.generation.to_be_bytes());
        bytes.extend_from_slice(&link.attempt.to_be_bytes());
        let tag = self.tag(&bytes);
        let mac = self.mac(&bytes, secret);
        bytes.extend_from_slice(&tag.as_ref()[..TAG]);
        bytes.extend_from_slice(mac.as_ref());
        format!("{PREFIX}{}", encode(&bytes)).into()
    }

    /// Verifies the tag, which needs no access to the session's row. Constant time.
    pub fn verify_tag(&self, token: &RefreshToken) -> bool {
        let tag = self.tag(&token.fields);
        constant_time::verify_slices_are_equal(&tag.as_ref()[..TAG], &token.tag).is_ok()
    }

    /// Verifies the token with the secret in the session's row. Constant time.
    pub fn verify_token(&self, token: &RefreshToken, secret: &RowSecret) -> bool {
        let mac = self.mac(&token.fields, secret);
        self.verify_tag(token) && constant_time::verify_slices_are_equal(mac.as_ref(), &token.mac).is_ok()
    }

    fn tag(&self, fields: &[u8]) -> hmac::Tag {
        self.sign(&[b"sessiond refresh tag v1", fields])
    }

    fn mac(&self, fields: &[u8], secret: &RowSecret) -> hmac::Tag {
        self.sign(&[b"sessiond refresh mac v1", fields, secret.as_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::clock;
    use crate::clock::Timestamp;
    use crate::id::Bucket;
    use crate::id::ProjectId;

    fn key() -> RefreshKey {
        RefreshKey::generate(ProjectId::parse("demo").expect("a name"))
    }

    fn session() -> SessionId {
        clock::new_session_id(Timestamp::from_seconds(1_000_000_000), Bucket::from_number(1))
    }

    #[test]
    fn tokens_are_deterministic_and_round_trip() {
        let (key, session, secret) = (key(), session(), RowSecret::generate());
        let link = Link { generation: 7, attempt: 2 };
        let text = key.mint(session, link, &secret);
        assert_eq!(text.expose_secret(), key.mint(session, link, &secret).expose_secret());

        let token = RefreshToken::parse(text.expose_secret()).expect("its own text");
        assert!(token.key() == key.id() && token.session() == session && token.link() == link);
        assert!(key.verify_token(&token, &secret));
    }

    #[test]
    fn neither_the_key_nor_the_row_alone_suffices() {
        let (ours, session, secret) = (key(), session(), RowSecret::generate());
        let link = Link { generation: 0, attempt: 0 };
        let by_key_alone = ours.mint(session, link, &RowSecret::generate());
        let token = RefreshToken::parse(by_key_alone.expose_secret()).expect("well formed");
        assert!(!ours.verify_token(&token, &secret));

        let by_row_alone = key().mint(session, link, &secret);
        let token = RefreshToken::parse(by_row_alone.expose_secret()).expect("well formed");
        assert!(!ours.verify_tag(&token) && !ours.verify_token(&token, &secret));
    }

    #[test]
    fn no_single_character_can_be_changed() {
        let (key, secret) = (key(), RowSecret::generate());
        let text = key.mint(session(), Link { generation: 1, attempt: 0 }, &secret).expose_secret().to_owned();
        for at in 0..text.len() {
            let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(RefreshToken::parse(&changed).is_none_or(|token| !key.verify_token(&token, &secret)), "at {at}");
        }
        assert!(RefreshToken::parse(&text[..text.len() - 1]).is_none());
        assert!(RefreshToken::parse(&"é".repeat(61)).is_none());
    }
}
