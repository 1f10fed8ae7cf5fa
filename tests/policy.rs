//! Project policies: how long sessions last, how many a user may have, and default claims.

use std::{sync::Arc, time::Duration};

use futures_util::future::{join, join_all};
use serde_json::json;
use sessiond::pb::{CreateSessionRequest, ListSessionsRequest, Session, SessionState, UpdateSessionRequest};
use sessiond_core::session::policy::{Overflow, Preset, SessionLimit};
use tonic::Code;

use crate::{
    assert_refused,
    create::claims_of,
    harness::{Device, REFUSED_REFRESH, Refused, Service, Wire, calls::any_of, refresh_token},
};

const MICRO: Duration = Duration::from_micros(1);
const TICK: Duration = Duration::from_millis(1);

fn opening(user: &str) -> CreateSessionRequest {
    CreateSessionRequest { user_id: user.to_owned(), ..CreateSessionRequest::default() }
}

// Session limits.

/// What each RPC reports about a session.
#[derive(Debug, PartialEq, Eq)]
struct Observed {
    refreshes: bool,
    introspects: bool,
    is_listed: bool,
    is_listed_as_ended: bool,
    changes: bool,
    counts: bool,
}

const LIVE: Observed = Observed {
    refreshes: true,
    introspects: true,
    is_listed: true,
    is_listed_as_ended: false,
    changes: true,
    counts: true,
};
const OVER: Observed = Observed {
    refreshes: false,
    introspects: false,
    is_listed: false,
    is_listed_as_ended: true,
    changes: false,
    counts: false,
};

/// Calls each, over this protocol; the one that revokes it comes last.
async fn observe(service: &Service, wire: Wire, device: &Device<'_>, user: &str) -> Observed {
    let listed = async |state: SessionState| {
        let request = ListSessionsRequest { state: state.into(), ..any_of(user) };
        let page = service.list(wire, service.key(), request).await.expect("lists");
        page.items.iter().any(|session| session.id == device.session)
    };
    let (is_listed, is_listed_as_ended) = (listed(SessionState::Live).await, listed(SessionState::Ended).await);
    let introspects = service.introspect(wire, service.key(), &device.refresh_token).await.expect("answers").active;
    let session = Session { id: device.session.clone(), device_name: Some("new".into()), ..Session::default() };
    let request = UpdateSessionRequest { session: Some(session), ..UpdateSessionRequest::default() };
    let changes = match service.update(wire, service.key(), request).await {
        Ok(_) => true,
        Err(refused) => {
            assert_eq!(refused.reason, "SESSION_NOT_FOUND");
            false
        }
    };
    let ending = sessiond::pb::RevokeAllSessionsRequest { user_id: Some(user.to_owned()), ..Default::default() };
    // Its revocation would affect other tests, so it has its own user. The refresh, which moves the limit, comes first,
    // by a copy that nobody else uses.
    let refreshes = match service.refresh(wire, refresh_token(&device.refresh_token)).await {
        Ok(_) => true,
        Err(refused) => {
            assert_eq!(refused.reason, REFUSED_REFRESH);
            false
        }
    };
    let counts = service.revoke_all(wire, service.key(), ending).await.expect("answers") == 1;
    Observed { refreshes, introspects, is_listed, is_listed_as_ended, changes, counts }
}

/// Limits are stored, half-open, and equal everywhere: idle and absolute, just before, at and just after.
#[tokio::test]
async fn a_session_expires_everywhere_at_the_same_instant() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        for (expires_in_millis, idle_timeout_millis) in [(10_000, 100_000), (100_000, 10_000)] {
            for (offset, expected) in [(-1, LIVE), (0, OVER), (1, OVER)] {
                let user = format!("{wire:?} {expires_in_millis} {offset}");
                let request = CreateSessionRequest {
                    expires_in_millis: Some(expires_in_millis),
                    idle_timeout_millis: Some(idle_timeout_millis),
                    ..opening(&user)
                };
                let device = service.device(service.create(wire, request).await.expect("opens"));
                let length = Duration::from_secs(10);
                service.clock.advance(if offset < 0 { length - MICRO } else { length + MICRO * u32::from(offset > 0) });
                assert_eq!(observe(&service, wire, &device, &user).await, expected, "{user}");
                // Signing out still works, and an access token never outlives its session.
                let ended = device.sign_out().await.expect("always works");
                assert_eq!(ended.already_revoked, Some(true));
                assert!(claims_of(&device.access_token)["exp"].as_i64() <= Some(service.clock.now().as_seconds()));
            }
        }
    }
}

