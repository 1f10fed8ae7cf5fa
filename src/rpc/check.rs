//! Authorizes requests for proxies: Envoy's external authorization, which service meshes also use.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Once;

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use secrecy::ExposeSecret as _;
use tonic::Code;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use super::Reply;
use super::caller;
use super::status;
use crate::app::AccessToken;
use crate::app::App;
use crate::app::Error;
use crate::app::Renewed;
use crate::cookies;
use crate::cookies::FetchHeaders;
use crate::cookies::Lifetime;
use crate::cookies::RequestCookies;
use crate::cookies::SetCookies;
use crate::forwarded::Trust;
use crate::forwarded::TrustedPeer;
use crate::pb::envoy::AttributeContext;
use crate::pb::envoy::CheckRequest;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::DeniedHttpResponse;
use crate::pb::envoy::HeaderValue;
use crate::pb::envoy::HeaderValueOption;
use crate::pb::envoy::HttpStatus;
use crate::pb::envoy::OkHttpResponse;
use crate::pb::envoy::attribute_context::HttpRequest;
use crate::pb::envoy::attribute_context::Peer;
use crate::pb::envoy::authorization_server;
use crate::pb::envoy::check_response::HttpResponse;
use crate::pb::envoy::header_value_option::HeaderAppendAction;
use crate::telemetry;
use sessiond_core::id::ProjectId;
use sessiond_core::reason;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::origin;
use sessiond_core::session::policy::InvalidStepUp;
use sessiond_core::session::policy::StepUp;
use sessiond_core::token::verified::VerifiedToken;

/// The headers that tell the application who a request is from. All of them are always set, if need be to an empty value, so
/// that a client's own values do not get through.
pub const IDENTITY: [&str; 4] = ["x-session-id", "x-user-id", "x-project-id", "x-impersonator-id"];

/// All but letters, digits and `-._~` (RFC 3986 §2.3): every decoder reads the same, whether or not it takes `+` for a space,
/// and a header split at commas stays whole.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// For a response with new cookies.
const UNCACHED: &str = "private, no-store";

/// How much of a proxied request's path is logged, in bytes.
const LOGGED_BYTES_MAX: usize = 256;

/// A request that a proxy asks about.
#[derive(Default)]
pub struct ProxiedRequest<'r> {
    /// The project that the proxy's configuration names.
    pub project: Option<String>,
    /// The request's credential.
    pub token: Option<AccessToken>,
    /// Its `Cookie` headers. They count only without a credential, and only if the project uses cookies.
    pub cookies: Vec<&'r [u8]>,
    /// By which it is decided whether the cookies may be used. Read only if there are any, and the request needs to come from the
    /// same origin.
    pub fetch: FetchHeaders<'r>,
    /// Whether it is a WebSocket handshake. Read only if there are cookies.
    pub is_web_socket: bool,
    /// `Sec-Fetch-Mode`. Read only if a login page is named.
    pub fetch_mode: Option<&'r str>,
    /// `Accept`. Read only if a login page is named.
    pub accept: Option<&'r str>,
    /// Where it comes from, for a refresh.
    pub origin: Origin,
    /// The login page that the proxy's configuration names.
    pub login: Option<String>,
    /// The authentication that the proxy's configuration requires.
    pub step_up: StepUpText,
    /// Its method. Empty if the proxy does not say, which counts as one that changes something.
    pub method: Cow<'r, str>,
    /// Its path and query.
    pub path: Cow<'r, str>,
}

/// The authentication that a proxy's configuration requires, by the parameters of RFC 9470 §3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepUpText {
    /// `acr_values`: the accepted values of `acr`, separated by spaces.
    pub acr_values: Option<String>,
    /// `max_age`: the greatest age of the authentication, in seconds.
    pub max_age: Option<String>,
}

impl StepUpText {
    /// The parameters among those that Envoy's configuration sets.
    pub fn take(context_extensions: &mut HashMap<String, String>) -> Self {
        let [acr_values, max_age] = ["acr_values", "max_age"].map(|name| context_extensions.remove(name));
        Self { acr_values, max_age }
    }

