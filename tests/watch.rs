//! The feed: revocations arrive at once, for callers who may see them, and none is skipped.

use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use sessiond::{
    pb::{RevokeReason, SnapshotReason, SupersededTokens, UserCutOff, revocation::Ended, withheld::Concerns},
    store::{Role, WriterId},
};
use sessiond_core::{
    clock,
    id::{KeyId, ProjectId},
    token::sealing::Purpose,
};
use tonic::Code;

use crate::harness::{
    PROJECT, Service, Wire, bearer, eventually, refresh_token,
    watch::{accepting, asking},
};
use crate::keys::kid;

/// A bound on immediate delivery; latency is measured elsewhere.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Opens a writer of its own, for user `ada`. Returns its columns `slot` and `writer`.
async fn open_writer(service: &Service) -> String {
    let slot = service.slot_of("ada").await;
    let id = WriterId::from_number(u64::from_be_bytes(clock::random())).number();
    let open = format!("INSERT INTO feed_writers (id, opened_at, slot) VALUES ({id}, now(), {slot})");
    service.database.run(&open).await;
    format!("{slot}, {id}")
}

#[tokio::test]
async fn a_stream_starts_with_a_snapshot_and_continues_live() {
    let service = Service::start().await;
    let (old, phone) = (service.sign_in("ada", "old").await, service.sign_in("ada", "phone").await);
    old.sign_out().await.expect("signs out");
    for wire in Wire::ALL {
        let tablet = service.sign_in("bob", "tablet").await;
        let mut watch = service.watches(wire).await;
        let (reason, ended) = watch.snapshot().await;
        assert_eq!(reason, SnapshotReason::NoCursor, "{wire:?}");
        let ids: Vec<_> = ended.iter().map(|one| one.ended.clone()).collect();
        assert!(ids.contains(&Some(Ended::SessionId(old.session.clone()))), "{wire:?}: {ids:?}");
        assert!(!watch.cursor.is_empty(), "a snapshot leads on");

        let started = Instant::now();
        tablet.sign_out().await.expect("signs out");
        let revocations = watch.ended().await;
        assert!(started.elapsed() < AT_ONCE);
        let [one] = revocations.as_slice() else { panic!("{revocations:?}") };
        assert_eq!(one.ended, Some(Ended::SessionId(tablet.session.clone())), "{wire:?}");
        assert_eq!((one.user_id.as_deref(), one.reason()), (Some("bob"), RevokeReason::SignedOut));
        // Ten minutes for the token, and five for clocks that are behind.
        assert!((600..=901).contains(&one.retain_seconds), "{}", one.retain_seconds);
        assert!(watch.heartbeat().await < 2_000);
    }
    let mut events = service.wires.watch_events(bearer(service.server_key.expose_secret()), "").await.expect("SSE too");
    events.snapshot().await;
    phone.sign_out().await.expect("signs out");
    assert_eq!(events.ended_session().await, phone.session);
}

/// By this a subscriber knows that a proxy passes the stream on late.
#[tokio::test]
async fn heartbeats_say_how_old_their_stream_is() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let asked = Instant::now();
        let mut watch = service.watches(wire).await;
        let mut previous = -1;
        for _ in 0..3 {
            let age = watch.stream_age().await.expect("it is there");
            assert!(
                previous < age && u128::try_from(age).expect("positive") <= asked.elapsed().as_millis(),
                "{wire:?}"
            );
            previous = age;
        }
        assert!(previous >= 900, "{wire:?}: {previous} ms, with a second between heartbeats");
    }
}

