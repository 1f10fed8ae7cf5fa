//! The settings of a project.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::violation::TEXT_BYTES_MAX;
use super::violation::Violations;
use crate::clock::Timestamp;

/// The longest lifetime of an access token that a project may set. A retired key stays published this long.
pub const ACCESS_TOKEN_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest lifetime of a session: 367 days.
pub const SESSION_TTL_MAX: Duration = Duration::from_secs(367 * 24 * 60 * 60);

/// The shortest lifetime or idle limit of a session: one second.
pub const SESSION_TTL_MIN: Duration = Duration::from_secs(1);

/// The largest session limit: each sign-in counts the sessions.
pub const SESSIONS_MAX: u32 = 1_000;

/// The most bytes of a project's default claims as JSON.
pub const DEFAULT_CLAIMS_BYTES_MAX: usize = 2_048;

/// One project's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The lifetime of an access token; shorter if its session ends earlier. Default: 10 minutes.
    ///
    /// A verifier that does not follow the revocations accepts a revoked token for this long.
    pub access_token_ttl: Duration,

    /// How long a used refresh token may be repeated: it gets the same successor again. Counted from the issue of that
    /// successor. Default: 10 seconds.
    ///
    /// Half-open: at exactly this age the grace has ended. Too short, and a lost response looks like theft; too long, and a
    /// thief's copy stays unnoticed for that long.
    pub refresh_grace: Duration,

    /// The default lifetime of a session. Default: 365 days.
    pub session_ttl: Duration,

    /// The longest lifetime that a creator may request. Default: 367 days.
    pub session_ttl_max: Duration,

    /// The default idle limit of a session: how long it may stay unused. Default: 90 days. Counted from the last refresh, as
    /// sessiond does not see the offline verification of access tokens.
    pub idle_ttl: Duration,

    /// The longest idle limit that a creator may request. Default: 367 days.
    pub idle_ttl_max: Duration,

    /// The treatment of a repeat after the grace while the successor is unused.
    pub late_repeat: LateRepeat,

    /// The treatment of a repeat within the grace from another network or user agent.
    pub repeat_elsewhere: RepeatElsewhere,

    /// Who may refresh.
    pub refreshing: Refreshing,

    /// The authentication that a user needs to revoke sessions other than the current one.
    pub revoking: StepUp,

    /// The default lifetime of an impersonation. Default: 1 hour. Capped by `session_ttl_max`.
    pub impersonation_ttl: Duration,

    /// The longest lifetime of an impersonation; longer requests are capped. Default: 24 hours. A refresh does not extend it.
    pub impersonation_ttl_max: Duration,

    /// The limit on a user's live sessions, not counting impersonations. Default: none.
    pub sessions: Option<SessionLimit>,

    /// Claims for every access token of the project. A session's claim of the same name takes precedence.
    pub default_claims: Arc<serde_json::Map<String, serde_json::Value>>,

    /// Whether and how browsers may keep tokens in cookies. Default: not at all.
    pub cookies: CookiePolicy,
}

/// Whether and how browsers may keep a project's tokens in cookies (RFC 6265bis).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CookiePolicy {
    /// Where browsers send the cookies.
    pub scope: CookieScope,
    /// Whether browsers send the cookies when a user follows a link from another site.
    pub same_site: SameSite,
    /// Whether a sign-out also clears what the browser has cached and stored for the origin.
    pub clear_site_data: bool,
}

/// Where browsers send the cookies of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CookieScope {
    /// Cookies are not used.
    #[default]
    Off,
    /// To the host that set them.
    Host,
    /// To this domain and all of its subdomains. Lower case, without a leading dot.
    Domain(Arc<str>),
}

/// The attribute `SameSite`. `None` is not offered: requests from other sites are refused anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    /// Sent along when a user follows a link from another site.
    #[default]
    Lax,
    /// Never sent with a request from another site.
    Strict,
}

impl SameSite {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Lax, Self::Strict];

    /// The name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lax => "lax",
            Self::Strict => "strict",
        }
    }
}

