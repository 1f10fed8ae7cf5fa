//! Every setting: a flag and an environment variable each, with its unit, bound and default. `--help` is the manual.

mod web;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Arg;
use clap::Args;
use clap::Command;
use ipnet::IpNet;
use ipnet::Ipv4Net;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

pub use web::Authority;
pub use web::base_path;
pub use web::header_name;
pub use web::host;
pub use web::issuer;
pub use web::issuer_at;
pub use web::origin;

/// How the server is reached.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Address for gRPC, grpc-web and REST, all on this one port. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Address for /metrics, which is nobody's business but the operator's. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_METRICS_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    pub metrics_listen: SocketAddr,

    /// Address for proxies alone: verify, Envoy's Check and health, without limits on how often one address asks. Only
    /// proxies must reach it. Not opened by default. Port 0 takes a free one.
    #[arg(long, env = "SESSIOND_PROXY_LISTEN", value_name = "ADDRESS")]
    pub proxy_listen: Option<SocketAddr>,
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

    /// How long a client may take to send a request's head, from its first byte; on a new connection, from the
    /// beginning. A slower one is cut off.
    #[arg(long, env = "SESSIOND_HEADER_TIMEOUT", default_value = "10s", value_parser = duration::<10, 300_000>, value_name = "DURATION")]
    pub header_timeout: Duration,

    /// How long a connection may be open without a request, over HTTP/1.1 and HTTP/2 alike. Pings are no requests. Keep
    /// it above the 60 s for which load balancers keep theirs.
    #[arg(long, env = "SESSIOND_IDLE_TIMEOUT", default_value = "75s", value_parser = duration::<100, DAY>, value_name = "DURATION")]
    pub idle_timeout: Duration,

    /// How long a connection may be open at all; then it is told to end after what is under way, over HTTP/2 with a
    /// GOAWAY. Each gets up to a tenth less, so that not all end at once.
    #[arg(long, env = "SESSIOND_CONNECTION_AGE_MAX", default_value = "1h", value_parser = duration::<1_000, { 30 * DAY }>, value_name = "DURATION")]
    pub connection_age_max: Duration,

    /// The most open connections. Where all are taken, the one that has been idle for longest makes room; where none is
    /// idle, further ones wait to be accepted.
    #[arg(long, env = "SESSIOND_CONNECTIONS_MAX", default_value_t = 10_000, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub connections_max: usize,

    /// The most connections from one address, of IPv6 from one network (/64); further ones take the place of an idle
    /// one, or are closed. A --trusted-proxy may have any number. Default: a quarter of --connections-max.
    #[arg(long, env = "SESSIOND_ADDRESS_CONNECTIONS_MAX", value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub address_connections_max: Option<usize>,

    /// The most requests under way, not counting those that are still arriving; further ones are answered with
    /// RESOURCE_EXHAUSTED at once. Sign-outs, and what proxies verify, have as many places again for themselves.
    #[arg(long, env = "SESSIOND_REQUESTS_MAX", default_value_t = 4_096, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub requests_max: usize,

    /// The most requests under way from one address, those that are still arriving included, over all its connections;
    /// sign-outs are counted by themselves. Default: an eighth of --requests-max.
    #[arg(long, env = "SESSIOND_ADDRESS_REQUESTS_MAX", value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub address_requests_max: Option<usize>,

    /// The most bytes of messages in memory at once, of one address a quarter of them; further messages are answered with
    /// RESOURCE_EXHAUSTED.
    #[arg(long, env = "SESSIOND_ARRIVING_BYTES_MAX", default_value_t = 64 * 1024 * 1024, value_parser = size::<1_048_576, 17_179_869_184>, value_name = "BYTES")]
    pub arriving_bytes_max: usize,

    /// The most streams of revocations at once; further ones are answered with RESOURCE_EXHAUSTED. Users' take up three
    /// quarters of them at the most.
    #[arg(long, env = "SESSIOND_SUBSCRIBERS_MAX", default_value_t = 4_096, value_parser = size::<4, 1_000_000>, value_name = "COUNT")]
    pub subscribers_max: usize,

    /// How old this replica's knowledge of what has ended may be: 1s to 5m. Older, it answers no question about a token or a
    /// session (verify, Check, introspection, lists) but with UNAVAILABLE, and is not ready: the database is away, or another
    /// server has taken over from the one that this replica still reaches.
    #[arg(long, env = "SESSIOND_STALENESS_MAX", default_value = "5s", value_parser = duration::<1_000, 300_000>, value_name = "DURATION")]
    pub staleness_max: Duration,

    /// How long to go on answering, and taking connections, once the server is told to stop. Readiness is red from the
    /// first moment, and each answer over HTTP/1.1 closes its connection. Longer than the load balancer takes to notice.
    #[arg(long, env = "SESSIOND_DRAIN_DELAY", default_value = "5s", value_parser = duration::<0, 300_000>, value_name = "DURATION")]
    pub drain_delay: Duration,

    /// How long requests under way may still take after that.
    #[arg(long, env = "SESSIOND_SHUTDOWN_TIMEOUT", default_value = "10s", value_parser = duration::<0, 300_000>, value_name = "DURATION")]
    pub shutdown_timeout: Duration,
}

