//! The guard: which tokens another service accepts, and for how long, while everything between it and sessiond fails.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Extension, Router, routing::get};
use dev_postgres::{Cluster, Mode};
use http::{HeaderMap, Method, StatusCode};
use secrecy::ExposeSecret as _;
use sessiond::{
    pb::{
        CreateSessionRequest, CreateSessionResponse, RevokeCurrentRequest, RevokeCurrentResponse, SupersededTokens,
        Withheld, revocation::Ended, watch_revocations_response::Event, withheld::Concerns,
    },
    rpc::status::reason_of,
    store::Role,
};
use sessiond_core::{
    clock::{Clock, Timestamp},
    id::{Bucket, ProjectId},
    session::{Policy, policy::ACCESS_TOKEN_TTL_MAX},
    token::{
        access::{Claims, Issuer},
        jwks::VerifyingKeys,
        keys::SigningKey,
        schedule::Urgency,
        sealing::Purpose,
    },
};
use sessiond_guard::{ConnectError, FailMode, Guard, GuardOptions, Principal, Rejection, StepUp, UnavailableReason};
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::Layer as _;

use crate::harness::{
    Device, ISSUER, PROJECT, Service, Wire, bearer, both,
    database::{Database, disposable},
    eventually,
    fake_server::FakeServer,
    header,
    link::Link,
    proxy::Proxy,
    serve_http,
    wire::{Wires, refused_json},
};

#[path = "../crates/sessiond-guard/examples/guarded.rs"]
#[expect(dead_code, reason = "the test starts it otherwise than `main` does")]
mod guarded;

/// The staleness limit in most of these tests: the smallest that a guard accepts.
const MAX_STALENESS: Duration = Duration::from_secs(2);

/// Leeway for a busy machine, on top of that and for anything that should take milliseconds.
const SLACK: Duration = Duration::from_secs(2);

fn options(url: &str, service: &Service) -> GuardOptions {
    let key = service.server_key.expose_secret();
    let startup_timeout = Duration::from_secs(20);
    GuardOptions { max_staleness: MAX_STALENESS, startup_timeout, ..GuardOptions::new(url, PROJECT, ISSUER, key) }
}

pub fn options_for(service: &Service) -> GuardOptions {
    options(&format!("http://{}", service.addr), service)
}

async fn guard(service: &Service) -> Guard {
    Guard::connect(options_for(service)).await.expect("connects")
}

