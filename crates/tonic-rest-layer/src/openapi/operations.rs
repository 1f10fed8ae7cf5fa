//! Rules as operations: the parameters, the body and the responses of each binding.

use prost_reflect::FieldDescriptor;
use prost_reflect::Kind;
use prost_reflect::MessageDescriptor;
use prost_reflect::MethodDescriptor;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::comments::Comments;
use super::comments::split;
use super::errors::ErrorBody;
use super::paths::PathItem;
use super::schemas::Direction;
use super::schemas::Schemas;
use super::schemas::nullable;
use crate::binding::Binding;
use crate::binding::Body;
use crate::bound_fields::BoundFields;
use crate::render::Format;
use crate::schema::Field;
use crate::schema::Schema;
use crate::schema::Shape;

/// One binding, with the sources of its description.
pub(super) struct DescribedBinding<'d> {
    pub schema: &'d Schema,
    pub comments: &'d Comments,
    pub binding: &'d Binding,
    pub method: &'d MethodDescriptor,
}

impl DescribedBinding<'_> {
    /// The operation, without responses and security.
    pub(super) fn operation(&self, schemas: &mut Schemas<'_>, path: &PathItem, tag: &str) -> Map<String, Value> {
        let mut operation = Map::new();
        operation.insert("tags".to_owned(), json!([tag]));
        if let Some(comment) = self.comments.of(&self.method.parent_file(), self.method.path()) {
            let (summary, description) = split(comment);
            operation.insert("summary".to_owned(), summary.into());
            operation.extend(description.map(|text| ("description".to_owned(), text.into())));
        }
        if self.method.method_descriptor_proto().options.as_ref().is_some_and(|options| options.deprecated()) {
            operation.insert("deprecated".to_owned(), true.into());
        }
        let mut parameters = self.path_parameters(schemas, path);
        if self.binding.body != Body::Whole {
            self.query(
                schemas,
                &self.method.input(),
                Some(&self.binding.query_bound),
                &ParameterPath::default(),
                &mut parameters,
            );
        }
        if !parameters.is_empty() {
            operation.insert("parameters".to_owned(), parameters.into());
        }
        operation.extend(self.body(schemas).map(|body| ("requestBody".to_owned(), body)));
        operation
    }

    /// Marks the direction of each message. Must be called for all bindings before the first schema.
    pub(super) fn mark_direction(&self, schemas: &mut Schemas<'_>) {
        match self.binding.body {
            Body::None => {}
            Body::Whole => schemas.mark_direction(&self.method.input(), Direction::Input),
            Body::Field(index) => {
                if let Some(Kind::Message(message)) = self.field(index).map(|field| field.kind()) {
                    schemas.mark_direction(&message, Direction::Input);
                }
            }
        }
        schemas.mark_direction(&self.method.output(), Direction::Output);
    }

    fn field(&self, index: u16) -> Option<FieldDescriptor> {
        self.method.input().get_field(self.schema.message(self.binding.input).at(index).number)
    }

    fn path_parameters(&self, schemas: &mut Schemas<'_>, path: &PathItem) -> Vec<Value> {
        let mut parameters = Vec::new();
        for wildcard in &path.wildcards {
            let field = wildcard.field.as_deref().and_then(|field| resolve_field(&self.method.input(), field));
            let mut texts: Vec<String> =
                field.as_ref().and_then(|field| schemas.comment(field)).map(str::to_owned).into_iter().collect();
            texts.extend(wildcard.note.clone());
            let mut value = match &field {
                Some(field) if wildcard.whole => schemas.kind(&field.kind(), Direction::Output),
                _ => json!({"type": "string"}),
            };
            if value["type"] == "string" && !wildcard.rest && value["format"].is_null() {
                value["minLength"] = 1.into();
            }
            let mut parameter = json!({"name": wildcard.name, "in": "path", "required": true, "schema": value});
            if !texts.is_empty() {
                parameter["description"] = texts.join("\n\n").into();
            }
            parameters.push(parameter);
        }
        parameters
    }

    /// Adds the query parameters: all fields that neither path nor body binds, including those of nested messages.
    fn query(
        &self,
        schemas: &mut Schemas<'_>,
        message: &MessageDescriptor,
        bound: Option<&BoundFields>,
        nested: &ParameterPath,
        parameters: &mut Vec<Value>,
    ) {
        let Some(id) = self.schema.find(message.full_name()) else { return };
        for field in message.fields() {
            let Some((_, inside)) = schemas.unbound_field(id, &field, bound) else { continue };
            let inner = match field.kind() {
                Kind::Message(inner) => Some(inner),
                _ => None,
            };
            let shape = inner.as_ref().map(|inner| Shape::of(inner.full_name(), inner.fields().len()));
            let below = nested.below(schemas.member(&field), schemas.is_required(&field));
            match (inner, shape) {
                (Some(inner), Some(Shape::Object | Shape::HttpBody)) if !field.is_list() && !field.is_map() => {
                    // A recursive message has no last level, so only the first level of each type is described.
                    let known = inner == *message || nested.types.contains(&inner.full_name().to_owned());
                    if !known {
                        self.query(schemas, &inner, inside, &below.inside(message), parameters);
                    }
                }
                (None, _) => parameters.push(parameter(schemas, &field, &below)),
                (_, Some(Shape::Timestamp | Shape::Duration | Shape::FieldMask | Shape::Wrapper))
                    if !field.is_list() =>
                {
                    parameters.push(parameter(schemas, &field, &below));
                }
                // The layer rejects it as a query parameter.
                _ => {}
            }
        }
    }

    fn body(&self, schemas: &mut Schemas<'_>) -> Option<Value> {
        if self.binding.body == Body::None {
            return None;
        }
        if self.binding.raw_body {
            return Some(json!({"content": {"*/*": {}}}));
        }
        let bound = &self.binding.body_bound;
        let (value, required, comment) = match self.binding.body {
            Body::Field(index) => {
                let field = self.field(index)?;
                let value = match (bound.nested(index), field.kind()) {
                    (Some(inside), Kind::Message(inner)) => schemas.object(&inner, Direction::Input, Some(inside)),
                    _ => schemas.field(&field, Direction::Input),
                };
                (value, schemas.is_required(&field), schemas.comment(&field).map(str::to_owned))
            }
            _ => {
                let input = self.method.input();
                let value = if !self.binding.variables.is_empty() {
                    schemas.object(&input, Direction::Input, Some(bound))
                } else {
                    schemas.message(&input, Direction::Input)
                };
                let required = input.fields().any(|field| {
                    let unbound = schemas.unbound_field(self.binding.input, &field, Some(bound));
                    unbound.is_some() && schemas.is_required(&field)
                });
                (value, required, self.comments.of(&input.parent_file(), input.path()).map(str::to_owned))
            }
        };
        let mut body = json!({"content": {"application/json": {"schema": value}}, "required": required});
        if let Some(comment) = comment {
            body["description"] = comment.into();
        }
        Some(body)
    }

    /// The response of a successful call.
    pub(super) fn success(
        &self,
        schemas: &mut Schemas<'_>,
        headers: &Map<String, Value>,
        error_body: &ErrorBody,
    ) -> Value {
        let output = self.method.output();
        let (value, comment) = match self.binding.response_body {
            None => {
                (schemas.message(&output, Direction::Output), self.comments.of(&output.parent_file(), output.path()))
            }
            Some(index) => {
                let field: &Field = self.schema.message(self.binding.output).at(index);
                let found = output.get_field(field.number);
                let value = found.as_ref().map_or_else(|| json!({}), |field| schemas.field(field, Direction::Output));
                let value = if field.presence { nullable(value) } else { value };
                (value, found.and_then(|field| schemas.comment(&field)))
            }
        };
        // The comments of Google's own types do not describe this response.
        let comment = comment.filter(|_| !output.package_name().starts_with("google."));
        let comment = if self.binding.raw_reply { Some("The content.") } else { comment };
        let comment = comment.unwrap_or("Success.");
        let content = match (self.binding.raw_reply, self.binding.server_streaming) {
            (true, _) => json!({"*/*": {}}),
            (false, false) => json!({"application/json": {"schema": value}}),
            (false, true) => json!({
                (Format::Lines.content_type()): {"schema": {
                    "description": "One of these on each line. If the stream fails, the last line has `error`.",
                    "anyOf": [value, {"type": "object", "required": ["error"], "properties": {"error": error_body.schema()}}],
                }},
                (Format::Events.content_type()): {"schema": {
                    "description": format!(
                        "Server-sent events, where `Accept` names them. The data of each is one line as in \
                        `application/x-ndjson`. If the stream fails, the last event is an `error`, {}.",
                        error_body.noun(),
                    ),
                    "type": "string",
                }},
            }),
        };
        json!({"description": comment, "headers": headers, "content": content})
    }
}

