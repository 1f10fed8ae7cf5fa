//! Decodes descriptor sets, after checks for input on which prost-reflect panics.

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
/// Fails if the bytes are not a descriptor set, or if imported files are missing. Fails with each duplicate file, and with each
/// file whose syntax prost-reflect does not support, because it panics on files that import such a file.
pub(crate) fn decode(descriptor_set: &[u8]) -> Result<DescriptorPool, BuildErrors> {
    // Used for the checks only: this type drops unknown fields, such as the rules. Invalid bytes are rejected below.
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

/// The values of an enum in the order of their numbers; aliases in the order of their declaration. prost-reflect leaves aliases
/// unordered, and the first is the canonical one (ProtoJSON, `allow_alias`).
pub(crate) fn enum_values(item: &EnumDescriptor) -> Vec<EnumValueDescriptor> {
    let mut values: Vec<_> = item.values().collect();
    // The last element of a value's path is its index in the enum.
    values.sort_by_key(|value| (value.number(), value.path().last().copied()));
    values
}
