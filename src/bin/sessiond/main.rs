//! The command line: a short list of commands, and a file for each.

// `println!` panics when standard output is closed or full; `print` does not.
#![warn(clippy::print_stdout)]

mod audit;
mod backchannel;
mod client_certificate;
mod dev;
mod doctor;
mod guard;
mod health;
mod keys;
mod listen;
mod local;
mod migrate;
mod openapi;
mod policy;
mod print;
mod project;
#[cfg(test)]
mod reference;
mod refresh_key;
mod reseal;
mod restored;
mod result;
mod secrets;
mod serve;
mod server_key;
mod setup;
mod signing_key;
mod sweep;

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::FromArgMatches as _;
use clap::Parser;
use clap::Subcommand;
use sessiond::config;
use sessiond::config::Log;
use sessiond::config::LogFormat;
use sessiond::config::Tidied;
use sessiond::telemetry;

use crate::result::CommandResult;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A session service: creates, refreshes and revokes sessions over gRPC, grpc-web and REST, on Postgres.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: Log,
}

// Only the command that was asked for is built: all of them take a third of a megabyte, which a small guard would keep.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run everything with no setup: a server with its own Postgres, a demo project and a demo page.
    Dev(Tidied<Box<dev::DevArgs>>),
    /// Create another demo session at a running `sessiond dev`, and write its tokens to dev.env.
    DemoSession(Tidied<dev::session::DemoSessionArgs>),
    /// Run the server.
    Serve(Tidied<Box<serve::ServeArgs>>),
    /// Run a guard beside a service in any language: it verifies access tokens for a proxy or the service itself, and follows
    /// sessiond's revocations. Needs no database.
    Guard(Tidied<Box<config::Sidecar>>),
    /// Check that the server on this machine is ready. Exits with 0 if it is, else with 1 and the reason.
    Health(Tidied<health::HealthArgs>),
    /// Check the settings, the database, the keys and a running server, and say what to do. Changes nothing. Exits with 1 if
    /// something does not work.
    Doctor(Tidied<Box<doctor::DoctorArgs>>),
    /// Bring the database schema up to date.
    Migrate(Tidied<migrate::MigrateArgs>),
    /// Print the OpenAPI 3.1 document of the REST API, as served at /openapi.json.
    Openapi(Tidied<openapi::OpenapiArgs>),
    /// Manage projects (tenants).
    #[command(subcommand)]
    Project(Tidied<project::ProjectCommand>),
    /// Manage server keys, which authenticate internal services.
    #[command(subcommand)]
    ServerKey(Tidied<server_key::ServerKeyCommand>),
    /// Manage the names in client certificates that stand in for server keys.
    #[command(subcommand)]
    ClientCertificate(Tidied<client_certificate::ClientCertificateCommand>),
    /// Manage signing keys, which sign access tokens.
    #[command(subcommand)]
    SigningKey(Tidied<signing_key::SigningKeyCommand>),
    /// Manage refresh keys, which authenticate refresh tokens.
    #[command(subcommand)]
    RefreshKey(Tidied<refresh_key::RefreshKeyCommand>),
    /// Manage back-channels, which notify other services when a session is revoked.
    #[command(subcommand)]
    Backchannel(Tidied<backchannel::BackchannelCommand>),
    /// Reseal every private key in the database that only the previous sealing key opens, under the present one.
    ///
    /// To change the sealing key, give every server the new one as --sealing-key-file and the old one as
    /// --previous-sealing-key-file. Then run this with both. Then remove the old one. It may be interrupted, and run
    /// again, at any time.
    Reseal(Tidied<reseal::ResealArgs>),
    /// Delete ended sessions, old request ids and old audit entries now. Servers do this in the background.
    Sweep(Tidied<sweep::SweepArgs>),
    /// Run this after the database was restored from a backup. It revokes every session, because the backup may lack
    /// revocations made after it. All users must sign in again.
    Restored(Tidied<restored::RestoredArgs>),
    /// Print the audit log: who did what to which sessions, keys and settings, when, and from where.
    ///
    /// Oldest first, so that the newest entries are the last lines.
    Audit(Tidied<Box<audit::AuditArgs>>),
}

/// The exit code after the reader closed the pipe early: 128 + SIGPIPE.
const CLOSED_PIPE: u8 = 141;

/// The exit code of a command that was stopped before it finished: 128 + SIGTERM.
const STOPPED: u8 = 143;

