//! The options that change responses.

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use http::response;
use serde_json::Value;

use crate::binding::MatchedRoute;
use crate::status::RestError;

/// Returns the body of an error.
pub(crate) type ErrorBodyHook = dyn Fn(&RestError) -> Value + Send + Sync;

/// Changes the head of a successful response.
pub(crate) type SuccessHook = dyn Fn(&MatchedRoute, &mut response::Parts) + Send + Sync;

#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    pub error_body: Option<Hook<ErrorBodyHook>>,
    pub error_content_type: HeaderValue,
    /// The `WWW-Authenticate` header of a 401, unless the service sends one.
    pub challenge: HeaderValue,
    pub success: Option<Hook<SuccessHook>>,
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks {
            error_body: None,
            error_content_type: HeaderValue::from_static("application/json"),
            challenge: HeaderValue::from_static("Bearer"),
            success: None,
        }
    }
}

impl Hooks {
    /// The body of an error, on one line: the result of the hook, or else `google.rpc.Status` as JSON.
    pub(crate) fn error_body(&self, error: &RestError) -> Vec<u8> {
        match &self.error_body {
            Some(Hook(body)) => body(error).to_string().into_bytes(),
            None => error.body(),
        }
    }
}

/// A function that the builder was given.
pub(crate) struct Hook<F: ?Sized>(pub Arc<F>);

impl<F: ?Sized> Clone for Hook<F> {
    fn clone(&self) -> Hook<F> {
        Hook(Arc::clone(&self.0))
    }
}

impl<F: ?Sized> fmt::Debug for Hook<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hook")
    }
}
