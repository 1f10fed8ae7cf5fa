//! Persistence in Postgres: the only module that uses diesel, with one file per table. Absence is an `Option`; an
//! outage is [`Error::Unavailable`](crate::store::Error::Unavailable) and is never reported as absence.
//!
//! Locks are taken in a fixed order, session before user, so that transactions cannot deadlock. A transaction that
//! changes a project's keys or policy locks the project's row first.
//!
//! Time is passed in as a parameter, from `clock`. A write is acknowledged only after its commit: diesel-async's
//! `first` and `get_result` return at the first row, which is before the commit, so they are not used here (a test
//! checks this).

mod backend;
mod columns;
mod connect;
mod deliveries;
mod diagnosis;
mod distribute;
mod doorbell;
mod durability;
mod endpoints;
mod engine;
mod error;
mod events;
mod feed;
mod gate;
mod host;
mod inventory;
mod keys;
mod membership;
mod migrate;
mod pool;
mod pooler;
mod primary;
mod projects;
mod publish;
mod reap;
mod refused;
mod requests;
mod revocations;
mod schema;
mod server_keys;
mod sessions;
mod settings;
mod slots;
mod statement;
mod statistics;
mod sweep;
mod time;
mod tls;
mod tx;
mod url;
mod users;
mod wire;
mod writers;
mod writes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::time::Instant;
use tokio::time::timeout;

pub use deliveries::DeliveryClaim;
pub use deliveries::DueDelivery;
pub use deliveries::EndpointPosition;
pub use deliveries::OpenDelivery;
pub use deliveries::Revived;
pub use diagnosis::ConnectionFacts;
pub use diagnosis::Diagnosis;
pub use diagnosis::TableFacts;
pub use diagnosis::VacuumFacts;
pub use doorbell::Doorbell;
pub use durability::Durability;
pub use durability::RequiredDurability;
pub use endpoints::Endpoint;
pub use endpoints::EndpointAdded;
pub use endpoints::EndpointRemoved;
pub use error::Error;
pub use events::AuditEvent;
pub use events::EventKind;
pub use events::EventRecord;
pub use events::KeyKind;
pub use events::RecordOrder;
pub use events::RecordQuery;
pub use events::RefusedAttempt;
pub use events::RefusedCredential;
pub use feed::Extent;
pub use feed::FeedOrigin;
pub use feed::FeedPresent;
pub use feed::FeedReading;
pub use feed::FeedWriters;
pub use feed::PageStart;
pub use feed::PgSnapshot;
pub use feed::SlotBeat;
pub use feed::SlotSnapshot;
pub use feed::WriterEntry;
pub use inventory::Inventory;
pub use keys::KeyRow;
pub use keys::RESEAL_PAGE;
pub use keys::SealedKey;
pub use membership::Unlisted;
pub use migrate::MIGRATE_WAIT;
pub use migrate::MigrateError;
pub use pooler::ReachError;
pub use projects::Project;
pub use publish::FeedPlace;
pub use publish::PublishedRevocation;
pub use refused::CannotConnect;
pub use requests::RequestIdStatus;
pub use requests::RequestOutcome;
pub use revocations::BulkRevocation;
pub use revocations::RevocationRecord;
pub use server_keys::KeyProof;
pub use server_keys::Narrowing;
pub use server_keys::Privileges;
pub use server_keys::Role;
pub use server_keys::ServerKeyFacts;
pub use server_keys::ServerKeyRow;
pub use sessions::PageQuery;
pub use sessions::Revocation;
pub use sessions::Revoked;
pub use sessions::SESSIONS_REVOKE;
pub use sessions::SUMMARIES_MAX;
pub use sessions::SessionRotations;
pub use sessions::SessionSummary;
pub use sessions::SessionUpdate;
pub use sessions::SessionUse;
pub use sessions::SessionWithEpochs;
pub use sessions::StoredSession;
pub use sweep::AuditTable;
pub use sweep::EventLines;
pub use sweep::KeyTable;
pub use sweep::Progress;
pub use sweep::RevocationLines;
pub use sweep::SweepPosition;
pub use sweep::Swept;
pub use sweep::SweptDelivery;
pub use sweep::SweptKey;
pub use sweep::SweptLine;
pub use sweep::SweptRequest;
pub use sweep::SweptSession;
pub use sweep::SweptUser;
pub use sweep::Task;
pub use tx::Done;
pub use tx::Tx;
pub use url::DatabaseUrlError;
pub use url::has_password;
pub use writers::WriterId;
pub use writes::WritesRefused;

