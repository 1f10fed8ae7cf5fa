//! The path always wins: what a body or a query must not change, because the URL's path has said it already.
//!
//! A body may repeat what the path says: a client that reads a resource, edits it and writes it back sends its name along
//! (AIP-134). It must say the same value, in any of its spellings.
//!
//! A request whose body could override what its path names gets past every check made on the path; this class of
//! mistake has been a CVE in peers.

use crate::schema::FieldIndex;
use crate::schema::Kind;
use crate::schema::MessageId;
use crate::schema::Schema;

/// The part of a message that is spoken for.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Fields that are spoken for, and by which of the binding's variables, if by one.
    taken: Vec<(FieldIndex, Option<usize>)>,
    /// Oneofs in which one member was chosen; naming another would unset it.
    oneofs: Vec<(u16, FieldIndex)>,
    /// Messages of which a part is spoken for.
    children: Vec<(FieldIndex, Guard)>,
}

/// Why a field must not be named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objection {
    /// It is taken, by this variable of the path if by one.
    Taken(Option<usize>),
    /// Another member of the same oneof is.
    OneofTaken,
}

impl Guard {
    /// Takes the field at the end of `path` for the variable. Each index is of the message that the one before it leads to.
    ///
    /// # Errors
    ///
    /// When the field, a part of it, the whole that it is a part of, or a oneof sibling of any of these is taken.
    pub(crate) fn take(
        &mut self,
        schema: &Schema,
        message: MessageId,
        path: &[FieldIndex],
        variable: Option<usize>,
    ) -> Result<(), Objection> {
        let Some((&index, rest)) = path.split_first() else { return Ok(()) };
        self.check(schema, message, index)?;
        let field = schema.message(message).at(index);
        if let Some(oneof) = field.oneof
            && !self.oneofs.contains(&(oneof, index))
        {
            self.oneofs.push((oneof, index));
        }
        let place = self.children.iter().position(|(child, _)| *child == index);
        match field.kind {
            Kind::Message(inner) if !rest.is_empty() => {
                let place = place.unwrap_or_else(|| {
                    self.children.push((index, Guard::default()));
                    self.children.len() - 1
                });
                self.children[place].1.take(schema, inner, rest, variable)
            }
            _ if place.is_some() => Err(Objection::Taken(None)),
            _ => {
                self.taken.push((index, variable));
                Ok(())
            }
        }
    }

    /// Takes a field of the message itself, whatever part of it is taken already: what `body: "field"` leaves to the
    /// query.
    ///
    /// # Errors
    ///
    /// When the field itself or a oneof sibling is taken.
    pub(crate) fn take_whole(
        &mut self,
        schema: &Schema,
        message: MessageId,
        index: FieldIndex,
    ) -> Result<(), Objection> {
        self.children.retain(|(child, _)| *child != index);
        self.take(schema, message, &[index], None)
    }

    /// Says whether a field may be named, whole or in part; for a part, ask its [`Guard::child`] as well.
    pub(crate) fn check(&self, schema: &Schema, message: MessageId, index: FieldIndex) -> Result<(), Objection> {
        if let Some((_, variable)) = self.taken.iter().find(|(taken, _)| *taken == index) {
            return Err(Objection::Taken(*variable));
        }
        let oneof = schema.message(message).at(index).oneof;
        match oneof.and_then(|oneof| self.oneofs.iter().find(|(other, _)| *other == oneof)) {
            Some((_, chosen)) if *chosen != index => Err(Objection::OneofTaken),
            _ => Ok(()),
        }
    }

    /// What is spoken for inside a field, if anything is.
    pub(crate) fn child(&self, index: FieldIndex) -> Option<&Guard> {
        self.children.iter().find(|(child, _)| *child == index).map(|(_, guard)| guard)
    }
}
