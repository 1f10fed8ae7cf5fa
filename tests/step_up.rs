//! Routes that need a recent or a strong authentication (RFC 9470), and access tokens whose claims are out of date: by verify and
//! Check, by introspection, and behind a guard.

use std::time::Duration;

use axum::{Router, routing::get};
use http::{HeaderMap, Method, StatusCode};
use prost_types::Timestamp;
use sessiond::pb::{CreateSessionRequest, RefreshSessionResponse};
use sessiond_guard::{Guard, GuardOptions, Rejection, StepUp};

use crate::{
    create::claims_of,
    guard::options_for,
    harness::{
        Device, PROJECT, Service, Wire, eventually, serve_http,
        wire::{Wires, refused_json},
    },
    verify::Route,
};

const DESCRIPTION: &str = "A more recent or a stronger authentication is required.";

/// Signs in with this `acr`, this long ago.
async fn authenticated<'s>(service: &'s Service, acr: Option<&str>, ago: Option<Duration>) -> Device<'s> {
    let at = |ago: Duration| Timestamp { seconds: (service.clock.now() - ago).as_seconds(), nanos: 0 };
    let request = CreateSessionRequest {
        user_id: "ada".to_owned(),
        acr: acr.map(str::to_owned),
        auth_time: ago.map(at),
        ..CreateSessionRequest::default()
    };
    service.device(service.create(Wire::Grpc, request).await.expect("signs in"))
}

