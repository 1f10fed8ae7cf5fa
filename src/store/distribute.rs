//! Divides a database among the nodes of a Citus cluster, and recognises the one layout that is supported.
//!
//! Tables about users are distributed by `slot`, so that everything about a user is in one shard. Tables that each statement
//! may need are reference tables, on every node. The rest stays where it is, on the coordinator.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;

use super::Store;
use super::connect::Opened;
use super::engine::HAS_CITUS;
use super::engine::UnsupportedEngine;
use super::migrate::MigrateError;
use super::wire::BEGIN;

/// The tables that are on every node. A table comes after those that it refers to.
const REFERENCE: [&str; 6] =
    ["projects", "signing_keys", "refresh_keys", "server_keys", "backchannel_endpoints", "feed_histories"];

/// The tables that are distributed by `slot`. The first one is their common rule.
const DISTRIBUTED: [&str; 8] = [
    "slots",
    "users",
    "sessions",
    "session_requests",
    "revocations",
    "audit_events",
    "backchannel_deliveries",
    "feed_writers",
];

/// Distributed tables that must be empty before: their rows are in slot 0, and the users would have to be assigned.
const EMPTY: [&str; 5] = ["users", "sessions", "session_requests", "revocations", "backchannel_deliveries"];

/// The function of the sign-out, which runs on the node of the slot that it is called for.
const FUNCTION: &str = "sessions_revoke(text[], uuid[], timestamptz[], smallint[], uuid[], smallint[], uuid[], text[], \
     integer, bigint, smallint, boolean)";

/// How many slots a divided database has: as many nodes as there may ever be.
const SLOTS: u16 = 32;

/// The oldest supported major version of Citus: the one that was tested.
const CITUS_MIN: u32 = 13;

/// Where the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Layout {
    /// On one server.
    #[default]
    Single,
    /// Divided by [`Store::distribute`].
    Divided,
}

/// An expression for how Citus manages our tables: name, method, replication, colocation and column of each, separated by
/// commas. Empty if it manages none. The tables are the ones that the connection would use, by its search path.
pub(super) fn layout_facts() -> String {
    let ours = super::engine::TABLES.map(|table| format!("'{table}'")).join(", ");
    format!(
        "coalesce((SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.name, p.partmethod, p.repmodel, p.colocationid, \
         coalesce(a.attname, '-')), ',' ORDER BY t.name) FROM unnest(ARRAY[{ours}]) AS t (name) \
         JOIN pg_catalog.pg_dist_partition AS p ON p.logicalrelid = pg_catalog.to_regclass(t.name) \
         LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = p.logicalrelid \
         AND a.attnum = substring(p.partkey::text FROM ':varattno ([0-9]+)')::smallint), '')"
    )
}

/// Whether the tables are laid out as [`Store::distribute`] does, by the answer to [`layout_facts`].
///
/// # Errors
///
/// Fails if they are distributed in another way.
pub(super) fn layout_of(facts: &str) -> Result<Layout, UnsupportedEngine> {
    if facts.is_empty() {
        return Ok(Layout::Single);
    }
    let tables: BTreeMap<&str, Vec<&str>> = facts
        .split(',')
        .filter_map(|table| table.split_once(' '))
        .map(|(name, layout)| (name, layout.split(' ').collect()))
        .collect();
    let other_layout =
        || UnsupportedEngine::Distributed { tables: tables.keys().copied().collect::<Vec<_>>().join(", ") };
    let find = |name: &str| tables.get(name).map(Vec::as_slice);
    let Some([_, _, group, _]) = find(DISTRIBUTED[0]) else { return Err(other_layout()) };
    // One copy of each shard, all shards of a slot on one node.
    let is_distributed = |name: &&str| find(name).is_some_and(|layout| layout == ["h", "s", *group, "slot"]);
    let is_reference = |name: &&str| matches!(find(name), Some(["n", "t", _, _]));
    let is_whole = tables.len() == DISTRIBUTED.len() + REFERENCE.len();
    match is_whole && DISTRIBUTED.iter().all(is_distributed) && REFERENCE.iter().all(is_reference) {
        true => Ok(Layout::Divided),
        false => Err(other_layout()),
    }
}

