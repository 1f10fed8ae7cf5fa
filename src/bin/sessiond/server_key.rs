//! `sessiond server-key …`.

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sessiond::app::ServerKeyRevoked;
use sessiond::config::Database;
use sessiond::store::Role;
use sessiond::store::ServerKeyFacts;
use sessiond::telemetry;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;

use crate::keys::KeyListArgs;
use crate::keys::key_id;
use crate::print;
use crate::project::project_id;
use crate::result::CommandResult;
use crate::setup;

/// Commands on server keys.
#[derive(Subcommand)]
pub(crate) enum ServerKeyCommand {
    /// Create a server key and print it. It cannot be shown again: only its digest is stored.
    Create(ServerKeyCreateArgs),
    /// List a project's server keys, including revoked ones and those of client certificates. Secrets are not stored.
    List(KeyListArgs),
    /// Revoke a server key: every server refuses it within milliseconds, by the feed. Idempotent.
    Revoke(ServerKeyRevokeArgs),
}

/// Flags of `sessiond server-key create`.
#[derive(clap::Args)]
pub(crate) struct ServerKeyCreateArgs {
    /// The project of the key.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// What the key may do: `service` for sessions and tokens, `admin` also for policy and keys.
    #[arg(long, default_value = "service", value_parser = role, value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond server-key revoke`.
#[derive(clap::Args)]
pub(crate) struct ServerKeyRevokeArgs {
    /// The key, as `list` shows it.
    #[arg(value_parser = key_id, value_name = "KEY")]
    key: KeyId,
    #[command(flatten)]
    database: Database,
}

pub(crate) fn role(text: &str) -> Result<Role, &'static str> {
    Role::parse(text).ok_or("must be `service` or `admin`")
}

pub(crate) async fn run(command: ServerKeyCommand) -> CommandResult {
    match command {
        ServerKeyCommand::Create(args) => create(args).await,
        ServerKeyCommand::List(args) => list(args).await,
        ServerKeyCommand::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: ServerKeyCreateArgs) -> CommandResult {
    print::check_stdout_is_read()?;
    // A server key is hashed, not sealed.
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let (id, key) = app.server_key_create(args.project, args.role).await?;
    // Only the key on standard output, so that it can be piped into a vault.
    print::note(format_args!("created server key {id}; it is shown only once:"));
    let Err(unwritten) = print::line(key.expose_secret()) else { return Ok(()) };
    // A key that nobody saw is useful only to a thief.
    let undone = match app.server_key_revoke(id).await {
        Ok(_) => format!("server key {id} could not be shown, so it was revoked"),
        Err(error) => {
            format!(
                "server key {id} could not be shown, and could not be revoked ({error}); run `sessiond server-key revoke {id}`"
            )
        }
    };
    Err(format!("{undone}: {}", telemetry::chain(&unwritten)).into())
}

async fn list(args: KeyListArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let project = args.project.clone();
    let nothing = format!("project {project} has no server key; `sessiond server-key create` creates one");
    let keys = app.server_keys(args.project).await?;
    Ok(print::list(keys.iter().map(|key| row(&project, key)).collect(), args.format, &nothing)?)
}

pub(crate) fn row(project: &ProjectId, key: &ServerKeyFacts) -> print::Row {
    vec![
        ("id", key.id.to_string().into()),
        ("role", key.role.as_str().into()),
        ("project", project.as_str().into()),
        ("certificate_name", key.certificate_name.as_ref().map_or(Value::Null, |name| name.as_str().into())),
        ("created_at", print::time(Some(key.created_at))),
        ("last_used_at", print::time(key.last_used_at)),
        ("revoked_at", print::time(key.revoked_at)),
    ]
}

async fn revoke(args: ServerKeyRevokeArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    Ok(print::done(match app.server_key_revoke(args.key).await? {
        ServerKeyRevoked::Now => {
            format!("revoked server key {}; every server refuses it within milliseconds", args.key)
        }
        ServerKeyRevoked::Before => format!("server key {} was already revoked", args.key),
    })?)
}
