//! OAuth 2.0: conformance of the endpoints with RFC 6749, RFC 7009, RFC 7662 and RFC 8414, over a real socket. Effects
//! on sessions are tested with the RPCs; this file tests that the endpoints are the same RPCs. An independent client is
//! in `tests/clients/oauth/run`.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use prost_types::value::Kind;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sessiond::{config::Rates, pb::CreateSessionRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    assert_refused,
    harness::{
        ISSUER, PROJECT, REFRESH_GRACE, REFUSED_REFRESH, Service, Wire, bearer, both, header, rates, refresh_token,
    },
    revoke::flip,
};

const TOKEN: &str = "/oauth2/token";
const REVOKE: &str = "/oauth2/revoke";
const INTROSPECT: &str = "/oauth2/introspect";
const CHALLENGE: &str = r#"Basic realm="sessiond", charset="UTF-8""#;

/// A form's parameters, in order.
type Form<'a> = Vec<(&'a str, &'a str)>;

/// A refused request: the error, its headers and form, and the expected status and error code.
type Row<'a> = (&'a str, HeaderMap, Form<'a>, u16, &'a str);

fn basic(id: &str, secret: &str) -> HeaderMap {
    header("authorization", &format!("Basic {}", STANDARD.encode(format!("{id}:{secret}"))))
}

/// Sends a request as an OAuth client does.
async fn post(service: &Service, path: &str, headers: HeaderMap, form: &[(&str, &str)]) -> Response<Bytes> {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let headers = both(header("content-type", "application/x-www-form-urlencoded"), headers);
    service.wires.http(Method::POST, path, headers, body).await
}

fn json_of(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("JSON")
}

/// The challenge of a refusal, for the scheme that the client used. A Basic challenge makes a browser ask its user for
/// a password, so clients without `Authorization` get another.
fn challenge(headers: &HeaderMap) -> &'static str {
    let scheme = headers.get("authorization").map(|value| value.to_str().expect("text"));
    match scheme {
        Some(bearer) if bearer.starts_with("Bearer") => {
            r#"Bearer realm="sessiond", error="invalid_token", error_description="The server key is not valid here.""#
        }
        Some(_) => CHALLENGE,
        None => r#"Bearer realm="sessiond""#,
    }
}

/// Asserts that client authentication failed (RFC 6749 §5.2).
#[track_caller]
fn assert_no_client(response: &Response<Bytes>, headers: &HeaderMap, case: &str) {
    assert_no(response, 401, "invalid_client", case);
    assert_eq!(response.headers()["www-authenticate"], challenge(headers), "{case}");
}

/// Asserts an error response: its status and error code, and its common properties.
#[track_caller]
fn assert_no(response: &Response<Bytes>, status: u16, error: &str, case: &str) {
    let body = json_of(response);
    assert_eq!((response.status().as_u16(), &body["error"]), (status, &json!(error)), "{case}: {body}");
    assert!(body["error_description"].is_string() && body.as_object().expect("an object").len() == 2, "{case}: {body}");
    assert_eq!(response.headers()["content-type"], "application/json", "{case}");
    assert_eq!(response.headers()["cache-control"], "no-store", "{case}");
    assert_eq!(response.headers()["pragma"], "no-cache", "{case}");
    assert_eq!(response.headers()["x-request-id"].len(), 32, "{case}");
    assert_eq!(response.headers().contains_key("www-authenticate"), status == 401, "{case}");
    let waits = response.headers().get("retry-after").is_some();
    assert_eq!(waits, matches!(status, 429 | 503), "{case}");
}

/// RFC 7009 §2.2: 200 with an empty body.
#[track_caller]
fn assert_done(response: &Response<Bytes>, case: &str) {
    assert_eq!(response.status(), StatusCode::OK, "{case}: {:?}", response.body());
    assert!(response.body().is_empty(), "{case}");
    assert_eq!(response.headers()["cache-control"], "no-store", "{case}");
    assert_eq!(response.headers()["pragma"], "no-cache", "{case}");
}

