//! The facts about the database server that an operator wants to know: its settings, its connections, and what delays vacuum.

use std::str::FromStr;
use std::time::Duration;

use futures_util::future::try_join;
use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::SimpleQueryRow;

use super::Store;
use super::engine::TABLES;
use super::error::Error;

/// The facts about the database server. Names no user, no client and no query.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// `server_version`.
    pub version: String,
    /// Whether a pooler shares the connections.
    pub is_pooled: bool,
    /// Whether it is a worker of a divided database.
    pub is_worker: bool,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `synchronous_commit`.
    pub synchronous_commit: String,
    /// `synchronous_standby_names`.
    pub standby_names: String,
    /// The number of connected standbys.
    pub standbys: u32,
    /// How many of them commits wait for; `None` if the role may not see it.
    pub standbys_synchronous: Option<u32>,
    /// The connections.
    pub connections: ConnectionFacts,
    /// What delays vacuum.
    pub vacuum: VacuumFacts,
    /// The tables.
    pub tables: TableFacts,
}

/// The server's connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts {
    /// `max_connections` without the reserved ones, or the limit of the role or the database if that is lower.
    pub max: u32,
    /// How many more may be opened now.
    pub left: u32,
}

/// What delays vacuum.
#[derive(Clone, Debug)]
pub struct VacuumFacts {
    /// Whether the role sees the transactions of other roles (`pg_read_all_stats`).
    pub sees_all: bool,
    /// `autovacuum` and `track_counts`, without which it does nothing.
    pub autovacuum: bool,
    /// Tables of sessiond that autovacuum skips.
    pub skipped_tables: Vec<String>,
    /// Tables of sessiond with more dead rows than live ones, and at least 100,000.
    pub bloated_tables: Vec<String>,
    /// The age of the oldest open transaction in this database, and its process.
    pub oldest_transaction: Option<(Duration, u32)>,
    /// The age of the oldest prepared transaction in this database.
    pub oldest_prepared: Option<Duration>,
    /// Replication slots without a consumer.
    pub idle_slots: Vec<String>,
    /// The age of the database's oldest transaction id. At two thousand million, the server stops taking writes.
    pub frozen_age: u64,
}

/// Tables with fewer dead rows are not worth a warning.
const DEAD_ROWS_MIN: u32 = 100_000;

/// The tables of sessiond.
#[derive(Clone, Debug)]
pub struct TableFacts {
    /// Unlogged tables: a crash empties them.
    pub unlogged: Vec<String>,
    /// Tables with row security, which hides rows.
    pub row_security: Vec<String>,
    /// Triggers that are not ours, as `table.trigger`.
    pub triggers: Vec<String>,
    /// Tables that a subscription writes to.
    pub subscribed: Vec<String>,
    /// Installed extensions for replication with several writers.
    pub multi_writer_extensions: Vec<String>,
}

/// The tables of sessiond by their catalogue entries.
fn ours() -> String {
    TABLES.map(|table| format!("to_regclass('{table}')")).join(", ")
}

