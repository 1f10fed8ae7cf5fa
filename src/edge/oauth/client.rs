//! Reads the client's credentials (RFC 6749 §2.3.1): from HTTP Basic, or the form; for introspection, also a server key as a
//! bearer token (RFC 7662 §2.1). A client that sends no secret authenticates with its client certificate, if it has one (RFC 8705
//! §2.1). Parses them, but verifies none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::HeaderValue;
use http::header;
use percent_encoding::percent_decode_str;

use super::error::OAuthError;
use super::form::Form;
use crate::app::Client;
use crate::app::ClientAuth;
use crate::app::ClientCertificate;
use crate::store::Role;
use sessiond_core::id::ProjectId;
use sessiond_core::token::server_key::ServerKey;

/// The scheme of a client's credential in `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// HTTP Basic (RFC 7617).
    Basic,
    /// RFC 6750.
    Bearer,
    /// An unsupported one.
    Other,
}

/// The scheme of a request; `None` without `Authorization`.
pub(super) fn scheme(headers: &HeaderMap) -> Option<Scheme> {
    let credential = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
    let scheme = credential.split(' ').next().unwrap_or_default();
    Some(match scheme {
        _ if scheme.eq_ignore_ascii_case("basic") => Scheme::Basic,
        _ if scheme.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
        _ => Scheme::Other,
    })
}

/// The client that a request names, whose key must have at least this role. `certificate` is that of its connection.
pub(super) fn named(
    headers: &HeaderMap,
    certificate: Option<&ClientCertificate>,
    form: &mut Form,
    role: Role,
) -> Result<Client, OAuthError> {
    let (mut id, mut secret) = (form.take("client_id"), form.take("client_secret"));
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(credential) = credentials.next() {
        let (user, password) = basic(credential)?;
        // The id may be repeated in the form; a secret or a second header would be a second way to authenticate.
        if credentials.next().is_some() || secret.is_some() || id.is_some_and(|id| id != user) {
            return Err(OAuthError::TWO_CLIENTS);
        }
        // §2.3.1: an empty secret counts as none.
        (id, secret) = (Some(user), Some(password).filter(|password| !password.is_empty()));
    }
    let id = id.ok_or(OAuthError::NO_CLIENT)?;
    let project = ProjectId::parse(&id).ok_or(OAuthError::INVALID_CLIENT)?;
    let Some(secret) = secret else {
        let auth = certificate.map_or(ClientAuth::Public, |certificate| ClientAuth::Certificate(certificate.clone()));
        return Ok(Client { project, auth, role });
    };
    not_in_a_browser(headers)?;
    let key = ServerKey::parse(&secret).ok_or(OAuthError::INVALID_CLIENT)?;
    Ok(Client { project, auth: ClientAuth::Confidential(key), role })
}

/// A client that authenticates, in any of the ways: its key, or `None` if its certificate stands in for one; and the client if it is
/// named. The key itself determines the project, and must have at least this role.
pub(super) fn confidential(
    headers: &HeaderMap,
    certificate: Option<&ClientCertificate>,
    form: &mut Form,
    role: Role,
) -> Result<(Option<Client>, Option<ServerKey>), OAuthError> {
    if scheme(headers) != Some(Scheme::Bearer) {
        let client = named(headers, certificate, form, role)?;
        let key = match &client.auth {
            ClientAuth::Confidential(key) => Some(key.clone()),
            ClientAuth::Certificate(_) => None,
            // RFC 7662 §2.1: the endpoint needs authentication, or anyone could try tokens until one is valid.
            ClientAuth::Public | ClientAuth::Unchecked => return Err(OAuthError::NO_CLIENT),
        };
        return Ok((Some(client), key));
    }
    let (id, secret) = (form.take("client_id"), form.take("client_secret"));
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(credential), None, None) = (credentials.next(), credentials.next(), secret) else {
        return Err(OAuthError::TWO_CLIENTS);
    };
    not_in_a_browser(headers)?;
    let token =
        credential.to_str().ok().and_then(|text| text.split_once(' ')).map(|(_, token)| token.trim_matches(' '));
    let key = token.and_then(ServerKey::parse).ok_or(OAuthError::INVALID_CLIENT)?;
    let project = id.map(|id| ProjectId::parse(&id).ok_or(OAuthError::INVALID_CLIENT)).transpose()?;
    let client = project.map(|project| Client { project, auth: ClientAuth::Confidential(key.clone()), role });
    Ok((client, Some(key)))
}

/// A browser sends its origin, and a server key in a browser is public.
fn not_in_a_browser(headers: &HeaderMap) -> Result<(), OAuthError> {
    if headers.contains_key(header::ORIGIN) { Err(OAuthError::IN_A_BROWSER) } else { Ok(()) }
}

/// The two halves of a Basic credential (RFC 7617 §2), each of which is form-encoded first (RFC 6749 §2.3.1).
fn basic(credential: &HeaderValue) -> Result<(String, String), OAuthError> {
    let text = credential.to_str().map_err(|_| OAuthError::OTHER_SCHEME)?;
    let encoded = match text.split_once(' ') {
        Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => encoded.trim_matches(' '),
        _ => return Err(OAuthError::OTHER_SCHEME),
    };
    let read = || {
        let pair = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        Some((decode(user)?, decode(password)?))
    };
    read().ok_or(OAuthError::INVALID_CLIENT)
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(&text.replace('+', " ")).decode_utf8().ok().map(Into::into)
}
