//! The error responses of an operation, by HTTP status, with the reasons of each.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::comments::Comments;
use super::schemas::Direction;
use super::schemas::Schemas;
use super::schemas::reference;
use crate::descriptors;
use crate::error::BuildErrors;
use crate::schema::PrintStyle;
use crate::schema::Schema;
use crate::status::Code;
use crate::status::Refusal;

/// The component for the body of errors.
const STATUS: &str = "google.rpc.Status";

/// The component for the body of errors that the service defines. No message has this name: identifiers have no hyphens.
const CUSTOM_BODY: &str = "error-body";

/// The details that the document describes, with their descriptions. Errors may have others.
const DETAILS: [(&str, &str); 3] = [
    (ERROR_INFO, "The machine-readable reason: `reason` is unique within `domain`, and `metadata` has further data."),
    ("google.rpc.BadRequest", "The invalid fields of the request, and what each must be."),
    ("google.rpc.RetryInfo", "How long to wait before a retry."),
];

/// The detail with the reason.
const ERROR_INFO: &str = "google.rpc.ErrorInfo";

/// A reason that a service sends in `google.rpc.ErrorInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReason {
    /// `ErrorInfo.reason`.
    pub name: String,
    /// The gRPC code of an error with this reason.
    pub code: Code,
    /// What it means, as one sentence.
    pub description: String,
}

impl ErrorReason {
    /// Creates a reason.
    pub fn new(name: impl Into<String>, code: Code, description: impl Into<String>) -> ErrorReason {
        ErrorReason { name: name.into(), code, description: description.into() }
    }
}

/// The body of each error.
#[derive(Debug, Clone)]
pub(super) struct ErrorBody {
    /// The schema of what the service's own function returns. `None` for `google.rpc.Status`.
    pub custom: Option<Value>,
    pub content_type: String,
}

impl Default for ErrorBody {
    fn default() -> ErrorBody {
        ErrorBody { custom: None, content_type: "application/json".to_owned() }
    }
}

impl ErrorBody {
    /// A reference to the schema.
    pub(super) fn schema(&self) -> Value {
        reference(if self.custom.is_some() { CUSTOM_BODY } else { STATUS })
    }

    /// What an error event contains, for descriptions.
    pub(super) fn noun(&self) -> &'static str {
        if self.custom.is_some() { "with the same JSON as an error response" } else { "a `google.rpc.Status`" }
    }

    /// The schemas of the body and, of a `google.rpc.Status`, of its details.
    ///
    /// # Errors
    ///
    /// Fails if the layer's own descriptors do not decode.
    pub(super) fn components(&self, style: PrintStyle) -> Result<BTreeMap<String, Value>, BuildErrors> {
        match &self.custom {
            Some(schema) => Ok(BTreeMap::from([(CUSTOM_BODY.to_owned(), schema.clone())])),
            None => status_components(style),
        }
    }
}

/// The errors that one operation can return, by status.
#[derive(Debug, Default)]
pub(super) struct Errors(BTreeMap<u16, StatusReasons>);

#[derive(Debug, Default)]
struct StatusReasons {
    /// The reasons, with their descriptions.
    by_name: BTreeMap<String, String>,
    /// Whether there are reasons of this operation only.
    own: bool,
}

/// OpenAPI responses that operations share, by name.
pub(super) type SharedResponses = BTreeMap<String, Value>;

impl Errors {
    /// Adds a reason of this operation only.
    pub(super) fn add(&mut self, reason: &ErrorReason) {
        self.insert(reason.code.http_status(), &reason.name, &reason.description).own = true;
    }

    /// Adds a reason of all operations.
    pub(super) fn add_common(&mut self, reason: &ErrorReason) {
        self.insert(reason.code.http_status(), &reason.name, &reason.description);
    }

    /// Adds an error of the layer itself.
    pub(super) fn add_refusal(&mut self, refusal: &Refusal) {
        let (_, status, reason) = refusal.row();
        let description = refusal.description();
        self.insert(status, reason, description);
    }

    fn insert(&mut self, status: StatusCode, reason: &str, description: &str) -> &mut StatusReasons {
        let reasons = self.0.entry(status.as_u16()).or_default();
        // The service's own description has precedence.
        reasons.by_name.entry(reason.to_owned()).or_insert_with(|| description.to_owned());
        reasons
    }

