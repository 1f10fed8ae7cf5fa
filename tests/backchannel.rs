//! Back-channel delivery: each endpoint gets each revocation, until it has accepted it, and nothing that was rolled
//! back.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sessiond::{
    app::{Deliverer, LOST_AFTER, SweepKind as Swept, Sweeper},
    config::Listen,
    edge::Server,
    store::{DeliveryClaim, DueDelivery, EndpointPosition, Revocation, Store},
    telemetry::Metrics,
};
use sessiond_core::{
    id::ProjectId,
    session::{
        EndedBy, RevokeReason, backchannel::DELIVERY_TTL, backchannel::EndpointKind, backchannel::RetryDecision,
        retention::RetentionPeriods,
    },
};

use crate::{
    assert_refused,
    binary::{assert_says, sessiond},
    harness::{
        Device, ISSUER, PROJECT, Service, Wire, bearer, eventually, limits,
        receiver::{Delivery, NAME, Receiver, Reply, Worker},
        web,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LOGOUT: &str = "http://schemas.openid.net/event/backchannel-logout";
const REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";

/// Deliveries by state and last error: `waiting`, `done`, `dead`.
async fn states(service: &Service) -> Vec<String> {
    let query =
        "SELECT CASE WHEN due_at IS NOT NULL THEN 'waiting' WHEN dead_at IS NOT NULL THEN 'dead' ELSE 'done' END
             || coalesce(' ' || last_error, '') FROM backchannel_deliveries ORDER BY 1";
    service.database.lines(query).await
}

async fn until_states(service: &Service, expected: &[&str]) {
    let what = format!("{expected:?}");
    eventually(&what, async || states(service).await == expected).await;
}

async fn until_delivered(receiver: &Receiver, count: usize) -> Vec<Delivery> {
    eventually(&format!("{count} deliveries"), async || receiver.deliveries().len() >= count).await;
    let deliveries = receiver.deliveries();
    assert_eq!(deliveries.len(), count, "and not more often");
    deliveries
}

fn issuer() -> String {
    format!("{ISSUER}/projects/{PROJECT}")
}

/// However the session is revoked, both kinds of endpoint are notified, each in its own format.
#[tokio::test]
async fn each_revocation_is_delivered_in_each_endpoints_format() {
    for wire in Wire::ALL {
        let (service, receiver) = (Service::start().await, Receiver::start().await);
        receiver.register(&service.app, EndpointKind::Logout, "/logout?from=sessiond").await;
        receiver.register(&service.app, EndpointKind::Caep, "/events").await;
        let worker = Worker::start(&service.app, receiver.outbound());
        let phone = service.sign_in("ada", "phone").await;
        service.revoke_current(wire, phone.bearer()).await.expect("signs out");

        let mut deliveries = until_delivered(&receiver, 2).await;
        deliveries.sort_by_key(|deliveries| deliveries.path.clone());
        let [event, logout] = deliveries.as_slice() else { panic!("two") };
        assert_eq!((logout.path.as_str(), event.path.as_str()), ("/logout?from=sessiond", "/events"));
        assert_eq!(logout.header("content-type"), Some("application/x-www-form-urlencoded"));
        assert_eq!(event.header("content-type"), Some("application/secevent+jwt"));
        assert_eq!(event.header("accept"), Some("application/json"));
        assert_eq!(logout.header("host"), Some(format!("{NAME}:{}", receiver.port).as_str()));
        assert_eq!(logout.header("cookie"), None);

        let now = service.clock.now().as_seconds();
        let claims = service.verified(logout, "logout+jwt").await;
        let expected = json!({
            "iss": issuer(), "aud": "the-shop", "iat": now, "exp": now + 120, "jti": claims["jti"], "sub": "ada",
            "sid": phone.session, "events": { LOGOUT: {} },
        });
        assert_eq!(claims, expected);
        let claims = service.verified(event, "secevent+jwt").await;
        let subject = json!({
            "format": "complex",
            "session": { "format": "opaque", "id": phone.session },
            "user": { "format": "iss_sub", "iss": issuer(), "sub": "ada" },
        });
        let happened = json!({
            "event_timestamp": now, "initiating_entity": "user", "reason_admin": { "en": "signed out" },
        });
        let expected = json!({
            "iss": issuer(), "aud": "the-shop", "iat": now, "jti": claims["jti"], "txn": claims["txn"], "sub_id": subject,
            "events": { REVOKED: happened },
        });
        assert_eq!(claims, expected);
        let line = service.database.lines("SELECT id FROM revocations").await;
        assert_eq!(line, [claims["txn"].as_str().expect("a txn")], "all messages about one revocation share a txn");

        // Neither token can be used elsewhere.
        for token in [logout.token(), event.token()] {
            assert_refused!(service.current(wire, bearer(token)), "UNPARSABLE_ACCESS_TOKEN");
            assert_refused!(service.revoke_current(wire, bearer(token)), "UNPARSABLE_ACCESS_TOKEN");
        }
        until_states(&service, &["done", "done"]).await;
        let names = service.database.lines("SELECT count(user_id) FROM backchannel_deliveries").await;
        assert_eq!(names, ["0"], "whom it was about is not kept");
        for kind in ["logout", "caep"] {
            let delivered = format!("sessiond_backchannel_attempts_total{{kind=\"{kind}\",outcome=\"delivered\"}}");
            assert_eq!(worker.metric(&delivered), 1);
        }
    }
}

#[tokio::test]
async fn a_receiver_that_fails_twice_gets_a_retry_with_the_same_id() {
    for kind in EndpointKind::ALL {
        let (service, receiver) = (Service::start().await, Receiver::start().await);
        receiver.register(&service.app, kind, "/").await;
        receiver.reply_with([Reply::Status(500, "", ""), Reply::Status(503, "retry-after: 30\r\n", "no")]);
        let worker = Worker::start(&service.app, receiver.outbound());
        let phone = service.sign_in("ada", "phone").await;
        phone.sign_out().await.expect("signs out");

        until_states(&service, &["waiting answered 500"]).await;
        assert_eq!(receiver.deliveries().len(), 1);
        service.clock.advance(SECOND);
        until_states(&service, &["waiting answered 503"]).await;
        // Doubling the delay would give two seconds; the receiver asked for half a minute.
        let due = service
            .database
            .lines("SELECT floor(extract(epoch FROM due_at))::bigint FROM backchannel_deliveries")
            .await;
        assert_eq!(due[0].parse::<i64>().expect("seconds"), (service.clock.now() + SECOND * 30).as_seconds());
        service.clock.advance(SECOND * 30);
        until_states(&service, &["done"]).await;

        let deliveries = until_delivered(&receiver, 3).await;
        let ids: Vec<_> = deliveries.iter().map(Delivery::jti).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let issued: Vec<_> =
            deliveries.iter().map(|deliveries| deliveries.claims()["iat"].as_i64().expect("a time")).collect();
        assert_eq!((issued[1] - issued[0], issued[2] - issued[1]), (1, 30), "each attempt has a token of its own");
        let typ = if kind == EndpointKind::Logout { "logout+jwt" } else { "secevent+jwt" };
        for deliveries in &deliveries {
            service.verified(deliveries, typ).await;
        }
        let name = kind.as_str();
        let count = |outcome| {
            worker.metric(&format!("sessiond_backchannel_attempts_total{{kind=\"{name}\",outcome=\"{outcome}\"}}"))
        };
        assert_eq!((count("delivered"), count("retried"), count("dead")), (1, 2, 0));
    }
}

/// An endpoint that hangs does not block the other, however many deliveries it has, and times out after five seconds.
#[tokio::test]
async fn an_endpoint_that_hangs_times_out_and_blocks_no_other() {
    let (service, slow, quick) = (Service::start().await, Receiver::start().await, Receiver::start().await);
    slow.register(&service.app, EndpointKind::Logout, "/").await;
    slow.reply_with(std::iter::repeat_n(Reply::Hang, 1_000));
    // More than may be in progress in all.
    for at in 0..70 {
        service.sign_in(&format!("user-{at}"), "phone").await.sign_out().await.expect("signs out");
    }
    quick.register(&service.app, EndpointKind::Logout, "/").await;
    let phone = service.sign_in("ada", "phone").await;
    let worker = Worker::start(&service.app, slow.outbound());
    eventually("the limit per endpoint", async || slow.deliveries().len() == 8).await;
    let pending = "sessiond_backchannel_pending{kind=\"logout\"}";
    eventually("what waits is counted", async || worker.metric(pending) == 70).await;
    phone.sign_out().await.expect("signs out");
    eventually("the other gets its delivery", async || quick.deliveries().len() == 1).await;
    let late = "waiting no answer in time";
    assert!(!states(&service).await.contains(&late.to_owned()), "and did not wait");
    assert_eq!(slow.deliveries().len(), 8);

    eventually("it is let go", async || states(&service).await.contains(&late.to_owned())).await;
    assert!(worker.metric("sessiond_backchannel_attempt_duration_seconds_count{kind=\"logout\"}") > 1);
}

#[tokio::test]
async fn redirects_are_not_followed_and_endless_responses_are_cut_off() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/here").await;
    receiver.reply_with([Reply::Status(307, "location: /there\r\n", ""), Reply::Endless]);
    let _worker = Worker::start(&service.app, receiver.outbound());
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    until_states(&service, &["waiting answered 307"]).await;
    service.clock.advance(SECOND);
    until_states(&service, &["done"]).await;
    let deliveries = until_delivered(&receiver, 2).await;
    assert!(deliveries.iter().all(|deliveries| deliveries.path == "/here"));
    // Unread bytes stay in the socket buffers of both sides: some megabytes at most.
    let poured = receiver.poured.load(Ordering::SeqCst);
    assert!(poured < 32 * 1024 * 1024, "{poured} bytes");
    eventually("the connection is closed", async || {
        let before = receiver.poured.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        receiver.poured.load(Ordering::SeqCst) == before
    })
    .await;
}

/// A name may resolve differently by the time it is used: the address at that time counts, and it is resolved once.
#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_not_called() {
    let answers: [&[&str]; 5] =
        [&["127.0.0.1"], &["8.8.8.8", "127.0.0.1"], &["::ffff:127.0.0.1"], &["169.254.169.254"], &["64:ff9b::7f00:1"]];
    for answer in answers {
        let (service, receiver) = (Service::start().await, Receiver::start().await);
        receiver.register(&service.app, EndpointKind::Logout, "/").await;
        let addresses: Vec<IpAddr> = answer.iter().map(|one| one.parse().expect("an address")).collect();
        let _worker = Worker::start(&service.app, receiver.outbound_to(&[], move |_| addresses.clone()));
        service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
        until_states(&service, &["waiting the name leads to a private address"]).await;
        assert_eq!(receiver.connections.load(Ordering::SeqCst), 0, "{answer:?}");
    }

    // A resolver that answers with a public address first and a private one afterwards.
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let rebinding = move |_: &str| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        vec![if first { "127.0.0.1" } else { "127.0.0.2" }.parse().expect("an address")]
    };
    let _worker = Worker::start(&service.app, receiver.outbound_to(&["127.0.0.1/32"], rebinding));
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    until_states(&service, &["done"]).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    until_states(&service, &["done", "waiting the name leads to a private address"]).await;
}

