//! Signing out: it always works, and never with a forged token.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderMap;
use prost_types::FieldMask;
use secrecy::ExposeSecret as _;
use sessiond::pb::{RevokeAllSessionsRequest, Session, UpdateSessionRequest};
use sessiond_core::{
    id::{ProjectId, SessionId},
    token::{access::Claims, keys::SigningKey, unverified::UnverifiedToken},
};
use tonic::Code;

use crate::{
    assert_refused,
    harness::{PROJECT, REFUSED_REFRESH, Service, Wire, bearer, both, eventually, header, proxy::Proxy, refresh_token},
};

/// The same sign-out over gRPC, grpc-web and REST: the same result, and the same errors afterwards.
#[tokio::test]
async fn a_sign_out_is_the_same_on_every_wire() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let phone = service.sign_in("ada", "phone").await;
        let ended = service.revoke_current(wire, bearer(&phone.access_token)).await.expect("signs out");
        assert!(ended.success && ended.already_revoked.is_none(), "{wire:?}");

        let again = service.revoke_current(wire, bearer(&phone.access_token)).await.expect("twice is fine");
        assert_eq!((again.success, again.already_revoked), (true, Some(true)), "{wire:?}");

        assert_refused!(service.refresh(wire, refresh_token(&phone.refresh_token)), REFUSED_REFRESH);
        assert_refused!(service.revoke_current(wire, HeaderMap::new()), "CREDENTIALS_MISSING");
        assert!(!phone.is_signed_in().await);
    }
}

#[tokio::test]
async fn signing_out_on_one_device_keeps_the_others() {
    let service = Service::start().await;
    let (phone, mut laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    phone.sign_out().await.expect("signs out");
    assert!(!phone.is_signed_in().await && laptop.is_signed_in().await);
    laptop.refresh().await.expect("still works");
}

#[tokio::test]
async fn an_expired_access_token_revokes_its_session() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    service.clock.advance(std::time::Duration::from_secs(30 * 86_400));
    assert!(phone.is_signed_in().await);
    let ended = phone.sign_out().await.expect("signs out");
    assert_eq!(ended.already_revoked, None);
    assert!(!phone.is_signed_in().await);
}

#[tokio::test]
async fn a_current_or_older_refresh_token_revokes_its_session() {
    let service = Service::start().await;
    for rotations in [0, 1, 3] {
        let mut phone = service.sign_in("ada", "phone").await;
        let oldest = phone.refresh_token.clone();
        for _ in 0..rotations {
            phone.refresh().await.expect("refreshes");
        }
        let ended = service.revoke_current(Wire::Rest, refresh_token(&oldest)).await.expect("signs out");
        assert_eq!(ended.already_revoked, None);
        assert_refused!(phone.refresh(), REFUSED_REFRESH);
    }
}

#[tokio::test]
async fn an_expired_or_swept_session_is_already_revoked() {
    let service = Service::start().await;
    let (lapsed, swept) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    service.database.run(&format!("DELETE FROM sessions WHERE id = '{}'", swept.session)).await;
    service.clock.advance(std::time::Duration::from_secs(366 * 86_400));
    for device in [lapsed, swept] {
        for headers in [bearer(&device.access_token), refresh_token(&device.refresh_token)] {
            let ended = service.revoke_current(Wire::Rest, headers).await.expect("is over");
            assert_eq!(ended.already_revoked, Some(true));
        }
    }
}

/// A concurrent refresh may have read an earlier time: signing out revokes an expired session all the same.
#[tokio::test]
async fn a_sign_out_revokes_an_expired_session() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    service.clock.advance(std::time::Duration::from_secs(91 * 86_400));
    assert!(!phone.is_signed_in().await);
    phone.sign_out().await.expect("is over");
    let project = ProjectId::parse(PROJECT).expect("a name");
    let id = SessionId::parse(&phone.session).expect("an id");
    let seen = service.store.session_find(project, id).await.expect("answers").expect("is there");
    assert!(seen.stored.session.revoked.is_some(), "a slower clock would find it live");
}