#[tokio::test]
async fn a_client_of_each_kind_refreshes_under_every_base_path() {
    let service = Service::start().await;
    let secret = service.server_key.expose_secret();
    let clients: [(&str, HeaderMap, Form); 6] = [
        ("Basic", basic(PROJECT, secret), vec![]),
        ("Basic, form-encoded within", basic("d%65mo", &secret.replace('_', "%5F")), vec![]),
        ("Basic, the id said again", basic(PROJECT, secret), vec![("client_id", PROJECT)]),
        ("in the body", HeaderMap::new(), vec![("client_id", PROJECT), ("client_secret", secret)]),
        ("public", HeaderMap::new(), vec![("client_id", PROJECT)]),
        ("public, by Basic", basic(PROJECT, ""), vec![("client_secret", "")]),
    ];
    for (case, headers, client) in clients {
        for base in ["", "/api/v1"] {
            let phone = service.sign_in("ada", "phone").await;
            let form = [("grant_type", "refresh_token"), ("refresh_token", &phone.refresh_token), ("bogus", "ignored")];
            let form = [&form[..], &client].concat();
            let response = post(&service, &format!("{base}{TOKEN}"), headers.clone(), &form).await;
            let body = json_of(&response);
            assert_eq!(response.status(), StatusCode::OK, "{case}: {body}");
            assert_eq!(response.headers()["cache-control"], "no-store", "{case}");
            assert_eq!(response.headers()["pragma"], "no-cache", "{case}");
            assert_eq!(response.headers()["content-type"], "application/json", "{case}");
            assert_eq!((&body["token_type"], &body["expires_in"]), (&json!("Bearer"), &json!(600)), "{case}");
            assert_eq!(body.as_object().expect("an object").len(), 4, "{case}: {body}");

            // It is the same refresh as over every other protocol: the same successor, and tokens that work.
            let same = phone.refresh_without_keeping().await.expect("within the grace");
            assert_eq!(body["refresh_token"], same.refresh_token, "{case}");
            let access = body["access_token"].as_str().expect("a token");
            service.revoke_current(Wire::Rest, bearer(access)).await.expect("a genuine token");
        }
    }
}

#[tokio::test]
async fn a_reused_refresh_token_raises_the_alarm_here_too() {
    let service = Service::start().await;
    let mut phone = service.sign_in("ada", "phone").await;
    let oldest = phone.refresh_token.clone();
    for _ in 0..2 {
        service.clock.advance(REFRESH_GRACE);
        phone.refresh().await.expect("refreshes");
    }
    service.clock.advance(REFRESH_GRACE);
    let form = [("grant_type", "refresh_token"), ("refresh_token", &oldest), ("client_id", PROJECT)];
    assert_no(&post(&service, TOKEN, HeaderMap::new(), &form).await, 400, "invalid_grant", "reused");
    assert!(!phone.is_signed_in().await);
}

#[tokio::test]
async fn any_genuine_token_is_revoked_whatever_the_hint() {
    let service = Service::start().await;
    let secret = service.server_key.expose_secret();
    let clients = [(basic(PROJECT, secret), vec![]), (HeaderMap::new(), vec![("client_id", PROJECT)])];
    for (headers, client) in clients {
        for hint in [None, Some("access_token"), Some("refresh_token"), Some("id_token"), Some("")] {
            for kind in ["access", "expired access", "refresh", "older refresh"] {
                let case = format!("{kind} with {hint:?} by {client:?}");
                let mut phone = service.sign_in("ada", "phone").await;
                let (access, oldest) = (phone.access_token.clone(), phone.refresh_token.clone());
                let token = match kind {
                    "access" => access,
                    "expired access" => {
                        service.clock.advance(Duration::from_secs(86_400));
                        access
                    }
                    "refresh" => oldest,
                    _ => {
                        phone.refresh().await.expect("refreshes");
                        oldest
                    }
                };
                let form = [("token", token.as_str())];
                let hint = hint.map(|hint| ("token_type_hint", hint));
                let form: Vec<_> = form.into_iter().chain(hint).chain(client.iter().copied()).collect();
                assert!(phone.is_signed_in().await, "{case}");
                assert_done(&post(&service, REVOKE, headers.clone(), &form).await, &case);
                assert!(!phone.is_signed_in().await, "{case}");
                assert_refused!(phone.refresh(), REFUSED_REFRESH);
                assert_done(&post(&service, "/api/v1/oauth2/revoke", headers.clone(), &form).await, "once more");
            }
        }
    }
}

