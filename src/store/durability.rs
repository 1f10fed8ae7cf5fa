//! Whether a database keeps what it has acknowledged, and which server it is.

use diesel::dsl::sql;
use diesel::sql_types::Text;
use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;

use super::Store;
use super::error::Error;

/// What a database promises about what it acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A commit is on disk.
    Kept,
    /// `fsync` is off: a crash of the machine loses commits, and maybe the database.
    FsyncOff,
    /// `synchronous_commit` is off, or `local` where there are standbys to wait for: a crash or a failover loses the last
    /// commits.
    AsynchronousCommit,
}

impl Durability {
    /// The setting that would have to be on; for [`Durability::Kept`], nothing.
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
            // There are standbys to wait for, and nobody waits: a failover would lose the last commits.
            (_, "local") if !standbys.is_empty() => Self::AsynchronousCommit,
            (_, _) => Self::Kept,
        }
    }
}

/// What a host must promise to be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredDurability {
    /// That what it acknowledges is kept; see [`Durability`].
    Durable,
    /// No requirement.
    Any,
}

impl Store {
    /// What the database promises about what it acknowledged.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn read_durability(&self) -> Result<Durability, Error> {
        self.idempotent("durability", |mut tx| async move {
            let setting = |name: &str| sql::<Text>(&format!("current_setting('{name}')"));
            let settings = (setting("fsync"), setting("synchronous_commit"), setting("synchronous_standby_names"));
            let rows: Vec<(String, String, String)> = tx.load(diesel::select(settings)).await?;
            let bad = || Error::Inconsistent { table: "pg_settings", column: "setting", row: "fsync".to_owned() };
            let (fsync, commit, standbys) = rows.into_iter().next().ok_or_else(bad)?;
            tx.commit(Durability::of(&fsync, &commit, &standbys)).await
        })
        .await
    }
}

/// What a new connection has found.
pub(super) struct ServerFacts {
    pub(super) durability: Durability,
    /// What commits wait for: `synchronous_commit`, as it was found or set.
    pub(super) commit: String,
    /// The cluster's `system_identifier`.
    pub(super) system: u64,
    /// The timeline of its log.
    pub(super) timeline: u32,
}

/// Where a host must keep what it acknowledges, commits are synchronous by the connection's own setting, so that a reload of
/// the server's configuration does not change that. What waits for more, `remote_apply`, stays.
///
/// On a connection that a pooler gives to others too, it must not stay: whether it is one, a setting of ours says. There it
/// comes with the beginning of each transaction.
const COMMIT_SYNCHRONOUSLY: &str = "pg_catalog.set_config('synchronous_commit', \
     CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' \
     ELSE pg_catalog.current_setting('synchronous_commit') END, \
     pg_catalog.current_setting('sessiond.settings', true) IS DISTINCT FROM '1')";

/// Asks a new connection which server it leads to and what that promises, in one round trip.
///
/// # Errors
///
/// When it does not answer. `None` when it answers something else.
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
        // It is printed as a signed number.
        let system = u64::from_ne_bytes(row.get(3)?.parse::<i64>().ok()?.to_ne_bytes());
        let timeline = u32::from_str_radix(row.get(4)?, 16).ok()?;
        let (durability, commit) = (Durability::of(row.get(0)?, row.get(1)?, row.get(2)?), row.get(1)?.to_owned());
        Some(ServerFacts { durability, commit, system, timeline })
    }))
}
