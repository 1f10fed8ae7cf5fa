//! `sessiond dev`: everything with no setup. Starts its own Postgres, migrates it, creates a demo project, keys and a
//! session, then serves the API and a demo page, and prints a curl command to try.

mod demo;
mod files;
mod names;
mod page;
pub(crate) mod session;

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dev_postgres::Cluster;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sessiond::app::App;
use sessiond::app::Caller;
use sessiond::app::Deliverer;
use sessiond::app::ProjectError;
use sessiond::app::Sweeper;
use sessiond::config;
use sessiond::config::Backchannel;
use sessiond::config::Limits;
use sessiond::config::Listen;
use sessiond::config::Observing;
use sessiond::config::Pool;
use sessiond::config::Rates;
use sessiond::config::Retention;
use sessiond::config::Web;
use sessiond::edge::Ports;
use sessiond::edge::Server;
use sessiond::store::RequiredDurability;
use sessiond::store::Role;
use sessiond::store::Store;
use sessiond::telemetry::Metrics;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;

use self::demo::Demo;
use self::files::Files;
use self::names::DATA_DIR;
use self::names::PROJECT;
use self::names::USER;
use crate::listen;
use crate::policy::PolicyArgs;
use crate::print;
use crate::result::CommandResult;
use crate::setup;

/// The default issuer: the address that `dev` listens on.
const OWN_ISSUER: &str = "http://127.0.0.1:0";

/// Flags of `sessiond dev`. [`Rates`] have other defaults here, because all clients on loopback share one address.
#[derive(clap::Args)]
#[command(
    mut_arg("issuer", |arg| arg.default_value(OWN_ISSUER)),
    mut_arg("address_rate", |arg| arg.default_value("0")),
    mut_arg("project_rate", |arg| arg.default_value("0")),
    mut_arg("server_key_rate", |arg| arg.default_value("0")),
    mut_arg("user_rate", |arg| arg.default_value("0")),
    mut_arg("verify_rate", |arg| arg.default_value("0")),
    mut_arg("drain_delay", |arg| arg.default_value("0s"))
)]
pub(crate) struct DevArgs {
    /// Address for gRPC, grpc-web and REST; loopback only. Port 0 picks a free one.
    #[arg(long, env = "SESSIOND_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Address for /metrics; loopback only. Port 0 picks a free one.
    #[arg(long, env = "SESSIOND_METRICS_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    metrics_listen: SocketAddr,
    /// The directory for the database, the keys and `dev.env`.
    #[arg(long, env = "SESSIOND_DATA_DIR", default_value = DATA_DIR, value_name = "DIR")]
    data_dir: PathBuf,
    /// The directory of the Postgres server programs. Default: the usual places are searched.
    #[arg(long, env = "SESSIOND_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    /// Use this Postgres instead of starting one.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,
    /// Migrate the database of --database-url. `dev` always migrates its own Postgres.
    #[arg(long, requires = "database_url")]
    migrate: bool,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    pool: Pool,
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
}