    /// The OpenAPI responses, by status. `exhaustive`: whether no other reasons occur.
    pub(super) fn responses(
        &self,
        headers: &Map<String, Value>,
        exhaustive: bool,
        body: &ErrorBody,
        shared: &mut SharedResponses,
    ) -> Map<String, Value> {
        let mut responses = Map::new();
        for (&status, reasons) in &self.0 {
            let whole = response(status, &reasons.by_name, headers, exhaustive, body);
            let name = title(status).replace([' ', '-'], "");
            let is_shared = !reasons.own && *shared.entry(name.clone()).or_insert_with(|| whole.clone()) == whole;
            let response = if is_shared { json!({"$ref": format!("#/components/responses/{name}")}) } else { whole };
            responses.insert(status.to_string(), response);
        }
        if !exhaustive {
            let content = json!({ (body.content_type.as_str()): {"schema": body.schema()} });
            let other = json!({"description": "Any other error.", "headers": headers, "content": content});
            responses.insert("default".to_owned(), other);
        }
        responses
    }
}

fn title(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

fn response(
    status: u16,
    reasons: &BTreeMap<String, String>,
    headers: &Map<String, Value>,
    exhaustive: bool,
    body: &ErrorBody,
) -> Value {
    let mut description = format!("{}.\n", title(status));
    for (reason, text) in reasons {
        description.push_str(&format!("\n- `{reason}`: {text}"));
    }
    let names: Vec<&String> = reasons.keys().collect();
    let mut schema = body.schema();
    if exhaustive && body.custom.is_none() {
        let info = json!({
            "type": "object",
            "required": ["@type", "reason"],
            "properties": {"@type": {"const": type_url(ERROR_INFO)}, "reason": {"enum": names}},
        });
        schema = json!({"allOf": [schema, {"properties": {"details": {"contains": info}}}]});
    }
    let mut headers = headers.clone();
    headers.extend(status_headers(status));
    json!({
        "description": description,
        "headers": headers,
        "content": { (body.content_type.as_str()): {"schema": schema} },
        "x-reasons": names,
    })
}

/// The headers of a status.
fn status_headers(status: u16) -> Map<String, Value> {
    let (name, header) = match status {
        401 => (
            "WWW-Authenticate",
            json!({
                "description": "How to authenticate (RFC 9110 §11.6.1).",
                "required": true,
                "schema": {"type": "string"},
            }),
        ),
        405 => (
            "Allow",
            json!({
                "description": "The methods of the path (RFC 9110 §10.2.1).",
                "required": true,
                "schema": {"type": "string"},
            }),
        ),
        429 | 503 => (
            "Retry-After",
            json!({
                "description": "Seconds to wait before a retry, as in `google.rpc.RetryInfo`.",
                "schema": {"type": "integer", "minimum": 1},
            }),
        ),
        _ => return Map::new(),
    };
    Map::from_iter([(name.to_owned(), header)])
}

/// The schemas of `google.rpc.Status` and of its details.
fn status_components(style: PrintStyle) -> Result<BTreeMap<String, Value>, BuildErrors> {
    let pool = descriptors::decode(crate::transcoder::GOOGLE_RPC)?;
    let schema = Schema::new(&pool, style);
    let comments = Comments::new(&pool);
    let mut schemas = Schemas::new(&pool, &schema, &comments);
    for message in DETAILS.iter().filter_map(|(name, _)| pool.get_message_by_name(name)) {
        schemas.message(&message, Direction::Output);
    }
    let mut components = schemas.into_components();
    for (name, description) in DETAILS {
        let Some(detail) = components.get_mut(name) else { continue };
        detail["description"] = description.into();
        detail["properties"]["@type"] = json!({"const": type_url(name)});
        let required = detail["required"].as_array().cloned().unwrap_or_default();
        detail["required"] = std::iter::once("@type".into()).chain(required).collect();
    }
    components.insert(STATUS.to_owned(), status());
    Ok(components)
}

fn status() -> Value {
    let known: Vec<String> = DETAILS.iter().map(|(name, _)| type_url(name)).collect();
    let mut details: Vec<Value> = DETAILS.iter().map(|(name, _)| reference(name)).collect();
    details.push(json!({
        "description": "Any other detail, of the type `@type`.",
        "type": "object",
        "required": ["@type"],
        "properties": {"@type": {"type": "string", "not": {"enum": known}}},
    }));
    let codes: Vec<String> = (1..17).map(|number| format!("{number} {:?}", Code::from_number(number))).collect();
    json!({
        "description": "An error (AIP-193): a code, a message for developers, and typed details.",
        "type": "object",
        "required": ["code", "message", "details"],
        "properties": {
            "code": {
                "description": format!("The gRPC code: {}.", codes.join(", ")),
                "type": "integer",
                "minimum": 1,
                "maximum": 16,
            },
            "message": {"description": "The message for developers, in English.", "type": "string"},
            "details": {"type": "array", "items": {"anyOf": details}},
        },
    })
}

fn type_url(name: &str) -> String {
    format!("type.googleapis.com/{name}")
}
