//! Tokens in cookies: on the API's own routes, and at proxies. A browser here is a cookie jar of its own making; real browsers are
//! in `tests/clients`, real proxies in `proxies.rs`.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use diesel_async::SimpleAsyncConnection as _;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};
use sessiond::config::network;
use sessiond::pb::{
    CookieOptions, CreateSessionRequest, CreateSessionResponse, RefreshSessionRequest, Session as SessionMessage,
    UpdateSessionRequest,
    envoy::{Address, HeaderValueOption, SocketAddress, attribute_context::Peer, check_response::HttpResponse},
};
use sessiond_core::{
    id::ProjectId,
    session::{
        RevokeReason,
        policy::{COOKIE_GRACE_MIN, CookieScope, LateRepeat, SameSite},
    },
};
use tonic::Code;

use crate::{
    assert_refused,
    harness::{PROJECT, REFRESH_GRACE, Refused, Service, Wire, bearer, both, eventually, header, wire::refused_json},
    revoke::flip,
    verify::{Route, check_request},
};

const ACCESS: &str = "__Host-sessiond.demo.access";
const REFRESH: &str = "__Host-sessiond.demo.refresh";

/// The lifetime of an access token, by default.
const ACCESS_TTL: Duration = Duration::from_secs(10 * 60);

/// A browser with the cookies of one session.
#[derive(Clone)]
struct Browser {
    session: String,
    access: String,
    refresh: String,
}

impl Browser {
    fn of(created: &CreateSessionResponse) -> Self {
        let session = created.session.as_ref().expect("a session").id.clone();
        let mut browser = Self { session, access: String::new(), refresh: String::new() };
        browser.take(created.set_cookies.iter().map(String::as_str));
        browser
    }

    /// Keeps what the values of `Set-Cookie` say.
    fn take<'v>(&mut self, values: impl IntoIterator<Item = &'v str>) -> usize {
        let mut taken = 0;
        for value in values {
            let (pair, attributes) = value.split_once("; ").expect("attributes");
            assert!(attributes.contains("HttpOnly") && attributes.contains("Secure"), "{attributes}");
            let (name, value) = pair.split_once('=').expect("a pair");
            let own = if name.ends_with(".access") { &mut self.access } else { &mut self.refresh };
            value.clone_into(own);
            taken += 1;
        }
        taken
    }

    fn cookies(&self) -> HeaderMap {
        let mut pairs = vec!["theme=dark".to_owned()];
        pairs.extend((!self.access.is_empty()).then(|| format!("{ACCESS}={}", self.access)));
        pairs.extend((!self.refresh.is_empty()).then(|| format!("{REFRESH}={}", self.refresh)));
        header("cookie", &pairs.join("; "))
    }

    /// As a page of the same origin sends it.
    fn headers(&self) -> HeaderMap {
        both(self.cookies(), header("sec-fetch-site", "same-origin"))
    }

    fn without_access(&self) -> Self {
        Self { access: String::new(), ..self.clone() }
    }
}

fn set_cookies(response: &Response<Bytes>) -> Vec<String> {
    let values = response.headers().get_all(header::SET_COOKIE).iter();
    values.map(|value| value.to_str().expect("text").to_owned()).collect()
}

fn signing_in(user: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        user_id: user.to_owned(),
        cookies: Some(CookieOptions::default()),
        ..CreateSessionRequest::default()
    }
}

async fn start() -> Service {
    let service = Service::start().await;
    service.set_policy(|policy| policy.cookies.scope = CookieScope::Host).await;
    service
}

async fn sign_in(service: &Service, user: &str) -> Browser {
    Browser::of(&service.create(Wire::Rest, signing_in(user)).await.expect("signs in"))
}

/// A call over REST or grpc-web, with the whole response; the code is that of gRPC.
async fn call(service: &Service, wire: Wire, method: &str, headers: HeaderMap) -> (Code, Response<Bytes>) {
    let response = match wire {
        Wire::Rest => {
            let (verb, path) = match method {
                "RevokeCurrent" => (Method::DELETE, "/auth/sessions/current"),
                "RefreshSession" => (Method::POST, "/auth/sessions/current/refresh"),
                "ListSessions" => (Method::GET, "/auth/sessions"),
                "GetCurrentSession" => (Method::GET, "/auth/sessions/current"),
                "RevokeAllSessions" => (Method::POST, "/auth/sessions:revokeAll"),
                other => panic!("{other}"),
            };
            let body = if verb == Method::POST { "{}" } else { "" };
            let json = if body.is_empty() { HeaderMap::new() } else { header("content-type", "application/json") };
            service.wires.http(verb, path, both(headers, json), body).await
        }
        Wire::GrpcWeb => {
            let headers = both(headers, header("content-type", "application/grpc-web+proto"));
            let path = format!("/sessiond.v1.SessionService/{method}");
            service.wires.http(Method::POST, &path, headers, Bytes::from_static(&[0; 5])).await
        }
        Wire::Grpc => panic!("browsers do not speak it"),
    };
    let code = match wire {
        Wire::Rest if response.status().is_success() => Code::Ok,
        Wire::Rest => {
            let json: Value = serde_json::from_slice(response.body()).expect("JSON");
            Code::from_i32(json["code"].as_i64().expect("a code").try_into().expect("fits"))
        }
        _ => {
            let in_headers =
                response.headers().get("grpc-status").map(|value| value.to_str().expect("text").to_owned());
            let text = String::from_utf8_lossy(response.body()).into_owned();
            let in_body =
                text.split("grpc-status:").nth(1).map(|rest| rest.split('\r').next().unwrap_or("").to_owned());
            let status = in_headers.or(in_body).expect("a status");
            Code::from_i32(status.trim().parse().expect("a number"))
        }
    };
    (code, response)
}

const BROWSER_WIRES: [Wire; 2] = [Wire::Rest, Wire::GrpcWeb];

/// Where a chain of refresh tokens is: how often it has rotated.
async fn rotations(service: &Service, session: &str) -> u32 {
    service.seen(session).await.expect("is there").stored.chain.generation()
}

// Signing in.

#[tokio::test]
async fn a_session_is_created_with_cookies_when_asked() {
    let service = start().await;
    for wire in Wire::ALL {
        let without = CreateSessionRequest { cookies: None, ..signing_in("ada") };
        assert!(service.create(wire, without).await.expect("opens").set_cookies.is_empty(), "{wire:?}");

        let created = service.create(wire, signing_in("ada")).await.expect("opens");
        let attributes = "HttpOnly; SameSite=Lax; Secure; Path=/";
        let expected = [
            format!("{ACCESS}={}; {attributes}", created.access_token),
            format!("{REFRESH}={}; {attributes}", created.refresh_token),
        ];
        assert_eq!(created.set_cookies, expected, "{wire:?}");

        let persistent = CookieOptions { persistent: true };
        let remembered =
            CreateSessionRequest { cookies: Some(persistent), expires_in_millis: Some(3_600_000), ..signing_in("ada") };
        let created = service.create(wire, remembered).await.expect("opens");
        for cookie in &created.set_cookies {
            assert!(cookie.ends_with("; Max-Age=3600"), "until the session expires: {wire:?}");
        }
        assert!(created.set_cookies[1].starts_with(&format!("{REFRESH}={}.p; ", created.refresh_token)));
    }
    let domain = |policy: &mut sessiond_core::session::Policy| {
        policy.cookies.scope = CookieScope::Domain("example.org".into());
        policy.cookies.same_site = SameSite::Strict;
    };
    service.set_policy(domain).await;
    let created = service.create(Wire::Grpc, signing_in("ada")).await.expect("opens");
    for (cookie, kind) in created.set_cookies.iter().zip(["access", "refresh"]) {
        assert!(cookie.starts_with(&format!("__Secure-sessiond.demo.{kind}=")), "{kind}");
        assert!(cookie.ends_with("; HttpOnly; SameSite=Strict; Secure; Path=/; Domain=example.org"), "{kind}");
    }
}