/// The longest domain name, in bytes (RFC 1035 §2.3.4).
const DOMAIN_BYTES_MAX: usize = 253;

impl CookieScope {
    /// Whether cookies are used.
    pub const fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Whether the domain is a host name of at least two labels (RFC 1123 §2.1), in lower case, and not an address. Browsers refuse a
    /// public suffix themselves.
    fn fits(&self) -> bool {
        let Self::Domain(domain) = self else { return true };
        let label = |label: &str| {
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(is_plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = domain.rsplit('.').next().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()));
        domain.len() <= DOMAIN_BYTES_MAX && domain.contains('.') && domain.split('.').all(label) && is_name
    }
}

impl Policy {
    /// Every setting by its flag's name with underscores, in its flag's format.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        let acr = &self.revoking.acr;
        let cookies = match &self.cookies.scope {
            CookieScope::Off => "off",
            CookieScope::Host => "host",
            CookieScope::Domain(domain) => domain,
        };
        vec![
            ("access_token_ttl", duration_text(self.access_token_ttl).into()),
            ("refresh_grace", duration_text(self.refresh_grace).into()),
            ("session_ttl", duration_text(self.session_ttl).into()),
            ("session_ttl_max", duration_text(self.session_ttl_max).into()),
            ("idle_ttl", duration_text(self.idle_ttl).into()),
            ("idle_ttl_max", duration_text(self.idle_ttl_max).into()),
            ("strict_refresh", (self.late_repeat == LateRepeat::Theft).into()),
            ("refresh_repeat_elsewhere", self.repeat_elsewhere.as_str().into()),
            ("refresh_requires_client", (self.refreshing == Refreshing::ByClientsAlone).into()),
            ("revoke_auth_age", self.revoking.auth_age.map_or_else(|| "none".into(), |age| duration_text(age).into())),
            ("revoke_acr", if acr.is_empty() { "none".into() } else { acr.join(",").into() }),
            ("impersonation_ttl", duration_text(self.impersonation_ttl).into()),
            ("impersonation_ttl_max", duration_text(self.impersonation_ttl_max).into()),
            ("sessions_max", self.sessions.map_or_else(|| "none".into(), |limit| limit.max.into())),
            ("sessions_overflow", self.sessions.map_or(Overflow::Reject, |limit| limit.overflow).as_str().into()),
            ("default_claims", Value::Object((*self.default_claims).clone())),
            ("cookies", cookies.into()),
            ("cookies_same_site", self.cookies.same_site.as_str().into()),
            ("cookies_clear_site_data", self.cookies.clear_site_data.into()),
        ]
    }
}

/// The limit on a user's live sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimit {
    /// The most sessions: 1 to [`SESSIONS_MAX`].
    pub max: u32,
    /// What happens at a sign-in beyond the limit.
    pub overflow: Overflow,
}

/// What happens at a sign-in beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Refuses the sign-in.
    Reject,
    /// Ends the oldest session.
    EvictOldest,
    /// Ends the session that was used least recently.
    EvictIdle,
}

impl Overflow {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Reject, Self::EvictOldest, Self::EvictIdle];

    /// The name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::EvictOldest => "evict-oldest",
            Self::EvictIdle => "evict-idle",
        }
    }
}

/// The reauthentication limits of NIST SP 800-63B-4, by authentication assurance level (§2.1.3, §2.2.3, §2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// At most 30 days, without an idle limit.
    Aal1,
    /// At most 24 hours, or 1 hour idle.
    Aal2,
    /// At most 12 hours, or 15 minutes idle.
    Aal3,
}

impl Preset {
    /// Every level.
    pub const ALL: [Self; 3] = [Self::Aal1, Self::Aal2, Self::Aal3];

