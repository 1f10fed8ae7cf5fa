//! One unit of work on one connection: what is done in it is committed, or the connection is thrown away.
//!
//! The transaction is opened and closed in plain SQL: diesel's own manager calls a connection with an open transaction
//! broken, and then a statement that the database refused could not be told from an outage.
//!
//! # What an acknowledgement rests on
//!
//! With synchronous replication, a commit is visible to others once it is on the primary's disk and nobody waits for a
//! standby any more: because the wait was cancelled, or because the primary has started again. What others have written may
//! therefore be lost with the primary. So nothing is acknowledged because of a row that somebody else wrote, unless a commit
//! of our own that came after it has waited. A commit waits only if its transaction has written to the log; where it has
//! changed nothing, it writes an empty message there ([`MARK`]). A transaction number alone is not enough: Postgres does not
//! wait for a transaction that logged nothing.

use diesel_async::AsyncPgConnection;
use diesel_async::RunQueryDsl as _;
use diesel_async::SimpleAsyncConnection as _;
use diesel_async::methods::ExecuteDsl;
use diesel_async::methods::LoadQuery;
use diesel_async::pooled_connection::PoolableConnection as _;

use super::error::Error;
use super::pool::LeasedConnection;
use super::publish::PublishedRevocation;
use super::publish::Publisher;
use super::statement::Statement;

/// Writes an empty message to the log, so that the commit waits. It changes nothing, locks nothing and leaves no dead row.
const MARK: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'sessiond', ''::text)";

/// The same, and the commit, in one round trip.
const MARK_AND_COMMIT: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'sessiond', ''::text); COMMIT";

/// A connection, lent for one operation. Consumed by [`Tx::commit`]; dropped before, the connection is closed, so that
/// neither an open transaction nor a statement still under way goes back to the pool.
pub struct Tx {
    lease: Option<LeasedConnection>,
    operation: &'static str,
    explicit: bool,
    /// Whether it has written to the log for certain: then its commit waits.
    has_written: bool,
    /// What this has ended, to be told when it has committed.
    revocations: Vec<PublishedRevocation>,
    /// Whether it has queued a delivery.
    rings: bool,
    publisher: Publisher,
}

/// A result with nothing left open behind it: only [`Tx::commit`] and [`Tx::rollback`] make one, so no operation can
/// answer before it has committed.
pub struct Done<T>(pub(super) T);

impl Tx {
    /// For a single statement, which Postgres commits by itself; or in a transaction, where our settings come with its
    /// beginning.
    ///
    /// # Errors
    ///
    /// As [`Tx::begin`].
    pub(super) async fn single(
        lease: LeasedConnection,
        operation: &'static str,
        publisher: Publisher,
    ) -> Result<Self, Error> {
        match lease.backend().state().is_shared() {
            true => Self::begin(lease, operation, publisher).await,
            false => Ok(Self::new(lease, operation, publisher)),
        }
    }

    fn new(lease: LeasedConnection, operation: &'static str, publisher: Publisher) -> Self {
        lease.backend().forget_warnings();
        lease.backend().state().take_error();
        let lease = Some(lease);
        Self { lease, operation, explicit: false, has_written: false, revocations: vec![], rings: false, publisher }
    }

    /// Opens a transaction.
    ///
    /// # Errors
    ///
    /// When the connection turns out to be dead. Nothing was done: another one may be tried.
    pub(super) async fn begin(
        lease: LeasedConnection,
        operation: &'static str,
        publisher: Publisher,
    ) -> Result<Self, Error> {
        let mut tx = Self { explicit: true, ..Self::new(lease, operation, publisher) };
        let begin = tx.lease().backend().state().begin();
        tx.batch(&begin).await?;
        Ok(tx)
    }

    /// Commits, and hands the result on.
    ///
    /// # Errors
    ///
    /// When the database did not confirm, or confirmed with a warning: the wait for its standbys was cancelled. It may have
    /// committed all the same: every operation is safe to repeat.
    pub async fn commit<T>(mut self, value: T) -> Result<Done<T>, Error> {
        if self.explicit {
            let commit = if self.has_written { "COMMIT" } else { MARK_AND_COMMIT };
            self.batch(commit).await?;
        }
        let confirmed = self.confirmed();
        self.give_back();
        // Before the caller is answered: once told that a session is over, it finds the session over here. Also when the commit is in
        // doubt: the rows are there for every reader of the feed, and to be told of them too early only refuses.
        self.publisher.publish(std::mem::take(&mut self.revocations));
        if self.rings {
            self.publisher.deliveries.notify_one();
        }
        confirmed.map(|()| Done(value))
    }

