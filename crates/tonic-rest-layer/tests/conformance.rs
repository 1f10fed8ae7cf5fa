//! The cases of `conformance.json`: requests over HTTP/1.1 and HTTP/2, builds that fail, and behaviours, each with a function of
//! its name.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use prost_reflect::DynamicMessage;
use serde::Deserialize;
use serde_json::Value;
use tonic_rest_layer::{BuildErrors, RestLayer};

use super::harness::{Answer, Fixture, Script, WIRES, Wire, descriptor_set, method, open, send};

#[derive(Debug, Clone, Deserialize)]
struct Case {
    id: String,
    kind: Kind,
    fixture: String,
    #[serde(default)]
    layer: Settings,
    request: Option<Asked>,
    #[serde(default)]
    service: Script,
    expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Build,
    Request,
    Behaviour,
}

/// The options of the layer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    base_paths: Vec<String>,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    skip_faulty: bool,
    #[serde(default)]
    snake_case_masks: bool,
    elements: Option<usize>,
    #[serde(default)]
    field_elements: BTreeMap<String, usize>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Asked {
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    /// The size of a body of spaces, in place of its text.
    body_bytes: Option<usize>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    status: Option<u16>,
    /// The request message that the service received, in canonical JSON.
    bound: Option<Value>,
    rpc: Option<String>,
    rpc_called: Option<bool>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    absent_metadata: Vec<String>,
    #[serde(default)]
    handler_sees: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    absent_headers: Vec<String>,
    body: Option<Value>,
    body_contains: Option<Value>,
    body_text: Option<String>,
    #[serde(default)]
    absent_members: Vec<String>,
    #[serde(default)]
    body_empty: bool,
    #[serde(default)]
    headers_same_as_get: bool,
    /// The `ErrorInfo.reason`, and the first field violation's field.
    reason: Option<String>,
    field: Option<String>,
    lines: Option<usize>,
    events: Option<usize>,
    build_error: Option<String>,
    /// The methods with errors, in order.
    #[serde(default)]
    build_errors: Vec<String>,
    // For readers of the file. The functions below check these.
    map: Option<BTreeMap<String, u16>>,
    first_byte_within_ms: Option<u64>,
    #[serde(rename = "handlerFutureDropped")]
    _handler_future_dropped: Option<bool>,
    #[serde(rename = "grpcResponse")]
    _grpc_response: Option<bool>,
    #[serde(rename = "grpcWebResponse")]
    _grpc_web_response: Option<bool>,
}

#[tokio::test]
async fn every_case_passes() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("conformance.json")).unwrap();
    let mut fixtures = HashMap::new();
    let mut failures = Vec::new();
    for case in &cases {
        let descriptors = fixtures.entry(case.fixture.clone()).or_insert_with(|| descriptor_set(&case.fixture));
        let case = case.clone();
        let descriptors = descriptors.clone();
        let id = case.id.clone();
        // On a separate task, so that the other cases run if one panics.
        let outcome = tokio::spawn(async move {
            match case.kind {
                Kind::Build => check_build(&case, &descriptors),
                Kind::Request => {
                    for wire in WIRES {
                        check_request(&case, &descriptors, wire).await;
                    }
                }
                Kind::Behaviour => check_behaviour(&case, &descriptors).await,
            }
        });
        if outcome.await.is_err() {
            failures.push(id);
        }
    }
    let count = |kind| cases.iter().filter(|case| case.kind == kind).count();
    println!(
        "transcoding: {} request cases over HTTP/1.1 and HTTP/2, {} build cases, {} behaviours",
        count(Kind::Request),
        count(Kind::Build),
        count(Kind::Behaviour),
    );
    assert!(failures.is_empty(), "{} of {} cases fail: {failures:#?}", failures.len(), cases.len());
}

