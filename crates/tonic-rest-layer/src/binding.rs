//! Rules that have been checked: what each request is matched to.

use std::sync::Arc;

use http::uri::PathAndQuery;

use crate::bound_fields::BoundFields;
use crate::error::BuildError;
use crate::route::MethodPattern;
use crate::route::Router;
use crate::schema::FieldIndex;
use crate::schema::MessageId;
use crate::template::Variable;

/// Which method and which rule a request was matched to. An extension of the request that the service gets and of the
/// response that the client gets, so that metrics and logs can name the route without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchedRoute {
    /// `/package.Service/Method`.
    pub grpc_path: PathAndQuery,
    /// The path template as the rule has it, without a base path.
    pub template: Arc<str>,
}

/// One way to call one method.
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
    /// The response field to answer with, instead of the whole response.
    pub response_body: Option<FieldIndex>,
    /// Whether the answer is a `google.api.HttpBody`, and so no JSON.
    pub raw_reply: bool,
    /// What the path says, and with `body: "field"` that field too: for the query.
    pub query_bound: BoundFields,
    /// What the path says: for the body.
    pub body_bound: BoundFields,
}

/// A variable and the field it fills: each index is of the message that the one before it leads to.
#[derive(Debug)]
pub(crate) struct BoundVariable {
    pub variable: Variable,
    pub path: Vec<FieldIndex>,
}

/// What a rule's `body` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// None: everything that the path does not bind is the query's.
    None,
    /// `"*"`: everything that the path does not bind.
    Whole,
    /// One field; the rest is the query's.
    Field(FieldIndex),
}

/// Everything that the rules of a descriptor set come to.
#[derive(Debug)]
pub(crate) struct Rules {
    pub router: Router,
    /// What the router's numbers mean: a binding, and how many segments its base path has.
    pub routes: Vec<(usize, usize)>,
    pub bindings: Vec<Binding>,
    /// The faults of the rules that were left out.
    pub skipped: Vec<BuildError>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { router: Router::new(), routes: Vec::new(), bindings: Vec::new(), skipped: Vec::new() }
    }
}
