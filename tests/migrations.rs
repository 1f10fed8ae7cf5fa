//! Migrations: up, down, up again, and the schema as in `schema.rs`.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use diesel::{QueryableByName, sql_query, sql_types::Text};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use sessiond::{store::Store, telemetry::Metrics};

use crate::harness::{database::Database, eventually, options};

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    column_name: String,
    #[diesel(sql_type = Text)]
    data_type: String,
}

async fn columns(database: &Database) -> BTreeMap<String, Vec<(String, String)>> {
    let query = "SELECT c.relname::text AS table_name, a.attname::text AS column_name,
            format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN '' ELSE '?' END AS data_type
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
          AND c.relname <> '__diesel_schema_migrations'
        ORDER BY c.relname, a.attnum";
    let rows: Vec<Column> = sql_query(query).load(&mut database.connect().await).await.expect("reads");
    let mut tables = BTreeMap::<_, Vec<_>>::new();
    for row in rows {
        tables.entry(row.table_name).or_default().push((row.column_name, row.data_type));
    }
    tables
}

/// The columns of `schema.rs`, as Postgres names them.
fn declared() -> BTreeMap<String, Vec<(String, String)>> {
    let mut tables = BTreeMap::<_, Vec<_>>::new();
    let mut table = String::new();
    for line in include_str!("../src/store/schema.rs").lines().map(str::trim) {
        if let Some((name, kind)) = line.strip_suffix(',').and_then(|line| line.split_once(" -> ")) {
            tables.entry(table.clone()).or_default().push((name.to_owned(), postgres_type(kind)));
        } else if let Some((name, _)) = line.strip_suffix('{').and_then(|line| line.split_once(" (")) {
            table = name.to_owned();
        }
    }
    tables
}

fn postgres_type(kind: &str) -> String {
    let inner = |wrapper: &str| kind.strip_prefix(wrapper).and_then(|rest| rest.strip_suffix('>'));
    if let Some(kind) = inner("Nullable<") {
        return format!("{}?", postgres_type(kind));
    }
    if let Some(kind) = inner("Array<") {
        return format!("{}[]", postgres_type(kind));
    }
    match kind {
        "Text" => "text",
        "Timestamptz" => "timestamp with time zone",
        "BigInt" => "bigint",
        "SmallInt" => "smallint",
        "Integer" => "integer",
        "Bool" => "boolean",
        "Uuid" => "uuid",
        "Binary" => "bytea",
        "Jsonb" => "jsonb",
        other => panic!("{other} has no name in Postgres here"),
    }
    .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_down_up_and_the_schema_is_as_declared() {
    let database = Database::create_empty().await;
    let store = Store::new(&options(&database.url), Metrics::default()).expect("a good URL");
    let all = store.pending_migrations().await.expect("answers");
    assert!(all.len() >= 2);
    assert_eq!(store.migrate().await.expect("migrates").len(), all.len());
    assert_eq!(columns(&database).await, declared());
    assert!(store.pending_migrations().await.expect("answers").is_empty());

    store.unmigrate().await.expect("goes back");
    assert!(columns(&database).await.is_empty(), "down leaves nothing");
    store.migrate().await.expect("migrates again");
    assert_eq!(columns(&database).await, declared());
    assert!(store.migrate().await.expect("nothing to do").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_migrations_take_turns() {
    let database = Database::create_empty().await;
    let migrate = || {
        let store = Store::new(&options(&database.url), Metrics::default()).expect("a good URL");
        tokio::spawn(async move { store.migrate().await.expect("migrates").len() })
    };
    let (one, other) = (migrate(), migrate());
    let mut applied = [one.await.expect("ends"), other.await.expect("ends")];
    applied.sort_unstable();
    assert!(applied[0] == 0 && applied[1] >= 2, "{applied:?}");
}

/// A database after the migrations up to this number, with a row in tables whose keys change.
async fn after(last: u32) -> Database {
    let database = Database::create_empty().await;
    database
        .run("CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY NOT NULL, run_on timestamp NOT NULL DEFAULT now())")
        .await;
    let all = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).expect("reads");
    let mut all: Vec<_> = all.map(|folder| folder.expect("reads").path()).collect();
    all.sort();
    for folder in all {
        let name = folder.file_name().expect("named").to_str().expect("text");
        let version = name.split('_').next().expect("never empty").replace('-', "");
        if version[8..].parse::<u32>().expect("a date and a number") > last {
            continue;
        }
        let up = fs::read_to_string(folder.join("up.sql")).expect("reads");
        database.run(&format!("{up}; INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}')")).await;
    }
    database.run("INSERT INTO users (project_id, user_id, epoch) VALUES ('shop', 'ada', 1)").await;
    database.run(&revocation(1)).await;
    database
}

/// An entry of the feed.
fn revocation(seq: u32) -> String {
    format!(
        "INSERT INTO revocations (project_id, id, at, reason, session_id, access_expires_at, actor, writer, seq)
         VALUES ('shop', gen_random_uuid(), now(), 1, gen_random_uuid(), now(), 1, 7, {seq})"
    )
}

/// Columns, indexes and constraints.
async fn schema(database: &Database) -> Vec<String> {
    let query = "SELECT relname || ' ' || attname || ' ' || format_type(atttypid, atttypmod) || attnotnull
            FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
        UNION ALL SELECT pg_get_indexdef(indexrelid) || indisvalid || indisprimary FROM pg_index i JOIN pg_class c ON c.oid = indrelid
            WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace
        ORDER BY 1";
    database.lines(query).await
}

/// From every version since the feed has writers.
#[tokio::test(flavor = "multi_thread")]
async fn every_version_arrives_at_the_same_schema() {
    let complete = Database::create().await;
    let newest = complete.lines("SELECT max(right(version, 6)::int) FROM __diesel_schema_migrations").await;
    let complete = schema(&complete).await;
    for last in 15..=newest[0].parse().expect("a number") {
        let database = after(last).await;
        database.migrate().await;
        assert_eq!(schema(&database).await, complete, "from {last}");
    }
}

/// Otherwise statements are planned by default assumptions until autovacuum comes.
#[tokio::test(flavor = "multi_thread")]
async fn tables_with_rows_have_statistics_after_a_migration() {
    let database = after(22).await;
    database.migrate().await;
    let analysed = "SELECT DISTINCT tablename::text FROM pg_stats WHERE schemaname = 'public' AND tablename IN ('revocations', 'users') ORDER BY 1";
    assert_eq!(database.lines(analysed).await, ["revocations", "users"]);
    // An empty table may fill, as long as nobody has said that it is empty.
    let empty = "SELECT DISTINCT reltuples FROM pg_class WHERE oid IN ('sessions'::regclass, 'audit_events'::regclass)";
    assert_eq!(database.lines(empty).await, ["-1"]);
}

/// Kills the process.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Killed in the middle of a build, it builds again; a transaction that it waits for is named.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_filled_tables_are_built_while_clients_write() {
    let database = after(22).await;
    // The build waits for old snapshots.
    let reader = async || {
        let mut reader = database.connect().await;
        reader
            .batch_execute("SET application_name = 'long-reader'; BEGIN ISOLATION LEVEL REPEATABLE READ")
            .await
            .expect("begins");
        reader.batch_execute("SELECT FROM users").await.expect("reads");
        reader
    };
    let migrate = |wait: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
        command.args(["migrate", "--wait", wait]).env_clear().env("DATABASE_URL", &database.url);
        Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts"))
    };
    let invalid = "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid";
    let ours = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sessiond'";
    for seq in 2..4 {
        let mut open = reader().await;
        let killed = migrate("1m");
        eventually("an index is being built", async || {
            database.lines(invalid).await == ["revocations_slot_key"] && !database.lines(ours).await.is_empty()
        })
        .await;
        database.run(&format!("SET statement_timeout = '2s'; {}", revocation(seq))).await;
        drop(killed);
        eventually("its processes are gone", async || database.lines(ours).await.is_empty()).await;
        open.batch_execute("COMMIT").await.expect("ends");
    }

    let mut open = reader().await;
    let mut migrating = migrate("2s");
    let status = tokio::task::block_in_place(|| migrating.0.wait()).expect("a child");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut migrating.0.stderr.take().expect("piped"), &mut said).expect("text");
    assert!(!status.success() && said.contains("waited 2s for process"), "{said}");
    assert!(said.contains("the build of the index waits for") && said.contains("of long-reader as postgres"), "{said}");
    eventually("its processes are gone", async || database.lines(ours).await.is_empty()).await;
    open.batch_execute("COMMIT").await.expect("ends");

    database.migrate().await;
    assert_eq!(schema(&database).await, schema(&Database::create().await).await);
    assert_eq!(database.lines("SELECT count(*) FROM revocations").await, ["3"]);
}

