//! `sessiond migrate`.

use std::time::Duration;

use sessiond::config::Database;
use sessiond::config::duration;
use sessiond::store::RequiredDurability;
use sessiond::telemetry::Metrics;

use crate::print;
use crate::result::CommandResult;
use crate::setup;

/// Flags of `sessiond migrate`.
#[derive(clap::Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    database: Database,
    /// How long to wait for another `migrate`, and for clients that use the tables. The log names whom it waits for.
    #[arg(long, env = "SESSIOND_MIGRATE_WAIT", default_value = "5m", value_parser = duration::<0, 86_400_000>, value_name = "DURATION")]
    wait: Duration,
    /// Also divide the tables among the nodes of a Citus cluster, and give each node its settings. Only while there are no users;
    /// stop the servers before. Run it again after adding a node.
    #[arg(long)]
    distribute: bool,
    /// The number of slots to divide them into (default: 32). A slot is on one node, so it is also the greatest number of nodes that
    /// can share the work. It cannot be changed later. Fewer slots are cheaper: requests for the same slot share a transaction.
    #[arg(long, requires = "distribute", value_parser = clap::value_parser!(u16).range(2..=1_024), value_name = "COUNT")]
    slots: Option<u16>,
}

pub(crate) async fn run(args: MigrateArgs) -> CommandResult {
    let store =
        setup::store(args.database.database_url, &args.database.pool, RequiredDurability::Any, &Metrics::default())?;
    setup::reach(&store).await?;
    // On its own task: a migration blocks its thread, and signals must still be handled.
    let migrating = store.clone();
    let applied = tokio::spawn(async move { migrating.migrate_within(args.wait).await }).await??;
    let mut lines: Vec<String> = applied.iter().map(|name| format!("applied {name}")).collect();
    if args.distribute {
        lines.extend(store.distribute(args.slots, args.wait).await?);
    }
    Ok(print::done(if lines.is_empty() { "the database is up to date".to_owned() } else { lines.join("\n") })?)
}
