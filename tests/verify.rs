//! Verification for proxies: by path, as for nginx, Traefik and Caddy, and by Envoy's protocol. Both give the same
//! answers. Real proxies are in `proxies.rs`.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use secrecy::ExposeSecret as _;
use sessiond::pb::{
    CreateSessionRequest,
    envoy::{
        AttributeContext, CheckRequest, CheckResponse, HeaderValue, HeaderValueOption,
        attribute_context::{HttpRequest, Request},
        authorization_client::AuthorizationClient,
        check_response::HttpResponse,
        header_value_option::HeaderAppendAction,
    },
};
use sessiond_core::{
    clock::Timestamp,
    id::KeyId,
    token::{
        access::{Claims, Issuer},
        keys::SigningKey,
        unverified::UnverifiedToken,
    },
};
use tonic::{Code, Status, body::Body};

use crate::{
    create::claims_of,
    harness::{ISSUER, PROJECT, Service, Wire, bearer, both, header, wire::refused_json},
    revoke::flip,
};

/// Headers that a client might send to impersonate another user, and to turn a refusal into a 200.
pub fn spoofed() -> HeaderMap {
    [
        ("x-user-id", "root"),
        ("x-session-id", "root"),
        ("x-project-id", "other"),
        ("x-impersonator-id", "root"),
        ("x-stack-override-error-status", "true"),
        ("x-stack-access-type", "client"),
        ("x-http-method-override", "DELETE"),
        ("x-original-uri", "/projects/other/auth/verify"),
    ]
    .into_iter()
    .fold(HeaderMap::new(), |headers, (name, value)| both(headers, header(name, value)))
}

/// How a proxy verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Path,
    Envoy,
    /// With headers as bytes, an option of Envoy's configuration.
    EnvoyRaw,
}

impl Route {
    pub const ALL: [Self; 3] = [Self::Path, Self::Envoy, Self::EnvoyRaw];
}

/// The result that the proxy gets.
#[derive(Debug, PartialEq, Eq)]
pub struct VerifyOutcome {
    pub status: u16,
    /// The reason of a refusal.
    pub reason: Option<String>,
    /// `x-session-id`, `x-user-id`, `x-project-id`, `x-impersonator-id`; absent in Envoy's denials.
    pub identity: [String; 4],
    pub challenge: Option<String>,
}

impl VerifyOutcome {
    pub fn passes(&self) -> bool {
        self.status == 200
    }
}

impl Service {
    pub async fn verify(&self, route: Route, project: &str, headers: HeaderMap) -> VerifyOutcome {
        self.verify_with(route, project, headers, &[]).await
    }

