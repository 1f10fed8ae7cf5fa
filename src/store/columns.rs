//! Conversions between Rust values and columns: timestamps, durations and numbered enums. A number never changes its
//! meaning.

use std::time::Duration;

use diesel::pg::data_types::PgTimestamp;
use uuid::Uuid;

use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::SessionId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;

/// 2000-01-01T00:00:00Z, the epoch of Postgres' timestamps, in microseconds since 1970.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The first and the last timestamp of Postgres, 4714 BC and 294276 AD, in microseconds since its epoch.
const POSTGRES_MICROS_MIN: i64 = -211_813_488_000_000_000;
const POSTGRES_MICROS_MAX: i64 = 9_223_371_331_199_999_999;

/// The nearest time that Postgres can hold: a retention without end leads further back.
pub(super) fn to_pg(time: Timestamp) -> PgTimestamp {
    PgTimestamp(time.as_micros().saturating_sub(POSTGRES_EPOCH_MICROS).clamp(POSTGRES_MICROS_MIN, POSTGRES_MICROS_MAX))
}

pub(super) const fn from_pg(time: PgTimestamp) -> Timestamp {
    Timestamp::from_micros(time.0.saturating_add(POSTGRES_EPOCH_MICROS))
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A row count, for `LIMIT`.
pub(super) fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

pub(super) const fn reason_number(reason: RevokeReason) -> i16 {
    match reason {
        RevokeReason::SignedOut => 1,
        RevokeReason::RefreshTokenReused => 2,
        RevokeReason::Replaced => 3,
        RevokeReason::Revoked => 4,
        RevokeReason::RevokedAll => 5,
        RevokeReason::Evicted => 6,
        RevokeReason::Erased => 7,
        RevokeReason::KeyRevoked => 8,
        RevokeReason::Restored => 9,
        RevokeReason::Superseded => 10,
    }
}

/// Returns `None` if the number is unknown.
pub(super) fn reason_of(number: i16) -> Option<RevokeReason> {
    RevokeReason::ALL.into_iter().find(|reason| reason_number(*reason) == number)
}

/// The number of a service as an actor.
pub(super) const SERVICE: i16 = 3;

/// The actor's two columns: a number, and an id where the actor has one.
pub(super) const fn actor_columns(by: EndedBy) -> (i16, Option<Uuid>) {
    match by {
        EndedBy::Holder => (1, None),
        EndedBy::User(session) => (2, Some(session.as_uuid())),
        EndedBy::Service(key) => (SERVICE, Some(key.as_uuid())),
        EndedBy::Sessiond => (4, None),
        EndedBy::Operator => (5, None),
    }
}

/// Returns `None` if the two columns do not match.
pub(super) fn actor_of(number: i16, id: Option<Uuid>) -> Option<EndedBy> {
    match (number, id) {
        (1, None) => Some(EndedBy::Holder),
        (2, Some(session)) => Some(EndedBy::User(SessionId::from_uuid(session))),
        (SERVICE, Some(key)) => Some(EndedBy::Service(KeyId::from_uuid(key))),
        (4, None) => Some(EndedBy::Sessiond),
        (5, None) => Some(EndedBy::Operator),
        _ => None,
    }
}
