//! Whether the database takes writes, as far as that can be seen without writing.

use std::time::Duration;

use diesel::dsl::sql;
use diesel::sql_types::Array;
use diesel::sql_types::Bool;
use diesel::sql_types::Text;

use super::Error;
use super::Store;
use super::distribute::Layout;
use super::distribute::layout_facts;
use super::distribute::layout_of;
use super::distribute::managed;
use super::engine;

/// Why the database takes no writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WritesRefused {
    /// Transactions are read-only: `default_transaction_read_only` is on, or it is a standby.
    #[error("it is read-only")]
    ReadOnly,
    /// The role lacks privileges on these tables.
    #[error("the role of sessiond lacks privileges on {0}")]
    Privileges(String),
    /// Citus distributes tables in another way than this server knows, so that some writes fail and others could be lost.
    #[error("its tables are distributed by Citus: {0}")]
    Distributed(String),
    /// A statement found no space on the disk, or could not write to it, within the last ten seconds.
    #[error("its disk is full or broken")]
    Disk,
}

/// How long the database counts as refusing writes after one found the disk full: longer than the interval between two
/// writes of any replica in use. Nothing else shows it: a small write still finds space in a page that exists.
const DISK_FULL_FOR: Duration = Duration::from_secs(10);

/// What serving needs: to read everything, and to write these. Tables that do not exist are reported as a lack of
/// migrations.
const WRITTEN: &str = "VALUES ('users', 'SELECT, INSERT, UPDATE'), ('sessions', 'SELECT, INSERT, UPDATE'),
     ('session_requests', 'SELECT, INSERT'), ('feed_writers', 'SELECT, INSERT, UPDATE'), ('revocations', 'SELECT, INSERT'), ('audit_events', 'SELECT, INSERT'),
     ('backchannel_deliveries', 'SELECT, INSERT, UPDATE'), ('backchannel_endpoints', 'SELECT'), ('projects', 'SELECT'),
     ('signing_keys', 'SELECT'), ('refresh_keys', 'SELECT'), ('server_keys', 'SELECT')";

impl Store {
    /// Checks that the database answers and takes writes. Returns why not, or `None` if it does.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn writes_refused(&self) -> Result<Option<WritesRefused>, Error> {
        let (is_read_only, lacking, has_citus) = self
            .idempotent("writes_refused", |mut tx| async move {
                let read_only = sql::<Bool>("current_setting('transaction_read_only') = 'on' OR pg_is_in_recovery()");
                let lacking = sql::<Array<Text>>(&format!(
                    "ARRAY(SELECT name FROM ({WRITTEN}) AS needed (name, privileges), unnest(string_to_array(privileges, ', '))
                       AS privilege WHERE NOT has_table_privilege(to_regclass(name), privilege) GROUP BY name ORDER BY name)"
                ));
                let has_citus = sql::<Bool>(engine::HAS_CITUS);
                let facts = diesel::select((read_only, lacking, has_citus));
                let mut rows: Vec<(bool, Vec<String>, bool)> = tx.load(facts).await?;
                tx.commit(rows.pop().unwrap_or_default()).await
            })
            .await?;
        // Connections that were open before do not notice that tables were distributed.
        let distributed = if has_citus { self.distributed_tables().await? } else { String::new() };
        let distributed = match layout_of(&distributed) {
            Ok(Layout::Single) => String::new(),
            Ok(Layout::Divided) if self.target.slots().is_divided() => String::new(),
            Ok(Layout::Divided) | Err(_) => managed(&distributed),
        };
        Ok(if is_read_only {
            Some(WritesRefused::ReadOnly)
        } else if !lacking.is_empty() {
            Some(WritesRefused::Privileges(lacking.join(", ")))
        } else if !distributed.is_empty() {
            Some(WritesRefused::Distributed(distributed))
        } else {
            self.target.faults().disk_full.within(DISK_FULL_FOR).then_some(WritesRefused::Disk)
        })
    }

    /// How Citus manages our tables; see [`layout_facts`].
    async fn distributed_tables(&self) -> Result<String, Error> {
        self.idempotent("distributed_tables", |mut tx| async move {
            let mut rows: Vec<String> = tx.load(diesel::select(sql::<Text>(&layout_facts()))).await?;
            tx.commit(rows.pop().unwrap_or_default()).await
        })
        .await
    }
}