#[tokio::test]
async fn only_the_right_certificate_is_trusted() {
    let (service, receiver, stranger) =
        (Service::start().await, Receiver::start().await, Receiver::start_untrusted().await);
    receiver.register(&service.app, EndpointKind::Caep, "/").await;
    let _worker = Worker::start(&service.app, stranger.outbound());
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    until_states(&service, &["waiting no trusted certificate, or no TLS"]).await;
    assert!(receiver.deliveries().is_empty());
}

#[tokio::test]
async fn a_removed_endpoint_gets_nothing_more() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    let endpoint = receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    assert_eq!(states(&service).await, ["waiting"]);
    assert!(!service.app.endpoint_remove(project.clone(), endpoint).await.expect("removes"));
    assert!(service.app.endpoint_remove(project.clone(), endpoint).await.expect("removes"), "twice is fine");

    let _worker = Worker::start(&service.app, receiver.outbound());
    until_states(&service, &["dead the endpoint was removed"]).await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    assert_eq!(states(&service).await, ["dead the endpoint was removed"], "nothing is queued for it");
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 0);
    let delivery = service.app.deliveries(project.clone(), 10).await.expect("lists")[0].id;
    let refused = service.app.delivery_retry(project, delivery).await.expect_err("no endpoint").to_string();
    assert!(refused.contains("was removed"), "{refused}");
}

