//! The audit log: every kind of entry that is no revocation, how it is read, and what an erasure leaves of it. Revocations are in
//! `manage.rs`, keys, impersonations and repeats in `theft.rs`.

use std::time::Duration;

use http::Method;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sessiond::{
    app::{AuditActor, AuditEntry, AuditFilter, AuditLog, NewEndpoint, SweepKind, Sweeper},
    config::Rates,
    pb::CreateSessionRequest,
    store::{KeyKind, RecordOrder, Role},
    telemetry::Metrics,
};
use sessiond_core::{
    id::{ProjectId, SessionId, UserId},
    session::{EndedBy, backchannel::EndpointKind, retention::RetentionPeriods},
    token::server_key::ServerKey,
};

use crate::{
    binary::{assert_says, sessiond},
    harness::{PROJECT, Service, Wire, bearer, both, header, refresh_token},
    revoke::flip,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const TICK: Duration = Duration::from_millis(1);
const USER: &str = "ada-lovelace";

fn project() -> ProjectId {
    ProjectId::parse(PROJECT).expect("a name")
}

async fn read(service: &Service, filter: AuditFilter, order: RecordOrder) -> Vec<AuditEntry> {
    let mut log = AuditLog::new(service.store.clone(), filter, order);
    let mut entries = vec![];
    while let Some(entry) = log.next().await.expect("reads") {
        entries.push(entry);
    }
    entries
}

/// The entries of one kind, oldest first.
async fn of_kind(service: &Service, kind: &'static str) -> Vec<AuditEntry> {
    let filter = AuditFilter { kinds: vec![kind], ..AuditFilter::all(project()) };
    read(service, filter, RecordOrder::OldestFirst).await
}

fn by_service(service: &Service) -> EndedBy {
    EndedBy::Service(ServerKey::parse(service.server_key.expose_secret()).expect("a key").id())
}

async fn sweep(service: &Service, audit: Duration) -> usize {
    let retention = RetentionPeriods { ended_sessions: DAY * 30, audit, addresses: DAY * 30 };
    let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
    let removed = sweeper.run_once().await.expect("sweeps");
    removed.iter().filter(|(kind, _)| *kind == SweepKind::Sessions).map(|(_, rows)| rows).sum()
}

async fn stored(service: &Service, kind: i16) -> usize {
    service.database.lines(&format!("SELECT id FROM audit_events WHERE kind = {kind}")).await.len()
}

#[tokio::test]
async fn a_session_records_its_own_creation_and_leaves_the_record_behind() {
    let service = Service::start().await;
    let mut created = vec![];
    for wire in Wire::ALL {
        // In a group, and alone.
        for request_id in [None, Some(sessiond_core::clock::new_uuid().to_string())] {
            service.clock.advance(TICK);
            let request = json!({"user_id": USER, "request_id": request_id});
            let answer = service.ask(wire, "CreateSession", service.key(), &request).await.expect("opens");
            created.push((answer["session"]["id"].as_str().expect("an id").to_owned(), service.clock.now()));
        }
    }
    service.impersonate("bob", "root").await;
    let entries = of_kind(&service, "SESSION_CREATED").await;
    let found: Vec<_> = entries.iter().map(|entry| (entry.session.expect("one").to_string(), entry.at)).collect();
    assert_eq!(found, created);
    for entry in &entries {
        assert_eq!((entry.user.as_deref(), entry.by), (Some(USER), by_service(&service)));
    }
    assert_eq!(stored(&service, 6).await, 0, "a sign-in writes nothing but the session");
    assert_eq!(of_kind(&service, "IMPERSONATION_OPENED").await.len(), 1, "impersonations have their own kind only");

    service.database.run("UPDATE sessions SET revoked_at = created_at, revoke_reason = 1").await;
    service.clock.advance(DAY * 30);
    assert_eq!(sweep(&service, DAY * 400).await, 7);
    assert_eq!(stored(&service, 6).await, 6);
    assert_eq!(of_kind(&service, "SESSION_CREATED").await, entries, "as before");
    service.clock.advance(DAY * 370);
    sweep(&service, DAY * 400).await;
    assert!(of_kind(&service, "SESSION_CREATED").await.is_empty());
}

#[tokio::test]
async fn a_session_older_than_the_audit_leaves_no_record() {
    let service = Service::start().await;
    service.sign_in(USER, "phone").await.sign_out().await.expect("signs out");
    service.clock.advance(DAY * 31);
    service.database.run("DELETE FROM sweeps WHERE task = 'events'").await;
    // The events are not swept, so that a record would stay.
    service.database.run("INSERT INTO sweeps (task, completed_at) VALUES ('events', now())").await;
    assert_eq!(sweep(&service, DAY * 30).await, 1);
    assert_eq!(stored(&service, 6).await, 0);
}

/// The previous release does not name the creator's key, and has no details.
#[tokio::test]
async fn sessions_and_events_of_the_previous_release_are_read_and_swept() {
    let service = Service::start().await;
    let old = service.sign_in(USER, "phone").await;
    service.database.run("UPDATE sessions SET creator_key_id = NULL").await;
    service
        .database
        .run(
            "INSERT INTO audit_events (project_id, id, at, kind, session_id, user_id, impersonator_id, key_kind, key_id, actor,
                 actor_id, ip, slot)
             SELECT project_id, gen_random_uuid(), created_at, 2, id, user_id, NULL, NULL, NULL, 1, NULL, NULL, slot FROM sessions",
        )
        .await;
    assert!(of_kind(&service, "SESSION_CREATED").await.is_empty());
    assert_eq!(of_kind(&service, "REFRESH_REPEATED_ELSEWHERE").await[0].session, Some(old.id()));
    old.sign_out().await.expect("signs out");
    service.clock.advance(DAY * 31);
    assert_eq!(sweep(&service, DAY * 400).await, 1);
    assert!(of_kind(&service, "SESSION_CREATED").await.is_empty());
}

