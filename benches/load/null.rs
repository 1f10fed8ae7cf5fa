//! Services that do nothing, in a process of their own: an axum handler and a tonic method.

use std::convert::Infallible;
use std::io::Write as _;
use std::task::Context;
use std::task::Poll;

use axum::Router;
use axum::routing::any;
use futures_util::future::BoxFuture;
use futures_util::future::Ready;
use futures_util::future::ready;
use http::Request;
use http::StatusCode;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use sessiond::pb::IntrospectTokenRequest;
use sessiond::pb::IntrospectTokenResponse;
use tokio::net::TcpListener;
use tonic::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::server::NamedService;
use tonic::server::UnaryService;
use tonic_prost::ProstCodec;

use crate::Outcome;

pub(crate) const HTTP_PATH: &str = "/null";
pub(crate) const GRPC_PATH: &str = "/null.Null/Do";

/// Serves both until standard input closes. Prints the address first.
pub(crate) async fn serve() -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let http = Router::new().route(HTTP_PATH, any(async || StatusCode::OK));
    let routes = tonic::service::Routes::new(NullService).into_axum_router().merge(http);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            // As tonic's and axum's own servers do.
            let _ = connection.set_nodelay(true);
            let service = TowerToHyperService::new(routes.clone());
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                // Clients end connections as they like.
                drop(builder.serve_connection(TokioIo::new(connection), service).await);
            });
        }
    });
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}

/// What tonic generates for a service with one method.
#[derive(Clone)]
struct NullService;

impl NamedService for NullService {
    const NAME: &'static str = "null.Null";
}

impl tower::Service<Request<Body>> for NullService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(NullMethod, request).await) })
    }
}

struct NullMethod;

impl UnaryService<IntrospectTokenRequest> for NullMethod {
    type Response = IntrospectTokenResponse;
    type Future = Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: tonic::Request<IntrospectTokenRequest>) -> Self::Future {
        ready(Ok(Response::new(IntrospectTokenResponse::default())))
    }
}
