//! Divides a database among the nodes of a Citus cluster, and recognises the one layout that is supported.
//!
//! Tables about users are distributed by `slot`, so that everything about a user is in one shard. Tables that each statement
//! may need are reference tables, on every node. The rest stays where it is, on the coordinator, and every node knows it. So any
//! node answers any statement.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use diesel_async::RunQueryDsl as _;
use diesel_async::SimpleAsyncConnection as _;
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

/// The tables that stay on the coordinator, where other nodes find them.
const LOCAL: [&str; 2] = ["sweeps", "feed_beacons"];

/// The table of the migrations, which is on every node, too. It is not ours: the library creates it. A node that has it knows all tables.
const MIGRATIONS: &str = "__diesel_schema_migrations";

/// Distributed tables that must be empty before: their rows are in slot 0, and the users would have to be assigned.
const EMPTY: [&str; 5] = ["users", "sessions", "session_requests", "revocations", "backchannel_deliveries"];

/// The function of the sign-out, which runs on the node of the slot that it is called for.
const FUNCTION: &str = "sessions_revoke(text[], uuid[], timestamptz[], smallint[], uuid[], smallint[], uuid[], text[], \
     integer, bigint, smallint, boolean)";

/// Settings of the database that are off on each node: those of a connection hold at the node that is asked. With `jit`, a reading of
/// the feed takes 320 ms of processor time in place of 26.
const OFF_ON_NODES: [&str; 2] = ["jit", "enable_seqscan"];

/// How many slots a divided database has by default: as many nodes as there may ever be.
const SLOTS_DEFAULT: u16 = 32;

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

/// An expression for how Citus manages those of our tables that exist: name, method, replication, colocation and column of each,
/// separated by commas, with `-` for a table that it does not manage. Empty if it manages none. The tables are the ones that the
/// connection would use, by its search path.
pub(super) fn layout_facts() -> String {
    let ours = super::engine::TABLES.map(|table| format!("'{table}'")).join(", ");
    format!(
        "coalesce((SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.name, coalesce(p.partmethod::text, '-'), \
         coalesce(p.repmodel::text, '-'), coalesce(p.colocationid::text, '-'), coalesce(a.attname, '-')), ',' ORDER BY t.name) \
         FROM unnest(ARRAY[{ours}]) AS t (name) \
         LEFT JOIN pg_catalog.pg_dist_partition AS p ON p.logicalrelid = pg_catalog.to_regclass(t.name) \
         LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = p.logicalrelid \
         AND a.attnum = substring(p.partkey::text FROM ':varattno ([0-9]+)')::smallint \
         WHERE pg_catalog.to_regclass(t.name) IS NOT NULL HAVING count(p.logicalrelid) > 0), '')"
    )
}

/// How tables are managed, by name.
type Tables<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn parse(facts: &str) -> Tables<'_> {
    let tables = facts.split(',').filter_map(|table| table.split_once(' '));
    tables.map(|(name, layout)| (name, layout.split(' ').collect())).collect()
}

fn is_managed(layout: &[&str]) -> bool {
    matches!(layout, [method, ..] if *method != "-")
}

/// Whether the tables are laid out as [`Store::distribute`] does, by the answer to [`layout_facts`]. A table that does not exist
/// yet is one of a later release, which has not migrated.
///
/// # Errors
///
/// Fails if they are distributed in another way.
pub(super) fn layout_of(facts: &str) -> Result<Layout, UnsupportedEngine> {
    if facts.is_empty() {
        return Ok(Layout::Single);
    }
    let tables = parse(facts);
    let group = tables.get(DISTRIBUTED[0]).and_then(|layout| layout.get(2)).copied().unwrap_or_default();
    let is_in_place = |(name, layout): (&&str, &Vec<&str>)| match layout.as_slice() {
        // One copy of each shard, all shards of a slot on one node.
        ["h", "s", group_of_it, "slot"] => DISTRIBUTED.contains(name) && *group_of_it == group,
        ["n", "t", _, _] => REFERENCE.contains(name),
        // Known to every node, or to the coordinator alone.
        ["n", "s", _, _] | ["-", ..] => LOCAL.contains(name),
        _ => false,
    };
    if tables.contains_key(DISTRIBUTED[0]) && tables.iter().all(is_in_place) {
        return Ok(Layout::Divided);
    }
    Err(UnsupportedEngine::Distributed { tables: managed(facts) })
}

