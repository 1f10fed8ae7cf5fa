//! Whether the node that is asked still belongs to the cluster of a divided database.
//!
//! A worker that was removed or disabled keeps its tables and its list of nodes, and goes on answering. But nobody tells it of the
//! moves of shards that follow: it would write to copies that are dropped a little later. Only the coordinator knows.

use std::sync::atomic::Ordering;

use diesel::QueryableByName;
use diesel::sql_types as sql;

use super::Store;
use super::error::Error;
use super::slots::SlotCount;
use super::statement::statement;

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
        self.idempotent("membership", |mut tx| async move {
            let own = tx.rows(OwnNode {}).await?.pop();
            let is_listed = match own {
                Some(OwnNodeRow { is_worker: false, lacks_tables, .. }) => !lacks_tables,
                Some(OwnNodeRow { address: Some(address), .. }) => tx.rows(ListedWorkers {}).await?.contains(&address),
                Some(OwnNodeRow { address: None, .. }) | None => false,
            };
            tx.slots().note_listed(is_listed);
            tx.commit(is_listed).await
        })
        .await
    }

    /// The last answer of [`Store::check_membership`].
    pub fn is_listed(&self) -> bool {
        self.target.slots().is_listed()
    }
}

impl SlotCount {
    /// Notes whether the coordinator lists the node that is asked, and logs a change.
    fn note_listed(&self, is_listed: bool) {
        if self.is_unlisted.swap(!is_listed, Ordering::Relaxed) == is_listed {
            match is_listed {
                true => tracing::info!("the node that is asked is listed by its coordinator again"),
                false => tracing::error!(
                    "the node that is asked is not listed by its coordinator: it has left the cluster, or has a new address that it does \
                     not know yet. Writes are refused until it is listed again"
                ),
            }
        }
    }

    fn is_listed(&self) -> bool {
        !self.is_unlisted.load(Ordering::Relaxed)
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