#[tokio::test]
async fn an_update_is_recorded_with_the_names_of_what_changed() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let user = format!("user-{wire:?}");
        let created = json!({"user_id": user, "claims": {"plan": "free", "team": "a"}, "labels": {"tier": "1"}});
        let created = service.ask(wire, "CreateSession", service.key(), &created).await.expect("opens");
        let id = created["session"]["id"].as_str().expect("an id");
        let change = json!({"session": {"id": id, "claims": {"plan": "hush-hush", "role": "x", "team": "a"},
            "labels": {"tier": "2"}, "device_name": "Ada's phone"}});
        let update = async || service.ask(wire, "UpdateSession", service.key(), &change).await.expect("changes");
        service.clock.advance(TICK);
        update().await;
        let recorded_at = service.clock.now();
        service.clock.advance(TICK);
        update().await;

        let filter = AuditFilter {
            kinds: vec!["SESSION_UPDATED"],
            session: SessionId::parse(id),
            ..AuditFilter::all(project())
        };
        let entries = read(&service, filter, RecordOrder::OldestFirst).await;
        let [entry] = entries.as_slice() else { panic!("a repeat changes nothing: {entries:?}") };
        let details = json!({"changed": ["claims.plan", "claims.role", "labels.tier", "device_name"]});
        assert_eq!(entry.details, Some(details), "{wire:?}");
        assert_eq!((entry.user.clone(), entry.by, entry.at), (Some(user), by_service(&service), recorded_at));
    }
}

#[tokio::test]
async fn a_policy_change_is_recorded_with_both_values() {
    let service = Service::start().await;
    service.set_policy(|_| {}).await;
    assert!(of_kind(&service, "POLICY_CHANGED").await.is_empty(), "nothing has changed");
    service.set_policy(|policy| policy.idle_ttl = DAY * 2).await;
    let entries = of_kind(&service, "POLICY_CHANGED").await;
    let details = json!({"changed": {"idle_ttl": {"from": "90d", "to": "2d"}}});
    assert_eq!((entries.len(), entries[0].details.clone(), entries[0].by), (1, Some(details), EndedBy::Operator));
}

