//! Reads `google.api.http` rules from the descriptors and validates them. Reports all errors at once.

use std::sync::Arc;

use http::Method;
use http::uri::PathAndQuery;
use prost_reflect::DescriptorPool;
use prost_reflect::FieldDescriptor;
use prost_reflect::Kind as ProtoKind;
use prost_reflect::MethodDescriptor;
use prost_reflect::ServiceDescriptor;

use crate::binding::Binding;
use crate::binding::Body;
use crate::binding::BoundVariable;
use crate::binding::MatchedRoute;
use crate::binding::Rules;
use crate::bound_fields::BoundFields;
use crate::error::BuildError;
use crate::error::BuildErrors;
use crate::error::RuleError;
use crate::route::MethodPattern;
use crate::schema::Field;
use crate::schema::FieldIndex;
use crate::schema::Label;
use crate::schema::Message;
use crate::schema::MessageId;
use crate::schema::Schema;
use crate::schema::Shape;
use crate::template::SEGMENTS_MAX;
use crate::template::Template;
use crate::template::Variable;
use crate::template::is_dot_segment;

/// The fields of `google.api.HttpRule` that the layer uses.
#[derive(Clone, PartialEq, prost::Message)]
struct HttpRule {
    #[prost(oneof = "Pattern", tags = "2, 3, 4, 5, 6, 8")]
    pattern: Option<Pattern>,
    #[prost(string, tag = "7")]
    body: String,
    #[prost(message, repeated, tag = "11")]
    additional_bindings: Vec<HttpRule>,
    #[prost(string, tag = "12")]
    response_body: String,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Pattern {
    #[prost(string, tag = "2")]
    Get(String),
    #[prost(string, tag = "3")]
    Put(String),
    #[prost(string, tag = "4")]
    Post(String),
    #[prost(string, tag = "5")]
    Delete(String),
    #[prost(string, tag = "6")]
    Patch(String),
    #[prost(message, tag = "8")]
    Custom(CustomPattern),
}

#[derive(Clone, PartialEq, prost::Message)]
struct CustomPattern {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    path: String,
}

/// Which rules of a set are served, and under which base paths.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// The base paths. Empty means `/`.
    pub base_paths: Vec<String>,
    /// The full names of the services. Empty means all.
    pub services: Vec<String>,
    /// Whether invalid rules are skipped instead of failing the build.
    pub skips_faulty: bool,
}

/// Reads the rules of the selected services.
pub(crate) fn read(pool: &DescriptorPool, schema: &Schema, selection: &Selection) -> Result<Rules, BuildErrors> {
    let mut rules = RuleReader {
        schema,
        errors: Vec::new(),
        bases: Vec::new(),
        owners: Vec::new(),
        rules: Rules::default(),
        skips_faulty: selection.skips_faulty,
    };
    rules.read_bases(&selection.base_paths);
    for name in &selection.services {
        if pool.get_service_by_name(name).is_none() {
            rules.errors.push(BuildError::of_set(RuleError::UnknownService(name.clone())));
        }
    }
    let is_selected = |service: &ServiceDescriptor| {
        selection.services.is_empty() || selection.services.iter().any(|name| name == service.full_name())
    };
    // The errors so far are errors of the selection, not of a rule.
    let selection_errors = rules.errors.len();
    if let Some(extension) = pool.get_extension_by_name("google.api.http") {
        let services = pool.services().filter(is_selected);
        for method in services.flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let options = method.options();
            if !options.has_extension(&extension) {
                continue;
            }
            let rule = options.get_extension(&extension);
            match rule.as_message().map(|rule| rule.transcode_to::<HttpRule>()) {
                Some(Ok(rule)) => rules.method(&method, &rule),
                _ => rules.fail(&method, RuleError::NoPattern),
            }
        }
    }
    rules.finish(selection_errors)
}

struct RuleReader<'s> {
    schema: &'s Schema,
    errors: Vec<BuildError>,
    bases: Vec<Vec<Box<str>>>,
    /// The full name of the method of each route, including routes of invalid rules.
    owners: Vec<String>,
    rules: Rules,
    skips_faulty: bool,
}

