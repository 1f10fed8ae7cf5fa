//! The report on standard output: a line for each check, or one JSON object.

use serde_json::json;
use sessiond_core::clock::Clock;

use super::finding::Finding;
use super::finding::State;
use crate::print;
use crate::print::Unwritten;

pub(super) fn lines(findings: &[Finding]) -> Result<(), Unwritten> {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for Finding { name, state, found, advice } in findings {
        let advice = advice.as_ref().map(|advice| format!(" → {advice}")).unwrap_or_default();
        print::line(format_args!("{:<7}  {name:width$}  {found}{advice}", state.as_str()))?;
    }
    Ok(())
}

pub(super) fn json(findings: &[Finding]) -> Result<(), Unwritten> {
    print::line(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "at": Clock::system().now().to_string(),
        "state": worst(findings).as_str(),
        "checks": findings,
    }))
}

/// The state of all together.
pub(super) fn worst(findings: &[Finding]) -> State {
    let has = |state| findings.iter().any(|finding| finding.state == state);
    match () {
        () if has(State::Failed) => State::Failed,
        () if has(State::Warning) => State::Warning,
        () => State::Ok,
    }
}
