//! From bytes to descriptors: looked through first, because what prost-reflect does not know it does not always refuse.

use std::collections::HashSet;

use prost_reflect::DescriptorPool;
use prost_reflect::EnumDescriptor;
use prost_reflect::EnumValueDescriptor;
use prost_reflect::prost::Message;
use prost_reflect::prost_types::FileDescriptorSet;

use crate::error::BuildError;
use crate::error::BuildErrors;
use crate::error::RuleError;

/// Reads an encoded `google.protobuf.FileDescriptorSet`.
///
/// # Errors
///
/// When the bytes are no such set, when it lacks what it imports, and with each file whose syntax prost-reflect does not
/// know: it panics on a file behind one of those.
pub(crate) fn decode(descriptor_set: &[u8]) -> Result<DescriptorPool, BuildErrors> {
    // Only for a look: what this type does not know, such as our options, is lost in it. Bytes that are no set are refused
    // below.
    let set = FileDescriptorSet::decode(descriptor_set).unwrap_or_default();
    let unknown = set.file.iter().filter_map(|file| match file.syntax() {
        "" | "proto2" | "proto3" => None,
        syntax => {
            Some(BuildError::of_set(RuleError::Syntax { file: file.name().to_owned(), syntax: syntax.to_owned() }))
        }
    });
    let mut errors: Vec<BuildError> = unknown.collect();
    let mut names = HashSet::new();
    let twice = set.file.iter().filter(|file| !names.insert(file.name()));
    errors.extend(twice.map(|file| BuildError::of_set(RuleError::DuplicateFile(file.name().to_owned()))));
    if !errors.is_empty() {
        return Err(BuildErrors(errors));
    }
    DescriptorPool::decode(descriptor_set).map_err(BuildError::of_descriptors)
}

/// The values of an enum in the order of their numbers, and several names of one number in the order of their
/// declaration: prost-reflect leaves those unordered, and the first is the canonical one (ProtoJSON, `allow_alias`).
pub(crate) fn enum_values(item: &EnumDescriptor) -> Vec<EnumValueDescriptor> {
    let mut values: Vec<_> = item.values().collect();
    // A value's path ends in its place among the enum's values.
    values.sort_by_key(|value| (value.number(), value.path().last().copied()));
    values
}