/// RFC 7009 §2.2: the client wants the token to be unusable, and it is.
#[tokio::test]
async fn revoking_an_invalid_token_succeeds_without_effect() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let (access, refresh) = (&phone.access_token, &phone.refresh_token);
    let large = "x".repeat(64 * 1024);
    let tokens =
        ["rubbish", " ", "a.b.c", "sdrt_rubbish", "sdrt_\n", "ä\u{0}\r\n: x", &large, &access[..access.len() - 2]];
    for token in tokens.into_iter().map(str::to_owned).chain([flip(refresh, 20), flip(refresh, 100)]) {
        let form = [("token", token.as_str()), ("client_id", PROJECT)];
        assert_done(&post(&service, REVOKE, HeaderMap::new(), &form).await, &format!("{:.20}", token));
    }
    assert!(phone.is_signed_in().await);
}

/// RFC 7662 §2.2: the standard claim names, times in seconds, and the host's own claims beside them.
#[tokio::test]
async fn an_active_token_is_described_to_a_client_with_the_secret() {
    let service = Service::start().await;
    let secret = service.server_key.expose_secret();
    let now = service.clock.now().as_seconds();
    let claim = |kind| prost_types::Value { kind: Some(kind) };
    let own = [
        ("role", claim(Kind::StringValue("admin".into()))),
        ("level", claim(Kind::NumberValue(3.0))),
        ("active", claim(Kind::BoolValue(false))),
    ];
    let request = CreateSessionRequest {
        user_id: "ada".into(),
        is_impersonation: true,
        impersonator_id: Some("eve".into()),
        auth_time: Some(prost_types::Timestamp { seconds: now - 60, nanos: 0 }),
        acr: Some("aal2".into()),
        amr: vec!["pwd".into(), "otp".into()],
        claims: Some(prost_types::Struct { fields: own.map(|(name, value)| (name.into(), value)).into() }),
        ..CreateSessionRequest::default()
    };
    let phone = service.device(service.create(Wire::Grpc, request).await.expect("signs in"));
    let common = json!({
        "active": true,
        "sub": "ada",
        "iss": format!("{ISSUER}/projects/{PROJECT}"),
        "aud": PROJECT,
        "client_id": PROJECT,
        "project_id": PROJECT,
        "sid": phone.session,
        "auth_time": now - 60,
        "acr": "aal2",
        "amr": ["pwd", "otp"],
        "act": {"sub": "eve"},
        "role": "admin",
        "level": 3,
    });
    let in_the_body = vec![("client_id", PROJECT), ("client_secret", secret)];
    for (headers, client) in [(basic(PROJECT, secret), vec![]), (HeaderMap::new(), in_the_body)] {
        for hint in ["access_token", "refresh_token", "x"] {
            for (token, is_access) in [(&phone.access_token, true), (&phone.refresh_token, false)] {
                let form = [&[("token", token.as_str()), ("token_type_hint", hint)], &client[..]].concat();
                let response = post(&service, INTROSPECT, headers.clone(), &form).await;
                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(response.headers()["cache-control"], "no-store");
                assert_eq!(response.headers()["content-type"], "application/json");
                let mut found = json_of(&response);
                let mut expected = common.clone();
                if is_access {
                    assert!(found["jti"].take().is_string(), "{found}");
                    expected["jti"] = Value::Null;
                    expected["token_type"] = "Bearer".into();
                    expected["iat"] = now.into();
                    expected["exp"] = (now + 600).into();
                } else {
                    expected["token_type"] = "refresh_token".into();
                    // For an impersonation.
                    expected["exp"] = (now + 3_600).into();
                }
                assert_eq!(found, expected);
            }
        }
    }
}

