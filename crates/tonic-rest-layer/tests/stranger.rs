//! An unmodified tonic service inside the layer: `Routes`, an interceptor, and the usual tower layers.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use prost_reflect::prost_types::FileDescriptorSet;
use tokio::net::TcpListener;
use tonic::{
    Status,
    body::Body,
    service::{InterceptorLayer, Routes},
};
use tonic_rest_layer::{MatchedRoute, RequestBody, RestLayer};
use tonic_web::GrpcWebLayer;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::harness::{WIRES, descriptor_set, send};

/// tonic-health's service, with rules in a proto of the tests.
async fn start() -> SocketAddr {
    let layer = RestLayer::new(&descriptor_set("health")).unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("books", tonic_health::ServingStatus::NotServing).await;
    let interceptor = InterceptorLayer::new(|request: tonic::Request<()>| {
        assert!(request.extensions().get::<MatchedRoute>().is_some());
        match request.metadata().get("authorization") {
            Some(_) => Ok(request),
            None => Err(Status::unauthenticated("who are you?")),
        }
    });
    let service = layer.layer(GrpcWebLayer::new().layer(interceptor.layer(Routes::new(health))));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    address
}

fn get(path: &str, authorization: Option<&str>) -> Request<Bytes> {
    let mut request = Request::get(path);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.body(Bytes::new()).unwrap()
}

#[tokio::test]
async fn an_unmodified_tonic_service_responds_with_json() {
    let address = start().await;
    for wire in WIRES {
        let answer = send(address, wire, get("/health/books", Some("Bearer t"))).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, serde_json::json!({"status": "NOT_SERVING"})));
        let answer = send(address, wire, get("/health/nope", Some("Bearer t"))).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (404, &5.into()));
    }
}

#[tokio::test]
async fn interceptors_apply_to_rest() {
    let address = start().await;
    for wire in WIRES {
        let answer = send(address, wire, get("/health/books", None)).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert_eq!(answer.json()["message"], "who are you?");
    }
}

/// Sends a request through the REST layer to `service`, a layer around the health service.
async fn ask_behind<S>(
    service: S,
    headers: &[(&'static str, &'static str)],
) -> (u16, http::HeaderMap, serde_json::Value)
where
    S: Service<Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let layer = RestLayer::new(&descriptor_set("health")).unwrap();
    let service = layer.layer(service.map_request(|request: Request<RequestBody<Full<Bytes>>>| request.map(Body::new)));
    let mut request = Request::get("/health/books");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = service.oneshot(request.body(Full::default()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap())
}

async fn health() -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("books", tonic_health::ServingStatus::Serving).await;
    Routes::new(health)
}

#[tokio::test]
async fn rate_limits_apply_to_rest() {
    let (left, routes) = (Arc::new(AtomicUsize::new(2)), health().await);
    let limited = service_fn(move |request: Request<Body>| {
        let allowed = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let routes = routes.clone();
        async move {
            match allowed {
                true => routes.oneshot(request).await,
                false => Ok(Status::resource_exhausted("slower").into_http()),
            }
        }
    });
    for expected in [200, 200, 429] {
        assert_eq!(ask_behind(limited.clone(), &[]).await.0, expected);
    }
    let (_, headers, json) = ask_behind(limited, &[]).await;
    assert_eq!((&headers["content-type"], &json["message"]), (&"application/json".parse().unwrap(), &"slower".into()));
}

#[tokio::test]
async fn deadlines_apply_to_rest() {
    let routes = health().await;
    let slow = service_fn(move |request: Request<Body>| {
        let routes = routes.clone();
        async move {
            assert_eq!(request.headers()["grpc-timeout"], "20m");
            let call = async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                routes.oneshot(request).await
            };
            let late = |_| Ok(Status::deadline_exceeded("too late").into_http());
            tokio::time::timeout(Duration::from_millis(20), call).await.unwrap_or_else(late)
        }
    });
    let (status, headers, json) = ask_behind(slow, &[("grpc-timeout", "20m")]).await;
    assert_eq!((status, &json["code"]), (504, &4.into()));
    assert!(!headers.contains_key("grpc-status"));
}

/// Extensions that an inner layer sets reach an interceptor.
#[tokio::test]
async fn extensions_reach_interceptors() {
    #[derive(Clone)]
    struct Caller(String);
    let interceptor = InterceptorLayer::new(|request: tonic::Request<()>| match request.extensions().get::<Caller>() {
        Some(Caller(name)) if name == "ada" => Ok(request),
        _ => Err(Status::permission_denied("only ada")),
    });
    let intercepted = interceptor.layer(health().await).map_request(|mut request: Request<Body>| {
        let name = request.headers().get("x-name").map_or("", |name| name.to_str().unwrap()).to_owned();
        request.extensions_mut().insert(Caller(name));
        request
    });
    let identified = intercepted.map_response(|response| response.map(Body::new));
    assert_eq!(ask_behind(identified.clone(), &[("x-name", "ada")]).await.0, 200);
    assert_eq!(ask_behind(identified, &[("x-name", "eve")]).await.0, 403);
}

/// A method with a rule that the service does not have.
#[tokio::test]
async fn unimplemented_methods_are_501() {
    let address = start().await;
    for wire in WIRES {
        let answer = send(address, wire, get("/health", Some("Bearer t"))).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (501, &12.into()));
    }
}

/// Tools that decode and re-encode a descriptor set drop the rules silently.
#[test]
fn a_set_without_rules_is_an_error() {
    use prost_reflect::prost::Message;

    let set = FileDescriptorSet::decode(descriptor_set("health").as_slice()).unwrap();
    let errors = RestLayer::new(&set.encode_to_vec()).unwrap_err();
    assert!(errors.to_string().contains("re-encoded"), "{errors}");
}
