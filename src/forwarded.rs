//! Where a request comes from, behind trusted proxies.
//!
//! The client's address is the connection's peer, unless that is a trusted proxy. Each proxy appends the address that it was called
//! from to a header, so the header is read from its end, as long as the entries are from trusted proxies: the first address that
//! is not a proxy's is the client's, and whatever precedes it may be forged. If the header is missing, malformed or hides the
//! address, the last good one is used.
//!
//! Only the configured header is read. A proxy that sets one of the two passes the other on as the client sent it, so reading
//! both would mean trusting the client.

use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::ForwardedHeader;
use crate::config::Web;

/// The most proxies that are followed.
const PROXIES_MAX: usize = 32;

/// The trusted proxies, and the header to read.
#[derive(Clone)]
pub struct Trust {
    proxies: Arc<[IpNet]>,
    header: ForwardedHeader,
}

impl Trust {
    /// As configured.
    pub fn new(web: &Web) -> Self {
        Self::of(web.trusted_proxies.iter().copied(), web.forwarded_header)
    }

    /// Trusts these proxies, which write this header.
    pub fn of(proxies: impl IntoIterator<Item = IpNet>, header: ForwardedHeader) -> Self {
        Self { proxies: proxies.into_iter().collect(), header }
    }

    /// Whether an address is a trusted proxy's.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(&ip))
    }

    /// The header that is read.
    pub const fn header(&self) -> &'static str {
        match self.header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        }
    }

    /// The client's address, from the address that a connection was opened from, and the lines of [`Self::header`] in their order.
    pub fn client<'h>(&self, peer: IpAddr, lines: impl DoubleEndedIterator<Item = &'h [u8]>) -> IpAddr {
        let address = match self.header {
            ForwardedHeader::XForwardedFor => node,
            ForwardedHeader::Forwarded => forwarded_for,
        };
        let mut client = peer.to_canonical();
        // Several lines are one list, in their order (RFC 9110 §5.3).
        let lines = lines.rev().map(|line| std::str::from_utf8(line).unwrap_or("?"));
        // Empty elements are ignored (RFC 9110 §5.6.1), but count towards the bound.
        let elements = lines.flat_map(|line| pieces_from_the_end(line, b','));
        for element in elements.take(PROXIES_MAX).filter(|element| !element.is_empty()) {
            if !self.has(client) {
                break;
            }
            let Some(ip) = address(element) else { break };
            client = ip.to_canonical();
        }
        client
    }
}

/// In a request's extensions: the peer is a trusted proxy, whose requests come from many clients.
#[derive(Clone, Copy)]
pub struct TrustedPeer;

/// In a request's extensions: it is a trusted proxy's own, for clients whose addresses it does not name.
#[derive(Clone, Copy)]
pub struct ForMany;

/// The trimmed pieces between the separators, last one first. Separators in a quoted string do not count (RFC 9110 §5.6.4); an
/// unterminated quote from the client, at the beginning, does not affect the end.
fn pieces_from_the_end(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let at = text.bytes().enumerate().rev().find_map(|(at, byte)| {
            let escapes = || text.as_bytes()[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
            quoted ^= byte == b'"' && escapes() % 2 == 0;
            (byte == separator && !quoted).then_some(at)
        });
        rest = at.map(|at| &text[..at]);
        Some(text[at.map_or(0, |at| at + 1)..].trim_matches([' ', '\t']))
    })
}

/// The address in an element of `Forwarded` (RFC 7239 §4): that of its one `for`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in pieces_from_the_end(element, b';').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        if name.eq_ignore_ascii_case("for") {
            // "MUST NOT occur more than once" (RFC 7239 §4).
            if found.is_some() {
                return None;
            }
            let quoted = value.strip_prefix('"').map(|value| value.strip_suffix('"'));
            found = Some(node(quoted.unwrap_or(Some(value))?)?);
        }
    }
    found
}

