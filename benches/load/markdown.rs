//! The results as Markdown tables, for `docs/operating/performance.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Outcome;
use crate::overload::OverloadRow;
use crate::plot::number;
use crate::report::Row;
use crate::report::median;

/// Writes the tables that have rows.
pub(crate) fn write(
    path: &Path,
    facts: &[(&'static str, String)],
    rows: &[Row],
    overloads: &[OverloadRow],
) -> Outcome<()> {
    let mut text = String::new();
    for (name, fact) in facts {
        writeln!(text, "- {name}: {fact}")?;
    }
    if !rows.is_empty() {
        text.push_str(
            "\n| work | protocol | clients | per s | p50, p99 in ms | baseline | per s | p50, p99 in ms | ratio \
             | of own gRPC | server, Postgres, CPU in µs |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
    }
    for row in rows {
        let Row { work, wire, clients, cpu: [server, postgres], .. } = row;
        let (work, wire, rate) = (work.as_str(), wire.as_str(), number(median(&row.rates)));
        write!(text, "| {work} | {wire} | {clients} | {rate} | {} | ", millis(row.p50, row.p99))?;
        match &row.baseline {
            Some(it) => {
                let (rate, ratio) = (number(median(&it.rates)), median(&it.ratios));
                write!(text, "{} | {rate} | {} | {ratio:.2} | ", it.name, millis(it.p50, it.p99))?;
            }
            None => text.push_str("| | | | "),
        }
        let grpc = row.grpc.as_ref().map_or_else(String::new, |it| format!("{:.2}", median(&it.ratios)));
        writeln!(text, "{grpc} | {server:.0}, {postgres:.0} |")?;
    }
    if !overloads.is_empty() {
        text.push_str(
            "\n| work | protocol | callers | done per s | of the peak | refused per s | p50, p99 in ms |\n\
             |---|---|---|---|---|---|---|\n",
        );
    }
    for row in overloads {
        let [work, wire, phase] = row.names();
        let ([goodput, of_peak, refused], [p50, p99]) = (row.rates(), row.micros());
        let (goodput, refused, times) = (number(goodput), number(refused), millis(p50, p99));
        writeln!(text, "| {work} | {wire} | {phase} | {goodput} | {of_peak:.2} | {refused} | {times} |")?;
    }
    Ok(fs::write(path, text)?)
}

fn millis(p50: u32, p99: u32) -> String {
    let of = |micros: u32| match f64::from(micros) / 1_000.0 {
        few if few < 10.0 => format!("{few:.2}"),
        some => format!("{some:.0}"),
    };
    format!("{}, {}", of(p50), of(p99))
}
