//! Every setting: a flag and an environment variable each, with its unit, bound and default. `--help` is the manual.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;

/// How the server is reached.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Address for gRPC, grpc-web and REST, all on this one port. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Address for /metrics, which is nobody's business but the operator's. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_METRICS_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    pub metrics_listen: SocketAddr,
}

/// What a request may take.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// How long a request may take before it is answered with DEADLINE_EXCEEDED; a shorter `grpc-timeout` counts.
    #[arg(long, env = "SESSIOND_REQUEST_TIMEOUT", default_value = "10s", value_parser = duration::<100, 300_000>, value_name = "DURATION")]
    pub request_timeout: Duration,

    /// The largest message, in bytes, on each wire; a larger JSON body is answered with 413.
    #[arg(long, env = "SESSIOND_BODY_BYTES_MAX", default_value_t = 1024 * 1024, value_parser = size::<1024, 16_777_216>, value_name = "BYTES")]
    pub body_bytes_max: usize,

    /// The largest header section, in bytes, on HTTP/1.1 and HTTP/2 alike; a larger one is answered with 431. At
    /// least 24576, for the largest access token has to fit.
    #[arg(long, env = "SESSIOND_HEADER_BYTES_MAX", default_value_t = 32 * 1024, value_parser = size::<24_576, 1_048_576>, value_name = "BYTES")]
    pub header_bytes_max: usize,

    /// How long a client may take to send a request's head; a slower one is cut off.
    #[arg(long, env = "SESSIOND_HEADER_TIMEOUT", default_value = "10s", value_parser = duration::<10, 300_000>, value_name = "DURATION")]
    pub header_timeout: Duration,

    /// The most open connections; further ones wait to be accepted.
    #[arg(long, env = "SESSIOND_CONNECTIONS_MAX", default_value_t = 10_000, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub connections_max: usize,

    /// The most requests under way; further ones are answered with RESOURCE_EXHAUSTED at once.
    #[arg(long, env = "SESSIOND_REQUESTS_MAX", default_value_t = 4_096, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub requests_max: usize,

    /// How long requests under way may still take when the server is told to stop.
    #[arg(long, env = "SESSIOND_SHUTDOWN_TIMEOUT", default_value = "10s", value_parser = duration::<0, 300_000>, value_name = "DURATION")]
    pub shutdown_timeout: Duration,
}

/// How browsers and others find and reach the API.
#[derive(Args, Clone, Debug)]
pub struct Web {
    /// The base URL that tokens name as their issuer: `iss` is this, and `/projects/` and the project's id behind it.
    #[arg(long, env = "SESSIOND_ISSUER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub issuer: String,

    /// A path that the REST API is answered under; may be given more than once.
    #[arg(long = "base-path", env = "SESSIOND_BASE_PATHS", value_delimiter = ',', default_values = ["/", "/api/v1"], value_parser = base_path, value_name = "PATH")]
    pub base_paths: Vec<String>,

    /// An origin that browsers may call from, as in `https://app.example.org`; may be given more than once. `*` lets
    /// every origin in, which is safe: no cookie is ever read.
    #[arg(long = "cors-origin", env = "SESSIOND_CORS_ORIGINS", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,

    /// A host name that requests may be addressed to, without a port; may be given more than once. Others are answered
    /// with 421. None given lets every name in.
    #[arg(long = "allowed-host", env = "SESSIOND_ALLOWED_HOSTS", value_delimiter = ',', value_name = "HOST")]
    pub allowed_hosts: Vec<String>,
}

/// Where the database is.
#[derive(Args, Clone, Debug)]
pub struct Database {
    /// Postgres, as postgres://user:password@host:port/database; several hosts with commas between them. With
    /// `sslmode=require`, only over TLS; wherever TLS is spoken, certificates are checked.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: SecretString,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: clap would print the comment as help")]
    pub pool: Pool,
}

/// How the database is used.
#[derive(Args, Clone, Debug)]
pub struct Pool {
    /// Certificates to trust for the database, in PEM, instead of the system's.
    #[arg(long, env = "SESSIOND_DATABASE_CA_FILE", value_name = "FILE")]
    pub database_ca_file: Option<PathBuf>,

