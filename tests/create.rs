//! Creating sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderMap;
use prost_types::{Struct, Timestamp, Value, value::Kind};
use secrecy::ExposeSecret as _;
use serde_json::json;
use sessiond::{
    pb::{CreateSessionRequest, CreateSessionResponse},
    store::Role,
};
use sessiond_core::{
    clock,
    id::{Bucket, ProjectId, SessionId},
    session::Policy,
};
use uuid::Uuid;

use crate::{
    assert_refused,
    harness::{PROJECT, REFUSED_REFRESH, Service, Wire, bearer},
};

fn request(user: &str) -> CreateSessionRequest {
    CreateSessionRequest { user_id: user.to_owned(), ..CreateSessionRequest::default() }
}

pub fn claims_of(token: &str) -> serde_json::Value {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a payload")).expect("base64");
    serde_json::from_slice(&payload).expect("JSON")
}

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

#[tokio::test]
async fn a_session_has_the_properties_it_was_created_with() {
    let service = Service::start().await;
    let now = service.clock.now();
    for wire in Wire::ALL {
        let number = Value { kind: Some(Kind::NumberValue(7.0)) };
        let asked = CreateSessionRequest {
            is_impersonation: true,
            impersonator_id: Some("root".into()),
            auth_time: Some(Timestamp { seconds: now.as_seconds() - 5, nanos: 0 }),
            acr: Some("aal2".into()),
            amr: vec!["pwd".into(), "otp".into()],
            claims: Some(Struct { fields: BTreeMap::from([("role".into(), string("admin")), ("n".into(), number)]) }),
            device_name: Some("phone".into()),
            user_agent: Some("curl/8".into()),
            ip: Some("2001:db8::1".into()),
            labels: BTreeMap::from([("team".into(), "blue".into())]),
            ..request("ada")
        };
        let created = service.create(wire, asked).await.expect("opens");
        let session = created.session.expect("a session");
        assert_eq!((session.user_id.as_str(), session.project_id.as_str()), ("ada", PROJECT));
        assert_eq!((session.ip.as_str(), session.user_agent.as_str()), ("2001:db8::1", "curl/8"));
        assert_eq!(session.labels["team"], "blue");
        assert_eq!(session.impersonator_id.as_deref(), Some("root"));
        // An impersonation's.
        assert_eq!(session.expires_at.expect("a time").seconds, now.as_seconds() + 3_600);
        assert_eq!(session.idle_expires_at, session.expires_at);

        let mut claims = claims_of(&created.access_token);
        let jti = claims.as_object_mut().expect("claims").remove("jti").expect("a jti");
        assert!(jti.as_str().is_some_and(|jti| jti.len() == 36));
        assert_eq!(
            claims,
            json!({
                "iss": "https://sessions.example.org/projects/demo", "sub": "ada", "aud": "demo", "client_id": "demo",
                "iat": now.as_seconds(), "exp": now.as_seconds() + 600, "sid": session.id, "epoch": [0, 0],
                "project_id": "demo", "refresh_token_id": session.id, "auth_time": now.as_seconds() - 5, "acr": "aal2",
                "amr": ["pwd", "otp"], "act": {"sub": "root"}, "role": "admin", "n": 7,
            })
        );
    }
}

/// However they are opened, and whatever becomes of the project's policy.
#[tokio::test]
async fn all_session_ids_of_a_user_contain_the_same_bucket() {
    let service = Service::start().await;
    let mut buckets: Vec<BTreeSet<Bucket>> = vec![];
    for number in 0..8 {
        let user = format!("user-{number}");
        let mut found = BTreeSet::new();
        for (wire, request_id) in [(Wire::Grpc, None), (Wire::Rest, Some(clock::new_uuid().to_string()))] {
            let created = service.create(wire, CreateSessionRequest { request_id, ..request(&user) }).await;
            let session = created.expect("opens").session.expect("a session").id;
            found.insert(SessionId::parse(&session).expect("an id").bucket());
            let id = ProjectId::parse(PROJECT).expect("a name");
            service.app.project_update(id, |policy| policy.idle_ttl -= Duration::from_secs(1)).await.expect("changes");
        }
        buckets.push(found);
    }
    assert!(buckets.iter().all(|found| found.len() == 1), "{buckets:?}");
    // Of eight users, all are in one bucket once in 2^84.
    assert!(buckets.iter().collect::<BTreeSet<_>>().len() > 1, "{buckets:?}");
}