#[tokio::test]
async fn every_kind_of_revocation_is_published() {
    let service = Service::start().await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;

    let mut phone = service.sign_in("ada", "phone").await;
    let thief = phone.stolen_copy();
    phone.refresh().await.expect("refreshes");
    phone.refresh().await.expect("refreshes");
    service.clock.advance(Duration::from_secs(61));
    assert!(thief.refresh_without_keeping().await.is_err(), "the alarm");
    let revocations = watch.ended().await;
    assert_eq!(revocations[0].ended, Some(Ended::SessionId(phone.session.clone())));
    assert_eq!(revocations[0].reason(), RevokeReason::RefreshTokenReused);

    let (laptop, tablet) = (service.sign_in("ada", "laptop").await, service.sign_in("ada", "tablet").await);
    laptop.revoke_others().await.expect("ends the other");
    let revocations = watch.ended().await;
    let spared_session_id = Some(laptop.session.clone());
    let cut_off = UserCutOff { user_id: "ada".to_owned(), epoch: 1, spared_session_id };
    assert_eq!(revocations[0].ended, Some(Ended::UserCutOff(cut_off)), "and not one by one: {revocations:?}");
    assert_eq!((revocations.len(), revocations[0].reason()), (1, RevokeReason::RevokedAll));
    assert!(revocations[0].retain_seconds > 24 * 60 * 60, "as long as any token lives");
    assert!(!tablet.is_signed_in().await && laptop.is_signed_in().await);

    // By the operator, in another process.
    let operator = service.operator();
    let key = kid(&laptop.access_token);
    operator.revoke_key(Purpose::Signing, project.clone(), key).await.expect("revokes");
    let revocations = watch.ended().await;
    assert_eq!(revocations[0].ended, Some(Ended::SigningKeyId(key.to_string())));
    assert_eq!(revocations[0].reason(), RevokeReason::KeyRevoked);
}

#[tokio::test]
async fn a_stream_resumes_after_a_cursor_and_skips_nothing() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let mut watch = service.watches(wire).await;
        watch.snapshot().await;
        let phone = service.sign_in("ada", "phone").await;
        phone.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, phone.session);
        let before = watch.cursor.clone();
        drop(watch);
        // While no stream is open.
        let missed = service.sign_in("ada", "laptop").await;
        missed.sign_out().await.expect("signs out");

        let mut again = service.watches_from(wire, &before).await;
        let mut revocations = vec![];
        while !revocations.contains(&missed.session) {
            let batch = again.ended().await;
            revocations.extend(batch.into_iter().filter_map(|one| match one.ended {
                Some(Ended::SessionId(id)) => Some(id),
                _ => None,
            }));
        }
        again.heartbeat().await;
        assert!(!again.cursor.is_empty(), "{wire:?}");
    }
}

#[tokio::test]
async fn an_unusable_cursor_gets_a_snapshot_with_a_reason() {
    let service = Service::start().await;
    let other = Service::start().await;
    let mut elsewhere = other.watches(Wire::Grpc).await;
    elsewhere.snapshot().await;
    let mut here = service.watches(Wire::Grpc).await;
    here.snapshot().await;
    let key = || bearer(service.server_key.expose_secret());
    for wire in Wire::ALL {
        let mut watch = service.watches_from(wire, &elsewhere.cursor).await;
        assert_eq!(watch.snapshot().await.0, SnapshotReason::CursorOfAnotherDatabase);
        let refused = service.wires.watch(wire, key(), "nonsense").await.err().expect("refused");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["cursor".to_owned()]), "{wire:?}");
    }
    // Older than any token lives.
    service.clock.advance(Duration::from_secs(25 * 60 * 60));
    let mut watch = service.watches_from(Wire::Grpc, &here.cursor).await;
    assert_eq!(watch.snapshot().await.0, SnapshotReason::CursorTooOld);
}

#[tokio::test]
async fn a_project_gets_only_its_own_revocations() {
    let service = Service::start().await;
    let key = service.create_project("other").await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    for wire in Wire::ALL {
        let mut watch = service.wires.watch(wire, bearer(key.expose_secret()), "").await.expect("may follow");
        let (_, past) = watch.snapshot().await;
        assert!(!past.iter().any(|one| one.ended == Some(Ended::SessionId(phone.session.clone()))), "{wire:?}");
        let laptop = service.sign_in("ada", "laptop").await;
        laptop.sign_out().await.expect("signs out");
        let own = service.create_as(wire, &key, create("ada")).await.expect("signs in");
        let own_device = service.device(own);
        own_device.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, own_device.session, "{wire:?}");
    }
}