    /// The same with these parameters in the proxy's configuration.
    pub async fn verify_with(
        &self,
        route: Route,
        project: &str,
        headers: HeaderMap,
        parameters: &[(&str, &str)],
    ) -> VerifyOutcome {
        match route {
            Route::Path => {
                let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
                let path = format!("/projects/{project}/auth/verify?{query}");
                outcome(&self.wires.http(Method::GET, path.trim_end_matches('?'), headers, "").await)
            }
            Route::Envoy | Route::EnvoyRaw => {
                let mut request = check_request(route, Some(project), &headers);
                let extensions = &mut request.attributes.as_mut().expect("is there").context_extensions;
                extensions.extend(parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
                envoy_outcome(self.check(request).await.expect("answers"))
            }
        }
    }

    pub async fn check(&self, request: CheckRequest) -> Result<CheckResponse, Status> {
        let channel: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let origin = format!("http://{}", self.addr).parse().expect("a URI");
        let answer = AuthorizationClient::with_origin(channel, origin).check(request).await;
        answer.map(tonic::Response::into_inner)
    }
}

pub fn outcome(response: &Response<Bytes>) -> VerifyOutcome {
    let text = |name: &str| response.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    let identity = ["x-session-id", "x-user-id", "x-project-id", "x-impersonator-id"];
    for name in identity {
        assert_eq!(response.headers().get_all(name).iter().count(), 1, "{name}: always, and once");
    }
    assert_eq!(text("cache-control").as_deref(), Some("no-store"));
    let json = serde_json::from_slice(response.body()).ok();
    assert_eq!(json.is_some(), !response.status().is_success(), "a refusal says why, and nothing else says anything");
    assert!(json.is_none() || text("content-type").as_deref() == Some("application/json"));
    VerifyOutcome {
        status: response.status().as_u16(),
        reason: json.map(|json| refused_json(response.status(), &json).reason),
        identity: identity.map(|name| text(name).expect("there")),
        challenge: text("www-authenticate"),
    }
}

pub fn envoy_outcome(answer: CheckResponse) -> VerifyOutcome {
    let code = answer.status.expect("a status").code;
    let value = |options: &[HeaderValueOption], name: &str| {
        let mut named = options.iter().filter(|option| option.header.as_ref().is_some_and(|header| header.key == name));
        let option = named.next()?;
        assert!(named.next().is_none(), "{name}: once");
        assert_eq!(option.append_action(), HeaderAppendAction::OverwriteIfExistsOrAdd, "{name}");
        option.header.as_ref().map(|header| header.value.clone())
    };
    match answer.http_response.expect("what to do") {
        HttpResponse::OkResponse(ok) => {
            assert_eq!(Code::from_i32(code), Code::Ok);
            let names = ["x-session-id", "x-user-id", "x-project-id", "x-impersonator-id"];
            assert!(names.iter().all(|name| !ok.headers_to_remove.iter().any(|removed| removed == name)));
            assert!(ok.headers_to_remove.iter().any(|name| name == "x_user_id"), "what a CGI takes for the same");
            let identity = names.map(|name| value(&ok.headers, name).expect("always there"));
            VerifyOutcome { status: 200, reason: None, identity, challenge: None }
        }
        HttpResponse::DeniedResponse(denied) => {
            assert_ne!(Code::from_i32(code), Code::Ok);
            assert_eq!(value(&denied.headers, "content-type").as_deref(), Some("application/json"));
            assert_eq!(value(&denied.headers, "cache-control").as_deref(), Some("no-store"));
            let status = denied.status.expect("a status").code.try_into().expect("of HTTP");
            let json: serde_json::Value = serde_json::from_str(&denied.body).expect("JSON");
            assert_eq!(json["code"], code);
            let http = http::StatusCode::from_u16(status).expect("of HTTP");
            VerifyOutcome {
                status,
                reason: Some(refused_json(http, &json).reason),
                identity: Default::default(),
                challenge: value(&denied.headers, "www-authenticate"),
            }
        }
    }
}

/// Envoy's check of a request to `/`.
pub fn check_request(route: Route, project: Option<&str>, headers: &HeaderMap) -> CheckRequest {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut http = HttpRequest { method: "GET".into(), path: "/?token=secret".into(), ..Default::default() };
    if route == Route::EnvoyRaw {
        let raw = headers.iter().map(|(name, value)| HeaderValue {
            key: name.to_string(),
            raw_value: value.as_bytes().to_vec(),
            ..Default::default()
        });
        http.header_map = Some(sessiond::pb::envoy::HeaderMap { headers: raw.collect() });
    } else {
        for (name, value) in headers {
            let all = http.headers.entry(name.to_string()).or_default();
            *all = if all.is_empty() { text(value) } else { format!("{all},{}", text(value)) };
        }
    }
    let context_extensions: HashMap<_, _> =
        project.into_iter().map(|project| ("project_id".to_owned(), project.to_owned())).collect();
    CheckRequest {
        attributes: Some(AttributeContext {
            source: None,
            request: Some(Request { http: Some(http) }),
            context_extensions,
        }),
    }
}

fn refused(status: u16, reason: &str, challenge: Option<&str>) -> VerifyOutcome {
    VerifyOutcome {
        status,
        reason: Some(reason.to_owned()),
        identity: Default::default(),
        challenge: challenge.map(str::to_owned),
    }
}

/// RFC 6750 §3.
fn invalid(reason: &str, description: &str) -> VerifyOutcome {
    refused(401, reason, Some(&format!("Bearer error=\"invalid_token\", error_description=\"{description}\"")))
}

const ENDED: &str = "The session has ended.";
const NOT_OURS: &str = "The access token is not one of ours.";

#[tokio::test]
async fn a_good_token_passes_as_its_user_and_spoofed_headers_do_not() {
    let service = Service::start().await;
    let phone = service.sign_in("ada lovelace+b%2F,ä@example.org", "phone").await;
    let acted = service.impersonate("ada", "root, himself").await;
    for route in Route::ALL {
        let outcome = service.verify(route, PROJECT, both(spoofed(), phone.bearer())).await;
        let user = "ada%20lovelace%2Bb%252F%2C%C3%A4%40example.org".to_owned();
        let identity = [phone.session.clone(), user, PROJECT.to_owned(), String::new()];
        assert_eq!(outcome, VerifyOutcome { status: 200, reason: None, identity, challenge: None }, "{route:?}");

        let identity = service.verify(route, PROJECT, both(spoofed(), acted.bearer())).await.identity;
        let expected = [&acted.session, "ada", PROJECT, "root%2C%20himself"];
        assert_eq!(identity, expected.map(str::to_owned), "{route:?}");
    }
    let counted = r#"sessiond_requests_total{rpc="envoy.service.auth.v3.Authorization/Check",wire="rest",code="OK"}"#;
    assert_eq!(service.metric(counted).await, 2);
    assert_eq!(service.metric(&counted.replace("rest", "grpc")).await, 4);
}

/// nginx, Traefik and Caddy use GET; Traefik can be configured to use the client's method.
#[tokio::test]
async fn verify_answers_every_method_under_every_base_path() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for base in ["", "/api/v1"] {
        let path = format!("{base}/projects/{PROJECT}/auth/verify");
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
            let method = Method::from_bytes(method.as_bytes()).expect("a token");
            let headers = both(header("authorization", &format!("bEARER {}", phone.access_token)), spoofed());
            let answer = service.wires.http(method.clone(), &path, headers, "").await;
            let outcome = outcome(&answer);
            assert_eq!((outcome.status, outcome.identity[1].as_str()), (200, "ada"), "{method} {path}");
            let none = service.wires.http(method, &path, spoofed(), "").await;
            assert_eq!(none.status(), 401);
        }
    }
    assert!(phone.is_signed_in().await, "nothing is changed by asking");
}

