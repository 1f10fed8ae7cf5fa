//! A service with the guard for Rust, for the measurements of the guards: see ../README.md.
//!
//! Clippy forbids the system's clock elsewhere; it is what two processes have in common.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a program of the tests")]

use std::env;
use std::fs;
use std::io::Read as _;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::routing::post;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use sessiond_guard::Guard;
use sessiond_guard::GuardOptions;
use sessiond_guard::Rejection;
use tokio::net::TcpListener;

/// How long a token is watched.
const WATCHED: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    url: String,
    project: String,
    issuer: String,
    server_key: String,
    max_staleness_ms: u64,
    max_entries: usize,
    #[serde(default = "startup_timeout_ms")]
    startup_timeout_ms: u64,
}

const fn startup_timeout_ms() -> u64 {
    20_000
}

#[tokio::main]
async fn main() {
    let options: Options = serde_json::from_str(&env::var("PROBE").expect("the options")).expect("the options");
    let begun = Instant::now();
    let guard = Guard::connect(GuardOptions {
        max_staleness: Duration::from_millis(options.max_staleness_ms),
        max_entries: options.max_entries,
        startup_timeout: Duration::from_millis(options.startup_timeout_ms),
        ..GuardOptions::new(options.url, options.project, options.issuer, options.server_key)
    });
    let guard = guard.await.expect("connects");
    let ready_ms = begun.elapsed().as_millis() as u64;
    let [of_stats, of_refused, of_time, of_missed] = [(); 4].map(|()| guard.clone());
    let routes = Router::new()
        .route("/stats", get(async move || Json(stats(&of_stats, ready_ms))))
        .route("/refused", get(async move |headers: HeaderMap| Json(refused(&of_refused, token(&headers)).await)))
        .route("/time", get(async move |headers: HeaderMap| Json(time(&of_time, token(&headers)))))
        .route("/missed", post(async move |Json(tokens): Json<Vec<String>>| Json(missed(&of_missed, &tokens))))
        .layer(DefaultBodyLimit::disable());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    println!("{}", listener.local_addr().expect("bound").port());
    // The parent closes it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        std::process::exit(0);
    });
    axum::serve(listener, routes).await.expect("serves");
}

fn token(headers: &HeaderMap) -> &str {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    token.expect("each call has one")
}

fn is_revoked(guard: &Guard, token: &str) -> bool {
    guard.verify_now(token) == Err(Rejection::SessionRevoked)
}

fn stats(guard: &Guard, ready_ms: u64) -> Value {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident: u64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    json!({ "entries": guard.stats().entries, "rssBytes": resident * 4_096, "readyMs": ready_ms })
}

/// Watches a token until it is refused. Returns the time, in nanoseconds of Unix time.
async fn refused(guard: &Guard, token: &str) -> Value {
    let begun = Instant::now();
    while !is_revoked(guard, token) {
        if begun.elapsed() > WATCHED {
            return json!({});
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
    json!({ "nanos": now.as_nanos() as u64 })
}

/// The time of one verification of a known token, in nanoseconds: the median of rounds.
fn time(guard: &Guard, token: &str) -> Value {
    const CALLS: u32 = 10_000;
    let mut rounds = [(); 50].map(|()| {
        let begun = Instant::now();
        for _ in 0..CALLS {
            assert!(guard.verify_now(token).is_ok(), "the token is good");
        }
        begun.elapsed().as_nanos() as f64 / f64::from(CALLS)
    });
    rounds.sort_by(f64::total_cmp);
    json!({ "nanos": rounds[25] })
}

/// How many of these tokens are not refused as signed out.
fn missed(guard: &Guard, tokens: &[String]) -> Value {
    json!({ "missed": tokens.iter().filter(|token| !is_revoked(guard, token)).count() })
}