impl RuleReader<'_> {
    fn read_bases(&mut self, base_paths: &[String]) {
        for base in base_paths {
            let segments = match base.as_str() {
                "/" => Some(Vec::new()),
                _ => Template::parse(base).ok().and_then(|template| literals(&template)),
            };
            match segments {
                Some(segments) => {
                    let dots = segments.iter().any(|segment| is_dot_segment(segment));
                    if dots || segments.len() > SEGMENTS_MAX {
                        let why = if dots { "it has a dot segment" } else { "it has more than 64 segments" };
                        let reason = RuleError::NeverMatches { template: base.clone(), why };
                        self.errors.push(BuildError::of_set(reason));
                    }
                    self.bases.push(segments);
                }
                None => self.errors.push(BuildError::of_set(RuleError::BasePath(base.clone()))),
            }
        }
        if base_paths.is_empty() {
            self.bases.push(Vec::new());
        }
    }

    fn finish(mut self, selection_errors: usize) -> Result<Rules, BuildErrors> {
        if self.rules.bindings.is_empty() && self.errors.is_empty() {
            self.errors.push(BuildError::of_set(RuleError::NoRules));
        }
        // If no rule is left, the skipped ones are the reason.
        if self.skips_faulty && selection_errors == 0 && !self.rules.bindings.is_empty() {
            self.rules.skipped = std::mem::take(&mut self.errors);
        }
        if self.errors.is_empty() { Ok(self.rules) } else { Err(BuildErrors(self.errors)) }
    }

    fn fail(&mut self, method: &MethodDescriptor, reason: RuleError) {
        self.errors.push(BuildError {
            service: method.parent_service().full_name().to_owned(),
            method: method.name().to_owned(),
            reason,
        });
    }

    fn method(&mut self, method: &MethodDescriptor, rule: &HttpRule) {
        if method.is_client_streaming() {
            return self.fail(method, RuleError::ClientStreaming);
        }
        let groups = groups(method);
        let skips = self.skips_faulty && !groups.is_empty();
        for group in groups {
            self.fail(method, RuleError::Group(group));
        }
        if skips {
            return;
        }
        self.binding(method, rule);
        for additional in &rule.additional_bindings {
            if !additional.additional_bindings.is_empty() {
                self.fail(method, RuleError::NestedBindings);
            }
            self.binding(method, additional);
        }
    }

    fn binding(&mut self, method: &MethodDescriptor, rule: &HttpRule) {
        let (pattern, text) = match method_and_template(rule) {
            Ok(found) => found,
            Err(reason) => return self.fail(method, reason),
        };
        let template = match Template::parse(text) {
            Ok(template) => template,
            Err(source) => {
                return self.fail(method, RuleError::Template { template: text.to_owned(), source: source.into() });
            }
        };
        let before = self.errors.len();
        let base = self.bases.iter().map(Vec::len).max().unwrap_or_default();
        if let Some(why) = template.unreachable(base) {
            self.fail(method, RuleError::NeverMatches { template: text.to_owned(), why });
        }
        if let MethodPattern::Exact(http_method @ (Method::GET | Method::HEAD)) = &pattern
            && !rule.body.is_empty()
        {
            self.fail(method, RuleError::BodyNotAllowed(http_method.clone()));
        }
        let binding = self.check(method, rule, text, &template, &pattern);
        if self.skips_faulty && self.errors.len() != before {
            return;
        }
        self.insert(method, text, &template, &pattern);
        if self.errors.len() == before
            && let Some(binding) = binding
        {
            self.rules.bindings.push(binding);
        }
    }

    /// Adds the template under every base path, even if the rule has other errors, so that conflicts are reported too.
    fn insert(&mut self, method: &MethodDescriptor, text: &str, template: &Template, pattern: &MethodPattern) {
        if self.skips_faulty {
            // Checked before the first insertion, because a skipped rule must not have a route.
            let existing = self.bases.iter().find_map(|base| self.rules.router.existing(base, template, pattern));
            if let Some(other) = existing {
                let other = self.owners[other].clone();
                return self.fail(method, RuleError::Ambiguous { template: text.to_owned(), other });
            }
        }
        for position in 0..self.bases.len() {
            let route = self.rules.routes.len();
            let binding = self.rules.bindings.len();
            match self.rules.router.insert(&self.bases[position], template, pattern, route) {
                Ok(()) => {
                    self.rules.routes.push((binding, self.bases[position].len()));
                    self.owners.push(method.full_name().to_owned());
                }
                Err(other) => {
                    let other = self.owners[other].clone();
                    return self.fail(method, RuleError::Ambiguous { template: text.to_owned(), other });
                }
            }
        }
    }

    /// Validates the rule against the messages. Records all errors, and returns `None` if there are any.
    fn check(
        &mut self,
        method: &MethodDescriptor,
        rule: &HttpRule,
        text: &str,
        template: &Template,
        pattern: &MethodPattern,
    ) -> Option<Binding> {
        let before = self.errors.len();
        let (input, output) = (self.schema.id(&method.input()), self.schema.id(&method.output()));
        let (mut body_bound, mut query_bound) = (BoundFields::default(), BoundFields::default());
        let variables = self.variables(method, input, template, &mut body_bound, &mut query_bound);
        let body = self.body(method, input, &rule.body, &mut query_bound);
        let response_body = self.response_body(method, output, &rule.response_body);
        let grpc_path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let Ok(grpc_path) = PathAndQuery::try_from(grpc_path) else {
            self.fail(method, RuleError::MethodName);
            return None;
        };
        let binding = Binding {
            matched: MatchedRoute { grpc_path, template: Arc::from(text) },
            method: pattern.clone(),
            input,
            output,
            server_streaming: method.is_server_streaming(),
            variables,
            template_length: template.segments.len(),
            body,
            raw_body: body_shape(self.schema, input, body) == Some(Shape::HttpBody),
            response_body,
            raw_reply: reply_shape(self.schema, output, response_body) == Some(Shape::HttpBody),
            query_bound,
            body_bound,
        };
        (self.errors.len() == before).then_some(binding)
    }

    /// Resolves the variables of the path, and marks their fields as bound for body and query.
    fn variables(
        &mut self,
        method: &MethodDescriptor,
        input: MessageId,
        template: &Template,
        body_bound: &mut BoundFields,
        query_bound: &mut BoundFields,
    ) -> Vec<BoundVariable> {
        let schema = self.schema;
        let mut variables = Vec::new();
        for (position, variable) in template.variables.iter().enumerate() {
            match self.variable(input, variable) {
                Ok(path) => {
                    let result = body_bound.bind(schema, input, &path, Some(position));
                    let result = result.and(query_bound.bind(schema, input, &path, Some(position)));
                    if result.is_err() {
                        self.fail(method, RuleError::BoundTwice(variable.field_path.to_string()));
                    }
                    variables.push(BoundVariable { variable: variable.clone(), path });
                }
                Err(reason) => self.fail(method, reason),
            }
        }
        variables
    }

    /// Resolves `body`, and marks its field as bound for the query.
    fn body(&mut self, method: &MethodDescriptor, input: MessageId, name: &str, query_bound: &mut BoundFields) -> Body {
        let schema = self.schema;
        match name {
            "" => Body::None,
            "*" => Body::Whole,
            name => match top_level(schema.message(input), name) {
                Ok(index) => {
                    if query_bound.bind_whole(schema, input, index).is_err() {
                        self.fail(method, RuleError::BoundTwice(name.to_owned()));
                    }
                    Body::Field(index)
                }
                Err(reason) => {
                    self.fail(method, reason);
                    Body::None
                }
            },
        }
    }

    /// Resolves `response_body`.
    fn response_body(&mut self, method: &MethodDescriptor, output: MessageId, name: &str) -> Option<FieldIndex> {
        if name.is_empty() {
            return None;
        }
        let index = top_level(self.schema.message(output), name);
        index.map_err(|reason| self.fail(method, reason)).ok()
    }

    fn variable(&self, input: MessageId, variable: &Variable) -> Result<Vec<FieldIndex>, RuleError> {
        let mut message = self.schema.message(input);
        if message.shape != Shape::Object {
            let (field, message) = (variable.field_path.to_string(), message.full_name.to_string());
            return Err(RuleError::VariableInSpecialMessage { field, message });
        }
        let mut path = Vec::new();
        let mut names = variable.field_path.split('.').peekable();
        while let Some(name) = names.next() {
            // Rules use proto names.
            let index = top_level(message, name)?;
            let field = message.at(index);
            path.push(index);
            let inner = self.schema.message_of(field);
            match inner {
                _ if field.label != Label::Singular => {}
                None if names.peek().is_none() => return Ok(path),
                Some(inner) if names.peek().is_some() && inner.shape == Shape::Object => {
                    message = inner;
                    continue;
                }
                _ => {}
            }
            break;
        }
        Err(RuleError::VariableType(variable.field_path.to_string()))
    }
}

