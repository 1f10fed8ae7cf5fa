//! If standard error fails, log lines are lost and nothing else.

use std::{
    fs::{File, OpenOptions},
    io::{PipeReader, pipe},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::binary::sessiond;
use crate::harness::{Wire, bearer, both, database::Database, eventually, header, wire::Wires};

/// What standard error leads to.
enum Target {
    /// A pipe whose reader is closed.
    Closed,
    /// A full disk.
    Full,
    /// A pipe that is not read.
    Unread,
}

impl Target {
    fn open(&self) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::Closed => (pipe().expect("a pipe").1.into(), None),
            Self::Full => {
                let full: File = OpenOptions::new().write(true).open("/dev/full").expect("opens");
                (full.into(), None)
            }
            Self::Unread => {
                let (reader, writer) = pipe().expect("a pipe");
                (writer.into(), Some(reader))
            }
        }
    }
}

/// A `sessiond serve` at its most verbose. Killed on drop.
struct Serving {
    process: Child,
    wires: Wires,
    metrics: Wires,
    _unread: Option<PipeReader>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound")
}

async fn serve(env: &[(&str, &str)], target: &Target) -> Serving {
    let [addr, metrics] = [free_port(), free_port()];
    let (stderr, unread) = target.open();
    let process = Command::new(env!("CARGO_BIN_EXE_sessiond"))
        .args(["serve", "--allow-unsafe-durability", "--log", "trace"])
        .args(["--listen", &addr.to_string(), "--metrics-listen", &metrics.to_string()])
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("starts");
    eventually("serves", async || TcpStream::connect(addr).await.is_ok()).await;
    Serving { process, wires: Wires::to(addr), metrics: Wires::to(metrics), _unread: unread }
}

impl Serving {
    async fn sign_in(&self, key: &str) -> Option<(String, String)> {
        let headers = both(bearer(key), header("content-type", "application/json"));
        let body = json!({"user_id": "ada"}).to_string();
        let answer = self.wires.http(Method::POST, "/auth/sessions", headers, body).await;
        let grant: Value = serde_json::from_slice(answer.body()).expect("JSON");
        Some((grant["access_token"].as_str()?.to_owned(), grant["session"]["id"].as_str()?.to_owned()))
    }

    async fn sign_out(&self, token: &str) -> StatusCode {
        self.wires.http(Method::DELETE, "/auth/sessions/current", bearer(token), "").await.status()
    }
}

/// The disk is full, the pipe is closed, or the pipe is not read; then the database goes down for a moment, when there
/// is most to log. Sign-outs are still answered and published.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_loses_only_lines() {
    let database = Database::create().await;
    let sealing_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let env = [
        ("DATABASE_URL", database.url.as_str()),
        ("SESSIOND_SEALING_KEY", sealing_key),
        ("SESSIOND_ISSUER", "https://sessions.example.org"),
    ];
    assert!(sessiond(&["project", "create", "shop"], &env).status.success());
    let created = sessiond(&["server-key", "create", "--project", "shop"], &env);
    let key = String::from_utf8(created.stdout).expect("text");
    let key = key.lines().map(str::trim).find(|line| line.starts_with("sdsk_")).expect("a key").to_owned();

    for target in [Target::Closed, Target::Full, Target::Unread] {
        let serving = serve(&env, &target).await;
        let mut watch = None;
        eventually("the feed can be followed", async || {
            watch = serving.wires.watch(Wire::Rest, bearer(&key), "").await.ok();
            watch.is_some()
        })
        .await;
        let mut watch = watch.expect("a stream");
        watch.snapshot().await;
        // Fills the pipe, which holds 64 KiB.
        for _ in 0..200 {
            let alive = serving.wires.http(Method::GET, "/healthz", HeaderMap::new(), "").await;
            assert_eq!(alive.status(), StatusCode::OK);
        }
        let (token, session) = serving.sign_in(&key).await.expect("signs in");
        assert_eq!(serving.sign_out(&token).await, StatusCode::OK);
        assert_eq!(watch.ended_session().await, session);

        away(&database, Duration::from_secs(2)).await;
        let mut phone = None;
        eventually("signs in again", async || {
            phone = serving.sign_in(&key).await;
            phone.is_some()
        })
        .await;
        let (token, session) = phone.expect("signed in");
        eventually("signs out again", async || serving.sign_out(&token).await == StatusCode::OK).await;
        assert_eq!(watch.ended_session().await, session, "the feed still works");
        eventually("the feed is fresh again", async || watch.heartbeat().await < 2_000).await;

        let page = serving.metrics.http(Method::GET, "/metrics", HeaderMap::new(), "").await;
        let page = String::from_utf8(page.body().to_vec()).expect("text");
        let dropped = page.lines().find_map(|line| line.strip_prefix("sessiond_log_lines_dropped_total "));
        // Some thousands of lines wait in the queue.
        let waits = matches!(target, Target::Unread);
        assert!(dropped.is_some_and(|dropped| dropped != "0" || waits), "dropped lines are counted: {dropped:?}");
        assert!(!page.contains("sessiond_task_restarts_total{"), "nothing panicked: {page}");
    }
}

/// For this long, no new database connection is accepted, and all existing ones are terminated.
async fn away(database: &Database, time: Duration) {
    let name = database.url.rsplit_once('/').expect("a database").1.split('?').next().expect("a name");
    let elsewhere = Database { url: database.url.replace(&format!("/{name}"), "/postgres") };
    elsewhere.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
    elsewhere.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")).await;
    tokio::time::sleep(time).await;
    elsewhere.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
}
