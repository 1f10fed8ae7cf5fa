//! Reads the caller's credentials from the metadata. Parses them, but verifies none.

use tonic::Extensions;
use tonic::Request;
use tonic::metadata::Ascii;
use tonic::metadata::MetadataMap;
use tonic::metadata::MetadataValue;

use crate::app::AccessToken;
use crate::app::Caller;
use crate::app::Client;
use crate::app::ClientCertificate;
use crate::app::TokenHolder;
use crate::pb::RefreshSessionRequest;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::token::refresh::RefreshToken;
use sessiond_core::token::server_key;
use sessiond_core::token::server_key::ServerKey;

const AUTHORIZATION: &str = "authorization";

/// The header of a refresh token, which may also be in the request's body.
const REFRESH_TOKEN: &str = "x-refresh-token";

/// The most tokens in one sign-out.
const TOKENS_MAX: usize = 4;

/// Whether a call has a credential other than a cookie, in its metadata.
pub(super) fn has_credential(metadata: &MetadataMap) -> bool {
    metadata.contains_key(AUTHORIZATION) || !refresh_tokens(metadata).is_empty()
}

/// The tokens of a sign-out. Each is checked on its own, so an invalid one does not affect a genuine one.
pub(super) fn token_holder(metadata: &MetadataMap) -> Result<TokenHolder, Refusal> {
    let refresh = refresh_tokens(metadata);
    let (mut access, mut server_key) = (vec![], false);
    for value in metadata.get_all(AUTHORIZATION) {
        match bearer_token(text(value)) {
            token if token.starts_with(server_key::PREFIX) => server_key = true,
            token => access.push(AccessToken(token.to_owned())),
        }
    }
    if access.len() + refresh.len() > TOKENS_MAX {
        return Err(Refusal::invalid(AUTHORIZATION, "must not come with more than four tokens in total"));
    }
    Ok(TokenHolder { access, refresh: refresh.into_iter().map(RefreshToken::parse).collect(), server_key })
}

/// Where a request comes from, as the edge determined it.
pub(super) fn origin<T>(request: &Request<T>) -> Origin {
    request.extensions().get().cloned().unwrap_or_default()
}

/// The client on whose behalf the edge calls. Not in the metadata, where anyone could name one.
pub(super) fn client(extensions: &Extensions) -> Option<Client> {
    extensions.get().cloned()
}

/// The caller of a method that accepts a user or a service. Fails here without a credential, before the request is checked,
/// so that an unauthenticated caller learns nothing else about its request.
///
/// A client certificate counts only without any other credential: it comes with every request on its connection, while a header is
/// what this request means to present.
pub(super) fn only<T>(request: &Request<T>) -> Result<Caller, Refusal> {
    let metadata = request.metadata();
    match (bearer(metadata)?, refresh_tokens(metadata).is_empty()) {
        (Caller::Nobody, true) => {
            let certificate = request.extensions().get::<ClientCertificate>();
            certificate.cloned().map(Caller::Certificate).ok_or(Refusal::CredentialsMissing)
        }
        (Caller::Nobody, false) => Err(Refusal::InsufficientAccessType),
        (caller, true) => Ok(caller),
        (_, false) => Err(mixture()),
    }
}

/// The refresh token of a method that accepts no other credential; `None` if it is malformed.
pub(super) fn refresh_token(
    metadata: &MetadataMap,
    message: RefreshSessionRequest,
) -> Result<Option<RefreshToken>, Refusal> {
    let mut tokens = refresh_tokens(metadata);
    let body = message.refresh_token.unwrap_or_default();
    if !body.is_empty() && !tokens.contains(&body.as_str()) {
        tokens.push(&body);
    }
    match (tokens.as_slice(), bearer(metadata)?) {
        ([token], Caller::Nobody) => Ok(RefreshToken::parse(token)),
        ([], Caller::Nobody) => Err(Refusal::CredentialsMissing),
        ([], _) => Err(Refusal::InsufficientAccessType),
        (_, Caller::Nobody) => Err(Refusal::invalid("refresh_token", "must be the same wherever it is sent")),
        (_, _) => Err(mixture()),
    }
}

fn mixture() -> Refusal {
    Refusal::invalid(AUTHORIZATION, "must not be sent together with a refresh token")
}

/// The credential in `authorization` (RFC 6750 §2.1).
fn bearer(metadata: &MetadataMap) -> Result<Caller, Refusal> {
    let mut values = metadata.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next(), values.next()) else {
        return Err(Refusal::invalid(AUTHORIZATION, "must be sent once"));
    };
    let Some(value) = value else { return Ok(Caller::Nobody) };
    let token = bearer_token(text(value));
    if !token.starts_with(server_key::PREFIX) {
        return Ok(Caller::User(AccessToken(token.to_owned())));
    }
    // A browser sends its origin, and a server key in a browser is public.
    if metadata.contains_key("origin") {
        return Err(Refusal::ServerKeyInBrowser);
    }
    Ok(ServerKey::parse(token).map_or(Caller::MalformedServerKey, Caller::Service))
}

/// The token of a bearer credential; empty for another scheme or a value that is not text, which then counts as an
/// unreadable credential rather than as none.
pub(super) fn bearer_token(value: &str) -> &str {
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_matches(' '),
        _ => "",
    }
}

fn text(value: &MetadataValue<Ascii>) -> &str {
    value.to_str().unwrap_or_default()
}

/// The distinct refresh tokens in the metadata. An empty one counts as none, one that is not text as a malformed one.
fn refresh_tokens(metadata: &MetadataMap) -> Vec<&str> {
    let mut tokens = vec![];
    for value in metadata.get_all(REFRESH_TOKEN) {
        let token = value.to_str().unwrap_or("?");
        if !token.is_empty() && !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    tokens
}
