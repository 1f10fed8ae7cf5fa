//! What a thief with a copy of someone's tokens can do, and how it is detected: what users are shown, repeats from
//! elsewhere, requirements for revoking other sessions, and what is counted and recorded.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, Method};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sessiond::{
    app::{SweepKind, Sweeper},
    config::{Rates, network},
    pb::{
        CreateSessionRequest, ListSessionsRequest, RevokeAllSessionsRequest, Session, UpdateSessionRequest,
        UpdateSessionResponse,
    },
    store::{EventKind, EventRecord, KeyKind, RecordQuery},
    telemetry::Metrics,
};
use sessiond_core::{
    id::{ProjectId, UserId},
    session::{
        RevokeReason,
        policy::{LateRepeat, Refreshing, RepeatElsewhere, StepUp},
        retention::RetentionPeriods,
        rotation::REPEATS_MAX,
    },
    token::{schedule::Urgency, sealing::Purpose},
};

use crate::{
    assert_refused,
    create::claims_of,
    harness::{Device, PROJECT, REFUSED_REFRESH, Service, Wire, bearer, both, header, refresh_token},
};

const DAY: i64 = 24 * 60 * 60;
const HOME: &str = "192.0.2.1";
const ELSEWHERE: &str = "198.51.100.7";

/// A server behind a proxy that reports the client's address.
/// Not in the last hour of a day: what is shown to users changes at midnight.
async fn behind_a_proxy() -> Service {
    let service =
        Service::start_with(|web, _| web.trusted_proxies = vec![network("127.0.0.1").expect("an address")]).await;
    let left = DAY - service.clock.now().as_seconds().rem_euclid(DAY);
    if left < 60 * 60 {
        service.clock.advance(Duration::from_secs(left.unsigned_abs()));
    }
    service
}

fn from(ip: &str, headers: HeaderMap) -> HeaderMap {
    both(header("x-forwarded-for", ip), headers)
}

async fn events(service: &Service) -> Vec<EventRecord> {
    let asked = RecordQuery::newest(ProjectId::parse(PROJECT).expect("a name"), None, 1_000);
    service.store.events(asked).await.expect("reads")
}

async fn of_kind(service: &Service, name: &str) -> Vec<EventRecord> {
    let mut events = events(service).await;
    events.retain(|event| event.kind.as_str() == name);
    events
}

/// Everything that a user is shown and that a refresh could change.
fn shown(session: &Session) -> (i64, i64, String, String, Option<String>) {
    let seconds = |time: &Option<prost_types::Timestamp>| {
        let time = time.as_ref().expect("a time");
        assert_eq!(time.nanos, 0);
        time.seconds
    };
    let (used, idle) = (seconds(&session.last_used_at), seconds(&session.idle_expires_at));
    assert_eq!((used % DAY, idle % DAY), (0, 0), "whole days: {session:?}");
    (used, idle, session.ip.clone(), session.user_agent.clone(), session.device_name.clone())
}

// What users are shown.

