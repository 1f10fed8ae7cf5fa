//! Reads JSON and writes protobuf, in one pass: every value that `serde_json` parses is written immediately.
//!
//! The format is ProtoJSON (<https://protobuf.dev/programming-guides/json/>): both names of a field, numbers as strings, `null` as
//! absence; unknown fields are rejected. Stricter than ProtoJSON: duplicate fields are rejected.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::Deserialize;
use serde::de::DeserializeSeed;
use serde::de::Deserializer;
use serde::de::Error;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde::de::value::CowStrDeserializer;
use serde_json::value::RawValue;

use crate::bound_fields::BoundFields;
use crate::bound_fields::Conflict;
use crate::scalar;
use crate::scalar::Mismatch;
use crate::scalar::Scalar;
use crate::schema::Field;
use crate::schema::Kind;
use crate::schema::Label;
use crate::schema::Message;
use crate::schema::MessageId;
use crate::schema::Schema;
use crate::schema::Shape;
use crate::violation::Step;
use crate::violation::Violation;
use crate::violation::clip;
use crate::violation::path_text;
use crate::well_known;
use crate::wire;
use crate::wire::put_delimited;

/// The maximum depth of messages, counted as on the wire, where protobuf decoders stop at 100 levels. An object in a `Struct` is
/// three levels (`Value`, `Struct`, map entry), a list in a `ListValue` two.
pub(crate) const DEPTH_MAX: usize = 96;

/// The schema and the bounds of a body.
#[derive(Clone, Copy)]
pub(crate) struct ReadContext<'s> {
    pub schema: &'s Schema,
    /// The maximum number of members, elements and map entries in total.
    pub elements_max: usize,
    /// The field of each path variable, encoded as on the wire.
    pub bound: &'s [Vec<u8>],
}

/// Reads `json` as a message and appends its fields to `out`.
///
/// # Errors
///
/// Fails with the first violation of the body.
pub(crate) fn read_message(
    context: ReadContext<'_>,
    message: MessageId,
    bound_fields: &BoundFields,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    read(context, Target::Message(message, Some(bound_fields)), None, json, out)
}

/// Reads `json` as the value of one field and appends that field to `out`.
///
/// # Errors
///
/// As [`read_message`]; the path of the violation begins with the field's name.
pub(crate) fn read_field(
    context: ReadContext<'_>,
    field: &Field,
    bound_fields: Option<&BoundFields>,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    read(context, Target::Field(field, bound_fields), Some(&field.name), json, out)
}

fn read(
    context: ReadContext<'_>,
    target: Target<'_>,
    prefix: Option<&str>,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    let start = out.len();
    match read_once(context, target, prefix, json, IntegerSource::Parser, out) {
        Err(ReadError::Inexact) => {
            // Reads the body again, with the text of each integer. Few bodies need this slower way.
            out.truncate(start);
            match read_once(context, target, prefix, json, IntegerSource::Text, out) {
                Err(ReadError::Invalid(violation)) => Err(violation),
                Err(ReadError::Inexact) => Err(Violation::new("", "malformed JSON")),
                Ok(()) => Ok(()),
            }
        }
        Err(ReadError::Invalid(violation)) => Err(violation),
        Ok(()) => Ok(()),
    }
}

/// How integers are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IntegerSource {
    /// From the JSON parser, which returns a float for a number with a fraction or an exponent.
    Parser,
    /// From the text of the body, which is exact.
    Text,
}

/// Why a body was not read.
enum ReadError {
    Invalid(Violation),
    /// An integer has a fraction or an exponent, so the parser returned a float, which may be inexact.
    Inexact,
}

fn read_once(
    context: ReadContext<'_>,
    target: Target<'_>,
    prefix: Option<&str>,
    json: &[u8],
    integers: IntegerSource,
    out: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let ReadContext { schema, elements_max, bound } = context;
    let mut cursor = Cursor {
        schema,
        path: Vec::new(),
        depth: 0,
        elements: 0,
        elements_max,
        bound,
        integers,
        inexact: false,
        violation: None,
    };
    cursor.path.extend(prefix.map(Step::Field));
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let outcome = ValueSeed { cursor: &mut cursor, out, target }.deserialize(&mut deserializer).and_then(|_| {
        cursor.path.clear();
        deserializer.end()
    });
    outcome.map_err(|error| {
        // Syntax errors have serde_json's description, and the path of the last value read.
        let malformed = || Violation::new(path_text(&cursor.path), format!("malformed JSON: {error}"));
        match cursor.violation.take() {
            Some(violation) => ReadError::Invalid(violation),
            None if cursor.inexact => ReadError::Inexact,
            None => ReadError::Invalid(malformed()),
        }
    })
}