/// A divided database has all migrations up to the last before this rule. Citus sends the whole text of some statements to its
/// nodes, which take one statement, and refuses to add a constraint together with another change.
#[test]
fn later_migrations_are_one_statement_and_add_constraints_alone() {
    const LAST_BEFORE: u32 = 30;
    for folder in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).expect("reads") {
        let folder = folder.expect("reads").path();
        let name = folder.file_name().expect("named").to_str().expect("text");
        let number = name.split(['_', '-']).nth(3).and_then(|number| number.parse::<u32>().ok()).unwrap_or_default();
        if number > LAST_BEFORE {
            let sql = fs::read_to_string(folder.join("up.sql")).expect("reads");
            assert_eq!(problem_of(&sql), None, "{name}");
        }
    }
    for (sql, problem) in [
        ("ALTER TABLE a ADD COLUMN b int,\n -- why;\n ADD COLUMN c int;\n", None),
        ("ALTER TABLE a ADD COLUMN b int; ALTER TABLE c ADD COLUMN b int;", Some("several statements")),
        ("ALTER TABLE a ADD COLUMN b int, ADD CONSTRAINT c CHECK (b > 0);", Some("a constraint with another change")),
        ("DO $$ BEGIN ALTER TABLE a ADD COLUMN b int; ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0); END $$;", None),
    ] {
        assert_eq!(problem_of(sql), problem, "{sql}");
    }
}

/// What a divided database would refuse in a migration.
fn problem_of(sql: &str) -> Option<&'static str> {
    let code: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let outside: String = code.split("$$").step_by(2).collect();
    if outside.trim().trim_end_matches(';').contains(';') {
        return Some("several statements");
    }
    let adds_with_others = |statement: &str| {
        let changes = statement.split_whitespace().filter(|word| ["ADD", "DROP", "ALTER", "VALIDATE"].contains(word));
        // The first is that of ALTER TABLE.
        statement.contains("ADD CONSTRAINT") && changes.count() > 2
    };
    code.split(';').any(adds_with_others).then_some("a constraint with another change")
}