#[tokio::test]
async fn two_replicas_deliver_a_hundred_revocations_once_each() {
    const ENDS: usize = 100;
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    receiver.register(&service.app, EndpointKind::Caep, "/").await;
    let replica = service.operator();
    let workers = [Worker::start(&service.app, receiver.outbound()), Worker::start(&replica, receiver.outbound())];
    let mut devices = vec![];
    for at in 0..ENDS {
        devices.push(service.sign_in(&format!("user-{at}"), "phone").await);
    }
    let ends = devices.iter().map(Device::sign_out);
    for ended in futures_util::future::join_all(ends).await {
        ended.expect("signs out");
    }
    until_states(&service, &["done"; 2 * ENDS]).await;
    let deliveries = until_delivered(&receiver, 2 * ENDS).await;
    let mut ids: Vec<_> = deliveries.iter().map(Delivery::jti).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2 * ENDS, "no revocation was delivered twice");
    let sum: u64 = workers
        .iter()
        .flat_map(|worker| {
            ["logout", "caep"].map(|kind| {
                worker.metric(&format!("sessiond_backchannel_attempts_total{{kind=\"{kind}\",outcome=\"delivered\"}}"))
            })
        })
        .sum();
    assert_eq!(sum, 2 * ENDS as u64);
}

/// A server delivers revocations at once, without waiting for the next poll.
#[tokio::test]
async fn a_server_delivers_in_the_background_and_at_once() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let any = "127.0.0.1:0".parse().expect("an address");
    let (listen, metrics) = (Listen { listen: any, metrics_listen: any, proxy_listen: None }, Metrics::default());
    let server = Server::bind(service.app.clone(), &listen, &web(), limits(), metrics.clone(), |_| axum::Router::new())
        .await
        .expect("binds");
    let deliverer = Deliverer::new(&service.app, receiver.outbound(), metrics);
    let server = tokio::spawn(server.delivering(deliverer).run(std::future::pending()));
    let started = Instant::now();
    for at in 0..10 {
        service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
        until_delivered(&receiver, at + 1).await;
    }
    assert!(started.elapsed() < SECOND * 5, "deliveries are not delayed by a second each");
    server.abort();
}

