//! `sessiond doctor`: checks what a server needs, and says what to do about it.
//!
//! Each check is a small function with a time limit, in the table [`CHECKS`]. They run one after another; if the database does
//! not answer, the rest of what needs it is skipped, so that a report is there within seconds.

mod database;
mod finding;
mod keys;
mod page;
mod patient;
mod report;
mod server;
mod settings;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sessiond::config;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::config::Tls;
use sessiond_core::id::ProjectId;
use tokio::time::timeout;

use self::finding::Diagnosed;
use self::finding::Finding;
use self::finding::State;
use self::patient::Patient;
use crate::project::project_id;
use crate::result::CommandResult;

/// Flags of `sessiond doctor`.
#[derive(clap::Args)]
pub(crate) struct DoctorArgs {
    /// The URL of a running server, such as `https://auth.example.org`. Its readiness and its certificate are checked.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Certificates to trust for --url and --issuer in addition to the system's, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The project whose metadata and keys are fetched as a verifier would. Default: the first one.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: Option<ProjectId>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
    /// Also write the report as a page to this file. It has no secret, no user and no address of a client.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The base URL of the issuer, as `serve` has it.
    #[arg(long, env = "SESSIOND_ISSUER", value_parser = config::issuer, value_name = "URL")]
    issuer: Option<String>,
    /// As for `serve`: warn of settings that may lose acknowledged writes, in place of failing.
    #[arg(long, env = "SESSIOND_ALLOW_UNSAFE_DURABILITY", value_parser = BoolishValueParser::new())]
    allow_unsafe_durability: bool,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

/// A check.
struct Check {
    /// Stable, for scripts.
    name: &'static str,
    needs: Needs,
    limit: Duration,
    run: for<'a> fn(&'a Patient) -> BoxFuture<'a, Diagnosed>,
}

/// What a check cannot do without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// A database that answers.
    Database,
    /// A database that answers and has all tables.
    Schema,
}

/// The time limit of a check that asks the database: longer than the default of --database-timeout.
const DATABASE_LIMIT: Duration = Duration::from_secs(3);

/// The time limit of a check that asks a server: two requests.
const SERVER_LIMIT: Duration = Duration::from_secs(7);

macro_rules! check {
    ($name:literal, $needs:ident, $limit:expr, $run:path) => {
        Check { name: $name, needs: Needs::$needs, limit: $limit, run: |patient| $run(patient).boxed() }
    };
}

/// All checks, in the order of the report.
const CHECKS: [Check; 23] = [
    check!("settings", Nothing, SERVER_LIMIT, settings::environment),
    check!("secrets", Nothing, SERVER_LIMIT, settings::secrets),
    check!("issuer", Nothing, SERVER_LIMIT, settings::issuer),
    check!("certificate_files", Nothing, SERVER_LIMIT, settings::certificate_files),
    check!("database", Nothing, DATABASE_LIMIT, database::reachable),
    check!("pooler", Database, DATABASE_LIMIT, database::pooler),
    check!("durability", Database, DATABASE_LIMIT, database::durability),
    check!("full_page_writes", Database, DATABASE_LIMIT, database::full_page_writes),
    check!("standbys", Database, DATABASE_LIMIT, database::standbys),
    check!("clock", Database, DATABASE_LIMIT, database::clock),
    check!("migrations", Database, DATABASE_LIMIT, database::migrations),
    check!("writes", Schema, DATABASE_LIMIT, database::writes),
    check!("tables", Schema, DATABASE_LIMIT, database::tables),
    check!("connections", Database, DATABASE_LIMIT, database::connections),
    check!("vacuum", Database, DATABASE_LIMIT, database::vacuum),
    check!("autovacuum", Schema, DATABASE_LIMIT, database::autovacuum),
    check!("sealing_key", Schema, DATABASE_LIMIT, keys::sealing_key),
    check!("signing_keys", Schema, DATABASE_LIMIT, keys::signing_keys),
    check!("refresh_keys", Schema, DATABASE_LIMIT, keys::refresh_keys),
    check!("sign_out", Schema, DATABASE_LIMIT, database::sign_out),
    check!("server", Nothing, SERVER_LIMIT, server::readiness),
    check!("certificate", Nothing, SERVER_LIMIT, server::certificate),
    check!("jwks", Nothing, SERVER_LIMIT, server::jwks),
];

pub(crate) async fn run(args: DoctorArgs) -> CommandResult {
    let (json, html) = (args.json, args.html.clone());
    let findings = Box::pin(examine(Patient::new(args))).await;
    if json {
        report::json(&findings)?
    } else {
        report::lines(&findings)?
    }
    if let Some(path) = html {
        let page = page::of(&findings);
        std::fs::write(&path, page).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    match findings.iter().filter(|finding| finding.state == State::Failed).count() {
        0 => Ok(()),
        1 => Err("1 check failed".into()),
        failed => Err(format!("{failed} checks failed").into()),
    }
}

async fn examine(patient: Patient) -> Vec<Finding> {
    let mut findings = vec![];
    for Check { name, needs, limit, run } in CHECKS {
        let diagnosed = match patient.lacks(needs) {
            Some(why) => Diagnosed::skipped(why),
            None => timeout(limit, run(&patient)).await.unwrap_or_else(|_| {
                if needs != Needs::Nothing {
                    patient.note_lost();
                }
                Diagnosed::error(format_args!("no answer within {}", humantime::format_duration(limit)))
            }),
        };
        findings.push(diagnosed.named(name));
    }
    findings
}
