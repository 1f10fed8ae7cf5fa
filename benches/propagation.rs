//! From the 200 of a sign-out to the rejection by a guard in another process: `cargo bench --bench propagation`.
//!
//! Sign-outs come at a steady rate, unless too many are still in progress. In the other process a hundred streams
//! follow the feed, the guard's among them. That process checks each token with its guard a thousand times a second,
//! from before the sign-out until it is rejected, and reports the time; both processes use the same machine's clock. If
//! the guard rejects before the client has its 200, the delay counts as zero.
//!
//! | setting | default | |
//! |---|---|---|
//! | `PROPAGATION_SIGN_OUTS` | 2000 | the number of sign-outs; `100000` for the long run |
//! | `PROPAGATION_RATE` | 500 | sign-outs a second |
//! | `PROPAGATION_WATCHERS` | 100 | the number of streams |

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the tests, which use the rest")]
mod harness;

use std::io::BufRead as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::routing::get;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use harness::ISSUER;
use harness::PROJECT;
use harness::Service;
use harness::Wire;
use harness::bearer;
use harness::wire::Wires;
use http::HeaderMap;
use http::Method;
use http::StatusCode;
use http::header::AUTHORIZATION;
use secrecy::ExposeSecret as _;
use sessiond::pb::CreateSessionRequest;
use sessiond::pb::watch_revocations_response::Event;
use sessiond_guard::Guard;
use sessiond_guard::GuardOptions;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::process::Command;

/// How long a token is watched. If it is still accepted then, the revocation was missed.
const MISSED: Duration = Duration::from_secs(30);

/// The most sign-outs in progress: after a stall, the backlog is not sent all at once.
const UNDER_WAY_MAX: usize = 256;

/// How long before its sign-out a token is watched.
const WATCHED_BEFORE: Duration = Duration::from_millis(20);

/// How many clients sign out and call, each with its own connections.
const CLIENTS: usize = 8;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new().expect("starts");
    match args.iter().position(|arg| arg == "--other-process") {
        Some(at) => runtime.block_on(other_process(&args[at + 1], &args[at + 2])),
        None => runtime.block_on(measure()),
    }
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

async fn measure() {
    let (sign_outs, rate) = (setting("PROPAGATION_SIGN_OUTS", 2_000), setting("PROPAGATION_RATE", 500));
    println!("{sign_outs} sign-outs, {rate} a second, {} streams", setting("PROPAGATION_WATCHERS", 100));
    println!("{:<24} {:>9} {:>9} {:>9} {:>9}", "in ms", "median", "p99", "max", "missed");
    let service = Service::start().await;
    let replica = service.replica().await;
    let mut now = Instant::now();
    for (name, watched) in [("one replica", &service), ("two replicas", &replica)] {
        // The test server's clock stands still; the guard's does not, and would find new tokens old.
        service.clock.advance(now.elapsed());
        now = Instant::now();
        let mut other = OtherProcess::start(watched).await;
        let tokens = sign_in(&service, sign_outs + 200).await;
        let (tokens, warm) = tokens.split_at(sign_outs);
        run(&service, other.app, warm, rate).await;
        let begun = Instant::now();
        let (mut sign_outs, mut times) = run(&service, other.app, tokens, rate).await;
        let reached = tokens.len() as f64 / begun.elapsed().as_secs_f64();
        print(name, &mut times);
        print("  a sign-out takes", &mut sign_outs);
        let counts = other.stop().await;
        assert!(
            counts.iter().all(|count| *count == tokens.len() + warm.len()),
            "each stream got each revocation: {counts:?}"
        );
        println!("  {reached:.0} a second; each of {} streams got all {}", counts.len(), tokens.len() + warm.len());
    }
}

async fn sign_in(service: &Service, count: usize) -> Vec<String> {
    let clients: Vec<Wires> = (0..CLIENTS).map(|_| Wires::to(service.addr)).collect();
    let sign_in = |at: usize| {
        let (wires, key) = (&clients[at % CLIENTS], bearer(service.server_key.expose_secret()));
        async move {
            let request = CreateSessionRequest { user_id: format!("user-{at}"), ..Default::default() };
            let answer: sessiond::pb::CreateSessionResponse =
                wires.call(Wire::Grpc, "CreateSession", key, &request).await.expect("signs in");
            answer.access_token
        }
    };
    stream::iter(0..count).map(sign_in).buffer_unordered(CLIENTS * 2).collect().await
}

