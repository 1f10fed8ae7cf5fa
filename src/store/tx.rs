//! A unit of work on one connection: either it is committed or the connection is dropped.
//!
//! Transactions are opened and closed in plain SQL: diesel's own manager marks a connection with an open transaction as
//! broken, so a rejected statement would look like an outage.
//!
//! # When a write is acknowledged
//!
//! With synchronous replication, others see a commit as soon as the primary has written it and nothing waits for a
//! standby any more: also when the wait was cancelled, or the primary has restarted. So rows that others wrote may be
//! lost with the primary. Therefore nothing is acknowledged on the basis of another's row, unless a later commit of our
//! own has waited for the standbys. A commit waits only if its transaction has written to the write-ahead log; a
//! transaction that changed nothing writes an empty message there ([`MARK`]). A transaction number alone is not enough:
//! Postgres does not wait for a transaction that logged nothing.
//!
//! In a divided database the same holds for the nodes of the slots that were used: the mark is written there, after the commit.

use std::collections::BTreeSet;
use std::sync::Mutex;

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
use super::slots::Slot;
use super::slots::SlotCount;
use super::statement::Statement;
use super::writers::Writer;
use super::writers::Writers;
use crate::telemetry::trace::Span;
use crate::telemetry::trace::SpanKind;
use crate::telemetry::trace::SpanParent;

/// Writes an empty message to the write-ahead log, so that the commit waits. Changes nothing, locks nothing and leaves
/// no dead row.
const MARK: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'sessiond', ''::text)";

/// The same with the commit, in one round trip.
const MARK_AND_COMMIT: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'sessiond', ''::text); COMMIT";

/// Writes such a message at the nodes of slots.
fn mark_at(slots: &BTreeSet<Slot>) -> String {
    let slots: Vec<String> = slots.iter().map(|slot| slot.to_column().to_string()).collect();
    format!("{MARK} FROM slots WHERE slot IN ({})", slots.join(", "))
}

/// A connection leased for one operation. [`Tx::commit`] consumes it; if it is dropped before, the connection is
/// closed, so that neither an open transaction nor a running statement returns to the pool.
pub struct Tx {
    lease: Option<LeasedConnection>,
    operation: &'static str,
    /// The span of the operation; `None` if it is not sampled.
    parent: Option<SpanParent>,
    explicit: bool,
    /// Whether it has certainly written to the write-ahead log, so that its commit waits.
    has_written: bool,
    /// The revocations to publish after the commit.
    revocations: Vec<PublishedRevocation>,
    /// The connection's writers of the feed, once one is used. Put back after a confirmed commit only.
    writers: Option<Writers>,
    /// Whether it has queued a delivery.
    rings: bool,
    /// Whether it only read, so that no answer depends on its commit.
    only_reads: bool,
    /// The slots that it uses, if it needs marks at their nodes.
    slots: Mutex<BTreeSet<Slot>>,
    publisher: Publisher,
}

/// The result of a finished operation. Only [`Tx::commit`] and [`Tx::rollback`] create one, so no operation can respond
/// before it has committed.
pub struct Done<T>(pub(super) T);

impl Tx {
    /// For a single statement, which Postgres commits by itself. On a shared connection it begins a transaction, which
    /// applies our settings.
    ///
    /// # Errors
    ///
    /// See [`Tx::begin`].
    pub(super) async fn single(
        lease: LeasedConnection,
        operation: &'static str,
        parent: Option<SpanParent>,
        publisher: Publisher,
    ) -> Result<Self, Error> {
        match lease.backend().state().is_shared() {
            true => Self::begin(lease, operation, parent, publisher).await,
            false => Ok(Self::new(lease, operation, parent, publisher)),
        }
    }

