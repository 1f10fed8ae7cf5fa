//! Which request fields are already bound. The path always wins: neither query nor body can change what the URL names.
//!
//! A body may repeat a bound field, because a client that reads a resource, edits it and writes it back also sends its name
//! (AIP-134). It must have the same value, in any of its spellings.
//!
//! A request whose body overrides a path variable bypasses every check made on the path. Other transcoders have had CVEs for
//! this class of mistake.

use crate::schema::FieldIndex;
use crate::schema::Kind;
use crate::schema::MessageId;
use crate::schema::Schema;

/// The fields of a message that are already bound.
#[derive(Debug, Default)]
pub(crate) struct BoundFields {
    /// Fields that are bound, each with the index of the path variable that binds it, if any.
    bound: Vec<(FieldIndex, Option<usize>)>,
    /// Oneofs with a bound member. Setting another member would unset it.
    oneofs: Vec<(u16, FieldIndex)>,
    /// Messages that are bound in part.
    nested: Vec<(FieldIndex, BoundFields)>,
}

/// Why a field cannot be bound or set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// The field is bound, by the path variable of this index, if any.
    Bound(Option<usize>),
    /// Another member of the same oneof is bound.
    OneofBound,
}

impl BoundFields {
    /// Binds the field at the end of `path` to the variable. Each index refers to the message of the field before it.
    ///
    /// # Errors
    ///
    /// Fails if the field, a part of it, a message around it, or another member of a oneof of any of these is bound.
    pub(crate) fn bind(
        &mut self,
        schema: &Schema,
        message: MessageId,
        path: &[FieldIndex],
        variable: Option<usize>,
    ) -> Result<(), Conflict> {
        let Some((&index, rest)) = path.split_first() else { return Ok(()) };
        self.check(schema, message, index)?;
        let field = schema.message(message).at(index);
        if let Some(oneof) = field.oneof
            && !self.oneofs.contains(&(oneof, index))
        {
            self.oneofs.push((oneof, index));
        }
        let position = self.nested.iter().position(|(nested, _)| *nested == index);
        match field.kind {
            Kind::Message(inner) if !rest.is_empty() => {
                let position = position.unwrap_or_else(|| {
                    self.nested.push((index, BoundFields::default()));
                    self.nested.len() - 1
                });
                self.nested[position].1.bind(schema, inner, rest, variable)
            }
            _ if position.is_some() => Err(Conflict::Bound(None)),
            _ => {
                self.bound.push((index, variable));
                Ok(())
            }
        }
    }

    /// Binds a field of the message itself, even if a part of it is bound. For the query of a rule with `body: "field"`.
    ///
    /// # Errors
    ///
    /// Fails if the field itself or another member of its oneof is bound.
    pub(crate) fn bind_whole(
        &mut self,
        schema: &Schema,
        message: MessageId,
        index: FieldIndex,
    ) -> Result<(), Conflict> {
        self.nested.retain(|(nested, _)| *nested != index);
        self.bind(schema, message, &[index], None)
    }

    /// Checks that a field may be set, whole or in part. For a part, also check [`BoundFields::nested`].
    pub(crate) fn check(&self, schema: &Schema, message: MessageId, index: FieldIndex) -> Result<(), Conflict> {
        if let Some((_, variable)) = self.bound.iter().find(|(bound, _)| *bound == index) {
            return Err(Conflict::Bound(*variable));
        }
        let oneof = schema.message(message).at(index).oneof;
        match oneof.and_then(|oneof| self.oneofs.iter().find(|(other, _)| *other == oneof)) {
            Some((_, member)) if *member != index => Err(Conflict::OneofBound),
            _ => Ok(()),
        }
    }

    /// The bound fields inside a field. `None` if there are none.
    pub(crate) fn nested(&self, index: FieldIndex) -> Option<&BoundFields> {
        self.nested.iter().find(|(nested, _)| *nested == index).map(|(_, fields)| fields)
    }
}
