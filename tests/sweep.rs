//! The sweep deletes each kind of row at its time and not before, once, without blocking others.

use std::time::Duration;

use diesel::{
    QueryableByName, sql_query,
    sql_types::{BigInt, Nullable, Text},
};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sessiond::{
    app::{PASS_INTERVAL, Removed, Start, SweepKind, SweepStep, Sweeper},
    config::Listen,
    edge::Server,
    pb::{CreateSessionRequest, RevokeAllSessionsRequest, RevokeAllSessionsResponse},
    store::{Store, Task},
    telemetry::Metrics,
};
use sessiond_core::session::retention::RetentionPeriods;

use crate::{
    binary::{assert_says, sessiond},
    harness::{Service, Wire, bearer, divided::by_next_node, eventually, limits, options, web},
};

const TICK: Duration = Duration::from_micros(1);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn retention() -> RetentionPeriods {
    RetentionPeriods { ended_sessions: DAY * 30, audit: DAY * 400, addresses: DAY * 30 }
}

fn sweeper(service: &Service, retention: RetentionPeriods) -> Sweeper {
    // Its own pool, as a replica has.
    let options = by_next_node(&options(&service.database.url));
    let store = Store::new(&options, Metrics::default()).expect("a good URL");
    Sweeper::new(store, service.clock.clone(), retention, Metrics::default())
}

async fn sweep(service: &Service) -> Vec<Removed> {
    sweeper(service, retention()).run_once().await.expect("sweeps")
}

fn of(removed: &[Removed], kind: SweepKind) -> usize {
    removed.iter().filter(|(other, _)| *other == kind).map(|(_, rows)| rows).sum()
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

async fn count(service: &Service, from: &str) -> i64 {
    let query = format!("SELECT count(*) AS count FROM {from}");
    let rows: Vec<Count> = sql_query(query).load(&mut service.database.connect().await).await.expect("counts");
    rows[0].count
}

async fn revoke_all(service: &Service, user: &str) {
    let request = RevokeAllSessionsRequest { user_id: Some(user.to_owned()), ..RevokeAllSessionsRequest::default() };
    let key = bearer(service.server_key.expose_secret());
    let _: RevokeAllSessionsResponse =
        service.wires.call(Wire::Grpc, "RevokeAllSessions", key, &request).await.expect("ends them");
}

fn lasting(user: &str, ttl: Duration, idle: Duration) -> CreateSessionRequest {
    let millis = |time: Duration| Some(i64::try_from(time.as_millis()).expect("fits"));
    CreateSessionRequest {
        user_id: user.to_owned(),
        expires_in_millis: millis(ttl),
        idle_timeout_millis: millis(idle),
        ..CreateSessionRequest::default()
    }
}

/// However sessions ended, at one moment; they are deleted at one moment.
#[tokio::test]
async fn a_session_is_deleted_thirty_days_after_it_ended() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let fallen = lasting("eve", DAY * 300, DAY * 300);
    service.create_as(Wire::Grpc, &other, fallen).await.expect("signs in");
    for request in [lasting("bob", DAY, DAY * 300), lasting("cy", DAY * 300, DAY)] {
        service.create(Wire::Grpc, request).await.expect("signs in");
    }
    let phone = service.sign_in("ada", "phone").await;
    service.sign_in("dan", "phone").await;
    let live = service.create(Wire::Grpc, lasting("ada", DAY * 300, DAY * 300)).await.expect("signs in");
    service.clock.advance(DAY);
    phone.sign_out().await.expect("signs out");
    revoke_all(&service, "dan").await;
    let now = service.clock.now().as_micros();
    let raise = format!(
        "UPDATE projects SET epoch = epoch + 1, epoch_raised_at = timestamptz 'epoch' + {now} * interval '1 microsecond'
         WHERE id = 'other'"
    );
    service.database.run(&raise).await;

    service.clock.advance(DAY * 30 - TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 0, "just before");
    assert_eq!(count(&service, "sessions").await, 6);
    service.clock.advance(TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 5, "at");
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 0, "once");
    assert!(service.is_live(&live.session.expect("a session").id).await, "what is live stays");

    // Its tokens are still recognised, as ended.
    let again = phone.sign_out().await.expect("signs out");
    assert_eq!(again.already_revoked, Some(true));
}

