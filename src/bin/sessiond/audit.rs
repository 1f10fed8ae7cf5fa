//! `sessiond audit`.

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde_json::Value;
use serde_json::json;
use sessiond::app::AuditActor;
use sessiond::app::AuditEntry;
use sessiond::app::AuditFilter;
use sessiond::app::AuditLog;
use sessiond::app::ProjectError;
use sessiond::app::audit_kinds;
use sessiond::config::Database;
use sessiond::store::RecordOrder;
use sessiond::store::RequiredDurability;
use sessiond::telemetry::Metrics;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use uuid::Uuid;

use crate::print;
use crate::print::Unwritten;
use crate::project::project_id;
use crate::result::CommandResult;
use crate::setup;

/// The most entries that are collected to print the newest ones last.
const LIMIT_MAX: usize = 10_000;

/// How many lines are aligned together if all are printed.
const LINES_ALIGNED: usize = 1_000;

const EXAMPLES: &str = "\
Examples:
  sessiond audit --project shop
  sessiond audit --project shop --user ada --since 2d
  sessiond audit --project shop --kind REFRESH_TOKEN_REUSED,REFUSED_SERVER_KEY_REVOKED --since 24h
  sessiond audit --project shop --actor operator --since 2026-11-01 --until 2026-12-01 --limit all
  sessiond audit --project shop --json --limit all | jq -r .kind | sort | uniq -c";

/// Flags of `sessiond audit`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    /// The project.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Only entries about this user.
    #[arg(long, value_parser = user_id, value_name = "ID")]
    user: Option<UserId>,
    /// Only entries about this session.
    #[arg(long, value_parser = session_id, value_name = "ID")]
    session: Option<SessionId>,
    /// Only entries of these kinds, separated by commas, such as SESSION_CREATED, SIGNED_OUT, POLICY_CHANGED; an unknown
    /// one is answered with a list of all.
    #[arg(long, value_parser = kind, value_delimiter = ',', value_name = "KIND")]
    kind: Vec<&'static str>,
    /// Only what this actor did: `holder`, `user`, `service`, `sessiond` or `operator`, or the id of a server key or of a
    /// user's session.
    #[arg(long, value_parser = actor, value_name = "WHO")]
    actor: Option<AuditActor>,
    /// Only entries about this key, and what the service that has it did.
    #[arg(long, value_parser = key_id, value_name = "ID")]
    key: Option<KeyId>,
    /// Only entries from this time on: RFC 3339, a date, or a duration before now, such as `2h` or `7d`.
    #[arg(long, value_parser = moment, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only entries before this time, given like --since.
    #[arg(long, value_parser = moment, value_name = "TIME")]
    until: Option<Timestamp>,
    /// The most entries, the newest of those that match: 1 to 10000, or `all`.
    #[arg(long, default_value = "100", value_parser = limit, value_name = "COUNT")]
    limit: Limit,
    /// Print the newest entry first, not last.
    #[arg(long)]
    reverse: bool,
    /// One JSON object per line. The fields are listed in docs/operating/audit.md.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: Database,
}

/// The most entries to print; `None` for all.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<usize>);

fn user_id(text: &str) -> Result<UserId, &'static str> {
    UserId::parse(text).ok_or("must be 1 to 255 bytes without control characters, and not `me`")
}

fn session_id(text: &str) -> Result<SessionId, &'static str> {
    SessionId::parse(text).ok_or("must be a session's id, a UUID such as 019ab3c4-5d6e-7f80-9123-456789abcdef")
}

fn key_id(text: &str) -> Result<KeyId, &'static str> {
    KeyId::parse(text).ok_or("must be a key's id, a UUID; `server-key list` and `signing-key list` show them")
}

fn kind(text: &str) -> Result<&'static str, String> {
    let kinds = audit_kinds();
    let found = kinds.iter().find(|kind| kind.eq_ignore_ascii_case(text.trim()));
    found.copied().ok_or_else(|| format!("must be one of {}", kinds.join(", ")))
}

fn actor(text: &str) -> Result<AuditActor, String> {
    let named = EndedBy::NAMES.into_iter().find(|name| *name == text).map(AuditActor::Kind);
    let found = named.or_else(|| Uuid::try_parse(text).ok().map(AuditActor::Id));
    found.ok_or_else(|| format!("must be one of {}, or the id of a server key or a session", EndedBy::NAMES.join(", ")))
}

