//! Every setting: a flag and an environment variable, with unit, bound and default. `--help` is the manual.

mod otlp;
mod sidecar;
mod web;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Arg;
use clap::ArgMatches;
use clap::Args;
use clap::Command;
use clap::FromArgMatches;
use clap::Subcommand;
use clap::builder::Resettable;
use ipnet::IpNet;
use ipnet::Ipv4Net;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

use sessiond_core::session::retention::RetentionPeriods;

pub use otlp::OtlpEndpoint;
pub use otlp::OtlpProtocol;
pub use otlp::Tracing;
pub use sidecar::Sidecar;
pub use sidecar::SidecarAddress;
pub use sidecar::SidecarProject;
pub use web::Authority;
pub use web::base_path;
pub use web::header_name;
pub use web::host;
pub use web::issuer;
pub use web::issuer_at;
pub use web::origin;

/// Where the server listens.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Address for gRPC, grpc-web and REST, all on this port. Port 0 picks a free one.
    #[arg(long, env = "SESSIOND_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Address for /metrics. Expose it only to the operator. Port 0 picks a free one.
    #[arg(long, env = "SESSIOND_METRICS_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    pub metrics_listen: SocketAddr,

    /// Address for proxies: serves only verify, Envoy's Check and health, without rate limits per address. Expose it
    /// only to proxies. Not opened by default. Port 0 picks a free one.
    #[arg(long, env = "SESSIOND_PROXY_LISTEN", value_name = "ADDRESS")]
    pub proxy_listen: Option<SocketAddr>,
}

/// TLS on the listeners.
#[derive(Args, Clone, Debug)]
pub struct Tls {
    /// The certificate chain for TLS, in PEM, the server's own first. With it, all listeners speak TLS 1.2 and 1.3 only.
    /// The file and the key are read again every second; a replacement that cannot be used is logged and ignored.
    #[arg(long, env = "SESSIOND_TLS_CERTIFICATE_FILE", requires = "tls_key_file", value_name = "FILE")]
    pub tls_certificate_file: Option<PathBuf>,

    /// The private key of the certificate, in PEM.
    #[arg(long, env = "SESSIOND_TLS_KEY_FILE", requires = "tls_certificate_file", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,

    /// The authorities of client certificates, in PEM. With it, clients of --listen may connect with a certificate of theirs;
    /// one whose name was added by `sessiond client-certificate add` stands in for a server key. Connections without a
    /// certificate are accepted as before; those with another authority's are refused. Read again every second.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_CA_FILE", requires = "tls_certificate_file", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
}

