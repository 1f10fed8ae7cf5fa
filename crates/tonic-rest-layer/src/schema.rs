//! Tables of messages, fields and enums, built once from the descriptors, so that a request needs only lookups.

use prost_reflect::Cardinality;
use prost_reflect::DescriptorPool;
use prost_reflect::EnumDescriptor;
use prost_reflect::FieldDescriptor;
use prost_reflect::Kind as ProtoKind;
use prost_reflect::MessageDescriptor;
use prost_reflect::Syntax;
use rustc_hash::FxHashMap;

use crate::descriptors::enum_values;
use crate::wire::WireType;

/// Every message and enum of a descriptor set.
///
/// The keys of its tables come from the descriptors, not from clients, so a hash without a random seed is safe.
#[derive(Debug)]
pub(crate) struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enum>,
    by_name: FxHashMap<Box<str>, MessageId>,
    /// Whether a FieldMask in a request may have proto names.
    pub snake_case_masks: bool,
    /// How messages are printed.
    pub style: PrintStyle,
}

/// How messages are printed: the options of ProtoJSON.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PrintStyle {
    /// Whether to use JSON names (lowerCamelCase) instead of proto names.
    pub json_names: bool,
    /// Whether to omit fields without presence that have default values.
    pub omits_defaults: bool,
}

/// The index of a message in [`Schema`]. Indexes, because messages can be recursive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MessageId(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EnumId(u32);

/// The index of a field in [`Message::fields`].
pub(crate) type FieldIndex = u16;

/// One message type, its fields in the order of their numbers.
#[derive(Debug)]
pub(crate) struct Message {
    pub full_name: Box<str>,
    pub shape: Shape,
    /// `google.rpc.DebugInfo`, which is removed from errors.
    pub is_debug_info: bool,
    pub fields: Vec<Field>,
    /// The number of oneofs, without the synthetic ones of `optional`.
    pub oneofs: u16,
    by_name: FxHashMap<Box<str>, FieldIndex>,
    /// Indexes by field number, for numbers below 256.
    by_small_number: Vec<Option<FieldIndex>>,
}

/// The JSON form of a message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An object with a member per field.
    Object,
    Any,
    Timestamp,
    Duration,
    FieldMask,
    Struct,
    Value,
    ListValue,
    /// `google.protobuf.StringValue` and the other wrappers: the value of field 1.
    Wrapper,
    /// `google.api.HttpBody`: the raw body, or an object if it is nested.
    HttpBody,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub number: u32,
    /// The name in the proto.
    pub name: Box<str>,
    /// The name in ProtoJSON: lowerCamelCase, or the `json_name` of the proto.
    pub json_name: Box<str>,
    pub label: Label,
    pub kind: Kind,
    /// Whether an absent field differs from one with the default value. Such a field is printed only if it is set.
    pub presence: bool,
    pub oneof: Option<u16>,
    /// The maximum number of elements or entries in a request.
    pub elements_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    Singular,
    Repeated {
        packed: bool,
    },
    /// The field's kind is the entry message, with the key as field 1 and the value as field 2.
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
}

#[derive(Debug)]
pub(crate) struct Enum {
    /// `google.protobuf.NullValue`, which JSON writes as `null`.
    pub is_null: bool,
    /// Whether it has only its named values: an enum of proto2.
    closed: bool,
    names: FxHashMap<Box<str>, i32>,
    numbers: FxHashMap<i32, Box<str>>,
}

impl Schema {
    pub(crate) fn new(pool: &DescriptorPool, style: PrintStyle) -> Schema {
        let by_name: FxHashMap<Box<str>, MessageId> =
            pool.all_messages().zip(0..).map(|(message, id)| (message.full_name().into(), MessageId(id))).collect();
        let enum_ids: FxHashMap<Box<str>, EnumId> =
            pool.all_enums().zip(0..).map(|(item, id)| (item.full_name().into(), EnumId(id))).collect();
        Schema {
            messages: pool.all_messages().map(|message| Message::new(&message, &by_name, &enum_ids)).collect(),
            enums: pool.all_enums().map(|item| Enum::new(&item)).collect(),
            by_name,
            snake_case_masks: false,
            style,
        }
    }

