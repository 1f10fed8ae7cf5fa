//! No acknowledged write is lost with a primary, and no deposed primary is trusted: with a real pair of servers in
//! synchronous replication.

use std::time::{Duration, Instant};

use dev_postgres::Mode;
use futures_util::future::{BoxFuture, join_all};
use http::{Method, StatusCode};
use secrecy::ExposeSecret as _;
use sessiond::{
    app::{CONNECTIONS, ServerKeyRevoked},
    pb::{CreateSessionRequest, ListSessionsRequest, RevokeAllSessionsRequest},
    store::{Options, RequiredDurability, Role},
};
use sessiond_core::{
    clock,
    id::{KeyId, ProjectId},
};
use tonic::Code;

use crate::{
    assert_refused,
    harness::{
        Device, PROJECT, Refused, Service, Wire, bearer, database::Database, eventually, hasty, header, options,
        pair::Pair, refresh_token,
    },
    verify::{Route, check_request},
};

const UNAVAILABLE: &str = "STORE_UNAVAILABLE";

/// Longer than any answer may be stale, with leeway for a busy machine.
const BOUND: Duration = Duration::from_secs(8);

/// Operations do not time out by themselves: the test ends their wait.
fn long_timeout(url: &str) -> Options {
    Options { required_durability: RequiredDurability::Durable, ..options(url) }
}

fn durable_options(url: &str) -> Options {
    Options { required_durability: RequiredDurability::Durable, ..hasty(url) }
}

/// After a cancelled wait Postgres commits locally with a warning; after a terminated one the retry finds the row.
/// Neither is an acknowledgement, and neither is the row of the first attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_whose_wait_was_cut_short_fails_and_so_does_its_retry() {
    let mut pair = Pair::start("cut-short").await;
    let service = Service::start_by(pair.database(), &long_timeout(&pair.database().url)).await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    pair.stop_standby().await;

    let cancelled = async |device: &Device<'_>| {
        let (answer, ()) = tokio::join!(device.sign_out(), pair.signal_waiting("pg_cancel_backend"));
        assert_eq!(answer.expect_err("it may be lost with the primary").reason, UNAVAILABLE);
    };
    cancelled(&phone).await;
    assert!(!phone.is_signed_in().await, "Postgres has committed it all the same");
    // Each retry waits for its own commit.
    cancelled(&phone).await;
    cancelled(&phone).await;

    let terminated = async {
        pair.signal_waiting("pg_terminate_backend").await;
        // The server retries by itself, and the retry waits.
        pair.signal_waiting("pg_cancel_backend").await;
    };
    let (answer, ()) = tokio::join!(laptop.sign_out(), terminated);
    assert_eq!(answer.expect_err("it may be lost with the primary").reason, UNAVAILABLE);
    cancelled(&laptop).await;

    pair.start_standby().await;
    for device in [&phone, &laptop] {
        let answer = device.sign_out().await.expect("the standby has it");
        assert_eq!(answer.already_revoked, Some(true));
    }
    // The primary is lost: every acknowledged write survives.
    pair.primary.stop_server(Mode::Immediate).await.expect("stops");
    pair.promote().await;
    for device in [&phone, &laptop] {
        let ended = format!("SELECT revoked_at IS NOT NULL FROM sessions WHERE id = '{}'", device.session);
        assert_eq!(pair.standby_database().lines(&ended).await, ["t"]);
    }
    drop(service);
    pair.stop().await;
}

/// Only the warning distinguishes such a commit. A role or a database may be configured to send none.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_is_noticed_without_warnings() {
    let mut pair = Pair::start("quiet").await;
    pair.database().run("ALTER DATABASE postgres SET client_min_messages = 'error'").await;
    let service = Service::start_by(pair.database(), &long_timeout(&pair.database().url)).await;
    let phone = service.sign_in("ada", "phone").await;
    pair.stop_standby().await;
    let (answer, ()) = tokio::join!(phone.sign_out(), pair.signal_waiting("pg_cancel_backend"));
    assert_eq!(answer.expect_err("it may be lost with the primary").reason, UNAVAILABLE);
    drop(service);
    pair.stop().await;
}

/// A restarted primary shows writes that it had not replicated.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_primary_a_repeated_sign_out_waits_for_the_standby() {
    let mut pair = Pair::start("restart").await;
    let service = Service::start_by(pair.database(), &durable_options(&pair.database().url)).await;
    let phone = service.sign_in("ada", "phone").await;
    pair.stop_standby().await;
    assert_refused!(phone.sign_out(), UNAVAILABLE);
    pair.primary.stop_server(Mode::Immediate).await.expect("stops");
    pair.primary.start_server().await.expect("starts again");
    assert!(!phone.is_signed_in().await, "it was on the disk");
    assert_refused!(phone.sign_out(), UNAVAILABLE);
    pair.start_standby().await;
    let answer = phone.sign_out().await.expect("the standby has it");
    assert_eq!(answer.already_revoked, Some(true));
    drop(service);
    pair.stop().await;
}

