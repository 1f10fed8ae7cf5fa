use std::cmp::Reverse;
use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use crate::error::Error;
use crate::place::Place;

/// Where packages install one directory per major version: the parent, the prefix of the version's entry, and the
/// suffix.
const PACKAGED: [(&str, &str, &str); 7] = [
    ("/usr/lib/postgresql", "", "bin"),                          // Debian, Ubuntu, Gentoo
    ("/usr", "pgsql-", "bin"),                                   // the PostgreSQL project's RPMs
    ("/usr/lib", "postgresql", "bin"),                           // SUSE
    ("/usr/libexec", "postgresql", ""),                          // Alpine
    ("/opt/homebrew/opt", "postgresql", "bin"),                  // Homebrew on Apple silicon
    ("/usr/local/opt", "postgresql", "bin"),                     // Homebrew on Intel
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
];

/// The server's programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// All installed servers, at least one: first those on PATH in its order, then the packaged ones, newest first.
    ///
    /// If `asked` is given, only that directory is searched.
    pub(crate) fn installed(asked: Option<&Path>) -> Result<Vec<Self>, Error> {
        if let Some(dir) = asked {
            return Ok(vec![Self::at(dir).ok_or_else(|| Error::NotPostgres { dir: dir.to_path_buf() })?]);
        }
        let path = env::var_os("PATH").unwrap_or_default();
        // An empty or relative entry means the working directory, which is no place of installation.
        let on_path = env::split_paths(&path).filter(|dir| dir.is_absolute());
        let mut found: Vec<Self> = on_path.filter_map(|dir| Self::at(&dir)).collect();

        let mut packaged: Vec<Self> = Vec::new();
        for (parent, prefix, suffix) in PACKAGED {
            let entries = fs::read_dir(parent).into_iter().flatten().flatten();
            let versions = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
            packaged.extend(versions.filter_map(|entry| Self::at(&entry.path().join(suffix))));
        }
        packaged.sort_by_key(|binaries| Reverse(binaries.major));
        found.extend(packaged);
        if found.is_empty() { Err(Error::NotInstalled { advice: advice() }) } else { Ok(found) }
    }

    /// The first one that can read the existing cluster's data, or just the first if there is no cluster yet.
    pub(crate) fn choose(installed: Vec<Self>, place: &Place) -> Result<Self, Error> {
        let wanted = place.version();
        let found: Vec<String> = installed.iter().map(|binaries| binaries.major.to_string()).collect();
        let fits = |binaries: &Self| wanted.is_none_or(|wanted| binaries.major == wanted);
        installed.into_iter().find(fits).ok_or_else(|| Error::WrongVersion {
            data: place.data(),
            wanted: wanted.unwrap_or_default(),
            found: found.join(", "),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn at(dir: &Path) -> Option<Self> {
        if !["postgres", "initdb", "pg_ctl"].iter().all(|name| dir.join(name).is_file()) {
            return None;
        }
        // Read from the program, not guessed from the path: a directory on PATH names no version, and a broken
        // installation is detected.
        let output = Command::new(dir.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
        let dir = dir.canonicalize().ok()?;
        Some(Self { dir, major: major(&String::from_utf8_lossy(&output.stdout))? })
    }
}

/// The major version in the output of `postgres --version`: `postgres (PostgreSQL) 17.2 (Debian …)`, `… 18beta1`.
fn major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

/// How to install the server with this machine's package manager.
fn advice() -> &'static str {
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let known = [
        ("apt-get", "apt-get install postgresql"),
        ("dnf", "dnf install postgresql-server"),
        ("yum", "yum install postgresql-server"),
        ("zypper", "zypper install postgresql-server"),
        ("pacman", "pacman -S postgresql"),
        ("apk", "apk add postgresql"),
        ("brew", "brew install postgresql@17"),
    ];
    let fitting = known.into_iter().find(|(manager, _)| has(manager));
    fitting.map_or("install PostgreSQL, or name its directory with --postgres-bin", |(_, advice)| advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_prints() {
        assert_eq!(major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major("postgres (PostgreSQL) 17\n"), Some(17));
        assert_eq!(major("postgres: command not found\n"), None);
        assert_eq!(major("postgres (PostgreSQL) devel\n"), None);
    }

    #[test]
    fn a_directory_without_a_server_is_refused_by_name() {
        let refused = Binaries::installed(Some(Path::new("/nonexistent")));
        let message = refused.expect_err("there is nothing").to_string();
        assert_eq!(message, "/nonexistent contains no Postgres server (postgres, initdb and pg_ctl)");
    }

    #[test]
    fn missing_servers_are_answered_with_one_line() {
        let message = Error::NotInstalled { advice: advice() }.to_string();
        assert!(message.starts_with("no Postgres server is installed: ") && !message.contains('\n'), "{message}");
    }
}
