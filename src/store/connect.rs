//! Connects to the database: to the host that answered last, or else to the newest primary. Each host has its own
//! deadline.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::AsyncPgConnection;
use diesel_async::SimpleAsyncConnection as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_postgres::Client;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Options;
use super::backend::Backend;
use super::distribute::Layout;
use super::distribute::is_worker;
use super::host::Host;
use super::membership::Membership;
use super::primary::Primary;
use super::primary::PrimaryWatch;
use super::primary::ServerRef;
use super::refused::CannotConnect;
use super::refused::HostError;
use super::settings::Settings;
use super::settings::of_divided;
use super::slots::SlotCount;
use super::tls;
use super::url::DatabaseUrl;
use super::url::DatabaseUrlError;
use super::wire::AlreadyNegotiated;
use super::wire::Faults;
use super::wire::ServerStream;
use super::wire::WireState;

/// The hosts that may run the database.
pub(super) struct DatabaseHosts {
    /// One configuration per host: the driver would try them in order under a single deadline, and a primary that is
    /// paused rather than dead would delay every connection.
    hosts: Vec<Host>,
    tls: MakeRustlsConnect,
    /// The limit for the TCP connect and the handshake together, for each host.
    deadline: Duration,
    settings: Settings,
    primary: PrimaryWatch,
    /// The host that answered last, which the next connection tries first. [`NO_HOST`] at the start and after that host
    /// has failed: then all are asked.
    preferred: AtomicUsize,
    faults: Arc<Faults>,
    slots: SlotCount,
    membership: Membership,
}

/// No host is preferred.
const NO_HOST: usize = usize::MAX;

/// How long to wait for other hosts after the first answer, so that an unresponsive host does not delay every
/// connection.
const SECOND_ANSWER_WAIT: Duration = Duration::from_millis(150);

/// A new connection.
pub(super) struct Opened<C> {
    pub(super) client: C,
    pub(super) backend: Backend,
    pub(super) server: ServerRef,
}

impl DatabaseHosts {
    /// Parses a database URL, which may have several hosts.
    ///
    /// # Errors
    ///
    /// Fails if the URL or the certificate file is malformed.
    pub(super) fn new(options: &Options) -> Result<Self, DatabaseUrlError> {
        Self::to(options.url.expose_secret(), options)
    }

    /// Parses the separate URL of the listening connection, if there is one.
    ///
    /// # Errors
    ///
    /// See [`DatabaseHosts::new`].
    pub(super) fn listening(options: &Options) -> Result<Option<Self>, DatabaseUrlError> {
        options.listen_url.as_ref().map(|url| Self::to(url.expose_secret(), options)).transpose()
    }

    fn to(url: &str, options: &Options) -> Result<Self, DatabaseUrlError> {
        let mut url = DatabaseUrl::parse(url)?;
        if let Some(password) = &options.password {
            url.set_password(password.expose_secret())?;
        }
        let all = &url.config;
        let hosts = Host::all(&url);
        if hosts.is_empty() {
            return Err(DatabaseUrlError::NoHost);
        }
        let direct = all.get_ssl_negotiation() == SslNegotiation::Direct;
        Ok(Self {
            hosts,
            tls: tls::connector(&url, options.trusted_certificates.as_deref(), direct)?,
            // Leave time for a second host.
            deadline: options.connect_timeout.min(options.operation_timeout / 2),
            settings: Settings::new(options.operation_timeout, url.search_path.as_deref()),
            primary: PrimaryWatch::new(options.required_durability),
            preferred: AtomicUsize::new(NO_HOST),
            faults: Arc::default(),
            slots: SlotCount::default(),
            membership: Membership::default(),
        })
    }

    /// Connects to the host that answered last, or else to the writable host with the highest timeline.
    ///
    /// # Errors
    ///
    /// Returns every host's error if none could be used.
    pub(super) async fn connect(&self) -> Result<Opened<AsyncPgConnection>, CannotConnect> {
        let Opened { client, backend, server } = self.open(None).await?;
        let failed = |error: HostError| CannotConnect(vec![(self.hosts[server.host].name(), error)]);
        // diesel sets the time zone and the encoding, which are both set already; on a shared connection they must not
        // persist.
        let is_shared = backend.state().is_shared();
        if is_shared {
            client.batch_execute("BEGIN").await.map_err(|error| failed(error.into()))?;
        }
        let client = AsyncPgConnection::try_from(client).await.map_err(HostError::Setup);
        let mut client = client.map_err(failed)?;
        if is_shared {
            let ended = client.batch_execute("ROLLBACK").await.map_err(ConnectionError::CouldntSetupConfiguration);
            ended.map_err(|error| failed(HostError::Setup(error)))?;
        }
        Ok(Opened { client, backend, server })
    }

    /// Connects as [`DatabaseHosts::connect`], without diesel's prepared statements.
    ///
    /// # Errors
    ///
    /// See [`DatabaseHosts::connect`].
    pub(super) async fn connect_alone(&self) -> Result<Opened<Client>, CannotConnect> {
        self.open(None).await
    }

    /// The faults that the errors of statements have shown.
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Connects as [`DatabaseHosts::connect`], for a connection that only listens: `bell` receives the payloads of
    /// notifications.
    ///
    /// # Errors
    ///
    /// See [`DatabaseHosts::connect`].
    pub(super) async fn connect_listening(&self, bell: mpsc::Sender<String>) -> Result<Opened<Client>, CannotConnect> {
        self.open(Some(bell)).await
    }

