//! The command line: a short list of commands, and a file for each.

// `println!` panics when standard output is closed or full; `print` does not.
#![warn(clippy::print_stdout)]

mod audit;
mod backchannel;
mod dev;
mod keys;
mod listen;
mod migrate;
mod openapi;
mod policy;
mod print;
mod project;
mod refresh_key;
mod reseal;
mod restored;
mod serve;
mod server_key;
mod setup;
mod signing_key;
mod sweep;

use std::error::Error;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::FromArgMatches as _;
use clap::Parser;
use clap::Subcommand;
use sessiond::cluster;
use sessiond::config;
use sessiond::config::Log;
use sessiond::config::LogFormat;
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
    /// Run everything at once with nothing set up: a Postgres of its own, a demo project, and a page to look at.
    Dev(Box<dev::Args>),
    /// Open another demo session at a `sessiond dev` that runs, and write its tokens to dev.env.
    DemoSession(dev::session::Args),
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
    /// Manage signing keys: what access tokens are signed with.
    #[command(subcommand)]
    SigningKey(signing_key::Command),
    /// Manage refresh keys: what refresh tokens are made with.
    #[command(subcommand)]
    RefreshKey(refresh_key::Command),
    /// Manage back-channels: other services that are told when a session ends.
    #[command(subcommand)]
    Backchannel(backchannel::Command),
    /// Seal every private key in the database anew: under --sealing-key, where only --previous-sealing-key opens it.
    ///
    /// To change the sealing key, give every server the new one as SESSIOND_SEALING_KEY and the old one as
    /// SESSIOND_PREVIOUS_SEALING_KEY; then run this with both; then take the old one away. It may be interrupted, and
    /// run again, at any time.
    Reseal(reseal::Args),
    /// Remove what is over, now: ended sessions, old request ids, the end of the audit. Servers do so by themselves.
    Sweep(sweep::Args),
    /// Run this after the database was restored from a backup: it ends every session, for the backup may not know of
    /// those that had ended since. Whoever was signed in signs in again.
    Restored(restored::Args),
    /// Read the audit: who ended which sessions, when, why, and from where.
    Audit(audit::Args),
}

/// The exit code of a command whose reader closed the pipe early: 128 and the number of SIGPIPE.
const CLOSED_PIPE: u8 = 141;

/// The exit code of a command that was told to stop before it was done: 128 and SIGTERM.
const STOPPED: u8 = 143;

/// What a command comes to. Errors are read by people: each level says its own part.
type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    // Before anything else is parsed: the watchdog is started by us, and wants no runtime.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == cluster::WATCHDOG_COMMAND) {
        return cluster::watchdog_main(args);
    }
    let asked = config::tidied(Cli::command()).try_get_matches();
    let Cli { command, log } = match asked.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && telemetry::is_json_asked_for() => {
            fatal(LogFormat::Json, error.to_string().trim_end());
            return error.exit_code().try_into().map_or(ExitCode::FAILURE, |code: u8| code.into());
        }
        // Help and the version come this way too, and they are to be read.
        Err(other) => match (other.print(), u8::try_from(other.exit_code())) {
            (Ok(()), Ok(code)) => return code.into(),
            (Err(_), _) | (_, Err(_)) => return ExitCode::FAILURE,
        },
    };
    let Err(error) = run(command, &log) else { return ExitCode::SUCCESS };
    // What a shell reports of a program that SIGPIPE ends.
    if error.downcast_ref().is_some_and(print::Unwritten::is_closed) {
        return CLOSED_PIPE.into();
    }
    fatal(log.log_format, &telemetry::chain(&*error));
    if error.is::<setup::Stopped>() { STOPPED.into() } else { ExitCode::FAILURE }
}

/// Says why the process ends, in the log's format: collectors read JSON or nothing.
fn fatal(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => print::aside(format_args!("sessiond: {message}")),
        LogFormat::Json => print::aside(format_args!("{}", telemetry::in_json(message))),
    }
}

fn run(command: Command, log: &Log) -> Outcome {
    telemetry::init(log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let is_server = matches!(command, Command::Dev(_) | Command::Serve(_));
    let outcome = runtime.block_on(async {
        setup::listen_to_signals()?;
        let stop = setup::stopped()?;
        tokio::select! {
            biased;
            outcome = execute(command) => outcome,
            // Servers see to it by themselves.
            () = stop, if !is_server => Err(setup::Stopped.into()),
        }
    });
    telemetry::flush();
    // What is still under way is not waited for: the database takes it back.
    runtime.shutdown_background();
    match outcome {
        Err(error) if is_server && error.is::<setup::Stopped>() => Ok(()),
        outcome => outcome,
    }
}

async fn execute(command: Command) -> Outcome {
    match command {
        Command::Dev(args) => dev::run(*args).await,
        Command::DemoSession(args) => dev::session::run(args).await,
        Command::Serve(args) => serve::run(*args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Openapi(args) => openapi::run(&args),
        Command::Project(command) => project::run(command).await,
        Command::ServerKey(command) => server_key::run(command).await,
        Command::SigningKey(command) => signing_key::run(command).await,
        Command::RefreshKey(command) => refresh_key::run(command).await,
        Command::Backchannel(command) => backchannel::run(command).await,
        Command::Reseal(args) => reseal::run(args).await,
        Command::Sweep(args) => sweep::run(args).await,
        Command::Restored(args) => restored::run(args).await,
        Command::Audit(args) => audit::run(args).await,
    }
}
