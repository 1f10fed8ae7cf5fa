//! Whether the node that is asked still belongs to the cluster of a divided database.
//!
//! A worker that was removed or disabled keeps its tables and its list of nodes, and goes on answering. But nobody tells it of the
//! moves of shards that follow: it would write to copies that are dropped a little later. Only the coordinator knows.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use diesel::QueryableByName;
use diesel::sql_types as sql;

use super::Store;
use super::error::Error;
use super::statement::statement;

/// The coordinator of a divided database does not list the node that is asked.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the coordinator of the database does not list the node that is asked")]
pub struct Unlisted;

impl Unlisted {
    /// What an operator can do, besides giving the server another node.
    pub const WAY_BACK: &str =
        "let this one come back: SELECT citus_activate_node(…) if it was disabled, citus_add_node(…) if it was removed";
}

/// The last answer of the coordinator.
pub(super) struct Membership {
    is_listed: AtomicBool,
}

impl Store {
    /// Asks the coordinator of a divided database whether it lists the node that is asked; call it periodically. One Postgres is
    /// asked nothing.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable, or the coordinator alone: then the last answer counts.
    pub async fn check_membership(&self) -> Result<bool, Error> {
        if !self.target.slots().is_divided() {
            return Ok(true);
        }
        let asked = self.idempotent("membership", |mut tx| async move {
            let own = tx.rows(OwnNode {}).await?.pop();
            let is_listed = match own {
                Some(OwnNodeRow { is_worker: false, lacks_tables, .. }) => !lacks_tables,
                Some(OwnNodeRow { address: Some(address), .. }) => tx.rows(ListedWorkers {}).await?.contains(&address),
                Some(OwnNodeRow { address: None, .. }) | None => false,
            };
            tx.commit(is_listed).await
        });
        let is_listed = asked.await?;
        self.target.membership().note(is_listed);
        Ok(is_listed)
    }

    /// The last answer of [`Store::check_membership`].
    pub fn is_listed(&self) -> bool {
        self.target.membership().is_listed.load(Ordering::Relaxed)
    }
}

impl Default for Membership {
    /// Until the coordinator has said otherwise, the node is trusted.
    fn default() -> Self {
        Self { is_listed: AtomicBool::new(true) }
    }
}

impl Membership {
    /// Notes an answer, and logs a change.
    fn note(&self, is_listed: bool) {
        if self.is_listed.swap(is_listed, Ordering::Relaxed) != is_listed {
            match is_listed {
                true => tracing::info!("the node that is asked is listed by its coordinator again"),
                false => tracing::error!(
                    "the node that is asked is not listed by its coordinator: it has left the cluster, or has a new address that it does \
                     not know yet. Writes are refused until it is listed again"
                ),
            }
        }
    }
}

statement! {
    /// What the node that is asked knows of itself. Group 0 is the coordinator, and later versions of Citus give it to a worker that is
    /// removed: that one lacks the tables that are at the coordinator.
    OwnNode -> OwnNodeRow =
    "SELECT own.groupid <> 0 AS is_worker,
         (SELECT ROW(nodename, nodeport)::text FROM pg_dist_node WHERE groupid = own.groupid AND noderole = 'primary') AS address,
         EXISTS (SELECT FROM pg_dist_shard WHERE logicalrelid = to_regclass('sweeps')
             AND to_regclass(shard_name(logicalrelid, shardid)) IS NULL) AS lacks_tables
     FROM pg_dist_local_group AS own"
}

statement! {
    /// The addresses of the workers, as the coordinator knows them: it has this table, so the function runs there. Each worker finds
    /// itself in its own list, whether it has left or not.
    ListedWorkers -> String as sql::Text =
    "SELECT master_get_active_worker_nodes()::text FROM sweeps WHERE task = 'sessions'"
}

#[derive(QueryableByName)]
struct OwnNodeRow {
    #[diesel(sql_type = sql::Bool)]
    is_worker: bool,
    /// As it knows it; none if it does not know itself.
    #[diesel(sql_type = sql::Nullable<sql::Text>)]
    address: Option<String>,
    #[diesel(sql_type = sql::Bool)]
    lacks_tables: bool,
}
