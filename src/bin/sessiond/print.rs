//! Output of commands. A failed write is an error, never a panic. Lists are aligned columns for people, or one JSON
//! object per line for machines.

use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use clap::Args;
use serde_json::Map;
use serde_json::Value;
use sessiond_core::clock::Timestamp;

/// Standard output is closed or full.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct Unwritten(#[from] pub(crate) io::Error);

impl Unwritten {
    /// Whether the reader closed it, as `head` does once it has seen enough. Then no error is printed.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// The command succeeded, but standard output failed.
#[derive(Debug, thiserror::Error)]
#[error("{done}, but standard output failed")]
pub(crate) struct DoneUnprinted {
    done: String,
    source: io::Error,
}

/// Prints a line. The only way to standard output: `println!` panics when it is closed or full, so clippy forbids it
/// here.
pub(crate) fn line(text: impl Display) -> Result<(), Unwritten> {
    raw(format!("{text}\n"))
}

/// Prints text that has its own newlines.
pub(crate) fn raw(text: impl AsRef<[u8]>) -> Result<(), Unwritten> {
    let mut out = io::stdout().lock();
    Ok(out.write_all(text.as_ref()).and_then(|()| out.flush())?)
}

/// Prints what was done. If printing fails, the error repeats it, because it stays done.
pub(crate) fn done(text: impl Into<String>) -> Result<(), DoneUnprinted> {
    let done = text.into();
    line(&done).map_err(|Unwritten(source)| DoneUnprinted { done, source })
}

/// Prints to standard error; failures are ignored.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Fails if nobody could see a secret: standard output is closed (`>&-`; the standard library puts `/dev/null` in its
/// place) or discarded.
pub(crate) fn check_stdout_is_read() -> Result<(), Box<dyn Error>> {
    let out = io::stdout().as_fd().try_clone_to_owned().map(fs::File::from).and_then(|out| out.metadata())?;
    let null = fs::metadata("/dev/null");
    if null.is_ok_and(|null| out.rdev() == null.rdev() && out.rdev() != 0) {
        return Err("standard output is closed or /dev/null: the secret is shown once, and would be lost".into());
    }
    Ok(())
}

/// The format of a list.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputFormat {
    /// Print one JSON object per line, with RFC 3339 times, instead of aligned text.
    #[arg(long)]
    json: bool,
}

impl OutputFormat {
    /// Aligned text.
    pub(crate) const TEXT: Self = Self { json: false };
}

/// One item: its properties by name, in the order of printing.
pub(crate) type Row = Vec<(&'static str, Value)>;

/// Prints a list, a row per item. An empty list prints no line in JSON, and `nothing` in text.
pub(crate) fn list(rows: Vec<Row>, format: OutputFormat, nothing: &str) -> Result<(), Unwritten> {
    if format.json {
        return rows.into_iter().try_for_each(object);
    }
    let Some(first) = rows.first() else { return line(nothing) };
    let names = first.iter().map(|(name, _)| name.replace('_', " ").to_uppercase()).collect();
    let cells = |row: &Row| row.iter().map(|(_, value)| text(value)).collect();
    let lines: Vec<Vec<String>> = std::iter::once(names).chain(rows.iter().map(cells)).collect();
    aligned(&lines)
}

/// Prints one item, a line per property.
pub(crate) fn one(row: Row, format: OutputFormat) -> Result<(), Unwritten> {
    if format.json {
        return object(row);
    }
    let lines: Vec<Vec<String>> = row.iter().map(|(name, value)| vec![name.replace('_', "-"), text(value)]).collect();
    aligned(&lines)
}

/// A time, or null.
pub(crate) fn time(time: Option<Timestamp>) -> Value {
    time.map_or(Value::Null, |time| time.to_string().into())
}

fn object(row: Row) -> Result<(), Unwritten> {
    let object: Map<String, Value> = row.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    line(Value::Object(object))
}

/// A text in a table. Ids and names come from others, so invisible characters are escaped, which could reorder or hide what is beside
/// them, and a text that could pass for several columns is quoted.
pub(crate) fn cell(text: &str) -> String {
    const QUOTES: [char; 3] = ['"', '\'', '\\'];
    let mut shown = String::new();
    for piece in text.split_inclusive(QUOTES) {
        let plain = piece.trim_end_matches(QUOTES);
        shown.extend(plain.escape_debug());
        shown.push_str(&piece[plain.len()..]);
    }
    if shown.contains("  ") || shown.trim() != shown { format!("\"{shown}\"") } else { shown }
}

/// A cell is never empty, so that scripts that split lines at spaces find the same number of columns.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => cell(text),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn aligned(lines: &[Vec<String>]) -> Result<(), Unwritten> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for cells in lines {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_others_cannot_pass_for_something_else() {
        for (text, shown) in [
            ("ada", "ada"),
            ("Zoë \"O'Neil\" C:\\x", "Zoë \"O'Neil\" C:\\x"),
            ("日本語", "日本語"),
            ("a\u{202e}b\u{200b}c\u{2028}d", "a\\u{202e}b\\u{200b}c\\u{2028}d"),
            ("a\x1b[2Jb\n", "a\\u{1b}[2Jb\\n"),
            ("x  SIGNED_OUT  operator", "\"x  SIGNED_OUT  operator\""),
            (" ada", "\" ada\""),
        ] {
            assert_eq!(cell(text), shown);
        }
    }
}
