//! The device of a session, and its update by a request.

use std::net::IpAddr;

use super::origin;
use super::origin::Origin;
use super::origin::address;
use super::origin::device_name;
use super::origin::is_library;
use super::origin::network;
use super::rotation::OriginMatch;

/// A device, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// A name that a person would recognise.
    pub name: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The IP address.
    pub ip: Option<IpAddr>,
}

/// Derives a device's name from its `User-Agent`; `None` if that names no device. Must be deterministic.
pub type DeviceNamer = fn(&str) -> Option<String>;

impl Device {
    /// Compares a request's origin with the device. Another network, or another `User-Agent`, is elsewhere; the `User-Agent` of a
    /// gRPC library and unknown values are ignored.
    pub fn origin_match(&self, origin: &Origin) -> OriginMatch {
        let moved = self.ip.zip(origin.ip).is_some_and(|(one, other)| network(one) != network(other));
        let user_agent = origin.user_agent.as_deref().filter(|text| !is_library(text));
        let other = self.user_agent.as_deref().zip(user_agent).is_some_and(|(one, other)| one != other);
        if moved || other { OriginMatch::Elsewhere } else { OriginMatch::Same }
    }

    /// The device as the creator of its session describes it.
    pub fn described(name: Option<&str>, user_agent: Option<&str>, ip: Option<&str>) -> Self {
        Self {
            name: name.and_then(device_name),
            user_agent: user_agent.and_then(origin::user_agent),
            ip: ip.and_then(address),
        }
    }

    /// Fills in the name from the `User-Agent` if none was given.
    #[must_use]
    pub fn named(mut self, name_of: DeviceNamer) -> Self {
        if self.name.is_none() {
            self.name = self.user_agent.as_deref().and_then(name_of);
        }
        self
    }

    /// Updates the device from a request; keeps what the request does not show. A given name is kept, and a derived one follows
    /// the `User-Agent`.
    pub fn update_from(&mut self, origin: &Origin, name_of: DeviceNamer) {
        self.ip = origin.ip.or(self.ip);
        let Some(user_agent) = origin.user_agent.as_deref().filter(|text| !is_library(text)) else { return };
        if self.name.is_some() && self.user_agent.as_deref() == Some(user_agent) {
            return;
        }
        // Whether a name was given is not stored: it was not if it equals the derived one.
        let given = self.name.is_some() && self.name != self.user_agent.as_deref().and_then(name_of);
        if !given {
            self.name = name_of(user_agent);
        }
        self.user_agent = Some(user_agent.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHROME: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
    const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0";

    fn name_of(user_agent: &str) -> Option<String> {
        let known = [(CHROME, "Chrome on Windows"), (FIREFOX, "Firefox on Linux")];
        known.into_iter().find(|(text, _)| *text == user_agent).map(|(_, name)| name.to_owned())
    }

    fn device(name: Option<&str>, user_agent: Option<&str>) -> Device {
        Device { name: name.map(str::to_owned), user_agent: user_agent.map(str::to_owned), ip: None }
    }

    fn seen(mut device: Device, user_agent: Option<&str>) -> (Option<String>, Option<String>) {
        device.update_from(&Origin { ip: None, user_agent: user_agent.map(str::to_owned) }, name_of);
        (device.name, device.user_agent)
    }

    #[test]
    fn elsewhere_is_another_network_or_user_agent() {
        let device = Device { ip: address("192.0.2.1"), ..device(None, Some(CHROME)) };
        for (ip, user_agent, expected) in [
            (Some("192.0.2.255"), Some(CHROME), OriginMatch::Same),
            (Some("::ffff:192.0.2.9"), None, OriginMatch::Same),
            (None, Some("tonic/0.14.2"), OriginMatch::Same),
            (None, None, OriginMatch::Same),
            (Some("192.0.3.1"), Some(CHROME), OriginMatch::Elsewhere),
            (Some("2001:db8::1"), Some(CHROME), OriginMatch::Elsewhere),
            (Some("192.0.2.1"), Some(FIREFOX), OriginMatch::Elsewhere),
        ] {
            let ip = ip.map(|ip| ip.parse().expect("an address"));
            let origin = Origin { ip, user_agent: user_agent.map(str::to_owned) };
            assert_eq!(device.origin_match(&origin), expected, "{origin:?}");
        }
        for (ip, expected) in [("192.0.2.7", "192.0.2.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48")] {
            assert_eq!(network(ip.parse().expect("an address")).to_string(), expected);
        }
    }

    #[test]
    fn a_given_name_is_kept() {
        assert_eq!(device(Some("phone"), Some(CHROME)).named(name_of).name.as_deref(), Some("phone"));
        let (name, user_agent) = seen(device(Some("phone"), Some(CHROME)), Some(FIREFOX));
        assert_eq!((name.as_deref(), user_agent.as_deref()), (Some("phone"), Some(FIREFOX)));
        assert_eq!(seen(device(Some("phone"), None), Some(FIREFOX)).0.as_deref(), Some("phone"));
    }

    #[test]
    fn a_derived_name_follows_the_user_agent() {
        assert_eq!(device(None, Some(CHROME)).named(name_of).name.as_deref(), Some("Chrome on Windows"));
        assert_eq!(device(None, None).named(name_of).name, None);
        for before in [device(None, None), device(None, Some("rubbish")), device(None, Some(CHROME)).named(name_of)] {
            assert_eq!(seen(before, Some(FIREFOX)).0.as_deref(), Some("Firefox on Linux"));
        }
        assert_eq!(
            seen(device(None, Some(CHROME)).named(name_of), Some("rubbish")).0,
            None,
            "an outdated name is removed"
        );
    }

    #[test]
    fn libraries_and_missing_values_change_nothing() {
        for nothing in [None, Some("grpc-node-js/1.14.1"), Some("tonic/0.14.2"), Some(CHROME)] {
            let (name, user_agent) = seen(device(None, Some(CHROME)).named(name_of), nothing);
            assert_eq!(
                (name.as_deref(), user_agent.as_deref()),
                (Some("Chrome on Windows"), Some(CHROME)),
                "{nothing:?}"
            );
        }
        let mut at_home = Device { ip: Some(IpAddr::V4(1.into())), ..Device::default() };
        at_home.update_from(&Origin::default(), name_of);
        assert_eq!(at_home.ip, Some(IpAddr::V4(1.into())));
        at_home.update_from(&Origin { ip: Some(IpAddr::V4(2.into())), user_agent: None }, name_of);
        assert_eq!(at_home.ip, Some(IpAddr::V4(2.into())));
    }
}
