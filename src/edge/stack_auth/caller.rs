//! Who asks, as the headers say: as what, for which project, and with which credentials. Believes none of it.

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

/// Every key there is. The first is no secret, and any will do; it counts as a key all the same.
const KEYS: [&str; 3] = ["publishable-client-key", SERVER_KEY, ADMIN_KEY];

/// Who asks. Has no `Debug`: there are secrets in it.
pub(super) struct StackCaller<'a> {
    /// As what.
    pub(super) access_type: AccessType,
    /// For which project.
    pub(super) project: ProjectId,
    /// The user's access token. Never the text of a server key, which would be somebody else.
    pub(super) access_token: Option<&'a str>,
    /// The user's refresh token.
    pub(super) refresh_token: Option<&'a str>,
    /// The key of a service. A client has none: the access type says which credentials count.
    pub(super) key: Option<ServerKey>,
}

impl<'a> StackCaller<'a> {
    /// Reads who asks.
    ///
    /// # Errors
    ///
    /// What is missing, malformed or in a browser.
    pub(super) fn read(headers: &HeaderMap, said: &StackHeaders<'a>) -> Result<Self, KnownError> {
        // Whatever the request is sent as: a key that is in a browser is everyone's.
        if headers.contains_key(header::ORIGIN) && [SERVER_KEY, ADMIN_KEY].iter().any(|key| said.get(key).is_some()) {
            return Err(KnownError::key_in_browser());
        }
        let Some(access_type) = said.get("access-type") else {
            let has_key = KEYS.iter().any(|key| said.get(key).is_some());
            return Err(if has_key {
                KnownError::key_without_access_type()
            } else {
                KnownError::access_type_required()
            });
        };
        let access_type = AccessType::parse(access_type).ok_or_else(|| KnownError::invalid_access_type(access_type))?;
        let named = said.get("project-id").ok_or_else(|| KnownError::access_type_without_project(access_type))?;
        let project = ProjectId::parse(named).ok_or_else(|| KnownError::no_such_project(named))?;
        let key = match access_type {
            AccessType::Client => None,
            AccessType::Server => Some(SERVER_KEY),
            AccessType::Admin => Some(ADMIN_KEY),
        };
        let key = key.map(|name| {
            let text = said.get(name).ok_or_else(|| KnownError::key_required(access_type))?;
            ServerKey::parse(text).ok_or_else(|| KnownError::invalid_key(access_type, named))
        });
        let is_a_key = |token: &str| token.trim_start().starts_with(server_key::PREFIX);
        Ok(Self {
            access_type,
            project,
            access_token: said.get("access-token").map(|token| if is_a_key(token) { "?" } else { token }),
            refresh_token: said.refresh_token(),
            key: key.transpose()?,
        })
    }

    /// What the caller is to the RPCs when it is not the key that asks: confined to the project, with the key to be looked at.
    pub(super) fn client(&self) -> Client {
        let auth = self.key.clone().map_or(ClientAuth::Unchecked, ClientAuth::Confidential);
        Client { project: self.project.clone(), auth, role: self.access_type.role() }
    }

    /// The same when it is the key that asks, and is looked at anyway.
    pub(super) fn named(&self) -> Client {
        Client { project: self.project.clone(), auth: ClientAuth::Unchecked, role: self.access_type.role() }
    }
}
