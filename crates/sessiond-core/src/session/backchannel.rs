//! Back-channel delivery of revocations to endpoints: the protocols, what a response means, and when to retry or give up.

use std::time::Duration;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::lifecycle::EndedBy;
use super::lifecycle::RevokeReason;
use crate::backoff;
use crate::clock::Timestamp;
use crate::token::event::Initiator;

/// The most endpoints of a project: each sign-out writes a row per endpoint.
pub const ENDPOINTS_MAX: usize = 16;

/// The longest audience of an endpoint, in bytes.
pub const AUDIENCE_LENGTH_MAX: usize = 255;

/// The most sessions that are delivered one by one when a bulk revocation spares one. With more, the delivery names the user
/// instead, which includes the spared session: the safe side.
pub const SESSION_NOTICES_MAX: usize = 1_000;

/// How long a delivery is retried. Half-open: at exactly this age it is dead, attempted or not, so the queue of an endpoint
/// holds nothing older.
pub const DELIVERY_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The delay after the first attempt; it doubles with each attempt.
const DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest delay, also if a receiver asks for more.
const DELAY_MAX: Duration = Duration::from_secs(60 * 60);

/// The protocol of an endpoint. The numbers stored for it are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointKind {
    /// OpenID Connect Back-Channel Logout 1.0: a logout token in a form.
    Logout,
    /// OpenID CAEP 1.0: a security event token, pushed as in RFC 8935.
    Caep,
}

impl EndpointKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Logout, Self::Caep];

    /// The name, on the command line and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Caep => "caep",
        }
    }

    /// Parses a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The receiver has accepted it.
    Accepted,
    /// A failure that may be temporary. The text is ours, never the receiver's.
    Failed(String),
    /// The receiver will never accept it. The text is ours.
    Refused(String),
}

/// What happens to a delivery after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Retried at this moment.
    RetryAt(Timestamp),
    /// Abandoned, unless the operator requeues it.
    Dead,
}

/// Classifies a receiver's response.
///
/// A logout token is acknowledged with 200 (OpenID Connect Back-Channel Logout 1.0 §2.8) and an event with 202 (RFC 8935
/// §2.2); any 2xx counts, as frameworks send others. A 400 with an error code of RFC 8935 §2.4 is final: the next token would
/// have the same fault, and §2 forbids retries unless the fault may be temporary. `invalid_key` may be: the receiver's copy of
/// our keys can be older than the key. So may a 400 for a logout token, which can mean that the receiver's own logout failed
/// (§2.8).
pub fn classify_answer(kind: EndpointKind, status: u16, body: &[u8]) -> DeliveryOutcome {
    const FINAL: [&str; 5] =
        ["invalid_request", "invalid_issuer", "invalid_audience", "authentication_failed", "access_denied"];
    match (kind, status) {
        (EndpointKind::Logout | EndpointKind::Caep, 200..=299) => DeliveryOutcome::Accepted,
        (EndpointKind::Caep, 400) => match FINAL.into_iter().find(|code| error_code(body).as_deref() == Some(code)) {
            Some(code) => DeliveryOutcome::Refused(format!("answered 400 {code}")),
            None => DeliveryOutcome::Failed("answered 400".to_owned()),
        },
        (EndpointKind::Logout | EndpointKind::Caep, _) => DeliveryOutcome::Failed(format!("answered {status}")),
    }
}

/// The `err` of an error response (RFC 8935 §2.3).
fn error_code(body: &[u8]) -> Option<String> {
    let error: Value = serde_json::from_slice(body).ok()?;
    Some(error.get("err")?.as_str()?.to_owned())
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110 §10.2.3). `None` if it is neither.
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let seconds = text.trim().parse().map(Duration::from_secs);
    seconds.ok().or_else(|| {
        let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        let at = Timestamp::from_seconds(i64::try_from(at.as_secs()).ok()?);
        Some(at.since(now))
    })
}

