//! Stack Auth's API, as its SDKs use it, over a real socket: their requests, the expected responses, and that other
//! routes are not affected. The SDKs themselves are in `tests/clients/stack_auth/run`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sessiond::config::Rates;
use sessiond_core::session::policy::{Overflow, SessionLimit};

use crate::{
    assert_refused,
    harness::{
        Device, PROJECT, REFRESH_GRACE, REFUSED_REFRESH, Service, Wire, bearer, both, calls::any_of, eventually,
        header, rates,
    },
    revoke::flip,
};

const CURRENT: &str = "/api/v1/auth/sessions/current";
const REFRESH: &str = "/api/v1/auth/sessions/current/refresh";
const SESSIONS: &str = "/api/v1/auth/sessions";
const TOKEN: &str = "/api/v1/auth/oauth/token";
const EXPIRED: &str = "ACCESS_TOKEN_EXPIRED";

/// The header prefix of an SDK.
const SPELLINGS: [&str; 2] = ["x-stack-", "x-hexclave-"];

/// Header names without the prefix.
type Pairs<'a> = Vec<(&'a str, &'a str)>;

fn spelled(spelling: &str, pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        let name = HeaderName::try_from(format!("{spelling}{name}")).expect("a name");
        (name, HeaderValue::from_str(value).expect("a value"))
    };
    pairs.iter().map(pair).collect()
}

/// The headers of every SDK request, for this kind of caller.
fn sdk<'a>(access_type: &'a str, more: &[(&'a str, &'a str)]) -> Pairs<'a> {
    let always = [
        ("project-id", PROJECT),
        ("access-type", access_type),
        ("client-version", "js @stackframe/js@2.8.77"),
        ("allow-anonymous-user", "true"),
        ("random-nonce", "dGhpcyBpcyByYW5kb20"),
    ];
    always.iter().chain(more).copied().collect()
}

/// Sends a request as an SDK does, with the older prefix.
async fn ask(service: &Service, method: Method, path: &str, pairs: &[(&str, &str)], body: &str) -> Response<Bytes> {
    ask_spelled(service, SPELLINGS[0], method, path, pairs, body).await
}

async fn ask_spelled(
    service: &Service,
    spelling: &str,
    method: Method,
    path: &str,
    pairs: &[(&str, &str)],
    body: &str,
) -> Response<Bytes> {
    let mut headers = both(spelled(spelling, pairs), header("ngrok-skip-browser-warning", "true"));
    if !body.is_empty() {
        headers.extend(header("content-type", "application/json"));
    }
    service.wires.http(method, path, headers, body.to_owned()).await
}

/// Sends a grant, for which an SDK uses none of its headers.
async fn grant(service: &Service, headers: HeaderMap, form: &[(&str, &str)]) -> Response<Bytes> {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let form = header("content-type", "application/x-www-form-urlencoded;charset=UTF-8");
    service.wires.http(Method::POST, TOKEN, both(form, headers), body).await
}

fn json_of(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|_| panic!("JSON: {:?}", response.body()))
}

fn text<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("text"))
}

/// The common properties of every response.
#[track_caller]
fn assert_headers(response: &Response<Bytes>, spelling: &str, case: &str) {
    assert_eq!(text(response, "content-type"), Some("application/json; charset=utf-8"), "{case}");
    assert_eq!(text(response, "cache-control"), Some("no-store, max-age=0"), "{case}");
    let id = text(response, "x-request-id").expect("an id");
    assert_eq!(text(response, &format!("{spelling}request-id")), Some(id), "{case}");
    let other = SPELLINGS.iter().find(|other| **other != spelling).expect("there are two");
    for (name, _) in response.headers() {
        assert!(!name.as_str().starts_with(other), "{case}: {name}");
    }
}

/// Asserts an error response, and returns its details.
#[track_caller]
fn assert_no(response: &Response<Bytes>, status: u16, code: &str, case: &str) -> Value {
    let spelling = if text(response, "x-hexclave-request-id").is_some() { SPELLINGS[1] } else { SPELLINGS[0] };
    assert_headers(response, spelling, case);
    let actual = text(response, &format!("{spelling}actual-status"));
    let (pairs, overridden) = match actual {
        Some(actual) => (actual.parse().expect("a status"), response.status() == StatusCode::OK),
        None => (response.status().as_u16(), true),
    };
    let mut body = json_of(response);
    assert_eq!((pairs, body["code"].as_str()), (status, Some(code)), "{case}: {body}");
    assert!(overridden && body["error"].is_string(), "{case}: {body}");
    let known = (status < 500 && status != 429).then_some(code);
    assert_eq!(text(response, &format!("{spelling}known-error")), known, "{case}");
    let challenged = text(response, "www-authenticate") == Some("Bearer");
    assert_eq!(challenged, response.status() == StatusCode::UNAUTHORIZED, "{case}");
    body["details"].take()
}

#[track_caller]
fn assert_success(response: &Response<Bytes>, case: &str) {
    assert_eq!((response.status(), json_of(response)), (StatusCode::OK, json!({"success": true})), "{case}");
}

fn tokens<'a>(device: &'a Device<'_>) -> [(&'a str, &'a str); 2] {
    [("access-token", device.access_token.as_str()), ("refresh-token", device.refresh_token.as_str())]
}