/// The address of a node (RFC 7239 §6), with or without a port; an IPv6 address with or, as in `X-Forwarded-For`, without
/// brackets. The zone of an IPv6 address (RFC 4007 §11) is meaningful only on the proxy, and is dropped. `None` for `unknown`,
/// for an obfuscated identifier, and for anything else.
fn node(text: &str) -> Option<IpAddr> {
    let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if let Some((ip, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        let ends = rest.is_empty() || rest.strip_prefix(':').is_some_and(port);
        return without_zone(ip).filter(|_| ends).map(IpAddr::V6);
    }
    match text.split_once(':') {
        Some((ip, after)) if !after.contains(':') => ip.parse().ok().filter(|_| port(after)),
        Some(_) => without_zone(text).map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// Parses an IPv6 address, with or without a zone: `fe80::1%eth0`.
fn without_zone(text: &str) -> Option<Ipv6Addr> {
    let (ip, zone) = text.split_once('%').map_or((text, None), |(ip, zone)| (ip, Some(zone)));
    let plain = |zone: &str| {
        !zone.is_empty() && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~%".contains(&byte))
    };
    ip.parse().ok().filter(|_| zone.is_none_or(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::network;

    const XFF: ForwardedHeader = ForwardedHeader::XForwardedFor;
    const RFC: ForwardedHeader = ForwardedHeader::Forwarded;

    /// The client's address, with trusted proxies in 10.0.0.0/8 and fd00::/8.
    fn client(header: ForwardedHeader, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let proxies = ["10.0.0.0/8", "fd00::/8"].map(|text| network(text).expect("a network"));
        let trust = Trust { proxies: proxies.into(), header };
        let lines = lines.iter().filter(|(name, _)| *name == trust.header()).map(|(_, value)| value.as_bytes());
        trust.client(peer.parse().expect("an address"), lines).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let headers = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client(XFF, "10.0.0.1", &headers), "192.0.2.1");
        assert_eq!(client(RFC, "10.0.0.1", &headers), "192.0.2.1");
        assert_eq!(client(XFF, "198.51.100.1", &headers), "198.51.100.1");
        assert_eq!(client(XFF, "::ffff:198.51.100.1", &headers), "198.51.100.1", "a mapped address is the IPv4 one");
        assert_eq!(client(XFF, "::ffff:10.0.0.1", &headers), "192.0.2.1", "for trust, too");
    }

    #[test]
    fn the_list_is_read_from_its_end() {
        for (list, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1, 10.0.0.2,10.0.0.3", "192.0.2.1"),
            ("192.0.2.1, fd00::1", "192.0.2.1"),
            ("6.6.6.6, 2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            // A zone is meaningful only on the proxy.
            ("6.6.6.6, fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:4711", "fe80::1"),
            ("192.0.2.1, fd00::1%2", "192.0.2.1"),
            (" , 192.0.2.1 ,, ", "192.0.2.1"),
            ("10.0.0.9", "10.0.0.9"),
            ("", "10.0.0.1"),
            // Malformed or hidden: the last good one.
            ("192.0.2.1, unknown", "10.0.0.1"),
            ("192.0.2.1, _hidden, 10.0.0.2", "10.0.0.2"),
            ("192.0.2.1, 10.0.0.256", "10.0.0.1"),
            ("192.0.2.1, fe80::1%", "10.0.0.1"),
            ("192.0.2.1, fe80::1%a b", "10.0.0.1"),
            ("192.0.2.1, 192.0.2.2%eth0", "10.0.0.1"),
            ("192.0.2.1, 192.0.2.2:x y", "10.0.0.1"),
            ("192.0.2.1, \"192.0.2.2", "10.0.0.1"),
            ("192.0.2.1, ü", "10.0.0.1"),
        ] {
            assert_eq!(client(XFF, "10.0.0.1", &[("x-forwarded-for", list)]), expected, "{list}");
        }
        let lines = [("x-forwarded-for", "6.6.6.6, 192.0.2.1"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(client(XFF, "10.0.0.1", &lines), "192.0.2.1", "several lines are one list");
    }

    #[test]
    fn forwarded_is_parsed_as_rfc_7239_specifies() {
        for (list, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"192.0.2.1:4711\";proto=https;by=10.0.0.1", "192.0.2.1"),
            ("for=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=6.6.6.6, for=192.0.2.1;host=a, proto=http;for=10.0.0.2", "192.0.2.1"),
            ("for=\"[fe80::1%25en0]\"", "fe80::1"),
            ("for=192.0.2.1;by=\"a,b;c\\\",\"", "192.0.2.1"),
            ("for=\"192.0.2.1:_port\"", "192.0.2.1"),
            // What the client left open does not reach what the proxy wrote.
            ("for=\"x, for=192.0.2.1", "192.0.2.1"),
            ("for=\"x\\, for=192.0.2.1", "192.0.2.1"),
            // A client's own text within a proxy's quotes is no element.
            ("for=192.0.2.1;host=\"a,for=6.6.6.6\"", "192.0.2.1"),
            ("for=192.0.2.1;host=\"a;for=6.6.6.6\"", "192.0.2.1"),
            // Malformed or hidden: the last good one.
            ("for=_hidden", "10.0.0.1"),
            ("for=unknown", "10.0.0.1"),
            ("for=\"_hidden\", for=10.0.0.2", "10.0.0.2"),
            ("for=192.0.2.1;for=192.0.2.2", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
            ("192.0.2.1", "10.0.0.1"),
            ("for=\"192.0.2.1", "10.0.0.1"),
            ("for=192.0.2.1;nonsense", "10.0.0.1"),
        ] {
            assert_eq!(client(RFC, "10.0.0.1", &[("forwarded", list)]), expected, "{list}");
        }
    }

    /// A proxy that sets one of the headers passes the other on.
    #[test]
    fn the_other_header_is_not_read() {
        let smuggled = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(client(XFF, "10.0.0.1", &smuggled), "192.0.2.1");
        assert_eq!(client(RFC, "10.0.0.1", &smuggled[1..]), "10.0.0.1");
        assert_eq!(client(XFF, "10.0.0.1", &smuggled[..1]), "10.0.0.1");
    }

    #[test]
    fn the_work_is_bounded() {
        let long = format!("6.6.6.6{}", ", 10.0.0.2".repeat(100));
        assert_eq!(client(XFF, "10.0.0.1", &[("x-forwarded-for", &long)]), "10.0.0.2");
        for nasty in ["\"".repeat(32_000), "\\\"".repeat(16_000), ",".repeat(32_000), "\\".repeat(32_000)] {
            let started = std::time::Instant::now();
            assert_eq!(client(RFC, "10.0.0.1", &[("forwarded", &nasty)]), "10.0.0.1");
            assert!(started.elapsed() < std::time::Duration::from_secs(1), "{:?}", started.elapsed());
        }
    }
}