/// Values change only at midnight: a thief who polls sees no refresh, not even the first of a day.
#[tokio::test]
async fn nothing_shown_to_users_reveals_when_a_refresh_happened() {
    let service = behind_a_proxy().await;
    let (mut phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let mut tablet = service.sign_in("ada", "tablet").await;
    let count = std::cell::Cell::new(0);
    // Each from an address of its own, and with a `User-Agent` of its own.
    let refresh = async |device: &mut Device<'_>| {
        count.set(count.get() + 1);
        let user_agent = header("user-agent", &format!("agent/{}", count.get()));
        let address = format!("192.0.2.{}", count.get());
        let headers = from(&address, both(user_agent, refresh_token(&device.refresh_token)));
        let tokens = service.refresh(Wire::Rest, headers).await.expect("refreshes");
        (device.access_token, device.refresh_token) = (tokens.access_token, tokens.refresh_token);
    };
    let of_phone = phone.session.clone();
    refresh(&mut phone).await;
    let mut of_yesterday = String::new();
    for day in 0..4 {
        let into_day = service.clock.now().as_seconds().rem_euclid(DAY);
        // Advances to ten past midnight, except on the first day.
        if day > 0 {
            service.clock.advance(Duration::from_secs((DAY - into_day + 600).unsigned_abs()));
        }
        refresh(&mut tablet).await;
        let look = async |tablet: &Device<'_>| {
            let sessions = tablet.list().await.expect("lists");
            let current = service.current(Wire::Grpc, tablet.bearer()).await.expect("looks");
            let of = |id: &str| sessions.iter().find(|session| session.id == id).map(shown).expect("is there");
            (of(&of_phone), of(&laptop.session), of(&tablet.session), shown(&current))
        };
        let before = look(&tablet).await;
        refresh(&mut phone).await;
        service.app.flush_usage().await.expect("writes");
        assert_eq!(look(&tablet).await, before, "day {day}");
        service.clock.advance(Duration::from_secs(300));
        refresh(&mut phone).await;
        assert_eq!(look(&tablet).await, before, "day {day}, once more");
        // A service sees the exact times.
        let exact = service.seen(&phone.session).await.expect("is there").stored.session;
        let listed = service.list_all(service.key(), crate::harness::calls::any_of("ada")).await;
        let listed = listed.iter().find(|session| session.id == phone.session).expect("is there");
        let exactly = (listed.last_used_at.expect("a time").seconds, listed.idle_expires_at.expect("a time").seconds);
        assert_eq!(exactly, (exact.last_used_at.as_seconds(), exact.idle_expires_at.as_seconds()));
        assert_eq!(exact.last_used_at, service.clock.now());
        let address = format!("192.0.2.{}", count.get());
        assert_eq!(exact.device.ip.expect("known").to_string(), address);
        assert_eq!((&listed.ip, &listed.user_agent), (&address, &format!("agent/{}", count.get())));
        // The user is shown it from the next day on.
        let (.., shown_ip, _, _) = &before.0;
        assert_eq!(*shown_ip, if day == 0 { String::new() } else { of_yesterday.clone() }, "day {day}");
        of_yesterday = address;
    }
}

/// A name after a `User-Agent` is neither shown nor found before the day is over; one that a service gives is at once.
#[tokio::test]
async fn a_filter_finds_only_what_is_shown() {
    const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0";
    let service = Service::start().await;
    for wire in Wire::ALL {
        let request = CreateSessionRequest { user_id: "ada".into(), ..CreateSessionRequest::default() };
        let mut phone = service.device(service.create(wire, request).await.expect("opens"));
        let headers = both(header("user-agent", FIREFOX), refresh_token(&phone.refresh_token));
        let refreshed = service.refresh(wire, headers).await.expect("refreshes");
        phone.access_token = refreshed.access_token;
        let found = async |headers: HeaderMap, name: &str, user: Option<&str>| {
            let (device_name, user_id) = (Some(name.to_owned()), user.map(str::to_owned));
            let asked = ListSessionsRequest { device_name, user_id, ..ListSessionsRequest::default() };
            let items = service.list(wire, headers, asked).await.expect("lists").items;
            items.iter().filter(|session| session.id == phone.session).count()
        };
        assert_eq!(found(service.key(), "Firefox on Linux", Some("ada")).await, 1, "{wire:?}");
        assert_eq!(found(phone.bearer(), "Firefox on Linux", None).await, 0, "{wire:?}");
        let session = Session { id: phone.session.clone(), device_name: Some("Ada's".into()), ..Session::default() };
        let update = UpdateSessionRequest { session: Some(session), ..UpdateSessionRequest::default() };
        let _: UpdateSessionResponse =
            service.wires.call(wire, "UpdateSession", service.key(), &update).await.expect("changes");
        assert_eq!(found(service.key(), "Ada's", Some("ada")).await, 1, "{wire:?}");
        assert_eq!(found(phone.bearer(), "Ada's", None).await, 1, "{wire:?}");
    }
}

// Repeats within the grace.