    fn new(lease: LeasedConnection, operation: &'static str, parent: Option<SpanParent>, publisher: Publisher) -> Self {
        lease.backend().forget_warnings();
        lease.backend().state().take_error();
        Self {
            lease: Some(lease),
            operation,
            parent,
            explicit: false,
            has_written: false,
            revocations: vec![],
            writers: None,
            rings: false,
            only_reads: false,
            slots: Mutex::default(),
            publisher,
        }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    ///
    /// Fails if the connection is dead. Nothing was done: the caller may retry on another connection.
    pub(super) async fn begin(
        lease: LeasedConnection,
        operation: &'static str,
        parent: Option<SpanParent>,
        publisher: Publisher,
    ) -> Result<Self, Error> {
        let mut tx = Self { explicit: true, ..Self::new(lease, operation, parent, publisher) };
        let begin = tx.lease().backend().state().begin();
        tx.batch(&begin).await?;
        Ok(tx)
    }

    /// Commits, and returns `value`.
    ///
    /// # Errors
    ///
    /// Fails if the database does not confirm, or confirms with a warning: the wait for its standbys was cancelled. It
    /// may have committed nevertheless; every operation is safe to retry.
    pub async fn commit<T>(mut self, value: T) -> Result<Done<T>, Error> {
        let mut marked = Ok(());
        if self.explicit {
            let needs_mark = !self.has_written && !self.slots().is_divided();
            self.batch(if needs_mark { MARK_AND_COMMIT } else { "COMMIT" }).await?;
        }
        let writers = self.writers.take();
        if self.explicit && !self.only_reads {
            marked = self.mark_nodes().await;
        }
        let confirmed = marked.and_then(|()| self.confirmed());
        // Also if the commit is in doubt: it is visible, and only a failover may lose it.
        if let Some(writers) = writers {
            self.lease().put_writers(writers);
        }
        self.give_back();
        // Before the caller gets its response, so that it finds the session revoked on this replica. Also if the commit
        // is in doubt: every reader of the feed can see the rows, and publishing too early only causes refusals.
        self.publisher.publish(std::mem::take(&mut self.revocations));
        if self.rings {
            self.publisher.deliveries.notify_one();
        }
        confirmed.map(|()| Done(value))
    }

    /// Ends a read-only transaction, which acknowledges nothing and waits for no standby.
    ///
    /// # Errors
    ///
    /// Fails if the connection is lost.
    pub async fn end_reading<T>(mut self, value: T) -> Result<Done<T>, Error> {
        self.has_written = true;
        self.only_reads = true;
        self.commit(value).await
    }

    /// Makes the result of a single statement that changed nothing depend on a commit of our own; see the module.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub(super) async fn mark(&mut self) -> Result<(), Error> {
        match self.slots().is_divided() {
            true => self.mark_nodes().await?,
            false => self.batch(MARK).await?,
        }
        self.has_written = true;
        Ok(())
    }

    /// Writes marks at the nodes of the slots that were used, if their commits may have waited for a standby. Citus passes on
    /// the warning of a cancelled wait for single statements only, and hides that of a transaction's commit.
    ///
    /// # Errors
    ///
    /// Fails if a node does not confirm: then what was committed is in doubt.
    async fn mark_nodes(&mut self) -> Result<(), Error> {
        let slots = std::mem::take(self.slots.get_mut().expect("no one panics while holding it"));
        if slots.is_empty() { Ok(()) } else { self.batch(&mark_at(&slots)).await }
    }

    /// Notes that a slot is used.
    pub(super) fn note_slot(&self, slot: Slot) {
        if self.slots().needs_marks() {
            self.slots.lock().expect("no one panics while holding it").insert(slot);
        }
    }

    /// Marks that a row was changed, so that the commit waits anyway.
    pub(super) const fn note_written(&mut self) {
        self.has_written = true;
    }

    /// Whether a row was changed, as far as marked.
    pub(super) const fn has_written(&self) -> bool {
        self.has_written
    }

    /// Adds revocations to publish after the commit.
    pub(super) fn will_publish(&mut self, revocations: impl IntoIterator<Item = PublishedRevocation>) {
        self.revocations.extend(revocations);
    }