    /// Ends a transaction that has only read, and acknowledges nothing: it waits for nobody.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn end_reading<T>(mut self, value: T) -> Result<Done<T>, Error> {
        self.has_written = true;
        self.commit(value).await
    }

    /// Makes the answer of a single statement that changed nothing rest on a commit of our own; see the module.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub(super) async fn mark(&mut self) -> Result<(), Error> {
        self.batch(MARK).await?;
        self.has_written = true;
        Ok(())
    }

    /// Notes that this has changed a row, so that its commit waits anyway.
    pub(super) const fn note_written(&mut self) {
        self.has_written = true;
    }

    /// Whether it has changed a row, as far as was noted.
    pub(super) const fn has_written(&self) -> bool {
        self.has_written
    }

    /// Notes what this has ended: it is told once it is true, when it has committed.
    pub(super) fn will_publish(&mut self, revocations: impl IntoIterator<Item = PublishedRevocation>) {
        self.revocations.extend(revocations);
    }

    /// Makes the commit wake the worker that delivers: before the commit it would find nothing.
    pub(super) const fn ring_on_commit(&mut self) {
        self.rings = true;
    }

    /// Undoes everything, and hands the result on: for a refusal that must leave no trace.
    ///
    /// # Errors
    ///
    /// When the connection is lost; then too, nothing stays.
    pub async fn rollback<T>(mut self, value: T) -> Result<Done<T>, Error> {
        if self.explicit {
            self.batch("ROLLBACK").await?;
        }
        self.give_back();
        Ok(Done(value))
    }

    /// Tells its connection from every other one of this process.
    pub(super) fn connection(&self) -> u64 {
        self.lease.as_ref().map_or(0, |lease| lease.backend().number())
    }

    /// Runs a statement written by hand, and returns its rows.
    ///
    /// # Errors
    ///
    /// As [`Error`] says; the same for the next three.
    pub(super) fn rows<S>(&mut self, statement: S) -> impl Future<Output = Result<Vec<S::Row>, Error>> + Send
    where
        S: Statement + LoadQuery<'static, AsyncPgConnection, S::Row> + Send + 'static,
    {
        self.load(statement)
    }

    /// Runs a query, and returns its rows.
    #[expect(clippy::manual_async_fn, reason = "of an `async fn` that borrows, rustc cannot tell that it is `Send`")]
    pub(super) fn load<'a, 'query: 'a, Row, Q>(
        &'a mut self,
        query: Q,
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send + 'a
    where
        Q: LoadQuery<'query, AsyncPgConnection, Row> + Send + 'query,
        Row: Send + 'a,
    {
        async move {
            let rows = query.load(self.lease().pg()).await;
            rows.map_err(|error| self.failed(error))
        }
    }

    /// Runs a statement, and returns how many rows it has changed.
    #[expect(clippy::manual_async_fn, reason = "of an `async fn` that borrows, rustc cannot tell that it is `Send`")]
    pub(super) fn execute<'a, 'query: 'a, Q>(
        &'a mut self,
        query: Q,
    ) -> impl Future<Output = Result<usize, Error>> + Send + 'a
    where
        Q: ExecuteDsl<AsyncPgConnection> + Send + 'query,
    {
        async move {
            let changed = query.execute(self.lease().pg()).await;
            changed.map_err(|error| self.failed(error))
        }
    }

    /// Runs statements without parameters, in one round trip.
    pub(super) async fn batch(&mut self, statements: &str) -> Result<(), Error> {
        let done = self.lease().pg().batch_execute(statements).await;
        done.map_err(|error| self.failed(error))
    }

    /// Names a driver's error after what was being done.
    fn failed(&mut self, error: diesel::result::Error) -> Error {
        let broken = self.lease().pg().is_broken();
        let code = self.lease().backend().state().take_error();
        Error::from_diesel(self.operation, error, code, broken)
    }

    /// Whether what the database has confirmed is as durable as its settings say.
    fn confirmed(&mut self) -> Result<(), Error> {
        let operation = self.operation;
        let lease = self.lease();
        if lease.backend().has_warned() {
            return Err(Error::unavailable(
                operation,
                "the commit came with a warning: it may not have waited for a standby",
            ));
        }
        if !lease.is_current() {
            return Err(Error::unavailable(operation, "another server has taken over from the one that answered"));
        }
        Ok(())
    }

    fn lease(&mut self) -> &mut LeasedConnection {
        self.lease.as_mut().expect("lent until it is committed")
    }

    /// Back into the pool: whole again.
    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}
