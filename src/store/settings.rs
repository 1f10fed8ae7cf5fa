//! What every statement of ours relies on, as settings of the connection.
//!
//! Nothing that stays is set on a connection that a pooler gives to others too. The settings come as start-up options, and
//! where those do not arrive, with the beginning of each transaction.

use std::fmt::Write as _;
use std::time::Duration;

use super::RequiredDurability;

/// Begins a transaction. Each statement of ours sees what was committed before it, whatever the database's default.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// What [`SETTINGS`] is where the start-up options have arrived.
pub(super) const SETTINGS_MARK: &str = "1";

/// A setting of our own.
const SETTINGS: &str = "sessiond.settings";

/// What every statement of ours relies on.
pub(super) struct Settings {
    all: Vec<(&'static str, String)>,
    /// Begins a transaction where the settings did not arrive at the start; see [`Settings::begin`].
    begin: String,
}

impl Settings {
    /// A lock that we wait for in vain is given up by the server too, and a transaction whose client froze gives up its
    /// locks: nobody is left behind to block a sign-out.
    ///
    /// Each statement finds its rows by an index, whatever its parameters and however young the statistics; left to itself,
    /// Postgres plans one over an array on every call, which takes longer than to run it. What reads a whole table all the
    /// same, the keys, then looks dear enough to be compiled first: 200 ms of a processor, each time, for a few rows. So
    /// nothing is.
    ///
    /// The tables are those of one schema, whatever the role or the database say, and no temporary table hides them.
    pub(super) fn new(operation_timeout: Duration, search_path: Option<&str>) -> Self {
        let millis = operation_timeout.as_millis();
        let mut search_path = search_path.unwrap_or("public").to_owned();
        if !search_path.contains("pg_temp") {
            search_path.push_str(", pg_temp");
        }
        let text = str::to_owned;
        let all = vec![
            ("search_path", search_path),
            ("default_transaction_isolation", text("read committed")),
            ("lock_timeout", millis.to_string()),
            ("idle_in_transaction_session_timeout", (2 * millis).to_string()),
            ("plan_cache_mode", text("force_generic_plan")),
            ("enable_seqscan", text("off")),
            ("jit", text("off")),
            // A commit that did not wait for its standbys is told from others by a warning alone (`backend`).
            ("client_min_messages", text("warning")),
            ("standard_conforming_strings", text("on")),
            ("timezone", text("UTC")),
            (SETTINGS, text(SETTINGS_MARK)),
        ];
        // No query, whose snapshot would be the transaction's for good.
        let mut begin = BEGIN.to_owned();
        for (name, value) in all.iter().filter(|(name, _)| *name != SETTINGS) {
            let items = if *name == "search_path" { items(value) } else { literal(value) };
            let _ = write!(begin, "; SET LOCAL {name} = {items}");
        }
        Self { all, begin }
    }

    /// Begins a transaction where the settings did not arrive at the start. What commits wait for is set too, to what was found
    /// on the connection or what we need, whichever is more.
    pub(super) fn begin(&self, required_durability: RequiredDurability, commit: &str) -> String {
        match required_durability {
            RequiredDurability::Durable => {
                format!("{}; SET LOCAL synchronous_commit = {}", self.begin, literal(commit))
            }
            RequiredDurability::Any => self.begin.clone(),
        }
    }

    /// As start-up options, behind those of the URL: of two, the last one counts.
    pub(super) fn options(&self, given: Option<&str>) -> String {
        let mut options = given.unwrap_or_default().to_owned();
        for (name, value) in &self.all {
            let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
            let _ = write!(options, " -c {name}={value}");
        }
        options
    }
}

fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A list of names as SQL has it: those in double quotes stay as they are, all others are in lower case.
fn items(list: &str) -> String {
    let mut is_quoted = false;
    let split = |letter: char| {
        is_quoted ^= letter == '"';
        letter == ',' && !is_quoted
    };
    let item = |item: &str| match item.trim() {
        quoted if quoted.starts_with('"') => quoted.to_owned(),
        plain => literal(&plain.to_lowercase()),
    };
    list.split(split).map(item).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_behind_the_urls_own() {
        let settings = Settings::new(Duration::from_millis(1_500), Some("\"a,b c\",Own"));
        let options = settings.options(Some("-c work_mem=8MB"));
        assert!(
            options.starts_with("-c work_mem=8MB -c search_path=\"a,b\\ c\",Own,\\ pg_temp -c default"),
            "{options}"
        );
        assert!(
            settings.begin.contains("; SET LOCAL search_path = \"a,b c\", 'own', 'pg_temp';"),
            "{}",
            settings.begin
        );
    }
}