/// Waits until a token is rejected. Returns how long that took, and why.
async fn refused_after(guard: &Guard, token: &str) -> (Duration, Rejection) {
    let started = Instant::now();
    loop {
        if let Err(refusal) = guard.verify_now(token) {
            return (started.elapsed(), refusal);
        }
        assert!(started.elapsed() < Duration::from_secs(20), "still accepted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Signs out, and checks the guard's promise: the token is rejected in time, because its session was revoked.
async fn signs_out_everywhere(device: &Device<'_>, guard: &Guard) {
    assert!(guard.verify(&device.access_token).await.is_ok(), "signed in");
    device.sign_out().await.expect("signs out");
    let (after, refusal) = refused_after(guard, &device.access_token).await;
    assert_eq!(refusal, Rejection::SessionRevoked);
    assert!(after < SLACK, "{after:?}");
}

async fn eventually_accepts(guard: &Guard, token: &str) {
    eventually("accepted", async || guard.verify(token).await.is_ok()).await;
}

// Accepting and rejecting requests.

/// Sign-in, call, sign-out, call: over a real socket, as the example's header describes.
#[tokio::test]
async fn the_example_rejects_signed_out_users() {
    let service = Service::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let example = Wires::to(listener.local_addr().expect("bound"));
    let options = options_for(&service);
    tokio::spawn(async move { guarded::serve(listener, options).await.map_err(|error| error.to_string()) });

    let phone = service.sign_in("ada", "phone").await;
    let call = async || example.http(Method::GET, "/", phone.bearer(), "").await;
    let answer = call().await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.body().as_ref(), format!("Hello, ada! This is session {}.\n", phone.session).as_bytes());

    phone.sign_out().await.expect("signs out");
    let started = Instant::now();
    eventually("401", async || call().await.status() == StatusCode::UNAUTHORIZED).await;
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    let answer = call().await;
    assert_eq!(answer.headers()["www-authenticate"], r#"Bearer error="invalid_token""#);
    let refused = refused_json(answer.status(), &serde_json::from_slice(answer.body()).expect("JSON"));
    assert_eq!((refused.reason.as_str(), refused.code), ("SESSION_REVOKED", Code::Unauthenticated));

    let page = example.http(Method::GET, "/metrics", HeaderMap::new(), "").await;
    let page = String::from_utf8(page.into_body().to_vec()).expect("UTF-8");
    assert!(page.contains("sessiond_guard_verifications_total{outcome=\"accepted\"} 1\n"), "{page}");
    assert!(page.contains("\nsessiond_guard_entries 1\n"), "{page}");
}

/// The same in front of a tonic service without any code for it.
#[tokio::test]
async fn a_tonic_service_is_guarded_too() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let (_, health) = tonic_health::server::health_reporter();
    let routes = tonic::service::Routes::new(guard.layer().layer(health)).into_axum_router();
    let addr = serve_http(routes).await;
    let channel = tonic::transport::Endpoint::new(format!("http://{addr}")).expect("a URL").connect_lazy();
    let call = async |token: Option<&str>| {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
        }
        HealthClient::new(channel.clone()).check(request).await.map(drop)
    };
    let reason = |status: Status| {
        use tonic_types::StatusExt as _;
        (status.code(), status.get_details_error_info().expect("a reason").reason)
    };

    let phone = service.sign_in("ada", "phone").await;
    call(Some(&phone.access_token)).await.expect("accepts");
    let missing = call(None).await.expect_err("no credential");
    assert_eq!(reason(missing), (Code::Unauthenticated, "CREDENTIALS_MISSING".to_owned()));
    phone.sign_out().await.expect("signs out");
    let (after, _) = refused_after(&guard, &phone.access_token).await;
    assert!(after < SLACK, "{after:?}");
    let ended = call(Some(&phone.access_token)).await.expect_err("signed out");
    assert_eq!(reason(ended), (Code::Unauthenticated, "SESSION_REVOKED".to_owned()));
}

/// The handler learns the user from the guard alone.
#[tokio::test]
async fn every_rejection_has_the_same_reason_as_in_sessiond() {
    let service = Service::start().await;
    let clock = service.clock.clone();
    let guard = Guard::connect(GuardOptions { clock, ..options_for(&service) }).await.expect("connects");
    let who = |principal: Option<Extension<Principal>>| async move {
        principal.map_or("nobody".to_owned(), |Extension(one)| one.user_id().as_str().to_owned())
    };
    let routes = Router::new().route("/", get(who));
    let strict = Wires::to(serve_http(routes.clone().layer(guard.layer())).await);
    let optional = Wires::to(serve_http(routes.layer(guard.layer().optional())).await);
    let reason = |answer: &http::Response<bytes::Bytes>| {
        let refused = refused_json(answer.status(), &serde_json::from_slice(answer.body()).expect("JSON"));
        (answer.status().as_u16(), refused.reason)
    };
    let get = async |wires: &Wires, headers: HeaderMap| wires.http(Method::GET, "/", headers, "").await;

    let phone = service.sign_in("ada", "phone").await;
    for wires in [&strict, &optional] {
        assert_eq!(get(wires, phone.bearer()).await.body(), "ada");
        let damaged = format!("{}A", phone.access_token);
        for token in ["", "x", "a.b.c", service.server_key.expose_secret(), &phone.refresh_token, &damaged] {
            let answer = get(wires, bearer(token)).await;
            assert_eq!(reason(&answer), (401, "UNPARSABLE_ACCESS_TOKEN".to_owned()), "{token}");
            assert_eq!(answer.headers()["www-authenticate"], r#"Bearer error="invalid_token""#);
        }
        let twice = both(phone.bearer(), HeaderMap::new());
        let mut twice_over = twice.clone();
        twice_over.append("authorization", twice["authorization"].clone());
        assert_eq!(reason(&get(wires, twice_over).await), (401, "UNPARSABLE_ACCESS_TOKEN".to_owned()));
    }
    for anonymous in [HeaderMap::new(), header("authorization", "Basic YTpi")] {
        let answer = get(&strict, anonymous.clone()).await;
        assert_eq!(reason(&answer), (401, "CREDENTIALS_MISSING".to_owned()));
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        assert_eq!(get(&optional, anonymous).await.body(), "nobody");
    }

    // Half-open: at exactly `exp` it has expired.
    service.clock.advance(Policy::default().access_token_ttl);
    let answer = get(&strict, phone.bearer()).await;
    assert_eq!(reason(&answer), (401, "ACCESS_TOKEN_EXPIRED".to_owned()));
}

/// Clients branch on the reason, whichever side answers.
#[test]
fn the_reasons_are_those_of_sessiond() {
    let now = Timestamp::from_seconds(1);
    let (user, session) = (
        sessiond_core::id::UserId::parse("ada").expect("an id"),
        sessiond_core::clock::new_session_id(now, Bucket::from_number(1)),
    );
    let of_sessiond = [
        Rejection::CredentialsMissing,
        Rejection::UnparsableAccessToken,
        Rejection::AccessTokenExpired {
            expired_at: now,
            project: ProjectId::parse(PROJECT).expect("a name"),
            user,
            session,
        },
        Rejection::WrongProject { expected: "a".into(), actual: "b".into() },
        Rejection::SessionRevoked,
        Rejection::AccessTokenSuperseded,
        Rejection::InsufficientUserAuthentication(StepUp::new(["aal2"], None).expect("well-formed")),
    ];
    for refusal in of_sessiond {
        let (reason, status) = (refusal.reason(), Status::from(refusal));
        assert_eq!(reason_of(&status), Some(reason), "is one of sessiond's");
        assert_eq!((status.code(), status.message()), (reason.code(), reason.message()));
    }
    let status = Status::from(Rejection::Unavailable(UnavailableReason::StaleFeed));
    assert_eq!(status.code(), Code::Unavailable);
}

/// A verified token is not verified again, but is rejected when anything else has changed.
#[tokio::test]
async fn a_token_identifies_its_principal() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let support = service.impersonate("lovelace", "support").await;
    for _ in 0..3 {
        let principal = guard.verify(&support.access_token).await.expect("good");
        assert_eq!(principal.user_id().as_str(), "lovelace");
        assert_eq!(principal.session_id().to_string(), support.session);
        assert_eq!((principal.project_id().as_str(), principal.impersonator_id()), (PROJECT, Some("support")));
        // No name in hexadecimal digits: an id could contain it.
        assert!(!format!("{principal:?}").contains("lovelace"), "no user in a log");
    }
    assert_eq!(guard.stats().accepted, 3);
    signs_out_everywhere(&support, &guard).await;
}

// Every kind of revocation.

#[tokio::test]
async fn a_signed_out_token_is_rejected_at_once_and_others_are_not() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    signs_out_everywhere(&phone, &guard).await;
    assert!(guard.verify_now(&laptop.access_token).is_ok());
    // A session revoked before the guard started.
    let late = self::guard(&service).await;
    assert_eq!(late.verify_now(&phone.access_token), Err(Rejection::SessionRevoked));
    assert!(late.verify_now(&laptop.access_token).is_ok());
}

#[tokio::test]
async fn a_cut_off_keeps_one_session_and_later_ones() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let bob = service.sign_in("bob", "phone").await;
    phone.revoke_others().await.expect("ends the others");
    let (after, refusal) = refused_after(&guard, &laptop.access_token).await;
    assert!(after < SLACK && refusal == Rejection::SessionRevoked, "{after:?} {refusal:?}");
    let tablet = service.sign_in("ada", "tablet").await;
    for device in [&phone, &bob, &tablet] {
        assert!(guard.verify_now(&device.access_token).is_ok());
    }
    let late = self::guard(&service).await;
    assert!(late.verify_now(&laptop.access_token).is_err() && late.verify_now(&phone.access_token).is_ok());
}