pub(crate) async fn run(mut args: DevArgs) -> CommandResult {
    let stop = setup::stop_signal(setup::Hangup::Stops)?;
    if !args.listen.ip().is_loopback() || !args.metrics_listen.ip().is_loopback() {
        return Err("`sessiond dev` listens on loopback only; use `sessiond serve` for other addresses".into());
    }
    // Against DNS rebinding: a page whose name resolves to loopback must not reach the demo.
    args.web.allowed_hosts = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();

    // Check everything cheap before anything is changed.
    let files = Files::open(&args.data_dir)?;
    listen::check(&[("--listen", args.listen), ("--metrics-listen", args.metrics_listen)])?;
    let sealer = files.sealer()?;
    let outbound = setup::outbound(args.backchannel.clone())?;
    setup::raise_open_files(&mut args.limits, &args.pool);
    files.forget_env()?;
    let (mut cluster, url) = database(&args, &files).await?;
    let sealer = match sealer {
        Some(sealer) => sealer,
        None => files.new_sealer()?,
    };
    let metrics = Metrics::default();
    let (observer, traces) = setup::observer(&args.observing, &metrics)?;
    let store = setup::store(url.clone(), &args.pool, RequiredDurability::Any, &metrics)?;
    setup::reach(&store).await?;
    migrate(&store, cluster.is_some() || args.migrate).await?;
    let ports =
        Ports::take(&Listen { listen: args.listen, metrics_listen: args.metrics_listen, proxy_listen: None }).await?;
    let address = ports.local_addr()?;
    let issuer = match args.web.issuer.as_str() {
        OWN_ISSUER => format!("http://{address}"),
        issuer => config::issuer_at(issuer, address),
    };
    let app = setup::app(store.clone(), sealer, &issuer).await?.with_rates(&args.rates, metrics.clone());
    let sweeper = Sweeper::new(store, app.clock().clone(), args.retention.periods(), metrics.clone());
    let deliverer = Deliverer::new(&app, outbound, metrics.clone());
    prepare(&app, args.policy.policy()).await?;
    let server_key = key(&app, &files, Files::SERVER_KEY, Role::Admin).await?;
    let verifier_key = key(&app, &files, Files::VERIFIER_KEY, Role::Verifier).await?;

    let feed = app.feed().clone();
    let base_path = args.web.base_paths.first().map_or("", |path| path.trim_end_matches('/'));
    let files = Arc::new(files);
    let demo = Demo::new(&server_key, base_path, Arc::clone(&files), app.clone());
    let page = page::routes(base_path, &files.path(Files::ENV));
    let beside = |api| page.merge(demo.routes(api));
    let server = Server::on(ports, app, &args.web, args.limits, metrics, beside)?.observed_by(&observer);
    let metrics_address = server.metrics_addr()?;
    // Readers of `dev.env` may follow the feed at once, so wait until it is up.
    let ready = async {
        while feed.age().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        demo.connect_guard(address, &issuer, verifier_key.clone()).await;
        files.name_holder(&format!("process {}, at http://{address}", std::process::id()))?;
        demo.keep_env(vec![
            ("SESSIOND_URL", format!("http://{address}")),
            ("SESSIOND_PROJECT_ID", PROJECT.to_owned()),
            ("SESSIOND_SERVER_KEY", server_key.expose_secret().to_owned()),
            ("SESSIOND_VERIFIER_KEY", verifier_key.expose_secret().to_owned()),
            ("SESSIOND_METRICS_URL", format!("http://{metrics_address}/metrics")),
            ("DATABASE_URL", url.expose_secret().to_owned()),
        ]);
        session::open(address).await?;
        greet(&files, address);
        keep_alive(cluster.as_mut()).await?;
        CommandResult::Ok(())
    };
    let stop = async {
        stop.await;
        demo.disconnect_guard();
    };
    tokio::select! {
        () = server.sweeping(sweeper).delivering(deliverer).run(stop) => {}
        outcome = ready => outcome?,
    }
    if let Some(traces) = traces {
        traces.stop().await;
    }
    if let Some(cluster) = cluster {
        cluster.stop().await?;
    }
    Ok(())
}

