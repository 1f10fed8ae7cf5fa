//! The command line: a short list of commands, and a file for each.

mod audit;
mod dev;
mod migrate;
mod openapi;
mod policy;
mod project;
mod serve;
mod server_key;
mod setup;
mod sweep;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;
use sessiond::cluster;
use sessiond::config::Log;
use sessiond::telemetry;

/// The session half of auth: opens, refreshes and ends sessions over gRPC, grpc-web and REST, on Postgres.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: Log,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything at once with nothing set up: a Postgres of its own, a demo project, and a curl to paste.
    Dev(Box<dev::Args>),
    /// Run the server.
    Serve(Box<serve::Args>),
    /// Bring the database's tables up to date.
    Migrate(migrate::Args),
    /// Print the REST API as an OpenAPI 3.1 document: what a server answers at /openapi.json.
    Openapi(openapi::Args),
    /// Manage projects: the tenants.
    #[command(subcommand)]
    Project(project::Command),
    /// Manage server keys: how an internal service shows who it is.
    #[command(subcommand)]
    ServerKey(server_key::Command),
    /// Remove what is over, now: ended sessions, old request ids, the end of the audit. Servers do so by themselves.
    Sweep(sweep::Args),
    /// Read the audit: who ended which sessions, when, why, and from where.
    Audit(audit::Args),
}

/// What a command comes to. Errors are read by people: each level says its own part.
type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    // Before anything else is parsed: the watchdog is started by us, and wants no runtime.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == cluster::WATCHDOG_COMMAND) {
        return cluster::watchdog_main(args);
    }
    let Cli { command, log } = Cli::parse();
    match run(command, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sessiond: {}", telemetry::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, log: &Log) -> Outcome {
    telemetry::init(log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Dev(args) => dev::run(*args).await,
            Command::Serve(args) => serve::run(*args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Openapi(args) => openapi::run(&args),
            Command::Project(command) => project::run(command).await,
            Command::ServerKey(command) => server_key::run(command).await,
            Command::Sweep(args) => sweep::run(args).await,
            Command::Audit(args) => audit::run(args).await,
        }
    })
}
