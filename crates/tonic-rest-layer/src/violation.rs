//! Violations: the invalid fields of a request.

use std::fmt::Write;

/// The maximum length of a client's name in an error message, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// One invalid field, and why it is invalid. Becomes a `google.rpc.BadRequest.FieldViolation`.
///
/// The description has what was expected and never the value, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// A path in proto field names, such as `session.labels["a"]` or `tags[2]`. Empty for the whole message.
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
    /// The key of a map entry, or the name of an unknown field.
    Key(String),
}

/// Formats a path, as in `session.labels["a"]`.
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

/// Truncates a name to 128 bytes, at a character boundary.
pub(crate) fn clip(name: &str) -> &str {
    // `str::floor_char_boundary` needs Rust 1.91.
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}