/// RFC 7662 §2.1: introspection is a protected resource, and the RFC's example uses a bearer token. The key identifies
/// its project.
#[tokio::test]
async fn a_server_key_as_a_bearer_token_may_introspect() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let (ours, others) = (service.server_key.expose_secret(), other.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let token = ("token", phone.access_token.as_str());
    for (key, client, active) in
        [(ours, None, true), (ours, Some(PROJECT), true), (others, None, false), (others, Some("other"), false)]
    {
        let form: Vec<_> = [token].into_iter().chain(client.map(|id| ("client_id", id))).collect();
        let response = post(&service, INTROSPECT, bearer(key), &form).await;
        assert_eq!((response.status(), &json_of(&response)["active"]), (StatusCode::OK, &json!(active)), "{client:?}");
    }
    let twice = {
        let mut headers = bearer(ours);
        headers.append("authorization", headers["authorization"].clone());
        headers
    };
    let in_a_browser = both(bearer(ours), header("origin", "https://app.example.org"));
    for (case, headers, form) in [
        ("a wrong key", bearer(&flip(ours, 60)), vec![token]),
        ("an access token", bearer(&phone.access_token), vec![token]),
        ("no token", bearer(""), vec![token]),
        ("in a browser", in_a_browser, vec![token]),
        ("another's project", bearer(ours), vec![token, ("client_id", "other")]),
    ] {
        assert_no_client(&post(&service, INTROSPECT, headers.clone(), &form).await, &headers, case);
    }
    let and_a_secret = [token, ("client_secret", ours)];
    assert_no(&post(&service, INTROSPECT, bearer(ours), &and_a_secret).await, 400, "invalid_request", "two ways");
    assert_no(&post(&service, INTROSPECT, twice, &[token]).await, 400, "invalid_request", "two headers");
}

/// RFC 7662 §2.2: an inactive token is only reported as inactive; introspection does not use up a token.
#[tokio::test]
async fn an_inactive_token_is_only_reported_as_inactive() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let worth = async |key: &SecretString, client: &str, token: &str| {
        let response = post(&service, INTROSPECT, basic(client, key.expose_secret()), &[("token", token)]).await;
        assert_eq!(response.status(), StatusCode::OK, "{:?}", response.body());
        json_of(&response)
    };
    let inactive = json!({"active": false});
    let mut phone = service.sign_in("ada", "phone").await;
    let (ours, first) = (&service.server_key, phone.clone());
    for token in [&first.access_token, &first.refresh_token] {
        assert_eq!(worth(ours, PROJECT, token).await["active"], true);
        assert_eq!(worth(&other, "other", token).await, inactive, "another project's");
    }
    for token in ["rubbish", "sdrt_rubbish", "a.b.c", "ä\n", ours.expose_secret(), &"x".repeat(20_000)] {
        assert_eq!(worth(ours, PROJECT, token).await, inactive);
    }
    service.clock.advance(Duration::from_secs(600));
    assert_eq!(worth(ours, PROJECT, &first.access_token).await, inactive, "expired");
    phone.refresh().await.expect("was not worn out by being asked about");
    assert_eq!(worth(ours, PROJECT, &phone.access_token).await["active"], true);
    phone.sign_out().await.expect("signs out");
    for token in [&phone.access_token, &phone.refresh_token, &first.refresh_token] {
        assert_eq!(worth(ours, PROJECT, token).await, inactive, "signed out");
    }
}