/// Limits on connections, requests and streams.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// How long a request may take before it fails with DEADLINE_EXCEEDED. A shorter `grpc-timeout` applies instead.
    #[arg(long, env = "SESSIOND_REQUEST_TIMEOUT", default_value = "10s", value_parser = duration::<100, 300_000>, value_name = "DURATION")]
    pub request_timeout: Duration,

    /// The largest message, in bytes, on each protocol. A larger JSON body is answered with 413.
    #[arg(long, env = "SESSIOND_BODY_BYTES_MAX", default_value_t = 1024 * 1024, value_parser = size::<1024, 16_777_216>, value_name = "BYTES")]
    pub body_bytes_max: usize,

    /// The largest header section, in bytes, on HTTP/1.1 and HTTP/2. A larger one is answered with 431. At least 24576,
    /// because the largest access token must fit.
    #[arg(long, env = "SESSIOND_HEADER_BYTES_MAX", default_value_t = 32 * 1024, value_parser = size::<24_576, 1_048_576>, value_name = "BYTES")]
    pub header_bytes_max: usize,

    /// How long a client may take to send a request's headers, from the first byte; on a new connection, from the start
    /// of the connection. A slower client is disconnected.
    #[arg(long, env = "SESSIOND_HEADER_TIMEOUT", default_value = "10s", value_parser = duration::<10, 300_000>, value_name = "DURATION")]
    pub header_timeout: Duration,

    /// How long a connection may be idle, on HTTP/1.1 and HTTP/2. Pings do not count as use. Keep it above the 60 s for
    /// which load balancers keep their connections.
    #[arg(long, env = "SESSIOND_IDLE_TIMEOUT", default_value = "75s", value_parser = duration::<100, DAY>, value_name = "DURATION")]
    pub idle_timeout: Duration,

    /// How long a connection may stay open; then it is closed gracefully, on HTTP/2 with a GOAWAY. Up to a tenth is
    /// subtracted at random, so that connections do not all close at once.
    #[arg(long, env = "SESSIOND_CONNECTION_AGE_MAX", default_value = "1h", value_parser = duration::<1_000, { 30 * DAY }>, value_name = "DURATION")]
    pub connection_age_max: Duration,

    /// The most open connections. From 31/32 of them on, each new one closes an idle one to make room, of the address
    /// that has the most; at the limit, one whose request is still arriving, or else new ones wait to be accepted.
    #[arg(long, env = "SESSIOND_CONNECTIONS_MAX", default_value_t = 10_000, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub connections_max: usize,

    /// The most connections from one address (IPv6: from one /64 network). At the limit, an idle one is closed to make
    /// room, or else the new one. A --trusted-proxy has no limit. Default: a quarter of --connections-max.
    #[arg(long, env = "SESSIOND_ADDRESS_CONNECTIONS_MAX", value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub address_connections_max: Option<usize>,

    /// The most requests in progress, not counting those still arriving. Further ones fail with RESOURCE_EXHAUSTED at
    /// once. Sign-outs and requests of proxies have as many places again of their own.
    #[arg(long, env = "SESSIOND_REQUESTS_MAX", default_value_t = 4_096, value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub requests_max: usize,

    /// The most requests in progress from one address over all its connections, including those still arriving.
    /// Sign-outs are counted separately. Default: an eighth of --requests-max.
    #[arg(long, env = "SESSIOND_ADDRESS_REQUESTS_MAX", value_parser = size::<1, 1_000_000>, value_name = "COUNT")]
    pub address_requests_max: Option<usize>,

    /// The most bytes of messages in memory at once; one address may use a quarter. Further messages are answered with
    /// RESOURCE_EXHAUSTED.
    #[arg(long, env = "SESSIOND_ARRIVING_BYTES_MAX", default_value_t = 64 * 1024 * 1024, value_parser = size::<1_048_576, 17_179_869_184>, value_name = "BYTES")]
    pub arriving_bytes_max: usize,

    /// The most streams of revocations at once. Further ones are answered with RESOURCE_EXHAUSTED. Streams of users
    /// take up at most three quarters.
    #[arg(long, env = "SESSIOND_SUBSCRIBERS_MAX", default_value_t = 4_096, value_parser = size::<4, 1_000_000>, value_name = "COUNT")]
    pub subscribers_max: usize,

    /// How old this replica's data on revocations may be: 1s to 5m. If it is older, the replica answers questions about
    /// tokens and sessions (verify, Check, introspection, lists) with UNAVAILABLE, and is not ready: the database is
    /// down, or another server has taken over from the one that this replica still reaches.
    #[arg(long, env = "SESSIOND_STALENESS_MAX", default_value = "5s", value_parser = duration::<1_000, 300_000>, value_name = "DURATION")]
    pub staleness_max: Duration,

    /// How long to keep answering, and accepting connections, after the server is told to stop. Readiness fails from
    /// the first moment, and each response over HTTP/1.1 closes its connection. Must be longer than the load balancer
    /// takes to notice.
    #[arg(long, env = "SESSIOND_DRAIN_DELAY", default_value = "5s", value_parser = duration::<0, 300_000>, value_name = "DURATION")]
    pub drain_delay: Duration,

    /// How long requests in progress may still take after that.
    #[arg(long, env = "SESSIOND_SHUTDOWN_TIMEOUT", default_value = "10s", value_parser = duration::<0, 300_000>, value_name = "DURATION")]
    pub shutdown_timeout: Duration,
}

