//! Revoking, updating and erasing sessions other than the caller's own.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::{join, join_all};
use http::{HeaderMap, Method, StatusCode};
use prost_types::{FieldMask, Struct, Value, value::Kind};
use secrecy::ExposeSecret as _;
use serde_json::json;
use sessiond::pb::{
    CreateSessionRequest, RevokeAllSessionsRequest, RevokeReason, Session, UpdateSessionRequest, revocation::Ended,
};
use sessiond_core::{
    id::{Bucket, SessionId},
    session::{self, EndedBy},
    token::server_key::ServerKey,
};

use crate::{
    assert_refused,
    create::claims_of,
    harness::{
        Device, PROJECT, REFRESH_GRACE, REFUSED_REFRESH, Service, Wire, bearer, both, calls::any_of, eventually, header,
    },
};

const TICK: Duration = Duration::from_millis(1);
const SOME_ID: &str = "5a3f3c5e-0b8e-4d8e-9f4c-6a5b7a3b2c1d";

fn all_of(user: Option<&str>, except_current: bool, request_id: Option<&str>) -> RevokeAllSessionsRequest {
    let (user_id, request_id) = (user.map(str::to_owned), request_id.map(str::to_owned));
    RevokeAllSessionsRequest { user_id, except_current, request_id, ..RevokeAllSessionsRequest::default() }
}

// By its id.

#[tokio::test]
async fn a_user_revokes_another_of_their_sessions_over_every_wire() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for wire in Wire::ALL {
        for user_id in [None, Some("me"), Some("ada")] {
            let laptop = service.sign_in("ada", "laptop").await;
            let end = || service.revoke_session(wire, phone.bearer(), &laptop.session, user_id);
            let ended = end().await.expect("ends it");
            assert_eq!((ended.success, ended.already_revoked), (true, None), "{wire:?}");
            assert_eq!(end().await.expect("twice is fine").already_revoked, Some(true), "{wire:?}");
            assert_is_over(&service, &laptop).await;
        }
        assert_refused!(
            service.revoke_session(wire, phone.bearer(), &phone.session, None),
            "CANNOT_DELETE_CURRENT_SESSION"
        );
    }
    assert!(phone.is_signed_in().await);
}

/// Asserts that no token of the session works any more, on any path.
async fn assert_is_over(service: &Service, device: &Device<'_>) {
    assert!(!device.is_signed_in().await);
    assert_refused!(device.refresh_without_keeping(), REFUSED_REFRESH);
    assert_refused!(device.list(), "SESSION_REVOKED");
    assert_refused!(service.current(Wire::Grpc, device.bearer()), "SESSION_REVOKED");
    assert_refused!(device.revoke_all(), "SESSION_REVOKED");
    assert_refused!(device.revoke(device), "SESSION_REVOKED");
    assert!(!service.is_active(&device.access_token).await && !service.is_active(&device.refresh_token).await);
    assert_refused!(service.update(Wire::Grpc, service.key(), rename(device, "late")), "SESSION_NOT_FOUND");
    assert_eq!(device.sign_out().await.expect("always works").already_revoked, Some(true));
}

fn rename(device: &Device<'_>, name: &str) -> UpdateSessionRequest {
    let session = Session { id: device.session.clone(), device_name: Some(name.to_owned()), ..Session::default() };
    UpdateSessionRequest { session: Some(session), ..UpdateSessionRequest::default() }
}

#[tokio::test]
async fn a_service_revokes_any_session_of_its_project() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let (one, other) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
        service.revoke_session(wire, service.key(), &one.session, None).await.expect("ends it");
        service.revoke_session(wire, service.key(), &other.session, Some("ada")).await.expect("ends it");
        assert_is_over(&service, &one).await;
        assert_is_over(&service, &other).await;
        // Protects against a wrong id: the session must belong to this user.
        let third = service.sign_in("ada", "watch").await;
        assert_refused!(service.revoke_session(wire, service.key(), &third.session, Some("bob")), "SESSION_NOT_FOUND");
        assert_refused!(service.revoke_session(wire, HeaderMap::new(), &third.session, None), "CREDENTIALS_MISSING");
        assert!(third.is_signed_in().await);
    }
}