#[tokio::test]
async fn cookies_are_off_until_the_project_turns_them_on() {
    let service = Service::start().await;
    for wire in Wire::ALL {
        let refused = service.create(wire, signing_in("ada")).await.err().expect("off");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["cookies".to_owned()]), "{wire:?}");
    }
    let phone = service.sign_in("ada", "phone").await;
    let browser = Browser {
        session: phone.session.clone(),
        access: phone.access_token.clone(),
        refresh: phone.refresh_token.clone(),
    };
    for wire in BROWSER_WIRES {
        for method in ["ListSessions", "RefreshSession", "RevokeCurrent"] {
            let (code, response) = call(&service, wire, method, browser.headers()).await;
            assert_eq!((code, set_cookies(&response).len()), (Code::Unauthenticated, 0), "{method} {wire:?}");
        }
    }
    for route in Route::ALL {
        let outcome = service.verify(route, PROJECT, browser.headers()).await;
        assert_eq!(outcome.reason.as_deref(), Some("CREDENTIALS_MISSING"), "{route:?}");
    }
    assert!(phone.is_signed_in().await);
}

/// Tokens are never split: what does not fit is refused before anything is created.
#[tokio::test]
async fn claims_that_do_not_fit_into_a_cookie_are_refused() {
    let service = start().await;
    let with_claims = |bytes: usize| CreateSessionRequest { claims: Some(claims(bytes)), ..signing_in("ada") };
    for wire in Wire::ALL {
        let refused = service.create(wire, with_claims(3_900)).await.err().expect("too large");
        assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["claims".to_owned()]), "{wire:?}");
    }
    assert_eq!(service.list(Wire::Grpc, service.key(), Default::default()).await.expect("lists").items.len(), 0);
    let without = CreateSessionRequest { cookies: None, ..with_claims(3_900) };
    service.create(Wire::Grpc, without).await.expect("a token alone has more room");

    let created = service.create(Wire::Grpc, with_claims(2_000)).await.expect("fits");
    let pair = created.set_cookies[0].split(';').next().expect("a pair");
    assert!(pair.len() <= 4_096, "{}", pair.len());
    let update = |bytes| UpdateSessionRequest {
        session: Some(SessionMessage {
            id: created.session.as_ref().expect("a session").id.clone(),
            claims: Some(claims(bytes)),
            ..SessionMessage::default()
        }),
        ..UpdateSessionRequest::default()
    };
    let refused = service.update(Wire::Rest, service.key(), update(3_900)).await.expect_err("too large");
    assert_eq!((refused.reason.as_str(), refused.fields), ("SCHEMA_ERROR", vec!["claims".to_owned()]));
    service.update(Wire::Rest, service.key(), update(2_100)).await.expect("fits");

    // The project's own claims have grown since: the refresh says why, and nobody is signed out.
    let grow = |policy: &mut sessiond_core::session::Policy| {
        let claim = ("padding".to_owned(), Value::from("x".repeat(1_500)));
        policy.default_claims = std::sync::Arc::new([claim].into_iter().collect());
    };
    service.set_policy(grow).await;
    let browser = Browser::of(&created);
    let (code, response) = call(&service, Wire::Rest, "RefreshSession", browser.headers()).await;
    assert_eq!((code, set_cookies(&response).len()), (Code::InvalidArgument, 0));
    assert!(service.is_live(&browser.session).await);
}

fn claims(bytes: usize) -> prost_types::Struct {
    let value = prost_types::value::Kind::StringValue("x".repeat(bytes)).into();
    prost_types::Struct { fields: [("claim".to_owned(), value)].into() }
}

// The API.

#[tokio::test]
async fn a_page_uses_the_api_without_seeing_a_token() {
    let service = start().await;
    for wire in BROWSER_WIRES {
        let user = format!("ada {wire:?}");
        let mut browser = sign_in(&service, &user).await;
        let other = sign_in(&service, &user).await;
        let page: Value = service.ask(wire, "ListSessions", browser.headers(), &json!({})).await.expect("lists");
        assert_eq!(page["items"].as_array().expect("a list").len(), 2, "{wire:?}");
        let current = service.ask(wire, "GetCurrentSession", browser.headers(), &json!({})).await.expect("answers");
        assert_eq!(current["session"]["id"], json!(browser.session), "{wire:?}");

        let (code, response) = call(&service, wire, "RefreshSession", browser.headers()).await;
        assert_eq!(code, Code::Ok, "{wire:?}");
        let text = String::from_utf8_lossy(response.body()).into_owned();
        assert!(!text.contains("sdrt_") && !text.contains("eyJ"), "{text}");
        let before = browser.clone();
        assert_eq!(browser.take(set_cookies(&response).iter().map(String::as_str)), 2);
        assert!(browser.access != before.access && browser.refresh != before.refresh);
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (code, _) = call(&service, wire, "ListSessions", browser.headers()).await;
        assert_eq!(code, Code::Ok, "with the new cookies");

        let revoke = json!({"id": other.session});
        service.ask(wire, "RevokeSession", browser.headers(), &revoke).await.expect("its own");
        assert!(!service.is_live(&other.session).await);
        let (code, _) = call(&service, wire, "RevokeAllSessions", browser.headers()).await;
        assert_eq!(code, Code::Ok);
        assert!(!service.is_live(&browser.session).await);
        assert_refused!(service.ask(wire, "ListSessions", browser.headers(), &json!({})), "SESSION_REVOKED");
        assert_refused!(
            service.ask(wire, "RefreshSession", browser.headers(), &json!({})),
            "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"
        );
    }
}

/// Clearing the cookies could sign out another tab, which has signed in meanwhile.
#[tokio::test]
async fn nothing_but_a_sign_out_clears_the_cookies() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    service.revoke_current(Wire::Rest, browser.headers()).await.expect("signs out");
    for wire in BROWSER_WIRES {
        for method in ["RefreshSession", "ListSessions", "RevokeAllSessions"] {
            let (code, response) = call(&service, wire, method, browser.headers()).await;
            assert_eq!((code, set_cookies(&response).len()), (Code::Unauthenticated, 0), "{method} {wire:?}");
        }
    }
}

#[tokio::test]
async fn remembering_survives_a_refresh() {
    let service = start().await;
    let remembered = CreateSessionRequest { cookies: Some(CookieOptions { persistent: true }), ..signing_in("ada") };
    let mut browser = Browser::of(&service.create(Wire::Rest, remembered).await.expect("opens"));
    for _ in 0..2 {
        let (_, response) = call(&service, Wire::Rest, "RefreshSession", browser.headers()).await;
        let set = set_cookies(&response);
        assert!(set.len() == 2 && set.iter().all(|cookie| cookie.contains("; Max-Age=")), "{}", set.len());
        browser.take(set.iter().map(String::as_str));
        service.clock.advance(REFRESH_GRACE);
    }
    let mut other = sign_in(&service, "ada").await;
    let (_, response) = call(&service, Wire::Rest, "RefreshSession", other.headers()).await;
    let set = set_cookies(&response);
    assert!(set.iter().all(|cookie| !cookie.contains("Max-Age")));
    other.take(set.iter().map(String::as_str));
}