#[tokio::test]
async fn endpoints_are_recorded_without_the_query_of_their_urls() {
    let service = Service::start().await;
    let url = "https://a.example/logout?token=hunter2".to_owned();
    let new = NewEndpoint { project: project(), kind: EndpointKind::Logout, url, audience: "shop".to_owned() };
    let id = service.app.endpoint_add(new, &[]).await.expect("adds");
    service.clock.advance(TICK);
    for _ in 0..2 {
        service.app.endpoint_remove(project(), id).await.expect("removes");
    }
    let kind = EndpointKind::Logout.as_str();
    let details =
        json!({"endpoint_id": id.to_string(), "kind": kind, "url": "https://a.example/logout", "audience": "shop"});
    for kind in ["ENDPOINT_ADDED", "ENDPOINT_REMOVED"] {
        let entries = of_kind(&service, kind).await;
        assert_eq!((entries.len(), entries[0].details.as_ref()), (1, Some(&details)), "{kind}");
    }
}

#[tokio::test]
async fn a_restore_and_a_new_history_are_recorded_in_every_project() {
    let service = Service::start().await;
    service.create_project("other").await;
    sessiond::app::after_restore(&service.store, &service.clock).await.expect("writes");
    for name in [PROJECT, "other"] {
        let filter = AuditFilter {
            kinds: vec!["HISTORY_STARTED", "RESTORED"],
            ..AuditFilter::all(ProjectId::parse(name).expect("a name"))
        };
        let entries = read(&service, filter, RecordOrder::OldestFirst).await;
        let mut kinds: Vec<_> = entries.iter().map(|entry| (entry.kind, entry.by)).collect();
        kinds.sort_unstable_by_key(|(kind, _)| *kind);
        assert_eq!(kinds, [("HISTORY_STARTED", EndedBy::Operator), ("RESTORED", EndedBy::Operator)], "{name}");
    }
}

/// What was counted, once it is written: the total, and the last entry. The server writes every minute by itself, too.
async fn refused(service: &Service, kind: &'static str) -> (u64, AuditEntry) {
    service.app.flush_refused().await.expect("writes");
    let count = |entry: &AuditEntry| entry.details.as_ref().expect("details")["count"].as_u64().expect("a number");
    let entries = of_kind(service, kind).await;
    (entries.iter().map(count).sum(), entries.last().expect("an entry").clone())
}

#[tokio::test]
async fn refused_attempts_with_genuine_tokens_are_counted_on_every_wire() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let device = service.sign_in(USER, "phone").await;
    let forged = flip(&device.access_token, device.access_token.len() - 10);
    device.sign_out().await.expect("signs out");
    for wire in Wire::ALL {
        service.list(wire, device.bearer(), Default::default()).await.expect_err("has ended");
        assert!(service.refresh(wire, refresh_token(&device.refresh_token)).await.is_err(), "has ended");
        service.list(wire, bearer(&forged), Default::default()).await.expect_err("is forged");
    }
    let verify = format!("/projects/{PROJECT}/auth/verify");
    assert_eq!(service.wires.http(Method::GET, &verify, device.bearer(), "").await.status(), 401);
    let (count, entry) = refused(&service, "REFUSED_SESSION_REVOKED").await;
    assert_eq!((count, entry.session), (7, Some(device.id())));
    assert_eq!((entry.user.as_deref(), entry.by), (None, EndedBy::Sessiond));
    assert_eq!(refused(&service, "REFUSED_SESSION_REVOKED").await.0, 7, "is written once");

    let verify = "/projects/other/auth/verify";
    let live = service.sign_in(USER, "laptop").await;
    assert_eq!(service.wires.http(Method::GET, verify, live.bearer(), "").await.status(), 401);
    let foreign =
        both(header("content-type", "application/x-www-form-urlencoded"), basic("demo", other.expose_secret()));
    let form = format!("grant_type=refresh_token&refresh_token={}", live.refresh_token);
    let answer = service.wires.http(Method::POST, "/oauth2/token", foreign, form).await;
    assert!(answer.status().is_client_error(), "{answer:?}");
    let (count, entry) = refused(&service, "REFUSED_WRONG_PROJECT").await;
    assert_eq!((count, entry.session), (1, Some(live.id())));
    let filter = AuditFilter {
        kinds: vec!["REFUSED_WRONG_PROJECT"],
        ..AuditFilter::all(ProjectId::parse("other").expect("one"))
    };
    let found = read(&service, filter, RecordOrder::OldestFirst).await;
    let key = ServerKey::parse(other.expose_secret()).expect("a key").id();
    assert_eq!(found.iter().map(|entry| entry.key).collect::<Vec<_>>(), [Some((KeyKind::Server, key))]);
}

