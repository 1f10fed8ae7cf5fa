//! The origin of a request: address and `User-Agent`.

use std::net::IpAddr;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::violation::TEXT_BYTES_MAX;

/// The longest stored `User-Agent`, in bytes.
pub const USER_AGENT_BYTES_MAX: usize = 1_024;

/// The origin of a request, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address, never IPv4-mapped (RFC 4291 §2.5.5.2).
    pub ip: Option<IpAddr>,
    /// The `User-Agent`: at most 1,024 bytes, without control characters.
    pub user_agent: Option<String>,
}

// A malformed description of a device never refuses a request: a sign-in must not fail because of a header. These three
// functions truncate it, clean it, or leave it out.

/// Cleans a `User-Agent`: truncates it to [`USER_AGENT_BYTES_MAX`] bytes, and replaces control characters by spaces. `None` if
/// nothing is left.
pub fn user_agent(text: &str) -> Option<String> {
    clean(text, USER_AGENT_BYTES_MAX)
}

/// Cleans a device's name as [`user_agent`] does, with at most [`TEXT_BYTES_MAX`] bytes.
pub fn device_name(text: &str) -> Option<String> {
    clean(text, TEXT_BYTES_MAX)
}

/// Parses an address; drops a port, brackets and a zone (RFC 4007 §11), and unmaps an IPv4-mapped one. `None` if it is not an
/// address.
pub fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.split_once(']')).map_or(text, |(inner, _)| inner);
    let bare = inner.split_once('%').map_or(inner, |(bare, _)| bare);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|ip: IpAddr| ip.to_canonical())
}

fn clean(text: &str, bytes_max: usize) -> Option<String> {
    // Truncated first, which bounds the work.
    let cut = &text[..text.floor_char_boundary(bytes_max)];
    let text: String = cut.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    // A space is never longer than the control character that it replaces.
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The network of an address: its first 24 bits for IPv4, 48 for IPv6. A household or an office usually shares one. Logs show
/// the network instead of the address.
pub fn network(ip: IpAddr) -> IpNet {
    let (ip, bits) = match ip.to_canonical() {
        ip @ IpAddr::V4(_) => (ip, 24),
        ip @ IpAddr::V6(_) => (ip, 48),
    };
    IpNet::new(ip, bits).map_or_else(|_| IpNet::from(ip), |network| network.trunc())
}

/// The prefixes of the `User-Agent`s of gRPC libraries, which do not identify a device.
const LIBRARIES: [&str; 4] = ["grpc-", "tonic/", "connect-", "grpc/"];

/// Whether the `User-Agent` is a gRPC library's default, without an addition by the application.
pub fn is_library(user_agent: &str) -> bool {
    LIBRARIES.iter().any(|library| user_agent.starts_with(library))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_a_device_are_truncated_cleaned_or_left_out() {
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
    fn an_application_prefix_is_not_a_library() {
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
