//! Messages as JSON Schema 2020-12, the dialect of OpenAPI 3.1.
//!
//! Requests and replies need different schemas. A request must not have unknown members, and may omit those that are not `REQUIRED`.
//! A reply always has the members without presence, and later versions may add members. A message in both directions gets two
//! components, `Foo` and `FooInput`.
//!
//! The schemas have the canonical form of ProtoJSON. The layer also accepts both names of a field, `null` for absence, numbers as
//! strings and enum values by number.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use prost_reflect::DescriptorPool;
use prost_reflect::EnumDescriptor;
use prost_reflect::ExtensionDescriptor;
use prost_reflect::FieldDescriptor;
use prost_reflect::Kind;
use prost_reflect::MessageDescriptor;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::comments::Comments;
use crate::bound_fields::BoundFields;
use crate::descriptors::enum_values;
use crate::schema::FieldIndex;
use crate::schema::MessageId;
use crate::schema::Schema;
use crate::schema::Shape;

/// The values of `google.api.FieldBehavior` that a schema can express (google/api/field_behavior.proto).
const REQUIRED: i32 = 2;
const OUTPUT_ONLY: i32 = 3;
const INPUT_ONLY: i32 = 4;

/// Whether a message is sent in requests or in replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Input,
    Output,
}

/// Creates schemas, and collects those that become components.
pub(super) struct Schemas<'d> {
    schema: &'d Schema,
    comments: &'d Comments,
    field_behavior: Option<ExtensionDescriptor>,
    /// The component name of each type.
    names: HashMap<String, String>,
    /// The directions of each message.
    mark_direction: HashSet<(String, Direction)>,
    components: BTreeMap<String, Value>,
}