fn create(user: &str) -> sessiond::pb::CreateSessionRequest {
    sessiond::pb::CreateSessionRequest { user_id: user.to_owned(), ..Default::default() }
}

/// A tab learns that it was signed out, by another device or another tab.
#[tokio::test]
async fn a_user_gets_revocations_of_their_sessions_until_this_one_ends() {
    let service = Service::start().await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    for wire in Wire::ALL {
        let (tab, phone) = (service.sign_in("ada", "tab").await, service.sign_in("ada", "phone").await);
        let bob = service.sign_in("bob", "phone").await;
        let support = service.impersonate("ada", "support").await;
        let mut watch = service.wires.watch(wire, bearer(&tab.access_token), "").await.expect("may follow");
        assert_eq!(watch.snapshot().await.1, vec![], "no past: {wire:?}");
        // Another user's, and a hidden one: neither is sent.
        bob.sign_out().await.expect("signs out");
        support.sign_out().await.expect("signs out");
        phone.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, phone.session, "{wire:?}");
        tab.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, tab.session, "{wire:?}");
        let end = watch.refusal().await;
        assert_eq!(end.reason, "SESSION_REVOKED", "{wire:?}");
        let refused = service.wires.watch(wire, bearer(&tab.access_token), "").await.err().expect("over");
        assert_eq!(refused.reason, "SESSION_REVOKED", "{wire:?}");
    }
    // All at once, by a service.
    let (tab, phone) = (service.sign_in("ada", "tab").await, service.sign_in("ada", "phone").await);
    let mut watch = service.wires.watch(Wire::Grpc, bearer(&tab.access_token), "").await.expect("may follow");
    let mut spared = service.wires.watch(Wire::Grpc, bearer(&phone.access_token), "").await.expect("may follow");
    spared.snapshot().await;
    phone.revoke_others().await.expect("ends the other");
    assert_eq!(watch.refusal().await.reason, "SESSION_REVOKED");
    assert!(matches!(spared.ended().await[0].ended, Some(Ended::UserCutOff(_))));
    assert!(spared.heartbeat().await < 2_000, "and this stream stays open");
}

#[tokio::test]
async fn a_stream_ends_with_the_credential_that_opened_it() {
    let service = Service::start().await;
    let project = ProjectId::parse(PROJECT).expect("a name");
    let operator = service.operator();
    for wire in Wire::ALL {
        let (id, key) = operator.server_key_create(project.clone(), Role::Service).await.expect("makes a key");
        let mut kept = service.watches(wire).await;
        let mut watch = service.wires.watch(wire, bearer(key.expose_secret()), "").await.expect("may follow");
        watch.snapshot().await;
        let id: KeyId = id;
        operator.server_key_revoke(id).await.expect("revokes");
        let end = watch.refusal().await;
        assert_eq!((end.reason.as_str(), end.code), ("INVALID_SERVER_KEY", Code::Unauthenticated), "{wire:?}");
        kept.snapshot().await;
        kept.heartbeat().await;
    }
    // A token with a lifetime of two seconds.
    let short = sessiond::pb::CreateSessionRequest { expires_in_millis: Some(2_000), ..create("ada") };
    let tab = service.device(service.create(Wire::Grpc, short).await.expect("signs in"));
    let mut watch = service.wires.watch(Wire::Grpc, bearer(&tab.access_token), "").await.expect("may follow");
    assert_eq!(watch.refusal().await.reason, "ACCESS_TOKEN_EXPIRED");
}