/// The JSON form of the request body. `None` if it is not one message.
fn body_shape(schema: &Schema, input: MessageId, body: Body) -> Option<Shape> {
    match body {
        Body::None => None,
        Body::Whole => Some(schema.message(input).shape),
        Body::Field(index) => single_shape(schema, schema.message(input).at(index)),
    }
}

/// The JSON form of the response body. `None` if it is not one message.
fn reply_shape(schema: &Schema, output: MessageId, response_body: Option<FieldIndex>) -> Option<Shape> {
    match response_body.map(|index| schema.message(output).at(index)) {
        None => Some(schema.message(output).shape),
        Some(field) => single_shape(schema, field),
    }
}

/// The JSON form of a field. `None` if it is not one message.
fn single_shape(schema: &Schema, field: &Field) -> Option<Shape> {
    if field.label == Label::Singular { schema.message_of(field).map(|message| message.shape) } else { None }
}

fn method_and_template(rule: &HttpRule) -> Result<(MethodPattern, &str), RuleError> {
    match rule.pattern.as_ref().ok_or(RuleError::NoPattern)? {
        Pattern::Get(path) => Ok((MethodPattern::Exact(Method::GET), path)),
        Pattern::Put(path) => Ok((MethodPattern::Exact(Method::PUT), path)),
        Pattern::Post(path) => Ok((MethodPattern::Exact(Method::POST), path)),
        Pattern::Delete(path) => Ok((MethodPattern::Exact(Method::DELETE), path)),
        Pattern::Patch(path) => Ok((MethodPattern::Exact(Method::PATCH), path)),
        Pattern::Custom(custom) if custom.kind == "*" => Ok((MethodPattern::Any, &custom.path)),
        Pattern::Custom(custom) => match Method::from_bytes(custom.kind.as_bytes()) {
            Ok(method) => Ok((MethodPattern::Exact(method), &custom.path)),
            Err(_) => Err(RuleError::CustomKind(custom.kind.clone())),
        },
    }
}