impl<'d> Schemas<'d> {
    /// Names every type of the pool: by its name without the package, or by its full name if two types would have the same name.
    pub(super) fn new(pool: &DescriptorPool, schema: &'d Schema, comments: &'d Comments) -> Schemas<'d> {
        let mut types: Vec<(String, String)> = pool
            .all_messages()
            .map(|message| (message.full_name().to_owned(), message.package_name().to_owned()))
            .chain(pool.all_enums().map(|item| (item.full_name().to_owned(), item.package_name().to_owned())))
            .collect();
        types.sort_unstable();
        let short = |(full, package): &(String, String)| {
            let short = full.strip_prefix(package.as_str()).unwrap_or(full);
            // `Status` alone is ambiguous; services may have their own.
            if package == "google.rpc" { full.clone() } else { short.trim_start_matches('.').to_owned() }
        };
        let mut count: HashMap<String, usize> = HashMap::new();
        for item in &types {
            // `Foo` reserves `FooInput`.
            *count.entry(short(item)).or_default() += 1;
            *count.entry(format!("{}Input", short(item))).or_default() += 1;
        }
        let name = |item: &(String, String)| match count.get(&short(item)) {
            Some(1) => short(item),
            _ => item.0.clone(),
        };
        Schemas {
            schema,
            comments,
            field_behavior: pool.get_extension_by_name("google.api.field_behavior"),
            names: types.iter().map(|item| (item.0.clone(), name(item))).collect(),
            mark_direction: HashSet::new(),
            components: BTreeMap::new(),
        }
    }

    /// Marks the direction of a message and of all messages inside it. Must be called for all messages before the first schema.
    pub(super) fn mark_direction(&mut self, message: &MessageDescriptor, direction: Direction) {
        if !self.mark_direction.insert((message.full_name().to_owned(), direction)) {
            return;
        }
        for field in message.fields() {
            if let Kind::Message(inner) = field.kind() {
                self.mark_direction(&inner, direction);
            }
        }
    }

    pub(super) fn into_components(self) -> BTreeMap<String, Value> {
        self.components
    }

    /// The schema of a message. A reference if its JSON is an object of its fields.
    pub(super) fn message(&mut self, message: &MessageDescriptor, direction: Direction) -> Value {
        match Shape::of(message.full_name(), message.fields().len()) {
            Shape::Object | Shape::HttpBody => {
                let mut name = self.name(message.full_name());
                if direction == Direction::Input
                    && self.mark_direction.contains(&(message.full_name().to_owned(), Direction::Output))
                {
                    name.push_str("Input");
                }
                if !self.components.contains_key(&name) {
                    // Reserved before its fields are described, because the message may contain itself.
                    self.components.insert(name.clone(), Value::Null);
                    let object = self.object(message, direction, None);
                    self.components.insert(name.clone(), object);
                }
                reference(&name)
            }
            Shape::Wrapper => {
                let Some(value) = message.get_field(1) else { return json!({}) };
                let value = self.kind(&value.kind(), direction);
                if direction == Direction::Input { nullable(value) } else { value }
            }
            Shape::Timestamp => json!({"type": "string", "format": "date-time"}),
            Shape::Duration => json!({"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"}),
            Shape::FieldMask => json!({"type": "string"}),
            Shape::Struct => json!({"type": "object"}),
            Shape::Value => json!({}),
            Shape::ListValue => json!({"type": "array", "items": {}}),
            Shape::Any => json!({
                "type": "object",
                "required": ["@type"],
                "properties": {"@type": {"type": "string",         "description": "The type of the other members."}},
            }),
        }
    }

    /// An object of the message's fields, without those that are `bound` by the path.
    pub(super) fn object(
        &mut self,
        message: &MessageDescriptor,
        direction: Direction,
        bound: Option<&BoundFields>,
    ) -> Value {
        let Some(id) = self.schema.find(message.full_name()) else { return json!({}) };
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in message.fields() {
            let Some((index, inside)) = self.unbound_field(id, &field, bound) else { continue };
            let value = match (inside, field.kind()) {
                (Some(inside), Kind::Message(inner)) => {
                    let value = self.object(&inner, direction, Some(inside));
                    self.described(value, &field)
                }
                _ => self.field(&field, direction),
            };
            let always = match direction {
                Direction::Input => self.is_required(&field),
                Direction::Output => !self.schema.style.omits_defaults && !self.schema.message(id).at(index).presence,
            };
            if always {
                required.push(self.member(&field).to_owned());
            }
            properties.insert(self.member(&field).to_owned(), value);
        }
        let choices: Vec<Value> = message
            .oneofs()
            .filter_map(|oneof| {
                let names = oneof.fields().map(|field| self.member(&field).to_owned());
                let names: Vec<String> = names.filter(|name| properties.contains_key(name)).collect();
                (!oneof.is_synthetic() && names.len() > 1).then(|| at_most_one(&names))
            })
            .collect();

        let mut object = Map::new();
        object.insert("type".to_owned(), "object".into());
        if let Some(comment) = self.comments.of(&message.parent_file(), message.path()) {
            object.insert("description".to_owned(), comment.into());
        }
        object.insert("properties".to_owned(), properties.into());
        if !required.is_empty() {
            object.insert("required".to_owned(), required.into());
        }
        if !choices.is_empty() {
            object.insert("allOf".to_owned(), choices.into());
        }
        if direction == Direction::Input {
            object.insert("additionalProperties".to_owned(), false.into());
        }
        object.into()
    }

    /// The name of the field in JSON.
    pub(super) fn member<'f>(&self, field: &'f FieldDescriptor) -> &'f str {
        if self.schema.style.json_names { field.json_name() } else { field.name() }
    }

    /// The field's index, and the bound fields inside it. `None` if the field itself is bound.
    pub(super) fn unbound_field<'g>(
        &self,
        message: MessageId,
        field: &FieldDescriptor,
        bound: Option<&'g BoundFields>,
    ) -> Option<(FieldIndex, Option<&'g BoundFields>)> {
        let index = self.schema.message(message).field_by_number(field.number())?;
        let free = bound.is_none_or(|bound| bound.check(self.schema, message, index).is_ok());
        free.then(|| (index, bound.and_then(|bound| bound.nested(index))))
    }

    /// The schema of a field, with its comment and its options.
    pub(super) fn field(&mut self, field: &FieldDescriptor, direction: Direction) -> Value {
        let value = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
                let mut map = json!({"type": "object", "additionalProperties": self.kind(&value.kind(), direction)});
                match key.kind() {
                    Kind::String => {}
                    Kind::Bool => map["propertyNames"] = json!({"enum": ["true", "false"]}),
                    _ => map["propertyNames"] = json!({"pattern": INTEGER}),
                }
                map
            }
            kind if field.is_list() => json!({"type": "array", "items": self.kind(&kind, direction)}),
            kind => self.kind(&kind, direction),
        };
        self.described(value, field)
    }

    fn described(&self, mut value: Value, field: &FieldDescriptor) -> Value {
        if let Some(comment) = self.comment(field) {
            value["description"] = comment.into();
        }
        if field.field_descriptor_proto().options.as_ref().is_some_and(|options| options.deprecated()) {
            value["deprecated"] = true.into();
        }
        let behavior = self.behavior(field);
        if behavior.contains(&OUTPUT_ONLY) {
            value["readOnly"] = true.into();
        }
        if behavior.contains(&INPUT_ONLY) {
            value["writeOnly"] = true.into();
        }
        value
    }

    pub(super) fn comment(&self, field: &FieldDescriptor) -> Option<&'d str> {
        self.comments.of(&field.parent_message().parent_file(), field.path())
    }

    pub(super) fn is_required(&self, field: &FieldDescriptor) -> bool {
        self.behavior(field).contains(&REQUIRED)
    }

    fn behavior(&self, field: &FieldDescriptor) -> Vec<i32> {
        let Some(extension) = &self.field_behavior else { return Vec::new() };
        let options = field.options();
        let values = options.get_extension(extension);
        values.as_list().unwrap_or_default().iter().filter_map(prost_reflect::Value::as_enum_number).collect()
    }

    /// The schema of one value.
    pub(super) fn kind(&mut self, kind: &Kind, direction: Direction) -> Value {
        match kind {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({"type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX})
            }
            Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => int64_schema("int64", INTEGER, direction),
            Kind::Uint64 | Kind::Fixed64 => int64_schema("uint64", UNSIGNED, direction),
            Kind::Float => float_schema("float"),
            Kind::Double => float_schema("double"),
            Kind::Enum(item) if item.full_name() == "google.protobuf.NullValue" => json!({"type": "null"}),
            Kind::Enum(item) => self.enumeration(item),
            Kind::Message(message) => self.message(message, direction),
        }
    }

    fn enumeration(&mut self, item: &EnumDescriptor) -> Value {
        let name = self.name(item.full_name());
        if !self.components.contains_key(&name) {
            let values = enum_values(item);
            let names: Vec<Value> = values.iter().map(|value| value.name().into()).collect();
            let mut texts = Vec::from_iter(self.comments.of(&item.parent_file(), item.path()).map(str::to_owned));
            let each = values.iter().filter_map(|value| {
                let comment = self.comments.of(&item.parent_file(), value.path())?;
                Some(format!("- `{}`: {}", value.name(), comment.replace('\n', " ")))
            });
            let each: Vec<String> = each.collect();
            if !each.is_empty() {
                texts.push(each.join("\n"));
            }
            let mut value = json!({"type": "string", "enum": names});
            if !texts.is_empty() {
                value["description"] = texts.join("\n\n").into();
            }
            self.components.insert(name.clone(), value);
        }
        reference(&name)
    }

    fn name(&self, full_name: &str) -> String {
        self.names.get(full_name).map_or(full_name, String::as_str).to_owned()
    }
}

/// Patterns of integers as strings.
const INTEGER: &str = "^-?(0|[1-9][0-9]*)$";
const UNSIGNED: &str = "^(0|[1-9][0-9]*)$";

/// 64-bit integers are printed as strings, and accepted as strings or numbers.
fn int64_schema(format: &str, pattern: &str, direction: Direction) -> Value {
    let kind = if direction == Direction::Input { json!(["string", "integer"]) } else { json!("string") };
    json!({"type": kind, "format": format, "pattern": pattern})
}

fn float_schema(format: &str) -> Value {
    json!({"anyOf": [{"type": "number", "format": format}, {"enum": ["NaN", "Infinity", "-Infinity"]}]})
}

pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

pub(super) fn nullable(value: Value) -> Value {
    json!({"anyOf": [value, {"type": "null"}]})
}

/// At most one member of a oneof may be present.
fn at_most_one(names: &[String]) -> Value {
    let one = |name: &String| json!({"required": [name]});
    let mut ways: Vec<Value> = names.iter().map(one).collect();
    ways.push(json!({"not": {"anyOf": ways}}));
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    json!({"description": format!("At most one of {}.", quoted.join(", ")), "oneOf": ways})
}
