//! Attacks a running server from one loopback address (in one way, from four), in one way after another, while another signs
//! out. Every sign-out must succeed, and the p99 must stay within three times the quiet p99. `tests/hostile/run` starts a server
//! and this program, and passes its environment, as in `dev.env`.
//!
//! `HOSTILE_SECONDS` is the duration of each attack, `HOSTILE_FLOOR_MS` the time that a sign-out may always take: on a
//! machine with two cores, the attacker and the server share them.

use std::{
    convert::Infallible,
    env,
    error::Error,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    net::TcpSocket,
    runtime::{self, Handle},
    task::JoinSet,
    time::timeout,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
type Body = BoxBody<Bytes, Infallible>;
type Sender = http2::SendRequest<Body>;

const ATTACKER: &str = "127.0.0.2";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const OTHERS: &str = "127.0.0.1";
/// The bound of every wait.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Target {
    addr: SocketAddr,
    server_key: String,
    database_url: String,
    pid: Option<u32>,
    seconds: u64,
    floor: Duration,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let target = Target::from_env()?;
    let quiet = target.sign_outs("quiet", None).await?;
    let mut failed = vec![];
    for attack in Attack::ALL {
        let measured = target.sign_outs(attack.name(), Some(attack)).await?;
        let allowed = (3 * quiet.p99).max(target.floor);
        if measured.failed > 0 || measured.p99 > allowed {
            failed.push(format!(
                "{}: {} failed, p99 {:?} where {allowed:?} is allowed",
                attack.name(),
                measured.failed,
                measured.p99
            ));
        }
    }
    target.overload().await?;
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(failed.join("; ").into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Calls that never send their message, on many streams.
    Heads,
    /// Idle connections.
    Idlers,
    /// A call without a message on each connection, from as many addresses as can hold all connections.
    Holders,
    /// Large bodies that never end.
    Bodies,
    /// Bodies with very many small elements.
    Pieces,
    /// Calls of a hundred compressed messages, each of a million elements.
    Frames,
    /// Messages of two kilobytes that inflate to two megabytes, to methods that cost nothing or do not exist.
    Inflated,
    /// Watches of the health, which nobody reads.
    Watches,
    /// Connections, each closed at once: some four thousand a second, twice what an address may open. Without a pause the
    /// attacker would take both processors of a small machine for itself.
    Connections,
    /// Many concurrent cut-offs of one user.
    CutOffs,
    /// Unknown projects and keys.
    Names,
    /// One session's row is locked by another transaction, and everyone signs out of it.
    LockedRow,
}

impl Attack {
    const ALL: [Self; 12] = [
        Self::Heads,
        Self::Idlers,
        Self::Holders,
        Self::Bodies,
        Self::Pieces,
        Self::Frames,
        Self::Inflated,
        Self::Watches,
        Self::Connections,
        Self::CutOffs,
        Self::Names,
        Self::LockedRow,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Heads => "calls without a message",
            Self::Idlers => "idle connections",
            Self::Holders => "all connections held",
            Self::Bodies => "endless bodies",
            Self::Pieces => "bodies of 65,000 labels",
            Self::Frames => "compressed messages",
            Self::Inflated => "messages of no method",
            Self::Watches => "watches of the health",
            Self::Connections => "new connections",
            Self::CutOffs => "cut-offs of one user",
            Self::Names => "unknown projects and keys",
            Self::LockedRow => "a locked row",
        }
    }
}

struct Measured {
    p99: Duration,
    failed: usize,
}

impl Target {
    fn from_env() -> Outcome<Self> {
        let result = |name: &str| env::var(name).map_err(|_| format!("{name} is not set: run tests/hostile/run"));
        let number =
            |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        Ok(Self {
            addr: result("SESSIOND_URL")?.trim_start_matches("http://").parse()?,
            server_key: result("SESSIOND_SERVER_KEY")?,
            database_url: result("DATABASE_URL")?,
            pid: env::var("SESSIOND_PID").ok().and_then(|text| text.parse().ok()),
            seconds: number("HOSTILE_SECONDS", 10),
            floor: Duration::from_millis(number("HOSTILE_FLOOR_MS", 0)),
        })
    }