#[tokio::test]
async fn a_request_may_be_repeated_for_a_day() {
    let service = Service::start().await;
    let request = CreateSessionRequest {
        user_id: "ada".to_owned(),
        request_id: Some("0190b0a0-0000-4000-8000-000000000001".to_owned()),
        ..CreateSessionRequest::default()
    };
    let session = async || {
        let created = service.create(Wire::Rest, request.clone()).await.expect("signs in");
        created.session.expect("a session").id
    };
    let first = session().await;
    service.clock.advance(DAY - TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Requests), 0, "just before");
    assert_eq!(session().await, first);
    service.clock.advance(TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Requests), 1, "at");
    assert_ne!(session().await, first);
}

/// More than one step's worth, in several projects, with recent ones among them.
#[tokio::test]
async fn old_request_ids_are_deleted_in_every_project() {
    let service = Service::start().await;
    let slot = service.slot_of("ada").await;
    let insert = |project: &str, rows: i32, age: Duration| {
        let at = (service.clock.now() - age).as_micros();
        format!(
            "INSERT INTO session_requests (slot, project_id, request_id, session_id, digest, created_at)
             SELECT {slot}, '{project}', gen_random_uuid(), gen_random_uuid(), sha256(''),
                 timestamptz 'epoch' + ({at} - i) * interval '1 microsecond' FROM generate_series(1, {rows}) AS i;"
        )
    };
    let rows = [
        insert("a", 1_500, DAY),
        insert("a", 1_200, HOUR),
        insert("b", 3, DAY),
        insert("c", 1_000, HOUR),
        insert("d", 700, DAY),
    ];
    service.database.run(&rows.concat()).await;
    assert_eq!(of(&sweep(&service).await, SweepKind::Requests), 2_203);
    assert_eq!(count(&service, "session_requests").await, 2_200);
}

#[derive(QueryableByName)]
struct Address {
    #[diesel(sql_type = Nullable<Text>)]
    ip: Option<String>,
}

async fn addresses(service: &Service) -> Vec<Option<String>> {
    let query = "SELECT ip FROM revocations ORDER BY project_id, id";
    let rows: Vec<Address> = sql_query(query).load(&mut service.database.connect().await).await.expect("reads");
    rows.into_iter().map(|row| row.ip).collect()
}

#[tokio::test]
async fn the_audit_log_loses_addresses_after_thirty_days_and_entries_after_four_hundred() {
    let service = Service::start().await;
    for at in ["phone", "laptop"] {
        service.sign_in("ada", at).await.sign_out().await.expect("signs out");
        service.clock.advance(DAY);
    }
    service.database.run("UPDATE revocations SET ip = '192.0.2.7'").await;
    let (address, none) = (Some("192.0.2.7".to_owned()), None);

    service.clock.advance(DAY * 28 - TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Addresses), 0, "just before");
    service.clock.advance(TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Addresses), 1, "at");
    assert_eq!(addresses(&service).await, [none.clone(), address]);
    assert_eq!(of(&sweep(&service).await, SweepKind::Addresses), 0, "once");

    service.clock.advance(DAY * 370 - TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Revocations), 0, "just before");
    service.clock.advance(TICK);
    assert_eq!(of(&sweep(&service).await, SweepKind::Revocations), 1, "at");
    assert_eq!(addresses(&service).await, [none]);
}

/// A verifier must get recent revocations, however short the audit retention is.
#[tokio::test]
async fn revocations_that_still_matter_are_never_deleted() {
    let service = Service::start().await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    let until = (service.clock.now() + DAY * 3).as_micros();
    let late =
        format!("UPDATE revocations SET access_expires_at = timestamptz 'epoch' + {until} * interval '1 microsecond'");
    service.database.run(&late).await;
    let short = sweeper(&service, RetentionPeriods { audit: DAY, ..retention() });

    service.clock.advance(DAY * 3 + HOUR - TICK);
    assert_eq!(of(&short.run_once().await.expect("sweeps"), SweepKind::Revocations), 0, "just before");
    service.clock.advance(TICK);
    assert_eq!(of(&short.run_once().await.expect("sweeps"), SweepKind::Revocations), 1, "at");
}

