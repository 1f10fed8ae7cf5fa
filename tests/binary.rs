//! The binary as people run it: `dev` and its `dev.env`, `serve` and what it refuses, and what survives a `kill -9`.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::SocketAddr,
    ops::Deref,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use diesel_async::SimpleAsyncConnection as _;
use http::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sessiond_guard::{Guard, GuardOptions, MAX_STALENESS_MIN, Rejection};
use tokio::net::TcpStream;

use crate::harness::{
    REFUSED_REFRESH, SEALING_KEY, Wire, bearer, both,
    database::{Database, fresh_dir},
    eventually, header,
    link::Link,
    refresh_token,
    serving::free_port,
    wire::{Wires, refused_json},
};

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");
const ISSUER: &str = "http://127.0.0.1:8080";
const CURRENT: &str = "/auth/sessions/current";
const REFRESH: &str = "/auth/sessions/current/refresh";

/// A data directory, deleted on drop, even if the test panics.
pub struct Dir(PathBuf);

impl Dir {
    pub fn fresh(name: &str) -> Self {
        Self(fresh_dir(name))
    }
}

impl Deref for Dir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Postgres may still be stopping after a `kill -9` of its owner.
        let started = Instant::now();
        while self.0.exists() && fs::remove_dir_all(&self.0).is_err() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A `sessiond dev` and its directory. Killed on drop.
struct Dev {
    process: Child,
    dir: PathBuf,
    env: HashMap<String, String>,
    wires: Wires,
}

impl Dev {
    async fn start(dir: &Path) -> Self {
        Self::start_in(dir, &HashMap::new()).await
    }

