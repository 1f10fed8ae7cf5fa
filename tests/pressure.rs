//! What hostile or hasty clients cannot do to others: no flood from one address blocks a sign-out, and a request that
//! was received whole is carried out even if its client disconnects.

use std::time::{Duration, Instant};

use bytes::Bytes;
use diesel_async::SimpleAsyncConnection as _;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::BoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sessiond::{config::Rates, pb::CreateSessionRequest, rates::Bucket};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{PROJECT, Service, Wire, bearer, both, eventually, header, rates, refresh_token};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const CURRENT: &str = "/auth/sessions/current";

type Sender = hyper::client::conn::http2::SendRequest<BoxBody<Bytes, std::convert::Infallible>>;

/// A connection from the given loopback address.
async fn connection(service: &Service, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("loopback has many");
    socket.connect(service.addr).await.expect("connects")
}

async fn http2(service: &Service, from: &str) -> Sender {
    let stream = TokioIo::new(connection(service, from).await);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("shakes hands");
    tokio::spawn(connection);
    sender
}

/// A body that never ends.
fn endless(beginning: &'static [u8]) -> BoxBody<Bytes, std::convert::Infallible> {
    let beginning = (!beginning.is_empty()).then(|| Ok(http_body::Frame::data(Bytes::from_static(beginning))));
    let frames = futures_util::stream::iter(beginning);
    BoxBody::new(StreamBody::new(futures_util::StreamExt::chain(frames, futures_util::stream::pending())))
}

fn whole(message: &'static [u8]) -> BoxBody<Bytes, std::convert::Infallible> {
    http_body_util::Full::new(Bytes::from_static(message)).boxed()
}

fn post(
    path: &str,
    content_type: &str,
    body: BoxBody<Bytes, std::convert::Infallible>,
) -> Request<BoxBody<Bytes, std::convert::Infallible>> {
    let request =
        Request::post(format!("http://x{path}")).header("content-type", content_type).header("te", "trailers");
    request.body(body).expect("a request")
}

/// Opens calls that never send their message, on as many connections as needed.
async fn hold_calls(service: &Service, from: &str, path: &str, count: usize) -> Vec<Sender> {
    let mut held = vec![];
    for _ in 0..count.div_ceil(100) {
        let mut sender = http2(service, from).await;
        for _ in 0..100.min(count) {
            let call = sender.send_request(post(path, "application/grpc", endless(b"")));
            tokio::spawn(call);
        }
        held.push(sender);
    }
    held
}