/// A planned rotation causes nothing; an emergency rotation causes one more fetch of the keys.
#[tokio::test]
async fn a_new_signing_key_is_known_with_its_first_token() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let before = service.sign_in("ada", "phone").await;
    assert!(guard.verify(&before.access_token).await.is_ok());
    let project = ProjectId::parse(PROJECT).expect("a name");
    service.app.rotate_key(Purpose::Signing, project, Urgency::Emergency).await.expect("rotates");
    service.app.keys().reload().await.expect("reads the keys");
    let after = service.sign_in("ada", "phone").await;
    eventually_accepts(&guard, &after.access_token).await;
    assert!(guard.verify_now(&before.access_token).is_ok(), "a retired key's tokens are good until they expire");
}

#[tokio::test]
async fn no_token_under_a_revoked_signing_key_is_accepted() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let phone = service.sign_in("ada", "phone").await;
    assert!(guard.verify(&phone.access_token).await.is_ok());
    let project = ProjectId::parse(PROJECT).expect("a name");
    let keys = service.app.list_keys(Purpose::Signing, project.clone()).await.expect("lists");
    service.app.revoke_key(Purpose::Signing, project, keys[0].id).await.expect("revokes");
    let (after, refusal) = refused_after(&guard, &phone.access_token).await;
    assert!(after < SLACK && refusal == Rejection::SessionRevoked, "{after:?} {refusal:?}");
    service.app.keys().reload().await.expect("reads the keys");
    let next = service.sign_in("ada", "phone").await;
    eventually_accepts(&guard, &next.access_token).await;
}

#[tokio::test]
async fn a_token_of_another_project_is_rejected() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let key = service.create_project("other").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..CreateSessionRequest::default() };
    let theirs = service.create_as(Wire::Grpc, &key, request).await.expect("signs in");
    let before = guard.stats().jwks_age;
    let refused = Rejection::WrongProject { expected: PROJECT.into(), actual: "other".into() };
    assert_eq!(guard.verify(&theirs.access_token).await, Err(refused));
    assert!(guard.stats().jwks_age >= before, "the keys need not be read again for that");
}

// Configuration errors.

#[tokio::test]
async fn configuration_errors_are_reported_at_the_start() {
    let service = Service::start().await;
    let good = options_for(&service);
    let connect = async |options: GuardOptions| Guard::connect(options).await.expect_err("is refused");
    let endpoint = good.endpoints[0].clone();

    let theirs = service.create_project("other").await;
    let refused = connect(GuardOptions { server_key: Some(theirs), ..good.clone() }).await;
    assert_eq!(refused, ConnectError::InvalidServerKey { endpoint: endpoint.clone(), project: PROJECT.into() });
    let (revoked, key) = {
        let project = ProjectId::parse(PROJECT).expect("a name");
        service.app.server_key_create(project, Role::Service).await.expect("makes a key")
    };
    service.app.server_key_revoke(revoked).await.expect("revokes");
    let refused = connect(GuardOptions { server_key: Some(key), ..good.clone() }).await;
    assert_eq!(refused, ConnectError::InvalidServerKey { endpoint: endpoint.clone(), project: PROJECT.into() });

    for (project, issuer) in [("nobody", ISSUER), (PROJECT, "https://elsewhere.example.org"), (PROJECT, "http://x/y")] {
        let (project, base) = (project.to_owned(), issuer.to_owned());
        let refused = connect(GuardOptions { project: project.clone(), issuer: base, ..good.clone() }).await;
        let issuer = format!("{issuer}/projects/{project}");
        assert_eq!(refused, ConnectError::WrongIssuer { endpoint: endpoint.clone(), issuer });
    }

    let malformed = [
        GuardOptions { endpoints: vec![], ..good.clone() },
        GuardOptions { endpoints: vec!["localhost:8080".into()], ..good.clone() },
        GuardOptions { endpoints: vec!["http://localhost:8080/api".into()], ..good.clone() },
        GuardOptions { project: "a/b".into(), ..good.clone() },
        GuardOptions { issuer: "sessions".into(), ..good.clone() },
        GuardOptions { server_key: Some("secret".to_owned().into()), ..good.clone() },
        GuardOptions { max_staleness: Duration::from_secs(1), ..good },
    ];
    for options in malformed {
        connect(options).await;
    }
}

/// Its metadata names another issuer, as a copy of the installation does.
#[tokio::test]
async fn another_issuer_is_not_trusted() {
    let (key, fake) = fake_server().await;
    fake.issue_as("https://staging.example.org/projects/demo");
    let refused = Guard::connect(fake_options(&fake)).await.expect_err("is refused");
    assert!(matches!(refused, ConnectError::WrongIssuer { .. }), "{refused}");
    drop(key);
}

/// Malformed metadata names no issuer: the check has failed.
#[tokio::test]
async fn malformed_metadata_is_not_trusted() {
    for metadata in ["", "<html>", "{}", r#"{"issuer": 1}"#, "null"] {
        let (key, fake) = fake_server().await;
        fake.set_metadata(metadata);
        let guard = Guard::connect(fake_options(&fake)).await.expect("an outage, until it can be read");
        let (token, _) = token(&key);
        assert!(matches!(guard.verify(&token).await, Err(Rejection::Unavailable(_))), "{metadata}");
        assert_eq!(fake.jwks_fetches(), 0, "nothing more is asked there: {metadata}");
        fake.issue_as(&format!("{ISSUER}/projects/{PROJECT}"));
        let stream = fake.stream().await;
        stream.snapshot(&[], "a");
        stream.heartbeat(0);
        eventually_accepts(&guard, &token).await;
    }
}