fn challenge(parameters: &str) -> String {
    format!(r#"Bearer error="insufficient_user_authentication", error_description="{DESCRIPTION}"{parameters}"#)
}

#[tokio::test]
async fn a_route_may_require_a_recent_or_a_strong_authentication() {
    let service = Service::start().await;
    let minute = Duration::from_secs(60);
    let weak = authenticated(&service, Some("aal1"), Some(10 * minute)).await;
    let strong = authenticated(&service, Some("aal2"), Some(10 * minute)).await;
    let recent = authenticated(&service, Some("aal1"), Some(minute)).await;
    let unknown = authenticated(&service, None, None).await;
    for route in Route::ALL {
        for (parameters, passing, missing) in [
            (vec![], [true, true, true, true], ""),
            (vec![("acr_values", "aal2 aal3")], [false, true, false, false], r#", acr_values="aal2 aal3""#),
            (vec![("max_age", "300")], [false, false, true, false], r#", max_age="300""#),
            (
                vec![("max_age", "300"), ("acr_values", "aal1")],
                [false, false, true, false],
                r#", acr_values="aal1", max_age="300""#,
            ),
            (vec![("max_age", "3600"), ("acr_values", "aal1")], [true, false, true, false], ""),
        ] {
            for (device, passes) in [&weak, &strong, &recent, &unknown].into_iter().zip(passing) {
                let outcome = service.verify_with(route, PROJECT, device.bearer(), &parameters).await;
                let case = format!("{route:?} {parameters:?}: {outcome:?}");
                assert_eq!(outcome.passes(), passes, "{case}");
                if !passes {
                    assert_eq!(outcome.status, 401, "{case}");
                    assert_eq!(outcome.reason.as_deref(), Some("INSUFFICIENT_USER_AUTHENTICATION"), "{case}");
                    if !missing.is_empty() {
                        assert_eq!(outcome.challenge, Some(challenge(missing)), "{case}");
                    }
                }
            }
        }
        // A bad token is refused for that, whatever else is required.
        let outcome = service.verify_with(route, PROJECT, HeaderMap::new(), &[("max_age", "300")]).await;
        assert_eq!(outcome.reason.as_deref(), Some("CREDENTIALS_MISSING"), "{route:?}");
        // A requirement that cannot be read lets nobody pass.
        for malformed in
            [("max_age", ""), ("max_age", "5m"), ("max_age", "0"), ("acr_values", ""), ("acr_values", "a,b")]
        {
            let outcome = service.verify_with(route, PROJECT, strong.bearer(), &[malformed]).await;
            assert_eq!((outcome.status, outcome.reason.as_deref()), (400, Some("SCHEMA_ERROR")), "{malformed:?}");
        }
    }
}

/// Half-open, as for all times: an authentication that is exactly as old as that is too old.
#[tokio::test]
async fn the_greatest_age_is_half_open() {
    let service = Service::start().await;
    let start = service.clock.now();
    // A whole second, because that is what a token has.
    service.clock.set(sessiond_core::clock::Timestamp::from_seconds(start.as_seconds() + 1));
    let phone = authenticated(&service, None, Some(Duration::ZERO)).await;
    let passes = async || {
        let outcome = service.verify_with(Route::Path, PROJECT, phone.bearer(), &[("max_age", "60")]).await;
        outcome.passes()
    };
    service.clock.advance(Duration::from_micros(59_999_999));
    assert!(passes().await, "just before");
    service.clock.advance(Duration::from_micros(1));
    assert!(!passes().await, "at exactly that age");
}

/// The challenge of RFC 9470 also where the project requires it before other sessions are ended.
#[tokio::test]
async fn the_api_itself_answers_by_rfc_9470() {
    let service = Service::start().await;
    service
        .set_policy(|policy| policy.revoking = StepUp::new(["aal2"], Some(Duration::from_secs(300))).expect("fits"))
        .await;
    let phone = authenticated(&service, Some("aal1"), Some(Duration::ZERO)).await;
    let headers = crate::harness::both(phone.bearer(), crate::harness::header("content-type", "application/json"));
    let answer = service.wires.http(Method::POST, "/auth/sessions:revokeAll", headers, "{}").await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["www-authenticate"], challenge(r#", acr_values="aal2", max_age="300""#));
}

#[tokio::test]
async fn a_guarded_route_may_require_a_recent_or_a_strong_authentication() {
    let service = Service::start().await;
    let clock = service.clock.clone();
    let guard = Guard::connect(GuardOptions { clock, ..options_for(&service) }).await.expect("connects");
    let route = || Router::new().route("/", get(async || "done"));
    let required = StepUp::new(["aal2"], Some(Duration::from_secs(300))).expect("well-formed");
    let strict = Wires::to(serve_http(route().layer(guard.layer().require(required.clone()))).await);
    let optional = Wires::to(serve_http(route().layer(guard.layer().optional().require(required))).await);
    let plain = Wires::to(serve_http(route().layer(guard.layer())).await);
    let call = async |wires: &Wires, headers| wires.http(Method::GET, "/", headers, "").await;

    let weak = authenticated(&service, Some("aal1"), Some(Duration::ZERO)).await;
    let strong = authenticated(&service, Some("aal2"), Some(Duration::ZERO)).await;
    for wires in [&strict, &optional] {
        assert_eq!(call(wires, strong.bearer()).await.status(), StatusCode::OK);
        let answer = call(wires, weak.bearer()).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers()["www-authenticate"], challenge(r#", acr_values="aal2", max_age="300""#));
        let refused = refused_json(answer.status(), &serde_json::from_slice(answer.body()).expect("JSON"));
        assert_eq!(refused.reason, "INSUFFICIENT_USER_AUTHENTICATION");
    }
    assert_eq!(call(&plain, weak.bearer()).await.status(), StatusCode::OK);
    assert_eq!(call(&optional, HeaderMap::new()).await.status(), StatusCode::OK, "there is no user to authenticate");
    let stats = guard.stats();
    assert_eq!((stats.step_ups, stats.accepted, stats.refused), (2, 5, 0), "{stats:?}");
}

// Superseded tokens.

/// The claims of a session change, and the token with the old ones is refused everywhere until the client refreshes.
#[tokio::test]
async fn a_superseded_token_is_refused_everywhere_and_its_successor_is_not() {
    let service = Service::start().await;
    let guard = Guard::connect(options_for(&service)).await.expect("connects");
    let (mut phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    assert!(guard.verify(&phone.access_token).await.is_ok());
    service.supersede(&phone, "support").await;

    eventually("the guard knows", async || {
        guard.verify(&phone.access_token).await == Err(Rejection::AccessTokenSuperseded)
    })
    .await;
    for route in Route::ALL {
        let outcome = service.verify(route, PROJECT, phone.bearer()).await;
        assert_eq!((outcome.status, outcome.reason.as_deref()), (401, Some("ACCESS_TOKEN_SUPERSEDED")), "{route:?}");
        let challenge = outcome.challenge.expect("a challenge");
        assert!(challenge.starts_with(r#"Bearer error="invalid_token""#), "so that the client refreshes: {challenge}");
        assert!(service.verify(route, PROJECT, laptop.bearer()).await.passes(), "another session of the user");
    }
    assert!(!service.is_active(&phone.access_token).await && service.is_active(&phone.refresh_token).await);
    assert!(phone.is_signed_in().await, "the session continues");
    assert!(guard.verify(&laptop.access_token).await.is_ok());

    phone.refresh().await.expect("refreshes");
    let claims = claims_of(&phone.access_token);
    assert_eq!((claims["role"].as_str(), claims["session_epoch"].as_i64()), (Some("support"), Some(1)));
    assert_eq!(claims_of(&laptop.access_token).get("session_epoch"), None, "tokens stay short");
    assert!(guard.verify(&phone.access_token).await.is_ok() && service.is_active(&phone.access_token).await);
    assert!(service.verify(Route::Path, PROJECT, phone.bearer()).await.passes());
    assert_eq!(guard.stats().superseded, 1);

    // Once more, and a repeat of the last refresh gets a token that counts.
    service.supersede(&phone, "admin").await;
    let again: RefreshSessionResponse = phone.refresh_without_keeping().await.expect("refreshes");
    assert_eq!(claims_of(&again.access_token)["session_epoch"], 2);
    eventually("the guard knows", async || {
        guard.verify(&phone.access_token).await == Err(Rejection::AccessTokenSuperseded)
    })
    .await;
    assert!(guard.verify(&again.access_token).await.is_ok());
    phone.sign_out().await.expect("a superseded token still signs out");
    eventually("the guard knows", async || guard.verify(&again.access_token).await == Err(Rejection::SessionRevoked))
        .await;
}

/// Without `supersede_tokens`, as before: tokens carry the new claims from the next refresh on.
#[tokio::test]
async fn an_update_alone_supersedes_nothing() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let session =
        sessiond::pb::Session { id: phone.session.clone(), device_name: Some("new".into()), ..Default::default() };
    let request = sessiond::pb::UpdateSessionRequest { session: Some(session), ..Default::default() };
    for wire in Wire::ALL {
        service.update(wire, service.key(), request.clone()).await.expect("changes it");
    }
    assert!(service.verify(Route::Path, PROJECT, phone.bearer()).await.passes());
    phone.refresh().await.expect("refreshes");
    assert_eq!(claims_of(&phone.access_token).get("session_epoch"), None);

    // Over every wire, with or without a change.
    for (at, wire) in Wire::ALL.into_iter().enumerate() {
        let request = sessiond::pb::UpdateSessionRequest { supersede_tokens: true, ..request.clone() };
        service.update(wire, service.key(), request).await.expect("supersedes");
        let tokens = phone.refresh_without_keeping().await.expect("refreshes");
        assert_eq!(claims_of(&tokens.access_token)["session_epoch"], at + 1, "{wire:?}");
    }
}

/// While the feed is old, the rows answer; they know of superseded tokens too.
#[tokio::test]
async fn the_rows_know_of_superseded_tokens() {
    let service = Service::start().await;
    let (proxy, silence) = crate::harness::proxy::Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let behind = service.replica_by(&proxy.url).await;
    let phone = service.sign_in("ada", "phone").await;
    let ask = async || behind.verify(Route::Path, PROJECT, phone.bearer()).await;
    eventually("the first reading", async || behind.app.feed().is_fresh()).await;
    silence.begin();
    eventually("its feed is old", async || !behind.app.feed().is_fresh()).await;
    assert!(ask().await.passes());
    service.supersede(&phone, "support").await;
    let outcome = ask().await;
    // Unless this machine is so busy that even the rows are not trusted by now.
    assert!(outcome.status == 503 || outcome.reason.as_deref() == Some("ACCESS_TOKEN_SUPERSEDED"), "{outcome:?}");
}