/// Checks what a divided database needs beyond the layout of its tables.
///
/// # Errors
///
/// Fails if the sign-out would not run on the node of its slot, or if this node is not the coordinator.
pub(super) async fn check_divided(client: &Client) -> Result<Result<(), UnsupportedEngine>, tokio_postgres::Error> {
    let facts = format!(
        "SELECT pg_catalog.citus_is_coordinator(), (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'citus'), \
         EXISTS (SELECT FROM pg_catalog.pg_dist_object WHERE classid = 'pg_proc'::regclass \
           AND objid = pg_catalog.to_regprocedure('{FUNCTION}') AND distribution_argument_index = 10 \
           AND colocationid = (SELECT colocationid FROM pg_catalog.pg_dist_partition \
             WHERE logicalrelid = pg_catalog.to_regclass('slots')))"
    );
    let row = row(client, &facts).await?;
    let [is_coordinator, version, is_function] = [0, 1, 2].map(|at| row.get(at).cloned().flatten().unwrap_or_default());
    let major: Option<u32> = version.split(['.', '-']).next().and_then(|major| major.parse().ok());
    Ok(if is_coordinator != "t" {
        Err(UnsupportedEngine::Worker)
    } else if major.is_none_or(|major| major < CITUS_MIN) {
        Err(UnsupportedEngine::OldCitus { version })
    } else if is_function != "t" {
        Err(UnsupportedEngine::LocalSignOut)
    } else {
        Ok(())
    })
}

/// The first row of an answer.
async fn row(client: &Client, query: &str) -> Result<Vec<Option<String>>, tokio_postgres::Error> {
    let messages = client.simple_query(query).await?;
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
        _ => None,
    });
    Ok(row.unwrap_or_default())
}

impl Store {
    /// Divides the database among the nodes of its Citus cluster, in one transaction. Waits at most `wait` for a migration.
    /// Returns what was done; nothing if it is divided already.
    ///
    /// # Errors
    ///
    /// Fails if it is no Citus cluster, or if there is a user already.
    pub async fn distribute(&self, wait: Duration) -> Result<Vec<String>, MigrateError> {
        let _lock = self.acquire_lock(wait).await?;
        let Opened { client, .. } = self.target.connect_alone().await?;
        let failed = |error: tokio_postgres::Error| MigrateError::Failed(error.into());
        let flag = async |query: &str| -> Result<bool, MigrateError> {
            Ok(row(&client, query).await.map_err(failed)?.into_iter().next().flatten().as_deref() == Some("t"))
        };
        if self.target.slots().is_divided() {
            return Ok(vec![]);
        }
        if !flag(&format!("SELECT {HAS_CITUS}")).await? {
            return Err(MigrateError::NotCitus);
        }
        if !flag(
            "SELECT EXISTS (SELECT FROM pg_dist_node WHERE noderole = 'primary' AND isactive AND shouldhaveshards)",
        )
        .await?
        {
            return Err(MigrateError::NoNodes);
        }
        for table in EMPTY {
            if flag(&format!("SELECT EXISTS (SELECT FROM {table})")).await? {
                return Err(MigrateError::NotEmpty(table));
            }
        }
        // One by one: Citus passes the text of some on to the workers as it was sent. Dropped halfway, nothing is done.
        for statement in statements() {
            client.batch_execute(&statement).await.map_err(failed)?;
        }
        let distributed = format!("distributed by slot: {}", DISTRIBUTED.join(", "));
        let function = "runs on the node of its slot: sessions_revoke()".to_owned();
        Ok(vec![format!("on every node: {}", REFERENCE.join(", ")), distributed, function])
    }
}

