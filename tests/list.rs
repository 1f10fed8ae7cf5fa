//! Listing sessions: each one once, newest first, and only the caller's.

use std::{collections::BTreeMap, time::Duration};

use http::HeaderMap;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use secrecy::ExposeSecret as _;
use sessiond::pb::{CreateSessionRequest, ListSessionsRequest, RevokeReason, Session, SessionState};

use crate::{
    assert_refused,
    harness::{Device, Service, Wire, bearer, calls::any_of, eventually},
};

/// Ids created within one millisecond have no order.
const TICK: Duration = Duration::from_millis(1);

fn of(user: &str) -> ListSessionsRequest {
    ListSessionsRequest { user_id: Some(user.to_owned()), ..ListSessionsRequest::default() }
}

fn ids(sessions: &[Session]) -> Vec<&str> {
    sessions.iter().map(|session| session.id.as_str()).collect()
}

async fn sign_ins<'a>(service: &'a Service, user: &str, count: usize) -> Vec<Device<'a>> {
    let mut devices = vec![];
    for n in 0..count {
        service.clock.advance(TICK);
        devices.push(service.sign_in(user, &format!("device {n}")).await);
    }
    devices
}

#[tokio::test]
async fn a_user_sees_their_own_live_sessions_newest_first_on_every_wire() {
    let service = Service::start().await;
    let mine = sign_ins(&service, "ada", 3).await;
    sign_ins(&service, "bob", 1).await;
    for wire in Wire::ALL {
        for user_id in [None, Some("me"), Some("ada")] {
            let request = ListSessionsRequest { user_id: user_id.map(str::to_owned), ..Default::default() };
            let page = service.list(wire, mine[1].bearer(), request).await.expect("lists");
            let expected = [&mine[2].session, &mine[1].session, &mine[0].session];
            assert_eq!(ids(&page.items), expected, "{wire:?} {user_id:?}");
            assert_eq!(page.next_page_token, "");
            let current: Vec<bool> = page.items.iter().map(|session| session.is_current_session).collect();
            assert_eq!(current, [false, true, false], "{wire:?}");
        }
        let current = service.current(wire, mine[2].bearer()).await.expect("answers");
        assert!(current.id == mine[2].session && current.is_current_session, "{wire:?}");
        assert_eq!((current.user_id.as_str(), current.device_name.as_deref()), ("ada", Some("device 2")));
        assert_refused!(service.list(wire, mine[0].bearer(), of("bob")), "NOT_YOUR_USER");
    }
}

#[tokio::test]
async fn a_service_lists_any_user_or_the_whole_project() {
    let service = Service::start().await;
    let (ada, bob) = (sign_ins(&service, "ada", 2).await, sign_ins(&service, "bob", 2).await);
    for wire in Wire::ALL {
        let page = service.list(wire, service.key(), of("ada")).await.expect("lists");
        assert_eq!(ids(&page.items), [&ada[1].session, &ada[0].session], "{wire:?}");
        let page = service.list(wire, service.key(), ListSessionsRequest::default()).await.expect("lists");
        assert_eq!(ids(&page.items), [&bob[1].session, &bob[0].session, &ada[1].session, &ada[0].session]);
        assert!(page.items.iter().all(|session| !session.is_current_session), "a service is in no session");
        assert!(service.list(wire, service.key(), of("nobody")).await.expect("lists").items.is_empty());
        assert_refused!(service.list(wire, service.key(), of("me")), "SCHEMA_ERROR");
        assert_refused!(service.list(wire, HeaderMap::new(), of("ada")), "CREDENTIALS_MISSING");
        assert_refused!(service.current(wire, service.key()), "INSUFFICIENT_ACCESS_TYPE");
    }
}

/// AIP-158: 0 means the default, and more than the maximum means the maximum.
#[tokio::test]
async fn a_page_size_of_0_or_too_large_is_not_an_error() {
    let service = Service::start().await;
    sign_ins(&service, "ada", 51).await;
    for wire in Wire::ALL {
        for (page_size, expected) in [(None, 50), (Some(0), 50), (Some(1_001), 51), (Some(i32::MAX), 51)] {
            let page = service.list(wire, service.key(), ListSessionsRequest { page_size, ..of("ada") }).await;
            assert_eq!(page.expect("lists").items.len(), expected, "{wire:?} {page_size:?}");
        }
    }
}

