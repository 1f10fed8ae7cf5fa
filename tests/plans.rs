//! Every statement that the server sends, with a hundred thousand rows: each finds its rows by an index.
//!
//! The statements are recorded, not copied: a proxy in front of Postgres records every prepared statement with its
//! types, while every RPC is called and everything is swept. Then each is explained as the server would run it: with a
//! generic plan.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::HeaderMap;
use prost::Message;
use prost_reflect::DescriptorPool;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sessiond::{
    app::{NewEndpoint, Sweeper},
    pb::*,
    store::{DeliveryClaim, EndpointPosition, RecordQuery, Revived, Role},
    telemetry::Metrics,
};
use sessiond_core::{
    id::{ProjectId, UserId},
    session::{backchannel::RetryDecision, retention::RetentionPeriods},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::{
    PROJECT, Service, Wire, bearer, both,
    database::{Database, connect, rows},
    eventually,
    proxy::Proxy,
    refresh_token,
};

/// Tables that grow with the number of sessions.
const LARGE: [&str; 6] =
    ["sessions", "users", "revocations", "session_requests", "backchannel_endpoints", "backchannel_deliveries"];

/// More rows than this are never sorted, hashed or materialised.
const ASIDE_MAX: f64 = 5_000.0;

/// The beginnings of the feed's statements.
const FEED: &str = "WITH present AS";

/// The beginnings of the statements that only a divided database gets.
const DIVIDED: [&str; 8] = [
    "SELECT p.slot, (pg_control_system())",
    "SELECT md5(concat_ws(' ', id, current_database()))",
    "SELECT clock_timestamp() FROM slots",
    "SELECT pg_notify(",
    "SELECT EXISTS (SELECT FROM pg_locks",
    "SELECT current_setting('fsync') AS fsync",
    "SELECT own.groupid <> 0 AS is_worker",
    "SELECT master_get_active_worker_nodes()",
];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What was recorded: the settings of a connection, and statements with their parameter types.
#[derive(Clone, Default)]
struct Sent {
    settings: String,
    statements: BTreeMap<String, Vec<u32>>,
}

/// A proxy to a database that records the statements.
async fn noting(database: &Database) -> (Proxy, Arc<Mutex<Sent>>) {
    let sent = Arc::<Mutex<Sent>>::default();
    let noted = Arc::clone(&sent);
    let relay = move |client: TcpStream, server: UnixStream| {
        let noted = Arc::clone(&noted);
        async move {
            let ((from_client, mut to_client), (mut from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::join!(note(from_client, to_server, noted), async {
                let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
            });
        }
    };
    (Proxy::to(database, relay).await, sent)
}

/// Forwards what a client sends, and parses it: a length before the first message, a type and a length before others.
async fn note(mut from: impl AsyncRead + Unpin, mut to: tokio::net::unix::OwnedWriteHalf, sent: Arc<Mutex<Sent>>) {
    let (mut unread, mut is_first) = (vec![], true);
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        unread.extend_from_slice(&buffer[..count]);
        loop {
            let head = usize::from(!is_first);
            let Some(length) = unread.get(head..head + 4) else { break };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize + head;
            if unread.len() < length {
                break;
            }
            let message: Vec<u8> = unread.drain(..length).collect();
            let mut sent = sent.lock().expect("no one panics while holding it");
            if !is_first && message[0] == b'P' {
                let (text, types) = parse(&message[5..]);
                sent.statements.insert(text, types);
            }
            if let Some(settings) = settings(&message).filter(|_| is_first) {
                sent.settings = settings;
            }
            is_first = false;
        }
    }
}

/// The start-up options, as statements; `None` without any, as in the tests' own connections.
fn settings(start: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(start).into_owned();
    let options = text.split('\0').skip_while(|part| *part != "options").nth(1)?;
    let set = |option: &str| {
        let (name, value) = option.split_once('=').expect("a setting");
        format!("SELECT set_config('{name}', '{}', false)", value.replace('\\', ""))
    };
    Some(options.split("-c ").skip(1).map(|option| set(option.trim_end())).collect::<Vec<_>>().join("; "))
}

/// The content of a `Parse` message: the statement's name, its text, and its parameter types.
fn parse(body: &[u8]) -> (String, Vec<u32>) {
    let mut parts = body.splitn(3, |byte| *byte == 0).skip(1);
    let text = String::from_utf8(parts.next().expect("a text").to_vec()).expect("UTF-8");
    let types = parts.next().expect("types")[2..].chunks_exact(4);
    (text, types.map(|oid| u32::from_be_bytes(oid.try_into().expect("four bytes"))).collect())
}

/// Several projects, users with few sessions and one with thousands, an audit log of a year.
const ROWS: &str = "
    INSERT INTO projects SELECT (jsonb_populate_record(p, jsonb_build_object('id', name))).*
        FROM projects AS p, unnest('{a,b,c,zz}'::text[]) AS name;
    CREATE TEMPORARY TABLE filled AS SELECT i, md5(i::text) AS hash,
            (ARRAY['demo','demo','demo','demo','demo','demo','a','b','c','zz'])[1 + i % 10] AS project,
            CASE WHEN i % 20 = 0 THEN 'many' ELSE 'user-' || i % 10007 END AS user,
            now() - interval '300 days' + i * interval '4 minutes' AS at FROM generate_series(0, 99999) AS i;
    ALTER TABLE filled ADD COLUMN id uuid;
    UPDATE filled SET id = (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3)
        || '8' || substr(hash, 4, 15))::uuid;
    INSERT INTO users (project_id, user_id, epoch) SELECT DISTINCT project, \"user\", 0 FROM filled;
    INSERT INTO sessions SELECT project, id, \"user\", 0, 0, at, at, at + interval '365 days', 7776000000,
            at + interval '90 days', at + interval '10 minutes', CASE WHEN i % 3 = 0 THEN at + interval '1 hour' END,
            CASE WHEN i % 3 = 0 THEN 1 END, decode(hash || hash, 'hex'), 0, '{0}', ARRAY[at], NULL, NULL, NULL, '{}',
            'phone', 'agent', NULL, '{}', '{}' FROM filled;
    INSERT INTO feed_writers SELECT i, now() - interval '9 days' FROM generate_series(1, 200) AS i;
    INSERT INTO revocations (project_id, id, at, reason, session_id, user_id, access_expires_at, actor, ip, writer, seq)
        SELECT project, id, at, 1, id, \"user\", at, 1, '192.0.2.7', 1 + i % 200, 1 + i / 200 FROM filled;
    UPDATE feed_writers SET last = 500, closed_at = now() - interval '3 days' WHERE id <= 50;
    INSERT INTO audit_events SELECT project, id, at, 2, id, \"user\", NULL, NULL, NULL, 1, NULL, '192.0.2.1' FROM filled;
    INSERT INTO session_requests (project_id, request_id, session_id, digest, created_at)
        SELECT project, hash::uuid, id, sha256(''), now() - i * interval '1 second' FROM filled;
    INSERT INTO backchannel_endpoints SELECT project, md5(project || i)::uuid, 1 + i % 2, 'https://example.org', 'shop',
            now(), CASE WHEN i = 9 THEN now() - interval '300 days' END
        FROM unnest('{demo,a,b,c,zz}'::text[]) AS project, generate_series(0, 9) AS i;
    INSERT INTO backchannel_endpoints SELECT 'other-' || i, md5(i::text)::uuid, 1, 'https://example.org', 'shop', now(), NULL
        FROM generate_series(1, 5000) AS i;
    INSERT INTO backchannel_deliveries (project_id, id, endpoint_id, revocation_id, session_id, user_id, at, reason, actor,
            queued_at, due_at, delivered_at, dead_at)
        SELECT project, id, md5(project || i % 9)::uuid, id, id, CASE WHEN i % 4 < 3 THEN \"user\" END, at, 1, 1, at,
            CASE WHEN i % 4 = 0 THEN now() END, CASE WHEN i % 4 IN (1, 2) THEN at END, CASE WHEN i % 4 = 3 THEN at END
        FROM filled;
    UPDATE projects SET sessions_max = 3, sessions_overflow = 2 WHERE id = 'demo';
    ANALYZE";

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_finds_its_rows_by_an_index() {
    let direct = Database::create().await;
    let (proxy, sent) = noting(&direct).await;
    let service = Service::start_on(Database { url: proxy.url.clone() }).await;
    direct.run(ROWS).await;
    service.app.keys().reload().await.expect("reads the policies");

    call_everything(&service).await;
    let Sent { settings, statements: mut noted } = sent.lock().expect("no one panics while holding it").clone();
    // The settings of a new connection, which have no plan.
    noted.retain(|text, _| !text.starts_with("SET "));
    let is_of_divided = |text: &String| DIVIDED.iter().any(|beginning| text.starts_with(beginning));
    for beginning in written_by_hand().into_iter().filter(|text| !is_of_divided(text)) {
        assert!(noted.keys().any(|text| text.starts_with(&beginning)), "never sent: {beginning:?}");
    }
    assert!(noted.len() > 40, "{} statements", noted.len());

    let client = connect(&direct.url).await;
    let ask = async |query: &str| rows(&client, query).await;
    let types: HashMap<u32, String> = ask("SELECT oid, format_type(oid, NULL) FROM pg_type")
        .await
        .into_iter()
        .map(|row| (row[0].parse().expect("a number"), row[1].clone()))
        .collect();
    // Update statistics after the sweeps and erasures.
    ask("ANALYZE").await;
    let judge = async |text: &str, oids: &[u32]| {
        let plan = explain(&client, &types, text, oids).await;
        let mut found = vec![];
        inspect(&plan["Plan"], &mut found);
        if text.starts_with(FEED) {
            // As many rows as are new; the planner, without the parameters, expects a third of the table.
            found.retain(|what| !what.starts_with("Bitmap Heap Scan"));
        }
        if !plan["JIT"].is_null() {
            found.push("is compiled first".to_owned());
        }
        if found.is_empty() { String::new() } else { format!("{found:#?} in\n{text}\n{plan:#}") }
    };
    // With the server's settings, and with sequential scans made expensive: a missing index shows.
    for seqscan in ["off", "on"] {
        // A larger table looks expensive enough for JIT compilation; here any table does.
        ask(&format!("{settings}; SET enable_seqscan = {seqscan}; SET jit_above_cost = 0")).await;
        for (text, oids) in &noted {
            let wrong = judge(text, oids).await;
            assert!(wrong.is_empty(), "with enable_seqscan {seqscan}: {wrong}");
        }
        // Statements without an index are found.
        for bad in ["SELECT id FROM sessions WHERE device_name = 'x'", "SELECT id FROM revocations ORDER BY at LIMIT 9"]
        {
            assert!(!judge(bad, &[]).await.is_empty(), "{bad}");
        }
    }
    assert_linear_without_statistics(&settings, &noted, &types).await;
    assert_one_shard_each(&noted, &types).await;
}

/// Explains each statement in a database that has grown and was never analysed: whatever the planner believes, no statement
/// multiplies the rows of a table by those of another, or of the same.
async fn assert_linear_without_statistics(
    settings: &str,
    noted: &BTreeMap<String, Vec<u32>>,
    types: &HashMap<u32, String>,
) {
    let database = Database::create().await;
    for table in LARGE {
        database.run(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)")).await;
    }
    database.run(&ROWS.replace("99999", "1999").replace("ANALYZE", "")).await;
    let client = connect(&database.url).await;
    client.batch_execute(settings).await.expect("sets");
    let degree_of = async |text: &str, oids: &[u32]| {
        let plan = explain(&client, types, text, oids).await;
        (Degree::of(&plan["Plan"]).work, plan)
    };
    // Both keys are there, and the planner uses neither.
    let bad = "SELECT s.id FROM unnest($1, $2) AS a (project_id, id)
        JOIN sessions AS s ON s.slot = $3 AND s.project_id = a.project_id AND s.id = a.id
        JOIN users AS u ON u.slot = $3 AND u.project_id = s.project_id AND u.user_id = s.user_id
        JOIN projects AS p ON p.id = s.project_id";
    let of = |name: &str| *types.iter().find(|(_, known)| *known == name).expect("a type").0;
    let (found, plan) = degree_of(bad, &[of("text[]"), of("uuid[]"), of("smallint")]).await;
    assert_eq!(found, 2, "this test shows something: {plan:#}");
    let mut wrong = vec![];
    for (text, oids) in noted {
        let (found, plan) = degree_of(text, oids).await;
        if found > 1 {
            wrong.push(format!("{plan:#} of\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{} statements multiply rows:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// What a plan node does with `n` rows in each large table: its work is `n` to the power of `work`, and so with the rows that it
/// returns.
#[derive(Clone, Copy, Default)]
struct Degree {
    work: usize,
    rows: usize,
}

impl Degree {
    fn of(node: &Value) -> Self {
        let kind = node["Node Type"].as_str().unwrap_or_default();
        let name = node["Relation Name"].as_str().or(node["Index Name"].as_str()).unwrap_or_default();
        let is_large = LARGE.iter().any(|table| name.starts_with(table));
        // A condition begins with a column of the table itself.
        let columns = |condition: &str| -> Vec<String> {
            let parts = node[condition].as_str().unwrap_or_default().split(" AND ");
            parts.filter_map(|part| Some(part.trim_start_matches('(').split(' ').next()?.to_owned())).collect()
        };
        let is_by_key =
            columns("Index Cond").iter().any(|column| !["", "project_id", "slot"].contains(&column.as_str()));
        // It reads all rows, and returns those that were asked for.
        let finds_few = columns("Filter").iter().any(|column| ["id", "user_id"].contains(&column.as_str()));
        let is_read = kind.ends_with("Scan") && kind != "Bitmap Heap Scan" && is_large && !is_by_key;
        let mut degree = Self { work: usize::from(is_read), rows: usize::from(is_read && !finds_few) };
        let mut repeated = 0;
        for below in node["Plans"].as_array().into_iter().flatten() {
            let Self { work, rows } = Self::of(below);
            match below["Parent Relationship"].as_str() {
                Some("SubPlan") => repeated = repeated.max(work),
                // For each row so far.
                Some("Inner") if kind == "Nested Loop" => {
                    degree = Self { work: degree.work.max(degree.rows + work), rows: degree.rows + rows };
                }
                // Prepared once.
                Some("InitPlan") => degree.work = degree.work.max(work),
                _ => degree = Self { work: degree.work.max(work), rows: degree.rows.max(rows) },
            }
        }
        Self { work: degree.work.max(degree.rows + repeated), rows: degree.rows }
    }
}

/// The names of a statement's parameter types.
fn names_of<'a>(types: &'a HashMap<u32, String>, oids: &[u32]) -> Vec<&'a str> {
    oids.iter().map(|oid| types.get(oid).map_or("unknown", String::as_str)).collect()
}

/// A list for PREPARE or EXECUTE; an empty one is left out.
fn in_parentheses<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    if items.is_empty() { String::new() } else { format!("({})", items.join(", ")) }
}

/// A statement's plan, as the server would have it: a generic one.
async fn explain(client: &Client, types: &HashMap<u32, String>, text: &str, oids: &[u32]) -> Value {
    let names = names_of(types, oids);
    let (declared, given) = (in_parentheses(&names), in_parentheses(&vec!["NULL"; names.len()]));
    rows(client, &format!("PREPARE noted{declared} AS {text}")).await;
    let plan = rows(client, &format!("EXPLAIN (FORMAT JSON) EXECUTE noted{given}")).await;
    rows(client, "DEALLOCATE noted").await;
    let plan: Value = serde_json::from_str(&plan[0][0]).expect("JSON");
    plan[0].clone()
}

/// A plan of empty tables reads all rows: it is replaced when there are some thousands.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_empty_tables_is_replaced() {
    let direct = Database::create().await;
    // Autovacuum would do the same, within a minute.
    direct.run("ALTER TABLE users SET (autovacuum_enabled = off)").await;
    let (proxy, sent) = noting(&direct).await;
    let service = Service::start_on(Database { url: proxy.url.clone() }).await;
    service.sign_in("ada", "phone").await;
    let Sent { settings, statements } = sent.lock().expect("no one panics while holding it").clone();
    let lookup = statements.keys().find(|text| text.starts_with("UPDATE users AS u SET epoch = p.users_epoch_base"));
    let lookup = lookup.expect("the epoch of a new user was raised");

    let client = connect(&direct.url).await;
    client.batch_execute(&settings).await.expect("sets");
    client.batch_execute(&format!("PREPARE lookup(text[], text[], smallint) AS {lookup}")).await.expect("prepares");
    let is_by_user = async || {
        let plan = rows(&client, "EXPLAIN EXECUTE lookup(NULL, NULL, NULL)").await;
        plan.iter().any(|line| line[0].contains("Index Cond") && line[0].contains("user_id"))
    };
    assert!(!is_by_user().await, "the plan reads all users, so this test shows something");
    direct.run("INSERT INTO users (project_id, user_id, epoch) SELECT 'demo', 'user-' || i, 0 FROM generate_series(1, 5000) AS i").await;
    eventually("a plan that looks users up", is_by_user).await;
}

/// Explains each statement at the coordinator of the cluster, if there is one: what names a slot goes to one shard.
async fn assert_one_shard_each(noted: &BTreeMap<String, Vec<u32>>, types: &HashMap<u32, String>) {
    let Some(database) = Database::create_on_cluster("plans").await else { return };
    let client = connect(&database.url).await;
    let (mut one, mut wrong) = (0, vec![]);
    for (text, oids) in noted {
        let slot_at = slot_parameter(text);
        let is_distributed = DISTRIBUTED.iter().any(|table| {
            ["FROM ", "JOIN ", "INTO ", "UPDATE "].iter().any(|before| {
                text.contains(&format!("{before}{table}")) || text.contains(&format!("{before}\"{table}\""))
            })
        });
        let is_allowed = |beginnings: &[&str]| beginnings.iter().any(|beginning| text.starts_with(beginning));
        // A page of a project's sessions differs from a user's by its conditions alone.
        let is_page = text.contains("ORDER BY \"sessions\".\"id\" DESC") && slot_at.is_none();
        if !is_distributed || is_page || is_allowed(&ACROSS) || text.starts_with(FEED) {
            continue;
        }
        let names = names_of(types, oids);
        let values = names.iter().enumerate().map(|(at, name)| {
            if Some(at + 1) == slot_at { "'5'::smallint".to_owned() } else { format!("'{}'::{name}", any_value(name)) }
        });
        let (declared, given) = (in_parentheses(&names), in_parentheses(&values.collect::<Vec<_>>()));
        // One by one: within a transaction, no call of a function is sent to a node.
        let explained = async {
            client.batch_execute(&format!("PREPARE noted{declared} AS {text}")).await?;
            client.simple_query(&format!("EXPLAIN (COSTS OFF) EXECUTE noted{given}")).await
        };
        let explained = explained.await;
        client.batch_execute("DEALLOCATE ALL").await.expect("forgets it");
        let plan = match explained {
            Ok(messages) => messages
                .iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => format!("{error:?}"),
        };
        let tasks = plan.matches("Task Count: ").count();
        if tasks == 1 && plan.contains("Task Count: 1\n") && !plan.contains("pull to coordinator") {
            one += 1;
        } else if !is_allowed(&AT_COORDINATOR) {
            wrong.push(format!("{plan}\nof {text}"));
        }
    }
    assert!(wrong.is_empty(), "{} statements do not go to one shard:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(one > 40, "{one} statements go to one shard");
    eprintln!("{one} statements go to one shard");
}

/// Which parameter is the slot, counted from 1; `None` if the statement names none.
fn slot_parameter(text: &str) -> Option<usize> {
    if text.contains("sessions_revoke(") {
        return Some(11);
    }
    let after = ["slot = $", "slot\" = $", "slot\" = ($"].iter().find_map(|before| text.split_once(before));
    let number = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    match after {
        Some((_, rest)) => number(rest),
        // The last value of an insert.
        None => text.contains(" VALUES (").then(|| text.rsplit_once('$')).flatten().and_then(|(_, rest)| number(rest)),
    }
}

/// Any value of a type, as text.
fn any_value(name: &str) -> String {
    match name.strip_suffix("[]") {
        Some("jsonb") => "{\"{}\"}".to_owned(),
        Some(element) => format!("{{{}}}", any_value(element)),
        None => match name {
            "uuid" => "00000000-0000-7000-8000-000000000000",
            "timestamp with time zone" => "2026-01-01",
            "boolean" => "true",
            "bytea" => "\\x00",
            "jsonb" => "{}",
            "text" | "character varying" => "x",
            _ => "1",
        }
        .to_owned(),
    }
}

/// The tables that are divided by slot.
const DISTRIBUTED: [&str; 7] =
    ["users", "sessions", "session_requests", "revocations", "audit_events", "backchannel_deliveries", "feed_writers"];

/// The beginnings of statements that concern all users, and so ask every shard: for operators, for a service that lists a whole
/// project, and for a replica that starts.
const ACROSS: [&str; 6] = [
    "SELECT r.writer, r.seq, r.id",
    "SELECT \"audit_events\"",
    "SELECT \"revocations\".\"id\", \"revocations\".\"at\"",
    "SELECT \"sessions\".\"id\", \"sessions\".\"created_at\"",
    "SELECT \"backchannel_deliveries\".\"id\"",
    "SELECT \"backchannel_deliveries\".\"slot\"",
];

/// The beginnings of statements that read from one shard, or from the tables on every node, and write to one shard.
const AT_COORDINATOR: [&str; 3] = [
    "INSERT INTO users (project_id, user_id, epoch, slot) SELECT id,",
    "INSERT INTO users (project_id, user_id, epoch, slot)\n",
    "INSERT INTO backchannel_deliveries (project_id, id, endpoint_id, revocation_id, session_id, user_id, at, reason,\n",
];

/// The problems of a plan node, and of its children.
fn inspect(node: &Value, found: &mut Vec<String>) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let table = node["Relation Name"].as_str().unwrap_or_default();
    let rows = node["Plan Rows"].as_f64().unwrap_or_default();
    match kind {
        "Seq Scan" if LARGE.contains(&table) => found.push(format!("reads all of {table}")),
        "Index Scan" | "Index Only Scan" if LARGE.contains(&table) && node["Index Cond"].is_null() => {
            found.push(format!("reads all of {table}, by an index"));
        }
        "Bitmap Index Scan" if node["Index Cond"].is_null() => found.push("reads an index as a whole".to_owned()),
        "Sort" | "Hash" | "Materialize" | "Merge Join" | "Bitmap Heap Scan" if rows > ASIDE_MAX => {
            found.push(format!("{kind} of {rows} rows"));
        }
        _ => {}
    }
    for below in node["Plans"].as_array().into_iter().flatten() {
        inspect(below, found);
    }
}

/// The beginnings of the statements written by hand: each must have been sent.
fn written_by_hand() -> Vec<String> {
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store")];
    let mut beginnings = vec![];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("reads") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let source = fs::read_to_string(&path).expect("reads");
            for block in source.split("\nstatement! {").skip(1) {
                let (_, text) = block.split_once("=\n    \"").expect("a text");
                beginnings.push(text.split_once('"').expect("an end").0.to_owned());
            }
        }
    }
    assert!(beginnings.len() > 35, "they were found: {}", beginnings.len());
    beginnings
}

