//! `sessiond audit`.

use std::cmp::Reverse;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use clap::value_parser;
use serde_json::Value;
use serde_json::json;
use sessiond::app::ProjectError;
use sessiond::config::Database;
use sessiond::store::EventRecord;
use sessiond::store::KeyKind;
use sessiond::store::RecordQuery;
use sessiond::store::RequiredDurability;
use sessiond::store::RevocationRecord;
use sessiond::telemetry::Metrics;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use uuid::Uuid;

use crate::print;
use crate::project::project_id;
use crate::result::CommandResult;
use crate::setup;

/// Flags of `sessiond audit`.
#[derive(clap::Args)]
pub(crate) struct AuditArgs {
    /// The project.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Only entries about this user.
    #[arg(long, value_parser = user_id, value_name = "ID")]
    user: Option<UserId>,
    /// The most entries, newest first. 1 to 10000.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=10_000), value_name = "COUNT")]
    limit: u16,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: Database,
}

fn user_id(text: &str) -> Result<UserId, &'static str> {
    UserId::parse(text).ok_or("must be 1 to 255 bytes without control characters, and not `me`")
}

pub(crate) async fn run(args: AuditArgs) -> CommandResult {
    let store =
        setup::store(args.database.database_url, &args.database.pool, RequiredDurability::Any, &Metrics::default())?;
    setup::reach(&store).await?;
    if store.project_find(args.project.clone()).await?.is_none() {
        return Err(ProjectError::Missing(args.project).into());
    }
    let asked = RecordQuery { project: args.project, user: args.user, rows_max: args.limit.into() };
    let mut lines: Vec<AuditLine> = store.revocations(asked.clone()).await?.into_iter().map(AuditLine::from).collect();
    lines.extend(store.events(asked).await?.into_iter().map(AuditLine::from));
    // Each part holds its newest entries, so the newest of both together are complete.
    lines.sort_unstable_by_key(|line| Reverse(line.id));
    lines.truncate(args.limit.into());
    if args.json {
        return Ok(lines.iter().map(object).try_for_each(print::line)?);
    }
    Ok(print::raw(table(&lines))?)
}

/// An entry of either part of the audit log.
struct AuditLine {
    id: Uuid,
    at: Timestamp,
    by: EndedBy,
    session: Option<SessionId>,
    spared: Option<SessionId>,
    key: Option<(KeyKind, KeyId)>,
    user: Option<String>,
    impersonator: Option<String>,
    reason: &'static str,
    ip: Option<String>,
}

impl From<RevocationRecord> for AuditLine {
    fn from(record: RevocationRecord) -> Self {
        let RevocationRecord { id, at, reason, session, spared, key, key_kind, user, by, ip } = record;
        let (key, reason) = (key_kind.zip(key), reason.as_str());
        Self { id, at, by, session, spared, key, user, impersonator: None, reason, ip }
    }
}

impl From<EventRecord> for AuditLine {
    fn from(record: EventRecord) -> Self {
        let EventRecord { id, at, kind, by, ip } = record;
        Self {
            id,
            at,
            by,
            session: kind.session().map(|(id, _)| id),
            spared: None,
            key: kind.key(),
            user: kind.session().and_then(|(_, user)| user.cloned()),
            impersonator: kind.impersonator().cloned(),
            reason: kind.as_str(),
            ip,
        }
    }
}

fn object(line: &AuditLine) -> Value {
    let (by, by_id) = actor(line.by);
    json!({
        "id": line.id.to_string(),
        "at": time(line.at),
        "by": by,
        "by_id": by_id,
        "session_id": line.session.map(|id| id.to_string()),
        "spared_session_id": line.spared.map(|id| id.to_string()),
        "key_kind": line.key.map(|(kind, _)| kind.as_str()),
        "key_id": line.key.map(|(_, id)| id.to_string()),
        "user_id": line.user,
        "impersonator_id": line.impersonator,
        "reason": line.reason,
        "ip": line.ip,
    })
}

/// The entries in aligned columns.
fn table(lines: &[AuditLine]) -> String {
    const HEAD: [&str; 6] = ["AT", "WHO", "WHAT", "WHOSE", "WHY", "FROM"];
    let rows: Vec<[String; 6]> = std::iter::once(HEAD.map(str::to_owned)).chain(lines.iter().map(row)).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  "));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn row(line: &AuditLine) -> [String; 6] {
    let (by, by_id) = actor(line.by);
    let what = match (line.session, line.spared, line.key) {
        (Some(session), ..) => format!("session {session}"),
        (None, Some(spared), _) => format!("all but {spared}"),
        (None, None, Some((kind, key))) => format!("{} {key}", kind.as_str().replace('_', " ")),
        (None, None, None) => "all".to_owned(),
    };
    let nothing = || "-".to_owned();
    let whose = match (line.user.clone(), &line.impersonator) {
        (user, Some(impersonator)) => format!("{} by {impersonator}", user.unwrap_or_else(nothing)),
        (user, None) => user.unwrap_or_else(nothing),
    };
    [
        time(line.at),
        by_id.map_or_else(|| by.to_owned(), |id| format!("{by} {id}")),
        what,
        whose,
        line.reason.to_owned(),
        line.ip.clone().unwrap_or_else(nothing),
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

/// RFC 3339, to the millisecond.
fn time(at: Timestamp) -> String {
    let since = Duration::from_micros(at.as_micros().try_into().unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}
