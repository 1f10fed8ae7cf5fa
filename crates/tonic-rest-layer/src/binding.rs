//! The validated rules that requests are matched against.

use std::sync::Arc;

use http::uri::PathAndQuery;

use crate::bound_fields::BoundFields;
use crate::error::BuildError;
use crate::route::MethodPattern;
use crate::route::Router;
use crate::schema::FieldIndex;
use crate::schema::MessageId;
use crate::template::Variable;

/// The method and the rule that match a request. An extension of the request to the inner service and of the response, so that
/// metrics and logs can name the route without the values in its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchedRoute {
    /// `/package.Service/Method`.
    pub grpc_path: PathAndQuery,
    /// The path template of the rule, without the base path.
    pub template: Arc<str>,
}

/// One HTTP binding of one method.
#[derive(Debug)]
pub(crate) struct Binding {
    pub matched: MatchedRoute,
    pub method: MethodPattern,
    pub input: MessageId,
    pub output: MessageId,
    pub server_streaming: bool,
    pub variables: Vec<BoundVariable>,
    pub template_length: usize,
    pub body: Body,
    /// Whether the body is a `google.api.HttpBody`: any content type, any bytes.
    pub raw_body: bool,
    /// The field of the reply that becomes the response body. `None` for the whole reply.
    pub response_body: Option<FieldIndex>,
    /// Whether the response body is a `google.api.HttpBody`, not JSON.
    pub raw_reply: bool,
    /// The fields that the query must not set: those of the path, and with `body: "field"` that field.
    pub query_bound: BoundFields,
    /// The fields that the body must not change: those of the path.
    pub body_bound: BoundFields,
}

/// A variable and the path to its field. Each index refers to the message of the field before it.
#[derive(Debug)]
pub(crate) struct BoundVariable {
    pub variable: Variable,
    pub path: Vec<FieldIndex>,
}

/// The `body` of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// None: the query sets all fields that the path does not bind.
    None,
    /// `"*"`: the body sets all fields that the path does not bind.
    Whole,
    /// One field. The query sets the others.
    Field(FieldIndex),
}

/// All rules of a descriptor set.
#[derive(Debug)]
pub(crate) struct Rules {
    pub router: Router,
    /// By route number of the router: the index of the binding, and the number of segments of the base path.
    pub routes: Vec<(usize, usize)>,
    pub bindings: Vec<Binding>,
    /// The errors of the rules that were skipped.
    pub skipped: Vec<BuildError>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { router: Router::new(), routes: Vec::new(), bindings: Vec::new(), skipped: Vec::new() }
    }
}
