//! Refreshing: honest clients are never signed out, and a thief's copy ends the session.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use sessiond_core::{
    id::{ProjectId, SessionId},
    token::refresh::{Link, RowSecret},
};

use crate::{
    assert_refused,
    harness::{Device, PROJECT, REFRESH_GRACE, REFUSED_REFRESH, Service, Wire, bearer, both, refresh_token},
    revoke::flip,
};

#[tokio::test]
async fn a_refresh_is_the_same_on_every_wire() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let phone = service.sign_in("ada", "phone").await;
        let tokens = service.refresh(wire, refresh_token(&phone.refresh_token)).await.expect("refreshes");
        assert_ne!(tokens.refresh_token, phone.refresh_token);
        assert_ne!(tokens.access_token, phone.access_token);
        assert_eq!(tokens.expires_in, 600);
        service.revoke_current(wire, bearer(&tokens.access_token)).await.expect("the new token is good");
        assert!(!phone.is_signed_in().await);
    }
}

#[tokio::test]
async fn eight_concurrent_refreshes_get_one_successor() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let asked = (0..8).map(|_| phone.refresh_without_keeping());
    let answers = futures_util::future::join_all(asked).await;
    let successors: Vec<String> = answers.into_iter().map(|answer| answer.expect("refreshes").refresh_token).collect();
    assert!(successors.windows(2).all(|pair| pair[0] == pair[1]), "{} answers differ", successors.len());
}

#[tokio::test]
async fn a_retry_after_a_lost_answer_gets_the_same_successor() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let lost = phone.refresh_without_keeping().await.expect("refreshes");
    service.clock.advance(REFRESH_GRACE - Duration::from_micros(1));
    let retried = phone.refresh_without_keeping().await.expect("refreshes");
    assert_eq!(retried.refresh_token, lost.refresh_token);
}

#[tokio::test]
async fn after_the_grace_an_unused_successor_is_replaced() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let lost = phone.refresh_without_keeping().await.expect("refreshes");
    service.clock.advance(REFRESH_GRACE);
    phone.refresh().await.expect("slept through the answer");
    assert_ne!(phone.refresh_token, lost.refresh_token);
    phone.refresh().await.expect("still works");

    assert_refused!(service.refresh(Wire::Rest, refresh_token(&lost.refresh_token)), REFUSED_REFRESH);
    assert!(!phone.is_signed_in().await, "the superseded one came back: two parties hold the chain");
}

/// Owner and thief hold the same token: the second to refresh after the grace raises the alarm for both.
#[tokio::test]
async fn a_stolen_refresh_token_ends_the_session() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let mut thief = phone.stolen_copy();

    thief.refresh().await.expect("the copy is as good as the original");
    thief.refresh().await.expect("and its successor is in use now");
    service.clock.advance(REFRESH_GRACE);

    assert_refused!(phone.refresh(), REFUSED_REFRESH);
    assert_refused!(thief.refresh(), REFUSED_REFRESH);
    assert!(!phone.is_signed_in().await);
}

#[tokio::test]
async fn owner_and_thief_cannot_both_stay_in_any_order() {
    let service = Service::start().await;
    for turns in 1_u32..(1 << 5) - 1 {
        let owner = service.sign_in("ada", "phone").await;
        let mut parties = [owner.stolen_copy(), owner];
        let mut refused = false;
        for turn in 0..5 {
            refused |= parties[usize::from(turns >> turn & 1 == 1)].refresh().await.is_err();
            service.clock.advance(REFRESH_GRACE);
        }
        // Once more each: the alarm has been raised by now.
        for party in &mut parties {
            refused |= party.refresh().await.is_err();
            service.clock.advance(REFRESH_GRACE);
        }
        for party in &mut parties {
            refused |= party.refresh().await.is_err();
            service.clock.advance(REFRESH_GRACE);
        }
        assert!(refused && !parties[0].is_signed_in().await, "{turns:05b}");
    }
}

