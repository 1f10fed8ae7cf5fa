//! Verifies requests for nginx, Traefik and Caddy: an adapter to Envoy's call. The project is in the path, which the proxy's
//! configuration sets; the result is a status and headers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::Extensions;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::header;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use tonic::Status;

use super::admission::EarlyRefusal;
use super::answer::answer;
use super::guardrail::GuardrailLayer;
use super::observe::ObserveLayer;
use crate::pb::envoy;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::check_response::HttpResponse;
use crate::rpc::Authorization;
use crate::rpc::check;
use crate::rpc::check::Decision;
use crate::rpc::check::IDENTITY;
use crate::rpc::check::ProxiedRequest;
use crate::telemetry::RequestClass;
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
///
/// Passes what a call of Envoy's passes, as plain functions: between two functions of one process, a message would be encoded
/// only to be decoded again.
pub(super) struct Verify {
    authorization: Authorization,
    observe: ObserveLayer,
    guardrail: GuardrailLayer,
    base_paths: Arc<[String]>,
}

impl Verify {
    pub(super) fn new(
        authorization: Authorization,
        observe: ObserveLayer,
        guardrail: GuardrailLayer,
        base_paths: &[String],
    ) -> Self {
        let base_paths = base_paths.iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
        Self { authorization, observe, guardrail, base_paths }
    }

    /// The project in the path of a verify request; `None` if it is another request. A project that is not text is empty, which
    /// names none.
    pub(super) fn project(&self, path: &str) -> Option<String> {
        project_in(&self.base_paths, path)
    }

    /// Answers a verify request.
    pub(super) async fn answer(&self, project: String, request: Request) -> Response {
        let (Parts { method, headers, extensions, .. }, _) = request.into_parts();
        let call = self.observe.begin(CHECK, &extensions);
        let decision = self.decide(proxied_request(project, &headers), &extensions).await;
        call.end(decision.as_ref().err());
        let mut response = match decision {
            Ok(Ok(token)) => pass(&token),
            Ok(Err(refusal)) => render(check::denied(refusal)),
            // Undecided. nginx treats any status but 2xx, 401 and 403 as an error, and every proxy lets only 2xx pass.
            Err(status) => answer(&status),
        };
        for name in IDENTITY {
            let name = HeaderName::from_static(name);
            response.headers_mut().entry(name).or_insert(HeaderValue::from_static(""));
        }
        if method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn decide(&self, asked: ProxiedRequest, extensions: &Extensions) -> Result<Decision, Status> {
        if let Some(status) = EarlyRefusal::of(extensions) {
            return Err(status);
        }
        let ip = extensions.get::<Origin>().and_then(|origin| origin.ip);
        let decided = || self.authorization.decide(&asked, ip);
        self.guardrail.begin(RequestClass::Verify, None, decided)?.finish().await?
    }
}

/// See [`Verify::project`]. A base path does not end with a slash.
fn project_in(base_paths: &[String], path: &str) -> Option<String> {
    let segment = base_paths
        .iter()
        .find_map(|base| path.strip_prefix(base.as_str())?.strip_prefix("/projects/")?.strip_suffix("/auth/verify"))?;
    let is_one = !segment.is_empty() && !segment.contains('/');
    is_one.then(|| percent_decode_str(segment).decode_utf8().unwrap_or_default().into_owned())
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
    // Room for these and for those that every response has.
    *response.headers_mut() = HeaderMap::with_capacity(12);
    for (name, value) in check::identity(token) {
        let value = HeaderValue::try_from(value).expect("encoded");
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
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

    #[test]
    fn a_path_names_one_project() {
        let base_paths = ["".to_owned(), "/api/v1".to_owned()];
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
            assert_eq!(project_in(&base_paths, path).as_deref(), project, "{path}");
        }
    }
}