/// The database: the given one, or our own.
///
/// `dev.env` exports its URL for other tools. A shell that has read an earlier `dev.env` names our own database, even
/// if the data directory has been deleted since.
async fn database(
    args: &DevArgs,
    files: &Files,
) -> Result<(Option<Cluster>, SecretString), Box<dyn std::error::Error>> {
    let own = files.read(Files::OWN_DATABASE).unwrap_or_default();
    if let Some(url) = &args.database_url
        && url.expose_secret() != own.trim()
        && !Cluster::is_at(&args.data_dir, "postgres", url.expose_secret())
    {
        return Ok((None, url.clone()));
    }
    let options = dev_postgres::Options {
        data_dir: args.data_dir.clone(),
        postgres_bin: args.postgres_bin.clone(),
        watchdog: std::env::current_exe()?,
        settings: vec![],
        durability: dev_postgres::Durability::Full,
    };
    if files.is_new()
        && let Some(home) = Cluster::delete_outlived(&options).await?
    {
        let (dir, home) = (files.dir().display(), home.display());
        print::note(format_args!("{dir} is new, so the database of an earlier one, in {home}, was deleted"));
    }
    let cluster = Cluster::start(options).await?;
    // As root the database may be outside of the data directory, and outlive it.
    if !cluster.is_new() && files.read(Files::SEALING_KEY).is_err() {
        let home = cluster.log().parent().map(Path::to_owned).unwrap_or_default();
        let home = home.display();
        return Err(format!(
            "the keys in {home} were sealed with a key that is lost; delete {home} to start with new ones"
        )
        .into());
    }
    let url = cluster.database_url("postgres");
    files.write(Files::OWN_DATABASE, &url)?;
    Ok((Some(cluster), url.into()))
}

/// Restarts our own Postgres when it dies.
async fn keep_alive(cluster: Option<&mut Cluster>) -> Result<(), dev_postgres::Error> {
    let Some(cluster) = cluster else { return std::future::pending().await };
    loop {
        cluster.exited().await;
        tracing::warn!("Postgres exited; restarting it");
        cluster.start_server().await?;
    }
}

async fn migrate(store: &Store, allowed: bool) -> CommandResult {
    if allowed {
        store.migrate().await?;
        return Ok(());
    }
    match store.pending_migrations().await?.as_slice() {
        [] => Ok(()),
        pending => {
            Err(format!("the database lacks {}; use --migrate, or run `sessiond migrate`", pending.join(", ")).into())
        }
    }
}

/// Creates or updates the demo project.
async fn prepare(app: &App, policy: Policy) -> CommandResult {
    let project = ProjectId::parse(PROJECT).expect("a good name");
    match app.project_create(project.clone(), policy.clone()).await {
        Err(ProjectError::Exists(_)) => {
            app.project_update(project.clone(), move |present| *present = policy).await?;
        }
        outcome => outcome?,
    }
    app.keys().reload().await?;
    Ok(())
}

/// The demo project's server key of a role: the one in the file, if it is good, or else a new one.
async fn key(app: &App, files: &Files, file: &str, role: Role) -> Result<SecretString, Box<dyn std::error::Error>> {
    if let Some(key) = files.server_key(file)
        && app.service(Caller::Service(key), role).await.is_ok()
    {
        return Ok(files.read(file)?.trim().to_owned().into());
    }
    let (_, key) = app.server_key_create(ProjectId::parse(PROJECT).expect("a good name"), role).await?;
    files.write(file, key.expose_secret())?;
    Ok(key)
}

/// The command line of `demo-session` for the directory in which this program was started.
fn program(files: &Files) -> String {
    let name = std::env::args().next().unwrap_or_else(|| "sessiond".to_owned());
    let data_dir = match files.dir() == Path::new(DATA_DIR) {
        true => String::new(),
        false => format!(" --data-dir {}", files.dir().display()),
    };
    format!("{name} demo-session{data_dir}")
}

fn greet(files: &Files, address: SocketAddr) {
    let env = files.path(Files::ENV);
    // A closed pipe does not matter: the server runs.
    let _ = print::line(format_args!(
        "sessiond is at http://{address}, and {USER} is signed in to project {PROJECT}.\n\
         Open http://{address}/ to watch sessions start and end, or sign out with\n\n\
         \x20   . {env}\n\
         \x20   curl -X DELETE $SESSIOND_URL/auth/sessions/current -H \"Authorization: Bearer $SESSIOND_ACCESS_TOKEN\"\n\n\
         Each session signs out once: `{program}` creates another one for the shell.\n\
         Ctrl-C stops it; its data is in {dir}.",
        env = env.display(),
        program = program(files),
        dir = files.dir().display(),
    ));
}