/// gRPC clients accept responses of 4 MiB by default.
#[tokio::test]
async fn a_page_of_large_sessions_ends_early() {
    let service = Service::start().await;
    let labels = (0..32).map(|n| (format!("{n:063}"), "x".repeat(255))).collect();
    let numbers = (0..900).map(|_| Value { kind: Some(Kind::NumberValue(1.0)) }).collect();
    let list = Value { kind: Some(Kind::ListValue(ListValue { values: numbers })) };
    let claims = Some(Struct { fields: BTreeMap::from([("n".to_owned(), list)]) });
    let large = CreateSessionRequest { user_id: "ada".to_owned(), labels, claims, ..CreateSessionRequest::default() };
    let mut expected = vec![];
    for _ in 0..90 {
        service.clock.advance(TICK);
        let created = service.create(Wire::Grpc, large.clone()).await.expect("signs in");
        expected.insert(0, created.session.expect("a session").id);
    }
    for wire in Wire::ALL {
        let mut request = ListSessionsRequest { page_size: Some(1_000), ..of("ada") };
        let (mut found, mut sizes) = (vec![], vec![]);
        loop {
            let page = service.list(wire, service.key(), request.clone()).await.expect("lists");
            sizes.push(page.encoded_len());
            found.extend(page.items.into_iter().map(|session| session.id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(found, expected, "{wire:?}");
        let (_, full) = sizes.split_last().expect("a page");
        assert!(full.iter().all(|size| (1 << 20..3 << 20).contains(size)) && !full.is_empty(), "{wire:?}: {sizes:?}");
    }
}

/// Between the pages some sessions end and others are created. Each session that was live throughout is on exactly one
/// page.
#[tokio::test]
async fn paging_finds_every_session_exactly_once_despite_changes() {
    let service = Service::start().await;
    let mut devices = sign_ins(&service, "ada", 23).await;
    for page_size in [1, 2, 7, 23, 24] {
        for headers in [devices[0].bearer(), service.key()] {
            let mut request = ListSessionsRequest { page_size: Some(page_size), ..of("ada") };
            let (mut found, mut pages) = (vec![], 0);
            let before: Vec<String> = devices.iter().rev().map(|device| device.session.clone()).collect();
            let mut ended = vec![];
            loop {
                let page = service.list(Wire::Rest, headers.clone(), request.clone()).await.expect("lists");
                pages += 1;
                found.extend(page.items.into_iter().map(|session| session.id));
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
                // The page size may change between pages.
                request.page_size = Some(page_size + pages % 2);
                if pages % 3 == 1 {
                    devices.extend(sign_ins(&service, "ada", 1).await);
                    let gone = devices.remove(devices.len() / 2);
                    gone.sign_out().await.expect("signs out");
                    ended.push(gone.session);
                }
            }
            assert!(found.windows(2).all(|pair| pair[0] > pair[1]), "newest first, none twice: {found:?}");
            assert!(
                before.iter().all(|id| found.contains(id) || ended.contains(id)),
                "size {page_size}: none is missed"
            );
            assert!(found.iter().all(|id| before.contains(id)), "what is opened later is on no later page");
        }
    }
}

#[tokio::test]
async fn ended_sessions_are_listed_with_time_and_reason_on_request() {
    let service = Service::start().await;
    let devices = sign_ins(&service, "ada", 4).await;
    let short = CreateSessionRequest { user_id: "ada".into(), expires_in_millis: Some(10_000), ..Default::default() };
    service.clock.advance(TICK);
    let ran_out = service.device(service.create(Wire::Grpc, short).await.expect("opens"));
    devices[0].sign_out().await.expect("signs out");
    devices[1].revoke(&devices[2]).await.expect("ends it");
    let at = service.clock.now().as_seconds();
    service.clock.advance(Duration::from_secs(10));

    for wire in Wire::ALL {
        let state = |state: SessionState| ListSessionsRequest { state: state.into(), ..of("ada") };
        let ended = service.list(wire, service.key(), state(SessionState::Ended)).await.expect("lists").items;
        assert_eq!(ids(&ended), [&ran_out.session, &devices[2].session, &devices[0].session], "{wire:?}");
        let why = |session: &Session| session.revoke_reason.map(|_| session.revoke_reason());
        assert_eq!(
            ended.iter().map(why).collect::<Vec<_>>(),
            [None, Some(RevokeReason::Revoked), Some(RevokeReason::SignedOut)],
            "{wire:?}"
        );
        assert!(ended[0].revoked_at.is_none() && ended[1].revoked_at.expect("a time").seconds == at);
        let any = service.list(wire, service.key(), state(SessionState::Any)).await.expect("lists").items;
        let live = service.list(wire, service.key(), state(SessionState::Live)).await.expect("lists").items;
        assert_eq!((any.len(), ids(&live)), (5, vec![devices[3].session.as_str(), &devices[1].session]));
    }

    // A cut-off shows in the sessions that it ended, not in those that had already ended.
    service.clock.advance(Duration::from_secs(1));
    devices[3].revoke_all().await.expect("ends them");
    let all = service.list_all(service.key(), any_of("ada")).await;
    let why: Vec<_> = all.iter().map(|session| session.revoke_reason.map(|_| session.revoke_reason())).collect();
    let fell = Some(RevokeReason::RevokedAll);
    assert_eq!(why, [None, fell, Some(RevokeReason::Revoked), fell, Some(RevokeReason::SignedOut)]);
}

#[tokio::test]
async fn all_filters_must_match() {
    let service = Service::start().await;
    let open = async |device: &str, labels: &[(&str, &str)]| {
        service.clock.advance(TICK);
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let request = CreateSessionRequest {
            user_id: "ada".into(),
            device_name: Some(device.to_owned()),
            labels,
            ..Default::default()
        };
        service.device(service.create(Wire::Grpc, request).await.expect("opens")).session
    };
    let both = open("phone", &[("team", "blue"), ("path", "a=b")]).await;
    let blue = open("laptop", &[("team", "blue")]).await;
    let red = open("phone", &[("team", "red")]).await;
    let cases: [(&[&str], Option<&str>, Vec<&str>); 7] = [
        (&[], None, vec![&red, &blue, &both]),
        (&["team=blue"], None, vec![&blue, &both]),
        (&["team=blue", "path=a=b"], None, vec![&both]),
        (&["team=blue", "team=red"], None, vec![]),
        (&[], Some("phone"), vec![&red, &both]),
        (&["team=blue"], Some("phone"), vec![&both]),
        (&["team="], None, vec![]),
    ];
    for (labels, device, expected) in cases {
        for wire in Wire::ALL {
            let request = ListSessionsRequest {
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
                device_name: device.map(str::to_owned),
                ..of("ada")
            };
            let page = service.list(wire, service.key(), request).await.expect("lists");
            assert_eq!(ids(&page.items), expected, "{wire:?} {labels:?} {device:?}");
        }
    }
}

/// A filter that few sessions match reads a bounded number of rows per page, in few queries.
#[tokio::test]
async fn a_selective_filter_gives_short_pages_and_finds_everything() {
    let service = Service::start().await;
    let rare = service.sign_in("ada", "rare").await;
    // As many newer sessions as a page reads, and a few more.
    let copies = "INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object(
            'id', overlay(s.id::text placing lpad(to_hex(n), 12, '0') from 25), 'device_name', 'common'))).*
        FROM sessions AS s, generate_series(x'f00000000000'::bigint, x'f00000000000'::bigint + 2099) AS n";
    service.database.run(copies).await;
    let before = pages_read(&service).await;
    for page_size in [1, 50, 1_000] {
        let request = ListSessionsRequest { device_name: Some("rare".into()), page_size: Some(page_size), ..of("ada") };
        let first = service.list(Wire::Rest, service.key(), request.clone()).await.expect("lists");
        let is_found = first.items.iter().any(|session| session.id == rare.session);
        assert!(is_found || !first.next_page_token.is_empty(), "the rest is on the next page");
        assert_eq!(ids(&service.list_all(service.key(), request).await), [&rare.session]);
    }
    let queries = pages_read(&service).await - before;
    assert!(queries <= 60, "{queries} queries for three walks over 2,101 rows");
}

