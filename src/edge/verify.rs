//! Verifies requests for nginx, Traefik and Caddy: an adapter to Envoy's call. The project is in the path, which the proxy's
//! configuration sets; the result is a status and headers.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::header;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use tonic::Status;
use tower::Service;

use super::answer::answer;
use super::grpc::GrpcRequest;
use super::grpc::GrpcResponse;
use super::grpc::GrpcService;
use crate::pb::envoy;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::check_response::HttpResponse;
use crate::rpc::Authorization;
use crate::rpc::check;
use crate::rpc::check::Decision;
use crate::rpc::check::IDENTITY;
use crate::rpc::check::ProxiedRequest;
use crate::rpc::status;
use sessiond_core::session::Origin;
use sessiond_core::token::verified::VerifiedToken;
use tonic_rest_layer::Code;

/// Envoy's call, under which a verification is counted.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The headers with the method and the path of the original request. Traefik and Caddy send them by default, nginx if it is
/// configured to.
const METHOD: [&str; 2] = ["x-forwarded-method", "x-original-method"];
const PATH: [&str; 2] = ["x-forwarded-uri", "x-original-uri"];

/// Verifies requests, under every base path. With any method: nginx, Traefik and Caddy use GET by default, and the call
/// changes nothing.
#[derive(Clone)]
pub(super) struct Verify {
    checks: GrpcService,
    base_paths: Arc<[String]>,
}

impl Verify {
    /// Asks this service, behind the layers that every call passes; see [`VerifyService`].
    pub(super) fn new(checks: GrpcService, base_paths: &[String]) -> Self {
        let base_paths = base_paths.iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
        Self { checks, base_paths }
    }

    /// The project in the path of a verify request; `None` if it is another request. A project that is not text is empty, which
    /// names none.
    pub(super) fn project(&self, path: &str) -> Option<String> {
        let segment = self.base_paths.iter().find_map(|base| {
            path.strip_prefix(base.as_str())?.strip_prefix("/projects/")?.strip_suffix("/auth/verify")
        })?;
        let is_one = !segment.is_empty() && !segment.contains('/');
        is_one.then(|| percent_decode_str(segment).decode_utf8().unwrap_or_default().into_owned())
    }

    /// Answers a verify request.
    pub(super) async fn answer(&self, project: String, request: Request) -> Response {
        let is_head = request.method() == Method::HEAD;
        let mut response = verify(self.checks.clone(), project, request).await;
        if is_head {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

async fn verify(mut checks: GrpcService, project: String, request: Request) -> Response {
    let (Parts { headers, mut extensions, .. }, _) = request.into_parts();
    extensions.insert(Arc::new(proxied_request(project, &headers)));
    let mut call = http::Request::new(tonic::body::Body::empty());
    *call.method_mut() = Method::POST;
    *call.uri_mut() = Uri::from_static(CHECK);
    *call.extensions_mut() = extensions;
    let Ok(mut answered) = checks.call(call).await;
    let mut response = match answered.extensions_mut().remove::<Decision>() {
        Some(Ok(token)) => pass(&token),
        Some(Err(refusal)) => render(check::denied(refusal)),
        // Undecided. nginx treats any status but 2xx, 401 and 403 as an error, and every proxy lets only 2xx pass.
        None => answer(&Status::from_header_map(answered.headers()).unwrap_or_else(status::internal)),
    };
    for name in IDENTITY {
        let name = HeaderName::from_static(name);
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(""));
    }
    response
}

/// What is asked about the original request.
fn proxied_request(project: String, headers: &HeaderMap) -> ProxiedRequest {
    let credentials = headers.get_all(header::AUTHORIZATION).iter();
    let credentials = credentials.map(|value| std::str::from_utf8(value.as_bytes()).unwrap_or_default());
    let first = |names: [&str; 2]| {
        let value = names.iter().find_map(|name| headers.get(*name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    ProxiedRequest {
        project: Some(project),
        token: check::credential(credentials),
        method: first(METHOD),
        path: first(PATH),
    }
}

/// Lets the request pass, and tells the application whose it is.
fn pass(token: &VerifiedToken) -> Response {
    let mut response = Response::new(Body::empty());
    for (name, value) in check::identity(token) {
        let value = HeaderValue::try_from(value).expect("encoded");
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}

/// Answers verify requests as Envoy's call does, behind the same layers. Request and decision are in the extensions: between
/// two functions of one process, a message would be encoded only to be decoded again.
#[derive(Clone)]
pub(super) struct VerifyService(pub(super) Authorization);

impl Service<GrpcRequest> for VerifyService {
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<GrpcResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: GrpcRequest) -> Self::Future {
        let authorization = self.0.clone();
        let ip = request.extensions().get::<Origin>().and_then(|origin| origin.ip);
        let asked = request.extensions_mut().remove::<Arc<ProxiedRequest>>();
        Box::pin(async move {
            let Some(asked) = asked else { return Ok(status::internal().into_http()) };
            let decision = match authorization.decide(&asked, ip).await {
                Ok(decision) => decision,
                Err(status) => return Ok(status.into_http()),
            };
            let mut response = GrpcResponse::new(tonic::body::Body::empty());
            response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
            response.extensions_mut().insert(decision);
            Ok(response)
        })
    }
}

/// Renders Envoy's refusal as an HTTP response.
fn render(answer: CheckResponse) -> Response {
    let code = answer.status.unwrap_or_default().code;
    let (headers, body) = match answer.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => (denied.headers, Body::from(denied.body)),
        Some(HttpResponse::OkResponse(_)) | None => (vec![], Body::empty()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = Code::from_number(code).http_status();
    for envoy::HeaderValue { key, value, .. } in headers.into_iter().filter_map(|option| option.header) {
        let name = HeaderName::try_from(key).expect("we have written it");
        response.headers_mut().insert(name, HeaderValue::try_from(value).expect("encoded, or our own words"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::shared::SharedService;

    #[test]
    fn a_path_names_one_project() {
        let nobody = tower::service_fn(|_: GrpcRequest| async { Ok(GrpcResponse::new(tonic::body::Body::empty())) });
        let verify = Verify::new(SharedService::new(nobody), &["/".to_owned(), "/api/v1".to_owned()]);
        for (path, project) in [
            ("/projects/demo/auth/verify", Some("demo")),
            ("/api/v1/projects/demo/auth/verify", Some("demo")),
            ("/projects/a%2Fb%20/auth/verify", Some("a/b ")),
            ("/projects/%ff/auth/verify", Some("")),
            ("/projects//auth/verify", None),
            ("/projects/a/b/auth/verify", None),
            ("/projects/demo/auth/verify/", None),
            ("/projects/auth/verify", None),
            ("/api/v2/projects/demo/auth/verify", None),
            ("/auth/verify", None),
        ] {
            assert_eq!(verify.project(path).as_deref(), project, "{path}");
        }
    }
}