#[tokio::test]
async fn a_user_is_deleted_after_the_last_session_and_two_days_after_the_last_cut_off() {
    let service = Service::start().await;
    let soon = sweeper(&service, RetentionPeriods { ended_sessions: HOUR, ..retention() });
    let live = service.sign_in("ada", "phone").await;
    service.sign_in("bob", "phone").await.sign_out().await.expect("signs out");
    service.sign_in("cy", "phone").await;
    revoke_all(&service, "cy").await;
    assert_eq!(count(&service, "users").await, 3);

    service.clock.advance(HOUR);
    let removed = soon.run_once().await.expect("sweeps");
    assert_eq!(
        (of(&removed, SweepKind::Sessions), of(&removed, SweepKind::Users)),
        (2, 1),
        "bob, who was never cut off"
    );
    service.clock.advance(DAY * 2 - HOUR - TICK);
    assert_eq!(of(&soon.run_once().await.expect("sweeps"), SweepKind::Users), 0, "just before");
    service.clock.advance(TICK);
    assert_eq!(of(&soon.run_once().await.expect("sweeps"), SweepKind::Users), 1, "at");
    assert!(live.is_signed_in().await && count(&service, "users").await == 1);

    // A new user of this name starts above every earlier cut-off.
    let mut phone = service.sign_in("cy", "phone").await;
    assert_eq!(count(&service, "users WHERE user_id = 'cy' AND epoch > 1").await, 1);
    phone.refresh().await.expect("refreshes");
}

/// A concurrent sign-in holds the user; the sweep neither waits nor deletes the user.
#[tokio::test]
async fn a_user_who_is_signing_in_is_not_deleted() {
    let service = Service::start().await;
    let slot = service.slot_of("ada").await;
    let insert = format!("INSERT INTO users (project_id, user_id, epoch, slot) VALUES ('demo', 'ada', 1, {slot})");
    service.database.run(&insert).await;
    let mut sign_in = service.database.connect().await;
    let lock = format!("BEGIN; SELECT FROM users WHERE slot = {slot} FOR SHARE");
    sign_in.batch_execute(&lock).await.expect("holds the row");
    assert_eq!(of(&sweep(&service).await, SweepKind::Users), 0);
    sign_in.batch_execute("COMMIT").await.expect("lets go");
    assert_eq!(of(&sweep(&service).await, SweepKind::Users), 1);
}

/// A refresh that holds a session may still revive it: here one with a clock far behind does.
#[tokio::test]
async fn a_locked_session_is_not_deleted() {
    let service = Service::start().await;
    service.create(Wire::Grpc, lasting("ada", DAY * 300, DAY)).await.expect("signs in");
    service.clock.advance(DAY * 31);
    let mut refresh = service.database.hold("sessions", "true").await;
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 0, "it is not waited for");
    let used = "UPDATE sessions SET idle_expires_at = expires_at; COMMIT";
    refresh.batch_execute(used).await.expect("refreshes");
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 0, "it is live again");

    refresh.batch_execute("BEGIN; UPDATE sessions SET idle_expires_at = created_at").await.expect("unused after all");
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 0, "not known yet");
    refresh.batch_execute("COMMIT").await.expect("lets go");
    assert_eq!(of(&sweep(&service).await, SweepKind::Sessions), 1);
}

/// Inserts this many sessions of `demo` that ended long ago, one per user, all in one slot.
async fn many_ended(service: &Service, rows: usize) {
    service.create(Wire::Grpc, lasting("0", DAY, DAY)).await.expect("signs in");
    let copies = format!(
        "INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object(
             'id', (overlay(s.id::text PLACING lpad(to_hex(i), 12, '0') FROM 25))::uuid, 'user_id', i::text))).*
         FROM sessions AS s, generate_series(2, {rows}) AS i;
         INSERT INTO users (project_id, user_id, epoch, slot)
             SELECT project_id, i::text, epoch, slot FROM users, generate_series(2, {rows}) AS i"
    );
    service.database.run(&copies).await;
    service.clock.advance(DAY * 31);
}