/// RFC 6749 §5.2 and RFC 7009 §2.2.1, row by row. None has an effect.
#[tokio::test]
async fn each_error_is_the_one_that_the_rfc_defines() {
    let service = Service::start().await;
    let other_key = service.create_project("other").await;
    let (ours, others) = (service.server_key.expose_secret(), other_key.expose_secret());
    let phone = service.sign_in("ada", "phone").await;
    let (access, refresh) = (phone.access_token.as_str(), phone.refresh_token.as_str());

    let none = HeaderMap::new;
    let ours_by_basic = || basic(PROJECT, ours);
    let twice = || {
        let mut headers = ours_by_basic();
        headers.append("authorization", headers["authorization"].clone());
        headers
    };
    let in_a_browser = || header("origin", "https://app.example.org");
    let grant = ("grant_type", "refresh_token");
    let (public, presented) = (("client_id", PROJECT), ("refresh_token", refresh));
    let tokens: Vec<Row> = vec![
        ("no grant type", ours_by_basic(), vec![presented], 400, "invalid_request"),
        ("an empty grant type", ours_by_basic(), vec![("grant_type", ""), presented], 400, "invalid_request"),
        ("no refresh token", ours_by_basic(), vec![grant], 400, "invalid_request"),
        ("an empty refresh token", ours_by_basic(), vec![grant, ("refresh_token", "")], 400, "invalid_request"),
        ("twice the same", none(), vec![grant, presented, presented, public], 400, "invalid_request"),
        ("twice the client", none(), vec![grant, presented, public, public], 400, "invalid_request"),
        (
            "a code",
            ours_by_basic(),
            vec![("grant_type", "authorization_code"), ("code", "x")],
            400,
            "unsupported_grant_type",
        ),
        ("a password", ours_by_basic(), vec![("grant_type", "password")], 400, "unsupported_grant_type"),
        ("a client's own", ours_by_basic(), vec![("grant_type", "client_credentials")], 400, "unsupported_grant_type"),
        ("a scope", ours_by_basic(), vec![grant, presented, ("scope", "admin")], 400, "invalid_scope"),
        ("rubbish", none(), vec![grant, public, ("refresh_token", "rubbish")], 400, "invalid_grant"),
        ("an access token", none(), vec![grant, public, ("refresh_token", access)], 400, "invalid_grant"),
        ("a server key", none(), vec![grant, public, ("refresh_token", ours)], 400, "invalid_grant"),
        ("another's client, public", none(), vec![grant, presented, ("client_id", "other")], 400, "invalid_grant"),
        ("another's client", basic("other", others), vec![grant, presented], 400, "invalid_grant"),
    ];
    let clients: Vec<Row> = vec![
        ("nobody", none(), vec![], 401, "invalid_client"),
        ("no such client", none(), vec![("client_id", "nobody")], 401, "invalid_client"),
        ("no name of a client", none(), vec![("client_id", "a/b")], 401, "invalid_client"),
        ("a secret without an id", none(), vec![("client_secret", ours)], 401, "invalid_client"),
        ("a wrong secret", basic(PROJECT, &flip(ours, 60)), vec![], 401, "invalid_client"),
        ("a wrong secret in the body", none(), vec![public, ("client_secret", "x")], 401, "invalid_client"),
        ("another project's secret", basic(PROJECT, others), vec![], 401, "invalid_client"),
        ("our secret as another's", basic("other", ours), vec![], 401, "invalid_client"),
        ("a token for a secret", basic(PROJECT, access), vec![], 401, "invalid_client"),
        ("a bearer that is no key", bearer(access), vec![public], 401, "invalid_client"),
        ("another scheme", header("authorization", "Digest x"), vec![public], 401, "invalid_client"),
        ("no base64", header("authorization", "Basic ?"), vec![], 401, "invalid_client"),
        ("no colon", header("authorization", "Basic ZGVtbw=="), vec![public], 401, "invalid_client"),
        ("a secret in a browser", both(ours_by_basic(), in_a_browser()), vec![], 401, "invalid_client"),
        ("and in its form", in_a_browser(), vec![public, ("client_secret", ours)], 401, "invalid_client"),
        ("two ways", ours_by_basic(), vec![("client_secret", ours)], 400, "invalid_request"),
        ("two ids", ours_by_basic(), vec![("client_id", "other")], 400, "invalid_request"),
        ("two headers", twice(), vec![], 400, "invalid_request"),
    ];
    let revocations: Vec<Row> = vec![
        ("no token", ours_by_basic(), vec![], 400, "invalid_request"),
        ("an empty token", ours_by_basic(), vec![("token", "")], 400, "invalid_request"),
        ("two tokens", none(), vec![public, ("token", access), ("token", refresh)], 400, "invalid_request"),
        ("a server key", none(), vec![public, ("token", ours)], 400, "unsupported_token_type"),
        ("another's access token", none(), vec![("client_id", "other"), ("token", access)], 400, "invalid_grant"),
        ("another's refresh token", none(), vec![("client_id", "other"), ("token", refresh)], 400, "invalid_grant"),
        ("the same with a secret", basic("other", others), vec![("token", refresh)], 400, "invalid_grant"),
    ];
    let introspections: Vec<Row> = vec![
        ("a public client", none(), vec![public, ("token", access)], 401, "invalid_client"),
        ("a public client, by Basic", basic(PROJECT, ""), vec![("token", access)], 401, "invalid_client"),
        ("no token", ours_by_basic(), vec![], 400, "invalid_request"),
        ("two tokens", ours_by_basic(), vec![("token", access), ("token", access)], 400, "invalid_request"),
    ];
    for (case, headers, form, status, error) in introspections {
        if status == 401 {
            let response = post(&service, INTROSPECT, headers.clone(), &form).await;
            assert_no_client(&response, &headers, case);
            continue;
        }
        assert_no(&post(&service, INTROSPECT, headers, &form).await, status, error, case);
    }
    for (case, headers, form, status, error) in tokens {
        assert_no(&post(&service, TOKEN, headers, &form).await, status, error, case);
    }
    for (case, headers, form, status, error) in revocations {
        assert_no(&post(&service, REVOKE, headers, &form).await, status, error, case);
    }
    // Client authentication comes first: a good and a bad token get the same answer.
    for (case, headers, client, status, error) in clients {
        let (good, bad) = (vec![("token", access)], vec![("token", "x")]);
        let asked = [
            (TOKEN, vec![grant, presented]),
            (REVOKE, good.clone()),
            (REVOKE, bad.clone()),
            (INTROSPECT, good),
            (INTROSPECT, bad),
        ];
        for (path, form) in asked {
            let form = [form, client.clone()].concat();
            let response = post(&service, path, headers.clone(), &form).await;
            match status {
                401 => assert_no_client(&response, &headers, case),
                _ => assert_no(&response, status, error, case),
            }
        }
    }
    for path in [TOKEN, REVOKE] {
        let response = post(&service, path, bearer(ours), &[grant, presented, public, ("token", access)]).await;
        assert_no_client(&response, &bearer(ours), "a key as a bearer where a client authenticates itself");
    }
    // Neither revoked nor rotated.
    assert!(phone.is_signed_in().await);
    service.clock.advance(REFRESH_GRACE);
    let mut phone = phone;
    phone.refresh().await.expect("the first use of it");
}

