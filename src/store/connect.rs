//! Ways to the database: one of several hosts, each with a deadline of its own, over TLS where the URL asks for it.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::ConnectionError;
use diesel::ConnectionResult;
use diesel_async::AsyncPgConnection;
use diesel_async::SimpleAsyncConnection as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_postgres::CancelToken;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::Socket;
use tokio_postgres::config::Host;
use tokio_postgres::config::SslMode;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Demand;
use super::Durability;
use super::Options;
use super::backend::Backend;
use super::backend::End;
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
    /// The host that answered last; the next connection begins there. At the beginning, and once that one has failed, it is
    /// [`NO_HOST`]: all are asked.
    preferred: AtomicUsize,
    /// The server with the highest timeline that was ever found. One with a lower timeline was deposed, whatever it says of
    /// itself.
    newest: watch::Sender<Option<Server>>,
    /// What the database promised when it was last asked.
    durability: watch::Sender<Durability>,
    /// What the last host promised that was refused because that is too little.
    refused_as: Mutex<Option<Durability>>,
}

/// No host is preferred.
const NO_HOST: usize = usize::MAX;

/// How much longer to wait for other hosts once one has answered: one that does not answer must not hold up everybody.
const SECOND_ANSWER_WAIT: Duration = Duration::from_millis(150);

/// How long a connection that was given up may take to end by itself before its statement is cancelled. Most have none.
const CANCEL_AFTER: Duration = Duration::from_millis(20);

/// How often its statement is cancelled again: a request may come between two statements. Doubled each time.
const CANCEL_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a server process may take to go once its client has said goodbye.
const GOODBYE: Duration = Duration::from_millis(20);

/// A server, as far as it matters who took over from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    /// The cluster's `system_identifier`: timelines of two clusters cannot be compared.
    system: u64,
    /// The timeline of its log. A standby that is promoted begins a new one, with a higher number.
    timeline: u32,
}

impl Server {
    /// Whether another one has taken over from this one.
    fn is_deposed_by(self, newest: Option<Self>) -> bool {
        newest.is_some_and(|newest| newest.system == self.system && newest.timeline > self.timeline)
    }
}

/// Which server a connection leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    host: usize,
    server: Server,
}