#[tokio::test]
async fn a_client_signs_out_with_either_prefix_and_twice_and_late() {
    let service = Service::start().await;
    for spelling in SPELLINGS {
        for path in [CURRENT, "/auth/sessions/current"] {
            for overridden in [None, Some(("override-error-status", "true"))] {
                let phone = service.sign_in("ada", "phone").await;
                let pairs: Pairs = sdk("client", &tokens(&phone)).into_iter().chain(overridden).collect();
                // As the SDK does, once more, and again when the access token has expired.
                for case in ["first", "again", "late"] {
                    let response = ask_spelled(&service, spelling, Method::DELETE, path, &pairs, "{}").await;
                    assert_success(&response, case);
                    assert_headers(&response, spelling, case);
                    assert_eq!(text(&response, &format!("{spelling}actual-status")), None);
                    assert!(!phone.is_signed_in().await, "{case}");
                    if case == "again" {
                        service.clock.advance(Duration::from_secs(86_400));
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn any_genuine_token_signs_out_whatever_comes_with_it() {
    let service = Service::start().await;
    let rubbish = "rubbish";
    for (access, refresh) in [(true, None), (true, Some(rubbish)), (false, None), (false, Some(rubbish))] {
        let phone = service.sign_in("ada", "phone").await;
        let [good_access, good_refresh] = tokens(&phone);
        let pairs: Pairs = match (access, refresh) {
            (true, None) => vec![good_access],
            (true, Some(bad)) => vec![good_access, ("refresh-token", bad)],
            (false, None) => vec![good_refresh],
            (false, Some(bad)) => vec![("access-token", bad), good_refresh],
        };
        let response = ask(&service, Method::DELETE, CURRENT, &sdk("client", &pairs), "{}").await;
        assert_success(&response, &format!("{access} {refresh:?}"));
        assert!(!phone.is_signed_in().await, "{access} {refresh:?}");
    }
    // A service may forward its user's tokens; of two users' tokens, both count.
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let key = ("secret-server-key", service.server_key.expose_secret());
    let pairs = sdk("server", &[key, tokens(&phone)[0], tokens(&laptop)[1]]);
    assert_success(&ask(&service, Method::DELETE, CURRENT, &pairs, "").await, "by a service");
    assert!(!phone.is_signed_in().await && !laptop.is_signed_in().await);
}

/// The table of errors, each with its status and with the status overridden, with both prefixes.
#[tokio::test]
async fn each_error_has_the_code_status_and_details_that_the_sdks_expect() {
    let service = Service::start().await;
    let other_key = service.create_project("other").await;
    let (ours, others) = (service.server_key.expose_secret(), other_key.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let ([access, refresh], anonymous) = (
        tokens(&phone),
        json!({"expired_at_millis": null, "project_id": null, "user_id": null, "refresh_token_id": null}),
    );
    let of_demo = json!({"project_id": PROJECT});
    let wrong_project = json!({"expected_project_id": "other", "actual_project_id": PROJECT});
    let no_such = json!({"expected_project_id": "nowhere", "actual_project_id": PROJECT});
    let flipped = flip(ours, 60);
    let (client, server, admin) = (("access-type", "client"), ("access-type", "server"), ("access-type", "admin"));
    let (demo, other, nowhere) = (("project-id", PROJECT), ("project-id", "other"), ("project-id", "nowhere"));
    let key = |key| ("secret-server-key", key);
    let admin_key = |key| ("super-secret-admin-key", key);

    let rows: Vec<(&str, Pairs, u16, &str, Value)> = vec![
        ("nothing but a header", vec![("random-nonce", "x")], 400, "ACCESS_TYPE_REQUIRED", Value::Null),
        ("tokens, and not as what", vec![demo, access, refresh], 400, "ACCESS_TYPE_REQUIRED", Value::Null),
        ("an unknown header", vec![("no-such-header", "x"), access], 400, "ACCESS_TYPE_REQUIRED", Value::Null),
        ("an empty access type", vec![demo, ("access-type", ""), access], 400, "ACCESS_TYPE_REQUIRED", Value::Null),
        ("a key, and not as what", vec![demo, key(ours)], 400, "PROJECT_KEY_WITHOUT_ACCESS_TYPE", Value::Null),
        ("an admin's", vec![admin_key(ours), access], 400, "PROJECT_KEY_WITHOUT_ACCESS_TYPE", Value::Null),
        ("a public one", vec![("publishable-client-key", "pck")], 400, "PROJECT_KEY_WITHOUT_ACCESS_TYPE", Value::Null),
        (
            "no such type",
            vec![demo, ("access-type", "root")],
            400,
            "INVALID_ACCESS_TYPE",
            json!({"accessType": "root"}),
        ),
        (
            "in capitals",
            vec![demo, ("access-type", "Client")],
            400,
            "INVALID_ACCESS_TYPE",
            json!({"accessType": "Client"}),
        ),
        ("no project", vec![client, access], 400, "ACCESS_TYPE_WITHOUT_PROJECT_ID", json!({"request_type": "client"})),
        (
            "no project, empty",
            vec![server, ("project-id", "")],
            400,
            "ACCESS_TYPE_WITHOUT_PROJECT_ID",
            json!({"request_type": "server"}),
        ),
        (
            "no name of one",
            vec![client, ("project-id", "a/b"), access],
            400,
            "CURRENT_PROJECT_NOT_FOUND",
            json!({"project_id": "a/b"}),
        ),
        ("nobody", vec![client, demo], 401, EXPIRED, anonymous.clone()),
        (
            "empty tokens",
            vec![client, demo, ("access-token", ""), ("refresh-token", "")],
            401,
            EXPIRED,
            anonymous.clone(),
        ),
        ("nobody, by a service", vec![server, demo, key(ours)], 401, EXPIRED, anonymous.clone()),
        ("rubbish", vec![client, demo, ("access-token", "rubbish")], 401, "UNPARSABLE_ACCESS_TOKEN", Value::Null),
        ("a key for a token", vec![client, demo, ("access-token", ours)], 401, "UNPARSABLE_ACCESS_TOKEN", Value::Null),
        (
            "both rubbish",
            vec![client, demo, ("access-token", "x"), ("refresh-token", "x")],
            401,
            "UNPARSABLE_ACCESS_TOKEN",
            Value::Null,
        ),
        ("a refresh token, rubbish", vec![client, demo, ("refresh-token", "x")], 401, REFUSED_REFRESH, Value::Null),
        (
            "another project",
            vec![client, other, access],
            401,
            "INVALID_PROJECT_FOR_ACCESS_TOKEN",
            wrong_project.clone(),
        ),
        (
            "another project, both",
            vec![client, other, access, refresh],
            401,
            "INVALID_PROJECT_FOR_ACCESS_TOKEN",
            wrong_project,
        ),
        ("a project that is none", vec![client, nowhere, access], 401, "INVALID_PROJECT_FOR_ACCESS_TOKEN", no_such),
        ("another project's refresh token", vec![client, other, refresh], 401, REFUSED_REFRESH, Value::Null),
        ("a service without a key", vec![server, demo, access], 401, "SERVER_AUTHENTICATION_REQUIRED", Value::Null),
        ("with an empty one", vec![server, demo, key(""), access], 401, "SERVER_AUTHENTICATION_REQUIRED", Value::Null),
        (
            "with the other's",
            vec![server, demo, admin_key(ours), access],
            401,
            "SERVER_AUTHENTICATION_REQUIRED",
            Value::Null,
        ),
        (
            "an admin without a key",
            vec![admin, demo, key(ours), access],
            401,
            "ADMIN_AUTHENTICATION_REQUIRED",
            Value::Null,
        ),
        ("no key", vec![server, demo, key("ssk_x"), access], 401, "INVALID_SECRET_SERVER_KEY", of_demo.clone()),
        ("a wrong key", vec![server, demo, key(&flipped), access], 401, "INVALID_SECRET_SERVER_KEY", of_demo.clone()),
        ("another's key", vec![server, demo, key(others), access], 401, "INVALID_SECRET_SERVER_KEY", of_demo.clone()),
        (
            "another's admin",
            vec![admin, demo, admin_key(others), access],
            401,
            "INVALID_SUPER_SECRET_ADMIN_KEY",
            of_demo.clone(),
        ),
        (
            "a service's key as an admin's",
            vec![admin, demo, admin_key(ours), access],
            401,
            "INVALID_SUPER_SECRET_ADMIN_KEY",
            of_demo,
        ),
    ];
    for (case, pairs, status, code, details) in rows {
        for spelling in SPELLINGS {
            let response = ask_spelled(&service, spelling, Method::DELETE, CURRENT, &pairs, "{}").await;
            assert_eq!(response.status().as_u16(), status, "{case}");
            assert_eq!(assert_no(&response, status, code, case), details, "{case}");

            let pairs: Pairs = pairs.iter().copied().chain([("override-error-status", "true")]).collect();
            let response = ask_spelled(&service, spelling, Method::DELETE, CURRENT, &pairs, "{}").await;
            assert_eq!(response.status(), StatusCode::OK, "{case}");
            assert_eq!(text(&response, &format!("{spelling}actual-status")), Some(&*status.to_string()), "{case}");
            assert_eq!(assert_no(&response, status, code, case), details, "{case}");
        }
    }
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn the_values_of_both_prefixes_must_be_equal() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let pairs = sdk("client", &tokens(&phone));
    let older = spelled(SPELLINGS[0], &pairs);
    for (name, _) in &pairs {
        let headers = both(older.clone(), spelled(SPELLINGS[1], &[(name, "different")]));
        let response = service.wires.http(Method::DELETE, CURRENT, headers, "").await;
        assert_eq!(
            (response.status().as_u16(), json_of(&response)["code"].as_str()),
            (400, Some("SCHEMA_ERROR")),
            "{name}"
        );
        // A request with both prefixes gets both in the response.
        for spelling in SPELLINGS {
            assert_eq!(text(&response, &format!("{spelling}known-error")), Some("SCHEMA_ERROR"), "{name}");
        }
        let mut twice = older.clone();
        let repeated = HeaderName::try_from(format!("x-stack-{name}")).expect("a name");
        twice.append(repeated, HeaderValue::from_static("different"));
        let response = service.wires.http(Method::DELETE, CURRENT, twice, "").await;
        let details = assert_no(&response, 400, "SCHEMA_ERROR", name);
        assert!(details["message"].as_str().expect("a message").contains(name), "{details}");
    }
    let mut no_text = older.clone();
    no_text.insert("x-stack-client-version", HeaderValue::from_bytes(b"\xff").expect("opaque"));
    assert_no(&service.wires.http(Method::DELETE, CURRENT, no_text, "").await, 400, "SCHEMA_ERROR", "no text");
    assert!(phone.is_signed_in().await);
    let same = both(older, spelled(SPELLINGS[1], &pairs));
    assert_success(&service.wires.http(Method::DELETE, CURRENT, same, "").await, "the same in both");
    assert!(!phone.is_signed_in().await);
}

/// Headers that the RPCs read are not read here: only the adapter's own names count.
#[tokio::test]
async fn authorization_is_not_read() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let aside = both(bearer(&phone.access_token), header("x-refresh-token", &phone.refresh_token));
    let headers = both(spelled(SPELLINGS[0], &sdk("client", &[])), aside.clone());
    assert_no(&service.wires.http(Method::DELETE, CURRENT, headers.clone(), "").await, 401, EXPIRED, "sign-out");
    assert_no(&service.wires.http(Method::POST, REFRESH, headers, "").await, 400, "SCHEMA_ERROR", "refresh");
    let headers = both(spelled(SPELLINGS[0], &sdk("client", &tokens(&laptop))), aside);
    assert_success(&service.wires.http(Method::DELETE, CURRENT, headers, "").await, "its own");
    assert!(phone.is_signed_in().await && !laptop.is_signed_in().await);
    let key = both(spelled(SPELLINGS[0], &sdk("server", &[])), service.key());
    let list = format!("{SESSIONS}?user_id=ada");
    let response = service.wires.http(Method::GET, &list, key, "").await;
    assert_no(&response, 401, "SERVER_AUTHENTICATION_REQUIRED", "a service");
}

#[tokio::test]
async fn a_client_refreshes_by_a_grant_as_its_library_sends_it() {
    let service = Service::start().await;
    let sentinel = "__stack_public_client__";
    for secret in [Some(sentinel), Some("pck_anything_at_all"), None] {
        for as_json in [false, true] {
            let phone = service.sign_in("ada", "phone").await;
            let fields: Vec<(&str, &str)> = [
                ("grant_type", "refresh_token"),
                ("refresh_token", phone.refresh_token.as_str()),
                ("client_id", PROJECT),
                ("audience", "ignored"),
            ]
            .into_iter()
            .chain(secret.map(|secret| ("client_secret", secret)))
            .collect();
            let response = if as_json {
                let body: serde_json::Map<String, Value> =
                    fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
                let headers = header("content-type", "application/json");
                service.wires.http(Method::POST, TOKEN, headers, Value::Object(body).to_string()).await
            } else {
                grant(&service, header("accept", "application/json"), &fields).await
            };
            let body = json_of(&response);
            assert_eq!(response.status(), StatusCode::OK, "{body}");
            assert_headers(&response, SPELLINGS[0], "a grant");
            assert_eq!(
                (&body["token_type"], &body["expires_in"], &body["scope"]),
                (&json!("Bearer"), &json!(600), &json!("legacy"))
            );
            // The same refresh as on every other protocol.
            let same = phone.refresh_without_keeping().await.expect("within the grace");
            assert_eq!(body["refresh_token"], same.refresh_token);
            let access = body["access_token"].as_str().expect("a token");
            service.revoke_current(Wire::Rest, bearer(access)).await.expect("a genuine token");
        }
    }
}

/// The SDKs keep their first refresh token and never adopt a successor. They must not be treated as thieves.
#[tokio::test]
async fn a_client_that_keeps_its_first_refresh_token_works_for_days() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let form = [("grant_type", "refresh_token"), ("refresh_token", &phone.refresh_token), ("client_id", PROJECT)];
    for day in 0..20 {
        let response = grant(&service, HeaderMap::new(), &form).await;
        assert_eq!(response.status(), StatusCode::OK, "day {day}: {:?}", response.body());
        service.clock.advance(Duration::from_secs(86_400));
    }
    assert!(phone.is_signed_in().await);
}

#[tokio::test]
async fn a_refused_grant_gets_stack_auths_error() {
    let service = Service::start_with(|_, limits| limits.body_bytes_max = 64 * 1024).await;
    service.create_project("other").await;
    let phone = service.sign_in("ada", "phone").await;
    let kind = ("grant_type", "refresh_token");
    let (presented, client) = (("refresh_token", phone.refresh_token.as_str()), ("client_id", PROJECT));
    let rows: Vec<(&str, Pairs, u16, &str)> = vec![
        ("another grant", vec![("grant_type", "authorization_code"), client, presented], 400, "SCHEMA_ERROR"),
        ("no grant", vec![client, presented], 400, "SCHEMA_ERROR"),
        ("no token", vec![kind, client], 400, "SCHEMA_ERROR"),
        ("an empty token", vec![kind, client, ("refresh_token", "")], 400, "SCHEMA_ERROR"),
        ("no client", vec![kind, presented], 400, "SCHEMA_ERROR"),
        ("twice", vec![kind, client, presented, presented], 400, "SCHEMA_ERROR"),
        ("rubbish", vec![kind, client, ("refresh_token", "rubbish")], 401, REFUSED_REFRESH),
        ("an access token", vec![kind, client, ("refresh_token", &phone.access_token)], 401, REFUSED_REFRESH),
        ("another project's", vec![kind, ("client_id", "other"), presented], 401, REFUSED_REFRESH),
        ("nobody's", vec![kind, ("client_id", "nowhere"), presented], 401, REFUSED_REFRESH),
        ("no name of a project", vec![kind, ("client_id", "a/b"), presented], 401, REFUSED_REFRESH),
    ];
    for (case, form, status, code) in rows {
        assert_no(&grant(&service, HeaderMap::new(), &form).await, status, code, case);
        let response = grant(&service, header("x-hexclave-override-error-status", "true"), &form).await;
        assert_eq!(response.status(), StatusCode::OK, "{case}");
        assert_no(&response, status, code, case);
    }
    let a_form = "grant_type=refresh_token&client_id=demo";
    for (content_type, body) in [
        ("text/plain", a_form),
        ("application/json", a_form),
        ("application/json", r#"{"grant_type": 1}"#),
        ("application/json", r#"["refresh_token"]"#),
        ("application/json", ""),
    ] {
        let response = service.wires.http(Method::POST, TOKEN, header("content-type", content_type), body).await;
        assert_no(&response, 400, "SCHEMA_ERROR", body);
    }
    let large = "x".repeat(64 * 1024 + 1);
    assert_no(&grant(&service, HeaderMap::new(), &[("client_id", &large)]).await, 413, "SCHEMA_ERROR", "large");
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let response = service.wires.http(method.clone(), TOKEN, HeaderMap::new(), "").await;
        assert_no(&response, 405, "SCHEMA_ERROR", method.as_str());
        assert_eq!(text(&response, "allow"), Some("POST"));
    }
    // Other routes answer in their own format.
    let form = header("content-type", "application/x-www-form-urlencoded");
    let elsewhere = service.wires.http(Method::POST, "/auth/oauth/token", form.clone(), a_form).await;
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND);
    let rfc = service.wires.http(Method::POST, "/api/v1/oauth2/token", form, a_form).await;
    assert_eq!((rfc.status(), json_of(&rfc)["error"].as_str()), (StatusCode::BAD_REQUEST, Some("invalid_request")));
    // The token is still good after all that.
    service.clock.advance(REFRESH_GRACE);
    let mut phone = phone;
    phone.refresh().await.expect("the first use of it");
    phone.sign_out().await.expect("signs out");
    let over = [kind, client, ("refresh_token", phone.refresh_token.as_str())];
    assert_no(&grant(&service, HeaderMap::new(), &over).await, 401, REFUSED_REFRESH, "signed out");
}

#[tokio::test]
async fn a_client_refreshes_by_its_header() {
    let service = Service::start().await;
    let key = ("secret-server-key", service.server_key.expose_secret());
    for (access_type, more) in [("client", vec![]), ("client", vec![("access-token", "stale")]), ("server", vec![key])]
    {
        let phone = service.sign_in("ada", "phone").await;
        let pairs: Pairs = sdk(access_type, &more).into_iter().chain([tokens(&phone)[1]]).collect();
        let response = ask(&service, Method::POST, REFRESH, &pairs, "{}").await;
        let body = json_of(&response);
        assert_eq!(response.status(), StatusCode::OK, "{body}");
        let same = phone.refresh_without_keeping().await.expect("within the grace");
        assert_eq!(body["refresh_token"], same.refresh_token);
        service
            .revoke_current(Wire::Rest, bearer(body["access_token"].as_str().expect("a token")))
            .await
            .expect("genuine");
        assert_no(&ask(&service, Method::POST, REFRESH, &pairs, "{}").await, 401, REFUSED_REFRESH, "over");
    }
    let response = ask(&service, Method::POST, REFRESH, &sdk("client", &[]), "{}").await;
    assert!(assert_no(&response, 400, "SCHEMA_ERROR", "no token")["message"].is_string());
    let phone = service.sign_in("ada", "phone").await;
    service.create_project("other").await;
    for project in ["other", "nowhere"] {
        let pairs = [("project-id", project), ("access-type", "client"), tokens(&phone)[1]];
        assert_no(&ask(&service, Method::POST, REFRESH, &pairs, "").await, 401, REFUSED_REFRESH, project);
    }
    let pairs = [("project-id", PROJECT), ("access-type", "server"), ("secret-server-key", "x"), tokens(&phone)[1]];
    assert_no(&ask(&service, Method::POST, REFRESH, &pairs, "").await, 401, "INVALID_SECRET_SERVER_KEY", "a key");
}

/// Times are numbers, in milliseconds; newest first; one page.
#[tokio::test]
async fn a_users_sessions_are_listed_as_the_sdks_expect() {
    let service = Service::start().await;
    let began = service.clock.now().as_millis();
    let mut phone = service.sign_in("ada", "phone").await;
    service.clock.advance(Duration::from_millis(1_500));
    let laptop = service.sign_in("ada", "laptop").await;
    service.sign_in("bob", "phone").await;
    // The device's details are those of its last refresh, shown from the next day on.
    laptop.refresh_without_keeping().await.expect("refreshes");
    service.clock.advance(Duration::from_secs(24 * 60 * 60));
    phone.refresh().await.expect("refreshes");
    service.impersonate("ada", "eve").await;
    let of = |device: &Device<'_>, created_at: i64, is_current: bool| {
        json!({
            "id": device.session,
            "user_id": "ada",
            "created_at": created_at,
            // Users are shown the day.
            "last_used_at": created_at - created_at.rem_euclid(86_400_000),
            "is_impersonation": false,
            "is_current_session": is_current,
        })
    };
    let mut of_laptop = of(&laptop, began + 1_500, false);
    of_laptop["last_used_at_end_user_ip_info"] = json!({"ip": "127.0.0.1"});
    let expected = json!({"items": [of_laptop, of(&phone, began, true)], "is_paginated": false});
    for user in ["me", "ada"] {
        let path = format!("{SESSIONS}?user_id={user}");
        let response = ask(&service, Method::GET, &path, &sdk("client", &tokens(&phone)), "").await;
        assert_eq!((response.status(), json_of(&response)), (StatusCode::OK, expected.clone()), "{user}");
        assert_headers(&response, SPELLINGS[0], user);
    }

    // A service sees all of them, and has no current one; with the user's token it may ask as the user.
    let admin_key = service.admin_key().await;
    let by = [
        ("server", ("secret-server-key", service.server_key.expose_secret())),
        ("admin", ("super-secret-admin-key", admin_key.expose_secret())),
    ];
    for (access_type, key) in by {
        let all = ask(&service, Method::GET, &format!("{SESSIONS}?user_id=ada"), &sdk(access_type, &[key]), "").await;
        let all = json_of(&all);
        let flags: Vec<_> =
            all["items"].as_array().expect("a list").iter().map(|item| item["is_impersonation"].clone()).collect();
        assert_eq!(flags, [true, false, false], "{all}");
        assert!(all["items"].as_array().expect("a list").iter().all(|item| item["is_current_session"] == false));
        let pairs = sdk(access_type, &[key, tokens(&phone)[0]]);
        let own = ask(&service, Method::GET, &format!("{SESSIONS}?user_id=me"), &pairs, "").await;
        assert_eq!(json_of(&own), expected, "{access_type}");
    }
}

#[tokio::test]
async fn a_refused_listing_says_why() {
    let service = Service::start().await;
    let other_key = service.create_project("other").await;
    let (ours, others) = (service.server_key.expose_secret(), other_key.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let access = tokens(&phone)[0];
    let key = |key| ("secret-server-key", key);
    let rows: Vec<(&str, &str, Pairs, u16, &str)> = vec![
        ("nobody named", "", sdk("client", &[access]), 400, "SCHEMA_ERROR"),
        ("an empty name", "?user_id=", sdk("client", &[access]), 400, "SCHEMA_ERROR"),
        ("two names", "?user_id=me&user_id=ada", sdk("client", &[access]), 400, "SCHEMA_ERROR"),
        ("a service, nobody named", "", sdk("server", &[key(ours)]), 400, "SCHEMA_ERROR"),
        ("nobody is me", "?user_id=me", sdk("client", &[]), 400, "CANNOT_GET_OWN_USER_WITHOUT_USER"),
        ("a service is not", "?user_id=me", sdk("server", &[key(ours)]), 400, "CANNOT_GET_OWN_USER_WITHOUT_USER"),
        ("nobody asks", "?user_id=ada", sdk("client", &[]), 401, EXPIRED),
        ("a key does not count", "?user_id=ada", sdk("client", &[key(ours)]), 401, EXPIRED),
        ("nor as a token", "?user_id=ada", sdk("client", &[("access-token", ours)]), 401, "UNPARSABLE_ACCESS_TOKEN"),
        ("another user", "?user_id=bob", sdk("client", &[access]), 403, "NOT_YOUR_USER"),
        ("rubbish", "?user_id=me", sdk("client", &[("access-token", "x")]), 401, "UNPARSABLE_ACCESS_TOKEN"),
        ("another's key", "?user_id=ada", sdk("server", &[key(others)]), 401, "INVALID_SECRET_SERVER_KEY"),
        ("with a token", "?user_id=me", sdk("server", &[key(others), access]), 401, "INVALID_SECRET_SERVER_KEY"),
    ];
    for (case, query, pairs, status, code) in rows {
        let response = ask(&service, Method::GET, &format!("{SESSIONS}{query}"), &pairs, "").await;
        assert_no(&response, status, code, case);
    }
    let elsewhere = [("project-id", "other"), ("access-type", "client"), access];
    let me = format!("{SESSIONS}?user_id=me");
    let details = assert_no(
        &ask(&service, Method::GET, &me, &elsewhere, "").await,
        401,
        "INVALID_PROJECT_FOR_ACCESS_TOKEN",
        "elsewhere",
    );
    assert_eq!(details, json!({"expected_project_id": "other", "actual_project_id": PROJECT}));

    // An expired token's error says when it expired, and whose it was: the SDK gets a new one and retries.
    let expires_at = (service.clock.now().as_seconds() + 600) * 1_000;
    service.clock.advance(Duration::from_secs(600));
    let details =
        assert_no(&ask(&service, Method::GET, &me, &sdk("client", &[access]), "").await, 401, EXPIRED, "late");
    let expected = json!({"expired_at_millis": expires_at, "project_id": PROJECT, "user_id": "ada", "refresh_token_id": phone.session});
    assert_eq!(details, expected);
    // A fresh token of an ended session gets the same: the SDK cannot get a new one, and signs out.
    let laptop = service.sign_in("ada", "laptop").await;
    laptop.sign_out().await.expect("signs out");
    let details =
        assert_no(&ask(&service, Method::GET, &me, &sdk("client", &tokens(&laptop)), "").await, 401, EXPIRED, "over");
    assert_eq!(details["expired_at_millis"], Value::Null);
}

#[tokio::test]
async fn a_session_is_revoked_by_its_id() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let (tablet, bobs) = (service.sign_in("ada", "tablet").await, service.sign_in("bob", "phone").await);
    let client = sdk("client", &tokens(&phone));
    let key = ("secret-server-key", service.server_key.expose_secret());
    let server = sdk("server", &[key]);
    let delete = async |pairs: &[(&str, &str)], id: &str, query: &str| {
        ask(&service, Method::DELETE, &format!("{SESSIONS}/{id}{query}"), pairs, "").await
    };
    for case in ["first", "again"] {
        assert_success(&delete(&client, &laptop.session, "?user_id=me").await, case);
        assert!(!laptop.is_signed_in().await);
    }
    assert_success(&delete(&server, &tablet.session.to_uppercase(), "").await, "by a service, in capitals");
    assert!(!tablet.is_signed_in().await);

    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let rows: Vec<(&str, &Pairs, &str, &str, u16, &str)> = vec![
        ("one's own", &client, &phone.session, "?user_id=me", 400, "CANNOT_DELETE_CURRENT_SESSION"),
        ("another user's", &client, &bobs.session, "?user_id=me", 404, "SESSION_NOT_FOUND"),
        ("another user's, named", &client, &bobs.session, "?user_id=bob", 404, "SESSION_NOT_FOUND"),
        ("of the wrong user", &server, &bobs.session, "?user_id=ada", 404, "SESSION_NOT_FOUND"),
        ("nobody's", &client, unknown, "?user_id=me", 404, "SESSION_NOT_FOUND"),
        ("nobody's, by a service", &server, unknown, "", 404, "SESSION_NOT_FOUND"),
        ("no UUID", &client, "rubbish", "?user_id=me", 400, "SCHEMA_ERROR"),
        ("no UUID, by a service", &server, "rubbish", "", 400, "SCHEMA_ERROR"),
        ("a service is not me", &server, &phone.session, "?user_id=me", 400, "CANNOT_GET_OWN_USER_WITHOUT_USER"),
    ];
    for (case, pairs, id, query, status, code) in rows {
        assert_no(&delete(pairs, id, query).await, status, code, case);
    }
    let anonymous = sdk("client", &[]);
    assert_no(&delete(&anonymous, &phone.session, "").await, 401, EXPIRED, "nobody");
    let other_key = service.create_project("other").await;
    let others = [("project-id", "other"), ("access-type", "server"), ("secret-server-key", other_key.expose_secret())];
    assert_no(&delete(&others, &phone.session, "").await, 404, "SESSION_NOT_FOUND", "from another project");
    let as_other = [("project-id", "other"), ("access-type", "server"), key];
    assert_no(&delete(&as_other, &phone.session, "").await, 401, "INVALID_SECRET_SERVER_KEY", "as another project");
    assert!(phone.is_signed_in().await && bobs.is_signed_in().await);
}

#[tokio::test]
async fn a_service_creates_sessions() {
    let service = Service::start().await;
    let admin_key = service.admin_key().await;
    let by = [
        ("server", ("secret-server-key", service.server_key.expose_secret())),
        ("admin", ("super-secret-admin-key", admin_key.expose_secret())),
    ];
    for (access_type, key) in by {
        let pairs = sdk(access_type, &[key]);
        let bodies = [
            (json!({"user_id": access_type}), 365, None),
            (json!({"user_id": access_type, "expires_in_millis": null, "is_impersonation": false}), 365, None),
            (json!({"user_id": access_type, "expires_in_millis": 31_708_800_000_i64}), 367, None),
            (
                json!({"user_id": access_type, "expires_in_millis": 86_400_000, "is_impersonation": true}),
                1,
                Some(access_type),
            ),
        ];
        for (body, days, impersonator) in bodies {
            let response = ask(&service, Method::POST, SESSIONS, &pairs, &body.to_string()).await;
            assert_eq!(response.status(), StatusCode::OK, "{:?}", response.body());
            assert_headers(&response, SPELLINGS[0], access_type);
            let opened = json_of(&response);
            assert_eq!(opened.as_object().expect("an object").len(), 2, "{opened}");
            let token = |name: &str| opened[name].as_str().expect("a token");
            let worth = service.introspect(Wire::Rest, service.key(), token("refresh_token")).await.expect("answers");
            assert_eq!((worth.sub.as_deref(), worth.impersonator_id.as_deref()), (Some(access_type), impersonator));
            let listed = service.list(Wire::Grpc, service.key(), any_of(access_type)).await.expect("lists");
            let session =
                listed.items.iter().find(|session| Some(&session.id) == worth.sid.as_ref()).expect("is there");
            let seconds = |time: Option<prost_types::Timestamp>| time.expect("a time").seconds;
            assert_eq!(seconds(session.expires_at) - seconds(session.created_at), days * 86_400, "{body}");
            service.revoke_current(Wire::Rest, bearer(token("access_token"))).await.expect("genuine");
        }
    }
}

#[tokio::test]
async fn a_refused_creation_says_why() {
    let service = Service::start().await;
    let other_key = service.create_project("other").await;
    let (ours, others) = (service.server_key.expose_secret(), other_key.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let good = r#"{"user_id":"eve"}"#;
    let key = |key| ("secret-server-key", key);
    let client = sdk("client", &[key(ours), tokens(&phone)[0]]);
    let details = assert_no(
        &ask(&service, Method::POST, SESSIONS, &client, good).await,
        401,
        "INSUFFICIENT_ACCESS_TYPE",
        "a client",
    );
    assert_eq!(details, json!({"actual_access_type": "client", "allowed_access_types": ["server", "admin"]}));
    let another = sdk("server", &[key(others)]);
    assert_no(
        &ask(&service, Method::POST, SESSIONS, &another, good).await,
        401,
        "INVALID_SECRET_SERVER_KEY",
        "another",
    );

    // Only a key with the role `admin` counts as admin: the impersonation's token says which of the two asked.
    for body in [good, r#"{"user_id":"eve","is_impersonation":true}"#] {
        let admin = sdk("admin", &[("super-secret-admin-key", ours)]);
        let response = ask(&service, Method::POST, SESSIONS, &admin, body).await;
        assert_no(&response, 401, "INVALID_SUPER_SECRET_ADMIN_KEY", "a service's key as an admin's");
    }

    let server = sdk("server", &[key(ours)]);
    for body in [
        "{}",
        "[]",
        "",
        "{",
        r#"{"user_id":1}"#,
        r#"{"user_id":""}"#,
        r#"{"user_id":"me"}"#,
        r#"{"user_id":"eve","user_id":"eve"}"#,
        r#"{"user_id":"eve","expires_in_millis":31708800001}"#,
        r#"{"user_id":"eve","expires_in_millis":999}"#,
        r#"{"user_id":"eve","expires_in_millis":-1}"#,
        r#"{"user_id":"eve","expires_in_millis":1.5}"#,
        r#"{"user_id":"eve","expires_in_millis":"1000"}"#,
        r#"{"user_id":"eve","is_impersonation":"yes"}"#,
        r#"{"user_id":"eve","surprise":true}"#,
    ] {
        let response = ask(&service, Method::POST, SESSIONS, &server, body).await;
        assert!(assert_no(&response, 400, "SCHEMA_ERROR", body)["message"].is_string(), "{body}");
    }
    let plain = both(spelled(SPELLINGS[0], &server), header("content-type", "text/plain"));
    assert_no(&service.wires.http(Method::POST, SESSIONS, plain, good).await, 400, "SCHEMA_ERROR", "plain text");
    let none = service.list(Wire::Grpc, service.key(), any_of("eve")).await.expect("lists");
    assert!(none.items.is_empty());
    service.set_policy(|policy| policy.sessions = Some(SessionLimit { max: 1, overflow: Overflow::Reject })).await;
    let second = r#"{"user_id":"ada"}"#;
    assert_no(&ask(&service, Method::POST, SESSIONS, &server, second).await, 400, "SESSION_LIMIT_REACHED", "full");
}

/// A browser sends its origin, and a key in a browser is public. This applies also to a key that would not count.
#[tokio::test]
async fn a_key_in_a_browser_is_refused() {
    let service = Service::start().await;
    let admin_key = service.admin_key().await;
    let phone = service.sign_in("ada", "phone").await;
    let origin = header("origin", "https://app.example.org");
    let keys = [
        ("secret-server-key", service.server_key.expose_secret()),
        ("super-secret-admin-key", admin_key.expose_secret()),
        ("secret-server-key", "whatever"),
    ];
    let asked = [
        (Method::POST, SESSIONS, r#"{"user_id":"eve"}"#),
        (Method::GET, "/api/v1/auth/sessions?user_id=ada", ""),
        (Method::DELETE, CURRENT, ""),
        (Method::POST, REFRESH, ""),
    ];
    for access_type in ["client", "server", "admin"] {
        for key in keys {
            for (method, path, body) in asked.clone() {
                let pairs: Pairs = sdk(access_type, &tokens(&phone)).into_iter().chain([key]).collect();
                let typed = both(origin.clone(), header("content-type", "application/json"));
                let headers = both(spelled(SPELLINGS[0], &pairs), typed);
                let response = service.wires.http(method, path, headers, body).await;
                let details = assert_no(&response, 403, "INSUFFICIENT_ACCESS_TYPE", path);
                assert_eq!(details["allowed_access_types"], json!(["client"]), "{details}");
            }
        }
    }
    let secret = service.server_key.expose_secret();
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", &phone.refresh_token),
        ("client_id", PROJECT),
        ("client_secret", secret),
    ];
    assert_no(&grant(&service, origin.clone(), &form).await, 403, "INSUFFICIENT_ACCESS_TYPE", "a grant");
    assert!(phone.is_signed_in().await);
    let headers = both(spelled(SPELLINGS[0], &sdk("client", &tokens(&phone))), origin);
    assert_success(&service.wires.http(Method::DELETE, CURRENT, headers, "").await, "no key");
}

/// The override header must not turn a proxy's 401 into a 200, nor affect any other route.
#[tokio::test]
async fn its_headers_change_nothing_on_other_routes() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let key = ("secret-server-key", service.server_key.expose_secret());
    let pairs: Pairs =
        sdk("server", &[key, ("override-error-status", "true"), ("access-token", phone.access_token.as_str())]);
    let verify = format!("/projects/{PROJECT}/auth/verify");
    let jwks = format!("/projects/{PROJECT}/.well-known/jwks.json");
    let routes: Vec<(Method, String, Option<&str>, u16)> = vec![
        (Method::GET, verify.clone(), None, 401),
        (Method::GET, format!("/api/v1{verify}"), None, 401),
        (Method::GET, jwks.clone(), None, 200),
        (Method::GET, jwks.replace(PROJECT, "nowhere"), None, 404),
        (Method::GET, "/healthz".to_owned(), None, 200),
        (Method::POST, "/oauth2/token".to_owned(), Some("application/x-www-form-urlencoded"), 401),
        (Method::POST, "/oauth2/revoke".to_owned(), None, 400),
        (Method::POST, "/oauth2/introspect".to_owned(), Some("application/x-www-form-urlencoded"), 401),
        (Method::GET, CURRENT.to_owned(), None, 401),
        (Method::POST, "/auth/sessions:revokeAll".to_owned(), None, 401),
        (Method::POST, "/auth/tokens:introspect".to_owned(), None, 401),
        (Method::POST, "/auth/users:erase".to_owned(), None, 401),
        (Method::PATCH, format!("{SESSIONS}/{}", phone.session), None, 401),
        (Method::GET, "/auth/revocations:watch".to_owned(), None, 401),
        (Method::PUT, SESSIONS.to_owned(), None, 405),
        (Method::GET, "/api/v1/users/me".to_owned(), None, 404),
    ];
    for (method, path, content_type, status) in routes {
        let typed = || content_type.map(|value| header("content-type", value)).unwrap_or_default();
        let plain = service.wires.http(method.clone(), &path, typed(), "").await;
        assert_eq!(plain.status().as_u16(), status, "{method} {path}: {:?}", plain.body());
        for spelling in SPELLINGS {
            let headers = both(spelled(spelling, &pairs), typed());
            let response = service.wires.http(method.clone(), &path, headers, "").await;
            let case = format!("{spelling} {method} {path}");
            assert_eq!((response.status(), response.body()), (plain.status(), plain.body()), "{case}");
            let names = |response: &Response<Bytes>| {
                let mut names: Vec<_> = response.headers().keys().map(ToString::to_string).collect();
                names.sort();
                names
            };
            assert_eq!(names(&response), names(&plain), "{case}");
        }
    }
    // Nor on the other protocols: they are not credentials there.
    for wire in [Wire::Grpc, Wire::GrpcWeb] {
        assert_refused!(service.revoke_current(wire, spelled(SPELLINGS[0], &pairs)), "CREDENTIALS_MISSING");
        let list = service.list(wire, spelled(SPELLINGS[0], &pairs), any_of("ada"));
        assert_refused!(list, "CREDENTIALS_MISSING");
    }
    assert!(phone.is_signed_in().await);
}

/// Stack Auth's documentation shows a bearer token without anything else, and on one page a refresh token in its own
/// header.
#[tokio::test]
async fn the_documented_requests_work_as_printed() {
    let service = Service::start().await;
    let names = ["x-stack-refresh-token", "x-hexclave-refresh-token", "x-refresh-token"];
    for wire in Wire::ALL {
        for name in names {
            let phone = service.sign_in("ada", "phone").await;
            let granted = service.refresh(wire, header(name, &phone.refresh_token)).await.expect("refreshes");
            let twice = both(
                header("x-stack-refresh-token", &phone.refresh_token),
                header("x-refresh-token", &phone.refresh_token),
            );
            let same = service.refresh(wire, twice).await.expect("the same token twice is one");
            assert_eq!(granted.refresh_token, same.refresh_token, "{wire:?} {name}");
            let another = both(header(name, &phone.refresh_token), header("x-refresh-token", "another"));
            if name != "x-refresh-token" {
                assert_refused!(service.refresh(wire, another), "SCHEMA_ERROR");
            }
            service.revoke_current(wire, header(name, &phone.refresh_token)).await.expect("signs out");
            assert!(!phone.is_signed_in().await, "{wire:?} {name}");
            assert_refused!(service.refresh(wire, header(name, &phone.refresh_token)), REFUSED_REFRESH);
        }
    }
    let phone = service.sign_in("ada", "phone").await;
    let response = service.wires.http(Method::DELETE, CURRENT, bearer(&phone.access_token), "").await;
    assert_success(&response, "as printed");
    assert!(text(&response, "x-stack-request-id").is_none());
    assert!(!phone.is_signed_in().await);
}

#[tokio::test]
async fn pages_may_send_and_read_its_headers_except_keys() {
    let origin = "https://app.example.org";
    let service = Service::start_with(|web, _| web.cors_origins = vec![origin.to_owned()]).await;
    let sent = "content-type,ngrok-skip-browser-warning,x-stack-project-id";
    let asked = both(header("origin", origin), header("access-control-request-method", "DELETE"));
    let asked = both(asked, header("access-control-request-headers", sent));
    for path in [CURRENT, TOKEN, SESSIONS, REFRESH] {
        let preflight = service.wires.http(Method::OPTIONS, path, asked.clone(), "").await;
        assert_eq!(preflight.status(), StatusCode::OK, "{path}");
        assert_eq!(text(&preflight, "access-control-allow-origin"), Some(origin), "{path}");
        assert_eq!(text(&preflight, "access-control-max-age"), Some("86400"), "{path}");
        let methods = text(&preflight, "access-control-allow-methods").expect("methods");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            assert!(methods.split(',').any(|allowed| allowed == method), "{methods}");
        }
        let allowed: Vec<&str> =
            text(&preflight, "access-control-allow-headers").expect("headers").split(',').collect();
        let names = [
            "project-id",
            "access-type",
            "client-version",
            "access-token",
            "refresh-token",
            "publishable-client-key",
            "override-error-status",
            "allow-anonymous-user",
            "allow-restricted-user",
            "random-nonce",
            "branch-id",
        ];
        for spelling in SPELLINGS {
            for name in names {
                assert!(allowed.contains(&&*format!("{spelling}{name}")), "{spelling}{name}");
            }
            for name in ["secret-server-key", "super-secret-admin-key"] {
                assert!(!allowed.contains(&&*format!("{spelling}{name}")), "{spelling}{name}");
            }
        }
        for name in ["content-type", "authorization", "baggage", "sentry-trace", "ngrok-skip-browser-warning"] {
            assert!(allowed.contains(&name), "{name}");
        }
    }
    let headers =
        both(spelled(SPELLINGS[1], &sdk("client", &[("override-error-status", "true")])), header("origin", origin));
    let refused = service.wires.http(Method::DELETE, CURRENT, headers, "").await;
    assert_no(&refused, 401, EXPIRED, "from a page");
    assert_eq!(text(&refused, "access-control-allow-origin"), Some(origin));
    let exposed: Vec<&str> = text(&refused, "access-control-expose-headers").expect("headers").split(',').collect();
    assert!(exposed.contains(&"content-type") && exposed.contains(&"retry-after"), "{exposed:?}");
    for name in SPELLINGS.iter().flat_map(|s| ["actual-status", "known-error", "request-id"].map(|n| format!("{s}{n}")))
    {
        assert!(exposed.contains(&&*name), "{name}: {exposed:?}");
    }
}

/// The SDK waits as long as told and retries, unless the response has a known error.
#[tokio::test]
async fn temporary_errors_are_reported_by_status() {
    let busy = Service::start_with(|_, limits| limits.requests_max = 0).await;
    let pairs = sdk("client", &[("access-token", "x"), ("refresh-token", "x")]);
    let form = [("grant_type", "refresh_token"), ("refresh_token", "x"), ("client_id", PROJECT)];
    let overridden: Pairs = pairs.iter().copied().chain([("override-error-status", "true")]).collect();
    for response in [
        ask(&busy, Method::DELETE, CURRENT, &pairs, "{}").await,
        ask(&busy, Method::DELETE, CURRENT, &overridden, "{}").await,
        ask(&busy, Method::GET, "/api/v1/auth/sessions?user_id=me", &pairs, "").await,
        grant(&busy, HeaderMap::new(), &form).await,
    ] {
        assert_no(&response, 429, "RATE_LIMITED", "busy");
        assert_eq!(text(&response, "retry-after"), Some("1"));
    }

    // A server error is never overridden.
    let late = Service::start_with(|_, limits| limits.request_timeout = Duration::from_secs(1)).await;
    let phone = late.sign_in("ada", "phone").await;
    let pairs: Pairs = sdk("client", &tokens(&phone)).into_iter().chain([("override-error-status", "true")]).collect();
    let holder = late.database.hold("sessions", "true").await;
    let response = ask(&late, Method::DELETE, CURRENT, &pairs, "{}").await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_no(&response, 504, "DEADLINE_EXCEEDED", "late");
    drop(holder);
    late.database
        .run("ALTER TABLE sessions DROP CONSTRAINT sessions_revoked_check, ALTER revoke_reason TYPE bytea USING NULL")
        .await;
    let response = ask(&late, Method::DELETE, CURRENT, &pairs, "{}").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_no(&response, 500, "INTERNAL", "our bug");
}

/// The same rate limits as on every other protocol: calls count against the key, and a sign-out succeeds when nothing
/// is left.
#[tokio::test]
async fn the_same_rate_limits_apply() {
    let two = Rates {
        address_rate: 1,
        address_burst: 5,
        project_rate: 1,
        project_burst: 2,
        server_key_rate: 1,
        server_key_burst: 100,
        ..rates()
    };
    let service = Service::start_rated(two).await;
    let phone = service.sign_in("ada", "phone").await;
    let path = format!("{SESSIONS}?user_id=ada");
    let pairs = sdk("server", &[("secret-server-key", service.server_key.expose_secret())]);
    assert_eq!(ask(&service, Method::GET, &path, &pairs, "").await.status(), StatusCode::OK);
    let refused = ask(&service, Method::GET, &path, &pairs, "").await;
    assert_no(&refused, 429, "RATE_LIMITED", "the third of two");
    assert_eq!(text(&refused, "retry-after"), Some("1"));
    let pairs = sdk("client", &tokens(&phone));
    assert_success(&ask(&service, Method::DELETE, CURRENT, &pairs, "{}").await, "with nothing left");
    assert!(!phone.is_signed_in().await);

    let line =
        r#"sessiond_requests_total{rpc="sessiond.v1.SessionService/RevokeCurrent",wire="stack-auth",code="OK"} 1"#;
    eventually("the call is counted", async || service.metrics_page().await.contains(line)).await;
}

/// A server key of one project is worthless in another, however it is sent.
#[tokio::test]
async fn a_key_works_only_in_its_own_project() {
    let service = Service::start().await;
    let other_key: SecretString = service.create_project("other").await;
    let body = r#"{"user_id":"eve"}"#;
    for (project, key, good) in [
        (PROJECT, &service.server_key, true),
        ("other", &other_key, true),
        (PROJECT, &other_key, false),
        ("other", &service.server_key, false),
        ("nowhere", &service.server_key, false),
    ] {
        let pairs = [("project-id", project), ("access-type", "server"), ("secret-server-key", key.expose_secret())];
        let opened = ask(&service, Method::POST, SESSIONS, &pairs, body).await;
        let listed = ask(&service, Method::GET, &format!("{SESSIONS}?user_id=eve"), &pairs, "").await;
        for response in [opened, listed] {
            if good {
                assert_eq!(response.status(), StatusCode::OK, "{project}");
            } else {
                let details = assert_no(&response, 401, "INVALID_SECRET_SERVER_KEY", project);
                assert_eq!(details, json!({"project_id": project}));
            }
        }
    }
}
