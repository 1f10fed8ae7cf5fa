//! What an operation answers when it does not do what was asked: by HTTP status, with every reason that leads there.

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

/// The details that are spelled out. There may be others, and each says what it is.
const DETAILS: [(&str, &str); 3] = [
    (ERROR_INFO, "Says why, in words for a program: `reason` is unique within `domain`, and `metadata` tells more."),
    ("google.rpc.BadRequest", "Says which fields of the request are wrong, and what is expected of each."),
    ("google.rpc.RetryInfo", "Says how long to wait before a repeat has a chance."),
];

/// The detail that has the reason.
const ERROR_INFO: &str = "google.rpc.ErrorInfo";

/// A reason that a service gives in `google.rpc.ErrorInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReason {
    /// `ErrorInfo.reason`.
    pub name: String,
    /// The code of a status with this reason.
    pub code: Code,
    /// What it means: a sentence.
    pub description: String,
}

impl ErrorReason {
    /// Puts the three together.
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
        if self.custom.is_some() { "an error as in responses" } else { "a `google.rpc.Status`" }
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
    /// With what each means.
    by_name: BTreeMap<String, String>,
    /// Whether the operation's own are among them, and not only those that all operations have.
    own: bool,
}

/// The errors that operations share: OpenAPI responses, by name.
pub(super) type SharedResponses = BTreeMap<String, Value>;

impl Errors {
    /// Adds one of the operation's own.
    pub(super) fn add(&mut self, reason: &ErrorReason) {
        self.insert(reason.code.http_status(), &reason.name, &reason.description).own = true;
    }

    /// Adds one that all operations have.
    pub(super) fn add_common(&mut self, reason: &ErrorReason) {
        self.insert(reason.code.http_status(), &reason.name, &reason.description);
    }

    /// Adds one of the layer's.
    pub(super) fn add_refusal(&mut self, refusal: &Refusal) {
        let (_, status, reason) = refusal.row();
        let description = refusal.description();
        self.insert(status, reason, description);
    }

    fn insert(&mut self, status: StatusCode, reason: &str, description: &str) -> &mut StatusReasons {
        let reasons = self.0.entry(status.as_u16()).or_default();
        // The service's own words come first, and stay.
        reasons.by_name.entry(reason.to_owned()).or_insert_with(|| description.to_owned());
        reasons
    }

    /// The OpenAPI responses, by status. `exhaustive` says that the reasons are all there are.
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
            let same = !reasons.own && *shared.entry(name.clone()).or_insert_with(|| whole.clone()) == whole;
            let response = if same { json!({"$ref": format!("#/components/responses/{name}")}) } else { whole };
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

/// The headers that belong to a status.
fn status_headers(status: u16) -> Map<String, Value> {
    let (name, header) = match status {
        401 => (
            "WWW-Authenticate",
            json!({
                "description": "Says how to authenticate (RFC 9110 §11.6.1).",
                "required": true,
                "schema": {"type": "string"},
            }),
        ),
        405 => (
            "Allow",
            json!({
                "description": "Lists the methods that the path has (RFC 9110 §10.2.1).",
                "required": true,
                "schema": {"type": "string"},
            }),
        ),
        429 | 503 => (
            "Retry-After",
            json!({
                "description": "Tells after how many seconds a repeat has a chance; `google.rpc.RetryInfo` says the same.",
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
        "description": "Any other detail. `@type` says what it is.",
        "type": "object",
        "required": ["@type"],
        "properties": {"@type": {"type": "string", "not": {"enum": known}}},
    }));
    let codes: Vec<String> = (1..17).map(|number| format!("{number} {:?}", Code::from_number(number))).collect();
    json!({
        "description": "What went wrong (AIP-193): a code, a message for developers, and typed details.",
        "type": "object",
        "required": ["code", "message", "details"],
        "properties": {
            "code": {
                "description": format!("The gRPC code: {}.", codes.join(", ")),
                "type": "integer",
                "minimum": 1,
                "maximum": 16,
            },
            "message": {"description": "Says it to a developer, in English.", "type": "string"},
            "details": {"type": "array", "items": {"anyOf": details}},
        },
    })
}

fn type_url(name: &str) -> String {
    format!("type.googleapis.com/{name}")
}