    /// The connection's writer of the feed for a slot; opens one if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub(super) async fn writer(&mut self, slot: Slot) -> Result<Writer, Error> {
        if self.writers.is_none() {
            self.writers = Some(self.lease().take_writers());
        }
        let known = self.writers.as_ref().and_then(|writers| writers.get(&slot).copied());
        let writer = match known.filter(Writer::is_usable) {
            Some(writer) => writer,
            None => self.writer_open(slot).await?,
        };
        self.writers.get_or_insert_default().insert(slot, writer);
        Ok(writer)
    }

    /// Records that the next numbers of a slot's writer are used.
    pub(super) fn note_numbers(&mut self, slot: Slot, count: u32) {
        let writer = self.writers.as_mut().and_then(|writers| writers.get_mut(&slot));
        if let Some(writer) = writer.filter(|_| count > 0) {
            writer.advance(count);
        }
    }

    /// How many slots the database has.
    pub(super) fn slots(&self) -> &SlotCount {
        self.lease.as_ref().expect("leased until the commit").slots()
    }

    /// Wakes the delivery worker after the commit: before, it would find nothing.
    pub(super) const fn ring_on_commit(&mut self) {
        self.rings = true;
    }

    /// Rolls back, and returns `value`: for a refusal that must leave no trace.
    ///
    /// # Errors
    ///
    /// Fails if the connection is lost; the transaction is rolled back then, too.
    pub async fn rollback<T>(mut self, value: T) -> Result<Done<T>, Error> {
        if self.explicit {
            self.batch("ROLLBACK").await?;
        }
        self.give_back();
        Ok(Done(value))
    }

    /// Whether its statements are one transaction; otherwise each commits by itself.
    pub(super) const fn is_explicit(&self) -> bool {
        self.explicit
    }

    /// The operation's name.
    pub(super) const fn operation(&self) -> &'static str {
        self.operation
    }

    /// The connection's number, unique within this process.
    pub(super) fn connection(&self) -> u64 {
        self.lease.as_ref().map_or(0, |lease| lease.backend().number())
    }

    /// Runs a hand-written statement, and returns its rows.
    ///
    /// # Errors
    ///
    /// See [`Error`]; the same for the next three methods.
    pub(super) fn rows<S>(&mut self, statement: S) -> impl Future<Output = Result<Vec<S::Row>, Error>> + Send
    where
        S: Statement + LoadQuery<'static, AsyncPgConnection, S::Row> + Send + 'static,
    {
        self.load_as(S::NAME, statement)
    }

    /// Runs a query, and returns its rows.
    pub(super) fn load<'a, 'query: 'a, Row, Q>(
        &'a mut self,
        query: Q,
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send + 'a
    where
        Q: LoadQuery<'query, AsyncPgConnection, Row> + Send + 'query,
        Row: Send + 'a,
    {
        self.load_as("SELECT", query)
    }

    #[expect(clippy::manual_async_fn, reason = "of an `async fn` that borrows, rustc cannot tell that it is `Send`")]
    fn load_as<'a, 'query: 'a, Row, Q>(
        &'a mut self,
        name: &'static str,
        query: Q,
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send + 'a
    where
        Q: LoadQuery<'query, AsyncPgConnection, Row> + Send + 'query,
        Row: Send + 'a,
    {
        async move {
            let span = self.statement(name);
            let rows = query.load(self.lease().pg()).await;
            end(span, rows.is_err());
            rows.map_err(|error| self.failed(error))
        }
    }

    /// Runs a statement, and returns the number of changed rows.
    #[expect(clippy::manual_async_fn, reason = "of an `async fn` that borrows, rustc cannot tell that it is `Send`")]
    pub(super) fn execute<'a, 'query: 'a, Q>(
        &'a mut self,
        query: Q,
    ) -> impl Future<Output = Result<usize, Error>> + Send + 'a
    where
        Q: ExecuteDsl<AsyncPgConnection> + Send + 'query,
    {
        async move {
            let span = self.statement("WRITE");
            let changed = query.execute(self.lease().pg()).await;
            end(span, changed.is_err());
            changed.map_err(|error| self.failed(error))
        }
    }

    /// Runs statements without parameters, in one round trip.
    pub(super) async fn batch(&mut self, statements: &str) -> Result<(), Error> {
        let span = self.statement(name_of_batch(statements));
        let done = self.lease().pg().batch_execute(statements).await;
        end(span, done.is_err());
        done.map_err(|error| self.failed(error))
    }

    /// Begins the span of a statement; `None` if the operation is not sampled.
    fn statement(&self, name: &'static str) -> Option<Span> {
        let mut span = self.parent.as_ref()?.child(self.operation, SpanKind::Client);
        span.set("db.system.name", "postgresql");
        span.set("db.query.summary", name);
        Some(span)
    }

    /// Adds the operation to a driver's error.
    fn failed(&mut self, error: diesel::result::Error) -> Error {
        let broken = self.lease().pg().is_broken();
        // A failed transaction may be committed nevertheless, which Postgres turns into a rollback: its numbers are not used.
        self.writers = None;
        let code = self.lease().backend().state().take_error();
        Error::from_diesel(self.operation, error, code, broken, self.slots().is_divided())
    }

    /// Checks that a confirmed commit is as durable as required.
    fn confirmed(&mut self) -> Result<(), Error> {
        let operation = self.operation;
        let lease = self.lease();
        if lease.backend().has_warned() {
            return Err(Error::unavailable(
                operation,
                "the database confirmed the commit with a warning: it may not have waited for a standby",
            ));
        }
        if !lease.is_current() {
            return Err(Error::unavailable(operation, "another database server has taken over during the operation"));
        }
        Ok(())
    }

    fn lease(&mut self) -> &mut LeasedConnection {
        self.lease.as_mut().expect("leased until the commit")
    }

    /// Returns the connection to the pool.
    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

/// What a batch of statements does, for traces.
fn name_of_batch(statements: &str) -> &'static str {
    match statements {
        mark if mark.starts_with(MARK) && mark != MARK_AND_COMMIT => "MARK",
        MARK_AND_COMMIT | "COMMIT" => "COMMIT",
        "ROLLBACK" => "ROLLBACK",
        begin if begin.contains("BEGIN") => "BEGIN",
        _ => "BATCH",
    }
}

/// Ends the span of a statement.
fn end(span: Option<Span>, has_failed: bool) {
    if let Some(mut span) = span.filter(|_| has_failed) {
        span.fail();
    }
}
