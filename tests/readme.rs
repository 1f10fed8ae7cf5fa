//! README.md, pasted from top to bottom: its commands work in order.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::database::{Database, fresh_dir};

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");

/// Commands that are not run, by prefix, and why.
const SKIPPED: [(&str, &str); 4] = [
    ("./run", "the test has started the same server"),
    ("./test", "this is that test"),
    ("buf ", "may not be installed; the client tests cover gRPC"),
    ("cargo install", "takes minutes; the program is already on the PATH"),
];

/// Prelude for the pasted commands: an HTTP error fails, a stream ends, and a started server is stopped.
const SHELL: &str = r#"set -eu
curl() {
    case "$*" in
        *revocations:watch*) command curl --silent --show-error --fail --max-time 2 "$@" || [ $? = 28 ] || return ;;
        *) command curl --silent --show-error --fail "$@" || return ;;
    esac
    echo
}
sessiond() {
    if [ "$1" != serve ]; then command sessiond "$@" && return; fi
    command sessiond "$@" &
    server=$!
    tries=0
    until curl "$READY" 2>/dev/null; do
        tries=$((tries + 1))
        if [ "$tries" -gt 300 ]; then kill "$server" && return 1; fi
        sleep 0.1
    done
    kill "$server"
    wait "$server"
    echo "served"
}
"#;

/// The blocks of shell commands: one element per command, with its continuation lines.
fn blocks(text: &str) -> Vec<Vec<String>> {
    let mut blocks = vec![];
    let mut lines = text.lines();
    while lines.any(|line| line == "```sh") {
        let mut commands: Vec<String> = vec![];
        let mut goes_on = false;
        for line in lines.by_ref().take_while(|line| *line != "```") {
            match commands.last_mut() {
                Some(command) if goes_on => *command = format!("{command}\n{line}"),
                _ => commands.push(line.to_owned()),
            }
            goes_on = line.ends_with('\\');
        }
        blocks.push(commands);
    }
    blocks
}

/// Kills the process, then deletes the directory.
struct Running(Child, std::path::PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let started = Instant::now();
        while self.1.exists() && fs::remove_dir_all(&self.1).is_err() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_works_when_it_is_pasted_from_top_to_bottom() {
    let dir = fresh_dir("readme");
    fs::create_dir_all(dir.join("target/release")).expect("creates");
    symlink(BINARY, dir.join("target/release/sessiond")).expect("links");
    let log = File::create(dir.join("log")).expect("creates");
    let dev = Command::new("target/release/sessiond")
        .args(["dev", "--listen", "127.0.0.1:0"])
        .current_dir(&dir)
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("starts");
    let mut running = Running(dev, dir.clone());
    let started = Instant::now();
    while !dir.join(".sessiond/dev.env").exists() {
        let ended = running.0.try_wait().expect("a child");
        let log = || fs::read_to_string(dir.join("log")).expect("reads");
        assert!(ended.is_none() && started.elapsed() < Duration::from_secs(60), "{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let database = Database::create_empty().await;
    fs::write(dir.join("database-password"), "unused\n").expect("writes");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").to_string();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let blocks = blocks(&fs::read_to_string(readme).expect("reads"));
    assert!(blocks.len() > 8, "the README has its blocks: {blocks:?}");
    let mut script = SHELL.to_owned();
    for (number, block) in blocks.iter().enumerate() {
        script += &format!("echo '== block {}'\n", number + 1);
        for command in block {
            if SKIPPED.iter().any(|(begins, _)| command.starts_with(begins)) {
                continue;
            }
            // Replaces the reader's own database, secrets and address.
            let command = match command.strip_prefix("export DATABASE_URL=") {
                Some(_) => format!("export DATABASE_URL='{}'", database.url),
                None => command.replace("0.0.0.0:8080", &port).replace("/run/secrets", &dir.display().to_string()),
            };
            script += &format!("{command}\n");
        }
    }

    let path = format!("{}/target/release:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    let pasted = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&dir)
        .env("PATH", path)
        .env("READY", format!("http://{port}/readyz"))
        .env("SESSIOND_METRICS_LISTEN", "127.0.0.1:0")
        // The tests' Postgres has fsync off, for speed.
        .env("SESSIOND_ALLOW_UNSAFE_DURABILITY", "true")
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&pasted.stdout), String::from_utf8_lossy(&pasted.stderr));
    assert!(pasted.status.success(), "{stdout}\n{stderr}");
    for expected in [
        "{\"success\":true}\n",
        "\"device_name\":\"phone\"",
        "\"revoked_count\":",
        "\"token_type\":\"Bearer\"",
        "\"active\":true",
        "snapshot_complete",
        "data: ",
        "x-user-id: ada",
        "created project shop",
        "sdsk_",
        "served\n",
    ] {
        assert!(stdout.contains(expected), "{expected} is not in {stdout}\n{stderr}");
    }
    assert!(stdout.matches("grpc-status:0").count() == 1, "{stdout}");
}

/// Every skipped command is still in the README.
#[test]
fn what_the_readme_test_skips_is_in_the_readme() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let blocks = blocks(&fs::read_to_string(readme).expect("reads"));
    for (begins, reason) in SKIPPED {
        let is_there = blocks.iter().flatten().any(|command| command.starts_with(begins));
        assert!(is_there, "{begins:?} is skipped because {reason}, and not in the README");
    }
}
