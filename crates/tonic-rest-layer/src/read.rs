//! JSON to the wire, in one pass: `serde_json` reads, and every value is written as protobuf where it is met.
//!
//! The rules are ProtoJSON's (<https://protobuf.dev/programming-guides/json/>): both spellings of a name, numbers as
//! strings, `null` as absence, unknown names refused. Stricter than that: nothing may be said twice.

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

use crate::guard::Guard;
use crate::guard::Objection;
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

/// How deep messages may nest, counted as the wire has them: protobuf's own decoders stop at 100 below the first. An
/// object in a `Struct` is three levels there (`Value`, `Struct`, map entry), a list in a `ListValue` two.
pub(crate) const DEPTH_MAX: usize = 96;

/// What a body is read by, besides the type that it is of.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'s> {
    pub schema: &'s Schema,
    /// How many members, elements and map entries it may have in all.
    pub elements_max: usize,
    /// What the path says: for each of the binding's variables the field as it stands on the wire.
    pub bound: &'s [Vec<u8>],
}

/// Reads `json` as a message and appends its fields to `out`.
///
/// # Errors
///
/// With the first fault of the body, and where it is.
pub(crate) fn read_message(
    frame: Frame<'_>,
    message: MessageId,
    guard: &Guard,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    read(frame, Target::Body(message, Some(guard)), None, json, out)
}

/// Reads `json` as the value of one field and appends that field to `out`.
///
/// # Errors
///
/// As [`read_message`], with the field's name in front of every path.
pub(crate) fn read_field(
    frame: Frame<'_>,
    field: &Field,
    guard: Option<&Guard>,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    read(frame, Target::Field(field, guard), Some(&field.name), json, out)
}

fn read(
    frame: Frame<'_>,
    target: Target<'_>,
    prefix: Option<&str>,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    let start = out.len();
    match read_once(frame, target, prefix, json, Integers::AsParsed, out) {
        Err(Unread::Inexact) => {
            // Once more, with the text at hand: few bodies need it, so the others do not pay for it.
            out.truncate(start);
            match read_once(frame, target, prefix, json, Integers::AsWritten, out) {
                Err(Unread::Refused(violation)) => Err(violation),
                Err(Unread::Inexact) => Err(Violation::new("", "malformed JSON")),
                Ok(()) => Ok(()),
            }
        }
        Err(Unread::Refused(violation)) => Err(violation),
        Ok(()) => Ok(()),
    }
}

/// Where integers come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Integers {
    /// From the JSON parser, which makes a float of what has a fraction or an exponent.
    AsParsed,
    /// From the text of the body, exactly.
    AsWritten,
}

/// Why a body was not read.
enum Unread {
    Refused(Violation),
    /// An integer is written with a fraction or an exponent, and the float that was made of it does not tell its value.
    Inexact,
}

fn read_once(
    frame: Frame<'_>,
    target: Target<'_>,
    prefix: Option<&str>,
    json: &[u8],
    integers: Integers,
    out: &mut Vec<u8>,
) -> Result<(), Unread> {
    let Frame { schema, elements_max, bound } = frame;
    let mut place = Place {
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
    place.path.extend(prefix.map(Step::Field));
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let outcome = Slot { place: &mut place, out, target }.deserialize(&mut deserializer).and_then(|_| {
        place.path.clear();
        deserializer.end()
    });
    outcome.map_err(|error| {
        // A fault of the text itself is serde_json's to describe; the path says how far we had come.
        let malformed = || Violation::new(path_text(&place.path), format!("malformed JSON: {error}"));
        match place.violation.take() {
            Some(violation) => Unread::Refused(violation),
            None if place.inexact => Unread::Inexact,
            None => Unread::Refused(malformed()),
        }
    })
}

/// Where the reader stands, and what it has used up.
pub(crate) struct Place<'s> {
    schema: &'s Schema,
    path: Vec<Step<'s>>,
    depth: usize,
    elements: usize,
    elements_max: usize,
    bound: &'s [Vec<u8>],
    integers: Integers,
    /// Whether the reading stopped because an integer has to be read from its text.
    inexact: bool,
    /// serde's errors are text; ours is kept here while serde unwinds.
    violation: Option<Violation>,
}

