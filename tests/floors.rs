//! The tree is the diagram: a module uses only lower floors, some crates have one home, and some calls are not made.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Lowest first. Modules on one floor ignore each other.
const FLOORS: &[&[&str]] = &[
    &["id"],
    &["backoff", "clock", "pb"],
    &["token"],
    &["session"],
    &["device", "every", "reason", "tls"],
    &["config", "outbound", "probe"],
    &["telemetry"],
    &["cookies", "forwarded", "otlp", "rates"],
    &["store"],
    &["feed"],
    &["app"],
    &["guard", "rpc"],
    &["edge"],
];

/// A crate, and the only modules that may name it.
const WALLS: &[(&str, &[&str])] = &[
    ("diesel", &["store"]),
    ("diesel_async", &["store"]),
    ("tokio_postgres", &["store"]),
    ("jsonwebtoken", &["token"]),
    ("aws_lc_rs", &["token"]),
    ("tonic", &["pb", "reason", "otlp", "rpc", "edge", "guard"]),
    ("prost_reflect", &["edge"]),
    ("tonic_rest_layer", &["edge"]),
    ("axum", &["edge"]),
    ("hyper", &["edge", "otlp", "outbound", "probe"]),
    ("tokio_rustls", &["outbound", "otlp", "probe", "edge"]),
    ("x509_parser", &["edge", "probe"]),
    ("cookie", &["cookies"]),
    ("ua_parser", &["device"]),
    ("clap", &["config"]),
    ("getrandom", &["clock"]),
];

/// Where the modules are, and the module of a crate that is one.
const ROOTS: &[(&str, Option<&str>)] =
    &[("src", None), ("crates/sessiond-core/src", None), ("crates/sessiond-guard/src", Some("guard"))];

/// Every file but the binary's: its module, its path, and its code without comments.
fn files() -> Vec<(String, PathBuf, String)> {
    ROOTS.iter().flat_map(|(root, whole)| files_below(root, *whole)).collect()
}

fn files_below(root: &str, whole: Option<&str>) -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut dirs = vec![root.clone()];
    let mut files = vec![];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("reads") {
            let path = entry.expect("an entry").path();
            let below = path.strip_prefix(&root).expect("below the root").to_owned();
            let first = below.iter().next().expect("a name").to_string_lossy().trim_end_matches(".rs").to_owned();
            match path.extension() {
                None if first != "bin" => dirs.push(path),
                Some(_) if first != "lib" || whole.is_some() => {
                    let text = fs::read_to_string(&path).expect("reads");
                    let code =
                        text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
                    files.push((whole.unwrap_or(&first).to_owned(), below, code));
                }
                _ => {}
            }
        }
    }
    files
}

/// The modules that a file names, of its own crate or of the one below. One path to a line, so that this is all there is to
/// it.
fn used(module: &str, code: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    let own = if module == "guard" { "sessiond_core::" } else { "crate::" };
    [own, "sessiond_core::"].iter().flat_map(|start| code.split(start).skip(1).map(name)).collect()
}

fn floor(module: &str) -> usize {
    FLOORS.iter().position(|floor| floor.contains(&module)).unwrap_or_else(|| panic!("{module} stands on no floor"))
}

#[test]
fn a_module_uses_only_lower_floors() {
    let files = files();
    assert!(files.len() > 50, "the tree was found");
    let mut upward = vec![];
    for (module, path, code) in &files {
        assert!(
            !code.contains("use crate::{") && !code.contains("use sessiond_core::{"),
            "{}: one path to a line",
            path.display()
        );
        for other in used(module, code) {
            if other != *module && floor(&other) >= floor(module) {
                upward.push(format!("{} uses {other}", path.display()));
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

/// The rules take values and return a decision: they know no setting, no limiter, no device database, no store; and they do
/// not wait, read the time or draw random numbers. Their tests may make up an id.
#[test]
fn the_rules_are_pure() {
    let banned = ["async ", ".await", "tokio", "Clock", "Instant", "SystemTime", "std::fs", "tracing"];
    for (module, path, code) in files().into_iter().filter(|(module, ..)| module == "session") {
        let (code, _tests) = code.split_once("#[cfg(test)]\nmod tests").unwrap_or((&code, ""));
        for word in banned {
            assert!(!code.contains(word), "{} says {word}", path.display());
        }
        for other in used(&module, code) {
            let is_known = ["backoff", "clock", "id", "token"].contains(&other.as_str());
            assert!(is_known, "{} uses {other}", path.display());
            assert!(other != "clock" || !code.contains("clock::new_"), "{} makes up an id", path.display());
        }
    }
}

/// Whether a path begins with the crate's name; in the middle of one, it is something else of that name, and at the beginning
/// of a text the target of a log line.
fn names(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let begins =
        |at: usize| !code[..at].ends_with(|letter: char| letter.is_alphanumeric() || ['_', ':', '"'].contains(&letter));
    code.match_indices(&path).any(|(at, _)| begins(at)) || code.contains(&format!("use {name};"))
}

#[test]
fn a_walled_crate_is_named_only_at_home() {
    for (module, path, code) in files() {
        for (name, homes) in WALLS {
            assert!(!names(&code, name) || homes.contains(&module.as_str()), "{} names {name}", path.display());
        }
    }
}

/// Only its adapter at the edge knows Stack Auth's headers. Everything behind it sees an ordinary call.
#[test]
fn nothing_but_its_adapter_knows_stack_auths_api() {
    let of_stack_auth = ["x-stack-", "x-hexclave-", "known-error"];
    let (inside, outside): (Vec<_>, Vec<_>) =
        files().into_iter().partition(|(_, path, _)| path.starts_with("edge/stack_auth"));
    for word in of_stack_auth {
        assert!(inside.iter().any(|(_, _, code)| code.contains(word)), "{word} is not how the adapter spells it");
        for (_, path, code) in &outside {
            assert!(!code.contains(word), "{} says {word}", path.display());
        }
    }
}

/// Both return at the first row, which is before the commit.
#[test]
fn no_write_is_acknowledged_before_its_commit() {
    for (module, path, code) in files() {
        let early =
            [".get_result(", ".get_result::<", ".first(", ".first::<"].iter().find(|call| code.contains(**call));
        assert!(module != "store" || early.is_none(), "{} calls {early:?}", path.display());
    }
}
