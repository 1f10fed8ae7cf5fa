//! `sessiond dev`: the main job with nothing set up. A Postgres of its own, migrations, a demo project, keys and a session;
//! then it serves, with a page to look at, and prints a curl to paste.

mod demo;
mod page;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sessiond::app::App;
use sessiond::app::Caller;
use sessiond::app::CreateRequest;
use sessiond::app::Grant;
use sessiond::app::ProjectError;
use sessiond::app::Sweeper;
use sessiond::clock::Clock;
use sessiond::cluster;
use sessiond::cluster::Cluster;
use sessiond::config::Backchannel;
use sessiond::config::Limits;
use sessiond::config::Listen;
use sessiond::config::Pool;
use sessiond::config::Rates;
use sessiond::config::Retention;
use sessiond::config::Web;
use sessiond::edge::Server;
use sessiond::id::ProjectId;
use sessiond::session::Policy;
use sessiond::session::opening::Draft;
use sessiond::store::Demand;
use sessiond::store::Role;
use sessiond::store::Store;
use sessiond::telemetry::Metrics;
use sessiond::token::sealing::Sealer;
use sessiond::token::sealing::SealingKey;
use sessiond::token::server_key::ServerKey;

use self::demo::Demo;
use crate::Outcome;
use crate::policy::PolicyArgs;
use crate::print;
use crate::setup;

/// The demo project's name.
const PROJECT: &str = "demo";

/// The demo user's id.
const USER: &str = "ada";

/// Flags of `sessiond dev`. Those of [`Rates`] have other defaults here: all who come to loopback have one address.
#[derive(clap::Args)]
#[command(
    mut_arg("address_rate", |arg| arg.default_value("0")),
    mut_arg("project_rate", |arg| arg.default_value("0")),
    mut_arg("server_key_rate", |arg| arg.default_value("0"))
)]
pub(crate) struct Args {
    /// Address for gRPC, grpc-web and REST; loopback only. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Address for /metrics; loopback only. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_METRICS_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    metrics_listen: SocketAddr,
    /// Where the database, the keys and `dev.env` are kept.
    #[arg(long, env = "SESSIOND_DATA_DIR", default_value = ".sessiond", value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the Postgres server's programs are; found by itself in the usual places.
    #[arg(long, env = "SESSIOND_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    /// Use this Postgres, instead of one of its own.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,
    /// Bring the tables of --database-url up to date. A database of its own always is.
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
}

pub(crate) async fn run(mut args: Args) -> Outcome {
    let stop = setup::told_to_stop()?;
    if !args.listen.ip().is_loopback() || !args.metrics_listen.ip().is_loopback() {
        return Err("`sessiond dev` listens on loopback only; `sessiond serve` is for everyone else".into());
    }
    // A page that gets a browser to resolve its own name to loopback must not reach the demo (DNS rebinding).
    args.web.allowed_hosts = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();

    let files = Files::open(&args.data_dir)?;
    let (mut cluster, url) = database(&args, &files).await?;
    let metrics = Metrics::default();
    let store = setup::store(url.clone(), &args.pool, Demand::Nothing, &metrics)?;
    setup::reach(&store).await?;
    migrate(&store, cluster.is_some() || args.migrate).await?;
    let sweeper = Sweeper::new(store.clone(), Clock::system(), args.retention.clone(), metrics.clone());
    let app = setup::app(store, files.sealer()?, &args.web.issuer).with_rates(&args.rates, metrics.clone());
    let deliverer = setup::deliverer(&app, args.backchannel, &metrics)?;
    let server_key = prepare(&app, &files, args.policy.policy()).await?;
    let grant = sign_in(&app, &server_key).await?;

    let listen = Listen { listen: args.listen, metrics_listen: args.metrics_listen };
    let feed = app.feed().clone();
    let base_path = args.web.base_paths.first().map_or("", |path| path.trim_end_matches('/'));
    let demo = Demo::new(&server_key, base_path);
    let page = page::routes(base_path, &files.path(Files::ENV));
    let beside = |api| page.merge(demo.routes(api));
    let server = Server::bind(app, &listen, &args.web, args.limits, metrics, beside).await?;
    let (address, metrics_address) = (server.local_addr()?, server.metrics_addr()?);
    // Whoever was told that it is there may follow the feed at once.
    let ready = async {
        while feed.age().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        demo.stand_guard(address, &args.web.issuer, server_key.clone()).await;
        files.write_env(&[
            ("SESSIOND_URL", &format!("http://{address}")),
            ("SESSIOND_PROJECT_ID", PROJECT),
            ("SESSIOND_SERVER_KEY", server_key.expose_secret()),
            ("SESSIOND_ACCESS_TOKEN", grant.access_token.expose_secret()),
            ("SESSIOND_REFRESH_TOKEN", grant.refresh_token.expose_secret()),
            ("SESSIOND_METRICS_URL", &format!("http://{metrics_address}/metrics")),
            ("DATABASE_URL", url.expose_secret()),
        ])?;
        greet(&files, address);
        keep_alive(cluster.as_mut()).await?;
        Outcome::Ok(())
    };
    tokio::select! {
        () = server.sweeping(sweeper).delivering(deliverer).run(stop) => {}
        outcome = ready => outcome?,
    }
    if let Some(cluster) = cluster {
        cluster.stop().await?;
    }
    Ok(())
}

