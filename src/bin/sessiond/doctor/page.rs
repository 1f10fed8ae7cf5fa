//! The report as a page: one file, which loads nothing and runs no script, so that it can be sent to a colleague.

use sessiond_core::clock::Clock;

use super::finding::Finding;
use super::finding::State;
use super::report::worst;

const TEMPLATE: &str = include_str!("page.html");

pub(super) fn of(findings: &[Finding]) -> String {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let states = [State::Failed, State::Warning, State::Ok, State::Skipped];
    let summary: Vec<String> = states
        .into_iter()
        .filter(|state| count(*state) > 0)
        .map(|state| format!("<span class=\"{0}\">{1} {0}</span>", state.as_str(), count(state)))
        .collect();
    // What needs attention first; otherwise in the order of the checks.
    let rows = states.into_iter().flat_map(|state| findings.iter().filter(move |finding| finding.state == state));
    let rows: String = rows.map(row).collect();
    let title = match worst(findings) {
        State::Failed => "Something does not work",
        State::Warning => "It works, with warnings",
        State::Ok | State::Skipped => "All is well",
    };
    // In one pass, so that nothing found can stand for a placeholder.
    let mut page = String::new();
    for (at, part) in TEMPLATE.split("{{").enumerate() {
        let (name, rest) = if at == 0 { ("", part) } else { part.split_once("}}").unwrap_or(("", part)) };
        page.push_str(&match name {
            "title" => title.to_owned(),
            "summary" => summary.join(" "),
            "rows" => rows.clone(),
            "at" => Clock::system().now().to_string(),
            "version" => env!("CARGO_PKG_VERSION").to_owned(),
            _ => String::new(),
        });
        page.push_str(rest);
    }
    page
}

fn row(Finding { name, state, found, advice }: &Finding) -> String {
    let state = state.as_str();
    let name = escaped(&name.replace('_', " "));
    let advice =
        advice.as_ref().map(|advice| format!("<p class=\"advice\">{}</p>", escaped(advice))).unwrap_or_default();
    format!(
        "<li class=\"{state}\"><span class=\"state\">{state}</span><div><h2>{name}</h2><p>{}</p>{advice}</div></li>\n",
        escaped(found)
    )
}

/// Escapes text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Diagnosed;
    use super::*;

    #[test]
    fn what_was_found_is_text_and_not_markup() {
        let page = of(&[Diagnosed::failed("<script>{{rows}}", "a & b").named("writes")]);
        assert!(page.contains("&lt;script&gt;{{rows}}") && page.contains("a &amp; b"), "{page}");
        assert!(!page.contains("<script") && !page.contains("{{title}}") && !page.contains("https:"), "{page}");
    }
}
