//! Introspection: for services, and without side effects.

use std::{collections::BTreeMap, time::Duration};

use http::HeaderMap;
use prost_types::{Struct, Timestamp, Value, value::Kind};
use secrecy::ExposeSecret as _;
use sessiond::pb::{CreateSessionRequest, IntrospectTokenResponse};

use crate::{
    assert_refused,
    create::claims_of,
    harness::{ISSUER, PROJECT, REFRESH_GRACE, REFUSED_REFRESH, Service, Wire, bearer, refresh_token},
    revoke::flip,
};

fn inactive() -> IntrospectTokenResponse {
    IntrospectTokenResponse::default()
}

#[tokio::test]
async fn an_active_token_is_described_and_an_inactive_one_is_not_on_every_wire() {
    let service = Service::start().await;
    let now = service.clock.now().as_seconds();
    let role = Value { kind: Some(Kind::StringValue("reader".into())) };
    for wire in Wire::ALL {
        let request = CreateSessionRequest {
            user_id: "ada".into(),
            is_impersonation: true,
            impersonator_id: Some("root".into()),
            auth_time: Some(Timestamp { seconds: now - 5, nanos: 0 }),
            acr: Some("aal2".into()),
            amr: vec!["pwd".into(), "otp".into()],
            claims: Some(Struct { fields: BTreeMap::from([("role".into(), role.clone())]) }),
            expires_in_millis: Some(3_600_000),
            ..Default::default()
        };
        let phone = service.device(service.create(wire, request).await.expect("opens"));
        let claims = claims_of(&phone.access_token);
        let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let access = service.introspect(wire, service.key(), &phone.access_token).await.expect("answers");
        let expected = IntrospectTokenResponse {
            active: true,
            token_type: Some("access_token".into()),
            sub: Some("ada".into()),
            client_id: Some(PROJECT.into()),
            aud: Some(PROJECT.into()),
            iss: Some(format!("{ISSUER}/projects/{PROJECT}")),
            jti: claims["jti"].as_str().map(str::to_owned),
            iat: time(now),
            exp: time(now + 600),
            auth_time: time(now - 5),
            sid: Some(phone.session.clone()),
            project_id: Some(PROJECT.into()),
            acr: Some("aal2".into()),
            amr: access.amr.clone(),
            impersonator_id: Some("root".into()),
            claims: Some(Struct { fields: BTreeMap::from([("role".into(), role.clone())]) }),
        };
        assert_eq!(access, expected, "{wire:?}");
        let methods: Vec<_> = access.amr.expect("methods").values.into_iter().map(|one| one.kind).collect();
        assert_eq!(methods, ["pwd", "otp"].map(|one| Some(Kind::StringValue(one.into()))));

        let refresh = service.introspect(wire, service.key(), &phone.refresh_token).await.expect("answers");
        let session = service.current(wire, phone.bearer()).await.expect("answers");
        assert_eq!((refresh.active, refresh.token_type.as_deref()), (true, Some("refresh_token")));
        assert_eq!((refresh.exp, refresh.sid, refresh.sub), (session.expires_at, Some(session.id), Some("ada".into())));
        assert!(refresh.jti.is_none() && refresh.iat.is_none());

        phone.sign_out().await.expect("signs out");
        for token in [&phone.access_token, &phone.refresh_token] {
            assert_eq!(service.introspect(wire, service.key(), token).await.expect("answers"), inactive(), "{wire:?}");
        }
    }
}

#[tokio::test]
async fn anything_but_a_token_of_this_project_is_inactive() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let phone = service.sign_in("ada", "phone").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let elsewhere = service.create_as(Wire::Grpc, &other, request).await.expect("opens");
    let long = "x".repeat(20_000);
    let (forged_access, forged_refresh) = (flip(&phone.access_token, 400), flip(&phone.refresh_token, 100));
    let before = service.database.contents().await;
    for wire in Wire::ALL {
        for token in [
            "rubbish",
            "sdrt_rubbish",
            "a.b.c",
            long.as_str(),
            service.server_key.expose_secret(),
            &forged_access,
            &forged_refresh,
            &elsewhere.access_token,
            &elsewhere.refresh_token,
        ] {
            let worth = service.introspect(wire, service.key(), token).await.expect("answers");
            assert_eq!(worth, inactive(), "{wire:?} {token:.20}");
        }
        let there = service.introspect(wire, bearer(other.expose_secret()), &elsewhere.access_token).await;
        assert!(there.expect("answers").active);
        assert_refused!(service.introspect(wire, phone.bearer(), &phone.access_token), "INSUFFICIENT_ACCESS_TYPE");
        assert_refused!(service.introspect(wire, HeaderMap::new(), &phone.access_token), "CREDENTIALS_MISSING");
        let refused = service.introspect(wire, service.key(), "").await.expect_err("refused");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["token".to_owned()]));
    }
    assert_eq!(service.database.contents().await, before);
}