#[tokio::test]
async fn replicas_that_sweep_at_once_never_take_the_same_step() {
    const ROWS: usize = 5_000;
    let service = Service::start().await;
    many_ended(&service, ROWS).await;
    let replicas: Vec<_> = (0..4).map(|_| sweeper(&service, retention())).collect();
    let work = replicas.iter().map(async |replica| {
        let (mut removed, mut steps, mut busy) = (0, 0, 0);
        loop {
            match replica.step(Task::Sessions, 100, Start::WhenDue).await.expect("steps") {
                SweepStep::Busy => busy += 1,
                SweepStep::Resting => return (removed, steps, busy),
                SweepStep::Taken(some) | SweepStep::Last(some) => {
                    removed += of(&some, SweepKind::Sessions);
                    steps += 1;
                }
                SweepStep::Contradicted(disagreement) => panic!("{disagreement}"),
            }
        }
    });
    let done = futures_util::future::join_all(work).await;
    let sum = |part: fn(&(usize, usize, usize)) -> usize| done.iter().map(part).sum::<usize>();
    assert_eq!(sum(|one| one.0), ROWS, "each once: {done:?}");
    // One more step in each slot, to check that none is left.
    let slots = service.database.slots().await.len();
    assert_eq!(sum(|one| one.1), ROWS / 100 + slots, "no step twice: {done:?}");
    assert_eq!(count(&service, "sessions").await, 0);
    let removed = sweep(&service).await;
    assert_eq!((of(&removed, SweepKind::Sessions), of(&removed, SweepKind::Users)), (0, ROWS));
}

#[tokio::test]
async fn a_task_held_by_another_replica_is_skipped_and_a_finished_one_rests() {
    let service = Service::start().await;
    let sweeper = sweeper(&service, retention());
    let mut other = service.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM sweeps WHERE task = 'sessions' FOR UPDATE").await.expect("takes it");
    let slots = service.database.slots().await.len();
    let step = async |task| sweeper.step(task, 10, Start::WhenDue).await.expect("steps");
    // One step in each slot, the last of which is returned.
    let pass = async |task| {
        for _ in 1..slots {
            assert!(matches!(step(task).await, SweepStep::Taken(_)), "a slot after another");
        }
        step(task).await
    };
    assert_eq!(step(Task::Sessions).await, SweepStep::Busy);
    assert_eq!(pass(Task::Users).await, SweepStep::Last(vec![(SweepKind::Users, 0)]), "another task is free");
    other.batch_execute("COMMIT").await.expect("lets go");
    assert_eq!(pass(Task::Sessions).await, SweepStep::Last(vec![(SweepKind::Sessions, 0)]));

    service.clock.advance(PASS_INTERVAL - TICK);
    assert_eq!(step(Task::Sessions).await, SweepStep::Resting, "just before");
    service.clock.advance(TICK);
    assert_eq!(pass(Task::Sessions).await, SweepStep::Last(vec![(SweepKind::Sessions, 0)]), "at");
}

#[tokio::test]
async fn keys_are_deleted_when_none_of_their_tokens_can_matter() {
    let service = Service::start().await;
    let now = service.clock.now().as_micros();
    let retired = format!("timestamptz 'epoch' + {now} * interval '1 microsecond'");
    let copy = |table: &str| {
        format!(
            "INSERT INTO {table} SELECT (jsonb_populate_record(k, jsonb_build_object(
                 'id', gen_random_uuid(), 'retired_at', {retired}))).* FROM {table} AS k;"
        )
    };
    let revoke = format!("UPDATE server_keys SET revoked_at = {retired}");
    service.database.run(&[copy("signing_keys"), copy("refresh_keys"), revoke].concat()).await;

    let keys = |removed: Vec<Removed>| {
        [SweepKind::SigningKeys, SweepKind::RefreshKeys, SweepKind::ServerKeys].map(|kind| of(&removed, kind))
    };
    service.clock.advance(DAY * 368 - TICK);
    assert_eq!(keys(sweep(&service).await), [0, 0, 0]);
    service.clock.advance(TICK);
    assert_eq!(keys(sweep(&service).await), [1, 1, 0]);
    service.clock.advance(DAY * 32);
    assert_eq!(keys(sweep(&service).await), [0, 0, 1]);
    assert_eq!(count(&service, "signing_keys").await, 1, "the one that signs stays");
}