/// The position of the reader, and the counters for its bounds.
pub(crate) struct Cursor<'s> {
    schema: &'s Schema,
    path: Vec<Step<'s>>,
    depth: usize,
    elements: usize,
    elements_max: usize,
    bound: &'s [Vec<u8>],
    integers: IntegerSource,
    /// Whether reading stopped because an integer must be read from its text.
    inexact: bool,
    /// The violation to report. serde's errors can only have text.
    violation: Option<Violation>,
}

impl Cursor<'_> {
    /// Records a violation at the current path, and returns serde's error for it.
    pub(crate) fn refuse<E: Error>(&mut self, description: impl Into<String>) -> E {
        let description = description.into();
        self.violation.get_or_insert_with(|| Violation::new(path_text(&self.path), description));
        E::custom("refused")
    }

    /// Enters a nested message.
    pub(crate) fn enter<E: Error>(&mut self) -> Result<(), E> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.refuse(format!("nested deeper than {DEPTH_MAX}")));
        }
        Ok(())
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }

    pub(crate) fn count<E: Error>(&mut self) -> Result<(), E> {
        self.elements += 1;
        if self.elements > self.elements_max {
            return Err(self.refuse(format!("more than {} members and elements", self.elements_max)));
        }
        Ok(())
    }

    /// Counts element number `count` of a list or a map.
    fn count_element<E: Error>(&mut self, field: &Field, count: usize) -> Result<(), E> {
        self.count()?;
        if count > field.elements_max {
            return Err(self.refuse(format!("more than {} elements", field.elements_max)));
        }
        Ok(())
    }
}

/// What the next JSON value is written as.
#[derive(Clone, Copy)]
enum Target<'s> {
    /// A field. A list if it is repeated, an object if it is a map; `null` means absent.
    Field(&'s Field, Option<&'s BoundFields>),
    /// One value of a repeated field or a map, where `null` is invalid.
    Element(&'s Field),
    /// One value of a packed list, without a tag.
    Packed(Kind),
    /// The fields of a message, without a tag or a length.
    Message(MessageId, Option<&'s BoundFields>),
}

/// Writes the next JSON value as its target. Returns whether there is a value; `null` usually is none.
struct ValueSeed<'r, 's> {
    cursor: &'r mut Cursor<'s>,
    out: &'r mut Vec<u8>,
    target: Target<'s>,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        if self.cursor.integers == IntegerSource::Text && self.takes_integer() {
            let text = <&RawValue>::deserialize(deserializer)?.get();
            return self.integer_from_text(text);
        }
        deserializer.deserialize_any(self)
    }
}

impl Target<'_> {
    /// The field number, if the value has a tag, and the kind. Fails for a whole list or map.
    fn single(self) -> Result<(Option<u32>, Kind), Mismatch> {
        match self {
            Target::Field(field, _) if field.label != Label::Singular => Err(expected(field)),
            Target::Field(field, _) | Target::Element(field) => Ok((Some(field.number), field.kind)),
            Target::Packed(kind) => Ok((None, kind)),
            Target::Message(id, _) => Ok((None, Kind::Message(id))),
        }
    }
}