    /// Parses the parameters.
    ///
    /// # Errors
    ///
    /// [`Refusal::Schema`]: the proxy's configuration is at fault. No request passes.
    pub fn parse(&self) -> Result<StepUp, Refusal> {
        StepUp::parse(self.acr_values.as_deref(), self.max_age.as_deref()).map_err(|invalid| match invalid {
            InvalidStepUp::Acr => Refusal::invalid(
                "acr_values",
                "must be 1 to 8 values of 1 to 255 printable ASCII characters, separated by single spaces",
            ),
            InvalidStepUp::MaxAge => Refusal::invalid("max_age", "must be 1 to 31708800 seconds"),
        })
    }
}

/// Whether a request may pass.
pub type Decision = Result<Pass, Denial>;

/// A request that passes.
pub struct Pass {
    /// Whose it is.
    pub token: VerifiedToken,
    /// What concerns cookies; `None` if the project uses none.
    pub cookies: Option<CookiePass>,
}

/// What a project that uses cookies passes on.
pub struct CookiePass {
    /// The access token as a credential, for the application.
    pub authorization: String,
    /// The new cookies, if the session was refreshed.
    pub set: Option<SetCookies>,
    /// The request's other cookies.
    pub others: String,
}

/// A request that must not pass.
pub struct Denial {
    /// Why.
    pub refusal: Refusal,
    /// Where to send its user, if it loads a page and the proxy's configuration names a login page.
    pub location: Option<String>,
    /// The new cookies, if the session was refreshed and the request is denied all the same. Without them the browser would
    /// present its old refresh token again.
    pub set: Option<SetCookies>,
}

/// The headers of a WebSocket handshake that proxies pass on: `Upgrade` is for one connection only.
pub const WEB_SOCKET: [&str; 2] = ["sec-websocket-version", "sec-websocket-key"];

/// Answers Envoy's authorization requests.
#[derive(Clone)]
pub struct Authorization {
    app: App,
    trust: Trust,
    /// Whether a missing and an unknown project were logged: each is logged once, because every request would repeat it.
    logged: Arc<[Once; 2]>,
}

impl Authorization {
    /// Answers with an app. `trust` says whose word about a client's address counts.
    pub fn new(app: App, trust: Trust) -> Self {
        Self { app, trust, logged: Arc::new([Once::new(), Once::new()]) }
    }

    /// The address of the client of Envoy's request: the one that Envoy was called from, or if that is a trusted proxy's, the one
    /// that the proxy names.
    fn client_address(&self, source: Option<Peer>, http: &HttpRequest) -> Option<IpAddr> {
        let text = source?.address?.socket_address?.address;
        Some(self.trust.client(text.parse().ok()?, values(http, self.trust.header())))
    }

    /// Decides about a request. A refusal is final: a retry, here or on another replica, would be refused too.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be decided now.
    pub async fn decide(&self, asked: &ProxiedRequest<'_>, ip: Option<IpAddr>) -> Result<Decision, Status> {
        let verified = self.verify_as_required(asked).await;
        let (method, path) = (Loggable(&asked.method), Loggable(&asked.path));
        tracing::debug!(%method, %path, passes = verified.is_ok(), request_id = %telemetry::request_id(), "verified a request for a proxy");
        match verified {
            Ok(pass) => Ok(Ok(pass)),
            Err((Error::Refused(refusal), set)) if is_final(&refusal) => {
                // Not an error of the call, so the outer layers do not count it.
                status::note(&self.app.metrics, refusal.reason(), ip);
                telemetry::request::note_reason(refusal.reason().name());
                let location = login_location(asked, &refusal);
                Ok(Err(Denial { refusal, location, set }))
            }
            Err((failure, _)) => Err(status::of(failure)),
        }
    }

    /// Verifies the request, and that its user has authenticated as required. Fails with the new cookies, if the session was
    /// refreshed.
    async fn verify_as_required(&self, asked: &ProxiedRequest<'_>) -> Result<Pass, (Error, Option<SetCookies>)> {
        let required = asked.step_up.parse().map_err(|refusal| (refusal.into(), None))?;
        let pass = self.verify(asked).await.map_err(|error| (error, None))?;
        match self.app.check_authentication(&pass.token, &required) {
            Ok(()) => Ok(pass),
            Err(refusal) => Err((refusal.into(), pass.cookies.and_then(|cookies| cookies.set))),
        }
    }