#[tokio::test]
async fn only_permitted_callers_may_subscribe() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for wire in Wire::ALL {
        let watch = async |headers| service.wires.watch(wire, headers, "").await.err().expect("refused").reason;
        assert_eq!(watch(http::HeaderMap::new()).await, "CREDENTIALS_MISSING", "{wire:?}");
        assert_eq!(watch(bearer("rubbish")).await, "UNPARSABLE_ACCESS_TOKEN", "{wire:?}");
        assert_eq!(watch(refresh_token(&phone.refresh_token)).await, "INSUFFICIENT_ACCESS_TYPE", "{wire:?}");
    }
}

/// Subscribers are counted, and a closed stream frees its place.
#[tokio::test]
async fn the_number_of_subscribers_is_limited() {
    let service = Service::start_with(|_, limits| limits.subscribers_max = 4).await;
    let tab = service.sign_in("ada", "tab").await;
    let mut open = vec![];
    for _ in 0..3 {
        let mut watch = service.watches(Wire::Grpc).await;
        watch.snapshot().await;
        open.push(watch);
    }
    let refused = service.wires.watch(Wire::Rest, bearer(&tab.access_token), "").await.err().expect("users leave room");
    assert_eq!((refused.reason.as_str(), refused.http.map(|http| http.as_u16())), ("RATE_LIMITED", Some(429)));
    open.push(service.watches(Wire::Grpc).await);
    let key = || bearer(service.server_key.expose_secret());
    let refused = service.wires.watch(Wire::Grpc, key(), "").await.err().expect("full");
    assert_eq!((refused.reason.as_str(), refused.code), ("RATE_LIMITED", Code::ResourceExhausted));
    assert!(refused.retry_after.is_some());
    open.clear();
    eventually("the seats are free", async || service.metric("sessiond_feed_subscribers").await == 0).await;
    service.watches(Wire::Grpc).await.snapshot().await;
}

/// Sign-outs at one replica arrive at another, by notification or by poll, in any commit order.
#[tokio::test]
async fn revocations_reach_other_replicas() {
    let service = Service::start().await;
    let replica = service.replica().await;
    let mut watch = replica.watches(Wire::Grpc).await;
    watch.snapshot().await;
    for _ in 0..20 {
        let phone = service.sign_in("ada", "phone").await;
        phone.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, phone.session);
    }
    // A cursor of one works at the other.
    watch.heartbeat().await;
    let mut here = service.watches_from(Wire::Grpc, &watch.cursor).await;
    let laptop = service.sign_in("ada", "laptop").await;
    laptop.sign_out().await.expect("signs out");
    assert_eq!(here.ended_session().await, laptop.session);
}

/// The transaction that wrote first commits last. A reader that uses the highest number would have passed it.
#[tokio::test]
async fn revocations_that_commit_out_of_order_are_published() {
    let service = Service::start().await;
    let late = service.sign_in("ada", "late").await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let held = held_revocation(&service, &late.session).await;
    let mut cursors = vec![];
    for _ in 0..3 {
        let phone = service.sign_in("bob", "phone").await;
        phone.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, phone.session, "the open transaction delays nothing");
        watch.heartbeat().await;
        cursors.push(watch.cursor.clone());
    }
    held.batch_execute("COMMIT").await.expect("commits");
    assert_eq!(watch.ended_session().await, late.session, "at last");
    // Cursors from that time have not passed it either.
    for cursor in cursors {
        let mut again = service.watches_from(Wire::Grpc, &cursor).await;
        let revocations = again.ended().await;
        let is_there = |one: &sessiond::pb::Revocation| one.ended == Some(Ended::SessionId(late.session.clone()));
        assert!(revocations.iter().any(is_there), "{revocations:?}");
    }
}

/// An open transaction in which a session was revoked.
async fn held_revocation(service: &Service, session: &str) -> tokio_postgres::Client {
    let writer = open_writer(service).await;
    let (client, connection) =
        tokio_postgres::connect(&service.database.url, tokio_postgres::NoTls).await.expect("connects");
    tokio::spawn(connection);
    let insert = format!(
        "BEGIN; INSERT INTO revocations (slot, writer, seq, project_id, id, at, reason, session_id, user_id, access_expires_at,
           actor)
         SELECT {writer}, 1, '{PROJECT}', gen_random_uuid(), now(), 4, '{session}', 'ada', now() + interval '10 minutes', 4"
    );
    client.batch_execute(&insert).await.expect("writes");
    client
}

