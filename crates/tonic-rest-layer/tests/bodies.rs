//! Request bodies: in chunks, slow, aborted or endless, and what the inner service gets.

use std::convert::Infallible;
use std::future::Future;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::HeaderMap;
use http::Request;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::Value;
use tonic_rest_layer::RequestBody;
use tonic_rest_layer::RestLayer;
use tonic_rest_layer::RestLayerBuilder;
use tower::Layer;
use tower::Service;
use tower::ServiceExt;

use super::harness::descriptor_set;

type Sent = UnsyncBoxBody<Bytes, Infallible>;

/// A service that panics if it is called before it is ready, and that counts its ready clones.
#[derive(Default)]
struct Careful {
    ready: bool,
    readied: Arc<AtomicUsize>,
    calls: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Clone for Careful {
    fn clone(&self) -> Careful {
        Careful { ready: false, readied: Arc::clone(&self.readied), calls: Arc::clone(&self.calls) }
    }
}

impl Drop for Careful {
    fn drop(&mut self) {
        self.readied.fetch_sub(self.ready.into(), Ordering::SeqCst);
    }
}

impl Service<Request<RequestBody<Sent>>> for Careful {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.ready {
            self.ready = true;
            self.readied.fetch_add(1, Ordering::SeqCst);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<Sent>>) -> Self::Future {
        assert!(self.ready, "called without being ready");
        self.ready = false;
        self.readied.fetch_sub(1, Ordering::SeqCst);
        let calls = Arc::clone(&self.calls);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let message = body.collect().await.unwrap().to_bytes().slice(5..);
            calls.lock().unwrap().push((parts.headers, message));
            // A trailers-only response.
            Ok(Response::builder().header("grpc-status", "5").body(Full::default()).unwrap())
        })
    }
}

fn in_pieces(pieces: &[&'static str]) -> Sent {
    let frames = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
    StreamBody::new(stream::iter(frames.collect::<Vec<_>>())).boxed_unsync()
}

/// One byte, and then no end.
fn never_ending() -> Sent {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"{")))]);
    StreamBody::new(first.chain(stream::pending())).boxed_unsync()
}

/// The complete body, after a delay.
fn late(after: Duration, json: &'static str) -> Sent {
    let frame = stream::once(async move {
        tokio::time::sleep(after).await;
        Ok(Frame::data(Bytes::from_static(json.as_bytes())))
    });
    StreamBody::new(Box::pin(frame)).boxed_unsync()
}

fn layer(set: impl FnOnce(RestLayerBuilder) -> RestLayerBuilder) -> RestLayer {
    set(RestLayer::builder()).build(&descriptor_set("sessions")).unwrap()
}

fn create(body: Sent) -> Request<Sent> {
    Request::post("/auth/sessions").header("content-type", "application/json").body(body).unwrap()
}

async fn send(layer: &RestLayer, service: &Careful, request: Request<Sent>) -> (u16, Value) {
    let answer = async {
        let response = layer.layer(service.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.expect("an answer")
}

fn reason(answer: &Value) -> &str {
    answer["details"][0]["reason"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_body_can_arrive_in_chunks() {
    let (layer, service) = (layer(|layer| layer), Careful::default());
    let (status, _) = send(&layer, &service, create(in_pieces(&["{\"user", "", "_id\":", "\"u\"}"]))).await;
    assert_eq!(status, 404, "the response of the service");
    assert_eq!(service.calls.lock().unwrap()[0].1, b"\x0a\x01u".as_slice());
}

#[tokio::test]
async fn the_size_of_a_body_without_a_length_is_bounded() {
    let (layer, service) = (layer(|layer| layer.max_body_bytes(8)), Careful::default());
    let (status, answer) = send(&layer, &service, create(in_pieces(&["        ", " "]))).await;
    assert_eq!((status, reason(&answer)), (413, "BODY_TOO_LARGE"));
    assert!(service.calls.lock().unwrap().is_empty());
    let (status, _) = send(&layer, &service, create(in_pieces(&["      ", "{}"]))).await;
    assert_eq!(status, 404, "exactly the limit");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_a_408() {
    let service = Careful::default();
    let own = layer(|layer| layer.body_timeout(Duration::from_millis(30)));
    let (status, answer) = send(&own, &service, create(never_ending())).await;
    assert_eq!((status, reason(&answer)), (408, "BODY_TIMEOUT"));

    let mut request = create(never_ending());
    request.headers_mut().insert("grpc-timeout", "30m".parse().unwrap());
    let (status, answer) = send(&layer(|layer| layer), &service, request).await;
    assert_eq!((status, reason(&answer)), (408, "BODY_TIMEOUT"), "the client's own deadline is shorter");
    assert!(service.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_time_that_a_body_took_is_subtracted_from_the_deadline() {
    let (layer, service) = (layer(|layer| layer), Careful::default());
    let mut request = create(late(Duration::from_millis(20), "{}"));
    request.headers_mut().insert("grpc-timeout", "5S".parse().unwrap());
    assert_eq!(send(&layer, &service, request).await.0, 404);
    let left = service.calls.lock().unwrap()[0].0["grpc-timeout"].to_str().unwrap().to_owned();
    let left: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
    // Half of it: the body may have begun to wait before the layer did.
    assert!(left <= 4_990_000, "{left} µs");
}

#[tokio::test]
async fn a_slow_body_does_not_hold_a_ready_service() {
    let (layer, service) = (layer(|layer| layer), Careful::default());
    let mut rest = layer.layer(service.clone());
    let call = rest.ready().await.unwrap().call(create(never_ending()));
    let waiting = tokio::time::timeout(Duration::from_millis(20), call).await;
    assert!(waiting.is_err(), "the body has not arrived");
    let call = tokio::spawn(layer.layer(service.clone()).oneshot(create(never_ending())));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(service.readied.load(Ordering::SeqCst), 0);
    call.abort();
    assert!(service.calls.lock().unwrap().is_empty(), "a disconnected client cancels its request");
}

/// The rule does not read it, so it can be neither too large nor too slow.
#[tokio::test]
async fn a_body_without_a_place_does_not_delay_the_call() {
    let (layer, service) = (layer(|layer| layer.max_body_bytes(8)), Careful::default());
    let large = Full::from(vec![b' '; 1_000]).boxed_unsync();
    for body in [never_ending(), in_pieces(&["more than", "it would read"]), large] {
        let request = Request::delete("/auth/sessions/current").body(body).unwrap();
        assert_eq!(send(&layer, &service, request).await.0, 404);
    }
    assert_eq!(service.calls.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn the_content_type_is_checked_before_the_body_is_read() {
    let (layer, service) = (layer(|layer| layer), Careful::default());
    let mut request = create(never_ending());
    request.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    let (status, answer) = send(&layer, &service, request).await;
    assert_eq!((status, reason(&answer)), (415, "UNSUPPORTED_MEDIA_TYPE"));
    // Without a content type, only an empty body is accepted.
    for (pieces, expected) in [(&["{}"][..], 415), (&[""], 404)] {
        let request = Request::post("/auth/sessions").body(in_pieces(pieces)).unwrap();
        assert_eq!(send(&layer, &service, request).await.0, expected);
    }
}

#[tokio::test]
async fn an_aborted_body_is_a_400() {
    let layer = layer(|layer| layer);
    let service = tower::service_fn(|_: Request<RequestBody<StreamBody<_>>>| {
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    let body = StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("gone"))]));
    let request = Request::post("/auth/sessions").header("content-type", "application/json").body(body).unwrap();
    assert_eq!(layer.layer(service).oneshot(request).await.unwrap().status(), 400);
}