/// The database: the one that was named, or one of our own.
///
/// `dev.env` names it too, so that other tools find it; a shell that has read an earlier one names our own.
async fn database(args: &Args, files: &Files) -> Result<(Option<Cluster>, SecretString), Box<dyn std::error::Error>> {
    let own = files.read(Files::OWN_DATABASE).unwrap_or_default();
    if let Some(url) = &args.database_url
        && url.expose_secret() != own.trim()
    {
        return Ok((None, url.clone()));
    }
    let options = cluster::Options {
        data_dir: args.data_dir.clone(),
        postgres_bin: args.postgres_bin.clone(),
        watchdog: std::env::current_exe()?,
        settings: vec![],
        durability: cluster::Durability::Full,
    };
    let cluster = Cluster::start(options).await?;
    // For root the database may be elsewhere than the files, and outlive them.
    if !cluster.is_new() && files.read(Files::SEALING_KEY).is_err() {
        let home = cluster.log().parent().map(Path::to_owned).unwrap_or_default();
        let home = home.display();
        return Err(
            format!("the keys in {home} were sealed with a key that is gone; delete {home} to start anew").into()
        );
    }
    let url = cluster.database_url("postgres");
    files.write(Files::OWN_DATABASE, &url)?;
    Ok((Some(cluster), url.into()))
}

/// Brings a Postgres of our own back when it dies.
async fn keep_alive(cluster: Option<&mut Cluster>) -> Result<(), cluster::Error> {
    let Some(cluster) = cluster else { return std::future::pending().await };
    loop {
        cluster.exited().await;
        tracing::warn!("Postgres is gone; starting it again");
        cluster.start_server().await?;
    }
}

async fn migrate(store: &Store, allowed: bool) -> Outcome {
    if allowed {
        store.migrate().await?;
        return Ok(());
    }
    match store.pending_migrations().await?.as_slice() {
        [] => Ok(()),
        pending => {
            Err(format!("the database lacks {}; say --migrate, or run `sessiond migrate`", pending.join(", ")).into())
        }
    }
}

/// Sees to it that there is a demo project under this policy, and a server key for it.
async fn prepare(app: &App, files: &Files, policy: Policy) -> Result<SecretString, Box<dyn std::error::Error>> {
    let project = ProjectId::parse(PROJECT).expect("a good name");
    match app.project_create(project.clone(), policy.clone()).await {
        Err(ProjectError::Exists(_)) => {
            app.project_update(project.clone(), move |present| *present = policy).await?;
        }
        outcome => outcome?,
    }
    app.keys().reload().await?;
    if let Some(key) = files.server_key()
        && app.service(Caller::Service(key)).await.is_ok()
    {
        return Ok(files.read(Files::SERVER_KEY)?.trim().to_owned().into());
    }
    let (_, key) = app.server_key_create(project, Role::Admin).await?;
    files.write(Files::SERVER_KEY, key.expose_secret())?;
    Ok(key)
}

/// Signs the demo user in.
async fn sign_in(app: &App, server_key: &SecretString) -> Result<Grant, Box<dyn std::error::Error>> {
    let key = ServerKey::parse(server_key.expose_secret()).ok_or("the demo's server key is damaged")?;
    let draft = Draft { user_id: USER.to_owned(), device_name: Some("demo".to_owned()), ..Draft::default() };
    Ok(app.create_session(Caller::Service(key), None, CreateRequest::new(draft, None, &[])).await?)
}

fn greet(files: &Files, address: SocketAddr) {
    let env = files.path(Files::ENV);
    // To a closed pipe: the server is there all the same.
    let _ = print::line(format_args!(
        "sessiond is at http://{address}, and {USER} is signed in to project {PROJECT}.\n\
         Open http://{address}/ to see sessions begin and end, or sign out with\n\n\
         \x20   . {env}\n\
         \x20   curl -X DELETE $SESSIOND_URL/auth/sessions/current -H \"Authorization: Bearer $SESSIOND_ACCESS_TOKEN\"\n\n\
         Ctrl-C stops it; what it remembers is in {dir}.",
        env = env.display(),
        dir = files.dir.display(),
    ));
}

/// The files of a data directory, each readable by its owner alone.
struct Files {
    dir: PathBuf,
}

impl Files {
    const ENV: &str = "dev.env";
    const OWN_DATABASE: &str = "own-database";
    const SEALING_KEY: &str = "sealing-key";
    const SERVER_KEY: &str = "server-key";

    /// Opens the directory. A `dev.env` of an earlier run goes: a script may be waiting for ours.
    fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let files = Self { dir: dir.to_owned() };
        match fs::remove_file(files.path(Self::ENV)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(files),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        // With a slash in it, so that a shell's `.` does not look for it on the PATH.
        if path.components().count() == 1 { Path::new(".").join(path) } else { path }
    }

    fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.path(name))
    }

    /// Writes a file in one step: whoever sees it sees all of it.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let unfinished = self.path(&format!("{name}.unfinished"));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(unfinished, self.path(name))
    }

    fn write_env(&self, values: &[(&str, &str)]) -> io::Result<()> {
        let mut text = String::new();
        for (name, value) in values {
            // In single quotes nothing means anything to a shell but a single quote.
            let value = value.replace('\'', r"'\''");
            writeln!(text, "export {name}='{value}'").expect("a string takes whatever is written to it");
        }
        self.write(Self::ENV, text.trim_end())
    }

    /// The sealing key, made on the first run.
    fn sealer(&self) -> Result<Sealer, Box<dyn std::error::Error>> {
        let key = match self.read(Self::SEALING_KEY) {
            Ok(text) => SealingKey::parse(&text)
                .ok_or_else(|| format!("{} is damaged", self.path(Self::SEALING_KEY).display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = SealingKey::generate();
                self.write(Self::SEALING_KEY, &key.expose())?;
                key
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Sealer::new(&key, None))
    }

    fn server_key(&self) -> Option<ServerKey> {
        ServerKey::parse(self.read(Self::SERVER_KEY).ok()?.trim())
    }
}