/// A server sweeps in the background, and reports it.
#[tokio::test]
async fn a_server_sweeps_in_the_background() {
    let service = Service::start().await;
    many_ended(&service, 2_500).await;
    let metrics = Metrics::default();
    let store = Store::new(&options(&service.database.url), metrics.clone()).expect("a good URL");
    let sweeper = Sweeper::new(store, service.clock.clone(), retention(), metrics.clone());
    let any = "127.0.0.1:0".parse().expect("an address");
    let listen = Listen { listen: any, metrics_listen: any, proxy_listen: None };
    let server = Server::bind(service.app.clone(), &listen, &web(), limits(), metrics.clone(), |_| axum::Router::new())
        .await
        .expect("binds");
    let server = tokio::spawn(server.sweeping(sweeper).run(std::future::pending()));

    eventually("all is swept", async || {
        count(&service, "sessions").await + count(&service, "users").await == 0
            && count(&service, "sweeps WHERE completed_at IS NULL").await == 0
    })
    .await;
    let page = metrics.render();
    for line in ["sessiond_swept_rows_total{kind=\"sessions\"} 2500", "sessiond_swept_rows_total{kind=\"users\"} 2500"]
    {
        assert!(page.contains(line), "{line} in {page}");
    }
    let completed =
        format!("sessiond_sweep_completed_timestamp_seconds{{task=\"sessions\"}} {}", service.clock.now().as_seconds());
    assert!(page.contains(&completed), "{completed} in {page}");
    assert!(page.contains("sessiond_sweep_step_duration_seconds_count{task=\"sessions\"}"), "{page}");
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sweeps_and_reads_the_audit_by_hand() {
    let service = Service::start().await;
    service.clock.advance(Duration::from_secs(1));
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("bob", "laptop").await);
    service.clock.advance(Duration::from_secs(1));
    phone.sign_out().await.expect("signs out");
    service.clock.advance(Duration::from_secs(1));
    revoke_all(&service, "bob").await;
    service.database.run("UPDATE revocations SET ip = '192.0.2.7' WHERE session_id IS NOT NULL").await;
    service.database.run("UPDATE revocations SET ip = NULL WHERE session_id IS NULL").await;

    let env = [("DATABASE_URL", service.database.url.as_str())];
    let text = sessiond(&["audit", "--project", "demo"], &env);
    let text = String::from_utf8(text.stdout).expect("UTF-8");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let (session, total) = (phone.session.as_str(), lines.len());
    assert_eq!(
        (lines[total - 1][1], &lines[total - 1][4..]),
        ("REVOKED_ALL", &["all", "bob", "-", "-"][..]),
        "newest last"
    );
    assert_eq!(lines[total - 2][1..], ["SIGNED_OUT", "holder", "session", session, "ada", "192.0.2.7", "-"]);
    // The entries before are of the sign-ins and the project's keys.
    assert!(lines[1..=3].iter().all(|line| line[1..3] == ["KEY_CREATED", "operator"]), "{text}");
    let mut keys: Vec<String> = lines[1..=3].iter().map(|line| line[3..5].join(" ")).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["refresh key", "server key", "signing key"]);

    let json = sessiond(&["audit", "--project", "demo", "--user", "ada", "--kind", "SIGNED_OUT", "--json"], &env);
    let json: Vec<Value> =
        String::from_utf8_lossy(&json.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(json.len(), 1);
    assert_eq!(
        (&json[0]["actor"], &json[0]["actor_id"], &json[0]["user_id"]),
        (&"holder".into(), &Value::Null, &"ada".into())
    );
    assert_eq!(json[0]["session_id"], session);

    // The binary uses the real clock.
    let aged = "UPDATE sessions SET revoked_at = now() - interval '31 days' WHERE revoked_at IS NOT NULL";
    service.database.run(aged).await;
    assert_says(&sessiond(&["sweep"], &env), true, "deleted 1 sessions\n");
    assert_says(&sessiond(&["sweep"], &env), true, "deleted 0 sessions\n");
    assert_says(&sessiond(&["sweep", "--ended-session-retention", "1m"], &env), false, "must be 1h to");
    assert_eq!(count(&service, "sessions").await, 1, "{}", laptop.session);
}