/// Calls every RPC, and runs everything else that uses the database.
async fn call_everything(service: &Service) {
    let mut called = BTreeSet::new();
    let project = ProjectId::parse(PROJECT).expect("a name");
    let key = bearer(service.server_key.expose_secret());
    let admin = service.app.server_key_create(project.clone(), Role::Admin).await.expect("makes a key").1;
    let user = |name: &str| Some(name.to_owned());
    let request_id = || Some(sessiond_core::clock::new_uuid().to_string());
    macro_rules! call {
        ($method:literal, $headers:expr, $request:expr => $answer:ty) => {{
            // Concurrent sign-ins have no order, so the evicted session would be random.
            service.clock.advance(Duration::from_millis(1));
            called.insert($method);
            let answer: $answer = send(service, $method, $headers, $request).await;
            answer
        }};
    }

    let create = CreateSessionRequest { user_id: "ada".to_owned(), request_id: request_id(), ..Default::default() };
    // The fourth evicts the first.
    for _ in 0..4 {
        let another = CreateSessionRequest { request_id: request_id(), ..create.clone() };
        call!("CreateSession", key.clone(), another => CreateSessionResponse);
    }
    call!("CreateSession", key.clone(), create.clone() => CreateSessionResponse);
    // Without a limit and a request id, sign-ins are carried out in groups.
    let unlimited = bearer(service.create_project("unlimited").await.expose_secret());
    let plain = CreateSessionRequest { user_id: "ada".to_owned(), ..Default::default() };
    call!("CreateSession", unlimited, plain => CreateSessionResponse);
    let first = call!("CreateSession", key.clone(), create.clone() => CreateSessionResponse);
    let old = first.session.expect("a session").id;
    let replacing = CreateSessionRequest {
        user_id: "ada".to_owned(),
        replaces_session_id: Some(old),
        ..CreateSessionRequest::default()
    };
    let phone = call!("CreateSession", key.clone(), replacing.clone() => CreateSessionResponse);
    let laptop = call!("CreateSession", key.clone(), CreateSessionRequest { replaces_session_id: None, ..replacing }
        => CreateSessionResponse);
    let (phone_id, laptop_id) = (phone.session.expect("one").id, laptop.session.expect("one").id);
    let refreshed = call!("RefreshSession", refresh_token(&phone.refresh_token), RefreshSessionRequest::default()
        => RefreshSessionResponse);
    let held = bearer(&refreshed.access_token);

    for (headers, user_id) in [(held.clone(), user("me")), (key.clone(), user("many")), (key.clone(), None)] {
        let list = ListSessionsRequest { user_id, page_size: Some(2), ..Default::default() };
        let page = call!("ListSessions", headers.clone(), list.clone() => ListSessionsResponse);
        if !page.next_page_token.is_empty() {
            let next = ListSessionsRequest { page_token: page.next_page_token, ..list };
            call!("ListSessions", headers, next => ListSessionsResponse);
        }
    }
    service.clock.advance(Duration::from_secs(61));
    call!("GetCurrentSession", held.clone(), GetCurrentSessionRequest {} => GetCurrentSessionResponse);
    service.app.flush_usage().await.expect("writes down");
    service.app.flush_refused().await.expect("writes down");
    assert!(service.store.refresh_statistics().await.expect("looks at the tables"));
    let session = Session { id: phone_id, device_name: user("phone"), ..Session::default() };
    let update =
        UpdateSessionRequest { session: Some(session), supersede_tokens: true, ..UpdateSessionRequest::default() };
    call!("UpdateSession", key.clone(), update => UpdateSessionResponse);
    for tokens in [1, 3] {
        let tokens = vec![refreshed.refresh_token.clone(); tokens];
        call!("BatchIntrospect", key.clone(), BatchIntrospectRequest { tokens } => BatchIntrospectResponse);
    }
    let token = refreshed.access_token.clone();
    call!("IntrospectToken", key.clone(), IntrospectTokenRequest { token } => IntrospectTokenResponse);

    let end = RevokeSessionRequest { id: laptop_id, user_id: None };
    call!("RevokeSession", held.clone(), end.clone() => RevokeSessionResponse);
    call!("RevokeSession", key.clone(), end => RevokeSessionResponse);
    let others = RevokeAllSessionsRequest {
        user_id: None,
        except_current: true,
        request_id: request_id(),
        ..RevokeAllSessionsRequest::default()
    };
    call!("RevokeAllSessions", held.clone(), others => RevokeAllSessionsResponse);
    let all = RevokeAllSessionsRequest {
        user_id: user("user-1"),
        except_current: false,
        request_id: request_id(),
        ..RevokeAllSessionsRequest::default()
    };
    call!("RevokeAllSessions", key.clone(), all => RevokeAllSessionsResponse);
    let both = both(held, refresh_token(&refreshed.refresh_token));
    call!("RevokeCurrent", both, RevokeCurrentRequest {} => RevokeCurrentResponse);
    // After everything that needs a live session, except the last.
    let everybody = RevokeProjectSessionsRequest { request_id: request_id() };
    let admin_key = bearer(admin.expose_secret());
    call!("RevokeProjectSessions", admin_key, everybody => RevokeProjectSessionsResponse);
    let erase = EraseUserRequest { user_id: "user-2".to_owned() };
    call!("EraseUser", bearer(admin.expose_secret()), erase => EraseUserResponse);

    // The feed runs by itself: its first statements, and the later ones.
    eventually("the feed is read", async || service.app.feed().age().is_some()).await;
    called.insert("WatchRevocations");
    let mut watch = service.wires.watch(Wire::Grpc, key.clone(), "").await.expect("may follow");
    watch.snapshot().await;

    let pool = DescriptorPool::decode(DESCRIPTOR_SET).expect("the descriptors decode");
    let methods = pool.get_service_by_name("sessiond.v1.SessionService").expect("the service");
    let methods: Vec<_> = methods.methods().map(|method| method.name().to_owned()).collect();
    let missing: Vec<_> = methods.iter().filter(|method| !called.contains(method.as_str())).collect();
    assert!(missing.is_empty(), "not called: {missing:?}");

    for user in [None, UserId::parse("many")] {
        let asked = RecordQuery::newest(project.clone(), user, 10);
        assert!(!service.store.revocations(asked.clone()).await.expect("reads").is_empty());
        assert!(!service.store.events(asked.clone()).await.expect("reads").is_empty());
        service.store.sessions_created(asked).await.expect("reads");
    }
    deliver(service, &project).await;
    service.database.run("INSERT INTO users (project_id, user_id, epoch) VALUES ('demo', 'nobody', 0)").await;
    let retention = RetentionPeriods { ended_sessions: DAY * 299, audit: DAY * 295, addresses: DAY * 290 };
    let sweeper = Sweeper::new(service.store.clone(), service.clock.clone(), retention, Metrics::default());
    let removed = sweeper.run_once().await.expect("sweeps");
    let nothing: Vec<_> =
        removed.iter().filter(|(kind, rows)| *rows == 0 && !kind.as_str().ends_with("keys")).collect();
    assert!(nothing.is_empty(), "a statement was not sent: {removed:?}");
}

