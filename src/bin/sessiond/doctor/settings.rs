//! Checks of the settings, without the database.

use std::path::Path;

use clap::Args as _;
use clap::Command;
use clap::error::ErrorKind;
use sessiond::config;
use sessiond::edge::ServerTls;
use sessiond::telemetry::chain;
use sessiond_core::clock::Clock;

use super::DoctorArgs;
use super::finding::Diagnosed;
use super::patient::Patient;
use super::server::days_left;
use crate::secrets;
use crate::serve::ServeArgs;

/// The variables, as `serve` would read them.
pub(super) async fn environment(_: &Patient) -> Diagnosed {
    let command = config::tidied(ServeArgs::augment_args(Command::new("serve")));
    let Err(error) = command.try_get_matches_from(["serve"]) else {
        return Diagnosed::ok("the environment has valid settings for `serve`");
    };
    match error.kind() {
        // Given to this command as a flag.
        ErrorKind::MissingRequiredArgument => Diagnosed::ok("the settings in the environment are valid"),
        _ => {
            let error = error.to_string();
            let first = error.lines().next().unwrap_or_default();
            Diagnosed::failed(
                first.trim_start_matches("error: "),
                "`serve` does not start with it: correct the variable",
            )
        }
    }
}

pub(super) async fn secrets(patient: &Patient) -> Diagnosed {
    let DoctorArgs { sealing, database, tls, .. } = &patient.args;
    let files = [
        &sealing.sealing_key_file,
        &sealing.previous_sealing_key_file,
        &database.pool.database_password_file,
        &tls.tls_key_file,
    ];
    let exposed: Vec<String> = files
        .into_iter()
        .flatten()
        .filter(|file| is_readable_for_all(file))
        .map(|file| file.display().to_string())
        .collect();
    match secrets::in_the_environment().as_slice() {
        [] if exposed.is_empty() => Diagnosed::ok("no variable holds a secret"),
        [] => Diagnosed::warning(
            format_args!("every user of this machine can read {}", exposed.join(", ")),
            "make it readable for the user that sessiond runs as only: chmod 600",
        ),
        found => Diagnosed::warning(
            format_args!("secrets in the environment: {}", found.join(", ")),
            "they can leak: use --sealing-key-file, --database-password-file and --otlp-headers-file",
        ),
    }
}

/// Whether a file is open to users that are neither its owner nor in its group. Containers get their secrets readable by a group.
#[cfg(unix)]
fn is_readable_for_all(file: &Path) -> bool {
    std::fs::metadata(file)
        .is_ok_and(|metadata| std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o004 != 0)
}

#[cfg(not(unix))]
fn is_readable_for_all(_: &Path) -> bool {
    false
}

pub(super) async fn issuer(patient: &Patient) -> Diagnosed {
    let Some(issuer) = &patient.args.issuer else {
        return Diagnosed::skipped("no --issuer and no SESSIOND_ISSUER");
    };
    let uri = issuer.parse::<http::Uri>().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let is_local = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    let is_https = issuer.starts_with("https:");
    match (is_local, is_https) {
        (true, _) => Diagnosed::warning(
            format_args!("{issuer} is this machine: verifiers elsewhere cannot fetch keys there"),
            "set SESSIOND_ISSUER to the public https URL; access tokens that were issued before are refused then",
        ),
        (false, false) => Diagnosed::warning(
            format_args!("{issuer} has no TLS: verifiers cannot tell whose keys they fetch"),
            "serve the keys over https, and set SESSIOND_ISSUER to that URL",
        ),
        (false, true) => Diagnosed::ok(issuer),
    }
}

/// The files of `serve`. Whether the running server uses them is another check.
pub(super) async fn certificate_files(patient: &Patient) -> Diagnosed {
    match ServerTls::load(&patient.args.tls) {
        Ok(None) => Diagnosed::skipped("no --tls-certificate-file"),
        Ok(Some(tls)) => days_left(tls.valid_until(), Clock::system().now()),
        Err(error) => Diagnosed::failed(chain(&error), "replace the files; `serve` does not start with these"),
    }
}