#[tokio::test]
async fn of_several_tokens_every_genuine_one_revokes_its_session() {
    let service = Service::start().await;
    let (one, other) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let headers = both(bearer(&one.access_token), refresh_token(&other.refresh_token));
    service.revoke_current(Wire::Grpc, headers).await.expect("signs out");
    assert!(!one.is_signed_in().await && !other.is_signed_in().await);

    let third = service.sign_in("ada", "watch").await;
    let headers = both(bearer("rubbish"), refresh_token(&third.refresh_token));
    service.revoke_current(Wire::Grpc, headers).await.expect("one genuine token is enough");
    assert!(!third.is_signed_in().await);

    let fourth = service.sign_in("ada", "tv").await;
    let mut doubled = bearer("rubbish");
    doubled.append("authorization", format!("Bearer {}", fourth.access_token).parse().expect("a value"));
    service.revoke_current(Wire::Grpc, doubled).await.expect("bad company does not spoil it");
    assert!(!fourth.is_signed_in().await);

    let neither = both(bearer("rubbish"), refresh_token("rubbish"));
    assert_refused!(service.revoke_current(Wire::Grpc, neither), "UNPARSABLE_ACCESS_TOKEN");
}

#[tokio::test]
async fn a_forged_token_is_a_401_on_every_wire_and_changes_nothing() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let (key, claims) = signing_key(&service, &phone.access_token);
    let stranger = SigningKey::generate(ProjectId::parse(PROJECT).expect("a name")).0;
    let segments: Vec<&str> = phone.access_token.split('.').collect();
    let foreign =
        Claims { aud: "other".into(), project_id: "other".into(), client_id: "other".into(), ..claims.clone() };
    let header_of =
        |alg: &str| URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","typ":"at+jwt","kid":"{}"}}"#, key.id()));
    let by_a_stranger = stranger.sign(&claims).expect("signs");
    let for_another = key.sign(&foreign).expect("signs");
    let refused = [
        ("", "UNPARSABLE_ACCESS_TOKEN"),
        ("rubbish", "UNPARSABLE_ACCESS_TOKEN"),
        ("a.b.c", "UNPARSABLE_ACCESS_TOKEN"),
        (&phone.access_token[..phone.access_token.len() - 2], "UNPARSABLE_ACCESS_TOKEN"),
        (&format!("{}.{}.", header_of("none"), segments[1]), "UNPARSABLE_ACCESS_TOKEN"),
        (&format!("{}.{}.{}", header_of("HS256"), segments[1], segments[2]), "UNPARSABLE_ACCESS_TOKEN"),
        (by_a_stranger.expose_secret(), "UNPARSABLE_ACCESS_TOKEN"),
        (for_another.expose_secret(), "INVALID_PROJECT_FOR_ACCESS_TOKEN"),
    ];
    for (token, reason) in refused {
        for wire in Wire::ALL {
            let refused = service.revoke_current(wire, bearer(token)).await.expect_err(reason);
            assert_eq!((refused.reason.as_str(), refused.code), (reason, Code::Unauthenticated), "{wire:?}");
        }
    }
    for token in ["rubbish", "sdrt_rubbish", &flip(&phone.refresh_token, 20), &flip(&phone.refresh_token, 100)] {
        assert_refused!(service.revoke_current(Wire::Rest, refresh_token(token)), REFUSED_REFRESH);
    }
    assert!(phone.is_signed_in().await);
}

/// The rules for user ids may become stricter than they were when the token was issued.
#[tokio::test]
async fn a_genuine_token_whose_user_id_is_no_longer_valid_signs_out() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let phone = service.sign_in("ada", "phone").await;
        let (key, claims) = signing_key(&service, &phone.access_token);
        let token = key.sign(&Claims { sub: "me".into(), ..claims }).expect("signs");
        service.revoke_current(wire, bearer(token.expose_secret())).await.expect("signs out");
        assert!(!phone.is_signed_in().await, "{wire:?}");
    }
}

/// Lookups of unknown keys are shared, and one project's broken key does not affect others.
#[tokio::test]
async fn unknown_keys_are_401s_and_share_one_query() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let broken =
        "INSERT INTO signing_keys SELECT project_id, gen_random_uuid(), 'broken', now(), now(), NULL FROM signing_keys";
    service.database.run(broken).await;
    let (_, claims) = signing_key(&service, &phone.access_token);
    let forged = (0..200).map(|_| {
        let stranger = SigningKey::generate(ProjectId::parse(PROJECT).expect("a name")).0;
        bearer(stranger.sign(&claims).expect("signs").expose_secret())
    });
    let before = inventories(&service).await;
    let answers =
        futures_util::future::join_all(forged.map(|headers| service.revoke_current(Wire::Rest, headers))).await;
    for answer in answers {
        assert_eq!(answer.expect_err("refused").reason, "UNPARSABLE_ACCESS_TOKEN");
    }
    let queries = inventories(&service).await - before;
    assert!(queries <= 20, "{queries} readings of the keys for 200 made-up ones");
    phone.sign_out().await.expect("the good key still works");
}