/// One wrong `Date` does not move the clock: ahead, it would expire every token; behind, it would revive some.
#[tokio::test]
async fn one_wrong_date_does_not_move_the_clock() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let (key, fake) = fake_server().await;
    let now = Clock::system().now();
    fake.date_next(now + YEAR);
    let options = GuardOptions { startup_timeout: Duration::from_secs(20), ..fake_options(&fake) };
    let first_stream = async {
        let stream = fake.stream().await;
        stream.snapshot(&[], "a");
        stream.heartbeat(0);
        stream
    };
    let (guard, stream) = tokio::join!(Guard::connect(options), first_stream);
    let guard = guard.expect("begins");
    let (token, _) = token(&key);
    eventually_accepts(&guard, &token).await;
    assert!(fake.jwks_fetches() >= 2, "another witness was heard");
    let beats = stream.beat(0);
    let later = async {
        // Later, too: each unknown key causes a fetch of the keys.
        for date in [now + YEAR, now - YEAR] {
            fake.date_next(date);
            let asked = fake.jwks_fetches();
            let (unknown, _) = self::token(&SigningKey::generate(ProjectId::parse(PROJECT).expect("a name")).0);
            eventually("the keys are read", async || {
                assert!(guard.verify(&unknown).await.is_err());
                fake.jwks_fetches() > asked
            })
            .await;
            eventually_accepts(&guard, &token).await;
        }
    };
    tokio::select! {
        () = beats => panic!("the guard hung up"),
        () = later => {}
    }
}

// Faults: no signed-out token is accepted for longer than allowed, and none after recovery.

/// The replica that a guard follows dies; the next one sends the rest.
#[tokio::test]
async fn a_guard_survives_the_death_of_its_replica() {
    let (one, road_to_one) = over_a_link().await;
    let other = one.replica().await;
    let mut options = options(&road_to_one.url, &one);
    options.endpoints.push(format!("http://{}", other.addr));
    let guard = Guard::connect(options).await.expect("connects");
    let (phone, laptop) = (other.sign_in("ada", "phone").await, other.sign_in("ada", "laptop").await);
    signs_out_everywhere(&phone, &guard).await;

    road_to_one.cut();
    laptop.sign_out().await.expect("signs out at the other");
    let (after, _) = refused_after(&guard, &laptop.access_token).await;
    assert!(after < MAX_STALENESS + SLACK, "{after:?}");
    eventually("and it knows why", async || guard.verify_now(&laptop.access_token) == Err(Rejection::SessionRevoked))
        .await;
    let stats = guard.stats();
    assert!(stats.connections >= 2 && stats.snapshots == 1, "resumed from where it stood: {stats:?}");
    let tablet = other.sign_in("ada", "tablet").await;
    eventually_accepts(&guard, &tablet.access_token).await;
    signs_out_everywhere(&tablet, &guard).await;
}

/// A replica answers but no longer reads the database: its feed grows old, and the guard moves to a fresher replica
/// before any token is rejected.
#[tokio::test]
async fn a_guard_leaves_a_replica_whose_feed_is_old() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let hanging = service.replica_by(&proxy.url).await;
    eventually("the first reading", async || hanging.app.feed().age().is_some()).await;
    let mut options = options(&format!("http://{}", hanging.addr), &hanging);
    options.max_staleness = Duration::from_secs(6);
    options.endpoints.push(format!("http://{}", service.addr));
    let guard = Guard::connect(options).await.expect("connects");
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    eventually_accepts(&guard, &phone.access_token).await;

    silence.begin();
    phone.sign_out().await.expect("signs out at the other replica");
    let began = std::time::Instant::now();
    while guard.verify_now(&phone.access_token) != Err(Rejection::SessionRevoked) {
        assert!(guard.verify_now(&laptop.access_token).is_ok(), "other tokens are still accepted");
        assert!(began.elapsed() < Duration::from_secs(20), "it stays with the replica that hangs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("the feed is fresh", async || guard.stats().staleness.is_some_and(|age| age < MAX_STALENESS)).await;
    assert!(guard.verify_now(&laptop.access_token).is_ok());
}

/// The network drops everything without closing connections.
#[tokio::test]
async fn a_guard_notices_a_silent_network() {
    let (service, link) = over_a_link().await;
    let guard = Guard::connect(options(&link.url, &service)).await.expect("connects");
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    eventually_accepts(&guard, &phone.access_token).await;
    link.silence();
    phone.sign_out().await.expect("signs out");
    let (after, refusal) = refused_after(&guard, &phone.access_token).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed));
    assert!(after < MAX_STALENESS + SLACK, "{after:?}");

    link.restore();
    eventually_accepts(&guard, &laptop.access_token).await;
    assert_eq!(guard.verify_now(&phone.access_token), Err(Rejection::SessionRevoked), "nothing was missed");
}

/// Heartbeats arrive, and report that the reader behind them hangs.
#[tokio::test]
async fn the_age_in_heartbeats_is_respected() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let hanging = service.replica_by(&proxy.url).await;
    eventually("the first reading", async || hanging.app.feed().age().is_some()).await;
    let guard = guard(&hanging).await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    eventually_accepts(&guard, &phone.access_token).await;

    silence.begin();
    phone.sign_out().await.expect("signs out at the other replica");
    let (after, refusal) = refused_after(&guard, &phone.access_token).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed));
    assert!(after < MAX_STALENESS + SLACK, "{after:?}");
    silence.end();
    eventually_accepts(&guard, &laptop.access_token).await;
    assert_eq!(guard.verify_now(&phone.access_token), Err(Rejection::SessionRevoked));
}

/// Postgres is down, and sessiond reports how old its feed is.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_database_is_an_outage_and_accepts_nothing() {
    let mut cluster = Cluster::start(disposable("guard")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.migrate().await;
    let service = Service::start_on(database).await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let guard = guard(&service).await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    signs_out_everywhere(&phone, &guard).await;

    cluster.stop_server(Mode::Immediate).await.expect("stops");
    let (after, refusal) = refused_after(&guard, &laptop.access_token).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed));
    assert!(after < MAX_STALENESS + SLACK, "{after:?}");
    assert_eq!(guard.verify_now(&phone.access_token), Err(Rejection::SessionRevoked), "what is known stays known");

    cluster.start_server().await.expect("starts again");
    eventually_accepts(&guard, &laptop.access_token).await;
    assert_eq!(guard.verify_now(&phone.access_token), Err(Rejection::SessionRevoked));
    drop(service);
    cluster.stop().await.expect("stops");
}