/// Unknown, another user's, and hidden sessions get the same answer, so that nothing is revealed.
#[tokio::test]
async fn a_session_of_somebody_else_is_not_found_and_not_revoked() {
    let service = Service::start().await;
    let (ada, bob) = (service.sign_in("ada", "phone").await, service.sign_in("bob", "phone").await);
    let support = service.impersonate("ada", "root").await;
    let nobodys = sessiond_core::clock::new_session_id(service.clock.now(), Bucket::from_number(1)).to_string();
    let before = service.database.contents().await;
    for wire in Wire::ALL {
        for id in [&bob.session, &support.session, &nobodys] {
            assert_refused!(service.revoke_session(wire, ada.bearer(), id, None), "SESSION_NOT_FOUND");
        }
        assert_refused!(service.revoke_session(wire, ada.bearer(), &bob.session, Some("bob")), "SESSION_NOT_FOUND");
        assert_refused!(service.revoke_session(wire, service.key(), &nobodys, None), "SESSION_NOT_FOUND");
    }
    assert_eq!(service.database.contents().await, before);
}

// All at once.

#[tokio::test]
async fn a_user_revokes_all_other_sessions_or_all() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let mut phone = service.sign_in("ada", "phone").await;
        let others = [service.sign_in("ada", "laptop").await, service.sign_in("ada", "watch").await];
        let bob = service.sign_in("bob", "phone").await;

        let count = service.revoke_all(wire, phone.bearer(), all_of(None, true, None)).await.expect("ends them");
        assert_eq!(count, 2, "{wire:?}");
        for other in &others {
            assert_is_over(&service, other).await;
        }
        // The kept session still refreshes, repeatedly, with its old and its new tokens.
        phone.list().await.expect("is signed in");
        phone.refresh().await.expect("still works");
        let again = service.revoke_all(wire, phone.bearer(), all_of(Some("me"), true, None)).await;
        assert_eq!(again.expect("ends nothing"), 0, "{wire:?}");
        phone.refresh().await.expect("still works");

        let opened_afterwards = service.sign_in("ada", "tv").await;
        let count = service.revoke_all(wire, phone.bearer(), all_of(Some("ada"), false, None)).await;
        assert_eq!(count.expect("ends them"), 2, "{wire:?}");
        assert_is_over(&service, &phone).await;
        assert_is_over(&service, &opened_afterwards).await;
        let mut after = service.sign_in("ada", "new phone").await;
        after.refresh().await.expect("what is opened afterwards is not affected");
        assert!(bob.is_signed_in().await);
        after.sign_out().await.expect("signs out");
    }
}

#[tokio::test]
async fn a_service_revokes_all_sessions_of_any_user() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let devices = [service.sign_in("ada", "phone").await, service.impersonate("ada", "root").await];
        let bob = service.sign_in("bob", "phone").await;
        let count = service.revoke_all(wire, service.key(), all_of(Some("ada"), false, None)).await;
        assert_eq!(count.expect("ends them"), 2, "{wire:?}: a service sees all");
        assert_is_over(&service, &devices[0]).await;
        assert!(!devices[1].is_signed_in().await && bob.is_signed_in().await);
        assert_refused!(devices[1].refresh_without_keeping(), REFUSED_REFRESH);
        let unknown = service.revoke_all(wire, service.key(), all_of(Some("nobody"), false, None)).await;
        assert_eq!(unknown.expect("there are none"), 0);
        for (request, field) in [
            (all_of(None, false, None), "user_id"),
            (all_of(Some("me"), false, None), "user_id"),
            (all_of(Some("ada"), true, None), "except_current"),
        ] {
            let refused = service.revoke_all(wire, service.key(), request).await.expect_err(field);
            assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec![field.to_owned()]));
        }
        assert_refused!(service.revoke_all(wire, bob.bearer(), all_of(Some("ada"), false, None)), "NOT_YOUR_USER");
        assert!(bob.is_signed_in().await);
    }
}