/// How many pages of rows were read.
async fn pages_read(service: &Service) -> u64 {
    let line = r#"sessiond_store_operation_duration_seconds_count{operation="sessions_page",outcome="ok"} "#;
    let page = service.metrics_page().await;
    page.lines().find_map(|found| found.strip_prefix(line)).map_or(0, |count| count.parse().expect("a number"))
}

/// The caller's own session is checked by its row, which is most often among those of the first page.
#[tokio::test]
async fn a_first_page_is_one_query_and_refused_at_once_after_the_sign_out() {
    let service = Service::start().await;
    let other = service.replica().await;
    let mine = sign_ins(&service, "ada", 3).await;
    let looked_up = async || {
        let operation = r#"{operation="sessions_find",outcome="ok"}"#;
        service.metric(&format!("sessiond_store_operation_duration_seconds_count{operation}")).await
    };
    for wire in Wire::ALL {
        let (pages, before) = (pages_read(&service).await, looked_up().await);
        service.list(wire, mine[0].bearer(), of("me")).await.expect("lists");
        assert_eq!((pages_read(&service).await, looked_up().await), (pages + 1, before), "{wire:?}");
        let short = || ListSessionsRequest { page_size: Some(1), ..of("me") };
        service.list(wire, mine[0].bearer(), short()).await.expect("lists");
        assert_eq!(looked_up().await, before + 1, "{wire:?}: it is older than what was read");
    }
    // At another replica, so that only the rows know.
    other.revoke_current(Wire::Grpc, mine[0].bearer()).await.expect("signs out");
    for wire in Wire::ALL {
        for page_size in [None, Some(1)] {
            let request = ListSessionsRequest { page_size, ..of("me") };
            assert_refused!(service.list(wire, mine[0].bearer(), request), "SESSION_REVOKED");
        }
        assert_refused!(service.list(wire, mine[0].bearer(), of("bob")), "SESSION_REVOKED");
    }
}

