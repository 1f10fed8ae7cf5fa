//! Verifies requests for nginx, Traefik and Caddy: an adapter to Envoy's call. The project is in the path, which the proxy's
//! configuration sets; the result is a status and headers.

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::Request;
use axum::extract::State;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use axum::routing::any;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;
use http::request::Parts;
use tonic::metadata::MetadataMap;

use super::answer::answer;
use super::grpc::GrpcService;
use crate::pb::envoy;
use crate::pb::envoy::CheckRequest;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::attribute_context::HttpRequest;
use crate::pb::envoy::authorization_client::AuthorizationClient;
use crate::pb::envoy::check_response::HttpResponse;
use crate::rpc::IDENTITY;
use tonic_rest_layer::Code;

/// The headers with the method and the path of the original request. Traefik and Caddy send them by default, nginx if it is
/// configured to.
const METHOD: [&str; 2] = ["x-forwarded-method", "x-original-method"];
const PATH: [&str; 2] = ["x-forwarded-uri", "x-original-uri"];

/// The routes, under every base path. With any method: nginx, Traefik and Caddy use GET by default, and the call changes
/// nothing.
pub(super) fn routes(grpc: GrpcService, base_paths: &[String]) -> Router {
    let under = |router: Router<AuthorizationClient<GrpcService>>, base: &String| {
        let base = base.trim_end_matches('/');
        router.route(&format!("{base}/projects/{{project_id}}/auth/verify"), any(verify))
    };
    base_paths.iter().fold(Router::new(), under).with_state(AuthorizationClient::new(grpc))
}

async fn verify(
    State(mut proxies): State<AuthorizationClient<GrpcService>>,
    project: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let (Parts { headers, extensions, .. }, _) = request.into_parts();
    // A path that is not text names no project.
    let project = project.map(|Path(project)| project).unwrap_or_default();
    let call = tonic::Request::from_parts(MetadataMap::new(), extensions, check_request(project, &headers));
    let mut response = match proxies.check(call).await {
        Ok(answer) => render(answer.into_inner()),
        // Undecided. nginx treats any status but 2xx, 401 and 403 as an error, and every proxy lets only 2xx pass.
        Err(status) => answer(&status),
    };
    for name in IDENTITY {
        let name = HeaderName::from_static(name);
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(""));
    }
    response
}

/// Envoy's call for the original request.
fn check_request(project: String, headers: &HeaderMap) -> CheckRequest {
    let credentials = headers.get_all(header::AUTHORIZATION).iter().map(|value| envoy::HeaderValue {
        key: header::AUTHORIZATION.as_str().to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..Default::default()
    });
    let first = |names: [&str; 2]| {
        let value = names.iter().find_map(|name| headers.get(*name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    let http = HttpRequest {
        method: first(METHOD),
        path: first(PATH),
        header_map: Some(envoy::HeaderMap { headers: credentials.collect() }),
        ..Default::default()
    };
    let attributes = envoy::AttributeContext {
        request: Some(envoy::attribute_context::Request { http: Some(http) }),
        context_extensions: [("project_id".to_owned(), project)].into(),
    };
    CheckRequest { attributes: Some(attributes) }
}

/// Renders Envoy's response as an HTTP response.
fn render(answer: CheckResponse) -> Response {
    let code = answer.status.unwrap_or_default().code;
    let (headers, body) = match answer.http_response {
        Some(HttpResponse::OkResponse(ok)) => (ok.headers, Body::empty()),
        Some(HttpResponse::DeniedResponse(denied)) => (denied.headers, Body::from(denied.body)),
        None => (vec![], Body::empty()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = Code::from_number(code).http_status();
    for envoy::HeaderValue { key, value, .. } in headers.into_iter().filter_map(|option| option.header) {
        let name = HeaderName::try_from(key).expect("we have written it");
        response.headers_mut().insert(name, HeaderValue::try_from(value).expect("encoded, or our own words"));
    }
    response
}