fn limit(text: &str) -> Result<Limit, &'static str> {
    if text == "all" {
        return Ok(Limit(None));
    }
    let count = text.parse().ok().filter(|count| (1..=LIMIT_MAX).contains(count));
    count.map(|count| Limit(Some(count))).ok_or("must be 1 to 10000, or `all`")
}

fn moment(text: &str) -> Result<Timestamp, &'static str> {
    const WRONG: &str = "must be a time as 2026-11-27T15:04:05Z or 2026-11-27T17:04:05+02:00, a date as 2026-11-27 (UTC), or a duration \
         before now as 30m, 2h or 7d";
    let text = text.trim();
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Clock::system().now() - ago);
    }
    let (time, offset) = split_offset(text).ok_or(WRONG)?;
    let time = if time.len() == "2026-11-27".len() { format!("{time}T00:00:00") } else { time.to_owned() };
    let time: SystemTime = humantime::parse_rfc3339_weak(&time).map_err(|_| WRONG)?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| WRONG)?;
    let micros = i64::try_from(since.as_micros()).map_err(|_| WRONG)?;
    Ok(Timestamp::from_micros(micros.saturating_sub(offset.saturating_mul(60_000_000))))
}

/// Splits a time into what humantime reads, and its offset from UTC in minutes.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = text.len().checked_sub("+00:00".len()).filter(|at| *at > "2026-11-27".len()) else {
        return Some((text, 0));
    };
    let (time, offset) = text.split_at_checked(at)?;
    let sign = match offset.as_bytes() {
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return Some((text, 0)),
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    let (hours, minutes): (u8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then(|| (time, sign * (i64::from(hours) * 60 + i64::from(minutes))))
}

pub(crate) async fn run(args: AuditArgs) -> CommandResult {
    if args.since.zip(args.until).is_some_and(|(since, until)| since >= until) {
        return Err("--since must be before --until".into());
    }
    let store =
        setup::store(args.database.database_url, &args.database.pool, RequiredDurability::Any, &Metrics::default())?;
    setup::reach(&store).await?;
    if store.project_find(args.project.clone()).await?.is_none() {
        return Err(ProjectError::Missing(args.project).into());
    }
    let AuditArgs { project, user, session, kind: kinds, actor, key, since, until, .. } = args;
    let filter = AuditFilter { project, user, session, kinds, actor, key, since, until };
    // The newest ones are found from the end. If all are asked for, they are printed as they are read.
    let order = match args.limit.0.is_some() || args.reverse {
        true => RecordOrder::NewestFirst,
        false => RecordOrder::OldestFirst,
    };
    let mut log = AuditLog::new(store, filter, order);
    let mut output = Output { json: args.json, waiting: vec![], widths: HEAD.map(str::len) };
    if !args.json {
        output.waiting.push(HEAD.map(str::to_owned));
    }
    let Some(limit) = args.limit.0 else {
        while let Some(entry) = log.next().await? {
            output.add(&entry)?;
        }
        return Ok(output.flush()?);
    };
    let mut entries = vec![];
    while entries.len() < limit
        && let Some(entry) = log.next().await?
    {
        entries.push(entry);
    }
    if !args.reverse {
        entries.reverse();
    }
    for entry in &entries {
        output.add(entry)?;
    }
    Ok(output.flush()?)
}

const HEAD: [&str; 7] = ["AT", "KIND", "ACTOR", "ABOUT", "USER", "FROM", "DETAILS"];

/// Prints entries: as JSON at once, as text in aligned columns, some lines at a time.
struct Output {
    json: bool,
    waiting: Vec<[String; HEAD.len()]>,
    widths: [usize; HEAD.len()],
}

impl Output {
    fn add(&mut self, entry: &AuditEntry) -> Result<(), Unwritten> {
        if self.json {
            return print::line(object(entry));
        }
        self.waiting.push(row(entry));
        if self.waiting.len() < LINES_ALIGNED { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Unwritten> {
        for row in &self.waiting {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |row: [String; HEAD.len()]| {
            let cells = row.into_iter().zip(self.widths).map(|(cell, width)| format!("{cell:<width$}  "));
            cells.collect::<String>().trim_end().to_owned() + "\n"
        };
        print::raw(self.waiting.drain(..).map(line).collect::<String>())
    }
}

fn object(entry: &AuditEntry) -> Value {
    json!({
        "id": entry.id.to_string(),
        "at": time(entry.at),
        "kind": entry.kind,
        "actor": entry.by.as_str(),
        "actor_id": entry.by.id().map(|id| id.to_string()),
        "session_id": entry.session.map(|id| id.to_string()),
        "spared_session_id": entry.spared.map(|id| id.to_string()),
        "key_kind": entry.key.map(|(kind, _)| kind.as_str()),
        "key_id": entry.key.map(|(_, id)| id.to_string()),
        "user_id": entry.user,
        "impersonator_id": entry.impersonator,
        "ip": entry.ip,
        "details": entry.details,
    })
}

fn row(entry: &AuditEntry) -> [String; HEAD.len()] {
    let nothing = || "-".to_owned();
    let about = match (entry.session, entry.spared, entry.key) {
        (Some(session), ..) => format!("session {session}"),
        (None, Some(spared), _) => format!("all but {spared}"),
        (None, None, Some((kind, key))) => format!("{} {key}", kind.as_str().replace('_', " ")),
        (None, None, None) if entry.is_for_all => "all".to_owned(),
        (None, None, None) => nothing(),
    };
    let user = match (entry.user.clone(), &entry.impersonator) {
        (user, Some(impersonator)) => format!("{} by {impersonator}", user.unwrap_or_else(nothing)),
        (user, None) => user.unwrap_or_else(nothing),
    };
    let actor = entry.by.as_str();
    let cells = [
        time(entry.at),
        entry.kind.to_owned(),
        entry.by.id().map_or_else(|| actor.to_owned(), |id| format!("{actor} {id}")),
        about,
        user,
        entry.ip.clone().unwrap_or_else(nothing),
        entry.details.as_ref().map_or_else(nothing, details),
    ];
    cells.map(|text| print::cell(&text))
}

/// `name=value` for each detail; `name=before->after` for each changed setting.
fn details(details: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let Value::Object(details) = details else { return details.to_string() };
    let words = details.iter().flat_map(|(name, value)| match value {
        Value::Object(changes) => changes
            .iter()
            .map(|(name, change)| format!("{name}={}->{}", text(&change["from"]), text(&change["to"])))
            .collect::<Vec<_>>(),
        Value::Array(values) => vec![format!("{name}={}", values.iter().map(text).collect::<Vec<_>>().join(","))],
        value => vec![format!("{name}={}", text(value))],
    });
    words.collect::<Vec<_>>().join(" ")
}

/// RFC 3339, to the millisecond.
fn time(at: Timestamp) -> String {
    let since = Duration::from_micros(at.as_micros().try_into().unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_dates_and_durations() {
        let at = |text: &str| moment(text).map(|at| at.to_string());
        for (text, time) in [
            ("2026-11-27T15:04:05Z", "2026-11-27T15:04:05Z"),
            ("2026-11-27T15:04:05.5z", "2026-11-27T15:04:05Z"),
            ("2026-11-27 15:04:05", "2026-11-27T15:04:05Z"),
            ("2026-11-27T17:04:05+02:00", "2026-11-27T15:04:05Z"),
            ("2026-11-27T01:04:05-05:30", "2026-11-27T06:34:05Z"),
            (" 2026-11-27 ", "2026-11-27T00:00:00Z"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(time), "{text}");
        }
        let now = Clock::system().now();
        let ago = now.since(moment("2h").expect("a duration"));
        assert!(ago.abs_diff(Duration::from_secs(7_200)) < Duration::from_secs(60), "{ago:?}");
        for bad in [
            "",
            "yesterday",
            "2026-13-01",
            "2026-11-27T15:04:05+24:00",
            "15:04",
            "2026",
            "\u{1F512}\u{1F512}\u{1F512}\u{1F512}",
        ] {
            assert!(at(bad).is_err(), "{bad:?}");
        }
    }
}