#[tokio::test]
async fn impersonations_are_shown_only_to_services() {
    let service = Service::start().await;
    let own = service.sign_in("ada", "phone").await;
    service.clock.advance(TICK);
    let support = service.impersonate("ada", "root").await;
    for wire in Wire::ALL {
        for headers in [own.bearer(), support.bearer()] {
            let page = service.list(wire, headers.clone(), any_of("me")).await.expect("lists");
            assert_eq!(ids(&page.items), [&own.session], "{wire:?}");
            // Not even in the page token.
            let one = ListSessionsRequest { page_size: Some(1), ..any_of("me") };
            assert_eq!(service.list(wire, headers, one).await.expect("lists").next_page_token, "");
        }
        let page = service.list(wire, service.key(), of("ada")).await.expect("lists");
        assert_eq!(ids(&page.items), [&support.session, &own.session]);
        assert!(page.items[0].is_impersonation && page.items[0].impersonator_id.as_deref() == Some("root"));
        assert!(!page.items[1].is_impersonation && page.items[1].impersonator_id.is_none());

        // It can see itself, and no other impersonation.
        let current = service.current(wire, support.bearer()).await.expect("answers");
        assert_eq!(current.impersonator_id.as_deref(), Some("root"));
        assert_refused!(service.revoke_session(wire, own.bearer(), &support.session, None), "SESSION_NOT_FOUND");
        let by_support = service.revoke_session(wire, support.bearer(), &own.session, None);
        assert_refused!(by_support, "INSUFFICIENT_ACCESS_TYPE");
        assert_refused!(service.revoke_all(wire, support.bearer(), Default::default()), "INSUFFICIENT_ACCESS_TYPE");
    }
    assert!(own.is_signed_in().await && support.is_signed_in().await);
    // The user revokes it with all others, and does not learn that it existed.
    assert_eq!(own.revoke_others().await.expect("ends them"), 0);
    assert!(!support.is_signed_in().await && own.is_signed_in().await);
}

