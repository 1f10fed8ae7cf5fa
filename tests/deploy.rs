//! The alert rules, their runbook and the dashboard fit the metrics that a server has. `deploy/check` evaluates them.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::Value;
use sessiond::telemetry::{Metrics, RequestClass, Wire};

use crate::harness::{Service, eventually};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("reads")
}

const METRICS: &str = "\
# Metrics

In Prometheus' format, at `/metrics` of `--metrics-listen` (a port of its own). No label names a user, a token or an address. The
dashboard is `deploy/grafana/sessiond.json`; the alerts are in `deploy/prometheus/alerts.yaml`, and the
[runbook](../operating/runbook.md) says what to do about each. The guard has metrics of its own: see
[the guard](../guides/guard.md#metrics-and-logs).

Generated from the server's own descriptions. A histogram has the suffixes `_bucket`, `_sum` and `_count`.

| metric | kind | labels | |
|---|---|---|---|
";

/// The names of the samples on a page of metrics.
fn samples(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| line.starts_with("sessiond_"));
    lines.map(|line| line.split(['{', ' ']).next().expect("never empty").to_owned()).collect()
}

/// The metrics that a query names.
fn named(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    words.filter(|word| word.starts_with("sessiond_"))
}

/// A page with every metric: a family appears with its first label.
fn full_page() -> String {
    let (metrics, a, time) = (Metrics::default(), "a", Duration::ZERO);
    metrics.request(a, Wire::Grpc, a, time, None);
    metrics.rate_limited(a);
    metrics.requests_under_way(RequestClass::Other, 1);
    metrics.request_refused(RequestClass::Other, a);
    metrics.turn_refused(a);
    metrics.store_refused(a);
    metrics.group_waiting(a, 1);
    metrics.connection_refused(a);
    metrics.tls_file_rejected(a, true);
    metrics.connection_closed(a);
    metrics.store_operation(a, true, time, None);
    metrics.sweep_step(a, time);
    metrics.sweep_completed(a, 1);
    metrics.swept(a, 1);
    metrics.revocation(a);
    metrics.delivery(a, a);
    metrics.delivery_attempt(a, time);
    metrics.deliveries_pending(a, 1);
    metrics.not_ready(a, true);
    metrics.task_restart(a);
    metrics.spans_dropped(a, 1);
    metrics.refusal(a);
    metrics.refresh_repeated_elsewhere(a);
    metrics.render()
}

/// Each family: name, kind, labels and help. Labels are those of its first sample; `le` is part of every histogram.
fn reference(page: &str) -> String {
    let mut text = METRICS.to_owned();
    let lines: Vec<&str> = page.lines().collect();
    for line in &lines {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind = lines.iter().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).expect("has a type");
        let sample = lines.iter().find(|line| line.starts_with(name)).expect("has a sample");
        let labels = sample.split_once('{').and_then(|(_, rest)| Some(rest.split_once('}')?.0)).unwrap_or_default();
        let labels =
            labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).filter(|label| *label != "le");
        let labels: Vec<String> = labels.map(|label| format!("`{label}`")).collect();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        text += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    text
}

#[test]
fn the_reference_names_every_metric() {
    let text = reference(&full_page());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/metrics.md");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &text).expect("writes");
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == text,
        "docs/reference/metrics.md is out of date: run with ACCEPT=1: {text}"
    );
}

fn alerts() -> (String, Vec<String>) {
    let rules = read("deploy/prometheus/alerts.yaml");
    let names = rules.lines().filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned())).collect();
    (rules, names)
}

/// The strings of a dashboard's queries.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" || name == "query" => found.push(text.clone()),
                    other => queries(other, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn alerts_and_the_dashboard_query_only_metrics_that_exist() {
    let known = samples(&full_page());
    let service = Service::start().await;
    service.sign_in("ada", "phone").await.sign_out().await.expect("signs out");
    eventually("a read of the feed", async || service.metrics_page().await.contains("sessiond_not_ready{")).await;
    let served = samples(&service.metrics_page().await);
    let missing: Vec<_> = served.difference(&known).collect();
    assert!(missing.is_empty() && served.len() > 20, "not on the full page: {missing:?}");

    let (rules, _) = alerts();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/sessiond.json")).expect("JSON");
    let mut asked = vec![];
    queries(&dashboard, &mut asked);
    assert!(asked.len() > 30, "{asked:?}");
    let expressions = rules.lines().map(str::to_owned);
    let asked: Vec<String> = asked.into_iter().chain(expressions).collect();
    let asked: BTreeSet<&str> = asked.iter().flat_map(|query| named(query)).collect();
    let unknown: Vec<_> = asked.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "no such metric: {unknown:?}");

    // Each metric is shown: by its name, or by a part of the histogram.
    let part =
        |name: &str| ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part)).map(str::to_owned);
    let shown: BTreeSet<String> = asked.iter().map(|name| part(name).unwrap_or_else(|| (*name).to_owned())).collect();
    let hidden: Vec<_> =
        known.iter().filter(|name| !shown.contains(&part(name).unwrap_or_else(|| (*name).clone()))).collect();
    assert!(hidden.is_empty(), "neither in the dashboard nor in an alert: {hidden:?}");
}

#[test]
fn every_alert_has_a_test_and_a_section_of_the_runbook() {
    let (rules, names) = alerts();
    let (runbook, tests) = (read("docs/operating/runbook.md"), read("deploy/prometheus/alerts_test.yaml"));
    assert!(names.len() > 10, "{names:?}");
    for name in &names {
        assert!(runbook.contains(&format!("\n## {name}\n\n")), "docs/operating/runbook.md has no section {name}");
        assert!(tests.contains(&format!("  - name: {name}\n")), "alerts_test.yaml has no test {name}");
        let link = format!("runbook: docs/operating/runbook.md#{}", name.to_lowercase());
        assert!(rules.contains(&link), "{name} does not link to its section");
    }
    let sections = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    let stale: Vec<_> = sections.filter(|section| !names.iter().any(|name| name == section)).collect();
    assert!(stale.is_empty(), "sections without an alert: {stale:?}");
}
