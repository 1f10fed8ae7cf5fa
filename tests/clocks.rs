//! Wrong system clocks: sessions are judged by the database's clock, and deletions wait until the two agree.

use std::time::Duration;

use sessiond::{
    app::{NotReady, Start, SweepError, SweepKind, SweepStep, Sweeper},
    pb::CreateSessionRequest,
    store::Task,
    telemetry::Metrics,
};
use sessiond_core::{
    clock::{Clock, Timestamp},
    session::retention::RetentionPeriods,
};

use crate::{
    assert_refused,
    harness::{REFUSED_REFRESH, Service, Wire, eventually, refresh_token},
};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 60 * 60 * SECOND;
const DAY: i64 = 24 * HOUR;

/// How wrong a system clock may be: more than a grace, an access token's lifetime, and an idle limit.
const WRONG_BY: [i64; 6] = [90 * SECOND, -90 * SECOND, HOUR, -HOUR, 130 * DAY, -130 * DAY];

fn sweeper(service: &Service) -> Sweeper {
    let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
    let retention = RetentionPeriods { ended_sessions: days(30), audit: days(400), addresses: days(30) };
    Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default())
}

fn gauge(page: &str, name: &str) -> f64 {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect(name).parse().expect("a number")
}

/// A refresh at one replica, a refresh with the successor by another tab, and the old token at the other replica: a
/// late response, not theft.
#[tokio::test]
async fn an_honest_client_between_replicas_with_different_clocks_is_no_thief() {
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

/// Times written by one replica mean the same to the other: no session ends too early or too late.
#[tokio::test]
async fn sessions_expire_at_the_same_time_on_every_replica() {
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
        // The replicas' estimates of the database's time differ by milliseconds.
        let over = async || !here.is_live(&device.session).await && !here.is_active(&device.access_token).await;
        tokio::time::timeout(Duration::from_secs(1), eventually("here too", over)).await.expect("at the same time");
        assert_refused!(there.refresh(Wire::Grpc, refresh_token(&device.refresh_token)), REFUSED_REFRESH);
    }
}

/// The difference is reported; the replica keeps working, because it uses the database's clock.
#[tokio::test]
async fn a_wrong_clock_is_reported_and_does_no_harm() {
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
        wrong.becomes_ready().await;
        // The system clock is set at run time.
        let before = wrong.clock.now();
        wrong.clock.set(Timestamp::from_seconds(1_000_000_000));
        assert!(wrong.clock.now().since(before) < Duration::from_secs(20) && wrong.clock.now() >= before);
        assert!(wrong.is_live(&wrong.sign_in("ada", "phone").await.session).await);
    }
}

/// No decision is made before the database's time is known.
#[tokio::test]
async fn a_replica_that_does_not_know_the_time_is_not_ready() {
    let service = Service::start().await;
    let app = sessiond::app::App::new(
        service.store.clone(),
        service.app.keys().clone(),
        sessiond_core::token::access::Issuer::new("https://sessions.example.org"),
        Clock::system(),
    );
    let is_unready = |found: &[NotReady]| found.iter().any(|reason| matches!(reason, NotReady::ClockSkew));
    assert!(is_unready(&app.readiness().await));
    service.store.correct(app.clock()).await.expect("the database tells the time");
    assert!(!is_unready(&app.readiness().await));
}

/// One replica's clock is months ahead, or behind: its sweep deletes nothing, and the other's deletes only what is due
/// by the database's clock.
#[tokio::test]
async fn a_sweep_deletes_nothing_while_the_clocks_differ() {
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
            assert!(matches!(step, SweepStep::Contradicted(_)), "{task:?}: {step:?}");
        }
        let refused = sweeper(&wrong).run_once().await.expect_err("the clocks differ");
        assert!(matches!(refused, SweepError::Clocks(_)), "{refused:?}");
        // A replica that agreed with the database until its clock was set.
        let set = service.replica_wrong_by(0).await;
        set.clock.set(Timestamp::from_micros(set.clock.now().as_micros() + wrong_by));
        sweeper(&set).run_once().await.expect_err("the clocks differ");
    }
    let removed = sweeper(&right).run_once().await.expect("sweeps");
    let sessions: usize = removed.iter().filter(|(kind, _)| *kind == SweepKind::Sessions).map(|(_, rows)| rows).sum();
    assert_eq!(sessions, 1, "what is due by the database's clock");
}

/// A pass recorded in the future, by a wrong clock, does not delay the next one.
#[tokio::test]
async fn a_pass_in_the_future_does_not_delay_the_sweep() {
    let service = Service::start().await;
    let right = service.replica_wrong_by(0).await;
    sweeper(&right).run_once().await.expect("sweeps");
    service.database.run("UPDATE sweeps SET completed_at = now() + interval '130 days'").await;
    for slot in (0..service.database.slots().await.len()).rev() {
        let step = sweeper(&right).step(Task::Users, 1_000, Start::WhenDue).await.expect("steps");
        let is_last = matches!(step, SweepStep::Last(_));
        assert!(is_last == (slot == 0) && (is_last || matches!(step, SweepStep::Taken(_))), "{step:?}");
    }
    let step = sweeper(&right).step(Task::Users, 1_000, Start::WhenDue).await.expect("steps");
    assert_eq!(step, SweepStep::Resting);
}

/// Keys created by a clock that is ahead: a replica that is behind still signs with them.
#[tokio::test]
async fn keys_from_the_future_sign() {
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