#[tokio::test]
async fn an_impersonation_can_sign_out() {
    let service = Service::start().await;
    let support = service.impersonate("ada", "root").await;
    support.sign_out().await.expect("signs out");
    assert!(!support.is_signed_in().await);
}

/// A page token reveals nothing about sessions hidden from the user.
#[tokio::test]
async fn a_page_token_never_names_a_hidden_session() {
    let service = Service::start().await;
    service.impersonate("ada", "root").await;
    service.clock.advance(TICK);
    let oldest = service.sign_in("ada", "phone").await;
    for n in 0..4 {
        service.clock.advance(TICK);
        match n % 2 {
            0 => service.impersonate("ada", "root").await,
            _ => service.sign_in("ada", "laptop").await,
        };
    }
    let request = ListSessionsRequest { page_size: Some(1), ..ListSessionsRequest::default() };
    let mut tokens = vec![];
    let mut asked = request.clone();
    let mut shown = vec![];
    loop {
        let page = service.list(Wire::Grpc, oldest.bearer(), asked.clone()).await.expect("lists");
        shown.extend(page.items.into_iter().map(|session| session.id));
        if page.next_page_token.is_empty() {
            break;
        }
        tokens.push(page.next_page_token.clone());
        asked.page_token = page.next_page_token;
    }
    assert_eq!((shown.len(), tokens.len()), (3, 2), "no page for the hidden one alone");
    for token in tokens {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let bytes = URL_SAFE_NO_PAD.decode(token).expect("base64");
        let named = uuid_text(&bytes[16..32]);
        assert!(shown.contains(&named), "{named} is not among {shown:?}");
    }
}

