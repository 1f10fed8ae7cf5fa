//! Migrations: up, down, up again, and the schema as in `schema.rs`.

use std::collections::BTreeMap;

use diesel::{QueryableByName, sql_query, sql_types::Text};
use diesel_async::RunQueryDsl as _;
use sessiond::{store::Store, telemetry::Metrics};

use crate::harness::{database::Database, options};

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
