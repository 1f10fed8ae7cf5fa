//! Identifiers of projects, users, sessions and keys. Each is validated once, when parsed.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

/// A tenant. Sessions, keys and tokens of one project mean nothing in another.
///
/// 1 to 64 characters of `A-Z a-z 0-9 - _`, so it needs no escaping in a URL, a JWT or a metric label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(Arc<str>);

impl ProjectId {
    /// The longest name, in bytes.
    pub const LENGTH_MAX: usize = 64;

    /// Parses a project's name; `None` if it is empty, too long, or has any other character.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let fits = (1..=Self::LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed);
        fits.then(|| Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A user's id, as the host application chose it: the `sub` of the user's tokens. Opaque to sessiond.
///
/// 1 to 255 bytes of UTF-8 without control characters, and not `me`, which means the caller in a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The longest id, in bytes.
    pub const LENGTH_MAX: usize = 255;

    /// Parses a user's id; `None` outside these bounds.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::LENGTH_MAX).contains(&text.len()) && !text.chars().any(char::is_control) && text != "me";
        fits.then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with this UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Parses the canonical form: hyphenated, in lower case. `None` for anything else.
            pub fn parse(text: &str) -> Option<Self> {
                // Other spellings of the same UUID are refused, so that ids can be compared as text.
                let canonical = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
                canonical.then(|| Uuid::try_parse(text).ok()).flatten().map(Self)
            }

            /// The UUID.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(formatter)
            }
        }
    };
}

uuid_id! {
    /// One sign-in on one device: a UUIDv7, so that ids sort by time of creation (RFC 9562 §5.7). Its `rand_a` field is the
    /// user's [`Bucket`], so that a session id alone, from any token, leads to the user's rows.
    SessionId
}

impl SessionId {
    /// The user's bucket.
    pub const fn bucket(self) -> Bucket {
        let [.., high, low, _, _, _, _, _, _, _, _] = *self.0.as_bytes();
        Bucket(u16::from_be_bytes([high, low]) % Bucket::COUNT)
    }
}

/// A part of a project's users: everything about a user is in one bucket, and the users of a project are spread over all
/// buckets. A database that is divided among nodes is divided by bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(u16);

impl Bucket {
    /// How many there are: as many as the `rand_a` field of a UUIDv7 has room for, 12 bits (RFC 9562 §5.7).
    pub const COUNT: u16 = 1 << 12;

    /// The bucket with this number, modulo [`Bucket::COUNT`].
    pub const fn from_number(number: u16) -> Self {
        Self(number % Self::COUNT)
    }

    /// The number: less than [`Bucket::COUNT`].
    pub const fn number(self) -> u16 {
        self.0
    }
}

uuid_id! {
    /// The id of a signing key (its `kid`), a refresh-token key or a server key.
    KeyId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_bounded_and_not_me() {
        assert!(UserId::parse("ada").is_some());
        assert!(UserId::parse("ada@example.org/Ä").is_some());
        assert!(UserId::parse(&"x".repeat(255)).is_some());
        for refused in ["", "me", "a\nb", "a\u{7f}", &"x".repeat(256)] {
            assert!(UserId::parse(refused).is_none(), "{refused:?}");
        }
    }

    #[test]
    fn project_ids_need_no_escaping() {
        assert!(ProjectId::parse("demo").is_some());
        assert!(ProjectId::parse(&"x".repeat(64)).is_some());
        for refused in ["", "a/b", "a b", "ä", "a.b", &"x".repeat(65)] {
            assert!(ProjectId::parse(refused).is_none(), "{refused:?}");
        }
    }

    #[test]
    fn a_session_id_contains_a_bucket() {
        let id = SessionId::parse("01890a5d-ac96-774b-bcce-b302099a8057").expect("canonical");
        assert_eq!((id.bucket().number(), id.bucket()), (0x74b, Bucket::from_number(0x774b)));
    }

    #[test]
    fn session_ids_have_one_spelling() {
        let canonical = "01890a5d-ac96-774b-bcce-b302099a8057";
        assert_eq!(SessionId::parse(canonical).expect("canonical").to_string(), canonical);
        for refused in ["01890A5D-AC96-774B-BCCE-B302099A8057", "01890a5dac96774bbcceb302099a8057", "current", ""] {
            assert!(SessionId::parse(refused).is_none(), "{refused:?}");
        }
    }
}
