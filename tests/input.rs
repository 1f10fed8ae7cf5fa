//! Bad input on every protocol: a clear 4xx that names the error, and no effect. Foreign credentials: with another
//! project's token, key and ids, nothing is read and nothing revoked.

use std::collections::{BTreeMap, BTreeSet};

use http::HeaderMap;
use prost_reflect::DescriptorPool;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sessiond::pb::{self, CreateSessionRequest};
use sessiond_core::clock;
use uuid::Uuid;

use crate::{
    harness::{Service, Wire, bearer, calls::any_of, refresh_token},
    revoke::flip,
};

/// A request that must be refused: the method, the request, the reason, and the named field.
type Case = (&'static str, Value, &'static str, &'static str);

const SCHEMA: &str = "SCHEMA_ERROR";

/// Invalid requests, for every kind of caller.
fn misfits(id: &str) -> Vec<Case> {
    let labels = |count: usize| (0..count).map(|n| (format!("key{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    let deep = (0..12).fold(json!(1), |inner, _| json!([inner]));
    let large = "x".repeat(1_000_000);
    let mut cases = vec![
        ("ListSessions", json!({"page_size": -1}), SCHEMA, "page_size"),
        ("ListSessions", json!({"page_size": i32::MIN}), SCHEMA, "page_size"),
        ("ListSessions", json!({"page_token": "rubbish"}), SCHEMA, "page_token"),
        ("ListSessions", json!({"page_token": "A".repeat(64)}), SCHEMA, "page_token"),
        ("ListSessions", json!({"state": 9}), SCHEMA, "state"),
        ("ListSessions", json!({"labels": ["team"]}), SCHEMA, "labels"),
        ("ListSessions", json!({"labels": vec!["team=blue"; 9]}), SCHEMA, "labels"),
        ("ListSessions", json!({"labels": vec!["team=blue"; 1_000]}), SCHEMA, ""),
        ("ListSessions", json!({"user_id": "me"}), SCHEMA, "user_id"),
        ("ListSessions", json!({"user_id": "x".repeat(256)}), SCHEMA, "user_id"),
        ("RevokeSession", json!({"id": "current!"}), SCHEMA, "id"),
        ("RevokeSession", json!({"id": id.to_uppercase()}), SCHEMA, "id"),
        ("RevokeSession", json!({"id": id.replace('-', "")}), SCHEMA, "id"),
        ("RevokeSession", json!({"id": format!("{id} ")}), SCHEMA, "id"),
        ("RevokeSession", json!({"id": "' OR 1=1 --"}), SCHEMA, "id"),
        ("RevokeSession", json!({"id": id, "user_id": "me"}), SCHEMA, "user_id"),
        ("RevokeSession", json!({"id": id, "user_id": "bob"}), "SESSION_NOT_FOUND", ""),
        ("RevokeAllSessions", json!({}), SCHEMA, "user_id"),
        ("RevokeAllSessions", json!({"user_id": "me"}), SCHEMA, "user_id"),
        ("RevokeAllSessions", json!({"user_id": "a\u{0}b"}), SCHEMA, "user_id"),
        ("RevokeAllSessions", json!({"user_id": "ada", "except_current": true}), SCHEMA, "except_current"),
        ("RevokeAllSessions", json!({"user_id": "ada", "request_id": "one"}), SCHEMA, "request_id"),
        ("RevokeAllSessions", json!({"user_id": "ada", "request_id": Uuid::nil().to_string()}), SCHEMA, "request_id"),
        ("RevokeAllSessions", json!({"user_id": "ada", "request_id": Uuid::max().to_string()}), SCHEMA, "request_id"),
        ("UpdateSession", json!({"session": {"id": "rubbish", "device_name": "x"}}), SCHEMA, "session.id"),
        ("UpdateSession", json!({"session": {"id": id, "labels": {"": "x"}}}), SCHEMA, "labels"),
        ("UpdateSession", json!({"session": {"id": id, "labels": labels(33)}}), SCHEMA, "labels"),
        ("UpdateSession", json!({"session": {"id": id, "labels": labels(5_000)}}), SCHEMA, "labels"),
        ("EraseUser", json!({"user_id": ""}), SCHEMA, "user_id"),
        ("EraseUser", json!({"user_id": "me"}), SCHEMA, "user_id"),
        ("IntrospectToken", json!({}), SCHEMA, "token"),
        ("BatchIntrospect", json!({}), SCHEMA, "tokens"),
        ("BatchIntrospect", json!({"tokens": vec!["x"; 1_001]}), SCHEMA, "tokens"),
        ("CreateSession", json!({"user_id": "ada", "labels": labels(5_000)}), SCHEMA, "labels"),
        ("CreateSession", json!({"user_id": "ada", "replaces_session_id": "rubbish"}), SCHEMA, "replaces_session_id"),
        (
            "CreateSession",
            json!({"user_id": "ada", "replaces_session_id": clock::new_uuid().to_string()}),
            "SESSION_NOT_FOUND",
            "",
        ),
        ("CreateSession", json!({"user_id": "ada", "auth_time": "2999-01-01T00:00:00Z"}), SCHEMA, "auth_time"),
    ];
    for mask in ["id", "userId", "labels,expiresAt", "session.labels", "claims.role", "revokedAt"] {
        let request = json!({"session": {"id": id, "labels": {"a": "b"}}, "update_mask": mask});
        cases.push(("UpdateSession", request, SCHEMA, "update_mask"));
    }
    for claims in [
        json!({"sub": "eve"}),
        json!({"aud": "other"}),
        json!({"exp": 4_102_444_800_i64}),
        json!({"sid": "x"}),
        json!({"iss": "x"}),
        json!({"epoch": [9, 9]}),
        json!({"act": {"sub": "root"}}),
        json!({"project_id": "other"}),
        json!({"x": deep}),
        json!({"x": "a\u{0}b"}),
        json!({"x": "x".repeat(4_096)}),
        json!({"x": large}),
    ] {
        cases.push(("CreateSession", json!({"user_id": "ada", "claims": claims}), SCHEMA, "claims"));
        cases.push(("UpdateSession", json!({"session": {"id": id, "claims": claims}}), SCHEMA, "claims"));
    }
    cases
}

#[tokio::test]
async fn invalid_requests_are_refused_on_every_wire_and_change_nothing() {
    let service = Service::start().await;
    let admin = bearer(service.admin_key().await.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let before = service.database.contents().await;
    for (method, request, reason, field) in misfits(&phone.session) {
        for wire in Wire::ALL {
            let refused = service.ask(wire, method, admin.clone(), &request).await.expect_err(method);
            let text: String = request.to_string().chars().take(80).collect();
            assert_eq!(refused.reason, reason, "{wire:?} {method} {text}");
            let names = field.is_empty() || refused.fields.iter().any(|named| named == field);
            assert!(names, "{wire:?} {method} {text}: {:?}", refused.fields);
            assert!(refused.http.is_none_or(|http| http.is_client_error()), "{wire:?} {method} {text}");
        }
        // A caller without a credential gets only that error.
        let refused = service.ask(Wire::Grpc, method, HeaderMap::new(), &request).await.expect_err(method);
        assert_eq!((refused.reason.as_str(), refused.fields.len()), ("CREDENTIALS_MISSING", 0), "{method}");
    }
    assert_eq!(service.database.contents().await, before);
    assert!(phone.is_signed_in().await);
}

/// A message above the size limit: reported as such on each protocol, before it is parsed.
#[tokio::test]
async fn a_message_that_is_too_large_is_refused_as_such() {
    let service = Service::start().await;
    let before = service.database.contents().await;
    let request = json!({"user_id": "ada", "claims": {"x": "x".repeat(2 * 1024 * 1024)}});
    for wire in Wire::ALL {
        let refused = service.ask(wire, "CreateSession", service.key(), &request).await.expect_err("too large");
        let expected = if wire == Wire::Rest { "BODY_TOO_LARGE" } else { SCHEMA };
        assert_eq!(refused.reason, expected, "{wire:?}");
        assert!(refused.http.is_none_or(|http| http.as_u16() == 413));
    }
    assert_eq!(service.database.contents().await, before);
}

/// Every unary RPC, from the descriptors: a new one must be added here. The stream is in `watch.rs`.
fn methods() -> BTreeSet<String> {
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("decodes");
    let service = pool.get_service_by_name("sessiond.v1.SessionService").expect("is there");
    let unary = service.methods().filter(|method| !method.is_server_streaming());
    unary.map(|method| method.name().to_owned()).collect()
}

/// Which callers each RPC accepts: any other kind is refused, and learns nothing else.
#[tokio::test]
async fn every_rpc_accepts_only_the_callers_that_it_names() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let requests = requests(&phone.session, &phone.access_token, "ada");
    assert_eq!(requests.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), methods());
    let (user, key) = (phone.bearer(), service.key());
    let refresh = refresh_token(&phone.refresh_token);
    let before = service.database.contents().await;
    for (method, request) in &requests {
        for wire in Wire::ALL {
            let ask = async |headers: HeaderMap| service.ask(wire, method, headers, request).await;
            let reason = async |headers: HeaderMap| ask(headers).await.err().map(|refused| refused.reason);
            assert_eq!(reason(HeaderMap::new()).await.as_deref(), Some("CREDENTIALS_MISSING"), "{wire:?} {method}");
            let (for_users, for_services) = match *method {
                "RevokeCurrent" | "GetCurrentSession" => (true, false),
                "ListSessions" | "RevokeSession" | "RevokeAllSessions" => (true, true),
                "CreateSession"
                | "UpdateSession"
                | "EraseUser"
                | "RevokeProjectSessions"
                | "IntrospectToken"
                | "BatchIntrospect" => (false, true),
                "RefreshSession" => (false, false),
                other => panic!("say who may ask for {other}"),
            };
            let wrong_kind = Some("INSUFFICIENT_ACCESS_TYPE");
            if !for_users {
                assert_eq!(reason(user.clone()).await.as_deref(), wrong_kind, "{wire:?} {method}");
            } else {
                let rubbish = reason(bearer("rubbish")).await;
                assert_eq!(rubbish.as_deref(), Some("UNPARSABLE_ACCESS_TOKEN"), "{wire:?} {method}");
            }
            if !for_services {
                assert_eq!(reason(key.clone()).await.as_deref(), wrong_kind, "{wire:?} {method}");
            } else {
                let rubbish = reason(bearer("sdsk_rubbish")).await;
                assert_eq!(rubbish.as_deref(), Some("INVALID_SERVER_KEY"), "{wire:?} {method}");
            }
            if !matches!(*method, "RevokeCurrent" | "RefreshSession") {
                assert_eq!(reason(refresh.clone()).await.as_deref(), wrong_kind, "{wire:?} {method}");
            }
        }
    }
    assert_eq!(service.database.contents().await, before);
}

/// A valid request for each RPC, about this session.
fn requests(session: &str, token: &str, user: &str) -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("RevokeCurrent", json!({})),
        ("CreateSession", json!({"user_id": user, "replaces_session_id": session})),
        ("RefreshSession", json!({})),
        ("ListSessions", json!({"user_id": user, "state": "SESSION_STATE_ANY"})),
        ("GetCurrentSession", json!({})),
        ("RevokeSession", json!({"id": session})),
        ("RevokeAllSessions", json!({"user_id": user})),
        ("RevokeProjectSessions", json!({})),
        ("UpdateSession", json!({"session": {"id": session, "device_name": "stolen"}, "update_mask": "*"})),
        ("EraseUser", json!({"user_id": user})),
        ("IntrospectToken", json!({"token": token})),
        ("BatchIntrospect", json!({"tokens": [token]})),
    ])
}

