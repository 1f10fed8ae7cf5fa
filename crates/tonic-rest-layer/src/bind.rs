//! Builds the request message: writes the fields of body, query and path as protobuf, one after the other.
//!
//! Concatenated protobuf messages are merged, and the last value of a singular field wins. The body is written first and the path
//! last, so that the path wins even if a check has a bug.

use std::borrow::Cow;
use std::convert::Infallible;

use http::Uri;
use percent_encoding::percent_decode;

use crate::binding::Binding;
use crate::binding::Body;
use crate::bound_fields::BoundFields;
use crate::bound_fields::Conflict;
use crate::read;
use crate::read::ReadContext;
use crate::read::message_from_text;
use crate::route::Path;
use crate::scalar::Scalar;
use crate::schema::FieldIndex;
use crate::schema::Kind;
use crate::schema::Label;
use crate::schema::MessageId;
use crate::schema::Schema;
use crate::schema::Shape;
use crate::violation::Violation;
use crate::violation::clip;
use crate::wire;

/// The maximum number of query parameters.
pub(crate) const QUERY_PARAMETERS_MAX: usize = 256;

/// The maximum number of names, joined by dots, in a query parameter.
const QUERY_DEPTH_MAX: usize = 16;

/// The body of a request, if the rule has a place for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'b> {
    /// No body, or none that the rule reads.
    None,
    Json(&'b [u8]),
    /// The data and the content type of a `google.api.HttpBody`.
    Raw {
        content_type: &'b [u8],
        data: &'b [u8],
    },
}

/// The bounds of a request, and the query parameters to ignore.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'l> {
    /// Query parameters that name no field.
    pub ignored: &'l [String],
    /// The maximum number of members and elements of a JSON body.
    pub elements_max: usize,
}