/// The names of the tables that Citus manages, by the answer to [`layout_facts`].
pub(super) fn managed(facts: &str) -> String {
    let tables = parse(facts);
    let managed = tables.iter().filter(|(_, layout)| is_managed(layout)).map(|(name, _)| *name);
    managed.collect::<Vec<_>>().join(", ")
}

/// A setting for the transaction of a migration: all of it goes over one connection to each node, as foreign keys to tables on
/// every node require.
pub(super) const ONE_CONNECTION: &str = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'";

/// Gives the tables and the function that a migration has created their place, in its transaction.
///
/// # Errors
///
/// Fails if a statement does.
pub(super) async fn place_new(connection: &mut AsyncPgConnection) -> Result<(), diesel::result::Error> {
    let facts = diesel::dsl::sql::<diesel::sql_types::Text>(&layout_facts());
    let facts: Vec<String> = diesel::select(facts).load(connection).await?;
    let is_local = diesel::dsl::sql::<diesel::sql_types::Bool>(&format!(
        "pg_catalog.to_regprocedure('{FUNCTION}') IS NOT NULL AND NOT {}",
        is_function_distributed()
    ));
    let knows_all = diesel::dsl::sql::<diesel::sql_types::Bool>(&is_known_everywhere(MIGRATIONS));
    let answers: Vec<(bool, bool)> = diesel::select((is_local, knows_all)).load(connection).await?;
    let (is_local, knows_all) = answers.into_iter().next().unwrap_or_default();
    let mut statements = missing(&parse(&facts.concat()), knows_all);
    if is_local {
        statements.extend(function_statements());
    }
    for statement in statements {
        connection.batch_execute(&statement).await?;
    }
    Ok(())
}

/// The statements that give tables their place that have none. Those of the coordinator only if every node knows the others:
/// otherwise servers of an earlier release may run, which would refuse this.
fn missing(tables: &Tables<'_>, knows_all: bool) -> Vec<String> {
    let is_missing = |name: &&&str| tables.get(**name).is_some_and(|layout| !is_managed(layout));
    let local = LOCAL.iter().filter(|_| knows_all).filter(is_missing).map(|table| local_statement(table));
    let reference = REFERENCE.iter().filter(is_missing).map(|table| reference_statement(table));
    let distributed = DISTRIBUTED
        .iter()
        .filter(is_missing)
        .flat_map(|table| [distributed_statement(table, DISTRIBUTED[0]), check_statement(table)]);
    local.chain(reference).chain(distributed).collect()
}

fn local_statement(table: &str) -> String {
    format!("SELECT citus_add_local_table_to_metadata('{table}')")
}

fn reference_statement(table: &str) -> String {
    format!("SELECT create_reference_table('{table}')")
}

fn distributed_statement(table: &str, with: &str) -> String {
    format!("SELECT create_distributed_table('{table}', 'slot', colocate_with => '{with}')")
}

/// A server that does not know the slots cannot write.
fn check_statement(table: &str) -> String {
    format!("ALTER TABLE {table} ADD CONSTRAINT {table}_divided_check CHECK (slot > 0)")
}

fn function_statements() -> [String; 2] {
    [
        // On a node, the search path of the client is unknown.
        format!(
            "DO $$ BEGIN EXECUTE pg_catalog.format('ALTER FUNCTION {FUNCTION} SET search_path = %I, pg_temp', \
             pg_catalog.current_schema()); END $$"
        ),
        format!(
            "SELECT create_distributed_function('{FUNCTION}'::regprocedure, 'p_slot', colocate_with => '{}')",
            DISTRIBUTED[0]
        ),
    ]
}

