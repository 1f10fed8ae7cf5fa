//! The options of the builder, each compared with its default.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::StreamBody;
use serde_json::Value;
use serde_json::json;
use tonic_rest_layer::Code;
use tonic_rest_layer::OpenApi;
use tonic_rest_layer::RequestBody;
use tonic_rest_layer::RestLayer;
use tonic_rest_layer::RestLayerBuilder;
use tonic_rest_layer::RuleError;
use tower::Layer;
use tower::ServiceExt;
use tower::service_fn;

use super::harness::descriptor_set;

/// The reply of the service: messages and the final status. A call without a status never ends.
#[derive(Clone, Default)]
struct Reply {
    messages: Vec<Vec<u8>>,
    end: Option<(&'static str, &'static str)>,
}

impl Reply {
    fn of(message: &[u8]) -> Reply {
        Reply { messages: vec![message.to_vec()], end: Some(("0", "")) }
    }

    fn failing(code: &'static str, message: &'static str) -> Reply {
        Reply { messages: vec![], end: Some((code, message)) }
    }
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
}

fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).body(Full::default()).unwrap()
}

async fn send(builder: RestLayerBuilder, request: Request<Full<Bytes>>, reply: Reply) -> Response<tonic::body::Body> {
    let service = service_fn(move |_: Request<RequestBody<Full<Bytes>>>| {
        let frame = |message: &Vec<u8>| [&[0, 0, 0, 0, message.len() as u8], message.as_slice()].concat();
        let mut frames: Vec<_> = reply
            .messages
            .iter()
            .map(|message| Ok::<_, Infallible>(Frame::data(Bytes::from(frame(message)))))
            .collect();
        let hangs = reply.end.is_none();
        frames.extend(reply.end.map(|(code, message)| {
            let mut end = HeaderMap::new();
            end.insert("grpc-status", HeaderValue::from_static(code));
            end.insert("grpc-message", HeaderValue::from_static(message));
            Ok(Frame::trailers(end))
        }));
        let rest = if hangs { stream::pending().left_stream() } else { stream::empty().right_stream() };
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(stream::iter(frames).chain(rest)))))
    });
    let layer = builder.build(&descriptor_set("options")).unwrap();
    layer.layer(service).oneshot(request).await.unwrap().map(tonic::body::Body::new)
}

async fn ask(builder: RestLayerBuilder, request: Request<Full<Bytes>>, reply: Reply) -> Answer {
    let (parts, body) = send(builder, request, reply).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

fn get_thing() -> Request<Full<Bytes>> {
    request(Method::GET, "/things/1")
}

fn watch(accept: &'static str) -> Request<Full<Bytes>> {
    let mut request = request(Method::GET, "/things:watch");
    request.headers_mut().insert("accept", HeaderValue::from_static(accept));
    request
}

/// `thing_id: "1"`, and `part_number: 0` inside `inner_thing`.
const THING: &[u8] = b"\x0a\x011\x42\x02\x20\x00";

#[tokio::test]
async fn json_names_are_an_option() {
    let builder = || RestLayer::builder().json_names();
    let answer = ask(builder(), get_thing(), Reply::of(THING)).await.json();
    let names: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["innerThing", "kindOfThing", "otherNames", "pageNumbers", "raw \"text\"", "shelfNumber", "thingId"]
    );
    assert_eq!(answer["innerThing"]["partNumber"], 0);
    let plain = ask(RestLayer::builder(), get_thing(), Reply::of(THING)).await.json();
    assert_eq!((&plain["thing_id"], &plain["shelf_number"]), (&json!("1"), &json!(0)));
    // In errors too.
    let refused = ask(builder(), request(Method::GET, "/things/1?nothing=1"), Reply::default()).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["details"][1]["fieldViolations"][0]["field"], "nothing");
}

#[tokio::test]
async fn default_values_can_be_omitted() {
    let builder = || RestLayer::builder().omit_default_values();
    let answer = ask(builder(), get_thing(), Reply::of(THING)).await.json();
    // Fields with presence are still printed.
    assert_eq!(answer, json!({"thing_id": "1", "inner_thing": {"part_number": 0}}));
    // The same if the default values are on the wire: `shelf_number`, an empty packed list, an enum, empty bytes.
    let zeros = b"\x10\x00\x1a\x00\x28\x00\x3a\x00";
    assert_eq!(ask(builder(), get_thing(), Reply::of(zeros)).await.json(), json!({}));
    let mixed = b"\x10\x07\x1a\x01\x00\x32\x00";
    let expected = json!({"shelf_number": 7, "page_numbers": [0], "other_names": {"": ""}});
    assert_eq!(ask(builder(), get_thing(), Reply::of(mixed)).await.json(), expected);
    let refused = ask(builder(), request(Method::GET, "/things/1?nothing=1"), Reply::default()).await.json();
    assert_eq!(refused["details"][0].get("metadata"), None);
}