/// Each refresh moves the idle limit, up to the absolute one; reading moves nothing.
#[tokio::test]
async fn a_refresh_moves_the_idle_limit_up_to_the_absolute_one() {
    let service = Service::start().await;
    let request =
        CreateSessionRequest { expires_in_millis: Some(25_000), idle_timeout_millis: Some(10_000), ..opening("ada") };
    let mut phone = service.device(service.create(Wire::Grpc, request).await.expect("opens"));
    for _ in 0..2 {
        service.clock.advance(Duration::from_secs(9));
        phone.refresh().await.expect("is in use");
    }
    assert!(phone.is_signed_in().await);
    service.clock.advance(Duration::from_secs(7) - MICRO);
    assert!(phone.is_signed_in().await && service.is_active(&phone.refresh_token).await, "just before");
    service.clock.advance(MICRO);
    assert!(!phone.is_signed_in().await, "at the absolute limit");
    assert_refused!(phone.refresh(), REFUSED_REFRESH);
}

#[tokio::test]
async fn a_preset_sets_both_maximums_and_defaults() {
    let service = Service::start().await;
    for (preset, ttl, idle) in
        [(Preset::Aal1, 30 * 86_400, 30 * 86_400), (Preset::Aal2, 86_400, 3_600), (Preset::Aal3, 12 * 3_600, 15 * 60)]
    {
        service.set_policy(|policy| policy.preset(preset)).await;
        let now = service.clock.now().as_seconds();
        for wire in Wire::ALL {
            let session = service.create(wire, opening("ada")).await.expect("opens").session.expect("a session");
            let ends = (session.expires_at.expect("a time").seconds, session.idle_expires_at.expect("a time").seconds);
            assert_eq!(ends, (now + ttl, now + idle.min(ttl)), "{preset:?} {wire:?}");
            for (asked, field) in [
                (
                    CreateSessionRequest { expires_in_millis: Some(ttl * 1_000 + 1), ..opening("ada") },
                    "expires_in_millis",
                ),
                (
                    CreateSessionRequest { idle_timeout_millis: Some(idle * 1_000 + 1), ..opening("ada") },
                    "idle_timeout_millis",
                ),
            ] {
                let refused = service.create(wire, asked).await.err().expect(field);
                assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec![field.to_owned()]));
            }
        }
    }
}

#[tokio::test]
async fn default_claims_are_in_every_token_and_a_sessions_own_take_precedence() {
    let service = Service::start().await;
    service
        .set_policy(|policy| {
            let claims = json!({"tenant": "acme", "role": "guest"});
            policy.default_claims = Arc::new(claims.as_object().expect("an object").clone());
        })
        .await;
    let own = prost_types::Struct {
        fields: [("role".to_owned(), prost_types::value::Kind::StringValue("admin".into()).into())].into(),
    };
    for wire in Wire::ALL {
        let plain = service.create(wire, opening("ada")).await.expect("opens").access_token;
        let asked = CreateSessionRequest { claims: Some(own.clone()), ..opening("ada") };
        let mut phone = service.device(service.create(wire, asked).await.expect("opens"));
        let claims = |token: &str| (claims_of(token)["tenant"].clone(), claims_of(token)["role"].clone());
        assert_eq!(claims(&plain), (json!("acme"), json!("guest")), "{wire:?}");
        assert_eq!(claims(&phone.access_token), (json!("acme"), json!("admin")), "{wire:?}");
        phone.refresh().await.expect("still works");
        assert_eq!(claims(&phone.access_token), (json!("acme"), json!("admin")), "{wire:?}");
    }
}

// Session counts.

async fn limit(service: &Service, max: u32, overflow: Overflow) {
    service.set_policy(|policy| policy.sessions = Some(SessionLimit { max, overflow })).await;
}

async fn live(service: &Service, user: &str) -> Vec<String> {
    let request = ListSessionsRequest { user_id: Some(user.to_owned()), ..Default::default() };
    service.list_all(service.key(), request).await.into_iter().map(|session| session.id).collect()
}

