//! Writes `Set-Cookie` values.

use std::time::Duration;

use cookie::Cookie;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use super::ACCESS;
use super::FAMILY;
use super::Lifetime;
use super::PERSISTENT;
use super::REFRESH;
use super::prefix;
use sessiond_core::id::ProjectId;
use sessiond_core::session::policy::CookiePolicy;
use sessiond_core::session::policy::CookieScope;
use sessiond_core::session::policy::SameSite;

/// The most bytes of a name and a value together that browsers keep (RFC 6265bis §5.6).
pub const PAIR_BYTES_MAX: usize = 4_096;

/// The longest that browsers keep a cookie: 400 days (RFC 6265bis §5.5).
const MAX_AGE_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// The values for `Set-Cookie`: the access token's first. No `Debug` shows them.
#[derive(Clone)]
pub struct SetCookies {
    /// For the access token.
    pub access: SecretString,
    /// For the refresh token.
    pub refresh: SecretString,
}

/// A token is too long for a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoesNotFit;

impl SetCookies {
    /// The cookies that hold these tokens. `expires_in` is the time until the session expires.
    ///
    /// # Errors
    ///
    /// Fails if a token does not fit, or if the project uses no cookies.
    pub fn new(
        project: &ProjectId,
        policy: &CookiePolicy,
        (access, refresh): (&SecretString, &SecretString),
        lifetime: Lifetime,
        expires_in: Duration,
    ) -> Result<Self, DoesNotFit> {
        let (suffix, max_age) = match lifetime {
            Lifetime::Session => ("", None),
            Lifetime::Persistent => (PERSISTENT, Some(expires_in.min(MAX_AGE_MAX))),
        };
        let set = |kind, value: String| {
            let name = name(project, &policy.scope, kind).filter(|name| name.len() + value.len() <= PAIR_BYTES_MAX);
            Ok(SecretString::from(written(name.ok_or(DoesNotFit)?, value, policy, max_age)))
        };
        Ok(Self {
            access: set(ACCESS, access.expose_secret().to_owned())?,
            refresh: set(REFRESH, format!("{}{suffix}", refresh.expose_secret()))?,
        })
    }

    /// Both values.
    pub fn values(&self) -> [&str; 2] {
        [self.access.expose_secret(), self.refresh.expose_secret()]
    }
}

/// Whether an access token of this length fits into its cookie.
pub fn fits(project: &ProjectId, scope: &CookieScope, token_bytes: usize) -> bool {
    name(project, scope, ACCESS).is_some_and(|name| name.len() + token_bytes <= PAIR_BYTES_MAX)
}

/// The values that remove both cookies; none if the project uses no cookies.
pub fn cleared(project: &ProjectId, policy: &CookiePolicy) -> Vec<String> {
    let names = [ACCESS, REFRESH].into_iter().filter_map(|kind| name(project, &policy.scope, kind));
    names.map(|name| written(name, String::new(), policy, Some(Duration::ZERO))).collect()
}

fn name(project: &ProjectId, scope: &CookieScope, kind: &str) -> Option<String> {
    Some(format!("{}{FAMILY}{project}.{kind}", prefix(scope)?))
}

fn written(name: String, value: String, policy: &CookiePolicy, max_age: Option<Duration>) -> String {
    let same_site = match policy.same_site {
        SameSite::Lax => cookie::SameSite::Lax,
        SameSite::Strict => cookie::SameSite::Strict,
    };
    let mut cookie = Cookie::build((name, value)).path("/").secure(true).http_only(true).same_site(same_site).build();
    if let CookieScope::Domain(domain) = &policy.scope {
        cookie.set_domain(domain.to_string());
    }
    if let Some(max_age) = max_age {
        let seconds = i64::try_from(max_age.as_secs()).unwrap_or(i64::MAX);
        cookie.set_max_age(cookie::time::Duration::seconds(seconds));
    }
    cookie.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn shop() -> ProjectId {
        ProjectId::parse("shop").expect("a name")
    }

    fn set(policy: &CookiePolicy, lifetime: Lifetime, expires_in: Duration) -> [String; 2] {
        let tokens = [SecretString::from("a.b.c".to_owned()), SecretString::from("sdrt_x".to_owned())];
        let set = SetCookies::new(&shop(), policy, (&tokens[0], &tokens[1]), lifetime, expires_in);
        set.expect("fits").values().map(str::to_owned)
    }

    #[test]
    fn the_attributes_are_as_documented() {
        let host = CookiePolicy { scope: CookieScope::Host, ..CookiePolicy::default() };
        let [access, refresh] = set(&host, Lifetime::Session, DAY);
        assert_eq!(access, "__Host-sessiond.shop.access=a.b.c; HttpOnly; SameSite=Lax; Secure; Path=/");
        assert_eq!(refresh, "__Host-sessiond.shop.refresh=sdrt_x; HttpOnly; SameSite=Lax; Secure; Path=/");
        let [access, refresh] = set(&host, Lifetime::Persistent, DAY);
        assert!(access.ends_with("; Path=/; Max-Age=86400"), "{access}");
        assert!(refresh.starts_with("__Host-sessiond.shop.refresh=sdrt_x.p; "), "{refresh}");
        assert!(refresh.ends_with("; Path=/; Max-Age=86400"), "{refresh}");
        let [access, _] = set(&host, Lifetime::Persistent, 1_000 * DAY);
        assert!(access.ends_with("; Max-Age=34560000"), "{access}");

        let scope = CookieScope::Domain("example.org".into());
        let strict = CookiePolicy { scope, same_site: SameSite::Strict, clear_site_data: false };
        let [access, _] = set(&strict, Lifetime::Session, DAY);
        let expected =
            "__Secure-sessiond.shop.access=a.b.c; HttpOnly; SameSite=Strict; Secure; Path=/; Domain=example.org";
        assert_eq!(access, expected);
    }

    #[test]
    fn clearing_repeats_the_attributes() {
        let host = CookiePolicy { scope: CookieScope::Host, ..CookiePolicy::default() };
        let expected = ["access", "refresh"]
            .map(|kind| format!("__Host-sessiond.shop.{kind}=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0"));
        assert_eq!(cleared(&shop(), &host), expected);
        assert!(cleared(&shop(), &CookiePolicy::default()).is_empty());
    }

    #[test]
    fn a_lifetime_is_read_back() {
        assert_eq!(Lifetime::of("sdrt_x"), ("sdrt_x", Lifetime::Session));
        assert_eq!(Lifetime::of("sdrt_x.p"), ("sdrt_x", Lifetime::Persistent));
        assert_eq!(Lifetime::of(".p"), ("", Lifetime::Persistent));
    }

    #[test]
    fn a_token_must_fit() {
        let policy = CookiePolicy { scope: CookieScope::Host, ..CookiePolicy::default() };
        let room = PAIR_BYTES_MAX - "__Host-sessiond.shop.access".len();
        let new = |length: usize| {
            let (access, refresh) = (SecretString::from("a".repeat(length)), SecretString::from("r".to_owned()));
            SetCookies::new(&shop(), &policy, (&access, &refresh), Lifetime::Session, DAY).map(|_| ())
        };
        assert_eq!((new(room), new(room + 1)), (Ok(()), Err(DoesNotFit)));
        assert!(fits(&shop(), &policy.scope, room) && !fits(&shop(), &policy.scope, room + 1));
        assert!(!fits(&shop(), &CookieScope::Off, 1));
    }
}