impl Limits {
    /// The most connections from one address.
    pub fn address_connections_max(&self) -> usize {
        self.address_connections_max.unwrap_or_else(|| self.connections_max.div_ceil(4))
    }

    /// The most requests under way from one address.
    pub fn address_requests_max(&self) -> usize {
        self.address_requests_max.unwrap_or_else(|| self.requests_max.div_ceil(8).max(1))
    }
}

/// How browsers and others find and reach the API.
#[derive(Args, Clone, Debug)]
pub struct Web {
    /// The base URL that tokens name as their issuer: `iss` is this, and `/projects/` and the project's id behind it. An
    /// http or https URL without query and fragment; a port of 0 stands for the port that the server listens on.
    #[arg(long, env = "SESSIOND_ISSUER", default_value = "http://127.0.0.1:8080", value_parser = issuer, value_name = "URL")]
    pub issuer: String,

    /// A path that the REST API is answered under; may be given more than once.
    #[arg(long = "base-path", env = "SESSIOND_BASE_PATHS", value_delimiter = ',', default_values = ["/", "/api/v1"], value_parser = base_path, value_name = "PATH")]
    pub base_paths: Vec<String>,

    /// An origin that browsers may call from, as in `https://app.example.org` or `capacitor://localhost`; may be given
    /// more than once. `*` lets every origin in, which is safe: no cookie is ever read.
    #[arg(long = "cors-origin", env = "SESSIOND_CORS_ORIGINS", value_delimiter = ',', value_parser = origin, value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,

    /// A request header that pages of those origins may send, besides those that the API and tracing have; may be given
    /// more than once.
    #[arg(long = "cors-header", env = "SESSIOND_CORS_HEADERS", value_delimiter = ',', value_parser = header_name, value_name = "HEADER")]
    pub cors_headers: Vec<String>,

    /// A host name that requests may be addressed to, without a port; may be given more than once. Others are answered
    /// with 421, except probes (`/healthz`, `/readyz`, `grpc.health.v1`) that go to an address or to `localhost`. None
    /// given lets every name in.
    #[arg(long = "allowed-host", env = "SESSIOND_ALLOWED_HOSTS", value_delimiter = ',', value_parser = host, value_name = "HOST")]
    pub allowed_hosts: Vec<String>,

    /// A reverse proxy whose word on the client's address is taken: an address or a network, such as `10.0.0.0/8`; may be
    /// given more than once. Each proxy must add the address that it was called from, and only proxies may call from
    /// there. None given: the client is whoever opened the connection.
    #[arg(long = "trusted-proxy", env = "SESSIOND_TRUSTED_PROXIES", value_delimiter = ',', value_parser = network, value_name = "NETWORK")]
    pub trusted_proxies: Vec<IpNet>,

    /// The header in which the trusted proxies name the client's address. The other one is not read: the proxies let it
    /// through as the client wrote it.
    #[arg(long, env = "SESSIOND_FORWARDED_HEADER", default_value = "x-forwarded-for", value_name = "HEADER")]
    pub forwarded_header: ForwardedHeader,

    /// Publish the public keys of all projects in one document, at `/.well-known/jwks.json`. Without it, only each
    /// project's own document is there.
    #[arg(long, env = "SESSIOND_JWKS_OF_ALL_PROJECTS")]
    pub jwks_of_all_projects: bool,
}

/// A header that names the addresses that a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: a list of addresses.
    XForwardedFor,
    /// `Forwarded`, as RFC 7239 has it.
    Forwarded,
}

/// How much any one caller may ask for, on each replica by itself. What is over it is answered with RESOURCE_EXHAUSTED,
/// which over REST is 429, and with the time to wait.
#[derive(Args, Clone, Debug)]
pub struct Rates {
    /// The requests per second that one address may make in the long run: 0 to 1000000; 0 sets no limit. Those with a
    /// genuine server key do not count, and sign-outs have a count of their own. Of IPv6, the network (/64) is one
    /// address; so are all clients behind a proxy that is not a --trusted-proxy.
    #[arg(long, env = "SESSIOND_ADDRESS_RATE", default_value_t = 100, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub address_rate: u32,

    /// The requests that one address may make at once: 1 to 1000000.
    #[arg(long, env = "SESSIOND_ADDRESS_BURST", default_value_t = 400, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub address_burst: u32,