#[tokio::test]
async fn a_repeat_with_the_same_request_id_revokes_nothing_more() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let asked = all_of(None, false, Some(SOME_ID));
    assert_eq!(service.revoke_all(Wire::Rest, phone.bearer(), asked.clone()).await.expect("ends them"), 2);
    let newer = service.sign_in("ada", "newer").await;
    for wire in Wire::ALL {
        // Although the caller's own session was revoked too.
        assert_eq!(service.revoke_all(wire, phone.bearer(), asked.clone()).await.expect("as before"), 2, "{wire:?}");
        assert_refused!(service.revoke_all(wire, phone.bearer(), all_of(None, false, None)), "SESSION_REVOKED");
        // A different request with the same id: another caller, other fields, another method.
        for (headers, request) in [
            (laptop.bearer(), asked.clone()),
            (phone.bearer(), all_of(None, true, Some(SOME_ID))),
            (service.key(), all_of(Some("ada"), false, Some(SOME_ID))),
        ] {
            let refused = service.revoke_all(wire, headers, request).await.expect_err("refused");
            assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["request_id".to_owned()]));
        }
        let opening =
            CreateSessionRequest { user_id: "ada".into(), request_id: Some(SOME_ID.into()), ..Default::default() };
        assert_refused!(service.create(wire, opening), "SCHEMA_ERROR");
    }
    assert!(newer.is_signed_in().await, "opened after the first");
    // A refused request does not use up the id.
    let other_id = SOME_ID.replace('5', "6");
    assert_refused!(
        service.revoke_all(Wire::Grpc, phone.bearer(), all_of(None, false, Some(&other_id))),
        "SESSION_REVOKED"
    );
    let better = service.revoke_all(Wire::Grpc, newer.bearer(), all_of(None, true, Some(&other_id))).await;
    assert_eq!(better.expect("a better try"), 0);
}

#[tokio::test]
async fn concurrent_repeats_get_the_same_answer() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for _ in 0..4 {
        service.sign_in("ada", "other").await;
    }
    let asked = (0..8).map(|_| service.revoke_all(Wire::Grpc, phone.bearer(), all_of(None, false, Some(SOME_ID))));
    for answer in join_all(asked).await {
        assert_eq!(answer.expect("answers"), 5);
    }
}

/// Each device wants to keep its own session. One succeeds; the other learns that its session has ended.
#[tokio::test]
async fn of_two_devices_that_revoke_all_others_at_once_one_stays() {
    let service = Service::start().await;
    for _ in 0..20 {
        let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
        let (one, other) = join(phone.revoke_others(), laptop.revoke_others()).await;
        let stays = [phone.is_signed_in().await, laptop.is_signed_in().await];
        assert_eq!(stays, [one.is_ok(), other.is_ok()]);
        assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
        let refused = one.err().or(other.err()).expect("one of them");
        assert_eq!(refused.reason, "SESSION_REVOKED");
        service.revoke_all(Wire::Grpc, service.key(), all_of(Some("ada"), false, None)).await.expect("ends it");
    }
}

// Updates.

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn role(value: &str) -> Struct {
    Struct { fields: BTreeMap::from([("role".into(), text(value))]) }
}

fn changed(id: &str, change: impl FnOnce(&mut Session), mask: Option<&[&str]>) -> UpdateSessionRequest {
    let mut session = Session { id: id.to_owned(), ..Session::default() };
    change(&mut session);
    let update_mask = mask.map(|paths| FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() });
    UpdateSessionRequest { session: Some(session), update_mask, ..UpdateSessionRequest::default() }
}

#[tokio::test]
async fn an_update_changes_the_masked_fields_and_the_next_token_carries_them() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let mut phone = service.sign_in("ada", "phone").await;
        let update = async |change: &dyn Fn(&mut Session), mask: Option<&[&str]>| {
            let request = changed(&phone.session, |session| change(session), mask);
            let session = service.update(wire, service.key(), request).await.expect("updates");
            let claims = session.claims.unwrap_or_default().fields;
            (claims.contains_key("role"), session.labels.len(), session.device_name)
        };
        let name = |text: &str| Some(text.to_owned());
        let label = |session: &mut Session| session.labels = BTreeMap::from([("team".into(), "blue".into())]);
        let claim = |session: &mut Session| session.claims = Some(role("reader"));
        let rename = |session: &mut Session| session.device_name = Some("tablet".into());
        let all =
            |session: &mut Session| [label as fn(&mut Session), claim, rename].iter().for_each(|set| set(session));

        assert_eq!(update(&|_| {}, None).await, (false, 0, name("phone")), "{wire:?}: nothing is listed");
        assert_eq!(update(&label, None).await, (false, 1, name("phone")), "without a mask, what has a value");
        assert_eq!(update(&all, Some(&["claims"])).await, (true, 1, name("phone")), "what is not listed stays");
        assert_eq!(update(&all, Some(&["device_name", "labels"])).await, (true, 1, name("tablet")));
        assert_eq!(update(&|_| {}, Some(&["labels"])).await, (true, 0, name("tablet")), "listed and empty is emptied");
        assert_eq!(update(&|_| {}, Some(&["*"])).await, (false, 0, None));
        assert_eq!(update(&all, Some(&["*"])).await, (true, 1, name("tablet")));

        assert_eq!(claims_of(&phone.access_token)["role"], json!(null), "{wire:?}");
        phone.refresh().await.expect("still works");
        assert_eq!(claims_of(&phone.access_token)["role"], "reader", "{wire:?}");
        // Other fields cannot be changed.
        let session = service.current(wire, phone.bearer()).await.expect("answers");
        assert_eq!((session.user_id.as_str(), session.project_id.as_str()), ("ada", PROJECT));
    }
}