/// Claims everything that is due, as a replica does that dies before sending.
async fn take(store: &Store, service: &Service) -> Vec<DueDelivery> {
    let now = service.clock.now();
    let claim = DeliveryClaim {
        after: EndpointPosition::default(),
        under_way: vec![],
        each_max: 100,
        rows_max: 100,
        now,
        lost_at: now + LOST_AFTER,
    };
    store.deliveries_claim(claim).await.expect("takes them")
}

#[tokio::test]
async fn deliveries_of_a_dead_replica_are_taken_over() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    let dead = take(&service.store, &service).await;
    assert_eq!((dead.len(), dead[0].attempt), (1, 1));
    assert!(take(&service.store, &service).await.is_empty(), "it has an owner");
    service.clock.advance(LOST_AFTER - Duration::from_micros(1));
    assert!(take(&service.store, &service).await.is_empty(), "just before");

    service.clock.advance(Duration::from_micros(1));
    let late = take(&service.store, &service).await;
    assert_eq!((late.len(), late[0].attempt, late[0].id), (1, 2, dead[0].id));
    // The first replica wakes up and reports a failure, which no longer counts.
    let fate = RetryDecision::Dead;
    service.store.delivery_failed(&dead[0], fate, "late".to_owned(), service.clock.now()).await.expect("writes");
    assert_eq!(states(&service).await, ["waiting"]);
    service.clock.advance(LOST_AFTER);
    let _worker = Worker::start(&service.app, receiver.outbound());
    until_states(&service, &["done"]).await;
    assert_eq!(until_delivered(&receiver, 1).await[0].jti(), dead[0].id.to_string());
    // A success counts, whichever replica reports it.
    service.store.delivery_failed(&late[0], fate, "late".to_owned(), service.clock.now()).await.expect("writes");
    assert_eq!(states(&service).await, ["done"]);
}