fn main() -> ExitCode {
    // Before anything else is parsed: this program starts the watchdog, which needs no runtime.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == dev_postgres::WATCHDOG_COMMAND) {
        return dev_postgres::watchdog_main(args);
    }
    let asked = config::tidied(Cli::command()).try_get_matches();
    if let Some(Err(error)) = asked.as_ref().ok().map(secrets::check_command_line) {
        let format = if telemetry::is_json_requested() { LogFormat::Json } else { LogFormat::Text };
        fatal(format, &error.to_string());
        return ExitCode::FAILURE;
    }
    let Cli { command, log } = match asked.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && telemetry::is_json_requested() => {
            fatal(LogFormat::Json, error.to_string().trim_end());
            return error.exit_code().try_into().map_or(ExitCode::FAILURE, |code: u8| code.into());
        }
        // Help and the version come this way too, on standard output.
        Err(other) => match (other.print(), u8::try_from(other.exit_code())) {
            (Ok(()), Ok(code)) => return code.into(),
            (Err(_), _) | (_, Err(_)) => return ExitCode::FAILURE,
        },
    };
    let Err(error) = run(command, &log) else { return ExitCode::SUCCESS };
    // What a shell reports for a program killed by SIGPIPE.
    if error.downcast_ref().is_some_and(print::Unwritten::is_closed) {
        return CLOSED_PIPE.into();
    }
    fatal(log.log_format, &telemetry::chain(&*error));
    if error.is::<setup::Stopped>() { STOPPED.into() } else { ExitCode::FAILURE }
}

/// Prints why the process exits, in the log's format: log collectors expect only JSON.
fn fatal(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => print::note(format_args!("sessiond: {message}")),
        LogFormat::Json => print::note(format_args!("{}", telemetry::json_line(message))),
    }
}

/// The threads of `sessiond guard`: one core verifies some ten thousand new tokens a second, and far more that are cached.
const GUARD_THREADS: usize = 2;

fn run(command: Command, log: &Log) -> CommandResult {
    telemetry::init(log)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(command, Command::Guard(_)) {
        // It shares the machine with the service, and each thread has memory of its own.
        runtime.worker_threads(GUARD_THREADS);
    }
    let runtime = runtime.enable_all().build()?;
    let is_server = matches!(command, Command::Dev(_) | Command::Serve(_) | Command::Guard(_));
    let outcome = runtime.block_on(async {
        setup::listen_to_signals()?;
        let stop = setup::stopped()?;
        tokio::select! {
            biased;
            outcome = execute(command) => outcome,
            // Servers handle it themselves.
            () = stop, if !is_server => Err(setup::Stopped.into()),
        }
    });
    telemetry::flush();
    // Unfinished work is not awaited: the database rolls it back.
    runtime.shutdown_background();
    match outcome {
        Err(error) if is_server && error.is::<setup::Stopped>() => Ok(()),
        outcome => outcome,
    }
}

async fn execute(command: Command) -> CommandResult {
    match command {
        Command::Dev(Tidied(args)) => Box::pin(dev::run(*args)).await,
        Command::DemoSession(Tidied(args)) => dev::session::run(args).await,
        Command::Serve(Tidied(args)) => Box::pin(serve::run(*args)).await,
        Command::Guard(Tidied(args)) => Box::pin(guard::run(*args)).await,
        Command::Health(Tidied(args)) => health::run(args).await,
        Command::Doctor(Tidied(args)) => Box::pin(doctor::run(*args)).await,
        Command::Migrate(Tidied(args)) => migrate::run(args).await,
        Command::Openapi(Tidied(args)) => openapi::run(&args),
        Command::Project(Tidied(command)) => project::run(command).await,
        Command::ServerKey(Tidied(command)) => server_key::run(command).await,
        Command::ClientCertificate(Tidied(command)) => client_certificate::run(command).await,
        Command::SigningKey(Tidied(command)) => signing_key::run(command).await,
        Command::RefreshKey(Tidied(command)) => refresh_key::run(command).await,
        Command::Backchannel(Tidied(command)) => backchannel::run(command).await,
        Command::Reseal(Tidied(args)) => reseal::run(args).await,
        Command::Sweep(Tidied(args)) => sweep::run(args).await,
        Command::Restored(Tidied(args)) => restored::run(args).await,
        Command::Audit(Tidied(args)) => audit::run(*args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_described_in_its_help_as_in_the_list() {
        let descriptions = |cli: &clap::Command| {
            let describe =
                |command: &clap::Command| (command.get_name().to_owned(), command.get_about().map(ToString::to_string));
            cli.get_subcommands().map(describe).filter(|(name, _)| name != "help").collect::<Vec<_>>()
        };
        let mut cli = Cli::command();
        let listed = descriptions(&cli);
        cli.build();
        assert_eq!(descriptions(&cli), listed);
        assert!(listed.len() > 10 && listed.iter().all(|(_, about)| about.is_some()), "{listed:?}");
    }
}
