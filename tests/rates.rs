//! Rate limits: equal on every protocol, no caller pays for another, and sign-outs succeed.

use std::time::Duration;

use http::{HeaderMap, Method};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use secrecy::{ExposeSecret as _, SecretString};
use sessiond::{
    config::Rates,
    pb::{CreateSessionRequest, CreateSessionResponse},
    store::Role,
};
use sessiond_core::id::ProjectId;
use tokio::process::Command;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    assert_refused,
    harness::{PROJECT, REFUSED_REFRESH, Refused, Service, Wire, bearer, both, header, rates, refresh_token},
    revoke::flip,
    server_keys::lookups,
    verify::Route,
};

/// The size of every bucket here, and the time in which one token returns.
const BURST: u32 = 5;
const INTERVAL: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_micros(1);

fn per_address() -> Rates {
    Rates { address_rate: 10, address_burst: BURST, ..rates() }
}

fn per_project() -> Rates {
    Rates { project_rate: 10, project_burst: BURST, ..rates() }
}

fn per_server_key() -> Rates {
    Rates { server_key_rate: 10, server_key_burst: BURST, ..rates() }
}

fn from(address: &str) -> HeaderMap {
    header("x-forwarded-for", address)
}

/// A request refused for its token, which has no effect but to count.
async fn asked(service: &Service, wire: Wire, address: &str) -> Refused {
    let answer = service.refresh(wire, both(from(address), refresh_token("rubbish"))).await;
    answer.err().expect("rubbish is no token")
}

async fn ask(service: &Service, wire: Wire, address: &str) -> String {
    asked(service, wire, address).await.reason
}

async fn create(service: &Service, wire: Wire, key: &SecretString) -> Result<(), Refused> {
    let request = CreateSessionRequest { user_id: "ada".into(), ..CreateSessionRequest::default() };
    service.create_as(wire, key, request).await.map(|_| ())
}

