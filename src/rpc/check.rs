//! What a proxy asks about a request that it holds back: may it pass, and as whose? Envoy's external authorization, and the
//! meshes' that are built on it.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::Once;

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use tonic::Request;
use tonic::Response;

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
use sessiond_core::token::verifier::VerifiedToken;

/// The headers that tell the application who a request is from. All of them are always set, and empty where there is
/// nothing to say: what a client has written into them must not get through.
pub const IDENTITY: [&str; 4] = ["x-session-id", "x-user-id", "x-project-id", "x-impersonator-id"];

/// All but letters, digits and `-._~` (RFC 3986 §2.3): whoever decodes reads the same, `+` for a blank or not, and whoever
/// splits a header at commas finds none.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// As much of a proxied request's path as is logged, in bytes.
const LOGGED_BYTES_MAX: usize = 256;

/// Answers proxies.
#[derive(Clone)]
pub struct Authorization {
    app: App,
    /// Has it been said that a proxy names no project, and that one names none that there is? It would be with every request.
    said: Arc<[Once; 2]>,
}

impl Authorization {
    /// Answers by an app.
    pub fn new(app: App) -> Self {
        Self { app, said: Arc::new([Once::new(), Once::new()]) }
    }

    /// Asks about the token for the project that the proxy's configuration names.
    async fn verify(&self, named: Option<&str>, token: Option<&AccessToken>) -> Result<VerifiedToken, Error> {
        let project = named.and_then(ProjectId::parse).ok_or(Refusal::ProjectNotFound);
        let verified = match project {
            Ok(project) => self.app.verify(&project, token).await,
            Err(refusal) => Err(refusal.into()),
        };
        if matches!(verified, Err(Error::Refused(Refusal::ProjectNotFound))) {
            let [no_name, unknown] = &*self.said;
            match named {
                None => no_name.call_once(|| {
                    tracing::warn!(
                        "Envoy names no project: set `project_id` in ext_authz's context_extensions; said once"
                    );
                }),
                Some(named) => unknown.call_once(|| {
                    let project = &named[..named.floor_char_boundary(ProjectId::LENGTH_MAX)];
                    tracing::warn!(project, "a proxy asks for a project that there is not; said once");
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
        let AttributeContext { request, context_extensions } = request.into_inner().attributes.unwrap_or_default();
        let http = request.and_then(|request| request.http).unwrap_or_default();
        let verified =
            self.verify(context_extensions.get("project_id").map(String::as_str), token(&http).as_ref()).await;
        let (method, path) = (Legible(&http.method), Legible(&http.path));
        tracing::debug!(%method, %path, passes = verified.is_ok(), request_id = %telemetry::request_id(), "a proxy asked");
        match verified {
            Ok(token) => Ok(Response::new(passed(&token))),
            Err(Error::Refused(refusal)) if is_final(&refusal) => {
                // No error of the call, so nobody further out counts it.
                status::note(&self.app.metrics, refusal.reason(), ip);
                Ok(Response::new(denied(refusal)))
            }
            // Not known: how the proxy fails is in its own configuration.
            Err(failure) => Err(status::of(failure)),
        }
    }
}

/// The credential in `authorization` (RFC 6750 §2.1). More than one is one that cannot be read.
fn token(http: &HttpRequest) -> Option<AccessToken> {
    const NAME: &str = "authorization";
    let raw =
        http.header_map.iter().flat_map(|map| &map.headers).filter(|header| header.key.eq_ignore_ascii_case(NAME));
    let raw = raw.map(|header| match header.raw_value.is_empty() {
        true => header.value.as_str(),
        false => std::str::from_utf8(&header.raw_value).unwrap_or_default(),
    });
    let mut values = http.headers.get(NAME).map(String::as_str).into_iter().chain(raw);
    let value = values.next()?;
    let token = values.next().map_or_else(|| caller::bearer_token(value), |_| "");
    Some(AccessToken(token.to_owned()))
}

/// The request may pass, as the session's user.
fn passed(token: &VerifiedToken) -> CheckResponse {
    let session = token.session().to_string();
    let values = [&session, token.user().as_str(), token.project().as_str(), token.impersonator().unwrap_or_default()];
    let encoded = values.map(|value| utf8_percent_encode(value, ENCODED).to_string());
    let ok = OkHttpResponse {
        headers: IDENTITY.into_iter().zip(encoded).map(|(name, value)| set(name, value)).collect(),
        headers_to_remove: lookalikes().collect(),
    };
    CheckResponse { status: Some(tonic_types::Status::default()), http_response: Some(HttpResponse::OkResponse(ok)) }
}

/// The other spellings of the identity's headers. An application behind CGI, WSGI or the like is shown `x_user_id` under the
/// same name as `x-user-id`.
fn lookalikes() -> impl Iterator<Item = String> {
    IDENTITY.into_iter().flat_map(|name| {
        let [first, second, third] = name.splitn(3, '-').collect::<Vec<_>>().try_into().expect("three words each");
        ["__", "_-", "-_"].map(|between| {
            let (one, two) = between.split_at(1);
            format!("{first}{one}{second}{two}{third}")
        })
    })
}

/// Whether the request may not pass, whoever is asked and however often.
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

/// The request may not pass. Whose fault that is decides on the status: the client's, or the proxy's configuration.
fn denied(refusal: Refusal) -> CheckResponse {
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

/// What a client has sent, as far as it may stand in a log: without the query, where secrets are; cut off, and without
/// control characters.
struct Legible<'a>(&'a str);

impl fmt::Display for Legible<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.split(['?', '#']).next().unwrap_or_default();
        text[..text.floor_char_boundary(LOGGED_BYTES_MAX)].chars().try_for_each(|letter| match letter.is_control() {
            true => write!(formatter, "{}", letter.escape_default()),
            false => formatter.write_char(letter),
        })
    }
}

/// A header that takes the place of all of its name.
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
    fn what_is_logged_of_a_request_is_bounded_plain_and_without_its_query() {
        let legible = |text: &str| Legible(text).to_string();
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