#[tokio::test]
async fn only_a_service_updates_and_only_live_sessions_of_its_project() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let phone = service.sign_in("ada", "phone").await;
    let over = service.sign_in("ada", "laptop").await;
    over.sign_out().await.expect("signs out");
    let nobodys = sessiond_core::clock::new_session_id(service.clock.now(), Bucket::from_number(1)).to_string();
    let before = service.database.contents().await;
    let name = |session: &mut Session| session.device_name = Some("x".into());
    for wire in Wire::ALL {
        for id in [&over.session, &nobodys] {
            assert_refused!(service.update(wire, service.key(), changed(id, name, None)), "SESSION_NOT_FOUND");
        }
        let own = || changed(&phone.session, name, None);
        assert_refused!(service.update(wire, phone.bearer(), own()), "INSUFFICIENT_ACCESS_TYPE");
        assert_refused!(service.update(wire, bearer(other.expose_secret()), own()), "SESSION_NOT_FOUND");
        assert_refused!(service.update(wire, HeaderMap::new(), own()), "CREDENTIALS_MISSING");
    }
    assert_eq!(service.database.contents().await, before);
}

/// A mask in a URL is accepted in both spellings (ProtoJSON's, and the proto's own).
#[tokio::test]
async fn a_mask_over_rest_is_accepted_in_both_spellings() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for (mask, expected) in [("device_name", "one"), ("deviceName", "two"), ("deviceName,labels", "three")] {
        let path = format!("/auth/sessions/{}?update_mask={mask}", phone.session);
        let headers = both(service.key(), header("content-type", "application/json"));
        let body = json!({"device_name": expected, "claims": {"role": "ignored"}}).to_string();
        let answer = service.wires.http(Method::PATCH, &path, headers, body).await;
        let session: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
        assert_eq!((answer.status(), &session["device_name"]), (StatusCode::OK, &json!(expected)), "{session}");
        assert_eq!(session["claims"], json!({}));
    }
}

// Erasing.

#[tokio::test]
async fn an_erased_user_is_gone_from_every_table_and_can_sign_in_again() {
    let service = Service::start().await;
    let admin = bearer(service.admin_key().await.expose_secret());
    for wire in Wire::ALL {
        let request = |request_id: Option<&str>| CreateSessionRequest {
            user_id: "erin@example.org".into(),
            ip: Some("203.0.113.7".into()),
            user_agent: Some("erins-agent".into()),
            device_name: Some("erins-phone".into()),
            request_id: request_id.map(str::to_owned),
            ..Default::default()
        };
        let phone = service.device(service.create(wire, request(None)).await.expect("opens"));
        let laptop = service.device(service.create(wire, request(None)).await.expect("opens"));
        let tablet = service.device(service.create(wire, request(None)).await.expect("opens"));
        let bystander = service.sign_in("bob", "phone").await;
        laptop.sign_out().await.expect("signs out");
        phone.revoke_others().await.expect("ends it");

        assert_eq!(service.erase(wire, admin.clone(), "erin@example.org").await.expect("erases"), 3, "{wire:?}");
        for (table, rows) in service.database.contents().await {
            for trace in ["erin", "203.0.113.7"] {
                assert!(!rows.contains(trace), "{wire:?}: {trace} in {table}: {rows}");
            }
        }
        for device in [&phone, &laptop, &tablet] {
            assert_is_over(&service, device).await;
        }
        assert!(bystander.is_signed_in().await);
        assert_eq!(service.erase(wire, admin.clone(), "erin@example.org").await.expect("twice is fine"), 0);

        // The audit log keeps the event, without the user.
        let audit = service.audit(None).await;
        let erased = |device: &Device<'_>| {
            audit.iter().filter(|record| record.session == Some(device.id())).map(|record| record.reason).collect()
        };
        let reasons: Vec<Vec<session::RevokeReason>> = [&phone, &laptop, &tablet].map(erased).into();
        use session::RevokeReason::{Erased, SignedOut};
        assert_eq!(reasons, [vec![Erased], vec![SignedOut], vec![Erased]]);

        // A new user of this name starts above the old one's cut-offs.
        let mut back = service.device(service.create(wire, request(None)).await.expect("opens"));
        let epoch = |token: &str| claims_of(token)["epoch"][1].as_i64().expect("a number");
        assert!(epoch(&back.access_token) > epoch(&phone.access_token) + 1, "{wire:?}");
        back.refresh().await.expect("still works");
        assert_refused!(phone.refresh_without_keeping(), REFUSED_REFRESH);
        assert_eq!(back.revoke_all().await.expect("ends it"), 1);
        assert_is_over(&service, &back).await;
        service.erase(wire, admin.clone(), "erin@example.org").await.expect("erases");
        bystander.sign_out().await.expect("signs out");
    }
}

