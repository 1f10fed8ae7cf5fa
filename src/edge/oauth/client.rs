//! Which client asks (RFC 6749 §2.3.1): by HTTP Basic, or in the form. Reads what it says, and believes none of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::HeaderValue;
use http::header;
use percent_encoding::percent_decode_str;

use super::failure::Failure;
use super::form::Form;
use crate::app::Client;
use crate::app::Standing;
use crate::id::ProjectId;
use crate::store::Role;
use crate::token::server_key::ServerKey;

/// The client that a request names.
pub(super) fn named(headers: &HeaderMap, form: &mut Form) -> Result<Client, Failure> {
    let (mut id, mut secret) = (form.take("client_id"), form.take("client_secret"));
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(credential) = credentials.next() {
        let (user, password) = basic(credential)?;
        // The id may be said again; a secret would be a second way, and so would be a second header.
        if credentials.next().is_some() || secret.is_some() || id.is_some_and(|id| id != user) {
            return Err(Failure::TWO_CLIENTS);
        }
        // §2.3.1: an empty secret is none.
        (id, secret) = (Some(user), Some(password).filter(|password| !password.is_empty()));
    }
    let id = id.ok_or(Failure::NO_CLIENT)?;
    let project = ProjectId::parse(&id).ok_or(Failure::INVALID_CLIENT)?;
    let Some(secret) = secret else { return Ok(Client { project, standing: Standing::Public, role: Role::Service }) };
    // A browser sends its origin, and a server key that is in a browser is everyone's.
    if headers.contains_key(header::ORIGIN) {
        return Err(Failure::IN_A_BROWSER);
    }
    let key = ServerKey::parse(&secret).ok_or(Failure::INVALID_CLIENT)?;
    Ok(Client { project, standing: Standing::Confidential(key), role: Role::Service })
}

/// The two halves of a Basic credential (RFC 7617 §2), each of which is form-encoded first (RFC 6749 §2.3.1).
fn basic(credential: &HeaderValue) -> Result<(String, String), Failure> {
    let text = credential.to_str().map_err(|_| Failure::OTHER_SCHEME)?;
    let encoded = match text.split_once(' ') {
        Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => encoded.trim_matches(' '),
        _ => return Err(Failure::OTHER_SCHEME),
    };
    let read = || {
        let pair = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        Some((decode(user)?, decode(password)?))
    };
    read().ok_or(Failure::INVALID_CLIENT)
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(&text.replace('+', " ")).decode_utf8().ok().map(Into::into)
}