    /// Asks all hosts, over new connections, which one is the newest primary. Connections to an older one are no longer
    /// used.
    pub(super) async fn find_primary(&self) {
        // The result does not matter here: the next connection asks again.
        drop(self.find_newest(None, None).await);
    }

    /// The newest primary, and its durability.
    pub(super) const fn primary(&self) -> &PrimaryWatch {
        &self.primary
    }

    /// How many slots the database has.
    pub(super) const fn slots(&self) -> &SlotCount {
        &self.slots
    }

    /// Whether the node that is asked belongs to the cluster.
    pub(super) const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Whether a connection leads to a worker of a divided database.
    ///
    /// # Errors
    ///
    /// Fails if the server does not answer.
    pub(super) async fn leads_to_worker(&self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        Ok(self.slots.is_divided() && is_worker(client).await?)
    }

    /// The time limit for one host.
    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Opens the stream to a host.
    pub(super) async fn reach(&self, host: usize) -> Result<(ServerStream, Arc<WireState>), HostError> {
        let state = Arc::new(WireState::new(Arc::clone(&self.faults)));
        let wire = self.hosts[host].reach(&self.tls, &state).await?;
        Ok((wire, state))
    }

    async fn open(&self, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, CannotConnect> {
        let opened = self.open_somewhere(bell).await;
        self.primary.note(opened.is_ok());
        opened
    }

    async fn open_somewhere(&self, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, CannotConnect> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        if preferred == NO_HOST {
            return self.find_newest(None, bell).await;
        }
        let failure = match self.ask(preferred, bell.clone()).await {
            Ok(opened) => return Ok(opened),
            Err(error) => CannotConnect(vec![(self.hosts[preferred].name(), error)]),
        };
        // The next connection does not try this host first either: it may have no time left for the others.
        let _ = self.preferred.compare_exchange(preferred, NO_HOST, Ordering::Relaxed, Ordering::Relaxed);
        if self.hosts.len() == 1 { Err(failure) } else { self.find_newest(Some(preferred), bell).await }
    }

    /// Asks all hosts except one concurrently, and returns the connection with the highest timeline.
    async fn find_newest(
        &self,
        except: Option<usize>,
        bell: Option<mpsc::Sender<String>>,
    ) -> Result<Opened<Client>, CannotConnect> {
        let others = (0..self.hosts.len()).filter(|at| Some(*at) != except);
        let ask = |at| {
            let bell = bell.clone();
            async move { (at, self.ask(at, bell).await) }
        };
        let mut asked: FuturesUnordered<_> = others.map(ask).collect();
        let (mut found, mut errors) = (None::<Opened<Client>>, vec![]);
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut until = Instant::now() + 2 * self.deadline;
        // Stop at the deadline, with the answers so far.
        while let Ok(Some((at, answer))) = timeout_at(until, asked.next()).await {
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    errors.push((self.hosts[at].name(), error));
                    continue;
                }
            };
            if found.is_none() {
                until = Instant::now() + SECOND_ANSWER_WAIT;
            }
            let rank = |opened: &Opened<Client>| (opened.server.timeline(), opened.server.host == preferred);
            if found.as_ref().is_none_or(|found| rank(&answer) > rank(found)) {
                found = Some(answer);
            }
        }
        let opened = found.ok_or(CannotConnect(errors))?;
        // A later request may have found a newer one meanwhile.
        let host = opened.server.host;
        self.primary.admit(&opened.server).map_err(|error| CannotConnect(vec![(self.hosts[host].name(), error)]))?;
        self.preferred.store(host, Ordering::Relaxed);
        Ok(opened)
    }

    async fn ask(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, HostError> {
        timeout(self.deadline, self.examine(at, bell)).await.unwrap_or(Err(HostError::Late))
    }

    /// Connects to a host, and checks that it can be used.
    async fn examine(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, HostError> {
        let (client, backend) = self.start(at, bell).await?;
        let Primary { server, found, is_direct, slots, layout } =
            self.primary.examine(at, &client, self.slots.of_divided()).await?;
        if let Some(slots) = slots {
            self.slots.note(slots)?;
        }
        if layout == Layout::Divided {
            self.slots.note_divided();
        }
        if !is_direct {
            let begin = self.settings.begin(self.primary.required_durability(), &found.commit, layout);
            backend.state().share(begin.into());
        } else if layout == Layout::Divided {
            client.batch_execute(&of_divided()).await?;
        }
        Ok(Opened { client, backend, server })
    }

    /// Connects to a host, with our settings as start-up options if it accepts them.
    async fn start(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> Result<(Client, Backend), HostError> {
        let host = &self.hosts[at];
        let options = self.settings.options(host.config.get_options());
        if host.takes_no_options.load(Ordering::Relaxed) {
            return self.start_with(at, None, bell).await;
        }
        match self.start_with(at, Some(options), bell.clone()).await {
            Err(HostError::Refused(refused)) if refused.may_be_for_the_options() => {
                let started = self.start_with(at, None, bell).await?;
                host.takes_no_options.store(true, Ordering::Relaxed);
                Ok(started)
            }
            outcome => outcome,
        }
    }

    async fn start_with(
        &self,
        at: usize,
        options: Option<String>,
        bell: Option<mpsc::Sender<String>>,
    ) -> Result<(Client, Backend), HostError> {
        let (wire, state) = self.reach(at).await?;
        let mut config = self.hosts[at].config.clone();
        if let Some(options) = options {
            config.options(options);
        }
        let (client, connection) = config.connect_raw(wire, AlreadyNegotiated).await?;
        Ok((client, Backend::drive(connection, state, bell)))
    }
}