/// A field of the message itself, by its proto name.
fn top_level(message: &Message, name: &str) -> Result<FieldIndex, RuleError> {
    message
        .fields
        .iter()
        .position(|field| &*field.name == name)
        .map(|index| index as FieldIndex)
        .ok_or_else(|| RuleError::UnknownField { field: name.to_owned(), message: message.full_name.to_string() })
}

fn literals(template: &Template) -> Option<Vec<Box<str>>> {
    use crate::template::Segment;
    let plain = |segment: &Segment| match segment {
        Segment::Literal(text) => Some(text.clone()),
        Segment::Single | Segment::Rest => None,
    };
    if template.verb.is_some() { None } else { template.segments.iter().map(plain).collect() }
}

/// All groups in the input and the output of a method.
fn groups(method: &MethodDescriptor) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let mut pending = vec![method.input(), method.output()];
    let mut found = Vec::new();
    while let Some(message) = pending.pop() {
        if !seen.insert(message.full_name().to_owned()) {
            continue;
        }
        found.extend(message.fields().filter(FieldDescriptor::is_group).map(|field| field.full_name().to_owned()));
        pending.extend(message.fields().filter_map(|field| match field.kind() {
            ProtoKind::Message(inner) => Some(inner),
            _ => None,
        }));
    }
    found
}