#[tokio::test]
async fn an_access_token_never_outlives_its_session() {
    let service = Service::start().await;
    let short = CreateSessionRequest { expires_in_millis: Some(5_500), ..request("ada") };
    let created = service.create(Wire::Rest, short).await.expect("opens");
    assert!(created.expires_in <= 6, "{}", created.expires_in);
    let end = created.session.expect("a session").expires_at.expect("a time").seconds;
    assert!(claims_of(&created.access_token)["exp"].as_i64().expect("a number") <= end);
}

#[tokio::test]
async fn a_repeat_returns_the_same_session() {
    let service = Service::start().await;
    let asked = CreateSessionRequest {
        request_id: Some("7b54bd43-2d0d-4a2e-93d0-0a2f1d7c5d3b".into()),
        labels: (0..8).map(|n| (n.to_string(), String::new())).collect(),
        ..request("ada")
    };
    let first = service.create(Wire::Rest, asked.clone()).await.expect("opens");
    let again = service.create(Wire::Grpc, asked.clone()).await.expect("repeats");
    assert_eq!((first.session, &first.refresh_token), (again.session, &again.refresh_token));

    let many = (0..8).map(|_| {
        service.create(
            Wire::Grpc,
            CreateSessionRequest { request_id: Some("0c0de0e6-9f7b-4b0c-8f59-6f0a8f0a9b11".into()), ..request("bob") },
        )
    });
    let many = futures_util::future::join_all(many).await;
    let ids: Vec<String> = many
        .into_iter()
        .map(|one: Result<CreateSessionResponse, _>| one.expect("opens").session.expect("a session").id)
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");

    let other = CreateSessionRequest { device_name: Some("another".into()), ..asked.clone() };
    let refused = service.create(Wire::Rest, other).await.err().expect("another request under the same id");
    assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["request_id".to_owned()]));

    service.revoke_current(Wire::Rest, bearer(&first.access_token)).await.expect("signs out");
    assert_refused!(service.create(Wire::Rest, asked), "SCHEMA_ERROR");

    // After its client has refreshed, a second holder of the chain would end the session for both.
    let asked =
        CreateSessionRequest { request_id: Some("5d1c61b2-84dc-4a8c-9ed0-7c4e2f4bd2f5".into()), ..request("ada") };
    let mut phone = service.device(service.create(Wire::Rest, asked.clone()).await.expect("opens"));
    phone.refresh().await.expect("still works");
    assert_refused!(service.create(Wire::Rest, asked), "SCHEMA_ERROR");
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn reauthentication_revokes_the_replaced_session() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let bobs = service.sign_in("bob", "phone").await;
    let id = Some("9e3b0c8e-5a0a-4a49-a2c6-4f3c1f7b9f10".to_owned());

    let of_another = CreateSessionRequest {
        replaces_session_id: Some(bobs.session.clone()),
        request_id: id.clone(),
        ..request("ada")
    };
    assert_refused!(service.create(Wire::Rest, of_another), "SESSION_NOT_FOUND");
    assert!(bobs.is_signed_in().await);

    // The refusal has no effect: the same request id can be used again.
    let own =
        CreateSessionRequest { replaces_session_id: Some(phone.session.clone()), request_id: id, ..request("ada") };
    service.create(Wire::Rest, own).await.expect("opens");
    assert_refused!(phone.refresh(), REFUSED_REFRESH);
}

