//! What the builder's options change, each beside what holds without it.

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
use tower::Layer;
use tower::ServiceExt;
use tower::service_fn;

use super::harness::descriptor_set;

/// What the service answers with: messages, and how the call ends. A call without an end hangs.
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

/// `thing_id: "1"`, and inside of `inner_thing` a `part_number: 0`.
const THING: &[u8] = b"\x0a\x011\x42\x02\x20\x00";

#[tokio::test]
async fn json_names_are_printed_if_asked_for() {
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
async fn default_values_are_omitted_if_asked_for() {
    let builder = || RestLayer::builder().omit_default_values();
    let answer = ask(builder(), get_thing(), Reply::of(THING)).await.json();
    // What tells absence from zero is still there.
    assert_eq!(answer, json!({"thing_id": "1", "inner_thing": {"part_number": 0}}));
    // Zeros that a service writes out are no different: `shelf_number`, an empty packed list, an enum, empty bytes.
    let zeros = b"\x10\x00\x1a\x00\x28\x00\x3a\x00";
    assert_eq!(ask(builder(), get_thing(), Reply::of(zeros)).await.json(), json!({}));
    let mixed = b"\x10\x07\x1a\x01\x00\x32\x00";
    let expected = json!({"shelf_number": 7, "page_numbers": [0], "other_names": {"": ""}});
    assert_eq!(ask(builder(), get_thing(), Reply::of(mixed)).await.json(), expected);
    let refused = ask(builder(), request(Method::GET, "/things/1?nothing=1"), Reply::default()).await.json();
    assert_eq!(refused["details"][0].get("metadata"), None);
}

#[test]
fn openapi_describes_the_members_as_they_are_printed() {
    let set = descriptor_set("options");
    let plain = OpenApi::new("Things", "1").build(&set).unwrap();
    let thing = &plain["components"]["schemas"]["Thing"];
    assert!(thing["properties"]["shelf_number"].is_object());
    assert!(thing["required"].as_array().unwrap().contains(&json!("shelf_number")));
    let told = OpenApi::new("Things", "1").json_names().omit_default_values().build(&set).unwrap();
    let thing = &told["components"]["schemas"]["Thing"];
    assert!(thing["properties"]["shelfNumber"].is_object());
    assert!(thing["properties"]["shelf_number"].is_null() && thing["required"].is_null(), "{thing:#}");
}

/// Of the service's own failures, of the layer's refusals, and at the end of streams.
#[tokio::test]
async fn the_service_makes_its_own_error_bodies() {
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
async fn the_challenge_is_the_services() {
    let challenge = HeaderValue::from_static("Bearer realm=\"things\"");
    let answer = ask(RestLayer::builder().challenge(challenge.clone()), get_thing(), Reply::failing("16", "")).await;
    assert_eq!((answer.status, &answer.headers["www-authenticate"]), (401, &challenge));
    let plain = ask(RestLayer::builder(), get_thing(), Reply::failing("16", "")).await;
    assert_eq!(plain.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn success_has_the_status_and_the_headers_that_the_service_wants() {
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
    // Nothing of it where the call fails.
    let failed = ask(builder(), request(Method::DELETE, "/things/1"), Reply::failing("5", "")).await;
    assert_eq!(failed.status, 404);
    assert_eq!(ask(RestLayer::builder(), get_thing(), Reply::of(b"")).await.status, 200);
}

async fn status(router: &Router, request: Request<Full<Bytes>>) -> u16 {
    let request = request.map(axum::body::Body::new);
    router.clone().oneshot(request).await.unwrap().status().as_u16()
}

/// A router with a page of its own and tonic's services, behind the layer.
#[tokio::test]
async fn a_path_without_a_rule_falls_through_to_a_router_if_asked_to() {
    let inner = || {
        let grpc = tonic::service::Routes::default().into_axum_router();
        Router::new().route("/healthz", get(|| async { "fine" })).merge(grpc)
    };
    let set = descriptor_set("options");
    let rest = RestLayer::builder().fall_through().build(&set).unwrap();
    let router = Router::new().fallback_service(rest.layer(inner()));
    assert_eq!(status(&router, request(Method::GET, "/healthz")).await, 200);
    assert_eq!(status(&router, get_thing()).await, 501, "routed, and the service is not there");
    assert_eq!(status(&router, request(Method::PUT, "/things/1")).await, 405, "a rule has the path");
    let rest = RestLayer::new(&set).unwrap();
    let router = Router::new().fallback_service(rest.layer(inner()));
    assert_eq!(status(&router, request(Method::GET, "/healthz")).await, 404);
}

/// The body arrives as it was sent.
#[tokio::test]
async fn what_falls_through_is_not_touched() {
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

/// It would stand around single routes there, and no REST path leads to them.
#[test]
#[should_panic(expected = "Put it around the router")]
fn router_layer_is_refused_when_it_is_built() {
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
async fn a_silent_stream_of_events_has_heartbeats_if_asked_for() {
    let builder = || RestLayer::builder().event_heartbeat(Duration::from_millis(20));
    let silent = || Reply { messages: vec![THING.to_vec()], end: None };
    let events = frames(builder(), "text/event-stream", silent(), 3).await;
    assert!(events[0].starts_with(b"data: {"));
    assert_eq!(events[1..], [":\n\n", ":\n\n"]);
    // Before the first message too.
    let events = frames(builder(), "text/event-stream", Reply::default(), 2).await;
    assert_eq!(events, [":\n\n", ":\n\n"]);
    // An end before the first heartbeat is told by the status.
    let failed = ask(builder(), watch("text/event-stream"), Reply::failing("5", "")).await;
    assert_eq!(failed.status, 404);
    // Lines have no comments, and without the option events have none.
    for (builder, accept) in [(builder(), "*/*"), (RestLayer::builder(), "text/event-stream")] {
        let two = frames(builder, accept, silent(), 2);
        tokio::time::timeout(Duration::from_millis(200), two).await.expect_err("one message, and silence");
    }
}