/// A new connection.
pub(super) struct Opened<C> {
    pub(super) client: C,
    pub(super) backend: Backend,
    pub(super) standing: Standing,
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
        Ok(Self {
            hosts,
            tls,
            deadline,
            settings,
            demand: options.demand,
            preferred: AtomicUsize::new(NO_HOST),
            newest: watch::Sender::new(None),
            durability: watch::Sender::new(Durability::Kept),
            refused_as: Mutex::default(),
        })
    }

    /// Connects to the host that was found last, or else to the one with the highest timeline of those that can be written to.
    ///
    /// # Errors
    ///
    /// The last host's error, when none answered.
    pub(super) async fn connect(&self) -> ConnectionResult<Opened<AsyncPgConnection>> {
        let Opened { client, backend, standing } = self.open(None).await?;
        let mut client = AsyncPgConnection::try_from(client).await?;
        client.batch_execute(&self.settings).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(Opened { client, backend, standing })
    }

    /// Connects as [`Target::connect`], for a connection that only listens: `bell` receives the payloads of notifications.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) async fn connect_listening(&self, bell: mpsc::Sender<String>) -> ConnectionResult<Opened<Client>> {
        self.open(Some(bell)).await
    }

    /// Asks all hosts which of them is the newest primary, over connections of its own. Connections that lead to an older one
    /// are not used any more.
    pub(super) async fn look_again(&self) {
        // Whatever comes of it, the next connection finds out for itself.
        drop(self.look(None, None).await);
    }

    /// Whether the server of a connection is still the one to use.
    pub(super) fn is_current(&self, standing: &Standing) -> bool {
        !standing.server.is_deposed_by(*self.newest.borrow())
    }

    /// Waits until another server has taken over.
    pub(super) async fn superseded(&self, standing: &Standing) {
        let mut newest = self.newest.subscribe();
        if newest.wait_for(|newest| standing.server.is_deposed_by(*newest)).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the server process of a connection that was given up is gone, and cancels the statement that holds it up.
    ///
    /// A process that waits for a standby does not notice that its client has left. Cancelled, it has committed, and the wait
    /// of whoever comes next takes its place (see `tx`). Also returns once another server has taken over: what becomes of
    /// processes on the one before is out of our hands. A network that swallows everything is found out by keep-alives.
    pub(super) async fn see_off(&self, backend: &Backend, cancel: &CancelToken, standing: &Standing) {
        let mut patience = CANCEL_AFTER;
        loop {
            tokio::select! {
                end = backend.ended() => {
                    if end == End::Closed {
                        sleep(GOODBYE).await;
                    }
                    return;
                }
                () = self.superseded(standing) => return,
                () = sleep(patience) => {}
            }
            // Whether it was heard shows by itself.
            let _ = timeout(self.deadline, cancel.cancel_query(self.tls.clone())).await;
            patience = (2 * patience).clamp(CANCEL_AGAIN.0, CANCEL_AGAIN.1);
        }
    }

    /// What hosts must promise.
    pub(super) const fn demand(&self) -> Demand {
        self.demand
    }

    /// What the database promised when it was last asked.
    pub(super) fn durability(&self) -> Durability {
        *self.durability.borrow()
    }

    /// Notes what the database promises.
    pub(super) fn note_durability(&self, found: Durability) {
        if self.durability.send_replace(found) != found {
            match found {
                Durability::Kept => tracing::info!("the database keeps what it acknowledges"),
                lost => tracing::error!(
                    setting = lost.setting(),
                    "the database may lose what it acknowledges: refusing to write"
                ),
            }
        }
    }

    fn refused_as(&self) -> MutexGuard<'_, Option<Durability>> {
        self.refused_as.lock().expect("no one panics while holding it")
    }

    async fn open(&self, bell: Option<mpsc::Sender<String>>) -> ConnectionResult<Opened<Client>> {
        let opened = self.open_somewhere(bell).await;
        match (self.demand, &opened) {
            (Demand::Nothing, _) => {}
            (Demand::Durable, Ok(_)) => self.note_durability(Durability::Kept),
            // The only one to be had promises too little: no connection is left that could be asked.
            (Demand::Durable, Err(_)) => {
                if let Some(lost) = self.refused_as().take() {
                    self.note_durability(lost);
                }
            }
        }
        opened
    }

    async fn open_somewhere(&self, bell: Option<mpsc::Sender<String>>) -> ConnectionResult<Opened<Client>> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        if preferred == NO_HOST {
            return self.look(None, bell).await;
        }
        let failure = match self.ask(preferred, bell.clone()).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        // Passed over by the next connection too: whoever asks may have no time left for the rest.
        let _ = self.preferred.compare_exchange(preferred, NO_HOST, Ordering::Relaxed, Ordering::Relaxed);
        if self.hosts.len() == 1 { Err(failure) } else { self.look(Some(preferred), bell).await }
    }

    /// Asks all hosts but one at the same time, and takes the one with the highest timeline.
    async fn look(
        &self,
        except: Option<usize>,
        bell: Option<mpsc::Sender<String>>,
    ) -> ConnectionResult<Opened<Client>> {
        let others = (0..self.hosts.len()).filter(|at| Some(*at) != except);
        let mut asked: FuturesUnordered<_> = others.map(|at| self.ask(at, bell.clone())).collect();
        let mut outcome: ConnectionResult<Opened<Client>> =
            Err(ConnectionError::BadConnection("no host was tried".into()));
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut until = Instant::now() + 2 * self.deadline;
        // After its time, what has come is all there is.
        while let Ok(Some(answer)) = timeout_at(until, asked.next()).await {
            if outcome.is_err() && answer.is_ok() {
                until = Instant::now() + SECOND_ANSWER_WAIT;
            }
            let rank = |opened: &Opened<Client>| (opened.standing.server.timeline, opened.standing.host == preferred);
            let is_better = match (&answer, &outcome) {
                (Ok(answer), Ok(found)) => rank(answer) > rank(found),
                (Ok(_), Err(_)) | (Err(_), Err(_)) => true,
                (Err(_), Ok(_)) => false,
            };
            if is_better {
                outcome = answer;
            }
        }
        let opened = outcome?;
        // One that was asked later may have found a newer one meanwhile.
        self.admit(&opened.standing)?;
        self.preferred.store(opened.standing.host, Ordering::Relaxed);
        Ok(opened)
    }

    async fn ask(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> ConnectionResult<Opened<Client>> {
        let asked = timeout(self.deadline, self.examine(at, bell)).await;
        asked.unwrap_or_else(|_| Err(ConnectionError::BadConnection("the host did not answer in time".into())))
    }

    /// Connects to a host, and looks whether it is one to use.
    async fn examine(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> ConnectionResult<Opened<Client>> {
        // `ConnectionError` has room for a text only, and the driver's own says little without its cause.
        let refused = |error| ConnectionError::BadConnection(chain(&error));
        let (client, connection) = self.hosts[at].connect(self.tls.clone()).await.map_err(refused)?;
        let backend = Backend::drive(connection, bell);
        let found = durability::examine(&client, self.demand).await.map_err(refused)?;
        let bad = || ConnectionError::BadConnection("the host does not say which server it is".into());
        let found = found.ok_or_else(bad)?;
        match (self.demand, found.durability) {
            (Demand::Nothing, _) | (Demand::Durable, Durability::Kept) => {}
            (Demand::Durable, lost) => {
                *self.refused_as() = Some(lost);
                return Err(ConnectionError::BadConnection(format!("the host has {} off", lost.setting())));
            }
        }
        let standing = Standing { host: at, server: Server { system: found.system, timeline: found.timeline } };
        self.admit(&standing)?;
        Ok(Opened { client, backend, standing })
    }

    /// Refuses a server that was deposed, and remembers the newest one.
    fn admit(&self, standing: &Standing) -> ConnectionResult<()> {
        let server = standing.server;
        let (mut deposed, mut before) = (None, None);
        self.newest.send_if_modified(|newest| {
            deposed = newest.filter(|newest| server.is_deposed_by(Some(*newest)));
            let is_new = deposed.is_none() && *newest != Some(server);
            if is_new {
                before = newest.replace(server);
            }
            is_new
        });
        if let Some(before) = before {
            let (timeline, before) = (server.timeline, before.timeline);
            tracing::warn!(host = standing.host, timeline, before, "another database server has taken over");
        }
        match deposed {
            None => Ok(()),
            Some(newest) => Err(ConnectionError::BadConnection(format!(
                "the host was deposed: it is on timeline {}, and another one on {} was found",
                server.timeline, newest.timeline
            ))),
        }
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
    // A connection that was given up counts until it has ended: where the network swallows everything, for ten seconds.
    one.keepalives_idle(Duration::from_secs(5));
    one.keepalives_interval(Duration::from_secs(2));
    one.keepalives_retries(3);
    one.tcp_user_timeout(Duration::from_secs(10));
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
