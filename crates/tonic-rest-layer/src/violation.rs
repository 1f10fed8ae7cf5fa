//! What is wrong with a request, and where.

use std::fmt::Write;

/// A name that a client made up is repeated back to it, but not at any length.
const NAME_BYTES_MAX: usize = 128;

/// One fault of a request: which field, and why. Becomes a `google.rpc.BadRequest.FieldViolation`.
///
/// The description says what was expected and never repeats a value, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// A path in proto field names, such as `session.labels["a"]` or `tags[2]`. Empty for the message as a whole.
    pub field: String,
    pub description: String,
}

impl Violation {
    pub(crate) fn new(field: impl Into<String>, description: impl Into<String>) -> Violation {
        Violation { field: field.into(), description: description.into() }
    }
}

/// One step into a message.
#[derive(Debug, Clone)]
pub(crate) enum Step<'s> {
    Field(&'s str),
    Index(usize),
    /// A map's key, or a name that no field has.
    Key(String),
}

/// Writes a path the way people write it.
pub(crate) fn path_text(steps: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => drop(write!(text, ".{name}")),
            Step::Index(index) => drop(write!(text, "[{index}]")),
            Step::Key(key) if text.is_empty() => text.push_str(clip(key)),
            Step::Key(key) => drop(write!(text, "[{:?}]", clip(key))),
        }
    }
    text
}

/// Cuts a name at 128 bytes, on a character's boundary.
pub(crate) fn clip(name: &str) -> &str {
    // `str::floor_char_boundary` needs Rust 1.91.
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}
