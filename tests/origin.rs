//! The address of a session's last use, and its device name.

use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret as _;
use sessiond::{
    config::{ForwardedHeader, network},
    pb::{CreateSessionRequest, Session},
};
use sessiond_core::session::device::Device;

use crate::harness::{REFRESH_GRACE, Service, Wire, bearer, both, header, refresh_token};

const CHROME: &str =
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
const SAFARI: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
                      Version/26.1 Mobile/15E148 Safari/604.1";

/// Creates a session with these details, and returns its device.
async fn open<'a>(
    service: &'a Service,
    wire: Wire,
    request: CreateSessionRequest,
) -> (crate::harness::Device<'a>, Session) {
    let request = CreateSessionRequest { user_id: "ada".into(), ..request };
    let created = service.create(wire, request).await.expect("opens");
    let session = created.session.clone().expect("a session");
    (service.device(created), session)
}

/// Refreshes with these headers too. Returns what is stored about the device afterwards.
async fn seen(service: &Service, wire: Wire, device: &crate::harness::Device<'_>, headers: HeaderMap) -> Device {
    service.refresh(wire, both(refresh_token(&device.refresh_token), headers)).await.expect("refreshes");
    service.seen(&device.session).await.expect("is there").stored.session.device
}

fn device(name: Option<&str>, user_agent: Option<&str>, ip: &str) -> Device {
    let ip = Some(ip.parse().expect("an address"));
    Device { name: name.map(str::to_owned), user_agent: user_agent.map(str::to_owned), ip }
}

#[tokio::test]
async fn a_refresh_updates_the_address_and_user_agent() {
    let service =
        Service::start_with(|web, _| web.trusted_proxies = vec![network("127.0.0.1").expect("an address")]).await;
    for wire in Wire::ALL {
        let (phone, _) = open(&service, wire, CreateSessionRequest::default()).await;
        let headers = both(header("x-forwarded-for", "6.6.6.6, 2001:db8::1"), header("user-agent", SAFARI));
        let expected = device(Some("Safari on iPhone"), Some(SAFARI), "2001:db8::1");
        assert_eq!(seen(&service, wire, &phone, headers).await, expected, "{wire:?}");

        let hostile = HeaderMap::from_iter([(
            HeaderName::from_static("user-agent"),
            HeaderValue::from_bytes(b"a\tb").expect("a value"),
        )]);
        let expected = device(None, Some("a b"), "127.0.0.1");
        let again = header("x-forwarded-for", "198.51.100.7");
        let at_home = device(Some("Safari on iPhone"), Some(SAFARI), "2001:db8::1");
        assert_eq!(seen(&service, wire, &phone, again).await, at_home, "{wire:?}: a repeat shows nothing");
        service.clock.advance(REFRESH_GRACE);
        assert_eq!(seen(&service, wire, &phone, hostile).await, expected, "{wire:?}: cleaned, as a sign-in's would be");
    }
}

#[tokio::test]
async fn an_untrusted_client_cannot_set_its_address() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let (phone, _) = open(&service, wire, CreateSessionRequest::default()).await;
        for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
            let sent = header(name, if name == "forwarded" { "for=192.0.2.1" } else { "192.0.2.1" });
            assert_eq!(seen(&service, wire, &phone, sent).await, device(None, None, "127.0.0.1"), "{wire:?} {name}");
        }
    }
}

/// The proxies here set `Forwarded`, and pass on the client's other header.
#[tokio::test]
async fn only_the_configured_header_counts() {
    let service = Service::start_with(|web, _| {
        web.trusted_proxies = vec![network("127.0.0.0/8").expect("a network")];
        web.forwarded_header = ForwardedHeader::Forwarded;
    })
    .await;
    for wire in Wire::ALL {
        let (phone, _) = open(&service, wire, CreateSessionRequest::default()).await;
        let headers = both(header("x-forwarded-for", "6.6.6.6"), header("forwarded", "for=192.0.2.1;proto=https"));
        assert_eq!(seen(&service, wire, &phone, headers).await, device(None, None, "192.0.2.1"), "{wire:?}");
    }
}

#[tokio::test]
async fn a_device_is_named_after_its_user_agent_by_default() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let sent = |name: Option<&str>, user_agent: &str| CreateSessionRequest {
            device_name: name.map(str::to_owned),
            user_agent: Some(user_agent.to_owned()),
            ip: Some("2001:db8::1".to_owned()),
            ..CreateSessionRequest::default()
        };
        let (phone, session) = open(&service, wire, sent(None, CHROME)).await;
        assert_eq!((session.device_name.as_deref(), session.ip.as_str()), (Some("Chrome on Windows"), "2001:db8::1"));
        let expected = device(Some("Safari on iPhone"), Some(SAFARI), "127.0.0.1");
        assert_eq!(seen(&service, wire, &phone, header("user-agent", SAFARI)).await, expected, "{wire:?}: it follows");
        assert_eq!(seen(&service, wire, &phone, header("user-agent", "tonic/0.14.2")).await, expected, "{wire:?}");

        let (phone, session) = open(&service, wire, sent(Some("Ada's"), CHROME)).await;
        assert_eq!(session.device_name.as_deref(), Some("Ada's"));
        let expected = device(Some("Ada's"), Some(SAFARI), "127.0.0.1");
        assert_eq!(
            seen(&service, wire, &phone, header("user-agent", SAFARI)).await,
            expected,
            "{wire:?}: given is given"
        );

        let (_, session) = open(&service, wire, sent(None, "rubbish")).await;
        assert_eq!((session.device_name, session.user_agent.as_str()), (None, "rubbish"));
    }
}

/// The service's own address and `User-Agent` are not those of the device.
#[tokio::test]
async fn details_that_the_creating_service_omits_are_not_guessed() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let headers = both(bearer(service.server_key.expose_secret()), header("user-agent", CHROME));
        let request = CreateSessionRequest { user_id: "ada".into(), ..CreateSessionRequest::default() };
        let created: sessiond::pb::CreateSessionResponse =
            service.wires.call(wire, "CreateSession", headers, &request).await.expect("opens");
        let session = created.session.expect("a session");
        assert_eq!((session.ip.as_str(), session.user_agent.as_str(), session.device_name), ("", "", None), "{wire:?}");
    }
}