impl Limits {
    /// The most connections from one address.
    pub fn address_connections_max(&self) -> usize {
        self.address_connections_max.unwrap_or_else(|| self.connections_max.div_ceil(4))
    }

    /// The most requests in progress from one address.
    pub fn address_requests_max(&self) -> usize {
        self.address_requests_max.unwrap_or_else(|| self.requests_max.div_ceil(8).max(1))
    }
}

/// How browsers and other clients find and reach the API.
#[derive(Args, Clone, Debug)]
pub struct Web {
    /// The base URL of the issuer: `iss` is this, followed by `/projects/` and the project's id. An http or https URL
    /// without query and fragment. A port of 0 stands for the port that the server listens on.
    #[arg(long, env = "SESSIOND_ISSUER", default_value = "http://127.0.0.1:8080", value_parser = issuer, value_name = "URL")]
    pub issuer: String,

    /// A path that the REST API is served under; may be repeated.
    #[arg(long = "base-path", env = "SESSIOND_BASE_PATHS", value_delimiter = ',', default_values = ["/", "/api/v1"], value_parser = base_path, value_name = "PATH")]
    pub base_paths: Vec<String>,

    /// An origin that browsers may call from, such as `https://app.example.org` or `capacitor://localhost`; may be
    /// repeated. `*` allows every origin, which is safe: cookies count only on pages of the server's own origin.
    #[arg(long = "cors-origin", env = "SESSIOND_CORS_ORIGINS", value_delimiter = ',', value_parser = origin, value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,

    /// A request header that pages of those origins may send, in addition to those of the API and of tracing; may be
    /// repeated.
    #[arg(long = "cors-header", env = "SESSIOND_CORS_HEADERS", value_delimiter = ',', value_parser = header_name, value_name = "HEADER")]
    pub cors_headers: Vec<String>,

    /// A host name that requests may be addressed to, without a port; may be repeated. Others are answered with 421,
    /// except probes (`/healthz`, `/readyz`, `grpc.health.v1`) to an address or to `localhost`. Default: every name is
    /// allowed.
    #[arg(long = "allowed-host", env = "SESSIOND_ALLOWED_HOSTS", value_delimiter = ',', value_parser = host, value_name = "HOST")]
    pub allowed_hosts: Vec<String>,

    /// A reverse proxy whose word on the client's address is trusted: an address or a network, such as `10.0.0.0/8`;
    /// may be repeated. Each proxy must append the address that it was called from, and no one else may call from that
    /// network. Default: none; the client is the peer of the connection.
    #[arg(long = "trusted-proxy", env = "SESSIOND_TRUSTED_PROXIES", value_delimiter = ',', value_parser = network, value_name = "NETWORK")]
    pub trusted_proxies: Vec<IpNet>,

    /// The header in which the trusted proxies name the client's address. The other one is ignored, because proxies
    /// pass it on as the client sent it.
    #[arg(long, env = "SESSIOND_FORWARDED_HEADER", default_value = "x-forwarded-for", value_name = "HEADER")]
    pub forwarded_header: ForwardedHeader,

    /// Publish the public keys of all projects in one document, at `/.well-known/jwks.json`. Without it, only each
    /// project's own document is served.
    #[arg(long, env = "SESSIOND_JWKS_OF_ALL_PROJECTS")]
    pub jwks_of_all_projects: bool,
}

/// A header that lists the addresses that a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: a list of addresses.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Rate limits for each caller, counted by each replica. Above a limit the answer is RESOURCE_EXHAUSTED, over REST 429,
/// with the time to wait.
#[derive(Args, Clone, Debug)]
pub struct Rates {
    /// The requests per second that one address may make in the long run: 0 to 1000000; 0 sets no limit. Requests with
    /// a genuine server key do not count, and sign-outs are counted separately. An IPv6 /64 network counts as one
    /// address; so do all clients behind a proxy that is not a --trusted-proxy.
    #[arg(long, env = "SESSIOND_ADDRESS_RATE", default_value_t = 100, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub address_rate: u32,

