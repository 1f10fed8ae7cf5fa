//! Reads `Cookie` headers.

use std::borrow::Cow;
use std::collections::BTreeSet;

use memchr::memchr;
use memchr::memchr_iter;

use super::ACCESS;
use super::parse_name;
use super::prefix;
use sessiond_core::id::ProjectId;
use sessiond_core::session::policy::CookieScope;

/// The most bytes of cookies in a request.
pub const COOKIE_BYTES_MAX: usize = 16 * 1024;

/// The most values under one name that are looked at: each may be a signature to check.
const VALUES_MAX: usize = 16;

/// A request has more than [`COOKIE_BYTES_MAX`] bytes of cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// The cookies of one project in a request: the distinct values of each. Has no `Debug`, because they are secrets.
#[derive(Default)]
pub struct RequestCookies<'h> {
    /// Those of the access token.
    pub access: Vec<Cow<'h, str>>,
    /// Those of the refresh token.
    pub refresh: Vec<Cow<'h, str>>,
    /// Whether there were more values than are looked at.
    pub is_cut: bool,
}

impl<'h> RequestCookies<'h> {
    /// Reads a project's cookies. Several headers are one list (RFC 9113 §8.2.3). Empty values count as none.
    ///
    /// # Errors
    ///
    /// Fails if there are too many bytes.
    pub fn read(
        headers: impl Iterator<Item = &'h [u8]> + Clone,
        project: &ProjectId,
        scope: &CookieScope,
    ) -> Result<Self, TooLarge> {
        let mut found = Self::default();
        let Some(prefix) = prefix(scope) else { return Ok(found) };
        check_size(headers.clone())?;
        for (name, value) in headers.flat_map(pairs) {
            let Some((_, kind)) = parse(name, prefix).filter(|(owner, _)| *owner == project.as_str()) else {
                continue;
            };
            let value = text(value);
            let values = if kind == ACCESS { &mut found.access } else { &mut found.refresh };
            if value.is_empty() || values.contains(&value) {
                continue;
            }
            match values.len() < VALUES_MAX {
                true => values.push(value),
                false => found.is_cut = true,
            }
        }
        Ok(found)
    }

    /// The projects that have cookies in a request, whatever their scope, ordered by name.
    ///
    /// # Errors
    ///
    /// Fails if there are too many bytes.
    pub fn projects(headers: impl Iterator<Item = &'h [u8]> + Clone) -> Result<Vec<ProjectId>, TooLarge> {
        check_size(headers.clone())?;
        let prefixes = [CookieScope::Host, CookieScope::Domain("".into())];
        let prefixes: Vec<&str> = prefixes.iter().filter_map(prefix).collect();
        let projects = headers.flat_map(pairs).filter_map(|(name, value)| {
            let (project, _) = prefixes.iter().find_map(|prefix| parse(name, prefix))?;
            ProjectId::parse(project).filter(|_| !value.is_empty()).map(|project| project.to_string())
        });
        let projects: BTreeSet<String> = projects.collect();
        Ok(projects.iter().filter_map(|project| ProjectId::parse(project)).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.access.is_empty() && self.refresh.is_empty()
    }

    /// Whether a name has several values: one of them may have been planted by another host.
    pub fn is_ambiguous(&self) -> bool {
        self.access.len() > 1 || self.refresh.len() > 1
    }
}

/// The `Cookie` header without the cookies of a project; empty if no other is left.
pub fn without_ours<'h>(headers: impl Iterator<Item = &'h [u8]>, project: &ProjectId, scope: &CookieScope) -> String {
    let prefix = prefix(scope).unwrap_or_default();
    // However the application trims names, it must not find ours.
    let is_ours = |piece: &str| {
        let name = piece.split_once('=').map_or(piece, |(name, _)| name).trim();
        parse_name(name, prefix).is_some_and(|(owner, _)| owner == project.as_str())
    };
    let mut kept = String::new();
    for header in headers {
        for piece in text(header).split(';').map(str::trim) {
            if piece.is_empty() || is_ours(piece) {
                continue;
            }
            // Other characters could not be in the header that this becomes.
            if piece.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                kept.push_str(if kept.is_empty() { "" } else { "; " });
                kept.push_str(piece);
            }
        }
    }
    kept
}

fn check_size<'h>(headers: impl Iterator<Item = &'h [u8]>) -> Result<(), TooLarge> {
    if headers.map(<[u8]>::len).sum::<usize>() > COOKIE_BYTES_MAX { Err(TooLarge) } else { Ok(()) }
}

/// The names and values in a header (RFC 6265bis §5.8.3), as they are: only the space that separates them is removed.
///
/// Libraries remove more, such as the spaces of Unicode, and a browser lets a sibling subdomain set a cookie whose name is one of
/// those and then `__Host-`: to the browser it has no prefix.
fn pairs(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut start = 0;
    // To look at each byte of a token would take longer than all else here.
    memchr_iter(b';', header).chain([header.len()]).filter_map(move |end| {
        let piece = &header[start..end];
        start = end + 1;
        let piece = piece.strip_prefix(b" ").unwrap_or(piece);
        let at = memchr(b'=', piece)?;
        Some((&piece[..at], &piece[at + 1..]))
    })
}

