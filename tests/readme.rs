//! README.md and the pages of the documentation, pasted from top to bottom: their commands work in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    SEALING_KEY,
    database::{Database, fresh_dir},
    serving::free_port,
};

const BINARY: &str = env!("CARGO_BIN_EXE_sessiond");

/// The pages whose commands are run. Each has a database of its own.
const PAGES: &[&str] = &[
    "README.md",
    "docs/quick-start.md",
    "docs/guides/back-channels.md",
    "docs/guides/cookies.md",
    "docs/guides/keys.md",
    "docs/guides/login.md",
    "docs/guides/migrate-kratos.md",
    "docs/guides/migrate-redis.md",
    "docs/guides/migrate-supabase.md",
    "docs/guides/migrate.md",
    "docs/guides/oauth.md",
    "docs/guides/restore.md",
    "docs/guides/sign-out.md",
    "docs/guides/stack-auth.md",
    "docs/guides/upgrade.md",
    "docs/operating/audit.md",
    "docs/operating/policies.md",
];

/// The pages with commands that are not run, and why.
const UNRUN: &[(&str, &str)] = &[
    ("docs/guides/clients.md", "its commands install packages; the client tests run its recipes"),
    ("docs/guides/guards.md", "its commands install packages; the tests of the guards run its examples"),
    ("docs/guides/sidecar.md", "stays in the foreground; the tests of the sidecar start theirs"),
    ("docs/operating/doctor.md", "needs a server in production; the tests of the doctor have theirs"),
    ("docs/operating/install.md", "installs packages of the system"),
    ("docs/operating/kubernetes.md", "needs a cluster"),
    ("docs/operating/scale.md", "needs a Citus cluster"),
    ("docs/operating/tls.md", "needs certificates; the tests of TLS make theirs"),
    ("docs/operating/traces.md", "needs a collector"),
];

/// Commands that are not run, by prefix, and why.
const SKIPPED: [(&str, &str); 6] = [
    ("./run", "the test has started the same server"),
    ("./test", "this is that test"),
    ("buf ", "may not be installed; the client tests cover gRPC"),
    ("cargo install", "takes minutes; the program is already on the PATH"),
    ("sessiond health", "no server is left to ask"),
    ("sessiond serve --backchannel", "needs the certificates of a private network"),
];

/// What a reader replaces by an id of their own. Commands with one of them are not run.
const PLACEHOLDERS: [&str; 3] = [" KEY", " ENDPOINT", " DELIVERY"];

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

/// README.md and the pages of docs/.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec!["README.md".to_owned()];
    for dir in ["docs", "docs/guides", "docs/operating", "docs/reference"] {
        for entry in fs::read_dir(root.join(dir)).expect("lists") {
            let name = format!("{dir}/{}", entry.expect("lists").file_name().display());
            if name.ends_with(".md") {
                found.push(name);
            }
        }
    }
    found
}

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("reads")
}

/// A running `sessiond dev`, as `./run` starts it, in a directory of its own.
async fn dev() -> Running {
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
    running
}