/// A worker that is stopped during an attempt, as by a kill.
#[tokio::test]
async fn an_interrupted_attempt_is_repeated() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Caep, "/").await;
    receiver.reply_with([Reply::Hang]);
    let worker = Worker::start(&service.app, receiver.outbound());
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    until_delivered(&receiver, 1).await;
    drop(worker);
    let _worker = Worker::start(&service.operator(), receiver.outbound());
    service.clock.advance(LOST_AFTER);
    until_states(&service, &["done"]).await;
    let deliveries = until_delivered(&receiver, 2).await;
    assert_eq!(deliveries[0].jti(), deliveries[1].jti());
}

#[tokio::test]
async fn a_rolled_back_revocation_is_not_delivered() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let _worker = Worker::start(&service.app, receiver.outbound());
    let phone = service.sign_in("ada", "phone").await;
    let end = Revocation {
        project: ProjectId::parse(PROJECT).expect("a name"),
        session: phone.id(),
        at: service.clock.now(),
        reason: RevokeReason::Revoked,
        by: EndedBy::Operator,
        ip: None,
    };
    let rolled_back = end.clone();
    let work = service.store.transact("test", move |mut tx| async move {
        assert_eq!(tx.sessions_revoke(&[rolled_back]).await?.len(), 1);
        tx.rollback(()).await
    });
    work.await.expect("rolls back");
    assert!(phone.is_signed_in().await && states(&service).await.is_empty());

    // A later revocation is delivered, and by then the rolled-back one would have been too.
    service.store.sessions_revoke(vec![end], ()).await.expect("ends it");
    until_states(&service, &["done"]).await;
    assert_eq!(until_delivered(&receiver, 1).await[0].claims()["sid"], phone.session);
}

/// Endpoints get nothing of another project, and nothing for a repeated sign-out.
#[tokio::test]
async fn only_revocations_of_the_own_project_are_delivered_and_only_once() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let other = service.create_project("other").await;
    let request = sessiond::pb::CreateSessionRequest { user_id: "eve".to_owned(), ..Default::default() };
    let elsewhere = service.create_as(Wire::Grpc, &other, request).await.expect("signs in");
    service.revoke_current(Wire::Grpc, bearer(&elsewhere.access_token)).await.expect("signs out");
    assert!(states(&service).await.is_empty());
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    phone.sign_out().await.expect("twice is fine");
    assert_eq!(states(&service).await, ["waiting"]);
}

