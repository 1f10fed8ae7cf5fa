//! How long what is over is kept.

use std::time::Duration;

use super::epoch::Epoch;
use super::lifecycle::EpochRaisedAt;
use crate::clock::Timestamp;

/// How long a `request_id` is remembered, and so may be repeated (AIP-155). Half-open: after exactly this time it is free.
pub const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a user without a session is remembered after the last cut-off: longer than any access token lives, so that no
/// verifier still holds the cut-off against whoever comes back under this name.
pub const USER_RETENTION: Duration = Duration::from_secs(48 * 60 * 60);

/// How long a retired key is kept: a genuine token ends its session for as long as any session may last, 367 days, and a
/// day more for clocks that differ.
pub const KEY_RETENTION: Duration = Duration::from_secs(368 * 24 * 60 * 60);

/// How long a line of the audit outlives the last token that it is news about, for verifiers whose clocks differ.
pub const REVOCATION_LEEWAY: Duration = Duration::from_secs(60 * 60);

/// How long what was delivered over a back-channel is kept, for whoever looks into it.
pub const DELIVERED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a delivery that was given up is kept, for the operator to have it tried again.
pub const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long a removed endpoint is kept: longer than any delivery that names it. One that was queued at the moment of the
/// removal is over a day later at the latest.
pub const REMOVED_ENDPOINT_RETENTION: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// What decides when a session was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTimes {
    /// When it was ended before its time.
    pub revoked_at: Option<Timestamp>,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
    /// When it ends if it is not refreshed before.
    pub idle_expires_at: Timestamp,
    /// The epoch it was opened under.
    pub epoch: Epoch,
}

impl EndTimes {
    /// When the session was, or will be, over: whatever comes first.
    ///
    /// A session that fell to an epoch which was raised again since counts from the last time: nothing earlier is known.
    pub fn ends_at(self, present: Epoch, raised: EpochRaisedAt) -> Timestamp {
        let by_project = (self.epoch.project < present.project).then_some(raised.project).flatten();
        let by_user = (self.epoch.user < present.user).then_some(raised.user).flatten();
        let early = [self.revoked_at, by_project, by_user].into_iter().flatten();
        early.fold(self.expires_at.min(self.idle_expires_at), Timestamp::min)
    }
}

/// What becomes of a line of the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditRetention {
    /// It stays as it is.
    Keep,
    /// It stays, without the address.
    Anonymize,
    /// It goes.
    Delete,
}

/// How long a project's past is kept. One set of periods for the whole installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPeriods {
    /// A session, after it was over.
    pub ended_sessions: Duration,
    /// A line of the audit.
    pub audit: Duration,
    /// The address in a line of the audit.
    pub addresses: Duration,
}

impl RetentionPeriods {
    /// Whether a session that was over at this moment goes. Half-open: after exactly the time, it does.
    pub fn should_delete_session(&self, ended_at: Timestamp, now: Timestamp) -> bool {
        is_past(ended_at, self.ended_sessions, now)
    }

    /// Judges a line of the audit, written at this moment, that is news until `access_expires_at`.
    pub fn audit_line(&self, at: Timestamp, access_expires_at: Timestamp, now: Timestamp) -> AuditRetention {
        if is_past(at, self.audit, now) && is_past(access_expires_at, REVOCATION_LEEWAY, now) {
            AuditRetention::Delete
        } else if is_past(at, self.addresses, now) {
            AuditRetention::Anonymize
        } else {
            AuditRetention::Keep
        }
    }

    /// Whether a server key that was revoked at this moment goes: with the audit that names it.
    pub fn should_delete_server_key(&self, revoked_at: Timestamp, now: Timestamp) -> bool {
        is_past(revoked_at, self.audit, now)
    }
}

/// Whether a request that was made at this moment is forgotten.
pub fn should_delete_request(created_at: Timestamp, now: Timestamp) -> bool {
    is_past(created_at, REQUEST_RETENTION, now)
}