#[tokio::test]
async fn only_an_admin_erases() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let other = bearer(service.create_project("other").await.expose_secret());
    let before = service.database.contents().await;
    for wire in Wire::ALL {
        for headers in [service.key(), phone.bearer(), other.clone()] {
            assert_refused!(service.erase(wire, headers, "ada"), "INSUFFICIENT_ACCESS_TYPE");
        }
        assert_refused!(service.erase(wire, HeaderMap::new(), "ada"), "CREDENTIALS_MISSING");
    }
    assert_eq!(service.database.contents().await, before);
    let admin = bearer(service.admin_key().await.expose_secret());
    let before = service.database.contents().await;
    for wire in Wire::ALL {
        for user in ["", "me"] {
            assert_refused!(service.erase(wire, admin.clone(), user), "SCHEMA_ERROR");
        }
        assert_eq!(service.erase(wire, admin.clone(), "nobody").await.expect("succeeds"), 0);
    }
    assert_eq!(service.database.contents().await, before);
}

/// A user with more rows than are read, most of them ended: a cut-off is still published, and a session limit holds.
#[tokio::test]
async fn a_user_with_very_many_sessions_revokes_them_all() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    // Created later, and ended: the sessions of a monitor that signs in every minute.
    let many = "INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object('id',
            overlay(s.id::text placing 'f' || lpad(to_hex(n), 7, '0') from 1 for 8), 'expires_at', s.created_at))).*
        FROM sessions AS s, generate_series(1, 10100) AS n";
    service.database.run(many).await;
    service
        .set_policy(|policy| {
            let overflow = session::policy::Overflow::EvictOldest;
            policy.sessions = Some(session::policy::SessionLimit { max: 1, overflow });
        })
        .await;
    let laptop = service.sign_in("ada", "laptop").await;
    assert!(!phone.is_signed_in().await, "the limit is one, however far back the other is");
    assert!(service.is_active(&laptop.access_token).await);

    // Its row, too, is older than all rows that are read.
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    service.revoke_all(Wire::Grpc, service.key(), all_of(Some("ada"), false, None)).await.expect("ends them");
    let revocations = watch.ended().await;
    assert!(matches!(&revocations[0].ended, Some(Ended::UserCutOff(cut)) if cut.user_id == "ada"), "{revocations:?}");
    assert!(!service.is_active(&laptop.access_token).await);
}

/// Several steps delete while people sign in: each session is erased too, or survives for good.
#[tokio::test]
async fn a_user_who_signs_in_during_the_erasure_is_erased_or_new() {
    let service = Service::start().await;
    let admin = bearer(service.admin_key().await.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let many = "INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object(
            'id', overlay(s.id::text placing lpad(to_hex(n), 12, '0') from 25)))).*
        FROM sessions AS s, generate_series(x'f00000000000'::bigint, x'f00000000000'::bigint + 1199) AS n";
    service.database.run(many).await;
    let sign_ins = join_all((0..12).map(|_| async {
        let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
        service.device(service.create(Wire::Grpc, request).await.expect("no failure for the race"))
    }));
    let (erased, devices) = join(service.erase(Wire::Grpc, admin, "ada"), sign_ins).await;
    let erased = erased.expect("erases");
    let mut live = 0;
    for mut device in devices {
        if device.is_signed_in().await {
            live += 1;
            device.refresh().await.expect("is signed in for good");
        } else {
            assert_is_over(&service, &device).await;
        }
    }
    assert_eq!(erased, 1_201 + 12 - live);
    assert_is_over(&service, &phone).await;
    let left = service.list_all(service.key(), any_of("ada")).await;
    assert_eq!(left.len(), usize::try_from(live).expect("few"));
}