#[tokio::test]
async fn a_sign_in_above_the_limit_is_refused_or_evicts() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let open = async |user: &str| {
            service.clock.advance(TICK);
            service.create(wire, opening(user)).await.map(|created| service.device(created))
        };
        limit(&service, 2, Overflow::Reject).await;
        let user = format!("reject {wire:?}");
        let first = open(&user).await.expect("opens");
        open(&user).await.expect("opens");
        let refused = open(&user).await.err().expect("refused");
        assert_eq!((refused.reason.as_str(), refused.code), ("SESSION_LIMIT_REACHED", Code::FailedPrecondition));
        // Impersonations do not count; ended or replaced ones take no place.
        service.impersonate(&user, "root").await;
        let replacing = CreateSessionRequest { replaces_session_id: Some(first.session.clone()), ..opening(&user) };
        let second = service.device(service.create(wire, replacing).await.expect("one for one"));
        assert!(!first.is_signed_in().await);
        second.sign_out().await.expect("signs out");
        open(&user).await.expect("there is room again");

        limit(&service, 2, Overflow::EvictOldest).await;
        let user = format!("oldest {wire:?}");
        let (mut first, second) = (open(&user).await.expect("opens"), open(&user).await.expect("opens"));
        first.refresh().await.expect("use makes it no younger");
        let third = open(&user).await.expect("opens");
        assert_eq!(live(&service, &user).await, [third.session, second.session], "{wire:?}");

        limit(&service, 2, Overflow::EvictIdle).await;
        let user = format!("idle {wire:?}");
        let (mut first, second) = (open(&user).await.expect("opens"), open(&user).await.expect("opens"));
        service.clock.advance(TICK);
        first.refresh().await.expect("is in use");
        let third = open(&user).await.expect("opens");
        assert_eq!(live(&service, &user).await, [third.session, first.session], "{wire:?}");
        assert!(!second.is_signed_in().await);

        // A lowered limit takes effect at the next sign-in.
        limit(&service, 1, Overflow::EvictIdle).await;
        let fourth = open(&user).await.expect("opens");
        assert_eq!(live(&service, &user).await, [fourth.session], "{wire:?}");
    }
}

#[tokio::test]
async fn sixteen_sign_ins_at_once_never_pass_the_limit() {
    let service = Service::start().await;
    for (overflow, opened) in [(Overflow::Reject, 3), (Overflow::EvictOldest, 16), (Overflow::EvictIdle, 16)] {
        limit(&service, 3, overflow).await;
        let user = format!("{overflow:?}");
        let answers = join_all((0..16).map(|_| service.create(Wire::Grpc, opening(&user)))).await;
        let refused: Vec<&Refused> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert!(refused.iter().all(|refused| refused.reason == "SESSION_LIMIT_REACHED"), "{refused:?}");
        assert_eq!(16 - refused.len(), opened, "{overflow:?}");
        assert_eq!(live(&service, &user).await.len(), 3, "{overflow:?}");
    }
}

/// All operations that lock a user's rows, at once: none deadlocks, and clients see no errors.
#[tokio::test]
async fn concurrent_sign_ins_refreshes_and_cut_offs_never_deadlock() {
    let service = Service::start().await;
    for overflow in [Overflow::EvictOldest, Overflow::EvictIdle] {
        limit(&service, 2, overflow).await;
        for round in 0..12 {
            let user = format!("{overflow:?} {round}");
            service.clock.advance(TICK);
            let first = service.sign_in(&user, "first").await;
            service.clock.advance(TICK);
            let second = service.sign_in(&user, "second").await;
            let both = crate::harness::both(first.bearer(), second.bearer());
            // Evicts the first and replaces the second: two sessions at once.
            let replacing =
                CreateSessionRequest { replaces_session_id: Some(second.session.clone()), ..opening(&user) };
            let (sign_ins, replacements) = (
                join_all((0..2).map(|_| service.create(Wire::Grpc, opening(&user)))),
                join_all((0..2).map(|_| service.create(Wire::Grpc, replacing.clone()))),
            );
            let others = join(
                join_all([&first, &second].map(|device| device.refresh_without_keeping())),
                join_all([second.revoke(&first), first.revoke(&second)]),
            );
            let (cut_off, out) = (first.revoke_others(), service.revoke_current(Wire::Grpc, both));
            let ((sign_ins, replacements), ((refreshes, by_id), (cut_off, out))) =
                join(join(sign_ins, replacements), join(others, join(cut_off, out))).await;
            for answer in sign_ins.into_iter().chain(replacements) {
                answer.expect("is accepted");
            }
            let allowed = |refused: &Refused| matches!(refused.reason.as_str(), "SESSION_REVOKED" | REFUSED_REFRESH);
            let refused =
                refreshes.into_iter().filter_map(Result::err).chain(by_id.into_iter().filter_map(Result::err));
            for refused in refused.chain(cut_off.err()) {
                assert!(allowed(&refused), "{refused:?}");
            }
            out.expect("signing out always works");
            assert!(live(&service, &user).await.len() <= 2);
        }
    }
}

