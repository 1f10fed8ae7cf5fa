//! Writes `clients/vectors`: what every guard must decide, whatever its language. `ACCEPT=1 cargo test -p sessiond-guard --test
//! vectors` writes the files again; without it, the test checks that they are what this generator writes. The verdicts are
//! written down here by hand, and are those of the documentation: no guard computes them. Signatures are deterministic (RFC 6979).

mod clock;
mod jwks;
mod keys;
mod refusals;
mod streams;
mod tokens;

use std::env;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The project and the issuer of all vectors.
const PROJECT: &str = "demo";
const ISSUER: &str = "https://sessions.example.org";

/// The time at which the vectors play, in seconds since the Unix epoch: 2027-01-15T08:00:00Z.
const NOW: i64 = 1_800_000_000;

#[test]
fn the_vectors_are_those_of_the_generator() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/vectors");
    let files = [
        ("tokens.json", tokens::vectors()),
        ("jwks.json", jwks::vectors()),
        ("streams.json", streams::vectors()),
        ("clock.json", clock::vectors()),
        ("refusals.json", refusals::vectors()),
    ];
    for (name, value) in files {
        let (path, made) = (directory.join(name), format!("{value:#}\n"));
        if env::var_os("ACCEPT").is_some() {
            fs::write(&path, &made).expect("writes");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == made, "clients/vectors/{name} is out of date: run with ACCEPT=1");
    }
}

/// What every file begins with.
fn head() -> Value {
    serde_json::json!({ "project": PROJECT, "issuer": ISSUER, "jwks": keys::published() })
}

/// The file with this list under this name.
fn file(name: &str, cases: impl IntoIterator<Item = Value>) -> Value {
    let mut file = head();
    file[name] = cases.into_iter().collect();
    file
}