fn build(settings: &Settings, descriptors: &[u8]) -> Result<RestLayer, BuildErrors> {
    let mut builder = RestLayer::builder().error_domain("test");
    for path in &settings.base_paths {
        builder = builder.base_path(path);
    }
    for name in &settings.ignore {
        builder = builder.ignore_query_parameter(name);
    }
    for name in &settings.services {
        builder = builder.service(name);
    }
    if settings.skip_faulty {
        builder = builder.skip_faulty_rules();
    }
    if settings.snake_case_masks {
        builder = builder.snake_case_field_masks();
    }
    if let Some(elements) = settings.elements {
        builder = builder.max_body_elements(elements);
    }
    for (name, elements) in &settings.field_elements {
        builder = builder.max_field_elements(name, *elements);
    }
    builder.build(descriptors)
}

fn check_build(case: &Case, descriptors: &[u8]) {
    let errors = build(&case.layer, descriptors).expect_err(&case.id);
    if let Some(expected) = &case.expect.build_error {
        assert!(errors.to_string().contains(expected), "{}: {errors}", case.id);
    }
    if !case.expect.build_errors.is_empty() {
        let methods: Vec<_> = errors.iter().map(|error| error.method.clone()).collect();
        assert_eq!(methods, case.expect.build_errors, "{}: {errors}", case.id);
        assert!(errors.iter().all(|error| error.service == "broken.v1.Broken"));
    }
}

fn request(asked: &Asked) -> Request<Bytes> {
    let mut request = Request::builder().method(asked.method.as_str()).uri(asked.path.as_str());
    for (name, value) in &asked.headers {
        request = request.header(name, value);
    }
    let body = match asked.body_bytes {
        Some(length) => Bytes::from(vec![b' '; length]),
        None => asked.body.clone().unwrap_or_default().into(),
    };
    request.body(body).unwrap()
}

async fn start(case: &Case, descriptors: &[u8]) -> Fixture {
    let layer = build(&case.layer, descriptors).unwrap_or_else(|errors| panic!("{}: {errors}", case.id));
    Fixture::start(layer, descriptors, case.service.clone()).await
}

async fn check_request(case: &Case, descriptors: &[u8], wire: Wire) {
    let id = format!("{} over {wire:?}", case.id);
    let fixture = start(case, descriptors).await;
    let asked = case.request.as_ref().expect("a request case has a request");
    let answer = send(fixture.address, wire, request(asked)).await;
    let expect = &case.expect;
    let shown = format!("{id}: {} {:?} {:?}", answer.status, answer.headers, answer.body);
    assert_eq!(answer.status.as_u16(), expect.status.unwrap_or(200), "{shown}");
    assert!(!answer.broken, "{shown}");
    check_headers(expect, &answer, &shown);
    check_body(expect, &answer, &shown);
    check_call(expect, &fixture, answer.status.as_u16(), &shown);
    if expect.headers_same_as_get {
        let asked = Asked { method: "GET".to_owned(), ..asked.clone() };
        let get = send(fixture.address, wire, request(&asked)).await;
        let without_date = |answer: &Answer| {
            let mut headers = answer.headers.clone();
            headers.remove("date");
            headers
        };
        assert_eq!(without_date(&answer), without_date(&get), "{shown}");
    }
}

fn check_headers(expect: &Expect, answer: &Answer, shown: &str) {
    for (name, value) in &expect.headers {
        assert_eq!(answer.headers.get(name).map(|value| value.to_str().unwrap()), Some(value.as_str()), "{shown}");
    }
    for name in &expect.absent_headers {
        assert!(!answer.headers.contains_key(name), "{shown}");
    }
    // No gRPC headers or trailers reach a REST client.
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("grpc-")), "{shown}");
    assert!(answer.trailers.is_none(), "{shown}");
}