fn basic(id: &str, secret: &str) -> http::HeaderMap {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{id}:{secret}"));
    header("authorization", &format!("Basic {text}"))
}

#[tokio::test]
async fn a_reused_refresh_token_is_counted_and_its_session_revoked() {
    let service = Service::start().await;
    let mut phone = service.sign_in(USER, "phone").await;
    let thief = phone.stolen_copy();
    phone.refresh().await.expect("rotates");
    phone.refresh().await.expect("rotates");
    service.clock.advance(Duration::from_secs(60));
    assert!(thief.refresh_without_keeping().await.is_err(), "is reused");
    assert!(thief.refresh_without_keeping().await.is_err(), "has ended");
    let (count, entry) = refused(&service, "REFUSED_REFRESH_TOKEN_REUSED").await;
    assert_eq!((count, entry.session), (1, Some(phone.id())));
    assert_eq!(refused(&service, "REFUSED_SESSION_REVOKED").await.0, 1);
    assert_eq!(of_kind(&service, "REFRESH_TOKEN_REUSED").await.len(), 1, "the revocation");
}

#[tokio::test]
async fn refused_server_keys_are_counted_without_their_secrets() {
    let service = Service::start().await;
    let revoked = service.admin_key().await;
    let id = ServerKey::parse(revoked.expose_secret()).expect("a key").id();
    service.app.server_key_revoke(id).await.expect("revokes");
    let text = service.server_key.expose_secret();
    let wrong = flip(text, text.len() - 10);
    for wire in Wire::ALL {
        for key in [revoked.expose_secret(), &wrong, &format!("sdsk_{}", "A".repeat(64))] {
            service.list(wire, bearer(key), Default::default()).await.expect_err("is refused");
        }
    }
    let (count, entry) = refused(&service, "REFUSED_SERVER_KEY_REVOKED").await;
    assert_eq!((count, entry.key), (3, Some((KeyKind::Server, id))));
    let (count, entry) = refused(&service, "REFUSED_SERVER_KEY_SECRET").await;
    assert_eq!((count, entry.key.map(|(_, key)| key.as_uuid())), (3, by_service(&service).id()));
    let all = service.database.lines("SELECT e::text FROM audit_events AS e").await.join("\n");
    for secret in [revoked.expose_secret(), wrong.as_str()] {
        assert!(!all.contains(&secret[secret.len() - 20..]), "{all}");
    }
}

/// Somebody may have stolen the key of a guard, and tries what else it opens.
#[tokio::test]
async fn a_genuine_key_beyond_its_privileges_is_counted() {
    let service = Service::start().await;
    let (verifier, id) =
        service.app.server_key_create(project(), Role::Verifier).await.map(|(id, key)| (key, id)).expect("makes");
    for wire in Wire::ALL {
        service.list(wire, bearer(verifier.expose_secret()), Default::default()).await.expect_err("a service may");
    }
    let (count, entry) = refused(&service, "REFUSED_SERVER_KEY_PRIVILEGES").await;
    assert_eq!((count, entry.key), (3, Some((KeyKind::Server, id))));

    let (id, plain) = service.app.server_key_create(project(), Role::Service).await.expect("makes a key");
    let request = CreateSessionRequest {
        user_id: USER.to_owned(),
        is_impersonation: true,
        impersonator_id: Some("root".to_owned()),
        ..CreateSessionRequest::default()
    };
    assert!(service.create_as(Wire::Grpc, &plain, request).await.is_err(), "was not granted");
    let (count, _) = refused(&service, "REFUSED_SERVER_KEY_PRIVILEGES").await;
    let entries = of_kind(&service, "REFUSED_SERVER_KEY_PRIVILEGES").await;
    assert_eq!(count, 4);
    assert!(entries.iter().any(|entry| entry.key == Some((KeyKind::Server, id))), "{entries:?}");
}