    /// The burst of requests that one address may make: 1 to 1000000.
    #[arg(long, env = "SESSIOND_ADDRESS_BURST", default_value_t = 400, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub address_burst: u32,

    /// The requests per second about tokens and keys that one address may make: verify, Envoy's Check, the public keys,
    /// the metadata; 0 to 1000000; 0 sets no limit. It may open as many connections, and at least 2000. A --trusted-proxy
    /// that names its client uses up the client's; does not apply to one that names none, or on --proxy-listen.
    #[arg(long, env = "SESSIOND_VERIFY_RATE", default_value_t = 2_000, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub verify_rate: u32,

    /// The burst of requests about tokens and keys that one address may make: 1 to 1000000.
    #[arg(long, env = "SESSIOND_VERIFY_BURST", default_value_t = 4_000, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub verify_burst: u32,

    /// The requests per second with genuine tokens of one user, from all addresses: 0 to 1000000; 0 sets no limit. It
    /// prevents one user from using up the project's limit. Sign-outs do not count.
    #[arg(long, env = "SESSIOND_USER_RATE", default_value_t = 50, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub user_rate: u32,

    /// The burst of requests with genuine tokens of one user: 1 to 1000000.
    #[arg(long, env = "SESSIOND_USER_BURST", default_value_t = 200, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub user_burst: u32,

    /// The requests per second with genuine credentials of one project: 0 to 1000000; 0 sets no limit. Sign-outs do not
    /// count: they are not refused because of other requests in the project.
    #[arg(long, env = "SESSIOND_PROJECT_RATE", default_value_t = 5_000, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub project_rate: u32,

    /// The burst of requests with genuine credentials of one project: 1 to 1000000.
    #[arg(long, env = "SESSIOND_PROJECT_BURST", default_value_t = 10_000, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub project_burst: u32,

    /// The requests per second with one server key: 0 to 1000000; 0 sets no limit.
    #[arg(long, env = "SESSIOND_SERVER_KEY_RATE", default_value_t = 2_000, value_parser = number::<0, 1_000_000>, value_name = "COUNT")]
    pub server_key_rate: u32,

    /// The burst of requests with one server key: 1 to 1000000.
    #[arg(long, env = "SESSIOND_SERVER_KEY_BURST", default_value_t = 4_000, value_parser = number::<1, 1_000_000>, value_name = "COUNT")]
    pub server_key_burst: u32,
}

/// The database connection.
#[derive(Args, Clone, Debug)]
pub struct Database {
    /// Postgres, as postgres://user:password@host:port/database, or as key=value pairs; several hosts separated by
    /// commas. `sslmode` sets the protection: `require` (the default for other machines) and `verify-full` are TLS with
    /// a certificate for the host's name; `verify-ca` is TLS with a certificate for any name; `prefer` (the default for
    /// this machine) and `allow` are TLS if the server has it; `disable` is none. Wherever TLS is used, the certificate
    /// is verified, against the file that `sslrootcert` names, if any; `sslcert` and `sslkey` name the files of a client
    /// certificate, which are read again for each connection. Without TLS no password is sent in clear or as MD5. The tables are in the schema `public`, unless `options=-c%20search_path%3DNAME` names another one. On the
    /// command line the URL must not have a password.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: SecretString,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: clap would print the comment as help")]
    pub pool: Pool,
}

/// The connection pool.
#[derive(Args, Clone, Debug)]
pub struct Pool {
    /// The database URL for the one connection that listens for other replicas' revocations. Needed if --database-url
    /// leads through a pooler in transaction mode, or to a worker of a divided database, where LISTEN does not work: then
    /// it leads to the primary or the coordinator. Without it they are found by a poll, every 50 ms, or up to 250 ms
    /// where a reading is slow.
    #[arg(long, env = "SESSIOND_DATABASE_LISTEN_URL", hide_env_values = true, value_name = "URL")]
    pub database_listen_url: Option<SecretString>,

    /// A file with the password for the database, if the URLs have none. Read once, at the start. An empty file means no
    /// password.
    #[arg(long, env = "SESSIOND_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,