fn check_body(expect: &Expect, answer: &Answer, shown: &str) {
    if let Some(body) = &expect.body {
        assert_eq!(&answer.json(), body, "{shown}");
    }
    if let Some(part) = &expect.body_contains {
        assert!(contains(&answer.json(), part), "{shown}");
    }
    if let Some(text) = &expect.body_text {
        assert_eq!(std::str::from_utf8(&answer.body).unwrap(), text, "{shown}");
    }
    for name in &expect.absent_members {
        assert!(answer.json().get(name).is_none(), "{name} in {shown}");
    }
    if expect.body_empty {
        assert!(answer.body.is_empty(), "{shown}");
    }
    let details = || answer.json()["details"].as_array().cloned().unwrap_or_default();
    if let Some(reason) = &expect.reason {
        assert_eq!(answer.headers["content-type"], "application/json", "{shown}");
        assert_eq!(details()[0]["reason"], reason.as_str(), "{shown}");
        assert_eq!(details()[0]["domain"], "test", "{shown}");
    }
    if let Some(field) = &expect.field {
        assert_eq!(details()[1]["field_violations"][0]["field"], field.as_str(), "{shown}");
    }
    let text = String::from_utf8_lossy(&answer.body);
    if let Some(lines) = expect.lines {
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), lines, "{shown}");
    }
    if let Some(events) = expect.events {
        assert_eq!(
            text.split_terminator("\n\n").filter(|event| event.starts_with("data: {")).count(),
            events,
            "{shown}"
        );
    }
    assert!(!text.contains("a stack trace"), "{shown}");
}

fn check_call(expect: &Expect, fixture: &Fixture, status: u16, shown: &str) {
    let seen = fixture.seen();
    let refused_here = expect.reason.is_some() || expect.rpc_called == Some(false);
    if refused_here {
        assert!(seen.is_none(), "{shown}: the service was called");
        return;
    }
    let Some(seen) = seen else {
        assert_ne!(status, 200, "{shown}: the service was not called");
        return;
    };
    if let Some(rpc) = &expect.rpc {
        assert_eq!(seen.path.rsplit('/').next(), Some(rpc.as_str()), "{shown}");
    }
    if let Some(bound) = &expect.bound {
        let input = method(&fixture.pool, &seen.path).input();
        let got = DynamicMessage::decode(input.clone(), seen.message.clone()).unwrap();
        let expected = DynamicMessage::deserialize(input, bound.clone()).unwrap();
        // As JSON: the `Debug` output of a recursive message type does not terminate.
        let text = |message: &DynamicMessage| serde_json::to_value(message).unwrap();
        assert_eq!(text(&got), text(&expected), "{shown}");
    }
    for (name, value) in &expect.metadata {
        assert_eq!(seen.headers[name], value.as_str(), "{shown}");
    }
    for name in &expect.absent_metadata {
        assert!(!seen.headers.contains_key(name), "{name} in {shown}");
    }
    for what in &expect.handler_sees {
        match what.as_str() {
            "principal" => assert!(seen.principal, "{shown}"),
            "remote_addr" => assert!(seen.remote_addr, "{shown}"),
            other => panic!("{other}: unknown value of handlerSees"),
        }
    }
    assert_eq!(seen.matched.map(|matched| matched.grpc_path.to_string()), Some(seen.path), "{shown}");
}

/// Whether `whole` contains `part`: members by name, elements at any index.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, part)| whole.get(name).is_some_and(|whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|part| whole.iter().any(|whole| contains(whole, part)))
        }
        _ => whole == part,
    }
}

async fn check_behaviour(case: &Case, descriptors: &[u8]) {
    for wire in WIRES {
        match case.id.as_str() {
            "err-code-map" => err_code_map(case, descriptors, wire).await,
            "cancel-on-disconnect" => cancel_on_disconnect(case, descriptors, wire).await,
            "stream-flush-per-message" => stream_flush_per_message(case, descriptors, wire).await,
            // gRPC needs HTTP/2, and the grpc-web case is about HTTP/1.1.
            "mux-grpc-untouched" => mux_grpc_untouched(case, descriptors).await,
            "mux-grpc-web-http1" => mux_grpc_web_http1(case, descriptors).await,
            other => panic!("{other}: no function for this behaviour"),
        }
    }
}

