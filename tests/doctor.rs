//! `sessiond doctor`: each check in its bad state, against a real Postgres, and a report that leaves nothing behind and tells no
//! secret.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use dev_postgres::Cluster;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;
use sessiond_core::clock::Clock;

use crate::{
    binary::{Dir, assert_says, sessiond},
    harness::{
        SEALING_KEY,
        database::Database,
        eventually,
        pair::durable,
        serving::{Installed, Serving, free_port},
    },
    pooler::{Pooler, keeps_track},
};

/// Not the one of the database.
const OTHER_SEALING_KEY: &str = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The report of one run.
struct Report {
    succeeded: bool,
    checks: BTreeMap<String, Value>,
}

impl Report {
    fn of(output: &Output) -> Self {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("JSON: {output:?}"));
        let checks = report["checks"].as_array().expect("checks").iter();
        let named = |check: &Value| (check["name"].as_str().expect("a name").to_owned(), check.clone());
        let report = Self { succeeded: output.status.success(), checks: checks.map(named).collect() };
        assert_eq!(report.checks.len(), 23, "{:?}", report.checks);
        report
    }

    /// Asserts the state, and that the finding and the advice have these words.
    #[track_caller]
    fn says(&self, name: &str, state: &str, words: &[&str]) -> &Self {
        let check = &self.checks[name];
        assert_eq!(check["state"], state, "{check}");
        let text = check.to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} in {check}");
        }
        assert!(!self.succeeded || state != "failed", "the command fails if a check does");
        self
    }
}

fn run(url: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    let env = [&[("DATABASE_URL", url), ("SESSIOND_SEALING_KEY", SEALING_KEY)], env].concat();
    sessiond(&[&["doctor"], args].concat(), &env)
}