use backend::Backend;
use backend::ConnectionEnd;
use gate::Gate;
use pool::ConnectionPool;
use pool::LeasedConnection;
use publish::Publisher;

use crate::telemetry::Metrics;
use crate::telemetry::request;
use crate::telemetry::trace::Span;
use crate::telemetry::trace::SpanParent;

/// How to reach the database, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Options {
    /// `postgres://user:password@host:port,host:port/database`.
    pub url: SecretString,
    /// The password, if the URLs have none.
    pub password: Option<SecretString>,
    /// A separate URL for the listening connection: LISTEN needs a connection to Postgres itself, or through a pooler
    /// in session mode.
    pub listen_url: Option<SecretString>,
    /// Certificates to trust instead of the system's, in PEM.
    pub trusted_certificates: Option<PathBuf>,
    /// The maximum number of connections. Each concurrent sign-out needs one, for about a millisecond.
    pub connections_max: usize,
    /// How long one host may take to accept a connection.
    pub connect_timeout: Duration,
    /// The time limit of an operation, from waiting for a connection to the commit.
    pub operation_timeout: Duration,
    /// The durability that a server must offer to be used.
    pub required_durability: RequiredDurability,
}

/// The database.
#[derive(Clone)]
pub struct Store {
    pool: ConnectionPool,
    operation_timeout: Duration,
    gate: Gate,
    /// The hosts, for work that needs a connection outside the pool.
    target: Arc<connect::DatabaseHosts>,
    /// The hosts for the listening connection.
    listening: Arc<connect::DatabaseHosts>,
    /// Publishes revocations and queued deliveries after each commit.
    publisher: Publisher,
    metrics: Metrics,
}

/// An operation may wait for a connection for all but one third of its time limit. An operation that starts with little
/// time left is cut off halfway, which costs its connection.
const WAIT_SHARE: u32 = 3;

impl Store {
    /// Prepares the pool, without connecting.
    ///
    /// # Errors
    ///
    /// Fails if the URL or the certificates are malformed.
    pub fn new(options: &Options, metrics: Metrics) -> Result<Self, DatabaseUrlError> {
        let target = Arc::new(connect::DatabaseHosts::new(options)?);
        let listening = connect::DatabaseHosts::listening(options)?.map_or_else(|| Arc::clone(&target), Arc::new);
        let publisher = Publisher::default();
        let (connections_max, timeout) = (options.connections_max, options.operation_timeout);
        Ok(Self::over(target, listening, connections_max, timeout, publisher, metrics))
    }

    /// Returns a store for the same database with its own pool of at most `connections_max` connections: for work that
    /// must not wait behind requests.
    pub fn with_own_pool(&self, connections_max: usize) -> Self {
        let (target, publisher) = (Arc::clone(&self.target), self.publisher.clone());
        Self::over(
            target,
            Arc::clone(&self.listening),
            connections_max,
            self.operation_timeout,
            publisher,
            self.metrics.clone(),
        )
    }

    fn over(
        target: Arc<connect::DatabaseHosts>,
        listening: Arc<connect::DatabaseHosts>,
        connections_max: usize,
        operation_timeout: Duration,
        publisher: Publisher,
        metrics: Metrics,
    ) -> Self {
        let pool = ConnectionPool::new(Arc::clone(&target), connections_max);
        let gate = Gate::new(connections_max);
        Self { pool, operation_timeout, gate, target, listening, publisher, metrics }
    }

    /// Returns a store for the same database whose operations take precedence: for signing out. A quarter of the
    /// connections is reserved for it.
    #[must_use]
    pub fn urgent(&self) -> Self {
        Self { gate: self.gate.urgent(), ..self.clone() }
    }

    /// The time limit of an operation, from waiting for a connection to the commit.
    pub const fn operation_timeout(&self) -> Duration {
        self.operation_timeout
    }

