//! A session and its lifetime.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::device::Device;
use super::device::DeviceNamer;
use super::epoch::Epoch;
use super::origin::Origin;
use super::policy::Policy;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;

/// Why a session was revoked. The numbers stored for it are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RevokeReason {
    /// The user signed out.
    SignedOut,
    /// A refresh token was reused: two parties held it.
    RefreshTokenReused,
    /// Replaced by a new session.
    Replaced,
    /// Revoked by id.
    Revoked,
    /// All sessions of the user or the project were revoked.
    RevokedAll,
    /// Evicted by the session limit.
    Evicted,
    /// The user was erased.
    Erased,
    /// The signing key of its tokens was revoked.
    KeyRevoked,
    /// The database was restored from a backup, which may lack revocations.
    Restored,
    /// The session's claims were changed, and its earlier access tokens superseded.
    Superseded,
}

impl RevokeReason {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::SignedOut,
        Self::RefreshTokenReused,
        Self::Replaced,
        Self::Revoked,
        Self::RevokedAll,
        Self::Evicted,
        Self::Erased,
        Self::KeyRevoked,
        Self::Restored,
        Self::Superseded,
    ];

    /// The name in the audit log and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignedOut => "SIGNED_OUT",
            Self::RefreshTokenReused => "REFRESH_TOKEN_REUSED",
            Self::Replaced => "REPLACED",
            Self::Revoked => "REVOKED",
            Self::RevokedAll => "REVOKED_ALL",
            Self::Evicted => "EVICTED",
            Self::Erased => "ERASED",
            Self::KeyRevoked => "KEY_REVOKED",
            Self::Restored => "RESTORED",
            Self::Superseded => "SUPERSEDED",
        }
    }
}

/// Who ended a session, or did something else that the audit log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndedBy {
    /// The holder of a token of the session.
    Holder,
    /// The user, from another session.
    User(SessionId),
    /// A service, with its server key.
    Service(KeyId),
    /// sessiond, by a rule.
    Sessiond,
    /// The operator, on the command line.
    Operator,
}

impl EndedBy {
    /// The names of all kinds.
    pub const NAMES: [&str; 5] = ["holder", "user", "service", "sessiond", "operator"];

    /// The name of the kind in the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Holder => "holder",
            Self::User(_) => "user",
            Self::Service(_) => "service",
            Self::Sessiond => "sessiond",
            Self::Operator => "operator",
        }
    }

    /// The id of the user's session, or of the service's key.
    pub const fn id(self) -> Option<Uuid> {
        match self {
            Self::User(session) => Some(session.as_uuid()),
            Self::Service(key) => Some(key.as_uuid()),
            Self::Holder | Self::Sessiond | Self::Operator => None,
        }
    }
}

/// The id of someone who acts as the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonator(pub String);

/// How and when the user authenticated, as far as the creating service stated it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentication {
    /// The time of authentication.
    pub time: Option<Timestamp>,
    /// The authentication context class reference.
    pub acr: Option<String>,
    /// The authentication methods (RFC 8176).
    pub amr: Vec<String>,
}

/// The device before a refresh changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceBefore {
    /// When it first changed on that day (UTC).
    pub changed_at: Timestamp,
    /// The device before that.
    pub device: Device,
}

/// About how many bytes of a listed session are its ids, times and names of fields.
const FIXED_BYTES: usize = 512;

/// About how many bytes an entry of a map or list takes beside its text: numbers are longest, as JSON and as protobuf.
const ENTRY_BYTES: usize = 24;

fn object_bytes(object: &serde_json::Map<String, serde_json::Value>) -> usize {
    object.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &serde_json::Value) -> usize {
    use serde_json::Value as Json;
    let within = match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(value_bytes).sum(),
        Json::Object(fields) => object_bytes(fields),
    };
    ENTRY_BYTES + within
}