    /// Verifies the request for the project that the proxy's configuration names.
    async fn verify(&self, asked: &ProxiedRequest<'_>) -> Result<Pass, Error> {
        let named = asked.project.as_deref();
        let project = named.and_then(ProjectId::parse).ok_or(Refusal::ProjectNotFound);
        let verified = match project {
            Ok(project) => self.verify_token(&project, asked).await,
            Err(refusal) => Err(refusal.into()),
        };
        if matches!(verified, Err(Error::Refused(Refusal::ProjectNotFound))) {
            let [missing, unknown] = &*self.logged;
            match named {
                None => missing.call_once(|| {
                    tracing::warn!(
                        "no project in an Envoy request: set `project_id` in ext_authz's context_extensions (logged once)"
                    );
                }),
                Some(named) => unknown.call_once(|| {
                    let project = &named[..named.floor_char_boundary(ProjectId::LENGTH_MAX)];
                    tracing::warn!(project, "unknown project in a verify request (logged once)");
                }),
            }
        }
        verified
    }

    async fn verify_token(&self, project: &ProjectId, asked: &ProxiedRequest<'_>) -> Result<Pass, Error> {
        let Some(policy) = self.app.cookie_policy(project).await? else {
            let token = self.app.verify(project, asked.token.as_ref()).await?;
            return Ok(Pass { token, cookies: None });
        };
        let others = || cookies::without_ours(asked.cookies.iter().copied(), project, &policy.scope);
        if let Some(AccessToken(text)) = &asked.token {
            let token = self.app.verify(project, asked.token.as_ref()).await?;
            let cookies = CookiePass { authorization: format!("Bearer {text}"), set: None, others: others() };
            return Ok(Pass { token, cookies: Some(cookies) });
        }
        let found = RequestCookies::read(asked.cookies.iter().copied(), project, &policy.scope)
            .map_err(|_| Refusal::invalid("cookie", "must be at most 16384 bytes in all"))?;
        if !found.is_empty()
            && cookies::needs_same_origin(&asked.method, asked.is_web_socket)
            && !asked.fetch.is_same_origin()
        {
            return Err(Refusal::CrossOriginRequest.into());
        }
        if found.is_ambiguous() {
            return Err(Refusal::AmbiguousCookie.into());
        }
        let access = found.access.first().map(|value| AccessToken(value.clone().into_owned()));
        let refresh = found.refresh.first().map(|value| Lifetime::of(value));
        let presented = refresh.map(|(token, _)| token);
        let verified = self.app.verify_or_renew(project, access.as_ref(), presented, &asked.origin);
        let Renewed { token, grant } = verified.await?;
        let (text, set) = match (&grant, refresh, access) {
            (Some(grant), Some((_, lifetime)), _) => {
                let set = self.app.set_cookies(grant, &policy, lifetime)?;
                (grant.access_token.expose_secret().to_owned(), Some(set))
            }
            (_, _, access) => (access.map(|AccessToken(text)| text).unwrap_or_default(), None),
        };
        let cookies = CookiePass { authorization: format!("Bearer {text}"), set, others: others() };
        Ok(Pass { token, cookies: Some(cookies) })
    }
}

/// Where to send the user of a request that is not signed in. A request that was refused for another reason would be refused after
/// a sign-in too; and a login page that finds the user signed in might send one who has to authenticate again straight back.
fn login_location(asked: &ProxiedRequest<'_>, refusal: &Refusal) -> Option<String> {
    let needs_step_up = matches!(refusal, Refusal::InsufficientUserAuthentication(_));
    let is_signed_out = refusal.reason().code() == Code::Unauthenticated && !needs_step_up;
    let login = asked.login.as_deref().filter(|_| is_signed_out)?;
    let is_page = cookies::is_page(&asked.method, asked.fetch_mode, asked.accept);
    is_page.then(|| cookies::login_location(login, &asked.path)).flatten()
}

#[tonic::async_trait]
impl authorization_server::Authorization for Authorization {
    async fn check(&self, request: Request<CheckRequest>) -> Reply<CheckResponse> {
        let ip = caller::origin(&request).ip;
        let is_trusted = request.extensions().get::<TrustedPeer>().is_some();
        let AttributeContext { source, request, mut context_extensions } =
            request.into_inner().attributes.unwrap_or_default();
        let http = request.and_then(|request| request.http).unwrap_or_default();
        let client = is_trusted.then(|| self.client_address(source, &http)).flatten();
        let (project, login) = (context_extensions.remove("project_id"), context_extensions.remove("login"));
        let step_up = StepUpText::take(&mut context_extensions);
        let keeps_cookies = context_extensions.get("cookies").is_some_and(|cookies| cookies == "keep");
        let asked = ProxiedRequest { project, login, step_up, ..proxied_request(&http, client) };
        // Undecided: the proxy's configuration says what it does on failure.
        let decision = self.decide(&asked, ip).await?;
        Ok(Response::new(decision.map_or_else(denied, |pass| allowed(&pass, keeps_cookies))))
    }
}