    /// The most connections to the database.
    #[arg(long, env = "SESSIOND_DATABASE_CONNECTIONS_MAX", default_value_t = 16, value_parser = size::<1, 1_000>, value_name = "COUNT")]
    pub database_connections_max: usize,

    /// How long each host may take to accept a connection.
    #[arg(long, env = "SESSIOND_DATABASE_CONNECT_TIMEOUT", default_value = "700ms", value_parser = duration::<10, 60_000>, value_name = "DURATION")]
    pub database_connect_timeout: Duration,

    /// How long an operation may take, the wait for a connection included, before it is answered with UNAVAILABLE.
    #[arg(long, env = "SESSIOND_DATABASE_TIMEOUT", default_value = "1500ms", value_parser = duration::<10, 60_000>, value_name = "DURATION")]
    pub database_timeout: Duration,
}

/// The keys that seal the private keys in the database.
#[derive(Args, Clone, Debug)]
pub struct Sealing {
    /// 32 bytes in base64 that seal every private key in the database (`openssl rand -base64 32`). Keep a copy: without
    /// it the keys are lost.
    #[arg(long, env = "SESSIOND_SEALING_KEY", hide_env_values = true, value_name = "BASE64")]
    pub sealing_key: SecretString,

    /// The sealing key before that, during a change.
    #[arg(long, env = "SESSIOND_PREVIOUS_SEALING_KEY", hide_env_values = true, value_name = "BASE64")]
    pub previous_sealing_key: Option<SecretString>,
}

/// How long what is over is kept. What is due leaves within hours, not at the second: see `docs/operators.md`.
#[derive(Args, Clone, Debug)]
pub struct Retention {
    /// How long a session stays in the database after it ended, for listings of ended sessions; its address and its
    /// device leave with it. 1h to 10 years.
    #[arg(long, env = "SESSIOND_ENDED_SESSION_RETENTION", default_value = "30d", value_parser = duration::<HOUR, { 3_660 * DAY }>, value_name = "DURATION")]
    pub ended_session_retention: Duration,

    /// How long the audit remembers who ended what; revoked server keys stay as long. 1d to 20 years.
    #[arg(long, env = "SESSIOND_AUDIT_RETENTION", default_value = "400d", value_parser = duration::<DAY, { 7_320 * DAY }>, value_name = "DURATION")]
    pub audit_retention: Duration,

    /// How long the audit keeps the addresses from which sessions were ended. 0s to 20 years; never longer than the
    /// audit itself.
    #[arg(long, env = "SESSIOND_ADDRESS_RETENTION", default_value = "30d", value_parser = duration::<0, { 7_320 * DAY }>, value_name = "DURATION")]
    pub address_retention: Duration,
}

/// In milliseconds.
const HOUR: u64 = 60 * 60 * 1_000;

/// In milliseconds.
const DAY: u64 = 24 * HOUR;

/// How the log is written.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct Log {
    /// What is logged, as `level` or `target=level`, with commas between them.
    #[arg(long, env = "SESSIOND_LOG", default_value = "info", value_name = "FILTER", global = true)]
    pub log: String,

    /// How a line of the log looks.
    #[arg(long, env = "SESSIOND_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Reads a duration such as `1500ms`, `60s`, `10m` or `90d`, between bounds in milliseconds.
///
/// # Errors
///
/// When it is none, or out of bounds.
pub fn duration<const MIN_MILLIS: u64, const MAX_MILLIS: u64>(text: &str) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(MIN_MILLIS), Duration::from_millis(MAX_MILLIS));
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (min..=max).contains(&duration) {
        return Ok(duration);
    }
    Err(format!("must be {} to {}", humantime::format_duration(min), humantime::format_duration(max)))
}

fn size<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    let size = text.parse().map_err(|_| "must be a whole number".to_owned())?;
    if (MIN..=MAX).contains(&size) { Ok(size) } else { Err(format!("must be {MIN} to {MAX}")) }
}

/// Reads a base path: `/`, or a plain path such as `/api/v1`.
///
/// # Errors
///
/// When it is none.
pub fn base_path(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let fits = text.starts_with('/') && !text.contains("//") && text.bytes().all(plain);
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must start with `/` and be a plain path, such as `/api/v1`".to_owned())
    }
}