/// A condition: the function runs on the node of its slot.
fn is_function_distributed() -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_dist_object WHERE classid = 'pg_proc'::regclass \
           AND objid = pg_catalog.to_regprocedure('{FUNCTION}') AND distribution_argument_index = 10 \
           AND colocationid = (SELECT colocationid FROM pg_catalog.pg_dist_partition \
             WHERE logicalrelid = pg_catalog.to_regclass('slots')))"
    )
}

/// Checks what a divided database needs beyond the layout of its tables.
///
/// # Errors
///
/// Fails if the sign-out would not run on the node of its slot, or if this node does not know all tables.
pub(super) async fn check_divided(client: &Client) -> Result<Result<(), UnsupportedEngine>, tokio_postgres::Error> {
    let facts = format!(
        "SELECT pg_catalog.to_regclass('{MIGRATIONS}') IS NOT NULL, (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'citus'), \
         pg_catalog.to_regprocedure('{FUNCTION}') IS NULL OR {}",
        is_function_distributed()
    );
    let row = rows(client, &facts).await?.concat();
    let [knows_all, version, is_function] = [0, 1, 2].map(|at| row.get(at).cloned().unwrap_or_default());
    let major: Option<u32> = version.split(['.', '-']).next().and_then(|major| major.parse().ok());
    Ok(if knows_all != "t" {
        Err(UnsupportedEngine::Uninformed)
    } else if major.is_none_or(|major| major < CITUS_MIN) {
        Err(UnsupportedEngine::OldCitus { version })
    } else if is_function != "t" {
        Err(UnsupportedEngine::LocalSignOut)
    } else {
        Ok(())
    })
}

/// The rows of an answer; nothing in place of NULL.
async fn rows(client: &Client, query: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let messages = client.simple_query(query).await?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}

impl Store {
    /// Divides the database among the nodes of its Citus cluster, in one transaction, unless it is divided already: into `slots`, or
    /// into 32. Then gives each node the settings it lacks. Waits at most `wait` for a migration. Returns what was done.
    ///
    /// # Errors
    ///
    /// Fails if it is no Citus cluster, if there is a user already, if it is divided into another number of slots, or if the role may
    /// not change a node's settings.
    pub async fn distribute(&self, slots: Option<u16>, wait: Duration) -> Result<Vec<String>, MigrateError> {
        let _lock = self.acquire_lock(wait).await?;
        let Opened { client, .. } = self.target.connect_alone().await?;
        let mut done = vec![];
        if let Some(has) = self.target.slots().of_divided() {
            if let Some(wanted) = slots.filter(|wanted| *wanted != has) {
                return Err(MigrateError::OtherSlots { has, wanted });
            }
        } else {
            divide(&client, slots.unwrap_or(SLOTS_DEFAULT)).await?;
            done.push(format!("on every node: {}", REFERENCE.join(", ")));
            done.push(format!("distributed by slot: {}", DISTRIBUTED.join(", ")));
            done.push("runs on the node of its slot: sessions_revoke()".to_owned());
        }
        // The migrations last; see there.
        for table in LOCAL.into_iter().chain([MIGRATIONS]) {
            let (place, statement) = match table {
                MIGRATIONS => ("on every node", reference_statement(table)),
                _ => ("on the coordinator, known to every node", local_statement(table)),
            };
            if is_true(&client, &format!("NOT {}", is_known_everywhere(table))).await? {
                // Servers may run, and hold it for a moment.
                let statement = format!("{BEGIN}; SET LOCAL lock_timeout = 0; {statement}; COMMIT");
                client.batch_execute(&statement).await.map_err(failed)?;
                done.push(format!("{place}: {table}"));
            }
        }
        for name in OFF_ON_NODES {
            if switch_off_on_nodes(&client, name).await? {
                done.push(format!("off on every node: {name}"));
            }
        }
        Ok(done)
    }
}

/// A condition: every node knows the table.
fn is_known_everywhere(table: &str) -> String {
    format!("EXISTS (SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid = pg_catalog.to_regclass('{table}'))")
}