/// A sign-in that waited for the erasure must not start at the old user's epoch.
#[tokio::test]
async fn a_user_erased_a_moment_ago_starts_above_the_old_epoch() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    phone.revoke_all().await.expect("ends it");
    let mut connection = service.database.connect().await;
    use diesel_async::SimpleAsyncConnection as _;
    // Over one connection to each node of a divided database, as a foreign key between the tables requires.
    for forgetting in [
        "BEGIN; SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
        "DELETE FROM users; UPDATE projects SET users_epoch_base = 7",
    ] {
        connection.batch_execute(forgetting).await.expect("runs");
    }
    let waits = async || service.database.lock_waits().await > 0;
    let (back, ()) = join(service.sign_in("ada", "laptop"), async {
        eventually("the sign-in waits", waits).await;
        connection.batch_execute("COMMIT").await.expect("commits");
    })
    .await;
    assert_eq!(claims_of(&back.access_token)["epoch"], json!([0, 7]));
}

// The audit log.

/// Who, what, when, why: an entry for every way in which a session can end.
#[tokio::test]
async fn every_revocation_is_in_the_audit_log() {
    let service = Service::start().await;
    let key = ServerKey::parse(service.server_key.expose_secret()).expect("a key").id();
    let admin = service.admin_key().await;
    let admin_key = ServerKey::parse(admin.expose_secret()).expect("a key").id();
    let by_service = EndedBy::Service(key);
    use session::RevokeReason::*;

    let phone = service.sign_in("ada", "phone").await;
    let signed_out = service.sign_in("ada", "signed out").await;
    signed_out.sign_out().await.expect("signs out");
    assert_recorded(&service, Some(&signed_out), SignedOut, EndedBy::Holder).await;

    let by_user = service.sign_in("ada", "by the user").await;
    phone.revoke(&by_user).await.expect("ends it");
    assert_recorded(&service, Some(&by_user), Revoked, EndedBy::User(phone.id())).await;

    let by_id = service.sign_in("ada", "by a service").await;
    service.revoke_session(Wire::Grpc, service.key(), &by_id.session, None).await.expect("ends it");
    assert_recorded(&service, Some(&by_id), Revoked, by_service).await;

    let replaced = service.sign_in("ada", "replaced").await;
    let request = CreateSessionRequest {
        user_id: "ada".into(),
        replaces_session_id: Some(replaced.session.clone()),
        ..Default::default()
    };
    service.create(Wire::Grpc, request).await.expect("opens");
    assert_recorded(&service, Some(&replaced), Replaced, by_service).await;

    let mut stolen = service.sign_in("ada", "stolen").await;
    let copy = stolen.stolen_copy();
    stolen.refresh().await.expect("refreshes");
    stolen.refresh().await.expect("refreshes");
    service.clock.advance(REFRESH_GRACE);
    assert_refused!(copy.refresh_without_keeping(), REFUSED_REFRESH);
    assert_recorded(&service, Some(&stolen), RefreshTokenReused, EndedBy::Sessiond).await;

    service
        .set_policy(|policy| {
            policy.sessions =
                Some(session::policy::SessionLimit { max: 1, overflow: session::policy::Overflow::EvictOldest })
        })
        .await;
    let evicted = service.sign_in("bob", "evicted").await;
    service.clock.advance(TICK);
    service.sign_in("bob", "next").await;
    assert_recorded(&service, Some(&evicted), Evicted, EndedBy::Sessiond).await;
    service.set_policy(|policy| policy.sessions = None).await;

    phone.revoke_others().await.expect("ends them");
    let cut_off = assert_recorded(&service, None, RevokedAll, EndedBy::User(phone.id())).await;
    assert_eq!((cut_off.spared, cut_off.user.as_deref()), (Some(phone.id()), Some("ada")));
    service.revoke_all(Wire::Grpc, service.key(), all_of(Some("bob"), false, None)).await.expect("ends them");
    let cut_off = assert_recorded(&service, None, RevokedAll, by_service).await;
    assert_eq!((cut_off.spared, cut_off.user.as_deref()), (None, Some("bob")));

    service.erase(Wire::Grpc, bearer(admin.expose_secret()), "ada").await.expect("erases");
    assert_recorded(&service, Some(&phone), Erased, EndedBy::Service(admin_key)).await;

    // A session that had already ended is recorded once.
    let sessions: Vec<SessionId> = service.audit(None).await.iter().filter_map(|record| record.session).collect();
    let distinct: std::collections::BTreeSet<_> = sessions.iter().collect();
    assert!(distinct.len() == sessions.len(), "{sessions:?}");
}