#[tokio::test]
async fn a_known_session_id_with_a_forged_mac_changes_nothing() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let old = phone.refresh_token.clone();
    phone.refresh().await.expect("refreshes");
    phone.refresh().await.expect("refreshes");
    service.clock.advance(REFRESH_GRACE);
    // A genuine token at this place would raise the alarm; these are not genuine.
    for at in [5, 30, 60, 80, old.len() - 2] {
        assert_refused!(service.refresh(Wire::Rest, refresh_token(&flip(&old, at))), REFUSED_REFRESH);
    }
    // Even with the server's key: the secret in the session's row is missing.
    let project = ProjectId::parse(PROJECT).expect("a name");
    let snapshot = service.app.keys().snapshot();
    let key = snapshot.refreshes_for(&project, service.clock.now()).expect("a key");
    let session = SessionId::parse(&phone.session).expect("an id");
    let forged = key.mint(session, Link { generation: 0, attempt: 0 }, &RowSecret::generate());
    assert_refused!(service.refresh(Wire::Rest, refresh_token(forged.expose_secret())), REFUSED_REFRESH);
    assert_refused!(service.revoke_current(Wire::Rest, refresh_token(forged.expose_secret())), REFUSED_REFRESH);
    phone.refresh().await.expect("nothing has changed");
}

#[tokio::test]
async fn conflicting_credentials_are_refused() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let mixture = both(refresh_token(&phone.refresh_token), bearer(&phone.access_token));
    assert_refused!(service.refresh(Wire::Rest, mixture), "SCHEMA_ERROR");
    assert_refused!(service.refresh(Wire::Rest, bearer(&phone.access_token)), "INSUFFICIENT_ACCESS_TYPE");
    assert_refused!(service.refresh(Wire::Rest, http::HeaderMap::new()), "CREDENTIALS_MISSING");
    let two = sessiond::pb::RefreshSessionRequest { refresh_token: Some("sdrt_other".into()) };
    let headers = refresh_token(&phone.refresh_token);
    let call =
        service.wires.call::<_, sessiond::pb::RefreshSessionResponse>(Wire::Grpc, "RefreshSession", headers, &two);
    assert_refused!(call, "SCHEMA_ERROR");
}

#[tokio::test]
async fn idle_and_absolute_limits_are_half_open() {
    let service = Service::start().await;
    let open = async |idle: i64, absolute: i64| {
        let request = sessiond::pb::CreateSessionRequest {
            user_id: "ada".into(),
            idle_timeout_millis: Some(idle),
            expires_in_millis: Some(absolute),
            ..Default::default()
        };
        service.device(service.create(Wire::Grpc, request).await.expect("signs in"))
    };
    let tick = Duration::from_micros(1);
    for (idle, absolute) in [(10_000, 100_000), (100_000, 10_000)] {
        let mut just_before = open(idle, absolute).await;
        let mut at = open(idle, absolute).await;
        service.clock.advance(Duration::from_secs(10) - tick);
        just_before.refresh().await.expect("just before");
        service.clock.advance(tick);
        assert_refused!(at.refresh(), REFUSED_REFRESH);
    }
}

/// Refreshes and sign-outs in random order, many at a time: no 5xx, and no token works after a sign-out.
#[tokio::test]
async fn random_interleavings_of_refresh_and_sign_out_leave_nothing_alive() {
    let service = Service::start().await;
    for round in 0..200_usize {
        let phone = service.sign_in("ada", "phone").await;
        // A different order each time, with the sign-out at a different place.
        let actors = (0..6).map(|actor| interleave(phone.clone(), (round * 7 + actor * 5) % 6, actor == round % 6));
        let tokens: Vec<String> = futures_util::future::join_all(actors).await.into_iter().flatten().collect();
        for token in tokens.iter().chain([&phone.refresh_token]) {
            assert_refused!(service.refresh(Wire::Rest, refresh_token(token)), REFUSED_REFRESH);
        }
        assert!(!phone.is_signed_in().await, "round {round}");
    }
}

/// Lets some others go first, then refreshes twice or signs out. Returns the refresh tokens that it got.
async fn interleave(mut device: Device<'_>, yields: usize, signs_out: bool) -> Vec<String> {
    for _ in 0..yields {
        tokio::task::yield_now().await;
    }
    if signs_out {
        device.sign_out().await.expect("a sign-out always works");
        return vec![];
    }
    let mut given = vec![];
    for _ in 0..2 {
        match device.refresh().await {
            Ok(()) => given.push(device.refresh_token.clone()),
            Err(refused) => assert_eq!(refused.reason, REFUSED_REFRESH, "{refused:?}"),
        }
    }
    given
}