    /// The name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aal1 => "aal1",
            Self::Aal2 => "aal2",
            Self::Aal3 => "aal3",
        }
    }

    /// The longest lifetime and idle limit.
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
    /// Sets the limits of a preset, both as defaults and as bounds. Caps the lifetime of access tokens at the idle limit, when a
    /// session that is never refreshed ends.
    pub fn preset(&mut self, preset: Preset) {
        let (ttl, idle_ttl) = preset.limits();
        (self.session_ttl, self.session_ttl_max) = (ttl, ttl);
        (self.idle_ttl, self.idle_ttl_max) = (idle_ttl, idle_ttl);
        self.access_token_ttl = self.access_token_ttl.min(idle_ttl);
    }

    /// Validates the settings against each other and against the bounds.
    ///
    /// # Errors
    ///
    /// Returns the first violation, with a message for the operator.
    pub fn check(&self) -> Result<(), PolicyError> {
        let bounds = SESSION_TTL_MIN..=SESSION_TTL_MAX;
        if !bounds.contains(&self.session_ttl) || !bounds.contains(&self.idle_ttl) {
            return Err(PolicyError::Rule("a session's lifetime and idle limit must be 1s to 367days"));
        }
        if self.session_ttl_max > SESSION_TTL_MAX || self.idle_ttl_max > SESSION_TTL_MAX {
            return Err(PolicyError::Rule("--session-ttl-max and --idle-ttl-max must be at most 367days"));
        }
        let bounded =
            [("session-ttl", self.session_ttl, self.session_ttl_max), ("idle-ttl", self.idle_ttl, self.idle_ttl_max)];
        if let Some((flag, ttl, max)) = bounded.into_iter().find(|(_, ttl, max)| ttl > max) {
            return Err(PolicyError::Longer { flag, ttl, max, preset: self.preset_of_bounds() });
        }
        if self.sessions.is_some_and(|limit| !(1..=SESSIONS_MAX).contains(&limit.max)) {
            return Err(PolicyError::Rule("the limit on sessions must be 1 to 1000"));
        }
        if self.impersonation_ttl > self.impersonation_ttl_max {
            let (flag, ttl, max) = ("impersonation-ttl", self.impersonation_ttl, self.impersonation_ttl_max);
            return Err(PolicyError::Longer { flag, ttl, max, preset: None });
        }
        if self.impersonation_ttl < SESSION_TTL_MIN || self.impersonation_ttl_max > SESSION_TTL_MAX {
            return Err(PolicyError::Rule("--impersonation-ttl and --impersonation-ttl-max must be 1s to 367days"));
        }
        if !self.revoking.fits() {
            return Err(PolicyError::Rule(
                "--revoke-auth-age must be 1s to 367days, and --revoke-acr at most 8 values without spaces, commas and \
                 quotation marks",
            ));
        }
        if !self.cookies.scope.fits() {
            return Err(PolicyError::Rule(
                "--cookies must be `off`, `host`, or a domain in lower case such as `example.org`",
            ));
        }
        if self.cookies.scope.is_on() && self.refreshing == Refreshing::ByClientsAlone {
            return Err(PolicyError::Rule(
                "--cookies and --refresh-requires-client exclude each other: a browser has no server key",
            ));
        }
        let mut found = Violations::default();
        found.claims(&self.default_claims, DEFAULT_CLAIMS_BYTES_MAX);
        match found.is_empty() {
            true => Ok(()),
            false => Err(PolicyError::Rule(
                "default claims must be at most 2048 bytes of JSON, at most 8 deep, without reserved names",
            )),
        }
    }

    /// The preset that has these bounds, if any: the preset itself is not stored.
    fn preset_of_bounds(&self) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.limits() == (self.session_ttl_max, self.idle_ttl_max))
    }
}

/// Why a policy is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A default exceeds its bound.
    #[error("{}", longer(flag, *ttl, *max, *preset))]
    Longer {
        /// The default's flag, without hyphens in front; the bound's has the suffix `-max`.
        flag: &'static str,
        /// The default.
        ttl: Duration,
        /// The bound.
        max: Duration,
        /// The preset that set the bounds.
        preset: Option<Preset>,
    },
    /// A setting is out of bounds.
    #[error("{0}")]
    Rule(&'static str),
}