/// Appends the request message to `out`.
///
/// # Errors
///
/// Fails with all violations in path and query, or with the first one in the body.
pub(crate) fn bind(
    schema: &Schema,
    binding: &Binding,
    path: &Path,
    uri: &Uri,
    limits: Limits<'_>,
    content: Content<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Vec<Violation>> {
    let mut violations = Vec::new();
    let texts: Vec<Cow<'_, str>> = binding
        .variables
        .iter()
        .map(|bound| {
            let variable = &bound.variable;
            let raw = path.capture(uri.path(), variable.start, variable.end, binding.template_length);
            variable.decode(raw).unwrap_or_else(|error| {
                violations.push(Violation::new(&*variable.field_path, error.to_string()));
                Cow::Borrowed("")
            })
        })
        .collect();
    // The values that the body may repeat. A violation here is one of the path, and is reported together with those of the query.
    let mut bound = Vec::new();
    if let Content::Json(_) = content
        && violations.is_empty()
    {
        for (variable, text) in binding.variables.iter().zip(&texts) {
            match leaf(schema, binding.input, &variable.path, text) {
                Ok(value) => bound.push(value),
                Err(reason) => violations.push(Violation::new(&*variable.variable.field_path, reason)),
            }
        }
    }
    if violations.is_empty() {
        let context = ReadContext { schema, elements_max: limits.elements_max, bound: &bound };
        body(context, binding, content, out).map_err(|violation| vec![violation])?;
    }
    let mut query_violations = Vec::new();
    if let Some(query) = uri.query() {
        bind_query(schema, binding, query, limits.ignored, out, &mut query_violations);
    }
    if violations.is_empty() {
        for (variable, text) in binding.variables.iter().zip(&texts) {
            let written = put_text(schema, binding.input, &variable.path, text, out);
            violations.extend(written.err().map(|reason| Violation::new(&*variable.variable.field_path, reason)));
        }
    }
    query_violations.append(&mut violations);
    if query_violations.is_empty() { Ok(()) } else { Err(query_violations) }
}

/// The field at the end of `path`, encoded as part of the innermost message.
fn leaf(schema: &Schema, input: MessageId, path: &[FieldIndex], text: &str) -> Result<Vec<u8>, String> {
    let mut message = input;
    for index in path.split_last().map_or(&[][..], |(_, outer)| outer) {
        match schema.message(message).at(*index).kind {
            Kind::Message(inner) => message = inner,
            _ => break,
        }
    }
    let mut value = Vec::new();
    put_text(schema, message, path.last().map_or(&[], std::slice::from_ref), text, &mut value)?;
    Ok(value)
}

fn body(context: ReadContext<'_>, binding: &Binding, content: Content<'_>, out: &mut Vec<u8>) -> Result<(), Violation> {
    let input = context.schema.message(binding.input);
    match (binding.body, content) {
        (Body::None, _) | (_, Content::None) => Ok(()),
        (Body::Whole, Content::Json(json)) => {
            read::read_message(context, binding.input, &binding.body_bound, json, out)
        }
        (Body::Field(index), Content::Json(json)) => {
            read::read_field(context, input.at(index), binding.body_bound.nested(index), json, out)
        }
        (Body::Whole, Content::Raw { content_type, data }) => {
            put_http_body(content_type, data, out);
            Ok(())
        }
        (Body::Field(index), Content::Raw { content_type, data }) => {
            let Ok(()) = wire::put_delimited::<Infallible>(out, input.at(index).number, |out| {
                put_http_body(content_type, data, out);
                Ok(())
            });
            Ok(())
        }
    }
}

/// `google.api.HttpBody`: `content_type` is field 1, `data` is field 2.
fn put_http_body(content_type: &[u8], data: &[u8], out: &mut Vec<u8>) {
    // A string field must be UTF-8.
    if !content_type.is_empty() && std::str::from_utf8(content_type).is_ok() {
        wire::put_bytes(out, 1, content_type);
    }
    wire::put_bytes(out, 2, data);
}

fn bind_query(
    schema: &Schema,
    binding: &Binding,
    query: &str,
    ignored: &[String],
    out: &mut Vec<u8>,
    violations: &mut Vec<Violation>,
) {
    let mut given = GivenParameters::default();
    for (position, parameter) in query.split('&').filter(|parameter| !parameter.is_empty()).enumerate() {
        if position == QUERY_PARAMETERS_MAX {
            violations.push(Violation::new("", format!("more than {QUERY_PARAMETERS_MAX} query parameters")));
            return;
        }
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let Some(name) = decode_form(name) else {
            violations.push(Violation::new("", "expected a query parameter's name in percent-encoded UTF-8"));
            continue;
        };
        if ignored.iter().any(|ignored| *ignored == *name) {
            continue;
        }
        if let Err(reason) = bind_parameter(schema, binding, &name, value, &mut given, out) {
            violations.push(Violation::new(clip(&name), reason));
        }
    }
}

fn bind_parameter(
    schema: &Schema,
    binding: &Binding,
    name: &str,
    value: &str,
    given: &mut GivenParameters,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    if binding.body == Body::Whole {
        return Err("the body takes all fields, so there are no query parameters".to_owned());
    }
    let path = resolve(schema, binding.input, name)?;
    check_unbound(schema, binding, &path)?;
    given.check(schema, binding.input, &path)?;
    let value = decode_form(value).ok_or("expected percent-encoded UTF-8")?;
    put_text(schema, binding.input, &path, &value, out)
}

/// Resolves dotted names, proto or JSON, to a field that a query parameter can set.
fn resolve(schema: &Schema, input: MessageId, name: &str) -> Result<Vec<FieldIndex>, String> {
    let mut message = schema.message(input);
    let mut path = Vec::new();
    let mut names = name.split('.').peekable();
    while let Some(step) = names.next() {
        let index = message.field(step).ok_or("unknown query parameter")?;
        let field = message.at(index);
        path.push(index);
        if path.len() > QUERY_DEPTH_MAX {
            return Err(format!("nested deeper than {QUERY_DEPTH_MAX}"));
        }
        let last = names.peek().is_none();
        match (schema.message_of(field), field.label) {
            (_, Label::Map) => return Err("a map cannot come from the query".to_owned()),
            (None, _) if last => return Ok(path),
            (None, _) => return Err("unknown query parameter".to_owned()),
            (Some(_), Label::Repeated { .. }) => return Err("a repeated message cannot come from the query".to_owned()),
            (Some(inner), _) if inner.shape.is_object() && !last => message = inner,
            (Some(inner), _) if inner.shape.is_object() => {
                return Err("a message cannot come from the query; name one of its fields".to_owned());
            }
            (Some(_), _) if !last => return Err("unknown query parameter".to_owned()),
            (Some(inner), _) => {
                return match inner.shape {
                    Shape::Timestamp | Shape::Duration | Shape::FieldMask | Shape::Wrapper => Ok(path),
                    _ => Err("cannot come from the query".to_owned()),
                };
            }
        }
    }
    Err("unknown query parameter".to_owned())
}

fn check_unbound(schema: &Schema, binding: &Binding, path: &[FieldIndex]) -> Result<(), &'static str> {
    let mut guard = Some(&binding.query_bound);
    let mut message = binding.input;
    for &index in path {
        match guard.map_or(Ok(()), |guard: &BoundFields| guard.check(schema, message, index)) {
            Ok(()) => {}
            Err(Conflict::Bound(_)) => return Err("is bound by the path or the body"),
            Err(Conflict::OneofBound) => return Err("another member of its oneof is bound by the path or the body"),
        }
        guard = guard.and_then(|guard| guard.nested(index));
        match schema.message(message).at(index).kind {
            Kind::Message(inner) => message = inner,
            _ => break,
        }
    }
    Ok(())
}