/// The owner refreshes, and a second later a polling thief presents the old token from elsewhere.
#[tokio::test]
async fn a_repeat_from_elsewhere_is_recorded_and_by_policy_ends_the_session() {
    for (policy, user_agent) in
        [(RepeatElsewhere::Allowed, None), (RepeatElsewhere::Theft, None), (RepeatElsewhere::Theft, Some("curl/8.5"))]
    {
        let service = behind_a_proxy().await;
        service.set_policy(|present| present.repeat_elsewhere = policy).await;
        for round in 1..=6 {
            let wire = Wire::ALL[round % 3];
            let phone = service.sign_in("ada", "phone").await;
            let at_home = |token: &str| from(HOME, both(refresh_token(token), header("user-agent", "phone/1")));
            let first = service.refresh(wire, at_home(&phone.refresh_token)).await.expect("refreshes");
            let before = shown(&service.current(wire, bearer(&first.access_token)).await.expect("polls"));
            service.clock.advance(Duration::from_secs(120));
            service.refresh(wire, at_home(&first.refresh_token)).await.expect("refreshes");
            let after = shown(&service.current(wire, bearer(&first.access_token)).await.expect("polls"));
            assert_eq!(before, after, "nothing to see");
            service.clock.advance(Duration::from_secs(1));
            // Only the user agent differs, or only the network.
            let thief = match user_agent {
                None => from(ELSEWHERE, both(refresh_token(&first.refresh_token), header("user-agent", "phone/1"))),
                Some(other) => from(HOME, both(refresh_token(&first.refresh_token), header("user-agent", other))),
            };
            let stolen = service.refresh(wire, thief.clone()).await;
            let lines = of_kind(&service, "REFRESH_REPEATED_ELSEWHERE").await;
            assert_eq!(lines.len(), round, "each is in the audit, with its session and address");
            let (session, user) = lines[0].kind.session().expect("a session");
            let of_phone = (phone.session.as_str(), Some("ada"));
            assert_eq!((session.to_string().as_str(), user.map(String::as_str)), of_phone);
            assert_eq!(lines[0].ip.as_deref(), Some(if user_agent.is_some() { HOME } else { ELSEWHERE }));
            let outcome = if policy == RepeatElsewhere::Theft { "ended" } else { "allowed" };
            let counter = format!("sessiond_refresh_repeats_elsewhere_total{{outcome=\"{outcome}\"}}");
            match policy {
                RepeatElsewhere::Theft => {
                    assert_refused!(async { stolen }, REFUSED_REFRESH);
                    assert!(!phone.is_signed_in().await, "for both");
                    assert_eq!(service.audit(Some("ada")).await[0].reason, RevokeReason::RefreshTokenReused);
                    assert_eq!(service.metric(&counter).await, round as u64);
                }
                RepeatElsewhere::Allowed => {
                    stolen.expect("gets the same");
                    let later = shown(&service.current(wire, bearer(&first.access_token)).await.expect("polls"));
                    assert_eq!(later, after, "and the owner's next refresh will show nothing either");
                    service.refresh(wire, thief).await.expect("gets the same again");
                    assert_eq!(of_kind(&service, "REFRESH_REPEATED_ELSEWHERE").await.len(), round, "written once");
                    assert_eq!(service.metric(&counter).await, 2 * round as u64, "counted each time");
                }
            }
        }
    }
}

/// The grace exists for tabs and retries on one network, whatever the policy.
#[tokio::test]
async fn a_repeat_from_the_same_network_is_not_theft() {
    let service = behind_a_proxy().await;
    service.set_policy(|policy| policy.repeat_elsewhere = RepeatElsewhere::Theft).await;
    let phone = service.sign_in("ada", "phone").await;
    for ip in [HOME, "192.0.2.200", "::ffff:192.0.2.3"] {
        service.refresh(Wire::Grpc, from(ip, refresh_token(&phone.refresh_token))).await.expect("the same network");
    }
    assert!(of_kind(&service, "REFRESH_REPEATED_ELSEWHERE").await.is_empty());
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn repeats_of_one_refresh_are_bounded() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let given = phone.refresh_without_keeping().await.expect("refreshes").refresh_token;
    for _ in 0..REPEATS_MAX {
        assert_eq!(phone.refresh_without_keeping().await.expect("repeats").refresh_token, given);
    }
    let refused = phone.refresh_without_keeping().await.err().expect("one too many");
    assert_eq!(refused.reason, "RATE_LIMITED");
    service.clock.advance(refused.retry_after.expect("says when"));
    phone.refresh_without_keeping().await.expect("late, and the successor was never used");
    assert!(phone.is_signed_in().await);
}