    /// The metrics that count this store's operations.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Runs a transaction on its own task, so that a caller that hangs up does not stop it halfway. `operation` labels
    /// its metrics and errors.
    ///
    /// # Errors
    ///
    /// Returns the errors of `work`, and [`Error::Unavailable`] if the database is unavailable or the time limit is
    /// exceeded. An `Err` rolls back; so a refusal that changes something is a value, not an `Err`.
    pub async fn transact<T, F, W>(&self, operation: &'static str, work: F) -> Result<T, Error>
    where
        F: FnOnce(Tx) -> W + Send + 'static,
        W: Future<Output = Result<Done<T>, Error>> + Send,
        T: Send + 'static,
    {
        self.check_durable(operation)?;
        let (store, span) = (self.clone(), request::child_span(operation));
        let parent = span.as_ref().map(Span::parent);
        // On the heap, or every caller's future would contain it several times.
        let work: BoxFuture<'static, _> = Box::pin(async move { work(store.begin(operation, parent).await?).await });
        self.detached(operation, span, work).await
    }

    /// As [`Store::transact`], on the caller's task, which no request can drop.
    ///
    /// # Errors
    ///
    /// See [`Store::transact`].
    pub async fn transact_attached<T, F, W>(&self, operation: &'static str, work: F) -> Result<T, Error>
    where
        F: FnOnce(Tx) -> W,
        W: Future<Output = Result<Done<T>, Error>>,
    {
        self.check_durable(operation)?;
        let span = request::child_span(operation);
        let parent = span.as_ref().map(Span::parent);
        self.attached(operation, span, async { work(self.begin(operation, parent).await?).await }).await
    }

    /// Runs a single statement, and retries it on a new connection if a pooled one was dead. The statement must be
    /// idempotent.
    ///
    /// # Errors
    ///
    /// See [`Store::transact`].
    async fn idempotent<T, F, W>(&self, operation: &'static str, work: F) -> Result<T, Error>
    where
        F: Fn(Tx) -> W + Send + Sync + 'static,
        W: Future<Output = Result<Done<T>, Error>> + Send,
        T: Send + 'static,
    {
        let (store, span) = (self.clone(), request::child_span(operation));
        let parent = span.as_ref().map(Span::parent);
        // On the heap, as above.
        let work: BoxFuture<'static, _> = Box::pin(async move { store.single(operation, parent, work).await });
        self.detached(operation, span, work).await
    }

    /// Runs a single idempotent statement, as a part of `parent`.
    async fn single<T, F, W>(
        &self,
        operation: &'static str,
        parent: Option<SpanParent>,
        work: F,
    ) -> Result<Done<T>, Error>
    where
        F: Fn(Tx) -> W,
        W: Future<Output = Result<Done<T>, Error>>,
    {
        let (work, parent) = (&work, &parent);
        let attempt = |lease| async move {
            work(Tx::single(lease, operation, parent.clone(), self.publisher.clone()).await?).await
        };
        self.on_connection(operation, attempt).await
    }

    /// Begins a transaction. A dead connection is detected by this first statement, before anything is done.
    async fn begin(&self, operation: &'static str, parent: Option<SpanParent>) -> Result<Tx, Error> {
        let begin = |lease| Tx::begin(lease, operation, parent.clone(), self.publisher.clone());
        self.on_connection(operation, begin).await
    }

    /// Tries something idempotent on a connection, and again on another one if a pooled one was dead.
    async fn on_connection<T, F, W>(&self, operation: &'static str, attempt: F) -> Result<T, Error>
    where
        F: Fn(LeasedConnection) -> W,
        W: Future<Output = Result<T, Error>>,
    {
        loop {
            let lease = self.checkout(operation).await?;
            let doubtful = lease.is_reused().then(|| lease.backend().clone());
            match attempt(lease).await {
                // All pooled connections may have died with their server; a new connection is not suspect.
                Err(Error::Unavailable { .. }) if was_lost(doubtful).await => {}
                outcome => return outcome,
            }
        }
    }

    /// Runs `work` on its own task, so that it finishes even if the caller is dropped.
    async fn detached<T, W>(&self, operation: &'static str, span: Option<Span>, work: W) -> Result<T, Error>
    where
        W: Future<Output = Result<Done<T>, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let started = Instant::now();
        // On the caller's task: if the caller is gone, nothing starts.
        let permit = self.enter(operation).await?;
        let work = timeout(self.operation_timeout.saturating_sub(started.elapsed()), work);
        let task = tokio::spawn(Box::pin(async move {
            let _permit = permit;
            work.await
        }));
        let outcome = match task.await {
            Ok(Ok(outcome)) => outcome.map(|done| done.0),
            Ok(Err(_)) => Err(self.late(operation)),
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(Error::late(operation)),
            },
        };
        self.end(operation, started.elapsed(), span, outcome.is_ok());
        outcome
    }

    /// Runs `work` on the caller's task, which no request can drop.
    async fn attached<T, W>(&self, operation: &'static str, span: Option<Span>, work: W) -> Result<T, Error>
    where
        W: Future<Output = Result<Done<T>, Error>>,
    {
        let started = Instant::now();
        let _permit = self.enter(operation).await?;
        let outcome = timeout(self.operation_timeout.saturating_sub(started.elapsed()), work).await;
        let outcome = outcome.unwrap_or_else(|_| Err(self.late(operation))).map(|done| done.0);
        self.end(operation, started.elapsed(), span, outcome.is_ok());
        outcome
    }

    /// Counts an operation, and ends its span.
    fn end(&self, operation: &'static str, took: Duration, span: Option<Span>, ok: bool) {
        self.metrics.store_operation(operation, ok, took, span.as_ref().map(Span::exemplar));
        if let Some(mut span) = span.filter(|_| !ok) {
            span.fail();
        }
    }

    /// Waits for a connection to be free.
    async fn enter(&self, operation: &'static str) -> Result<gate::Permit, Error> {
        let entered = self.gate.enter(self.operation_timeout * (WAIT_SHARE - 1) / WAIT_SHARE).await;
        entered.map_err(|reason| {
            self.metrics.store_refused(reason);
            self.late(operation)
        })
    }

    async fn checkout(&self, operation: &'static str) -> Result<LeasedConnection, Error> {
        self.pool.lease().await.map_err(|source| Error::Unavailable { operation, source: Some(source.into()) })
    }

    /// The operation ran out of time; a recent connection failure may be the reason.
    fn late(&self, operation: &'static str) -> Error {
        self.pool.refusal().map_or(Error::late(operation), |refusal| Error::unavailable(operation, refusal))
    }

    /// Refuses to write while the database may lose acknowledged commits.
    fn check_durable(&self, operation: &'static str) -> Result<(), Error> {
        // Whatever durability is required: nobody wants rows in a copy that is no longer used.
        if !self.is_listed() {
            return Err(Error::unavailable(operation, Unlisted.to_string()));
        }
        match self.known_durability() {
            Durability::Kept => Ok(()),
            lost => Err(Error::unavailable(operation, format!("the database has {} off", lost.setting()))),
        }
    }

    /// The durability of the database when last checked, which is on every heartbeat of the feed; [`Durability::Kept`]
    /// if no durability is required.
    pub fn known_durability(&self) -> Durability {
        self.target.primary().durability()
    }

    /// Checks the database; call it periodically. `has_committed`: whether a commit succeeded since the last call. If
    /// so, reads the durability settings again; if not, asks all hosts, as another server may have taken over.
    pub async fn check_database(&self, has_committed: bool) {
        match (has_committed, self.target.primary().required_durability()) {
            (false, _) => self.target.find_primary().await,
            (true, RequiredDurability::Any) => {}
            (true, RequiredDurability::Durable) => {
                if let Ok(found) = self.read_durability().await {
                    self.target.primary().note_durability(found);
                }
            }
        }
    }

    /// The number of connections, including abandoned ones that are not closed yet, and how many of them are idle.
    pub fn pool_size(&self) -> (usize, usize) {
        self.pool.size()
    }
}

/// How long a connection may take to close after a failure: the error arrives before the end of the connection.
const CLOSE_WAIT: Duration = Duration::from_millis(50);

/// Whether a suspect connection turned out to be dead.
async fn was_lost(doubtful: Option<Backend>) -> bool {
    match doubtful {
        Some(backend) => timeout(CLOSE_WAIT, backend.ended()).await == Ok(ConnectionEnd::Lost),
        None => false,
    }
}
