//! Violations of the bounds of a request. Each bound on a text is defined here; the comments in the proto repeat it.

use std::collections::BTreeMap;

use crate::token::access;

/// The most bytes of the host application's claims as JSON; they are in every access token.
pub const CLAIMS_BYTES_MAX: usize = 4_096;
/// How deeply claims may be nested.
pub const CLAIMS_DEPTH_MAX: usize = 8;
/// The most labels.
pub const LABELS_MAX: usize = 32;
/// The longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;
/// The longest label value, `acr` or impersonator, in bytes. A device's name is truncated to it.
pub const TEXT_BYTES_MAX: usize = 255;

/// A field of a request that is out of bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's name in the proto, with dots for nested fields.
    pub field: &'static str,
    /// What is expected, as a phrase that follows the field's name.
    pub expected: &'static str,
}

/// Collects all violations of a request.
#[derive(Default)]
pub(super) struct Violations(Vec<Violation>);

impl Violations {
    /// Whether there are no violations so far.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the value if there are no violations.
    ///
    /// # Errors
    ///
    /// Returns all violations.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Vec<Violation>> {
        if self.is_empty() { Ok(value) } else { Err(self.0) }
    }

    /// The violations so far.
    pub(super) fn into_vec(self) -> Vec<Violation> {
        self.0
    }

    /// Adds a violation unless the field `fits`.
    pub(super) fn check(&mut self, fits: bool, field: &'static str, expected: &'static str) {
        if !fits {
            self.0.push(Violation { field, expected });
        }
    }

    /// Adds a violation if the value is missing.
    pub(super) fn require<T>(&mut self, value: Option<T>, field: &'static str, expected: &'static str) -> Option<T> {
        self.check(value.is_some(), field, expected);
        value
    }

    /// Checks labels against the bounds.
    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) {
        let fits = |(key, value): (&String, &String)| {
            !key.is_empty() && is_text(key, LABEL_KEY_BYTES_MAX) && is_text(value, TEXT_BYTES_MAX)
        };
        let expected = "must be at most 32 labels, with keys of 1 to 63 bytes and values of at most 255";
        self.check(labels.len() <= LABELS_MAX && labels.iter().all(fits), "labels", expected);
    }

    /// Checks claims: no reserved name, no NUL, the depth above, and at most `bytes_max` bytes as JSON.
    pub(super) fn claims(&mut self, claims: &serde_json::Map<String, serde_json::Value>, bytes_max: usize) {
        let reserved = claims.keys().any(|name| access::RESERVED_CLAIMS.contains(&name.as_str()));
        let is_mark = |name: &str| name.starts_with(MARK);
        let marked = claims.iter().any(|(name, value)| is_mark(name) || any(value, is_mark, |_| false));
        self.check(!reserved && !marked, "claims", "must not use a reserved claim name");
        let deep = claims.values().any(|value| depth(value) > CLAIMS_DEPTH_MAX);
        self.check(!deep, "claims", "must not be nested deeper than 8");
        let bytes = serde_json::to_vec(claims).map_or(usize::MAX, |json| json.len());
        self.check(bytes <= bytes_max, "claims", "must be at most 4096 bytes as JSON");
        // Postgres cannot store NUL in text.
        let has_nul = |text: &str| text.contains('\0');
        let broken = claims.iter().any(|(name, value)| has_nul(name) || any(value, has_nul, has_nul));
        self.check(!broken, "claims", "must not hold a NUL character");
    }
}

/// Whether a text is at most `bytes_max` long, without control characters.
pub(super) fn is_text(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && !text.chars().any(char::is_control)
}

fn depth(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// How the names begin by which the JSON library marks values of its own. It would read a claim of such a name as something else,
/// or not at all.
const MARK: &str = "$serde_json::private::";

/// Whether a name in a value, or a text, has a property.
fn any(value: &serde_json::Value, name_has: fn(&str) -> bool, text_has: fn(&str) -> bool) -> bool {
    use serde_json::Value;
    match value {
        Value::Array(items) => items.iter().any(|item| any(item, name_has, text_has)),
        Value::Object(fields) => fields.iter().any(|(name, value)| name_has(name) || any(value, name_has, text_has)),
        Value::String(text) => text_has(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