/// Without a grace no repeat is answered: the second refresh is detected.
#[tokio::test]
async fn strict_mode_without_a_grace_lets_no_copy_through() {
    let service = Service::start().await;
    service
        .set_policy(|policy| {
            policy.late_repeat = LateRepeat::Theft;
            policy.refresh_grace = Duration::ZERO;
        })
        .await;
    let mut phone = service.sign_in("ada", "phone").await;
    let thief = phone.stolen_copy();
    phone.refresh().await.expect("refreshes");
    assert_refused!(thief.refresh_without_keeping(), REFUSED_REFRESH);
    assert!(!phone.is_signed_in().await);
}

// Required authentication.

fn opened_at(service: &Service, auth_time: bool, acr: Option<&str>) -> CreateSessionRequest {
    let seconds = service.clock.now().as_seconds();
    CreateSessionRequest {
        user_id: "ada".into(),
        auth_time: auth_time.then_some(prost_types::Timestamp { seconds, nanos: 0 }),
        acr: acr.map(str::to_owned),
        ..CreateSessionRequest::default()
    }
}

/// If the project requires a recent sign-in, a stolen access token can revoke only its own session (RFC 9470).
#[tokio::test]
async fn revoking_other_sessions_may_require_a_recent_or_a_strong_authentication() {
    const REASON: &str = "INSUFFICIENT_USER_AUTHENTICATION";
    let age = Duration::from_secs(300);
    let service = Service::start().await;
    let open = async |request| service.device(service.create(Wire::Grpc, request).await.expect("opens"));
    for wire in Wire::ALL {
        service.set_policy(|policy| policy.revoking = StepUp { auth_age: Some(age), ..StepUp::default() }).await;
        let (phone, other) = (open(opened_at(&service, true, None)).await, service.sign_in("ada", "other").await);
        let all = || RevokeAllSessionsRequest { except_current: true, ..RevokeAllSessionsRequest::default() };
        // The other session has no authentication time.
        assert_refused!(service.revoke_all(wire, other.bearer(), all()), REASON);
        assert_refused!(service.revoke_session(wire, other.bearer(), &phone.session, None), REASON);
        service.clock.advance(age - Duration::from_secs(1));
        service.revoke_session(wire, phone.bearer(), &other.session, None).await.expect("just before");
        service.clock.advance(Duration::from_secs(1));
        let third = service.sign_in("ada", "third").await;
        assert_refused!(service.revoke_session(wire, phone.bearer(), &third.session, None), REASON);
        assert_refused!(service.revoke_all(wire, phone.bearer(), all()), REASON);
        assert!(third.is_signed_in().await);
        let headers = both(phone.bearer(), header("content-type", "application/json"));
        let response = service.wires.http(Method::POST, "/auth/sessions:revokeAll", headers, "{}").await;
        let error: Value = serde_json::from_slice(response.body()).expect("JSON");
        let info = error["details"].as_array().expect("details").iter().find(|one| one["reason"] == REASON);
        assert_eq!(info.expect("a reason")["metadata"], json!({"max_age": "300"}));

        // A service needs no user authentication, and signing out of the current session always works.
        service.revoke_session(wire, service.key(), &third.session, None).await.expect("a service may");
        service.revoke_current(wire, phone.bearer()).await.expect("signs out");

        let acr = ["aal2".to_owned(), "aal3".to_owned()];
        service.set_policy(|policy| policy.revoking = StepUp { acr: acr.into(), ..StepUp::default() }).await;
        let weak = open(opened_at(&service, true, Some("aal1"))).await;
        let strong = open(opened_at(&service, false, Some("aal3"))).await;
        assert_refused!(service.revoke_session(wire, weak.bearer(), &strong.session, None), REASON);
        service.revoke_session(wire, strong.bearer(), &weak.session, None).await.expect("is strong enough");
        service.revoke_current(wire, strong.bearer()).await.expect("signs out");
    }
}

