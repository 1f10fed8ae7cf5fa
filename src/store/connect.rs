//! Ways to the database: one of several hosts, each with a deadline of its own, over TLS where the URL asks for it.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::ConnectionError;
use diesel::ConnectionResult;
use diesel_async::AsyncPgConnection;
use diesel_async::SimpleAsyncConnection as _;
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::Socket;
use tokio_postgres::config::Host;
use tokio_postgres::config::SslMode;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Demand;
use super::Options;
use super::durability;
use crate::telemetry::chain;

/// Why a database URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It does not parse. What it says is not repeated: there is a password in it.
    #[error("the database URL is not one that Postgres knows: postgres://user:password@host:port/database")]
    Malformed(#[source] tokio_postgres::Error),
    /// It names no host.
    #[error("the database URL names no host")]
    NoHost,
    /// The file of certificates is not one.
    #[error("the file of trusted certificates cannot be read")]
    Certificates(#[source] rustls::pki_types::pem::Error),
    /// The certificates cannot be used.
    #[error("the trusted certificates cannot be used")]
    Tls(#[source] rustls::Error),
}

/// The half of a connection that must be driven for the other to get anywhere.
pub(super) type Connection = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Where the database is.
pub(super) struct Target {
    /// One configuration per host: the driver would try them in order under a single deadline, and a primary that is
    /// paused rather than dead would hold up every connection.
    hosts: Vec<Config>,
    tls: MakeRustlsConnect,
    /// For each host, the TCP connect and the handshake together.
    deadline: Duration,
    /// SQL for every new connection.
    settings: String,
    demand: Demand,
    /// The host that answered last; the next connection begins there.
    preferred: AtomicUsize,
}

impl Target {
    /// Reads a database URL, several hosts and all.
    ///
    /// # Errors
    ///
    /// When the URL or the file of certificates is malformed.
    pub(super) fn new(options: &Options) -> Result<Self, UrlError> {
        // With TLS, certificates are always checked; so what libpq calls `verify-full` is our `require`.
        let url = options.url.expose_secret().replace("sslmode=verify-full", "sslmode=require");
        let config = Config::from_str(&url).map_err(UrlError::Malformed)?;
        let hosts: Vec<Config> = (0..config.get_hosts().len()).map(|at| only_host(&config, at)).collect();
        if hosts.is_empty() {
            return Err(UrlError::NoHost);
        }
        // Time must be left for a second host.
        let deadline = options.connect_timeout.min(options.operation_timeout / 2);
        let tls = tls(options.trusted_certificates.as_deref())?;
        let settings = settings(options.operation_timeout);
        Ok(Self { hosts, tls, deadline, settings, demand: options.demand, preferred: AtomicUsize::new(0) })
    }

    /// Connects to the first host that can be written to, beginning with the one that answered last.
    ///
    /// # Errors
    ///
    /// The last host's error, when none answered.
    pub(super) async fn connect(&self) -> ConnectionResult<AsyncPgConnection> {
        self.first_of_all(|target, host| Box::pin(target.connect_to(host))).await
    }

    /// Connects as [`Target::connect`], for a connection that nobody else will use: it is the caller's to drive.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) async fn connect_alone(&self) -> ConnectionResult<(Client, Connection)> {
        self.first_of_all(|target, host| Box::pin(target.open(host))).await
    }

    async fn first_of_all<T>(
        &self,
        connect: for<'a> fn(&'a Self, usize) -> BoxFuture<'a, ConnectionResult<T>>,
    ) -> ConnectionResult<T> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut outcome = Err(ConnectionError::BadConnection("no host was tried".into()));
        for step in 0..self.hosts.len() {
            let at = (first + step) % self.hosts.len();
            outcome = match timeout(self.deadline, connect(self, at)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(ConnectionError::BadConnection("the host did not answer in time".into())),
            };
            // A host that failed is passed over by the next connection too: whoever asked may have no time left for the rest.
            let preferred = if outcome.is_ok() { at } else { at + 1 };
            self.preferred.store(preferred, Ordering::Relaxed);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn open(&self, at: usize) -> ConnectionResult<(Client, Connection)> {
        // `ConnectionError` has room for a text only, and the driver's own says little without its cause.
        let refused = |error| ConnectionError::BadConnection(chain(&error));
        self.hosts[at].connect(self.tls.clone()).await.map_err(refused)
    }

    async fn connect_to(&self, at: usize) -> ConnectionResult<AsyncPgConnection> {
        let (client, connection) = self.open(at).await?;
        let mut connection = AsyncPgConnection::try_from_client_and_connection(client, connection).await?;
        connection.batch_execute(&self.settings).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
        match self.demand {
            Demand::Durable => durability::demand(&mut connection).await?,
            Demand::Nothing => {}
        }
        Ok(connection)
    }
}

/// A lock that we wait for in vain is given up by the server too, and a transaction whose client froze gives up its locks:
/// nobody is left behind to block a sign-out.
///
/// Each statement finds its rows by an index, whatever its parameters and however young the statistics; left to itself,
/// Postgres plans one over an array anew on every call, which takes longer than to run it. What reads a whole table all the
/// same, the keys, then looks dear enough to be compiled first: 200 ms of a processor, each time, for a few rows. So nothing is.
fn settings(operation_timeout: Duration) -> String {
    let millis = operation_timeout.as_millis();
    format!(
        "SET lock_timeout = {millis}; SET idle_in_transaction_session_timeout = {}; \
         SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off",
        2 * millis
    )
}

/// The configuration with one of its hosts.
fn only_host(all: &Config, at: usize) -> Config {
    let mut one = Config::new();
    match &all.get_hosts()[at] {
        Host::Tcp(name) => one.host(name),
        Host::Unix(path) => one.host_path(path),
    };
    // One port stands for all hosts, as in libpq.
    if let Some(port) = all.get_ports().get(at).or_else(|| all.get_ports().last()) {
        one.port(*port);
    }
    if let Some(address) = all.get_hostaddrs().get(at) {
        one.hostaddr(*address);
    }
    if let Some(user) = all.get_user() {
        one.user(user);
    }
    if let Some(password) = all.get_password() {
        one.password(password);
    }
    if let Some(name) = all.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = all.get_options() {
        one.options(options);
    }
    one.application_name(all.get_application_name().unwrap_or("sessiond"));
    one.ssl_mode(all.get_ssl_mode());
    one.ssl_negotiation(all.get_ssl_negotiation());
    one.channel_binding(all.get_channel_binding());
    one.keepalives_idle(Duration::from_secs(30));
    // A standby accepts connections and refuses every write: it is not where we want to be.
    one.target_session_attrs(TargetSessionAttrs::ReadWrite);
    if one.get_ssl_mode() == SslMode::Prefer && matches!(all.get_hosts()[at], Host::Unix(_)) {
        one.ssl_mode(SslMode::Disable);
    }
    one
}

/// Certificates are always checked when TLS is spoken, against the file where one is given and else against the system's.
fn tls(trusted: Option<&Path>) -> Result<MakeRustlsConnect, UrlError> {
    let mut roots = rustls::RootCertStore::empty();
    match trusted {
        Some(file) => {
            for certificate in CertificateDer::pem_file_iter(file).map_err(UrlError::Certificates)? {
                roots.add(certificate.map_err(UrlError::Certificates)?).map_err(UrlError::Tls)?;
            }
        }
        None => {
            // The system's store may hold what rustls cannot read; the rest is good.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(UrlError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
