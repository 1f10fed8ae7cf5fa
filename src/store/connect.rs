//! Ways to the database: one of several hosts, each with a deadline of its own, over TLS unless that is needless or the URL
//! says otherwise.
//!
//! Nothing that stays is set on a connection that a pooler gives to others too. What we rely on comes as start-up options, and
//! where those do not arrive, with the beginning of each transaction.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::AsyncPgConnection;
use diesel_async::SimpleAsyncConnection as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use secrecy::ExposeSecret as _;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_postgres::CancelToken;
use tokio_postgres::Client;
use tokio_postgres::Config;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::config::Host;
use tokio_postgres::config::SslMode;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Demand;
use super::Durability;
use super::Options;
use super::backend::Backend;
use super::backend::End;
use super::durability;
use super::refused::CannotConnect;
use super::refused::HostError;
use super::tls;
use super::url::DatabaseUrl;
use super::url::Mode;
use super::wire;
use super::wire::AsItIs;
use super::wire::Link;
use super::wire::StatementsLost;
use super::wire::Wire;

/// Why a database URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It does not parse. What it says is not repeated: there is a password in it.
    #[error("the database URL is not one that Postgres knows: postgres://user:password@host:port/database")]
    Malformed(#[source] tokio_postgres::Error),
    /// It names no host.
    #[error("the database URL names no host")]
    NoHost,
    /// What should be a host's name is none. It is not repeated: it may be the end of a password.
    #[error(
        "the database URL has a host that cannot be one. In a user or a password, write @ as %40, / as %2F, ? as %3F, # as \
         %23 and % as %25"
    )]
    Host,
    /// The mode of TLS is unknown.
    #[error("sslmode in the database URL must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    /// The file of certificates is not one.
    #[error("the file of trusted certificates cannot be read")]
    Certificates(#[source] rustls::pki_types::pem::Error),
    /// The certificates cannot be used.
    #[error("the trusted certificates cannot be used")]
    Tls(#[source] rustls::Error),
}

/// The half of a connection that must be driven for the other to get anywhere.
pub(super) type Connection = tokio_postgres::Connection<Wire, Wire>;

/// Where the database is.
pub(super) struct Target {
    /// One configuration per host: the driver would try them in order under a single deadline, and a primary that is
    /// paused rather than dead would hold up every connection.
    hosts: Vec<Place>,
    tls: MakeRustlsConnect,
    /// For each host, the TCP connect and the handshake together.
    deadline: Duration,
    settings: Settings,
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
    statements_lost: Arc<StatementsLost>,
}

/// One host.
struct Place {
    config: Config,
    host: Host,
    /// Where the host is, without asking for its name.
    address: Option<IpAddr>,
    port: u16,
    mode: Mode,
    /// Whether TLS begins without asking for it.
    direct: bool,
    /// Whether it refuses start-up options, as poolers do.
    takes_no_options: AtomicBool,
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
        Self::to(options.url.expose_secret(), options)
    }

    /// Reads the URL of the connection that listens, where it has one of its own.
    ///
    /// # Errors
    ///
    /// As [`Target::new`].
    pub(super) fn listening(options: &Options) -> Result<Option<Self>, UrlError> {
        options.listen_url.as_ref().map(|url| Self::to(url.expose_secret(), options)).transpose()
    }

    fn to(url: &str, options: &Options) -> Result<Self, UrlError> {
        let url = DatabaseUrl::parse(url)?;
        let all = &url.config;
        let hosts: Vec<Place> = (0..all.get_hosts().len()).map(|at| place(&url, at)).collect();
        if hosts.is_empty() {
            return Err(UrlError::NoHost);
        }
        let direct = all.get_ssl_negotiation() == SslNegotiation::Direct;
        Ok(Self {
            hosts,
            tls: tls::connector(&url, options.trusted_certificates.as_deref(), direct)?,
            // Time must be left for a second host.
            deadline: options.connect_timeout.min(options.operation_timeout / 2),
            settings: Settings::new(options.operation_timeout, url.search_path.as_deref()),
            demand: options.demand,
            preferred: AtomicUsize::new(NO_HOST),
            newest: watch::Sender::new(None),
            durability: watch::Sender::new(Durability::Kept),
            refused_as: Mutex::default(),
            statements_lost: Arc::default(),
        })
    }

    /// Connects to the host that was found last, or else to the one with the highest timeline of those that can be written to.
    ///
    /// # Errors
    ///
    /// Every host's error, when none answered.
    pub(super) async fn connect(&self) -> Result<Opened<AsyncPgConnection>, CannotConnect> {
        let Opened { client, backend, standing } = self.open(None).await?;
        let failed = |error: HostError| CannotConnect(vec![(self.hosts[standing.host].name(), error)]);
        // diesel sets the time zone and the encoding, which both are set already: on a connection that others use too, that
        // must not stay.
        let is_shared = backend.link().is_shared();
        if is_shared {
            client.batch_execute("BEGIN").await.map_err(|error| failed(error.into()))?;
        }
        let client = AsyncPgConnection::try_from(client).await.map_err(HostError::Setup);
        let mut client = client.map_err(failed)?;
        if is_shared {
            let ended = client.batch_execute("ROLLBACK").await.map_err(ConnectionError::CouldntSetupConfiguration);
            ended.map_err(|error| failed(HostError::Setup(error)))?;
        }
        Ok(Opened { client, backend, standing })
    }

    /// Connects as [`Target::connect`], for a connection without prepared statements of diesel's.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) async fn connect_alone(&self) -> Result<Opened<Client>, CannotConnect> {
        self.open(None).await
    }

    /// When a pooler last lost a named statement of ours.
    pub(super) fn statements_lost(&self) -> &StatementsLost {
        &self.statements_lost
    }

    /// Connects as [`Target::connect`], for a connection that only listens: `bell` receives the payloads of notifications.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) async fn connect_listening(&self, bell: mpsc::Sender<String>) -> Result<Opened<Client>, CannotConnect> {
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
            let _ = timeout(self.deadline, self.cancel(cancel, standing)).await;
            patience = (2 * patience).clamp(CANCEL_AGAIN.0, CANCEL_AGAIN.1);
        }
    }

    async fn cancel(&self, cancel: &CancelToken, standing: &Standing) -> Result<(), HostError> {
        let link = Arc::new(Link::new(Arc::clone(&self.statements_lost)));
        let wire = self.hosts[standing.host].reach(&self.tls, &link).await?;
        Ok(cancel.cancel_query_raw(wire, AsItIs).await?)
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

    async fn open(&self, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, CannotConnect> {
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

    async fn open_somewhere(&self, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, CannotConnect> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        if preferred == NO_HOST {
            return self.look(None, bell).await;
        }
        let failure = match self.ask(preferred, bell.clone()).await {
            Ok(opened) => return Ok(opened),
            Err(error) => CannotConnect(vec![(self.hosts[preferred].name(), error)]),
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
        // After its time, what has come is all there is.
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
            let rank = |opened: &Opened<Client>| (opened.standing.server.timeline, opened.standing.host == preferred);
            if found.as_ref().is_none_or(|found| rank(&answer) > rank(found)) {
                found = Some(answer);
            }
        }
        let opened = found.ok_or(CannotConnect(errors))?;
        // One that was asked later may have found a newer one meanwhile.
        let host = opened.standing.host;
        self.admit(&opened.standing).map_err(|error| CannotConnect(vec![(self.hosts[host].name(), error)]))?;
        self.preferred.store(host, Ordering::Relaxed);
        Ok(opened)
    }

    async fn ask(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, HostError> {
        timeout(self.deadline, self.examine(at, bell)).await.unwrap_or(Err(HostError::Late))
    }

    /// Connects to a host, and looks whether it is one to use.
    async fn examine(&self, at: usize, bell: Option<mpsc::Sender<String>>) -> Result<Opened<Client>, HostError> {
        let (client, backend) = self.start(&self.hosts[at], bell).await?;
        let is_direct = self.is_direct(&client).await?;
        let found = durability::examine(&client, self.demand).await?.ok_or(HostError::Unknown)?;
        if !is_direct {
            backend.link().share(self.settings.begin(self.demand, &found.commit).into());
        }
        match (self.demand, found.durability) {
            (Demand::Nothing, _) | (Demand::Durable, Durability::Kept) => {}
            (Demand::Durable, lost) => {
                *self.refused_as() = Some(lost);
                return Err(HostError::Unsafe(lost.setting()));
            }
        }
        let standing = Standing { host: at, server: Server { system: found.system, timeline: found.timeline } };
        self.admit(&standing)?;
        Ok(Opened { client, backend, standing })
    }

    /// Connects to a host, with our settings as start-up options if it takes them.
    async fn start(&self, place: &Place, bell: Option<mpsc::Sender<String>>) -> Result<(Client, Backend), HostError> {
        let options = self.settings.options(place.config.get_options());
        if place.takes_no_options.load(Ordering::Relaxed) {
            return self.start_with(place, None, bell).await;
        }
        match self.start_with(place, Some(options), bell.clone()).await {
            Err(HostError::Refused(refused)) if refused.may_be_for_the_options() => {
                let started = self.start_with(place, None, bell).await?;
                place.takes_no_options.store(true, Ordering::Relaxed);
                Ok(started)
            }
            outcome => outcome,
        }
    }

    async fn start_with(
        &self,
        place: &Place,
        options: Option<String>,
        bell: Option<mpsc::Sender<String>>,
    ) -> Result<(Client, Backend), HostError> {
        let link = Arc::new(Link::new(Arc::clone(&self.statements_lost)));
        let wire = place.reach(&self.tls, &link).await?;
        let mut config = place.config.clone();
        if let Some(options) = options {
            config.options(options);
        }
        let (client, connection) = config.connect_raw(wire, AsItIs).await?;
        Ok((client, Backend::drive(connection, link, bell)))
    }

    /// Refuses what cannot be used; whether the start-up options have arrived. If not, a pooler stands between.
    async fn is_direct(&self, client: &Client) -> Result<bool, HostError> {
        let facts = client.simple_query(FACTS).await?;
        let row = facts.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let fact = |at| row.and_then(|row| row.get(at)).unwrap_or_default();
        if fact(0) == "on" {
            return Err(HostError::ReadOnly);
        }
        if fact(1) != "UTF8" {
            return Err(HostError::Encoding(fact(1).to_owned()));
        }
        if fact(2).parse::<u32>().is_ok_and(|version| version < VERSION_MIN) {
            return Err(HostError::Version(fact(3).to_owned()));
        }
        Ok(fact(4) == SETTINGS_MARK)
    }

    /// Refuses a server that was deposed, and remembers the newest one.
    fn admit(&self, standing: &Standing) -> Result<(), HostError> {
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
            Some(newest) => Err(HostError::Deposed { timeline: server.timeline, newest: newest.timeline }),
        }
    }
}

/// What must be known of a new connection, in one round trip, without a named statement.
const FACTS: &str = "SELECT current_setting('transaction_read_only'), current_setting('server_encoding'), \
     current_setting('server_version_num'), current_setting('server_version'), current_setting('sessiond.settings', true)";

/// The first version with `xid8`, which the feed is ordered by.
const VERSION_MIN: u32 = 130_000;

/// A setting of our own.
const SETTINGS: &str = "sessiond.settings";

/// What it is where the start-up options have arrived.
const SETTINGS_MARK: &str = "1";

/// What every statement of ours relies on.
struct Settings {
    all: Vec<(&'static str, String)>,
    /// Begins a transaction where the settings did not arrive at the start; see [`Settings::begin`].
    begin: String,
}

impl Settings {
    /// A lock that we wait for in vain is given up by the server too, and a transaction whose client froze gives up its
    /// locks: nobody is left behind to block a sign-out.
    ///
    /// Each statement finds its rows by an index, whatever its parameters and however young the statistics; left to itself,
    /// Postgres plans one over an array on every call, which takes longer than to run it. What reads a whole table all the
    /// same, the keys, then looks dear enough to be compiled first: 200 ms of a processor, each time, for a few rows. So
    /// nothing is.
    ///
    /// The tables are those of one schema, whatever the role or the database say, and no temporary table hides them.
    fn new(operation_timeout: Duration, search_path: Option<&str>) -> Self {
        let millis = operation_timeout.as_millis();
        let mut search_path = search_path.unwrap_or("public").to_owned();
        if !search_path.contains("pg_temp") {
            search_path.push_str(", pg_temp");
        }
        let text = str::to_owned;
        let all = vec![
            ("search_path", search_path),
            ("default_transaction_isolation", text("read committed")),
            ("lock_timeout", millis.to_string()),
            ("idle_in_transaction_session_timeout", (2 * millis).to_string()),
            ("plan_cache_mode", text("force_generic_plan")),
            ("enable_seqscan", text("off")),
            ("jit", text("off")),
            // A commit that did not wait for its standbys is told from others by a warning alone (`backend`).
            ("client_min_messages", text("warning")),
            ("standard_conforming_strings", text("on")),
            ("timezone", text("UTC")),
            (SETTINGS, text(SETTINGS_MARK)),
        ];
        // No query, whose snapshot would be the transaction's for good.
        let mut begin = BEGIN.to_owned();
        for (name, value) in all.iter().filter(|(name, _)| *name != SETTINGS) {
            let items = if *name == "search_path" { items(value) } else { literal(value) };
            let _ = write!(begin, "; SET LOCAL {name} = {items}");
        }
        Self { all, begin }
    }

    /// Begins a transaction where the settings did not arrive at the start. What commits wait for is set too, to what was found
    /// on the connection or what we need, whichever is more.
    fn begin(&self, demand: Demand, commit: &str) -> String {
        match demand {
            Demand::Durable => format!("{}; SET LOCAL synchronous_commit = {}", self.begin, literal(commit)),
            Demand::Nothing => self.begin.clone(),
        }
    }

    /// As start-up options, behind those of the URL: of two, the last one counts.
    fn options(&self, given: Option<&str>) -> String {
        let mut options = given.unwrap_or_default().to_owned();
        for (name, value) in &self.all {
            let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
            let _ = write!(options, " -c {name}={value}");
        }
        options
    }
}

fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A list of names as SQL has it: those in double quotes stay as they are, all others are in lower case.
fn items(list: &str) -> String {
    let mut is_quoted = false;
    let split = |letter: char| {
        is_quoted ^= letter == '"';
        letter == ',' && !is_quoted
    };
    let item = |item: &str| match item.trim() {
        quoted if quoted.starts_with('"') => quoted.to_owned(),
        plain => literal(&plain.to_lowercase()),
    };
    list.split(split).map(item).collect::<Vec<_>>().join(", ")
}

/// Begins a transaction. Each statement of ours sees what was committed before it, whatever the database's default.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

impl Place {
    /// What it is called in messages.
    fn name(&self) -> String {
        match &self.host {
            Host::Tcp(name) => format!("{name}:{}", self.port),
            Host::Unix(directory) => format!("{}:{}", directory.display(), self.port),
        }
    }

    /// Opens the stream.
    async fn reach(&self, tls: &MakeRustlsConnect, link: &Arc<Link>) -> Result<Wire, HostError> {
        let name = match &self.host {
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", self.port));
                let socket = UnixStream::connect(path).await.map_err(HostError::Unreachable)?;
                return Ok(Wire::local(socket, link));
            }
            Host::Tcp(name) => name,
        };
        let socket = match self.address {
            Some(address) => TcpStream::connect((address, self.port)).await,
            None => TcpStream::connect((name.as_str(), self.port)).await,
        };
        let mut socket = socket.map_err(HostError::Unreachable)?;
        // Where these fail, it is slower, or found dead later.
        let _ = socket.set_nodelay(true);
        // A connection that was given up counts until it has ended: where the network swallows everything, for ten seconds.
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
        let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive.with_retries(3));
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(&socket).set_tcp_user_timeout(Some(Duration::from_secs(10)));
        let protected = match self.mode {
            Mode::Disable => false,
            _ if self.direct => true,
            _ => wire::offers_tls(&mut socket).await.map_err(HostError::Unreachable)?,
        };
        match (protected, self.mode) {
            (true, _) => Wire::protected(socket, tls, name, link).await.map_err(HostError::from_tls),
            (false, Mode::Disable | Mode::Prefer) => Ok(Wire::open(socket, link)),
            (false, Mode::Require | Mode::VerifyCa) => Err(HostError::NoTls),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.to_canonical().is_loopback())
}

/// One of the hosts.
fn place(url: &DatabaseUrl, at: usize) -> Place {
    let all = &url.config;
    let host = all.get_hosts()[at].clone();
    let address = all.get_hostaddrs().get(at).copied();
    // One port stands for all hosts, as in libpq.
    let port = all.get_ports().get(at).or_else(|| all.get_ports().last()).copied().unwrap_or(5432);
    let is_local = match (&host, address) {
        (Host::Unix(_), _) => true,
        (_, Some(address)) => address.to_canonical().is_loopback(),
        (Host::Tcp(name), None) => is_loopback(name),
    };
    // Whoever answers on an open network, and has no TLS, would be given what is meant for the database.
    let mode = url.mode.unwrap_or(if is_local { Mode::Prefer } else { Mode::Require });
    let direct = all.get_ssl_negotiation() == SslNegotiation::Direct;
    let mut config = all.clone();
    if config.get_application_name().is_none() {
        config.application_name("sessiond");
    }
    // The stream is made by us: for the driver, it is TLS already.
    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    Place { config, host, address, port, mode, direct, takes_no_options: AtomicBool::new(false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(url: &str) -> Vec<Mode> {
        let url = DatabaseUrl::parse(url).expect("a good URL");
        (0..url.config.get_hosts().len()).map(|at| place(&url, at).mode).collect()
    }

    /// Each host for itself.
    #[test]
    fn tls_is_required_of_every_host_but_this_machine() {
        let (required, preferred) = (Mode::Require, Mode::Prefer);
        for (url, expected) in [
            ("postgres://u:p@db1,db2/d", vec![required, required]),
            (
                "postgres://u:p@localhost,db2,127.0.0.2,[::1],10.0.0.1/d",
                vec![preferred, required, preferred, preferred, required],
            ),
            ("postgres://u:p@%2Frun%2Fpostgresql/d", vec![preferred]),
            ("host=db1,localhost hostaddr=127.0.0.1,10.0.0.1 user=u", vec![preferred, required]),
            ("postgres://u:p@localhost.example.org/d", vec![required]),
            ("postgres://u:p@db1/d?sslmode=prefer", vec![preferred]),
            ("postgres://u:p@db1/d?sslmode=disable", vec![Mode::Disable]),
            ("postgres://u:p@localhost/d?sslmode=verify-ca", vec![Mode::VerifyCa]),
        ] {
            assert_eq!(modes(url), expected, "{url}");
        }
    }

    #[test]
    fn settings_come_behind_the_urls_own() {
        let settings = Settings::new(Duration::from_millis(1_500), Some("\"a,b c\",Own"));
        let options = settings.options(Some("-c work_mem=8MB"));
        assert!(
            options.starts_with("-c work_mem=8MB -c search_path=\"a,b\\ c\",Own,\\ pg_temp -c default"),
            "{options}"
        );
        assert!(
            settings.begin.contains("; SET LOCAL search_path = \"a,b c\", 'own', 'pg_temp';"),
            "{}",
            settings.begin
        );
    }
}