/// Whether a delivery goes that was delivered, or given up, at these moments.
pub fn should_delete_delivery(delivered_at: Option<Timestamp>, dead_at: Option<Timestamp>, now: Timestamp) -> bool {
    delivered_at.is_some_and(|at| is_past(at, DELIVERED_RETENTION, now))
        || dead_at.is_some_and(|at| is_past(at, DEAD_RETENTION, now))
}

/// Whether a user without a session is forgotten, whose sessions were last ended all at once at this moment, or never.
pub fn should_delete_user(raised_at: Option<Timestamp>, now: Timestamp) -> bool {
    raised_at.is_none_or(|at| is_past(at, USER_RETENTION, now))
}

/// Whether a signing key or a refresh-token key that was retired at this moment goes.
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
    fn a_session_ends_by_whatever_comes_first() {
        let (same, none) = (end_times().epoch, EpochRaisedAt::default());
        assert_eq!(end_times().ends_at(same, none), END + DAY * 5, "unused");
        assert_eq!(EndTimes { expires_at: END + DAY, ..end_times() }.ends_at(same, none), END + DAY, "run out");
        assert_eq!(EndTimes { revoked_at: Some(END), ..end_times() }.ends_at(same, none), END, "ended");
        let late = EndTimes { revoked_at: Some(END + DAY * 7), ..end_times() };
        assert_eq!(late.ends_at(same, none), END + DAY * 5, "run out before it was ended");

        let raised = EpochRaisedAt { project: Some(END), user: Some(END + DAY) };
        assert_eq!(end_times().ends_at(same, raised), END + DAY * 5, "opened after");
        assert_eq!(end_times().ends_at(Epoch { project: 1, user: 2 }, raised), END + DAY, "fell with its user");
        assert_eq!(end_times().ends_at(Epoch { project: 2, user: 2 }, raised), END, "fell with its project");
        assert_eq!(end_times().ends_at(Epoch { project: 2, user: 2 }, none), END + DAY * 5, "fell, nobody knows when");
    }

    #[test]
    fn each_time_is_half_open() {
        let gone = |at| boundary(at).map(|now| PERIODS.should_delete_session(END, now));
        assert_eq!(gone(END + DAY * 30), [false, true, true]);
        assert_eq!(boundary(END + DAY).map(|now| should_delete_request(END, now)), [false, true, true]);
        assert_eq!(boundary(END + DAY * 2).map(|now| should_delete_user(Some(END), now)), [false, true, true]);
        assert!(should_delete_user(None, END));
        let delivered = boundary(END + DAY).map(|now| should_delete_delivery(Some(END), None, now));
        let dead = boundary(END + DAY * 30).map(|now| should_delete_delivery(None, Some(END), now));
        assert_eq!([delivered, dead], [[false, true, true]; 2]);
        assert!(!should_delete_delivery(None, None, END + DAY * 1_000), "it waits");
        assert_eq!(boundary(END + DAY * 368).map(|now| should_delete_key(END, now)), [false, true, true]);
        let server_key = boundary(END + DAY * 400).map(|now| PERIODS.should_delete_server_key(END, now));
        assert_eq!(server_key, [false, true, true]);
    }

    #[test]
    fn the_audit_loses_its_addresses_first_and_never_its_news() {
        let line = |at| boundary(at).map(|now| PERIODS.audit_line(END, END + DAY, now));
        assert_eq!(line(END + DAY * 30), [AuditRetention::Keep, AuditRetention::Anonymize, AuditRetention::Anonymize]);
        assert_eq!(line(END + DAY * 400), [AuditRetention::Anonymize, AuditRetention::Delete, AuditRetention::Delete]);

        let short = RetentionPeriods { audit: DAY, ..PERIODS };
        let news = END + DAY * 3;
        let line = boundary(news + REVOCATION_LEEWAY).map(|now| short.audit_line(END, news, now));
        assert_eq!(line, [AuditRetention::Keep, AuditRetention::Delete, AuditRetention::Delete]);
    }
}