#[tokio::test]
async fn a_genuine_key_beyond_its_rate_limit_is_counted() {
    let rates = Rates { server_key_rate: 1, server_key_burst: 2, ..crate::harness::rates() };
    let service = Service::start_rated(rates).await;
    let mut limited = 0;
    for _ in 0..5 {
        limited += u64::from(service.list(Wire::Rest, service.key(), Default::default()).await.is_err());
    }
    let text = service.server_key.expose_secret();
    let wrong = flip(text, text.len() - 10);
    service.list(Wire::Rest, bearer(&wrong), Default::default()).await.expect_err("is refused");
    let (count, entry) = refused(&service, "REFUSED_RATE_LIMITED").await;
    assert_eq!((limited, count), (3, 3));
    assert_eq!(entry.key.map(|(_, key)| key.as_uuid()), by_service(&service).id());
}

#[tokio::test]
async fn counts_that_cannot_be_written_are_kept() {
    let service = Service::start().await;
    let device = service.sign_in(USER, "phone").await;
    device.sign_out().await.expect("signs out");
    device.list().await.expect_err("has ended");
    service.database.run("ALTER TABLE audit_events RENAME TO away").await;
    service.app.flush_refused().await.expect_err("cannot write");
    device.list().await.expect_err("has ended");
    service.database.run("ALTER TABLE away RENAME TO audit_events").await;
    assert_eq!(refused(&service, "REFUSED_SESSION_REVOKED").await.0, 2);
}

#[tokio::test]
async fn an_erasure_leaves_entries_without_the_user_and_one_of_its_own() {
    let service = Service::start().await;
    let admin = service.admin_key().await;
    let device = service.sign_in(USER, "phone").await;
    let ended = service.sign_in(USER, "laptop").await;
    ended.sign_out().await.expect("signs out");
    ended.list().await.expect_err("has ended");
    service.app.flush_refused().await.expect("writes");
    let change = json!({"session": {"id": device.session, "claims": {USER: "x"}}});
    service.ask(Wire::Grpc, "UpdateSession", service.key(), &change).await.expect("changes");
    service.impersonate(USER, "root").await;
    // One that was swept before.
    service.sign_in(USER, "old").await.sign_out().await.expect("signs out");
    service.database.run("UPDATE sessions SET revoked_at = now() - interval '60 days' WHERE device_name = 'old'").await;
    sweep(&service, DAY * 400).await;
    let before = read(&service, AuditFilter::all(project()), RecordOrder::OldestFirst).await;
    assert!(before.iter().filter(|entry| entry.user.as_deref() == Some(USER)).count() >= 6, "{before:#?}");

    let key = EndedBy::Service(ServerKey::parse(admin.expose_secret()).expect("a key").id());
    service.erase(Wire::Rest, bearer(admin.expose_secret()), USER).await.expect("erases");
    let after = read(&service, AuditFilter::all(project()), RecordOrder::OldestFirst).await;
    for entry in &before {
        let same = after.iter().find(|other| other.id == entry.id).unwrap_or_else(|| panic!("gone: {entry:?}"));
        assert_eq!((same.kind, same.at, same.by, same.session), (entry.kind, entry.at, entry.by, entry.session));
    }
    let erased = of_kind(&service, "USER_ERASED").await;
    assert_eq!((erased.len(), erased[0].by, erased[0].details.clone()), (1, key, Some(json!({"sessions": 3}))));
    for table in ["audit_events", "revocations", "sessions", "users"] {
        let rows = service.database.lines(&format!("SELECT t::text FROM {table} AS t")).await.join("\n");
        assert!(!rows.contains(USER), "{table}: {rows}");
    }
}