/// Names both flags and values, because either may have been set earlier.
fn longer(flag: &str, ttl: Duration, max: Duration, preset: Option<Preset>) -> String {
    let (ttl, max) = (duration_text(ttl), duration_text(max));
    let from = preset.map(|preset| format!(", the limit of preset {}", preset.as_str())).unwrap_or_default();
    let leaves = preset.map_or("", |_| ", which departs from the preset");
    format!(
        "--{flag} {ttl} is longer than --{flag}-max {max}{from}: give --{flag} {max} or less, or --{flag}-max {ttl} or \
         more as well{leaves}"
    )
}

/// Formats a duration as a flag value, in the largest unit that divides it.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let divides = |(_, unit): &&(&str, u128)| millis != 0 && millis.is_multiple_of(*unit);
    units.iter().find(divides).map_or("0s".to_owned(), |(name, unit)| format!("{}{name}", millis / unit))
}

/// The treatment of a refresh token that is repeated after the grace while its successor is unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateRepeat {
    /// A lost response: the client gets a new successor.
    Forgiven,
    /// Theft: the session ends.
    Theft,
}

/// The treatment of a refresh that is repeated within the grace from another network or user agent. Either way it is logged,
/// counted, and recorded in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatElsewhere {
    /// A client that changed networks: it gets the same successor.
    Allowed,
    /// Theft: the session ends. A client that loses a response while it changes networks has to sign in again.
    Theft,
}

impl RepeatElsewhere {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Allowed, Self::Theft];

    /// The name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allow",
            Self::Theft => "end",
        }
    }
}

/// Who may refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshing {
    /// Anyone with a refresh token.
    ByAnyone,
    /// Only clients that authenticate with a server key of the project (RFC 6749 §2.3).
    ByClientsAlone,
}

/// The authentication that an access token must be based on (RFC 9470).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepUp {
    /// The largest age, by the session's `auth_time`. Half-open: exactly this age is too old.
    pub auth_age: Option<Duration>,
    /// The accepted values of `acr`. Empty: any value, or none.
    pub acr: Arc<[String]>,
}

/// The most `acr` values in a policy.
pub const ACR_VALUES_MAX: usize = 8;

/// A requirement on the user's authentication is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStepUp {
    /// `acr_values`.
    #[error(
        "must be 1 to 8 values of 1 to 255 printable ASCII characters each, without space, comma, quotation mark and backslash"
    )]
    Acr,
    /// `max_age`.
    #[error("must be 1 to 31708800 whole seconds")]
    MaxAge,
}

impl StepUp {
    /// A requirement: one of these values of `acr`, if any are given, and an authentication more recent than `max_age`, in whole
    /// seconds of 1 s to 367 d.
    ///
    /// # Errors
    ///
    /// [`InvalidStepUp`].
    pub fn new(
        acr: impl IntoIterator<Item = impl Into<String>>,
        max_age: Option<Duration>,
    ) -> Result<Self, InvalidStepUp> {
        let required = Self { auth_age: max_age, acr: acr.into_iter().map(Into::into).collect() };
        if required.auth_age.is_some_and(|age| age.subsec_nanos() > 0) || !required.has_valid_age() {
            return Err(InvalidStepUp::MaxAge);
        }
        if required.has_valid_acr() { Ok(required) } else { Err(InvalidStepUp::Acr) }
    }

    /// Parses the parameters of RFC 9470 §3: `acr_values`, separated by spaces, and `max_age` in seconds.
    ///
    /// # Errors
    ///
    /// [`InvalidStepUp`], also for a parameter without a value: a requirement must not get lost.
    pub fn parse(acr_values: Option<&str>, max_age: Option<&str>) -> Result<Self, InvalidStepUp> {
        let acr: Vec<&str> = acr_values.map(|values| values.split(' ').collect()).unwrap_or_default();
        let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let max_age = max_age.map(|text| Some(text).filter(is_number).and_then(|text| text.parse().ok()));
        let max_age = max_age.map(|seconds| seconds.map(Duration::from_secs).ok_or(InvalidStepUp::MaxAge));
        Self::new(acr, max_age.transpose()?)
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.auth_age.is_none() && self.acr.is_empty()
    }

