//! `sessiond serve`: the server in production. Refuses to start with settings that cannot work, and says why.

use axum::Router;
use clap::builder::BoolishValueParser;
use sessiond::app::Deliverer;
use sessiond::app::Sweeper;
use sessiond::config;
use sessiond::config::Backchannel;
use sessiond::config::Database;
use sessiond::config::Limits;
use sessiond::config::Listen;
use sessiond::config::Observing;
use sessiond::config::Rates;
use sessiond::config::Retention;
use sessiond::config::Sealing;
use sessiond::config::Tls;
use sessiond::config::Web;
use sessiond::edge::Ports;
use sessiond::edge::Server;
use sessiond::edge::ServerTls;
use sessiond::store::Durability;
use sessiond::store::RequiredDurability;
use sessiond::store::Store;
use sessiond::telemetry::Metrics;

use crate::listen;
use crate::result::CommandResult;
use crate::secrets;
use crate::setup;

/// Flags of `sessiond serve`.
#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    web: Web,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    rates: Rates,
    #[command(flatten)]
    retention: Retention,
    #[command(flatten)]
    backchannel: Backchannel,
    #[command(flatten)]
    observing: Observing,
    /// Serve from a database that may lose acknowledged writes (`fsync` or `synchronous_commit` off). A sign-out could
    /// then be undone by a crash.
    #[arg(long, env = "SESSIOND_ALLOW_UNSAFE_DURABILITY", value_parser = BoolishValueParser::new())]
    allow_unsafe_durability: bool,
}

pub(crate) async fn run(mut args: ServeArgs) -> CommandResult {
    let stop = setup::stop_signal(setup::Hangup::Ignored)?;
    listen::check(&listen::listeners(&args.listen))?;
    setup::reap_orphans()?;
    setup::raise_open_files(&mut args.limits, &args.database.pool);
    let tls = ServerTls::load(&args.tls)?;
    secrets::warn_of_environment();
    let metrics = Metrics::default();
    let sealer = setup::sealer(&args.sealing)?;
    let outbound = setup::outbound(args.backchannel)?;
    let (observer, traces) = setup::observer(&args.observing, &metrics)?;
    let required_durability =
        if args.allow_unsafe_durability { RequiredDurability::Any } else { RequiredDurability::Durable };
    let pool = &args.database.pool;
    check(
        &setup::store(args.database.database_url.clone(), pool, RequiredDurability::Any, &metrics)?,
        args.allow_unsafe_durability,
    )
    .await?;
    // From here on each connection is checked: a failover must not lead to a less durable host.
    let store = setup::store(args.database.database_url, pool, required_durability, &metrics)?;
    setup::reach(&store).await?;
    // Before the issuer is used, because it may contain the port.
    let ports = Ports::take(&args.listen).await?;
    let issuer = config::issuer_at(&args.web.issuer, ports.local_addr()?);
    let app = setup::app(store.clone(), sealer, &issuer).await?.with_rates(&args.rates, metrics.clone());
    let sweeper = Sweeper::new(store, app.clock().clone(), args.retention.periods(), metrics.clone());
    app.check_sealing().await?;
    let deliverer = Deliverer::new(&app, outbound, metrics.clone());

    let server = Server::on(ports, app, &args.web, args.limits, metrics, |_| Router::new())?.observed_by(&observer);
    tracing::info!(address = %server.local_addr()?, issuer, metrics = %server.metrics_addr()?, "serving");
    if let Some(address) = server.proxy_addr()? {
        tracing::info!(%address, "serving proxies");
    }
    if tls.is_none() {
        listen::warn_of_plaintext(&args.listen);
    }
    let server = match tls {
        Some(tls) => server.with_tls(tls),
        None => server,
    };
    server.sweeping(sweeper).delivering(deliverer).run(stop).await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    tracing::info!("stopped");
    Ok(())
}

async fn check(store: &Store, allow_unsafe_durability: bool) -> CommandResult {
    setup::reach(store).await?;
    let pending = store.pending_migrations().await?;
    if !pending.is_empty() {
        return Err(format!("the database lacks {}; run `sessiond migrate`", pending.join(", ")).into());
    }
    let setting = match store.read_durability().await? {
        Durability::Kept => return Ok(()),
        Durability::FsyncOff => "fsync",
        Durability::AsynchronousCommit => "synchronous_commit",
    };
    if allow_unsafe_durability {
        tracing::warn!(setting, "the database may lose acknowledged writes");
        return Ok(());
    }
    let why = "an acknowledged sign-out could be lost. Turn it on, or use --allow-unsafe-durability";
    Err(format!("the database has {setting} off: {why}").into())
}
