//! How long ended sessions, the audit log and other past records are kept.

use std::time::Duration;

use super::epoch::Epoch;
use super::lifecycle::EpochRaisedAt;
use crate::clock::Timestamp;

/// How long a `request_id` is stored, so that its request may be repeated (AIP-155). Half-open: at exactly this age it is
/// deleted.
pub const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a user without a session is kept after all their sessions were last revoked. Longer than the lifetime of any access
/// token, so that no verifier applies the revocation to a new user of the same name.
pub const USER_RETENTION: Duration = Duration::from_secs(48 * 60 * 60);

/// How long a retired key is kept: its tokens can sign out for as long as a session may last, 367 days, and a day more for
/// clock skew.
pub const KEY_RETENTION: Duration = Duration::from_secs(368 * 24 * 60 * 60);

/// How long an audit entry outlives the last token that it revokes, for verifiers with clock skew.
pub const REVOCATION_LEEWAY: Duration = Duration::from_secs(60 * 60);

/// How long a completed back-channel delivery is kept, for inspection.
pub const DELIVERED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an abandoned delivery is kept, so that the operator can requeue it.
pub const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long a removed endpoint is kept: longer than any delivery that refers to it, of which the last ends a day after the
/// removal.
pub const REMOVED_ENDPOINT_RETENTION: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// How long a writer of the feed is idle before it is closed.
pub const FEED_WRITER_IDLE: Duration = Duration::from_secs(60 * 60);

/// How long a closed writer of the feed is kept: longer than any access token that its last entry revokes, and than any cursor
/// that names it, whose lifetimes are a day and an hour more.
pub const FEED_WRITER_RETENTION: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// The part of a session that decides when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTimes {
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it expires at the latest.
    pub expires_at: Timestamp,
    /// When it expires if it is not refreshed.
    pub idle_expires_at: Timestamp,
    /// The epoch it was opened under.
    pub epoch: Epoch,
}

impl EndTimes {
    /// When the session ended or will end.
    ///
    /// If an epoch that ended the session was raised again since, the last raise counts: earlier ones are not stored.
    pub fn ends_at(self, present: Epoch, raised: EpochRaisedAt) -> Timestamp {
        let by_project = (self.epoch.project < present.project).then_some(raised.project).flatten();
        let by_user = (self.epoch.user < present.user).then_some(raised.user).flatten();
        let early = [self.revoked_at, by_project, by_user].into_iter().flatten();
        early.fold(self.expires_at.min(self.idle_expires_at), Timestamp::min)
    }
}

/// What happens to an audit entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditRetention {
    /// Kept unchanged.
    Keep,
    /// Kept without the IP address.
    Anonymize,
    /// Deleted.
    Delete,
}

/// The retention periods of the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPeriods {
    /// Ended sessions, from their end.
    pub ended_sessions: Duration,
    /// Audit entries.
    pub audit: Duration,
    /// IP addresses in audit entries.
    pub addresses: Duration,
}

impl RetentionPeriods {
    /// Whether to delete a session that ended at `ended_at`. Half-open: at exactly the retention period, yes.
    pub fn should_delete_session(&self, ended_at: Timestamp, now: Timestamp) -> bool {
        is_past(ended_at, self.ended_sessions, now)
    }

    /// Decides on an audit entry written at `at`. Revoked tokens may be in use until `access_expires_at`, and verifiers need the
    /// entry until then.
    pub fn audit_line(&self, at: Timestamp, access_expires_at: Timestamp, now: Timestamp) -> AuditRetention {
        if is_past(at, self.audit, now) && is_past(access_expires_at, REVOCATION_LEEWAY, now) {
            AuditRetention::Delete
        } else if is_past(at, self.addresses, now) {
            AuditRetention::Anonymize
        } else {
            AuditRetention::Keep
        }
    }

    /// Whether to delete a server key that was revoked at `revoked_at`: when the audit entries that name it are deleted.
    pub fn should_delete_server_key(&self, revoked_at: Timestamp, now: Timestamp) -> bool {
        is_past(revoked_at, self.audit, now)
    }
}

/// Whether to delete the record of a request made at `created_at`.
pub fn should_delete_request(created_at: Timestamp, now: Timestamp) -> bool {
    is_past(created_at, REQUEST_RETENTION, now)
}

/// Whether to delete a delivery that finished at `delivered_at` or was abandoned at `dead_at`.
pub fn should_delete_delivery(delivered_at: Option<Timestamp>, dead_at: Option<Timestamp>, now: Timestamp) -> bool {
    delivered_at.is_some_and(|at| is_past(at, DELIVERED_RETENTION, now))
        || dead_at.is_some_and(|at| is_past(at, DEAD_RETENTION, now))
}