/// The statements that divide a database, as one transaction.
fn statements() -> Vec<String> {
    let mut all = vec![
        BEGIN.to_owned(),
        // All of it over one connection to each node.
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'".to_owned(),
        format!("SET LOCAL citus.shard_count = {SLOTS}"),
        "SET LOCAL citus.shard_replication_factor = 1".to_owned(),
        "SET LOCAL lock_timeout = 0".to_owned(),
        "SET LOCAL idle_in_transaction_session_timeout = 0".to_owned(),
        // Of servers that run, and would go on in slot 0.
        "DELETE FROM feed_writers".to_owned(),
        "DELETE FROM slots".to_owned(),
        // About projects and keys, which may be in any slot.
        "UPDATE audit_events SET slot = 1".to_owned(),
    ];
    all.extend(REFERENCE.map(|table| format!("SELECT create_reference_table('{table}')")));
    for (at, table) in DISTRIBUTED.iter().enumerate() {
        let with = if at == 0 { "none" } else { DISTRIBUTED[0] };
        all.push(format!("SELECT create_distributed_table('{table}', 'slot', colocate_with => '{with}')"));
    }
    all.push(format!("INSERT INTO slots SELECT pg_catalog.generate_series(1, {SLOTS})"));
    // A server that does not know the slots cannot write.
    let check = |table: &&str| format!("ALTER TABLE {table} ADD CONSTRAINT {table}_divided_check CHECK (slot > 0)");
    all.extend(DISTRIBUTED.iter().map(check));
    // On a node, the search path of the client is unknown.
    all.push(format!(
        "DO $$ BEGIN EXECUTE pg_catalog.format('ALTER FUNCTION {FUNCTION} SET search_path = %I, pg_temp', \
         pg_catalog.current_schema()); END $$"
    ));
    all.push(format!(
        "SELECT create_distributed_function('{FUNCTION}'::regprocedure, 'p_slot', colocate_with => '{}')",
        DISTRIBUTED[0]
    ));
    all.push("COMMIT".to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(of: impl Fn(&str) -> String) -> String {
        let all = DISTRIBUTED.iter().chain(&REFERENCE);
        all.map(|table| of(table)).filter(|facts| !facts.is_empty()).collect::<Vec<_>>().join(",")
    }

    fn as_distributed(table: &str) -> String {
        match DISTRIBUTED.contains(&table) {
            true => format!("{table} h s 7 slot"),
            false => format!("{table} n t 3 -"),
        }
    }

    #[test]
    fn only_one_layout_is_supported() {
        assert_eq!(layout_of(""), Ok(Layout::Single));
        assert_eq!(layout_of(&facts(as_distributed)), Ok(Layout::Divided));
        for (table, other) in [
            ("users", "users h s 7 user_id"),
            ("sessions", "sessions h s 8 slot"),
            ("sessions", "sessions h c 7 slot"),
            ("revocations", "revocations n t 3 -"),
            ("revocations", ""),
            ("slots", ""),
            ("projects", "projects n s 0 -"),
            ("projects", ""),
            ("feed_histories", "feed_histories h s 7 id"),
        ] {
            let facts = facts(|name| if name == table { other.to_owned() } else { as_distributed(name) });
            assert!(matches!(layout_of(&facts), Err(UnsupportedEngine::Distributed { .. })), "{other}");
        }
        let with_local = format!("{},sweeps n t 3 -", facts(as_distributed));
        assert!(layout_of(&with_local).is_err(), "steps of the sweep belong to the coordinator");
    }

    #[test]
    fn every_table_has_its_place() {
        let local = ["feed_beacons", "sweeps"];
        let mut all: Vec<&str> = DISTRIBUTED.iter().chain(&REFERENCE).chain(&local).copied().collect();
        all.sort_unstable();
        let mut tables = super::super::engine::TABLES;
        tables.sort_unstable();
        assert_eq!(all, tables);
    }
}