    /// Certificates to trust for the database, in PEM, instead of the system's. `sslrootcert` in the URL takes
    /// precedence.
    #[arg(long, env = "SESSIOND_DATABASE_CA_FILE", value_name = "FILE")]
    pub database_ca_file: Option<PathBuf>,

    /// The most connections to the database. Six are for the feed of revocations and for readiness, and at least one is
    /// for requests. A connection whose statement was cancelled counts until the server has ended it.
    #[arg(long, env = "SESSIOND_DATABASE_CONNECTIONS_MAX", default_value_t = 20, value_parser = size::<1, 1_000>, value_name = "COUNT")]
    pub database_connections_max: usize,

    /// How long each host may take to accept a connection.
    #[arg(long, env = "SESSIOND_DATABASE_CONNECT_TIMEOUT", default_value = "700ms", value_parser = duration::<10, 60_000>, value_name = "DURATION")]
    pub database_connect_timeout: Duration,

    /// How long an operation may take, including the wait for a connection, before it fails with UNAVAILABLE.
    #[arg(long, env = "SESSIOND_DATABASE_TIMEOUT", default_value = "1500ms", value_parser = duration::<10, 60_000>, value_name = "DURATION")]
    pub database_timeout: Duration,
}

/// The keys that seal the private keys in the database.
#[derive(Args, Clone, Debug)]
pub struct Sealing {
    /// A file with the key that seals every private key in the database: 32 bytes in base64
    /// (`head -c 32 /dev/urandom | base64`). Keep a copy: without it the keys are lost. Instead of the file, the
    /// variable SESSIOND_SEALING_KEY may have the key itself.
    #[arg(long, env = "SESSIOND_SEALING_KEY_FILE", value_name = "FILE")]
    pub sealing_key_file: Option<PathBuf>,

    /// A file with the previous sealing key, during a change; or the variable SESSIOND_PREVIOUS_SEALING_KEY.
    #[arg(long, env = "SESSIOND_PREVIOUS_SEALING_KEY_FILE", value_name = "FILE")]
    pub previous_sealing_key_file: Option<PathBuf>,
}

/// How long ended sessions and the audit log are kept. Due rows are deleted within hours, not at the second: see
/// `docs/operating/retention.md`.
#[derive(Args, Clone, Debug)]
pub struct Retention {
    /// How long a session is kept after it ended, for listings of ended sessions; its address and its device are
    /// deleted with it. 1h to 10 years.
    #[arg(long, env = "SESSIOND_ENDED_SESSION_RETENTION", default_value = "30d", value_parser = duration::<HOUR, { 3_660 * DAY }>, value_name = "DURATION")]
    pub ended_session_retention: Duration,

    /// How long the audit log is kept, and revoked server keys with it. 1d to 20 years.
    #[arg(long, env = "SESSIOND_AUDIT_RETENTION", default_value = "400d", value_parser = duration::<DAY, { 7_320 * DAY }>, value_name = "DURATION")]
    pub audit_retention: Duration,

    /// How long the audit log keeps the addresses from which sessions were ended. 0s to 20 years; never longer than the
    /// audit log itself.
    #[arg(long, env = "SESSIOND_ADDRESS_RETENTION", default_value = "30d", value_parser = duration::<0, { 7_320 * DAY }>, value_name = "DURATION")]
    pub address_retention: Duration,
}

impl Retention {
    /// The values alone.
    pub const fn periods(&self) -> RetentionPeriods {
        RetentionPeriods {
            ended_sessions: self.ended_session_retention,
            audit: self.audit_retention,
            addresses: self.address_retention,
        }
    }
}

/// Back-channel delivery: see `docs/guides/back-channels.md`.
#[derive(Args, Clone, Debug)]
pub struct Backchannel {
    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: clap would print the comment as help")]
    pub permitted: Permitted,

    /// Certificates to trust for back-channel endpoints in addition to the system's, in PEM.
    #[arg(long, env = "SESSIOND_BACKCHANNEL_TRUSTED_CERTIFICATES", value_name = "FILE")]
    pub backchannel_trusted_certificates: Option<PathBuf>,
}

