//! Refresh tokens: `sdrt_` and 118 characters of base64url. Opaque to clients; nothing is stored per token issued.
//!
//! ```text
//! key id (16) | session id (16) | generation (4) | attempt (4) | tag (16) | mac (32)
//! ```
//!
//! The *tag* is a MAC over the first four under the refresh key: a made-up token is refused before the database hears
//! of it, and a genuine one is known even when its session is long swept. The *mac* is one over the first four and a
//! random secret in the session's row: so neither the database nor the key alone makes a token.

use aws_lc_rs::constant_time;
use aws_lc_rs::hmac;
use secrecy::SecretString;
use uuid::Uuid;

use super::decode;
use super::encode;
use super::keys::RefreshKey;
use crate::clock;
use crate::id::KeyId;
use crate::id::SessionId;

/// What every refresh token starts with, so that a scanner of repositories can find a leaked one.
pub const PREFIX: &str = "sdrt_";

const FIELDS: usize = 40;
const TAG: usize = 16;
const MAC: usize = 32;
const LENGTH: usize = FIELDS + TAG + MAC;

/// A place in a session's chain of refresh tokens.
///
/// `generation` counts the rotations, `attempt` the successors handed out for one and the same predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// How many rotations came before; 0 is the token that the session was opened with.
    pub generation: u32,
    /// How many successors of the same predecessor were superseded unused.
    pub attempt: u32,
}

/// The random half of a session's refresh tokens, kept in its row. Has no `Debug`.
#[derive(Clone)]
pub struct RowSecret([u8; 32]);

impl RowSecret {
    /// A new one, for a new session.
    pub fn generate() -> Self {
        Self(clock::random())
    }

    /// Takes the bytes from the database; `None` when they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A refresh token as a caller presents it: read, but not yet believed. Has no `Debug`: it must not reach a log.
#[derive(Clone)]
pub struct RefreshToken {
    fields: [u8; FIELDS],
    tag: [u8; TAG],
    mac: [u8; MAC],
}

impl RefreshToken {
    /// Reads a presented token; `None` when it has not the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; LENGTH] = decode(text.strip_prefix(PREFIX)?)?;
        let (fields, rest) = bytes.split_first_chunk::<FIELDS>()?;
        let (tag, mac) = rest.split_first_chunk::<TAG>()?;
        Some(Self { fields: *fields, tag: *tag, mac: mac.try_into().ok()? })
    }

    /// Which refresh key it claims to be made with; keys are per project, so this names the project.
    pub fn key(&self) -> KeyId {
        KeyId::from_uuid(Uuid::from_bytes(self.part(0)))
    }

    /// Which session it claims to belong to.
    pub fn session(&self) -> SessionId {
        SessionId::from_uuid(Uuid::from_bytes(self.part(16)))
    }

    /// Which place in the chain it claims to have.
    pub fn link(&self) -> Link {
        Link { generation: u32::from_be_bytes(self.part(32)), attempt: u32::from_be_bytes(self.part(36)) }
    }

    fn part<const N: usize>(&self, start: usize) -> [u8; N] {
        *self.fields[start..].first_chunk().expect("the parts lie within the fields")
    }
}

impl RefreshKey {
    /// The token of this session at this place: the same arguments always give the same token.
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

    /// Whether this key made the token, as far as can be told without the session's row. Constant time.
    pub fn verify_tag(&self, token: &RefreshToken) -> bool {
        let tag = self.tag(&token.fields);
        constant_time::verify_slices_are_equal(&tag.as_ref()[..TAG], &token.tag).is_ok()
    }

    /// Whether the token is genuine: made with this key for the session whose row holds the secret. Constant time.
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
    use crate::clock::Timestamp;
    use crate::id::ProjectId;

    fn key() -> RefreshKey {
        RefreshKey::generate(ProjectId::parse("demo").expect("a name"))
    }

    fn session() -> SessionId {
        clock::new_session_id(Timestamp::from_seconds(1_000_000_000))
    }

    #[test]
    fn a_token_is_the_same_every_time_and_reads_back() {
        let (key, session, secret) = (key(), session(), RowSecret::generate());
        let link = Link { generation: 7, attempt: 2 };
        let text = key.mint(session, link, &secret);
        assert_eq!(text.expose_secret(), key.mint(session, link, &secret).expose_secret());

        let token = RefreshToken::parse(text.expose_secret()).expect("its own text");
        assert!(token.key() == key.id() && token.session() == session && token.link() == link);
        assert!(key.verify_token(&token, &secret));
    }

    #[test]
    fn neither_the_key_nor_the_row_alone_makes_a_token() {
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
