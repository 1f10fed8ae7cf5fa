//! The settings of `sessiond guard`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sessiond_core::id::ProjectId;
use sessiond_guard::FailMode;

use super::duration;
use super::size;

/// Where a sidecar listens: at an address that only this machine reaches, because requests carry tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SidecarAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl SidecarAddress {
    /// Reads `127.0.0.1:8081`, `[::1]:8081` or `unix:/run/sessiond/guard.sock`.
    ///
    /// # Errors
    ///
    /// Says what to write in its place.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must be a loopback address such as 127.0.0.1:8081, or unix:PATH";
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(EXPECTED) } else { Ok(Self::Unix(path.into())) };
        }
        let address: SocketAddr = text.parse().map_err(|_| EXPECTED)?;
        if address.ip().to_canonical().is_loopback() { Ok(Self::Tcp(address)) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for SidecarAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A project to follow, and the file with its server key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarProject {
    /// The project.
    pub project: ProjectId,
    /// The file; `None` if a client certificate stands in for the key.
    pub server_key_file: Option<PathBuf>,
}

impl SidecarProject {
    /// Reads `ID=FILE` or `ID`.
    ///
    /// # Errors
    ///
    /// Says what to write in its place.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "must be a project's id, `=`, and the file with its server key, such as shop=/run/secrets/shop.key";
        let (project, file) = match text.split_once('=') {
            Some((_, "")) => return Err(EXPECTED),
            Some((project, file)) => (project, Some(PathBuf::from(file))),
            None => (text, None),
        };
        Ok(Self { project: ProjectId::parse(project).ok_or(EXPECTED)?, server_key_file: file })
    }
}

fn fail_mode(text: &str) -> Result<FailMode, &'static str> {
    match text {
        "reject" => Ok(FailMode::Reject),
        "introspect" => Ok(FailMode::Introspect),
        "accept-until-expiry" => Ok(FailMode::AcceptUntilExpiry),
        _ => Err("must be `reject`, `introspect` or `accept-until-expiry`"),
    }
}

/// Flags of `sessiond guard`.
#[derive(Args, Clone, Debug)]
pub struct Sidecar {
    /// Where proxies and services ask: a loopback address, or `unix:PATH`. Port 0 picks a free one. It also serves /healthz,
    /// /readyz and /metrics.
    #[arg(long, env = "SESSIOND_GUARD_LISTEN", default_value = "127.0.0.1:8081", value_parser = SidecarAddress::parse, value_name = "ADDRESS")]
    pub listen: SidecarAddress,

    /// The base URL of sessiond, or of each replica, 1 to 64: `http://` or `https://`, a host, and optionally a port. The guard
    /// switches to the next one when a replica is unavailable or its feed is old.
    #[arg(
        long = "endpoint",
        env = "SESSIOND_GUARD_ENDPOINTS",
        value_delimiter = ',',
        required = true,
        value_name = "URL"
    )]
    pub endpoints: Vec<String>,

    /// A project whose tokens are verified, and the file with a server key of it: the role `verifier` is enough. Give it once for
    /// each project. Without `=FILE`, the client certificate stands in for the key.
    #[arg(long = "project", env = "SESSIOND_GUARD_PROJECTS", value_delimiter = ',', value_parser = SidecarProject::parse, required = true, value_name = "ID=FILE")]
    pub projects: Vec<SidecarProject>,

    /// The base URL in the tokens' `iss`, as in --issuer of the server.
    #[arg(long, env = "SESSIOND_GUARD_ISSUER", value_name = "URL")]
    pub issuer: String,

    /// Certificates to trust for `https://` endpoints in place of the system's, in PEM.
    #[arg(long, env = "SESSIOND_GUARD_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// The certificate that connections to `https://` endpoints present, in PEM. Read again every minute.
    #[arg(long, env = "SESSIOND_GUARD_CERTIFICATE_FILE", requires = "key_file", value_name = "FILE")]
    pub certificate_file: Option<PathBuf>,

    /// The private key of that certificate, in PEM.
    #[arg(long, env = "SESSIOND_GUARD_KEY_FILE", requires = "certificate_file", value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// How old the feed of revocations may be for a token to be accepted: 2 s or more. Too long, and a revoked token is accepted for
    /// longer when the guard is cut off; too short, and every brief network failure rejects requests.
    #[arg(long, env = "SESSIOND_GUARD_MAX_STALENESS", default_value = "10s", value_parser = duration::<2_000, 86_400_000>, value_name = "DURATION")]
    pub max_staleness: Duration,

    /// What happens to a token when the guard cannot know whether its session is revoked: `reject` answers 503, `introspect` asks
    /// sessiond each time, `accept-until-expiry` accepts it unless it is known to be revoked.
    #[arg(long, env = "SESSIOND_GUARD_FAIL_MODE", default_value = "reject", value_parser = fail_mode, value_name = "MODE")]
    pub fail_mode: FailMode,

    /// How many revocations the guard holds for each project: about 80 bytes each, and twice as many while it reads a snapshot.
    #[arg(long, env = "SESSIOND_GUARD_MAX_ENTRIES", default_value_t = 1_000_000, value_parser = size::<1, 100_000_000>, value_name = "COUNT")]
    pub max_entries: usize,

    /// How many verified tokens are cached for each project, so that their signatures are not checked again: about 2 kB each.
    #[arg(long, env = "SESSIOND_GUARD_CACHED_TOKENS", default_value_t = 2_048, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub cached_tokens: usize,

    /// How long to wait at the start for the keys and the first snapshot. After that, the fail mode decides until they arrive.
    #[arg(long, env = "SESSIOND_GUARD_STARTUP_TIMEOUT", default_value = "5s", value_parser = duration::<0, 300_000>, value_name = "DURATION")]
    pub startup_timeout: Duration,

    /// The most connections at once. Further ones wait.
    #[arg(long, env = "SESSIOND_GUARD_CONNECTIONS_MAX", default_value_t = 1_024, value_parser = size::<1, 65_536>, value_name = "COUNT")]
    pub connections_max: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_listens_for_this_machine_only() {
        let parse = SidecarAddress::parse;
        for good in ["127.0.0.1:8081", "[::1]:0", "127.1.2.3:1", "[::ffff:127.0.0.1]:1", "unix:/run/x", "unix:x"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:8081", "[::]:1", "192.0.2.1:1", "localhost:1", "127.0.0.1", "", "unix:", "/run/x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_project_comes_with_the_file_of_its_key() {
        let read = |text| SidecarProject::parse(text).map(|read| (read.project.to_string(), read.server_key_file));
        assert_eq!(read("shop=/a=b"), Ok(("shop".to_owned(), Some("/a=b".into()))));
        assert_eq!(read("shop"), Ok(("shop".to_owned(), None)));
        for bad in ["", "shop=", "=/a", "a/b=/c"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
