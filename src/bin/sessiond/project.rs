//! `sessiond project …`.

use clap::Subcommand;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::id::ProjectId;
use sessiond::store::Demand;
use sessiond::telemetry::Metrics;

use crate::Outcome;
use crate::policy::PolicyArgs;
use crate::setup;

/// Commands on projects.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a project, with its first signing key and refresh-token key.
    Create(Box<Create>),
}

/// Flags of `sessiond project create`.
#[derive(clap::Args)]
pub(crate) struct Create {
    /// Its name: 1 to 64 characters of `A-Z a-z 0-9 - _`. It is the `aud` of its tokens, and cannot be changed.
    #[arg(value_parser = project_id)]
    id: ProjectId,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

pub(crate) fn project_id(text: &str) -> Result<ProjectId, &'static str> {
    ProjectId::parse(text).ok_or("must be 1 to 64 characters of `A-Z a-z 0-9 - _`")
}

pub(crate) async fn run(command: Command) -> Outcome {
    let Command::Create(args) = command;
    let store = setup::store(args.database.database_url, &args.database.pool, Demand::Nothing, &Metrics::default())?;
    setup::reach(&store).await?;
    // Creating a project issues nothing, so the issuer does not matter here.
    let app = setup::app(store, setup::sealer(&args.sealing)?, "");
    app.project_create(args.id.clone(), args.policy.policy()).await?;
    println!("created project {}", args.id);
    Ok(())
}
