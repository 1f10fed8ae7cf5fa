//! The process as its supervisor, its shell and its log see it.

use std::fs;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::harness::database::fresh_dir;
use crate::harness::eventually;
use crate::harness::serving::{Installed, Serving};
use crate::harness::wire::Wires;

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");

/// A file for standard error, and its path.
fn log(name: &str) -> (File, PathBuf) {
    let dir = fresh_dir(name);
    fs::create_dir_all(&dir).expect("creates");
    let path = dir.join("log");
    (File::create(&path).expect("creates"), path)
}

fn signal(process: u32, signal: Signal) {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw).expect("an id");
    kill_process(id, signal).expect("is sent");
}

async fn signs_out(serving: &Serving, installed: &Installed) {
    let (token, _) = serving.sign_in(&installed.key, "ada").await.expect("signs in");
    assert_eq!(serving.sign_out(&token).await, StatusCode::OK);
}

/// A closed terminal ends nothing; a supervisor does, at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_is_ignored_and_a_termination_is_not() {
    let installed = Installed::new().await;
    let (stderr, path) = log("hangup");
    let mut serving = installed.serve(&[], &[], stderr).await;
    signal(serving.process.id(), Signal::HUP);
    eventually("says so", async || fs::read_to_string(&path).expect("reads").contains("SIGHUP ignored")).await;
    signs_out(&serving, &installed).await;
    signal(serving.process.id(), Signal::TERM);
    assert!(serving.ended().await.success());
}

/// As the first process of a container: nobody else reaps orphans there, and signals without a handler do nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_of_a_container_reaps_orphans_and_stops() {
    let mut unshare = vec!["unshare", "--pid", "--fork", "--kill-child"];
    if !rustix::process::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    let can = Command::new(unshare[0]).args(&unshare[1..]).arg("true").status();
    if !can.is_ok_and(|status| status.success()) {
        println!("SKIPPED: this machine lets this user create no process namespace");
        return;
    }
    let installed = Installed::new().await;
    let (stderr, _) = log("first");
    // The shell's child outlives its parent, and ends as a child of what the shell becomes.
    let orphan = ["sh", "-c", "(sleep 0.1 &) ; exec \"$@\"", "sh"];
    let mut serving = installed.serve(&[&unshare[..], &orphan].concat(), &[], stderr).await;
    let first = children(serving.process.id()).first().copied().expect("a child");
    eventually("no orphan is left", async || children(first).is_empty()).await;
    signs_out(&serving, &installed).await;
    signal(first, Signal::TERM);
    assert!(serving.ended().await.success());
}

/// The children of a process, zombies included.
fn children(process: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).expect("Linux");
    list.split_whitespace().map(|id| id.parse().expect("an id")).collect()
}

/// The limit is named at the start, and clients that take all connections leave the database its own.
#[tokio::test(flavor = "multi_thread")]
async fn too_few_open_files_cost_clients_and_not_the_database() {
    let installed = Installed::new().await;
    let (stderr, path) = log("files");
    let serving = installed.serve(&["sh", "-c", "ulimit -n 100 && exec \"$@\"", "sh"], &[], stderr).await;
    let warnings = || {
        let log = fs::read_to_string(&path).expect("reads");
        log.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("says so", async || warnings().iter().any(|line| line.contains("open_files_max=100"))).await;
    let mut connections = vec![];
    for _ in 0..150 {
        connections.push(TcpStream::connect(serving.addr).await.expect("waits in the backlog"));
    }
    // Readiness is checked every second.
    sleep(Duration::from_secs(3)).await;
    let page = serving.metrics.http(Method::GET, "/metrics", HeaderMap::new(), "").await;
    let page = String::from_utf8(page.body().to_vec()).expect("text");
    let conditions: Vec<&str> = page.lines().filter(|line| line.starts_with("sessiond_not_ready{")).collect();
    let holds = |condition: &str| conditions.iter().any(|line| line.contains(condition) && line.ends_with(" 0"));
    assert!(holds("database") && holds("feed"), "{conditions:?}");
    assert!(!warnings().iter().any(|line| line.contains("os error 24")), "{:?}", warnings());
    drop(connections);
    eventually("serves again", async || serving.is_alive().await).await;
    signs_out(&serving, &installed).await;
}

/// The driver logs the parameters of each statement at its most verbose: whatever is asked for, they stay out.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_level_shows_what_is_stored() {
    let installed = Installed::new().await;
    for level in ["debug,tokio_postgres::query=trace", "trace", "tokio_postgres=trace,diesel_async=trace"] {
        let (stderr, path) = log("levels");
        let mut serving = installed.serve(&[], &["--log", level, "--drain-delay", "0s"], stderr).await;
        let (token, _) = serving.sign_in(&installed.key, "user-of-this-test").await.expect("signs in");
        assert_eq!(serving.sign_out(&token).await, StatusCode::OK);
        // Not killed: the log is written beside the answers.
        signal(serving.process.id(), Signal::TERM);
        assert!(serving.ended().await.success());
        let log = fs::read_to_string(&path).expect("reads");
        assert!(level.starts_with("tokio") || log.lines().count() > 3, "{level}: the level is applied");
        for secret in ["user-of-this-test", &token, token.rsplit('.').next().expect("a signature"), &installed.key] {
            assert!(!log.contains(secret), "{level} shows {secret}");
        }
        assert!(!log.contains("with parameters"), "{level}");
    }
}

