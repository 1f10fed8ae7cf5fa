//! Where a request comes from, and what a session learns from that.

use std::net::IpAddr;

use super::lifecycle::Device;
use crate::device;

/// Where a request comes from, as far as the edge can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address: never a mapped one (RFC 4291 §2.5.5.2).
    pub ip: Option<IpAddr>,
    /// Its `User-Agent`: at most 1,024 bytes without control characters.
    pub user_agent: Option<String>,
}

impl Device {
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