/// The credential in a request's `authorization` headers (RFC 6750 §2.1). More than one value counts as unreadable.
pub fn credential<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<AccessToken> {
    let mut values = values.into_iter();
    let value = values.next()?;
    let token = values.next().map_or_else(|| caller::bearer_token(value), |_| "");
    Some(AccessToken(token.to_owned()))
}

/// What is asked about Envoy's request, from a client at this address. Without one, a refresh leaves the session's as it is:
/// another proxy's would look like a session that has moved.
pub fn proxied_request(http: &HttpRequest, ip: Option<IpAddr>) -> ProxiedRequest<'_> {
    let one = |name| {
        let mut values = values(http, name);
        let value = values.next()?;
        Some(if values.next().is_some() { "" } else { std::str::from_utf8(value).unwrap_or_default() })
    };
    let host = (!http.host.is_empty()).then_some(http.host.as_str());
    let user_agent = one("user-agent").and_then(origin::user_agent);
    ProxiedRequest {
        project: None,
        token: credential(values(http, "authorization").map(|value| std::str::from_utf8(value).unwrap_or_default())),
        cookies: values(http, "cookie").collect(),
        fetch: FetchHeaders {
            site: one("sec-fetch-site"),
            origin: one("origin"),
            host,
            has_csrf_header: one(cookies::CSRF_HEADER).is_some(),
        },
        is_web_socket: WEB_SOCKET.iter().any(|name| one(name).is_some()),
        fetch_mode: one("sec-fetch-mode"),
        accept: one("accept"),
        origin: Origin { ip, user_agent },
        login: None,
        step_up: StepUpText::default(),
        method: Cow::from(&http.method),
        path: Cow::from(&http.path),
    }
}

/// The values of a header: text, or bytes where Envoy is configured to send those.
fn values<'r>(http: &'r HttpRequest, name: &'static str) -> impl DoubleEndedIterator<Item = &'r [u8]> {
    let text = http.headers.get(name).map(|value| value.as_bytes());
    let raw = http.header_map.iter().flat_map(|map| &map.headers);
    let raw = raw.filter(move |header| header.key.eq_ignore_ascii_case(name));
    let raw = raw.map(|header| if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value });
    text.into_iter().chain(raw)
}

/// The headers that tell the application who a request with this token is from.
pub fn identity(token: &VerifiedToken) -> [(&'static str, String); 4] {
    let session = token.session().to_string();
    let values = [&session, token.user().as_str(), token.project().as_str(), token.impersonator().unwrap_or_default()];
    let mut values = values.into_iter();
    IDENTITY.map(|name| {
        let value = values.next().expect("as many as there are names");
        (name, Cow::from(utf8_percent_encode(value, ENCODED)).into_owned())
    })
}

/// Allows the request, and identifies the session's user. `keeps_cookies` passes on the project's cookies too.
pub fn allowed(pass: &Pass, keeps_cookies: bool) -> CheckResponse {
    static LOOKALIKES: LazyLock<Vec<String>> = LazyLock::new(|| lookalikes().collect());
    let mut headers: Vec<_> = identity(&pass.token).into_iter().map(|(name, value)| set(name, value)).collect();
    let (mut headers_to_remove, mut response_headers_to_add) = (LOOKALIKES.clone(), vec![]);
    if let Some(CookiePass { authorization, set: new, others }) = &pass.cookies {
        headers.push(set("authorization", authorization.clone()));
        match (keeps_cookies, others.is_empty()) {
            (true, _) => {}
            (false, true) => headers_to_remove.push("cookie".to_owned()),
            (false, false) => headers.push(set("cookie", others.clone())),
        }
        response_headers_to_add = new.iter().flat_map(set_cookies).collect();
        if new.is_some() {
            // Whatever the application says about its response: a cache must not give these cookies to others.
            response_headers_to_add.push(set("cache-control", UNCACHED.to_owned()));
        }
    }
    let ok = OkHttpResponse { headers, headers_to_remove, response_headers_to_add };
    CheckResponse { status: Some(tonic_types::Status::default()), http_response: Some(HttpResponse::OkResponse(ok)) }
}

/// Other spellings of the identity headers. An application behind CGI, WSGI or similar sees `x_user_id` and `x-user-id` under
/// the same name.
fn lookalikes() -> impl Iterator<Item = String> {
    IDENTITY.into_iter().flat_map(|name| {
        let [first, second, third] = name.splitn(3, '-').collect::<Vec<_>>().try_into().expect("three words each");
        ["__", "_-", "-_"].map(|between| {
            let (one, two) = between.split_at(1);
            format!("{first}{one}{second}{two}{third}")
        })
    })
}

/// Whether the refusal is final: a retry, here or on another replica, would be refused too.
const fn is_final(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::ProjectNotFound
            | Refusal::CredentialsMissing
            | Refusal::UnparsableAccessToken
            | Refusal::AccessTokenExpired { .. }
            | Refusal::WrongProject { .. }
            | Refusal::SessionRevoked
            | Refusal::AccessTokenSuperseded
            | Refusal::InsufficientUserAuthentication(_)
            | Refusal::CrossOriginRequest
            | Refusal::AmbiguousCookie
            | Refusal::Schema(_)
    )
}

