//! What a service may change of its answers.

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use http::response;
use serde_json::Value;

use crate::binding::MatchedRoute;
use crate::status::RestError;

/// Makes the body of an error.
pub(crate) type ErrorBodyHook = dyn Fn(&RestError) -> Value + Send + Sync;

/// Changes the head of a successful answer.
pub(crate) type SuccessHook = dyn Fn(&MatchedRoute, &mut response::Parts) + Send + Sync;

/// What a service may change of its answers.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    pub error_body: Option<Hook<ErrorBodyHook>>,
    pub error_content_type: HeaderValue,
    /// The `WWW-Authenticate` of a 401, where the service sends none.
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
    /// The body of an error: `google.rpc.Status` as JSON, unless the service makes its own. One line.
    pub(crate) fn error_body(&self, error: &RestError) -> Vec<u8> {
        match &self.error_body {
            Some(Hook(body)) => body(error).to_string().into_bytes(),
            None => error.body(),
        }
    }
}

/// A function of the service's.
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
