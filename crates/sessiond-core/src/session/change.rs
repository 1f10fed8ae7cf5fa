//! Changes to a session: the values that the host application stores with it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::lifecycle::Session;
use super::origin;
use super::violation::CLAIMS_BYTES_MAX;
use super::violation::Violation;
use super::violation::Violations;

/// New values. `None` leaves a field unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Replaces all claims.
    pub claims: Option<serde_json::Map<String, serde_json::Value>>,
    /// Replaces all labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// The device's name; `Some(None)` removes it.
    pub device_name: Option<Option<String>>,
    /// What becomes of the access tokens that were issued before.
    pub earlier_tokens: EarlierTokens,
}

/// What becomes of the access tokens that were issued before a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlierTokens {
    /// They remain valid, with the earlier claims, until they expire.
    #[default]
    Kept,
    /// They are superseded.
    Superseded,
}

impl Change {
    /// Validates the new values against the bounds of a new session.
    ///
    /// # Errors
    ///
    /// Returns all violations.
    pub fn check(self) -> Result<Self, Vec<Violation>> {
        let mut found = Violations::default();
        if let Some(claims) = &self.claims {
            found.claims(claims, CLAIMS_BYTES_MAX);
        }
        if let Some(labels) = &self.labels {
            found.labels(labels);
        }
        let device_name = self.device_name.map(|name| name.as_deref().and_then(origin::device_name));
        found.into_result(Self { device_name, ..self })
    }

    /// Applies the change.
    pub fn apply(self, session: &mut Session) {
        if let Some(claims) = self.claims {
            session.claims = claims;
        }
        if let Some(labels) = self.labels {
            session.labels = labels;
        }
        if let Some(name) = self.device_name {
            // Visible at once: unlike a refresh, it reveals nothing that `as_shown_to_user` hides.
            if let Some(before) = &mut session.device_before {
                before.device.name.clone_from(&name);
            }
            session.device.name = name;
        }
        if self.earlier_tokens == EarlierTokens::Superseded {
            session.own_epoch += 1;
        }
    }
}

/// The most names that [`changed_fields`] returns.
pub const CHANGED_FIELDS_MAX: usize = 100;

/// The names of the fields that differ between two states of a session: `claims.NAME` and `labels.NAME` for each that was
/// added, changed or removed, and `device_name`. At most [`CHANGED_FIELDS_MAX`]. Names only: values may be personal.
pub fn changed_fields(before: &Session, after: &Session) -> Vec<String> {
    let claims = differing(before.claims.iter(), after.claims.iter()).map(|name| format!("claims.{name}"));
    let labels = differing(before.labels.iter(), after.labels.iter()).map(|name| format!("labels.{name}"));
    let device_name = (before.device.name != after.device.name).then(|| "device_name".to_owned());
    claims.chain(labels).chain(device_name).take(CHANGED_FIELDS_MAX).collect()
}

/// The keys whose values differ, or that only one side has, in order.
fn differing<'a, V: PartialEq + 'a>(
    before: impl Iterator<Item = (&'a String, &'a V)>,
    after: impl Iterator<Item = (&'a String, &'a V)>,
) -> impl Iterator<Item = &'a String> {
    let (before, after): (BTreeMap<_, _>, BTreeMap<_, _>) = (before.collect(), after.collect());
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).copied().collect();
    names.into_iter().filter(move |name| before.get(name) != after.get(name))
}