#[tokio::test]
async fn requests_other_than_form_posts_are_refused_in_the_same_format() {
    let service = Service::start_with(|_, limits| limits.body_bytes_max = 64 * 1024).await;
    let form_type = || header("content-type", "application/x-www-form-urlencoded");
    for path in ["", "/api/v1"].iter().flat_map(|base| [TOKEN, REVOKE, INTROSPECT].map(|path| format!("{base}{path}")))
    {
        let path = path.as_str();
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = service.wires.http(method.clone(), path, HeaderMap::new(), "").await;
            assert_no(&response, 405, "invalid_request", &format!("{method} {path}"));
            assert_eq!(response.headers()["allow"], "POST", "{method} {path}");
        }
        let types =
            [HeaderMap::new(), header("content-type", "application/json"), header("content-type", "text/plain")];
        for headers in types {
            let response = service.wires.http(Method::POST, path, headers, "client_id=demo&token=x").await;
            assert_no(&response, 400, "invalid_request", path);
        }
        // Parameters in the URI are ignored (RFC 6749 §2.3.1, RFC 7009 §2.1).
        let uri = format!("{path}?client_id=demo&token=x&grant_type=refresh_token&refresh_token=x");
        let response = service.wires.http(Method::POST, &uri, form_type(), "").await;
        assert_no_client(&response, &HeaderMap::new(), path);
        let large = service.wires.http2(Method::POST, path, form_type(), "x".repeat(64 * 1024 + 1)).await;
        assert_no(&large, 413, "invalid_request", path);
    }
    let typed = header("content-type", "Application/X-WWW-Form-Urlencoded; charset=UTF-8");
    assert_done(&service.wires.http(Method::POST, REVOKE, typed, "client_id=demo&token=x").await, "a charset");
}