/// The path to the field of a query parameter.
#[derive(Debug, Default)]
struct ParameterPath {
    /// The names of the fields, joined by dots.
    name: String,
    /// Whether a field on the path is optional.
    optional: bool,
    /// The messages on the path.
    types: Vec<String>,
}

impl ParameterPath {
    fn below(&self, name: &str, required: bool) -> ParameterPath {
        let name = if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) };
        ParameterPath { name, optional: self.optional || !required, types: self.types.clone() }
    }

    fn inside(mut self, message: &MessageDescriptor) -> ParameterPath {
        self.types.push(message.full_name().to_owned());
        self
    }
}

fn parameter(schemas: &mut Schemas<'_>, field: &FieldDescriptor, place: &ParameterPath) -> Value {
    // A query is text, so numbers have only one form, the one in replies.
    let value = schemas.kind(&field.kind(), Direction::Output);
    let mut parameter = json!({"name": place.name, "in": "query", "required": !place.optional, "schema": value});
    if field.is_list() {
        parameter["schema"] = json!({"type": "array", "items": value});
        parameter["style"] = "form".into();
        parameter["explode"] = true.into();
    }
    let mut texts: Vec<String> = schemas.comment(field).map(str::to_owned).into_iter().collect();
    let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
    texts.extend(oneof.map(|oneof| format!("At most one member of `{}` may be given.", oneof.name())));
    if !texts.is_empty() {
        parameter["description"] = texts.join("\n\n").into();
    }
    if field.field_descriptor_proto().options.as_ref().is_some_and(|options| options.deprecated()) {
        parameter["deprecated"] = true.into();
    }
    parameter
}

/// The field at the end of a path of names.
fn resolve_field(message: &MessageDescriptor, names: &str) -> Option<FieldDescriptor> {
    let (name, rest) = match names.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (names, None),
    };
    let field = message.get_field_by_name(name)?;
    match (rest, field.kind()) {
        (None, _) => Some(field),
        (Some(rest), Kind::Message(inner)) => resolve_field(&inner, rest),
        (Some(_), _) => None,
    }
}