/// With every credential of another project, which has a signed-in user of the same name.
#[tokio::test]
async fn another_project_reads_nothing_and_revokes_nothing() {
    let service = Service::start().await;
    let foreign = service.create_project("other").await;
    let admin = {
        let project = sessiond_core::id::ProjectId::parse("other").expect("a name");
        service.app.server_key_create(project, sessiond::store::Role::Admin).await.expect("makes a key").1
    };
    let open = async || {
        let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
        service.device(service.create_as(Wire::Grpc, &foreign, request).await.expect("opens"))
    };
    let victim = service.sign_in("ada", "phone").await;
    let requests = requests(&victim.session, &victim.access_token, "ada");
    assert_eq!(requests.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), methods());
    let page_token = {
        service.clock.advance(std::time::Duration::from_millis(1));
        service.sign_in("ada", "laptop").await;
        let request = sessiond::pb::ListSessionsRequest { page_size: Some(1), ..any_of("ada") };
        service.list(Wire::Grpc, service.key(), request).await.expect("lists").next_page_token
    };
    let before = rows(&service).await;
    for (method, request) in &requests {
        for wire in Wire::ALL {
            let thief = open().await;
            for headers in [
                bearer(foreign.expose_secret()),
                bearer(admin.expose_secret()),
                thief.bearer(),
                refresh_token(&thief.refresh_token),
            ] {
                let answer = service.ask(wire, method, headers, request).await;
                // It acts only in its own project; session ids find nothing.
                if let ("RevokeSession" | "UpdateSession" | "CreateSession", Ok(answer)) = (*method, &answer) {
                    panic!("{wire:?} {method}: {answer}");
                }
                let text = answer.map_or_else(|refused| format!("{refused:?}"), |answer| answer.to_string());
                for secret in [&victim.session, "demo"] {
                    assert!(!text.contains(secret), "{wire:?} {method} told {secret}: {text}");
                }
            }
        }
    }
    for wire in Wire::ALL {
        let list = json!({"user_id": "ada", "state": "SESSION_STATE_ANY", "page_token": page_token});
        let refused =
            service.ask(wire, "ListSessions", bearer(foreign.expose_secret()), &list).await.expect_err("refused");
        assert_eq!((refused.reason.as_str(), refused.fields), (SCHEMA, vec!["page_token".to_owned()]));
    }
    assert_eq!(rows(&service).await, before, "the rows are as they were");
    assert!(victim.is_signed_in().await);
}

/// All rows of the project under attack.
async fn rows(service: &Service) -> Vec<String> {
    let tables = ["users", "sessions", "session_requests", "revocations"];
    let of = |table: &&str| format!("SELECT t::text AS line FROM {table} AS t WHERE project_id = 'demo'");
    let query = tables.iter().map(of).collect::<Vec<_>>().join(" UNION ALL ");
    let mut rows = service.database.lines(&query).await;
    rows.sort();
    rows
}

/// A signature of one project over the other's name is invalid.
#[tokio::test]
async fn a_tampered_token_is_refused() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let before = service.database.contents().await;
    let header = phone.access_token.find('.').expect("a header");
    let length = phone.access_token.len();
    for at in [header + 2, header + 50, length - 20] {
        for wire in Wire::ALL {
            for method in ["ListSessions", "GetCurrentSession", "RevokeAllSessions", "RevokeCurrent"] {
                let headers = bearer(&flip(&phone.access_token, at));
                let refused = service.ask(wire, method, headers, &json!({})).await.expect_err("refused");
                assert_eq!(refused.reason, "UNPARSABLE_ACCESS_TOKEN", "{wire:?} {method}");
            }
        }
    }
    assert_eq!(service.database.contents().await, before);
}
