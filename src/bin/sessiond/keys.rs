//! Shared parts of the key commands.

use serde_json::Value;
use sessiond::app::KeyRevoked;
use sessiond::app::RELOAD_INTERVAL;
use sessiond::app::Rotated;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::store::KeyRow;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::schedule::Stage;
use sessiond_core::token::schedule::Urgency;
use sessiond_core::token::sealing::Purpose;

use crate::print;
use crate::print::OutputFormat;
use crate::project::project_id;
use crate::result::CommandResult;
use crate::setup;

/// Flags of `list`.
#[derive(clap::Args)]
pub(crate) struct KeyListArgs {
    /// The project of the keys.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    pub(crate) project: ProjectId,
    #[command(flatten)]
    pub(crate) format: OutputFormat,
    #[command(flatten)]
    pub(crate) database: Database,
}

/// Flags of `revoke`.
#[derive(clap::Args)]
pub(crate) struct KeyRevokeArgs {
    /// The key, as `list` shows it.
    #[arg(value_parser = key_id, value_name = "KEY")]
    key: KeyId,
    /// The project of the key.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

pub(crate) fn key_id(text: &str) -> Result<KeyId, &'static str> {
    KeyId::parse(text).ok_or("must be a key's id as `list` shows it, such as `01890a5d-ac96-474b-bcce-b302099a8057`")
}

/// How soon the new key takes over, by `--now`.
pub(crate) const fn urgency(now: bool) -> Urgency {
    if now { Urgency::Emergency } else { Urgency::Planned }
}

pub(crate) async fn rotate(
    purpose: Purpose,
    project: ProjectId,
    urgency: Urgency,
    sealing: Sealing,
    database: Database,
) -> CommandResult {
    let app = setup::operator(database, setup::sealer(&sealing)?).await?;
    let Rotated { successor, from, retired } = app.rotate_key(purpose, project.clone(), urgency).await?;
    let retires = retired.iter().map(|key| format!("\n{purpose} {key} retires then")).collect::<String>();
    Ok(print::done(format!("{purpose} {successor} of project {project} takes over at {from}{retires}"))?)
}

pub(crate) async fn list(purpose: Purpose, args: KeyListArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let nothing = format!("project {} has no {purpose}; `rotate` creates one", args.project);
    let keys = app.list_keys(purpose, args.project).await?;
    let now = app.clock().now();
    Ok(print::list(keys.iter().map(|key| row(key, now)).collect(), args.format, &nothing)?)
}

fn row(key: &KeyRow, now: Timestamp) -> print::Row {
    let state = match (key.revoked_at, key.schedule.stage(now)) {
        (Some(_), _) => "revoked",
        (None, Stage::Waiting) => "waiting",
        (None, Stage::Signing) => "signing",
        (None, Stage::Retired) => "retired",
    };
    vec![
        ("id", Value::from(key.id.to_string())),
        ("state", state.into()),
        ("created_at", print::time(Some(key.created_at))),
        ("signs_from", print::time(Some(key.schedule.signs_from))),
        ("retired_at", print::time(key.schedule.retired_at)),
        ("revoked_at", print::time(key.revoked_at)),
    ]
}

pub(crate) async fn revoke(purpose: Purpose, args: KeyRevokeArgs) -> Result<KeyRevoked, Box<dyn std::error::Error>> {
    let KeyRevokeArgs { key, project, sealing, database } = args;
    let app = setup::operator(database, setup::sealer(&sealing)?).await?;
    let revoked = app.revoke_key(purpose, project, key).await?;
    let known = format!("every server applies it within {} s", RELOAD_INTERVAL.as_secs());
    print::done(match revoked {
        KeyRevoked::Before => format!("{purpose} {key} was already revoked"),
        KeyRevoked::Alone => format!("revoked {purpose} {key}; {known}"),
        KeyRevoked::CalledOff(last) => format!(
            "revoked {purpose} {key}, which was waiting to take over; {known}\n\
             {purpose} {last} stays in use; the rotation is cancelled, and `rotate` starts another"
        ),
        KeyRevoked::Replaced(successor) => {
            format!("revoked {purpose} {key}; {known}\n{purpose} {successor} takes over at once")
        }
    })?;
    Ok(revoked)
}