    async fn connect(&self, from: &str) -> Outcome<Sender> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{from}:0").parse()?)?;
        let stream = socket.connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn ask(
        &self,
        sender: &mut Sender,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> Outcome<(StatusCode, Value)> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        let request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(full(body.to_string()))?,
            None => request.body(full(""))?,
        };
        sender.ready().await?;
        let answer = timeout(PATIENCE, sender.send_request(request)).await??;
        let status = answer.status();
        let bytes = timeout(PATIENCE, answer.into_body().collect()).await??.to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    async fn sign_in(&self, sender: &mut Sender, user: &str) -> Outcome<Value> {
        let body = json!({"user_id": user});
        match self.ask(sender, Method::POST, "/auth/sessions", &self.server_key, Some(body)).await? {
            (StatusCode::OK, created) => Ok(created),
            (status, result) => Err(format!("no sign-in: {status} {result}").into()),
        }
    }

    /// Signs out during an attack, on a thread with its own runtime: otherwise the times would include the wait for the
    /// attacker's own tasks.
    async fn sign_outs(&self, name: &'static str, attack: Option<Attack>) -> Outcome<Measured> {
        let (target, attacker) = (self.clone(), Handle::current());
        let work = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(target.sign_outs_during(name, attack, &attacker))
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// Signs out about fifty times a second, alternately on one connection and on a new one.
    async fn sign_outs_during(&self, name: &str, attack: Option<Attack>, attacker: &Handle) -> Outcome<Measured> {
        let mut kept = self.connect(OTHERS).await?;
        let mut tokens = vec![];
        for n in 0..self.seconds * 25 {
            let created = self.sign_in(&mut kept, &format!("user-{n}")).await?;
            tokens.push(created["access_token"].as_str().unwrap_or_default().to_owned());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let attacking = attack.map(|attack| attacker.spawn(self.clone().attack(attack, Arc::clone(&stop))));
        if attack.is_some() {
            // What an attacker holds makes room after a second.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
        let (mut took, mut failed) = (vec![], 0);
        for (n, token) in tokens.iter().enumerate() {
            let begun = Instant::now();
            let outcome = match n % 2 {
                0 => self.ask(&mut kept, Method::DELETE, "/auth/sessions/current", token, None).await,
                _ => match timeout(PATIENCE, self.connect(OTHERS)).await {
                    Ok(Ok(mut fresh)) => {
                        self.ask(&mut fresh, Method::DELETE, "/auth/sessions/current", token, None).await
                    }
                    Ok(Err(error)) => Err(error),
                    Err(late) => Err(late.into()),
                },
            };
            took.push(begun.elapsed());
            if !matches!(outcome, Ok((StatusCode::OK, _))) {
                failed += 1;
                eprintln!("a sign-out failed: {outcome:?}");
                kept = self.connect(OTHERS).await?;
            }
            tokio::time::sleep(Duration::from_millis(20).saturating_sub(begun.elapsed())).await;
        }
        let memory = self.memory();
        stop.store(true, Ordering::Relaxed);
        let result = match attacking {
            Some(attacking) => attacking.await?.unwrap_or_else(|error| format!("the attack ended: {error}")),
            None => String::new(),
        };
        took.sort_unstable();
        let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
        println!(
            "{name:28} {:4} sign-outs, {failed} failed, p50 {:?}, p99 {:?}, {memory} MB resident; {result}",
            took.len(),
            at(50),
            at(99)
        );
        Ok(Measured { p99: at(99), failed })
    }

    /// The server's resident memory, in megabytes.
    fn memory(&self) -> u64 {
        let status =
            self.pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
    }

    async fn attack(self, attack: Attack, stop: Arc<AtomicBool>) -> Outcome<String> {
        let goes_on = || !stop.load(Ordering::Relaxed);
        let until_stopped = async || {
            while goes_on() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match attack {
            Attack::Heads => {
                let mut held = vec![];
                for n in 0..17 {
                    let mut sender = self.connect(ATTACKER).await?;
                    let path = match n % 2 {
                        0 => CHECK,
                        _ => "/grpc.health.v1.Health/Check",
                    };
                    for _ in 0..248 {
                        sender.ready().await?;
                        let mut request = call(self.addr, path)?;
                        // By a method without a message, a type with a leading space, a length too large to wait for.
                        match n % 6 {
                            1 => *request.method_mut() = Method::GET,
                            2 => drop(request.headers_mut().insert(header::CONTENT_TYPE, " application/grpc".parse()?)),
                            3 => drop(request.headers_mut().insert(header::CONTENT_LENGTH, "99999999".parse()?)),
                            _ => {}
                        }
                        tokio::spawn(sender.send_request(request));
                    }
                    held.push(sender);
                }
                until_stopped().await;
                Ok(format!("{} streams opened", 17 * 248))
            }
            Attack::Idlers => {
                let mut held = vec![];
                for _ in 0..400 {
                    if let Ok(Ok(sender)) = timeout(Duration::from_millis(200), self.connect(ATTACKER)).await {
                        held.push(sender);
                    }
                    if !goes_on() {
                        break;
                    }
                }
                until_stopped().await;
                Ok(still_open(&held))
            }
            Attack::Holders => {
                let mut held = vec![];
                for n in 0..1_000 {
                    let from = format!("127.0.0.{}", 2 + n / 250);
                    if let Ok(Ok(mut sender)) = timeout(Duration::from_millis(200), self.connect(&from)).await
                        && sender.ready().await.is_ok()
                    {
                        tokio::spawn(sender.send_request(call(self.addr, "/grpc.health.v1.Health/Check")?));
                        held.push(sender);
                    }
                    if !goes_on() {
                        break;
                    }
                }
                until_stopped().await;
                Ok(still_open(&held))
            }
            Attack::Bodies => {
                let mut held = vec![];
                for _ in 0..4 {
                    let mut sender = self.connect(ATTACKER).await?;
                    for _ in 0..200 {
                        if sender.ready().await.is_err() {
                            break;
                        }
                        tokio::spawn(sender.send_request(endless(self.addr)?));
                    }
                    held.push(sender);
                }
                until_stopped().await;
                Ok("800 bodies begun".to_owned())
            }
            Attack::Pieces => {
                let labels: serde_json::Map<String, Value> =
                    (0..65_000).map(|n| (format!("k{n}"), json!("v"))).collect();
                let body = Bytes::from(json!({"user_id": "eve", "labels": labels}).to_string());
                let sent = self
                    .repeat(4, &stop, move |target| {
                        let body = body.clone();
                        async move {
                            let mut sender = target.connect(ATTACKER).await?;
                            let request = Request::post(format!("http://{}/auth/sessions", target.addr))
                                .header(header::CONTENT_TYPE, "application/json");
                            let answer = timeout(PATIENCE, sender.send_request(request.body(full(body))?)).await??;
                            Ok(answer.status().is_success())
                        }
                    })
                    .await;
                Ok(format!("{sent} sent"))
            }
            Attack::Frames => {
                let body = Bytes::from(compressed(1 << 20)?.repeat(100));
                let sent = self
                    .repeat(8, &stop, move |target| {
                        let body = body.clone();
                        async move {
                            let mut sender = target.connect(ATTACKER).await?;
                            for path in ["/sessiond.v1.SessionService/RevokeCurrent", CHECK] {
                                target.send_compressed(&mut sender, path, &body).await?;
                            }
                            Ok(true)
                        }
                    })
                    .await;
                Ok(format!("{} sent", sent * 2))
            }
            Attack::Inflated => {
                let (large, small) = (Bytes::from(compressed((1 << 20) - 8)?), Bytes::from(compressed(1 << 15)?));
                let sent = self
                    .repeat(8, &stop, move |target| {
                        let (large, small) = (large.clone(), small.clone());
                        async move {
                            let mut sender = target.connect(ATTACKER).await?;
                            for n in 0..200 {
                                let (path, body) = match n % 3 {
                                    0 => ("/x/.well-known/y", &large),
                                    1 => ("/x.Service/Method", &large),
                                    _ => ("/grpc.health.v1.Health/Check", &small),
                                };
                                target.send_compressed(&mut sender, path, body).await?;
                            }
                            Ok(true)
                        }
                    })
                    .await;
                Ok(format!("{} sent", sent * 200))
            }
            Attack::Watches => {
                let mut held = vec![];
                for n in 0..50 {
                    let Ok(mut sender) = self.connect(ATTACKER).await else { continue };
                    for _ in 0..200 {
                        if sender.ready().await.is_err() {
                            break;
                        }
                        let watch =
                            call(self.addr, "/grpc.health.v1.Health/Watch")?.map(|_| full(Bytes::from_static(&[0; 5])));
                        tokio::spawn(sender.send_request(watch));
                    }
                    held.push(sender);
                    if !goes_on() {
                        return Ok(format!("{} watches", (n + 1) * 200));
                    }
                }
                until_stopped().await;
                Ok("10,000 watches".to_owned())
            }
            Attack::Connections => {
                let sent = self
                    .repeat(16, &stop, |target| async move {
                        let socket = TcpSocket::new_v4()?;
                        socket.bind(format!("{ATTACKER}:0").parse()?)?;
                        socket.set_zero_linger()?;
                        drop(socket.connect(target.addr).await?);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        Ok(true)
                    })
                    .await;
                Ok(format!("{sent} opened"))
            }
            Attack::CutOffs => {
                let mut sender = self.connect(OTHERS).await?;
                let own = self.sign_in(&mut sender, "eve").await?;
                for _ in 0..self.seconds * 50 {
                    self.sign_in(&mut sender, "eve").await?;
                }
                let token = own["access_token"].as_str().unwrap_or_default().to_owned();
                let sent = self
                    .repeat(40, &stop, move |target| {
                        let token = token.clone();
                        async move {
                            let mut sender = target.connect(ATTACKER).await?;
                            let body = Some(json!({"except_current": true}));
                            let (status, _) =
                                target.ask(&mut sender, Method::POST, "/auth/sessions:revokeAll", &token, body).await?;
                            Ok(status == StatusCode::OK)
                        }
                    })
                    .await;
                Ok(format!("{sent} sent"))
            }
            Attack::Names => {
                let next = Arc::new(AtomicUsize::new(0));
                let sent = self
                    .repeat(16, &stop, move |target| {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        async move {
                            let mut sender = target.connect(ATTACKER).await?;
                            for k in 0..20 {
                                let path = match k % 3 {
                                    0 => format!("/projects/made-up-{n}-{k}/auth/verify"),
                                    1 => format!("/projects/made-up-{n}-{k}/.well-known/jwks.json"),
                                    _ => "/.well-known/jwks.json".to_owned(),
                                };
                                target.ask(&mut sender, Method::GET, &path, "made.up.token", None).await?;
                            }
                            Ok(true)
                        }
                    })
                    .await;
                Ok(format!("{} sent", sent * 20))
            }
            Attack::LockedRow => {
                let mut sender = self.connect(OTHERS).await?;
                let held = self.sign_in(&mut sender, "held").await?;
                let (client, connection) = tokio_postgres::connect(&self.database_url, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                let id = held["session"]["id"].as_str().unwrap_or_default().to_owned();
                client.batch_execute(&format!("BEGIN; SELECT FROM sessions WHERE id = '{id}' FOR UPDATE")).await?;
                let token = held["access_token"].as_str().unwrap_or_default().to_owned();
                let sent = self
                    .repeat(16, &stop, move |target| {
                        let token = token.clone();
                        async move {
                            let mut sender = target.connect(ATTACKER).await?;
                            target.ask(&mut sender, Method::DELETE, "/auth/sessions/current", &token, None).await?;
                            Ok(true)
                        }
                    })
                    .await;
                client.batch_execute("ROLLBACK").await?;
                Ok(format!("{sent} sent"))
            }
        }
    }

    /// Sends a call whose frames say that they are compressed, and waits for the answer's head.
    async fn send_compressed(&self, sender: &mut Sender, path: &str, frames: &Bytes) -> Outcome<()> {
        let mut request = call(self.addr, path)?.map(|_| full(frames.clone()));
        request.headers_mut().insert("grpc-encoding", "gzip".parse()?);
        sender.ready().await?;
        timeout(PATIENCE, sender.send_request(request)).await??;
        Ok(())
    }

    /// Repeats something with this concurrency until told to stop. Returns how often it was done.
    async fn repeat<F, W>(&self, at_once: usize, stop: &Arc<AtomicBool>, work: F) -> usize
    where
        F: Fn(Self) -> W + Clone + Send + 'static,
        W: Future<Output = Outcome<bool>> + Send,
    {
        let mut tasks = JoinSet::new();
        for _ in 0..at_once {
            let (target, stop, work) = (self.clone(), Arc::clone(stop), work.clone());
            tasks.spawn(async move {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    if work(target.clone()).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    done += 1;
                }
                done
            });
        }
        tasks.join_all().await.into_iter().sum()
    }

    /// How many sign-ins a second succeed with few in progress and with 2,048: 512 connections, four at a time on each.
    async fn overload(&self) -> Outcome<()> {
        for (name, connections, streams) in [("16 sign-ins at once", 16, 1), ("2,048 sign-ins at once", 512, 4)] {
            let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let mut tasks = JoinSet::new();
            for n in 0..connections {
                // Spread over addresses, as many clients are: each has its own limit.
                let from = format!("127.0.1.{}", n % 250 + 1);
                let Ok(sender) = self.connect(&from).await else { continue };
                for k in 0..streams {
                    let (target, mut sender) = (self.clone(), sender.clone());
                    let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                    tasks.spawn(async move {
                        while !stop.load(Ordering::Relaxed) {
                            match target.sign_in(&mut sender, &format!("load-{n}-{k}")).await {
                                Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                            }
                        }
                    });
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (before, begun) = (done.load(Ordering::Relaxed), Instant::now());
            tokio::time::sleep(Duration::from_secs(self.seconds)).await;
            let count = done.load(Ordering::Relaxed) - before;
            println!("{name:28} {:.0} succeed a second", count as f64 / begun.elapsed().as_secs_f64());
            stop.store(true, Ordering::Relaxed);
            while tasks.join_next().await.is_some() {}
        }
        Ok(())
    }
}

fn still_open(held: &[Sender]) -> String {
    let open = held.iter().filter(|sender| !sender.is_closed()).count();
    format!("{open} of {} connections are still open", held.len())
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

/// A message of this many empty elements, compressed, in its frame.
fn compressed(elements: usize) -> Outcome<Vec<u8>> {
    let mut encoder = GzEncoder::new(vec![], Compression::best());
    encoder.write_all(&[0x0a, 0].repeat(elements))?;
    let message = encoder.finish()?;
    let length = u32::try_from(message.len())?.to_be_bytes();
    Ok([&[1], length.as_slice(), &message].concat())
}

/// A call that sends only its headers.
fn call(addr: SocketAddr, path: &str) -> Outcome<Request<Body>> {
    let body = StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>());
    let request = Request::post(format!("http://{addr}{path}")).header(header::CONTENT_TYPE, "application/grpc");
    Ok(request.header(header::TE, "trailers").body(BoxBody::new(body))?)
}

/// A megabyte without its last byte.
fn endless(addr: SocketAddr) -> Outcome<Request<Body>> {
    let pieces = (0..63).map(|_| Ok(http_body::Frame::data(Bytes::from_static(&[b' '; 16 * 1024]))));
    let body = StreamBody::new(futures_util::stream::iter(pieces).chain(futures_util::stream::pending()));
    let request =
        Request::post(format!("http://{addr}/auth/sessions")).header(header::CONTENT_TYPE, "application/json");
    Ok(request.body(BoxBody::new(body))?)
}