#[tokio::test]
async fn invalid_fields_are_refused_by_name() {
    let service = Service::start().await;
    let reserved = Struct { fields: BTreeMap::from([("sub".into(), string("eve"))]) };
    let large = Struct { fields: BTreeMap::from([("x".into(), string(&"x".repeat(5_000)))]) };
    let wrong = [
        (request(""), "user_id"),
        (request("me"), "user_id"),
        (CreateSessionRequest { expires_in_millis: Some(31_708_800_001), ..request("ada") }, "expires_in_millis"),
        (CreateSessionRequest { idle_timeout_millis: Some(0), ..request("ada") }, "idle_timeout_millis"),
        (CreateSessionRequest { request_id: Some("one".into()), ..request("ada") }, "request_id"),
        // The value of an unset variable: two sign-ins would share one session.
        (CreateSessionRequest { request_id: Some(Uuid::nil().to_string()), ..request("ada") }, "request_id"),
        (CreateSessionRequest { request_id: Some(Uuid::max().to_string()), ..request("ada") }, "request_id"),
        (
            CreateSessionRequest { request_id: Some(Uuid::max().to_string().to_uppercase()), ..request("ada") },
            "request_id",
        ),
        (CreateSessionRequest { claims: Some(reserved), ..request("ada") }, "claims"),
        (CreateSessionRequest { claims: Some(large), ..request("ada") }, "claims"),
    ];
    for (request, field) in wrong {
        for wire in Wire::ALL {
            let refused = service.create(wire, request.clone()).await.err().expect(field);
            assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec![field.to_owned()]), "{wire:?}");
        }
    }
}

/// A malformed header must not prevent a sign-in: it is cut, cleaned or dropped.
#[tokio::test]
async fn malformed_device_details_never_prevent_a_sign_in() {
    let service = Service::start().await;
    let described = |name: &str, user_agent: &str, ip: &str| CreateSessionRequest {
        device_name: Some(name.into()),
        user_agent: Some(user_agent.into()),
        ip: Some(ip.into()),
        ..request("ada")
    };
    let long = "x".repeat(1_025);
    let cases = [
        (described(&long, &long, "fe80::1%eth0"), (&long[..255], &long[..1_024], "fe80::1")),
        (described("a\0b", "a\0b\u{1b}", "192.0.2.1:80"), ("a b", "a b", "192.0.2.1")),
        (described(" \t", "\r\n", ""), ("", "", "")),
        (described("", "", "localhost"), ("", "", "")),
    ];
    for (request, (name, user_agent, ip)) in cases {
        for wire in Wire::ALL {
            let session = service.create(wire, request.clone()).await.expect("signs in").session.expect("a session");
            assert_eq!(session.device_name.as_deref().unwrap_or_default(), name, "{wire:?}");
            assert_eq!((session.user_agent.as_str(), session.ip.as_str()), (user_agent, ip), "{wire:?}");
        }
    }
}

#[tokio::test]
async fn only_a_service_creates_sessions() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let cases: [(HeaderMap, &str); 4] = [
        (HeaderMap::new(), "CREDENTIALS_MISSING"),
        (bearer(&phone.access_token), "INSUFFICIENT_ACCESS_TYPE"),
        (bearer("sdsk_rubbish"), "INVALID_SERVER_KEY"),
        (bearer(&format!("sdsk_{}", "A".repeat(64))), "INVALID_SERVER_KEY"),
    ];
    for (headers, reason) in cases {
        let request = request("ada");
        let call = service.wires.call::<_, CreateSessionResponse>(Wire::Rest, "CreateSession", headers, &request);
        assert_refused!(call, reason);
    }
}

/// Another process may have created the project a moment ago.
#[tokio::test]
async fn a_project_works_as_soon_as_it_exists() {
    let service = Service::start().await;
    let project = ProjectId::parse("brand-new").expect("a name");
    service.app.project_create(project.clone(), Policy::default()).await.expect("creates");
    let (_, key) = service.app.server_key_create(project, Role::Service).await.expect("makes a key");
    let created = service.create_as(Wire::Rest, &key, request("ada")).await.expect("opens");
    service.revoke_current(Wire::Rest, bearer(&created.access_token)).await.expect("signs out");
}

/// A malformed message is the caller's error, not an internal one.
#[tokio::test]
async fn malformed_messages_are_refused_as_such() {
    let service = Service::start().await;
    let not_text: Vec<u8> = vec![0xff];
    let too_large: Vec<u8> = vec![b'x'; 600 * 1024];
    for wire in [Wire::Grpc, Wire::GrpcWeb] {
        for message in [&not_text, &too_large] {
            let headers = bearer(service.server_key.expose_secret());
            let call = service.wires.call::<_, CreateSessionResponse>(wire, "CreateSession", headers, message);
            assert_refused!(call, "SCHEMA_ERROR");
        }
    }
}
