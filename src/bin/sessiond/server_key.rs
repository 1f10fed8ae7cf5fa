//! `sessiond server-key …`.

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use sessiond::config::Database;
use sessiond::id::ProjectId;
use sessiond::store::Demand;
use sessiond::store::Role;
use sessiond::telemetry::Metrics;
use sessiond::token::sealing::Sealer;
use sessiond::token::sealing::SealingKey;

use crate::Outcome;
use crate::project::project_id;
use crate::setup;

/// Commands on server keys.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a server key and print it: this once, for only its digest is kept.
    Create(Create),
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

fn role(text: &str) -> Result<Role, &'static str> {
    Role::parse(text).ok_or("must be `service` or `admin`")
}

pub(crate) async fn run(command: Command) -> Outcome {
    let Command::Create(args) = command;
    let store = setup::store(args.database.database_url, &args.database.pool, Demand::Nothing, &Metrics::default())?;
    setup::reach(&store).await?;
    // A server key is hashed, not sealed: the operator need not hold the sealing key to make one.
    let app = setup::app(store, Sealer::new(&SealingKey::generate(), None), "");
    let (id, key) = app.server_key_create(args.project, args.role).await?;
    // The key alone on standard output, so that it can be piped into a vault.
    eprintln!("created server key {id}; it is shown only now:");
    println!("{}", key.expose_secret());
    Ok(())
}