/// If the project requires it, a refresh token is useless without the client's own key.
#[tokio::test]
async fn refreshing_may_require_client_authentication() {
    const REASON: &str = "CLIENT_AUTHENTICATION_REQUIRED";
    let service = Service::start().await;
    service.set_policy(|policy| policy.refreshing = Refreshing::ByClientsAlone).await;
    let phone = service.sign_in("ada", "phone").await;
    for wire in Wire::ALL {
        assert_refused!(service.refresh(wire, refresh_token(&phone.refresh_token)), REASON);
    }
    let form = |more: &[(&str, &str)]| {
        let always = [("grant_type", "refresh_token"), ("refresh_token", &phone.refresh_token)];
        form_urlencoded::Serializer::new(String::new()).extend_pairs(always).extend_pairs(more).finish()
    };
    let post = async |headers: HeaderMap, body: String| {
        let headers = both(header("content-type", "application/x-www-form-urlencoded"), headers);
        let answer = service.wires.http(Method::POST, "/oauth2/token", headers, body).await;
        let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
        (answer.status().as_u16(), body["error"].as_str().map(str::to_owned))
    };
    let public = post(HeaderMap::new(), form(&[("client_id", PROJECT)])).await;
    assert_eq!(public, (401, Some("invalid_client".to_owned())), "a public client");
    let secret = STANDARD.encode(format!("{PROJECT}:{}", service.server_key.expose_secret()));
    let basic = header("authorization", &format!("Basic {secret}"));
    assert_eq!(post(basic, form(&[])).await, (200, None), "a confidential one");
    // The Stack Auth adapter, as a client and as a service.
    for (access_type, status) in [("client", 401), ("server", 200)] {
        let headers = [
            header("x-stack-access-type", access_type),
            header("x-stack-project-id", PROJECT),
            header("x-stack-secret-server-key", service.server_key.expose_secret()),
            header("x-stack-refresh-token", &phone.refresh_token),
        ];
        let headers = headers.into_iter().fold(HeaderMap::new(), both);
        let answer = service.wires.http(Method::POST, "/api/v1/auth/sessions/current/refresh", headers, "").await;
        assert_eq!(answer.status().as_u16(), status, "{access_type}: {:?}", answer.body());
    }
    // Signing out still takes only the token.
    service.revoke_current(Wire::Rest, refresh_token(&phone.refresh_token)).await.expect("signs out");
}

/// An impersonation lasts an hour, or as long as requested up to a day, and a refresh does not extend it.
#[tokio::test]
async fn an_impersonation_is_short_and_cannot_be_extended() {
    const HOUR: i64 = 60 * 60;
    let service = Service::start().await;
    let request = |millis| CreateSessionRequest {
        user_id: "ada".into(),
        is_impersonation: true,
        impersonator_id: Some("root".into()),
        expires_in_millis: millis,
        ..CreateSessionRequest::default()
    };
    for wire in Wire::ALL {
        for (asked, lasts) in [(None, HOUR), (Some(2 * HOUR), 2 * HOUR), (Some(365 * DAY), DAY)] {
            let created = service.create(wire, request(asked.map(|seconds| seconds * 1_000))).await.expect("opens");
            let session = created.session.clone().expect("a session");
            let seconds = |time: Option<prost_types::Timestamp>| time.expect("a time").seconds;
            assert_eq!(seconds(session.expires_at) - seconds(session.created_at), lasts, "{wire:?} {asked:?}");
            assert!(seconds(session.idle_expires_at) <= seconds(session.expires_at));
            let mut support = service.device(created);
            service.clock.advance(Duration::from_secs((lasts - 60).unsigned_abs()));
            support.refresh().await.expect("lives");
            assert!(claims_of(&support.access_token)["exp"].as_i64() <= Some(seconds(session.expires_at)));
            service.clock.advance(Duration::from_secs(60));
            assert_refused!(support.refresh(), REFUSED_REFRESH);
        }
    }
    service.set_policy(|policy| policy.impersonation_ttl = Duration::from_secs(600)).await;
    let session = service.create(Wire::Rest, request(None)).await.expect("opens").session.expect("a session");
    assert_eq!(session.expires_at.expect("a time").seconds - session.created_at.expect("a time").seconds, 600);
}

// What is recorded and counted.