/// A preflight is answered for pages that call the API; a proxy's OPTIONS is not one.
#[tokio::test]
async fn a_preflight_is_not_let_through() {
    let service = Service::start_with(|web, _| web.cors_origins = vec!["https://app.example.org".to_owned()]).await;
    let preflight =
        both(header("origin", "https://app.example.org"), header("access-control-request-method", "DELETE"));
    let path = format!("/projects/{PROJECT}/auth/verify");
    let answer = service.wires.http(Method::OPTIONS, &path, both(preflight, spoofed()), "").await;
    assert_eq!(outcome(&answer), refused(401, "CREDENTIALS_MISSING", Some("Bearer")));
}

#[tokio::test]
async fn anything_but_a_good_token_of_the_project_is_refused_without_identity() {
    let service = Service::start().await;
    let other = service.create_project("other").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let elsewhere = service.create_as(Wire::Grpc, &other, request).await.expect("opens").access_token;
    let (phone, ended) = (service.sign_in("ada", "phone").await, service.sign_in("ada", "laptop").await);
    ended.sign_out().await.expect("signs out");
    let cut_off = service.sign_in("bob", "phone").await;
    cut_off.revoke_all().await.expect("signs out everywhere");

    let good = &phone.access_token;
    let long = "x".repeat(20_000);
    let authorization = |value: &str| header("authorization", value);
    let foreign = invalid("INVALID_PROJECT_FOR_ACCESS_TOKEN", "The access token is of another project.");
    let unparsable = || invalid("UNPARSABLE_ACCESS_TOKEN", NOT_OURS);
    let mut two = phone.bearer();
    two.append("authorization", two["authorization"].clone());
    let cases = [
        ("nothing", HeaderMap::new(), refused(401, "CREDENTIALS_MISSING", Some("Bearer"))),
        (
            "in another header",
            header("x-stack-access-token", good),
            refused(401, "CREDENTIALS_MISSING", Some("Bearer")),
        ),
        (
            "a refresh token",
            header("x-refresh-token", &phone.refresh_token),
            refused(401, "CREDENTIALS_MISSING", Some("Bearer")),
        ),
        ("no token", authorization("Bearer"), unparsable()),
        ("rubbish", bearer("rubbish"), unparsable()),
        ("three times rubbish", bearer("a.b.c"), unparsable()),
        ("too long", bearer(&long), unparsable()),
        ("another scheme", authorization(&format!("Basic {good}")), unparsable()),
        ("no scheme", authorization(good), unparsable()),
        ("two tokens", two, unparsable()),
        ("two in one", bearer(&format!("{good}, Bearer {good}")), unparsable()),
        ("a refresh token as a bearer's", bearer(&phone.refresh_token), unparsable()),
        ("a server key", bearer(service.server_key.expose_secret()), unparsable()),
        ("a forged one", bearer(&flip(good, good.len() - 20)), unparsable()),
        ("under an unknown key", bearer(&under_an_unknown_key(&service, good)), unparsable()),
        ("another project's", bearer(&elsewhere), foreign),
        ("of a session that was signed out of", ended.bearer(), invalid("SESSION_REVOKED", ENDED)),
        ("of a user who was signed out", cut_off.bearer(), invalid("SESSION_REVOKED", ENDED)),
    ];
    for (what, headers, expected) in cases {
        for route in Route::ALL {
            for _ in ["once", "and once more, when it may be known"] {
                let outcome = service.verify(route, PROJECT, both(spoofed(), headers.clone())).await;
                assert_eq!(outcome, expected, "{what}, {route:?}");
            }
        }
    }
    for route in Route::ALL {
        assert!(service.verify(route, "other", bearer(&elsewhere)).await.passes(), "{route:?}: at home, it is good");
        assert!(service.verify(route, PROJECT, phone.bearer()).await.passes(), "{route:?}");
    }
}