    /// Starts with these variables in the environment.
    async fn start_in(dir: &Path, shell: &HashMap<String, String>) -> Self {
        fs::create_dir_all(dir).expect("creates");
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("opens");
        let mut process = Command::new(BINARY)
            .args(["dev", "--listen", "127.0.0.1:0", "--refresh-grace", "30s", "--data-dir"])
            .arg(dir)
            // No spelling of the filter may log statement parameters from libraries.
            .env(
                "SESSIOND_LOG",
                "trace,tokio_postgres::query=trace,tokio_postgres=trace,h2=trace,[]=trace,tokio_postgres[query]=trace",
            )
            // Kept the same across a restart on another port, or tokens would be of another issuer.
            .env("SESSIOND_ISSUER", ISSUER)
            .env_remove("DATABASE_URL")
            .envs(shell)
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

    fn addr(&self) -> SocketAddr {
        self.env["SESSIOND_URL"].trim_start_matches("http://").parse().expect("an address")
    }

    /// Signs a user in. Returns the access token.
    async fn sign_in(&self, user: &str) -> String {
        let headers = both(bearer(&self.env["SESSIOND_SERVER_KEY"]), header("content-type", "application/json"));
        let body = json!({"user_id": user}).to_string();
        let created = self.wires.http(Method::POST, "/auth/sessions", headers, body).await;
        let created: Value = serde_json::from_slice(created.body()).expect("JSON");
        created["access_token"].as_str().expect("a token").to_owned()
    }

    fn kill(&mut self) {
        // Otherwise the next start would take the file for its own.
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

/// `kill -9` right after the response to a sign-out: followers have received it, or know that the feed is old; they get
/// the rest from the next process.
#[tokio::test]
async fn a_guard_survives_the_process_that_it_follows() {
    let dir = Dir::fresh("guarded");
    let mut dev = Dev::start(&dir).await;
    let (known, unknown) = (dev.sign_in("ada").await, dev.sign_in("ada").await);
    let link = Link::to(dev.addr()).await;
    let key = dev.env["SESSIOND_SERVER_KEY"].clone();
    let options = GuardOptions::new(&link.url, "demo", ISSUER, key);
    let guard = Guard::connect(GuardOptions { max_staleness: MAX_STALENESS_MIN, ..options }).await.expect("connects");
    for token in [&known, &unknown] {
        assert!(guard.verify(token).await.is_ok());
    }

    assert_eq!(dev.call(Method::DELETE, CURRENT, bearer(&known)).await.0, StatusCode::OK);
    dev.kill();
    let killed = Instant::now();
    eventually("refused", async || guard.verify_now(&known).is_err()).await;
    eventually("the feed is too old", async || guard.verify_now(&unknown).is_err()).await;
    assert!(killed.elapsed() < MAX_STALENESS_MIN + Duration::from_secs(2), "{:?}", killed.elapsed());

    let mut dev = Dev::start(&dir).await;
    link.connect_to(dev.addr());
    eventually("accepted again", async || guard.verify(&unknown).await.is_ok()).await;
    assert_eq!(guard.verify_now(&known), Err(Rejection::SessionRevoked));
    assert_eq!(dev.call(Method::DELETE, CURRENT, bearer(&unknown)).await.0, StatusCode::OK);
    eventually("refused", async || guard.verify_now(&unknown) == Err(Rejection::SessionRevoked)).await;
    dev.kill();
}

/// A newcomer runs the printed curl command; a `kill -9` right after the response undoes nothing.
#[tokio::test]
async fn a_sign_out_survives_a_kill_right_after_its_answer() {
    let dir = Dir::fresh("dev");
    let mut dev = Dev::start(&dir).await;
    assert_eq!(fs::metadata(dir.join("dev.env")).expect("is there").permissions().mode() & 0o777, 0o600);
    let (access, refresh) = (dev.env["SESSIOND_ACCESS_TOKEN"].clone(), dev.env["SESSIOND_REFRESH_TOKEN"].clone());

    let first = dev.call(Method::DELETE, CURRENT, bearer(&access)).await;
    dev.kill();
    assert_eq!(first, (StatusCode::OK, json!({"success": true})));

    // In the same shell, which has sourced `dev.env`.
    let mut dev = Dev::start_in(&dir, &dev.env).await;
    let again = dev.call(Method::DELETE, CURRENT, bearer(&access)).await;
    assert_eq!(again, (StatusCode::OK, json!({"success": true, "already_revoked": true})));
    let (status, body) = dev.call(Method::POST, REFRESH, refresh_token(&refresh)).await;
    assert_eq!((status, refused_json(status, &body).reason.as_str()), (StatusCode::UNAUTHORIZED, REFUSED_REFRESH));

    // The next run creates its own session, with the same key.
    assert_ne!(dev.env["SESSIOND_ACCESS_TOKEN"], access);
    let (status, _) = dev.call(Method::POST, REFRESH, refresh_token(&dev.env["SESSIOND_REFRESH_TOKEN"])).await;
    assert_eq!(status, StatusCode::OK);
    // A proxy reports the original URI; its query may contain anything.
    let ours = &dev.env["SESSIOND_ACCESS_TOKEN"];
    let asked_for = header("x-original-uri", &format!("/orders\u{9}?access_token={ours}"));
    let verified = dev.wires.http(Method::GET, "/projects/demo/auth/verify", both(asked_for, bearer(ours)), "").await;
    assert_eq!(verified.status(), StatusCode::OK);
    let basic = STANDARD.encode(format!("demo:{}", dev.env["SESSIOND_SERVER_KEY"]));
    let headers = both(
        header("authorization", &format!("Basic {basic}")),
        header("content-type", "application/x-www-form-urlencoded"),
    );
    let revoke = format!("token={}", dev.env["SESSIOND_REFRESH_TOKEN"]);
    assert_eq!(dev.wires.http(Method::POST, "/oauth2/revoke", headers, revoke).await.status(), StatusCode::OK);
    let rebound = dev.wires.http(Method::GET, "/nope", header("host", "evil.example"), "").await;
    assert_eq!(rebound.status(), StatusCode::MISDIRECTED_REQUEST);
    dev.kill();

    let ours = ["SESSIOND_SERVER_KEY", "SESSIOND_ACCESS_TOKEN", "SESSIOND_REFRESH_TOKEN"].map(|name| &dev.env[name]);
    nothing_replayable(&dev, &[&access, &refresh, &basic, ours[0], ours[1], ours[2]]);
}

/// `dev` has a page, which loads nothing from elsewhere and cannot be used by other sites' pages.
#[tokio::test]
async fn dev_serves_its_page_only_to_its_own_visitors() {
    let dir = Dir::fresh("page");
    // CORS permission for the API does not extend to the demo.
    let mut dev = Dev::start_in(&dir, &[("SESSIOND_CORS_ORIGINS".to_owned(), "*".to_owned())].into()).await;
    let open = format!("Open {}/", dev.env["SESSIOND_URL"]);
    eventually("greets", async || read(&dir.join("log")).contains(&open)).await;
    for (path, media_type) in [("/", "text/html"), ("/demo/style.css", "text/css"), ("/demo/app.js", "text/javascript")]
    {
        let file = dev.wires.http(Method::GET, path, http::HeaderMap::new(), "").await;
        let header = |name: &str| file.headers().get(name).expect("is there").to_str().expect("text");
        assert_eq!(file.status(), StatusCode::OK);
        assert!(header("content-type").starts_with(media_type), "{path}");
        assert!(header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"), "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("cache-control"), "no-store");
        assert!(file.headers().contains_key("x-request-id"));
        let text = String::from_utf8_lossy(file.body());
        assert!(!text.contains("{{"), "something in {path} was not filled in");
        assert!(!text.contains(&dev.env["SESSIOND_SERVER_KEY"]), "{path} has the server key");
    }
    let rebound = dev.wires.http(Method::GET, "/", header("host", "evil.example"), "").await;
    assert_eq!(rebound.status(), StatusCode::MISDIRECTED_REQUEST);

    // The backend holds the key, and calls the API itself.
    let json = || header("content-type", "application/json");
    let phone = json!({"device": "phone"}).to_string();
    let signed_in = dev.wires.http(Method::POST, "/demo/sign-in", json(), phone.clone()).await;
    assert!(!signed_in.headers().contains_key("access-control-allow-origin"));
    let grant: Value = serde_json::from_slice(signed_in.body()).expect("JSON");
    let session = &grant["session"];
    assert_eq!(
        (signed_in.status(), &session["user_id"], &session["device_name"], &session["ip"]),
        (StatusCode::OK, &json!("ada"), &json!("Phone"), &json!("203.0.113.7"))
    );
    for (bad, status) in [
        (json!({"device": "toaster"}), StatusCode::BAD_REQUEST),
        (json!({"device": "phone", "user_id": "me"}), StatusCode::BAD_REQUEST),
        (json!({"device": "phone", "claims": {}}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"device": "p".repeat(2_000)}), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let refused = dev.wires.http(Method::POST, "/demo/sign-in", json(), bad.to_string()).await;
        assert_eq!(refused.status(), status, "{bad}");
    }
    for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example")] {
        let theirs = both(json(), header(name, value));
        let refused = dev.wires.http(Method::POST, "/demo/sign-in", theirs, phone.clone()).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{name}");
    }

    // The guarded service follows the feed by itself.
    let access = grant["access_token"].as_str().expect("a token");
    let (status, hello) = dev.call(Method::GET, "/demo/service", bearer(access)).await;
    assert_eq!((status, &hello["hello"]), (StatusCode::OK, &json!("ada")));
    assert_eq!(dev.call(Method::DELETE, CURRENT, bearer(access)).await.0, StatusCode::OK);
    eventually("rejected", async || {
        dev.call(Method::GET, "/demo/service", bearer(access)).await.0 == StatusCode::UNAUTHORIZED
    })
    .await;
    let (status, body) = dev.call(Method::GET, "/demo/service", http::HeaderMap::new()).await;
    assert_eq!(refused_json(status, &body).reason, "CREDENTIALS_MISSING");

    // `serve` has none of it.
    let addr = free_port();
    let listen = addr.to_string();
    let mut serve = Command::new(BINARY)
        .args(["serve", "--listen", &listen, "--metrics-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", &dev.env["DATABASE_URL"])
        .env("SESSIOND_SEALING_KEY", read(&dir.join("sealing-key")).trim())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    eventually("serves", async || TcpStream::connect(addr).await.is_ok()).await;
    let production = Wires::to(addr);
    for path in ["/", "/demo/style.css", "/demo/app.js", "/demo/service", "/demo/feed"] {
        let missing = production.http(Method::GET, path, http::HeaderMap::new(), "").await;
        assert_eq!(missing.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let missing = production.http(Method::POST, "/demo/sign-in", json(), phone).await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    serve.kill().expect("a child");
    serve.wait().expect("a child");

    dev.kill();
    nothing_replayable(&dev, &[access, grant["refresh_token"].as_str().expect("a token")]);
}

/// On shutdown, the server accepts no more connections, finishes requests in progress, and leaves nothing running.
#[tokio::test]
async fn a_request_in_progress_is_answered_before_the_server_stops() {
    let dir = Dir::fresh("drain");
    // It waits while the test holds the row, however busy the machine.
    let patience =
        [("SESSIOND_REQUEST_TIMEOUT", "1m"), ("SESSIOND_DATABASE_TIMEOUT", "1m"), ("SESSIOND_SHUTDOWN_TIMEOUT", "1m")];
    let patience = patience.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut dev = Dev::start_in(&dir, &patience).await;
    let database = Database { url: dev.env["DATABASE_URL"].clone() };
    // Streams do not end by themselves: they are sent to another replica.
    let mut streams = vec![];
    for wire in Wire::ALL {
        let mut watch = dev.wires.watch(wire, bearer(&dev.env["SESSIOND_SERVER_KEY"]), "").await.expect("may follow");
        watch.snapshot().await;
        streams.push(watch);
    }

    let mut holder = database.hold("sessions", "true").await;
    let access = dev.env["SESSIOND_ACCESS_TOKEN"].clone();
    let wires = Wires::to(dev.env["SESSIOND_URL"].trim_start_matches("http://").parse().expect("an address"));
    let request = tokio::spawn(async move { wires.http(Method::DELETE, CURRENT, bearer(&access), "").await.status() });
    eventually("the sign-out waits", async || database.lock_waits().await > 0).await;

    let pid = Pid::from_child(&dev.process);
    kill_process(pid, Signal::TERM).expect("signals");
    let addr = dev.env["SESSIOND_URL"].trim_start_matches("http://").to_owned();
    eventually("no more connections", async || TcpStream::connect(&addr).await.is_err()).await;
    for watch in &mut streams {
        assert_eq!(watch.refusal().await.reason, "FEED_INTERRUPTED");
    }
    assert!(!request.is_finished(), "it waits for the lock");
    holder.batch_execute("COMMIT").await.expect("lets go");
    assert_eq!(request.await.expect("ends"), StatusCode::OK);
    drop(holder);
    assert!(dev.process.wait().expect("a child").success());
    let log = read(&dev.dir.join("log"));
    assert!(!log.contains("the stream of revocations ended"), "its own guard complains that it stops");
}

/// The log, at its most verbose level, contains no token and no usable part of one.
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

/// Runs `sessiond dev` where it must fail, and returns its output.
fn refused_dev(args: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let refused = sessiond(&[&["dev"], args].concat(), &[("PATH", &path)]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = String::from_utf8(refused.stderr).expect("text");
    assert!(!message.contains("os error"), "a riddle: {message}");
    message
}

/// A second `./run` in the same directory checks first: the running one keeps its files, and is named.
#[tokio::test]
async fn a_second_dev_in_the_same_directory_changes_nothing() {
    let dir = Dir::fresh("twice");
    let dev = Dev::start(&dir).await;
    let kept = |name: &str| (read(&dir.join(name)), fs::metadata(dir.join(name)).expect("is there").modified().ok());
    let files = ["dev.env", "sealing-key", "server-key", "own-database"];
    let before = files.map(kept);
    let path = dir.to_str().expect("text");
    for listen in ["127.0.0.1:0", dev.addr().to_string().as_str()] {
        for database in [&[][..], &["--database-url", "postgres://nobody@127.0.0.1:1/none"]] {
            let message = refused_dev(&[&["--listen", listen, "--data-dir", path], database].concat());
            let holder = format!("process {}, at {}", dev.process.id(), dev.env["SESSIOND_URL"]);
            assert!(message.contains("is in use by another `sessiond dev`") && message.contains(&holder), "{message}");
        }
    }
    assert_eq!(files.map(kept), before);
    assert_eq!(dev.call(Method::DELETE, CURRENT, bearer(&dev.env["SESSIOND_ACCESS_TOKEN"])).await.0, StatusCode::OK);
}

/// Errors are reported before anything is started: the path or the port, the cause, and what to do.
#[tokio::test]
async fn dev_reports_errors_before_postgres_starts() {
    let dir = Dir::fresh("refused");
    fs::create_dir(&*dir).expect("creates");
    let text = |path: &Path| path.to_str().expect("text").to_owned();

    let file = dir.join("file");
    fs::write(&file, "").expect("writes");
    for bad in [text(&file), text(&file.join("below")), "/dev/null".to_owned()] {
        let message = refused_dev(&["--listen", "127.0.0.1:0", "--data-dir", &bad]);
        assert!(message.contains(&format!("cannot use {bad} as data directory: it is, or is in, a file")), "{message}");
        assert!(message.contains("choose another with --data-dir"), "{message}");
    }
    // File modes do not restrict root.
    if !rustix::process::geteuid().is_root() {
        let closed = dir.join("closed");
        fs::create_dir(&closed).expect("creates");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).expect("ours");
        for bad in [text(&closed), text(&closed.join("new"))] {
            let message = refused_dev(&["--listen", "127.0.0.1:0", "--data-dir", &bad]);
            assert!(
                message.contains(&format!(
                    "cannot use {bad} as data directory: permission denied; choose another with --data-dir"
                )),
                "{message}"
            );
        }
    }

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").to_string();
    let data = dir.join("data");
    for flag in ["--listen", "--metrics-listen"] {
        let free = if flag == "--listen" { "--metrics-listen" } else { "--listen" };
        let message = refused_dev(&[flag, &port, free, "127.0.0.1:0", "--data-dir", &text(&data)]);
        assert!(message.contains(&format!("cannot listen on {port} ({flag}): the port is in use")), "{message}");
        assert!(message.contains("port 0 picks a free one"), "{message}");
        assert!(!data.join("postgres").exists(), "found out before Postgres was made");
    }
    // The same for `serve`, before it connects to the missing database.
    let env = [("DATABASE_URL", "postgres://u@127.0.0.1:1/d"), ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    let message = sessiond(&["serve", "--listen", &port, "--metrics-listen", "127.0.0.1:0"], &env);
    assert_says(&message, false, &format!("cannot listen on {port} (--listen): the port is in use"));

    let trust = ["serve", "--metrics-listen", "127.0.0.1:0", "--backchannel-trusted-certificates", "/nope"];
    let message = sessiond(&[&trust[..], &["--listen", "127.0.0.1:0"]].concat(), &env);
    assert_says(&message, false, "cannot read the certificates in /nope (--backchannel-trusted-certificates)");

    fs::create_dir_all(&data).expect("creates");
    fs::write(data.join("sealing-key"), "rubbish").expect("writes");
    let message = refused_dev(&["--listen", "127.0.0.1:0", "--data-dir", &text(&data)]);
    assert!(message.contains("sealing-key is damaged; delete "), "{message}");
    assert!(!data.join("postgres").exists(), "found out before Postgres was made");
}

/// `rm -rf .sessiond` starts from nothing, as root too: its database may be outside of the directory.
#[tokio::test]
async fn a_deleted_data_directory_starts_from_nothing() {
    let scratch = Dir::fresh("deleted");
    fs::create_dir(&*scratch).expect("creates");
    // As below `/root`: the server's user has no access.
    fs::set_permissions(&*scratch, fs::Permissions::from_mode(0o700)).expect("ours");
    let dir = scratch.join("data");
    let mut dev = Dev::start(&dir).await;
    let old = dev.env["SESSIOND_ACCESS_TOKEN"].clone();
    dev.kill();
    eventually("deleted", async || fs::remove_dir_all(&dir).is_ok()).await;

    // In the same shell, which has sourced the deleted `dev.env`.
    let dev = Dev::start_in(&dir, &dev.env).await;
    let message = read(&dir.join("log"));
    let apart = dev.env["DATABASE_URL"].contains("%2Fvar%2Ftmp%2F");
    assert_eq!(message.contains("so the database of an earlier one, in /var/tmp/sessiond-"), apart, "{message}");
    assert_eq!(dev.call(Method::GET, CURRENT, bearer(&old)).await.0, StatusCode::UNAUTHORIZED);
    let ours = bearer(&dev.env["SESSIOND_ACCESS_TOKEN"]);
    assert_eq!(dev.call(Method::GET, CURRENT, ours).await.0, StatusCode::OK);
    let url = dev.env["DATABASE_URL"].clone();
    drop(dev);
    if apart {
        let home = PathBuf::from(
            url.split('@').nth(1).expect("a host").split("/postgres").next().expect("a path").replace("%2F", "/"),
        );
        assert!(home.starts_with("/var/tmp/sessiond-") || home.starts_with("/var/tmp"), "{}", home.display());
        eventually("its database is deleted too", async || fs::remove_dir_all(&home).is_ok()).await;
    }
}

/// A session signs out once; the next command needs another.
#[tokio::test]
async fn demo_session_creates_another_session() {
    let dir = Dir::fresh("demo-session");
    let dev = Dev::start(&dir).await;
    let path = dir.to_str().expect("text");
    let tokens = || {
        let text = read(&dir.join("dev.env"));
        let line = text.lines().find_map(|line| line.strip_prefix("export SESSIOND_ACCESS_TOKEN='")).expect("is there");
        line.trim_end_matches('\'').to_owned()
    };
    let first = tokens();
    let terminal = async || {
        let answer = dev.wires.http(Method::GET, "/demo/terminal", http::HeaderMap::new(), "").await;
        let grant: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        (answer.status(), grant["access_token"].as_str().unwrap_or_default().to_owned())
    };
    // The page and the shell share the session.
    assert_eq!(terminal().await, (StatusCode::OK, first.clone()));
    assert_eq!(dev.call(Method::DELETE, CURRENT, bearer(&first)).await.0, StatusCode::OK);
    assert_eq!(terminal().await.0, StatusCode::NO_CONTENT);

    assert_says(&sessiond(&["demo-session", "--data-dir", path], &[]), true, &format!(". {path}/dev.env"));
    let second = tokens();
    assert_ne!(first, second);
    assert_eq!(terminal().await, (StatusCode::OK, second.clone()));
    assert_eq!(fs::metadata(dir.join("dev.env")).expect("is there").permissions().mode() & 0o777, 0o600);
    assert_eq!(dev.call(Method::DELETE, CURRENT, bearer(&second)).await, (StatusCode::OK, json!({"success": true})));

    drop(dev);
    assert_says(&sessiond(&["demo-session", "--data-dir", path], &[]), false, "no `sessiond dev` answers at http://");
    assert_says(&sessiond(&["demo-session", "--data-dir", "/nowhere"], &[]), false, "start one with ./run");
}

/// Runs a command until it exits. A server with a database is on ports of its own, unless the test says otherwise: some settings
/// are refused only after it has bound them, and tests run side by side.
pub fn sessiond(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(args).env_clear().stdin(Stdio::null());
    if args.first() == Some(&"serve")
        && !args.contains(&"--help")
        && env.iter().any(|(name, _)| *name == "DATABASE_URL")
    {
        command.env("SESSIOND_LISTEN", "127.0.0.1:0").env("SESSIOND_METRICS_LISTEN", "127.0.0.1:0");
    }
    command.envs(env.iter().copied());
    command.output().expect("runs")
}

#[track_caller]
pub fn assert_says(output: &Output, success: bool, text: &str) {
    let message = [output.stdout.as_slice(), &output.stderr].concat();
    let message = String::from_utf8_lossy(&message);
    assert_eq!(output.status.success(), success, "{message}");
    assert!(message.contains(text), "{text:?} in {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sets_up_a_database_by_hand() {
    let database = Database::create_empty().await;
    let env = [("DATABASE_URL", database.url.as_str()), ("SESSIOND_SEALING_KEY", SEALING_KEY)];

    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    assert_says(&sessiond(&serve, &env), false, "run `sessiond migrate`");
    assert_says(&sessiond(&["migrate"], &env), true, "applied");
    assert_says(&sessiond(&["migrate"], &env), true, "up to date");
    assert_says(&sessiond(&["project", "create", "shop"], &env), true, "created project shop");
    assert_says(&sessiond(&["project", "create", "shop"], &env), false, "project shop already exists");
    assert_says(&sessiond(&["server-key", "create", "--project", "shop"], &env), true, "sdsk_");
    assert_says(&sessiond(&["server-key", "create", "--project", "none"], &env), false, "unknown project none");

    // The tests' Postgres has fsync off, for speed: `serve` refuses it.
    assert_says(&sessiond(&serve, &env), false, "fsync off");
    let other = [env[0], ("SESSIOND_SEALING_KEY", "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")];
    let unsafely = [&serve[..], &["--allow-unsafe-durability"]].concat();
    assert_says(&sessiond(&unsafely, &other), false, "does not open with the configured sealing key");
}

/// `health` reports the first line of each case, and exits with 1 unless the server is ready.
#[tokio::test(flavor = "multi_thread")]
async fn health_asks_the_server_on_this_machine() {
    let service = crate::harness::Service::start().await;
    let address = service.addr.to_string();
    let health = |listen: &str| sessiond(&["health"], &[("SESSIOND_LISTEN", listen)]);
    eventually("ready", async || health(&address).status.success()).await;
    assert_eq!(health(&address).stdout, b"ready\n");
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    assert_says(&health(&everywhere), true, "ready");
    assert_says(&health("127.0.0.1:0"), false, "port 0");

    // No server; one that is silent; one of another kind; one that is not ready.
    let free = std::net::TcpListener::bind(free_port()).expect("a port");
    let silent = free.local_addr().expect("bound").to_string();
    let slow = sessiond(&["health", "--listen", &silent, "--timeout", "100ms"], &[]);
    assert_says(&slow, false, "does not answer within 100ms");
    drop(free);
    assert_says(&health(&silent), false, "does not answer: ");
    for (head, body, says) in [
        ("404 Not Found", "", "is not a sessiond: it answers 404 Not Found"),
        ("503 Service Unavailable", "the feed is too old\nno keys\n", "not ready: the feed is too old; no keys\n"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let answer = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut buffer = [0; 1024];
            let read = std::io::Read::read(&mut stream, &mut buffer).expect("a request");
            std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("answers");
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        });
        let asked = health(&address);
        assert_says(&asked, false, says);
        assert_eq!(asked.status.code(), Some(1));
        assert!(serving.join().expect("served").starts_with("GET /readyz HTTP/1.1\r\n"));
    }
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
        "the database URL is malformed",
    );
    assert_says(&sessiond(&["dev", "--listen", "0.0.0.0:0"], &[]), false, "loopback only");
    let secret = sessiond(&["migrate"], &[("DATABASE_URL", "mysql://u:hunter2@h/d")]);
    assert!(!String::from_utf8_lossy(&secret.stderr).contains("hunter2"));
}

/// Runs a command with this standard output.
fn sessiond_into(args: &[&str], env: &[(&str, &str)], stdout: Stdio) -> Output {
    let mut command = Command::new(BINARY);
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null()).stdout(stdout);
    command.stderr(Stdio::piped()).spawn().expect("starts").wait_with_output().expect("runs")
}

/// A pipe whose reader is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").expect("opens").into()
}

/// `sessiond … | true` and `>/dev/full`: every command fails with a message, without a panic, and no secret is left
/// that nobody saw.
#[tokio::test(flavor = "multi_thread")]
async fn no_command_panics_on_a_closed_or_full_standard_output() {
    let database = Database::create().await;
    let env = [("DATABASE_URL", database.url.as_str()), ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    assert_says(&sessiond(&["project", "create", "shop"], &env), true, "created project shop");
    let ids = |kind: &str| -> Vec<Value> {
        let listed = sessiond(&[kind, "list", "--project", "shop", "--json"], &env);
        String::from_utf8_lossy(&listed.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    for (what, output) in [("a closed pipe", closed_pipe as fn() -> Stdio), ("a full disk", full_disk)] {
        let name = what.replace(' ', "-");
        let url = format!("https://{name}.example.org/");
        let keys = |kind| ids(kind).last().expect("one")["id"].as_str().expect("an id").to_owned();
        let (signing, refresh) = (keys("signing-key"), keys("refresh-key"));
        let backchannel = ["--project", "shop", "--kind", "caep", "--audience", "shop", "--url", &url];
        for args in [
            &["--help"][..],
            &["--version"],
            &["dev", "--help"],
            &["openapi"],
            &["migrate"],
            &["project", "create", &name],
            &["project", "list"],
            &["project", "list", "--json"],
            &["project", "show", "shop"],
            &["project", "update", "shop", "--idle-ttl", "2d"],
            &["server-key", "create", "--project", "shop"],
            &["server-key", "list", "--project", "shop"],
            &["signing-key", "rotate", "--project", "shop", "--now"],
            &["signing-key", "revoke", &signing, "--project", "shop"],
            &["signing-key", "list", "--project", "shop"],
            &["refresh-key", "rotate", "--project", "shop", "--now"],
            &["refresh-key", "revoke", &refresh, "--project", "shop"],
            &["refresh-key", "list", "--project", "shop", "--json"],
            &[&["backchannel", "add"], &backchannel[..]].concat(),
            &["backchannel", "list", "--project", "shop"],
            &["backchannel", "deliveries", "--project", "shop"],
            &["audit", "--project", "shop"],
            &["audit", "--project", "shop", "--json"],
            &["reseal"],
            &["sweep"],
            &["restored"],
        ] {
            let message = sessiond_into(args, &env, output());
            let words = String::from_utf8_lossy(&message.stderr);
            assert!(!words.contains("panicked") && !words.contains("sdsk_"), "{args:?} to {what}: {words}");
            assert!(
                message.status.code().is_some_and(|code| code != 0 && code != 101),
                "{args:?} to {what}: {message:?}"
            );
        }
        let list = sessiond_into(&["project", "list"], &env, closed_pipe());
        let message = String::from_utf8_lossy(&list.stderr);
        assert!(!message.contains("sessiond: "), "no error if the reader has seen enough: {message}");
        let made = sessiond_into(&["server-key", "create", "--project", "shop"], &env, output());
        assert_says(&made, false, "could not be shown, so it was revoked");
    }
    let keys = ids("server-key");
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| key["revoked_at"].is_string()), "a live key that nobody saw: {keys:?}");
    let endpoints = ids("backchannel");
    let added = endpoints.iter().filter(|endpoint| endpoint["url"] == "https://a-full-disk.example.org/").count();
    assert_eq!(added, 1, "a completed command stays done");

    // With standard output closed or discarded, the key is not created.
    for redirected in [">&-", ">/dev/null"] {
        let line = format!("exec {BINARY} server-key create --project shop {redirected}");
        let mut shell = Command::new("sh");
        let refused = shell.args(["-c", &line]).env_clear().envs(env).output().expect("runs");
        assert_says(&refused, false, "standard output is closed or /dev/null");
    }
    assert_eq!(ids("server-key").len(), 4);
}

/// An empty list would be mistaken for good news.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_refuses_an_unknown_project() {
    let database = Database::create().await;
    let env = [("DATABASE_URL", database.url.as_str()), ("SESSIOND_SEALING_KEY", SEALING_KEY)];
    assert_says(&sessiond(&["project", "create", "shop"], &env), true, "created project shop");
    let id = "01890a5d-ac96-474b-bcce-b302099a8057";
    for args in [
        &["project", "show", "nope"][..],
        &["project", "update", "nope", "--idle-ttl", "1d"],
        &["server-key", "create", "--project", "nope"],
        &["server-key", "list", "--project", "nope"],
        &["signing-key", "rotate", "--project", "nope"],
        &["signing-key", "list", "--project", "nope"],
        &["signing-key", "list", "--project", "nope", "--json"],
        &["signing-key", "revoke", id, "--project", "nope"],
        &["refresh-key", "rotate", "--project", "nope"],
        &["refresh-key", "list", "--project", "nope"],
        &["refresh-key", "revoke", id, "--project", "nope"],
        &[
            "backchannel",
            "add",
            "--project",
            "nope",
            "--kind",
            "caep",
            "--audience",
            "a",
            "--url",
            "https://a.example/",
        ],
        &["backchannel", "list", "--project", "nope"],
        &["backchannel", "remove", id, "--project", "nope"],
        &["backchannel", "deliveries", "--project", "nope"],
        &["backchannel", "deliveries", "--project", "nope", "--json"],
        &["backchannel", "retry", id, "--project", "nope"],
        &["audit", "--project", "nope"],
        &["audit", "--project", "nope", "--json"],
        &["audit", "--project", "nope", "--user", "ada"],
    ] {
        let refused = sessiond(args, &env);
        assert_says(&refused, false, "unknown project nope");
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
    }
}

/// The manual is the help of every command. Run with `ACCEPT=1` to rewrite it.
#[test]
fn the_manual_is_the_help_of_every_command() {
    let mut manual = "# Command line\n\nWhat `sessiond COMMAND --help` says.\n".to_owned();
    let mut commands = vec![];
    explain(&mut vec![], &mut manual, &mut commands);
    for known in [
        "dev",
        "serve",
        "migrate",
        "project update",
        "signing-key rotate",
        "server-key revoke",
        "reseal",
        "sweep",
        "audit",
    ] {
        assert!(commands.iter().any(|command| command == known), "{known} is not among {commands:?}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/cli.md");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &manual).expect("writes");
    }
    assert!(fs::read_to_string(&path).expect("reads") == manual, "docs/reference/cli.md is out of date: {manual}");

    let help = sessiond(&["serve", "--help"], &[("SESSIOND_SEALING_KEY", "hunter2"), ("DATABASE_URL", "hunter2")]);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"), "a secret in the help");
}

/// Appends the help of a command and of its subcommands.
fn explain(command: &mut Vec<String>, manual: &mut String, commands: &mut Vec<String>) {
    let args: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
    let help = sessiond(&args, &[("COLUMNS", "110")]);
    assert_says(&help, true, "Usage: sessiond");
    let text = String::from_utf8(help.stdout).expect("text");
    let name = command.join(" ");
    manual.push_str(
        &format!("\n## sessiond {name}\n\n```text\n{}\n```\n", text.trim_end()).replace("sessiond \n", "sessiond\n"),
    );
    commands.push(name);
    let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let below: Vec<String> =
        listed.filter_map(|line| Some(line.strip_prefix("  ")?.split(' ').next()?.to_owned())).collect();
    for name in below.into_iter().filter(|name| !name.is_empty() && name != "help") {
        command.push(name);
        explain(command, manual, commands);
        command.pop();
    }
}