/// Postgres is killed, the server replaced and the guard's connection broken, twice, while people sign in and out.
#[tokio::test(flavor = "multi_thread")]
async fn restarting_everything_under_load_revives_no_session() {
    let mut cluster = Cluster::start(disposable("restarts")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    database.migrate().await;
    let mut service = Service::start_on(database).await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let link = Link::to(service.addr).await;
    let guard = Guard::connect(options(&link.url, &service)).await.expect("connects");

    // Users whose sign-out was acknowledged.
    let signed_out = Arc::new(Mutex::new(vec![]));
    let load = {
        let wires = Wires::to(link.url.trim_start_matches("http://").parse().expect("an address"));
        let (key, guard, signed_out) = (service.key(), guard.clone(), Arc::clone(&signed_out));
        tokio::spawn(async move {
            loop {
                let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
                let created: Result<CreateSessionResponse, _> =
                    wires.call(Wire::Grpc, "CreateSession", key.clone(), &request).await;
                let Ok(CreateSessionResponse { access_token, .. }) = created else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let ended: Result<RevokeCurrentResponse, _> =
                    wires.call(Wire::Grpc, "RevokeCurrent", bearer(&access_token), &RevokeCurrentRequest {}).await;
                if ended.is_err() {
                    continue;
                }
                let revoked_at = Instant::now();
                while guard.verify_now(&access_token).is_ok() {
                    assert!(revoked_at.elapsed() < MAX_STALENESS + SLACK, "still accepted");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                signed_out.lock().expect("no one panics while holding it").push(access_token);
            }
        })
    };
    let more = async |count: usize| {
        let before = signed_out.lock().expect("no one panics while holding it").len();
        eventually("people sign out", async || {
            assert!(!load.is_finished(), "the bound was not kept");
            signed_out.lock().expect("no one panics while holding it").len() >= before + count
        })
        .await;
    };
    for _ in 0..2 {
        more(20).await;
        cluster.stop_server(Mode::Immediate).await.expect("stops");
        link.cut();
        cluster.start_server().await.expect("starts again");
        service = service.replica().await;
        eventually("the first reading", async || service.app.feed().age().is_some()).await;
        link.connect_to(service.addr);
        link.restore();
    }
    more(20).await;
    load.abort();
    let laptop = service.sign_in("ada", "laptop").await;
    eventually_accepts(&guard, &laptop.access_token).await;
    for token in signed_out.lock().expect("no one panics while holding it").iter() {
        assert_eq!(guard.verify_now(token), Err(Rejection::SessionRevoked), "none is missed");
    }
    drop(service);
    cluster.stop().await.expect("stops");
}

/// A guard that has just started knows no revocations, and accepts nothing locally, whatever its fail mode.
#[tokio::test]
async fn a_guard_restarted_in_an_outage_accepts_nothing_locally() {
    let (service, link) = over_a_link().await;
    let phone = service.sign_in("ada", "phone").await;
    link.cut();
    for fail_mode in [FailMode::Reject, FailMode::Introspect, FailMode::AcceptUntilExpiry] {
        let startup_timeout = Duration::from_millis(300);
        let options = GuardOptions { fail_mode, startup_timeout, ..options(&link.url, &service) };
        let guard = Guard::connect(options).await.expect("an outage is no error");
        assert!(matches!(guard.verify(&phone.access_token).await, Err(Rejection::Unavailable(_))), "{fail_mode:?}");
        assert!(matches!(guard.verify_now(&phone.access_token), Err(Rejection::Unavailable(_))), "{fail_mode:?}");
        assert_eq!(guard.stats().staleness, None);

        // Over HTTP that is not a 401: the token may be good, and a client must not discard it.
        let guarded = Wires::to(serve_http(Router::new().route("/", get("")).layer(guard.layer())).await);
        let answer = guarded.http(Method::GET, "/", phone.bearer(), "").await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["retry-after"], "1");
        let refused = refused_json(answer.status(), &serde_json::from_slice(answer.body()).expect("JSON"));
        assert_eq!(
            (refused.reason.as_str(), refused.retry_after),
            ("VERIFICATION_UNAVAILABLE", Some(Duration::from_secs(1)))
        );

        link.restore();
        eventually_accepts(&guard, &phone.access_token).await;
        guard.ready().await.expect("all is there");
        link.cut();
    }
}

/// Without the feed, the two other modes do what their names say.
#[tokio::test]
async fn the_fail_mode_decides_when_the_feed_is_old() {
    let (service, link) = over_a_link().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let known = service.sign_in("ada", "tablet").await;

    let lenient = GuardOptions { fail_mode: FailMode::AcceptUntilExpiry, ..options(&link.url, &service) };
    let lenient = Guard::connect(lenient).await.expect("connects");
    signs_out_everywhere(&known, &lenient).await;
    link.cut();
    phone.sign_out().await.expect("signs out");
    eventually("stale", async || lenient.stats().staleness.is_some_and(|age| age > MAX_STALENESS)).await;
    assert!(lenient.verify(&phone.access_token).await.is_ok(), "that is what was asked for");
    assert_eq!(lenient.verify(&known.access_token).await, Err(Rejection::SessionRevoked), "what is known stays known");
    link.restore();
    eventually("refused", async || lenient.verify(&phone.access_token).await == Err(Rejection::SessionRevoked)).await;
    assert!(lenient.verify(&laptop.access_token).await.is_ok());
}

/// The stream grows old while sessiond still answers: each token is introspected.
#[tokio::test]
async fn a_guard_introspects_when_it_cannot_decide() {
    let service = Service::start().await;
    let (proxy, silence) = Proxy::that_swallows(&service.database, "pg_current_snapshot").await;
    let hanging = service.replica_by(&proxy.url).await;
    eventually("the first reading", async || hanging.app.feed().age().is_some()).await;
    let options = GuardOptions { fail_mode: FailMode::Introspect, ..options_for(&hanging) };
    let guard = Guard::connect(options).await.expect("connects");
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    eventually_accepts(&guard, &phone.access_token).await;
    assert_eq!(guard.stats().introspections, 0, "no introspection while the feed is fresh");

    silence.begin();
    eventually("stale", async || guard.stats().staleness.is_some_and(|age| age > MAX_STALENESS)).await;
    phone.sign_out().await.expect("signs out at the other replica");
    assert_eq!(guard.verify(&phone.access_token).await, Err(Rejection::SessionRevoked));
    assert_eq!(guard.verify(&laptop.access_token).await.expect("live").user_id().as_str(), "ada");
    assert_eq!(guard.stats().introspections, 2);
    // Through the layer too, where the answer is asynchronous.
    let guarded = Wires::to(serve_http(Router::new().route("/", get("in")).layer(guard.layer())).await);
    assert_eq!(guarded.http(Method::GET, "/", laptop.bearer(), "").await.body(), "in");
    assert_eq!(guarded.http(Method::GET, "/", phone.bearer(), "").await.status(), StatusCode::UNAUTHORIZED);
    // As a part of the request's trace.
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    assert_eq!(hanging.spans(), [], "nobody has asked for a trace");
    let traced = both(laptop.bearer(), header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01")));
    assert_eq!(guarded.http(Method::GET, "/", traced, "").await.body(), "in");
    let mut spans = vec![];
    let introspected = (trace.to_owned(), "sessiond.v1.SessionService/IntrospectToken");
    eventually("the call is traced", async || {
        spans.extend(hanging.spans());
        spans.contains(&introspected)
    })
    .await;
    assert!(spans.iter().all(|(of, _)| of == trace), "{spans:?}");
}

/// Away for longer than any cursor is valid: the guard gets a new snapshot.
#[tokio::test]
async fn a_guard_that_was_away_too_long_gets_a_new_snapshot() {
    let (service, link) = over_a_link().await;
    let clock = service.clock.clone();
    let guard = GuardOptions { clock, ..options(&link.url, &service) };
    let guard = Guard::connect(guard).await.expect("connects");
    let before = service.sign_in("ada", "phone").await;
    signs_out_everywhere(&before, &guard).await;
    service.feed_is_read().await;
    link.cut();
    service.clock.advance(ACCESS_TOKEN_TTL_MAX + Duration::from_secs(2 * 60 * 60));
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    phone.sign_out().await.expect("signs out");
    assert_eq!(guard.verify_now(&laptop.access_token), Err(Rejection::Unavailable(UnavailableReason::StaleFeed)));
    link.restore();
    eventually_accepts(&guard, &laptop.access_token).await;
    assert_eq!(guard.verify_now(&phone.access_token), Err(Rejection::SessionRevoked));
    let stats = guard.stats();
    assert_eq!((stats.snapshots, stats.entries), (2, 1), "{stats:?}");
}

/// Set back, the clock revives no token; set ahead, it makes the feed old until the next heartbeat.
#[tokio::test]
async fn a_clock_that_jumps_by_an_hour_accepts_nothing_wrong() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let service = Service::start().await;
    let clock = Clock::frozen();
    let options = GuardOptions { clock: clock.clone(), ..options_for(&service) };
    let guard = Guard::connect(options).await.expect("connects");
    let phone = service.sign_in("ada", "phone").await;
    assert!(guard.verify(&phone.access_token).await.is_ok());
    let signed_out = service.sign_in("ada", "laptop").await;
    signs_out_everywhere(&signed_out, &guard).await;

    // Ahead: the feed seems an hour old, and tokens expired. Back at the right time, all is as before.
    let right = clock.now();
    clock.set(right + HOUR);
    assert!(matches!(guard.verify_now(&phone.access_token), Err(Rejection::AccessTokenExpired { .. })));
    clock.set(right);
    eventually_accepts(&guard, &phone.access_token).await;

    // Time passes, the token expires, and then the clock is set back.
    clock.advance(Policy::default().access_token_ttl);
    assert!(matches!(guard.verify_now(&phone.access_token), Err(Rejection::AccessTokenExpired { .. })));
    clock.set(right - HOUR);
    assert!(matches!(guard.verify_now(&phone.access_token), Err(Rejection::AccessTokenExpired { .. })));
    assert!(guard.verify_now(&signed_out.access_token).is_err());
}

/// A dropped guard closes its stream.
#[tokio::test]
async fn dropping_the_last_clone_closes_the_stream() {
    let service = Service::start().await;
    let guard = guard(&service).await;
    let clone = guard.clone();
    assert_eq!(service.app.feed().size().1, 1);
    drop(guard);
    assert!(clone.ready().await.is_ok());
    assert_eq!(service.app.feed().size().1, 1);
    drop(clone);
    eventually("no subscriber is left", async || service.app.feed().size().1 == 0).await;
}

// Behaviour that our own server never shows.

/// A signing key of the project, and a fake server that publishes it.
async fn fake_server() -> (SigningKey, FakeServer) {
    let key = SigningKey::generate(ProjectId::parse(PROJECT).expect("a name")).0;
    let fake = FakeServer::with(jwks(&[&key])).await;
    (key, fake)
}

fn fake_options(fake: &FakeServer) -> GuardOptions {
    let key = sessiond_core::token::server_key::ServerKey::generate().expose();
    let startup_timeout = Duration::from_millis(500);
    let options = GuardOptions::new(fake.url(), PROJECT, ISSUER, key.expose_secret());
    GuardOptions { max_staleness: MAX_STALENESS, startup_timeout, ..options }
}

fn jwks(keys: &[&SigningKey]) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let key = |key: &&SigningKey| {
        let (x, y) = key.verifying().coordinates();
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        serde_json::json!({"kty": "EC", "crv": "P-256", "kid": key.id().to_string(), "x": x, "y": y})
    };
    let set = serde_json::json!({"keys": keys.iter().map(key).collect::<Vec<_>>()}).to_string();
    assert!(VerifyingKeys::read(set.as_bytes(), keys[0].project()).is_ok());
    set
}

