//! How others are told that a session has ended: over which protocol, what an answer means, when to try again, and when to
//! give up.

use std::time::Duration;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::lifecycle::EndedBy;
use super::lifecycle::RevokeReason;
use crate::backoff;
use crate::clock::Timestamp;
use crate::token::event::Initiator;

/// The most endpoints of a project: each sign-out writes a row for every one.
pub const ENDPOINTS_MAX: usize = 16;

/// The longest audience of an endpoint, in bytes.
pub const AUDIENCE_LENGTH_MAX: usize = 255;

/// The most sessions that are told of one by one where a cut-off spares one. Beyond that its user is told of as a whole,
/// and the spared session with it: on the safe side.
pub const SESSION_NOTICES_MAX: usize = 1_000;

/// How long a delivery is tried. Half-open: from exactly then on it is dead, tried or not, so that what waits for an endpoint
/// is never older than this.
pub const DELIVERY_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The pause after the first attempt; each later one is twice as long as the one before it.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest pause, also of those that a receiver asks for.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// How an endpoint is told. The numbers that are stored for it are never given a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointKind {
    /// OpenID Connect Back-Channel Logout 1.0: a form with a logout token.
    Logout,
    /// OpenID CAEP 1.0: a security event token, pushed by RFC 8935.
    Caep,
}

impl EndpointKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Logout, Self::Caep];

    /// The name, on the command line and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Caep => "caep",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The receiver has it.
    Taken,
    /// It failed in a way that may pass; what is said of it is ours, never the receiver's words.
    Failed(String),
    /// The receiver will never take it.
    Refused(String),
}

/// What becomes of a delivery that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// It is tried again at this moment.
    RetryAt(Timestamp),
    /// It is not tried again, unless the operator says so.
    Dead,
}

/// Judges a receiver's answer.
///
/// 200 is what a logout token is answered with (OpenID Connect Back-Channel Logout 1.0 §2.8) and 202 an event (RFC 8935
/// §2.2); frameworks put another 2xx for it, and have it all the same. A 400 with an error code of RFC 8935 §2.4 is
/// final: what is wrong with the token will be wrong with the next one, and §2 has no SET sent again but for what may
/// pass. `invalid_key` may: the receiver's copy of our keys can be older than the key. So may a 400 for a logout token, which
/// also means that the receiver's own logout failed (§2.8).
pub fn classify_answer(kind: EndpointKind, status: u16, body: &[u8]) -> DeliveryOutcome {
    const FINAL: [&str; 5] =
        ["invalid_request", "invalid_issuer", "invalid_audience", "authentication_failed", "access_denied"];
    match (kind, status) {
        (EndpointKind::Logout | EndpointKind::Caep, 200..=299) => DeliveryOutcome::Taken,
        (EndpointKind::Caep, 400) => match FINAL.into_iter().find(|code| error_code(body).as_deref() == Some(code)) {
            Some(code) => DeliveryOutcome::Refused(format!("answered 400 {code}")),
            None => DeliveryOutcome::Failed("answered 400".to_owned()),
        },
        (EndpointKind::Logout | EndpointKind::Caep, _) => DeliveryOutcome::Failed(format!("answered {status}")),
    }
}

/// The `err` of an error response (RFC 8935 §2.3).
fn error_code(body: &[u8]) -> Option<String> {
    let said: Value = serde_json::from_slice(body).ok()?;
    Some(said.get("err")?.as_str()?.to_owned())
}

/// How long a receiver asks to be left alone: seconds, or a date (RFC 9110 §10.2.3). What is neither counts for nothing.
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let seconds = text.trim().parse().map(Duration::from_secs);
    seconds.ok().or_else(|| {
        let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        let at = Timestamp::from_seconds(i64::try_from(at.as_secs()).ok()?);
        Some(at.since(now))
    })
}

/// What becomes of a delivery whose attempt, of this number from 1 on, has failed just now.
///
/// The pause is drawn between half of its length and the whole by `random`, so that many that failed together do not come
/// back together. It is longer when the receiver asks for that, up to an hour.
pub fn after_failure(
    attempt: u32,
    queued_at: Timestamp,
    now: Timestamp,
    asked: Option<Duration>,
    random: u32,
) -> RetryDecision {
    let pause = backoff::wait(PAUSE_MIN, PAUSE_MAX, attempt.saturating_sub(1), random);
    let at = now + pause.max(asked.unwrap_or_default().min(PAUSE_MAX));
    if is_expired(queued_at, at) { RetryDecision::Dead } else { RetryDecision::RetryAt(at) }
}

/// Whether a delivery that has waited since `queued_at` is not tried any more.
pub fn is_expired(queued_at: Timestamp, now: Timestamp) -> bool {
    queued_at + DELIVERY_TTL <= now
}