#[tokio::test]
async fn a_cut_off_is_one_message_unless_it_keeps_a_session() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/logout").await;
    receiver.register(&service.app, EndpointKind::Caep, "/events").await;
    let _worker = Worker::start(&service.app, receiver.outbound());
    let (phone, laptop, tablet) = (
        service.sign_in("ada", "phone").await,
        service.sign_in("ada", "laptop").await,
        service.sign_in("ada", "tablet").await,
    );
    service.sign_in("bob", "phone").await;

    // The receiver cannot tell which of its sessions is kept except by the id, so the others are named.
    assert_eq!(phone.revoke_others().await.expect("ends them"), 2);
    let deliveries = until_delivered(&receiver, 4).await;
    let mut named: Vec<String> = deliveries
        .iter()
        .map(|deliveries| match deliveries.path.as_str() {
            "/logout" => deliveries.claims()["sid"].as_str().expect("a session").to_owned(),
            _ => deliveries.claims()["sub_id"]["session"]["id"].as_str().expect("a session").to_owned(),
        })
        .collect();
    named.sort_unstable();
    let mut expected = vec![&laptop.session, &laptop.session, &tablet.session, &tablet.session];
    expected.sort_unstable();
    assert_eq!(named.iter().collect::<Vec<_>>(), expected);

    assert_eq!(phone.revoke_all().await.expect("ends them"), 1);
    let mut deliveries = until_delivered(&receiver, 6).await.split_off(4);
    deliveries.sort_by_key(|deliveries| deliveries.path.clone());
    let event = service.verified(&deliveries[0], "secevent+jwt").await;
    let user = json!({ "format": "iss_sub", "iss": issuer(), "sub": "ada" });
    assert_eq!(event["sub_id"], json!({ "format": "complex", "user": user }));
    assert_eq!(event["events"][REVOKED]["reason_admin"]["en"], "all sessions were ended");
    let logout = service.verified(&deliveries[1], "logout+jwt").await;
    assert_eq!((&logout["sub"], &logout["sid"]), (&json!("ada"), &Value::Null));
}