/// One sign-in of one user on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// The id.
    pub id: SessionId,
    /// The project.
    pub project: ProjectId,
    /// The user.
    pub user: UserId,
    /// The epoch it was opened under.
    pub epoch: Epoch,
    /// Its own epoch, which its access tokens carry: raising it supersedes those issued before.
    pub own_epoch: i64,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Timestamp,
    /// When it was last used before the day (UTC) of `last_used_at`; `None` if it was opened on that day.
    pub used_before_at: Option<Timestamp>,
    /// When it expires at the latest. Half-open: at exactly this moment it has ended.
    pub expires_at: Timestamp,
    /// How long it may stay unused.
    pub idle_ttl: Duration,
    /// When it expires if it is not refreshed. Half-open, and never after `expires_at`.
    pub idle_expires_at: Timestamp,
    /// When and why it was revoked.
    pub revoked: Option<(Timestamp, RevokeReason)>,
    /// Who acts as the user, in an impersonation.
    pub impersonator: Option<Impersonator>,
    /// How the user authenticated.
    pub authentication: Authentication,
    /// The device.
    pub device: Device,
    /// The device before the day (UTC) on which it last changed; `None` if no refresh has changed it.
    pub device_before: Option<DeviceBefore>,
    /// The host application's labels.
    pub labels: BTreeMap<String, String>,
    /// The host application's claims, merged into every access token.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// The part of a session that decides whether it is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The epoch it was opened under.
    pub epoch: Epoch,
    /// When it expires at the latest.
    pub expires_at: Timestamp,
    /// When it expires if it is not refreshed.
    pub idle_expires_at: Timestamp,
    /// Whether it was revoked.
    pub is_revoked: bool,
}

impl Lifetime {
    /// Whether the session is live at this moment, under the present epochs.
    pub fn is_live(self, now: Timestamp, present: Epoch) -> bool {
        !self.is_revoked && now < self.expires_at && now < self.idle_expires_at && !self.epoch.is_before(present)
    }
}

/// When the epochs of a project and a user were last raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochRaisedAt {
    /// The project's.
    pub project: Option<Timestamp>,
    /// The user's.
    pub user: Option<Timestamp>,
}

impl Session {
    /// About how many bytes it takes in a list, as JSON or as protobuf.
    pub fn listed_bytes(&self) -> usize {
        let device =
            |device: &Device| [&device.name, &device.user_agent].into_iter().flatten().map(String::len).sum::<usize>();
        let labels: usize = self.labels.iter().map(|(key, value)| ENTRY_BYTES + key.len() + value.len()).sum();
        let shown_device =
            self.device_before.as_ref().map_or(0, |before| device(&before.device)).max(device(&self.device));
        FIXED_BYTES + self.user.as_str().len() + shown_device + labels + object_bytes(&self.claims)
    }

    /// Whether the session is live at this moment, under the present epochs.
    pub fn is_live(&self, now: Timestamp, present: Epoch) -> bool {
        self.lifetime().is_live(now, present)
    }

    const fn lifetime(&self) -> Lifetime {
        Lifetime {
            epoch: self.epoch,
            expires_at: self.expires_at,
            idle_expires_at: self.idle_expires_at,
            is_revoked: self.revoked.is_some(),
        }
    }

    /// Marks the session as revoked if a raised epoch has ended it. Its row does not say so: raising an epoch does not update
    /// the rows of the sessions.
    ///
    /// Only the last raise has a time. If it was the only one since the session was opened, and the session had expired by
    /// then, it did not end the session.
    #[must_use]
    pub fn with_epoch_revocation(mut self, present: Epoch, raised: EpochRaisedAt) -> Self {
        let end = self.expires_at.min(self.idle_expires_at);
        let revoked_at = |own: i64, present: i64, at: Option<Timestamp>| {
            at.filter(|at| own + 1 < present || (own < present && *at < end))
        };
        let by_project = revoked_at(self.epoch.project, present.project, raised.project);
        let by_user = revoked_at(self.epoch.user, present.user, raised.user);
        let by_epoch = by_project.into_iter().chain(by_user).min().map(|at| (at, RevokeReason::RevokedAll));
        self.revoked = self.revoked.into_iter().chain(by_epoch).min_by_key(|(at, _)| *at);
        self
    }

    /// The session as its user may see it at this moment: as it was at the last midnight (UTC).
    ///
    /// A thief with a copy of the tokens sees what the user sees, and the copy works within the grace of a refresh. So nothing
    /// here may reveal when a refresh happened. Rounding to a day is not enough, because the first refresh of a day would be
    /// visible at once. Only the end of an ended session is exact: it reveals nothing useful.
    #[must_use]
    pub fn as_shown_to_user(mut self, now: Timestamp) -> Self {
        let used_at = match self.last_used_at.day_begin() < now.day_begin() {
            true => self.last_used_at,
            false => self.used_before_at.unwrap_or(self.created_at),
        };
        let idle_expires_at = match self.idle_expires_at <= now {
            true => self.idle_expires_at.day_end(),
            // Still live: the next midnight at the earliest, so that the value does not contradict that.
            false => (used_at + self.idle_ttl).max(now + Duration::from_micros(1)).day_end(),
        };
        self.device = self.device_shown_to_user(now).clone();
        self.last_used_at = used_at.day_begin();
        self.idle_expires_at = idle_expires_at.min(self.expires_at);
        self
    }