/// The fields that earlier parameters have set.
#[derive(Default)]
struct GivenParameters {
    singular: Vec<Vec<FieldIndex>>,
    /// Oneofs: the path to the message, the oneof, and the member that is set.
    oneofs: Vec<(Vec<FieldIndex>, u16, FieldIndex)>,
}

impl GivenParameters {
    fn check(&mut self, schema: &Schema, input: MessageId, path: &[FieldIndex]) -> Result<(), &'static str> {
        let mut message = schema.message(input);
        for (depth, &index) in path.iter().enumerate() {
            let field = message.at(index);
            if let Some(oneof) = field.oneof {
                let place = self.oneofs.iter().find(|(prefix, other, _)| *prefix == path[..depth] && *other == oneof);
                match place {
                    Some((_, _, chosen)) if *chosen != index => return Err("another member of its oneof is given too"),
                    Some(_) => {}
                    None => self.oneofs.push((path[..depth].to_vec(), oneof, index)),
                }
            }
            let last = depth + 1 == path.len();
            if last && field.label == Label::Singular {
                if self.singular.iter().any(|other| other == path) {
                    return Err("given more than once");
                }
                self.singular.push(path.to_vec());
            }
            match schema.message_of(field) {
                Some(inner) => message = inner,
                None => break,
            }
        }
        Ok(())
    }
}

/// Writes the field at the end of `path`, inside its messages.
fn put_text(
    schema: &Schema,
    message: MessageId,
    path: &[FieldIndex],
    text: &str,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let Some((&index, rest)) = path.split_first() else { return Ok(()) };
    let field = schema.message(message).at(index);
    match field.kind {
        Kind::Message(inner) if rest.is_empty() => {
            let convert = |kind| Scalar::from_text(schema, kind, text);
            let body = message_from_text(schema, inner, text, convert).map_err(|mismatch| mismatch.to_string())?;
            wire::put_bytes(out, field.number, &body);
            Ok(())
        }
        Kind::Message(inner) => wire::put_delimited(out, field.number, |out| put_text(schema, inner, rest, text, out)),
        kind => {
            let scalar = Scalar::from_text(schema, kind, text).map_err(|mismatch| mismatch.to_string())?;
            scalar.put(out, field.number);
            Ok(())
        }
    }
}

/// Decodes `application/x-www-form-urlencoded`: `+` is a space. `None` for invalid escapes or invalid UTF-8.
fn decode_form(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['+', '%']) {
        return Some(Cow::Borrowed(text));
    }
    let spaced = text.replace('+', " ");
    let mut escapes = spaced.split('%').skip(1);
    let well_formed =
        escapes.all(|escape| escape.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)));
    if !well_formed {
        return None;
    }
    percent_decode(spaced.as_bytes()).decode_utf8().ok().map(|text| Cow::Owned(text.into_owned()))
}
