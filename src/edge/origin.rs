//! Notes where a request comes from: the client's address, see [`crate::forwarded`], and its `User-Agent`.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Once;

use axum::extract::ConnectInfo;
use axum::extract::Request;
use http::HeaderMap;
use http::HeaderValue;
use http::header;

use crate::forwarded::ForMany;
use crate::forwarded::Trust;
use crate::forwarded::TrustedPeer;
use sessiond_core::session::Origin;
use sessiond_core::session::origin;

/// The address that the connection was opened from.
pub(super) fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip())
}

/// Whether an untrusted peer sent a client's address. Most often it is a load balancer that was not configured, and then all
/// clients share its address.
fn is_ignored(trust: &Trust, peer: IpAddr, headers: &HeaderMap) -> bool {
    let names_a_client = headers.contains_key("x-forwarded-for") || headers.contains_key(header::FORWARDED);
    names_a_client && !trust.has(peer.to_canonical())
}

/// Records the origin for inner layers.
pub(super) fn note(trust: &Trust, request: &mut Request) {
    static IGNORED: Once = Once::new();
    let peer = peer(request);
    let headers = request.headers();
    if peer.is_some_and(|peer| is_ignored(trust, peer, headers)) {
        IGNORED.call_once(|| {
            tracing::warn!(
                "ignored X-Forwarded-For or Forwarded from a peer that is not a --trusted-proxy: if it is a load balancer, \
                 name it, or all clients share one address and its limits (logged once)"
            );
        });
    }
    let origin = Origin {
        ip: peer.map(|peer| trust.client(peer, headers.get_all(trust.header()).iter().map(HeaderValue::as_bytes))),
        user_agent: headers.get(header::USER_AGENT).and_then(user_agent),
    };
    if origin.ip.is_some_and(|ip| trust.has(ip)) {
        request.extensions_mut().insert(ForMany);
    }
    request.extensions_mut().insert(origin);
    if peer.is_some_and(|peer| trust.has(peer.to_canonical())) {
        request.extensions_mut().insert(TrustedPeer);
    }
}

/// The part of a `User-Agent` that a session may keep; `None` if it is not text.
fn user_agent(value: &HeaderValue) -> Option<String> {
    origin::user_agent(std::str::from_utf8(value.as_bytes()).ok()?)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::config::ForwardedHeader;
    use crate::config::network;

    /// Behind a load balancer that is not configured, all clients share one address.
    #[test]
    fn an_address_from_an_untrusted_peer_is_noticed() {
        let trust = Trust::of([network("10.0.0.0/8").expect("a network")], ForwardedHeader::XForwardedFor);
        for name in ["x-forwarded-for", "forwarded"] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("x"))]);
            assert!(is_ignored(&trust, "192.0.2.1".parse().expect("an address"), &headers), "{name}");
            assert!(!is_ignored(&trust, "::ffff:10.0.0.1".parse().expect("an address"), &headers), "{name}");
        }
        assert!(!is_ignored(&trust, "192.0.2.1".parse().expect("an address"), &HeaderMap::new()));
    }

    #[test]
    fn a_user_agent_is_cut_and_must_be_text() {
        let read = |bytes: &[u8]| user_agent(&HeaderValue::from_bytes(bytes).expect("a value"));
        assert_eq!(read(b"curl/8").as_deref(), Some("curl/8"));
        assert_eq!((read(b""), read(b"a\tb"), read(b"\xff")), (None, Some("a b".to_owned()), None));
        assert_eq!(read("a".repeat(2_000).as_bytes()).map(|text| text.len()), Some(1_024));
        assert_eq!(read("é".repeat(1_000).as_bytes()).map(|text| text.len()), Some(1_024));
        assert_eq!(read(format!("a{}", "é".repeat(1_000)).as_bytes()).map(|text| text.len()), Some(1_023));
    }
}
