//! `./run` and `./test` on a machine without their requirements; the steps of a release.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::harness::database::fresh_dir;

/// A directory of programs, used as the whole PATH of a script.
struct Programs(PathBuf);

impl Programs {
    /// Programs that every Unix has.
    fn of_every_unix(name: &str) -> Self {
        let dir = fresh_dir(name);
        fs::create_dir_all(&dir).expect("creates");
        for program in ["sh", "dirname", "awk", "sed", "tr", "cat", "rm"] {
            let path = env::var_os("PATH").expect("a PATH");
            let found = env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.exists());
            symlink(found.expect("every Unix has it"), dir.join(program)).expect("links");
        }
        Self(dir)
    }

    /// Adds a program with this shell script.
    fn with(self, name: &str, script: &str) -> Self {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        self
    }

    fn run(&self, script: &str, args: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        let mut command = Command::new(script);
        command.args(args).env_clear().env("PATH", &self.0).env("HOME", "/nonexistent").stdin(Stdio::null());
        command.output().expect("runs")
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_works_without_a_build() {
    let nothing = Programs::of_every_unix("help");
    for (script, says) in [("run", "--data-dir <DIR>"), ("test", "./test -- --list")] {
        for flag in ["--help", "-h"] {
            let help = nothing.run(script, &[flag]);
            let (stdout, stderr) = (String::from_utf8_lossy(&help.stdout), String::from_utf8_lossy(&help.stderr));
            assert!(help.status.success() && stderr.is_empty(), "{script}: {stderr}");
            assert!(stdout.starts_with(&format!("Usage: ./{script} ")) && stdout.contains(says), "{script}: {stdout}");
        }
    }
}

/// One list, before anything is installed or built; without sudo, also the command for root.
#[test]
fn missing_requirements_are_listed_before_anything_is_built() {
    let bare = Programs::of_every_unix("missing").with("id", "echo 1000").with("apt-get", "echo installs; exit 1");
    let bare = bare.with("cargo", "echo builds");
    for script in ["run", "test"] {
        let refused = bare.run(script, &[]);
        let (stdout, stderr) = (String::from_utf8_lossy(&refused.stdout), String::from_utf8_lossy(&refused.stderr));
        assert!(!refused.status.success() && stdout.is_empty(), "{script}: {stdout}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with("Missing: a C compiler, ") && lines[0].contains("curl"), "{stderr}");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let command = format!("    sh {}/.ci/install.sh cc", root.canonicalize().expect("is there").display());
        assert!(lines.iter().any(|line| line.starts_with(&command) && line.contains(" curl")), "{stderr}");
        assert!(stderr.contains("It installs with apt-get: gcc libc6-dev "), "{stderr}");
    }

    let with_sudo = bare.with("sudo", "echo \"sudo $*\"; exit 7");
    let stopped = with_sudo.run("test", &[]);
    assert_eq!(stopped.status.code(), Some(7), "what sudo refuses is not gone on with");
    let stdout = String::from_utf8_lossy(&stopped.stdout);
    assert!(stdout.starts_with("sudo sh ") && stdout.contains("/.ci/install.sh cc"), "{stdout}");
    assert!(!stdout.contains("builds"), "{stdout}");
}

#[test]
fn a_missing_toolchain_is_in_the_same_list() {
    let bare = Programs::of_every_unix("toolchain").with("id", "echo 1000").with("cc", "").with("curl", "");
    let refused = bare.run("test", &[]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{stderr}");
    let first = stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("Missing: ") && first.contains("a Rust toolchain (https://rustup.rs)"), "{stderr}");
}

/// Runs shell code after `tests/clients/lib.sh`, with these programs first on the PATH.
fn client_suite(programs: &Programs, lines: &str) -> Output {
    let path = format!("{}:{}", programs.0.display(), env::var("PATH").unwrap_or_default());
    let script = format!("set -eu\n. tests/clients/lib.sh\n{lines}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command.env("PATH", path).env("TMPDIR", &programs.0).output().expect("runs")
}

/// Whether this process ignores SIGHUP, which its children inherit.
fn ignores_hangups() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    u64::from_str_radix(ignored.trim(), 16).expect("in hexadecimal") & 1 == 1
}

/// A killed suite is cleaned up by the next one.
#[test]
fn a_client_suite_leaves_nothing_behind() {
    let here = Programs::of_every_unix("suite");
    let mut gone = Command::new("true").spawn().expect("runs");
    gone.wait().expect("ends");
    let left = here.0.join(format!("sessiond-clients-{}-abcdef", gone.id()));
    fs::create_dir_all(left.join("sessiond/postgres")).expect("creates");
    let alive = here.0.join(format!("sessiond-clients-{}-abcdef", std::process::id()));
    fs::create_dir(&alive).expect("creates");

    // A shell cannot catch what was ignored when it started, as nohup has it.
    let hangup = if ignores_hangups() { None } else { Some(("kill -HUP $$; sleep 5", 1)) };
    for (ending, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$; sleep 5", 1)].into_iter().chain(hangup) {
        let ended = client_suite(&here, &format!("echo \"$data\"\nls -ld \"$data\"\n{ending}"));
        let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{ending}: {ended:?}");
        let data = Path::new(stdout.lines().next().expect("a directory"));
        assert!(data.starts_with(&here.0) && !data.exists(), "{ending}: {stdout}");
        // Others may pass through but not list, because root's Postgres is below.
        assert!(stdout.contains("drwx--x--x"), "{stdout}");
    }
    assert!(!left.exists() && alive.exists());
}

/// Debian 12 has Node 18, and the clients' packages need 20.
#[test]
fn an_old_node_is_replaced_by_one_from_npm() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let brought = root.join("target/tools/node/node_modules/node/bin/node");
    let there_before = brought.exists();
    let old = Programs::of_every_unix("node").with("node", "echo v18.20.4").with("npm", "echo \"npm $*\" >&2");
    let asked = client_suite(&old, "need_node");
    let stdout = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success() && stdout.contains("Node 20 or later is needed, found only version 18"), "{stdout}");
    assert!(there_before || stdout.contains("npm install --prefix ") && stdout.contains(" node@22"), "{stdout}");
    let fits = Programs::of_every_unix("node-fits").with("node", "echo v20.0.0").with("npm", "echo \"npm $*\" >&2");
    let asked = client_suite(&fits, "need_node");
    assert!(asked.status.success() && asked.stderr.is_empty(), "{asked:?}");
}

