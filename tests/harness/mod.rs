//! Starts the real server on a free port, with its own real database, and a clock that the test controls.

/// The shared Postgres, and a database per test.
pub mod database;

/// A Citus cluster in place of the shared Postgres.
pub mod divided;

/// The three protocols, behind one interface.
pub mod wire;

/// Streams of revocations, on every protocol.
pub mod watch;

/// A database proxy that records and can be cut.
pub mod proxy;

/// Two Postgres servers with synchronous replication.
pub mod pair;

/// A proxy to a server that can be cut.
pub mod link;

/// A fake sessiond, scripted by the test.
pub mod fake_server;

/// Calls of a service and its users, other than signing in and out.
pub mod calls;

/// A collector of traces.
pub mod collector;

/// A receiver of back-channel deliveries.
pub mod receiver;

/// A certificate authority.
pub mod authority;

// A `sessiond serve` in a process of its own.
pub mod serving;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use sessiond::{
    app::{App, KeyCache},
    config::{ForwardedHeader, Limits, Listen, Rates, Web, network},
    edge::Server,
    pb::{
        CreateSessionRequest, CreateSessionResponse, RefreshSessionRequest, RefreshSessionResponse,
        RevokeCurrentRequest, RevokeCurrentResponse,
    },
    store::{Options, Privileges, Role, SessionWithEpochs, Store},
    telemetry::{
        Metrics,
        request::RequestObserver,
        trace::{FinishedSpan, Tracer},
    },
};
use sessiond_core::{
    clock::Clock,
    id::{Bucket, ProjectId, SessionId, UserId},
    session::Policy,
    token::{
        access::Issuer,
        bucket::BucketKey,
        sealing::{Sealer, SealingKey},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc::Receiver,
    task::JoinHandle,
};

pub use wire::{Refused, Wire};

pub const PROJECT: &str = "demo";
pub const ISSUER: &str = "https://sessions.example.org";
pub const REFRESH_GRACE: Duration = Duration::from_secs(60);
pub const REFUSED_REFRESH: &str = "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED";

/// Asserts that a call was refused for this reason.
#[macro_export]
macro_rules! assert_refused {
    ($call:expr, $reason:expr) => {
        match $call.await {
            Ok(_) => panic!("not refused, where {} was expected", $reason),
            Err(refused) => assert_eq!(refused.reason, $reason, "{refused:?}"),
        }
    };
}

/// A running server, with everything that a test may need.
pub struct Service {
    pub addr: SocketAddr,
    pub proxy_addr: SocketAddr,
    pub metrics_addr: SocketAddr,
    pub clock: Clock,
    pub app: App,
    pub store: Store,
    pub server_key: SecretString,
    pub wires: wire::Wires,
    pub database: database::Database,
    /// The spans of requests whose callers record them.
    spans: Mutex<Receiver<FinishedSpan>>,
    sealing_key: Arc<SealingKey>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl Service {
    pub async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// Starts with the given settings.
    pub async fn start_with(change: impl FnOnce(&mut Web, &mut Limits)) -> Self {
        let database = database::Database::create().await;
        let options = options(&database.url);
        Self::start_as(database, &options, rates(), change).await
    }

    /// Starts with these rate limits, behind a proxy that reports the client's address.
    pub async fn start_rated(rates: Rates) -> Self {
        let behind_a_proxy = |web: &mut Web, _: &mut Limits| {
            web.trusted_proxies = vec![network("127.0.0.1").expect("an address")];
        };
        let database = database::Database::create().await;
        let options = options(&database.url);
        Self::start_as(database, &options, rates, behind_a_proxy).await
    }

    /// Starts with these rate limits, and the given settings.
    pub async fn start_limited(rates: Rates, change: impl FnOnce(&mut Web, &mut Limits)) -> Self {
        let database = database::Database::create().await;
        let options = options(&database.url);
        Self::start_as(database, &options, rates, change).await
    }

    /// Stops the server, as SIGTERM does.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Starts on the given database, with the timeouts of production.
    pub async fn start_on(database: database::Database) -> Self {
        let options = hasty(&database.url);
        Self::start_as(database, &options, rates(), |_, _| {}).await
    }

    /// Starts on the given database, with these options.
    pub async fn start_by(database: database::Database, options: &Options) -> Self {
        Self::start_as(database, options, rates(), |_, _| {}).await
    }

    async fn start_as(
        database: database::Database,
        options: &Options,
        rates: Rates,
        change: impl FnOnce(&mut Web, &mut Limits),
    ) -> Self {
        let sealing_key = Arc::new(SealingKey::generate());
        let mut service = Self::serve(database, options, rates, sealing_key, change).await;
        service.server_key = create_project(&service.app, PROJECT).await;
        service
    }

    /// Another server on the same database, with its own clock, set to the present.
    pub async fn replica(&self) -> Self {
        self.replica_with(options(&self.database.url)).await
    }

    /// The same on a machine whose clock is wrong by this many microseconds. The clock runs, and the database's
    /// corrects it.
    pub async fn replica_wrong_by(&self, micros: i64) -> Self {
        self.replica_as(options(&self.database.url), Clock::skewed(micros)).await
    }

    /// The same through another connection to the database, with the timeouts of production.
    pub async fn replica_by(&self, url: &str) -> Self {
        self.replica_with(hasty(url)).await
    }

    /// The same with these options.
    pub async fn replica_with(&self, options: Options) -> Self {
        self.replica_as(options, Clock::frozen()).await
    }

    async fn replica_as(&self, options: Options, clock: Clock) -> Self {
        let database = database::Database { url: self.database.url.clone() };
        let sealing_key = Arc::clone(&self.sealing_key);
        let mut replica = Self::serve_by(clock, database, &options, rates(), sealing_key, |_, _| {}).await;
        replica.app.keys().reload().await.expect("reads the keys");
        replica.server_key = self.server_key.clone();
        replica
    }

    async fn serve(
        database: database::Database,
        options: &Options,
        rates: Rates,
        sealing_key: Arc<SealingKey>,
        change: impl FnOnce(&mut Web, &mut Limits),
    ) -> Self {
        Self::serve_by(Clock::frozen(), database, options, rates, sealing_key, change).await
    }

    async fn serve_by(
        clock: Clock,
        database: database::Database,
        options: &Options,
        rates: Rates,
        sealing_key: Arc<SealingKey>,
        change: impl FnOnce(&mut Web, &mut Limits),
    ) -> Self {
        let metrics = Metrics::default();
        let (tracer, spans) = Tracer::new(0.0, metrics.clone());
        let store = Store::new(&divided::by_next_node(options), metrics.clone()).expect("a good URL");
        store.correct(&clock).await.expect("the database tells the time");
        let keys = KeyCache::new(store.clone(), Sealer::new(&sealing_key, None));
        let app = App::new(store.clone(), keys, Issuer::new(ISSUER), clock.clone()).with_rates(&rates, metrics.clone());

        let (mut web, mut limits) = (web(), limits());
        change(&mut web, &mut limits);
        let any = "127.0.0.1:0".parse().expect("an address");
        let listen = Listen { listen: any, metrics_listen: any, proxy_listen: Some(any) };
        let server =
            Server::bind(app.clone(), &listen, &web, limits, metrics, |_| axum::Router::new()).await.expect("binds");
        let server = server.observed_by(&RequestObserver { tracer: Some(tracer), logs_requests: false });
        let (addr, metrics_addr) = (server.local_addr().expect("bound"), server.metrics_addr().expect("bound"));
        let proxy_addr = server.proxy_addr().expect("bound").expect("asked for");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(server.run(async { drop(stopped.await) }));
        let stop = Some(stop);
        // Until then it is not ready, and answers no question about a token.
        let started = Instant::now();
        while !app.feed().is_fresh() {
            assert!(started.elapsed() < patience(), "the feed is not read within {:?}", patience());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (wires, server_key) = (wire::Wires::to(addr), SecretString::default());
        Self {
            addr,
            proxy_addr,
            metrics_addr,
            clock,
            app,
            store,
            server_key,
            wires,
            database,
            spans: Mutex::new(spans),
            sealing_key,
            stop,
            server,
        }
    }

    /// Another process on the same database, with the same clock and its own key cache: an operator's command.
    pub fn operator(&self) -> App {
        let options = divided::by_next_node(&options(&self.database.url));
        let store = Store::new(&options, Metrics::default()).expect("a good URL");
        let keys = KeyCache::new(store.clone(), Sealer::new(&self.sealing_key, None));
        App::new(store, keys, Issuer::new(ISSUER), self.clock.clone())
    }

    pub async fn create_project(&self, name: &str) -> SecretString {
        create_project(&self.app, name).await
    }

    /// Signs a user in, and returns the device.
    pub async fn sign_in(&self, user: &str, device: &str) -> Device<'_> {
        let request = CreateSessionRequest {
            user_id: user.to_owned(),
            device_name: Some(device.to_owned()),
            ..CreateSessionRequest::default()
        };
        self.device(self.create(Wire::Grpc, request).await.expect("signs in"))
    }

    /// The same, if the database may be down.
    pub async fn try_sign_in(&self, user: &str) -> Option<Device<'_>> {
        let request = CreateSessionRequest { user_id: user.to_owned(), ..CreateSessionRequest::default() };
        self.create(Wire::Grpc, request).await.ok().map(|created| self.device(created))
    }

    /// Signs a user in, or fails.
    pub async fn sign_in_as(&self, user_id: String) -> Result<CreateSessionResponse, Refused> {
        self.create(Wire::Grpc, CreateSessionRequest { user_id, ..CreateSessionRequest::default() }).await
    }

    pub fn device(&self, created: CreateSessionResponse) -> Device<'_> {
        Device {
            service: self,
            session: created.session.expect("a session").id,
            access_token: created.access_token,
            refresh_token: created.refresh_token,
        }
    }

    pub async fn create(&self, wire: Wire, request: CreateSessionRequest) -> Result<CreateSessionResponse, Refused> {
        self.create_as(wire, &self.server_key, request).await
    }

    pub async fn create_as(
        &self,
        wire: Wire,
        key: &SecretString,
        request: CreateSessionRequest,
    ) -> Result<CreateSessionResponse, Refused> {
        self.wires.call(wire, "CreateSession", bearer(key.expose_secret()), &request).await
    }

    pub async fn revoke_current(&self, wire: Wire, headers: HeaderMap) -> Result<RevokeCurrentResponse, Refused> {
        self.wires.call(wire, "RevokeCurrent", headers, &RevokeCurrentRequest {}).await
    }

    pub async fn refresh(&self, wire: Wire, headers: HeaderMap) -> Result<RefreshSessionResponse, Refused> {
        self.wires.call(wire, "RefreshSession", headers, &RefreshSessionRequest::default()).await
    }

    /// The session's row in the database.
    pub async fn seen(&self, session: &str) -> Option<SessionWithEpochs> {
        let project = ProjectId::parse(PROJECT).expect("a name");
        self.store.session_find(project, SessionId::parse(session).expect("an id")).await.expect("answers")
    }

    /// The response of `/readyz`: its status, and the reasons.
    pub async fn readyz(&self) -> (StatusCode, String) {
        let response = self.wires.http(Method::GET, "/readyz", HeaderMap::new(), "").await;
        (response.status(), String::from_utf8_lossy(response.body()).into_owned())
    }

    /// The slot of a user of the project [`PROJECT`], for rows that a test writes itself.
    pub async fn slot_of(&self, user: &str) -> i16 {
        self.slots_of(PROJECT).await(user)
    }

    /// Users of a project, all of them in the first slot: only the requests of one slot share groups.
    pub async fn users_of_one_slot(&self, project: &str) -> impl Iterator<Item = String> {
        let (slot_of, first) = (self.slots_of(project).await, self.database.slots().await[0]);
        (0..).map(|n| format!("user-{n}")).filter(move |user| slot_of(user) == first)
    }

    /// The slot of each user of a project.
    async fn slots_of(&self, project: &str) -> impl Fn(&str) -> i16 + use<> {
        let key = format!("SELECT encode(bucket_key, 'hex') FROM projects WHERE id = '{project}'");
        let key = self.database.lines(&key).await.remove(0);
        let byte = |at| u8::from_str_radix(&key[at..at + 2], 16).expect("a byte");
        let key: Vec<u8> = (0..key.len()).step_by(2).map(byte).collect();
        let key = BucketKey::from_bytes(&key).expect("32 bytes");
        let slots = self.database.slots().await;
        move |user| {
            let bucket = usize::from(key.bucket(&UserId::parse(user).expect("a name")).number());
            slots[bucket * slots.len() / usize::from(Bucket::COUNT)]
        }
    }

    /// Waits until `/readyz` says that it is ready.
    pub async fn becomes_ready(&self) {
        eventually("it is ready", async || self.readyz().await.0 == StatusCode::OK).await;
    }

    /// The names of the spans that have ended since the last call, with their traces.
    pub fn spans(&self) -> Vec<(String, &'static str)> {
        let mut spans = self.spans.lock().expect("no panic");
        std::iter::from_fn(|| spans.try_recv().ok()).map(|span| (span.trace_id.to_string(), span.name)).collect()
    }

    /// The value of a metric; 0 if it does not exist yet.
    pub async fn metric(&self, name: &str) -> u64 {
        let page = self.metrics_page().await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// The metrics page.
    pub async fn metrics_page(&self) -> String {
        let mut socket = TcpStream::connect(self.metrics_addr).await.expect("connects");
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .expect("sends");
        let mut page = String::new();
        socket.read_to_string(&mut page).await.expect("answers");
        page
    }

    pub async fn is_live(&self, session: &str) -> bool {
        self.seen(session).await.is_some_and(|seen| seen.stored.session.is_live(self.clock.now(), seen.present))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A device with the tokens of one session, as a client stores them.
#[derive(Clone)]
pub struct Device<'a> {
    service: &'a Service,
    pub session: String,
    pub access_token: String,
    pub refresh_token: String,
}

impl Device<'_> {
    /// A copy of all tokens, as a thief would have.
    pub fn stolen_copy(&self) -> Self {
        self.clone()
    }

    /// Refreshes, and stores the new tokens.
    pub async fn refresh(&mut self) -> Result<(), Refused> {
        let tokens = self.refresh_without_keeping().await?;
        self.access_token = tokens.access_token;
        self.refresh_token = tokens.refresh_token;
        Ok(())
    }

    /// Refreshes, and loses the response.
    pub async fn refresh_without_keeping(&self) -> Result<RefreshSessionResponse, Refused> {
        self.service.refresh(Wire::Rest, refresh_token(&self.refresh_token)).await
    }

    pub async fn sign_out(&self) -> Result<RevokeCurrentResponse, Refused> {
        self.service.revoke_current(Wire::Rest, bearer(&self.access_token)).await
    }

    pub async fn is_signed_in(&self) -> bool {
        self.service.is_live(&self.session).await
    }
}

pub fn bearer(token: &str) -> HeaderMap {
    header("authorization", &format!("Bearer {token}"))
}

pub fn refresh_token(token: &str) -> HeaderMap {
    header("x-refresh-token", token)
}

pub fn header(name: &'static str, value: &str) -> HeaderMap {
    let value = HeaderValue::from_str(value).expect("a header value");
    HeaderMap::from_iter([(HeaderName::from_static(name), value)])
}

pub fn both(mut one: HeaderMap, other: HeaderMap) -> HeaderMap {
    one.extend(other);
    one
}

/// How long to wait for what must happen. What is done for one slot after another takes longer where there are many.
pub fn patience() -> Duration {
    let has_slots = |name: &str| std::env::var_os(name).is_some();
    let is_divided = has_slots("SESSIOND_TEST_SLOTS") || has_slots("SESSIOND_TEST_DATABASE_URL");
    Duration::from_secs(if is_divided { 120 } else { 20 })
}

/// Waits until the condition holds. Fails after a timeout.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let (started, patience) = (Instant::now(), patience());
    while !is_so().await {
        assert!(started.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The sealing key of the servers and commands that run as processes of their own.
pub const SEALING_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// For waits that are not about deadlines: a busy machine must not fail the test.
pub fn options(url: &str) -> Options {
    let wait = Duration::from_secs(20);
    Options { connect_timeout: wait, operation_timeout: wait, ..hasty(url) }
}

/// The default settings.
pub fn hasty(url: &str) -> Options {
    Options {
        url: url.to_owned().into(),
        password: None,
        listen_url: None,
        trusted_certificates: None,
        connections_max: 8,
        connect_timeout: Duration::from_millis(700),
        operation_timeout: Duration::from_millis(1_500),
        required_durability: sessiond::store::RequiredDurability::Any,
    }
}

pub fn web() -> Web {
    Web {
        issuer: ISSUER.to_owned(),
        base_paths: vec!["/".to_owned(), "/api/v1".to_owned()],
        cors_origins: vec![],
        cors_headers: vec![],
        allowed_hosts: vec![],
        trusted_proxies: vec![],
        forwarded_header: ForwardedHeader::XForwardedFor,
        jwks_of_all_projects: true,
    }
}

pub fn limits() -> Limits {
    Limits {
        request_timeout: Duration::from_secs(60),
        body_bytes_max: 1024 * 1024,
        header_bytes_max: 32 * 1024,
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(75),
        connection_age_max: Duration::from_secs(60 * 60),
        connections_max: 1_000,
        // All clients of a test have one address.
        address_connections_max: Some(1_000),
        requests_max: 1_000,
        address_requests_max: Some(1_000),
        arriving_bytes_max: 64 * 1024 * 1024,
        subscribers_max: 4_096,
        drain_delay: Duration::ZERO,
        staleness_max: Duration::from_secs(5),
        shutdown_timeout: Duration::from_secs(1),
    }
}

/// No limits: the test's clock stands still, and so would the buckets.
pub fn rates() -> Rates {
    Rates {
        address_rate: 0,
        address_burst: 1,
        project_rate: 0,
        project_burst: 1,
        server_key_rate: 0,
        server_key_burst: 1,
        verify_rate: 0,
        verify_burst: 1,
        user_rate: 0,
        user_burst: 1,
    }
}

async fn create_project(app: &App, name: &str) -> SecretString {
    let project = ProjectId::parse(name).expect("a name");
    let policy = Policy { refresh_grace: REFRESH_GRACE, ..Policy::default() };
    app.project_create(project.clone(), policy).await.expect("creates the project");
    app.keys().reload().await.expect("reads the keys");
    let privileges = Privileges { may_impersonate: true, ..Role::Service.into() };
    app.server_key_create(project, privileges).await.expect("makes a key").1
}

/// Serves on a free port, HTTP/1.1 and HTTP/2, until the test ends.
pub async fn serve_http(router: axum::Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(async move {
                // The client checks how a connection ends.
                drop(builder.serve_connection(hyper_util::rt::TokioIo::new(connection), service).await);
            });
        }
    });
    addr
}