/// Denies the request: 302 if its user is sent to a login page, 401, 403 or 400 if the client is at fault, 500 or 400 if the
/// proxy's configuration is.
pub fn denied(Denial { refusal, location, set: new }: Denial) -> CheckResponse {
    let code = match (&refusal, &location) {
        (_, Some(_)) => 302,
        (Refusal::ProjectNotFound, None) => 500,
        (Refusal::CrossOriginRequest | Refusal::AmbiguousCookie, None) => 403,
        (Refusal::Schema(_), None) => 400,
        (_, None) => 401,
    };
    let challenge = status::challenge(&refusal);
    let status = status::refused(refusal);
    let headers = [("content-type", "application/json".to_owned()), ("cache-control", "no-store".to_owned())];
    let headers = headers.into_iter().chain(challenge.map(|challenge| ("www-authenticate", challenge)));
    let headers = headers.chain(location.map(|location| ("location", location)));
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code }),
        headers: headers.map(|(name, value)| set(name, value)).chain(new.iter().flat_map(set_cookies)).collect(),
        body: reason::json(&status).to_string(),
    };
    CheckResponse {
        status: Some(tonic_types::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: vec![],
        }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }
}

/// A client's text, made safe for the log: without the query, which may hold secrets, truncated, and with control characters
/// escaped.
struct Loggable<'a>(&'a str);

impl fmt::Display for Loggable<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.split(['?', '#']).next().unwrap_or_default();
        text[..text.floor_char_boundary(LOGGED_BYTES_MAX)].chars().try_for_each(|letter| match letter.is_control() {
            true => write!(formatter, "{}", letter.escape_default()),
            false => formatter.write_char(letter),
        })
    }
}

fn set_cookies(new: &SetCookies) -> [HeaderValueOption; 2] {
    new.values().map(|value| add("set-cookie", value.to_owned()))
}

/// A header that replaces all of its name.
fn set(name: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, raw_value: vec![] }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}

/// A header beside others of its name.
fn add(name: &str, value: String) -> HeaderValueOption {
    let append_action = HeaderAppendAction::AppendIfExistsOrAdd.into();
    HeaderValueOption { append_action, ..set(name, value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_path_is_bounded_escaped_and_without_its_query() {
        let legible = |text: &str| Loggable(text).to_string();
        assert_eq!(legible("/a/b?token=secret#x"), "/a/b");
        assert_eq!(legible("/a#secret"), "/a");
        assert_eq!(legible("/a\nb\u{1b}[31m\u{85}ä"), r"/a\nb\u{1b}[31m\u{85}ä");
        assert_eq!(legible(&"ä".repeat(1_000)), "ä".repeat(128));
        assert_eq!(legible(&format!("a{}", "ä".repeat(1_000))).len(), 255, "no half letters");
        assert_eq!(legible(""), "");
    }

    #[test]
    fn every_other_spelling_of_a_name_is_a_lookalike() {
        let of_user: Vec<String> = lookalikes().filter(|name| name.contains("user")).collect();
        assert_eq!(of_user, ["x_user_id", "x_user-id", "x-user_id"]);
        assert_eq!(lookalikes().count(), 3 * IDENTITY.len());
        assert!(lookalikes().all(|name| !IDENTITY.contains(&name.as_str())), "what is set is not removed again");
    }
}
