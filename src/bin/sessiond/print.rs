//! What a command lists: aligned columns for people, one JSON object a line for machines.

use std::io;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::Map;
use serde_json::Value;
use sessiond::clock::Timestamp;

/// How a list is printed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Print one JSON object a line, with times as in RFC 3339, instead of aligned text.
    #[arg(long)]
    json: bool,
}

impl Format {
    /// Aligned text.
    pub(crate) const TEXT: Self = Self { json: false };
}

/// One thing: its properties by name, in the order in which they are printed.
pub(crate) type Row = Vec<(&'static str, Value)>;

/// Prints a list, a row for each thing. Nothing there is no line in JSON, and a sentence in text.
pub(crate) fn list(rows: Vec<Row>, format: Format, nothing: &str) -> io::Result<()> {
    if format.json {
        return rows.into_iter().try_for_each(object);
    }
    let Some(first) = rows.first() else { return write(nothing) };
    let names = first.iter().map(|(name, _)| name.replace('_', " ").to_uppercase()).collect();
    let cells = |row: &Row| row.iter().map(|(_, value)| text(value)).collect();
    let lines: Vec<Vec<String>> = std::iter::once(names).chain(rows.iter().map(cells)).collect();
    aligned(&lines)
}

/// Prints one thing, a line for each property.
pub(crate) fn one(row: Row, format: Format) -> io::Result<()> {
    if format.json {
        return object(row);
    }
    let lines: Vec<Vec<String>> = row.iter().map(|(name, value)| vec![name.replace('_', "-"), text(value)]).collect();
    aligned(&lines)
}

/// A moment, or nothing.
pub(crate) fn time(time: Option<Timestamp>) -> Value {
    time.map_or(Value::Null, |time| time.to_string().into())
}

/// A duration as a flag takes it: in the largest unit that divides it.
pub(crate) fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let divides = |(_, unit): &&(&str, u128)| millis != 0 && millis.is_multiple_of(*unit);
    units.iter().find(divides).map_or("0s".to_owned(), |(name, unit)| format!("{}{name}", millis / unit))
}

fn object(row: Row) -> io::Result<()> {
    let object: Map<String, Value> = row.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    write(&Value::Object(object).to_string())
}

/// A cell is never empty: a script that takes lines apart at blanks finds the same number everywhere.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn aligned(lines: &[Vec<String>]) -> io::Result<()> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        write(padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A reader that has seen enough (`head`) is no failure.
fn write(line: &str) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_back_as_it_was_set() {
        for (millis, text) in
            [(0, "0s"), (1, "1ms"), (1_500, "1500ms"), (60_000, "1m"), (90 * 86_400_000, "90d"), (90_000, "90s")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), text);
            let read = sessiond::config::duration::<0, { u64::MAX }>(text);
            assert_eq!(read, Ok(Duration::from_millis(millis)));
        }
    }
}
