//! A project's policy, as flags and as text.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::Map;
use serde_json::Value;
use sessiond::config::duration;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::COOKIE_GRACE_MIN;
use sessiond_core::session::policy::CookieScope;
use sessiond_core::session::policy::LateRepeat;
use sessiond_core::session::policy::Overflow;
use sessiond_core::session::policy::Preset;
use sessiond_core::session::policy::Refreshing;
use sessiond_core::session::policy::RepeatElsewhere;
use sessiond_core::session::policy::SESSIONS_MAX;
use sessiond_core::session::policy::SameSite;
use sessiond_core::session::policy::SessionLimit;

/// A project's settings. Absent flags leave a setting unchanged; a new project starts with the defaults.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyArgs {
    /// Use the reauthentication limits of an assurance level of NIST SP 800-63B-4, as defaults and as maximums: aal1
    /// 30d in all; aal2 24h, and 1h idle; aal3 12h, and 15m idle. Other flags apply on top.
    #[arg(long, value_parser = preset, value_name = "LEVEL")]
    preset: Option<Preset>,

    /// How long an access token lasts at most: 1s to 1day. Default for a new project: 10m.
    #[arg(long, value_parser = duration::<1_000, 86_400_000>, value_name = "DURATION")]
    access_token_ttl: Option<Duration>,

    /// How long after a refresh the old refresh token still returns the same successor: 0s to 1h. Default for a new
    /// project: 10s, which `--cookies` raises to 60s, because new cookies come with the application's response.
    #[arg(long, value_parser = duration::<0, 3_600_000>, value_name = "DURATION")]
    refresh_grace: Option<Duration>,

    /// How long a session lasts, unless `CreateSession` says otherwise: 1s to 367days. Default for a new project: 365d.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    session_ttl: Option<Duration>,

    /// The most that `CreateSession` may ask for: 1s to 367days. Default for a new project: 367d.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    session_ttl_max: Option<Duration>,

    /// How long a session may be idle, unless `CreateSession` says otherwise: 1s to 367days. Default for a new project:
    /// 90d.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    idle_ttl: Option<Duration>,

    /// The most that `CreateSession` may ask for: 1s to 367days. Default for a new project: 367d.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    idle_ttl_max: Option<Duration>,

    /// Treat an old refresh token after the grace as stolen even if its successor was never used. Default for a new
    /// project: no; `--strict-refresh=false` restores it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    strict_refresh: Option<bool>,

    /// What to do if a refresh is repeated within the grace from another network (IPv4 /24, IPv6 /48) or user agent:
    /// `allow`, the default for a new project, returns the same successor; `end` treats it as theft. Either way it is
    /// in the audit log, the metrics and the log.
    #[arg(long, value_parser = repeat_elsewhere, value_name = "WHAT")]
    refresh_repeat_elsewhere: Option<RepeatElsewhere>,

    /// Accept refresh tokens only from clients that also send a server key of the project: by OAuth 2.0, or as a
    /// service through the Stack Auth adapter. Default for a new project: no; `--refresh-requires-client=false`
    /// restores it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    refresh_requires_client: Option<bool>,

    /// How recently (`auth_time`) a user must have authenticated to revoke sessions other than the current one: 1s to
    /// 367days, or `none`, the default for a new project. Signing out of the current session always works.
    #[arg(long, value_parser = auth_age, value_name = "DURATION")]
    revoke_auth_age: Option<AuthAge>,

    /// How a user must have authenticated to revoke sessions other than the current one: accepted values of `acr`, at
    /// most 8, separated by commas; or `none`, the default for a new project.
    #[arg(long, value_parser = acr_values, value_name = "VALUES")]
    revoke_acr: Option<AcrValues>,

    /// How long an impersonation lasts, unless `CreateSession` says otherwise: 1s to 367days. Default for a new
    /// project: 1h.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    impersonation_ttl: Option<Duration>,

    /// The longest that an impersonation lasts, whatever `CreateSession` asks for: 1s to 367days. Default for a new
    /// project: 24h. A refresh does not extend it.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    impersonation_ttl_max: Option<Duration>,

    /// How many live sessions a user may have, not counting impersonations: 1 to 1000, or `none`, the default for a new
    /// project.
    #[arg(long, value_parser = sessions_max, value_name = "COUNT")]
    sessions_max: Option<SessionsMax>,

    /// What to do when a user at the limit signs in again: `reject`, `evict-oldest` (revoke the oldest session), or
    /// `evict-idle` (revoke the one that was unused for longest). Default: `reject`.
    #[arg(long, value_parser = overflow, value_name = "WHAT")]
    sessions_overflow: Option<Overflow>,

    /// Claims in every access token of the project, as a JSON object of at most 2048 bytes. A session's own claim of
    /// the same name takes precedence. Default for a new project: none.
    #[arg(long, value_parser = claims, value_name = "JSON")]
    default_claims: Option<DefaultClaims>,

    /// Let browsers keep tokens in cookies: `host`, sent only to the host that set them; a domain such as `example.org`,
    /// sent to every subdomain too; or `off`, the default for a new project. See the guide on cookies.
    #[arg(long, value_parser = cookies, value_name = "SCOPE")]
    cookies: Option<CookieScope>,

    /// Whether browsers send the cookies when a user follows a link from another site: `lax`, the default for a new
    /// project, does; `strict` does not. Other requests from other sites never have them.
    #[arg(long, value_parser = same_site, value_name = "WHEN")]
    cookies_same_site: Option<SameSite>,

    /// At a sign-out by cookie, also clear what the browser has cached and stored for the origin (`Clear-Site-Data`).
    /// Default for a new project: no; `--cookies-clear-site-data=false` restores it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    cookies_clear_site_data: Option<bool>,
}

