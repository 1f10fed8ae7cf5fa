//! What a project has set.

use std::sync::Arc;
use std::time::Duration;

use super::opening::Findings;

/// The longest that an access token may last, whatever a project sets. A retired key stays published this long.
pub const ACCESS_TOKEN_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest that a session may last, and so the longest that an expired token can still name a live one: 367 days.
pub const SESSION_TTL_MAX: Duration = Duration::from_secs(367 * 24 * 60 * 60);

/// The shortest that a session or an idle limit may be: one second.
pub const SESSION_TTL_MIN: Duration = Duration::from_secs(1);

/// The most sessions that a limit may allow a user: to count them is part of each sign-in.
pub const SESSIONS_MAX: u32 = 1_000;

/// The most bytes that a project's own claims may take as JSON.
pub const DEFAULT_CLAIMS_BYTES_MAX: usize = 2_048;

/// One project's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How long an access token lasts at most; a session that ends earlier makes it shorter. Default 10 minutes.
    ///
    /// A verifier that does not follow the revocations goes on accepting a signed-out token for this long.
    pub access_token_ttl: Duration,

    /// How long after the issue of a successor its predecessor still gets that same one. Default 60 seconds.
    ///
    /// Half-open: at exactly this age it is over. Too short and a lost answer looks like theft; too long and a thief's
    /// copy goes unnoticed for as long.
    pub refresh_grace: Duration,

    /// How long a session lasts, unless its creator says otherwise. Default 365 days.
    pub session_ttl: Duration,

    /// The longest that a creator may ask for. Default 367 days.
    pub session_ttl_max: Duration,

    /// How long a session may stay unused, unless its creator says otherwise. Default 90 days. Counted from the last
    /// refresh: the check of an access token is something that we never see.
    pub idle_ttl: Duration,

    /// The longest that a creator may ask for. Default 367 days.
    pub idle_ttl_max: Duration,

    /// What a late repeat means while the successor lies unused.
    pub late_repeat: LateRepeat,

    /// How many live sessions a user may have; impersonations do not count. Default: any number.
    pub sessions: Option<SessionLimit>,

    /// Claims for every access token of the project. A session's own claim of the same name wins.
    pub default_claims: Arc<serde_json::Map<String, serde_json::Value>>,
}

/// How many live sessions a user may have, and what happens to one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimit {
    /// The most: 1 to [`SESSIONS_MAX`].
    pub max: u32,
    /// What happens then.
    pub overflow: Overflow,
}

/// What happens when a user with as many sessions as allowed signs in once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The sign-in is refused.
    Reject,
    /// The session that was opened first ends.
    EvictOldest,
    /// The session that was used last before all others ends.
    EvictIdle,
}

/// The reauthentication limits of NIST SP 800-63B-4, by authentication assurance level (§2.1.3, §2.2.3, §2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// At most 30 days; no limit on inactivity within them.
    Aal1,
    /// At most 24 hours, and 1 hour unused.
    Aal2,
    /// At most 12 hours, and 15 minutes unused.
    Aal3,
}

impl Preset {
    /// How long a session may last, and how long it may stay unused.
    pub const fn limits(self) -> (Duration, Duration) {
        const HOUR: u64 = 60 * 60;
        match self {
            Self::Aal1 => (Duration::from_secs(30 * 24 * HOUR), Duration::from_secs(30 * 24 * HOUR)),
            Self::Aal2 => (Duration::from_secs(24 * HOUR), Duration::from_secs(HOUR)),
            Self::Aal3 => (Duration::from_secs(12 * HOUR), Duration::from_secs(HOUR / 4)),
        }
    }
}

impl Policy {
    /// Sets the limits of a preset, as defaults and as bounds. An access token that would outlast the idle limit is cut to
    /// it: a session that is never refreshed is over by then, and so is its token.
    pub fn preset(&mut self, preset: Preset) {
        let (ttl, idle_ttl) = preset.limits();
        (self.session_ttl, self.session_ttl_max) = (ttl, ttl);
        (self.idle_ttl, self.idle_ttl_max) = (idle_ttl, idle_ttl);
        self.access_token_ttl = self.access_token_ttl.min(idle_ttl);
    }

    /// Checks the settings against each other and against the outer bounds.
    ///
    /// # Errors
    ///
    /// What is wrong, in words for the operator.
    pub fn check(&self) -> Result<(), &'static str> {
        let bounds = SESSION_TTL_MIN..=SESSION_TTL_MAX;
        if !bounds.contains(&self.session_ttl) || !bounds.contains(&self.idle_ttl) {
            return Err("a session's lifetime and idle limit must be 1s to 367days");
        }
        if self.session_ttl > self.session_ttl_max || self.session_ttl_max > SESSION_TTL_MAX {
            return Err("the longest lifetime must be no shorter than the usual one, and at most 367days");
        }
        if self.idle_ttl > self.idle_ttl_max || self.idle_ttl_max > SESSION_TTL_MAX {
            return Err("the longest idle limit must be no shorter than the usual one, and at most 367days");
        }
        if self.sessions.is_some_and(|limit| !(1..=SESSIONS_MAX).contains(&limit.max)) {
            return Err("the limit on sessions must be 1 to 1000");
        }
        let mut found = Findings::default();
        found.claims(&self.default_claims, DEFAULT_CLAIMS_BYTES_MAX);
        match found.is_empty() {
            true => Ok(()),
            false => Err("default claims must be at most 2048 bytes of JSON, at most 8 deep, without reserved names"),
        }
    }
}

/// What it means when a predecessor comes back after the grace and its successor was never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateRepeat {
    /// A client that lost the answer: it gets a new successor.
    Forgiven,
    /// Theft: the session ends. For those who would rather sign in again than wonder.
    Theft,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            access_token_ttl: Duration::from_secs(10 * 60),
            refresh_grace: Duration::from_secs(60),
            session_ttl: Duration::from_secs(365 * 24 * 60 * 60),
            session_ttl_max: SESSION_TTL_MAX,
            idle_ttl: Duration::from_secs(90 * 24 * 60 * 60),
            idle_ttl_max: SESSION_TTL_MAX,
            late_repeat: LateRepeat::Forgiven,
            sessions: None,
            default_claims: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_every_preset_hold_together() {
        assert_eq!(Policy::default().check(), Ok(()));
        for preset in [Preset::Aal1, Preset::Aal2, Preset::Aal3] {
            let mut policy = Policy::default();
            policy.preset(preset);
            assert_eq!(policy.check(), Ok(()), "{preset:?}");
            assert_eq!((policy.session_ttl_max, policy.idle_ttl_max), preset.limits());
        }
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let second = Duration::from_secs(1);
        let bad = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            assert!(policy.check().is_err(), "{policy:?}");
        };
        bad(|policy| policy.session_ttl = policy.session_ttl_max + Duration::from_millis(1));
        bad(|policy| policy.session_ttl_max = SESSION_TTL_MAX + Duration::from_millis(1));
        bad(|policy| policy.idle_ttl = policy.idle_ttl_max + Duration::from_millis(1));
        bad(|policy| policy.idle_ttl = Duration::from_millis(999));
        bad(|policy| policy.sessions = Some(SessionLimit { max: 0, overflow: Overflow::Reject }));
        bad(|policy| policy.sessions = Some(SessionLimit { max: SESSIONS_MAX + 1, overflow: Overflow::Reject }));
        bad(|policy| policy.default_claims = Arc::new([("sub".to_owned(), "eve".into())].into_iter().collect()));
        assert_eq!(Policy { session_ttl: second, idle_ttl: second, ..Policy::default() }.check(), Ok(()));
    }
}
