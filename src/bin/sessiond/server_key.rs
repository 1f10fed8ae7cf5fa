//! `sessiond server-key …`.

use std::time::Duration;

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sessiond::app::App;
use sessiond::app::ServerKeyRevoked;
use sessiond::config;
use sessiond::config::Database;
use sessiond::store::Narrowing;
use sessiond::store::Privileges;
use sessiond::store::Role;
use sessiond::store::ServerKeyFacts;
use sessiond::telemetry;
use sessiond_core::clock::Timestamp;
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
    /// Take away from what a server key may do; what remains is printed. Every server applies it to requests within five seconds.
    Narrow(ServerKeyNarrowArgs),
    /// Revoke a server key: every server refuses it within milliseconds, by the feed. Idempotent.
    Revoke(ServerKeyRevokeArgs),
}

/// Flags of `sessiond server-key create`.
#[derive(clap::Args)]
pub(crate) struct ServerKeyCreateArgs {
    /// The project of the key.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// What the key may do: `verifier` follows revocations and introspects tokens, which is all that a guard needs; `service`
    /// also creates, lists, changes and revokes sessions; `admin` also opens impersonations, erases users and signs everybody out.
    #[arg(long, default_value = "service", value_parser = role, value_name = "ROLE")]
    role: Role,
    /// Let a key with the role `service` open impersonations: sessions in which someone else acts as the user.
    #[arg(long)]
    impersonation: bool,
    /// Let the key expire after this time: 1 minute to 10 years. By default it does not expire.
    #[arg(long, value_parser = key_ttl, value_name = "DURATION")]
    expires_in: Option<Duration>,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond server-key narrow`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("limits").required(true).multiple(true))]
pub(crate) struct ServerKeyNarrowArgs {
    /// The key, as `list` shows it; also the id of a name in client certificates.
    #[arg(value_parser = key_id, value_name = "KEY")]
    key: KeyId,
    /// Lower the role to this one. A key with a lesser role keeps that.
    #[arg(long, value_parser = role, value_name = "ROLE", group = "limits")]
    role: Option<Role>,
    /// Take away impersonation.
    #[arg(long, group = "limits")]
    no_impersonation: bool,
    /// Let the key expire after this time: 1 minute to 10 years. A key that expires earlier does so.
    #[arg(long, value_parser = key_ttl, value_name = "DURATION", group = "limits")]
    expires_in: Option<Duration>,
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
    Role::parse(text).ok_or("must be `verifier`, `service` or `admin`")
}

pub(crate) async fn run(command: ServerKeyCommand) -> CommandResult {
    match command {
        ServerKeyCommand::Create(args) => create(args).await,
        ServerKeyCommand::List(args) => list(args).await,
        ServerKeyCommand::Narrow(args) => narrow(args).await,
        ServerKeyCommand::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: ServerKeyCreateArgs) -> CommandResult {
    let privileges = privileges(args.role, args.impersonation)?;
    print::check_stdout_is_read()?;
    // A server key is hashed, not sealed.
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let privileges = Privileges { expires_at: expires_at(args.expires_in, &app), ..privileges };
    let (id, key) = app.server_key_create(args.project, privileges).await?;
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
        ("role", key.privileges.role.as_str().into()),
        ("impersonation", key.privileges.allows_impersonation().into()),
        ("project", project.as_str().into()),
        ("certificate_name", key.certificate_name.as_ref().map_or(Value::Null, |name| name.as_str().into())),
        ("created_at", print::time(Some(key.created_at))),
        ("expires_at", print::time(key.privileges.expires_at)),
        ("last_used_at", print::time(key.last_used_at)),
        ("revoked_at", print::time(key.revoked_at)),
    ]
}

fn key_ttl(text: &str) -> Result<Duration, String> {
    config::duration::<60_000, { 3_660 * 86_400_000 }>(text)
}

fn expires_at(expires_in: Option<Duration>, app: &App) -> Option<Timestamp> {
    expires_in.map(|expires_in| app.clock().now() + expires_in)
}

/// The privileges of a new key that does not expire.
///
/// # Errors
///
/// Fails if the role allows no impersonation that is asked for.
pub(crate) fn privileges(role: Role, may_impersonate: bool) -> Result<Privileges, &'static str> {
    match role {
        Role::Verifier if may_impersonate => Err("--impersonation needs --role service: a verifier opens no sessions"),
        Role::Verifier | Role::Service | Role::Admin => Ok(Privileges { may_impersonate, ..role.into() }),
    }
}

async fn narrow(args: ServerKeyNarrowArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let ServerKeyNarrowArgs { key, role, no_impersonation, expires_in, .. } = args;
    let expires_at = expires_at(expires_in, &app);
    let limits = Narrowing { role, ends_impersonation: no_impersonation, expires_at };
    let (before, after) = app.server_key_narrow(key, limits).await?;
    let impersonation = if after.allows_impersonation() { "with impersonation" } else { "without impersonation" };
    let end = after.expires_at.map_or_else(|| "does not expire".to_owned(), |at| format!("expires at {at}"));
    let is = format!("server key {key} has the role {}, {impersonation}, and {end}", after.role.as_str());
    Ok(print::done(match before == after {
        true => format!("{is}: nothing to take away"),
        false => format!("{is}; every server applies it to requests within 5 s"),
    })?)
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