    /// The requests per second that one address may make about tokens and keys: verify, Envoy's Check, the public keys,
    /// the metadata; 0 to 1000000; 0 sets no limit. None for a --trusted-proxy, nor on --proxy-listen.
    #[arg(long, env = "SESSIOND_VERIFY_RATE", default_value_t = 2_000, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub verify_rate: u32,

    /// The requests about tokens and keys that one address may make at once: 1 to 1000000.
    #[arg(long, env = "SESSIOND_VERIFY_BURST", default_value_t = 4_000, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub verify_burst: u32,

    /// The requests per second with genuine tokens of one user, whatever addresses they come from: 0 to 1000000; 0 sets
    /// no limit. So no user can use up what the project has. Sign-outs do not count.
    #[arg(long, env = "SESSIOND_USER_RATE", default_value_t = 50, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub user_rate: u32,

    /// The requests with genuine tokens of one user that may come at once: 1 to 1000000.
    #[arg(long, env = "SESSIOND_USER_BURST", default_value_t = 200, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub user_burst: u32,

    /// The requests per second with genuine credentials of one project: 0 to 1000000; 0 sets no limit. Sign-outs do not
    /// count: they are not refused for what others in the project do.
    #[arg(long, env = "SESSIOND_PROJECT_RATE", default_value_t = 5_000, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub project_rate: u32,

    /// The requests with genuine credentials of one project that may come at once: 1 to 1000000.
    #[arg(long, env = "SESSIOND_PROJECT_BURST", default_value_t = 10_000, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub project_burst: u32,

    /// The requests per second with one server key: 0 to 1000000; 0 sets no limit.
    #[arg(long, env = "SESSIOND_SERVER_KEY_RATE", default_value_t = 2_000, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub server_key_rate: u32,

    /// The requests with one server key that may come at once: 1 to 1000000.
    #[arg(long, env = "SESSIOND_SERVER_KEY_BURST", default_value_t = 4_000, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub server_key_burst: u32,
}

/// Where the database is.
#[derive(Args, Clone, Debug)]
pub struct Database {
    /// Postgres, as postgres://user:password@host:port/database, or as key=value pairs; several hosts with commas between
    /// them. `sslmode` says how it is protected: `require` (the default for other machines) and `verify-full` are TLS with
    /// a certificate for the host's name; `verify-ca` is TLS with a certificate for any name; `prefer` (the default for
    /// this machine) and `allow` are TLS if the server has it; `disable` is none. Wherever TLS is spoken, the certificate
    /// is checked, against the file that `sslrootcert` names, if any. Without TLS no password is sent in clear or as MD5.
    /// The tables are in the schema `public`, unless `options=-c%20search_path%3DNAME` names another one.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: SecretString,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: clap would print the comment as help")]
    pub pool: Pool,
}

/// How the database is used.
#[derive(Args, Clone, Debug)]
pub struct Pool {
    /// The database for the one connection that listens for other replicas' revocations, where --database-url leads
    /// through a pooler in transaction mode: LISTEN does not work there. Without it they come by a poll, every 50 ms.
    #[arg(long, env = "SESSIOND_DATABASE_LISTEN_URL", hide_env_values = true, value_name = "URL")]
    pub database_listen_url: Option<SecretString>,

    /// Certificates to trust for the database, in PEM, instead of the system's; `sslrootcert` in the URL comes before it.
    #[arg(long, env = "SESSIOND_DATABASE_CA_FILE", value_name = "FILE")]
    pub database_ca_file: Option<PathBuf>,

    /// The most connections to the database. Six of them are for the feed of revocations and for readiness, and at least one
    /// is for requests.
    /// One whose statement was given up counts until the server has ended it.
    #[arg(long, env = "SESSIOND_DATABASE_CONNECTIONS_MAX", default_value_t = 20, value_parser = size::<1, 1_000>, value_name = "COUNT")]
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
    /// 32 bytes in base64 that seal every private key in the database (`head -c 32 /dev/urandom | base64`). Keep a copy: without
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

/// How others are told that sessions have ended: see `docs/operators.md`.
#[derive(Args, Clone, Debug)]
pub struct Backchannel {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: clap would print the comment as help")]
    pub permitted: Permitted,