/// A directory with the files that name a version, at version 1.2.0, and `deploy/release`.
fn released(name: &str) -> PathBuf {
    let root = fresh_dir(name);
    let files = [
        (
            "Cargo.toml",
            "[workspace.package]\nversion = \"1.2.0\"\n[a]\ncore = { version = \"1.2.0\", path = \"crates/core\" }\n",
        ),
        ("deploy/helm/sessiond/Chart.yaml", "version: 1.2.0\nappVersion: 1.2.0\n"),
        ("deploy/kubernetes/base/kustomization.yaml", "    newTag: 1.2.0\n"),
        ("deploy/kubernetes/migrate/kustomization.yaml", "    newTag: 1.2.0\n"),
        (
            "clients/typescript/packages/react/package.json",
            "{\n  \"version\": \"1.2.0\",\n  \"dependencies\": {\n    \"@sessiond/client\": \"1.2.0\"\n  }\n}\n",
        ),
        ("clients/python/pyproject.toml", "[project]\nversion = \"1.2.0\"\n"),
        ("docs/operating/install.md", "dpkg -i sessiond_1.2.0-1_amd64.deb; docker run sessiond:1.2.0\n"),
        ("compose.yaml", "  image: sessiond:1.2.0\n"),
        ("crates/core/CHANGELOG.md", "## [1.2.0] - 2026-01-05\n"),
        (
            "CHANGELOG.md",
            "# Changelog\n\n## [1.2.0] - 2026-01-05\n\nOne line,\nand its end.\n\n### Added\n\n- A thing that\n  wraps.\n\
             - Another.\n\n```sh\na\n  b\n```\n\n## [1.1.0] - 2025-12-01\n\n- Old.\n",
        ),
    ];
    for (file, text) in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("creates");
        fs::write(path, text).expect("writes");
    }
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/release"), root.join("deploy/release"))
        .expect("copies");
    root
}

fn release(root: &Path, args: &[&str]) -> Output {
    Command::new("sh").arg(root.join("deploy/release")).args(args).stdin(Stdio::null()).output().expect("runs")
}

#[test]
fn release_notes_are_a_section_of_the_changelog_without_its_line_breaks() {
    let root = released("notes");
    let notes = release(&root, &["notes", "v1.2.0"]);
    let text = String::from_utf8_lossy(&notes.stdout).into_owned();
    let expected =
        "One line, and its end.\n\n### Added\n\n- A thing that wraps.\n- Another.\n\n```sh\na\n  b\n```\n\n### Verify";
    assert!(notes.status.success() && text.starts_with(expected), "{text}");
    assert!(text.contains("/release.yml@refs/tags/v1.2.0 ") && !text.contains("Old"), "{text}");

    let missing = release(&root, &["notes", "v1.3.0"]);
    assert!(!missing.status.success() && missing.stdout.is_empty(), "{missing:?}");
    let _ = fs::remove_dir_all(root);
}

/// Every place that names another version is reported at once.
#[test]
fn a_release_is_of_one_version() {
    let root = released("versions");
    for args in [&["check"][..], &["check", "v1.2.0"]] {
        let agreed = release(&root, args);
        assert!(agreed.status.success() && agreed.stderr.is_empty(), "{agreed:?}");
    }
    let wrong_tag = release(&root, &["check", "v1.2.1"]);
    let said = String::from_utf8_lossy(&wrong_tag.stderr).into_owned();
    assert!(!wrong_tag.status.success(), "{said}");
    assert_eq!(said, "the tag v1.2.1: 1.2.1, and Cargo.toml has 1.2.0\n");

    for (file, text) in [
        (
            "clients/typescript/packages/react/package.json",
            "  \"version\": \"1.2.0\",\n    \"@sessiond/client\": \"1.1.0\",\n",
        ),
        ("clients/python/pyproject.toml", "version = \"1.1.0\"\n"),
        ("docs/operating/install.md", "dpkg -i sessiond_1.1.0-1_amd64.deb; docker run sessiond:1.2.0\n"),
        ("compose.yaml", "  image: sessiond:1.1.0\n"),
        ("crates/core/CHANGELOG.md", "## [1.2.0] - unreleased\n"),
    ] {
        fs::write(root.join(file), text).expect("writes");
    }
    let wrong = release(&root, &["check", "v1.2.0"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success(), "{said}");
    let expected = "clients/typescript/packages/react/package.json, a dependency: 1.1.0, and Cargo.toml has 1.2.0\n\
                    clients/python/pyproject.toml: 1.1.0, and Cargo.toml has 1.2.0\n\
                    docs/operating/install.md: 1.1.0, and Cargo.toml has 1.2.0\n\
                    compose.yaml: 1.1.0, and Cargo.toml has 1.2.0\n\
                    crates/core/CHANGELOG.md: no date in \"## [1.2.0] - unreleased\"\n";
    assert_eq!(said, expected);
    let _ = fs::remove_dir_all(root);
}