/// Whatever the cookies hold: the user wants to be rid of them.
#[tokio::test]
async fn signing_out_by_cookie_always_works() {
    let service = start().await;
    service.set_policy(|policy| policy.cookies.clear_site_data = true).await;
    let cleared = [ACCESS, REFRESH].map(|name| format!("{name}=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0"));
    for wire in BROWSER_WIRES {
        let live = sign_in(&service, "ada").await;
        let spent = sign_in(&service, "ada").await;
        call(&service, wire, "RefreshSession", spent.headers()).await;
        let only_refresh = sign_in(&service, "ada").await.without_access();
        let only_access = Browser { refresh: String::new(), ..sign_in(&service, "ada").await };
        let long_gone = sign_in(&service, "bob").await;
        service
            .wires
            .ask(Wire::Grpc, "RevokeAllSessions", service.key(), &json!({"user_id": "bob"}))
            .await
            .expect("ends");
        let cut = Browser {
            session: live.session.clone(),
            access: live.access[..40].to_owned(),
            refresh: live.refresh[..40].to_owned(),
        };
        let forged = Browser {
            session: live.session.clone(),
            access: flip(&live.access, live.access.len() - 20),
            refresh: flip(&live.refresh, live.refresh.len() - 20),
        };
        let swapped = Browser { session: live.session.clone(), access: "x".to_owned(), refresh: live.access.clone() };
        for (what, browser, ends) in [
            ("forged", &forged, false),
            ("cut short", &cut, false),
            ("swapped", &swapped, false),
            ("live", &live, true),
            ("again", &live, true),
            ("spent", &spent, true),
            ("only the refresh cookie", &only_refresh, true),
            ("only the access cookie", &only_access, true),
            ("long gone", &long_gone, true),
        ] {
            let (code, response) = call(&service, wire, "RevokeCurrent", browser.headers()).await;
            assert_eq!((code, set_cookies(&response).as_slice()), (Code::Ok, &cleared[..]), "{what} {wire:?}");
            assert_eq!(response.headers()["clear-site-data"], "\"cache\", \"storage\"", "{what}");
            assert_eq!(service.is_live(&browser.session).await, !ends, "{what} {wire:?}");
        }
    }
    // An expired access token, long after.
    let old = sign_in(&service, "ada").await;
    service.clock.advance(ACCESS_TTL * 2);
    let (code, _) = call(&service, Wire::Rest, "RevokeCurrent", old.headers()).await;
    assert_eq!((code, service.is_live(&old.session).await), (Code::Ok, false));
    let (code, response) = call(&service, Wire::Rest, "RevokeCurrent", header("sec-fetch-site", "same-origin")).await;
    assert_eq!((code, set_cookies(&response).len()), (Code::Unauthenticated, 0), "without a cookie");
}

#[tokio::test]
async fn a_bearer_token_beside_the_cookie_counts() {
    let service = start().await;
    let (browser, phone) = (sign_in(&service, "ada").await, service.sign_in("bob", "phone").await);
    // Even from another origin: the cookie is not used.
    let headers = || both(browser.cookies(), header("sec-fetch-site", "cross-site"));
    for wire in Wire::ALL {
        let own = both(headers(), phone.bearer());
        let page = service.ask(wire, "ListSessions", own, &json!({})).await.expect("lists");
        assert_eq!(page["items"][0]["user_id"], json!("bob"), "{wire:?}");
        let bad = both(headers(), bearer("rubbish"));
        assert_refused!(service.ask(wire, "ListSessions", bad, &json!({})), "UNPARSABLE_ACCESS_TOKEN");
        let body = RefreshSessionRequest { refresh_token: Some(phone.refresh_token.clone()) };
        let refreshed: sessiond::pb::RefreshSessionResponse =
            service.wires.call(wire, "RefreshSession", headers(), &body).await.expect("the token in the body");
        assert!(!refreshed.refresh_token.is_empty());
    }
    for route in Route::ALL {
        let outcome = service.verify(route, PROJECT, both(headers(), phone.bearer())).await;
        assert_eq!((outcome.status, outcome.identity[1].as_str()), (200, "bob"), "{route:?}");
        let outcome = service.verify(route, PROJECT, both(browser.headers(), bearer("rubbish"))).await;
        assert_eq!(outcome.reason.as_deref(), Some("UNPARSABLE_ACCESS_TOKEN"), "{route:?}");
    }
    service.revoke_current(Wire::Rest, both(headers(), phone.bearer())).await.expect("signs out");
    assert!(!phone.is_signed_in().await && service.is_live(&browser.session).await);
    // Methods for services read no cookie.
    assert_refused!(
        service.ask(Wire::Rest, "CreateSession", browser.headers(), &json!({"user_id": "eve"})),
        "CREDENTIALS_MISSING"
    );
}

// Where requests come from.

/// What a hostile page, or a sibling's, makes a browser send.
fn foreign() -> Vec<(&'static str, HeaderMap)> {
    let site = |site: &str, origin: Option<&str>| {
        let origin = origin.map(|origin| header("origin", origin)).unwrap_or_default();
        both(header("sec-fetch-site", site), origin)
    };
    let mut twice = header("sec-fetch-site", "same-origin");
    twice.append("sec-fetch-site", HeaderValue::from_static("cross-site"));
    vec![
        ("another site's form", site("cross-site", Some("https://evil.example"))),
        ("another site's link", site("cross-site", None)),
        ("another site's fetch with a header", both(site("cross-site", Some("https://evil.example")), csrf())),
        ("a sibling subdomain", site("same-site", Some("https://evil.example.org"))),
        ("another port", site("same-site", Some("https://app.example.org:8443"))),
        ("a sandboxed frame", site("cross-site", Some("null"))),
        ("without Fetch Metadata: another site", both(header("origin", "https://evil.example"), csrf())),
        ("without Fetch Metadata: a sibling", header("origin", "https://evil.app.example.org")),
        ("without Fetch Metadata: plain HTTP", header("origin", "http://app.example.org")),
        ("without Fetch Metadata: a sandboxed frame", both(header("origin", "null"), csrf())),
        ("neither", HeaderMap::new()),
        ("only a Referer", header("referer", "https://app.example.org/")),
        ("twice", twice),
        ("unknown", site("same-origin-ish", Some("https://app.example.org"))),
    ]
}

/// What a page of the application makes a browser send.
fn own() -> Vec<(&'static str, HeaderMap)> {
    vec![
        ("same origin", header("sec-fetch-site", "same-origin")),
        ("the user's own doing", header("sec-fetch-site", "none")),
        ("no Fetch Metadata", header("origin", "https://app.example.org")),
        ("neither, with the header", csrf()),
    ]
}

fn csrf() -> HeaderMap {
    header("x-sessiond-csrf", "1")
}

fn at_app() -> HeaderMap {
    header("host", "app.example.org")
}

#[tokio::test]
async fn a_foreign_page_cannot_use_the_cookie() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    let methods = ["ListSessions", "GetCurrentSession", "RefreshSession", "RevokeAllSessions", "RevokeCurrent"];
    for wire in BROWSER_WIRES {
        for method in methods {
            for (what, headers) in foreign() {
                let headers = both(both(browser.cookies(), at_app()), headers);
                let (code, response) = call(&service, wire, method, headers).await;
                assert_eq!(code, Code::PermissionDenied, "{what}: {method} {wire:?}");
                assert!(set_cookies(&response).is_empty(), "{what}: {method} {wire:?}");
                if wire == Wire::Rest {
                    let json = serde_json::from_slice(response.body()).expect("JSON");
                    let refused = refused_json(response.status(), &json);
                    assert_eq!((refused.reason.as_str(), response.status().as_u16()), ("CROSS_ORIGIN_REQUEST", 403));
                }
            }
        }
        // Content types that a form can send do not reach a handler at all.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
            let headers = both(browser.headers(), header("content-type", kind));
            let response = service.wires.http(Method::POST, "/auth/sessions:revokeAll", headers, "{}").await;
            assert_eq!(response.status().as_u16(), 415, "{kind}");
        }
        for (what, headers) in own() {
            let headers = both(both(browser.cookies(), at_app()), headers);
            let (code, _) = call(&service, wire, "ListSessions", headers).await;
            assert_eq!(code, Code::Ok, "{what}: {wire:?}");
        }
    }
    assert!(service.is_live(&browser.session).await, "nothing has ended");
    assert_eq!(rotations(&service, &browser.session).await, 0, "nothing was refreshed");
}