#[test]
fn openapi_has_the_same_json_options_as_the_layer() {
    let set = descriptor_set("options");
    let plain = OpenApi::new("Things", "1").build(&set).unwrap();
    let thing = &plain["components"]["schemas"]["Thing"];
    assert!(thing["properties"]["shelf_number"].is_object());
    assert!(thing["required"].as_array().unwrap().contains(&json!("shelf_number")));
    let changed = OpenApi::new("Things", "1").json_names().omit_default_values().build(&set).unwrap();
    let thing = &changed["components"]["schemas"]["Thing"];
    assert!(thing["properties"]["shelfNumber"].is_object());
    assert!(thing["properties"]["shelf_number"].is_null() && thing["required"].is_null(), "{thing:#}");
}

/// For errors of the service, errors of the layer, and at the end of streams.
#[tokio::test]
async fn error_bodies_are_customizable() {
    let builder = || {
        RestLayer::builder()
            .error_body(|error| {
                assert!(format!("{error:?}").contains("RestError"));
                let reasons: Vec<Value> =
                    error.details().iter().filter_map(|detail| detail.get("reason").cloned()).collect();
                json!({"status": error.status().as_u16(), "title": error.message(), "reasons": reasons})
            })
            .error_content_type(HeaderValue::from_static("application/problem+json"))
    };
    let failed = ask(builder(), get_thing(), Reply::failing("5", "gone")).await;
    assert_eq!((failed.status, failed.json()), (404, json!({"status": 404, "title": "gone", "reasons": []})));
    assert_eq!(failed.headers["content-type"], "application/problem+json");
    let refused = ask(builder(), request(Method::GET, "/nowhere"), Reply::default()).await;
    assert_eq!((refused.status, &refused.json()["reasons"]), (404, &json!(["ROUTE_NOT_FOUND"])));

    let broken = || Reply { messages: vec![THING.to_vec()], end: Some(("14", "down")) };
    let lines = ask(builder(), watch("*/*"), broken()).await;
    let last = lines.body.split(|byte| *byte == b'\n').nth(1).unwrap();
    let last: Value = serde_json::from_slice(last).unwrap();
    assert_eq!(last, json!({"error": {"status": 503, "title": "down", "reasons": []}}));
    let events = ask(builder(), watch("text/event-stream"), broken()).await;
    let events = String::from_utf8(events.body.to_vec()).unwrap();
    assert!(events.ends_with("event: error\ndata: {\"reasons\":[],\"status\":503,\"title\":\"down\"}\n\n"), "{events}");
    let plain = ask(RestLayer::builder(), get_thing(), Reply::failing("5", "gone")).await;
    assert_eq!(plain.json(), json!({"code": Code::NotFound as i32, "message": "gone", "details": []}));
}

