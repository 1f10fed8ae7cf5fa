//! Authorizes requests for proxies: Envoy's external authorization, which service meshes also use.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Once;

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use super::Reply;
use super::caller;
use super::status;
use crate::app::AccessToken;
use crate::app::App;
use crate::app::Error;
use crate::pb::envoy::AttributeContext;
use crate::pb::envoy::CheckRequest;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::DeniedHttpResponse;
use crate::pb::envoy::HeaderValue;
use crate::pb::envoy::HeaderValueOption;
use crate::pb::envoy::HttpStatus;
use crate::pb::envoy::OkHttpResponse;
use crate::pb::envoy::attribute_context::HttpRequest;
use crate::pb::envoy::authorization_server;
use crate::pb::envoy::check_response::HttpResponse;
use crate::pb::envoy::header_value_option::HeaderAppendAction;
use crate::telemetry;
use sessiond_core::id::ProjectId;
use sessiond_core::reason;
use sessiond_core::session::Refusal;
use sessiond_core::token::verified::VerifiedToken;

/// The headers that tell the application who a request is from. All of them are always set, if need be to an empty value, so
/// that a client's own values do not get through.
pub const IDENTITY: [&str; 4] = ["x-session-id", "x-user-id", "x-project-id", "x-impersonator-id"];

/// All but letters, digits and `-._~` (RFC 3986 §2.3): every decoder reads the same, whether or not it takes `+` for a space,
/// and a header split at commas stays whole.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How much of a proxied request's path is logged, in bytes.
const LOGGED_BYTES_MAX: usize = 256;

/// A request that a proxy asks about.
pub struct ProxiedRequest {
    /// The project that the proxy's configuration names.
    pub project: Option<String>,
    /// The request's credential.
    pub token: Option<AccessToken>,
    /// Its method, for the log.
    pub method: String,
    /// Its path, for the log.
    pub path: String,
}

/// Whose request it is, or why it must not pass.
pub type Decision = Result<VerifiedToken, Refusal>;

/// Answers Envoy's authorization requests.
#[derive(Clone)]
pub struct Authorization {
    app: App,
    /// Whether a missing and an unknown project were logged: each is logged once, because every request would repeat it.
    logged: Arc<[Once; 2]>,
}

impl Authorization {
    /// Answers with an app.
    pub fn new(app: App) -> Self {
        Self { app, logged: Arc::new([Once::new(), Once::new()]) }
    }

    /// Decides about a request. A refusal is final: a retry, here or on another replica, would be refused too.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be decided now.
    pub async fn decide(&self, asked: &ProxiedRequest, ip: Option<IpAddr>) -> Result<Decision, Status> {
        let verified = self.verify(asked.project.as_deref(), asked.token.as_ref()).await;
        let (method, path) = (Loggable(&asked.method), Loggable(&asked.path));
        tracing::debug!(%method, %path, passes = verified.is_ok(), request_id = %telemetry::request_id(), "verified a request for a proxy");
        match verified {
            Ok(token) => Ok(Ok(token)),
            Err(Error::Refused(refusal)) if is_final(&refusal) => {
                // Not an error of the call, so the outer layers do not count it.
                status::note(&self.app.metrics, refusal.reason(), ip);
                telemetry::request::note_reason(refusal.reason().name());
                Ok(Err(refusal))
            }
            Err(failure) => Err(status::of(failure)),
        }
    }

    /// Verifies the token for the project that the proxy's configuration names.
    async fn verify(&self, named: Option<&str>, token: Option<&AccessToken>) -> Result<VerifiedToken, Error> {
        let project = named.and_then(ProjectId::parse).ok_or(Refusal::ProjectNotFound);
        let verified = match project {
            Ok(project) => self.app.verify(&project, token).await,
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
}

#[tonic::async_trait]
impl authorization_server::Authorization for Authorization {
    async fn check(&self, request: Request<CheckRequest>) -> Reply<CheckResponse> {
        let ip = caller::origin(&request).ip;
        let AttributeContext { request, mut context_extensions } = request.into_inner().attributes.unwrap_or_default();
        let http = request.and_then(|request| request.http).unwrap_or_default();
        let (project, token) = (context_extensions.remove("project_id"), token(&http));
        let asked = ProxiedRequest { project, token, method: http.method, path: http.path };
        // Undecided: the proxy's configuration says what it does on failure.
        let decision = self.decide(&asked, ip).await?;
        Ok(Response::new(decision.map_or_else(denied, |token| allowed(&token))))
    }
}

/// The credential in a request's `authorization` headers (RFC 6750 §2.1). More than one value counts as unreadable.
pub fn credential<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<AccessToken> {
    let mut values = values.into_iter();
    let value = values.next()?;
    let token = values.next().map_or_else(|| caller::bearer_token(value), |_| "");
    Some(AccessToken(token.to_owned()))
}

fn token(http: &HttpRequest) -> Option<AccessToken> {
    const NAME: &str = "authorization";
    let raw =
        http.header_map.iter().flat_map(|map| &map.headers).filter(|header| header.key.eq_ignore_ascii_case(NAME));
    let raw = raw.map(|header| match header.raw_value.is_empty() {
        true => header.value.as_str(),
        false => std::str::from_utf8(&header.raw_value).unwrap_or_default(),
    });
    credential(http.headers.get(NAME).map(String::as_str).into_iter().chain(raw))
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

/// Allows the request, and identifies the session's user.
fn allowed(token: &VerifiedToken) -> CheckResponse {
    static LOOKALIKES: LazyLock<Vec<String>> = LazyLock::new(|| lookalikes().collect());
    let ok = OkHttpResponse {
        headers: identity(token).into_iter().map(|(name, value)| set(name, value)).collect(),
        headers_to_remove: LOOKALIKES.clone(),
    };
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
    )
}

/// Denies the request: 401 if the client is at fault, 500 if the proxy's configuration is.
pub fn denied(refusal: Refusal) -> CheckResponse {
    let (code, challenge) = match matches!(refusal, Refusal::ProjectNotFound) {
        true => (500, None),
        false => (401, status::challenge(refusal.reason())),
    };
    let status = status::refused(refusal);
    let headers = [("content-type", "application/json".to_owned()), ("cache-control", "no-store".to_owned())];
    let headers = headers.into_iter().chain(challenge.map(|challenge| ("www-authenticate", challenge)));
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code }),
        headers: headers.map(|(name, value)| set(name, value)).collect(),
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

/// A header that replaces all of its name.
fn set(name: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, raw_value: vec![] }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
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