/// Rows from a dump of another server: their writers are not those of this one.
#[tokio::test]
async fn rows_of_another_server_are_not_published() {
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let slot = service.slot_of("ada").await;
    service
        .database
        .run(&format!(
            "INSERT INTO revocations (slot, project_id, id, at, reason, session_id, access_expires_at, actor, writer, seq)
             SELECT {slot}, '{PROJECT}', gen_random_uuid(), now() - interval '1 day', 4, gen_random_uuid(),
               now() - interval '1 day', 4, 5000000000, i FROM generate_series(1, 30000) AS i"
        ))
        .await;
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    assert_eq!(watch.ended_session().await, phone.session, "the first revocation sent");
    assert!(watch.heartbeat().await < 2_000, "and the feed is fresh");
}

/// A backlog that takes several pages: nobody is disconnected, and nothing is missed.
#[tokio::test]
async fn a_replica_that_is_far_behind_catches_up_in_pages() {
    let service = Service::start().await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    let writer = open_writer(&service).await;
    service
        .database
        .run(&format!(
            "INSERT INTO revocations (slot, writer, seq, project_id, id, at, reason, session_id, user_id, access_expires_at,
               actor)
             SELECT {writer}, i, '{PROJECT}', gen_random_uuid(), now(), 4, gen_random_uuid(), 'ada',
               now() + interval '10 minutes', 4 FROM generate_series(1, 25000) AS i"
        ))
        .await;
    let mut revocations = std::collections::HashSet::new();
    while revocations.len() < 25_000 {
        let batch = watch.ended().await;
        assert!(batch.len() <= 2_000, "{}: a message stays small", batch.len());
        revocations.extend(batch.into_iter().map(|one| format!("{:?}", one.ended)));
    }
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    assert_eq!(watch.ended_session().await, phone.session, "on the same stream");
}

/// A client that opens a stream and never reads it loses its place.
#[tokio::test]
async fn a_subscriber_that_does_not_read_is_disconnected() {
    let service = Service::start().await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let mut socket = tokio::net::TcpStream::connect(service.addr).await.expect("connects");
    let key = service.server_key.expose_secret();
    let request = format!("GET /auth/revocations:watch HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut socket, request.as_bytes()).await.expect("sends");
    eventually("it follows", async || service.app.feed().size().1 == 1).await;
    // More than all buffers on the way hold.
    for _ in 0..6 {
        let writer = open_writer(&service).await;
        let insert = format!(
            "INSERT INTO revocations (slot, writer, seq, project_id, id, at, reason, session_id, user_id, access_expires_at,
               actor)
             SELECT {writer}, i, '{PROJECT}', gen_random_uuid(), now(), 4, gen_random_uuid(), repeat('x', 200),
               now() + interval '10 minutes', 4 FROM generate_series(1, 9000) AS i"
        );
        service.database.run(&insert).await;
    }
    eventually("its place is free", async || service.app.feed().size().1 == 0).await;
    drop(socket);
}

/// Entries that no token outlives are dropped, which bounds the list.
#[tokio::test]
async fn old_entries_are_dropped() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    phone.sign_out().await.expect("signs out");
    service.feed_is_read().await;
    service.clock.advance(Duration::from_secs(14 * 60 + 59));
    let mut watch = service.watches(Wire::Grpc).await;
    assert_eq!(watch.snapshot().await.1.len(), 1, "some verifier's clock may be behind");
    service.clock.advance(Duration::from_secs(2));
    assert_eq!(service.watches(Wire::Grpc).await.snapshot().await.1, vec![]);
    eventually("it is forgotten", async || service.metric("sessiond_feed_entries").await == 0).await;
}