#[tokio::test]
async fn an_impersonation_is_in_the_audit_log_until_its_user_is_erased() {
    let service = behind_a_proxy().await;
    let admin = service.admin_key().await;
    let request = CreateSessionRequest {
        user_id: "ada".into(),
        is_impersonation: true,
        impersonator_id: Some("root".into()),
        request_id: Some(sessiond_core::clock::new_uuid().to_string()),
        ..CreateSessionRequest::default()
    };
    let headers = from(ELSEWHERE, service.key());
    let ask = async || {
        let call = service.wires.call(Wire::Rest, "CreateSession", headers.clone(), &request).await;
        let created: sessiond::pb::CreateSessionResponse = call.expect("opens");
        created.session.expect("a session").id
    };
    let session = ask().await;
    assert_eq!(ask().await, session, "a repeat opens nothing");
    assert_eq!(service.metric("sessiond_impersonations_total").await, 1);
    let lines = of_kind(&service, "IMPERSONATION_OPENED").await;
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let EventKind::ImpersonationOpened { session: opened, user, impersonator } = &line.kind else { panic!() };
    assert_eq!((opened.to_string(), user.as_deref(), impersonator.as_str()), (session, Some("ada"), "root"));
    assert_eq!((line.ip.as_deref(), line.at), (Some(ELSEWHERE), service.clock.now()));
    let asked = RecordQuery::newest(ProjectId::parse(PROJECT).expect("a name"), UserId::parse("ada"), 10);
    assert_eq!(service.store.events(asked.clone()).await.expect("reads"), lines);

    service.erase(Wire::Rest, bearer(admin.expose_secret()), "ada").await.expect("erases");
    assert!(service.store.events(asked).await.expect("reads").is_empty());
    let lines = of_kind(&service, "IMPERSONATION_OPENED").await;
    assert_eq!((lines[0].kind.session().expect("a session").1, lines[0].ip.as_deref()), (None, None));
}

#[tokio::test]
async fn every_key_change_is_in_the_audit_log() {
    let service = Service::start().await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    let keys = async || {
        let mut kinds: Vec<_> = events(&service).await.into_iter().map(|event| event.kind).collect();
        kinds.reverse();
        kinds.into_iter().map(|kind| (kind.as_str(), kind.key().expect("a key"))).collect::<Vec<_>>()
    };
    let first: Vec<_> = keys().await.into_iter().map(|(what, (kind, _))| (what, kind)).collect();
    // Entries within one millisecond have no order.
    assert_eq!(first.len(), 3);
    for kind in [KeyKind::Signing, KeyKind::Refresh, KeyKind::Server] {
        assert!(first.contains(&("KEY_CREATED", kind)), "{first:?}");
    }
    for (purpose, kind) in [(Purpose::Signing, KeyKind::Signing), (Purpose::Refresh, KeyKind::Refresh)] {
        service.clock.advance(Duration::from_secs(1));
        let rotated = service.app.rotate_key(purpose, project.clone(), Urgency::Emergency).await.expect("rotates");
        assert_eq!(keys().await.last(), Some(&("KEY_ROTATED", (kind, rotated.successor))));
        service.clock.advance(Duration::from_secs(1));
        service.app.revoke_key(purpose, project.clone(), rotated.retired[0]).await.expect("revokes");
        match purpose {
            Purpose::Refresh => {
                assert_eq!(keys().await.last(), Some(&("KEY_REVOKED", (kind, rotated.retired[0]))));
            }
            Purpose::Signing => {
                let line = &service.audit(None).await[0];
                let entry = (line.reason, line.key_kind.zip(line.key));
                assert_eq!(entry, (RevokeReason::KeyRevoked, Some((kind, rotated.retired[0]))));
            }
        }
    }
}

/// Kept as long as the rest of the audit log, and its addresses as long as the others.
#[tokio::test]
async fn audit_entries_that_are_not_revocations_are_swept_too() {
    const TICK: Duration = Duration::from_micros(1);
    let day = Duration::from_secs(DAY.unsigned_abs());
    let service = behind_a_proxy().await;
    service.clock.advance(day);
    let headers = from(ELSEWHERE, service.key());
    let request = json!({"user_id": "ada", "is_impersonation": true, "impersonator_id": "root"});
    service.ask(Wire::Rest, "CreateSession", headers, &request).await.expect("opens");
    let retention = RetentionPeriods { ended_sessions: day * 30, audit: day * 400, addresses: day * 30 };
    let sweep = async || {
        let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
        let removed = sweeper.run_once().await.expect("sweeps");
        let of = |kind| removed.iter().filter(|(other, _)| *other == kind).map(|(_, rows)| rows).sum::<usize>();
        (of(SweepKind::Events), of(SweepKind::Addresses))
    };
    service.clock.advance(day * 30 - TICK);
    assert_eq!(sweep().await, (0, 0));
    service.clock.advance(TICK);
    assert_eq!(sweep().await, (0, 1), "the address");
    assert_eq!(of_kind(&service, "IMPERSONATION_OPENED").await[0].ip, None);
    service.clock.advance(day * 370 - TICK);
    sweep().await;
    assert_eq!(of_kind(&service, "IMPERSONATION_OPENED").await.len(), 1);
    service.clock.advance(TICK);
    assert_eq!(sweep().await.0, 1);
}

