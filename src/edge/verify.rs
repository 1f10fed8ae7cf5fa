//! Verifies requests for nginx, Traefik and Caddy: an adapter to Envoy's call. The project is in the path, which the proxy's
//! configuration sets; the result is a status and headers.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::Extensions;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use tonic::Status;

use super::admission::EarlyRefusal;
use super::answer::answer;
use super::guardrail::GuardrailLayer;
use super::observe::ObserveLayer;
use crate::cookies::CSRF_HEADER;
use crate::cookies::FetchHeaders;
use crate::cookies::SetCookies;
use crate::cookies::needs_same_origin;
use crate::forwarded::ForMany;
use crate::forwarded::TrustedPeer;
use crate::pb::envoy;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::check_response::HttpResponse;
use crate::rpc::Authorization;
use crate::rpc::check;
use crate::rpc::check::CookiePass;
use crate::rpc::check::Decision;
use crate::rpc::check::IDENTITY;
use crate::rpc::check::Pass;
use crate::rpc::check::ProxiedRequest;
use crate::rpc::check::StepUpText;
use crate::telemetry::RequestClass;
use sessiond_core::session::Origin;
use tonic_rest_layer::Code;

/// Envoy's call, under which a verification is counted.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The headers with the method and the path of the original request. Traefik and Caddy send them by default, nginx if it is
/// configured to.
const METHOD: [&str; 2] = ["x-forwarded-method", "x-original-method"];
const PATH: [&str; 2] = ["x-forwarded-uri", "x-original-uri"];

/// The request's cookies without ours.
const OTHER_COOKIES: HeaderName = HeaderName::from_static("x-forwarded-cookie");

/// The new cookies, one each.
const SET_ACCESS: HeaderName = HeaderName::from_static("x-set-cookie-access");
const SET_REFRESH: HeaderName = HeaderName::from_static("x-set-cookie-refresh");

/// Verifies requests, under every base path. With any method: nginx, Traefik and Caddy use GET by default, and the call
/// changes nothing but the tokens of a session that is refreshed in place.
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
        let (Parts { method, uri, headers, extensions, .. }, _) = request.into_parts();
        let call = self.observe.begin(CHECK, &extensions);
        let VerifyQuery { login, mut keeps_status, step_up } = VerifyQuery::read(uri.query());
        let mut asked = proxied_request(Some(project), login, &headers, &extensions);
        asked.step_up = step_up;
        // The same query may be the client's own, which the proxy has passed on: a client must neither name the login page, nor
        // have a page read its new cookies.
        if asked.path.split_once('?').is_some_and(|(_, query)| Some(query) == uri.query()) {
            (asked.login, keeps_status) = (None, false);
        }
        let decision = self.decide(asked, &extensions).await;
        call.end(decision.as_ref().err());
        let response = match decision {
            Ok(Ok(passed)) => pass(&passed),
            Ok(Err(denial)) => {
                let redirects = denial.location.is_some() && !keeps_status;
                // For a proxy that keeps the status: no other may pass these on, because pages can read them.
                let set = denial.set.clone().filter(|_| keeps_status);
                let mut response = render(check::denied(denial));
                if redirects {
                    *response.status_mut() = StatusCode::FOUND;
                }
                if let Some(set) = set {
                    set_one_by_one(response.headers_mut(), &set);
                }
                response
            }
            // Undecided. nginx treats any status but 2xx, 401 and 403 as an error, and every proxy lets only 2xx pass.
            Err(status) => answer(&status),
        };
        complete(response, &method)
    }

    async fn decide(&self, asked: ProxiedRequest<'_>, extensions: &Extensions) -> Result<Decision, Status> {
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

/// What the proxy's configuration says in the query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct VerifyQuery {
    /// `login`: the login page for pages that are not signed in.
    login: Option<String>,
    /// `login_status=401`: for a proxy that passes on no redirect, the answer is a 401 with a `Location`.
    keeps_status: bool,
    /// `acr_values` and `max_age`: the authentication that is required.
    pub(super) step_up: StepUpText,
}

impl VerifyQuery {
    pub(super) fn read(query: Option<&str>) -> Self {
        let mut read = Self::default();
        let Some(query) = query else { return read };
        // A requirement that is there twice is empty, which is malformed: neither must get lost.
        let once = |slot: &mut Option<String>, value: Cow<'_, str>| {
            *slot = Some(if slot.is_some() { String::new() } else { value.into_owned() });
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "login" => read.login = Some(value.into_owned()),
                "login_status" => read.keeps_status = value == "401",
                "acr_values" => once(&mut read.step_up.acr_values, value),
                "max_age" => once(&mut read.step_up.max_age, value),
                _ => {}
            }
        }
        read
    }
}

