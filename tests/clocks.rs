//! The clocks of machines are wrong: sessions are judged by the database's, and what cannot be undone waits until the two agree.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use sessiond::{
    app::{Kind, NotReady, Start, Step, SweepError, Sweeper},
    clock::{Clock, Timestamp},
    config::Retention,
    pb::CreateSessionRequest,
    store::Task,
    telemetry::Metrics,
};

use crate::{
    assert_refused,
    harness::{REFUSED_REFRESH, Service, Wire, eventually, refresh_token},
};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 60 * 60 * SECOND;
const DAY: i64 = 24 * HOUR;

/// How far a machine's clock may be wrong: more than a grace, more than an access token lives, more than an idle session does.
const WRONG_BY: [i64; 6] = [90 * SECOND, -90 * SECOND, HOUR, -HOUR, 130 * DAY, -130 * DAY];

fn sweeper(service: &Service) -> Sweeper {
    let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
    let retention =
        Retention { ended_session_retention: days(30), audit_retention: days(400), address_retention: days(30) };
    Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default())
}

fn gauge(page: &str, name: &str) -> f64 {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect(name).parse().expect("a number")
}

/// A refresh at one replica, the successor used by another tab, and the old token at the other replica: a late answer, and no
/// thief.
#[tokio::test]
async fn an_honest_client_between_replicas_whose_clocks_differ_is_no_thief() {
    let service = Service::start().await;
    let right = service.replica_wrong_by(0).await;
    for wrong_by in WRONG_BY {
        let wrong = service.replica_wrong_by(wrong_by).await;
        for (here, there) in [(&right, &wrong), (&wrong, &right)] {
            let phone = here.sign_in("ada", "phone").await;
            let token = refresh_token(&phone.refresh_token);
            let first = here.refresh(Wire::Grpc, token.clone()).await.expect("refreshes");
            let used = refresh_token(&first.refresh_token);
            let second = there.refresh(Wire::Grpc, used.clone()).await.expect("another tab");
            let late = there.refresh(Wire::Grpc, token).await.expect("the lost answer, again");
            assert_eq!(late.refresh_token, first.refresh_token, "{wrong_by}: the same successor");
            let again = here.refresh(Wire::Grpc, used).await.expect("and its own");
            assert_eq!(again.refresh_token, second.refresh_token, "{wrong_by}");
            for replica in [here, there] {
                assert!(replica.is_active(&second.access_token).await, "{wrong_by}: good at both");
                assert!(replica.is_live(&phone.session).await, "{wrong_by}");
            }
            phone.sign_out().await.expect("signs out");
            assert_refused!(there.refresh(Wire::Grpc, refresh_token(&second.refresh_token)), REFUSED_REFRESH);
        }
    }
}

/// Times that one replica has written mean the same to the other: nothing is over too early or lives too long.
#[tokio::test]
async fn sessions_end_at_their_time_on_every_replica() {
    let service = Service::start().await;
    let (behind, ahead) = (service.replica_wrong_by(-HOUR).await, service.replica_wrong_by(HOUR).await);
    for (here, there) in [(&behind, &ahead), (&ahead, &behind)] {
        let brief = CreateSessionRequest {
            user_id: "ada".to_owned(),
            expires_in_millis: Some(2_000),
            ..CreateSessionRequest::default()
        };
        let device = here.device(here.create(Wire::Grpc, brief).await.expect("signs in"));
        assert!(there.is_active(&device.access_token).await && there.is_live(&device.session).await);
        eventually("its time is over", async || !there.is_live(&device.session).await).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!here.is_live(&device.session).await && !here.is_active(&device.access_token).await);
        assert_refused!(there.refresh(Wire::Grpc, refresh_token(&device.refresh_token)), REFUSED_REFRESH);
    }
}

/// An operator sees it; the replica goes on, because it goes by the database's clock.
#[tokio::test]
async fn a_wrong_clock_is_shown_and_does_no_harm() {
    let service = Service::start().await;
    for wrong_by in [HOUR, -90 * SECOND] {
        let wrong = service.replica_wrong_by(wrong_by).await;
        let seconds = (wrong_by / SECOND) as f64;
        eventually("the skew is measured", async || {
            (gauge(&wrong.metrics_page().await, "sessiond_clock_skew_seconds") - seconds).abs() < 1.0
        })
        .await;
        let page = wrong.metrics_page().await;
        assert!((0.0..1.0).contains(&gauge(&page, "sessiond_clock_error_seconds")), "{page}");
        let ready = async || wrong.wires.http(Method::GET, "/readyz", HeaderMap::new(), "").await.status();
        eventually("it is ready", async || ready().await == StatusCode::OK).await;
        // Somebody sets the machine's clock while it runs.
        let before = wrong.clock.now();
        wrong.clock.set(Timestamp::from_seconds(1_000_000_000));
        assert!(wrong.clock.now().since(before) < Duration::from_secs(20) && wrong.clock.now() >= before);
        assert!(wrong.is_live(&wrong.sign_in("ada", "phone").await.session).await);
    }
}