/// The statements of delivery workers and of operators.
async fn deliver(service: &Service, project: &ProjectId) {
    let (store, now) = (&service.store, service.clock.now());
    assert!(store.deliveries_count(10_000).await.expect("counts").iter().all(|(_, count)| *count > 0));
    let claim = DeliveryClaim {
        after: EndpointPosition::default(),
        under_way: vec![sessiond_core::clock::new_uuid()],
        each_max: 2,
        rows_max: 50,
        now: now + DAY,
        lost_at: now + DAY * 2,
    };
    let taken = store.deliveries_claim(claim).await.expect("takes some");
    assert_eq!(taken.len(), 50);
    store.delivery_done(&taken[0], now).await.expect("writes");
    store.delivery_failed(&taken[1], RetryDecision::Dead, "no".to_owned(), now).await.expect("writes");
    let revived = store.delivery_revive(taken[1].project.clone(), taken[1].id, now).await.expect("writes");
    assert_eq!(revived, Revived::Done);
    assert_eq!(store.deliveries_open(project.clone(), 10).await.expect("reads").len(), 10);
    let endpoints = service.app.endpoints(project.clone()).await.expect("reads");
    assert!(!service.app.endpoint_remove(project.clone(), endpoints[0].id).await.expect("removes"));
    let (url, audience) = ("https://example.org/another".to_owned(), "shop".to_owned());
    let new = NewEndpoint { project: project.clone(), kind: endpoints[0].kind, url, audience };
    service.app.endpoint_add(new, &[]).await.expect("adds one");
}

async fn send<A, B>(service: &Service, method: &str, headers: HeaderMap, request: A) -> B
where
    A: Message + Clone + 'static,
    B: Message + Default + 'static,
{
    let answer = service.wires.call(Wire::Grpc, method, headers, &request).await;
    answer.unwrap_or_else(|refused| panic!("{method}: {refused:?}"))
}