    /// Certificates to trust at back-channel endpoints besides the system's, in PEM.
    #[arg(long, env = "SESSIOND_BACKCHANNEL_TRUSTED_CERTIFICATES", value_name = "FILE")]
    pub backchannel_trusted_certificates: Option<PathBuf>,
}

/// Which private networks back-channel endpoints may be in.
#[derive(Args, Clone, Debug)]
pub struct Permitted {
    /// A private network that back-channel endpoints may be in: an address or a network, such as `10.0.0.0/8`; may be
    /// given more than once. Whoever may add an endpoint, or controls the name of one, can then have this server send
    /// requests to every https port in there. None given: only public addresses are called.
    #[arg(long = "backchannel-allow-private", env = "SESSIOND_BACKCHANNEL_ALLOW_PRIVATE", value_delimiter = ',', value_parser = network, value_name = "NETWORK")]
    pub backchannel_allow_private: Vec<IpNet>,
}

/// In milliseconds.
const HOUR: u64 = 60 * 60 * 1_000;

/// In milliseconds.
const DAY: u64 = 24 * HOUR;

/// How the log is written.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct Log {
    /// What is logged, as `level` or `target=level`, with commas between them. Below `info` only for sessiond itself: what
    /// libraries say there may hold secrets.
    #[arg(long, env = "SESSIOND_LOG", default_value = "info", value_parser = log_filter, value_name = "FILTER", global = true)]
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
    let duration = humantime::parse_duration(text.trim()).map_err(|error| error.to_string())?;
    if (min..=max).contains(&duration) {
        return Ok(duration);
    }
    Err(format!("must be {} to {}", humantime::format_duration(min), humantime::format_duration(max)))
}

fn size<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    let size = text.trim().parse().map_err(|_| "must be a whole number".to_owned())?;
    if (MIN..=MAX).contains(&size) { Ok(size) } else { Err(format!("must be {MIN} to {MAX}")) }
}

fn number<const MIN: u32, const MAX: u32>(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().map_err(|_| "must be a whole number".to_owned())?;
    if (MIN..=MAX).contains(&number) { Ok(number) } else { Err(format!("must be {MIN} to {MAX}")) }
}

/// Reads a network such as `10.0.0.0/8` or `fd00::/8`, or an address, which is the network of that one. A network of
/// IPv4 addresses mapped into IPv6 (RFC 4291 §2.5.5.2) is one of IPv4 addresses.
///
/// # Errors
///
/// When it is none.
pub fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let alone = text.parse::<IpAddr>().map(IpNet::from);
    let network =
        alone.or_else(|_| text.parse()).map_err(|_| "must be an address, or a network such as `10.0.0.0/8`")?;
    Ok(match network {
        IpNet::V6(mapped) if mapped.prefix_len() >= 96 => {
            let address = mapped.addr().to_ipv4_mapped();
            let network = address.and_then(|address| Ipv4Net::new(address, mapped.prefix_len() - 96).ok());
            network.map_or(IpNet::V6(mapped), IpNet::V4)
        }
        other => other,
    })
}

/// Reads a filter of the log.
///
/// # Errors
///
/// When it is none, or would log nothing because a level is misspelt: a bare word that is not a level would be a target.
pub fn log_filter(text: &str) -> Result<String, String> {
    const EXAMPLE: &str = "must be a level such as `info`, or `target=level`";
    let text = text.trim();
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"].iter().any(|level| word.eq_ignore_ascii_case(level))
            || matches!(word, "0" | "1" | "2" | "3" | "4" | "5")
    };
    // Commas stand between the fields of a span too: `[span{a=1,b=2}]=debug`. Such a filter is taken as it is.
    let filter = if text.contains('[') {
        text.to_owned()
    } else {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || !parts.iter().all(|part| part.contains('=') || is_level(part)) {
            return Err(EXAMPLE.to_owned());
        }
        parts.join(",")
    };
    EnvFilter::builder().parse(&filter).map_err(|error| format!("{EXAMPLE}: {error}"))?;
    Ok(filter)
}

/// Takes the environment variables of a command, and of those below it, as they are meant: a blank one is one that is not
/// set, what surrounds a value is no part of it, and an empty element is no element of a list. A template that was filled
/// with nothing, and a file that ends with a line end, leave such values behind.
pub fn tidied(command: Command) -> Command {
    command.mut_args(tidied_arg).mut_subcommands(tidied)
}

fn tidied_arg(arg: Arg) -> Arg {
    let Some(value) = arg.get_env().and_then(std::env::var_os) else { return arg };
    // clap says of what is not text that it is not.
    let Some(text) = value.to_str() else { return arg };
    let (elements, separator): (Vec<&str>, _) = match arg.get_value_delimiter() {
        Some(comma) => (text.split(comma).map(str::trim).collect(), comma.to_string()),
        None => (vec![text.trim()], String::new()),
    };
    let elements: Vec<&str> = elements.into_iter().filter(|element| !element.is_empty()).collect();
    let unset = |arg: Arg| arg.env(None::<&'static str>);
    if elements.is_empty() {
        return unset(arg);
    }
    // A secret is trimmed where it is read: as a default, `--help` would show it.
    if arg.is_hide_env_values_set() || elements.join(&separator) == text {
        return arg;
    }
    // Leaks once per process, and as little as the settings themselves.
    unset(arg).default_values(elements.into_iter().map(|element| &*String::from(element).leak()))
}