/// An operator lists dead deliveries, and retries one.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_delivery_is_listed_and_retried_by_hand() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Caep, "/").await;
    receiver.reply_with([Reply::Status(400, "", r#"{"err": "invalid_audience", "description": "<script>"}"#)]);
    let _worker = Worker::start(&service.app, receiver.outbound());
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    until_states(&service, &["dead answered 400 invalid_audience"]).await;
    let id = until_delivered(&receiver, 1).await[0].jti();

    let env = [("DATABASE_URL", service.database.url.as_str())];
    let listed = sessiond(&["backchannel", "deliveries", "--project", PROJECT, "--json"], &env);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("one line of JSON");
    assert_eq!((&listed["id"], &listed["state"]), (&json!(id), &json!("dead")));
    assert_eq!((&listed["session"], &listed["attempts"]), (&json!(phone.session), &json!(1)));
    assert_eq!(listed["last_error"], "answered 400 invalid_audience");
    let text = sessiond(&["backchannel", "deliveries", "--project", PROJECT], &env);
    assert_says(&text, true, "LAST ERROR");

    let retry = |delivery: &str| sessiond(&["backchannel", "retry", delivery, "--project", PROJECT], &env);
    assert_says(&retry(&id), true, "will be retried");
    // The binary uses the database's real clock, which went on.
    service.clock.advance(SECOND * 3_600);
    until_states(&service, &["done"]).await;
    assert_eq!(until_delivered(&receiver, 2).await[1].jti(), id);
    assert_says(&retry(&id), false, "is not dead");
    assert_says(&retry("0190b0a0-0000-7000-8000-000000000001"), false, "has no delivery");
    let nothing = sessiond(&["backchannel", "deliveries", "--project", PROJECT], &env);
    assert_says(&nothing, true, "has no pending and no dead deliveries");
}

#[tokio::test]
async fn nothing_is_retried_for_longer_than_a_day() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    service.clock.advance(DELIVERY_TTL);
    let worker = Worker::start(&service.app, receiver.outbound());
    until_states(&service, &["dead not delivered in time"]).await;
    assert!(receiver.deliveries().is_empty());
    assert_eq!(worker.metric("sessiond_backchannel_attempts_total{kind=\"logout\",outcome=\"dead\"}"), 1);
}

/// The user's id is needed for the delivery; then it is removed.
#[tokio::test]
async fn an_erased_user_is_named_in_the_delivery_and_then_removed() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let names = async || {
        let mut names = service.database.lines("SELECT coalesce(user_id, '-') FROM backchannel_deliveries").await;
        names.sort_unstable();
        names
    };
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    let _: Vec<_> = take(&service.store, &service).await;
    service.database.run("UPDATE backchannel_deliveries SET due_at = NULL, dead_at = now()").await;
    assert_eq!(names().await, ["ada"], "a dead one can be tried again");
    service.sign_in("ada", "laptop").await;
    service.sign_in("bob", "laptop").await.sign_out().await.expect("signs out");
    let admin = service.admin_key().await;
    let erased = service.erase(Wire::Grpc, bearer(admin.expose_secret()), "ada").await.expect("erases");
    assert_eq!(erased, 2);
    assert_eq!(names().await, ["-", "ada", "bob"], "what waits still has it");

    receiver.reply_with([Reply::Status(500, "", ""), Reply::Status(500, "", "")]);
    let _worker = Worker::start(&service.app, receiver.outbound());
    until_states(&service, &["dead", "waiting answered 500", "waiting answered 500"]).await;
    assert_eq!(names().await, ["-", "ada", "bob"], "it is not over yet");
    service.clock.advance(DELIVERY_TTL);
    let dead = "dead not delivered in time";
    until_states(&service, &["dead", dead, dead]).await;
    assert_eq!(names().await, ["-", "-", "bob"]);
    let deliveries = receiver.deliveries();
    assert!(deliveries.iter().any(|deliveries| deliveries.claims()["sub"] == "ada"));

    // Its session is still named, so it can be retried without the user's id.
    let project = ProjectId::parse(PROJECT).expect("a name");
    for open in service.app.deliveries(project.clone(), 10).await.expect("lists") {
        service.app.delivery_retry(project.clone(), open.id).await.expect("tries again");
    }
    until_states(&service, &["done", "done", "done"]).await;
    let without = receiver.deliveries().split_off(2);
    let nameless = without.iter().filter(|deliveries| deliveries.claims()["sub"] == Value::Null);
    assert_eq!((without.len(), nameless.count()), (3, 2));
}

