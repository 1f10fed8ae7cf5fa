//! Plots as SVG: rate and p99 of sign-outs by number of clients, ours and the baseline's.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use crate::Outcome;
use crate::client::Wire;
use crate::report::Row;
use crate::report::median;
use crate::work::Work;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 48.0;

/// Legible on white and on black.
const INK: &str = "#808080";
const COLOURS: [&str; 4] = ["#3b82f6", "#10a070", "#d97706", INK];

/// A line: its name, and a value at each number of clients.
struct Line {
    name: &'static str,
    values: Vec<(usize, f64)>,
}

/// Writes the plots, if sign-outs were measured with several numbers of clients. Returns the files.
pub(crate) fn write(dir: &Path, rows: &[Row]) -> Outcome<Vec<PathBuf>> {
    let beside_pgbench = |row: &&Row| row.baseline.as_ref().is_some_and(|it| it.name.starts_with("pgbench"));
    let rows: Vec<&Row> = rows.iter().filter(|row| row.work == Work::SignOut).filter(beside_pgbench).collect();
    if rows.iter().all(|row| row.clients == rows[0].clients) {
        return Ok(vec![]);
    }
    fs::create_dir_all(dir)?;
    let rates = lines(&rows, |row| median(&row.rates), |row| row.baseline.as_ref().map(|it| median(&it.rates)));
    let millis = |micros: u32| f64::from(micros) / 1_000.0;
    let p99 = lines(&rows, |row| millis(row.p99), |row| row.baseline.as_ref().map(|it| millis(it.p99)));
    let mut files = vec![];
    for (name, title, lines) in [
        ("sign-out-rate.svg", "Sign-outs per second, by clients", rates),
        ("sign-out-p99.svg", "99th percentile of a sign-out in ms, by clients", p99),
    ] {
        let path = dir.join(name);
        fs::write(&path, draw(title, &lines))?;
        files.push(path);
    }
    Ok(files)
}

fn lines(rows: &[&Row], own: impl Fn(&Row) -> f64, baseline: impl Fn(&Row) -> Option<f64>) -> Vec<Line> {
    let of_wire = |wire: Wire| {
        let values = rows.iter().filter(|row| row.wire == wire).map(|row| (row.clients, own(row)));
        Line { name: wire.as_str(), values: values.collect() }
    };
    let mut lines: Vec<Line> = [Wire::Rest, Wire::Grpc, Wire::GrpcWeb].map(of_wire).into();
    // All protocols have the same baseline.
    let mut values: Vec<(usize, f64)> = rows.iter().filter_map(|row| Some((row.clients, baseline(row)?))).collect();
    values.dedup_by_key(|(clients, _)| *clients);
    lines.push(Line { name: "pgbench, one row per transaction", values });
    lines
}

fn draw(title: &str, lines: &[Line]) -> String {
    let mut clients: Vec<usize> =
        lines.iter().flat_map(|line| line.values.iter().map(|(clients, _)| *clients)).collect();
    clients.sort_unstable();
    clients.dedup();
    let most = lines.iter().flat_map(|line| line.values.iter().map(|(_, value)| *value)).fold(0.0, f64::max);
    let step = step(most);
    let top = (most / step).ceil() * step;
    // The numbers of clients grow by factors, so they are spaced evenly.
    let x = |count: usize| {
        let at = clients.iter().position(|one| *one == count).unwrap_or(0) as f64;
        LEFT + (WIDTH - LEFT - RIGHT) * at / (clients.len().max(2) - 1) as f64
    };
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top;

    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13" fill="{INK}" role="img" aria-label="{title}">
<text x="{LEFT}" y="20" font-size="15">{title}</text>
"#
    );
    let mut put = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    let mut value = 0.0;
    while value <= top * 1.001 {
        let (at, right, label) = (y(value), WIDTH - RIGHT, number(value));
        put(format!(
            r#"<line x1="{LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}" stroke="{INK}" stroke-opacity="0.3"/><text x="{:.0}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 8.0,
            at + 4.0
        ));
        value += step;
    }
    for count in &clients {
        let (at, below) = (x(*count), HEIGHT - BOTTOM + 18.0);
        put(format!(r#"<text x="{at:.1}" y="{below}" text-anchor="middle">{count}</text>"#));
    }
    put(format!(
        r#"<text x="{:.0}" y="{:.0}" text-anchor="middle">clients, each with its own connection</text>"#,
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 10.0
    ));
    let mut legend = LEFT;
    for (line, colour) in lines.iter().zip(COLOURS).filter(|(line, _)| !line.values.is_empty()) {
        let dashes = if colour == INK { r#" stroke-dasharray="5 4""# } else { "" };
        let points = line.values.iter().fold(String::new(), |mut points, (count, value)| {
            let _ = write!(points, "{:.1},{:.1} ", x(*count), y(*value));
            points
        });
        put(format!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes}/>"#,
            points.trim_end()
        ));
        for (count, value) in &line.values {
            put(format!(r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{colour}"/>"#, x(*count), y(*value)));
        }
        put(format!(
            r#"<line x1="{legend:.0}" y1="40" x2="{:.0}" y2="40" stroke="{colour}" stroke-width="2.5"{dashes}/><text x="{:.0}" y="44">{}</text>"#,
            legend + 22.0,
            legend + 28.0,
            line.name
        ));
        legend += 28.0 + 7.5 * line.name.len() as f64 + 18.0;
    }
    svg.push_str("</svg>\n");
    svg
}

/// The distance of the grid's lines: 1, 2 or 5 times a power of ten, at most six of them.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 6.0).max(f64::MIN_POSITIVE).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| most / step <= 6.0).unwrap_or(power)
}

/// A number without needless digits, and with a thousands separator.
pub(crate) fn number(value: f64) -> String {
    if value < 10.0 && value.fract() > 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    match digits.len() {
        0..=3 => digits,
        length => format!("{},{}", &digits[..length - 3], &digits[length - 3..]),
    }
}
