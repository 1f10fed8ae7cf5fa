//! What a check has found.

use std::fmt::Display;

use serde::Serialize;

/// The state of what was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// Works, but may not tomorrow, or not for everyone.
    Warning,
    /// Does not work, or may lose a sign-out.
    Failed,
    /// Not checked, because something that it needs is missing.
    Skipped,
}

impl State {
    /// The name, as in the report.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// The check's name. Stable, for scripts.
    pub(super) name: &'static str,
    pub(super) state: State,
    /// What was found. Has no secret, no user and no client.
    pub(super) found: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

/// A finding whose name the table of checks adds.
#[derive(Clone, Debug)]
pub(super) struct Diagnosed {
    state: State,
    found: String,
    advice: Option<String>,
}

impl Diagnosed {
    pub(super) fn ok(found: impl Display) -> Self {
        Self { state: State::Ok, found: one_line(found), advice: None }
    }

    pub(super) fn warning(found: impl Display, advice: impl Display) -> Self {
        Self { state: State::Warning, found: one_line(found), advice: Some(one_line(advice)) }
    }

    pub(super) fn failed(found: impl Display, advice: impl Display) -> Self {
        Self { state: State::Failed, found: one_line(found), advice: Some(one_line(advice)) }
    }

    /// Failed, and the message of the error says what to do.
    pub(super) fn error(found: impl Display) -> Self {
        Self { state: State::Failed, found: one_line(found), advice: None }
    }

    pub(super) fn skipped(why: impl Display) -> Self {
        Self { state: State::Skipped, found: format!("not checked: {why}"), advice: None }
    }

    pub(super) fn named(self, name: &'static str) -> Finding {
        let Self { state, found, advice } = self;
        Finding { name, state, found, advice }
    }
}

/// A number and its noun.
pub(super) fn counted(count: impl Display + PartialEq + From<u8>, noun: &str) -> String {
    let plural = if count == 1.into() { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// A finding is one line: errors of others may have several.
fn one_line(text: impl Display) -> String {
    let text = text.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}
