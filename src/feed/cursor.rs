//! How far a subscriber has read. Opaque to clients.
//!
//! ```text
//! project (8) | history (16) | timeline (4) | xmin (8) | seconds (8)      in base64url
//! ```

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::store::FeedOrigin;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::token;

/// A cursor is valid as long as any token that was valid when it was made, plus an hour for clocks that differ.
const LIFETIME: Duration = Duration::from_secs(ACCESS_TOKEN_TTL_MAX.as_secs() + 60 * 60);

/// The cursor is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedCursor;

/// Every revocation by a transaction before `xmin` was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The database and timeline that the transactions belong to.
    pub(super) origin: FeedOrigin,
    /// The first transaction that may not have been published.
    pub(super) xmin: u64,
    /// When it was made.
    pub(super) at: Timestamp,
}

impl Cursor {
    /// Parses what [`Cursor::encode`] wrote. A forged cursor reveals no more than a snapshot does. A cursor of another project
    /// gets a snapshot, because that project's revocations are not this one's.
    pub(super) fn parse(text: &str, project: &ProjectId) -> Result<Self, MalformedCursor> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| MalformedCursor)?;
        let bytes: [u8; 44] = bytes.try_into().map_err(|_| MalformedCursor)?;
        let part = |at: usize| -> [u8; 8] { std::array::from_fn(|byte| bytes[at + byte]) };
        let timeline = u32::from_be_bytes(std::array::from_fn(|byte| bytes[24 + byte]));
        let history = Uuid::from_bytes(std::array::from_fn(|byte| bytes[8 + byte]));
        let history = if part(0) == mark(project) { history } else { Uuid::nil() };
        let at = Timestamp::from_seconds(i64::from_be_bytes(part(36)));
        Ok(Self { origin: FeedOrigin { history, timeline }, xmin: u64::from_be_bytes(part(28)), at })
    }

    pub(super) fn encode(&self, project: &ProjectId) -> String {
        let mut bytes = Vec::with_capacity(44);
        bytes.extend_from_slice(&mark(project));
        bytes.extend_from_slice(self.origin.history.as_bytes());
        bytes.extend_from_slice(&self.origin.timeline.to_be_bytes());
        bytes.extend_from_slice(&self.xmin.to_be_bytes());
        bytes.extend_from_slice(&self.at.as_seconds().to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
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

    #[test]
    fn a_cursor_round_trips_and_expires() {
        let origin = FeedOrigin { history: Uuid::from_u128(7), timeline: 3 };
        let at = Timestamp::from_seconds(1_000_000);
        let cursor = Cursor { origin, xmin: u64::MAX - 1, at };
        let [ours, theirs] = ["ours", "theirs"].map(|name| ProjectId::parse(name).expect("a name"));
        let text = cursor.encode(&ours);
        assert_eq!(Cursor::parse(&text, &ours), Ok(cursor));
        assert_ne!(Cursor::parse(&text, &theirs).expect("a cursor").origin, origin, "another project's");
        assert!(!cursor.is_too_old(at + LIFETIME - Duration::from_secs(1)) && cursor.is_too_old(at + LIFETIME));
        for bad in ["", "x", "####", &text[1..], &format!("{text}A")] {
            assert_eq!(Cursor::parse(bad, &ours), Err(MalformedCursor), "{bad}");
        }
        // The extreme times.
        assert!(!Cursor { at: Timestamp::from_seconds(i64::MAX), ..cursor }.is_too_old(at));
        assert!(Cursor { at: Timestamp::from_seconds(i64::MIN), ..cursor }.is_too_old(at));
    }
}