#[tokio::test]
async fn finished_deliveries_are_swept() {
    let (service, receiver) = (Service::start().await, Receiver::start().await);
    let removed = receiver.register(&service.app, EndpointKind::Logout, "/").await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    service.app.endpoint_remove(project, removed).await.expect("removes");
    receiver.register(&service.app, EndpointKind::Logout, "/").await;
    for user in ["ada", "bob", "cy"] {
        service.sign_in(user, "phone").await.sign_out().await.expect("signs out");
    }
    let at = format!("timestamptz 'epoch' + {} * interval '1 microsecond'", service.clock.now().as_micros());
    let set = |column: &str, user: &str| {
        format!("UPDATE backchannel_deliveries SET due_at = NULL, {column} = {at} WHERE user_id = '{user}';")
    };
    service.database.run(&[set("delivered_at", "ada"), set("dead_at", "bob")].concat()).await;
    let retention = RetentionPeriods { ended_sessions: DAY * 300, audit: DAY * 400, addresses: DAY * 300 };
    let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
    let sweep = async || {
        let removed = sweeper.run_once().await.expect("sweeps");
        [Swept::Deliveries, Swept::Endpoints]
            .map(|kind| removed.iter().filter(|(other, _)| *other == kind).map(|(_, rows)| rows).sum::<usize>())
    };
    let tick = Duration::from_micros(1);
    service.clock.advance(DAY - tick);
    assert_eq!(sweep().await, [0, 0]);
    service.clock.advance(tick);
    assert_eq!(sweep().await, [1, 0], "delivered");
    service.clock.advance(DAY * 29 - tick);
    assert_eq!(sweep().await, [0, 0]);
    service.clock.advance(tick);
    assert_eq!(sweep().await, [1, 0], "dead");
    service.clock.advance(DAY * 30 - tick);
    assert_eq!(sweep().await, [0, 0]);
    service.clock.advance(tick);
    assert_eq!(sweep().await, [0, 1], "the endpoint");
    assert_eq!(states(&service).await, ["waiting"], "what waits stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_manages_endpoints() {
    let service = Service::start().await;
    let env = [("DATABASE_URL", service.database.url.as_str())];
    let add = |url: &str, more: &[&str]| {
        let flags =
            ["backchannel", "add", "--project", PROJECT, "--kind", "logout", "--audience", "shop", "--url", url];
        sessiond(&[&flags[..], more].concat(), &env)
    };
    for (url, why) in [
        ("http://app.example.org/", "must begin with https://"),
        ("https://ada:secret@app.example.org/", "user name or a password"),
        ("https://app.example.org/#x", "fragment"),
        ("https://10.1.2.3/", "private"),
        ("https://[::1]/", "private"),
        ("nonsense", "must begin with https://"),
    ] {
        let refused = add(url, &[]);
        assert_says(&refused, false, why);
        assert!(!String::from_utf8_lossy(&refused.stderr).contains("secret"), "nothing of it is repeated");
    }
    assert_says(&add("https://10.1.2.3/", &["--backchannel-allow-private", "10.2.0.0/16"]), false, "private");
    let private = add("https://10.1.2.3/", &["--backchannel-allow-private", "10.1.0.0/16"]);
    let id = String::from_utf8(private.stdout).expect("UTF-8").trim().to_owned();
    assert_says(&add("https://app.example.org/logout", &[]), true, "");

    let listed = sessiond(&["backchannel", "list", "--project", PROJECT, "--json"], &env);
    let listed: Vec<Value> =
        String::from_utf8_lossy(&listed.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&listed[0]["id"], &listed[0]["kind"]), (&json!(id), &json!("logout")));
    assert_eq!(listed[1]["url"], "https://app.example.org/logout");
    let remove = |project: &str, id: &str| sessiond(&["backchannel", "remove", id, "--project", project], &env);
    assert_says(&remove("other", &id), false, "unknown project other");
    // The same receiver in another spelling would be notified twice.
    for same in
        ["https://app.example.org/logout", "https://APP.example.org:443/logout", "https://app.example.org./logout"]
    {
        let again = add(same, &[]);
        assert_says(&again, false, "already has this endpoint, as ");
        assert_says(&again, false, listed[1]["id"].as_str().expect("an id"));
    }
    assert_says(&add("https://app.example.org/Logout", &[]), true, "");
    let twice = sessiond(
        &[
            "backchannel",
            "add",
            "--project",
            PROJECT,
            "--kind",
            "caep",
            "--audience",
            "shop",
            "--url",
            "https://app.example.org/logout",
        ],
        &env,
    );
    assert_says(&twice, true, "");
    assert_says(&remove(PROJECT, &id), true, "removed endpoint");
    assert_says(&remove(PROJECT, &id), true, "was already removed");
    assert_says(&sessiond(&["backchannel", "list", "--project", "other"], &env), false, "unknown project other");

    // Each sign-out writes a row per endpoint, so their number is bounded.
    for number in 3..16 {
        assert_says(&add(&format!("https://app.example.org/{number}"), &[]), true, "");
    }
    assert_says(&add("https://app.example.org/16", &[]), false, "which is the maximum");
}