/// Whether a server with Citus is a worker of a cluster: no replica rings there, and the tables may not be changed there.
///
/// # Errors
///
/// Fails if the server does not answer.
pub(super) async fn is_worker(client: &Client) -> Result<bool, tokio_postgres::Error> {
    // A server of a cluster without other nodes is none, though Citus does not call it a coordinator.
    let groups = rows(client, "SELECT FROM pg_catalog.pg_dist_local_group WHERE groupid <> 0").await?;
    Ok(!groups.is_empty())
}

fn failed(error: tokio_postgres::Error) -> MigrateError {
    MigrateError::Failed(error.into())
}

/// The answer to a yes-or-no question.
async fn is_true(client: &Client, question: &str) -> Result<bool, MigrateError> {
    let answer = rows(client, &format!("SELECT {question}")).await.map_err(failed)?.concat();
    Ok(answer == ["t"])
}

/// Divides the tables, in one transaction.
async fn divide(client: &Client, slots: u16) -> Result<(), MigrateError> {
    if !is_true(client, HAS_CITUS).await? {
        return Err(MigrateError::NotCitus);
    }
    if is_worker(client).await.map_err(failed)? {
        return Err(MigrateError::Worker);
    }
    let has_nodes = "EXISTS (SELECT FROM pg_dist_node WHERE noderole = 'primary' AND isactive AND shouldhaveshards)";
    if !is_true(client, has_nodes).await? {
        return Err(MigrateError::NoNodes);
    }
    for table in EMPTY {
        if is_true(client, &format!("EXISTS (SELECT FROM {table})")).await? {
            return Err(MigrateError::NotEmpty(table));
        }
    }
    // One by one: Citus passes the text of some on to the workers as it was sent. Dropped halfway, nothing is done.
    for statement in statements(slots) {
        client.batch_execute(&statement).await.map_err(failed)?;
    }
    Ok(())
}

/// Switches a setting of the database off on every node where it is on. Returns whether it was on anywhere.
async fn switch_off_on_nodes(client: &Client, name: &'static str) -> Result<bool, MigrateError> {
    // Where it is on.
    let read = format!(
        "SELECT pg_catalog.concat_ws(':', nodename, nodeport) \
         FROM run_command_on_all_nodes($$SELECT current_setting('{name}')$$) JOIN pg_dist_node USING (nodeid) \
         WHERE NOT success OR result <> 'off' ORDER BY 1 LIMIT 1"
    );
    let lacking = async || rows(client, &read).await.map(|rows| rows.concat().pop()).map_err(failed);
    let refused = |node, why: &str| Err(MigrateError::NodeSetting { node, name, why: why.to_owned() });
    let Some(node) = lacking().await? else { return Ok(false) };
    // The coordinator passes it on to the workers, which refuse it from anybody else.
    let set = format!(
        "DO $$ BEGIN EXECUTE pg_catalog.format('ALTER DATABASE %I SET {name} = off', pg_catalog.current_database()); END $$"
    );
    match client.batch_execute(&set).await {
        Ok(()) => {}
        Err(error) => match error.as_db_error() {
            Some(db) => return refused(node, db.message()),
            None => return Err(failed(error)),
        },
    }
    match lacking().await? {
        Some(node) => refused(node, "it is still on"),
        None => Ok(true),
    }
}

