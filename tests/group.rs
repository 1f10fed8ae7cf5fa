//! Requests that share a transaction: each has an outcome of its own, and one caller's lock, fault or disconnection
//! affects no other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use diesel_async::SimpleAsyncConnection as _;
use futures_util::{FutureExt as _, future::join_all};
use secrecy::ExposeSecret as _;
use sessiond::{
    app::{AccessToken, Sweeper, TokenHolder},
    config::Rates,
    pb::{CreateSessionRequest, RevokeAllSessionsRequest},
    telemetry::Metrics,
};
use sessiond_core::{
    id::ProjectId,
    session::{Origin, retention::RetentionPeriods},
    token::{schedule::Urgency, sealing::Purpose},
};

use crate::{
    assert_refused,
    harness::{
        Device, PROJECT, REFUSED_REFRESH, Service, Wire, bearer, database::Database, eventually, rates, refresh_token,
    },
};

/// The number of sign-out statements that succeeded, and that failed.
async fn statements(service: &Service) -> (u64, u64) {
    let count = async |outcome: &str| {
        let labels = format!("{{operation=\"sessions_revoke\",outcome=\"{outcome}\"}}");
        service.metric(&format!("sessiond_store_operation_duration_seconds_count{labels}")).await
    };
    (count("ok").await, count("error").await)
}

/// Signs in users of one slot: only their requests share groups.
async fn sign_in(service: &Service, count: usize) -> Vec<Device<'_>> {
    let mut devices = vec![];
    for user in service.users_of_one_slot(PROJECT).await.take(count) {
        devices.push(service.sign_in(&user, "phone").await);
    }
    devices
}

/// As [`sign_in`], with one more that is returned by itself.
async fn sign_in_with_one(service: &Service, count: usize) -> (Device<'_>, Vec<Device<'_>>) {
    let mut devices = sign_in(service, count + 1).await;
    (devices.pop().expect("one more"), devices)
}

#[tokio::test]
async fn concurrent_sign_outs_share_transactions_and_each_has_its_own_outcome() {
    let service = Service::start_on(Database::create().await).await;
    let devices = sign_in(&service, 60).await;
    // Each session twice, at the same time.
    let twice = devices.iter().chain(&devices);
    let ended = join_all(twice.map(|device| device.sign_out())).await;
    let first = ended.iter().filter(|one| one.as_ref().expect("signs out").already_revoked.is_none()).count();
    assert_eq!(first, 60, "of two sign-outs of a session, one ends it and the other finds it ended");
    assert_eq!(service.database.lines("SELECT count(*) FROM revocations").await, ["60"], "one audit record each");
    let (ok, failed) = statements(&service).await;
    assert!(ok < 60 && failed == 0, "{ok} statements for 120 requests");
    for device in &devices {
        assert!(!device.is_signed_in().await);
    }
}

#[tokio::test]
async fn a_locked_session_delays_only_its_own_sign_outs() {
    let service = Service::start_on(Database::create().await).await;
    let (held, devices) = sign_in_with_one(&service, 60).await;
    let mut holder = service.database.hold("sessions", &format!("id = '{}'", held.session)).await;
    // With 60 others, so that some share its group.
    let mut held_out = Box::pin(held.sign_out());
    let others = join_all(devices.iter().map(Device::sign_out));
    tokio::select! {
        biased;
        ended = &mut held_out => panic!("its row is locked: {ended:?}"),
        ended = others => assert!(ended.iter().all(|one| one.as_ref().is_ok_and(|one| one.already_revoked.is_none()))),
    }
    holder.batch_execute("COMMIT").await.expect("lets go");
    assert_eq!(held_out.await.expect("signs out").already_revoked, None);
    assert!(!held.is_signed_in().await);
}