/// A limit, or none.
#[derive(Clone, Copy, Debug)]
struct SessionsMax(Option<u32>);

/// The maximum age of an authentication, or none.
#[derive(Clone, Copy, Debug)]
struct AuthAge(Option<Duration>);

/// Accepted values of `acr`; empty accepts any.
#[derive(Clone, Debug)]
struct AcrValues(Arc<[String]>);

type DefaultClaims = Arc<Map<String, Value>>;

fn cookies(text: &str) -> Result<CookieScope, &'static str> {
    match text {
        "off" => Ok(CookieScope::Off),
        "host" => Ok(CookieScope::Host),
        domain if domain.contains('.') => Ok(CookieScope::Domain(domain.into())),
        _ => Err("must be `off`, `host`, or a domain such as `example.org`"),
    }
}

fn same_site(text: &str) -> Result<SameSite, &'static str> {
    match text {
        "none" => Err("`none` is not offered: requests from other sites are refused anyway"),
        text => named(SameSite::ALL, SameSite::as_str, text).ok_or("must be `lax` or `strict`"),
    }
}

fn preset(text: &str) -> Result<Preset, &'static str> {
    named(Preset::ALL, Preset::as_str, text).ok_or("must be `aal1`, `aal2` or `aal3`")
}

fn overflow(text: &str) -> Result<Overflow, &'static str> {
    named(Overflow::ALL, Overflow::as_str, text).ok_or("must be `reject`, `evict-oldest` or `evict-idle`")
}

fn repeat_elsewhere(text: &str) -> Result<RepeatElsewhere, &'static str> {
    named(RepeatElsewhere::ALL, RepeatElsewhere::as_str, text).ok_or("must be `allow` or `end`")
}

fn auth_age(text: &str) -> Result<AuthAge, String> {
    match text {
        "none" => Ok(AuthAge(None)),
        text => {
            duration::<1_000, 31_708_800_000>(text).map(|age| AuthAge(Some(age))).map_err(|error| error.to_string())
        }
    }
}

fn acr_values(text: &str) -> Result<AcrValues, &'static str> {
    if text == "none" {
        return Ok(AcrValues(Arc::default()));
    }
    let values: Vec<String> = text.split(',').map(|value| value.trim().to_owned()).collect();
    match values.iter().all(|value| !value.is_empty()) {
        true => Ok(AcrValues(values.into())),
        false => Err("must be values separated by commas, or `none`"),
    }
}

fn named<T: Copy, const N: usize>(all: [T; N], name: fn(T) -> &'static str, text: &str) -> Option<T> {
    all.into_iter().find(|value| name(*value) == text)
}

fn sessions_max(text: &str) -> Result<SessionsMax, &'static str> {
    if text == "none" {
        return Ok(SessionsMax(None));
    }
    let max = text.parse().ok().filter(|max| (1..=SESSIONS_MAX).contains(max));
    max.map(|max| SessionsMax(Some(max))).ok_or("must be 1 to 1000, or `none`")
}