fn uuid_text(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[tokio::test]
async fn a_page_token_is_valid_only_for_its_query() {
    let service = Service::start().await;
    let other_key = service.create_project("other").await;
    let devices = sign_ins(&service, "ada", 3).await;
    let bobs = sign_ins(&service, "bob", 3).await;
    let request = ListSessionsRequest { page_size: Some(1), ..of("ada") };
    let token = service.list(Wire::Grpc, service.key(), request.clone()).await.expect("lists").next_page_token;
    let next = ListSessionsRequest { page_token: token.clone(), ..request.clone() };
    let before = service.database.contents().await;
    for wire in Wire::ALL {
        // Another caller may use the same query, and gets only their own sessions.
        let page = service.list(wire, devices[0].bearer(), next.clone()).await.expect("still works");
        assert_eq!(ids(&page.items), [&devices[1].session], "{wire:?}");

        let changed = |at: usize| crate::revoke::flip(&token, at);
        let labels = vec!["team=blue".to_owned()];
        let wrong: [(HeaderMap, ListSessionsRequest); 11] = [
            (service.key(), ListSessionsRequest { user_id: Some("bob".into()), ..next.clone() }),
            (service.key(), ListSessionsRequest { user_id: None, ..next.clone() }),
            (service.key(), ListSessionsRequest { state: SessionState::Any.into(), ..next.clone() }),
            (service.key(), ListSessionsRequest { labels, ..next.clone() }),
            (service.key(), ListSessionsRequest { device_name: Some("x".into()), ..next.clone() }),
            (service.key(), ListSessionsRequest { page_token: changed(0), ..next.clone() }),
            (service.key(), ListSessionsRequest { page_token: changed(30), ..next.clone() }),
            (service.key(), ListSessionsRequest { page_token: changed(60), ..next.clone() }),
            (service.key(), ListSessionsRequest { page_token: "rubbish".into(), ..next.clone() }),
            (bearer(other_key.expose_secret()), next.clone()),
            (bobs[0].bearer(), ListSessionsRequest { user_id: None, ..next.clone() }),
        ];
        for (headers, request) in wrong {
            let refused = service.list(wire, headers, request.clone()).await.expect_err("refused");
            let refusal = (refused.reason.as_str(), refused.fields);
            assert_eq!(refusal, ("SCHEMA_ERROR", vec!["page_token".to_owned()]), "{wire:?} {request:?}");
        }
    }
    assert_eq!(service.database.contents().await, before);
}

/// A server that has not loaded a new project yet continues from a page of another server.
#[tokio::test]
async fn a_page_token_of_a_new_project_works_on_every_replica() {
    let service = Service::start().await;
    let replica = service.replica().await;
    let key = service.create_project("brand-new").await;
    for _ in 0..3 {
        service.clock.advance(TICK);
        let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
        service.create_as(Wire::Grpc, &key, request).await.expect("opens");
    }
    let mut request = ListSessionsRequest { page_size: Some(1), ..of("ada") };
    let here = service.list(Wire::Grpc, bearer(key.expose_secret()), request.clone()).await.expect("lists");
    request.page_token = here.next_page_token;
    let there = replica.list(Wire::Grpc, bearer(key.expose_secret()), request).await.expect("still works");
    assert_ne!(here.items[0].id, there.items[0].id);
    assert!(!there.next_page_token.is_empty());
}

/// Recorded at most once a minute, in batches.
#[tokio::test]
async fn last_used_is_updated_at_most_once_a_minute() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let last_used = async || {
        let sessions = service.list_all(service.key(), of("ada")).await;
        sessions[0].last_used_at.expect("a time")
    };
    let opened = last_used().await;
    service.clock.advance(Duration::from_micros(59_999_999));
    phone.list().await.expect("is in use");
    service.app.flush_usage().await.expect("writes");
    assert_eq!(last_used().await, opened, "just before the minute is over");

    service.clock.advance(Duration::from_micros(1));
    phone.list().await.expect("is in use");
    service.app.flush_usage().await.expect("writes");
    eventually("the use is written down", async || last_used().await.seconds == opened.seconds + 60).await;
    let rows = service.database.lines("SELECT xmin FROM sessions").await;
    service.clock.advance(Duration::from_secs(59));
    service.current(Wire::Grpc, phone.bearer()).await.expect("answers");
    service.app.flush_usage().await.expect("writes");
    assert_eq!(service.database.lines("SELECT xmin FROM sessions").await, rows, "not written again");

    // Introspecting an access token counts as use; introspecting a refresh token does not.
    service.clock.advance(Duration::from_secs(400));
    service.introspect(Wire::Grpc, service.key(), &phone.refresh_token).await.expect("answers");
    service.app.flush_usage().await.expect("writes");
    assert_eq!(service.database.lines("SELECT xmin FROM sessions").await, rows);
    service.introspect(Wire::Grpc, service.key(), &phone.access_token).await.expect("answers");
    service.app.flush_usage().await.expect("writes");
    eventually("that is written down", async || last_used().await.seconds == opened.seconds + 60 + 59 + 400).await;
}

#[tokio::test]
async fn a_session_is_described_completely_on_every_wire() {
    let service = Service::start().await;
    let request = CreateSessionRequest {
        user_id: "ada".into(),
        ip: Some("2001:db8::1".into()),
        user_agent: Some("agent/1".into()),
        device_name: Some("phone".into()),
        labels: BTreeMap::from([("team".into(), "blue".into())]),
        ..Default::default()
    };
    let created = service.create(Wire::Grpc, request).await.expect("opens");
    let mut expected = created.session.clone().expect("a session");
    for wire in Wire::ALL {
        let listed = service.list(wire, service.key(), of("ada")).await.expect("lists").items;
        assert_eq!(listed, [expected.clone()], "{wire:?}");
    }
    expected.is_current_session = true;
    // Users are shown days: the start of the day of last use, and the end of the day of expiry.
    for (time, seconds) in [(&mut expected.last_used_at, 0), (&mut expected.idle_expires_at, 86_400)] {
        let time = time.as_mut().expect("a time");
        *time = prost_types::Timestamp { seconds: time.seconds - time.seconds % 86_400 + seconds, nanos: 0 };
    }
    for wire in Wire::ALL {
        assert_eq!(service.current(wire, bearer(&created.access_token)).await.expect("answers"), expected, "{wire:?}");
    }
}
