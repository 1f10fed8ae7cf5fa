//! `sessiond audit`.

use std::time::Duration;
use std::time::UNIX_EPOCH;

use clap::value_parser;
use serde_json::Value;
use serde_json::json;
use sessiond::app::ProjectError;
use sessiond::clock::Timestamp;
use sessiond::config::Database;
use sessiond::id::ProjectId;
use sessiond::id::UserId;
use sessiond::session::EndedBy;
use sessiond::store::Demand;
use sessiond::store::Record;
use sessiond::store::RecordQuery;
use sessiond::telemetry::Metrics;

use crate::Outcome;
use crate::print;
use crate::project::project_id;
use crate::setup;

/// Flags of `sessiond audit`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The project.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Only what was ended of this user.
    #[arg(long, value_parser = user_id, value_name = "ID")]
    user: Option<UserId>,
    /// The most lines; the newest come first. 1 to 10000.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=10_000), value_name = "COUNT")]
    limit: u16,
    /// One JSON object a line, for machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: Database,
}

fn user_id(text: &str) -> Result<UserId, &'static str> {
    UserId::parse(text).ok_or("must be 1 to 255 bytes without control characters, and not `me`")
}

pub(crate) async fn run(args: Args) -> Outcome {
    let store = setup::store(args.database.database_url, &args.database.pool, Demand::Nothing, &Metrics::default())?;
    setup::reach(&store).await?;
    if store.project_find(args.project.clone()).await?.is_none() {
        return Err(ProjectError::Missing(args.project).into());
    }
    let asked = RecordQuery { project: args.project, user: args.user, rows_max: args.limit.into() };
    let records = store.revocations(asked).await?;
    if args.json {
        return Ok(records.iter().map(object).try_for_each(print::line)?);
    }
    Ok(print::text_as_is(table(&records))?)
}

fn object(record: &Record) -> Value {
    let (by, by_id) = actor(record.by);
    json!({
        "id": record.id.to_string(),
        "at": time(record.at),
        "by": by,
        "by_id": by_id,
        "session_id": record.session.map(|id| id.to_string()),
        "spared_session_id": record.spared.map(|id| id.to_string()),
        "key_id": record.key.map(|id| id.to_string()),
        "user_id": record.user,
        "reason": record.reason.as_str(),
        "ip": record.ip,
    })
}

/// The records in columns, as wide as they need to be.
fn table(records: &[Record]) -> String {
    const HEAD: [&str; 6] = ["AT", "WHO", "WHAT", "WHOSE", "WHY", "FROM"];
    let rows: Vec<[String; 6]> = std::iter::once(HEAD.map(str::to_owned)).chain(records.iter().map(row)).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  "));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn row(record: &Record) -> [String; 6] {
    let (by, by_id) = actor(record.by);
    let what = match (record.session, record.spared, record.key) {
        (Some(session), ..) => format!("session {session}"),
        (None, Some(spared), _) => format!("all but {spared}"),
        (None, None, Some(key)) => format!("key {key}"),
        (None, None, None) => "all".to_owned(),
    };
    let nothing = || "-".to_owned();
    [
        time(record.at),
        by_id.map_or_else(|| by.to_owned(), |id| format!("{by} {id}")),
        what,
        record.user.clone().unwrap_or_else(nothing),
        record.reason.as_str().to_owned(),
        record.ip.clone().unwrap_or_else(nothing),
    ]
}

fn actor(by: EndedBy) -> (&'static str, Option<String>) {
    match by {
        EndedBy::Holder => ("holder", None),
        EndedBy::User(session) => ("user", Some(session.to_string())),
        EndedBy::Service(key) => ("service", Some(key.to_string())),
        EndedBy::Sessiond => ("sessiond", None),
        EndedBy::Operator => ("operator", None),
    }
}

/// As RFC 3339 has it, to the millisecond.
fn time(at: Timestamp) -> String {
    let since = Duration::from_micros(at.as_micros().try_into().unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}