/// A backup lacks later revocations.
#[tokio::test]
async fn after_a_restore_every_session_has_ended_and_subscribers_get_a_snapshot() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let mut watch = service.watches(Wire::Grpc).await;
    watch.snapshot().await;
    for _ in 0..2 {
        let laptop = service.sign_in("ada", "laptop").await;
        assert_eq!(sessiond::app::after_restore(&service.store, &service.clock).await.expect("writes"), 1);
        assert_eq!(watch.refusal().await.reason, "FEED_INTERRUPTED");
        let cursor = watch.cursor.clone();
        eventually("the new history is read", async || {
            service.app.feed().age().is_some_and(|age| age < Duration::from_secs(1))
        })
        .await;
        watch = service.watches_from(Wire::Grpc, &cursor).await;
        let (reason, revocations) = watch.snapshot().await;
        assert_eq!(reason, SnapshotReason::CursorOfAnotherDatabase);
        assert!(revocations.iter().any(|one| matches!(one.ended, Some(Ended::ProjectCutOff(_)))), "{revocations:?}");
        assert!(!phone.is_signed_in().await && !laptop.is_signed_in().await);
        assert!(!service.is_active(&laptop.access_token).await);
        service.clock.advance(Duration::from_secs(1));
    }
    service.sign_in("ada", "phone").await.sign_out().await.expect("works again");
}

/// A stream may outlast the request timeout.
#[tokio::test]
async fn a_stream_outlasts_the_request_timeout() {
    let deadline = Duration::from_millis(500);
    let service = Service::start_with(|_, limits| limits.request_timeout = deadline).await;
    for wire in Wire::ALL {
        let mut watch = service.watches(wire).await;
        watch.snapshot().await;
        let opened = Instant::now();
        while opened.elapsed() < 3 * deadline {
            watch.heartbeat().await;
        }
        let phone = service.sign_in("ada", "phone").await;
        phone.sign_out().await.expect("signs out");
        assert_eq!(watch.ended_session().await, phone.session, "{wire:?}");
    }
}

/// The kinds that this release knows.
const KINDS: [&str; 5] = ["session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded"];

/// A subscriber of a later release names more; one of an earlier release names fewer.
#[tokio::test]
async fn what_a_subscriber_does_not_accept_is_withheld_and_the_rest_is_not() {
    let service = Service::start().await;
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    for wire in Wire::ALL {
        let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("bob", "laptop").await);
        let of_later = accepting(&[&KINDS[..], &["of_a_later_release"]].concat());
        let mut later = service.wires.watch_as(wire, service.key(), &of_later).await.expect("may follow");
        let of_sessions = accepting(&["session_id"]);
        let mut earlier = service.wires.watch_as(wire, service.key(), &of_sessions).await.expect("may follow");
        let mut unsaid = service.watches(wire).await;
        later.snapshot().await;
        earlier.snapshot().await;
        unsaid.snapshot().await;

        phone.sign_out().await.expect("signs out");
        laptop.revoke_all().await.expect("ends all");
        let session = Some(Ended::SessionId(phone.session.clone()));
        let (mut in_later, mut in_earlier, mut in_unsaid) = (vec![], vec![], vec![]);
        for (watch, found) in
            [(&mut later, &mut in_later), (&mut earlier, &mut in_earlier), (&mut unsaid, &mut in_unsaid)]
        {
            while found.len() < 2 {
                found.extend(watch.ended().await.into_iter().map(|one| one.ended));
            }
            assert!(found.contains(&session), "{wire:?}: {found:?}");
        }
        assert!(in_later.iter().any(|ended| matches!(ended, Some(Ended::UserCutOff(_)))), "{in_later:?}");
        assert!(in_unsaid.iter().any(|ended| matches!(ended, Some(Ended::UserCutOff(_)))), "{in_unsaid:?}");
        let withheld = in_earlier.iter().find_map(|ended| match ended {
            Some(Ended::Withheld(withheld)) => Some(withheld.clone()),
            _ => None,
        });
        let withheld = withheld.expect("the cut-off");
        assert_eq!(withheld.kind, "user_cut_off");
        assert_eq!(withheld.concerns, Some(Concerns::UserId("bob".to_owned())), "bob's tokens, and nobody else's");
        assert!(earlier.heartbeat().await < 2_000, "and the stream goes on");
    }
}