/// A request with several tokens ends what it can, and waits for the rest alone.
#[tokio::test]
async fn a_sign_out_of_two_sessions_waits_for_the_locked_one() {
    let service = Service::start_on(Database::create().await).await;
    let (held, free) = (service.sign_in("ada", "held").await, service.sign_in("bob", "free").await);
    let mut holder = service.database.hold("sessions", &format!("id = '{}'", held.session)).await;
    let both = crate::harness::both(bearer(&held.access_token), refresh_token(&free.refresh_token));
    let signing_out = service.revoke_current(Wire::Grpc, both);
    let release = async {
        eventually("the other session ends", async || !free.is_signed_in().await).await;
        assert!(held.is_signed_in().await);
        // Ends it, too: what is left to do has been done by another.
        holder
            .batch_execute(&format!(
                "UPDATE sessions SET revoked_at = now(), revoke_reason = 0 WHERE id = '{}'; COMMIT",
                held.session
            ))
            .await
            .expect("ends it");
    };
    let (ended, ()) = tokio::join!(signing_out, release);
    assert_eq!(ended.expect("signs out").already_revoked, None, "one of the two was live until now");
}

/// Makes the database refuse updates of a session.
async fn refuse_updates(database: &Database, session: &str) {
    database.refuse_if(&format!("old.id = '{session}'"), "UPDATE ON sessions", "P0001", "refused").await;
}

/// The database refuses to end one session: its caller gets an error, and the others of its group are retried alone.
#[tokio::test]
async fn a_fault_affects_only_its_own_request() {
    let service = Service::start_on(Database::create().await).await;
    let (faulty, devices) = sign_in_with_one(&service, 60).await;
    refuse_updates(&service.database, &faulty.session).await;
    // The faulty one comes last, when groups are in progress.
    let (ended, refused) = tokio::join!(join_all(devices.iter().map(Device::sign_out)), faulty.sign_out());
    refused.expect_err("its update fails");
    for (device, ended) in devices.iter().zip(ended) {
        assert_eq!(ended.expect("signs out").already_revoked, None);
        assert!(!device.is_signed_in().await);
    }
    let (_, failed) = statements(&service).await;
    assert!(failed >= 2, "its group failed, and then it failed alone");
}

/// Connections are terminated while groups wait for their answers: the requests of a group are retried alone. A request that
/// had a transaction of its own fails, and its caller can retry.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_connection_loses_no_sign_out() {
    let service = Service::start_on(Database::create().await).await;
    let devices = sign_in(&service, 60).await;
    let mut holder = service.database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE revocations IN EXCLUSIVE MODE").await.expect("locks");
    let signing_out = join_all(devices.iter().map(Device::sign_out));
    let terminate = async {
        // The first request alone, and all that have queued meanwhile.
        eventually("two groups wait", async || service.database.lock_waits().await >= 2).await;
        service.database.end_lock_waits("pg_terminate_backend").await;
        holder.batch_execute("COMMIT").await.expect("lets go");
    };
    let (ended, ()) = tokio::join!(signing_out, terminate);
    let mut failed = 0;
    for (device, ended) in devices.iter().zip(ended) {
        if let Err(refused) = ended {
            assert_eq!(refused.reason, "STORE_UNAVAILABLE");
            failed += 1;
            device.sign_out().await.expect("signs out at the second try");
        }
        assert!(!device.is_signed_in().await);
    }
    assert!(failed <= 2, "{failed} failed");
    assert_eq!(service.database.lines("SELECT count(*) FROM revocations").await, ["60"]);
}

/// A client that hangs up does not take others with it, and what it has asked for is done if it had begun.
#[tokio::test]
async fn a_caller_that_hangs_up_affects_no_other() {
    let service = Service::start_on(Database::create().await).await;
    let devices = sign_in(&service, 60).await;
    let (gone, stay) = devices.split_at(30);
    let mut leaving: Vec<_> = gone.iter().map(|device| Box::pin(device.sign_out())).collect();
    let staying = join_all(stay.iter().map(Device::sign_out));
    let leave = async {
        let _ = tokio::time::timeout(Duration::from_millis(3), join_all(leaving.iter_mut())).await;
        drop(leaving);
    };
    let (ended, ()) = tokio::join!(staying, leave);
    for ended in ended {
        assert_eq!(ended.expect("signs out").already_revoked, None);
    }
}