/// An origin that may call the API with a token still may not with the cookie.
#[tokio::test]
async fn cors_does_not_open_the_cookie() {
    let service = Service::start_with(|web, _| web.cors_origins = vec!["https://partner.example".to_owned()]).await;
    service.set_policy(|policy| policy.cookies.scope = CookieScope::Host).await;
    let browser = sign_in(&service, "ada").await;
    let preflight = both(
        both(header("origin", "https://partner.example"), header("access-control-request-method", "POST")),
        header("access-control-request-headers", "x-sessiond-csrf"),
    );
    let answer = service.wires.http(Method::OPTIONS, "/auth/sessions:revokeAll", preflight, "").await;
    assert!(!answer.headers().contains_key("access-control-allow-credentials"));
    let allowed = answer.headers()["access-control-allow-headers"].to_str().expect("text");
    assert!(!allowed.contains("x-sessiond"), "{allowed}");
    let headers = both(browser.cookies(), header("origin", "https://partner.example"));
    let (code, _) = call(&service, Wire::Rest, "RevokeAllSessions", headers).await;
    assert_eq!(code, Code::PermissionDenied);
}

// Bad cookies.

#[tokio::test]
async fn bad_cookies_are_refused_for_what_they_are() {
    let service = start().await;
    let other_key = service.create_project("other").await;
    let other = ProjectId::parse("other").expect("a name");
    service.app.project_update(other, |policy| policy.cookies.scope = CookieScope::Host).await.expect("updates");
    service.app.keys().reload().await.expect("reads");
    let elsewhere = Browser::of(&service.create_as(Wire::Rest, &other_key, signing_in("ada")).await.expect("opens"));
    let (browser, planted) = (sign_in(&service, "ada").await, sign_in(&service, "eve").await);

    let with = |pairs: &[(&str, &str)]| {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        both(header("cookie", &pairs.join("; ")), header("sec-fetch-site", "same-origin"))
    };
    let list = async |headers: HeaderMap| -> Result<Value, Refused> {
        service.ask(Wire::Rest, "ListSessions", headers, &json!({})).await
    };
    let refresh = async |headers: HeaderMap| -> Result<Value, Refused> {
        service.ask(Wire::Rest, "RefreshSession", headers, &json!({})).await
    };
    for order in [[&planted, &browser], [&browser, &planted]] {
        let access = order.map(|browser| (ACCESS, browser.access.as_str()));
        assert_refused!(list(with(&access)), "AMBIGUOUS_COOKIE");
        let both_refresh = order.map(|browser| (REFRESH, browser.refresh.as_str()));
        assert_refused!(refresh(with(&both_refresh)), "AMBIGUOUS_COOKIE");
        for route in Route::ALL {
            let outcome = service.verify(route, PROJECT, with(&access)).await;
            assert_eq!((outcome.status, outcome.reason.as_deref()), (403, Some("AMBIGUOUS_COOKIE")), "{route:?}");
        }
    }
    let same = [(ACCESS, browser.access.as_str()); 2];
    list(with(&same)).await.expect("one value, twice");

    assert_refused!(list(with(&[(ACCESS, &browser.access[..60])])), "UNPARSABLE_ACCESS_TOKEN");
    assert_refused!(list(with(&[(ACCESS, &browser.refresh)])), "UNPARSABLE_ACCESS_TOKEN");
    assert_refused!(list(with(&[(ACCESS, &format!("\"{}\"", browser.access))])), "UNPARSABLE_ACCESS_TOKEN");
    assert_refused!(list(with(&[(REFRESH, &browser.refresh)])), "CREDENTIALS_MISSING");
    assert_refused!(refresh(with(&[(ACCESS, &browser.access)])), "CREDENTIALS_MISSING");
    for bad in [&browser.access, &browser.refresh[..60], ".p", "x"] {
        assert_refused!(refresh(with(&[(REFRESH, bad)])), "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
    }
    // Another project's, under this one's name and under its own.
    assert_refused!(list(with(&[(ACCESS, &elsewhere.access)])), "INVALID_PROJECT_FOR_ACCESS_TOKEN");
    assert_refused!(refresh(with(&[(REFRESH, &elsewhere.refresh)])), "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
    let (code, _) = call(&service, Wire::Rest, "RevokeCurrent", with(&[(ACCESS, &elsewhere.access)])).await;
    assert_eq!((code, service.is_live(&browser.session).await), (Code::Ok, true));
    let of_two = [(ACCESS, browser.access.as_str()), ("__Host-sessiond.other.access", &elsewhere.access)];
    assert_refused!(list(with(&of_two)), "AMBIGUOUS_COOKIE");
    for project in ["demo", "other"] {
        let named = both(with(&of_two), header("x-sessiond-project", project));
        assert_eq!(list(named).await.expect("lists")["items"][0]["project_id"], json!(project));
    }
    assert_refused!(list(both(with(&of_two), header("x-sessiond-project", "third"))), "CREDENTIALS_MISSING");
    for route in Route::ALL {
        let outcome = service.verify(route, PROJECT, with(&[(ACCESS, &elsewhere.access)])).await;
        assert_eq!(outcome.reason.as_deref(), Some("INVALID_PROJECT_FOR_ACCESS_TOKEN"), "{route:?}");
        let outcome = service.verify(route, PROJECT, with(&of_two)).await;
        assert_eq!((outcome.status, outcome.identity[2].as_str()), (200, PROJECT), "{route:?}: the path names it");
    }
    // Signing out ends whatever is genuine.
    let all = [(ACCESS, browser.access.as_str()), (ACCESS, &planted.access), (REFRESH, &planted.refresh)];
    let (code, response) = call(&service, Wire::Rest, "RevokeCurrent", with(&all)).await;
    assert_eq!((code, set_cookies(&response).len()), (Code::Ok, 2));
    assert!(!service.is_live(&browser.session).await && !service.is_live(&planted.session).await);
}

#[tokio::test]
async fn too_many_cookies_are_refused_saying_so() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    let mut headers = browser.headers();
    for at in 0..4 {
        let value = format!("filler{at}={}", "x".repeat(4_000));
        headers.append("cookie", HeaderValue::from_str(&value).expect("a value"));
    }
    let response = service.wires.http(Method::GET, "/auth/sessions", headers.clone(), "").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let text = String::from_utf8_lossy(response.body()).into_owned();
    assert!(text.contains("\"cookie\"") && text.contains("must be at most 16384 bytes"), "{text}");
    for route in Route::ALL {
        let outcome = service.verify(route, PROJECT, headers.clone()).await;
        assert_eq!((outcome.status, outcome.reason.as_deref()), (400, Some("SCHEMA_ERROR")), "{route:?}");
    }
    let path = format!("/projects/{PROJECT}/auth/verify");
    let response = service.wires.http(Method::GET, &path, headers.clone(), "").await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    assert!(text.contains("\"cookie\"") && text.contains("must be at most 16384 bytes"), "{text}");
    for at in 0..5 {
        let value = format!("more{at}={}", "x".repeat(4_000));
        headers.append("cookie", HeaderValue::from_str(&value).expect("a value"));
    }
    let response = service.wires.http(Method::GET, "/auth/sessions", headers, "").await;
    assert_eq!(response.status().as_u16(), 431);
}

/// A copied refresh cookie is a copied refresh token.
#[tokio::test]
async fn a_stolen_refresh_cookie_ends_the_session() {
    let service = start().await;
    let mut browser = sign_in(&service, "ada").await;
    let thief = browser.clone();
    for _ in 0..2 {
        let (_, response) = call(&service, Wire::Rest, "RefreshSession", browser.headers()).await;
        browser.take(set_cookies(&response).iter().map(String::as_str));
    }
    service.clock.advance(ACCESS_TTL);
    let outcome = service.verify(Route::Path, PROJECT, thief.headers()).await;
    assert_eq!(outcome.status, 401);
    let seen = service.seen(&browser.session).await.expect("is there");
    assert_eq!(seen.stored.session.revoked.map(|(_, why)| why), Some(RevokeReason::RefreshTokenReused));
}

// At proxies.

/// What the application and the browser get.
#[derive(Debug, Default, PartialEq, Eq)]
struct Passed {
    status: u16,
    authorization: String,
    cookie: Option<String>,
    set_cookies: Vec<String>,
    location: Option<String>,
}

async fn pass(service: &Service, route: Route, query: &str, asked: &Asked) -> Passed {
    match route {
        Route::Path => {
            let forwarded = both(
                both(header("x-forwarded-method", asked.method), header("x-forwarded-uri", asked.path)),
                header("x-forwarded-host", "app.example.org"),
            );
            let path = format!("/projects/{PROJECT}/auth/verify{query}");
            let headers = both(asked.headers.clone(), forwarded);
            let answer = service.wires.http(Method::GET, &path, headers, "").await;
            let text = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
            let set = set_cookies(&answer);
            let single: Vec<String> =
                ["x-set-cookie-access", "x-set-cookie-refresh"].iter().filter_map(|name| text(name)).collect();
            let is_for_the_page = !answer.status().is_success() && !query.contains("login_status");
            assert_eq!(
                if is_for_the_page { &[][..] } else { &set[..] },
                single,
                "each by itself too, where no page reads it"
            );
            Passed {
                status: answer.status().as_u16(),
                authorization: text("authorization").unwrap_or_default(),
                cookie: text("x-forwarded-cookie"),
                set_cookies: set,
                location: text("location"),
            }
        }
        Route::Envoy | Route::EnvoyRaw => {
            let mut request = check_request(route, Some(PROJECT), &asked.headers);
            let attributes = request.attributes.as_mut().expect("attributes");
            for pair in query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').expect("a pair");
                attributes.context_extensions.insert(name.to_owned(), value.to_owned());
            }
            let http = attributes.request.as_mut().and_then(|request| request.http.as_mut()).expect("a request");
            asked.method.clone_into(&mut http.method);
            asked.path.clone_into(&mut http.path);
            "app.example.org".clone_into(&mut http.host);
            let answer = service.check(request).await.expect("answers");
            let find = |options: &[HeaderValueOption], name: &str| {
                let mut all = options.iter().filter_map(|option| option.header.as_ref());
                all.find(|header| header.key == name).map(|header| header.value.clone())
            };
            match answer.http_response.expect("what to do") {
                HttpResponse::OkResponse(ok) => {
                    let removed = ok.headers_to_remove.iter().any(|name| name == "cookie");
                    let added = ok.response_headers_to_add.iter().filter_map(|option| option.header.clone());
                    let (added, others): (Vec<_>, Vec<_>) = added.partition(|header| header.key == "set-cookie");
                    let others: Vec<_> =
                        others.iter().map(|header| (header.key.as_str(), header.value.as_str())).collect();
                    let uncached = [("cache-control", "private, no-store")];
                    assert_eq!(
                        others,
                        if added.is_empty() { &[][..] } else { &uncached[..] },
                        "no cache may keep them"
                    );
                    let added = added.into_iter();
                    Passed {
                        status: 200,
                        authorization: find(&ok.headers, "authorization").unwrap_or_default(),
                        cookie: find(&ok.headers, "cookie").or(removed.then(String::new)),
                        set_cookies: added.map(|header| header.value).collect(),
                        location: None,
                    }
                }
                HttpResponse::DeniedResponse(denied) => Passed {
                    status: denied.status.expect("a status").code.try_into().expect("of HTTP"),
                    location: find(&denied.headers, "location"),
                    set_cookies: {
                        let all = denied.headers.iter().filter_map(|option| option.header.as_ref());
                        all.filter(|header| header.key == "set-cookie").map(|header| header.value.clone()).collect()
                    },
                    ..Passed::default()
                },
            }
        }
    }
}

