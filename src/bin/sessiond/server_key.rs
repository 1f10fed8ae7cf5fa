//! `sessiond server-key …`.

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use sessiond::app::Taken;
use sessiond::config::Database;
use sessiond::id::KeyId;
use sessiond::id::ProjectId;
use sessiond::store::Role;
use sessiond::store::ServerKeyFacts;
use sessiond::telemetry;

use crate::Outcome;
use crate::keys::key_id;
use crate::print;
use crate::print::Format;
use crate::project::project_id;
use crate::setup;

/// Commands on server keys.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a server key and print it: this once, for only its digest is kept.
    Create(Create),
    /// List a project's server keys, the revoked ones too. Their secrets are not kept, and so not shown.
    List(List),
    /// Take a server key away: every server refuses it from this moment on. Once more is as good as once.
    Revoke(Revoke),
}

/// Flags of `sessiond server-key create`.
#[derive(clap::Args)]
pub(crate) struct Create {
    /// The project that the key acts for.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// What the key may do: `service` for sessions and tokens, `admin` for policy and keys as well.
    #[arg(long, default_value = "service", value_parser = role, value_name = "ROLE")]
    role: Role,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond server-key list`.
#[derive(clap::Args)]
pub(crate) struct List {
    /// The project whose keys they are.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond server-key revoke`.
#[derive(clap::Args)]
pub(crate) struct Revoke {
    /// The key, as `list` shows it.
    #[arg(value_parser = key_id, value_name = "KEY")]
    key: KeyId,
    #[command(flatten)]
    database: Database,
}

fn role(text: &str) -> Result<Role, &'static str> {
    Role::parse(text).ok_or("must be `service` or `admin`")
}

pub(crate) async fn run(command: Command) -> Outcome {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(args) => list(args).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: Create) -> Outcome {
    print::somebody_reads()?;
    // A server key is hashed, not sealed.
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let (id, key) = app.server_key_create(args.project, args.role).await?;
    // The key alone on standard output, so that it can be piped into a vault.
    print::aside(format_args!("created server key {id}; it is shown only now:"));
    let Err(unwritten) = print::line(key.expose_secret()) else { return Ok(()) };
    // A key that nobody saw is of no use to anybody but a thief.
    let undone = match app.server_key_revoke(id).await {
        Ok(_) => format!("server key {id} could not be shown, so it was revoked"),
        Err(error) => {
            format!("server key {id} could not be shown, nor revoked ({error}); run `sessiond server-key revoke {id}`")
        }
    };
    Err(format!("{undone}: {}", telemetry::chain(&unwritten)).into())
}

async fn list(args: List) -> Outcome {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let project = args.project.clone();
    let nothing = format!("project {project} has no server key; `sessiond server-key create` makes one");
    let keys = app.server_keys(args.project).await?;
    let row = |key: ServerKeyFacts| {
        vec![
            ("id", key.id.to_string().into()),
            ("role", key.role.as_str().into()),
            ("project", project.as_str().into()),
            ("created_at", print::time(Some(key.created_at))),
            ("revoked_at", print::time(key.revoked_at)),
        ]
    };
    Ok(print::list(keys.into_iter().map(row).collect(), args.format, &nothing)?)
}

async fn revoke(args: Revoke) -> Outcome {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    Ok(print::done(match app.server_key_revoke(args.key).await? {
        Taken::Now => format!("revoked server key {}; every server refuses it from now on", args.key),
        Taken::Before => format!("server key {} was revoked before", args.key),
    })?)
}
