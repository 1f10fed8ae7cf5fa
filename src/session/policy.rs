//! What a project has set.

use std::time::Duration;

/// The longest that an access token may last, whatever a project sets. A retired key stays published this long.
pub const ACCESS_TOKEN_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest that a session may last, and so the longest that an expired token can still name a live one: 367 days.
pub const SESSION_TTL_MAX: Duration = Duration::from_secs(367 * 24 * 60 * 60);

/// How long a session lasts when nobody says: 365 days.
pub const SESSION_TTL_DEFAULT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The shortest that a session or an idle limit may be: one second.
pub const SESSION_TTL_MIN: Duration = Duration::from_secs(1);

/// One project's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// How long a session may stay unused, unless its creator says otherwise. Default 90 days. Counted from the last
    /// refresh: the check of an access token is something that we never see.
    pub idle_ttl: Duration,

    /// What a late repeat means while the successor lies unused.
    pub late_repeat: LateRepeat,
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
            idle_ttl: Duration::from_secs(90 * 24 * 60 * 60),
            late_repeat: LateRepeat::Forgiven,
        }
    }
}