/// One row of named columns. Only catalogues that every role may read; of processes of other roles, a role without
/// `pg_read_all_stats` sees less.
fn query() -> String {
    let ours = ours();
    format!(
        "WITH me AS (SELECT oid, rolconnlimit FROM pg_roles WHERE rolname = current_user),
           db AS (SELECT oid, datconnlimit, age(datfrozenxid) AS frozen FROM pg_database WHERE datname = current_database()),
           used AS (SELECT count(*) AS server, count(*) FILTER (WHERE datid = (SELECT oid FROM db)) AS db,
               count(*) FILTER (WHERE usesysid = (SELECT oid FROM me)) AS role
             FROM pg_stat_activity WHERE datid IS NOT NULL),
           room AS (SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
               - coalesce(current_setting('reserved_connections', true)::int, 0) AS server),
           oldest AS (SELECT pid, xact_start FROM pg_stat_activity
             WHERE datid = (SELECT oid FROM db) AND pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
             ORDER BY xact_start LIMIT 1),
           ours AS (SELECT oid, relname, relpersistence, relrowsecurity, reloptions FROM pg_class WHERE oid IN ({ours}))
         SELECT current_setting('server_version') AS version,
           current_setting('full_page_writes') AS full_page_writes,
           current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('synchronous_standby_names') AS standby_names,
           (SELECT count(*) FROM pg_stat_replication) AS standbys,
           (SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) FROM pg_stat_replication) AS standbys_synchronous,
           least(room.server, nullif(me.rolconnlimit, -1), nullif(db.datconnlimit, -1)) AS connections_max,
           greatest(0, least(room.server - used.server, nullif(me.rolconnlimit, -1) - used.role,
             nullif(db.datconnlimit, -1) - used.db)) AS connections_left,
           pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
           current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS autovacuum,
           (SELECT string_agg(relname, ',' ORDER BY relname) FROM ours
             WHERE reloptions && ARRAY['autovacuum_enabled=false', 'autovacuum_enabled=off']) AS skipped_tables,
           (SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_stat_user_tables
             WHERE relid IN (SELECT oid FROM ours) AND n_dead_tup >= {DEAD_ROWS_MIN} AND n_dead_tup > n_live_tup) AS bloated_tables,
           (SELECT greatest(0, extract(epoch FROM clock_timestamp() - xact_start))::bigint FROM oldest) AS oldest_seconds,
           (SELECT pid FROM oldest) AS oldest_process,
           (SELECT extract(epoch FROM clock_timestamp() - min(prepared))::bigint FROM pg_prepared_xacts
             WHERE database = current_database()) AS prepared_seconds,
           (SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE NOT active) AS idle_slots,
           db.frozen AS frozen_age,
           (SELECT string_agg(relname, ',' ORDER BY relname) FROM ours WHERE relpersistence <> 'p') AS unlogged,
           (SELECT string_agg(relname, ',' ORDER BY relname) FROM ours WHERE relrowsecurity) AS row_security,
           (SELECT string_agg(relname || '.' || tgname, ',' ORDER BY relname, tgname) FROM pg_trigger JOIN ours ON tgrelid = ours.oid
             WHERE NOT tgisinternal) AS triggers,
           (SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_subscription_rel JOIN ours ON srrelid = ours.oid) AS subscribed,
           (SELECT string_agg(extname, ',' ORDER BY extname) FROM pg_extension
             WHERE extname IN ('bdr', 'pgactive', 'pglogical', 'spock')) AS multi_writer_extensions
         FROM me, db, used, room"
    )
}

/// The name of the operation.
const OPERATION: &str = "diagnose";

impl Store {
    /// Reads the facts, over a connection of its own.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn diagnose(&self) -> Result<Diagnosis, Error> {
        let away = |source| Error::Unavailable { operation: OPERATION, source: Some(source) };
        let opened = self.target.connect_alone().await.map_err(|error| away(error.into()))?;
        let query = query();
        let ask = try_join(opened.client.simple_query(&query), self.target.leads_to_worker(&opened.client));
        let answer = timeout(self.operation_timeout, ask).await;
        let (answer, is_worker) = answer.map_err(|_| Error::late(OPERATION))?.map_err(|error| away(error.into()))?;
        let row = answer.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(FactRow(row)),
            _ => None,
        });
        let bad = || Error::unavailable(OPERATION, "the database does not answer questions about itself");
        row.and_then(|row| row.diagnosis(opened.backend.state().is_shared(), is_worker)).ok_or_else(bad)
    }
}

/// A row of texts.
struct FactRow(SimpleQueryRow);

impl FactRow {
    /// Null if absent, or if it is not of this type.
    fn get<T: FromStr>(&self, name: &str) -> Option<T> {
        self.0.try_get(name).ok().flatten()?.parse().ok()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get::<String>(name).as_deref(), Some("t" | "on"))
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text: Option<String> = self.get(name);
        text.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
    }

    fn diagnosis(&self, is_pooled: bool, is_worker: bool) -> Option<Diagnosis> {
        let sees_all = self.flag("sees_all");
        let seconds = |name| self.get(name).map(Duration::from_secs);
        Some(Diagnosis {
            version: self.get("version")?,
            is_pooled,
            is_worker,
            full_page_writes: self.flag("full_page_writes"),
            synchronous_commit: self.get("synchronous_commit")?,
            standby_names: self.get("standby_names").unwrap_or_default(),
            standbys: self.get("standbys")?,
            standbys_synchronous: self.get("standbys_synchronous").filter(|_| sees_all),
            connections: ConnectionFacts { max: self.get("connections_max")?, left: self.get("connections_left")? },
            vacuum: VacuumFacts {
                sees_all,
                autovacuum: self.flag("autovacuum"),
                skipped_tables: self.list("skipped_tables"),
                bloated_tables: self.list("bloated_tables"),
                oldest_transaction: seconds("oldest_seconds").zip(self.get("oldest_process")),
                oldest_prepared: seconds("prepared_seconds"),
                idle_slots: self.list("idle_slots"),
                frozen_age: self.get("frozen_age")?,
            },
            tables: TableFacts {
                unlogged: self.list("unlogged"),
                row_security: self.list("row_security"),
                triggers: self.list("triggers"),
                subscribed: self.list("subscribed"),
                multi_writer_extensions: self.list("multi_writer_extensions"),
            },
        })
    }
}
