//! The names in client certificates: SPIFFE ids and DNS names. A server key can be bound to one in place of a secret.

use std::fmt;
use std::net::IpAddr;

/// The longest trust domain of a SPIFFE id, and the longest DNS name, in bytes.
const DOMAIN_LENGTH_MAX: usize = 255;

/// The longest label of a DNS name, in bytes (RFC 1035 §2.3.4).
const LABEL_LENGTH_MAX: usize = 63;

/// A name in the subject alternative names of a client certificate: a SPIFFE id with a path, such as
/// `spiffe://example.org/login`, or a DNS name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateName(String);

impl CertificateName {
    /// The longest name, in bytes: that of a SPIFFE id (SPIFFE-ID §2.3).
    pub const LENGTH_MAX: usize = 2_048;

    /// Parses a SPIFFE id or a DNS name; `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        Self::spiffe(text).or_else(|| Self::dns(text))
    }

    /// Parses a SPIFFE id (SPIFFE-ID §2): a trust domain in lower case, and a path of plain segments.
    pub fn spiffe(text: &str) -> Option<Self> {
        let (domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
        let in_domain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
        let in_path = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(in_path);
        let is_id = text.len() <= Self::LENGTH_MAX
            && (1..=DOMAIN_LENGTH_MAX).contains(&domain.len())
            && domain.bytes().all(in_domain)
            && path.split('/').all(is_segment);
        is_id.then(|| Self(text.to_owned()))
    }

    /// Parses a DNS name. Wildcards and addresses identify no single service, so they are not accepted.
    pub fn dns(text: &str) -> Option<Self> {
        let is_label = |label: &str| {
            (1..=LABEL_LENGTH_MAX).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let is_name =
            text.len() <= DOMAIN_LENGTH_MAX && text.split('.').all(is_label) && text.parse::<IpAddr>().is_err();
        is_name.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The name, as stored and printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_spiffe_id_or_a_dns_name() {
        let longest = format!("spiffe://example.org/{}", "a".repeat(CertificateName::LENGTH_MAX - 21));
        for good in [
            "spiffe://example.org/ns/shop/sa/login",
            "spiffe://trust_domain-1.example/A_b.c-d",
            "login.shop.svc.cluster.local",
            "localhost",
            "_xmpp.example.org",
            &longest,
        ] {
            assert_eq!(CertificateName::parse(good).expect(good).as_str(), good);
        }
        assert_eq!(CertificateName::parse("Login.Example.ORG").expect("a name").as_str(), "login.example.org");
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            "-a.example",
            "*.example.org",
            "127.0.0.1",
            "a b",
            "ä.example",
            "https://example.org/login",
            "spiffe://",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/../a",
            "spiffe://Example.org/a",
            "spiffe://example.org:443/a",
            "spiffe://user@example.org/a",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org/%61",
            "SPIFFE://example.org/a",
            &format!("{longest}a"),
            &"a".repeat(64),
            &["a"; 129].join("."),
        ] {
            assert_eq!(CertificateName::parse(bad), None, "{bad}");
        }
    }
}