    /// The device as its user may see it: as it was at the last midnight (UTC), or when the session was opened.
    pub fn device_shown_to_user(&self, now: Timestamp) -> &Device {
        match &self.device_before {
            Some(before) if before.changed_at.day_begin() >= now.day_begin() => &before.device,
            _ => &self.device,
        }
    }

    /// Updates the device from a refresh.
    pub fn update_from(&mut self, origin: &Origin, name_of: DeviceNamer, now: Timestamp) {
        let mut device = self.device.clone();
        device.update_from(origin, name_of);
        if device == self.device {
            return;
        }
        let before = std::mem::replace(&mut self.device, device);
        // If it has already changed on this day, keeps the device of midnight.
        if self.device_before.as_ref().is_none_or(|before| before.changed_at.day_begin() < now.day_begin()) {
            self.device_before = Some(DeviceBefore { changed_at: now, device: before });
        }
    }

    /// Records that the session was used, and restarts its idle time.
    pub fn touch(&mut self, now: Timestamp) {
        if self.last_used_at.day_begin() < now.day_begin() {
            self.used_before_at = Some(self.last_used_at);
        }
        // A replica whose clock is behind must not undo a later update.
        self.last_used_at = self.last_used_at.max(now);
        self.idle_expires_at = self.idle_expires_at.max(self.expires_at.min(now + self.idle_ttl));
    }

