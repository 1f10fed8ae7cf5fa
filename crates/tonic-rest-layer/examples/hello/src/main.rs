use axum::Router;
use hello::greeter_server::{Greeter, GreeterServer};
use hello::{GreetRequest, GreetResponse};
use tonic::{Request, Response, Status, service::Routes};
use tonic_rest_layer::{BoxError, RestLayer};
use tonic_web::GrpcWebLayer;
use tower::Layer;

mod hello {
    tonic::include_proto!("hello.v1");
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello.bin"));
}

struct Polite;

#[tonic::async_trait]
impl Greeter for Polite {
    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetResponse>, Status> {
        let text = format!("Hello, {}!", request.into_inner().name);
        Ok(Response::new(GreetResponse { text }))
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let grpc = Routes::new(GreeterServer::new(Polite));
    let rest = RestLayer::new(hello::DESCRIPTORS)?.layer(GrpcWebLayer::new().layer(grpc));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    Ok(axum::serve(listener, Router::new().fallback_service(rest)).await?)
}