/// Every answer that acknowledges an earlier write: sign-outs, repeats by `request_id`, the same successor, cut-offs
/// and erasures with nothing left to do, keys already revoked.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_rests_on_an_earlier_write_waits_for_the_standby() {
    let mut pair = Pair::start("repeats").await;
    let service = &Service::start_by(pair.database(), &durable_options(&pair.database().url)).await;
    let admin = &bearer(service.admin_key().await.expose_secret());
    let project = || ProjectId::parse(PROJECT).expect("a name");
    let gone = &service.sign_in("ada", "phone").await;
    gone.sign_out().await.expect("signs out");
    let rotated = &service.sign_in("bob", "phone").await;
    rotated.refresh_without_keeping().await.expect("refreshes");
    service.sign_in("eve", "phone").await;
    service.erase(Wire::Grpc, admin.clone(), "eve").await.expect("erases");
    let opening =
        &CreateSessionRequest { user_id: "cyd".to_owned(), request_id: Some(id()), ..CreateSessionRequest::default() };
    service.create(Wire::Grpc, opening.clone()).await.expect("signs in");
    let cut_off = &RevokeAllSessionsRequest {
        user_id: Some("dot".to_owned()),
        request_id: Some(id()),
        ..RevokeAllSessionsRequest::default()
    };
    service.sign_in("dot", "phone").await;
    service.revoke_all(Wire::Grpc, service.key(), cut_off.clone()).await.expect("ends all");
    let unknown_user =
        &RevokeAllSessionsRequest { user_id: Some("nobody".to_owned()), ..RevokeAllSessionsRequest::default() };
    let (key, _) = service.app.server_key_create(project(), Role::Service).await.expect("makes a key");
    service.app.server_key_revoke(key).await.expect("revokes it");

    let asks = || -> Vec<(&str, BoxFuture<'_, bool>)> {
        vec![
            ("sign-out", Box::pin(async { is_ok(gone.sign_out().await) })),
            (
                "sign-out by refresh token",
                Box::pin(async { is_ok(service.revoke_current(Wire::Grpc, refresh_token(&gone.refresh_token)).await) }),
            ),
            (
                "RFC 7009",
                Box::pin(async {
                    let form = format!("client_id={PROJECT}&token={}", gone.access_token);
                    let typed = header("content-type", "application/x-www-form-urlencoded");
                    let response = service.wires.http(Method::POST, "/oauth2/revoke", typed, form).await;
                    is_taken(response.status())
                }),
            ),
            (
                "by id",
                Box::pin(async { is_ok(service.revoke_session(Wire::Grpc, service.key(), &gone.session, None).await) }),
            ),
            ("same successor", Box::pin(async { is_ok(rotated.refresh_without_keeping().await) })),
            ("repeated create", Box::pin(async { is_ok(service.create(Wire::Grpc, opening.clone()).await) })),
            (
                "repeated cut-off",
                Box::pin(async { is_ok(service.revoke_all(Wire::Grpc, service.key(), cut_off.clone()).await) }),
            ),
            (
                "cut-off of nobody",
                Box::pin(async { is_ok(service.revoke_all(Wire::Grpc, service.key(), unknown_user.clone()).await) }),
            ),
            ("repeated erasure", Box::pin(async { is_ok(service.erase(Wire::Grpc, admin.clone(), "eve").await) })),
            ("revoked key", Box::pin(async { is_revoked_before(service, key).await })),
        ]
    };
    pair.stop_standby().await;
    let (names, answers): (Vec<_>, Vec<_>) = asks().into_iter().unzip();
    let early: Vec<_> = names.iter().zip(join_all(answers).await).filter(|(_, is_answered)| *is_answered).collect();
    assert!(early.is_empty(), "acknowledged without the standby: {early:?}");
    pair.start_standby().await;
    for (name, answer) in asks() {
        assert!(answer.await, "{name}: the standby is back");
    }
    pair.stop().await;
}

fn id() -> String {
    clock::new_uuid().to_string()
}

fn is_ok<T>(answer: Result<T, Refused>) -> bool {
    match answer {
        Ok(_) => true,
        Err(refused) => {
            assert_eq!(refused.reason, UNAVAILABLE);
            false
        }
    }
}

fn is_taken(status: StatusCode) -> bool {
    assert!([StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE].contains(&status), "{status}");
    status == StatusCode::OK
}

async fn is_revoked_before(service: &Service, key: KeyId) -> bool {
    matches!(service.app.server_key_revoke(key).await, Ok(ServerKeyRevoked::Before))
}

