//! Where a request comes from, and what is kept of its description of the device.

use std::net::IpAddr;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::violation::TEXT_BYTES_MAX;

/// The longest `User-Agent` that is kept, in bytes.
pub const USER_AGENT_BYTES_MAX: usize = 1_024;

/// Where a request comes from, as far as the edge can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address: never a mapped one (RFC 4291 §2.5.5.2).
    pub ip: Option<IpAddr>,
    /// Its `User-Agent`: at most 1,024 bytes without control characters.
    pub user_agent: Option<String>,
}

// What describes a device never refuses a request: a sign-in must not fail for a header that a client made up. It is cut to
// its bound, cleaned, or left out, by these three, wherever it comes from.

/// What is kept of a `User-Agent`: at most [`USER_AGENT_BYTES_MAX`] bytes, control characters as spaces; `None` if nothing
/// is left.
pub fn user_agent(text: &str) -> Option<String> {
    legible(text, USER_AGENT_BYTES_MAX)
}

/// What is kept of a device's name: as [`user_agent`], at most [`TEXT_BYTES_MAX`] bytes.
pub fn device_name(text: &str) -> Option<String> {
    legible(text, TEXT_BYTES_MAX)
}

/// What is kept of an address: without a port, brackets or a zone (RFC 4007 §11), never a mapped one; `None` if it is none.
pub fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.split_once(']')).map_or(text, |(inner, _)| inner);
    let bare = inner.split_once('%').map_or(inner, |(bare, _)| bare);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|ip: IpAddr| ip.to_canonical())
}

fn legible(text: &str, bytes_max: usize) -> Option<String> {
    // Cut first: the work is bounded by what is kept.
    let cut = &text[..text.floor_char_boundary(bytes_max)];
    let clean: String = cut.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    // A control character above U+007F takes two bytes and its space one, so the text never grows.
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean.to_owned())
}

/// The network that an address is in: the first 24 bits of an IPv4 address, the first 48 of an IPv6 one. A household or an
/// office is in one, and all that a log may show of an address.
pub fn network(ip: IpAddr) -> IpNet {
    let (ip, bits) = match ip.to_canonical() {
        ip @ IpAddr::V4(_) => (ip, 24),
        ip @ IpAddr::V6(_) => (ip, 48),
    };
    IpNet::new(ip, bits).map_or_else(|_| IpNet::from(ip), |network| network.trunc())
}

/// The `User-Agent`s of gRPC libraries, by their beginnings. They say nothing of a device.
const LIBRARIES: [&str; 4] = ["grpc-", "tonic/", "connect-", "grpc/"];

/// Whether the `User-Agent` is only the name of a gRPC library, which the application has added nothing to.
pub fn is_library(user_agent: &str) -> bool {
    LIBRARIES.iter().any(|library| user_agent.starts_with(library))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_a_device_is_cut_cleaned_or_left_out() {
        let long = "é".repeat(1_000);
        for (text, kept) in [
            ("curl/8", Some("curl/8".to_owned())),
            (" a\0b\tc\u{85}d\r\n", Some("a b c d".to_owned())),
            ("\0\u{7f}", None),
            ("", None),
            (&long, Some("é".repeat(512))),
            (&format!("a{long}"), Some(format!("a{}", "é".repeat(511)))),
        ] {
            assert_eq!(user_agent(text), kept, "{text:?}");
        }
        assert_eq!(device_name(&"x".repeat(300)).map(|name| name.len()), Some(255));
        for (text, kept) in [
            ("192.0.2.1", Some("192.0.2.1")),
            (" 192.0.2.1:4711 ", Some("192.0.2.1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("fe80::1%eth0", Some("fe80::1")),
            ("[fe80::1%25eth0]:80", Some("fe80::1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("", None),
            ("unknown", None),
            ("192.0.2.256", None),
            ("\0", None),
        ] {
            assert_eq!(address(text), kept.map(|ip| ip.parse().expect("an address")), "{text:?}");
        }
    }

    #[test]
    fn a_library_is_one_only_where_the_application_says_nothing() {
        for library in
            ["grpc-go/1.76.0", "grpc-java-netty/1.76.0", "grpc-node-js/1.14.1", "tonic/0.14.2", "connect-go/1.19"]
        {
            assert!(is_library(library), "{library}");
        }
        for other in ["Notes/1.2 grpc-java-okhttp/1.76.0", "Mozilla/5.0", ""] {
            assert!(!is_library(other), "{other}");
        }
    }
}