#[tokio::test]
async fn the_challenge_is_configurable() {
    let challenge = HeaderValue::from_static("Bearer realm=\"things\"");
    let answer = ask(RestLayer::builder().challenge(challenge.clone()), get_thing(), Reply::failing("16", "")).await;
    assert_eq!((answer.status, &answer.headers["www-authenticate"]), (401, &challenge));
    let plain = ask(RestLayer::builder(), get_thing(), Reply::failing("16", "")).await;
    assert_eq!(plain.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn on_success_changes_status_and_headers() {
    let builder = || {
        RestLayer::builder().on_success(|route, parts| match route.grpc_path.path() {
            "/options.v1.ThingService/CreateThing" => {
                parts.status = StatusCode::CREATED;
                parts.headers.insert("location", HeaderValue::from_static("/things/1"));
            }
            "/options.v1.ThingService/DeleteThing" => parts.status = StatusCode::NO_CONTENT,
            "/options.v1.ThingService/WatchThings" => {
                parts.headers.insert("x-template", route.template.parse().unwrap());
            }
            _ => {}
        })
    };
    let mut create = request(Method::POST, "/things").map(|_| Full::from("{}"));
    create.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    let created = ask(builder(), create, Reply::of(THING)).await;
    assert_eq!((created.status, &created.headers["location"]), (201, &HeaderValue::from_static("/things/1")));
    assert_eq!(created.json()["thing_id"], "1");
    let deleted = ask(builder(), request(Method::DELETE, "/things/1"), Reply::of(b"")).await;
    assert_eq!((deleted.status, &deleted.body[..], deleted.headers.get("content-type")), (204, &b""[..], None));
    let stream = ask(builder(), watch("*/*"), Reply::of(THING)).await;
    assert_eq!(stream.headers["x-template"], "/things:watch");
    // Not for failed calls.
    let failed = ask(builder(), request(Method::DELETE, "/things/1"), Reply::failing("5", "")).await;
    assert_eq!(failed.status, 404);
    assert_eq!(ask(RestLayer::builder(), get_thing(), Reply::of(b"")).await.status, 200);
}

async fn status(router: &Router, request: Request<Full<Bytes>>) -> u16 {
    let request = request.map(axum::body::Body::new);
    router.clone().oneshot(request).await.unwrap().status().as_u16()
}

/// A router with a page and tonic services, inside the layer.
#[tokio::test]
async fn paths_without_a_rule_can_fall_through_to_a_router() {
    let inner = || {
        let grpc = tonic::service::Routes::default().into_axum_router();
        Router::new().route("/healthz", get(|| async { "fine" })).merge(grpc)
    };
    let set = descriptor_set("options");
    let rest = RestLayer::builder().fall_through().build(&set).unwrap();
    let router = Router::new().fallback_service(rest.layer(inner()));
    assert_eq!(status(&router, request(Method::GET, "/healthz")).await, 200);
    assert_eq!(status(&router, get_thing()).await, 501, "a rule has this path, but no service is registered");
    assert_eq!(status(&router, request(Method::PUT, "/things/1")).await, 405, "a rule has the path");
    let rest = RestLayer::new(&set).unwrap();
    let router = Router::new().fallback_service(rest.layer(inner()));
    assert_eq!(status(&router, request(Method::GET, "/healthz")).await, 404);
}

/// The inner service gets the request unchanged, including its body.
#[tokio::test]
async fn requests_that_fall_through_are_unchanged() {
    let service = service_fn(|request: Request<RequestBody<Full<Bytes>>>| async move {
        let (parts, body) = request.into_parts();
        assert_eq!((parts.method, parts.uri.path()), (Method::PUT, "/elsewhere"));
        let body = body.collect().await.unwrap().to_bytes();
        Ok::<_, Infallible>(Response::builder().status(418).header("x-own", "1").body(Full::from(body)).unwrap())
    });
    let rest = RestLayer::builder().fall_through().build(&descriptor_set("options")).unwrap();
    let request = Request::put("/elsewhere").body(Full::from("as it is")).unwrap();
    let response = rest.layer(service).oneshot(request).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-own"]), (418, &HeaderValue::from_static("1")));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "as it is");
}

/// `Router::layer` wraps single routes, which no REST path reaches.
#[test]
#[should_panic(expected = "Wrap the router instead")]
fn router_layer_panics() {
    let rest = RestLayer::new(&descriptor_set("options")).unwrap();
    let grpc = tonic::service::Routes::default().into_axum_router();
    drop(grpc.route("/page", get(|| async { "" })).route_service("/s", service_fn(nothing)).layer(rest));
}

async fn nothing(_: Request<axum::body::Body>) -> Result<Response<axum::body::Body>, Infallible> {
    Ok(Response::default())
}

/// The first frames of a stream.
async fn frames(builder: RestLayerBuilder, accept: &'static str, reply: Reply, count: usize) -> Vec<Bytes> {
    let read = async {
        let response = send(builder, watch(accept), reply).await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut frames = vec![];
        while frames.len() < count {
            frames.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        frames
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("frames")
}

#[tokio::test]
async fn idle_event_streams_can_have_heartbeats() {
    let builder = || RestLayer::builder().event_heartbeat(Duration::from_millis(20));
    let silent = || Reply { messages: vec![THING.to_vec()], end: None };
    let events = frames(builder(), "text/event-stream", silent(), 3).await;
    assert!(events[0].starts_with(b"data: {"));
    assert_eq!(events[1..], [":\n\n", ":\n\n"]);
    // Also before the first message.
    let events = frames(builder(), "text/event-stream", Reply::default(), 2).await;
    assert_eq!(events, [":\n\n", ":\n\n"]);
    // A failure before the first heartbeat changes the status.
    let failed = ask(builder(), watch("text/event-stream"), Reply::failing("5", "")).await;
    assert_eq!(failed.status, 404);
    // NDJSON has no comments, and neither have events without the option.
    for (builder, accept) in [(builder(), "*/*"), (RestLayer::builder(), "text/event-stream")] {
        let two = frames(builder, accept, silent(), 2);
        tokio::time::timeout(Duration::from_millis(200), two).await.expect_err("one message only");
    }
}

/// A comment has already fixed the status, so a later failure is an event.
#[tokio::test]
async fn a_failure_after_a_heartbeat_is_an_event() {
    let service = service_fn(|_: Request<RequestBody<Full<Bytes>>>| async {
        let late = stream::once(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let end = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("14"))]);
            Ok::<_, Infallible>(Frame::trailers(end))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(late))))
    });
    let rest =
        RestLayer::builder().event_heartbeat(Duration::from_millis(20)).build(&descriptor_set("options")).unwrap();
    let response = rest.layer(service).oneshot(watch("text/event-stream")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers()["content-type"].as_bytes()),
        (200, &b"text/event-stream"[..])
    );
    let body = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(body.starts_with(":\n\n"), "{body}");
    let (_, end) = body.split_once("event: error\ndata: ").expect("an error event");
    assert_eq!(serde_json::from_str::<Value>(end).unwrap()["code"], Code::Unavailable as i32);
}