async fn err_code_map(case: &Case, descriptors: &[u8], wire: Wire) {
    let map = case.expect.map.as_ref().expect("the map");
    assert_eq!(map.len(), 17);
    for (code, status) in map {
        let code = code.parse().unwrap();
        let service = if code == 0 { Script::default() } else { Script::failing(code) };
        let fixture = start(&Case { service, ..case.clone() }, descriptors).await;
        let asked = Asked {
            method: "GET".to_owned(),
            path: "/slow".to_owned(),
            headers: BTreeMap::new(),
            body: None,
            body_bytes: None,
        };
        let answer = send(fixture.address, wire, request(&asked)).await;
        assert_eq!(answer.status.as_u16(), *status, "code {code}");
        if code != 0 {
            assert_eq!(answer.json()["code"], code);
        }
    }
}

/// A disconnected client cancels the call, unary or stream.
async fn cancel_on_disconnect(case: &Case, descriptors: &[u8], wire: Wire) {
    let sleeping: Script = serde_json::from_str(r#"{"sleepMs": 60000}"#).unwrap();
    let hanging: Script = serde_json::from_str(r#"{"stream": [{"id": "a"}], "hang": true}"#).unwrap();
    for (path, service) in [("/slow", sleeping), ("/auth/sessions:watch", hanging)] {
        let fixture = start(&Case { service, ..case.clone() }, descriptors).await;
        let request = Request::get(path).body(Bytes::new()).unwrap();
        let call = tokio::time::timeout(Duration::from_millis(200), send(fixture.address, wire, request)).await;
        assert!(call.is_err(), "{path}: the call must not have ended yet");
        let since = Instant::now();
        while !fixture.dropped() {
            assert!(since.elapsed() < Duration::from_secs(5), "{path}: the call was not cancelled");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn stream_flush_per_message(case: &Case, descriptors: &[u8], wire: Wire) {
    let service: Script = serde_json::from_str(r#"{"stream": [{"id": "a"}], "hang": true}"#).unwrap();
    let fixture = start(&Case { service, ..case.clone() }, descriptors).await;
    let asked = case.request.as_ref().expect("a request");
    let within = Duration::from_millis(case.expect.first_byte_within_ms.expect("a bound"));
    let first = tokio::time::timeout(within * 5, async {
        let mut response = open(fixture.address, wire, request(asked)).await;
        response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap()
    });
    assert_eq!(first.await.expect("the first message is sent immediately"), "{\"id\":\"a\",\"seq\":\"0\"}\n");
}

fn grpc_request(content_type: &str) -> Request<Bytes> {
    Request::post("/auth.v1.SessionService/RevokeCurrent")
        .header("content-type", content_type)
        .body(Bytes::from_static(&[0; 5]))
        .unwrap()
}

async fn mux_grpc_untouched(case: &Case, descriptors: &[u8]) {
    let fixture = start(case, descriptors).await;
    let answer = send(fixture.address, Wire::Http2, grpc_request("application/grpc")).await;
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(answer.body, [0; 5].as_slice());
    assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");
    assert!(fixture.seen().expect("a call").matched.is_none());
}

async fn mux_grpc_web_http1(case: &Case, descriptors: &[u8]) {
    let fixture = start(case, descriptors).await;
    let answer = send(fixture.address, Wire::Http1, grpc_request("application/grpc-web+proto")).await;
    assert_eq!(answer.headers["content-type"], "application/grpc-web+proto");
    assert!(answer.body.starts_with(&[0; 5]), "the message");
    assert!(
        answer.body.windows(14).any(|part| part == b"grpc-status:0\r"),
        "the trailers, as a frame: {:?}",
        answer.body
    );
}
