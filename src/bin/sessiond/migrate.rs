//! `sessiond migrate`.

use sessiond::config::Database;
use sessiond::store::Demand;
use sessiond::telemetry::Metrics;

use crate::Outcome;
use crate::print;
use crate::setup;

/// Flags of `sessiond migrate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    database: Database,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let store = setup::store(args.database.database_url, &args.database.pool, Demand::Nothing, &Metrics::default())?;
    setup::reach(&store).await?;
    let applied = store.migrate().await?;
    let lines: Vec<String> = applied.iter().map(|name| format!("applied {name}")).collect();
    Ok(print::done(if lines.is_empty() { "the database is up to date".to_owned() } else { lines.join("\n") })?)
}
