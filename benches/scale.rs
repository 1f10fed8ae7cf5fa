//! The cost of size: the same calls with a hundred thousand and with ten million sessions, and signing out while ten
//! million ended sessions are deleted.
//!
//! `cargo bench --bench scale` takes a minute with a million sessions. `SESSIOND_SCALE_SESSIONS=10000000 cargo bench
//! --bench scale` is the full run: it takes about a quarter of an hour, and 15 GB below `SESSIOND_SCALE_DIR` (default:
//! the system's temporary directory), which are deleted at the end.
//!
//! One Postgres with full durability, two databases, a server on each. The servers take turns within each round, so
//! that disturbances affect both. Sessions are written by SQL; tokens are made with the server's own keys.

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the tests, which use the rest")]
mod harness;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use dev_postgres::Cluster;
use dev_postgres::Durability;
use dev_postgres::Options;
use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use diesel::sql_types::Binary;
use diesel::sql_types::Text;
use diesel_async::AsyncConnection as _;
use diesel_async::AsyncPgConnection;
use diesel_async::RunQueryDsl as _;
use diesel_async::SimpleAsyncConnection as _;
use harness::ISSUER;
use harness::PROJECT;
use harness::Service;
use harness::Wire;
use harness::bearer;
use harness::database::Database;
use harness::refresh_token;
use secrecy::ExposeSecret as _;
use sessiond::app::Sweeper;
use sessiond::pb::BatchIntrospectRequest;
use sessiond::pb::BatchIntrospectResponse;
use sessiond::pb::IntrospectTokenRequest;
use sessiond::pb::IntrospectTokenResponse;
use sessiond::pb::ListSessionsRequest;
use sessiond::pb::ListSessionsResponse;
use sessiond::store::Store;
use sessiond::telemetry::Metrics;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::retention::RetentionPeriods;
use sessiond_core::token::access::Claims;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::refresh::Link;
use sessiond_core::token::refresh::RowSecret;

