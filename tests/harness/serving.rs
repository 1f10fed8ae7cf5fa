//! A `sessiond serve` in a process of its own, with a project and a server key.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::database::Database;
use super::wire::Wires;
use super::{SEALING_KEY, bearer, both, eventually, header};

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");

/// A database with a project, and the key of a service.
pub struct Installed {
    pub database: Database,
    pub key: String,
    env: [(&'static str, String); 3],
}

/// A running `sessiond serve`. Killed on drop.
pub struct Serving {
    pub process: Child,
    pub addr: SocketAddr,
    pub metrics_addr: SocketAddr,
    pub wires: Wires,
    pub metrics: Wires,
}

impl Installed {
    pub async fn new() -> Self {
        let database = Database::create().await;
        let env = [
            ("DATABASE_URL", database.url.clone()),
            ("SESSIOND_SEALING_KEY", SEALING_KEY.to_owned()),
            ("SESSIOND_ISSUER", "https://sessions.example.org".to_owned()),
        ];
        let mut installed = Self { database, key: String::new(), env };
        installed.run(&["project", "create", "shop"]);
        let created = installed.run(&["server-key", "create", "--project", "shop"]);
        installed.key =
            created.lines().map(str::trim).find(|line| line.starts_with("sdsk_")).expect("a key").to_owned();
        installed
    }

    /// Runs a command, which must succeed, and returns what it prints.
    pub fn run(&self, args: &[&str]) -> String {
        let output = Command::new(BINARY).args(args).env_clear().envs(self.env.clone()).output().expect("runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command, and returns all that it prints.
    pub fn try_run(&self, args: &[&str]) -> String {
        let output = Command::new(BINARY).args(args).env_clear().envs(self.env.clone()).output().expect("runs");
        String::from_utf8([output.stdout, output.stderr].concat()).expect("text")
    }

    /// Starts it by way of another command, which gets this one as its last arguments; with these arguments more.
    pub async fn serve(&self, by_way_of: &[&str], args: &[&str], stderr: impl Into<Stdio>) -> Serving {
        let [addr, metrics] = [free_port(), free_port()];
        let mut words = by_way_of.to_vec();
        words.extend([BINARY, "serve", "--allow-unsafe-durability"]);
        words.extend(args);
        let process = Command::new(words[0])
            .args(&words[1..])
            .args(["--listen", &addr.to_string(), "--metrics-listen", &metrics.to_string()])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.env.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("starts");
        eventually("serves", async || TcpStream::connect(addr).await.is_ok()).await;
        Serving { process, addr, metrics_addr: metrics, wires: Wires::to(addr), metrics: Wires::to(metrics) }
    }
}

impl Serving {
    /// Signs a user in, and returns the access token and the session's id; `None` if it is refused.
    pub async fn sign_in(&self, key: &str, user: &str) -> Option<(String, String)> {
        let headers = both(bearer(key), header("content-type", "application/json"));
        let body = json!({"user_id": user}).to_string();
        let answer = self.wires.http(Method::POST, "/auth/sessions", headers, body).await;
        let grant: Value = serde_json::from_slice(answer.body()).expect("JSON");
        Some((grant["access_token"].as_str()?.to_owned(), grant["session"]["id"].as_str()?.to_owned()))
    }

    pub async fn sign_out(&self, token: &str) -> StatusCode {
        self.wires.http(Method::DELETE, "/auth/sessions/current", bearer(token), "").await.status()
    }

    pub async fn is_alive(&self) -> bool {
        self.wires.http(Method::GET, "/healthz", HeaderMap::new(), "").await.status() == StatusCode::OK
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("ends", async || {
            status = self.process.try_wait().expect("a child");
            status.is_some()
        })
        .await;
        status.expect("ended")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port of this machine that nobody uses, for a program that cannot be given a listener. Not one of those that the system gives
/// to listeners and connections (Linux: 32,768 and up): another test might get it before the program does.
pub fn free_port() -> SocketAddr {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Several processes of tests may run at once.
    let start = std::process::id().wrapping_mul(97);
    let tries = (0..COUNT).map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)));
    let mut ports = tries.map(|number| u16::try_from(FIRST + number % COUNT).expect("in the range"));
    let free = ports.find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()).expect("a free port");
    free.local_addr().expect("bound")
}