/// As in a container: no home directory, and a file system that nothing can be written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_needs_no_home_and_no_disk_to_write_to() {
    let mut unshare = vec!["unshare", "--mount"];
    if !rustix::process::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    let read_only = ["sh", "-c", "mount -o remount,ro,bind / && cd / && exec \"$@\"", "sh"];
    let can = Command::new(unshare[0]).args(&unshare[1..]).args(read_only).arg("true").status();
    if !can.is_ok_and(|status| status.success()) {
        println!("SKIPPED: this machine lets this user create no mount namespace");
        return;
    }
    let installed = Installed::new().await;
    let (stderr, path) = log("read-only");
    let serving = installed.serve(&[&unshare[..], &read_only].concat(), &[], stderr).await;
    signs_out(&serving, &installed).await;
    let log = fs::read_to_string(path).expect("reads");
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

/// As in a container whose user is only a number: a URL without a user cannot mean the system's.
#[test]
fn a_user_without_a_name_must_be_in_the_url() {
    const NAMELESS: u32 = 54_321;
    let run = |args: &[&str]| Command::new(BINARY).args(args).env_clear().uid(NAMELESS).gid(NAMELESS).output();
    if !run(&["--version"]).is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: this user cannot run the program as another one");
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    let url = format!("postgres://{address}/sessiond?sslmode=disable");
    let output = run(&["project", "list", "--database-url", &url]).expect("runs");
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && says.contains("the URL names no user"), "{says}");
    assert!(says.contains("postgres://user@host/database"), "{says}");
}

/// The first process of a container, with subscribers: they are disconnected, scrapes are answered until the end, and it exits.
#[tokio::test(flavor = "multi_thread")]
async fn a_termination_ends_open_streams_and_answers_scrapes_until_then() {
    let mut first = vec!["unshare", "--pid", "--fork", "--kill-child"];
    if !rustix::process::geteuid().is_root() {
        first.extend(["--user", "--map-root-user"]);
    }
    let can = Command::new(first[0]).args(&first[1..]).arg("true").status();
    let first = match can.is_ok_and(|status| status.success()) {
        true => first,
        false => {
            println!("SKIPPED: as the first process of a container, because unshare is not allowed");
            vec!["env"]
        }
    };
    let installed = Installed::new().await;
    let (stderr, path) = log("streams");
    let args = ["--drain-delay", "2s", "--shutdown-timeout", "5s"];
    let mut serving = installed.serve(&first, &args, stderr).await;
    eventually("is ready", async || {
        serving.wires.http(Method::GET, "/readyz", HeaderMap::new(), "").await.status() == StatusCode::OK
    })
    .await;
    let mut streams = vec![];
    for _ in 0..20 {
        let mut stream = TcpStream::connect(serving.addr).await.expect("connects");
        let request = format!(
            "GET /auth/revocations:watch HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
            installed.key
        );
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut head = [0; 15];
        stream.read_exact(&mut head).await.expect("is answered");
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        streams.push(stream);
    }
    let process = children(serving.process.id()).first().copied().unwrap_or(serving.process.id());
    signal(process, Signal::TERM);
    let stopped = Instant::now();
    let mut scrapes = 0;
    // A scraper connects each time.
    while stopped.elapsed() < Duration::from_millis(1_500) {
        let page = Wires::to(serving.metrics_addr).http(Method::GET, "/metrics", HeaderMap::new(), "").await;
        let text = String::from_utf8(page.body().to_vec()).expect("text");
        assert!(page.status() == StatusCode::OK && text.ends_with("# EOF\n"), "{text}");
        scrapes += 1;
    }
    for mut stream in streams {
        let mut rest = vec![];
        stream.read_to_end(&mut rest).await.expect("the stream ends, and not by a reset");
        assert!(rest.ends_with(b"\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    }
    assert!(serving.ended().await.success());
    let took = stopped.elapsed();
    assert!(scrapes > 5 && took > Duration::from_secs(2) && took < Duration::from_secs(6), "{scrapes} in {took:?}");
    let log = fs::read_to_string(&path).expect("reads");
    assert!(!log.contains("ERROR") && log.contains("stopped"), "{log}");
}
