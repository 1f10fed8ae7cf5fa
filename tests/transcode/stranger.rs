//! What one stranger's tonic service looks like behind the layer: real `Routes`, an interceptor, nothing of ours.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use prost_reflect::prost_types::FileDescriptorSet;
use sessiond::transcode::{Matched, RestLayer};
use tokio::net::TcpListener;
use tonic::{
    Status,
    service::{InterceptorLayer, Routes},
};
use tonic_web::GrpcWebLayer;
use tower::Layer;

use super::harness::{WIRES, descriptor_set, send};

/// `grpc.health.v1`, annotated by hand: a service whose code is not generated here, behind rules that are.
async fn start() -> SocketAddr {
    let layer = RestLayer::new(&descriptor_set("health")).unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("books", tonic_health::ServingStatus::NotServing).await;
    let interceptor = InterceptorLayer::new(|request: tonic::Request<()>| {
        assert!(request.extensions().get::<Matched>().is_some());
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
async fn a_tonic_service_answers_json_without_a_line_written_for_it() {
    let address = start().await;
    for wire in WIRES {
        let answer = send(address, wire, get("/health/books", Some("Bearer t"))).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, serde_json::json!({"status": "NOT_SERVING"})));
        let answer = send(address, wire, get("/health/nope", Some("Bearer t"))).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (404, &5.into()));
    }
}

#[tokio::test]
async fn an_interceptor_acts_on_rest_too() {
    let address = start().await;
    for wire in WIRES {
        let answer = send(address, wire, get("/health/books", None)).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert_eq!(answer.json()["message"], "who are you?");
    }
}

/// A method that the rules name and the service does not have.
#[tokio::test]
async fn what_the_service_does_not_implement_is_501() {
    let address = start().await;
    for wire in WIRES {
        let answer = send(address, wire, get("/health", Some("Bearer t"))).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (501, &12.into()));
    }
}

/// A tool that decodes and re-encodes a descriptor set drops every rule without a word. The layer notices.
#[test]
fn a_set_that_lost_its_rules_is_refused() {
    use prost_reflect::prost::Message;

    let set = FileDescriptorSet::decode(descriptor_set("health").as_slice()).unwrap();
    let errors = RestLayer::new(&set.encode_to_vec()).unwrap_err();
    assert!(errors.to_string().contains("re-encoded"), "{errors}");
}