/// The bytes as text, with replacements for what is not. Tried as it is first, because the other way looks at each byte.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// The project and the kind in the name of one of our cookies, if it is text.
fn parse<'n>(name: &'n [u8], prefix: &str) -> Option<(&'n str, &'n str)> {
    parse_name(str::from_utf8(name).ok()?, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> ProjectId {
        ProjectId::parse("shop").expect("a name")
    }

    fn read(headers: &[&str], scope: &CookieScope) -> (Vec<String>, Vec<String>) {
        let cookies = RequestCookies::read(headers.iter().map(|header| header.as_bytes()), &shop(), scope);
        let cookies = cookies.expect("fits");
        let owned = |values: Vec<Cow<'_, str>>| values.into_iter().map(Cow::into_owned).collect();
        (owned(cookies.access), owned(cookies.refresh))
    }

    fn both(access: &str, refresh: &str) -> (Vec<String>, Vec<String>) {
        let values = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        (values(access), values(refresh))
    }

    #[test]
    fn the_cookies_of_the_project_are_found_among_others() {
        let domain = CookieScope::Domain("example.org".into());
        for (header, host_cookies, domain_cookies) in [
            ("", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access=a; __Host-sessiond.shop.refresh=r", both("a", "r"), both("", "")),
            ("x=1;__Host-sessiond.shop.access=a;;y", both("a", ""), both("", "")),
            ("__Secure-sessiond.shop.refresh=r", both("", ""), both("", "r")),
            ("__Host-sessiond.books.access=a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access=", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access", both("", ""), both("", "")),
            ("__host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access.x=a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.accessx=a", both("", ""), both("", "")),
            ("sessiond.shop.access=a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access=a b", both("a b", "").into_joined(), both("", "")),
            // Another host of the domain can set these: to a browser they have no prefix.
            ("\u{2000}__Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("x=1; \u{a0}__Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("\u{85}__Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("\u{b}__Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("x=1;  __Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("x=1;\t__Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access =a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access\u{2000}=a", both("", ""), both("", "")),
            ("=__Host-sessiond.shop.access=a", both("", ""), both("", "")),
            ("__Host-sessiond.shop.access=\"a\"", both("\"a\"", ""), both("", "")),
            ("__Host-sessiond.shop.access=a; __Host-sessiond.shop.access=a", both("a", ""), both("", "")),
            ("__Host-sessiond.shop.access=a; __Host-sessiond.shop.access=b", both("a b", ""), both("", "")),
        ] {
            assert_eq!(read(&[header], &CookieScope::Host), host_cookies, "{header}");
            assert_eq!(read(&[header], &domain), domain_cookies, "{header}");
            assert_eq!(read(&[header], &CookieScope::Off), both("", ""), "{header}");
        }
        let crumbs = ["__Host-sessiond.shop.access=a", "x=\u{ff}", "__Host-sessiond.shop.refresh=r"];
        assert_eq!(read(&crumbs, &CookieScope::Host), both("a", "r"), "several headers are one list");
    }

    /// A value with a space, which is one value.
    trait IntoJoined {
        fn into_joined(self) -> Self;
    }

    impl IntoJoined for (Vec<String>, Vec<String>) {
        fn into_joined(self) -> Self {
            (vec![self.0.join(" ")], self.1)
        }
    }

    #[test]
    fn bytes_that_are_not_text_harm_only_their_own_cookie() {
        let header: &[u8] = b"x=\xff\xfe; __Host-sessiond.shop.access=a; y=\x00";
        let cookies = RequestCookies::read([header].into_iter(), &shop(), &CookieScope::Host).expect("fits");
        assert_eq!(cookies.access, ["a"]);
    }

    #[test]
    fn the_work_is_bounded() {
        let big = format!("x={}", "a".repeat(COOKIE_BYTES_MAX));
        let read = |header: &str| {
            RequestCookies::read([header.as_bytes()].into_iter(), &shop(), &CookieScope::Host)
                .map(|one| one.access.len())
        };
        assert_eq!(read(&big), Err(TooLarge));
        assert_eq!(read(&big[..COOKIE_BYTES_MAX]), Ok(0));
        let many: String = (0..300).map(|at| format!("__Host-sessiond.shop.access={at};")).collect();
        assert_eq!(read(&many), Ok(VALUES_MAX));
        let started = std::time::Instant::now();
        for nasty in [";".repeat(COOKIE_BYTES_MAX), "=".repeat(COOKIE_BYTES_MAX), "a=;".repeat(5_000)] {
            assert_eq!(read(&nasty), Ok(0));
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(1), "{:?}", started.elapsed());
    }

    #[test]
    fn projects_are_named_once_each() {
        let projects = |header: &str| {
            let found = RequestCookies::projects([header.as_bytes()].into_iter()).expect("fits");
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(projects("x=1"), [""; 0]);
        let all = "__Host-sessiond.shop.access=a; __Secure-sessiond.books.refresh=r; __Host-sessiond.shop.refresh=r";
        assert_eq!(projects(all), ["books", "shop"]);
        assert_eq!(projects("__Host-sessiond.a b.access=a; __Host-sessiond.shop.access="), [""; 0]);
    }

    #[test]
    fn only_our_own_cookies_are_removed() {
        let rest = |headers: &[&[u8]]| without_ours(headers.iter().copied(), &shop(), &CookieScope::Host);
        assert_eq!(rest(&[b"a=1; __Host-sessiond.shop.access=x;b=2; __Host-sessiond.shop.refresh=y"]), "a=1; b=2");
        assert_eq!(rest(&[b"__Host-sessiond.shop.access=x"]), "");
        assert_eq!(
            rest(&[b" __Host-sessiond.shop.access =x;\t__Host-sessiond.shop.refresh=y"]),
            "",
            "however it is trimmed"
        );
        assert_eq!(rest(&[b"a=1", b"__Host-sessiond.books.access=x"]), "a=1; __Host-sessiond.books.access=x");
        assert_eq!(rest(&[b"a=\xff; b=2"]), "b=2");
    }
}