/// A token that lasts ten minutes, and its session.
fn token(key: &SigningKey) -> (String, String) {
    let session = sessiond_core::clock::new_session_id(Clock::system().now(), Bucket::from_number(1)).to_string();
    (token_of(key, &session, 0), session)
}

/// A token of a session, under this epoch of its own.
fn token_of(key: &SigningKey, session: &str, session_epoch: i64) -> String {
    let now = Clock::system().now();
    let claims = Claims {
        iss: Issuer::new(ISSUER).of(PROJECT),
        sub: "ada".into(),
        aud: PROJECT.into(),
        client_id: PROJECT.into(),
        iat: now.as_seconds(),
        exp: now.as_seconds() + 600,
        jti: session.to_string(),
        sid: session.to_string(),
        epoch: [0, 0],
        session_epoch,
        project_id: PROJECT.into(),
        refresh_token_id: session.to_string(),
        auth_time: None,
        acr: None,
        amr: vec![],
        act: None,
        own: serde_json::Map::new(),
    };
    key.sign(&claims).expect("signs").expose_secret().to_owned()
}

/// A stream that breaks in the middle of a snapshot changes nothing.
#[tokio::test]
async fn an_incomplete_snapshot_changes_nothing() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let ((one, first), (other, second)) = (token(&key), token(&key));

    let stream = fake.stream().await;
    assert_eq!(stream.cursor, "");
    stream.send(Event::SnapshotBegin(Default::default()), None);
    stream.ended(&[&first]);
    stream.heartbeat(0);
    drop(stream);
    let stream = fake.stream().await;
    assert_eq!(stream.cursor, "", "half a snapshot leads nowhere");
    assert_eq!(
        guard.verify(&other).await,
        Err(Rejection::Unavailable(UnavailableReason::NoFeed)),
        "nor can anything go by it"
    );

    stream.snapshot(&[&first], "one");
    stream.heartbeat(0);
    eventually_accepts(&guard, &other).await;
    assert_eq!(guard.verify_now(&one), Err(Rejection::SessionRevoked));
    drop(stream);

    // A new snapshot, broken off: the old one still applies, and its cursor is still used.
    let stream = fake.stream().await;
    assert_eq!(stream.cursor, "one");
    stream.send(Event::SnapshotBegin(Default::default()), None);
    stream.ended(&[&second]);
    drop(stream);
    let stream = fake.stream().await;
    assert_eq!(stream.cursor, "one");
    stream.heartbeat(0);
    eventually_accepts(&guard, &other).await;
    assert_eq!(guard.verify_now(&one), Err(Rejection::SessionRevoked));

    // A complete one replaces everything known.
    stream.snapshot(&[&second], "two");
    stream.heartbeat(0);
    eventually("forgotten", async || guard.verify_now(&one).is_ok()).await;
    assert_eq!(guard.verify_now(&other), Err(Rejection::SessionRevoked));
}