/// Nothing is judged before it is known what time the database has.
#[tokio::test]
async fn a_replica_that_does_not_know_the_time_is_not_ready() {
    let service = Service::start().await;
    let app = sessiond::app::App::new(
        service.store.clone(),
        service.app.keys().clone(),
        sessiond::token::access::Issuer::new("https://sessions.example.org"),
        Clock::system(),
    );
    let is_unready = |found: &[NotReady]| found.iter().any(|reason| matches!(reason, NotReady::ClockSkew));
    assert!(is_unready(&app.readiness().await));
    service.store.correct(app.clock()).await.expect("the database tells the time");
    assert!(!is_unready(&app.readiness().await));
}

/// One replica's clock is months ahead, or behind: its sweep removes nothing, and another's only what is due by the database's.
#[tokio::test]
async fn a_sweep_removes_nothing_while_the_clocks_differ() {
    let service = Service::start().await;
    let right = service.replica_wrong_by(0).await;
    for number in 0..30 {
        right.sign_in(&format!("user-{number}"), "phone").await;
    }
    let gone = right.sign_in("eve", "phone").await;
    gone.sign_out().await.expect("signs out");
    let sql = format!(
        "UPDATE sessions SET revoked_at = now() - interval '31 days', created_at = now() - interval '40 days' WHERE id = '{}'",
        gone.session
    );
    service.database.run(&sql).await;
    for wrong_by in [130 * DAY, -130 * DAY, HOUR, -HOUR, 90 * SECOND] {
        let wrong = service.replica_wrong_by(wrong_by).await;
        for task in Task::ALL {
            let step = sweeper(&wrong).step(task, 1_000, Start::AtOnce).await.expect("steps");
            assert!(matches!(step, Step::Contradicted(_)), "{task:?}: {step:?}");
        }
        let refused = sweeper(&wrong).run_once().await.expect_err("the clocks differ");
        assert!(matches!(refused, SweepError::Clocks(_)), "{refused:?}");
        // One that agreed with the database until somebody set it.
        let set = service.replica_wrong_by(0).await;
        set.clock.set(Timestamp::from_micros(set.clock.now().as_micros() + wrong_by));
        sweeper(&set).run_once().await.expect_err("the clocks differ");
    }
    let removed = sweeper(&right).run_once().await.expect("sweeps");
    let sessions: usize = removed.iter().filter(|(kind, _)| *kind == Kind::Sessions).map(|(_, rows)| rows).sum();
    assert_eq!(sessions, 1, "what is due by the database's clock");
}

/// A pass that was noted in the future, by a clock that was wrong, does not keep the next one waiting.
#[tokio::test]
async fn a_pass_from_the_future_delays_no_sweep() {
    let service = Service::start().await;
    let right = service.replica_wrong_by(0).await;
    sweeper(&right).run_once().await.expect("sweeps");
    service.database.run("UPDATE sweeps SET completed_at = now() + interval '130 days'").await;
    let step = sweeper(&right).step(Task::Users, 1_000, Start::WhenDue).await.expect("steps");
    assert!(matches!(step, Step::Last(_)), "{step:?}");
    let step = sweeper(&right).step(Task::Users, 1_000, Start::WhenDue).await.expect("steps");
    assert_eq!(step, Step::Resting);
}

/// Keys that a clock ahead has made: who is behind it signs with them all the same.
#[tokio::test]
async fn keys_younger_than_the_clock_sign() {
    let service = Service::start().await;
    let behind = service.replica().await;
    behind.clock.set(Timestamp::from_micros(service.clock.now().as_micros() - HOUR));
    behind.app.keys().reload().await.expect("reads the keys");
    let mut phone = behind.sign_in("ada", "phone").await;
    phone.refresh().await.expect("refreshes");
    let mut laptop = service.sign_in("ada", "laptop").await;
    laptop.refresh().await.expect("and at the other");
    let tokens = behind.refresh(Wire::Grpc, refresh_token(&laptop.refresh_token)).await.expect("refreshes there");
    assert!(!tokens.access_token.is_empty());
}
