//! From the 200 of a sign-out to the 401 of a guarded service in another process: `cargo bench --bench propagation`.
//!
//! Sign-outs come at a steady rate, each at its own time, whatever the one before does; a hundred streams follow them all in
//! the other process, the guard's among them. Whoever was signed out calls the guarded service at once, and again until it
//! refuses: what is measured includes those calls, and they are measured by themselves too.
//!
//! | setting | default | |
//! |---|---|---|
//! | `PROPAGATION_SIGN_OUTS` | 2000 | how many there are; `100000` for the long proof |
//! | `PROPAGATION_RATE` | 500 | how many a second |
//! | `PROPAGATION_WATCHERS` | 100 | how many streams there are |

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
use http::Method;
use http::StatusCode;
use secrecy::ExposeSecret as _;
use sessiond::guard::Guard;
use sessiond::guard::GuardOptions;
use sessiond::pb::CreateSessionRequest;
use sessiond::pb::watch_revocations_response::Event;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::process::Command;

/// What takes longer than this was missed.
const MISSED: Duration = Duration::from_secs(10);

/// How many clients sign out and call, each with connections of its own.
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
    println!("{:<36} {:>9} {:>9} {:>9} {:>9}", "from 200 to 401, in ms", "median", "p99", "max", "missed");
    let service = Service::start().await;
    let replica = service.replica().await;
    for (name, watched) in [("one replica", &service), ("two replicas", &replica)] {
        let mut other = OtherProcess::start(watched).await;
        let tokens = sign_in(&service, sign_outs + 200).await;
        let (tokens, warm) = tokens.split_at(sign_outs);
        run(&service, other.app, warm, rate).await;
        let (mut calls, mut times) = run(&service, other.app, tokens, rate).await;
        print(name, &mut times);
        print("  a call of the guarded service", &mut calls);
        let told = other.stop().await;
        assert!(told.iter().all(|count| *count == sign_outs + 200), "each stream was told of each: {told:?}");
        println!("  each of {} streams was told of all {}", told.len(), sign_outs + 200);
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

/// Signs everyone out at this rate. Answers with how long a call of the guarded service takes, and how long each was let in.
async fn run(service: &Service, app: SocketAddr, tokens: &[String], rate: usize) -> (Vec<Duration>, Vec<Duration>) {
    let clients: Vec<(Wires, Wires)> = (0..CLIENTS).map(|_| (Wires::to(service.addr), Wires::to(app))).collect();
    let started = Instant::now();
    let one = |(at, token): (usize, &String)| {
        let (wires, app) = &clients[at % CLIENTS];
        let (token, due) = (token.clone(), started + Duration::from_secs_f64(at as f64 / rate as f64));
        async move {
            tokio::time::sleep_until(due.into()).await;
            let begun = Instant::now();
            assert_eq!(call(app, &token).await, StatusCode::OK, "signed in");
            let took = begun.elapsed();
            let answer = wires.http(Method::DELETE, "/auth/sessions/current", bearer(&token), "").await.status();
            assert_eq!(answer, StatusCode::OK);
            let signed_out = Instant::now();
            while call(app, &token).await == StatusCode::OK {
                if signed_out.elapsed() > MISSED {
                    break;
                }
            }
            (took, signed_out.elapsed())
        }
    };
    join_all(tokens.iter().enumerate().map(one)).await.into_iter().unzip()
}

async fn call(app: &Wires, token: &str) -> StatusCode {
    app.http(Method::GET, "/", bearer(token), "").await.status()
}

fn print(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let missed = times.iter().filter(|time| **time > MISSED).count();
    println!("{name:<36} {:>9.2} {:>9.2} {:>9.2} {missed:>9}", at(50), at(99), at(100));
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

    /// How many revocations each stream was told of.
    async fn stop(&mut self) -> Vec<usize> {
        // What was told last is still on its way.
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
    let routes = Router::new().route("/", get(async || "hello")).layer(guard.layer());
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
