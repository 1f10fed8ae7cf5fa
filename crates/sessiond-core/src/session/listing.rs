//! The filter of a listing, and its page size.

use super::device::Device;
use super::epoch::Epoch;
use super::lifecycle::Session;
use super::origin;
use super::violation::Violation;
use super::violation::Violations;
use crate::clock::Timestamp;

/// The largest page size. Larger values are reduced to it (AIP-158).
pub const PAGE_SIZE_MAX: i32 = 1_000;
/// The page size if it is unset or 0 (AIP-158).
pub const PAGE_SIZE_DEFAULT: i32 = 50;
/// The most labels in a filter.
pub const LABELS_MAX: usize = 8;

/// Whether a listing includes live or ended sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Live sessions.
    Live,
    /// Ended sessions.
    Ended,
    /// All sessions.
    Any,
}

/// The filter of a listing. A session must match all parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Live or not.
    pub state: State,
    /// Labels with their values.
    pub labels: Vec<(String, String)>,
    /// The device's name.
    pub device_name: Option<String>,
}

impl Filter {
    /// Validates a request: labels as `key=value`, and the page size by the rules of AIP-158. Returns the filter and the page
    /// size.
    ///
    /// # Errors
    ///
    /// Returns all violations.
    pub fn check(
        state: State,
        labels: &[String],
        device_name: Option<String>,
        page_size: Option<i32>,
    ) -> Result<(Self, usize), Vec<Violation>> {
        let mut found = Violations::default();
        let pairs: Option<Vec<_>> = labels.iter().map(|label| label.split_once('=')).collect();
        let pairs = pairs.filter(|pairs| pairs.len() <= LABELS_MAX);
        let pairs = found.require(pairs, "labels", "must be at most 8, each written `key=value`").unwrap_or_default();
        let labels = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        // Cleaned as the stored name was; see `origin`.
        let device_name = device_name.map(|name| origin::device_name(&name).unwrap_or_default());
        let page_size = page_size.filter(|size| *size != 0).unwrap_or(PAGE_SIZE_DEFAULT).min(PAGE_SIZE_MAX);
        found.check(page_size > 0, "page_size", "must not be negative");
        let filter = Self { state, labels, device_name };
        found.into_result((filter, usize::try_from(page_size).unwrap_or(0)))
    }

    /// Whether a session matches. `device` is the session's device as the caller may see it.
    pub fn selects(&self, session: &Session, device: &Device, now: Timestamp, present: Epoch) -> bool {
        let in_state = match self.state {
            State::Live => session.is_live(now, present),
            State::Ended => !session.is_live(now, present),
            State::Any => true,
        };
        in_state
            && self.labels.iter().all(|(key, value)| session.labels.get(key) == Some(value))
            && self.device_name.as_ref().is_none_or(|name| device.name.as_ref() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(labels: &[&str], page_size: Option<i32>) -> Result<(Filter, usize), Vec<Violation>> {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        Filter::check(State::Live, &labels, None, page_size)
    }

    #[test]
    fn page_size_0_is_the_default_and_larger_sizes_are_reduced() {
        for (size, expected) in [
            (None, 50),
            (Some(0), 50),
            (Some(1), 1),
            (Some(1_000), 1_000),
            (Some(1_001), 1_000),
            (Some(i32::MAX), 1_000),
        ] {
            assert_eq!(check(&[], size).expect("fits").1, expected, "{size:?}");
        }
        for size in [-1, i32::MIN] {
            assert_eq!(check(&[], Some(size)).expect_err("negative")[0].field, "page_size", "{size}");
        }
    }

    #[test]
    fn a_label_is_a_key_and_a_value() {
        let (filter, _) = check(&["team=blue", "path=a=b"], None).expect("both are labels");
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(filter.labels, [pair("team", "blue"), pair("path", "a=b")]);
        for bad in [&["team"][..], &["a=b"; 9]] {
            assert_eq!(check(bad, None).expect_err("refused")[0].field, "labels");
        }
    }
}