/// Runs the commands of a page, and returns what they print.
async fn paste(name: &str, dir: &Path) -> String {
    let blocks = blocks(&page(name));
    assert!(!blocks.is_empty(), "{name} has no commands");
    let migrates = blocks.iter().flatten().any(|command| command.starts_with("sessiond migrate"));
    let database = if migrates { Database::create_empty().await } else { Database::create().await };
    let port = free_port().to_string();
    let mut script = SHELL.to_owned();
    // A page that creates no project is about one that exists.
    if !migrates && !blocks.iter().flatten().any(|command| command.starts_with("sessiond project create")) {
        script += "sessiond project create shop >/dev/null\n";
    }
    for (number, block) in blocks.iter().enumerate() {
        script += &format!("echo '== block {}'\n", number + 1);
        for command in block {
            let skipped = SKIPPED.iter().any(|(begins, _)| command.starts_with(begins));
            if skipped || PLACEHOLDERS.iter().any(|placeholder| command.contains(placeholder)) {
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
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .current_dir(dir)
        .env("PATH", path)
        .env("READY", format!("http://{port}/readyz"))
        .env("SESSIOND_METRICS_LISTEN", "127.0.0.1:0")
        // The tests' Postgres has fsync off, for speed.
        .env("SESSIOND_ALLOW_UNSAFE_DURABILITY", "true")
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null());
    if !blocks.iter().flatten().any(|command| command.starts_with("export DATABASE_URL=")) {
        shell.env("DATABASE_URL", &database.url).env("SESSIOND_SEALING_KEY", SEALING_KEY);
    }
    let pasted = shell.output().expect("runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&pasted.stdout), String::from_utf8_lossy(&pasted.stderr));
    assert!(pasted.status.success(), "{name}: {stdout}\n{stderr}");
    stdout.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_work_when_they_are_pasted_from_top_to_bottom() {
    let running = dev().await;
    fs::write(running.1.join("database-password"), "unused\n").expect("writes");
    let mut said = BTreeMap::new();
    for name in PAGES.iter().copied() {
        said.insert(name, paste(name, &running.1).await);
    }
    for (name, expected) in [
        ("README.md", "{\"success\":true}\n"),
        ("docs/quick-start.md", "{\"success\":true}\n"),
        ("docs/quick-start.md", "\"device_name\":\"phone\""),
        ("docs/quick-start.md", "\"revoked_count\":"),
        ("docs/quick-start.md", "snapshot_complete"),
        ("docs/quick-start.md", "data: "),
        ("docs/quick-start.md", "x-user-id: ada"),
        ("docs/quick-start.md", "created project shop"),
        ("docs/quick-start.md", "sdsk_"),
        ("docs/quick-start.md", "served\n"),
        ("docs/guides/oauth.md", "\"token_type\":\"Bearer\""),
        ("docs/guides/oauth.md", "\"active\":true"),
        ("docs/guides/login.md", "\"device_name\":\"Chrome on Windows\""),
    ] {
        assert!(said[name].contains(expected), "{expected} is not in what {name} prints: {}", said[name]);
    }
    assert!(said["docs/quick-start.md"].matches("grpc-status:0").count() == 1, "{}", said["docs/quick-start.md"]);
    // The exchange is repeatable: both calls return one session.
    let answers: Vec<Value> =
        said["docs/guides/migrate.md"].lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(answers.len() == 2, "{answers:?}");
    for field in ["/session/id", "/refresh_token"] {
        let values: BTreeSet<_> = answers.iter().map(|answer| answer.pointer(field).and_then(Value::as_str)).collect();
        assert!(values.len() == 1 && !values.contains(&None), "{field} differs");
    }
}

/// Each page with commands is run, or says why not.
#[test]
fn no_command_of_a_page_is_left_out_by_mistake() {
    let known: BTreeSet<&str> = PAGES.iter().copied().chain(UNRUN.iter().map(|(name, _)| *name)).collect();
    let pages = pages();
    for name in &pages {
        // Every other part is outside of a block.
        let page = page(name);
        let mut loose = page.split("```").step_by(2).flat_map(str::lines);
        let is_command = |line: &&str| line.starts_with("    sessiond ") || line.starts_with("    curl ");
        assert_eq!(loose.find(is_command), None, "{name} has a command that is in no block ```sh");
    }
    let found: BTreeSet<&str> =
        pages.iter().map(String::as_str).filter(|name| !blocks(&page(name)).is_empty()).collect();
    assert_eq!(found, known, "pages with commands, and those that this test knows");
    let commands: Vec<String> = PAGES.iter().flat_map(|name| blocks(&page(name))).flatten().collect();
    for (begins, reason) in SKIPPED {
        let is_there = commands.iter().any(|command| command.starts_with(begins));
        assert!(is_there, "{begins:?} is skipped because {reason}, and on no page");
    }
}

/// The guide to the guard shows lines of its README, which rustdoc compiles.
#[test]
fn the_guards_guide_shows_code_that_compiles() {
    let (guide, readme) = (page("docs/guides/guard.md"), page("crates/sessiond-guard/README.md"));
    let mut lines =
        guide.lines().skip_while(|line| *line != "```rust").skip(1).take_while(|line| *line != "```").peekable();
    assert!(lines.peek().is_some(), "has code");
    for line in lines {
        assert!(readme.lines().any(|known| known.trim() == line.trim()), "{line}");
    }
}