/// Signs everyone out at this rate. Returns how long that took, and for how long each was still accepted.
async fn run(service: &Service, app: SocketAddr, tokens: &[String], rate: usize) -> (Vec<Duration>, Vec<Duration>) {
    let clients: Vec<(Wires, Wires)> = (0..CLIENTS).map(|_| (Wires::to(service.addr), Wires::to(app))).collect();
    let started = Instant::now() + WATCHED_BEFORE;
    let one = |(at, token): (usize, &String)| {
        let (wires, app) = &clients[at % CLIENTS];
        let (token, due) = (token.clone(), started + Duration::from_secs_f64(at as f64 / rate as f64));
        async move {
            tokio::time::sleep_until((due - WATCHED_BEFORE).into()).await;
            let accepted = app.http2(Method::GET, "/accepted", bearer(&token), "").await;
            assert_eq!(accepted.status(), StatusCode::OK, "signed in at first");
            let refused = app.http2(Method::GET, "/refused", bearer(&token), "");
            let ended = async {
                tokio::time::sleep_until(due.into()).await;
                let begun = Instant::now();
                // A client retries as told: over minutes, a machine may stall.
                let mut answer = sign_out(wires, &token).await;
                while [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&answer) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    answer = sign_out(wires, &token).await;
                }
                assert_eq!(answer, StatusCode::OK);
                (begun.elapsed(), unix_time())
            };
            let (refused, (took, signed_out)) = tokio::join!(refused, ended);
            if refused.status() != StatusCode::OK {
                return (took, MISSED);
            }
            let nanos = str::from_utf8(refused.body()).expect("a text").parse().expect("a number");
            (took, Duration::from_nanos(nanos).saturating_sub(signed_out))
        }
    };
    let all = stream::iter(tokens.iter().enumerate().map(one)).buffer_unordered(UNDER_WAY_MAX);
    all.collect::<Vec<_>>().await.into_iter().unzip()
}

async fn sign_out(wires: &Wires, token: &str) -> StatusCode {
    wires.http2(Method::DELETE, "/auth/sessions/current", bearer(token), "").await.status()
}

#[allow(clippy::disallowed_methods, reason = "what two processes have in common is the system's clock")]
fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later")
}

fn token(headers: &HeaderMap) -> &str {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    token.expect("each call has one")
}

async fn accepted(guard: Guard, headers: HeaderMap) -> StatusCode {
    guard.verify(token(&headers)).await.map_or(StatusCode::UNAUTHORIZED, |_| StatusCode::OK)
}

/// Watches a token until the guard rejects it. Returns the time, in nanoseconds of Unix time.
async fn refused(guard: Guard, headers: HeaderMap) -> Result<String, StatusCode> {
    let begun = Instant::now();
    while guard.verify_now(token(&headers)).is_ok() {
        if begun.elapsed() > MISSED {
            return Err(StatusCode::REQUEST_TIMEOUT);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(unix_time().as_nanos().to_string())
}

fn print(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let missed = times.iter().filter(|time| **time >= MISSED).count();
    println!("{name:<24} {:>9.2} {:>9.2} {:>9.2} {missed:>9}", at(50), at(99), at(100));
}

/// The process with the guarded service and all other streams.
struct OtherProcess {
    app: SocketAddr,
    child: Child,
    answers: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl OtherProcess {
    async fn start(watched: &Service) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("is there"))
            .args(["--other-process", &watched.addr.to_string(), watched.server_key.expose_secret()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut answers = BufReader::new(child.stdout.take().expect("piped")).lines();
        let app = answers.next_line().await.expect("reads").expect("is ready").parse().expect("an address");
        Self { app, child, answers }
    }

    /// How many revocations each stream got.
    async fn stop(&mut self) -> Vec<usize> {
        // The last ones are still on their way.
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.child.stdin.take().expect("piped").shutdown().await.expect("closes");
        let counts = self.answers.next_line().await.expect("reads").expect("an answer");
        counts.split_whitespace().map(|count| count.parse().expect("a number")).collect()
    }
}

async fn other_process(server: &str, key: &str) {
    let addr: SocketAddr = server.parse().expect("an address");
    let options = GuardOptions::new(format!("http://{server}"), PROJECT, ISSUER, key.to_owned());
    let guard = Guard::connect(options).await.expect("begins");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let app = listener.local_addr().expect("bound");
    let asked = guard.clone();
    let routes = Router::new()
        .route("/accepted", get(move |headers: HeaderMap| accepted(asked.clone(), headers)))
        .route("/refused", get(move |headers: HeaderMap| refused(guard.clone(), headers)));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let counts: Vec<Arc<AtomicUsize>> = (1..setting("PROPAGATION_WATCHERS", 100)).map(|_| Arc::default()).collect();
    let opened = join_all(counts.iter().map(|count| async {
        let mut watch = Wires::to(addr).watch(Wire::Grpc, bearer(key), "").await.expect("may follow");
        watch.snapshot().await;
        let count = Arc::clone(count);
        tokio::spawn(async move {
            while let Some(message) = watch.next().await {
                if let Some(Event::Revocations(batch)) = message.expect("goes on").event {
                    count.fetch_add(batch.revocations.len(), Ordering::Relaxed);
                }
            }
        });
    }));
    opened.await;
    println!("{app}");
    tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().count()).await.expect("waits");
    let counts: Vec<String> = counts.iter().map(|count| count.load(Ordering::Relaxed).to_string()).collect();
    println!("{}", counts.join(" "));
    std::io::stdout().flush().expect("writes");
}