/// The deadlock in isolation: a sign-in that replaces one session and evicts another, against one that revokes both.
#[tokio::test]
async fn a_replacement_that_evicts_locks_in_the_common_order() {
    use diesel_async::SimpleAsyncConnection as _;
    let service = Service::start().await;
    limit(&service, 2, Overflow::EvictOldest).await;
    let mut devices = vec![];
    for name in ["oldest", "older", "replaced"] {
        service.set_policy(|policy| policy.sessions = None).await;
        service.clock.advance(TICK);
        devices.push(service.sign_in("ada", name).await);
    }
    limit(&service, 2, Overflow::EvictOldest).await;
    // One transaction locks the oldest and then the replaced one, as a sign-out of both does.
    let mut other = service.database.connect().await;
    let slot = service.slot_of("ada").await;
    let lock = |device: &Device<'_>| {
        format!("SELECT FROM sessions WHERE slot = {slot} AND id = '{}' FOR UPDATE", device.session)
    };
    other.batch_execute(&format!("BEGIN; {}", lock(&devices[0]))).await.expect("locks");
    let replacing = CreateSessionRequest { replaces_session_id: Some(devices[2].session.clone()), ..opening("ada") };
    let (created, ()) = join(service.create(Wire::Grpc, replacing), async {
        crate::harness::eventually("the sign-in waits", async || service.database.lock_waits().await > 0).await;
        other.batch_execute(&format!("{}; COMMIT", lock(&devices[2]))).await.expect("is not in a circle");
    })
    .await;
    let created = created.expect("is accepted").session.expect("a session").id;
    assert_eq!(live(&service, "ada").await, [created, devices[1].session.clone()]);
}

// Two servers.

/// Two servers on one database, with clocks a minute apart: nothing breaks, and revoked sessions stay revoked.
#[tokio::test]
async fn clocks_a_minute_apart_revive_no_session() {
    let behind = Service::start().await;
    let ahead = behind.replica().await;
    ahead.clock.advance(Duration::from_secs(60));
    for (here, there) in [(&behind, &ahead), (&ahead, &behind)] {
        for wire in Wire::ALL {
            let user = format!("{wire:?} {}", std::ptr::eq(here, &behind));
            let mut phone = here.device(here.create(wire, opening(&user)).await.expect("opens"));
            let laptop = here.device(there.create(wire, opening(&user)).await.expect("opens"));
            // Each accepts the other's tokens, and a refresh moves no time back.
            there.current(wire, phone.bearer()).await.expect("is live there");
            let before = here.current(wire, phone.bearer()).await.expect("is live here");
            let tokens = there.refresh(wire, refresh_token(&phone.refresh_token)).await.expect("refreshes there");
            phone.refresh_token = tokens.refresh_token;
            phone.access_token = tokens.access_token;
            phone.refresh().await.expect("still works");
            let after = here.current(wire, phone.bearer()).await.expect("is live here");
            assert!(after.idle_expires_at.expect("a time").seconds >= before.idle_expires_at.expect("a time").seconds);
            assert!(after.last_used_at.expect("a time").seconds >= before.last_used_at.expect("a time").seconds);

            // A session revoked by one has ended for the other.
            there.revoke_current(wire, laptop.bearer()).await.expect("signs out there");
            assert_refused!(here.current(wire, laptop.bearer()), "SESSION_REVOKED");
            assert_refused!(here.refresh(wire, refresh_token(&laptop.refresh_token)), REFUSED_REFRESH);
            let watch = here.device(there.create(wire, opening(&user)).await.expect("opens"));
            assert_eq!(there.revoke_all(wire, phone.bearer(), Default::default()).await.expect("ends them"), 2);
            for device in [&phone, &laptop, &watch] {
                for service in [here, there] {
                    assert_refused!(service.current(wire, device.bearer()), "SESSION_REVOKED");
                    assert_refused!(service.refresh(wire, refresh_token(&device.refresh_token)), REFUSED_REFRESH);
                }
            }
            // A session created afterwards, also by the slower clock, is live for both.
            let next = here.device(here.create(wire, opening(&user)).await.expect("opens"));
            there.current(wire, next.bearer()).await.expect("is live there");
            let page = there.list(wire, next.bearer(), any_of("me")).await.expect("lists");
            assert_eq!(page.items.len(), 4);
        }
    }
}

/// A project created by the faster clock works on the slower server at once.
#[tokio::test]
async fn a_new_project_works_for_a_slower_clock() {
    use secrecy::ExposeSecret as _;
    let behind = Service::start().await;
    let ahead = behind.replica().await;
    ahead.clock.advance(Duration::from_secs(60));
    let key = ahead.create_project("brand-new").await;
    for wire in Wire::ALL {
        let created = behind.create_as(wire, &key, opening("ada")).await.expect("opens");
        let listed = behind.list(wire, crate::harness::bearer(key.expose_secret()), Default::default()).await;
        assert!(listed.expect("lists").items.iter().any(|one| Some(one) == created.session.as_ref()));
    }
}