#[tokio::test]
async fn filters_and_both_orders_agree_over_many_pages() {
    let service = Service::start().await;
    let device = service.sign_in(USER, "phone").await;
    let filled = "WITH filled AS (
            SELECT i, (lpad(to_hex(floor(extract(epoch FROM now()) * 1000)::bigint - 3000 + i), 12, '0') || '7000'
                || '8000' || lpad(to_hex(i), 12, '0'))::uuid AS id, now() - interval '3 seconds' + i * interval '1 ms' AS at,
                'user-' || i % 7 AS name
            FROM generate_series(0, 2999) AS i)";
    // All in one slot, whichever user they are about.
    let slot = service.slot_of(USER).await;
    for (insert, modulus) in [
        (
            format!(
                "INSERT INTO revocations (slot, project_id, id, at, reason, session_id, user_id, access_expires_at, actor,
                     writer, seq)
                 SELECT {slot}, 'demo', id, at, 1, id, name, at, 1, 0, 0 FROM filled"
            ),
            0,
        ),
        (
            format!(
                "INSERT INTO audit_events (slot, project_id, id, at, kind, session_id, user_id, actor)
                 SELECT {slot}, 'demo', id, at, 2, id, name, 1 FROM filled"
            ),
            1,
        ),
    ] {
        service.database.run(&format!("{filled} {insert} WHERE i % 2 = {modulus}")).await;
    }
    let all = read(&service, AuditFilter::all(project()), RecordOrder::OldestFirst).await;
    assert_eq!(all.len(), 3_000 + 3 + 1, "with the keys and the session");
    assert!(all.is_sorted_by(|one, other| one.id < other.id));
    let mut newest_first = read(&service, AuditFilter::all(project()), RecordOrder::NewestFirst).await;
    newest_first.reverse();
    assert!(newest_first == all);

    let middle = all[1_500].at;
    let own = by_service(&service);
    type Matches<'a> = Box<dyn Fn(&AuditEntry) -> bool + 'a>;
    let filters: [(AuditFilter, Matches<'_>); 9] = [
        (
            AuditFilter { user: UserId::parse("user-3"), ..AuditFilter::all(project()) },
            Box::new(|entry| entry.user.as_deref() == Some("user-3")),
        ),
        (
            AuditFilter { kinds: vec!["SIGNED_OUT", "KEY_CREATED"], ..AuditFilter::all(project()) },
            Box::new(|entry| ["SIGNED_OUT", "KEY_CREATED"].contains(&entry.kind)),
        ),
        (AuditFilter { since: Some(middle), ..AuditFilter::all(project()) }, Box::new(move |entry| entry.at >= middle)),
        (AuditFilter { until: Some(middle), ..AuditFilter::all(project()) }, Box::new(move |entry| entry.at < middle)),
        (
            AuditFilter { session: Some(device.id()), ..AuditFilter::all(project()) },
            Box::new(|entry| entry.kind == "SESSION_CREATED"),
        ),
        (
            AuditFilter { session: all[700].session, ..AuditFilter::all(project()) },
            Box::new(|entry| entry.id == all[700].id),
        ),
        (
            AuditFilter { actor: Some(AuditActor::Kind("operator")), ..AuditFilter::all(project()) },
            Box::new(|entry| entry.by == EndedBy::Operator),
        ),
        (
            AuditFilter { actor: own.id().map(AuditActor::Id), ..AuditFilter::all(project()) },
            Box::new(move |entry| entry.by == own),
        ),
        (
            AuditFilter {
                key: Some(ServerKey::parse(service.server_key.expose_secret()).expect("a key").id()),
                ..AuditFilter::all(project())
            },
            Box::new(move |entry| entry.by == own || entry.key.is_some_and(|(kind, _)| kind == KeyKind::Server)),
        ),
    ];
    for (filter, admits) in filters {
        let expected: Vec<_> = all.iter().filter(|entry| admits(entry)).cloned().collect();
        assert!(!expected.is_empty(), "{filter:?}");
        for order in [RecordOrder::OldestFirst, RecordOrder::NewestFirst] {
            let mut found = read(&service, filter.clone(), order).await;
            if order == RecordOrder::NewestFirst {
                found.reverse();
            }
            assert_eq!(found, expected, "{filter:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_filters_and_prints_the_newest_entries_last() {
    let service = Service::start().await;
    service.clock.advance(TICK);
    let phone = service.sign_in("ada", "phone").await;
    service.clock.advance(TICK);
    service.set_policy(|policy| policy.idle_ttl = DAY * 2).await;
    let env = [("DATABASE_URL", service.database.url.as_str())];
    let run = |args: &[&str]| sessiond(&[&["audit", "--project", "demo"], args].concat(), &env);
    let lines = |args: &[&str]| -> Vec<Value> {
        let output = run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let kinds = |args: &[&str]| -> Vec<String> {
        lines(args).iter().map(|line| line["kind"].as_str().expect("a name").to_owned()).collect()
    };
    let newest = ["SESSION_CREATED", "POLICY_CHANGED"];
    assert_eq!(kinds(&["--limit", "2"]), newest);
    assert_eq!(kinds(&["--limit", "all"])[3..], newest);
    assert_eq!(kinds(&["--limit", "1", "--reverse"]), ["POLICY_CHANGED"]);
    assert_eq!(kinds(&["--limit", "all", "--reverse"])[0], "POLICY_CHANGED");
    assert_eq!(kinds(&["--session", &phone.session]), ["SESSION_CREATED"]);
    assert_eq!(kinds(&["--user", "ada", "--since", "1h"]), ["SESSION_CREATED"]);
    assert_eq!(kinds(&["--kind", "policy_changed,signed_out"]), ["POLICY_CHANGED"]);
    assert_eq!(kinds(&["--actor", "service"]), ["SESSION_CREATED"]);
    let key = by_service(&service).id().expect("a key").to_string();
    let mut about = kinds(&["--key", &key]);
    about.sort_unstable();
    assert_eq!(about, ["KEY_CREATED", "SESSION_CREATED"]);
    assert!(kinds(&["--until", "2020-01-01"]).is_empty());

    let created = &lines(&["--actor", &key])[0];
    let fields: Vec<_> = created.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected = [
        "id",
        "at",
        "kind",
        "actor",
        "actor_id",
        "session_id",
        "spared_session_id",
        "key_kind",
        "key_id",
        "user_id",
        "impersonator_id",
        "ip",
        "details",
    ];
    expected.sort_unstable();
    assert_eq!(fields, expected, "stable, and documented in docs/operating/audit.md");
    assert_eq!((&created["actor"], &created["actor_id"]), (&json!("service"), &json!(key)));
    assert_eq!((&created["session_id"], &created["user_id"]), (&json!(phone.session), &json!("ada")));

    let text = String::from_utf8(run(&["--limit", "1"]).stdout).expect("UTF-8");
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["AT", "KIND", "ACTOR", "ABOUT", "USER", "FROM", "DETAILS"]);
    assert_eq!(words[1][1..], ["POLICY_CHANGED", "operator", "-", "-", "-", "idle_ttl=90d->2d"]);

    for (args, says) in [
        (["--kind", "SIGNED"], "SESSION_CREATED, SESSION_UPDATED, SIGNED_OUT"),
        (["--actor", "root"], "must be one of holder, user, service, sessiond, operator"),
        (["--since", "yesterday"], "or a duration before now as 30m, 2h or 7d"),
        (["--limit", "0"], "must be 1 to 10000, or `all`"),
        (["--session", "x"], "must be a session's id"),
        (["--key", "sdsk_x"], "`server-key list`"),
    ] {
        assert_says(&run(&args), false, says);
    }
    assert_says(&run(&["--since", "1h", "--until", "2h"]), false, "--since must be before --until");
}
