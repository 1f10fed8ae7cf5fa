//! Secrets come from files, or from the environment, and never from the command line, which every user of the machine can
//! read.

use std::env;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sessiond::store;

/// Variables that may hold a sealing key.
pub(crate) const SEALING_KEY: &str = "SESSIOND_SEALING_KEY";
pub(crate) const PREVIOUS_SEALING_KEY: &str = "SESSIOND_PREVIOUS_SEALING_KEY";

/// The variable that may hold the OTLP collector's API key.
pub(crate) const OTLP_HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// Arguments that may hold a password, and their variables.
const URLS: [(&str, &str, &str); 2] = [
    ("database_url", "--database-url", "DATABASE_URL"),
    ("database_listen_url", "--database-listen-url", "SESSIOND_DATABASE_LISTEN_URL"),
];

/// The longest secret in a file, in bytes. Guards against a wrong path.
const BYTES_MAX: u64 = 4_096;

/// Why a secret cannot be read. Does not repeat the secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the file {} cannot be read", .0.display())]
    Unreadable(PathBuf, #[source] std::io::Error),
    #[error("the file {} must have one secret, as text of at most {BYTES_MAX} bytes", .0.display())]
    Malformed(PathBuf),
    #[error("{flag} and {variable} are both set: use one of them")]
    Both { flag: &'static str, variable: &'static str },
    #[error(
        "{flag} has a password, which every user of this machine could read: use --database-password-file, or {variable}"
    )]
    OnCommandLine { flag: &'static str, variable: &'static str },
}

/// Reads a secret from a file, without the white space around it.
pub(crate) fn read_file(path: &Path) -> Result<SecretString, SecretError> {
    read_optional(path)?.ok_or_else(|| SecretError::Malformed(path.to_owned()))
}

/// As [`read_file`]; `None` if the file is empty.
pub(crate) fn read_optional(path: &Path) -> Result<Option<SecretString>, SecretError> {
    let unreadable = |error| SecretError::Unreadable(path.to_owned(), error);
    let mut bytes = vec![];
    let file = File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= BYTES_MAX).map(SecretString::from);
    let secret = text.map(|text| SecretString::from(text.expose_secret().trim()));
    let is_one = |secret: &SecretString| !secret.expose_secret().contains(char::is_control);
    let secret = secret.filter(is_one).ok_or_else(|| SecretError::Malformed(path.to_owned()))?;
    Ok(Some(secret).filter(|secret| !secret.expose_secret().is_empty()))
}

/// Reads a secret from the file, if one is given, or else from the variable.
pub(crate) fn read(
    flag: &'static str,
    file: Option<&Path>,
    variable: &'static str,
) -> Result<Option<SecretString>, SecretError> {
    match (file, in_environment(variable)) {
        (Some(_), Some(_)) => Err(SecretError::Both { flag, variable }),
        (Some(path), None) => read_file(path).map(Some),
        (None, value) => Ok(value),
    }
}

/// A variable's value; a blank one counts as unset.
fn in_environment(variable: &str) -> Option<SecretString> {
    let value = SecretString::from(env::var(variable).ok()?);
    let trimmed = value.expose_secret().trim();
    (!trimmed.is_empty()).then(|| trimmed.into())
}

/// Refuses passwords on the command line.
pub(crate) fn check_command_line(matches: &ArgMatches) -> Result<(), SecretError> {
    for (id, flag, variable) in URLS {
        // Not every command has every argument.
        let url = matches.try_get_one::<SecretString>(id).ok().flatten();
        let is_typed = || matches.value_source(id) == Some(ValueSource::CommandLine);
        if url.is_some_and(|url| is_typed() && store::has_password(url.expose_secret())) {
            return Err(SecretError::OnCommandLine { flag, variable });
        }
    }
    matches.subcommand().map_or(Ok(()), |(_, matches)| check_command_line(matches))
}

/// Warns of [`in_the_environment`].
pub(crate) fn warn_of_environment() {
    let found = in_the_environment();
    if !found.is_empty() {
        tracing::warn!(
            variables = found.join(", "),
            "secrets in the environment can leak: prefer --sealing-key-file, --database-password-file and --otlp-headers-file"
        );
    }
}

/// The names of variables that hold a secret, which other processes of the same user, child processes and crash reports
/// can see.
pub(crate) fn in_the_environment() -> Vec<&'static str> {
    let has_password = |url: SecretString| store::has_password(url.expose_secret());
    let keys =
        [SEALING_KEY, PREVIOUS_SEALING_KEY, OTLP_HEADERS].into_iter().filter(|name| in_environment(name).is_some());
    let urls = URLS.into_iter().map(|(_, _, variable)| variable);
    let urls = urls.filter(|variable| in_environment(variable).is_some_and(has_password));
    keys.chain(urls).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_has_one_secret() {
        let path = env::temp_dir().join(format!("sessiond-secret-{}", std::process::id()));
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("writes");
            read_file(&path)
        };
        assert_eq!(read(b"a b\n").expect("a secret").expose_secret(), "a b");
        assert_eq!(read(&[b'x'; 4_096]).expect("a secret").expose_secret().len(), 4_096);
        for bad in [&b""[..], b" \n", b"a\nb", b"\xff", &[b'x'; 4_097]] {
            let error = read(bad).expect_err("refused").to_string();
            assert!(error.contains("must have one secret") && error.contains("sessiond-secret"), "{error}");
        }
        fs::write(&path, " \n").expect("writes");
        assert!(read_optional(&path).expect("empty").is_none());
        fs::write(&path, "a\nb").expect("writes");
        assert!(matches!(read_optional(&path), Err(SecretError::Malformed(_))));
        fs::remove_file(&path).expect("removes");
        assert!(matches!(read_file(&path), Err(SecretError::Unreadable(..))));
    }
}
