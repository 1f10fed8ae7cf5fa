//! Whether a database keeps acknowledged commits, and which server it is.

use diesel::QueryableByName;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;

use super::Store;
use super::error::Error;
use super::statement::statement;

/// What a database guarantees about acknowledged commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A commit is on disk.
    Kept,
    /// `fsync` is off: a crash of the machine loses commits, and may corrupt the database.
    FsyncOff,
    /// `synchronous_commit` is off, or `local` although there are standbys: a crash or a failover loses the last
    /// commits.
    AsynchronousCommit,
}

impl Durability {
    /// The setting to switch on; empty for [`Durability::Kept`].
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Kept => "",
            Self::FsyncOff => "fsync",
            Self::AsynchronousCommit => "synchronous_commit",
        }
    }

    fn of(fsync: &str, commit: &str, standbys: &str) -> Self {
        match (fsync, commit) {
            ("off", _) => Self::FsyncOff,
            (_, "off") => Self::AsynchronousCommit,
            // There are standbys, but commits do not wait for them: a failover would lose the last commits.
            (_, "local") if !standbys.is_empty() => Self::AsynchronousCommit,
            (_, _) => Self::Kept,
        }
    }
}

/// The durability that a server must offer to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredDurability {
    /// Acknowledged commits are kept; see [`Durability`].
    Durable,
    /// No requirement.
    Any,
}

impl Store {
    /// Reads the durability settings.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn read_durability(&self) -> Result<Durability, Error> {
        self.idempotent("durability", |mut tx| async move {
            let setting = |name: &str| sql::<Text>(&format!("current_setting('{name}')"));
            let settings = (setting("fsync"), setting("synchronous_commit"), setting("synchronous_standby_names"));
            let rows: Vec<(String, String, String)> = tx.load(diesel::select(settings)).await?;
            let bad = || Error::Inconsistent { table: "pg_settings", column: "setting", row: "fsync".to_owned() };
            let (fsync, commit, standbys) = rows.into_iter().next().ok_or_else(bad)?;
            let mut found = Durability::of(&fsync, &commit, &standbys);
            if tx.slots().is_divided() {
                let nodes = tx.rows(NodesDurability {}).await?;
                tx.slots().note_standbys(nodes.iter().any(|node| !node.standbys.is_empty()));
                let each = nodes.iter().map(|node| Durability::of(&node.fsync, &node.commit, &node.standbys));
                found = each.chain([found]).find(|node| *node != Durability::Kept).unwrap_or(Durability::Kept);
            }
            tx.commit(found).await
        })
        .await
    }
}

statement! {
    /// The settings of the nodes of a divided database, as their own transactions have them.
    NodesDurability -> NodeRow =
    "SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit,
         current_setting('synchronous_standby_names') AS standbys FROM slots"
}

#[derive(QueryableByName)]
struct NodeRow {
    #[diesel(sql_type = Text)]
    fsync: String,
    #[diesel(sql_type = Text)]
    commit: String,
    #[diesel(sql_type = Text)]
    standbys: String,
}

/// The facts about the server of a new connection.
pub(super) struct ServerFacts {
    pub(super) durability: Durability,
    /// What commits wait for: `synchronous_commit`, as found or set.
    pub(super) commit: String,
    /// The cluster's `system_identifier`.
    pub(super) system: u64,
    /// The timeline of its write-ahead log.
    pub(super) timeline: u32,
}

/// If durability is required, commits are synchronous by a setting of the connection, so that a reload of the server's
/// configuration does not change that. The stricter value `remote_apply` stays.
///
/// On a connection that a pooler shares, the setting must not persist; one of our own settings tells whether it is
/// shared. There it is set at the start of each transaction.
const COMMIT_SYNCHRONOUSLY: &str = "pg_catalog.set_config('synchronous_commit', \
     CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' \
     ELSE pg_catalog.current_setting('synchronous_commit') END, \
     pg_catalog.current_setting('sessiond.settings', true) IS DISTINCT FROM '1')";

/// Reads the server and its durability from a new connection, in one round trip. Returns `None` if the answer cannot be
/// parsed.
///
/// # Errors
///
/// Fails if the server does not answer.
pub(super) async fn examine(
    client: &Client,
    required_durability: RequiredDurability,
) -> Result<Option<ServerFacts>, tokio_postgres::Error> {
    let commit = match required_durability {
        RequiredDurability::Durable => COMMIT_SYNCHRONOUSLY,
        RequiredDurability::Any => "pg_catalog.current_setting('synchronous_commit')",
    };
    let query = format!(
        "SELECT pg_catalog.current_setting('fsync'), {commit}, pg_catalog.current_setting('synchronous_standby_names'), \
         (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
         pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)"
    );
    let answer = client.simple_query(&query).await?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.and_then(|row| {
        // Printed as a signed number.
        let system = u64::from_ne_bytes(row.get(3)?.parse::<i64>().ok()?.to_ne_bytes());
        let timeline = u32::from_str_radix(row.get(4)?, 16).ok()?;
        let (durability, commit) = (Durability::of(row.get(0)?, row.get(1)?, row.get(2)?), row.get(1)?.to_owned());
        Some(ServerFacts { durability, commit, system, timeline })
    }))
}