/// A request that the proxy asks about.
#[derive(Clone)]
struct Asked {
    method: &'static str,
    path: &'static str,
    headers: HeaderMap,
}

impl Asked {
    fn get(headers: HeaderMap) -> Self {
        Self { method: "GET", path: "/orders?open=1", headers }
    }

    fn page(headers: HeaderMap) -> Self {
        Self::get(both(headers, header("sec-fetch-mode", "navigate")))
    }
}

#[tokio::test]
async fn a_page_passes_with_its_cookie_and_the_application_gets_the_token() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    for route in Route::ALL {
        // A link from another site leads to a page.
        for headers in [browser.headers(), both(browser.cookies(), header("sec-fetch-site", "cross-site"))] {
            let passed = pass(&service, route, "", &Asked::page(headers.clone())).await;
            let expected = Passed {
                status: 200,
                authorization: format!("Bearer {}", browser.access),
                cookie: Some("theme=dark".to_owned()),
                ..Passed::default()
            };
            assert_eq!(passed, expected, "{route:?}");
        }
        let identity = service.verify(route, PROJECT, browser.headers()).await.identity;
        assert_eq!(identity, [&browser.session, "ada", PROJECT, ""].map(str::to_owned), "{route:?}");
        let by_bearer = pass(&service, route, "", &Asked::get(bearer(&browser.access))).await;
        assert_eq!(by_bearer.authorization, format!("Bearer {}", browser.access), "{route:?}");
    }
    let kept = pass(&service, Route::Envoy, "?cookies=keep", &Asked::get(browser.headers())).await;
    assert_eq!((kept.status, kept.cookie), (200, None));
    let alone = header("cookie", &format!("{ACCESS}={}", browser.access));
    for route in Route::ALL {
        let passed = pass(&service, route, "", &Asked::get(alone.clone())).await;
        assert_eq!((passed.status, passed.cookie.as_deref()), (200, Some("")), "{route:?}: nothing is left");
    }
    service.revoke_current(Wire::Rest, browser.headers()).await.expect("signs out");
    for route in Route::ALL {
        assert_eq!(pass(&service, route, "", &Asked::get(browser.headers())).await.status, 401, "{route:?}: at once");
    }
}

#[tokio::test]
async fn an_expired_access_token_is_refreshed_in_place() {
    let service = start().await;
    for route in Route::ALL {
        for what in ["expired", "missing", "unreadable"] {
            let mut browser = sign_in(&service, "ada").await;
            match what {
                "expired" => service.clock.advance(ACCESS_TTL),
                "missing" => browser.access.clear(),
                _ => browser.access.truncate(60),
            }
            let passed = pass(&service, route, "", &Asked::page(browser.headers())).await;
            assert_eq!((passed.status, passed.set_cookies.len()), (200, 2), "{route:?} {what}");
            assert_eq!(rotations(&service, &browser.session).await, 1, "{route:?} {what}");
            browser.take(passed.set_cookies.iter().map(String::as_str));
            assert_eq!(passed.authorization, format!("Bearer {}", browser.access), "{route:?} {what}");
            assert_eq!(passed.cookie.as_deref(), Some("theme=dark"));
            let again = pass(&service, route, "", &Asked::page(browser.headers())).await;
            assert_eq!((again.status, again.set_cookies.len()), (200, 0), "{route:?} {what}: with the new cookies");
        }
        // What a refresh does not help.
        let dead = sign_in(&service, "ada").await;
        service.revoke_current(Wire::Rest, dead.headers()).await.expect("signs out");
        for browser in [dead.clone(), dead.without_access()] {
            let passed = pass(&service, route, "", &Asked::get(browser.headers())).await;
            assert_eq!((passed.status, passed.set_cookies.len()), (401, 0), "{route:?}");
        }
    }
}