/// Introspection does not rotate, raise an alarm, or count as use.
#[tokio::test]
async fn introspection_does_not_affect_a_refresh_token() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let first = phone.refresh_token.clone();
    phone.refresh().await.expect("refreshes");
    let second = phone.refresh_token.clone();
    let before = service.database.contents().await;
    assert!(service.is_active(&first).await, "within the grace it would be answered");
    assert!(service.is_active(&second).await);
    assert_eq!(service.database.contents().await, before);

    phone.refresh().await.expect("refreshes");
    service.clock.advance(REFRESH_GRACE);
    let before = service.database.contents().await;
    assert!(!service.is_active(&first).await, "presenting it would be an alarm");
    assert!(service.is_active(&second).await, "its successor was never used: it would be answered");
    assert!(service.is_active(&phone.refresh_token).await);
    assert_eq!(service.database.contents().await, before, "and looking at it is none");
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn a_batch_answers_in_the_order_of_its_tokens() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("bob", "laptop").await);
    laptop.sign_out().await.expect("signs out");
    let tokens: Vec<String> = (0..1_000)
        .map(|n| match n % 5 {
            0 => phone.access_token.clone(),
            1 => laptop.access_token.clone(),
            2 => "rubbish".to_owned(),
            3 => phone.refresh_token.clone(),
            _ => String::new(),
        })
        .collect();
    for wire in Wire::ALL {
        let answer = service.introspect_batch(wire, service.key(), tokens.clone()).await.expect("answers");
        assert_eq!(answer.items.len(), 1_000);
        for (n, item) in answer.items.iter().enumerate() {
            let kind = item.token_type.as_deref();
            match n % 5 {
                0 => assert_eq!((item.active, kind), (true, Some("access_token")), "{wire:?} {n}"),
                3 => assert_eq!((item.active, kind), (true, Some("refresh_token")), "{wire:?} {n}"),
                _ => assert_eq!(*item, inactive(), "{wire:?} {n}"),
            }
        }
        for count in [0, 1_001] {
            let tokens = vec!["rubbish".to_owned(); count];
            let refused = service.introspect_batch(wire, service.key(), tokens).await.expect_err("refused");
            assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["tokens".to_owned()]));
        }
        assert_refused!(
            service.introspect_batch(wire, phone.bearer(), vec!["rubbish".into()]),
            "INSUFFICIENT_ACCESS_TYPE"
        );
    }
}

/// A token expires at its second, and its session continues.
#[tokio::test]
async fn an_access_token_expires_at_its_exp_everywhere() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let end = claims_of(&phone.access_token)["exp"].as_i64().expect("a number");
    let exp = sessiond_core::clock::Timestamp::from_seconds(end);
    service.clock.advance(exp.since(service.clock.now()) - Duration::from_micros(1));
    for wire in Wire::ALL {
        service.current(wire, phone.bearer()).await.expect("just before");
    }
    assert!(service.is_active(&phone.access_token).await);
    for _ in ["at", "just after"] {
        service.clock.advance(Duration::from_micros(1));
        for wire in Wire::ALL {
            assert_refused!(service.current(wire, phone.bearer()), "ACCESS_TOKEN_EXPIRED");
            assert_refused!(service.list(wire, phone.bearer(), Default::default()), "ACCESS_TOKEN_EXPIRED");
            assert_refused!(service.revoke_all(wire, phone.bearer(), Default::default()), "ACCESS_TOKEN_EXPIRED");
            let by_id = service.revoke_session(wire, phone.bearer(), &phone.session, None);
            assert_refused!(by_id, "ACCESS_TOKEN_EXPIRED");
            let worth = service.introspect(wire, service.key(), &phone.access_token).await.expect("answers");
            assert_eq!(worth, inactive(), "{wire:?}");
        }
    }
    assert!(phone.is_signed_in().await && service.is_active(&phone.refresh_token).await);
}

#[tokio::test]
async fn a_session_that_has_ended_makes_all_its_tokens_inactive_at_once() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let laptop = service.sign_in("ada", "laptop").await;
    let older = phone.access_token.clone();
    phone.refresh().await.expect("refreshes");
    laptop.revoke_others().await.expect("ends it");
    for token in [&older, &phone.access_token, &phone.refresh_token] {
        assert!(!service.is_active(token).await);
    }
    assert!(service.is_active(&laptop.access_token).await && service.is_active(&laptop.refresh_token).await);
    assert_refused!(service.refresh(Wire::Rest, refresh_token(&phone.refresh_token)), REFUSED_REFRESH);
}
