//! The binary as people run it: `dev` and its `dev.env`, `serve` and what it refuses, and what survives a `kill -9`.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{
    REFUSED_REFRESH, bearer,
    database::{Database, fresh_dir},
    header, refresh_token,
    wire::{Wires, refused_json},
};

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");
const CURRENT: &str = "/auth/sessions/current";
const REFRESH: &str = "/auth/sessions/current/refresh";

/// A `sessiond dev` and its directory. Killed when dropped.
struct Dev {
    process: Child,
    dir: PathBuf,
    env: HashMap<String, String>,
    wires: Wires,
}

impl Dev {
    async fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("creates");
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("opens");
        let mut process = Command::new(BINARY)
            .args(["dev", "--listen", "127.0.0.1:0", "--refresh-grace", "30s", "--data-dir"])
            .arg(dir)
            .env("SESSIOND_LOG", "trace")
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("starts");
        let started = Instant::now();
        while !dir.join("dev.env").exists() {
            let ended = process.try_wait().expect("a child");
            assert!(ended.is_none() && started.elapsed() < Duration::from_secs(60), "{}", read(&dir.join("log")));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let env: HashMap<String, String> = read(&dir.join("dev.env"))
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        let addr = env["SESSIOND_URL"].trim_start_matches("http://").parse().expect("an address");
        Self { process, dir: dir.to_owned(), env, wires: Wires::to(addr) }
    }

    async fn call(&self, method: Method, path: &str, headers: http::HeaderMap) -> (StatusCode, Value) {
        let response = self.wires.http(method, path, headers, "").await;
        (response.status(), serde_json::from_slice(response.body()).expect("JSON"))
    }

    fn kill(&mut self) {
        // Or the next start would find it and take it for its own.
        fs::remove_file(self.dir.join("dev.env")).expect("removes");
        self.process.kill().expect("a child");
        self.process.wait().expect("a child");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("reads")
}

/// What a newcomer does with the curl that is printed; and a `kill -9` right after the answer takes nothing back.
#[tokio::test]
async fn a_sign_out_survives_a_kill_right_after_its_answer() {
    let dir = fresh_dir("dev");
    let mut dev = Dev::start(&dir).await;
    assert_eq!(fs::metadata(dir.join("dev.env")).expect("is there").permissions().mode() & 0o777, 0o600);
    let (access, refresh) = (dev.env["SESSIOND_ACCESS_TOKEN"].clone(), dev.env["SESSIOND_REFRESH_TOKEN"].clone());

    let first = dev.call(Method::DELETE, CURRENT, bearer(&access)).await;
    dev.kill();
    assert_eq!(first, (StatusCode::OK, json!({"success": true})));

    let mut dev = Dev::start(&dir).await;
    let again = dev.call(Method::DELETE, CURRENT, bearer(&access)).await;
    assert_eq!(again, (StatusCode::OK, json!({"success": true, "already_revoked": true})));
    let (status, body) = dev.call(Method::POST, REFRESH, refresh_token(&refresh)).await;
    assert_eq!((status, refused_json(status, &body).reason.as_str()), (StatusCode::UNAUTHORIZED, REFUSED_REFRESH));

    // The next run has a session of its own, over the same key.
    assert_ne!(dev.env["SESSIOND_ACCESS_TOKEN"], access);
    let (status, _) = dev.call(Method::POST, REFRESH, refresh_token(&dev.env["SESSIOND_REFRESH_TOKEN"])).await;
    assert_eq!(status, StatusCode::OK);
    let rebound = dev.wires.http(Method::GET, "/nope", header("host", "evil.example"), "").await;
    assert_eq!(rebound.status(), StatusCode::MISDIRECTED_REQUEST);
    dev.kill();

    nothing_replayable(&dev, &[&access, &refresh, &dev.env["SESSIOND_SERVER_KEY"], &dev.env["SESSIOND_ACCESS_TOKEN"]]);
    fs::remove_dir_all(&dir).expect("removes");
}

/// The log, at its most talkative, holds no token and no part of one that could be used.
fn nothing_replayable(dev: &Dev, secrets: &[&str]) {
    let log = read(&dev.dir.join("log"));
    assert!(log.contains("answered"), "the log says something");
    for secret in secrets {
        let tail = &secret[secret.len() - 24..];
        assert!(!log.contains(tail), "a secret in the log");
    }
    let sealing_key = read(&dev.dir.join("sealing-key"));
    assert!(!log.contains(sealing_key.trim()), "the sealing key in the log");
}

fn sessiond(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    command.output().expect("runs")
}

#[track_caller]
fn assert_says(output: &Output, success: bool, text: &str) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.success(), success, "{said}");
    assert!(said.contains(text), "{text:?} in {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sets_up_a_database_by_hand() {
    let database = Database::create_empty().await;
    let sealing_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let env = [("DATABASE_URL", database.url.as_str()), ("SESSIOND_SEALING_KEY", sealing_key)];

    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    assert_says(&sessiond(&serve, &env), false, "run `sessiond migrate`");
    assert_says(&sessiond(&["migrate"], &env), true, "applied");
    assert_says(&sessiond(&["migrate"], &env), true, "up to date");
    assert_says(&sessiond(&["project", "create", "shop"], &env), true, "created project shop");
    assert_says(&sessiond(&["project", "create", "shop"], &env), false, "there is already a project shop");
    assert_says(&sessiond(&["server-key", "create", "--project", "shop"], &env), true, "sdsk_");
    assert_says(&sessiond(&["server-key", "create", "--project", "none"], &env), false, "no project none");

    // The tests' Postgres has fsync off, for speed: nothing to serve from.
    assert_says(&sessiond(&serve, &env), false, "fsync off");
    let other = [env[0], ("SESSIOND_SEALING_KEY", "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")];
    let unsafely = [&serve[..], &["--allow-unsafe-durability"]].concat();
    assert_says(&sessiond(&unsafely, &other), false, "does not open with the configured sealing key");
}

#[test]
fn bad_settings_are_refused_by_name() {
    let env = [("DATABASE_URL", "postgres://u@127.0.0.1/d"), ("SESSIOND_SEALING_KEY", "short")];
    assert_says(&sessiond(&["serve"], &env), false, "SESSIOND_SEALING_KEY is not 32 bytes");
    assert_says(&sessiond(&["serve"], &[]), false, "--database-url");
    assert_says(&sessiond(&["serve", "--request-timeout", "1h"], &env), false, "--request-timeout");
    assert_says(
        &sessiond(&["migrate"], &[("DATABASE_URL", "mysql://u:hunter2@h/d")]),
        false,
        "not one that Postgres knows",
    );
    assert_says(&sessiond(&["dev", "--listen", "0.0.0.0:0"], &[]), false, "loopback only");
    let secret = sessiond(&["migrate"], &[("DATABASE_URL", "mysql://u:hunter2@h/d")]);
    assert!(!String::from_utf8_lossy(&secret.stderr).contains("hunter2"));
}

#[test]
fn every_command_explains_itself() {
    for command in [
        &["--help"][..],
        &["dev", "--help"],
        &["serve", "--help"],
        &["migrate", "--help"],
        &["openapi", "--help"],
        &["project", "create", "--help"],
        &["server-key", "create", "--help"],
    ] {
        assert_says(&sessiond(command, &[]), true, "Usage: sessiond");
    }
    let help = sessiond(&["serve", "--help"], &[("SESSIOND_SEALING_KEY", "hunter2"), ("DATABASE_URL", "hunter2")]);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"), "a secret in the help");
}