impl<'s> ValueSeed<'_, 's> {
    /// Whether an integer is expected here, including the number of an enum and the value of an integer wrapper.
    fn takes_integer(&self) -> bool {
        let schema = self.cursor.schema;
        match self.target.single() {
            Ok((_, Kind::Message(id))) => {
                let message = schema.message(id);
                message.shape == Shape::Wrapper && message.at(0).kind.is_integer()
            }
            Ok((_, kind)) => kind.is_integer(),
            Err(_) => false,
        }
    }

    /// Reads the text of one JSON value where an integer is expected.
    fn integer_from_text<E: Error>(self, text: &str) -> Result<bool, E> {
        if text.starts_with(|letter: char| letter == '-' || letter.is_ascii_digit()) {
            return self.number_or_bool(|kind| Scalar::from_number_text(kind, text), 2, Kind::Double);
        }
        serde_json::Deserializer::from_str(text).deserialize_any(self).map_err(E::custom)
    }

    /// Writes a scalar, or a message whose JSON is a scalar.
    fn scalar<'t, E: Error>(
        self,
        convert: impl FnOnce(Kind) -> Result<Scalar<'t>, Mismatch>,
        convert_message: impl FnOnce(MessageId) -> Result<Vec<u8>, Mismatch>,
    ) -> Result<bool, E> {
        let ValueSeed { cursor, out, target } = self;
        if let Ok((_, Kind::Message(_))) = target.single() {
            cursor.enter()?;
            cursor.leave();
        }
        let written = target.single().and_then(|(number, kind)| {
            match (kind, number) {
                (Kind::Message(id), Some(number)) => wire::put_bytes(out, number, &convert_message(id)?),
                (Kind::Message(id), None) => out.extend_from_slice(&convert_message(id)?),
                (_, Some(number)) => convert(kind)?.check_enum(cursor.schema, kind)?.put(out, number),
                (_, None) => convert(kind)?.check_enum(cursor.schema, kind)?.put_bare(out),
            }
            Ok(true)
        });
        written.map_err(|mismatch| cursor.refuse(mismatch.to_string()))
    }

    /// Writes a number or a boolean: a scalar, a wrapper, or field `value_number` of a `google.protobuf.Value`.
    fn number_or_bool<E: Error>(
        self,
        convert: impl Fn(Kind) -> Result<Scalar<'static>, Mismatch>,
        value_number: u32,
        value_kind: Kind,
    ) -> Result<bool, E> {
        let schema = self.cursor.schema;
        self.scalar(&convert, |id| {
            let message = schema.message(id);
            let (number, kind) = match message.shape {
                Shape::Value => (value_number, value_kind),
                Shape::Wrapper => (message.at(0).number, message.at(0).kind),
                _ => return Err(expected_shape(message)),
            };
            let mut body = Vec::new();
            convert(kind)?.put(&mut body, number);
            Ok(body)
        })
    }

    /// Writes an object or a list as a message, with or without tag and length.
    fn message<E: Error>(
        self,
        write: impl FnOnce(&mut Cursor<'s>, &mut Vec<u8>, MessageId, Option<&'s BoundFields>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let ValueSeed { cursor, out, target } = self;
        let bound_fields = match target {
            Target::Field(_, bound_fields) | Target::Message(_, bound_fields) => bound_fields,
            Target::Element(_) | Target::Packed(_) => None,
        };
        cursor.enter()?;
        match target.single() {
            Ok((Some(number), Kind::Message(id))) => {
                put_delimited(out, number, |out| write(cursor, out, id, bound_fields))?
            }
            Ok((None, Kind::Message(id))) => write(cursor, out, id, bound_fields)?,
            Ok((_, kind)) => return Err(cursor.refuse(Mismatch(scalar::expectation(kind)).to_string())),
            Err(mismatch) => return Err(cursor.refuse(mismatch.to_string())),
        }
        cursor.leave();
        Ok(true)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, '_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        let schema = self.cursor.schema;
        // `null` is a value of `NullValue` and `Value` (struct.proto). Elsewhere it means absent.
        let is_value = match self.target.single() {
            Ok((_, Kind::Enum(id))) => schema.enumeration(id).is_null,
            Ok((_, Kind::Message(id))) => schema.message(id).shape == Shape::Value,
            _ => false,
        };
        match self.target {
            _ if is_value => self.scalar(
                |_| Ok(Scalar::Varint(0)),
                |_| {
                    let mut body = Vec::new();
                    Scalar::Varint(0).put(&mut body, 1);
                    Ok(body)
                },
            ),
            Target::Field(..) => Ok(false),
            Target::Element(_) | Target::Packed(_) | Target::Message(..) => Err(self.cursor.refuse("must not be null")),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
        self.number_or_bool(|kind| Scalar::from_bool(kind, value), 4, Kind::Bool)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<bool, E> {
        self.number_or_bool(|kind| Scalar::from_i64(kind, value), 2, Kind::Double)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<bool, E> {
        self.number_or_bool(|kind| Scalar::from_u64(kind, value), 2, Kind::Double)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<bool, E> {
        if self.takes_integer() {
            self.cursor.inexact = true;
            return Err(E::custom("an integer with a fraction or an exponent"));
        }
        self.number_or_bool(|kind| Scalar::from_f64(kind, value), 2, Kind::Double)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        let schema = self.cursor.schema;
        let convert = |kind| Scalar::from_json_string(schema, kind, text);
        self.scalar(convert, |id| message_from_text(schema, id, text, convert))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<bool, A::Error> {
        if let Target::Field(field @ Field { label: Label::Repeated { .. }, .. }, _) = self.target {
            elements(self.cursor, self.out, field, sequence)?;
            return Ok(true);
        }
        self.message(|cursor, out, id, _| {
            let schema = cursor.schema;
            let message = schema.message(id);
            match message.shape {
                Shape::ListValue => elements(cursor, out, message.at(0), sequence),
                Shape::Value => {
                    let list = message.at(5);
                    let values = schema.message_of(list).map(|list| list.at(0));
                    let values = values.ok_or_else(|| cursor.refuse("no list of values in this schema"))?;
                    cursor.enter()?;
                    put_delimited(out, list.number, |out| elements(cursor, out, values, sequence))?;
                    cursor.leave();
                    Ok(())
                }
                _ => Err(cursor.refuse(expected_shape(message).to_string())),
            }
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<bool, A::Error> {
        if let Target::Field(field @ Field { label: Label::Map, .. }, _) = self.target {
            entries(self.cursor, self.out, field, map)?;
            return Ok(true);
        }
        self.message(|cursor, out, id, bound_fields| {
            let schema = cursor.schema;
            let message = schema.message(id);
            match message.shape {
                Shape::Object | Shape::HttpBody => members(cursor, out, id, bound_fields, map),
                Shape::Any => any(cursor, out, message, map),
                Shape::Struct => entries(cursor, out, message.at(0), map),
                Shape::Value => {
                    let object = message.at(4);
                    let fields = schema.message_of(object).map(|object| object.at(0));
                    let fields = fields.ok_or_else(|| cursor.refuse("no object of values in this schema"))?;
                    cursor.enter()?;
                    put_delimited(out, object.number, |out| entries(cursor, out, fields, map))?;
                    cursor.leave();
                    Ok(())
                }
                Shape::Timestamp | Shape::Duration | Shape::FieldMask | Shape::ListValue | Shape::Wrapper => {
                    Err(cursor.refuse(expected_shape(message).to_string()))
                }
            }
        })
    }
}

/// Reads a message whose JSON is a string, from a body or a query parameter. `convert` reads the value of a wrapper.
///
/// # Errors
///
/// Fails if the type has no string form, or if the text is invalid.
pub(crate) fn message_from_text<'t>(
    schema: &Schema,
    id: MessageId,
    text: &str,
    convert: impl FnOnce(Kind) -> Result<Scalar<'t>, Mismatch>,
) -> Result<Vec<u8>, Mismatch> {
    let message = schema.message(id);
    let mut body = Vec::new();
    match message.shape {
        Shape::Timestamp | Shape::Duration => return well_known::read(message.shape, text),
        Shape::FieldMask => return well_known::read_field_mask(text, schema.snake_case_masks),
        Shape::Value => wire::put_bytes(&mut body, 3, text.as_bytes()),
        Shape::Wrapper => {
            let value = message.at(0);
            convert(value.kind)?.put(&mut body, value.number);
        }
        _ => return Err(expected_shape(message)),
    }
    Ok(body)
}

/// Reads the members of an object as the fields of a message.
fn members<'de, 's, A: MapAccess<'de>>(
    cursor: &mut Cursor<'s>,
    out: &mut Vec<u8>,
    id: MessageId,
    bound_fields: Option<&'s BoundFields>,
    mut map: A,
) -> Result<(), A::Error> {
    let schema = cursor.schema;
    let message = schema.message(id);
    let mut named = IndexSet::new(message.fields.len());
    let mut chosen = IndexSet::new(message.oneofs.into());
    while let Some(name) = map.next_key_seed(Name)? {
        cursor.count()?;
        let Some(index) = message.field(&name) else {
            cursor.path.push(Step::Key(name.into_owned()));
            return Err(cursor.refuse("unknown field"));
        };
        let field = message.at(index);
        cursor.path.push(Step::Field(&field.name));
        let conflict = bound_fields.and_then(|bound_fields| bound_fields.check(schema, id, index).err());
        if conflict == Some(Conflict::OneofBound) {
            return Err(cursor.refuse("another member of its oneof is bound by the path"));
        }
        if !named.insert(index) {
            return Err(cursor.refuse("given more than once"));
        }
        if let Some(Conflict::Bound(variable)) = conflict {
            bound_member(cursor, field, variable, &mut map)?;
            cursor.path.pop();
            continue;
        }
        let target = Target::Field(field, bound_fields.and_then(|bound_fields| bound_fields.nested(index)));
        let present = map.next_value_seed(ValueSeed { cursor, out, target })?;
        if let Some(oneof) = field.oneof
            && present
            && !chosen.insert(oneof)
        {
            return Err(cursor.refuse("another member of its oneof is given too"));
        }
        cursor.path.pop();
    }
    Ok(())
}

/// Checks that a member has the same value as the path variable for its field. Compares the encoded fields, so that the spelling does
/// not matter. Does not write the member, because the path is written later.
fn bound_member<'de, 's, A: MapAccess<'de>>(
    cursor: &mut Cursor<'s>,
    field: &'s Field,
    variable: Option<usize>,
    map: &mut A,
) -> Result<(), A::Error> {
    let mut value = Vec::new();
    let seed = ValueSeed { cursor: &mut *cursor, out: &mut value, target: Target::Field(field, None) };
    let present = map.next_value_seed(seed)?;
    let bound = variable.and_then(|variable| cursor.bound.get(variable));
    if !present || bound != Some(&value) {
        return Err(cursor.refuse("is bound by the path to a different value"));
    }
    Ok(())
}

/// Reads the elements of a list as a repeated field.
fn elements<'de, 's, A: SeqAccess<'de>>(
    cursor: &mut Cursor<'s>,
    out: &mut Vec<u8>,
    field: &'s Field,
    mut sequence: A,
) -> Result<(), A::Error> {
    let packed = field.label == Label::Repeated { packed: true };
    let mut read_all = |out: &mut Vec<u8>| {
        for position in 0.. {
            cursor.path.push(Step::Index(position));
            let target = if packed { Target::Packed(field.kind) } else { Target::Element(field) };
            if sequence.next_element_seed(ValueSeed { cursor: &mut *cursor, out, target })?.is_none() {
                cursor.path.pop();
                break;
            }
            cursor.path.pop();
            cursor.count_element(field, position + 1)?;
        }
        Ok(())
    };
    if packed {
        put_delimited(out, field.number, read_all)?
    } else {
        read_all(out)?
    }
    Ok(())
}

/// Reads the members of an object as the entries of a map.
fn entries<'de, 's, A: MapAccess<'de>>(
    cursor: &mut Cursor<'s>,
    out: &mut Vec<u8>,
    field: &'s Field,
    mut map: A,
) -> Result<(), A::Error> {
    let schema = cursor.schema;
    let Some(entry) = schema.message_of(field) else { return Err(cursor.refuse("no map in this schema")) };
    let (key, value) = (entry.at(0), entry.at(1));
    let mut keys = HashSet::new();
    while let Some(name) = map.next_key_seed(Name)? {
        cursor.count_element(field, keys.len() + 1)?;
        cursor.enter()?;
        cursor.path.push(Step::Key(name.to_string()));
        let mut encoded = Vec::new();
        Scalar::from_text(schema, key.kind, &name)
            .map_err(|mismatch| cursor.refuse::<A::Error>(format!("as a key, {mismatch}")))?
            .put(&mut encoded, key.number);
        put_delimited(out, field.number, |out| {
            out.extend_from_slice(&encoded);
            map.next_value_seed(ValueSeed { cursor: &mut *cursor, out, target: Target::Element(value) }).map(drop)
        })?;
        // Compares encoded keys, because the numbers `1` and `1.0` are the same key.
        if !keys.insert(encoded) {
            return Err(cursor.refuse("given more than once"));
        }
        cursor.path.pop();
        cursor.leave();
    }
    Ok(())
}

/// Reads an object with `@type` as a packed message. Collects all members first, because `@type` may be the last.
fn any<'de, A: MapAccess<'de>>(
    cursor: &mut Cursor<'_>,
    out: &mut Vec<u8>,
    message: &Message,
    mut map: A,
) -> Result<(), A::Error> {
    let mut type_url = None;
    let mut rest = RawMembers::default();
    while let Some(name) = map.next_key_seed(Name)? {
        cursor.count()?;
        let value: &RawValue = map.next_value()?;
        if name != "@type" {
            rest.members.push((name, value.get()));
            continue;
        }
        match serde_json::from_str(value.get()) {
            Ok(url) if type_url.is_none() => type_url = Some::<String>(url),
            _ => return Err(cursor.refuse("expected one `@type`, a string")),
        }
    }
    let (url, value) = (message.at(0), message.at(1));
    match type_url {
        None if rest.members.is_empty() => {}
        None => return Err(cursor.refuse("expected a member `@type`")),
        Some(type_url) => {
            let known = type_url.rsplit_once('/').and_then(|(_, name)| cursor.schema.find(name));
            let Some(id) = known else {
                return Err(cursor.refuse(format!("no message type {:?}", clip(&type_url))));
            };
            wire::put_bytes(out, url.number, type_url.as_bytes());
            put_delimited(out, value.number, |out| any_payload(cursor, out, id, rest)).map_err(A::Error::custom)?;
        }
    }
    Ok(())
}

fn any_payload(
    cursor: &mut Cursor<'_>,
    out: &mut Vec<u8>,
    id: MessageId,
    mut rest: RawMembers<'_>,
) -> Result<(), serde_json::Error> {
    if cursor.schema.message(id).shape.is_object() {
        cursor.enter()?;
        rest.members.reverse();
        members(cursor, out, id, None, rest)?;
        cursor.leave();
        return Ok(());
    }
    // A type whose JSON is not an object is in the member `value` (ProtoJSON, Any).
    match (rest.members.pop(), rest.members.is_empty()) {
        (Some((name, value)), true) if name == "value" => {
            let seed = ValueSeed { cursor, out, target: Target::Message(id, None) };
            seed.deserialize(&mut serde_json::Deserializer::from_str(value)).map(drop)
        }
        _ => Err(cursor.refuse("expected `@type` and `value` only")),
    }
}

/// Members of an object with their unparsed values. The next one is last.
#[derive(Default)]
struct RawMembers<'de> {
    members: Vec<(Cow<'de, str>, &'de str)>,
    value: &'de str,
}

impl<'de> MapAccess<'de> for RawMembers<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let Some((name, value)) = self.members.pop() else { return Ok(None) };
        self.value = value;
        seed.deserialize(CowStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        seed.deserialize(&mut serde_json::Deserializer::from_str(self.value))
    }
}

fn expected(field: &Field) -> Mismatch {
    let expectation = match field.label {
        Label::Repeated { .. } => "a list",
        Label::Map => "an object",
        Label::Singular => scalar::expectation(field.kind),
    };
    Mismatch(expectation)
}

fn expected_shape(message: &Message) -> Mismatch {
    let expectation = match message.shape {
        Shape::Timestamp => "an RFC 3339 time, as a string",
        Shape::Duration => "a duration, as a string such as \"1.5s\"",
        Shape::FieldMask => "field paths, as a string",
        Shape::ListValue => "a list",
        Shape::Wrapper => scalar::expectation(message.at(0).kind),
        Shape::Object | Shape::HttpBody | Shape::Any | Shape::Struct | Shape::Value => "an object",
    };
    Mismatch(expectation)
}

/// The name of a member. Borrowed from the text if it has no escapes.
pub(crate) struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// A set of field or oneof indexes. Does not allocate for up to 64, which nearly every message has.
enum IndexSet {
    Few(u64),
    Many(Vec<bool>),
}

impl IndexSet {
    fn new(size: usize) -> IndexSet {
        if size <= 64 { IndexSet::Few(0) } else { IndexSet::Many(vec![false; size]) }
    }

    /// Adds an index. Returns `false` if the set already has it.
    fn insert(&mut self, index: u16) -> bool {
        match self {
            IndexSet::Few(bits) => {
                let bit = 1 << index;
                let is_new = *bits & bit == 0;
                *bits |= bit;
                is_new
            }
            IndexSet::Many(flags) => !std::mem::replace(&mut flags[usize::from(index)], true),
        }
    }
}