/// An incomplete form times out.
#[tokio::test]
async fn an_incomplete_form_is_a_408() {
    let service = Service::start_with(|_, limits| limits.request_timeout = Duration::from_millis(100)).await;
    let mut socket = tokio::net::TcpStream::connect(service.addr).await.expect("connects");
    let head = "POST /oauth2/revoke HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n";
    socket.write_all(format!("{head}content-length: 100\r\n\r\ntoken=").as_bytes()).await.expect("sends");
    let mut answer = vec![0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut answer));
    let read = read.await.expect("answers in time").expect("answers");
    assert!(answer[..read].starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer[..read]));
}

/// The endpoints are behind the same layers as the RPCs: the limit on requests in progress, and the deadline.
#[tokio::test]
async fn temporary_errors_carry_a_retry_after() {
    let busy = Service::start_with(|_, limits| limits.requests_max = 0).await;
    let secret = busy.server_key.expose_secret();
    let public = ("client_id", PROJECT);
    let asked = [
        (TOKEN, HeaderMap::new(), vec![("grant_type", "refresh_token"), ("refresh_token", "x"), public]),
        (REVOKE, HeaderMap::new(), vec![("token", "x"), public]),
        (INTROSPECT, basic(PROJECT, secret), vec![("token", "x")]),
    ];
    for (path, headers, form) in asked {
        let response = post(&busy, path, headers, &form).await;
        assert_no(&response, 429, "temporarily_unavailable", path);
        assert_eq!(response.headers()["retry-after"], "1");
    }

    let late = Service::start_with(|_, limits| limits.request_timeout = Duration::from_millis(200)).await;
    let phone = late.sign_in("ada", "phone").await;
    let holder = late.database.hold("sessions", "true").await;
    let form = [("token", phone.access_token.as_str()), ("client_id", PROJECT)];
    assert_no(&post(&late, REVOKE, HeaderMap::new(), &form).await, 503, "temporarily_unavailable", "late");
    drop(holder);

    // RFC 7009 §2.2.1: the client must assume that the token still exists.
    late.database
        .run("ALTER TABLE sessions DROP CONSTRAINT sessions_revoked_check, ALTER revoke_reason TYPE bytea USING NULL")
        .await;
    assert_no(&post(&late, REVOKE, HeaderMap::new(), &form).await, 500, "server_error", "our bug");
}