/// The statements that divide a database, as one transaction.
fn statements(slots: u16) -> Vec<String> {
    let mut all = vec![
        BEGIN.to_owned(),
        ONE_CONNECTION.to_owned(),
        format!("SET LOCAL citus.shard_count = {slots}"),
        "SET LOCAL citus.shard_replication_factor = 1".to_owned(),
        "SET LOCAL lock_timeout = 0".to_owned(),
        "SET LOCAL idle_in_transaction_session_timeout = 0".to_owned(),
        // Of servers that run, and would go on in slot 0.
        "DELETE FROM feed_writers".to_owned(),
        "DELETE FROM slots".to_owned(),
        // About projects and keys, which may be in any slot.
        "UPDATE audit_events SET slot = 1".to_owned(),
    ];
    all.extend(REFERENCE.map(reference_statement));
    for (at, table) in DISTRIBUTED.iter().enumerate() {
        all.push(distributed_statement(table, if at == 0 { "none" } else { DISTRIBUTED[0] }));
    }
    all.push(format!("INSERT INTO slots SELECT pg_catalog.generate_series(1, {slots})"));
    all.extend(DISTRIBUTED.map(check_statement));
    all.extend(function_statements());
    all.push("COMMIT".to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(of: impl Fn(&str) -> String) -> String {
        let all = super::super::engine::TABLES.iter();
        all.map(|table| of(table)).filter(|facts| !facts.is_empty()).collect::<Vec<_>>().join(",")
    }

    fn as_distributed(table: &str) -> String {
        match (DISTRIBUTED.contains(&table), REFERENCE.contains(&table)) {
            (true, _) => format!("{table} h s 7 slot"),
            (_, true) => format!("{table} n t 3 -"),
            _ => format!("{table} n s 0 -"),
        }
    }

    #[test]
    fn only_one_layout_is_supported() {
        assert_eq!(layout_of(""), Ok(Layout::Single));
        assert_eq!(layout_of(&facts(as_distributed)), Ok(Layout::Divided));
        // By an earlier release.
        let local = facts(|name| if LOCAL.contains(&name) { format!("{name} - - - -") } else { as_distributed(name) });
        assert_eq!(layout_of(&local), Ok(Layout::Divided));
        for (table, other) in [
            ("users", "users h s 7 user_id"),
            ("sessions", "sessions h s 8 slot"),
            ("sessions", "sessions h c 7 slot"),
            ("revocations", "revocations n t 3 -"),
            ("revocations", "revocations - - - -"),
            ("slots", ""),
            ("slots", "slots - - - -"),
            ("projects", "projects n s 0 -"),
            ("projects", "projects - - - -"),
            ("feed_histories", "feed_histories h s 7 id"),
            // Steps of the sweep belong to the coordinator.
            ("sweeps", "sweeps n t 3 -"),
            ("sweeps", "sweeps h s 7 task"),
        ] {
            let facts = facts(|name| if name == table { other.to_owned() } else { as_distributed(name) });
            assert!(matches!(layout_of(&facts), Err(UnsupportedEngine::Distributed { .. })), "{other}");
        }
    }

    /// A release that adds tables connects before it has migrated, and gives them their place in that migration.
    #[test]
    fn a_table_that_a_migration_adds_gets_its_place() {
        let before = facts(|name| match name {
            "audit_events" | "server_keys" | "feed_beacons" => String::new(),
            _ => as_distributed(name),
        });
        assert_eq!(layout_of(&before), Ok(Layout::Divided));
        assert!(missing(&parse(&before), true).is_empty());
        let created = facts(|name| match name {
            "audit_events" | "server_keys" | "feed_beacons" => format!("{name} - - - -"),
            _ => as_distributed(name),
        });
        assert!(layout_of(&created).is_err(), "no server may use it as it is");
        let local = "SELECT citus_add_local_table_to_metadata('feed_beacons')";
        assert!(missing(&parse(&created), true).iter().any(|statement| statement == local));
        assert_eq!(
            missing(&parse(&created), false),
            [
                "SELECT create_reference_table('server_keys')",
                "SELECT create_distributed_table('audit_events', 'slot', colocate_with => 'slots')",
                "ALTER TABLE audit_events ADD CONSTRAINT audit_events_divided_check CHECK (slot > 0)",
            ]
        );
    }

    #[test]
    fn every_table_has_its_place() {
        let mut all: Vec<&str> = DISTRIBUTED.iter().chain(&REFERENCE).chain(&LOCAL).copied().collect();
        all.sort_unstable();
        let mut tables = super::super::engine::TABLES;
        tables.sort_unstable();
        assert_eq!(all, tables);
    }
}
