//! Who asks, as the metadata says. Reads credentials and believes none of them.

use tonic::Extensions;
use tonic::Request;
use tonic::metadata::Ascii;
use tonic::metadata::MetadataMap;
use tonic::metadata::MetadataValue;

use crate::app::AccessToken;
use crate::app::Caller;
use crate::app::Client;
use crate::app::TokenHolder;
use crate::pb::RefreshSessionRequest;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::token::refresh::RefreshToken;
use sessiond_core::token::server_key;
use sessiond_core::token::server_key::ServerKey;

const AUTHORIZATION: &str = "authorization";

/// Where a refresh token may be, besides a request's body.
const REFRESH_TOKEN: &str = "x-refresh-token";

/// The most tokens that one sign-out looks at.
const TOKENS_MAX: usize = 4;

/// Everything that a sign-out may end a session by. Bad company does not spoil a genuine token: each is looked at by itself.
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
        return Err(Refusal::invalid(AUTHORIZATION, "must not come with more than four tokens in all"));
    }
    Ok(TokenHolder { access, refresh: refresh.into_iter().map(RefreshToken::parse).collect(), server_key })
}

/// Where a request comes from, as the edge has made it out.
pub(super) fn origin<T>(request: &Request<T>) -> Origin {
    request.extensions().get().cloned().unwrap_or_default()
}

/// The client on whose behalf the edge asks. Not in the metadata, where anyone could name one.
pub(super) fn client(extensions: &Extensions) -> Option<Client> {
    extensions.get().cloned()
}

/// The one caller of a method that takes a user or a service. Nobody is refused here, before the request is looked at:
/// whoever shows no credential is told so, and not what is wrong with the rest.
pub(super) fn only(metadata: &MetadataMap) -> Result<Caller, Refusal> {
    match (bearer(metadata)?, refresh_tokens(metadata).is_empty()) {
        (Caller::Nobody, true) => Err(Refusal::CredentialsMissing),
        (Caller::Nobody, false) => Err(Refusal::InsufficientAccessType),
        (caller, true) => Ok(caller),
        (_, false) => Err(mixture()),
    }
}

/// The one refresh token of a method that takes nothing else; `None` when it has not the form of one.
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

/// What `authorization` holds (RFC 6750 §2.1).
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
    // A browser sends its origin, and a server key that is in a browser is everyone's.
    if metadata.contains_key("origin") {
        return Err(Refusal::ServerKeyInBrowser);
    }
    Ok(ServerKey::parse(token).map_or(Caller::MalformedServerKey, Caller::Service))
}

/// The token of a bearer credential. Another scheme, or a value that is not text, is a credential all the same: one that we
/// cannot read.
pub(super) fn bearer_token(value: &str) -> &str {
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_matches(' '),
        _ => "",
    }
}

fn text(value: &MetadataValue<Ascii>) -> &str {
    value.to_str().unwrap_or_default()
}

/// The refresh tokens in the metadata, each once. An empty one counts as none; one that is not text, as a malformed one.
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