/// How often the keys were loaded.
async fn inventories(service: &Service) -> u64 {
    let line = r#"sessiond_store_operation_duration_seconds_count{operation="inventory",outcome="ok"} "#;
    let page = service.metrics_page().await;
    page.lines().find_map(|found| found.strip_prefix(line)).map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn a_token_of_another_project_revokes_nothing_here() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let phone = service.sign_in("ada", "phone").await;
    let request = sessiond::pb::CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let elsewhere = service.create_as(Wire::Grpc, &other, request).await.expect("signs in");
    service.revoke_current(Wire::Rest, bearer(&elsewhere.access_token)).await.expect("signs out there");
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn a_server_key_is_the_wrong_kind_of_credential() {
    let service = Service::start().await;
    let key = service.server_key.expose_secret();
    let refused = service.revoke_current(Wire::Rest, bearer(key)).await.expect_err("refused");
    assert_eq!(
        (refused.reason.as_str(), refused.http.map(|http| http.as_u16())),
        ("INSUFFICIENT_ACCESS_TYPE", Some(403))
    );
    let in_a_browser = both(bearer(key), header("origin", "https://app.example.org"));
    assert_refused!(service.revoke_current(Wire::Rest, in_a_browser), "INSUFFICIENT_ACCESS_TYPE");
}

/// The project's own key, and the claims of one of its tokens.
fn signing_key(service: &Service, token: &str) -> (std::sync::Arc<SigningKey>, Claims) {
    let presented = UnverifiedToken::parse(token).expect("genuine");
    let key = service.app.keys().snapshot().keyring.signing(presented.key()).expect("known").clone();
    let claims = presented
        .verify(key.verifying(), &sessiond_core::token::access::Issuer::new(crate::harness::ISSUER))
        .expect("genuine");
    (key, claims)
}

/// The token with one character changed.
pub fn flip(token: &str, at: usize) -> String {
    let other = if token.as_bytes()[at] == b'A' { 'B' } else { 'A' };
    format!("{}{other}{}", &token[..at], &token[at + 1..])
}

/// Another replica has revoked the session, and this one has not read that yet. A caller to whom this replica reports
/// the session as ended must not be accepted by it afterwards.
#[tokio::test]
async fn a_session_reported_as_ended_is_not_accepted_afterwards() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let behind = service.replica_by(&proxy.url).await;
    for way in ["sign out", "refresh", "look", "introspect", "end by id", "end others", "end all", "change"] {
        let young = async || behind.app.feed().age().is_some_and(|age| age < Duration::from_millis(700));
        eventually("the feed is fresh", young).await;
        let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
        assert!(behind.is_active(&phone.access_token).await);
        silence.begin();
        phone.sign_out().await.expect("signs out at the other replica");
        let own = || bearer(&phone.access_token);
        let reported = match way {
            "sign out" => {
                behind.revoke_current(Wire::Grpc, own()).await.is_ok_and(|it| it.already_revoked == Some(true))
            }
            "refresh" => behind.refresh(Wire::Grpc, refresh_token(&phone.refresh_token)).await.is_err(),
            "look" => behind.current(Wire::Grpc, own()).await.is_err(),
            "introspect" => !behind.is_active(&phone.refresh_token).await,
            "end by id" => {
                let ended = behind.revoke_session(Wire::Grpc, behind.key(), &phone.session, None).await;
                ended.is_ok_and(|it| it.already_revoked == Some(true))
            }
            "end others" => behind.revoke_session(Wire::Grpc, own(), &laptop.session, None).await.is_err(),
            "end all" => behind.revoke_all(Wire::Grpc, own(), RevokeAllSessionsRequest::default()).await.is_err(),
            _ => {
                let session = Session { id: phone.session.clone(), ..Session::default() };
                let mask = Some(FieldMask { paths: vec!["device_name".to_owned()] });
                let request = UpdateSessionRequest {
                    session: Some(session),
                    update_mask: mask,
                    ..UpdateSessionRequest::default()
                };
                behind.update(Wire::Grpc, behind.key(), request).await.is_err()
            }
        };
        assert!(reported, "{way}: it is said to be over");
        assert!(!behind.is_active(&phone.access_token).await, "{way}: and then it is");
        silence.end();
    }
}