const SMALL: i64 = 100_000;
const SESSIONS_PER_USER: i64 = 10;
/// Sessions of one user, in the large database.
const MANY: i64 = 10_000;
const CALLS: usize = 50;
const BATCH: usize = 1_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The interval of sign-outs during the deletion: each one is timed.
const BETWEEN_SIGN_OUTS: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() {
    let sessions: i64 = setting("SESSIOND_SCALE_SESSIONS", 1_000_000);
    let rounds: usize = setting("SESSIOND_SCALE_ROUNDS", 10);
    let dir = env::var_os("SESSIOND_SCALE_DIR").map_or_else(env::temp_dir, PathBuf::from).join("sessiond-scale");
    let cluster = Cluster::start(options(dir.clone())).await.expect("Postgres starts");
    let small = load(&cluster, "small", SMALL, 0).await;
    let large = load(&cluster, "large", sessions, MANY).await;

    compare_sizes(&small, &large, sessions, rounds).await;
    compare_users(&large, rounds).await;
    compare_batches(&large, rounds).await;
    drop(small);
    remove_all(&large, sessions).await;

    drop(large);
    let home = cluster.log().parent().expect("a directory").to_owned();
    cluster.stop().await.expect("stops");
    for dir in [home, dir] {
        if dir.exists() {
            fs::remove_dir_all(dir).expect("deletes");
        }
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn options(data_dir: PathBuf) -> Options {
    let settings = [
        ("shared_buffers", "2GB"),
        ("maintenance_work_mem", "1GB"),
        ("max_wal_size", "2GB"),
        // Rows written in the transaction that created the table are not logged.
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
    ];
    Options {
        data_dir,
        postgres_bin: None,
        watchdog: env!("CARGO_BIN_EXE_sessiond").into(),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        durability: Durability::Full,
    }
}

/// A server on a database with this many live sessions, and this many of one user.
async fn load(cluster: &Cluster, name: &str, sessions: i64, of_many: i64) -> Service {
    let mut admin = AsyncPgConnection::establish(&cluster.database_url("postgres")).await.expect("connects");
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("creates");
    let database = Database { url: cluster.database_url(name) };
    database.migrate().await;
    let service = Service::start_on(database).await;

    let started = Instant::now();
    let users = sessions / SESSIONS_PER_USER;
    let every = if of_many == 0 { sessions + 1 } else { sessions / of_many };
    let now = service.clock.now().as_millis();
    service
        .database
        .run(&format!(
            "BEGIN;
             TRUNCATE users, sessions;
             ALTER TABLE sessions DROP CONSTRAINT sessions_pkey;
             DROP INDEX sessions_user_idx;
             INSERT INTO users (project_id, user_id, epoch) SELECT '{PROJECT}', 'user-' || i, 0
             FROM generate_series(0, {users} - 1) AS i UNION ALL SELECT '{PROJECT}', 'many', 0;
             {insert};
             ALTER TABLE sessions ADD CONSTRAINT sessions_pkey PRIMARY KEY (project_id, id);
             CREATE INDEX sessions_user_idx ON sessions (project_id, user_id, id DESC);
             COMMIT",
            insert = insert(
                sessions,
                now - 20 * i64::try_from(DAY.as_millis()).expect("fits"),
                now,
                &format!(
                    "CASE WHEN i % {every} = 0 AND i > 0 THEN 'many' ELSE 'user-' || (i * 2654435761) % {users} END"
                ),
            ),
        ))
        .await;
    let loaded = started.elapsed();
    service.database.run("VACUUM (ANALYZE)").await;
    let size = "SELECT pg_table_size('sessions') AS heap, pg_indexes_size('sessions') AS indexes";
    let size: Size = row(&service, size).await;
    println!(
        "{name}: {sessions} sessions of {users} users in {:.0} s, vacuumed after {:.0} s; {} MB and {} MB of indexes",
        loaded.as_secs_f64(),
        started.elapsed().as_secs_f64(),
        size.heap / 1_000_000,
        size.indexes / 1_000_000
    );
    service
}

/// Writes sessions as if created by sign-ins between two times.
fn insert(sessions: i64, from_millis: i64, to_millis: i64, user: &str) -> String {
    const AGENT: &str =
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
    format!(
        "INSERT INTO sessions SELECT '{PROJECT}',
             (lpad(to_hex(at), 12, '0') || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid,
             {user}, epoch, 0, opened, opened, opened + interval '365 days', 7776000000, opened + interval '90 days',
             opened + interval '10 minutes', NULL, NULL, decode(hash || md5(hash), 'hex'), 0, '{{0}}', ARRAY[opened],
             NULL, NULL, NULL, '{{}}', 'Chrome on Linux', '{AGENT}', '198.51.100.7', '{{}}', '{{\"role\": \"member\"}}'
         FROM (SELECT i, at, md5(i::text) AS hash, timestamptz 'epoch' + at * interval '1 millisecond' AS opened
             FROM (SELECT i, {from_millis} + i * ({to_millis} - {from_millis}) / {sessions} AS at
                 FROM generate_series(0::bigint, {sessions} - 1) AS i) AS times) AS rows,
             projects WHERE projects.id = '{PROJECT}'"
    )
}

#[derive(QueryableByName)]
struct Size {
    #[diesel(sql_type = BigInt)]
    heap: i64,
    #[diesel(sql_type = BigInt)]
    indexes: i64,
}

#[derive(QueryableByName)]
struct Sample {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: uuid::Uuid,
    #[diesel(sql_type = Text)]
    user_id: String,
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = Binary)]
    secret: Vec<u8>,
}

async fn row<T>(service: &Service, query: &str) -> T
where
    T: QueryableByName<diesel::pg::Pg> + Send + 'static,
{
    let rows: Vec<T> = sql_query(query).load(&mut service.database.connect().await).await.expect("reads");
    rows.into_iter().next().expect("a row")
}

/// A client's tokens of one session.
struct Tokens {
    access: String,
    refresh: String,
}

/// Tokens of this many live sessions, spread over the table, made with the server's own keys.
async fn tokens(service: &Service, count: usize, source: &str) -> Vec<Tokens> {
    let query = format!(
        "SELECT id, user_id, project_epoch AS epoch, refresh_secret AS secret FROM {source}
         WHERE revoked_at IS NULL AND refresh_generation = 0 ORDER BY random() LIMIT {count}"
    );
    let rows: Vec<Sample> = sql_query(query).load(&mut service.database.connect().await).await.expect("reads");
    assert_eq!(rows.len(), count, "the table holds as many");
    let (now, project) = (service.clock.now(), ProjectId::parse(PROJECT).expect("a name"));
    let snapshot = service.app.keys().snapshot();
    let signing = snapshot.signs_for(&project, now).expect("a key");
    let refreshing = snapshot.refreshes_for(&project, now).expect("a key");
    let mint = |row: Sample| {
        let claims = Claims {
            iss: Issuer::new(ISSUER).of(PROJECT),
            sub: row.user_id,
            aud: PROJECT.to_owned(),
            client_id: PROJECT.to_owned(),
            iat: now.as_seconds(),
            exp: now.as_seconds() + 600,
            jti: row.id.to_string(),
            sid: row.id.to_string(),
            epoch: [row.epoch, 0],
            session_epoch: 0,
            project_id: PROJECT.to_owned(),
            refresh_token_id: row.id.to_string(),
            auth_time: None,
            acr: None,
            amr: vec![],
            act: None,
            own: serde_json::Map::new(),
        };
        let secret = RowSecret::from_bytes(&row.secret).expect("32 bytes");
        let first = Link { generation: 0, attempt: 0 };
        let refresh = refreshing.mint(SessionId::from_uuid(row.id), first, &secret);
        let access = signing.sign(&claims).expect("signs");
        Tokens { access: access.expose_secret().to_owned(), refresh: refresh.expose_secret().to_owned() }
    };
    rows.into_iter().map(mint).collect()
}

/// Pages spread over the table, with about three times as many rows as needed.
fn spread(wanted: usize, rows: i64) -> String {
    let percent = (300.0 * wanted as f64 / rows as f64).min(100.0);
    format!("sessions TABLESAMPLE SYSTEM ({percent})")
}

#[derive(Clone, Copy, Debug)]
enum Call {
    RevokeCurrent,
    RefreshSession,
    IntrospectToken,
    ListSessions,
}

const CALLS_OF_A_ROUND: [Call; 4] =
    [Call::RevokeCurrent, Call::RefreshSession, Call::IntrospectToken, Call::ListSessions];

async fn call(service: &Service, call: Call, tokens: &Tokens) {
    match call {
        Call::RevokeCurrent => {
            let answer = service.revoke_current(Wire::Grpc, bearer(&tokens.access)).await.expect("signs out");
            assert!(answer.success && answer.already_revoked.is_none());
        }
        Call::RefreshSession => {
            service.refresh(Wire::Grpc, refresh_token(&tokens.refresh)).await.expect("refreshes");
        }
        Call::IntrospectToken => introspect(service, &tokens.access).await,
        Call::ListSessions => {
            let request = ListSessionsRequest { user_id: Some("me".to_owned()), ..ListSessionsRequest::default() };
            let answer: ListSessionsResponse =
                service.wires.call(Wire::Grpc, "ListSessions", bearer(&tokens.access), &request).await.expect("lists");
            assert!(!answer.items.is_empty());
        }
    }
}

async fn introspect(service: &Service, token: &str) {
    let request = IntrospectTokenRequest { token: token.to_owned() };
    let key = bearer(service.server_key.expose_secret());
    let answer: IntrospectTokenResponse =
        service.wires.call(Wire::Grpc, "IntrospectToken", key, &request).await.expect("tells");
    assert!(answer.active);
}

/// The measured times of one side of a comparison.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn at(&mut self, percent: usize) -> Duration {
        self.0.sort_unstable();
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

fn print_ratio(what: &str, one: &mut Times, other: &mut Times, bound: f64) {
    let (a, b) = (one.at(50).as_secs_f64(), other.at(50).as_secs_f64());
    println!("{what:<34} {:>9.0} µs {:>9.0} µs {:>8.2}   bound {bound}", a * 1e6, b * 1e6, b / a);
}

async fn compare_sizes(small: &Service, large: &Service, sessions: i64, rounds: usize) {
    println!("\n{:<34} {SMALL:>12} {sessions:>12}    ratio", "medians, by number of sessions");
    for kind in CALLS_OF_A_ROUND {
        let mut times = [Times::default(), Times::default()];
        let count = rounds * CALLS;
        let held = [tokens(small, count, "sessions").await, tokens(large, count, &spread(count, sessions)).await];
        for round in 0..rounds {
            // The order changes from round to round.
            for side in [round % 2, 1 - round % 2] {
                let service = [small, large][side];
                for tokens in &held[side][round * CALLS..][..CALLS] {
                    let started = Instant::now();
                    call(service, kind, tokens).await;
                    times[side].0.push(started.elapsed());
                }
            }
        }
        let [small_times, large_times] = &mut times;
        print_ratio(&format!("{kind:?}"), small_times, large_times, 1.25);
        match kind {
            Call::RevokeCurrent | Call::RefreshSession => {}
            // Again: the first call may have waited for the disk.
            Call::IntrospectToken | Call::ListSessions => {
                let mut times = [Times::default(), Times::default()];
                for (at, pair) in held[0].iter().zip(&held[1]).enumerate() {
                    let pair = [pair.0, pair.1];
                    for side in [at % 2, 1 - at % 2] {
                        let started = Instant::now();
                        call([small, large][side], kind, pair[side]).await;
                        times[side].0.push(started.elapsed());
                    }
                }
                let [small_times, large_times] = &mut times;
                print_ratio(&format!("{kind:?}, again"), small_times, large_times, 1.25);
            }
        }
    }
}

async fn compare_users(large: &Service, rounds: usize) {
    println!("\n{:<34} {SESSIONS_PER_USER:>12} {MANY:>12}    ratio", "medians, by the user's sessions");
    for page_size in [SESSIONS_PER_USER, 5] {
        let mut times = [Times::default(), Times::default()];
        for at in 0..rounds * CALLS {
            for side in [at % 2, 1 - at % 2] {
                let request = ListSessionsRequest {
                    user_id: Some(["user-7", "many"][side].to_owned()),
                    page_size: Some(page_size.try_into().expect("fits")),
                    ..ListSessionsRequest::default()
                };
                let key = bearer(large.server_key.expose_secret());
                let started = Instant::now();
                let answer: ListSessionsResponse =
                    large.wires.call(Wire::Grpc, "ListSessions", key, &request).await.expect("lists");
                times[side].0.push(started.elapsed());
                assert!(answer.items.len() + 3 > usize::try_from(page_size).expect("fits"));
            }
        }
        let [ten, many] = &mut times;
        print_ratio(&format!("ListSessions, a page of {page_size}"), ten, many, 1.1);
    }
}

async fn compare_batches(large: &Service, rounds: usize) {
    println!("\n{:<34} {:>12} {BATCH:>12}    ratio", "medians, by tokens in a request", 1);
    let mut times = [Times::default(), Times::default()];
    let held = tokens(large, BATCH * 2, "sessions TABLESAMPLE SYSTEM (5)").await;
    for round in 0..rounds {
        let half = if round % 2 == 0 { &held[..BATCH] } else { &held[BATCH..] };
        for tokens in &half[..CALLS] {
            let started = Instant::now();
            introspect(large, &tokens.access).await;
            times[0].0.push(started.elapsed());
        }
        let request = BatchIntrospectRequest { tokens: half.iter().map(|one| one.access.clone()).collect() };
        let key = bearer(large.server_key.expose_secret());
        let started = Instant::now();
        let answer: BatchIntrospectResponse =
            large.wires.call(Wire::Grpc, "BatchIntrospect", key, &request).await.expect("tells");
        times[1].0.push(started.elapsed());
        assert!(answer.items.iter().all(|item| item.active));
    }
    let [one, batch] = &mut times;
    print_ratio("BatchIntrospect", one, batch, 20.0);
}

/// Advances the clock until every loaded session has long ended, signs others in, and signs them out while the old ones
/// are deleted: at the pace of the background sweep, and by `sessiond sweep`.
async fn remove_all(large: &Service, sessions: i64) {
    let turn: u64 = setting("SESSIOND_SCALE_TURN_SECONDS", 10);
    large.clock.advance(DAY * 400);
    let now = large.clock.now().as_millis();
    // These are swept too in the end, when they are due.
    let fresh = (sessions / 100).max(60_000);
    large.database.run(&insert(fresh, now - 1_000, now, &format!("'user-' || i % {}", SMALL / 10))).await;
    large.database.run("ANALYZE sessions").await;
    let fresh = format!("(SELECT * FROM sessions ORDER BY id DESC LIMIT {fresh}) AS fresh");
    let mut held = tokens(large, 55_000, &fresh).await;

    let retention = RetentionPeriods { ended_sessions: DAY * 30, audit: DAY * 400, addresses: DAY * 30 };
    let store = Store::new(&harness::options(&large.database.url), Metrics::default()).expect("a good URL");
    let sweeper = Sweeper::new(store, large.clock.clone(), retention, Metrics::default());
    println!("\n{:<34} {:>12} {:>12} {:>12} {:>8}", "RevokeCurrent", "median", "p99", "max", "calls");
    let (mut rest, mut background) = (Times::default(), Times::default());
    let before = estimate(large).await;
    for _ in 0..4 {
        sign_out_until(large, &mut held, &mut rest, after(turn)).await;
        let task = tokio::spawn(sweeper.clone().run());
        sign_out_until(large, &mut held, &mut background, after(turn)).await;
        task.abort();
    }
    print_times("at rest", &mut rest);
    print_times("while the background removes", &mut background);
    let removed = before - estimate(large).await;
    println!("  {:.0} sessions a second were removed", removed as f64 / (4 * turn) as f64);

    let (started, mut fast) = (Instant::now(), Times::default());
    let task = tokio::spawn(async move {
        let removed = sweeper.run_once().await.expect("sweeps");
        (removed, started.elapsed())
    });
    sign_out_until(large, &mut held, &mut fast, || task.is_finished()).await;
    print_times("while `sessiond sweep` removes", &mut fast);
    let (removed, took) = task.await.expect("ends");
    let rows = removed.iter().map(|(kind, rows)| format!("{rows} {}", kind.as_str())).collect::<Vec<_>>().join(", ");
    println!("  {rows} were removed in {:.0} s", took.as_secs_f64());
    let mut rest = Times::default();
    sign_out_until(large, &mut held, &mut rest, after(turn)).await;
    print_times("at rest again", &mut rest);
}

fn after(seconds: u64) -> impl Fn() -> bool {
    let started = Instant::now();
    move || started.elapsed() >= Duration::from_secs(seconds)
}

async fn sign_out_until(service: &Service, held: &mut Vec<Tokens>, times: &mut Times, is_over: impl Fn() -> bool) {
    while !is_over() {
        let Some(tokens) = held.pop() else { break };
        let started = Instant::now();
        call(service, Call::RevokeCurrent, &tokens).await;
        times.0.push(started.elapsed());
        tokio::time::sleep(BETWEEN_SIGN_OUTS).await;
    }
    while !is_over() {
        tokio::time::sleep(BETWEEN_SIGN_OUTS).await;
    }
}

fn print_times(what: &str, times: &mut Times) {
    let [median, p99, max] = [50, 99, 100].map(|percent| times.at(percent).as_secs_f64() * 1e6);
    println!("{what:<34} {median:>9.0} µs {p99:>9.0} µs {max:>9.0} µs {:>8}", times.0.len());
}

#[derive(QueryableByName)]
struct Deleted {
    #[diesel(sql_type = BigInt)]
    live: i64,
}

/// The number of sessions, by Postgres's statistics.
async fn estimate(service: &Service) -> i64 {
    let query = "SELECT count(*) AS live FROM sessions";
    row::<Deleted>(service, query).await.live
}