/// Asserts that the entry of this session, or the newest one, says this, and that it happened now.
async fn assert_recorded(
    service: &Service,
    device: Option<&Device<'_>>,
    reason: session::RevokeReason,
    by: EndedBy,
) -> sessiond::store::RevocationRecord {
    let audit = service.audit(None).await;
    let found = audit.into_iter().find(|record| match device {
        Some(device) => record.session == Some(device.id()),
        None => record.session.is_none() && record.by == by,
    });
    let record = found.expect("a line");
    assert_eq!((record.reason, record.by, record.at), (reason, by, service.clock.now()));
    record
}

#[tokio::test]
async fn a_revoke_reason_is_shown_later() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    phone.revoke(&laptop).await.expect("ends it");
    for wire in Wire::ALL {
        let page = service.list(wire, phone.bearer(), any_of("me")).await.expect("lists");
        let ended = page.items.iter().find(|session| session.id == laptop.session).expect("is remembered");
        assert_eq!(ended.revoke_reason(), RevokeReason::Revoked, "{wire:?}");
    }
}

// REST only.

#[tokio::test]
async fn the_paths_of_a_session_by_id_and_of_the_current_one_do_not_clash() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let ask = async |method: Method, path: &str| {
        let answer = service.wires.http(method, path, phone.bearer(), "").await;
        (answer.status().as_u16(), serde_json::from_slice::<serde_json::Value>(answer.body()).expect("JSON"))
    };
    let (status, body) = ask(Method::GET, "/auth/sessions/current").await;
    assert_eq!((status, &body["id"], &body["is_current_session"]), (200, &json!(phone.session), &json!(true)));
    for path in ["/auth/sessions/CURRENT", "/auth/sessions/curren%74", "/auth/sessions/me", "/auth/sessions/1"] {
        let (status, body) = ask(Method::DELETE, path).await;
        assert_eq!((status, &body["details"][0]["reason"]), (400, &json!("SCHEMA_ERROR")), "{path}: {body}");
    }
    assert_eq!(ask(Method::DELETE, "/auth/sessions/current?user_id=me").await.0, 400, "it takes no fields");
    let (status, body) = ask(Method::DELETE, &format!("/auth/sessions/{}?user_id=me", laptop.session)).await;
    assert_eq!((status, body), (200, json!({"success": true})));
    let (_, body) = ask(Method::DELETE, &format!("/api/v1/auth/sessions/{}", laptop.session)).await;
    assert_eq!(body, json!({"success": true, "already_revoked": true}));
    assert!(phone.is_signed_in().await);

    let id = phone.session.as_str();
    for (method, path, allow) in [
        (Method::GET, format!("/auth/sessions/{id}"), "DELETE, PATCH"),
        (Method::POST, format!("/auth/sessions/{id}"), "DELETE, PATCH"),
        (Method::PUT, "/auth/sessions".to_owned(), "GET, HEAD, POST"),
        (Method::GET, "/auth/sessions:revokeAll".to_owned(), "POST"),
        (Method::GET, "/auth/users:erase".to_owned(), "POST"),
        (Method::GET, "/auth/tokens:introspect".to_owned(), "POST"),
        (Method::DELETE, "/auth/tokens:batchIntrospect".to_owned(), "POST"),
    ] {
        let answer = service.wires.http(method.clone(), &path, phone.bearer(), "").await;
        let allowed = answer.headers().get("allow").map_or("", |value| value.to_str().expect("text"));
        let found: std::collections::BTreeSet<&str> = allowed.split(", ").filter(|one| *one != "OPTIONS").collect();
        let expected: std::collections::BTreeSet<&str> = allow.split(", ").collect();
        assert_eq!((answer.status(), found), (StatusCode::METHOD_NOT_ALLOWED, expected), "{method} {path}");
    }
    assert_eq!(ask(Method::DELETE, "/auth/sessions/current").await.1, json!({"success": true}));
    assert!(!phone.is_signed_in().await);
}

// The session that a service keeps, and everybody.

