//! HTTP conformance: hosts, media types, challenges, ids. Over raw sockets, because clients would correct the requests.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sessiond::{
    config::network,
    pb::{CreateSessionRequest, session_service_client::SessionServiceClient},
    rpc::status::reason_of,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Request, codec::CompressionEncoding};

use crate::harness::{PROJECT, Service, bearer, both, header, wire::refused_json};

const CURRENT: &str = "/auth/sessions/current";
const REVOKE_CURRENT: &str = "/sessiond.v1.SessionService/RevokeCurrent";

/// Sends a raw request, and reads the whole response; `Connection: close` makes the server close.
async fn raw(addr: std::net::SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut socket = TcpStream::connect(addr).await.expect("connects");
    socket.write_all(request.as_ref()).await.expect("sends");
    let mut answer = vec![];
    let reading = socket.read_to_end(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(10), reading).await.expect("in time").expect("answers");
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").or_else(|| answer.strip_prefix("HTTP/1.0 ")).map_or(answer, |rest| &rest[..3])
}

/// RFC 9112 §3.2: exactly one `Host`, and the host that the request is for.
#[tokio::test]
async fn a_request_without_exactly_one_valid_host_is_a_400() {
    let service = Service::start().await;
    for (line, hosts, expected) in [
        ("GET /healthz HTTP/1.1", "host: a\r\n", "200"),
        ("GET /healthz HTTP/1.1", "host: a:80\r\n", "200"),
        ("GET /healthz HTTP/1.1", "host: [::1]:80\r\n", "200"),
        ("GET http://a/healthz HTTP/1.1", "host: a\r\n", "200"),
        ("GET /healthz HTTP/1.0", "", "200"),
        ("GET /healthz HTTP/1.1", "", "400"),
        ("GET /healthz HTTP/1.1", "host: a\r\nhost: a\r\n", "400"),
        ("GET /healthz HTTP/1.1", "Host: a\r\nHOST: b\r\n", "400"),
        ("GET /healthz HTTP/1.0", "host: a\r\nhost: b\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host:\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: a b\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: a,b\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: a/b\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: u@a\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: a:b\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: a:65536\r\n", "400"),
        ("GET /healthz HTTP/1.1", "host: http://a\r\n", "400"),
        ("GET http://a/healthz HTTP/1.1", "host: b\r\n", "400"),
        ("GET http://a/healthz HTTP/1.1", "", "400"),
        // Also for the API, not only for the routes beside it.
        ("DELETE /auth/sessions/current HTTP/1.1", "", "400"),
        ("DELETE /auth/sessions/current HTTP/1.1", "host: a\r\n", "401"),
    ] {
        let answer = raw(service.addr, format!("{line}\r\n{hosts}connection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), expected, "{line} {hosts:?}: {answer}");
        let metrics = line.replace("/healthz", "/metrics").replace("http://a/", "http://localhost/");
        let hosts = hosts.replace("host: a\r\n", "host: localhost\r\n").replace("host: a:", "host: localhost:");
        if metrics.contains("/metrics") {
            let answer = raw(service.metrics_addr, format!("{metrics}\r\n{hosts}connection: close\r\n\r\n")).await;
            assert_eq!(status(&answer), expected, "{metrics} {hosts:?}: {answer}");
        }
    }
}

/// A page whose name resolves to loopback (DNS rebinding) cannot read the metrics.
#[tokio::test]
async fn metrics_on_loopback_answer_only_to_loopback_names() {
    let service = Service::start().await;
    for (host, expected) in [
        ("localhost:9464", "200"),
        ("127.0.0.1:9464", "200"),
        ("[::1]", "200"),
        ("LOCALHOST.", "200"),
        ("evil.example", "421"),
        ("localhost.evil.example", "421"),
        ("127.0.0.1.evil.example", "421"),
    ] {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(status(&raw(service.metrics_addr, request).await), expected, "{host}");
    }
}

/// A probe uses the pod's address, not its name.
#[tokio::test]
async fn probes_by_address_are_answered_with_allowed_hosts_set() {
    let service = Service::start_with(|web, _| web.allowed_hosts = vec!["sessions.example.org".to_owned()]).await;
    for (path, host, expected) in [
        ("/healthz", "10.1.2.3:8080", "200"),
        ("/healthz", "[fd00::1]:8080", "200"),
        ("/healthz", "localhost:8080", "200"),
        ("/healthz", "sessions.example.org", "200"),
        ("/healthz", "evil.example", "421"),
        ("/nope", "10.1.2.3:8080", "421"),
        ("/nope", "sessions.example.org", "404"),
        ("/nope", "Sessions.Example.Org.:443", "404"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(status(&raw(service.addr, request).await), expected, "{path} at {host}");
    }
    // Kubernetes probes gRPC by the pod's address too.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>();
    let origin = format!("http://{}", service.addr).parse().expect("a URI");
    let mut health = tonic_health::pb::health_client::HealthClient::with_origin(client, origin);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("answers");
}

/// `Connection` names hop-by-hop headers; it must not hide the `Origin` of a browser.
#[tokio::test]
async fn a_server_key_with_an_origin_is_refused_whatever_connection_says() {
    let service = Service::start().await;
    let key = service.server_key.expose_secret();
    for connection in ["close", "close, Origin", "ORIGIN,close", "origin\r\nconnection: close", "close, x-a, oRiGiN"] {
        let request = format!(
            "GET /auth/sessions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\norigin: https://a.example\r\n\
             connection: {connection}\r\n\r\n"
        );
        let answer = raw(service.addr, request).await;
        assert_eq!(status(&answer), "403", "{connection}: {answer}");
        assert!(answer.contains("INSUFFICIENT_ACCESS_TYPE"), "{answer}");

        let mut request = format!(
            "POST /sessiond.v1.SessionService/ListSessions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\
             origin: https://a.example\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: 5\r\n\
             connection: {connection}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(&[0; 5]);
        let answer = raw(service.addr, request).await;
        assert!(answer.contains("grpc-status: 7") || answer.contains("grpc-status:7"), "{connection}: {answer}");
    }
}

/// RFC 9110 §8.3.1: case does not matter, and parameters may follow. A sign-out is answered in the framing of the
/// request.
#[tokio::test]
async fn a_media_type_is_accepted_in_any_case_and_with_parameters() {
    let service = Service::start().await;
    for content_type in [
        "application/grpc-web+proto",
        "application/grpc-web+proto; charset=utf-8",
        "Application/gRPC-Web+Proto",
        "APPLICATION/GRPC-WEB;a=b",
        "application/grpc-web-text",
        "Application/grpc-web-text+PROTO; charset=utf-8",
    ] {
        for http2 in [false, true] {
            let phone = service.sign_in("ada", "phone").await;
            let headers = both(bearer(&phone.access_token), header("content-type", content_type));
            let is_text = content_type.to_ascii_lowercase().contains("text");
            let body: &[u8] = if is_text { b"AAAAAAA=" } else { &[0; 5] };
            let (method, body) = (Method::POST, Bytes::from_static(body));
            let answer = match http2 {
                false => service.wires.http(method, REVOKE_CURRENT, headers, body).await,
                true => service.wires.http2(method, REVOKE_CURRENT, headers, body).await,
            };
            assert_eq!(answer.status(), StatusCode::OK, "{content_type}");
            let expected = if is_text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
            assert_eq!(answer.headers()["content-type"], expected, "{content_type}");
            // The trailers are in the body, where a browser can read them.
            let mut framed = answer.body().to_vec();
            if is_text {
                use base64::{
                    Engine as _,
                    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
                };
                let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
                let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
                let text = String::from_utf8(framed).expect("text");
                // Each chunk is padded separately.
                framed = text.split_inclusive('=').flat_map(|piece| engine.decode(piece).unwrap_or_default()).collect();
            }
            let text = String::from_utf8_lossy(&framed);
            assert!(text.contains("grpc-status:0") || text.contains("grpc-status: 0"), "{content_type}: {text:?}");
            assert!(!phone.is_signed_in().await, "{content_type}");
        }
    }
    for content_type in ["application/json; charset=UTF-8", "Application/JSON"] {
        let headers = both(bearer(service.server_key.expose_secret()), header("content-type", content_type));
        let answer = service.wires.http(Method::POST, "/auth/sessions", headers, r#"{"user_id": "ada"}"#).await;
        assert_eq!(answer.status(), StatusCode::OK, "{content_type}");
    }
    for content_type in ["Application/X-WWW-Form-Urlencoded ; charset=utf-8"] {
        let form = format!("token=x&client_id={PROJECT}");
        let answer =
            service.wires.http(Method::POST, "/oauth2/revoke", header("content-type", content_type), form).await;
        assert_eq!(answer.status(), StatusCode::OK, "{content_type}");
    }
}

/// An unsupported gRPC media type has no effect, and gets a readable error.
#[tokio::test]
async fn an_unsupported_grpc_media_type_is_a_415_without_effect() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    for content_type in
        ["application/grpc+json", "application/grpc-web+thrift", "application/grpc-web-json", "application/grpc x"]
    {
        for http2 in [false, true] {
            let headers = both(bearer(&phone.access_token), header("content-type", content_type));
            let (method, body) = (Method::POST, Bytes::from_static(&[0; 5]));
            let answer = match http2 {
                false => service.wires.http(method, REVOKE_CURRENT, headers, body).await,
                true => service.wires.http2(method, REVOKE_CURRENT, headers, body).await,
            };
            let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
            let refused = refused_json(answer.status(), &body);
            assert_eq!((answer.status().as_u16(), &*refused.reason), (415, "UNSUPPORTED_MEDIA_TYPE"), "{content_type}");
        }
    }
    // gRPC needs HTTP/2.
    let headers = both(bearer(&phone.access_token), header("content-type", "application/grpc"));
    let answer = service.wires.http(Method::POST, REVOKE_CURRENT, headers, Bytes::from_static(&[0; 5])).await;
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    // Two types are not allowed.
    for two in [
        "content-type: application/grpc-web\r\ncontent-type: application/json",
        "content-type: application/json\r\ncontent-type: application/grpc-web",
    ] {
        let mut request = format!(
            "POST {REVOKE_CURRENT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n{two}\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
            phone.access_token
        )
        .into_bytes();
        request.extend_from_slice(&[0; 5]);
        assert_eq!(status(&raw(service.addr, request).await), "415");
    }
    assert!(phone.is_signed_in().await);
}

/// RFC 6750 §3: the challenge names an error if a credential was sent, and none otherwise.
#[tokio::test]
async fn a_401_says_what_is_wrong_with_the_bearer_token() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let ended = service.sign_in("ada", "tablet").await;
    ended.sign_out().await.expect("signs out");
    let challenge = async |method: Method, path: &str, headers: HeaderMap| {
        let answer = service.wires.http(method, path, headers, "").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        let mut values = answer.headers().get_all("www-authenticate").iter();
        let value = values.next().expect("a challenge").to_str().expect("text").to_owned();
        assert!(values.next().is_none(), "one challenge");
        value
    };
    let verify = format!("/projects/{PROJECT}/auth/verify");
    for path in [CURRENT, &verify] {
        assert_eq!(challenge(Method::GET, path, HeaderMap::new()).await, "Bearer", "{path}");
        for (token, description) in
            [("rubbish", "The access token is not one of ours."), (&*ended.access_token, "The session has ended.")]
        {
            let expected = format!(r#"Bearer error="invalid_token", error_description="{description}""#);
            assert_eq!(challenge(Method::GET, path, bearer(token)).await, expected, "{path}");
        }
    }
    let expected = r#"Bearer error="invalid_token", error_description="The server key is not valid.""#;
    let key = "sdsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    assert_eq!(challenge(Method::GET, "/auth/sessions", bearer(key)).await, expected);
    // A refresh token is not a bearer credential.
    let refresh = "/auth/sessions/current/refresh";
    assert_eq!(challenge(Method::POST, refresh, header("x-refresh-token", "rubbish")).await, "Bearer");
    service.clock.advance(std::time::Duration::from_secs(601));
    let expected = r#"Bearer error="invalid_token", error_description="The access token has expired.""#;
    assert_eq!(challenge(Method::GET, CURRENT, bearer(&phone.access_token)).await, expected);
}

/// A browser must not interpret user content as a page.
#[tokio::test]
async fn no_response_is_sniffed() {
    let service = Service::start().await;
    for path in ["/nope", CURRENT, "/healthz", "/openapi.json", "/.well-known/jwks.json", "/projects/demo/auth/verify"]
    {
        let answer = service.wires.http(Method::GET, path, HeaderMap::new(), "").await;
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
    }
}

/// A trusted proxy's log and ours share one request id; ids from others could be forged.
#[tokio::test]
async fn a_trusted_proxys_request_id_is_kept() {
    let trusting =
        Service::start_with(|web, _| web.trusted_proxies = vec![network("127.0.0.1").expect("an address")]).await;
    let id = async |service: &Service, lines: &str| {
        let answer =
            raw(service.addr, format!("GET /nope HTTP/1.1\r\nhost: a\r\n{lines}connection: close\r\n\r\n")).await;
        let line = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("an id");
        line.to_owned()
    };
    for given in ["0199d4a0-7c33-7d55-9f0e-3c0f0a1b2c3d", "a", &"b".repeat(128)] {
        assert_eq!(id(&trusting, &format!("x-request-id: {given}\r\n")).await, given);
    }
    for lines in [
        String::new(),
        "x-request-id: a b\r\n".to_owned(),
        "x-request-id: \"a\"\r\n".to_owned(),
        "x-request-id: a\r\nx-request-id: b\r\n".to_owned(),
        format!("x-request-id: {}\r\n", "b".repeat(129)),
    ] {
        assert_eq!(id(&trusting, &lines).await.len(), 32, "{lines:?}");
    }
    let wary = Service::start().await;
    assert_eq!(id(&wary, "x-request-id: forged\r\n").await.len(), 32);
}

/// Pages may send the headers of tracing and of common libraries, and those that the operator configures.
#[tokio::test]
async fn pages_may_send_tracing_headers_and_configured_ones() {
    let service = Service::start_with(|web, _| {
        web.cors_origins = vec!["capacitor://localhost".to_owned(), "https://app.example.org:443".to_owned()];
        web.cors_headers = vec!["X-Team".to_owned()];
    })
    .await;
    for origin in ["capacitor://localhost", "https://app.example.org"] {
        let asked = both(header("origin", origin), header("access-control-request-method", "GET"));
        let answer = service.wires.http(Method::OPTIONS, CURRENT, asked, "").await;
        assert_eq!(answer.headers()["access-control-allow-origin"], origin);
        let allowed = answer.headers()["access-control-allow-headers"].to_str().expect("text").to_ascii_lowercase();
        let allowed: Vec<&str> = allowed.split(',').map(str::trim).collect();
        for name in ["traceparent", "tracestate", "x-requested-with", "last-event-id", "x-team", "authorization"] {
            assert!(allowed.contains(&name), "{name} in {allowed:?}");
        }
        assert!(!allowed.contains(&"x-other"));
    }
}

macro_rules! sessions {
    ($service:expr) => {
        SessionServiceClient::with_origin(
            Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>(),
            format!("http://{}", $service.addr).parse().expect("a URI"),
        )
    };
}

/// Compressed messages are read; one that exceeds the limit is not decompressed completely.
#[tokio::test]
async fn gzip_is_accepted_and_bounded() {
    let service = Service::start().await;
    let mut sessions = sessions!(service).send_compressed(CompressionEncoding::Gzip);
    let request = |user_id: String| {
        let mut request = Request::new(CreateSessionRequest { user_id, ..CreateSessionRequest::default() });
        let key = format!("Bearer {}", service.server_key.expose_secret());
        request.metadata_mut().insert("authorization", key.parse().expect("a value"));
        request
    };
    let created = sessions.create_session(request("ada".to_owned())).await.expect("signs in");
    assert!(created.metadata().get("grpc-encoding").is_none(), "answers are not compressed");
    assert_eq!(created.into_inner().session.expect("a session").user_id, "ada");
    // 64 MiB compressed to 64 KiB.
    let refused = sessions.create_session(request("a".repeat(64 << 20))).await.map(drop).expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert_eq!(reason_of(&refused).map(|reason| reason.name()), Some("SCHEMA_ERROR"));
    let headers = both(header("content-type", "application/grpc"), header("grpc-encoding", "zstd"));
    let answer = service.wires.http2(Method::POST, REVOKE_CURRENT, headers, Bytes::from_static(&[0; 5])).await;
    assert_eq!(answer.headers()["grpc-status"], "12");
    assert!(answer.headers()["grpc-accept-encoding"].to_str().expect("text").contains("gzip"));
    let status = tonic::Status::from_header_map(answer.headers()).expect("a status");
    assert_eq!(reason_of(&status).map(|reason| reason.name()), Some("UNSUPPORTED_ENCODING"));
}

/// A unary call has one message. tonic would decode every further one too, and inflate it, before it answers; grpc-web's text is
/// no way around that.
#[tokio::test]
async fn a_call_of_several_messages_is_refused() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    const TWO: [u8; 10] = [0; 10];
    for (content_type, body) in [
        ("application/grpc", Bytes::from_static(&TWO)),
        ("application/grpc-web", Bytes::from_static(&TWO)),
        ("application/grpc-web-text", STANDARD.encode(TWO).into()),
        ("application/grpc-web-text", Bytes::from_static(b"no base64")),
        ("application/grpc", Bytes::from_static(&TWO[..7])),
    ] {
        let headers = both(phone.bearer(), header("content-type", content_type));
        let answer = service.wires.http2(Method::POST, REVOKE_CURRENT, headers, body).await;
        let status = tonic::Status::from_header_map(answer.headers()).expect("a status");
        assert_eq!(reason_of(&status).map(|reason| reason.name()), Some("SCHEMA_ERROR"), "{content_type}");
    }
    assert!(phone.is_signed_in().await);
    // One in text is answered in text.
    let headers = both(phone.bearer(), header("content-type", "application/grpc-web-text"));
    let answer = service.wires.http2(Method::POST, REVOKE_CURRENT, headers, STANDARD.encode([0; 5])).await;
    assert_eq!(answer.headers()["content-type"], "application/grpc-web-text+proto");
    assert!(answer.body().iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte)));
    assert!(!phone.is_signed_in().await);
}

/// Two bytes of a message may be an element that takes seventy in memory.
#[tokio::test]
async fn a_message_with_too_many_elements_is_refused_over_grpc_too() {
    let service = Service::start().await;
    let of = |message: Vec<u8>| {
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        Bytes::from([&[0], length.as_slice(), &message].concat())
    };
    let create = "/sessiond.v1.SessionService/CreateSession";
    // Field 15 is unknown: nothing but the number of elements is wrong with the second.
    for (count, reason) in [(24_000, "CREDENTIALS_MISSING"), (25_000, "SCHEMA_ERROR")] {
        let headers = header("content-type", "application/grpc");
        let answer = service.wires.http2(Method::POST, create, headers, of([0x7a, 0].repeat(count))).await;
        let status = tonic::Status::from_header_map(answer.headers()).expect("a status");
        assert_eq!(reason_of(&status).map(|reason| reason.name()), Some(reason), "{count}");
    }
}

/// Every error has a reason, also for unknown methods and services.
#[tokio::test]
async fn an_unknown_method_or_service_has_a_reason() {
    let service = Service::start().await;
    for path in ["/sessiond.v1.SessionService/Nothing", "/sessiond.v1.Nothing/RevokeCurrent", "/nothing"] {
        let headers = header("content-type", "application/grpc");
        let answer = service.wires.http2(Method::POST, path, headers, Bytes::from_static(&[0; 5])).await;
        let status = tonic::Status::from_header_map(answer.headers()).expect("a status");
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        assert_eq!(reason_of(&status).map(|reason| reason.name()), Some("METHOD_NOT_FOUND"), "{path}");
    }
}

/// RFC 8414 puts the well-known name before the issuer's path; many clients put it after, as OpenID Connect does.
#[tokio::test]
async fn the_metadata_is_found_by_either_path() {
    let service = Service::start().await;
    let mut found = vec![];
    for path in [
        format!("/.well-known/oauth-authorization-server/projects/{PROJECT}"),
        format!("/projects/{PROJECT}/.well-known/oauth-authorization-server"),
        format!("/api/v1/projects/{PROJECT}/.well-known/oauth-authorization-server"),
        format!("/.well-known/openid-configuration/projects/{PROJECT}"),
        format!("/projects/{PROJECT}/.well-known/openid-configuration"),
        format!("/api/v1/projects/{PROJECT}/.well-known/openid-configuration"),
    ] {
        let answer = service.wires.http(Method::GET, &path, HeaderMap::new(), "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        found.push(answer.into_body());
    }
    assert!(found.iter().all(|document| *document == found[0]));
    let path = "/projects/nobody/.well-known/oauth-authorization-server";
    assert_eq!(service.wires.http(Method::GET, path, HeaderMap::new(), "").await.status(), StatusCode::NOT_FOUND);
}

/// Every base path works alike, and no combination panics.
#[tokio::test]
async fn base_paths_are_normalised_and_each_is_served_once() {
    let paths = [
        "/",
        "/api/v1",
        "/api/v1/",
        "/auth",
        "/projects",
        "/projects/demo",
        "/.well-known",
        "/healthz",
        "/oauth2",
        "/demo",
    ];
    let service = Service::start_with(|web, _| web.base_paths = paths.map(str::to_owned).to_vec()).await;
    for base in paths {
        let path = format!("{}{CURRENT}", base.trim_end_matches('/'));
        let answer = service.wires.http(Method::GET, &path, HeaderMap::new(), "").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// Reads events from one connection until one has an id. Returns all of them, and the id.
async fn events_to_an_id(service: &Service, path: &str, lines: &str) -> (String, String) {
    let key = service.server_key.expose_secret();
    let mut socket = TcpStream::connect(service.addr).await.expect("connects");
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\nauthorization: Bearer {key}\r\n{lines}\r\n"
    );
    socket.write_all(request.as_bytes()).await.expect("sends");
    let mut seen = String::new();
    loop {
        let mut piece = [0; 4096];
        let reading = tokio::time::timeout(std::time::Duration::from_secs(10), socket.read(&mut piece));
        let read = reading.await.unwrap_or_else(|_| panic!("no id: {seen}")).expect("still works");
        assert!(read > 0, "ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        if let Some((_, rest)) = seen.split_once("\nid: ")
            && let Some((id, _)) = rest.split_once('\n')
        {
            let id = id.to_owned();
            return (seen, id);
        }
    }
}

/// A browser's `EventSource` resumes by itself: an event's id is the cursor, and comes back as `Last-Event-ID`.
#[tokio::test]
async fn events_have_ids_and_the_stream_resumes_after_the_last_one() {
    let service = Service::start().await;
    let path = "/auth/revocations:watch";
    let (first, id) = events_to_an_id(&service, path, "").await;
    assert!(first.contains("snapshot_begin") && first.contains(&format!(r#""cursor":"{id}""#)), "{first}");
    for (path, given) in [
        (path.to_owned(), &*id),
        (format!("/api/v1{path}"), &id),
        // An EventSource keeps its original URL.
        (format!("{path}?cursor=rubbish"), &id),
    ] {
        service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
        let (resumed, _) = events_to_an_id(&service, &path, &format!("last-event-id: {given}\r\n")).await;
        assert!(!resumed.contains("snapshot_begin"), "{path}: {resumed}");
    }
    let (restarted, _) = events_to_an_id(&service, path, "last-event-id: \r\n").await;
    assert!(restarted.contains("snapshot_begin"), "an empty id counts as none: {restarted}");
    let headers = both(both(service.key(), header("accept", "text/event-stream")), header("last-event-id", "rubbish"));
    let refused = service.wires.http(Method::GET, path, headers, "").await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}
