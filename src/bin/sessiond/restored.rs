//! `sessiond restored`.

use sessiond::app;
use sessiond::config::Database;
use sessiond::store::RequiredDurability;
use sessiond::telemetry::Metrics;

use crate::print;
use crate::result::CommandResult;
use crate::setup;

/// Flags of `sessiond restored`.
#[derive(clap::Args)]
pub(crate) struct RestoredArgs {
    #[command(flatten)]
    database: Database,
}

pub(crate) async fn run(args: RestoredArgs) -> CommandResult {
    let store =
        setup::store(args.database.database_url, &args.database.pool, RequiredDurability::Any, &Metrics::default())?;
    setup::reach(&store).await?;
    let projects = app::after_restore(&store, &setup::clock(&store).await?).await?;
    let ended = format!("revoked every session of {projects} projects; all users must sign in again");
    Ok(print::done(ended)?)
}
