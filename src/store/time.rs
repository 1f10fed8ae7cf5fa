//! The database's clock, to which every replica synchronises.

use diesel::dsl::sql;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::SmallInt;
use diesel::sql_types::Timestamptz;

use super::Store;
use super::Tx;
use super::columns::from_pg;
use super::error::Error;
use super::statement::statement;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;

/// How often the clock is read at the start: the fastest response is the most precise.
const READINGS: usize = 3;

impl Store {
    /// Synchronises a clock with the database's. Call it before the clock is used; from then on, the feed's reader
    /// keeps it synchronised.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn correct(&self, clock: &Clock) -> Result<(), Error> {
        for _ in 0..READINGS {
            let asked = clock.elapsed();
            let now = self.idempotent("clock", |mut tx| async move {
                let now = tx.time().await?;
                tx.commit(now).await
            });
            clock.observe(now.await?, asked);
        }
        Ok(())
    }
}

impl Tx {
    /// Returns the database's current time, not the start of the transaction.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn time(&mut self) -> Result<Timestamp, Error> {
        let rows = match self.slots().is_divided() {
            true => self.rows(SlotTime { slot: self.slots().all().start().to_column() }).await?,
            false => self.load(diesel::select(sql::<Timestamptz>("clock_timestamp()"))).await?,
        };
        let bad = || Error::Inconsistent { table: "clock", column: "clock_timestamp", row: "the only one".to_owned() };
        rows.into_iter().next().map(from_pg).ok_or_else(bad)
    }
}

statement! {
    /// The time of a divided database, whichever node is asked: that of the node with the first slot.
    SlotTime -> PgTimestamp as Timestamptz =
    "SELECT clock_timestamp() FROM slots WHERE slot = "
    [slot: i16 as SmallInt]
    ""
}
