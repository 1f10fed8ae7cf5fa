//! One unit of work on one connection: what is done in it is committed, or the connection is thrown away.
//!
//! The transaction is opened and closed in plain SQL: diesel's own manager calls a connection with an open transaction
//! broken, and then a statement that the database refused could not be told from an outage.

use super::News;
use super::error::Error;
use super::feed::Audience;
use diesel_async::AsyncPgConnection;
use diesel_async::SimpleAsyncConnection as _;
use diesel_async::pooled_connection::PoolableConnection as _;
use diesel_async::pooled_connection::deadpool::Object;

/// A connection, lent for one operation. Consumed by [`Tx::commit`]; dropped before, the connection is closed, so that
/// neither an open transaction nor a statement still under way goes back to the pool.
pub struct Tx {
    connection: Option<Object<AsyncPgConnection>>,
    operation: &'static str,
    explicit: bool,
    /// What this has ended, to be told when it has committed.
    news: Vec<News>,
    /// Whether it has queued a delivery.
    rings: bool,
    audience: Audience,
}

/// A result with nothing left open behind it: only [`Tx::commit`] and [`Tx::rollback`] make one, so no operation can
/// answer before it has committed.
pub struct Done<T>(pub(super) T);

impl Tx {
    /// For a single statement, which Postgres commits by itself.
    pub(super) fn single(connection: Object<AsyncPgConnection>, operation: &'static str, audience: Audience) -> Self {
        Self { connection: Some(connection), operation, explicit: false, news: vec![], rings: false, audience }
    }

    /// Opens a transaction.
    ///
    /// # Errors
    ///
    /// When the connection turns out to be dead. Nothing was done: another one may be tried.
    pub(super) async fn begin(
        connection: Object<AsyncPgConnection>,
        operation: &'static str,
        audience: Audience,
    ) -> Result<Self, Error> {
        let connection = Some(connection);
        let mut tx = Self { connection, operation, explicit: true, news: vec![], rings: false, audience };
        let begun = tx.pg().batch_execute("BEGIN").await;
        begun.map_err(|error| tx.failed(error))?;
        Ok(tx)
    }

    /// Commits, and hands the result on.
    ///
    /// # Errors
    ///
    /// When the database did not confirm. It may have committed all the same: every operation is safe to repeat.
    pub async fn commit<T>(mut self, value: T) -> Result<Done<T>, Error> {
        if self.explicit {
            let done = self.pg().batch_execute("COMMIT").await;
            done.map_err(|error| self.failed(error))?;
        }
        // Back into the pool: whole again.
        drop(self.connection.take());
        // Before anyone is answered: whoever is told that a session is over finds it over here.
        self.audience.tell(std::mem::take(&mut self.news));
        if self.rings {
            self.audience.deliveries.notify_one();
        }
        Ok(Done(value))
    }

    /// Notes what this has ended: it is told once it is true, when it has committed.
    pub(super) fn will_tell(&mut self, news: impl IntoIterator<Item = News>) {
        self.news.extend(news);
    }

    /// Has the commit wake whoever delivers: before it there is nothing to be seen.
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
            let done = self.pg().batch_execute("ROLLBACK").await;
            done.map_err(|error| self.failed(error))?;
        }
        drop(self.connection.take());
        Ok(Done(value))
    }

    /// The connection, for a statement.
    pub(super) fn pg(&mut self) -> &mut AsyncPgConnection {
        self.connection.as_mut().expect("lent until it is committed")
    }

    /// Names a driver's error after what was being done.
    pub(super) fn failed(&mut self, error: diesel::result::Error) -> Error {
        let broken = self.pg().is_broken();
        Error::from_diesel(self.operation, error, broken)
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Object::take(connection));
        }
    }
}
