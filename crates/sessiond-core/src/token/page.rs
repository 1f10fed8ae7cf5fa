//! Page tokens (AIP-158): where a listing continues. Opaque to clients. A MAC by the project's refresh-token key binds them to the
//! query that returned them.
//!
//! ```text
//! key id (16) | session id (16) | tag (16)
//! ```

use aws_lc_rs::constant_time;
use uuid::Uuid;

use super::decode;
use super::encode;
use super::keys::RefreshKey;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;

const TAG: usize = 16;

/// The query that a page token is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The project.
    pub project: &'a ProjectId,
    /// The user whose sessions are listed; `None` for the whole project.
    pub user: Option<&'a UserId>,
    /// All other parameters, encoded so that equal queries have equal bytes.
    pub parameters: &'a [u8],
}

/// A parsed page token, not yet verified.
#[derive(Clone, Debug)]
pub struct PageToken {
    key: KeyId,
    last: SessionId,
    tag: [u8; TAG],
}

impl PageToken {
    /// Parses a token; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 48] = decode(text)?;
        let (key, rest) = bytes.split_first_chunk::<16>()?;
        let (last, tag) = rest.split_first_chunk::<16>()?;
        Some(Self {
            key: KeyId::from_uuid(Uuid::from_bytes(*key)),
            last: SessionId::from_uuid(Uuid::from_bytes(*last)),
            tag: tag.try_into().ok()?,
        })
    }

    /// The key that it names.
    pub const fn key(&self) -> KeyId {
        self.key
    }
}

impl RefreshKey {
    /// The token of the page that starts after a session.
    pub fn page_token(&self, last: SessionId, query: &Query<'_>) -> String {
        let tag = self.page_tag(last, query);
        encode(&[self.id().as_uuid().as_bytes(), last.as_uuid().as_bytes(), tag.as_slice()].concat())
    }

    /// The session after which the page starts; `None` if the token does not belong to this key and query.
    pub fn page_start(&self, token: &PageToken, query: &Query<'_>) -> Option<SessionId> {
        let genuine = constant_time::verify_slices_are_equal(&self.page_tag(token.last, query), &token.tag);
        genuine.ok().map(|()| token.last)
    }

    fn page_tag(&self, last: SessionId, query: &Query<'_>) -> [u8; TAG] {
        let user = query.user.map_or("", UserId::as_str);
        // The length in front separates the user from the other parameters.
        let length = u16::try_from(user.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mac =
            self.sign(&[b"sessiond page token", last.as_uuid().as_bytes(), &length, user.as_bytes(), query.parameters]);
        *mac.as_ref().first_chunk().expect("SHA-256 gives 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::clock::Timestamp;
    use crate::id::Bucket;

    #[test]
    fn a_token_is_bound_to_its_key_user_and_query() {
        let project = ProjectId::parse("demo").expect("a name");
        let (ada, bob) = (UserId::parse("ada").expect("an id"), UserId::parse("bob").expect("an id"));
        let (key, other) = (RefreshKey::generate(project.clone()), RefreshKey::generate(project.clone()));
        let last = clock::new_session_id(Timestamp::from_seconds(1), Bucket::from_number(1));
        let query = Query { project: &project, user: Some(&ada), parameters: b"q" };
        let text = key.page_token(last, &query);
        let token = PageToken::parse(&text).expect("its own text");
        assert_eq!((token.key(), key.page_start(&token, &query)), (key.id(), Some(last)));

        assert_eq!(other.page_start(&token, &query), None);
        for foreign in [
            Query { user: Some(&bob), ..query },
            Query { user: None, ..query },
            Query { parameters: b"p", ..query },
            Query { user: Some(&UserId::parse("adaq").expect("an id")), parameters: b"", ..query },
        ] {
            assert_eq!(key.page_start(&token, &foreign), None, "{foreign:?}");
        }
        for at in 0..text.len() {
            let changed =
                format!("{}{}{}", &text[..at], if text.as_bytes()[at] == b'A' { "B" } else { "A" }, &text[at + 1..]);
            let start = PageToken::parse(&changed).and_then(|token| key.page_start(&token, &query));
            assert!(start.is_none() || at < 22, "at {at}");
        }
    }
}