/// A client's refreshes count against its own secret; its sign-outs succeed when nothing is left.
#[tokio::test]
async fn a_rate_limited_client_can_still_sign_out() {
    let three = Rates {
        address_rate: 1,
        address_burst: 1,
        project_rate: 1,
        project_burst: 3,
        server_key_rate: 1,
        server_key_burst: 3,
        ..rates()
    };
    let service = Service::start_rated(three).await;
    let secret = service.server_key.expose_secret();
    let phone = service.sign_in("ada", "phone").await;
    let form = [("grant_type", "refresh_token"), ("refresh_token", phone.refresh_token.as_str())];
    for _ in 0..2 {
        assert_eq!(post(&service, TOKEN, basic(PROJECT, secret), &form).await.status(), StatusCode::OK);
    }
    let refused = post(&service, TOKEN, basic(PROJECT, secret), &form).await;
    assert_no(&refused, 429, "temporarily_unavailable", "the fourth of three");
    assert_eq!(refused.headers()["retry-after"], "1");
    let form = [("token", phone.refresh_token.as_str())];
    assert_done(&post(&service, REVOKE, basic(PROJECT, secret), &form).await, "with nothing left");
    assert!(!phone.is_signed_in().await);
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_refresh_and_sign_out() {
    let origin = "https://app.example.org";
    let service = Service::start_with(|web, _| web.cors_origins = vec![origin.to_owned()]).await;
    let phone = service.sign_in("ada", "phone").await;
    let asked = both(header("origin", origin), header("access-control-request-method", "POST"));
    for path in [TOKEN, REVOKE] {
        let preflight = service.wires.http(Method::OPTIONS, path, asked.clone(), "").await;
        assert_eq!(preflight.status(), StatusCode::OK, "{path}");
        assert_eq!(preflight.headers()["access-control-allow-origin"], origin, "{path}");
    }
    let client = ("client_id", PROJECT);
    let form = [("grant_type", "refresh_token"), ("refresh_token", &phone.refresh_token), client];
    let granted = post(&service, TOKEN, header("origin", origin), &form).await;
    assert_eq!(granted.status(), StatusCode::OK);
    assert_eq!(granted.headers()["access-control-allow-origin"], origin);
    let form = [("token", phone.refresh_token.as_str()), client];
    assert_done(&post(&service, REVOKE, header("origin", origin), &form).await, "from a page");
    assert!(!phone.is_signed_in().await);
    // Error responses can be read too.
    let refused = post(&service, REVOKE, header("origin", origin), &[client]).await;
    assert_no(&refused, 400, "invalid_request", "from a page");
    assert_eq!(refused.headers()["access-control-allow-origin"], origin);
}

#[tokio::test]
async fn oauth_requests_have_their_own_metric_label() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let form = [("token", phone.access_token.as_str()), ("client_id", PROJECT)];
    assert_done(&post(&service, REVOKE, HeaderMap::new(), &form).await, "signs out");
    let page = service.metrics_page().await;
    let line = r#"sessiond_requests_total{rpc="sessiond.v1.SessionService/RevokeCurrent",wire="oauth",code="OK"} 1"#;
    assert!(page.contains(line), "{page}");
}

/// Credentials that RPCs read from headers are read only from the form here.
#[tokio::test]
async fn a_token_in_a_header_is_ignored() {
    let service = Service::start().await;
    let (phone, laptop) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    let aside = both(refresh_token(&laptop.refresh_token), header("x-stack-refresh-token", &laptop.refresh_token));
    let client = ("client_id", PROJECT);
    for form in [vec![client, ("token", &phone.refresh_token)], vec![client, ("token", "rubbish")]] {
        assert_done(&post(&service, REVOKE, aside.clone(), &form).await, "the form's alone");
    }
    assert!(!phone.is_signed_in().await && laptop.is_signed_in().await);
    let form = [("grant_type", "refresh_token"), client];
    assert_no(&post(&service, TOKEN, aside, &form).await, 400, "invalid_request", "nothing in the form");
}

#[tokio::test]
async fn every_project_has_a_metadata_document() {
    let service = Service::start().await;
    let path = format!("/.well-known/oauth-authorization-server/projects/{PROJECT}");
    let response = service.wires.http(Method::GET, &path, HeaderMap::new(), "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["cache-control"], "public, max-age=3600");
    let document = json_of(&response);
    assert_eq!(
        document,
        json!({
            "issuer": format!("{ISSUER}/projects/{PROJECT}"),
            "jwks_uri": format!("{ISSUER}/projects/{PROJECT}/.well-known/jwks.json"),
            "token_endpoint": format!("{ISSUER}/oauth2/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "grant_types_supported": ["refresh_token"],
            "response_types_supported": [],
            "revocation_endpoint": format!("{ISSUER}/oauth2/revoke"),
            "revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "introspection_endpoint": format!("{ISSUER}/oauth2/introspect"),
            "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    );
    for member in ["jwks_uri", "token_endpoint", "revocation_endpoint", "introspection_endpoint"] {
        let path = document[member].as_str().expect("a URL").strip_prefix(ISSUER).expect("ours");
        let response = service.wires.http(Method::GET, path, HeaderMap::new(), "").await;
        assert_ne!(response.status(), StatusCode::NOT_FOUND, "{member} leads nowhere");
    }
    for nowhere in ["projects/nobody", "projects/a%2Fb", "projects", "other/projects/demo", "projects/demo/x"] {
        let path = format!("/.well-known/oauth-authorization-server/{nowhere}");
        let response = service.wires.http(Method::GET, &path, HeaderMap::new(), "").await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{nowhere}");
    }
}