/// Which private networks back-channel endpoints may be in.
#[derive(Args, Clone, Debug)]
pub struct Permitted {
    /// A private network that back-channel endpoints may be in: an address or a network, such as `10.0.0.0/8`; may be
    /// repeated. Anyone who can add an endpoint, or controls its host name, can then make this server send requests to
    /// every https port in that network. Default: only public addresses.
    #[arg(long = "backchannel-allow-private", env = "SESSIOND_BACKCHANNEL_ALLOW_PRIVATE", value_delimiter = ',', value_parser = network, value_name = "NETWORK")]
    pub backchannel_allow_private: Vec<IpNet>,
}

/// In milliseconds.
const HOUR: u64 = 60 * 60 * 1_000;

/// In milliseconds.
const DAY: u64 = 24 * HOUR;

/// What is recorded of requests: see `docs/operating/traces.md`.
#[derive(Args, Clone, Debug)]
pub struct Observing {
    /// Log every request, with its RPC, status, reason, duration, project and trace, at the level `info` under the target
    /// `sessiond::requests`. No token, user or full address is logged.
    #[arg(long, env = "SESSIOND_LOG_REQUESTS", value_parser = clap::builder::BoolishValueParser::new())]
    pub log_requests: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "flattened: clap would print the comment as help")]
    pub tracing: Tracing,
}

/// The log.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct Log {
    /// What is logged, as `level` or `target=level`, separated by commas. Below `info`, only sessiond itself is logged:
    /// events of libraries may contain secrets.
    #[arg(long, env = "SESSIOND_LOG", default_value = "info", value_parser = log_filter, value_name = "FILTER", global = true)]
    pub log: String,

    /// The format of the log.
    #[arg(long, env = "SESSIOND_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: LogFormat,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text, for people.
    Text,
    /// JSON, one object per line, for machines.
    Json,
}

/// Reads a duration such as `1500ms`, `60s`, `10m` or `90d`, between bounds in milliseconds.
///
/// # Errors
///
/// If it is not a duration, or is out of bounds.
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

/// Reads a network such as `10.0.0.0/8` or `fd00::/8`, or a single address. A network of IPv4 addresses mapped into
/// IPv6 (RFC 4291 §2.5.5.2) becomes one of IPv4 addresses.
///
/// # Errors
///
/// If it is neither.
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

/// Reads a log filter.
///
/// # Errors
///
/// If it is malformed, or would log nothing because a level is misspelt: a bare word that is not a level would be a
/// target.
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

/// Normalises the environment variables of a command and its subcommands: a blank variable counts as unset, surrounding
/// white space is ignored, and so are empty elements of a list. Templates filled with nothing, and files that end with
/// a newline, leave such values.
pub fn tidied(command: Command) -> Command {
    command.mut_args(tidied_arg).mut_subcommands(tidied)
}

/// The arguments or subcommands of a command, [`tidied`] when they are built: with `defer`, only for the command that was asked
/// for.
pub struct Tidied<T>(pub T);

impl<T: FromArgMatches> FromArgMatches for Tidied<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T> Tidied<T> {
    /// Adds the arguments or subcommands. The comments on their type are for readers of the code: the command keeps its own.
    fn add(command: Command, augment: fn(Command) -> Command) -> Command {
        let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
        tidied(augment(command)).about(Resettable::from(about)).long_about(Resettable::from(long_about))
    }
}

impl<T: Args> Args for Tidied<T> {
    fn augment_args(command: Command) -> Command {
        Self::add(command, T::augment_args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::add(command, T::augment_args_for_update)
    }
}

impl<T: Subcommand> Subcommand for Tidied<T> {
    fn augment_subcommands(command: Command) -> Command {
        Self::add(command, T::augment_subcommands)
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::add(command, T::augment_subcommands_for_update)
    }

    fn has_subcommand(name: &str) -> bool {
        T::has_subcommand(name)
    }
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