/// The stream is open and silent: it is treated as dead, whatever the connection says.
#[tokio::test]
async fn a_stream_without_heartbeats_is_dropped() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let (token, session) = token(&key);
    let silent = fake.stream().await;
    silent.snapshot(&[], "one");
    silent.heartbeat(0);
    eventually_accepts(&guard, &token).await;
    let (after, refusal) = refused_after(&guard, &token).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed));
    assert!(after < MAX_STALENESS + SLACK, "{after:?}");
    // The silent stream is still open, and no longer read.
    let next = fake.stream().await;
    assert_eq!(next.cursor, "one");
    next.ended(&[&session]);
    next.heartbeat(0);
    eventually("known", async || guard.verify_now(&token) == Err(Rejection::SessionRevoked)).await;
}

/// A revocation of an unknown kind: the guard cannot ignore it.
#[tokio::test]
async fn an_unknown_revocation_makes_the_feed_old() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let (token, _) = token(&key);
    let stream = fake.stream().await;
    stream.snapshot(&[], "one");
    stream.heartbeat(0);
    eventually_accepts(&guard, &token).await;
    stream.ended(&["no session's id"]);
    let beats = tokio::spawn(async move { stream.beat(0).await });
    let (_, refusal) = refused_after(&guard, &token).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed), "heartbeats or not");
    beats.await.expect("the guard hung up");
}

/// Keys that another server publishes under this project's name verify nothing.
#[tokio::test]
async fn a_foreign_jwks_verifies_nothing() {
    let (key, _) = fake_server().await;
    let impostor = SigningKey::generate(ProjectId::parse(PROJECT).expect("a name")).0;
    let theirs = jwks(&[&impostor]);
    let (ours, _) = token(&key);
    for published in [theirs.clone(), theirs.replace(&impostor.id().to_string(), &key.id().to_string())] {
        let fake = FakeServer::with(published).await;
        let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
        let stream = fake.stream().await;
        stream.snapshot(&[], "one");
        stream.heartbeat(0);
        assert_eq!(guard.verify(&ours).await, Err(Rejection::UnparsableAccessToken));
    }
}

#[tokio::test]
async fn unavailable_keys_are_an_outage() {
    let (key, fake) = fake_server().await;
    let (good, _) = token(&key);
    let published = jwks(&[&key]);
    // Down at the start.
    fake.publish(None, 1);
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let stream = fake.stream().await;
    stream.snapshot(&[], "one");
    let _beats = tokio::spawn(async move { stream.beat(0).await });
    assert_eq!(guard.verify(&good).await, Err(Rejection::Unavailable(UnavailableReason::NoKeys)));
    fake.publish(Some("<html>".to_owned()), 1);
    assert_eq!(guard.verify(&good).await, Err(Rejection::Unavailable(UnavailableReason::NoKeys)));

    // Up, with keys valid for a second: used for twice that in an outage, and no longer.
    fake.publish(Some(published.clone()), 1);
    eventually_accepts(&guard, &good).await;
    fake.publish(None, 1);
    let (after, refusal) = refused_after(&guard, &good).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::NoKeys));
    assert!(after < Duration::from_secs(2) + SLACK, "{after:?}");
    fake.publish(Some(published), 3_600);
    eventually_accepts(&guard, &good).await;
}

