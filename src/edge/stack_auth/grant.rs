//! The refresh-token grant (RFC 6749 §6), from a form or from JSON. The SDKs send it through an OAuth library, without any of
//! their own headers, and expect Stack Auth's errors.

use axum::body::Body;
use http::HeaderMap;
use http::header;
use serde::Deserialize;

use super::access_type::AccessType;
use super::caller::StackCaller;
use super::known_error::KnownError;
use crate::edge::body;
use crate::edge::body::BodyLimits;
use sessiond_core::id::ProjectId;
use sessiond_core::token::server_key;

/// A grant request. Has no `Debug`, because it holds secrets.
pub(super) struct TokenRequest {
    refresh_token: String,
    client_id: String,
    client_secret: String,
}

/// The known parameters; others are ignored (RFC 6749 §3.2).
#[derive(Default, Deserialize)]
struct Parameters {
    grant_type: Option<String>,
    refresh_token: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

impl TokenRequest {
    /// Reads a request's body.
    pub(super) async fn read(headers: &HeaderMap, body: Body, limits: BodyLimits) -> Result<Self, KnownError> {
        let parse: fn(&[u8]) -> Result<Parameters, KnownError> = if body::is_a(headers, body::FORM) {
            form
        } else if body::is_a(headers, body::JSON) {
            json
        } else {
            return Err(KnownError::schema("the body must be a form or JSON, and say which"));
        };
        let read = body::read(body, limits).await.map_err(|unread| KnownError::unread(&unread))?;
        let parameters = parse(&read)?;
        let there = |name: &str, value: Option<String>| {
            let value = value.filter(|value| !value.is_empty());
            value.ok_or_else(|| KnownError::schema(format!("{name} must be there")))
        };
        if there("grant_type", parameters.grant_type)? != "refresh_token" {
            return Err(KnownError::schema("grant_type must be refresh_token"));
        }
        Ok(Self {
            refresh_token: there("refresh_token", parameters.refresh_token)?,
            client_id: there("client_id", parameters.client_id)?,
            client_secret: parameters.client_secret.unwrap_or_default(),
        })
    }

    /// The caller: a client, whose secret is a publishable key or a placeholder and is not checked. But a server key must not come
    /// from a browser.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Result<StackCaller<'_>, KnownError> {
        if headers.contains_key(header::ORIGIN) && self.client_secret.starts_with(server_key::PREFIX) {
            return Err(KnownError::key_in_browser());
        }
        Ok(StackCaller {
            access_type: AccessType::Client,
            project: ProjectId::parse(&self.client_id).ok_or_else(KnownError::no_refresh_token)?,
            access_token: None,
            refresh_token: Some(&self.refresh_token),
            key: None,
        })
    }
}

fn form(body: &[u8]) -> Result<Parameters, KnownError> {
    let mut parameters = Parameters::default();
    for (name, value) in form_urlencoded::parse(body) {
        let place = match &*name {
            "grant_type" => &mut parameters.grant_type,
            "refresh_token" => &mut parameters.refresh_token,
            "client_id" => &mut parameters.client_id,
            "client_secret" => &mut parameters.client_secret,
            _ => continue,
        };
        if place.replace(value.into_owned()).is_some() {
            return Err(KnownError::schema(format!("{name} must be there once")));
        }
    }
    Ok(parameters)
}

fn json(body: &[u8]) -> Result<Parameters, KnownError> {
    // The parser's error is not returned: it might quote secrets.
    serde_json::from_slice(body).map_err(|_| KnownError::schema("the body must be an object of texts"))
}