/// What is asked about the original request. To look for headers is a good part of the work, so most are looked for only where
/// they count.
pub(super) fn proxied_request<'r>(
    project: Option<String>,
    login: Option<String>,
    headers: &'r HeaderMap,
    extensions: &Extensions,
) -> ProxiedRequest<'r> {
    let credentials = headers.get_all(header::AUTHORIZATION).iter();
    let credentials = credentials.map(|value| std::str::from_utf8(value.as_bytes()).unwrap_or_default());
    let first = |names: [&str; 2]| {
        let value = names.iter().find_map(|name| headers.get(*name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default()
    };
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?;
        Some(values.next().map_or_else(|| value.to_str().unwrap_or_default(), |_| ""))
    };
    let mut origin = extensions.get::<Origin>().cloned().unwrap_or_default();
    if extensions.get::<TrustedPeer>().is_none() || extensions.get::<ForMany>().is_some() {
        // The proxy's own, which is not where the session is used.
        origin.ip = None;
    }
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let fetch = || FetchHeaders {
        site: one("sec-fetch-site"),
        origin: one("origin"),
        host: one("x-forwarded-host").or_else(|| one("host")),
        has_csrf_header: headers.contains_key(CSRF_HEADER),
    };
    let has_cookies = !cookies.is_empty();
    let is_web_socket = has_cookies && check::WEB_SOCKET.iter().any(|name| headers.contains_key(*name));
    let method = first(METHOD);
    let needs_fetch = has_cookies && needs_same_origin(&method, is_web_socket);
    let page = |name| login.as_ref().and_then(|_| one(name));
    ProxiedRequest {
        project,
        token: check::credential(credentials),
        fetch: if needs_fetch { fetch() } else { FetchHeaders::default() },
        is_web_socket,
        cookies,
        fetch_mode: page("sec-fetch-mode"),
        accept: page("accept"),
        origin,
        login,
        step_up: StepUpText::default(),
        method,
        path: first(PATH),
    }
}

/// The answer to a request with this method. It has each header that tells whose a request is: one that is absent might leave the
/// client's own.
pub(super) fn complete(mut response: Response, method: &Method) -> Response {
    for name in IDENTITY {
        response.headers_mut().entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(""));
    }
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// Lets the request pass, and tells the application whose it is.
pub(super) fn pass(passed: &Pass) -> Response {
    let mut response = Response::new(Body::empty());
    // Room for these and for those that every response has.
    *response.headers_mut() = HeaderMap::with_capacity(16);
    for (name, value) in check::identity(&passed.token) {
        let value = HeaderValue::try_from(value).expect("encoded");
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    if let Some(cookies) = &passed.cookies {
        pass_cookies(response.headers_mut(), cookies);
    }
    response
}

/// The access token for the application, the request's other cookies, and after a refresh the new ones: twice, because some proxies
/// copy all headers of one name, and others only the first, or join them.
fn pass_cookies(headers: &mut HeaderMap, CookiePass { authorization, set, others }: &CookiePass) {
    headers.insert(header::AUTHORIZATION, secret(authorization));
    headers.insert(OTHER_COOKIES, secret(others));
    // Traefik copies headers only to those of the same name.
    headers.insert(header::COOKIE, secret(others));
    if let Some(set) = set {
        let [access, refresh] = set.values();
        headers.append(header::SET_COOKIE, secret(access));
        headers.append(header::SET_COOKIE, secret(refresh));
        set_one_by_one(headers, set);
    }
}

/// The new cookies in headers of their own.
fn set_one_by_one(headers: &mut HeaderMap, set: &SetCookies) {
    let [access, refresh] = set.values();
    headers.insert(SET_ACCESS, secret(access));
    headers.insert(SET_REFRESH, secret(refresh));
}

fn secret(text: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(text).expect("tokens and attributes are plain characters");
    value.set_sensitive(true);
    value
}

/// Renders Envoy's refusal as an HTTP response.
pub(super) fn render(answer: CheckResponse) -> Response {
    let code = answer.status.unwrap_or_default().code;
    let (headers, body) = match answer.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => (denied.headers, Body::from(denied.body)),
        Some(HttpResponse::OkResponse(_)) | None => (vec![], Body::empty()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = Code::from_number(code).http_status();
    for envoy::HeaderValue { key, value, .. } in headers.into_iter().filter_map(|option| option.header) {
        let name = HeaderName::try_from(key).expect("we have written it");
        // Only cookies are there twice.
        response.headers_mut().append(name, HeaderValue::try_from(value).expect("encoded, or our own words"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_names_the_login_page() {
        let login = |page: Option<&str>, keeps_status| {
            let login = page.map(str::to_owned);
            VerifyQuery { login, keeps_status, ..VerifyQuery::default() }
        };
        for (query, expected) in [
            (None, login(None, false)),
            (Some("login=/in"), login(Some("/in"), false)),
            (
                Some("login=https%3A%2F%2Fid.example.org%2Fin%3Fa%3Db&login_status=401"),
                login(Some("https://id.example.org/in?a=b"), true),
            ),
            (Some("login_status=302&x=y"), login(None, false)),
        ] {
            assert_eq!(VerifyQuery::read(query), expected, "{query:?}");
        }
    }

    #[test]
    fn the_query_names_the_required_authentication_once() {
        let step_up = |query| VerifyQuery::read(Some(query)).step_up;
        let text = |acr: Option<&str>, age: Option<&str>| StepUpText {
            acr_values: acr.map(str::to_owned),
            max_age: age.map(str::to_owned),
        };
        assert_eq!(step_up("acr_values=aal2+aal3&max_age=300"), text(Some("aal2 aal3"), Some("300")));
        assert_eq!(step_up("max_age="), text(None, Some("")));
        assert_eq!(step_up("max_age=300&max_age=1&acr_values=a&acr_values=b"), text(Some(""), Some("")));
        assert!(step_up("max_age=300&max_age=300").parse().is_err());
    }

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
