//! Where a request comes from, and what a session learns from that.

use std::net::IpAddr;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::lifecycle::Device;
use super::opening::TEXT_BYTES_MAX;
use super::opening::USER_AGENT_BYTES_MAX;
use super::rotation::Whence;
use crate::device;

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

impl Device {
    /// Where a request comes from, as against where the device was last seen: elsewhere is another network, or another
    /// `User-Agent` than that of a gRPC library. What is not known of one of them is no difference.
    pub fn whence(&self, origin: &Origin) -> Whence {
        let moved = self.ip.zip(origin.ip).is_some_and(|(one, other)| network(one) != network(other));
        let said = origin.user_agent.as_deref().filter(|text| !device::is_library(text));
        let other = self.user_agent.as_deref().zip(said).is_some_and(|(one, other)| one != other);
        if moved || other { Whence::Elsewhere } else { Whence::Same }
    }

    /// The device as its session's creator describes it.
    pub fn described(name: Option<&str>, user_agent: Option<&str>, ip: Option<&str>) -> Self {
        Self {
            name: name.and_then(device_name),
            user_agent: user_agent.and_then(self::user_agent),
            ip: ip.and_then(address),
        }
    }

    /// The device with a name: the one that it was given, or else one after its `User-Agent`.
    #[must_use]
    pub fn named(mut self) -> Self {
        if self.name.is_none() {
            self.name = self.user_agent.as_deref().and_then(device::name);
        }
        self
    }

    /// Takes over what a request of the device shows; what it does not show stays. A name that was given stays too, and one
    /// after an earlier `User-Agent` follows the new one.
    pub fn seen_from(&mut self, origin: &Origin) {
        self.ip = origin.ip.or(self.ip);
        let Some(user_agent) = origin.user_agent.as_deref().filter(|text| !device::is_library(text)) else { return };
        if self.name.is_some() && self.user_agent.as_deref() == Some(user_agent) {
            return;
        }
        // That a name was not given is not stored: it is one that the `User-Agent` leads to.
        let given = self.name.is_some() && self.name != self.user_agent.as_deref().and_then(device::name);
        if !given {
            self.name = device::name(user_agent);
        }
        self.user_agent = Some(user_agent.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHROME: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
    const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0";

    fn device(name: Option<&str>, user_agent: Option<&str>) -> Device {
        Device { name: name.map(str::to_owned), user_agent: user_agent.map(str::to_owned), ip: None }
    }

    fn seen(mut device: Device, user_agent: Option<&str>) -> (Option<String>, Option<String>) {
        device.seen_from(&Origin { ip: None, user_agent: user_agent.map(str::to_owned) });
        (device.name, device.user_agent)
    }

    #[test]
    fn elsewhere_is_another_network_or_user_agent() {
        let device = Device { ip: address("192.0.2.1"), ..device(None, Some(CHROME)) };
        for (ip, user_agent, expected) in [
            (Some("192.0.2.255"), Some(CHROME), Whence::Same),
            (Some("::ffff:192.0.2.9"), None, Whence::Same),
            (None, Some("tonic/0.14.2"), Whence::Same),
            (None, None, Whence::Same),
            (Some("192.0.3.1"), Some(CHROME), Whence::Elsewhere),
            (Some("2001:db8::1"), Some(CHROME), Whence::Elsewhere),
            (Some("192.0.2.1"), Some(FIREFOX), Whence::Elsewhere),
        ] {
            let ip = ip.map(|ip| ip.parse().expect("an address"));
            let origin = Origin { ip, user_agent: user_agent.map(str::to_owned) };
            assert_eq!(device.whence(&origin), expected, "{origin:?}");
        }
        for (ip, expected) in [("192.0.2.7", "192.0.2.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48")] {
            assert_eq!(network(ip.parse().expect("an address")).to_string(), expected);
        }
    }

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
    fn a_name_that_was_given_stays() {
        assert_eq!(device(Some("phone"), Some(CHROME)).named().name.as_deref(), Some("phone"));
        let (name, user_agent) = seen(device(Some("phone"), Some(CHROME)), Some(FIREFOX));
        assert_eq!((name.as_deref(), user_agent.as_deref()), (Some("phone"), Some(FIREFOX)));
        assert_eq!(seen(device(Some("phone"), None), Some(FIREFOX)).0.as_deref(), Some("phone"));
    }

    #[test]
    fn any_other_name_follows_the_user_agent() {
        assert_eq!(device(None, Some(CHROME)).named().name.as_deref(), Some("Chrome on Windows"));
        assert_eq!(device(None, None).named().name, None);
        for before in [device(None, None), device(None, Some("rubbish")), device(None, Some(CHROME)).named()] {
            assert_eq!(seen(before, Some(FIREFOX)).0.as_deref(), Some("Firefox on Linux"));
        }
        assert_eq!(seen(device(None, Some(CHROME)).named(), Some("rubbish")).0, None, "nothing untrue stays");
    }

    #[test]
    fn what_says_nothing_changes_nothing() {
        for nothing in [None, Some("grpc-node-js/1.14.1"), Some("tonic/0.14.2"), Some(CHROME)] {
            let (name, user_agent) = seen(device(None, Some(CHROME)).named(), nothing);
            assert_eq!(
                (name.as_deref(), user_agent.as_deref()),
                (Some("Chrome on Windows"), Some(CHROME)),
                "{nothing:?}"
            );
        }
        let mut at_home = Device { ip: Some(IpAddr::V4(1.into())), ..Device::default() };
        at_home.seen_from(&Origin::default());
        assert_eq!(at_home.ip, Some(IpAddr::V4(1.into())));
        at_home.seen_from(&Origin { ip: Some(IpAddr::V4(2.into())), user_agent: None });
        assert_eq!(at_home.ip, Some(IpAddr::V4(2.into())));
    }
}