    /// Whether an authentication is sufficient. An unknown value does not meet a requirement.
    pub fn admits(&self, auth_time: Option<Timestamp>, acr: Option<&str>, now: Timestamp) -> bool {
        let is_recent = self.auth_age.is_none_or(|age| auth_time.is_some_and(|at| now < at + age));
        let is_strong = self.acr.is_empty() || acr.is_some_and(|acr| self.acr.iter().any(|known| known == acr));
        is_recent && is_strong
    }

    fn fits(&self) -> bool {
        self.has_valid_age() && self.has_valid_acr()
    }

    fn has_valid_age(&self) -> bool {
        self.auth_age.is_none_or(|age| (SESSION_TTL_MIN..=SESSION_TTL_MAX).contains(&age))
    }

    fn has_valid_acr(&self) -> bool {
        // They are sent in a quoted, space-separated header parameter (RFC 9470 §3).
        let value = |acr: &String| {
            let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\' && byte != b',';
            (1..=TEXT_BYTES_MAX).contains(&acr.len()) && acr.bytes().all(fits)
        };
        self.acr.len() <= ACR_VALUES_MAX && self.acr.iter().all(value)
    }
}

/// The least refresh grace that suits cookies. The new cookies come with the application's response, which may take a minute: until
/// then the browser sends the old ones.
pub const COOKIE_GRACE_MIN: Duration = Duration::from_secs(60);