/// Anyone can invent a `kid`: sessiond is not asked once for each.
#[tokio::test]
async fn unknown_key_ids_do_not_cause_a_fetch_each_time() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let stream = fake.stream().await;
    stream.snapshot(&[], "one");
    stream.heartbeat(0);
    let (good, _) = token(&key);
    eventually_accepts(&guard, &good).await;
    let before = fake.jwks_fetches();
    let started = Instant::now();
    let made_up = (0..200).map(|_| {
        let guard = guard.clone();
        async move {
            let other = SigningKey::generate(ProjectId::parse(PROJECT).expect("a name")).0;
            guard.verify(&token(&other).0).await
        }
    });
    for refused in futures_util::future::join_all(made_up).await {
        assert_eq!(refused, Err(Rejection::UnparsableAccessToken));
    }
    let asked = fake.jwks_fetches() - before;
    assert!(asked <= 1 + usize::try_from(started.elapsed().as_secs()).expect("short"), "{asked}");
}

async fn over_a_link() -> (Service, Link) {
    let service = Service::start().await;
    let link = Link::to(service.addr).await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    (service, link)
}

// What a later release, or too much, sends.

/// A revocation of a kind that this release does not know leaves only the tokens undecided that it could concern.
#[tokio::test]
async fn what_is_withheld_concerns_only_its_own_tokens() {
    let (key, fake) = fake_server().await;
    for fail_mode in [FailMode::Reject, FailMode::AcceptUntilExpiry] {
        let guard = Guard::connect(GuardOptions { fail_mode, ..fake_options(&fake) }).await.expect("begins");
        let stream = fake.stream().await;
        assert_eq!(stream.accepts, ["session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded"]);
        assert_eq!(stream.max_entries, 1_000_000);
        stream.snapshot(&[], "one");
        stream.heartbeat(0);
        let ((one, session), (other, _)) = (token(&key), token(&key));
        eventually_accepts(&guard, &one).await;
        let withheld = |concerns| Withheld { kind: "of_a_later_release".to_owned(), concerns };
        stream.revocation(Some(Ended::Withheld(withheld(Some(Concerns::SessionId(session.to_string()))))));
        eventually("it arrives", async || guard.stats().withheld == 1).await;
        stream.heartbeat(0);
        let undecided = match fail_mode {
            FailMode::Reject => Err(Rejection::Unavailable(UnavailableReason::Withheld)),
            _ => Ok(()),
        };
        assert_eq!(guard.verify(&one).await.map(drop), undecided);
        assert!(guard.verify(&other).await.is_ok(), "another session");
        stream.revocation(Some(Ended::Withheld(withheld(None))));
        eventually("it arrives", async || guard.stats().withheld == 2).await;
        assert_eq!(guard.verify(&other).await.map(drop), undecided, "all tokens");
        // What is known of a session counts more than what is not.
        stream.ended(&[&session.to_string()]);
        eventually("revoked", async || guard.verify(&one).await == Err(Rejection::SessionRevoked)).await;
    }
}

/// A server that sends what the guard has not accepted breaks the protocol: nothing more is believed.
#[tokio::test]
async fn a_revocation_without_a_known_kind_ends_the_stream() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let stream = fake.stream().await;
    stream.snapshot(&[], "one");
    stream.heartbeat(0);
    let (one, _) = token(&key);
    eventually_accepts(&guard, &one).await;
    stream.revocation(None);
    let again = fake.stream().await;
    assert_eq!(again.cursor, "one", "from where it believed");
    let (after, refusal) = refused_after(&guard, &one).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed));
    assert!(after < MAX_STALENESS + SLACK, "{after:?}");
}

/// A set that outgrows its bound: what is known still counts, and the feed grows old.
#[tokio::test]
async fn a_guard_holds_no_more_than_it_may() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(GuardOptions { max_entries: 10, ..fake_options(&fake) }).await.expect("begins");
    let stream = fake.stream().await;
    assert_eq!(stream.max_entries, 10);
    let (good, _) = token(&key);
    let (bad, revoked) = token(&key);
    stream.snapshot(&[&revoked.to_string()], "one");
    stream.heartbeat(0);
    eventually_accepts(&guard, &good).await;

    let many: Vec<String> = (0..20).map(|_| token(&key).1.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    stream.ended(&many);
    // Again and again, it does not take more of them than one batch.
    for _ in 0..3 {
        let stream = fake.stream().await;
        assert_eq!(stream.cursor, "one");
        let more: Vec<String> = (0..20).map(|_| token(&key).1.to_string()).collect();
        stream.ended(&more.iter().map(String::as_str).collect::<Vec<_>>());
        stream.heartbeat(0);
    }
    assert_eq!(guard.stats().entries, 21);
    assert_eq!(guard.verify(&bad).await, Err(Rejection::SessionRevoked));
    let (_, refusal) = refused_after(&guard, &good).await;
    assert_eq!(refusal, Rejection::Unavailable(UnavailableReason::StaleFeed));

    // A snapshot that does not fit is not taken either; one that does is.
    let stream = fake.stream().await;
    stream.snapshot(&many, "two");
    let stream = fake.stream().await;
    assert_eq!((stream.cursor.as_str(), guard.stats().snapshots), ("one", 1));
    stream.snapshot(&[&revoked.to_string()], "three");
    let _beats = tokio::spawn(async move { stream.beat(0).await });
    eventually_accepts(&guard, &good).await;
    assert_eq!((guard.stats().entries, guard.verify(&bad).await), (1, Err(Rejection::SessionRevoked)));
}

#[tokio::test]
async fn entries_for_superseded_tokens_merge_to_the_greatest() {
    let (key, fake) = fake_server().await;
    let guard = Guard::connect(fake_options(&fake)).await.expect("begins");
    let stream = fake.stream().await;
    stream.snapshot(&[], "one");
    stream.heartbeat(0);
    let (zero, session) = token(&key);
    eventually_accepts(&guard, &zero).await;
    for session_epoch in [2, 1] {
        let session_id = session.to_string();
        stream.revocation(Some(Ended::Superseded(SupersededTokens { session_id, session_epoch })));
    }
    eventually("it arrives", async || guard.verify(&zero).await == Err(Rejection::AccessTokenSuperseded)).await;
    for (session_epoch, is_good) in [(1, false), (2, true), (3, true)] {
        let text = token_of(&key, &session, session_epoch);
        assert_eq!(guard.verify(&text).await.is_ok(), is_good, "{session_epoch}");
    }
}