/// A call takes a place when its message is complete: calls that send only headers take none, of any class.
#[tokio::test]
async fn calls_without_a_message_take_no_place() {
    let service = Service::start_with(|_, limits| {
        limits.requests_max = 20;
        limits.address_requests_max = Some(150);
    })
    .await;
    let mut phone = service.sign_in("ada", "phone").await;
    let mut held = vec![];
    for path in [CHECK, "/grpc.health.v1.Health/Check", "/sessiond.v1.SessionService/RefreshSession"] {
        held.extend(hold_calls(&service, "127.0.0.2", path, 100).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let verify = format!("/projects/{PROJECT}/auth/verify");
    let verified = service.wires.http(Method::GET, &verify, bearer(&phone.access_token), "").await;
    assert_eq!(verified.status(), StatusCode::OK);
    phone.refresh().await.expect("refreshes");
    for wire in Wire::ALL {
        let tablet = service.sign_in("ada", "tablet").await;
        service.revoke_current(wire, bearer(&tablet.access_token)).await.expect("signs out");
    }
    assert_eq!(service.metric(r#"sessiond_requests_under_way{class="other"}"#).await, 0, "no place is taken");
    drop(held);
}

/// Nor do disguised calls: a method without a message, a type that is gRPC's only after trimming, a length too large to
/// wait for. Neither directly nor through a trusted proxy.
#[tokio::test]
async fn no_disguised_call_takes_a_place_before_its_message() {
    let service = Service::start_with(|web, limits| {
        limits.requests_max = 2;
        limits.address_requests_max = Some(1_000);
        web.trusted_proxies = vec![sessiond::config::network("127.0.0.3").expect("an address")];
    })
    .await;
    let sign_out = "/sessiond.v1.SessionService/RevokeCurrent";
    let probe = "/grpc.health.v1.Health/Check";
    let long = Some("99999999");
    let cases = [
        ("127.0.0.2", Method::GET, CHECK, "application/grpc", None, "405"),
        ("127.0.0.2", Method::DELETE, sign_out, "application/grpc", None, "405"),
        ("127.0.0.2", Method::OPTIONS, sign_out, "application/grpc-web", None, "405"),
        ("127.0.0.2", Method::GET, probe, "application/grpc", None, "405"),
        ("127.0.0.2", Method::POST, sign_out, "application/grpc", long, "3"),
        ("127.0.0.2", Method::POST, CHECK, "application/grpc-web-text", long, "3"),
        ("127.0.0.2", Method::POST, sign_out, " application/grpc", None, ""),
        ("127.0.0.2", Method::POST, CHECK, "\tApplication/grpc+proto", None, ""),
        ("127.0.0.3", Method::POST, CHECK, "application/grpc", None, ""),
        ("127.0.0.3", Method::POST, probe, "application/grpc", None, ""),
    ];
    let mut held = vec![];
    for (from, method, path, content_type, length, expected) in cases {
        let mut sender = http2(&service, from).await;
        let mut calls = vec![];
        for _ in 0..3 {
            let mut request = post(path, content_type, endless(b""));
            *request.method_mut() = method.clone();
            if let Some(length) = length {
                request.headers_mut().insert("content-length", length.parse().expect("a value"));
            }
            calls.push(tokio::spawn(sender.send_request(request)));
        }
        if expected.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            held.push((sender, calls));
        } else {
            for call in calls {
                let answer = call.await.expect("no panic").expect("answers");
                let code = answer.headers().get("grpc-status").map(|code| code.to_str().expect("digits").to_owned());
                let outcome = code.unwrap_or_else(|| answer.status().as_str().to_owned());
                assert_eq!(outcome, expected, "{method} {path} {content_type}");
            }
        }
        for class in ["sign_out", "verify", "probe", "other"] {
            let name = format!(r#"sessiond_requests_under_way{{class="{class}"}}"#);
            let lines = service.metrics_page().await;
            let holds = lines.lines().any(|line| line.starts_with(&name) && !line.ends_with(" 0"));
            assert!(!holds, "{method} {path} {content_type:?} from {from} holds a place");
        }
    }
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    drop(held);
}

/// An address has a limit over all its connections; another address's requests, and sign-outs, are not affected.
#[tokio::test]
async fn an_address_has_a_limit_on_requests_in_progress() {
    let service = Service::start_with(|_, limits| limits.address_requests_max = Some(50)).await;
    let phone = service.sign_in("ada", "phone").await;
    let held = hold_calls(&service, "127.0.0.1", CHECK, 100).await;
    eventually("the rest is refused", async || {
        service.metric(r#"sessiond_requests_refused_total{class="verify",reason="address"}"#).await >= 50
    })
    .await;
    let refused =
        service.refresh(Wire::Rest, refresh_token(&phone.refresh_token)).await.err().expect("the share is used up");
    assert_eq!(refused.reason, "RATE_LIMITED");
    let mut other = http2(&service, "127.0.0.3").await;
    let request =
        Request::get(format!("http://x{CURRENT}")).header("authorization", format!("Bearer {}", phone.access_token));
    let answer = other.send_request(request.body(Empty::new().boxed()).expect("a request")).await.expect("answers");
    assert_eq!(answer.status(), StatusCode::OK, "another address has its own");
    phone.sign_out().await.expect("signs out, from the same address");
    drop(held);
}

/// Arriving bodies are held within a budget, and an empty bucket is refused before any of the body is read.
#[tokio::test]
async fn endless_bodies_are_held_within_a_budget() {
    let service = Service::start_with(|_, limits| limits.arriving_bytes_max = 1024 * 1024).await;
    let phone = service.sign_in("ada", "phone").await;
    let mut sender = http2(&service, "127.0.0.2").await;
    const PART: &[u8] = &[b' '; 60_000];
    let mut calls = vec![];
    for _ in 0..20 {
        let call = sender.send_request(post("/auth/sessions", "application/json", endless(PART)));
        calls.push(tokio::spawn(call));
        sender.ready().await.expect("still works");
    }
    eventually("the address's quarter is used up", async || {
        service.metric(r#"sessiond_requests_refused_total{class="other",reason="bytes"}"#).await >= 10
    })
    .await;
    phone.sign_out().await.expect("signs out");
}

#[tokio::test]
async fn an_empty_bucket_is_refused_before_the_body_on_every_wire() {
    let service = Service::start_rated(sessiond::config::Rates { address_rate: 1, address_burst: 1, ..rates() }).await;
    let drain = async || {
        let answer = service.wires.http(Method::GET, CURRENT, HeaderMap::new(), "").await;
        assert!(matches!(answer.status().as_u16(), 401 | 429));
    };
    for (path, content_type) in [
        ("/auth/sessions", "application/json"),
        ("/oauth2/token", "application/x-www-form-urlencoded"),
        ("/oauth2/introspect", "application/x-www-form-urlencoded"),
        ("/api/v1/auth/oauth/token", "application/json"),
        ("/sessiond.v1.SessionService/CreateSession", "application/grpc"),
        ("/sessiond.v1.SessionService/CreateSession", "application/grpc-web+proto"),
    ] {
        drain().await;
        let mut sender = http2(&service, "127.0.0.1").await;
        let started = Instant::now();
        let answer = sender.send_request(post(path, content_type, endless(b"x"))).await.expect("answers");
        assert!(started.elapsed() < Duration::from_secs(5), "{path}: the body was waited for");
        let refused = answer.status() == StatusCode::TOO_MANY_REQUESTS
            || answer.headers().get("grpc-status").is_some_and(|code| code == "8");
        assert!(refused, "{path} {content_type}: {answer:?}");
    }
}

/// Idle connections make room, even if they answer pings; at an address's limit, for the address's own new ones.
#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    let service = Service::start_with(|_, limits| {
        limits.connections_max = 20;
        limits.address_connections_max = None;
    })
    .await;
    let mut hogs = vec![];
    for _ in 0..20 {
        let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), connection(&service, "127.0.0.2")).await
        else {
            break;
        };
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let Ok((mut sender, connection)) = handshake else { continue };
        tokio::spawn(connection);
        let request: Request<BoxBody<Bytes, std::convert::Infallible>> =
            Request::get("http://x/healthz").body(Empty::new().boxed()).expect("a request");
        let _ = sender.send_request(request).await;
        hogs.push(sender);
    }
    assert!(hogs.iter().filter(|hog| !hog.is_closed()).count() <= 5, "a quarter is all that one address may hold");
    service.sign_in("ada", "phone").await.sign_out().await.expect("another address gets in");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut late = http2(&service, "127.0.0.2").await;
    let request = Request::get("http://x/healthz").body(Empty::new().boxed()).expect("a request");
    assert_eq!(late.send_request(request).await.expect("answers").status(), StatusCode::OK, "the idlest made room");
}

/// Connects this often from another address, and keeps the connections. Each must get an answer within the time.
async fn get_in(service: &Service, count: usize, patience: Duration) {
    let mut kept = vec![];
    for n in 0..count {
        let asked = async {
            let mut late = http2(service, "127.0.0.3").await;
            let request = Request::get("http://x/healthz").body(Empty::new().boxed()).expect("a request");
            (late.send_request(request).await.expect("answers").status(), late)
        };
        let room = tokio::time::timeout(patience, asked).await;
        let (status, late) = room.unwrap_or_else(|_| panic!("no room for connection {n}"));
        assert_eq!(status, StatusCode::OK);
        kept.push(late);
    }
}

/// Whatever a client begins and does not finish makes room: a head, the first one or a later one, and a message over HTTP/1.1
/// or HTTP/2, even if another call is begun again and again.
#[tokio::test]
async fn requests_that_never_arrive_make_room_for_others() {
    let service = Service::start_with(|_, limits| {
        limits.connections_max = 5;
        limits.address_connections_max = Some(5);
    })
    .await;
    let mut hogs = vec![];
    for sent in [
        "GET /healthz HTTP/1.1\r\nhost: ",
        "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: ",
        "POST /auth/sessions/current/refresh HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
        "POST /auth/sessions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{",
    ] {
        let mut hog = connection(&service, "127.0.0.2").await;
        hog.write_all(sent.as_bytes()).await.expect("sends");
        hogs.push(hog);
    }
    let mut caller = http2(&service, "127.0.0.2").await;
    let calling = tokio::spawn(async move {
        loop {
            let call = caller.send_request(post(CHECK, "application/grpc", endless(b"")));
            let _ = tokio::time::timeout(Duration::from_millis(100), call).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    get_in(&service, 5, Duration::from_secs(2)).await;
    assert_eq!(service.metric("sessiond_connections_closed_total{reason=\"room\"}").await, 5, "each of them made room");
    calling.abort();
}

/// An address with many connections makes room before one with a single connection, even if only that one is idle; and it cannot
/// take that room by connecting once more.
#[tokio::test]
async fn the_address_with_the_most_connections_makes_room_first() {
    let service = Service::start_with(|_, limits| {
        limits.connections_max = 5;
        limits.address_connections_max = Some(5);
    })
    .await;
    let healthy = || Request::get("http://x/healthz").body(Empty::new().boxed()).expect("a request");
    let mut kept = http2(&service, "127.0.0.4").await;
    kept.send_request(healthy()).await.expect("answers");
    // When the last of these wants room, only the kept one has waited long enough to make it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _held = hold_calls(&service, "127.0.0.2", CHECK, 500).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    get_in(&service, 3, Duration::from_secs(2)).await;
    assert_eq!(kept.send_request(healthy()).await.expect("is still open").status(), StatusCode::OK);
}

/// Endless responses that anyone may request do not keep a connection busy: a health watch, a reflection stream, a
/// response that the client does not read.
#[tokio::test]
async fn a_public_stream_does_not_keep_its_connection_busy() {
    let service = Service::start_with(|_, limits| {
        limits.connections_max = 6;
        limits.address_connections_max = Some(6);
    })
    .await;
    const EMPTY: &[u8] = &[0; 5];
    let refused = |path: &str| Request::get(format!("http://x{path}")).body(Empty::new().boxed()).expect("a request");
    let requests: [Request<BoxBody<Bytes, std::convert::Infallible>>; 6] = [
        post("/grpc.health.v1.Health/Watch", "application/grpc", whole(EMPTY)),
        post("/grpc.health.v1.Health/Watch", "application/grpc-web", whole(EMPTY)),
        post("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "application/grpc", endless(b"")),
        refused("/healthz"),
        refused("/auth/revocations:watch"),
        post("/sessiond.v1.SessionService/WatchRevocations", "application/grpc-web", whole(EMPTY)),
    ];
    let mut hogs = vec![];
    for request in requests {
        let stream = TokioIo::new(connection(&service, "127.0.0.2").await);
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let (mut sender, connection) = builder.handshake(stream).await.expect("shakes hands");
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.expect("answers");
        hogs.push((sender, answer));
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    get_in(&service, 6, Duration::from_secs(8)).await;
}

/// The same over HTTP/1.1, where a connection has one request at a time.
#[tokio::test]
async fn a_public_stream_over_http1_does_not_keep_its_connection_busy() {
    let service = Service::start_with(|_, limits| {
        limits.connections_max = 2;
        limits.address_connections_max = Some(2);
    })
    .await;
    let mut hogs = vec![];
    for (path, body) in [
        ("/grpc.health.v1.Health/Watch", "5\r\n\0\0\0\0\0\r\n0\r\n\r\n"),
        // Asks for the services, and does not end.
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "7\r\n\0\0\0\0\x02\x3a\0\r\n"),
    ] {
        let mut hog = connection(&service, "127.0.0.2").await;
        let head = "content-type: application/grpc-web\r\ntransfer-encoding: chunked";
        let sent = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{body}");
        hog.write_all(sent.as_bytes()).await.expect("sends");
        let mut answer = [0; 1024];
        let read = hog.read(&mut answer).await.expect("answers");
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("grpc-status"), "{answer}");
        hogs.push(hog);
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    get_in(&service, 2, Duration::from_secs(8)).await;
}

/// Asks again and again on one HTTP/2 connection, this often, and acknowledges nothing that the server says. Returns when the
/// connection ends.
async fn ask_and_acknowledge_nothing(mut stream: TcpStream, interval: Duration) {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }
    let settings = frame(4, 0, 0, &[]);
    let _ = stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings].concat()).await;
    let mut answers = vec![0; 64 * 1024];
    for id in (1..).step_by(2) {
        // HPACK: GET, http, and two literals.
        let head = b"\x82\x86\x04\x08/healthz\x01\x01x";
        if stream.write_all(&frame(1, 5, id, head)).await.is_err() {
            return;
        }
        let until = tokio::time::Instant::now() + interval;
        while let Ok(read) = tokio::time::timeout_at(until, stream.read(&mut answers)).await {
            if !matches!(read, Ok(1..)) {
                return;
            }
        }
    }
}

/// A client that never acknowledges the GOAWAY's ping may go on asking, but not for long.
#[tokio::test]
async fn a_connection_that_is_leaving_ends_whatever_its_client_does() {
    let service = Service::start_with(|_, limits| limits.connection_age_max = Duration::from_millis(300)).await;
    let begun = Instant::now();
    let asking = ask_and_acknowledge_nothing(connection(&service, "127.0.0.2").await, Duration::from_millis(100));
    tokio::time::timeout(Duration::from_secs(15), asking).await.expect("it ends");
    assert!(begun.elapsed() >= Duration::from_secs(2), "not before it has had its time");
}

/// Connections that leave count, so that an address cannot take all slots by letting its own be closed for its own.
#[tokio::test]
async fn connections_that_leave_are_part_of_an_addresss_share() {
    let service = Service::start_with(|_, limits| {
        limits.connections_max = 100;
        limits.address_connections_max = Some(5);
    })
    .await;
    let mut most = 0;
    for _ in 0..5 {
        for _ in 0..5 {
            // Seldom enough that it can be closed for another, and often enough that it would never end.
            let interval = Duration::from_millis(1_900);
            tokio::spawn(ask_and_acknowledge_nothing(connection(&service, "127.0.0.2").await, interval));
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        most = most.max(service.metric("sessiond_connections").await);
    }
    // Those that the test itself uses are of another address.
    assert!((8..=13).contains(&most), "{most}");
}

/// Each takes kilobytes and lasts as long as its connection, so an address has a share of them. Other requests go on.
#[tokio::test]
async fn an_address_has_a_limit_on_responses_without_an_end() {
    const EMPTY: &[u8] = &[0; 5];
    let service = Service::start_with(|web, _| {
        web.trusted_proxies = vec![sessiond::config::network("127.0.0.9").expect("an address")];
    })
    .await;
    let mut kept = vec![];
    let mut open_for = async |from: &'static str, client: Option<&str>, path: &str| {
        let mut sender = http2(&service, from).await;
        let mut asked = post(
            path,
            "application/grpc",
            if path.ends_with("/Watch") { whole(EMPTY) } else { endless(LIST_SERVICES) },
        );
        if let Some(client) = client {
            asked.headers_mut().insert("x-forwarded-for", client.parse().expect("a value"));
        }
        let answer = sender.send_request(asked).await.expect("answers");
        let status = answer.headers().get("grpc-status").map(|status| status.to_str().expect("a number").to_owned());
        kept.push((sender, answer));
        status
    };
    let watch = "/grpc.health.v1.Health/Watch";
    // Through a proxy too, whose other clients have shares of their own.
    for number in 0..=64 {
        let expected = (number == 64).then_some("8");
        assert_eq!(open_for("127.0.0.9", Some("192.0.2.1"), watch).await.as_deref(), expected, "{number}");
    }
    assert_eq!(open_for("127.0.0.9", Some("192.0.2.2"), watch).await, None);
    assert_eq!(open_for("127.0.0.9", None, watch).await, None, "the proxy's own");
    let mut open = async |from: &'static str, path: &str| open_for(from, None, path).await;
    for _ in 0..60 {
        assert_eq!(open("127.0.0.2", watch).await, None);
    }
    for _ in 0..4 {
        assert_eq!(open("127.0.0.2", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo").await, None);
    }
    assert_eq!(open("127.0.0.2", watch).await.as_deref(), Some("8"), "RESOURCE_EXHAUSTED");
    assert_eq!(open("127.0.0.3", watch).await, None);
    assert_eq!(service.metric(r#"sessiond_requests_refused_total{class="probe",reason="endless"}"#).await, 2);
    service.sign_in("ada", "phone").await.sign_out().await.expect("other requests go on");
    drop(kept);
    let mut again = http2(&service, "127.0.0.2").await;
    eventually("they are free again", async || {
        let answer = again.send_request(post(watch, "application/grpc", whole(EMPTY))).await.expect("answers");
        !answer.headers().contains_key("grpc-status")
    })
    .await;
}

/// A reflection stream may ask about everything once, and not without end.
#[tokio::test]
async fn the_questions_of_a_reflection_stream_are_bounded() {
    let service = Service::start().await;
    let answered = async |count: usize| {
        let mut sender = http2(&service, "127.0.0.2").await;
        // In frames of a hundred: very small ones are a reason to close the connection.
        let all = Bytes::from(LIST_SERVICES.repeat(count));
        let questions = (0..count)
            .step_by(100)
            .map(move |n| all.slice(n * LIST_SERVICES.len()..(n + 100).min(count) * LIST_SERVICES.len()));
        let frames = questions.map(|question| Ok(http_body::Frame::data(question)));
        let body = BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)));
        let asked = post("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "application/grpc", body);
        let mut answer = sender.send_request(asked).await.expect("answers").into_body();
        let mut bytes = 0;
        // It ends by a reset if questions are left.
        while let Some(Ok(frame)) =
            tokio::time::timeout(Duration::from_secs(5), answer.frame()).await.expect("goes on or ends")
        {
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        bytes
    };
    let one = answered(1).await;
    assert_eq!(answered(1_000).await, 1_000 * one);
    let answered = answered(2_000).await / one;
    assert!((1_000..=8_192 / LIST_SERVICES.len()).contains(&answered), "{answered}");
}

/// A question of a reflection stream.
const LIST_SERVICES: &[u8] = &[0, 0, 0, 0, 2, 0x3a, 0];

/// A handshake costs the server more than the client, so connections are charged for before it. A tight limit on requests does not
/// make that one tighter.
#[tokio::test]
async fn an_address_has_a_bucket_for_connections() {
    let service = Service::start_rated(Rates { verify_rate: 1, verify_burst: 1, ..rates() }).await;
    let refused = r#"sessiond_connections_refused_total{reason="rate"}"#;
    for _ in 0..50 {
        drop(connection(&service, "127.0.0.2").await);
    }
    assert_eq!(service.metric(refused).await, 0);
    let ip = [127, 0, 0, 2].into();
    while service.app.rates().charge(Bucket::Connection(ip)).is_ok() {}
    for _ in 0..50 {
        drop(connection(&service, "127.0.0.2").await);
        while service.app.rates().charge(Bucket::Connection(ip)).is_ok() {}
    }
    eventually("some are refused", async || service.metric(refused).await > 0).await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("a trusted proxy has no such limit");
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_an_old_one_gets_a_goaway() {
    let service = Service::start_with(|_, limits| limits.idle_timeout = Duration::from_millis(200)).await;
    let mut idle = http2(&service, "127.0.0.1").await;
    let healthy = || Request::get("http://x/healthz").body(Empty::new().boxed()).expect("a request");
    assert_eq!(idle.send_request(healthy()).await.expect("answers").status(), StatusCode::OK);
    eventually("idle HTTP/2 is closed", async || idle.is_closed()).await;
    let service = Service::start_with(|_, limits| limits.connection_age_max = Duration::from_millis(300)).await;
    let mut old = http2(&service, "127.0.0.1").await;
    let started = Instant::now();
    while !old.is_closed() {
        assert!(started.elapsed() < Duration::from_secs(10), "busy, and still there");
        // After the GOAWAY it accepts no more requests.
        let _ = old.send_request(healthy()).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A kept-alive HTTP/1.1 connection may outlive the header timeout: the two limits are independent.
#[tokio::test]
async fn a_kept_alive_connection_is_not_closed_during_a_request() {
    let service = Service::start_with(|_, limits| limits.header_timeout = Duration::from_millis(200)).await;
    let mut kept = connection(&service, "127.0.0.1").await;
    let mut answer = [0; 1024];
    for _ in 0..4 {
        kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sends");
        let read = kept.read(&mut answer).await.expect("answers");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    // Incomplete headers are cut off all the same.
    kept.write_all(b"GET /healthz HT").await.expect("sends");
    let closed = tokio::time::timeout(Duration::from_secs(5), kept.read(&mut answer)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
}

/// The client sends its whole sign-out and disconnects before the response.
#[tokio::test]
async fn a_received_sign_out_is_carried_out_after_its_client_disconnects() {
    let service = Service::start().await;
    let mut sessions = vec![];
    for round in 0..20 {
        for way in 0..4 {
            let phone = service.sign_in("ada", "phone").await;
            let token = &phone.access_token;
            let form = format!("token={token}&client_id={PROJECT}");
            let request = match way {
                0 => format!("DELETE {CURRENT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"),
                1 => format!(
                    "POST /oauth2/revoke HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
                    form.len()
                ),
                2 => format!(
                    "DELETE /api/v1{CURRENT} HTTP/1.1\r\nhost: x\r\nx-stack-access-type: client\r\nx-stack-project-id: {PROJECT}\r\nx-stack-access-token: {token}\r\n\r\n"
                ),
                _ => format!(
                    "POST /sessiond.v1.SessionService/RevokeCurrent HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web+proto\r\nauthorization: Bearer {token}\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0"
                ),
            };
            let mut socket = connection(&service, "127.0.0.1").await;
            socket.write_all(request.as_bytes()).await.expect("sends");
            if round % 3 > 0 {
                tokio::time::sleep(Duration::from_millis(round % 3)).await;
            }
            if round % 2 == 0 {
                socket.set_zero_linger().expect("a reset, not a farewell");
            }
            drop(socket);
            sessions.push((way, phone.session.clone()));
        }
    }
    for (way, session) in sessions {
        eventually(&format!("way {way}"), async || !service.is_live(&session).await).await;
    }
}

/// The same over HTTP/2, where the client's GOAWAY arrives together with its request.
#[tokio::test]
async fn a_received_sign_out_over_http2_is_carried_out_after_its_client_disconnects() {
    let service = Service::start().await;
    for round in 0..6 {
        let phone = service.sign_in("ada", "phone").await;
        let authorization = format!("Bearer {}", phone.access_token);
        let (method, path, content_type) = match round % 2 {
            0 => ("DELETE", CURRENT, "text/plain"),
            _ => ("POST", "/sessiond.v1.SessionService/RevokeCurrent", "application/grpc"),
        };
        let mut block = vec![];
        for (name, value) in [
            (":method", method),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", path),
            ("content-type", content_type),
            ("te", "trailers"),
            ("authorization", &authorization),
        ] {
            // A literal field without indexing (RFC 7541 §6.2.2): two strings, each with its length.
            block.push(0);
            for text in [name, value] {
                let mut rest = text.len();
                if rest < 0x7f {
                    block.push(u8::try_from(rest).expect("small"));
                } else {
                    block.push(0x7f);
                    rest -= 0x7f;
                    while rest >= 0x80 {
                        block.push(u8::try_from(rest % 0x80).expect("small") | 0x80);
                        rest /= 0x80;
                    }
                    block.push(u8::try_from(rest).expect("small"));
                }
                block.extend_from_slice(text.as_bytes());
            }
        }
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
            [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
        };
        let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        all.extend(frame(4, 0, 0, &[]));
        all.extend(frame(1, if method == "DELETE" { 5 } else { 4 }, 1, &block));
        if method == "POST" {
            all.extend(frame(0, 1, 1, &[0; 5]));
        }
        let mut socket = connection(&service, "127.0.0.1").await;
        socket.write_all(&all).await.expect("sends");
        drop(socket);
        eventually(&format!("round {round}"), async || !service.is_live(&phone.session).await).await;
    }
}

/// The same while the database is slow.
#[tokio::test]
async fn a_mutation_outlives_its_client() {
    let service = Service::start().await;
    let phone = service.sign_in("ada", "phone").await;
    let mut holder = service.database.hold("sessions", "true").await;
    let mut sender = http2(&service, "127.0.0.1").await;
    let request =
        Request::delete(format!("http://x{CURRENT}")).header("authorization", format!("Bearer {}", phone.access_token));
    let call = sender.send_request(request.body(Empty::new().boxed()).expect("a request"));
    assert!(tokio::time::timeout(Duration::from_millis(200), call).await.is_err(), "it waits for the row");
    drop(sender);
    holder.batch_execute("COMMIT").await.expect("lets go");
    eventually("signed out", async || !phone.is_signed_in().await).await;
}

/// The proxy listener has no rate limits, and serves nothing else.
#[tokio::test]
async fn proxies_have_their_own_listener() {
    let service = Service::start_rated(sessiond::config::Rates { verify_rate: 1, verify_burst: 1, ..rates() }).await;
    let phone = service.sign_in("ada", "phone").await;
    let proxies = crate::harness::wire::Wires::to(service.proxy_addr);
    let verify = format!("/projects/{PROJECT}/auth/verify");
    for _ in 0..5 {
        let answer = proxies.http(Method::GET, &verify, bearer(&phone.access_token), "").await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(proxies.http(Method::GET, "/healthz", HeaderMap::new(), "").await.status(), StatusCode::OK);
    for (method, path) in
        [(Method::DELETE, CURRENT), (Method::POST, "/oauth2/revoke"), (Method::GET, "/.well-known/jwks.json")]
    {
        let answer = proxies.http(method, path, bearer(&phone.access_token), "").await;
        assert!(
            answer.status() != StatusCode::OK || answer.headers().get("grpc-status").is_some(),
            "{path}: {answer:?}"
        );
    }
    assert!(phone.is_signed_in().await);
}

/// Repeating at once must not pay off. But a client cannot hold more than a few answers back.
#[tokio::test]
async fn an_address_waits_for_its_refusals_and_no_other_address_does() {
    let narrow = sessiond::config::Rates { address_rate: 1, address_burst: 1, ..rates() };
    let service = Service::start_rated(narrow).await;
    let ask = async |address: &str| {
        let headers = header("x-forwarded-for", address);
        let begun = Instant::now();
        let answer = service.wires.http(Method::POST, "/auth/sessions/current/refresh", headers, "").await;
        (answer.status(), begun.elapsed())
    };
    assert_eq!(ask("192.0.2.1").await.0, StatusCode::UNAUTHORIZED);
    let answers = futures_util::future::join_all((0..80).map(|_| ask("192.0.2.1"))).await;
    let refused = answers.iter().filter(|(status, _)| *status == StatusCode::TOO_MANY_REQUESTS);
    // On a slow machine the bucket may have had a token again.
    assert!(refused.clone().count() > 64, "{answers:?}");
    let waited = refused.filter(|(_, took)| *took >= Duration::from_millis(100)).count();
    assert!(waited >= 64, "only {waited} waited");
    assert_eq!(ask("192.0.2.2").await.0, StatusCode::UNAUTHORIZED, "another address is not refused");
}

/// On the main port an address has a wide bucket for requests of proxies and verifiers, also through a trusted proxy. The proxy has
/// none if it names no client.
#[tokio::test]
async fn an_untrusted_address_has_a_bucket_for_verification() {
    let narrow = sessiond::config::Rates { verify_rate: 1, verify_burst: 2, ..rates() };
    let service = Service::start_limited(narrow.clone(), |_, _| {}).await;
    let phone = service.sign_in("ada", "phone").await;
    let verify = format!("/projects/{PROJECT}/auth/verify");
    let jwks = format!("/projects/{PROJECT}/.well-known/jwks.json");
    for path in [&verify, &jwks] {
        assert_eq!(
            service.wires.http(Method::GET, path, bearer(&phone.access_token), "").await.status(),
            StatusCode::OK
        );
    }
    for path in [&verify, &jwks, "/.well-known/oauth-authorization-server/projects/demo"] {
        let answer = service.wires.http(Method::GET, path, bearer(&phone.access_token), "").await;
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(answer.headers()["retry-after"], "1", "{path}");
    }
    phone.sign_out().await.expect("a sign-out has its own");
    let trusting = Service::start_rated(narrow).await;
    let phone = trusting.sign_in("ada", "phone").await;
    let ask = async |headers| {
        let answers = (0..10).map(|_| trusting.wires.http(Method::GET, &verify, HeaderMap::clone(&headers), ""));
        let statuses = futures_util::future::join_all(answers).await;
        statuses.iter().filter(|answer| answer.status() == StatusCode::OK).count()
    };
    for client in ["192.0.2.1", "192.0.2.2"] {
        let admitted = ask(both(header("x-forwarded-for", client), bearer(&phone.access_token))).await;
        assert!((2..5).contains(&admitted), "{admitted} of {client}");
    }
    assert_eq!(ask(bearer(&phone.access_token)).await, 10);
}

/// On shutdown readiness fails at once, and busy connections are answered to the last request.
#[tokio::test]
async fn a_draining_server_answers_and_closes_each_connection() {
    let mut service = Service::start_with(|_, limits| limits.drain_delay = Duration::from_secs(2)).await;
    service.becomes_ready().await;
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let addr = service.addr;
        busy.spawn(async move {
            let mut kept = TcpStream::connect(addr).await.expect("connects");
            let mut answered = 0;
            loop {
                kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sends");
                let (mut text, mut part) = (String::new(), [0; 1024]);
                while !text.contains("alive") {
                    let read = kept.read(&mut part).await.expect("answers");
                    assert!(read > 0, "closed under a request, after {answered}");
                    text.push_str(&String::from_utf8_lossy(&part[..read]));
                }
                answered += 1;
                if text.to_ascii_lowercase().contains("connection: close") {
                    assert_eq!(kept.read(&mut part).await.expect("ends"), 0);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    service.stop();
    eventually("readiness is red", async || {
        let (status, reasons) = service.readyz().await;
        status == StatusCode::SERVICE_UNAVAILABLE && reasons.starts_with("the server is about to stop")
    })
    .await;
    while let Some(ended) = busy.join_next().await {
        ended.expect("no request without an answer");
    }
}

/// One session's row is locked, and many clients sign out of it: they wait in their own queue, and nobody else does.
#[tokio::test]
async fn waiting_for_one_session_row_blocks_nobody_else() {
    let service = Service::start().await;
    let (held, phone) = (service.sign_in("ada", "held").await, service.sign_in("bob", "phone").await);
    let mut holder = service.database.hold("sessions", &format!("id = '{}'", held.session)).await;
    let waiting = async {
        let signing_out = (0..40).map(|_| service.revoke_current(Wire::Rest, bearer(&held.access_token)));
        let refreshing = (0..40).map(|_| service.refresh(Wire::Rest, refresh_token(&held.refresh_token)));
        let (ended, _) =
            tokio::join!(futures_util::future::join_all(signing_out), futures_util::future::join_all(refreshing));
        ended
    };
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(
            service.database.lock_waits().await,
            4,
            "two of each kind ask the database, the rest wait in process"
        );
        for _ in 0..20 {
            let tablet = service.sign_in("eve", "tablet").await;
            tablet.sign_out().await.expect("signs out");
        }
        phone.sign_out().await.expect("signs out");
        holder.batch_execute("COMMIT").await.expect("lets go");
    };
    let (ended, ()) = tokio::join!(waiting, others);
    assert!(ended.iter().all(Result::is_ok), "they were only made to wait: {ended:?}");
    assert!(!held.is_signed_in().await);
}

/// The same for a user's row, with cut-offs and sign-ins of one user.
#[tokio::test]
async fn waiting_for_one_user_row_blocks_nobody_else() {
    let service = Service::start().await;
    let (held, phone) = (service.sign_in("ada", "held").await, service.sign_in("bob", "phone").await);
    let mut holder = service.database.hold("users", "user_id = 'ada'").await;
    let waiting = async {
        let request = serde_json::json!({"except_current": true});
        let all =
            (0..40).map(|_| service.wires.ask(Wire::Rest, "RevokeAllSessions", bearer(&held.access_token), &request));
        futures_util::future::join_all(all).await
    };
    let others = async {
        eventually("cut-offs wait for the row", async || service.database.lock_waits().await > 0).await;
        for _ in 0..20 {
            service.sign_in("eve", "tablet").await.sign_out().await.expect("signs out");
        }
        phone.sign_out().await.expect("signs out");
        holder.batch_execute("COMMIT").await.expect("lets go");
    };
    let (ended, ()) = tokio::join!(waiting, others);
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
}

/// Some connections are reserved for sign-outs: they succeed while everything else waits for locks.
#[tokio::test]
async fn sign_outs_have_reserved_connections() {
    let service = Service::start().await;
    let mut devices = vec![];
    for user in 0..12 {
        devices.push(service.sign_in(&format!("user-{user}"), "phone").await);
    }
    let phone = service.sign_in("bob", "phone").await;
    let mut holder = service.database.hold("sessions", "user_id LIKE 'user-%'").await;
    let refreshing = async {
        let all = devices.iter().map(|device| service.refresh(Wire::Rest, refresh_token(&device.refresh_token)));
        futures_util::future::join_all(all).await
    };
    let signing_out = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        phone.sign_out().await.expect("signs out");
        holder.batch_execute("COMMIT").await.expect("lets go");
    };
    let (refreshed, ()) = tokio::join!(refreshing, signing_out);
    assert!(
        refreshed.iter().all(Result::is_ok),
        "the rest waited: {:?}",
        refreshed.iter().find_map(|one| one.as_ref().err())
    );
}

/// Far more requests at once than the database can serve: some succeed, the rest are refused before they take a
/// connection, and readiness does not wait.
#[tokio::test(flavor = "multi_thread")]
async fn excess_requests_are_refused_without_a_connection() {
    let service = Service::start_on(crate::harness::database::Database::create().await).await;
    let mut holder = service.database.connect().await;
    let warm = (0..16).map(|user| service.sign_in_as(format!("warm-{user}")));
    futures_util::future::join_all(warm).await;
    let count = "SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'";
    let before = service.database.lines(count).await;
    holder.batch_execute("SELECT 1").await.expect("answers");
    let begun = Instant::now();
    // With a request id each has a transaction of its own.
    let create = |user| CreateSessionRequest {
        user_id: format!("user-{user}"),
        request_id: Some(sessiond_core::clock::new_uuid().to_string()),
        ..CreateSessionRequest::default()
    };
    let calls = (0..1_000).map(|user| service.create(Wire::Grpc, create(user)));
    let done = futures_util::future::join_all(calls).await;
    let took = begun.elapsed();
    let signed_in = done.iter().filter(|one| one.is_ok()).count();
    assert!(signed_in >= 50, "{signed_in} in {took:?}");
    for refused in done.into_iter().filter_map(Result::err) {
        assert!(["STORE_UNAVAILABLE", "RATE_LIMITED"].contains(&refused.reason.as_str()), "{refused:?}");
    }
    service.becomes_ready().await;
    assert!(service.metric("sessiond_store_connections").await <= 8, "{before:?}");
}

/// As many requests that share transactions: all succeed, on a few connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sign_ins_at_once_share_transactions() {
    let service = Service::start_on(crate::harness::database::Database::create().await).await;
    // A divided database takes thirty times the processor time for a new user.
    let count = if service.database.slots().await.len() > 1 { 100 } else { 1_000 };
    let calls = (0..count).map(|user| service.sign_in_as(format!("user-{user}")));
    for created in futures_util::future::join_all(calls).await {
        created.expect("signs in");
    }
    assert_eq!(service.database.lines("SELECT count(*) FROM sessions").await, [count.to_string()]);
    assert!(service.metric("sessiond_store_connections").await <= 8);
}

/// A user's requests use up only the user's bucket, over all addresses; others in the project are not affected.
#[tokio::test]
async fn a_user_with_many_addresses_uses_up_only_their_own_limit() {
    let rates =
        sessiond::config::Rates { user_rate: 1, user_burst: 3, project_rate: 10, project_burst: 1_000, ..rates() };
    let service = Service::start_rated(rates).await;
    let (script, mut phone) = (service.sign_in("eve", "script").await, service.sign_in("ada", "phone").await);
    let mut answers = vec![];
    for address in 0..10 {
        let headers = both(header("x-forwarded-for", &format!("192.0.2.{address}")), bearer(&script.access_token));
        answers.push(service.wires.http(Method::GET, CURRENT, headers, "").await.status().as_u16());
    }
    assert_eq!(answers, [200, 200, 200, 429, 429, 429, 429, 429, 429, 429]);
    let refused = script.refresh_without_keeping().await.err().expect("by another of the user's tokens too");
    assert_eq!(refused.reason, "RATE_LIMITED");
    phone.refresh().await.expect("others go on");
    assert_eq!(service.metric(r#"sessiond_rate_limited_total{bucket="user"}"#).await, 8);
    script.sign_out().await.expect("a sign-out gets through");
}

/// Unknown names cause at most one key load a second, whatever the requests.
#[tokio::test]
async fn unknown_projects_and_keys_share_one_load_a_second() {
    let service = Service::start().await;
    let readings = r#"sessiond_store_operation_duration_seconds_count{operation="inventory",outcome="ok"}"#;
    let before = service.metric(readings).await;
    let begun = Instant::now();
    for round in 0..3 {
        let asked = (0..30).map(|name| {
            let path = match name % 3 {
                0 => format!("/projects/made-up-{round}-{name}/auth/verify"),
                1 => format!("/projects/made-up-{round}-{name}/.well-known/jwks.json"),
                _ => format!("/.well-known/oauth-authorization-server/projects/made-up-{round}-{name}"),
            };
            let wires = &service.wires;
            async move { wires.http(Method::GET, &path, HeaderMap::new(), "").await.status() }
        });
        let statuses = futures_util::future::join_all(asked).await;
        assert!(statuses.iter().all(|status| *status != StatusCode::OK), "{statuses:?}");
    }
    let again = Instant::now();
    let path = "/projects/made-up-2-0/auth/verify";
    assert_eq!(service.wires.http(Method::GET, path, HeaderMap::new(), "").await.status(), StatusCode::NOT_FOUND);
    assert!(again.elapsed() < Duration::from_millis(500), "it is remembered");
    let read = service.metric(readings).await - before;
    assert!(read <= begun.elapsed().as_secs() + 3, "{read} readings");
}

/// The document of all projects is not served unless configured.
#[tokio::test]
async fn the_keys_of_all_projects_are_not_published_by_default() {
    let service = Service::start_with(|web, _| web.jwks_of_all_projects = false).await;
    let all = service.wires.http(Method::GET, "/.well-known/jwks.json", HeaderMap::new(), "").await;
    assert_eq!(all.status(), StatusCode::NOT_FOUND);
    let own = service.wires.http(Method::GET, "/projects/demo/.well-known/jwks.json", HeaderMap::new(), "").await;
    assert_eq!(own.status(), StatusCode::OK);
}

/// Lists and maps are limited while they are parsed, if their field has a limit.
#[tokio::test]
async fn a_field_with_too_many_elements_is_refused_at_the_first_excess_one() {
    let service = Service::start().await;
    let many = |count: usize| (0..count).map(|n| (format!("k{n}"), "v".into())).collect::<serde_json::Map<_, _>>();
    let typed = || {
        both(
            header("content-type", "application/json"),
            bearer(secrecy::ExposeSecret::expose_secret(&service.server_key)),
        )
    };
    for (count, status) in [(32, StatusCode::OK), (33, StatusCode::BAD_REQUEST), (65_000, StatusCode::BAD_REQUEST)] {
        let body = serde_json::json!({"user_id": "ada", "labels": many(count)}).to_string();
        let answer = service.wires.http(Method::POST, "/auth/sessions", typed(), body).await;
        assert_eq!(answer.status(), status, "{count}");
        if status == StatusCode::BAD_REQUEST {
            let text = String::from_utf8_lossy(answer.body()).into_owned();
            assert!(text.contains("32") && text.contains("labels"), "{text}");
        }
    }
}