impl Place<'_> {
    /// Refuses what stands here.
    pub(crate) fn refuse<E: Error>(&mut self, description: impl Into<String>) -> E {
        let description = description.into();
        self.violation.get_or_insert_with(|| Violation::new(path_text(&self.path), description));
        E::custom("refused")
    }

    /// Goes one message deeper.
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

    /// Counts one more of a list or a map that has `count` by now.
    fn count_of<E: Error>(&mut self, field: &Field, count: usize) -> Result<(), E> {
        self.count()?;
        if count > field.elements_max {
            return Err(self.refuse(format!("more than {} elements", field.elements_max)));
        }
        Ok(())
    }
}

/// What the next JSON value is for.
#[derive(Clone, Copy)]
enum Target<'s> {
    /// A field: a list or an object if it is repeated or a map, `null` for absence.
    Field(&'s Field, Option<&'s Guard>),
    /// One value of a repeated field or a map, where `null` is no value.
    One(&'s Field),
    /// One value of a packed list: no tag.
    Packed(Kind),
    /// The fields of a message, without a tag or a length.
    Body(MessageId, Option<&'s Guard>),
}

/// A place to write the next value to. Its result says whether there was one: `null` is none.
struct Slot<'r, 's> {
    place: &'r mut Place<'s>,
    out: &'r mut Vec<u8>,
    target: Target<'s>,
}

impl<'de> DeserializeSeed<'de> for Slot<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        if self.place.integers == Integers::AsWritten && self.takes_integer() {
            let text = <&RawValue>::deserialize(deserializer)?.get();
            return self.written(text);
        }
        deserializer.deserialize_any(self)
    }
}

impl Target<'_> {
    /// The field number to write (none when bare) and the kind, for anything but a whole list or map.
    fn single(self) -> Result<(Option<u32>, Kind), Mismatch> {
        match self {
            Target::Field(field, _) if field.label != Label::Singular => Err(expected(field)),
            Target::Field(field, _) | Target::One(field) => Ok((Some(field.number), field.kind)),
            Target::Packed(kind) => Ok((None, kind)),
            Target::Body(id, _) => Ok((None, Kind::Message(id))),
        }
    }
}