/// Whether to delete a user without a session. `raised_at` is when all their sessions were last revoked.
pub fn should_delete_user(raised_at: Option<Timestamp>, now: Timestamp) -> bool {
    raised_at.is_none_or(|at| is_past(at, USER_RETENTION, now))
}

/// Whether to delete a signing key or refresh-token key that was retired at `retired_at`.
pub fn should_delete_key(retired_at: Timestamp, now: Timestamp) -> bool {
    is_past(retired_at, KEY_RETENTION, now)
}

fn is_past(at: Timestamp, kept: Duration, now: Timestamp) -> bool {
    at + kept <= now
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const TICK: Duration = Duration::from_micros(1);
    const END: Timestamp = Timestamp::from_seconds(1_000_000_000);
    const PERIODS: RetentionPeriods = RetentionPeriods {
        ended_sessions: Duration::from_secs(30 * 24 * 60 * 60),
        audit: Duration::from_secs(400 * 24 * 60 * 60),
        addresses: Duration::from_secs(30 * 24 * 60 * 60),
    };

    fn end_times() -> EndTimes {
        let epoch = Epoch { project: 1, user: 1 };
        EndTimes { revoked_at: None, expires_at: END + DAY * 9, idle_expires_at: END + DAY * 5, epoch }
    }

    /// Just before, at, just after.
    fn boundary(at: Timestamp) -> [Timestamp; 3] {
        [at - TICK, at, at + TICK]
    }

    #[test]
    fn a_session_ends_at_the_earliest_of_its_limits() {
        let (same, none) = (end_times().epoch, EpochRaisedAt::default());
        assert_eq!(end_times().ends_at(same, none), END + DAY * 5, "idle");
        assert_eq!(EndTimes { expires_at: END + DAY, ..end_times() }.ends_at(same, none), END + DAY, "expired");
        assert_eq!(EndTimes { revoked_at: Some(END), ..end_times() }.ends_at(same, none), END, "ended");
        let late = EndTimes { revoked_at: Some(END + DAY * 7), ..end_times() };
        assert_eq!(late.ends_at(same, none), END + DAY * 5, "expired before it was revoked");

        let raised = EpochRaisedAt { project: Some(END), user: Some(END + DAY) };
        assert_eq!(end_times().ends_at(same, raised), END + DAY * 5, "opened after");
        assert_eq!(end_times().ends_at(Epoch { project: 1, user: 2 }, raised), END + DAY, "with its user");
        assert_eq!(end_times().ends_at(Epoch { project: 2, user: 2 }, raised), END, "with its project");
        assert_eq!(end_times().ends_at(Epoch { project: 2, user: 2 }, none), END + DAY * 5, "at an unknown time");
    }

    #[test]
    fn each_period_is_half_open() {
        let deletes = |at| boundary(at).map(|now| PERIODS.should_delete_session(END, now));
        assert_eq!(deletes(END + DAY * 30), [false, true, true]);
        assert_eq!(boundary(END + DAY).map(|now| should_delete_request(END, now)), [false, true, true]);
        assert_eq!(boundary(END + DAY * 2).map(|now| should_delete_user(Some(END), now)), [false, true, true]);
        assert!(should_delete_user(None, END));
        let delivered = boundary(END + DAY).map(|now| should_delete_delivery(Some(END), None, now));
        let dead = boundary(END + DAY * 30).map(|now| should_delete_delivery(None, Some(END), now));
        assert_eq!([delivered, dead], [[false, true, true]; 2]);
        assert!(!should_delete_delivery(None, None, END + DAY * 1_000), "still queued");
        assert_eq!(boundary(END + DAY * 368).map(|now| should_delete_key(END, now)), [false, true, true]);
        let server_key = boundary(END + DAY * 400).map(|now| PERIODS.should_delete_server_key(END, now));
        assert_eq!(server_key, [false, true, true]);
    }

    #[test]
    fn the_audit_log_loses_addresses_first_and_no_revocation_in_use() {
        let line = |at| boundary(at).map(|now| PERIODS.audit_line(END, END + DAY, now));
        assert_eq!(line(END + DAY * 30), [AuditRetention::Keep, AuditRetention::Anonymize, AuditRetention::Anonymize]);
        assert_eq!(line(END + DAY * 400), [AuditRetention::Anonymize, AuditRetention::Delete, AuditRetention::Delete]);

        let short = RetentionPeriods { audit: DAY, ..PERIODS };
        let in_use_until = END + DAY * 3;
        let line = boundary(in_use_until + REVOCATION_LEEWAY).map(|now| short.audit_line(END, in_use_until, now));
        assert_eq!(line, [AuditRetention::Keep, AuditRetention::Delete, AuditRetention::Delete]);
    }
}