    /// Sets the maximum number of elements of a repeated field or a map in requests. Returns `false` if there is no such field.
    pub(crate) fn bound_elements(&mut self, full_name: &str, elements_max: usize) -> bool {
        let Some((message, name)) = full_name.rsplit_once('.') else { return false };
        let Some(id) = self.find(message) else { return false };
        let mut fields = self.messages[id.0 as usize].fields.iter_mut();
        match fields.find(|field| &*field.name == name && field.label != Label::Singular) {
            Some(field) => {
                field.elements_max = elements_max;
                true
            }
            None => false,
        }
    }

    pub(crate) fn message(&self, id: MessageId) -> &Message {
        &self.messages[id.0 as usize]
    }

    pub(crate) fn enumeration(&self, id: EnumId) -> &Enum {
        &self.enums[id.0 as usize]
    }

    /// The id of a message. The descriptor must be of the pool that this schema was built from.
    pub(crate) fn id(&self, message: &MessageDescriptor) -> MessageId {
        // A pool has every type that its methods use.
        self.by_name[message.full_name()]
    }

    /// Finds a message by its full name, without a leading dot.
    pub(crate) fn find(&self, full_name: &str) -> Option<MessageId> {
        self.by_name.get(full_name).copied()
    }

    /// The message type of a field, or `None` for a scalar or an enum.
    pub(crate) fn message_of(&self, field: &Field) -> Option<&Message> {
        match field.kind {
            Kind::Message(id) => Some(self.message(id)),
            _ => None,
        }
    }
}

impl Message {
    fn new(
        message: &MessageDescriptor,
        messages: &FxHashMap<Box<str>, MessageId>,
        enums: &FxHashMap<Box<str>, EnumId>,
    ) -> Message {
        let oneofs: Vec<_> = message.oneofs().filter(|oneof| !oneof.is_synthetic()).collect();
        let mut descriptors: Vec<FieldDescriptor> = message.fields().collect();
        descriptors.sort_by_key(FieldDescriptor::number);
        let mut by_name = FxHashMap::default();
        let mut by_small_number = Vec::new();
        for (field, index) in descriptors.iter().zip(0..) {
            by_name.insert(field.json_name().into(), index);
            if field.number() < 256 {
                by_small_number.resize(field.number() as usize + 1, None);
                by_small_number[field.number() as usize] = Some(index);
            }
        }
        for (field, index) in descriptors.iter().zip(0..) {
            // If one field's name is another field's JSON name, the JSON name has precedence (ProtoJSON).
            by_name.entry(field.name().into()).or_insert(index);
        }
        let fields = descriptors
            .iter()
            .map(|field| Field {
                number: field.number(),
                name: field.name().into(),
                json_name: field.json_name().into(),
                label: label(field),
                kind: kind(field, messages, enums),
                presence: field.supports_presence(),
                oneof: field
                    .containing_oneof()
                    .and_then(|oneof| oneofs.iter().position(|other| *other == oneof))
                    .map(|position| position as u16),
                elements_max: usize::MAX,
            })
            .collect::<Vec<_>>();
        Message {
            full_name: message.full_name().into(),
            shape: Shape::of(message.full_name(), fields.len()),
            is_debug_info: message.full_name() == "google.rpc.DebugInfo",
            fields,
            oneofs: oneofs.len() as u16,
            by_name,
            by_small_number,
        }
    }

    /// Finds a field by its proto name or its JSON name.
    pub(crate) fn field(&self, name: &str) -> Option<FieldIndex> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn field_by_number(&self, number: u32) -> Option<FieldIndex> {
        match self.by_small_number.get(number as usize) {
            Some(index) => *index,
            None => {
                self.fields.binary_search_by_key(&number, |field| field.number).ok().map(|index| index as FieldIndex)
            }
        }
    }

    pub(crate) fn at(&self, index: FieldIndex) -> &Field {
        &self.fields[usize::from(index)]
    }
}

impl Shape {
    /// The form of the message with this name. A well-known type without its standard fields is an ordinary object.
    pub(crate) fn of(full_name: &str, fields: usize) -> Shape {
        let shape = Shape::of_name(full_name);
        let expected = match shape {
            Shape::Object | Shape::Timestamp | Shape::Duration | Shape::FieldMask => 0,
            Shape::Struct | Shape::ListValue | Shape::Wrapper => 1,
            Shape::Any | Shape::HttpBody => 2,
            Shape::Value => 6,
        };
        if fields < expected { Shape::Object } else { shape }
    }

