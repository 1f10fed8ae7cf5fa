//! Tokens in cookies (RFC 6265bis): their names, how they are read and written, and which requests may use them. Pure: values in,
//! a decision out.
//!
//! Each project has two cookies, one per token. The name contains the project:
//!
//! ```text
//! __Host-sessiond.PROJECT.access      __Secure-sessiond.PROJECT.access     with a `Domain`
//! __Host-sessiond.PROJECT.refresh     __Secure-sessiond.PROJECT.refresh
//! ```

mod page;
mod read;
mod same_origin;
mod write;

pub use page::is_page;
pub use page::login_location;
pub use read::COOKIE_BYTES_MAX;
pub use read::RequestCookies;
pub use read::TooLarge;
pub use read::without_ours;
pub use same_origin::CSRF_HEADER;
pub use same_origin::FetchHeaders;
pub use same_origin::Host;
pub use same_origin::needs_same_origin;
pub use write::DoesNotFit;
pub use write::PAIR_BYTES_MAX;
pub use write::SetCookies;
pub use write::cleared;
pub use write::fits;

use sessiond_core::session::policy::CookieScope;

/// Between the prefix and the project.
const FAMILY: &str = "sessiond.";

const ACCESS: &str = "access";
const REFRESH: &str = "refresh";

/// How long a browser keeps the cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is closed.
    Session,
    /// Until the session expires.
    Persistent,
}

/// The suffix of a refresh cookie's value if it is persistent. Not part of any token: tokens have no dot.
const PERSISTENT: &str = ".p";

impl Lifetime {
    /// Splits a refresh cookie's value into the token and its lifetime.
    pub fn of(value: &str) -> (&str, Self) {
        match value.strip_suffix(PERSISTENT) {
            Some(token) => (token, Self::Persistent),
            None => (value, Self::Session),
        }
    }
}

/// The prefix of the cookies' names, which browsers enforce (RFC 6265bis §4.1.3). `None` if cookies are not used.
const fn prefix(scope: &CookieScope) -> Option<&'static str> {
    match scope {
        CookieScope::Off => None,
        CookieScope::Host => Some("__Host-"),
        CookieScope::Domain(_) => Some("__Secure-"),
    }
}

/// The project and the kind in the name of one of our cookies.
fn parse_name<'n>(name: &'n str, prefix: &str) -> Option<(&'n str, &'n str)> {
    name.strip_prefix(prefix)?
        .strip_prefix(FAMILY)?
        .split_once('.')
        .filter(|(_, kind)| [ACCESS, REFRESH].contains(kind))
}