/// A server process that waits for a standby does not notice that its client has disconnected. It still counts as a
/// connection, so that other applications are not locked out.
#[tokio::test(flavor = "multi_thread")]
async fn connections_stay_within_their_maximum_while_every_commit_waits() {
    let mut pair = Pair::start("crowd").await;
    let options = durable_options(&pair.database().url);
    let max = options.connections_max + CONNECTIONS;
    let service = Service::start_by(pair.database(), &options).await;
    let mut devices = vec![];
    for _ in 0..100 {
        devices.push(service.sign_in("ada", "phone").await);
    }
    pair.stop_standby().await;
    let counted = async {
        let (database, mut most) = (pair.database(), 0);
        let asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sessiond'";
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(12) {
            let count = database.lines(asked).await[0].parse::<usize>().expect("a number");
            most = most.max(count);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    };
    let sign_outs = async {
        for _ in 0..5 {
            let answers = join_all(devices.iter().map(Device::sign_out)).await;
            assert!(answers.iter().all(Result::is_err), "acknowledged without the standby");
        }
    };
    let (most, ()) = tokio::join!(counted, sign_outs);
    assert!(most <= max, "{most} connections, of {max} at the most");
    pair.start_standby().await;
    eventually("signs out", async || devices[0].sign_out().await.is_ok()).await;
    drop(service);
    pair.stop().await;
}

/// The standby is promoted and the old primary stays up, as when Patroni dies on one machine. A replica that knows both
/// hosts moves to the new one, and does not go back.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_knows_both_hosts_moves_to_the_new_primary() {
    let mut pair = Pair::start("moves").await;
    let first = Service::start_on(pair.database()).await;
    let mover = first.replica_by(&pair.both()).await;
    let phone = first.sign_in("ada", "phone").await;
    assert_eq!(verify(&mover, &phone).await, StatusCode::OK);
    pair.caught_up().await;

    pair.promote().await;
    let promoted = Instant::now();
    let other = first.replica_by(&pair.standby_database().url).await;
    let ended = other.revoke_current(Wire::Grpc, phone.bearer()).await.expect("signs out at the new primary");
    assert_eq!(ended.already_revoked, None);
    eventually("the replica refuses the token by its own knowledge", async || {
        let status = verify(&mover, &phone).await;
        assert!(status != StatusCode::OK || promoted.elapsed() < BOUND, "an old primary is believed");
        status == StatusCode::UNAUTHORIZED
    })
    .await;
    let laptop = mover.sign_in("ada", "laptop").await;
    let asked = format!("SELECT count(*) FROM sessions WHERE id = '{}'", laptop.session);
    assert_eq!(pair.standby_database().lines(&asked).await, ["1"], "written to the new primary");
    eventually("it is ready", async || mover.readyz().await.0 == StatusCode::OK).await;

    // The new primary is down, and the old one still claims to be primary.
    pair.standby.stop_server(Mode::Fast).await.expect("stops");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert_refused!(mover.refresh(Wire::Grpc, refresh_token(&laptop.refresh_token)), UNAVAILABLE);
        assert_refused!(mover.refresh(Wire::Grpc, refresh_token(&phone.refresh_token)), UNAVAILABLE);
    }
    pair.standby.start_server().await.expect("starts again");
    eventually("it works on the new primary", async || mover.revoke_current(Wire::Grpc, laptop.bearer()).await.is_ok())
        .await;
    drop((first, mover, other));
    pair.stop().await;
}