/// The rule gives parallel refreshes one successor; within a replica they even share one transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_with_many_parts_causes_one_rotation() {
    let service = start().await;
    let replica = service.replica().await;
    for parts in [10, 100] {
        let browser = sign_in(&service, "ada").await;
        service.clock.advance(ACCESS_TTL);
        replica.clock.advance(ACCESS_TTL);
        let asked = Asked::get(browser.headers());
        let services = [&service, &replica];
        let requests = (0..parts).map(|at| pass(services[at % 2], Route::Path, "", &asked));
        let all = join_all(requests).await;
        let refresh: std::collections::BTreeSet<&str> = all
            .iter()
            .map(|passed| {
                assert_eq!((passed.status, passed.set_cookies.len()), (200, 2));
                passed.set_cookies[1].as_str()
            })
            .collect();
        assert_eq!(refresh.len(), 1, "{parts}: one successor");
        assert_eq!(rotations(&service, &browser.session).await, 1, "{parts}");
        let repeats = service.seen(&browser.session).await.expect("is there").stored.chain.repeats();
        assert!(repeats.count <= 1, "{parts}: one per replica: {repeats:?}");
        // What comes late, with the old cookie, too.
        let late = pass(&service, Route::Envoy, "", &asked).await;
        assert_eq!((late.status, rotations(&service, &browser.session).await), (200, 1));
    }
}

/// A sign-out while others still share a refresh.
#[tokio::test]
async fn a_shared_refresh_does_not_outlive_a_sign_out() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await.without_access();
    assert_eq!(pass(&service, Route::Path, "", &Asked::get(browser.headers())).await.status, 200);
    service.revoke_current(Wire::Rest, browser.headers()).await.expect("signs out");
    let passed = pass(&service, Route::Path, "", &Asked::get(browser.headers())).await;
    assert_eq!((passed.status, passed.set_cookies.len()), (401, 0));
}

/// An access token may expire before its refresh stops being shared. A late request gets one that can be used.
#[tokio::test]
async fn a_shared_refresh_does_not_outlive_its_token() {
    let service = start().await;
    service.set_policy(|policy| policy.access_token_ttl = Duration::from_secs(1)).await;
    let browser = sign_in(&service, "ada").await;
    for seconds in 1..=4 {
        service.clock.advance(Duration::from_secs(1));
        let passed = pass(&service, Route::Path, "", &Asked::get(browser.headers())).await;
        assert_eq!((passed.status, passed.set_cookies.len()), (200, 2), "after {seconds} s");
    }
    assert_eq!(rotations(&service, &browser.session).await, 1);
}

/// The new cookies come with the application's response. One that takes half a minute brings them after those of a request that
/// began later, by the same old cookie; the browser then has the first ones, and stays signed in.
#[tokio::test]
async fn a_slow_response_signs_nobody_out() {
    let service = start().await;
    service.set_policy(|policy| policy.refresh_grace = COOKIE_GRACE_MIN).await;
    let mut browser = sign_in(&service, "ada").await;
    service.clock.advance(ACCESS_TTL);
    let slow = pass(&service, Route::Path, "", &Asked::get(browser.headers())).await;
    service.clock.advance(COOKIE_GRACE_MIN / 2);
    let other = pass(&service, Route::Path, "", &Asked::get(browser.headers())).await;
    assert_eq!((slow.status, other.status, other.set_cookies.len()), (200, 200, 2));
    browser.take(other.set_cookies.iter().map(String::as_str));
    browser.take(slow.set_cookies.iter().map(String::as_str));
    service.clock.advance(ACCESS_TTL);
    let next = pass(&service, Route::Path, "", &Asked::get(browser.headers())).await;
    assert_eq!((next.status, next.set_cookies.len()), (200, 2));
    assert_eq!(rotations(&service, &browser.session).await, 2);
}

/// A result is for the requests of one page. If all of them are gone when it arrives, it must not stay: much later, the old cookie
/// is a copy, which the refresh rule judges.
#[tokio::test]
async fn a_refresh_that_nobody_waits_for_is_not_shared_later() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await.without_access();
    let mut holder = service.database.hold("sessions", "true").await;
    let path = format!("/projects/{PROJECT}/auth/verify");
    let waiting = service.wires.http(Method::GET, &path, browser.headers(), "");
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err(), "the row is held");
    holder.batch_execute("COMMIT").await.expect("lets go");
    eventually("the refresh is carried out", async || rotations(&service, &browser.session).await == 1).await;
    let shared = pass(&service, Route::Path, "", &Asked::get(browser.headers())).await;
    assert_eq!(shared.status, 200, "at once");
    let mut next = browser.clone();
    next.take(shared.set_cookies.iter().map(String::as_str));
    let used = pass(&service, Route::Path, "", &Asked::get(next.without_access().headers())).await;
    assert_eq!((used.status, rotations(&service, &browser.session).await), (200, 2), "the successor is used");
    service.clock.advance(Duration::from_secs(60));
    assert_eq!(pass(&service, Route::Path, "", &Asked::get(browser.headers())).await.status, 401, "a minute later");
    assert!(!service.is_live(&browser.session).await, "reuse is detected");
}

/// A thief with the refresh token can fill the queue for refreshes of the session, but not the one for sign-outs.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refreshes_does_not_keep_the_owner_from_signing_out() {
    let service = start().await;
    let (browser, phone) = (sign_in(&service, "ada").await, service.sign_in("ada", "phone").await);
    let mut holder = service.database.hold("sessions", "true").await;
    let flood = join_all((0..400).map(|_| call(&service, Wire::Rest, "RefreshSession", browser.headers())));
    let owner = async {
        let refused = "sessiond_turns_refused_total{reason=\"line\"}";
        eventually("the queue is full", async || service.metric(refused).await > 0).await;
        let by_cookie = call(&service, Wire::Rest, "RevokeCurrent", browser.headers());
        let by_id = service.revoke_session(Wire::Rest, phone.bearer(), &browser.session, None);
        let release = async {
            // Two refreshes, and both of the owner's.
            eventually("they wait for the row", async || service.database.lock_waits().await == 4).await;
            holder.batch_execute("COMMIT").await.expect("lets go");
        };
        tokio::join!(by_cookie, by_id, release)
    };
    let (answers, ((code, response), by_id, ())) = tokio::join!(flood, owner);
    assert!(answers.iter().any(|(code, _)| *code == Code::ResourceExhausted), "the flood is refused");
    assert_eq!((code, set_cookies(&response).len()), (Code::Ok, 2));
    by_id.expect("from another device, too");
    assert!(!service.is_live(&browser.session).await);
}