fn claims(text: &str) -> Result<DefaultClaims, &'static str> {
    serde_json::from_str(text).map(Arc::new).map_err(|_| "must be a JSON object")
}

impl PolicyArgs {
    /// Changes only the given settings.
    pub(crate) fn apply(&self, policy: &mut Policy) {
        let Self { preset, access_token_ttl, refresh_grace, session_ttl, session_ttl_max, idle_ttl, .. } = self;
        let Self { idle_ttl_max, strict_refresh, sessions_max, sessions_overflow, default_claims, .. } = self;
        let Self { refresh_repeat_elsewhere, refresh_requires_client, revoke_auth_age, revoke_acr, .. } = self;
        let Self { impersonation_ttl, impersonation_ttl_max, .. } = self;
        let Self { cookies, cookies_same_site, cookies_clear_site_data, .. } = self;
        if let Some(preset) = preset {
            policy.preset(*preset);
        }
        policy.access_token_ttl = access_token_ttl.unwrap_or(policy.access_token_ttl);
        policy.refresh_grace = refresh_grace.unwrap_or(policy.refresh_grace);
        policy.session_ttl = session_ttl.unwrap_or(policy.session_ttl);
        policy.session_ttl_max = session_ttl_max.unwrap_or(policy.session_ttl_max);
        policy.idle_ttl = idle_ttl.unwrap_or(policy.idle_ttl);
        policy.idle_ttl_max = idle_ttl_max.unwrap_or(policy.idle_ttl_max);
        if let Some(strict) = strict_refresh {
            policy.late_repeat = if *strict { LateRepeat::Theft } else { LateRepeat::Forgiven };
        }
        policy.repeat_elsewhere = refresh_repeat_elsewhere.unwrap_or(policy.repeat_elsewhere);
        if let Some(requires) = refresh_requires_client {
            policy.refreshing = if *requires { Refreshing::ByClientsAlone } else { Refreshing::ByAnyone };
        }
        if let Some(AuthAge(age)) = revoke_auth_age {
            policy.revoking.auth_age = *age;
        }
        if let Some(AcrValues(values)) = revoke_acr {
            policy.revoking.acr = Arc::clone(values);
        }
        policy.impersonation_ttl = impersonation_ttl.unwrap_or(policy.impersonation_ttl);
        policy.impersonation_ttl_max = impersonation_ttl_max.unwrap_or(policy.impersonation_ttl_max);
        if let Some(SessionsMax(max)) = sessions_max {
            let overflow = policy.sessions.map_or(Overflow::Reject, |limit| limit.overflow);
            policy.sessions = max.map(|max| SessionLimit { max, overflow });
        }
        if let (Some(limit), Some(overflow)) = (&mut policy.sessions, sessions_overflow) {
            limit.overflow = *overflow;
        }
        if let Some(claims) = default_claims {
            policy.default_claims = Arc::clone(claims);
        }
        if let Some(scope) = cookies {
            let is_default = refresh_grace.is_none() && policy.refresh_grace == Policy::default().refresh_grace;
            if is_default && !policy.cookies.scope.is_on() && scope.is_on() {
                policy.refresh_grace = COOKIE_GRACE_MIN;
            }
            policy.cookies.scope = scope.clone();
        }
        policy.cookies.same_site = cookies_same_site.unwrap_or(policy.cookies.same_site);
        policy.cookies.clear_site_data = cookies_clear_site_data.unwrap_or(policy.cookies.clear_site_data);
    }

    /// The policy of a new project.
    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        self.apply(&mut policy);
        policy
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    #[test]
    fn cookies_raise_the_default_refresh_grace() {
        let mut policy = Policy::default();
        let mut grace = |args: &[&str]| {
            let args = ["update"].iter().chain(args);
            Command::try_parse_from(args).unwrap_or_else(|error| panic!("{error}")).policy.apply(&mut policy);
            policy.refresh_grace.as_secs()
        };
        assert_eq!(grace(&["--cookies", "off"]), 10);
        assert_eq!(grace(&["--cookies", "host"]), 60);
        assert_eq!(grace(&["--refresh-grace", "5s"]), 5);
        grace(&["--cookies", "off"]);
        assert_eq!(grace(&["--cookies", "example.org"]), 5, "somebody has chosen it");
        grace(&["--cookies", "off", "--refresh-grace", "10s"]);
        assert_eq!(grace(&["--cookies", "host", "--refresh-grace", "0s"]), 0);
    }
}