/// The claims of a genuine token, signed with a foreign key.
fn under_an_unknown_key(service: &Service, genuine: &str) -> String {
    let claims = genuine_claims(service, genuine);
    let (key, _) = SigningKey::generate(sessiond_core::id::ProjectId::parse(PROJECT).expect("a name"));
    assert!(service.app.keys().snapshot().keyring.signing(key.id()).is_none());
    key.sign(&claims).expect("signs").expose_secret().to_owned()
}

pub fn genuine_claims(service: &Service, token: &str) -> Claims {
    let presented = UnverifiedToken::parse(token).expect("genuine");
    let kid: KeyId = presented.key();
    let key = service.app.keys().snapshot().keyring.signing(kid).expect("known").clone();
    presented.verify(key.verifying(), &Issuer::new(ISSUER)).expect("genuine")
}

#[tokio::test]
async fn a_token_expires_at_its_exp_and_not_before() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let exp = Timestamp::from_seconds(claims_of(&phone.access_token)["exp"].as_i64().expect("a number"));
    service.clock.advance(exp.since(service.clock.now()) - Duration::from_micros(1));
    for route in Route::ALL {
        assert!(service.verify(route, PROJECT, phone.bearer()).await.passes(), "{route:?}: just before");
    }
    for _ in ["at", "just after"] {
        service.clock.advance(Duration::from_micros(1));
        for route in Route::ALL {
            let outcome = service.verify(route, PROJECT, both(spoofed(), phone.bearer())).await;
            assert_eq!(outcome, invalid("ACCESS_TOKEN_EXPIRED", "The access token has expired."), "{route:?}");
        }
    }
}

/// An error in the proxy's configuration; no token can fix it.
#[tokio::test]
async fn an_unknown_project_is_a_configuration_error_of_the_proxy() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let long = "x".repeat(65);
    for project in ["nobody", "de%20mo", "%ff", "Demo", &long] {
        for headers in [HeaderMap::new(), phone.bearer()] {
            let outcome = service.verify(Route::Path, project, headers).await;
            assert_eq!(outcome, refused(404, "PROJECT_NOT_FOUND", None), "{project}");
        }
    }
    for route in [Route::Envoy, Route::EnvoyRaw] {
        for project in [None, Some(""), Some("nobody"), Some(long.as_str())] {
            for headers in [HeaderMap::new(), phone.bearer()] {
                let answer = service.check(check_request(route, project, &headers)).await.expect("answers");
                assert_eq!(envoy_outcome(answer), refused(500, "PROJECT_NOT_FOUND", None), "{project:?}");
            }
        }
    }
    let answer = service.check(CheckRequest::default()).await.expect("answers");
    assert_eq!(envoy_outcome(answer), refused(500, "PROJECT_NOT_FOUND", None), "not even attributes");
}

/// A project created a moment ago on another replica is found at once.
#[tokio::test]
async fn a_new_project_and_its_keys_are_found() {
    let service = Service::start().await;
    let replica = service.replica().await;
    let key = service.create_project("young").await;
    let request = CreateSessionRequest { user_id: "ada".into(), ..Default::default() };
    let phone = service.create_as(Wire::Grpc, &key, request).await.expect("opens");
    assert!(replica.verify(Route::Path, "young", bearer(&phone.access_token)).await.passes());
}

#[tokio::test]
async fn a_successful_verification_counts_as_use() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for route in Route::ALL {
        service.clock.advance(Duration::from_secs(60));
        assert!(service.verify(route, PROJECT, phone.bearer()).await.passes());
        service.app.flush_usage().await.expect("writes");
        let used = service.seen(&phone.session).await.expect("is there").stored.session.last_used_at;
        assert_eq!(used, service.clock.now(), "{route:?}");
    }
}