/// Another host of the domain can plant cookies of the same name before the user's own. What was not looked at was not ended.
#[tokio::test]
async fn a_sign_out_is_not_acknowledged_if_its_cookies_were_not_looked_at() {
    let service = start().await;
    for (planted, code) in [(15, Code::Ok), (16, Code::PermissionDenied)] {
        let browser = sign_in(&service, "ada").await.without_access();
        let junk: String = (0..planted).map(|n| format!("{REFRESH}=junk{n}; ")).collect();
        let cookies = format!("{junk}{REFRESH}={}", browser.refresh);
        let headers = both(header("cookie", &cookies), header("sec-fetch-site", "same-origin"));
        let (given, _) = call(&service, Wire::Rest, "RevokeCurrent", headers).await;
        assert_eq!((given, service.is_live(&browser.session).await), (code, code != Code::Ok), "{planted}");
    }
}

/// The session was refreshed before its user was found not to have authenticated as required: the browser must get the new
/// cookies, or it would present the old refresh token again, as a thief does.
#[tokio::test]
async fn a_request_that_is_denied_after_a_refresh_returns_the_new_cookies() {
    let service = start().await;
    service.set_policy(|policy| policy.late_repeat = LateRepeat::Theft).await;
    for route in Route::ALL {
        let mut browser = sign_in(&service, "ada").await.without_access();
        for at in 1..4 {
            let denied = pass(&service, route, "?acr_values=aal9", &Asked::page(browser.headers())).await;
            assert_eq!((denied.status, denied.set_cookies.len()), (401, 2), "{route:?}");
            assert_eq!(rotations(&service, &browser.session).await, at, "{route:?}");
            browser.take(denied.set_cookies.iter().map(String::as_str));
            browser.access.clear();
            service.clock.advance(Duration::from_secs(60));
        }
        assert!(service.is_live(&browser.session).await, "{route:?}");
    }
    let browser = sign_in(&service, "ada").await.without_access();
    let query = "?acr_values=aal9&login=/in&login_status=401";
    let denied = pass(&service, Route::Path, query, &Asked::page(browser.headers())).await;
    assert_eq!((denied.status, denied.set_cookies.len()), (401, 2), "in headers of their own, for nginx");
}

/// Some proxies pass on the client's own query. It must not name the login page.
#[tokio::test]
async fn a_clients_query_does_not_name_the_login_page() {
    let service = start().await;
    let query = "?login=https://evil.example/";
    for (path, location) in [("/orders", Some("https://evil.example/")), ("/orders?login=https://evil.example/", None)]
    {
        let asked = Asked { path, ..Asked::page(HeaderMap::new()) };
        let passed = pass(&service, Route::Path, query, &asked).await;
        let named = passed.location.as_deref().map(|location| location.split('?').next().expect("a page"));
        assert_eq!((named, passed.status), (location, if location.is_some() { 302 } else { 401 }));
    }
}

/// Anyone can plant cookies with invented names beside the user's own.
#[tokio::test]
async fn planted_cookies_of_unknown_projects_hide_nothing() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    let planted: String = (0..40).map(|n| format!("__Secure-sessiond.a{n}.access=x; ")).collect();
    let mut headers = browser.headers();
    let own = headers["cookie"].to_str().expect("text").to_owned();
    headers.insert("cookie", format!("{planted}{own}").parse().expect("a header"));
    let (code, response) = call(&service, Wire::Rest, "RevokeCurrent", headers).await;
    assert_eq!((code, set_cookies(&response).len()), (Code::Ok, 2));
    assert!(!service.is_live(&browser.session).await);
}

/// The token, with an invented key.
fn of_made_up_key(token: &str, number: u32) -> String {
    let (head, rest) = token.split_once('.').expect("three parts");
    let mut head: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).expect("base64url")).expect("JSON");
    head["kid"] = format!("0199d4a0-0000-7000-8000-{number:012}").into();
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(head.to_string()))
}

/// Another host of the domain can plant them. However many there are, the genuine session ends first, and one load of the keys
/// answers for all.
#[tokio::test]
async fn planted_tokens_of_unknown_keys_do_not_delay_a_sign_out() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    let planted: String = (0..14).map(|n| format!("{ACCESS}={}; ", of_made_up_key(&browser.access, n))).collect();
    let mut headers = browser.headers();
    let own = headers["cookie"].to_str().expect("text").to_owned();
    headers.insert("cookie", format!("{planted}{own}").parse().expect("a header"));
    let mut holder = service.database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE signing_keys").await.expect("locks");
    let signing_out = call(&service, Wire::Rest, "RevokeCurrent", headers);
    let watching = async {
        eventually("the genuine session has ended", async || !service.is_live(&browser.session).await).await;
        holder.batch_execute("ROLLBACK").await.expect("unlocks");
    };
    let before = loads(&service).await;
    let begun = Instant::now();
    let ((code, response), ()) = tokio::join!(signing_out, watching);
    assert_eq!((code, set_cookies(&response).len()), (Code::Ok, 2));
    let loads = loads(&service).await - before;
    assert!(loads <= 2 + begun.elapsed().as_secs() / 5, "{loads} loads");
}

