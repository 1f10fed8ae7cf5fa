//! What nginx, Traefik and Caddy ask about every request: an adapter to what Envoy asks. The project is in the path, which is
//! the proxy's own to write; the answer is a status and headers.

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

/// How the proxies name the method of the request that they ask about, and its path. Traefik and Caddy say it of
/// themselves, nginx where its configuration does.
const METHOD: [&str; 2] = ["x-forwarded-method", "x-original-method"];
const PATH: [&str; 2] = ["x-forwarded-uri", "x-original-uri"];

/// The routes, under every base path. With any method: nginx, Traefik and Caddy ask with GET unless told otherwise, and
/// nothing is changed by asking.
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
    let call = tonic::Request::from_parts(MetadataMap::new(), extensions, asked(project, &headers));
    let mut response = match proxies.check(call).await {
        Ok(answer) => told(answer.into_inner()),
        // Undecided. Any status but 2xx, 401 and 403 is a failure to nginx, and only 2xx lets a request pass anywhere.
        Err(status) => answer(&status),
    };
    for name in IDENTITY {
        let name = HeaderName::from_static(name);
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(""));
    }
    response
}

/// The request that the proxy holds back.
fn asked(project: String, headers: &HeaderMap) -> CheckRequest {
    let credentials = headers.get_all(header::AUTHORIZATION).iter().map(|value| envoy::HeaderValue {
        key: header::AUTHORIZATION.as_str().to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..Default::default()
    });
    let said = |names: [&str; 2]| {
        let value = names.iter().find_map(|name| headers.get(*name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    let http = HttpRequest {
        method: said(METHOD),
        path: said(PATH),
        header_map: Some(envoy::HeaderMap { headers: credentials.collect() }),
        ..Default::default()
    };
    let attributes = envoy::AttributeContext {
        request: Some(envoy::attribute_context::Request { http: Some(http) }),
        context_extensions: [("project_id".to_owned(), project)].into(),
    };
    CheckRequest { attributes: Some(attributes) }
}

/// The answer, as HTTP has it.
fn told(answer: CheckResponse) -> Response {
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