/// Refreshes each device once, and returns the new tokens.
async fn refresh_at_once(devices: &[Device<'_>]) -> Vec<String> {
    let refreshed = join_all(devices.iter().map(Device::refresh_without_keeping)).await;
    refreshed.into_iter().map(|one| one.expect("refreshes").refresh_token).collect()
}

#[tokio::test]
async fn concurrent_refreshes_share_transactions_and_each_gets_its_own_successor() {
    let service = Service::start_on(Database::create().await).await;
    let devices = sign_in(&service, 60).await;
    let successors = refresh_at_once(&devices).await;
    let again = refresh_at_once(&devices).await;
    assert_eq!(successors, again, "a repeat gets the same successor");
    let distinct: std::collections::HashSet<&String> = successors.iter().collect();
    assert_eq!(distinct.len(), 60);
    for (mut device, successor) in devices.into_iter().zip(successors) {
        device.refresh_token = successor;
        device.refresh().await.expect("the successor works");
    }
    let ok = "sessiond_store_operation_duration_seconds_count{operation=\"refresh_session\",outcome=\"ok\"}";
    let transactions = service.metric(ok).await;
    assert!((60..150).contains(&transactions), "{transactions} transactions for 180 refreshes, 60 of them one by one");
}

/// Of several refreshes of one session at once, each gets the same successor, though only one can be in the first group.
#[tokio::test]
async fn concurrent_refreshes_of_one_session_get_the_same_successor() {
    let service = Service::start_on(Database::create().await).await;
    let phone = service.sign_in("ada", "phone").await;
    let refreshed = join_all((0..20).map(|_| phone.refresh_without_keeping())).await;
    let successors: std::collections::HashSet<String> =
        refreshed.into_iter().map(|one| one.expect("refreshes").refresh_token).collect();
    assert_eq!(successors.len(), 1);
}

/// Theft is detected within a group: the thief's token ends its own session, and the others refresh.
#[tokio::test]
async fn a_reused_token_ends_only_its_own_session() {
    let service = Service::start_on(Database::create().await).await;
    let (mut stolen, devices) = sign_in_with_one(&service, 60).await;
    let thief = stolen.stolen_copy();
    stolen.refresh().await.expect("refreshes");
    stolen.refresh().await.expect("refreshes");
    service.clock.advance(Duration::from_secs(60));
    let (refreshed, reused) =
        tokio::join!(join_all(devices.iter().map(Device::refresh_without_keeping)), thief.refresh_without_keeping());
    assert!(reused.is_err(), "it was used before");
    assert!(refreshed.iter().all(Result::is_ok) && !stolen.is_signed_in().await);
    for device in &devices {
        assert!(device.is_signed_in().await);
    }
}

#[tokio::test]
async fn a_locked_session_or_user_delays_only_its_own_refreshes_and_sign_ins() {
    let service = Service::start_on(Database::create().await).await;
    let (session, devices) = sign_in_with_one(&service, 60).await;
    let bob = service.users_of_one_slot(PROJECT).await.nth(61).expect("there are enough");
    let user = service.sign_in(&bob, "held").await;
    let mut holder = service.database.hold("sessions", &format!("id = '{}'", session.session)).await;
    let lock =
        format!("SELECT FROM users WHERE slot = {} AND user_id = '{bob}' FOR UPDATE", service.slot_of(&bob).await);
    holder.batch_execute(&lock).await.expect("holds the row");
    let mut held = Box::pin(async {
        tokio::join!(session.refresh_without_keeping(), user.refresh_without_keeping(), service.sign_in_as(bob.clone()))
    });
    let others = async {
        let refreshed = join_all(devices.iter().map(Device::refresh_without_keeping)).await;
        let users = service.users_of_one_slot(PROJECT).await.take(60);
        let created = join_all(users.map(|user| service.sign_in_as(user))).await;
        assert!(refreshed.iter().all(Result::is_ok) && created.iter().all(Result::is_ok));
    };
    tokio::select! {
        biased;
        _ = &mut held => panic!("their rows are locked"),
        () = others => {}
    }
    holder.batch_execute("COMMIT").await.expect("lets go");
    let (one, other, created) = held.await;
    one.expect("refreshes");
    other.expect("refreshes");
    created.expect("signs in");
}

/// New and known users, some of them several times: each sign-in opens a session of its own, under the user's epoch.
#[tokio::test]
async fn concurrent_sign_ins_share_transactions_and_each_opens_a_session() {
    let service = Service::start_on(Database::create().await).await;
    service.sign_in("user-0", "known").await.revoke_all().await.expect("raises the epoch");
    let users = (0..60).map(|n| format!("user-{}", n % 20));
    let created = join_all(users.map(|user| service.sign_in_as(user))).await;
    for created in created {
        assert!(service.device(created.expect("signs in")).is_signed_in().await);
    }
    assert_eq!(service.database.lines("SELECT count(*) FROM users").await, ["20"]);
    assert_eq!(service.database.lines("SELECT count(*) FROM sessions WHERE revoked_at IS NULL").await, ["61"]);
    let ok = "sessiond_store_operation_duration_seconds_count{operation=\"create_session\",outcome=\"ok\"}";
    let transactions = service.metric(ok).await;
    assert!(transactions < 61, "{transactions} transactions for 61 sign-ins");
}

/// Waits until this many groups wait for a lock that the test holds. There are two at most: then requests queue.
async fn groups_wait(service: &Service, count: usize) {
    eventually("groups wait", async || service.database.lock_waits().await >= count).await;
}

/// Waits until this many requests of an operation are queued.
async fn queued(service: &Service, operation: &str, count: usize) {
    let waiting = format!("sessiond_group_waiting{{operation=\"{operation}\"}}");
    eventually("requests queue", async || service.metric(&waiting).await >= count as u64).await;
}

/// A user of another project, in the slot of the users that [`sign_in`] signs in.
async fn user_of(service: &Service, project: &str) -> String {
    service.users_of_one_slot(project).await.next().expect("there are enough")
}

/// Thousands of sign-outs of one project are queued: one of another project is among the next groups.
#[tokio::test]
async fn a_flood_of_one_project_does_not_starve_another() {
    const FLOOD: usize = 3_000;
    const GROUP_MAX: usize = 128;
    let service = Service::start().await;
    let devices = sign_in(&service, 50).await;
    let other_key = service.create_project("other").await;
    let request = CreateSessionRequest { user_id: user_of(&service, "other").await, ..CreateSessionRequest::default() };
    let other = service.create_as(Wire::Grpc, &other_key, request).await.expect("signs in");

    let mut holder = service.database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE revocations IN EXCLUSIVE MODE").await.expect("locks");
    let answered = Arc::new(AtomicUsize::new(0));
    // Without the edge, whose limits are another matter.
    let flood = |number: usize| {
        let (app, answered) = (service.app.clone(), Arc::clone(&answered));
        let access = vec![AccessToken(devices[number % devices.len()].access_token.clone())];
        tokio::spawn(async move {
            let holder = TokenHolder { access, ..TokenHolder::default() };
            let ended = app.revoke_current(holder, None, Origin::default()).await;
            answered.fetch_add(1, Ordering::Relaxed);
            ended.is_ok()
        })
    };
    let mut flooding = vec![];
    for number in 0..2 {
        flooding.push(flood(number));
        groups_wait(&service, number + 1).await;
    }
    flooding.extend((2..FLOOD).map(flood));
    let queued = async |count: usize| queued(&service, "sessions_revoke", count).await;
    queued(FLOOD - 2).await;
    let mut signing_out = Box::pin(service.revoke_current(Wire::Rest, bearer(&other.access_token)));
    tokio::select! {
        _ = &mut signing_out => panic!("the table is locked"),
        () = queued(FLOOD - 1) => {}
    }
    assert_eq!(answered.load(Ordering::Relaxed), 0, "all of the flood is ahead of it");
    holder.batch_execute("COMMIT").await.expect("lets go");
    let ended = signing_out.await.expect("signs out");
    let ahead = answered.load(Ordering::Relaxed);
    assert_eq!(ended.already_revoked, None);
    assert!(ahead <= 6 * GROUP_MAX, "{ahead} of the flood were answered before it");
    for flooding in flooding {
        assert!(flooding.await.expect("no panic"), "the flood signs out, too");
    }
}

/// A project, and a user of another, are deleted while their sign-outs are queued among those of others.
#[tokio::test]
async fn what_is_deleted_while_it_waits_affects_no_other() {
    let service = Service::start().await;
    let devices = sign_in(&service, 60).await;
    let eve = service.users_of_one_slot(PROJECT).await.nth(60).expect("there are enough");
    let erased = service.sign_in(&eve, "erased").await;
    let gone_key = service.create_project("gone").await;
    let request = CreateSessionRequest { user_id: user_of(&service, "gone").await, ..CreateSessionRequest::default() };
    let gone = service.create_as(Wire::Grpc, &gone_key, request).await.expect("signs in");

    let mut holder = service.database.connect().await;
    // Over one connection to each node of a divided database, as foreign keys to tables on every node require.
    holder.batch_execute("BEGIN; SET LOCAL citus.multi_shard_modify_mode = 'sequential'").await.expect("begins");
    holder.batch_execute("LOCK TABLE revocations IN EXCLUSIVE MODE").await.expect("locks");
    let gone = [bearer(&gone.access_token), refresh_token(&gone.refresh_token)];
    let (one_waits, two_wait) = (groups_wait(&service, 1).shared(), groups_wait(&service, 2).shared());
    let all = async {
        let (first, second, rest, gone, erased) = tokio::join!(
            devices[0].sign_out(),
            one_waits.then(|()| devices[1].sign_out()),
            join_all(devices[2..].iter().map(|device| two_wait.clone().then(|()| device.sign_out()))),
            join_all(gone.map(|headers| two_wait.clone().then(|()| service.revoke_current(Wire::Grpc, headers)))),
            two_wait.clone().then(|()| erased.sign_out())
        );
        ([first, second].into_iter().chain(rest), gone, erased)
    };
    let delete = async {
        // All but the first two.
        queued(&service, "sessions_revoke", devices.len() + 1).await;
        let deletions = ["sessions", "users", "server_keys", "signing_keys", "refresh_keys"]
            .map(|table| format!("DELETE FROM {table} WHERE project_id = 'gone'"));
        let sql = format!(
            "{}; DELETE FROM projects WHERE id = 'gone';
             DELETE FROM sessions WHERE user_id = '{eve}'; DELETE FROM users WHERE user_id = '{eve}'",
            deletions.join("; ")
        );
        holder.batch_execute(&sql).await.expect("deletes");
        holder.batch_execute("COMMIT").await.expect("lets go");
    };
    let ((ended, gone, erased), ()) = tokio::join!(all, delete);
    for ended in ended {
        assert_eq!(ended.expect("signs out").already_revoked, None);
    }
    // Sessions that do not exist have ended.
    for ended in gone.into_iter().chain([erased]) {
        assert_eq!(ended.expect("signs out").already_revoked, Some(true));
    }
    assert_eq!(service.database.lines("SELECT count(*) FROM revocations").await, ["60"]);
}

/// The database refuses one refresh of a group, so that the others are carried out again: they are charged once.
#[tokio::test]
async fn a_refresh_that_is_retried_alone_is_charged_once() {
    let once = Rates { user_rate: 1, user_burst: 1, ..rates() };
    let service = Service::start_limited(once, |_, _| {}).await;
    let (faulty, devices) = sign_in_with_one(&service, 60).await;
    refuse_updates(&service.database, &faulty.session).await;
    let mut holder = service.database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE users IN EXCLUSIVE MODE").await.expect("locks");
    let (one_waits, two_wait) = (groups_wait(&service, 1).shared(), groups_wait(&service, 2).shared());
    let mut refreshing = Box::pin(async {
        let first = devices[0].refresh_without_keeping();
        let second = one_waits.then(|()| devices[1].refresh_without_keeping());
        // One group, with the faulty one.
        let rest = devices[2..].iter().map(|device| two_wait.clone().then(|()| device.refresh_without_keeping()));
        tokio::join!(first, second, join_all(rest), two_wait.clone().then(|()| faulty.refresh_without_keeping()))
    });
    let queue = async {
        // All but the first two.
        queued(&service, "refresh_session", devices.len() - 1).await;
    };
    tokio::select! {
        _ = &mut refreshing => panic!("the table is locked"),
        () = queue => {}
    }
    holder.batch_execute("COMMIT").await.expect("lets go");
    let (first, second, rest, refused) = refreshing.await;
    assert_ne!(refused.err().expect("its update fails").reason, "RATE_LIMITED");
    for refreshed in [first, second].into_iter().chain(rest) {
        refreshed.map(drop).expect("refreshes");
    }
    assert_refused!(devices[5].refresh_without_keeping(), "RATE_LIMITED");
}

/// Another transaction is about to create a user: only that user's sign-in waits for it.
#[tokio::test]
async fn a_user_that_is_being_created_delays_only_its_own_sign_in() {
    let service = Service::start().await;
    let mut holder = service.database.connect().await;
    let slot = service.slot_of("user-30").await;
    let create =
        format!("BEGIN; INSERT INTO users (project_id, user_id, epoch, slot) VALUES ('demo', 'user-30', 0, {slot})");
    holder.batch_execute(&create).await.expect("creates");
    let mut held = Box::pin(service.sign_in_as("user-30".to_owned()));
    let others = join_all((0..60).filter(|n| *n != 30).map(|n| service.sign_in_as(format!("user-{n}"))));
    tokio::pin!(others);
    let mut gave_up = false;
    let created = loop {
        tokio::select! {
            biased;
            // On a busy machine it may wait for too long.
            early = &mut held, if !gave_up => gave_up = early.is_err() || panic!("its user is not committed"),
            created = &mut others => break created,
        }
    };
    assert!(created.iter().all(Result::is_ok));
    holder.batch_execute("COMMIT").await.expect("lets go");
    if !gave_up {
        held.await.expect("signs in");
    }
}

/// Everything that locks sessions, users and projects, at once, on few rows: no deadlock, and every answer is one of those that
/// some order explains.
#[tokio::test(flavor = "multi_thread")]
async fn groups_and_all_other_transactions_do_not_deadlock() {
    const ROUNDS: usize = 6;
    let service = Service::start().await;
    let admin = service.admin_key().await;
    let retention = RetentionPeriods { ended_sessions: Duration::ZERO, audit: Duration::MAX, addresses: Duration::MAX };
    let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
    for _ in 0..ROUNDS {
        let devices = join_all((0..40).map(|n| service.sign_in_as(format!("user-{}", n % 8)))).await;
        let devices: Vec<Device<'_>> =
            devices.into_iter().map(|created| service.device(created.expect("signs in"))).collect();
        let refreshing = join_all(devices.iter().chain(&devices).map(Device::refresh_without_keeping));
        let signing_out = join_all(devices.iter().skip(20).chain(devices.iter().skip(20)).map(Device::sign_out));
        let creating = join_all((0..40).map(|n| service.sign_in_as(format!("user-{}", n % 16))));
        let revoking_all = join_all((0..4).map(|n| {
            let request =
                RevokeAllSessionsRequest { user_id: Some(format!("user-{n}")), ..RevokeAllSessionsRequest::default() };
            service.revoke_all(Wire::Grpc, service.key(), request)
        }));
        let erasing = join_all(
            (4..8).map(async |n| service.erase(Wire::Grpc, bearer(admin.expose_secret()), &format!("user-{n}")).await),
        );
        let sweeping = async {
            for _ in 0..3 {
                sweeper.run_once().await.expect("sweeps");
            }
        };
        let rotating = async {
            let project = ProjectId::parse(PROJECT).expect("a name");
            service.app.rotate_key(Purpose::Signing, project, Urgency::Planned).await
        };
        // One rotation at a time is allowed: the others are refused.
        let (refreshed, ended, created, revoked, erased, (), _) =
            tokio::join!(refreshing, signing_out, creating, revoking_all, erasing, sweeping, rotating);
        for refused in refreshed.into_iter().filter_map(Result::err) {
            assert_eq!(refused.reason, REFUSED_REFRESH);
        }
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
        for created in created {
            created.map(drop).expect("signs in");
        }
        assert!(revoked.iter().all(Result::is_ok), "{revoked:?}");
        assert!(erased.iter().all(Result::is_ok), "{erased:?}");
        service.clock.advance(Duration::from_secs(1));
    }
    // Statistics are reported within a second.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(service.database.lines(deadlocks).await, ["0"]);
}
