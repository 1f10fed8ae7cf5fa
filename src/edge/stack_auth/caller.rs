//! Reads the caller from the headers: its access type, its project and its credentials. Parses them, but verifies none.

use http::HeaderMap;
use http::header;

use super::access_type::AccessType;
use super::headers::StackHeaders;
use super::known_error::KnownError;
use crate::app::Client;
use crate::app::ClientAuth;
use sessiond_core::id::ProjectId;
use sessiond_core::token::server_key;
use sessiond_core::token::server_key::ServerKey;

const SERVER_KEY: &str = "secret-server-key";
const ADMIN_KEY: &str = "super-secret-admin-key";

/// The headers of keys. The first is not a secret and may have any value, but counts as a key.
const KEYS: [&str; 3] = ["publishable-client-key", SERVER_KEY, ADMIN_KEY];

/// The caller. Has no `Debug`, because it holds secrets.
pub(super) struct StackCaller<'a> {
    /// What it calls as.
    pub(super) access_type: AccessType,
    /// The project that it calls for.
    pub(super) project: ProjectId,
    /// The user's access token. Never a server key, which would be another caller.
    pub(super) access_token: Option<&'a str>,
    /// The user's refresh token.
    pub(super) refresh_token: Option<&'a str>,
    /// The key of a service. A client has none: the access type says which credentials count.
    pub(super) key: Option<ServerKey>,
}

impl<'a> StackCaller<'a> {
    /// Reads the caller.
    ///
    /// # Errors
    ///
    /// Fails if a header is missing or malformed, or a key comes from a browser.
    pub(super) fn read(headers: &HeaderMap, stack_headers: &StackHeaders<'a>) -> Result<Self, KnownError> {
        // For every access type: a key in a browser is public.
        if headers.contains_key(header::ORIGIN)
            && [SERVER_KEY, ADMIN_KEY].iter().any(|key| stack_headers.get(key).is_some())
        {
            return Err(KnownError::key_in_browser());
        }
        let Some(access_type) = stack_headers.get("access-type") else {
            let has_key = KEYS.iter().any(|key| stack_headers.get(key).is_some());
            return Err(if has_key {
                KnownError::key_without_access_type()
            } else {
                KnownError::access_type_required()
            });
        };
        let access_type = AccessType::parse(access_type).ok_or_else(|| KnownError::invalid_access_type(access_type))?;
        let named =
            stack_headers.get("project-id").ok_or_else(|| KnownError::access_type_without_project(access_type))?;
        let project = ProjectId::parse(named).ok_or_else(|| KnownError::no_such_project(named))?;
        let key = match access_type {
            AccessType::Client => None,
            AccessType::Server => Some(SERVER_KEY),
            AccessType::Admin => Some(ADMIN_KEY),
        };
        let key = key.map(|name| {
            let text = stack_headers.get(name).ok_or_else(|| KnownError::key_required(access_type))?;
            ServerKey::parse(text).ok_or_else(|| KnownError::invalid_key(access_type, named))
        });
        let is_a_key = |token: &str| token.trim_start().starts_with(server_key::PREFIX);
        Ok(Self {
            access_type,
            project,
            access_token: stack_headers.get("access-token").map(|token| if is_a_key(token) { "?" } else { token }),
            refresh_token: stack_headers.refresh_token(),
            key: key.transpose()?,
        })
    }

    /// The client for a call with a user's credential: confined to the project, with the key to be verified.
    pub(super) fn client(&self) -> Client {
        let auth = self.key.clone().map_or(ClientAuth::Unchecked, ClientAuth::Confidential);
        Client { project: self.project.clone(), auth, role: self.access_type.role() }
    }

    /// The client for a call with the key as its credential, which is verified anyway.
    pub(super) fn named(&self) -> Client {
        Client { project: self.project.clone(), auth: ClientAuth::Unchecked, role: self.access_type.role() }
    }
}