/// Who ended a session, in the words of CAEP 1.0 §2.
pub const fn initiator(by: EndedBy) -> Initiator {
    match by {
        EndedBy::Holder | EndedBy::User(_) => Initiator::User,
        EndedBy::Service(_) => Initiator::System,
        EndedBy::Sessiond => Initiator::Policy,
        EndedBy::Operator => Initiator::Admin,
    }
}

/// Why a session ended, for a receiver's log.
pub const fn reason_text(reason: RevokeReason) -> &'static str {
    match reason {
        RevokeReason::SignedOut => "signed out",
        RevokeReason::RefreshTokenReused => "a refresh token was used twice",
        RevokeReason::Replaced => "a new session took its place",
        RevokeReason::Revoked => "ended by its id",
        RevokeReason::RevokedAll => "all sessions were ended",
        RevokeReason::Evicted => "made room for a new session",
        RevokeReason::Erased => "the user was erased",
        RevokeReason::KeyRevoked => "its signing key was revoked",
        RevokeReason::Restored => "the database was restored",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000_000);
    const TICK: Duration = Duration::from_micros(1);

    fn pause(attempt: u32, asked: Option<Duration>, random: u32) -> Duration {
        match after_failure(attempt, NOW, NOW, asked, random) {
            RetryDecision::RetryAt(at) => at.since(NOW),
            RetryDecision::Dead => panic!("attempt {attempt} is young"),
        }
    }

    #[test]
    fn pauses_double_and_are_drawn_and_bounded() {
        let (least, most) = (|attempt| pause(attempt, None, 0), |attempt| pause(attempt, None, u32::MAX));
        let seconds = Duration::from_secs;
        assert_eq!([1, 2, 3, 12].map(most), [seconds(1), seconds(2), seconds(4), seconds(2_048)]);
        assert_eq!([1, 2, 3].map(least), [seconds(1) / 2, seconds(1), seconds(2)]);
        assert_eq!([13, 40, u32::MAX].map(most), [PAUSE_MAX; 3]);
    }

    #[test]
    fn a_receiver_may_ask_for_more_within_bounds() {
        let minute = Duration::from_secs(60);
        assert_eq!(pause(1, Some(minute), 0), minute);
        assert_eq!(pause(12, Some(minute), 0), Duration::from_secs(1_024), "never for less");
        assert_eq!(pause(1, Some(PAUSE_MAX * 9), 0), PAUSE_MAX);

        assert_eq!(retry_after("120", NOW), Some(minute * 2));
        assert_eq!(retry_after("Sun, 09 Sep 2001 01:47:40 GMT", NOW), Some(minute));
        assert_eq!(retry_after("Sun, 09 Sep 2001 01:45:40 GMT", NOW), Some(Duration::ZERO), "passed");
        for nonsense in ["", "-1", "soon", "1e9"] {
            assert_eq!(retry_after(nonsense, NOW), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_delivery_is_tried_for_a_day() {
        assert!(!is_expired(NOW, NOW + DELIVERY_TTL - TICK));
        assert!(is_expired(NOW, NOW + DELIVERY_TTL));
        let second = Duration::from_secs(1);
        let last = NOW + DELIVERY_TTL - second;
        assert_eq!(after_failure(1, NOW, last - TICK, None, u32::MAX), RetryDecision::RetryAt(last + second - TICK));
        assert_eq!(after_failure(1, NOW, last, None, u32::MAX), RetryDecision::Dead);
    }

    #[test]
    fn an_answer_is_taken_for_what_it_means() {
        for kind in EndpointKind::ALL {
            for status in [200, 202, 204, 299] {
                assert_eq!(classify_answer(kind, status, b"whatever"), DeliveryOutcome::Taken);
            }
            for status in [100, 199, 300, 301, 302, 307, 401, 403, 404, 410, 429, 500, 503] {
                assert_eq!(classify_answer(kind, status, b"{}"), DeliveryOutcome::Failed(format!("answered {status}")));
            }
        }
        let invalid = br#"{"err": "invalid_audience", "description": "secret-looking"}"#;
        assert_eq!(
            classify_answer(EndpointKind::Caep, 400, invalid),
            DeliveryOutcome::Refused("answered 400 invalid_audience".to_owned())
        );
        for passing in [&br#"{"err": "invalid_key"}"#[..], br#"{"err": "x"}"#, br#"{"err": 1}"#, b"[]", b"", b"<html>"]
        {
            assert_eq!(
                classify_answer(EndpointKind::Caep, 400, passing),
                DeliveryOutcome::Failed("answered 400".to_owned())
            );
        }
        assert_eq!(
            classify_answer(EndpointKind::Logout, 400, invalid),
            DeliveryOutcome::Failed("answered 400".to_owned())
        );
    }
}
