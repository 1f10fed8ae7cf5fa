//! `sessiond sweep`.

use sessiond::app::Sweeper;
use sessiond::config::Database;
use sessiond::config::Retention;
use sessiond::store::RequiredDurability;
use sessiond::telemetry::Metrics;

use crate::print;
use crate::result::CommandResult;
use crate::setup;

/// Flags of `sessiond sweep`.
#[derive(clap::Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    retention: Retention,
}

pub(crate) async fn run(args: SweepArgs) -> CommandResult {
    let metrics = Metrics::default();
    let store = setup::store(args.database.database_url, &args.database.pool, RequiredDurability::Any, &metrics)?;
    setup::reach(&store).await?;
    let clock = setup::clock(&store).await?;
    let removed = Sweeper::new(store, clock, args.retention.periods(), metrics).run_once().await?;
    let lines = removed.iter().map(|(kind, rows)| format!("deleted {rows} {}", kind.as_str().replace('_', " ")));
    Ok(print::done(lines.collect::<Vec<_>>().join("\n"))?)
}
