//! Malformed replies, and special cases of valid ones.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::StreamBody;
use serde_json::Value;
use serde_json::json;
use tonic_rest_layer::RequestBody;
use tonic_rest_layer::RestLayer;
use tower::Layer;
use tower::ServiceExt;
use tower::service_fn;

use super::harness::descriptor_set;

/// The reply of the service.
#[derive(Clone, Default)]
struct Reply {
    headers: Vec<(&'static str, &'static str)>,
    pieces: Vec<&'static [u8]>,
    trailers: Vec<(&'static str, &'static str)>,
    /// Does not end the body.
    hangs: bool,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    /// Whether the layer reports a malformed reply.
    fn is_bad_reply(&self) -> bool {
        self.status == 500 && self.json()["details"][0]["reason"] == "BAD_REPLY"
    }
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    map
}

async fn ask(fixture: &str, method: &str, path: &str, reply: Reply) -> Answer {
    let service = service_fn(move |_: Request<RequestBody<Full<Bytes>>>| {
        let pieces = reply.pieces.iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece))));
        let end = Some(map(&reply.trailers)).filter(|end| !end.is_empty()).map(|end| Ok(Frame::trailers(end)));
        let frames = stream::iter(pieces.chain(end).collect::<Vec<_>>());
        let hangs = if reply.hangs { stream::pending().left_stream() } else { stream::empty().right_stream() };
        let mut response = Response::new(StreamBody::new(frames.chain(hangs)));
        *response.headers_mut() = map(&reply.headers);
        ready(Ok::<_, Infallible>(response))
    });
    let layer = RestLayer::new(&descriptor_set(fixture)).unwrap();
    let request = Request::builder().method(method).uri(path).body(Full::default()).unwrap();
    let answer = async {
        let (parts, body) = layer.layer(service).oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.expect("an answer")
}

const OK: &[(&str, &str)] = &[("grpc-status", "0")];

#[tokio::test]
async fn malformed_replies_are_a_500() {
    let cases: [(&str, Reply); 7] = [
        ("compressed", Reply { pieces: vec![b"\x01\0\0\0\0"], trailers: OK.into(), ..Reply::default() }),
        ("twice", Reply { pieces: vec![b"\0\0\0\0\0", b"\0\0\0\0\0"], trailers: OK.into(), ..Reply::default() }),
        ("cut off", Reply { pieces: vec![b"\0\0\0\0\x0a\x01"], trailers: OK.into(), ..Reply::default() }),
        ("more than it", Reply { pieces: vec![b"\0\0\0\0\0\0"], trailers: OK.into(), ..Reply::default() }),
        ("nothing", Reply { trailers: OK.into(), ..Reply::default() }),
        ("nothing but a status", Reply { headers: OK.into(), ..Reply::default() }),
        ("malformed", Reply { pieces: vec![b"\0\0\0\0\x01\xff"], trailers: OK.into(), ..Reply::default() }),
    ];
    for (what, reply) in cases {
        let answer = ask("sessions", "GET", "/slow", reply).await;
        assert!(answer.is_bad_reply(), "{what}: {} {:?}", answer.status, answer.body);
    }
    // A call without a status was aborted.
    let answer = ask("sessions", "GET", "/slow", Reply { pieces: vec![b"\0\0\0\0\0"], ..Reply::default() }).await;
    assert_eq!((answer.status, &answer.json()["message"]), (500, &json!("the service gave no status")));
}

#[tokio::test]
async fn an_incomplete_stream_is_an_error() {
    let first = Reply { pieces: vec![b"\0\0\0\0\x0a\x01"], trailers: OK.into(), ..Reply::default() };
    let answer = ask("sessions", "GET", "/auth/sessions:watch", first).await;
    assert!(answer.is_bad_reply(), "{:?}", answer.body);
    let later = Reply { pieces: vec![b"\0\0\0\0\0", b"\0\0\0\0\x0a\x01"], trailers: OK.into(), ..Reply::default() };
    let answer = ask("sessions", "GET", "/auth/sessions:watch", later).await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(answer.status, 200);
    assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("{\"error\":{\"code\":13,")), "{text}");
}

#[tokio::test]
async fn a_stream_without_messages_is_empty() {
    let answer = ask("sessions", "GET", "/auth/sessions:watch", Reply { headers: OK.into(), ..Reply::default() }).await;
    assert_eq!((answer.status, answer.body.as_ref()), (200, b"".as_slice()));
    assert_eq!(answer.all("vary"), ["accept"]);
}

#[tokio::test]
async fn initial_and_trailing_metadata_become_headers() {
    let reply = Reply {
        headers: vec![
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-both", "first"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("trace-bin", "AA"),
        ],
        pieces: vec![b"\0\0\0\0\0"],
        trailers: vec![("grpc-status", "0"), ("x-both", "last"), ("x-end", "e"), ("trace-bin", "AA")],
        ..Reply::default()
    };
    let answer = ask("sessions", "GET", "/slow", reply).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.all("x-both"), ["first", "last"]);
    assert_eq!(answer.all("x-end"), ["e"]);
    assert_eq!(answer.all("content-type"), ["application/json"]);
    for name in ["connection", "x-hop", "trace-bin", "grpc-status"] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_challenge_of_the_service_replaces_the_default() {
    let challenge = ("www-authenticate", "Bearer error=\"invalid_token\"");
    let early = Reply { headers: vec![("grpc-status", "16"), challenge], ..Reply::default() };
    let late = Reply { headers: vec![challenge], trailers: vec![("grpc-status", "16")], ..Reply::default() };
    let last = Reply { trailers: vec![("grpc-status", "16"), challenge], ..Reply::default() };
    for reply in [early, late, last] {
        let answer = ask("sessions", "GET", "/slow", reply).await;
        assert_eq!((answer.status, answer.all("www-authenticate")), (401, vec![challenge.1]));
    }
}

#[tokio::test]
async fn head_does_not_wait_for_a_stream() {
    let reply = Reply { headers: vec![("x-early", "1")], hangs: true, ..Reply::default() };
    let answer = ask("sessions", "HEAD", "/auth/sessions:watch", reply.clone()).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.all("content-type"), ["application/x-ndjson"]);
    assert_eq!(answer.all("x-early"), ["1"]);
    let answer = ask("library", "HEAD", "/download", reply).await;
    assert_eq!((answer.status, answer.all("content-type")), (200, vec![]), "only the first message has the type");
}

#[tokio::test]
async fn head_on_a_raw_reply_has_its_type_and_length() {
    let reply =
        Reply { pieces: vec![b"\0\0\0\0\x0f\x0a\x09text/html\x12\x02hi"], trailers: OK.into(), ..Reply::default() };
    let answer = ask("library", "HEAD", "/index", reply.clone()).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!((answer.all("content-type"), answer.all("content-length")), (vec!["text/html"], vec!["2"]));
    assert_eq!(ask("library", "GET", "/index", reply).await.body, "hi");
}