    /// When an access token issued at this moment expires: never after its session.
    pub fn access_expires_at(&self, now: Timestamp, policy: &Policy) -> Timestamp {
        (now + policy.access_token_ttl).min(self.expires_at).min(self.idle_expires_at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::NewSession;
    use super::*;
    use crate::id::Bucket;

    const START: Timestamp = Timestamp::from_seconds(1_000_000);
    const NOW: Epoch = Epoch { project: 1, user: 1 };
    const TICK: Duration = Duration::from_micros(1);

    fn session(ttl: Duration, idle_ttl: Duration) -> Session {
        let user = UserId::parse("ada").expect("an id");
        let new = NewSession { ttl, idle_ttl, ..NewSession::of(user, &Policy::default()) };
        let project = ProjectId::parse("demo").expect("a name");
        Session::open(crate::clock::new_session_id(START, Bucket::from_number(1)), project, NOW, new, START)
    }

    #[test]
    fn both_limits_are_half_open() {
        let absolute = session(Duration::from_secs(10), Duration::from_secs(100));
        let idle = session(Duration::from_secs(100), Duration::from_secs(10));
        let end = START + Duration::from_secs(10);
        for session in [absolute, idle] {
            assert!(session.is_live(end - TICK, NOW), "just before");
            assert!(!session.is_live(end, NOW), "at");
            assert!(!session.is_live(end + TICK, NOW), "just after");
        }
    }

    #[test]
    fn raising_either_epoch_ends_the_session() {
        let session = session(Duration::from_secs(10), Duration::from_secs(10));
        assert!(session.is_live(START, NOW));
        assert!(!session.is_live(START, Epoch { project: 2, user: 1 }));
        assert!(!session.is_live(START, Epoch { project: 1, user: 2 }));
    }

    #[test]
    fn a_session_ended_by_an_epoch_has_the_time_of_the_raise() {
        let (ttl, raised_at) = (Duration::from_secs(10), START + Duration::from_secs(5));
        let raised = EpochRaisedAt { project: None, user: Some(raised_at) };
        assert_eq!(session(ttl, ttl).with_epoch_revocation(NOW, raised).revoked, None, "opened after");
        let fallen = session(ttl, ttl).with_epoch_revocation(Epoch { project: 1, user: 2 }, raised);
        assert_eq!(fallen.revoked, Some((raised_at, RevokeReason::RevokedAll)));
        let before = (raised_at - TICK, RevokeReason::SignedOut);
        let signed_out = Session { revoked: Some(before), ..session(ttl, ttl) };
        assert_eq!(
            signed_out.with_epoch_revocation(Epoch { project: 1, user: 2 }, raised).revoked,
            Some(before),
            "the earlier one counts"
        );

        let short = Duration::from_secs(5);
        let lapsed = session(ttl, short).with_epoch_revocation(Epoch { project: 1, user: 2 }, raised);
        assert_eq!(lapsed.revoked, None, "it expired at that moment");
        let earlier = session(ttl, short).with_epoch_revocation(Epoch { project: 1, user: 3 }, raised);
        assert!(earlier.revoked.is_some(), "an earlier raise ended it");
    }

    #[test]
    fn use_extends_the_idle_limit_up_to_the_absolute_one() {
        let mut session = session(Duration::from_secs(25), Duration::from_secs(10));
        session.touch(START + Duration::from_secs(8));
        assert_eq!(session.idle_expires_at, START + Duration::from_secs(18));
        session.touch(START + Duration::from_secs(3));
        assert_eq!(session.idle_expires_at, START + Duration::from_secs(18), "a slower clock changes nothing");
        session.touch(START + Duration::from_secs(17));
        assert_eq!(session.idle_expires_at, session.expires_at);
    }

    /// Refreshes within a day do not change what the user sees.
    #[test]
    fn the_user_sees_changes_only_after_midnight() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        const HOUR: Duration = Duration::from_secs(60 * 60);
        for idle_ttl in [HOUR / 4, DAY, DAY * 90] {
            let mut session = session(DAY * 365, idle_ttl);
            let start = START.day_begin();
            for day in 1..100 {
                let (midnight, mut seen) = (start + DAY * day, vec![]);
                for hour in 0..24 {
                    let now = midnight + HOUR * hour + TICK;
                    seen.push(session.clone().as_shown_to_user(now));
                    // Used on some days, some hours, and on some days not at all.
                    if (day * 7 + hour) % (1 + day % 11) == 3 {
                        session.touch(now);
                        let ip = Some(std::net::Ipv4Addr::from(day * 24 + hour).into());
                        session.update_from(&Origin { ip, user_agent: None }, |_| None, now);
                        seen.push(session.clone().as_shown_to_user(now));
                    }
                }
                let visible =
                    |session: &Session| (session.last_used_at, session.idle_expires_at, session.device.clone());
                let while_live = seen.iter().filter(|session| session.idle_expires_at > midnight).map(visible);
                assert!(
                    while_live.clone().all(|one| Some(one) == while_live.clone().next()),
                    "day {day}, {idle_ttl:?}"
                );
                for (used, idle, _) in seen.iter().map(visible) {
                    assert_eq!((used, idle), (used.day_begin(), idle.day_begin()), "whole days");
                    assert!(used <= midnight);
                }
            }
        }
        let session = session(DAY, DAY * 90);
        assert_eq!(session.clone().as_shown_to_user(START).idle_expires_at, session.expires_at, "never after that");
    }

    #[test]
    fn the_user_sees_the_device_of_midnight() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let mut session = session(DAY * 365, DAY * 90);
        let start = START.day_begin();
        let ip = |last: u8| Some([192, 0, 2, last].into());
        let shown = |session: &Session, at: Duration| session.clone().as_shown_to_user(start + at).device.ip;
        let from = |last: u8| Origin { ip: ip(last), user_agent: None };
        session.update_from(&from(1), |_| None, start + DAY - TICK);
        assert_eq!(shown(&session, DAY - TICK), None, "as it was opened");
        assert_eq!(shown(&session, DAY), ip(1));
        session.update_from(&from(1), |_| None, start + DAY);
        session.update_from(&from(2), |_| None, start + DAY);
        session.update_from(&from(3), |_| None, start + DAY + TICK);
        assert_eq!((shown(&session, DAY * 2 - TICK), shown(&session, DAY * 2)), (ip(1), ip(3)));
        session.update_from(&from(3), |_| None, start + DAY * 5);
        session.touch(start + DAY * 5);
        assert_eq!(shown(&session, DAY * 5), ip(3), "no change has come since");
        session.update_from(&from(4), |_| None, start + DAY * 2);
        assert_eq!((shown(&session, DAY * 2), shown(&session, DAY * 3)), (ip(3), ip(4)), "a clock that is behind");
    }

    #[test]
    fn an_access_token_never_outlives_its_session() {
        let policy = Policy { access_token_ttl: Duration::from_secs(10), ..Policy::default() };
        let long = session(Duration::from_secs(100), Duration::from_secs(100));
        assert_eq!(long.access_expires_at(START, &policy), START + Duration::from_secs(10));
        let short = session(Duration::from_secs(5), Duration::from_secs(100));
        assert_eq!(short.access_expires_at(START, &policy), short.expires_at);
        let idle = session(Duration::from_secs(100), Duration::from_secs(5));
        assert_eq!(idle.access_expires_at(START, &policy), idle.idle_expires_at);
    }
}
