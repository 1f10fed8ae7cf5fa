//! REST at the edge: bad input, limits, and paths beside the RPCs.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{PROJECT, Service, bearer, both, header, wire::refused_json};
use secrecy::ExposeSecret as _;

fn json_type() -> HeaderMap {
    header("content-type", "application/json")
}

#[tokio::test]
async fn an_invalid_body_is_a_400_that_names_the_field() {
    let service = Service::start().await;
    let headers = both(bearer(service.server_key.expose_secret()), json_type());
    let cases: [(&[u8], &str); 8] = [
        (br#"{"user_id": "ada""#, ""),
        (br#"{"user_id": "ada", "bogus": 1}"#, "bogus"),
        (br#"{"user_id": 7}"#, "user_id"),
        (br#"{"userId": "ada", "user_id": "eve"}"#, "user_id"),
        (br#"{"user_id": "ada", "labels": {"a": 1}}"#, "labels"),
        (br#"{"user_id": "ada", "expires_in_millis": "soon"}"#, "expires_in_millis"),
        (b"{\"user_id\": \"a\xffa\"}", "user_id"),
        (br#"[]"#, ""),
    ];
    for (body, field) in cases {
        let body = body.to_vec();
        for path in ["/auth/sessions", "/api/v1/auth/sessions"] {
            let response = service.wires.http(Method::POST, path, headers.clone(), body.clone()).await;
            let json: Value = serde_json::from_slice(response.body()).expect("JSON");
            let refused = refused_json(response.status(), &json);
            assert_eq!(
                (response.status(), refused.reason.as_str()),
                (StatusCode::BAD_REQUEST, "SCHEMA_ERROR"),
                "{json}"
            );
            assert!(refused.fields.iter().any(|found| found.contains(field)), "{field} in {json}");
        }
    }
}

/// A value above its field's length limit is not read to its end.
#[tokio::test]
async fn a_list_is_refused_at_its_first_excess_element() {
    let service = Service::start().await;
    let headers = both(bearer(service.server_key.expose_secret()), json_type());
    let labels = |count: usize| (0..count).map(|n| (format!("key{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    // The last one is malformed, and is never read.
    let text = |labels| json!({"user_id": "ada", "labels": labels}).to_string().replacen("\"v\"}", "7}", 1);
    for count in [34, 8_000, 65_000] {
        let body = text(labels(count));
        let response = service.wires.http(Method::POST, "/auth/sessions", headers.clone(), body).await;
        let json: Value = serde_json::from_slice(response.body()).expect("JSON");
        let refused = refused_json(response.status(), &json);
        assert_eq!((response.status(), refused.fields), (StatusCode::BAD_REQUEST, vec!["labels".to_owned()]), "{json}");
        assert!(json["message"].as_str().is_some_and(|message| message.contains("more than 32")), "{json}");
    }
    let body = json!({"labels": labels(9_000)}).to_string();
    let response = service.wires.http(Method::PATCH, "/auth/sessions/x", headers, body).await;
    assert!(String::from_utf8_lossy(response.body()).contains("more than 8192"), "{:?}", response.body());
}

#[tokio::test]
async fn http_errors_are_answered_as_json() {
    let service = Service::start().await;
    let cases = [
        (Method::GET, "/nope", HeaderMap::new(), StatusCode::NOT_FOUND),
        (Method::PUT, "/auth/sessions/current", HeaderMap::new(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/auth/sessions", header("content-type", "text/plain"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (Method::DELETE, "/auth/sessions/current?refresh_token=x", HeaderMap::new(), StatusCode::BAD_REQUEST),
        (Method::DELETE, "/auth/sessions/current", HeaderMap::new(), StatusCode::UNAUTHORIZED),
    ];
    for (method, path, headers, status) in cases {
        for http2 in [false, true] {
            let (method, headers) = (method.clone(), headers.clone());
            let response = match http2 {
                false => service.wires.http(method, path, headers, "{}").await,
                true => service.wires.http2(method, path, headers, "{}").await,
            };
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()["content-type"], "application/json", "{path}");
            assert_eq!(response.headers()["cache-control"], "no-store", "{path}");
            assert_eq!(response.headers()["x-request-id"].len(), 32, "{path}");
            assert!(serde_json::from_slice::<Value>(response.body()).expect("JSON")["code"].is_i64(), "{path}");
            assert_eq!(response.headers().contains_key("www-authenticate"), status == StatusCode::UNAUTHORIZED);
        }
    }
}

#[tokio::test]
async fn a_body_of_10_mb_is_a_413() {
    let service = Service::start().await;
    let headers = both(bearer(service.server_key.expose_secret()), json_type());
    let body = format!(r#"{{"user_id": "{}"}}"#, "x".repeat(10 * 1024 * 1024));
    // Over a raw socket: a client may stop before it reads the response to a body that it could not send.
    let head = format!(
        "POST /auth/sessions HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        headers["authorization"].to_str().expect("text"),
        body.len()
    );
    assert!(
        exchange(&service, &[head.as_bytes(), &body.as_bytes()[..64 * 1024]].concat())
            .await
            .starts_with("HTTP/1.1 413 ")
    );

    let response =
        service.wires.http2(Method::POST, "/auth/sessions", headers, body[..2 * 1024 * 1024].to_owned()).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_header_of_64_kb_is_a_431_on_both_versions_of_http() {
    let service = Service::start().await;
    let large = "x".repeat(64 * 1024);
    let request = format!("DELETE /auth/sessions/current HTTP/1.1\r\nhost: x\r\nx-large: {large}\r\n\r\n");
    assert!(exchange(&service, request.as_bytes()).await.starts_with("HTTP/1.1 431 "));

    let mut headers = HeaderMap::new();
    headers.insert("x-large", HeaderValue::from_str(&large).expect("a value"));
    let response = service.wires.http2(Method::DELETE, "/auth/sessions/current", headers, "").await;
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

/// A refusal may precede the body. If the stream were reset after it, some clients would discard the response.
#[tokio::test]
async fn over_http_2_a_refusal_before_the_body_is_complete() {
    // Frame types and flags (RFC 9113 §6).
    let [data, headers, rst_stream, settings, ping] = [0, 1, 3, 4, 6];
    let [end_stream, ack, end_headers] = [1, 1, 4];
    let service = Service::start().await;
    let mut socket = tokio::net::TcpStream::connect(service.addr).await.expect("connects");
    // HPACK (RFC 7541): POST, http, and two literals without indexing.
    let head = [&[0x83, 0x86, 0x04, 5][..], b"/nope", &[0x01, 1], b"x"].concat();
    let begun =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(settings, 0, 0, &[])[..], &frame(headers, end_headers, 1, &head)];
    socket.write_all(&begun.concat()).await.expect("sends");

    let mut seen = vec![];
    while seen.last() != Some(&(data, end_stream)) {
        seen.push(next_frame(&mut socket).await);
    }
    let ended = [frame(data, end_stream, 1, b"{}"), frame(ping, 0, 0, &[0; 8])];
    socket.write_all(&ended.concat()).await.expect("sends");
    while seen.last() != Some(&(ping, ack)) {
        seen.push(next_frame(&mut socket).await);
    }
    assert!(seen.iter().all(|(kind, _)| *kind != rst_stream), "{seen:?}");
}

/// An HTTP/2 frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short one");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The type and flags of the next frame.
async fn next_frame(socket: &mut tokio::net::TcpStream) -> (u8, u8) {
    let mut head = [0; 9];
    let reading = tokio::time::timeout(Duration::from_secs(5), socket.read_exact(&mut head));
    reading.await.expect("in time").expect("a frame");
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    socket.read_exact(&mut payload).await.expect("the whole of it");
    (head[3], head[4])
}

/// Sends raw bytes, and reads the response headers.
async fn exchange(service: &Service, bytes: &[u8]) -> String {
    let mut socket = tokio::net::TcpStream::connect(service.addr).await.expect("connects");
    socket.write_all(bytes).await.expect("sends");
    let mut answer = vec![0; 1024];
    let read = socket.read(&mut answer).await.expect("answers");
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn the_public_keys_are_cacheable_and_per_project() {
    let service = Service::start().await;
    service.create_project("other").await;
    for path in ["/.well-known/jwks.json", "/api/v1/.well-known/jwks.json"] {
        let response = service.wires.http(Method::GET, path, HeaderMap::new(), "").await;
        let keys: Value = serde_json::from_slice(response.body()).expect("JSON");
        assert_eq!(keys["keys"].as_array().expect("a list").len(), 2);
        assert_eq!(response.headers()["cache-control"], "public, max-age=3600");
    }
    let path = format!("/api/v1/projects/{PROJECT}/.well-known/jwks.json");
    let response = service.wires.http(Method::GET, &path, HeaderMap::new(), "").await;
    let key = serde_json::from_slice::<Value>(response.body()).expect("JSON")["keys"][0].clone();
    assert_eq!(
        (&key["kty"], &key["crv"], &key["alg"], &key["use"]),
        (&json!("EC"), &json!("P-256"), &json!("ES256"), &json!("sig"))
    );
    assert!(key.get("d").is_none(), "the private half stays here");

    let response =
        service.wires.http(Method::GET, "/projects/nobody/.well-known/jwks.json", HeaderMap::new(), "").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_the_configured_origins_may_call_from_a_browser() {
    let ours = "https://app.example.org";
    let service = Service::start_with(|web, _| web.cors_origins = vec![ours.to_owned()]).await;
    let preflight = |origin: &str| {
        let asked = both(header("origin", origin), header("access-control-request-method", "DELETE"));
        both(asked, header("access-control-request-headers", "authorization"))
    };
    let path = "/auth/sessions/current";
    let allowed = service.wires.http(Method::OPTIONS, path, preflight(ours), "").await;
    assert_eq!(allowed.headers()["access-control-allow-origin"], ours);
    assert!(allowed.headers()["access-control-allow-headers"].to_str().expect("text").contains("authorization"));
    assert_eq!(allowed.headers()["access-control-max-age"], "86400");
    assert!(!allowed.headers().contains_key("access-control-allow-credentials"));

    let refused = service.wires.http(Method::OPTIONS, path, preflight("https://evil.example"), "").await;
    assert!(!refused.headers().contains_key("access-control-allow-origin"));

    // The page can read error responses too.
    let answer = service.wires.http(Method::DELETE, path, header("origin", ours), "").await;
    assert_eq!(
        (answer.status(), &answer.headers()["access-control-allow-origin"]),
        (StatusCode::UNAUTHORIZED, &HeaderValue::from_static(ours))
    );
}

/// A client that connects and sends no request is disconnected, with either HTTP version.
#[tokio::test]
async fn a_silent_connection_is_closed() {
    let service = Service::start_with(|_, limits| limits.header_timeout = Duration::from_millis(200)).await;
    for beginning in ["", "PRI", "GET / HT"] {
        let mut socket = tokio::net::TcpStream::connect(service.addr).await.expect("connects");
        socket.write_all(beginning.as_bytes()).await.expect("sends");
        let mut rest = vec![];
        let closed = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{beginning:?} is still open");
    }
    service.sign_in("ada", "phone").await.sign_out().await.expect("others are served");
}

#[tokio::test]
async fn other_host_names_are_refused_with_allowed_hosts_set() {
    let service = Service::start_with(|web, _| web.allowed_hosts = vec!["localhost".to_owned()]).await;
    for (host, status) in [("localhost:1", "404"), ("evil.example", "421")] {
        let answer = exchange(&service, format!("GET /nope HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served() {
    let service = Service::start().await;
    assert_eq!(service.wires.http(Method::GET, "/healthz", HeaderMap::new(), "").await.status(), StatusCode::OK);
    // The first check of the database may still be in progress.
    service.becomes_ready().await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    let page = service.metrics_page().await;
    for line in [
        r#"sessiond_requests_total{rpc="sessiond.v1.SessionService/RevokeCurrent",wire="rest",code="OK"} 1"#,
        r#"sessiond_requests_total{rpc="sessiond.v1.SessionService/CreateSession",wire="grpc",code="OK"} 1"#,
        r#"sessiond_store_operation_duration_seconds_count{operation="sessions_revoke",outcome="ok"} 1"#,
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    // Not on the public port.
    assert_eq!(service.wires.http(Method::GET, "/metrics", HeaderMap::new(), "").await.status(), StatusCode::NOT_FOUND);
}