/// On the tests' Postgres, which has `fsync` off.
fn examine(database: &Database) -> Report {
    Report::of(&run(&database.url, &["--json", "--allow-unsafe-durability"], &[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_database_is_ok_and_left_as_it_was() {
    let installed = Installed::new().await;
    let database = &installed.database;
    let rows = "SELECT count(*) FROM audit_events UNION ALL SELECT count(*) FROM feed_writers";
    let before = (database.contents().await, database.lines(rows).await);
    let report = examine(database);
    assert!(report.succeeded);
    for name in
        ["database", "pooler", "standbys", "clock", "migrations", "writes", "tables", "connections", "autovacuum"]
    {
        report.says(name, "ok", &[]);
    }
    report.says("database", "ok", &["PostgreSQL 1"]).says("sealing_key", "ok", &["opens all 2 keys"]);
    report.says("signing_keys", "ok", &["0 days old (project shop)"]).says("refresh_keys", "ok", &["no rotation"]);
    report.says("sign_out", "ok", &["ms", "rolled back"]);
    report.says("server", "skipped", &["no --url"]);
    assert_eq!(before, (database.contents().await, database.lines(rows).await), "nothing was written");

    // As lines.
    let lines = run(&database.url, &["--allow-unsafe-durability"], &[]);
    let text = String::from_utf8(lines.stdout).expect("text");
    assert_eq!(text.lines().count(), 23, "{text}");
    assert!(text.contains("\nok       migrations         up to date\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_lose_commits_are_named() {
    let database = Database::create().await;
    let report = Report::of(&run(&database.url, &["--json"], &[]));
    assert!(!report.succeeded);
    report.says("durability", "failed", &["fsync is off", "ALTER SYSTEM SET fsync = on", "refuses to start"]);
    report.says("full_page_writes", "warning", &["half written"]);
    examine(&database).says("durability", "warning", &["fsync is off"]);

    let cluster = Cluster::start(durable("doctor")).await.expect("Postgres starts");
    let database = Database { url: cluster.database_url("postgres") };
    let report = Report::of(&run(&database.url, &["--json"], &[]));
    report.says("durability", "ok", &["fsync is on"]);
    // Nobody is there to wait for.
    database.run("ALTER SYSTEM SET synchronous_standby_names = 'far'").await;
    database.run("SELECT pg_reload_conf()").await;
    eventually("the setting is seen", async || {
        database.lines("SELECT current_setting('synchronous_standby_names')").await == ["far"]
    })
    .await;
    let report = Report::of(&run(&database.url, &["--json"], &[]));
    report.says("standbys", "failed", &["no such standby is connected", "commits hang"]);
    database.run("ALTER SYSTEM SET synchronous_commit = off").await;
    database.run("SELECT pg_reload_conf()").await;
    eventually("the setting is seen", async || {
        database.lines("SELECT current_setting('synchronous_commit')").await == ["off"]
    })
    .await;
    let report = Report::of(&run(&database.url, &["--json"], &[]));
    report.says("durability", "failed", &["synchronous_commit is off", "SET synchronous_commit = on"]);
    cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_schema_is_named_and_what_needs_it_is_skipped() {
    let database = Database::create().await;
    database
        .run("DELETE FROM __diesel_schema_migrations WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)")
        .await;
    let report = examine(&database);
    report.says("migrations", "failed", &["the database lacks ", "sessiond migrate"]);
    report.says("sealing_key", "skipped", &["lacks migrations"]).says("clock", "ok", &[]);
    examine(&Database::create_empty().await).says("migrations", "failed", &["the database lacks ", " migrations, "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_open_or_are_missing_or_old_are_named() {
    let installed = Installed::new().await;
    let database = &installed.database;
    let with = |key| Report::of(&run(&database.url, &["--json"], &[("SESSIOND_SEALING_KEY", key)]));
    with(OTHER_SEALING_KEY).says("sealing_key", "failed", &["opens none of 2 keys", "--previous-sealing-key-file"]);
    with("short").says("sealing_key", "failed", &["32 bytes in base64"]);
    with(" ").says("sealing_key", "failed", &["a sealing key is required"]);
    database.run("UPDATE signing_keys SET signs_from = now() - interval '500 days'").await;
    database.run("DELETE FROM refresh_keys").await;
    let report = examine(database);
    report.says("signing_keys", "warning", &["500 days old", "sessiond signing-key rotate --project shop"]);
    report.says("refresh_keys", "failed", &["project shop has no active refresh", "refresh-key rotate --project shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_role_may_not_do_is_named() {
    let database = Database::create().await;
    database.run("DROP ROLE IF EXISTS doctor_reader; CREATE ROLE doctor_reader LOGIN").await;
    database.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctor_reader").await;
    let url = database.url.replace("postgres://postgres@", "postgres://doctor_reader@");
    let report = Report::of(&run(&url, &["--json", "--allow-unsafe-durability"], &[]));
    report.says("writes", "failed", &["lacks privileges on", "sessions", "GRANT SELECT, INSERT"]);
    report.says("vacuum", "ok", &["GRANT pg_read_all_stats"]).says("sign_out", "failed", &[]);
    database.run("DROP OWNED BY doctor_reader; DROP ROLE doctor_reader").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_of_tables_that_break_the_service_are_named() {
    let database = Database::create().await;
    database.refuse("UPDATE ON sessions", "P0001", "no").await;
    examine(&database).says("tables", "warning", &["sessions.refuse"]);
    database.run("ALTER TABLE users ENABLE ROW LEVEL SECURITY").await;
    examine(&database).says("tables", "failed", &["hides rows of users", "DISABLE ROW LEVEL SECURITY"]);
    database.run("ALTER TABLE session_requests SET UNLOGGED").await;
    examine(&database).says("tables", "failed", &["session_requests", "SET LOGGED"]);
    database.run("ALTER TABLE sessions SET (autovacuum_enabled = false)").await;
    examine(&database).says("autovacuum", "warning", &["it skips sessions", "RESET (autovacuum_enabled)"]);
    let name = database.url.rsplit('/').next().expect("a name");
    database.run(&format!("ALTER DATABASE {name} CONNECTION LIMIT 12")).await;
    examine(&database).says("connections", "warning", &["of 12 are left", "max_connections"]);
}

/// As if such an extension were installed: none is packaged with Postgres.
#[tokio::test(flavor = "multi_thread")]
async fn other_writers_of_the_tables_are_named() {
    let database = Database::create().await;
    database
        .run(
            "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
             SELECT 4000000000, 'spock', extowner, extnamespace, false, '5' FROM pg_extension WHERE extname = 'plpgsql'",
        )
        .await;
    examine(&database).says("tables", "warning", &["extensions for several writers: spock", "to one server"]);
    database
        .run(
            "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) VALUES (4000000000, 'sessions'::regclass, 'r')",
        )
        .await;
    examine(&database).says("tables", "failed", &["a subscription writes to sessions", "drop the subscription"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_between_is_named() {
    let database = Database::create().await;
    let pool = "pool_mode = transaction\ndefault_pool_size = 8";
    let settings = if keeps_track() { format!("{pool}\nmax_prepared_statements = 200") } else { pool.to_owned() };
    let Some(pooler) = Pooler::before(&database, &settings).await else { return };
    let report = Report::of(&run(&pooler.url, &["--json", "--allow-unsafe-durability"], &[]));
    if keeps_track() {
        report.says("pooler", "warning", &["transaction mode", "--database-listen-url"]);
        let listen = ["--json", "--allow-unsafe-durability", "--database-listen-url", &database.url];
        Report::of(&run(&pooler.url, &listen, &[])).says("pooler", "ok", &[]);
    } else {
        report.says("database", "failed", &["loses prepared statements", "pool_mode = session"]);
    }
    let Some(pooler) = Pooler::before(&database, "pool_mode = session\ndefault_pool_size = 8").await else { return };
    let report = Report::of(&run(&pooler.url, &["--json", "--allow-unsafe-durability"], &[]));
    report.says("database", "ok", &[]).says("migrations", "ok", &[]).says("sign_out", "ok", &[]);
}

/// A port that is closed, a server that never answers, a server that stops in between: a report within ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_gives_a_report_soon() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("binds");
    let closed = free_port();
    for (addr, words) in [(closed, "it cannot be reached"), (silent.local_addr().expect("bound"), "in time")] {
        let url = format!("postgres://postgres:hunter2@{addr}/sessions?sslmode=disable");
        let started = Instant::now();
        let output = run(&url, &["--json"], &[]);
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        let report = Report::of(&output);
        report.says("database", "failed", &[words]).says("clock", "skipped", &["cannot be used"]);
        report.says("secrets", "warning", &["DATABASE_URL"]).says("settings", "ok", &[]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("hunter2"));
    }
}

/// The variables are those of `serve`.
#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_serve_would_refuse_is_named() {
    let database = Database::create().await;
    let bad = [("SESSIOND_REQUEST_TIMEOUT", "1h"), ("SESSIOND_ISSUER", "http://auth.example.org")];
    let report = Report::of(&run(&database.url, &["--json"], &bad));
    report.says("settings", "failed", &["1h", "--request-timeout"]).says("issuer", "warning", &["has no TLS"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_every_user_can_read_is_named() {
    let (database, dir) = (Database::create().await, Dir::fresh("doctor-secrets"));
    let key = dir.join("sealing-key");
    fs::create_dir_all(&*dir).expect("creates");
    fs::write(&key, SEALING_KEY).expect("writes");
    for (mode, state, words) in [(0o644, "warning", "chmod 600"), (0o640, "ok", "no variable")] {
        fs::set_permissions(&key, PermissionsExt::from_mode(mode)).expect("sets the mode");
        let args = ["doctor", "--json", "--sealing-key-file", key.to_str().expect("text")];
        let output = sessiond(&args, &[("DATABASE_URL", &database.url)]);
        Report::of(&output).says("secrets", state, &[words]);
    }
}

/// With libfaketime, if it is installed.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_named() {
    let place = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !Path::new(place).exists() {
        println!("SKIPPED: libfaketime is not installed");
        return;
    }
    let database = Database::create().await;
    for (by, state, words) in [("+30s", "warning", "30.0 s ahead"), ("-300s", "failed", "300.0 s behind")] {
        let env = [("LD_PRELOAD", place), ("FAKETIME", by), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        Report::of(&run(&database.url, &["--json"], &env)).says("clock", state, &[words, "chrony"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_checked_as_its_clients_reach_it() {
    let installed = Installed::new().await;
    let serving = installed.serve(&[], &["--issuer", "http://127.0.0.1:0"], Stdio::null()).await;
    eventually("is ready", async || {
        let doctor = run(&installed.database.url, &["--json", "--url", &format!("http://{}", serving.addr)], &[]);
        Report::of(&doctor).checks["server"]["state"] == "ok"
    })
    .await;
    let url = format!("http://{}", serving.addr);
    let other = format!("http://localhost:{}", serving.addr.port());
    let doctor = |args: &[&str]| Report::of(&run(&installed.database.url, &[&["--json"], args].concat(), &[]));
    doctor(&["--issuer", &url]).says("jwks", "ok", &["/projects/shop/.well-known/jwks.json has 1 key"]);
    doctor(&["--issuer", &other]).says("jwks", "failed", &["names the issuer", "SESSIOND_ISSUER"]);
    doctor(&["--issuer", &url, "--project", "none"]).says("jwks", "failed", &["answers 404"]);
    // The server under the issuer's URL does not have the key that signs in this database. It may have noticed.
    installed.database.run("UPDATE signing_keys SET id = md5(id::text)::uuid").await;
    doctor(&["--issuer", &url]).says("jwks", "failed", &["project shop", " key"]);

    let metrics = format!("http://{}", serving.metrics_addr);
    doctor(&["--url", &metrics]).says("server", "failed", &["answers 404 to GET /readyz"]);
    doctor(&["--url", "http://127.0.0.1:1"]).says("server", "failed", &["cannot be reached"]);
    doctor(&["--url", "ftp://x"]).says("server", "failed", &["not an http or https URL"]);
    doctor(&["--url", &url.replace("http:", "https:")]).says("certificate", "failed", &["TLS with"]);
    let silent = TcpListener::bind("127.0.0.1:0").expect("binds");
    let silent_url = format!("http://{}", silent.local_addr().expect("bound"));
    doctor(&["--url", &silent_url]).says("server", "failed", &["does not answer within 3s"]);
    drop(serving);
    doctor(&["--url", &url]).says("server", "failed", &["cannot be reached", "start the server"]);
}

/// A certificate for this machine that expires in `days` days, and its key.
fn certificate(dir: &Dir, days: u64) -> [String; 2] {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let now = u64::try_from(Clock::system().now().as_seconds()).expect("after 1970");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now + days * 86_400 + 60);
    let key = KeyPair::generate().expect("a key");
    let made = params.self_signed(&key).expect("signs");
    fs::create_dir_all(&**dir).expect("creates");
    [("cert.pem", made.pem()), ("key.pem", key.serialize_pem())].map(|(name, text)| {
        let path = dir.join(name);
        fs::write(&path, text).expect("writes");
        path.display().to_string()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_soon_is_named() {
    let (installed, dir) = (Installed::new().await, Dir::fresh("doctor-tls"));
    for (days, state) in [(3, "warning"), (30, "ok")] {
        let [file, key] = certificate(&dir, days);
        let flags = ["--tls-certificate-file", &file, "--tls-key-file", &key];
        let serving: Serving = installed.serve(&[], &flags, Stdio::null()).await;
        let url = format!("https://localhost:{}", serving.addr.port());
        let args = [&["--json", "--url", &url, "--ca-file", &file][..], &flags].concat();
        let report = Report::of(&run(&installed.database.url, &args, &[]));
        let days = format!("valid for {days} more days");
        report.says("certificate", state, &[&days]).says("certificate_files", state, &[&days]);
        // Without the authority.
        let report = Report::of(&run(&installed.database.url, &["--json", "--url", &url], &[]));
        report.says("certificate", "failed", &["TLS with localhost", "--ca-file"]);
    }
    fs::write(dir.join("key.pem"), "rubbish").expect("writes");
    let files = [dir.join("cert.pem").display().to_string(), dir.join("key.pem").display().to_string()];
    let args = ["--json", "--tls-certificate-file", &files[0], "--tls-key-file", &files[1]];
    let report = Report::of(&run(&installed.database.url, &args, &[]));
    report.says("certificate_files", "failed", &["key.pem", "does not start"]);
}

/// Everything in one file, and nothing that must not leave the house.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_nothing_and_tells_no_secret() {
    let (installed, dir) = (Installed::new().await, Dir::fresh("doctor-page"));
    fs::create_dir_all(&*dir).expect("creates");
    let path = dir.join("report.html");
    let url = installed.database.url.replace("postgres://postgres@", "postgres://postgres:hunter2@");
    let args = ["--allow-unsafe-durability", "--html", path.to_str().expect("UTF-8")];
    let output = run(&url, &args, &[]);
    assert_says(&output, true, "migrations");
    let page = fs::read_to_string(&path).expect("written");
    for part in ["<script", "<link", "<img", "src=", "url(", "href", "@import", "hunter2", SEALING_KEY, &installed.key]
    {
        assert!(!page.contains(part), "{part:?} in {page}");
    }
    for part in
        ["prefers-color-scheme: dark", "width=device-width", "default-src 'none'", "fsync is off", "<h2>sign out</h2>"]
    {
        assert!(page.contains(part), "{part:?} in {page}");
    }
    let nowhere = run(&url, &["--html", "/nonexistent/report.html"], &[]);
    assert_says(&nowhere, false, "cannot write /nonexistent/report.html");
}