/// Instead of a timer that is always ready.
#[tokio::test]
async fn a_heartbeat_of_zero_is_one_millisecond() {
    let started = std::time::Instant::now();
    let events = frames(RestLayer::builder().event_heartbeat(Duration::ZERO), "text/event-stream", Reply::default(), 5);
    assert_eq!(events.await, [":\n\n"; 5]);
    assert!(started.elapsed() >= Duration::from_millis(5), "{:?}", started.elapsed());
}

#[test]
fn only_the_named_services_are_served() {
    let set = descriptor_set("foreign");
    let named = RestLayer::builder().service("foreign.v1.ForeignService").build(&set).unwrap();
    assert!(!named.has_route(&Method::GET, "/neighbour"));
    let all = RestLayer::builder().skip_faulty_rules().build(&set).unwrap();
    assert!(all.has_route(&Method::GET, "/neighbour"));
    let errors = RestLayer::builder().service("foreign.v1.Missing").service("a.B").build(&set).unwrap_err();
    let reasons: Vec<String> = errors.iter().map(|error| error.reason.to_string()).collect();
    assert_eq!(reasons, ["the set has no service foreign.v1.Missing", "the set has no service a.B"]);
}

#[test]
fn skipping_needs_at_least_one_valid_rule() {
    let set = descriptor_set("broken/client_streaming");
    let errors = RestLayer::builder().skip_faulty_rules().build(&set).unwrap_err();
    assert!(errors.iter().any(|error| matches!(error.reason, RuleError::ClientStreaming)), "{errors}");
    // A wrong option is not a rule, so it is not skipped.
    let builder = RestLayer::builder().skip_faulty_rules().base_path("/{a}");
    let errors = builder.build(&descriptor_set("foreign")).unwrap_err();
    assert!(errors.iter().any(|error| matches!(error.reason, RuleError::BasePath(_))), "{errors}");
}

#[test]
fn openapi_describes_custom_error_bodies() {
    let schema = json!({"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}});
    let document = OpenApi::new("Things", "1")
        .error_body(schema.clone())
        .error_content_type("application/problem+json")
        .build(&descriptor_set("options"))
        .unwrap();
    let body = json!({"$ref": "#/components/schemas/error-body"});
    assert_eq!(document["components"]["schemas"]["error-body"], schema);
    assert!(document["components"]["schemas"]["google.rpc.Status"].is_null());
    let responses = document["components"]["responses"].as_object().unwrap();
    assert!(!responses.is_empty());
    for (name, response) in responses {
        assert_eq!(response["content"], json!({"application/problem+json": {"schema": &body}}), "{name}");
        assert!(response["x-reasons"].is_array(), "{name}");
    }
    let watch = &document["paths"]["/things:watch"]["get"]["responses"];
    assert_eq!(watch["default"]["content"], json!({"application/problem+json": {"schema": &body}}));
    let lines = &watch["200"]["content"]["application/x-ndjson"]["schema"]["anyOf"];
    assert_eq!(lines[1]["properties"]["error"], body);
    assert!(!document.to_string().contains("google.rpc.Status"));
}
