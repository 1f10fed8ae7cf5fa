//! The connection settings that every statement relies on.
//!
//! Nothing that persists is set on a connection that a pooler shares. The settings are sent as start-up options, or
//! else at the start of each transaction.

use std::fmt::Write as _;
use std::time::Duration;

use super::RequiredDurability;
use super::distribute::Layout;
use super::wire::BEGIN;

/// The value of [`SETTINGS`] if the start-up options have arrived.
pub(super) const SETTINGS_MARK: &str = "1";

/// A custom setting.
const SETTINGS: &str = "sessiond.settings";

/// For a divided database. Its nodes are chosen by the values of the parameters, so it has no generic plans. And a statement
/// that asks every shard has one connection to each node, which is kept: Citus would open one for each shard, every time.
const OF_DIVIDED: [(&str, &str); 2] = [("plan_cache_mode", "auto"), ("citus.max_adaptive_executor_pool_size", "1")];

/// The settings of a divided database, for a connection of our own.
pub(super) fn of_divided() -> String {
    OF_DIVIDED.map(|(name, value)| format!("SET {name} = {value}")).join("; ")
}

/// The connection settings that every statement relies on.
pub(super) struct Settings {
    all: Vec<(&'static str, String)>,
    /// Begins a transaction if the start-up options did not arrive; see [`Settings::begin`].
    begin: String,
}

impl Settings {
    /// The server, too, stops waiting for a lock at the operation's time limit, and ends the transaction of a frozen
    /// client after twice that time, so that its locks block no sign-out.
    ///
    /// Each statement finds its rows by an index, whatever its parameters and the age of the statistics. Postgres would
    /// plan a statement over an array on every call, which takes longer than running it; so plans are generic. The
    /// statements that read whole tables, those for keys, then look expensive enough for JIT, which takes 200 ms of
    /// processor time each for a few rows; so JIT is off.
    ///
    /// The tables are found in one schema, whatever the role or the database set, and no temporary table can shadow
    /// them.
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
            // A commit that did not wait for its standbys is recognised by a warning alone (see `backend`).
            ("client_min_messages", text("warning")),
            ("standard_conforming_strings", text("on")),
            ("timezone", text("UTC")),
            (SETTINGS, text(SETTINGS_MARK)),
        ];
        // Not a query: its snapshot would become the transaction's.
        let mut begin = BEGIN.to_owned();
        for (name, value) in all.iter().filter(|(name, _)| *name != SETTINGS) {
            let items = if *name == "search_path" { items(value) } else { literal(value) };
            let _ = write!(begin, "; SET LOCAL {name} = {items}");
        }
        Self { all, begin }
    }

    /// Begins a transaction if the start-up options did not arrive. Also sets `synchronous_commit`: to the value found
    /// on the connection or the one required, whichever is stricter.
    pub(super) fn begin(&self, required_durability: RequiredDurability, commit: &str, layout: Layout) -> String {
        let mut begin = self.begin.clone();
        match required_durability {
            RequiredDurability::Durable => {
                let _ = write!(begin, "; SET LOCAL synchronous_commit = {}", literal(commit));
            }
            RequiredDurability::Any => {}
        }
        match layout {
            Layout::Divided => {
                for (name, value) in OF_DIVIDED {
                    let _ = write!(begin, "; SET LOCAL {name} = {value}");
                }
            }
            Layout::Single => {}
        }
        begin
    }

    /// As start-up options, after those of the URL: the last value of a setting wins.
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

/// A list of identifiers in SQL: quoted ones stay as they are, all others are in lower case.
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
