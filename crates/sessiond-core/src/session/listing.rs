//! What may be asked of a listing, and what is in it.

use super::device::Device;
use super::epoch::Epoch;
use super::lifecycle::Session;
use super::origin;
use super::violation::Violation;
use super::violation::Violations;
use crate::clock::Timestamp;

/// The most sessions that a page holds; a larger size is cut to it (AIP-158).
pub const PAGE_SIZE_MAX: i32 = 1_000;
/// How many sessions a page holds when the size is unset or 0 (AIP-158).
pub const PAGE_SIZE_DEFAULT: i32 = 50;
/// The most labels that one listing selects by.
pub const LABELS_MAX: usize = 8;

/// Which sessions, by whether they are live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Those that are.
    Live,
    /// Those that are not.
    Ended,
    /// All.
    Any,
}

/// What a listing selects by. All must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Live or not.
    pub state: State,
    /// Labels, each with its value.
    pub labels: Vec<(String, String)>,
    /// The device's name.
    pub device_name: Option<String>,
}

impl Filter {
    /// Reads what was asked for: labels as `key=value`, and the number of sessions on a page, by the rules of AIP-158.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
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
        // As it was kept with the session: see `origin`.
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
    fn page_size_0_is_the_default_and_too_large_is_the_most() {
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