impl<'s> Slot<'_, 's> {
    /// Whether an integer belongs here: also an enum's number, or what a wrapper of an integer holds.
    fn takes_integer(&self) -> bool {
        let schema = self.place.schema;
        match self.target.single() {
            Ok((_, Kind::Message(id))) => {
                let message = schema.message(id);
                message.shape == Shape::Wrapper && message.at(0).kind.is_integer()
            }
            Ok((_, kind)) => kind.is_integer(),
            Err(_) => false,
        }
    }

    /// Reads the text of one JSON value where an integer belongs.
    fn written<E: Error>(self, text: &str) -> Result<bool, E> {
        if text.starts_with(|letter: char| letter == '-' || letter.is_ascii_digit()) {
            return self.plain(|kind| Scalar::from_number_text(kind, text), 2, Kind::Double);
        }
        serde_json::Deserializer::from_str(text).deserialize_any(self).map_err(E::custom)
    }

    /// Writes a value that is no object and no list: a scalar, or a message that JSON writes as one.
    fn scalar<'t, E: Error>(
        self,
        convert: impl FnOnce(Kind) -> Result<Scalar<'t>, Mismatch>,
        convert_message: impl FnOnce(MessageId) -> Result<Vec<u8>, Mismatch>,
    ) -> Result<bool, E> {
        let Slot { place, out, target } = self;
        if let Ok((_, Kind::Message(_))) = target.single() {
            place.enter()?;
            place.leave();
        }
        let written = target.single().and_then(|(number, kind)| {
            match (kind, number) {
                (Kind::Message(id), Some(number)) => wire::put_bytes(out, number, &convert_message(id)?),
                (Kind::Message(id), None) => out.extend_from_slice(&convert_message(id)?),
                (_, Some(number)) => convert(kind)?.held_by(place.schema, kind)?.put(out, number),
                (_, None) => convert(kind)?.held_by(place.schema, kind)?.put_bare(out),
            }
            Ok(true)
        });
        written.map_err(|mismatch| place.refuse(mismatch.to_string()))
    }

    /// Writes a number or a boolean, which is also a wrapper's, or a `google.protobuf.Value`'s field `number`.
    fn plain<E: Error>(
        self,
        convert: impl Fn(Kind) -> Result<Scalar<'static>, Mismatch>,
        value_number: u32,
        value_kind: Kind,
    ) -> Result<bool, E> {
        let schema = self.place.schema;
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

    /// Writes an object or a list as a message: with tag and length, or bare.
    fn message<E: Error>(
        self,
        write: impl FnOnce(&mut Place<'s>, &mut Vec<u8>, MessageId, Option<&'s Guard>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Slot { place, out, target } = self;
        let guard = match target {
            Target::Field(_, guard) | Target::Body(_, guard) => guard,
            Target::One(_) | Target::Packed(_) => None,
        };
        place.enter()?;
        match target.single() {
            Ok((Some(number), Kind::Message(id))) => put_delimited(out, number, |out| write(place, out, id, guard))?,
            Ok((None, Kind::Message(id))) => write(place, out, id, guard)?,
            Ok((_, kind)) => return Err(place.refuse(Mismatch(scalar::expectation(kind)).to_string())),
            Err(mismatch) => return Err(place.refuse(mismatch.to_string())),
        }
        place.leave();
        Ok(true)
    }
}

impl<'de> Visitor<'de> for Slot<'_, '_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        let schema = self.place.schema;
        // `null` is a value of two types (struct.proto); everywhere else it means absence.
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
            Target::One(_) | Target::Packed(_) | Target::Body(..) => Err(self.place.refuse("must not be null")),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
        self.plain(|kind| Scalar::from_bool(kind, value), 4, Kind::Bool)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<bool, E> {
        self.plain(|kind| Scalar::from_i64(kind, value), 2, Kind::Double)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<bool, E> {
        self.plain(|kind| Scalar::from_u64(kind, value), 2, Kind::Double)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<bool, E> {
        if self.takes_integer() {
            self.place.inexact = true;
            return Err(E::custom("an integer with a fraction or an exponent"));
        }
        self.plain(|kind| Scalar::from_f64(kind, value), 2, Kind::Double)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        let schema = self.place.schema;
        let convert = |kind| Scalar::from_json_string(schema, kind, text);
        self.scalar(convert, |id| message_from_text(schema, id, text, convert))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<bool, A::Error> {
        if let Target::Field(field @ Field { label: Label::Repeated { .. }, .. }, _) = self.target {
            elements(self.place, self.out, field, sequence)?;
            return Ok(true);
        }
        self.message(|place, out, id, _| {
            let schema = place.schema;
            let message = schema.message(id);
            match message.shape {
                Shape::ListValue => elements(place, out, message.at(0), sequence),
                Shape::Value => {
                    let list = message.at(5);
                    let values = schema.message_of(list).map(|list| list.at(0));
                    let values = values.ok_or_else(|| place.refuse("no list of values in this schema"))?;
                    place.enter()?;
                    put_delimited(out, list.number, |out| elements(place, out, values, sequence))?;
                    place.leave();
                    Ok(())
                }
                _ => Err(place.refuse(expected_shape(message).to_string())),
            }
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<bool, A::Error> {
        if let Target::Field(field @ Field { label: Label::Map, .. }, _) = self.target {
            entries(self.place, self.out, field, map)?;
            return Ok(true);
        }
        self.message(|place, out, id, guard| {
            let schema = place.schema;
            let message = schema.message(id);
            match message.shape {
                Shape::Object | Shape::HttpBody => members(place, out, id, guard, map),
                Shape::Any => any(place, out, message, map),
                Shape::Struct => entries(place, out, message.at(0), map),
                Shape::Value => {
                    let object = message.at(4);
                    let fields = schema.message_of(object).map(|object| object.at(0));
                    let fields = fields.ok_or_else(|| place.refuse("no object of values in this schema"))?;
                    place.enter()?;
                    put_delimited(out, object.number, |out| entries(place, out, fields, map))?;
                    place.leave();
                    Ok(())
                }
                Shape::Timestamp | Shape::Duration | Shape::FieldMask | Shape::ListValue | Shape::Wrapper => {
                    Err(place.refuse(expected_shape(message).to_string()))
                }
            }
        })
    }
}

/// A message that JSON writes as a string: also what a query parameter of that type holds. `convert` reads the text
/// for a wrapper.
///
/// # Errors
///
/// When the type has no string form, or the text is not of it.
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

/// The members of an object, as the fields of a message.
fn members<'de, 's, A: MapAccess<'de>>(
    place: &mut Place<'s>,
    out: &mut Vec<u8>,
    id: MessageId,
    guard: Option<&'s Guard>,
    mut map: A,
) -> Result<(), A::Error> {
    let schema = place.schema;
    let message = schema.message(id);
    let mut named = Seen::new(message.fields.len());
    let mut chosen = Seen::new(message.oneofs.into());
    while let Some(name) = map.next_key_seed(Name)? {
        place.count()?;
        let Some(index) = message.field(&name) else {
            place.path.push(Step::Key(name.into_owned()));
            return Err(place.refuse("unknown field"));
        };
        let field = message.at(index);
        place.path.push(Step::Field(&field.name));
        let objection = guard.and_then(|guard| guard.check(schema, id, index).err());
        if objection == Some(Objection::OneofTaken) {
            return Err(place.refuse("another member of its oneof is bound by the path"));
        }
        if !named.insert(index) {
            return Err(place.refuse("given more than once"));
        }
        if let Some(Objection::Taken(variable)) = objection {
            repeated(place, field, variable, &mut map)?;
            place.path.pop();
            continue;
        }
        let target = Target::Field(field, guard.and_then(|guard| guard.child(index)));
        let present = map.next_value_seed(Slot { place, out, target })?;
        if let Some(oneof) = field.oneof
            && present
            && !chosen.insert(oneof)
        {
            return Err(place.refuse("another member of its oneof is given too"));
        }
        place.path.pop();
    }
    Ok(())
}

/// A member that says again what the path says. It is compared as it would stand on the wire, so that each of its
/// spellings is one; and it is not written, since the path is.
fn repeated<'de, 's, A: MapAccess<'de>>(
    place: &mut Place<'s>,
    field: &'s Field,
    variable: Option<usize>,
    map: &mut A,
) -> Result<(), A::Error> {
    let mut said = Vec::new();
    let slot = Slot { place: &mut *place, out: &mut said, target: Target::Field(field, None) };
    let present = map.next_value_seed(slot)?;
    let bound = variable.and_then(|variable| place.bound.get(variable));
    if !present || bound != Some(&said) {
        return Err(place.refuse("is bound by the path, which says another value"));
    }
    Ok(())
}

/// The elements of a list, as a repeated field.
fn elements<'de, 's, A: SeqAccess<'de>>(
    place: &mut Place<'s>,
    out: &mut Vec<u8>,
    field: &'s Field,
    mut sequence: A,
) -> Result<(), A::Error> {
    let packed = field.label == Label::Repeated { packed: true };
    let mut read_all = |out: &mut Vec<u8>| {
        for position in 0.. {
            place.path.push(Step::Index(position));
            let target = if packed { Target::Packed(field.kind) } else { Target::One(field) };
            if sequence.next_element_seed(Slot { place: &mut *place, out, target })?.is_none() {
                place.path.pop();
                break;
            }
            place.path.pop();
            place.count_of(field, position + 1)?;
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

/// The members of an object, as the entries of a map.
fn entries<'de, 's, A: MapAccess<'de>>(
    place: &mut Place<'s>,
    out: &mut Vec<u8>,
    field: &'s Field,
    mut map: A,
) -> Result<(), A::Error> {
    let schema = place.schema;
    let Some(entry) = schema.message_of(field) else { return Err(place.refuse("no map in this schema")) };
    let (key, value) = (entry.at(0), entry.at(1));
    let mut keys = HashSet::new();
    while let Some(name) = map.next_key_seed(Name)? {
        place.count_of(field, keys.len() + 1)?;
        place.enter()?;
        place.path.push(Step::Key(name.to_string()));
        let mut encoded = Vec::new();
        Scalar::from_text(schema, key.kind, &name)
            .map_err(|mismatch| place.refuse::<A::Error>(format!("as a key, {mismatch}")))?
            .put(&mut encoded, key.number);
        put_delimited(out, field.number, |out| {
            out.extend_from_slice(&encoded);
            map.next_value_seed(Slot { place: &mut *place, out, target: Target::One(value) }).map(drop)
        })?;
        // Compared as encoded: for a number, `1` and `1.0` are one key.
        if !keys.insert(encoded) {
            return Err(place.refuse("given more than once"));
        }
        place.path.pop();
        place.leave();
    }
    Ok(())
}

/// An object with `@type`, as a packed message. Read whole first, since `@type` may come last.
fn any<'de, A: MapAccess<'de>>(
    place: &mut Place<'_>,
    out: &mut Vec<u8>,
    message: &Message,
    mut map: A,
) -> Result<(), A::Error> {
    let mut type_url = None;
    let mut rest = UnreadMembers::default();
    while let Some(name) = map.next_key_seed(Name)? {
        place.count()?;
        let value: &RawValue = map.next_value()?;
        if name != "@type" {
            rest.members.push((name, value.get()));
            continue;
        }
        match serde_json::from_str(value.get()) {
            Ok(url) if type_url.is_none() => type_url = Some::<String>(url),
            _ => return Err(place.refuse("expected one `@type`, a string")),
        }
    }
    let (url, value) = (message.at(0), message.at(1));
    match type_url {
        None if rest.members.is_empty() => {}
        None => return Err(place.refuse("expected a member `@type`")),
        Some(type_url) => {
            let known = type_url.rsplit_once('/').and_then(|(_, name)| place.schema.find(name));
            let Some(id) = known else {
                return Err(place.refuse(format!("no message type {:?}", clip(&type_url))));
            };
            wire::put_bytes(out, url.number, type_url.as_bytes());
            put_delimited(out, value.number, |out| any_payload(place, out, id, rest)).map_err(A::Error::custom)?;
        }
    }
    Ok(())
}

fn any_payload(
    place: &mut Place<'_>,
    out: &mut Vec<u8>,
    id: MessageId,
    mut rest: UnreadMembers<'_>,
) -> Result<(), serde_json::Error> {
    if place.schema.message(id).shape.is_object() {
        place.enter()?;
        rest.members.reverse();
        members(place, out, id, None, rest)?;
        place.leave();
        return Ok(());
    }
    // A type whose JSON is not an object stands in a member of its own (ProtoJSON, Any).
    match (rest.members.pop(), rest.members.is_empty()) {
        (Some((name, value)), true) if name == "value" => {
            let slot = Slot { place, out, target: Target::Body(id, None) };
            slot.deserialize(&mut serde_json::Deserializer::from_str(value)).map(drop)
        }
        _ => Err(place.refuse("expected `@type` and `value`, nothing else")),
    }
}

/// Members of an object whose values are still text, the next one last.
#[derive(Default)]
struct UnreadMembers<'de> {
    members: Vec<(Cow<'de, str>, &'de str)>,
    value: &'de str,
}

impl<'de> MapAccess<'de> for UnreadMembers<'de> {
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

/// A member's name, borrowed from the text where it has no escapes.
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

/// A set of small numbers. Nearly every message has at most 64 fields and needs no memory for it.
enum Seen {
    Few(u64),
    Many(Vec<bool>),
}

impl Seen {
    fn new(size: usize) -> Seen {
        if size <= 64 { Seen::Few(0) } else { Seen::Many(vec![false; size]) }
    }

    /// Adds a number; `false` when it was there already.
    fn insert(&mut self, index: u16) -> bool {
        match self {
            Seen::Few(bits) => {
                let bit = 1 << index;
                let fresh = *bits & bit == 0;
                *bits |= bit;
                fresh
            }
            Seen::Many(flags) => !std::mem::replace(&mut flags[usize::from(index)], true),
        }
    }
}