/// A replica that reaches only the deposed primary reads stale data there. It reports that instead of answering.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_reaches_only_a_deposed_primary_answers_nothing() {
    let pair = Pair::start("stays").await;
    let stays = Service::start_on(pair.database()).await;
    let phone = stays.sign_in("ada", "phone").await;
    assert_eq!(verify(&stays, &phone).await, StatusCode::OK);
    eventually("it is ready", async || stays.readyz().await.0 == StatusCode::OK).await;

    pair.promote().await;
    let promoted = Instant::now();
    let other = stays.replica_by(&pair.standby_database().url).await;
    other.revoke_current(Wire::Grpc, phone.bearer()).await.expect("signs out at the new primary");
    while verify(&stays, &phone).await == StatusCode::OK {
        assert!(promoted.elapsed() < BOUND, "an old primary is believed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..3 {
        assert_eq!(verify(&stays, &phone).await, StatusCode::SERVICE_UNAVAILABLE);
        let asked = check_request(Route::Envoy, Some(PROJECT), &phone.bearer());
        assert_eq!(stays.check(asked).await.expect_err("cannot decide").code(), Code::Unavailable);
        for token in [&phone.access_token, &phone.refresh_token] {
            assert_refused!(stays.introspect(Wire::Grpc, stays.key(), token), UNAVAILABLE);
            assert_refused!(stays.introspect_batch(Wire::Grpc, stays.key(), vec![token.clone()]), UNAVAILABLE);
            let secret = stays.server_key.expose_secret();
            let form = format!("client_id={PROJECT}&client_secret={secret}&token={token}");
            let typed = header("content-type", "application/x-www-form-urlencoded");
            let response = stays.wires.http(Method::POST, "/oauth2/introspect", typed, form).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_refused!(stays.current(Wire::Grpc, phone.bearer()), UNAVAILABLE);
        assert_refused!(stays.list(Wire::Grpc, phone.bearer(), ListSessionsRequest::default()), UNAVAILABLE);
        assert_refused!(stays.list(Wire::Grpc, stays.key(), ListSessionsRequest::default()), UNAVAILABLE);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    eventually("it says why", async || says(&stays, "the feed of revocations is too old").await).await;
    assert_eq!(stays.metric("sessiond_not_ready{condition=\"feed\"}").await, 1);
    drop((stays, other));
    pair.stop().await;
}

async fn verify(service: &Service, device: &Device<'_>) -> StatusCode {
    let path = format!("/projects/{PROJECT}/auth/verify");
    service.wires.http(Method::GET, &path, device.bearer(), "").await.status()
}

/// Whether `/readyz` fails for this reason.
async fn says(service: &Service, why: &str) -> bool {
    let (status, reasons) = service.readyz().await;
    status == StatusCode::SERVICE_UNAVAILABLE && reasons.contains(why)
}

/// The server's configuration is reloaded while connections are open: they keep their settings.
#[tokio::test(flavor = "multi_thread")]
async fn turning_synchronous_commit_off_changes_none_of_our_connections() {
    let mut pair = Pair::start("reload").await;
    let service = Service::start_by(pair.database(), &durable_options(&pair.database().url)).await;
    let phone = service.sign_in("ada", "phone").await;
    for weaker in ["off", "local"] {
        pair.database().run(&format!("ALTER SYSTEM SET synchronous_commit = '{weaker}'")).await;
        pair.database().run("SELECT pg_reload_conf()").await;
        pair.stop_standby().await;
        // Both the open connections, and new ones.
        for _ in 0..3 {
            assert_refused!(phone.sign_out(), UNAVAILABLE);
        }
        pair.start_standby().await;
        phone.sign_out().await.expect("signs out");
    }
    eventually("it is ready", async || service.readyz().await.0 == StatusCode::OK).await;
    drop(service);
    pair.stop().await;
}

/// Settings that no connection can override are checked with every heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn while_fsync_is_off_nothing_is_acknowledged_and_the_replica_is_not_ready() {
    let pair = Pair::start("fsync").await;
    let service = Service::start_by(pair.database(), &durable_options(&pair.database().url)).await;
    let unsafely = service.replica_by(&pair.database().url).await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let turn = async |to: &str| {
        pair.database().run(&format!("ALTER SYSTEM SET fsync = {to}")).await;
        pair.database().run("SELECT pg_reload_conf()").await;
    };
    turn("off").await;
    eventually("it is not ready", async || says(&service, "the database has fsync off").await).await;
    assert_refused!(phone.sign_out(), UNAVAILABLE);
    assert_refused!(phone.refresh_without_keeping(), UNAVAILABLE);
    unsafely.revoke_current(Wire::Grpc, laptop.bearer()).await.expect("allowed by the flag");

    turn("on").await;
    eventually("it is ready again", async || service.readyz().await.0 == StatusCode::OK).await;
    phone.sign_out().await.expect("signs out");
    drop((service, unsafely));
    pair.stop().await;
}

/// The role may open fewer connections than the pool: callers wait for a free one.
#[tokio::test(flavor = "multi_thread")]
async fn callers_wait_for_a_connection_where_the_pool_cannot_grow() {
    let database = Database::create().await;
    let role = format!("narrow_{}", clock::new_uuid().simple());
    // Of eight, four for the feed and two for probing leave two.
    let sql =
        format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 6; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}");
    database.run(&sql).await;
    let narrow = Database { url: database.url.replacen("postgres@", &format!("{role}@"), 1) };
    let service = Service::start_on(narrow).await;
    let devices = join_all((0..60).map(|_| service.sign_in("ada", "phone"))).await;
    for _ in 0..3 {
        let answers = join_all(devices.iter().map(Device::refresh_without_keeping)).await;
        let refused: Vec<_> = answers.into_iter().filter_map(Result::err).map(|refused| refused.reason).collect();
        assert!(refused.is_empty(), "{} of {} were refused: {refused:?}", refused.len(), devices.len());
    }
    let answers = join_all(devices.iter().map(Device::sign_out)).await;
    assert!(answers.iter().all(Result::is_ok));
    drop(service);
    database.run(&format!("DROP OWNED BY {role}")).await;
    let _ = database;
}