/// The sixth request of a burst of five is refused, equally on every protocol, and the reported wait is exact to the
/// microsecond.
#[tokio::test]
async fn an_address_gets_its_burst_and_then_its_rate_on_every_wire() {
    let service = Service::start_rated(per_address()).await;
    for (wire, address) in Wire::ALL.into_iter().zip(["192.0.2.1", "192.0.2.2", "2001:db8::1"]) {
        for _ in 0..BURST {
            assert_eq!(ask(&service, wire, address).await, REFUSED_REFRESH, "{wire:?}: up to the burst");
        }
        let refused = asked(&service, wire, address).await;
        assert_eq!((refused.reason.as_str(), refused.code), ("RATE_LIMITED", Code::ResourceExhausted), "{wire:?}");
        assert_eq!(refused.retry_after, Some(INTERVAL), "{wire:?}");
        if wire == Wire::Rest {
            let http = refused.http.map(|status| status.as_u16());
            assert_eq!((http, refused.retry_after_seconds), (Some(429), Some(1)), "whole seconds, rounded up");
        }
        for other in Wire::ALL {
            assert_eq!(ask(&service, other, address).await, "RATE_LIMITED", "one bucket, whatever the wire");
            assert_eq!(ask(&service, other, "198.51.100.1").await, REFUSED_REFRESH, "another's is another's");
        }
        service.clock.advance(INTERVAL - TICK);
        assert_eq!(ask(&service, wire, address).await, "RATE_LIMITED", "{wire:?}: just before");
        service.clock.advance(TICK);
        assert_eq!(ask(&service, wire, address).await, REFUSED_REFRESH, "{wire:?}: at the reported time");
        assert_eq!(ask(&service, wire, address).await, "RATE_LIMITED", "{wire:?}: and once");
        service.clock.advance(INTERVAL * BURST);
    }
    assert_eq!(service.metric(r#"sessiond_rate_limited_total{bucket="address"}"#).await, 18);
    let counted = r#"sessiond_requests_total{rpc="sessiond.v1.SessionService/RefreshSession",wire="grpc",code="RESOURCE_EXHAUSTED"}"#;
    assert_eq!(service.metric(counted).await, 6, "a refusal is an answer like any other");
}

#[tokio::test]
async fn an_ipv6_subscriber_has_one_bucket() {
    let service = Service::start_rated(per_address()).await;
    for host in 0..BURST {
        assert_eq!(ask(&service, Wire::Rest, &format!("2001:db8:0:1::{host:x}")).await, REFUSED_REFRESH);
    }
    assert_eq!(ask(&service, Wire::Rest, "2001:db8:0:1:ffff::1").await, "RATE_LIMITED");
    assert_eq!(ask(&service, Wire::Rest, "2001:db8:0:2::1").await, REFUSED_REFRESH);
}

#[tokio::test]
async fn the_reported_wait_is_rounded_up_to_seconds_over_rest() {
    let rates = Rates { address_rate: 1, address_burst: 1, ..rates() };
    let service = Service::start_rated(rates).await;
    assert_eq!(ask(&service, Wire::Rest, "192.0.2.1").await, REFUSED_REFRESH);
    let refused = asked(&service, Wire::Rest, "192.0.2.1").await;
    assert_eq!((refused.retry_after, refused.retry_after_seconds), (Some(Duration::from_secs(1)), Some(1)));
    service.clock.advance(Duration::from_millis(1));
    let refused = asked(&service, Wire::Rest, "192.0.2.1").await;
    assert_eq!((refused.retry_after, refused.retry_after_seconds), (Some(Duration::from_millis(999)), Some(1)));
    service.clock.advance(Duration::from_millis(999));
    assert_eq!(ask(&service, Wire::Rest, "192.0.2.1").await, REFUSED_REFRESH);
}

/// A sign-out succeeds whatever else has come from its address, or for its project.
#[tokio::test]
async fn a_sign_out_succeeds_when_everything_else_is_limited() {
    let all = Rates { address_rate: 10, address_burst: BURST, ..per_project() };
    let service = Service::start_rated(all).await;
    let mut phones = vec![];
    for _ in Wire::ALL {
        phones.push(service.sign_in("ada", "phone").await);
    }
    let mut noisy = service.sign_in("eve", "script").await;
    noisy.refresh().await.expect("the last token of the project's");
    assert_refused!(noisy.refresh(), "RATE_LIMITED");
    drain_address(&service, "192.0.2.1").await;

    for (wire, phone) in Wire::ALL.into_iter().zip(&phones) {
        let refresh = both(from("192.0.2.9"), refresh_token(&phone.refresh_token));
        assert_refused!(service.refresh(wire, refresh), "RATE_LIMITED");
        let headers = both(from("192.0.2.1"), bearer(&phone.access_token));
        let ended = service.revoke_current(wire, headers).await.expect("signs out");
        assert_eq!(ended.already_revoked, None, "{wire:?}");
        let headers = both(from("192.0.2.1"), refresh_token(&phone.refresh_token));
        assert!(service.revoke_current(wire, headers).await.is_ok(), "{wire:?}: by the other token too");
        service.clock.advance(INTERVAL);
        drain_address(&service, "192.0.2.1").await;
        drain_project(&service).await;
    }
}

async fn drain_address(service: &Service, address: &str) {
    for _ in 0..=BURST {
        ask(service, Wire::Grpc, address).await;
    }
    assert_eq!(ask(service, Wire::Grpc, address).await, "RATE_LIMITED");
}

async fn drain_project(service: &Service) {
    let key = &service.server_key;
    for _ in 0..=BURST {
        let _ = service.create_as(Wire::Grpc, key, CreateSessionRequest::default()).await;
    }
    assert_refused!(create(service, Wire::Grpc, key), "RATE_LIMITED");
}

#[tokio::test]
async fn sign_outs_are_limited_only_by_their_address() {
    let service = Service::start_rated(per_address()).await;
    let phone = service.sign_in("ada", "phone").await;
    for wire in Wire::ALL {
        for _ in 0..BURST {
            let headers = both(from("192.0.2.1"), refresh_token("rubbish"));
            assert_refused!(service.revoke_current(wire, headers), REFUSED_REFRESH);
        }
        let headers = both(from("192.0.2.1"), refresh_token("rubbish"));
        let refused = service.revoke_current(wire, headers).await.expect_err("one over");
        assert_eq!((refused.reason.as_str(), refused.retry_after), ("RATE_LIMITED", Some(INTERVAL)), "{wire:?}");
        assert_eq!(ask(&service, wire, "192.0.2.1").await, REFUSED_REFRESH, "{wire:?}: other calls are apart");
        service.clock.advance(INTERVAL * BURST);
    }
    service.revoke_current(Wire::Rest, both(from("192.0.2.2"), bearer(&phone.access_token))).await.expect("signs out");
    assert_eq!(service.metric(r#"sessiond_rate_limited_total{bucket="sign_out"}"#).await, 3);
}

#[tokio::test]
async fn one_project_does_not_use_up_anothers() {
    let service = Service::start_rated(per_project()).await;
    let other = service.create_project("other").await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    for wire in Wire::ALL {
        let second = service.app.server_key_create(project.clone(), Role::Service).await.expect("makes a key").1;
        for _ in 0..BURST {
            create(&service, wire, &service.server_key).await.expect("up to the burst");
        }
        for key in [&service.server_key, &second] {
            let refused = create(&service, wire, key).await.expect_err("one over");
            assert_eq!((refused.reason.as_str(), refused.retry_after), ("RATE_LIMITED", Some(INTERVAL)), "{wire:?}");
        }
        create(&service, wire, &other).await.expect("another project");
        service.clock.advance(INTERVAL);
        create(&service, wire, &second).await.expect("at the reported time");
        service.clock.advance(INTERVAL * BURST);
    }
    assert_eq!(service.metric(r#"sessiond_rate_limited_total{bucket="project"}"#).await, 6);
}

/// With an empty key bucket, the database is not asked.
#[tokio::test]
async fn one_server_key_does_not_use_up_anothers() {
    let service = Service::start_rated(per_server_key()).await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    for wire in Wire::ALL {
        let second = service.app.server_key_create(project.clone(), Role::Service).await.expect("makes a key").1;
        for _ in 0..BURST {
            create(&service, wire, &service.server_key).await.expect("up to the burst");
        }
        let looked = lookups(&service).await;
        let refused = create(&service, wire, &service.server_key).await.expect_err("one over");
        assert_eq!((refused.reason.as_str(), refused.retry_after), ("RATE_LIMITED", Some(INTERVAL)), "{wire:?}");
        assert_eq!(lookups(&service).await, looked, "{wire:?}");
        create(&service, wire, &second).await.expect("another key");
        assert_eq!(lookups(&service).await, looked + 1, "{wire:?}: which is looked up");
        service.clock.advance(INTERVAL * BURST);
    }
    assert_eq!(service.metric(r#"sessiond_rate_limited_total{bucket="server_key"}"#).await, 3);
}

/// A service's calls come from few addresses, so they count against its server key. Invalid keys count against the
/// address.
#[tokio::test]
async fn a_genuine_server_key_does_not_count_against_its_address() {
    let service = Service::start_rated(per_address()).await;
    let key = service.server_key.expose_secret();
    let made_up = flip(key, key.len() - 10);
    for (wire, address) in Wire::ALL.into_iter().zip(["192.0.2.1", "192.0.2.2", "192.0.2.3"]) {
        let create = async |key: &str| {
            let request = CreateSessionRequest { user_id: "ada".into(), ..CreateSessionRequest::default() };
            let headers = both(from(address), bearer(key));
            let answer = service.wires.call::<_, CreateSessionResponse>(wire, "CreateSession", headers, &request).await;
            answer.map_or_else(|refused| refused.reason, |_| "OK".to_owned())
        };
        for _ in 0..4 * BURST {
            assert_eq!(create(key).await, "OK", "{wire:?}");
        }
        for _ in 0..BURST {
            assert_eq!(create(&made_up).await, "INVALID_SERVER_KEY", "{wire:?}");
        }
        assert_eq!(create(&made_up).await, "RATE_LIMITED", "{wire:?}");
    }
}

/// Key ids are public: every token of a project names them.
#[tokio::test]
async fn knowing_a_key_id_uses_up_nobodys_limit() {
    let both_kinds = Rates { server_key_rate: 10, server_key_burst: BURST, ..per_project() };
    let service = Service::start_rated(both_kinds).await;
    let phone = service.sign_in("ada", "phone").await;
    // The last characters belong to the secret, or depend on it.
    let key = service.server_key.expose_secret();
    let made_up: SecretString = flip(key, key.len() - 10).into();
    let forged = flip(&phone.refresh_token, 70);
    for wire in Wire::ALL {
        for _ in 0..3 * BURST {
            assert_refused!(create(&service, wire, &made_up), "INVALID_SERVER_KEY");
            assert_refused!(service.refresh(wire, refresh_token(&forged)), REFUSED_REFRESH);
        }
        create(&service, wire, &service.server_key).await.expect("its holder has all of it");
    }
    service.refresh(Wire::Rest, refresh_token(&phone.refresh_token)).await.expect("and so has the user");
}

/// A proxy's clients share its address, and some send invalid tokens: that must not block the others.
#[tokio::test]
async fn a_proxys_clients_do_not_use_up_its_limit() {
    let all = Rates { address_rate: 10, address_burst: BURST, ..per_project() };
    let service = Service::start_rated(all).await;
    let phone = service.sign_in("ada", "phone").await;
    drain_address(&service, "192.0.2.1").await;
    drain_project(&service).await;
    let forged = flip(&phone.access_token, phone.access_token.len() - 20);
    for route in Route::ALL {
        for _ in 0..4 * BURST {
            for (token, status) in [("rubbish", 401), (forged.as_str(), 401), (phone.access_token.as_str(), 200)] {
                let headers = both(from("192.0.2.1"), bearer(token));
                assert_eq!(service.verify(route, PROJECT, headers).await.status, status, "{route:?}");
            }
        }
    }
}

#[tokio::test]
async fn probes_and_public_keys_are_free() {
    let service = Service::start_rated(Rates { address_rate: 1, address_burst: 1, ..rates() }).await;
    for path in ["/healthz", "/.well-known/jwks.json"] {
        for _ in 0..10 {
            let answer = service.wires.http(Method::GET, path, from("192.0.2.1"), "").await;
            assert_eq!(answer.status().as_u16(), 200, "{path}");
        }
    }
    let channel = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>();
    let origin = format!("http://{}", service.addr).parse().expect("a URI");
    let mut health = HealthClient::with_origin(channel, origin);
    for _ in 0..10 {
        health.check(HealthCheckRequest::default()).await.expect("answers");
    }
}

/// All clients of `dev` come from loopback; `serve` has limits by default.
#[tokio::test]
async fn serve_has_default_limits_and_dev_has_none() {
    for (command, rates) in [("dev", ["0", "0", "0"]), ("serve", ["100", "5000", "2000"])] {
        let help = Command::new(env!("CARGO_BIN_EXE_sessiond")).args([command, "--help"]).output().await.expect("runs");
        let help = String::from_utf8(help.stdout).expect("text");
        for (flag, rate) in ["--address-rate", "--project-rate", "--server-key-rate"].into_iter().zip(rates) {
            let (_, about) = help.split_once(&format!("{flag} <COUNT>")).expect(flag);
            let (_, default) = about.split_once("[default: ").expect("a default");
            assert_eq!(default.split_once(']').map(|(default, _)| default), Some(rate), "{command} {flag}");
        }
    }
}