/// Decides on a delivery whose attempt has just failed. Attempts are counted from 1.
///
/// `random` shortens the delay by up to half, so that deliveries that failed together are not retried together. A receiver may
/// ask for a longer delay, up to an hour.
pub fn after_failure(
    attempt: u32,
    queued_at: Timestamp,
    now: Timestamp,
    asked: Option<Duration>,
    random: u32,
) -> RetryDecision {
    let delay = backoff::wait(DELAY_MIN, DELAY_MAX, attempt.saturating_sub(1), random);
    let at = now + delay.max(asked.unwrap_or_default().min(DELAY_MAX));
    if is_expired(queued_at, at) { RetryDecision::Dead } else { RetryDecision::RetryAt(at) }
}

/// Whether a delivery queued at `queued_at` is no longer retried.
pub fn is_expired(queued_at: Timestamp, now: Timestamp) -> bool {
    queued_at + DELIVERY_TTL <= now
}

/// Who ended a session, as CAEP 1.0 §2 names it.
pub const fn initiator(by: EndedBy) -> Initiator {
    match by {
        EndedBy::Holder | EndedBy::User(_) => Initiator::User,
        EndedBy::Service(_) => Initiator::System,
        EndedBy::Sessiond => Initiator::Policy,
        EndedBy::Operator => Initiator::Admin,
    }
}

/// Why a session ended, in English, for a receiver's log.
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
        RevokeReason::Superseded => "its access tokens were superseded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000_000);
    const TICK: Duration = Duration::from_micros(1);

    fn delay(attempt: u32, asked: Option<Duration>, random: u32) -> Duration {
        match after_failure(attempt, NOW, NOW, asked, random) {
            RetryDecision::RetryAt(at) => at.since(NOW),
            RetryDecision::Dead => panic!("attempt {attempt} is within the first day"),
        }
    }

    #[test]
    fn delays_double_with_jitter_up_to_the_maximum() {
        let (least, most) = (|attempt| delay(attempt, None, 0), |attempt| delay(attempt, None, u32::MAX));
        let seconds = Duration::from_secs;
        assert_eq!([1, 2, 3, 12].map(most), [seconds(1), seconds(2), seconds(4), seconds(2_048)]);
        assert_eq!([1, 2, 3].map(least), [seconds(1) / 2, seconds(1), seconds(2)]);
        assert_eq!([13, 40, u32::MAX].map(most), [DELAY_MAX; 3]);
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_delay_within_bounds() {
        let minute = Duration::from_secs(60);
        assert_eq!(delay(1, Some(minute), 0), minute);
        assert_eq!(delay(12, Some(minute), 0), Duration::from_secs(1_024), "never for less");
        assert_eq!(delay(1, Some(DELAY_MAX * 9), 0), DELAY_MAX);

        assert_eq!(retry_after("120", NOW), Some(minute * 2));
        assert_eq!(retry_after("Sun, 09 Sep 2001 01:47:40 GMT", NOW), Some(minute));
        assert_eq!(retry_after("Sun, 09 Sep 2001 01:45:40 GMT", NOW), Some(Duration::ZERO), "passed");
        for nonsense in ["", "-1", "soon", "1e9"] {
            assert_eq!(retry_after(nonsense, NOW), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_delivery_is_retried_for_a_day() {
        assert!(!is_expired(NOW, NOW + DELIVERY_TTL - TICK));
        assert!(is_expired(NOW, NOW + DELIVERY_TTL));
        let second = Duration::from_secs(1);
        let last = NOW + DELIVERY_TTL - second;
        assert_eq!(after_failure(1, NOW, last - TICK, None, u32::MAX), RetryDecision::RetryAt(last + second - TICK));
        assert_eq!(after_failure(1, NOW, last, None, u32::MAX), RetryDecision::Dead);
    }

    #[test]
    fn responses_are_classified() {
        for kind in EndpointKind::ALL {
            for status in [200, 202, 204, 299] {
                assert_eq!(classify_answer(kind, status, b"whatever"), DeliveryOutcome::Accepted);
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