#[tokio::test]
async fn guesses_forgeries_and_floods_are_counted_by_kind() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let forged = crate::revoke::flip(&phone.access_token, phone.access_token.len() - 10);
    let count = async |reason: &str| service.metric(&format!("sessiond_refusals_total{{reason=\"{reason}\"}}")).await;
    for (times, wire) in (1..).zip(Wire::ALL) {
        let key = bearer(&format!("sdsk_{}", "A".repeat(64)));
        assert_refused!(service.list(wire, key, Default::default()), "INVALID_SERVER_KEY");
        assert_eq!(count("INVALID_SERVER_KEY").await, times, "{wire:?}");
        assert_refused!(service.current(wire, bearer(&forged)), "UNPARSABLE_ACCESS_TOKEN");
        assert_eq!(count("UNPARSABLE_ACCESS_TOKEN").await, times, "{wire:?}");
    }
    // A refusal to a proxy is counted too.
    let verify = format!("/projects/{PROJECT}/auth/verify");
    assert_eq!(service.wires.http(Method::GET, &verify, bearer(&forged), "").await.status(), 401);
    assert_eq!(count("UNPARSABLE_ACCESS_TOKEN").await, 4);
    let rates = Rates { address_rate: 1, address_burst: 1, ..crate::harness::rates() };
    let rated = Service::start_rated(rates).await;
    for _ in 0..10 {
        let _ = rated.current(Wire::Rest, bearer(&forged)).await;
    }
    assert!(rated.metric("sessiond_refusals_total{reason=\"RATE_LIMITED\"}").await >= 8);
}

// Signature malleability.

/// The signature's other form, `(r, n − s)`, which anyone can compute.
fn respelled(token: &str) -> String {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
        0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (message, signature) = token.rsplit_once('.').expect("a signature");
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    let mut borrow = 0;
    for (digit, order) in bytes[32..].iter_mut().zip(ORDER).rev() {
        let difference = i16::from(order) - i16::from(*digit) - borrow;
        borrow = i16::from(difference < 0);
        *digit = u8::try_from(difference.rem_euclid(256)).expect("a byte");
    }
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[tokio::test]
async fn a_token_with_the_other_signature_form_is_refused() {
    const REASON: &str = "UNPARSABLE_ACCESS_TOKEN";
    let service = Service::start().await;
    for wire in Wire::ALL {
        let phone = service.sign_in("ada", "phone").await;
        let other = respelled(&phone.access_token);
        assert_eq!(respelled(&other), phone.access_token);
        assert_refused!(service.current(wire, bearer(&other)), REASON);
        assert_refused!(service.revoke_current(wire, bearer(&other)), REASON);
        assert!(!service.introspect(wire, service.key(), &other).await.expect("answers").active);
        let verify = format!("/projects/{PROJECT}/auth/verify");
        assert_eq!(service.wires.http(Method::GET, &verify, bearer(&other), "").await.status(), 401);
        assert!(phone.is_signed_in().await);
        service.current(wire, phone.bearer()).await.expect("the one spelling is good");
    }
}

/// Half of the tokens of an earlier release have the other form. They must still sign out for a year.
#[tokio::test]
async fn a_token_of_an_earlier_release_signs_out_in_either_signature_form() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let mark = "UPDATE signing_keys SET either_s_until = now() + interval '100 years'";
    service.database.run(mark).await;
    let replica = service.replica().await;
    replica.current(Wire::Grpc, bearer(&respelled(&phone.access_token))).await.expect("either");
    replica.revoke_current(Wire::Grpc, bearer(&respelled(&phone.access_token))).await.expect("signs out");
    assert!(!phone.is_signed_in().await);
}