    fn of_name(full_name: &str) -> Shape {
        match full_name {
            "google.protobuf.Any" => Shape::Any,
            "google.protobuf.Timestamp" => Shape::Timestamp,
            "google.protobuf.Duration" => Shape::Duration,
            "google.protobuf.FieldMask" => Shape::FieldMask,
            "google.protobuf.Struct" => Shape::Struct,
            "google.protobuf.Value" => Shape::Value,
            "google.protobuf.ListValue" => Shape::ListValue,
            "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int64Value"
            | "google.protobuf.UInt64Value"
            | "google.protobuf.Int32Value"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.BoolValue"
            | "google.protobuf.StringValue"
            | "google.protobuf.BytesValue" => Shape::Wrapper,
            "google.api.HttpBody" => Shape::HttpBody,
            _ => Shape::Object,
        }
    }

    /// Whether its JSON is an object of its fields, not a form of its own.
    pub(crate) fn is_object(self) -> bool {
        matches!(self, Shape::Object | Shape::HttpBody)
    }
}

impl Kind {
    /// Whether its values are integers, which JSON may write with a fraction or an exponent. True for enums.
    pub(crate) fn is_integer(self) -> bool {
        !matches!(self, Kind::Double | Kind::Float | Kind::Bool | Kind::String | Kind::Bytes | Kind::Message(_))
    }

    pub(crate) fn wire_type(self) -> WireType {
        match self {
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::Fixed64,
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::Fixed32,
            Kind::Int32
            | Kind::Int64
            | Kind::Uint32
            | Kind::Uint64
            | Kind::Sint32
            | Kind::Sint64
            | Kind::Bool
            | Kind::Enum(_) => WireType::Varint,
            Kind::String | Kind::Bytes | Kind::Message(_) => WireType::Delimited,
        }
    }
}

impl Enum {
    fn new(item: &EnumDescriptor) -> Enum {
        let mut numbers = FxHashMap::default();
        for value in enum_values(item) {
            // The first of several aliases is the canonical one.
            numbers.entry(value.number()).or_insert_with(|| value.name().into());
        }
        Enum {
            is_null: item.full_name() == "google.protobuf.NullValue",
            closed: item.parent_file().syntax() == Syntax::Proto2,
            names: item.values().map(|value| (value.name().into(), value.number())).collect(),
            numbers,
        }
    }

    pub(crate) fn number(&self, name: &str) -> Option<i32> {
        self.names.get(name).copied()
    }

    /// Whether the number is valid. Always true for an open enum.
    pub(crate) fn accepts(&self, number: i32) -> bool {
        !self.closed || self.numbers.contains_key(&number)
    }

    pub(crate) fn name(&self, number: i32) -> Option<&str> {
        self.numbers.get(&number).map(|name| &**name)
    }
}

fn label(field: &FieldDescriptor) -> Label {
    if field.is_map() {
        Label::Map
    } else if field.cardinality() == Cardinality::Repeated {
        Label::Repeated { packed: field.is_packed() }
    } else {
        Label::Singular
    }
}

fn kind(
    field: &FieldDescriptor,
    messages: &FxHashMap<Box<str>, MessageId>,
    enums: &FxHashMap<Box<str>, EnumId>,
) -> Kind {
    match field.kind() {
        ProtoKind::Double => Kind::Double,
        ProtoKind::Float => Kind::Float,
        ProtoKind::Int32 => Kind::Int32,
        ProtoKind::Int64 => Kind::Int64,
        ProtoKind::Uint32 => Kind::Uint32,
        ProtoKind::Uint64 => Kind::Uint64,
        ProtoKind::Sint32 => Kind::Sint32,
        ProtoKind::Sint64 => Kind::Sint64,
        ProtoKind::Fixed32 => Kind::Fixed32,
        ProtoKind::Fixed64 => Kind::Fixed64,
        ProtoKind::Sfixed32 => Kind::Sfixed32,
        ProtoKind::Sfixed64 => Kind::Sfixed64,
        ProtoKind::Bool => Kind::Bool,
        ProtoKind::String => Kind::String,
        ProtoKind::Bytes => Kind::Bytes,
        // A pool has every type that its fields use.
        ProtoKind::Enum(item) => Kind::Enum(enums[item.full_name()]),
        ProtoKind::Message(message) => Kind::Message(messages[message.full_name()]),
    }
}