impl Default for Policy {
    fn default() -> Self {
        Self {
            access_token_ttl: Duration::from_secs(10 * 60),
            refresh_grace: Duration::from_secs(10),
            session_ttl: Duration::from_secs(365 * 24 * 60 * 60),
            session_ttl_max: SESSION_TTL_MAX,
            idle_ttl: Duration::from_secs(90 * 24 * 60 * 60),
            idle_ttl_max: SESSION_TTL_MAX,
            late_repeat: LateRepeat::Forgiven,
            repeat_elsewhere: RepeatElsewhere::Allowed,
            refreshing: Refreshing::ByAnyone,
            revoking: StepUp::default(),
            impersonation_ttl: Duration::from_secs(60 * 60),
            impersonation_ttl_max: Duration::from_secs(24 * 60 * 60),
            sessions: None,
            default_claims: Arc::default(),
            cookies: CookiePolicy::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_presets_are_valid() {
        assert_eq!(Policy::default().check(), Ok(()));
        for preset in [Preset::Aal1, Preset::Aal2, Preset::Aal3] {
            let mut policy = Policy::default();
            policy.preset(preset);
            assert_eq!(policy.check(), Ok(()), "{preset:?}");
            assert_eq!((policy.session_ttl_max, policy.idle_ttl_max), preset.limits());
        }
    }

    #[test]
    fn durations_round_trip() {
        for (millis, text) in
            [(0, "0s"), (1, "1ms"), (1_500, "1500ms"), (60_000, "1m"), (90 * 86_400_000, "90d"), (90_000, "90s")]
        {
            assert_eq!(duration_text(Duration::from_millis(millis)), text);
            assert_eq!(humantime::parse_duration(text), Ok(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn a_default_beyond_its_bound_names_flag_and_preset() {
        let mut policy = Policy::default();
        policy.preset(Preset::Aal2);
        policy.idle_ttl = Duration::from_secs(30 * 24 * 60 * 60);
        let error = policy.check().expect_err("the preset's bound").to_string();
        let expected = "--idle-ttl 30d is longer than --idle-ttl-max 1h, the limit of preset aal2: give --idle-ttl 1h or \
                        less, or --idle-ttl-max 30d or more as well, which departs from the preset";
        assert_eq!(error, expected);
        let long = Policy { session_ttl_max: Duration::from_secs(60), ..Policy::default() };
        let expected = "--session-ttl 365d is longer than --session-ttl-max 1m: give --session-ttl 1m or less, or \
                        --session-ttl-max 365d or more as well";
        assert_eq!(long.check().expect_err("the bound").to_string(), expected);
    }

    #[test]
    fn a_step_up_is_half_open_and_unknown_values_do_not_meet_it() {
        let (now, age) = (Timestamp::from_seconds(1_000_000), Duration::from_secs(300));
        let tick = Duration::from_micros(1);
        assert!(StepUp::default().admits(None, None, now));
        let recent = StepUp { auth_age: Some(age), ..StepUp::default() };
        let ages = [age - tick, age, age + tick].map(|age| recent.admits(Some(now - age), None, now));
        assert_eq!(ages, [true, false, false]);
        assert!(!recent.admits(None, None, now));
        let strong = StepUp { acr: ["aal2".to_owned(), "aal3".to_owned()].into(), ..StepUp::default() };
        let acrs = [Some("aal2"), Some("aal3"), Some("aal1"), None].map(|acr| strong.admits(None, acr, now));
        assert_eq!(acrs, [true, true, false, false]);
    }

    #[test]
    fn a_cookie_domain_is_a_host_name_in_lower_case() {
        let check = |domain: &str| {
            let scope = CookieScope::Domain(domain.into());
            let cookies = CookiePolicy { scope, ..CookiePolicy::default() };
            Policy { cookies, ..Policy::default() }.check().is_ok()
        };
        for good in ["example.org", "a.b-c.example", "xn--bcher-kva.example", "1.example"] {
            assert!(check(good), "{good}");
        }
        for bad in [
            "",
            "org",
            ".example.org",
            "example.org.",
            "Example.org",
            "a..b",
            "-a.org",
            "a-.org",
            "127.0.0.1",
            "a b.org",
            "a.org; Secure",
            "bücher.example",
            "example.org:80",
        ] {
            assert!(!check(bad), "{bad}");
        }
        assert!(!check(&format!("{}.org", "a.".repeat(130))));
    }

    #[test]
    fn invalid_policies_are_refused() {
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
        bad(|policy| policy.impersonation_ttl_max = policy.impersonation_ttl - Duration::from_millis(1));
        bad(|policy| policy.impersonation_ttl_max = SESSION_TTL_MAX + Duration::from_millis(1));
        bad(|policy| policy.revoking.auth_age = Some(Duration::from_millis(999)));
        bad(|policy| policy.revoking.acr = ["two words".to_owned()].into());
        bad(|policy| {
            policy.cookies.scope = CookieScope::Host;
            policy.refreshing = Refreshing::ByClientsAlone;
        });
        bad(|policy| policy.default_claims = Arc::new([("sub".to_owned(), "eve".into())].into_iter().collect()));
        assert_eq!(Policy { session_ttl: second, idle_ttl: second, ..Policy::default() }.check(), Ok(()));
    }

    #[test]
    fn a_requirement_is_parsed_as_a_whole_or_not_at_all() {
        let parse = StepUp::parse;
        assert!(parse(None, None).expect("nothing").is_empty());
        let required = parse(Some("aal2 aal3"), Some("300")).expect("well-formed");
        assert_eq!(
            (required.auth_age, &required.acr[..]),
            (Some(Duration::from_secs(300)), &["aal2".into(), "aal3".into()][..])
        );
        let long = "a".repeat(256);
        for acr in ["", " ", "aal2  aal3", " aal2", "a\"b", "a,b", "a\\b", "\u{e4}", long.as_str(), "1 2 3 4 5 6 7 8 9"]
        {
            assert_eq!(parse(Some(acr), None), Err(InvalidStepUp::Acr), "{acr:?}");
        }
        for age in ["", " ", "0", "-1", "+1", "1.5", "5m", "31708801", "99999999999999999999"] {
            assert_eq!(parse(None, Some(age)), Err(InvalidStepUp::MaxAge), "{age:?}");
        }
        assert!(parse(Some("urn:mace:incommon:iap:silver"), Some("31708800")).is_ok());
        assert_eq!(StepUp::new([""; 0], Some(Duration::from_millis(1_500))), Err(InvalidStepUp::MaxAge));
    }
}