/// How often the keys were loaded.
async fn loads(service: &Service) -> u64 {
    service.metric(r#"sessiond_store_operation_duration_seconds_count{operation="inventory",outcome="ok"}"#).await
}

/// Requests wait for the keys to be loaded if they may be new. While they wait, they hold places of verifications.
#[tokio::test]
async fn made_up_refresh_cookies_leave_places_for_pages() {
    const PLACES: usize = 8;
    let service = Service::start_with(|_, limits| limits.requests_max = PLACES).await;
    service.set_policy(|policy| policy.cookies.scope = CookieScope::Host).await;
    let browser = sign_in(&service, "ada").await;
    let page = Asked::page(browser.headers());
    assert_eq!(pass(&service, Route::Path, "", &page).await.status, 200);
    // For this server, the key of another one is made up.
    let elsewhere = sign_in(&start().await, "eve").await;
    let planted = Asked::page(header("cookie", &format!("{REFRESH}={}", elsewhere.refresh)));
    let mut holder = service.database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE signing_keys").await.expect("locks");
    let refused = AtomicUsize::new(0);
    let flood = join_all((0..2 * PLACES).map(async |_| {
        let status = pass(&service, Route::Path, "", &planted).await.status;
        refused.fetch_add(usize::from(status == 503), Ordering::Relaxed);
        status
    }));
    let honest = async {
        let too_many = 2 * PLACES - PLACES / 2;
        eventually("half of the places wait", async || refused.load(Ordering::Relaxed) == too_many).await;
        let passed = pass(&service, Route::Path, "", &page).await;
        holder.batch_execute("ROLLBACK").await.expect("unlocks");
        passed.status
    };
    let (flooded, status) = tokio::join!(flood, honest);
    assert_eq!(status, 200);
    assert_eq!(flooded.iter().filter(|status| **status == 401).count(), PLACES / 2, "those that waited are answered");
}

/// A page of another origin is refused before anything is looked up for it.
#[tokio::test]
async fn a_foreign_page_causes_no_load() {
    let service = start().await;
    let before = loads(&service).await;
    let begun = Instant::now();
    for n in 0..20 {
        let planted = header("cookie", &format!("__Secure-sessiond.a{n}.access=x"));
        let headers = both(planted, header("sec-fetch-site", "cross-site"));
        let (code, _) = call(&service, Wire::Rest, "RevokeCurrent", headers).await;
        assert_eq!(code, Code::Unauthenticated);
    }
    let loads = loads(&service).await - before;
    assert!(loads <= 1 + begun.elapsed().as_secs() / 5, "{loads} loads");
}

/// Envoy says where each request comes from. As with any other proxy, its word counts only if it is trusted.
#[tokio::test]
async fn a_refresh_through_envoy_notes_the_address_of_its_client() {
    const FORWARDED: &str = "6.6.6.6, 203.0.113.9";
    for is_trusted in [true, false] {
        let service = Service::start_with(|web, _| {
            web.trusted_proxies = if is_trusted { vec![network("127.0.0.1").expect("an address")] } else { vec![] };
        })
        .await;
        service.set_policy(|policy| policy.cookies.scope = CookieScope::Host).await;
        for (source, forwarded, expected) in [
            (Some("198.51.100.7"), None, "198.51.100.7"),
            // The client's own header.
            (Some("198.51.100.7"), Some(FORWARDED), "198.51.100.7"),
            // From another trusted proxy; and Envoy may have added that one's address.
            (Some("127.0.0.1"), Some(FORWARDED), "203.0.113.9"),
            (Some("::ffff:127.0.0.1"), Some("6.6.6.6, 203.0.113.9,127.0.0.1"), "203.0.113.9"),
            // No address: the session's stays.
            (Some("unknown"), Some(FORWARDED), "192.0.2.1"),
            (None, Some(FORWARDED), "192.0.2.1"),
        ] {
            for route in [Route::Envoy, Route::EnvoyRaw] {
                let created = CreateSessionRequest { ip: Some("192.0.2.1".to_owned()), ..signing_in("ada") };
                let browser = Browser::of(&service.create(Wire::Rest, created).await.expect("signs in"));
                let headers = forwarded.map(|list| header("x-forwarded-for", list)).unwrap_or_default();
                let headers = both(browser.without_access().headers(), headers);
                let mut request = check_request(route, Some(PROJECT), &headers);
                let address = source.map(|address| Peer {
                    address: Some(Address { socket_address: Some(SocketAddress { address: address.to_owned() }) }),
                });
                request.attributes.as_mut().expect("attributes").source = address;
                let answer = service.check(request).await.expect("answers");
                assert!(matches!(answer.http_response, Some(HttpResponse::OkResponse(_))), "{source:?}");
                let query = json!({"user_id": "ada"});
                let list = service.ask(Wire::Grpc, "ListSessions", service.key(), &query).await.expect("lists");
                let shown = list["items"].as_array().expect("a list").iter();
                let session = shown.into_iter().find(|item| item["id"] == json!(browser.session)).expect("is there");
                let expected = if is_trusted { expected } else { "192.0.2.1" };
                assert_eq!(session["ip"], json!(expected), "{source:?} {forwarded:?} {route:?} {is_trusted}");
                assert_eq!(rotations(&service, &browser.session).await, 1);
            }
        }
    }
}

#[tokio::test]
async fn a_page_that_is_not_signed_in_is_sent_to_the_login_page() {
    let service = start().await;
    let ended = sign_in(&service, "ada").await;
    service.revoke_current(Wire::Rest, ended.headers()).await.expect("signs out");
    let login = "?login=/login";
    let location = Some("/login?return_to=%2Forders%3Fopen%3D1".to_owned());
    let old_browser = both(HeaderMap::new(), header("accept", "text/html,*/*;q=0.8"));
    for route in Route::ALL {
        for headers in [HeaderMap::new(), ended.headers(), bearer("rubbish")] {
            let page = pass(&service, route, login, &Asked::page(headers.clone())).await;
            assert_eq!((page.status, &page.location), (302, &location), "{route:?}");
            let page = pass(&service, route, login, &Asked::get(both(headers.clone(), old_browser.clone()))).await;
            assert_eq!((page.status, &page.location), (302, &location), "{route:?}");
            // An API call, and a page where no login page is named.
            let fetch = both(both(headers.clone(), header("sec-fetch-mode", "cors")), old_browser.clone());
            for (query, asked) in [
                (login, Asked::get(headers.clone())),
                (login, Asked::get(fetch)),
                (login, Asked { method: "POST", ..Asked::page(headers.clone()) }),
                ("", Asked::page(headers.clone())),
            ] {
                let api = pass(&service, route, query, &asked).await;
                assert_eq!(api.location, None, "{route:?}");
                assert!(api.status == 401 || asked.method == "POST" && api.status == 403, "{route:?}: {}", api.status);
            }
        }
        for path in ["//evil.example", "/\\evil.example", "/%2fevil.example", "/%5Cevil.example", "/a\tb"] {
            let asked = Asked { path, ..Asked::page(HeaderMap::new()) };
            let page = pass(&service, route, login, &asked).await;
            assert_eq!(page.location.as_deref(), Some("/login?return_to=%2F"), "{route:?} {path}");
        }
    }
    let nginx = pass(&service, Route::Path, "?login=/login&login_status=401", &Asked::page(HeaderMap::new())).await;
    assert_eq!((nginx.status, nginx.location), (401, location));
    // A cookie that a foreign page uses leads nowhere.
    let browser = sign_in(&service, "ada").await;
    let headers = both(browser.cookies(), header("sec-fetch-site", "cross-site"));
    let asked = Asked { method: "POST", ..Asked::page(headers) };
    for route in Route::ALL {
        let refused = pass(&service, route, login, &asked).await;
        assert_eq!((refused.status, refused.location), (403, None), "{route:?}");
    }
}

#[tokio::test]
async fn a_foreign_page_changes_nothing_through_a_proxy() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    let stale = browser.without_access();
    let handshake = header("sec-websocket-version", "13");
    for route in Route::ALL {
        for (what, headers) in foreign() {
            for browser in [&browser, &stale] {
                let headers = both(browser.cookies(), headers.clone());
                for method in ["POST", "PUT", "PATCH", "DELETE", "PURGE", "CONNECT"] {
                    let asked = Asked { method, ..Asked::get(headers.clone()) };
                    let passed = pass(&service, route, "?login=/login", &asked).await;
                    assert_eq!((passed.status, passed.set_cookies.len()), (403, 0), "{what}: {method} {route:?}");
                }
                let socket = Asked::get(both(headers, handshake.clone()));
                assert_eq!(pass(&service, route, "", &socket).await.status, 403, "{what}: a WebSocket, {route:?}");
            }
        }
        for (what, headers) in own() {
            let headers = both(browser.cookies(), headers);
            for method in ["POST", "DELETE"] {
                let asked = Asked { method, ..Asked::get(headers.clone()) };
                assert_eq!(pass(&service, route, "", &asked).await.status, 200, "{what}: {method} {route:?}");
            }
            let socket = Asked::get(both(headers, handshake.clone()));
            assert_eq!(pass(&service, route, "", &socket).await.status, 200, "{what}: a WebSocket, {route:?}");
        }
    }
    assert_eq!(rotations(&service, &browser.session).await, 0, "nothing was refreshed");
    // A proxy that does not say the method is asked about an unsafe one.
    let path = format!("/projects/{PROJECT}/auth/verify");
    let answer = service.wires.http(Method::GET, &path, browser.cookies(), "").await;
    assert_eq!(answer.status().as_u16(), 403);
}

/// The feed is followed by cookie too, and ends with the session.
#[tokio::test]
async fn a_page_hears_of_its_sign_out_by_cookie() {
    let service = start().await;
    let browser = sign_in(&service, "ada").await;
    let path = "/auth/revocations:watch";
    let foreign = both(browser.cookies(), header("sec-fetch-site", "cross-site"));
    assert_eq!(service.wires.http(Method::GET, path, foreign, "").await.status().as_u16(), 403);
    let watch = service.wires.http(Method::GET, path, browser.headers(), "");
    let sign_out = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        service.revoke_current(Wire::Rest, browser.headers()).await.expect("signs out")
    };
    let (heard, _) = tokio::join!(watch, sign_out);
    assert_eq!(heard.status(), StatusCode::OK);
    assert!(String::from_utf8_lossy(heard.body()).contains("SESSION_REVOKED"));
    eventually("it has ended", async || !service.is_live(&browser.session).await).await;
}
