//! How far a subscriber has read. Opaque to clients.
//!
//! ```text
//! project (8) | history (16) | timeline (4) | seconds (8) | writer (6), number (4), …      in base64url
//! ```
//!
//! A cursor names at most [`WRITERS_MAX`] writers, so that it fits into a header or a URL. All entries of a writer that it does
//! not name are sent again, which costs duplicates and skips nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::store::FeedOrigin;
use crate::store::WriterId;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::token;

/// A cursor is valid as long as any token that was valid when it was made, plus an hour for clocks that differ.
const LIFETIME: Duration = Duration::from_secs(ACCESS_TOKEN_TTL_MAX.as_secs() + 60 * 60);

/// The cursor is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedCursor;

/// The most writers that a cursor names: 1.8 kB of text.
pub(super) const WRITERS_MAX: usize = 128;

/// The bytes before the writers.
const HEAD: usize = 36;

/// The bytes of a writer and its number.
const EACH: usize = 10;

/// Every revocation up to these numbers was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The database and timeline that the numbers were read from.
    pub(super) origin: FeedOrigin,
    /// When it was made.
    pub(super) at: Timestamp,
    /// The last published number of each writer that is named.
    pub(super) numbers: Arc<BTreeMap<WriterId, u32>>,
}

impl Cursor {
    /// Parses what [`Cursor::encode`] wrote. A forged cursor reveals no more than a snapshot does. A cursor of another project
    /// gets a snapshot, because that project's revocations are not this one's.
    pub(super) fn parse(text: &str, project: &ProjectId) -> Result<Self, MalformedCursor> {
        if text.len() > (HEAD + EACH * WRITERS_MAX).div_ceil(3) * 4 {
            return Err(MalformedCursor);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| MalformedCursor)?;
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(MalformedCursor)?;
        let (writers, []) = rest.as_chunks::<EACH>() else { return Err(MalformedCursor) };
        let part = |at: usize| -> [u8; 8] { std::array::from_fn(|byte| head[at + byte]) };
        let timeline = u32::from_be_bytes(std::array::from_fn(|byte| head[24 + byte]));
        let history = Uuid::from_bytes(std::array::from_fn(|byte| head[8 + byte]));
        let history = if part(0) == mark(project) { history } else { Uuid::nil() };
        let at = Timestamp::from_seconds(i64::from_be_bytes(part(28)));
        let number = |[w0, w1, w2, w3, w4, w5, n0, n1, n2, n3]: &[u8; EACH]| {
            let writer = WriterId::from_number(u64::from_be_bytes([0, 0, *w0, *w1, *w2, *w3, *w4, *w5]));
            (writer, u32::from_be_bytes([*n0, *n1, *n2, *n3]))
        };
        let numbers = Arc::new(writers.iter().map(number).collect());
        Ok(Self { origin: FeedOrigin { history, timeline }, at, numbers })
    }

    pub(super) fn encode(&self, project: &ProjectId) -> String {
        let mut bytes = Vec::with_capacity(HEAD + EACH * self.numbers.len());
        bytes.extend_from_slice(&mark(project));
        bytes.extend_from_slice(self.origin.history.as_bytes());
        bytes.extend_from_slice(&self.origin.timeline.to_be_bytes());
        bytes.extend_from_slice(&self.at.as_seconds().to_be_bytes());
        for (writer, number) in self.numbers.iter().take(WRITERS_MAX) {
            let [_, _, writer @ ..] = writer.number().to_be_bytes();
            bytes.extend_from_slice(&writer);
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The last published number of a writer; zero if it is not named.
    pub(super) fn number(&self, writer: WriterId) -> u32 {
        self.numbers.get(&writer).copied().unwrap_or(0)
    }

    /// Whether every token that was valid when this was made has expired.
    pub(super) fn is_too_old(&self, now: Timestamp) -> bool {
        self.at + LIFETIME <= now
    }
}

/// Distinguishes one project's cursors from another's.
fn mark(project: &ProjectId) -> [u8; 8] {
    *token::fingerprint(project.as_str().as_bytes()).first_chunk().expect("32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: u64) -> Arc<BTreeMap<WriterId, u32>> {
        Arc::new((1..=count).map(|at| (WriterId::from_number(u64::MAX - at), u32::MAX)).collect())
    }

    /// nginx takes 8 kB of header or URL, and an access token may be in the same.
    #[test]
    fn a_cursor_is_short_however_many_writers_there_are() {
        let project = ProjectId::parse("ours").expect("a name");
        let origin = FeedOrigin { history: Uuid::from_u128(7), timeline: 3 };
        let of = |count| Cursor { origin, at: Timestamp::from_seconds(1), numbers: numbers(count) };
        let text = of(5_000).encode(&project);
        assert!(text.len() < 1_800, "{}", text.len());
        let parsed = Cursor::parse(&text, &project).expect("a cursor");
        assert_eq!(parsed.numbers.len(), WRITERS_MAX);
        assert!(parsed.numbers.iter().all(|(writer, number)| of(5_000).number(*writer) == *number));
        assert_eq!(parsed.number(WriterId::from_number(1)), 0, "all of this one's are sent");
        assert_eq!(Cursor::parse(&"A".repeat(1_760), &project), Err(MalformedCursor), "too long");
    }

    #[test]
    fn a_cursor_round_trips_and_expires() {
        let origin = FeedOrigin { history: Uuid::from_u128(7), timeline: 3 };
        let at = Timestamp::from_seconds(1_000_000);
        let cursor = Cursor { origin, at, numbers: numbers(3) };
        let [ours, theirs] = ["ours", "theirs"].map(|name| ProjectId::parse(name).expect("a name"));
        let text = cursor.encode(&ours);
        assert_eq!(Cursor::parse(&text, &ours), Ok(cursor.clone()));
        assert_ne!(Cursor::parse(&text, &theirs).expect("a cursor").origin, origin, "another project's");
        assert!(!cursor.is_too_old(at + LIFETIME - Duration::from_secs(1)) && cursor.is_too_old(at + LIFETIME));
        for bad in ["", "x", "####", &text[1..], &format!("{text}A")] {
            assert_eq!(Cursor::parse(bad, &ours), Err(MalformedCursor), "{bad}");
        }
        // The extreme times.
        assert!(!Cursor { at: Timestamp::from_seconds(i64::MAX), ..cursor.clone() }.is_too_old(at));
        assert!(Cursor { at: Timestamp::from_seconds(i64::MIN), ..cursor }.is_too_old(at));
    }
}