#[tokio::test]
async fn a_service_keeps_one_session_of_the_user() {
    let service = Service::start().await;
    let others = async |wire, spared: &str, request_id: Option<&str>| {
        let spared_session_id = Some(spared.to_owned());
        let request = RevokeAllSessionsRequest { spared_session_id, ..all_of(Some("ada"), false, request_id) };
        service.revoke_all(wire, service.key(), request).await
    };
    for wire in Wire::ALL {
        let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
        assert_eq!(others(wire, &laptop.session, None).await.expect("ends the other"), 1, "{wire:?}");
        assert!(!phone.is_signed_in().await && laptop.is_signed_in().await, "{wire:?}");
        assert!(service.is_active(&laptop.access_token).await);

        // A session of another user, or of nobody: the service is mistaken, and nothing ends.
        let bob = service.sign_in("bob", "phone").await;
        for unknown in [bob.session.as_str(), SOME_ID] {
            let refused = others(wire, unknown, None).await.expect_err("refused");
            assert!(["SESSION_NOT_FOUND", "SCHEMA_ERROR"].contains(&refused.reason.as_str()), "{refused:?}");
        }
        assert_refused!(others(wire, &bob.session, None), "SESSION_NOT_FOUND");
        assert!(laptop.is_signed_in().await && bob.is_signed_in().await);
        // One that has ended: nothing to keep.
        let tablet = service.sign_in("ada", "tablet").await;
        laptop.sign_out().await.expect("signs out");
        assert_eq!(others(wire, &laptop.session, None).await.expect("ends all"), 1, "{wire:?}");
        assert!(!tablet.is_signed_in().await);
        // The same if it was deleted since.
        let (tablet, gone) = (service.sign_in("ada", "tablet").await, service.sign_in("ada", "phone").await);
        gone.sign_out().await.expect("signs out");
        service.database.run(&format!("DELETE FROM sessions WHERE id = '{}'", gone.session)).await;
        assert_eq!(others(wire, &gone.session, None).await.expect("ends all"), 1, "{wire:?}");
        assert!(!tablet.is_signed_in().await);
        // A user has `except_current` for that.
        let own = service.sign_in("ada", "phone").await;
        let request = RevokeAllSessionsRequest {
            spared_session_id: Some(own.session.clone()),
            ..RevokeAllSessionsRequest::default()
        };
        let refused = service.revoke_all(wire, own.bearer(), request).await.expect_err("refused");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["spared_session_id".to_owned()]));
        own.sign_out().await.expect("signs out");
    }
    // The one that is kept is part of the request.
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    others(Wire::Grpc, &phone.session, Some(SOME_ID)).await.expect("ends the other");
    others(Wire::Grpc, &phone.session, Some(SOME_ID)).await.expect("a repeat");
    let refused = others(Wire::Grpc, &laptop.session, Some(SOME_ID)).await.expect_err("another request");
    assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["request_id".to_owned()]));
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn an_admin_signs_everybody_out_of_one_project() {
    let service = Service::start().await;
    let elsewhere = service.create_project("other").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..CreateSessionRequest::default() };
    let other = service.create_as(Wire::Grpc, &elsewhere, request).await.expect("opens");
    let admin = bearer(service.admin_key().await.expose_secret());
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    for wire in Wire::ALL {
        let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("bob", "laptop").await);
        assert_refused!(
            service.ask(wire, "RevokeProjectSessions", service.key(), &json!({})),
            "INSUFFICIENT_ACCESS_TYPE"
        );
        assert!(phone.is_signed_in().await);
        let answer = service.ask(wire, "RevokeProjectSessions", admin.clone(), &json!({})).await.expect("ends them");
        assert_eq!(answer["success"], true, "{wire:?}");
        assert_is_over(&service, &phone).await;
        assert_is_over(&service, &laptop).await;
        while !watch.ended().await.iter().any(|one| matches!(one.ended, Some(Ended::ProjectCutOff(_)))) {}
        let later = service.sign_in("ada", "phone").await;
        assert!(service.is_active(&later.access_token).await, "{wire:?}: who signs in afterwards stays");
    }
    let still = service.introspect(Wire::Grpc, bearer(elsewhere.expose_secret()), &other.access_token).await;
    assert!(still.expect("answers").active, "the other project");

    // A repeat ends nothing more.
    let request = json!({"request_id": SOME_ID});
    service.ask(Wire::Rest, "RevokeProjectSessions", admin.clone(), &request).await.expect("ends them");
    let later = service.sign_in("ada", "phone").await;
    service.ask(Wire::Grpc, "RevokeProjectSessions", admin.clone(), &request).await.expect("a repeat");
    assert!(later.is_signed_in().await);
    let used = RevokeAllSessionsRequest {
        user_id: Some("ada".into()),
        request_id: Some(SOME_ID.into()),
        ..Default::default()
    };
    // Where users are in several slots, a request id is unique for each user.
    if service.database.slots().await.len() == 1 {
        let refused = service.revoke_all(Wire::Grpc, admin, used).await.expect_err("another request");
        assert_eq!(refused.fields, ["request_id"]);
    }
}