#[tokio::test]
async fn a_snapshot_that_a_subscriber_cannot_hold_is_refused() {
    let service = Service::start().await;
    for name in ["one", "two", "three"] {
        service.sign_in("ada", name).await.sign_out().await.expect("signs out");
    }
    service.feed_is_read().await;
    for wire in Wire::ALL {
        let with = |max_entries| sessiond::pb::WatchRevocationsRequest { max_entries, ..asking("") };
        let refused = service.wires.watch_as(wire, service.key(), &with(2)).await.err().expect("refused");
        assert_eq!((refused.reason.as_str(), refused.code), ("TOO_MANY_ENTRIES", Code::FailedPrecondition), "{wire:?}");
        let mut watch = service.wires.watch_as(wire, service.key(), &with(3)).await.expect("may follow");
        assert_eq!(watch.snapshot().await.1.len(), 3, "{wire:?}");
        watch.heartbeat().await;
        // Where it resumes does not matter: it still holds the others.
        let resumed = sessiond::pb::WatchRevocationsRequest { cursor: watch.cursor.clone(), ..with(2) };
        let refused = service.wires.watch_as(wire, service.key(), &resumed).await.err().expect("refused");
        assert_eq!(refused.reason, "TOO_MANY_ENTRIES", "{wire:?}");
        let refused = service.wires.watch_as(wire, service.key(), &with(-1)).await.err().expect("refused");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["max_entries".to_owned()]));
        let many = accepting(&["x"; 33]);
        let refused = service.wires.watch_as(wire, service.key(), &many).await.err().expect("refused");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["accepts".to_owned()]));
    }
}

#[tokio::test]
async fn superseded_tokens_are_in_the_feed_of_services_and_of_their_own_session() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    eventually("the first reading", async || service.app.feed().age().is_some()).await;
    let accepts = accepting(&KINDS);
    let mut guard = service.wires.watch_as(Wire::Grpc, service.key(), &accepts).await.expect("may follow");
    let mut older = service.watches(Wire::Grpc).await;
    let mut own = service.wires.watch_as(Wire::Grpc, phone.bearer(), &accepts).await.expect("may follow");
    let mut old_page = service.wires.watch(Wire::Grpc, phone.bearer(), "").await.expect("may follow");
    let mut other = service.wires.watch_as(Wire::Grpc, laptop.bearer(), &accepts).await.expect("may follow");
    for watch in [&mut guard, &mut older, &mut own, &mut old_page, &mut other] {
        watch.snapshot().await;
    }
    service.supersede(&phone, "support").await;
    let superseded = SupersededTokens { session_id: phone.session.clone(), session_epoch: 1 };
    for watch in [&mut guard, &mut own] {
        let revocations = watch.ended().await;
        assert_eq!(revocations[0].ended, Some(Ended::Superseded(superseded.clone())), "{revocations:?}");
        assert_eq!(revocations[0].reason(), RevokeReason::Superseded);
        assert_eq!(revocations[0].user_id.as_deref(), Some("ada"));
        assert!((600..=901).contains(&revocations[0].retain_seconds), "as long as a token lives: {revocations:?}");
    }
    assert_eq!(older.ended_session().await, phone.session, "refused altogether rather than accepted with old claims");
    // These hear of the next sign-out first.
    laptop.sign_out().await.expect("signs out");
    assert_eq!(old_page.ended_session().await, laptop.session);
    assert_eq!(other.ended_session().await, laptop.session);
    // In a snapshot too.
    let mut late = service.wires.watch_as(Wire::Rest, service.key(), &accepts).await.expect("may follow");
    let (_, all) = late.snapshot().await;
    assert!(all.iter().any(|one| one.ended == Some(Ended::Superseded(superseded.clone()))), "{all:?}");
}
