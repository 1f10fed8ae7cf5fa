//! The cost of the guard: `cargo bench --bench guard`.
//!
//! Each round runs all variants in turn, so that disturbances affect all; compare the ratios. Then a guard in its own
//! process starts after a million revocations, which a real server sends over a real socket.

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the tests, which use the rest")]
mod harness;

use std::env;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;
use aws_lc_rs::signature::ParsedPublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::ISSUER;
use harness::PROJECT;
use harness::Service;
use harness::eventually;
use jsonwebtoken::Algorithm;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::Validation;
use secrecy::ExposeSecret as _;
use sessiond_core::clock;
use sessiond_core::clock::Clock;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::token::access::Claims;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::keys::SigningKey;
use sessiond_guard::Guard;
use sessiond_guard::GuardOptions;

const ROUNDS: usize = 200;
const CALLS: usize = 200;

/// More tokens than the guard caches, by half: each was evicted when it comes again.
const TOKENS: usize = 24_576;

/// How many cached tokens are in use at once.
const WARM_TOKENS: usize = 1_000;

const REVOCATIONS: usize = 1_000_000;

fn main() {
    if let [_, command, url, key] = env::args().collect::<Vec<_>>().as_slice()
        && command == "--begin"
    {
        return runtime().block_on(begin(url, key));
    }
    runtime().block_on(async {
        let service = Service::start().await;
        eventually("the first reading", async || service.app.feed().age().is_some()).await;
        let guard = Guard::connect(options(&service)).await.expect("connects");
        let project = ProjectId::parse(PROJECT).expect("a name");
        let snapshot = service.app.keys().snapshot();
        let key = snapshot.signs_for(&project, service.clock.now()).expect("a key");
        let tokens: Vec<String> = (0..TOKENS).map(|_| token(key)).collect();
        one_thread(&guard, key, &tokens);
        two_threads(&guard, &tokens[..WARM_TOKENS]);
        drop(guard);
        a_million(&service).await;
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn options(service: &Service) -> GuardOptions {
    let key = service.server_key.expose_secret();
    GuardOptions::new(format!("http://{}", service.addr), PROJECT, ISSUER, key)
}

/// As large as sessiond's own tokens.
fn token(key: &SigningKey) -> String {
    let now = Clock::system().now();
    let session = clock::new_session_id(now, Bucket::from_number(1)).to_string();
    let claims = Claims {
        iss: Issuer::new(ISSUER).of(PROJECT),
        sub: "ada".into(),
        aud: PROJECT.into(),
        client_id: PROJECT.into(),
        iat: now.as_seconds(),
        exp: now.as_seconds() + 3_600,
        jti: session.clone(),
        sid: session.clone(),
        epoch: [0, 0],
        session_epoch: 0,
        project_id: PROJECT.into(),
        refresh_token_id: session,
        auth_time: None,
        acr: None,
        amr: vec![],
        act: None,
        own: serde_json::Map::new(),
    };
    key.sign(&claims).expect("signs").expose_secret().to_owned()
}

fn one_thread(guard: &Guard, key: &SigningKey, tokens: &[String]) {
    let (x, y) = key.verifying().coordinates();
    let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [&[4], x, y].concat()).expect("a key");
    let decoding = DecodingKey::from_ec_components(&URL_SAFE_NO_PAD.encode(x), &URL_SAFE_NO_PAD.encode(y));
    let decoding = decoding.expect("a key");
    let mut checks = Validation::new(Algorithm::ES256);
    checks.set_audience(&[PROJECT]);
    checks.set_issuer(&[Issuer::new(ISSUER).of(PROJECT)]);

    let signature = |token: &str| {
        let (message, signature) = token.rsplit_once('.').expect("a signature");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        parsed.verify_sig(message.as_bytes(), &signature).expect("good");
    };
    let bare = |token: &str| {
        black_box(jsonwebtoken::decode::<Claims>(token, &decoding, &checks).expect("good"));
    };
    let guarded = |token: &str| {
        black_box(guard.verify_now(token).expect("good"));
    };
    let warm = &tokens[..WARM_TOKENS];
    let mut times = [const { vec![] }; 5];
    for round in 0..ROUNDS {
        let from = round * CALLS % (TOKENS - CALLS);
        let cold = &tokens[from..from + CALLS];
        let known = &warm[round * CALLS % (WARM_TOKENS - CALLS)..][..CALLS];
        let same = vec![known[0].clone(); CALLS];
        known.iter().for_each(|token| guarded(token));
        // The order changes from round to round.
        for step in 0..times.len() {
            let way = (round + step) % times.len();
            times[way].push(match way {
                0 => per_call(cold, signature),
                1 => per_call(cold, bare),
                // With this many others, none of these is still cached.
                2 => per_call(cold, guarded),
                3 => per_call(known, guarded),
                _ => per_call(&same, guarded),
            });
        }
    }
    let [signature, bare, cold, warm, same] = times.map(median);
    println!("one thread, median of {ROUNDS} rounds of {CALLS} tokens of {} bytes:", tokens[0].len());
    println!("  the signature alone                    {signature:>9.0} ns");
    println!("  jsonwebtoken::decode, ES256            {bare:>9.0} ns");
    println!("  the guard, a token it has not seen     {cold:>9.0} ns   {:+.0} ns to decode", cold - bare);
    println!("  the guard, one of {WARM_TOKENS} that it has seen {warm:>9.0} ns");
    println!("  the guard, always the same             {same:>9.0} ns");
}

/// In nanoseconds.
fn per_call(tokens: &[String], verify: impl Fn(&str)) -> f64 {
    let started = Instant::now();
    tokens.iter().for_each(|token| verify(token));
    started.elapsed().as_nanos() as f64 / tokens.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Whether cores block each other: twice as many threads do twice as much, if cores are free.
fn two_threads(guard: &Guard, tokens: &[String]) {
    let spin = |token: &String| {
        // Work without shared memory.
        black_box(sessiond_core::token::fingerprint(token.as_bytes()));
    };
    let known = |token: &String| {
        black_box(guard.verify_now(token).expect("good"));
    };
    let mut scaling = [const { vec![] }; 2];
    let mut rates = vec![];
    for _ in 0..11 {
        scaling[0].push(in_a_while(2, tokens, spin) / in_a_while(1, tokens, spin));
        let one = in_a_while(1, tokens, known);
        scaling[1].push(in_a_while(2, tokens, known) / one);
        rates.push(one);
    }
    let [spin, known] = scaling.map(median);
    println!("two threads, known tokens: {known:.2} times what one does ({:.0} a second);", median(rates));
    println!("  hashing alone, which shares nothing: {spin:.2} times");
}

/// Operations per second, with this many threads.
fn in_a_while(threads: usize, tokens: &[String], verify: impl Fn(&String) + Sync) -> f64 {
    const WHILE: Duration = Duration::from_millis(100);
    let done: usize = thread::scope(|scope| {
        let work = |thread: usize| {
            let verify = &verify;
            scope.spawn(move || {
                let (started, mut done) = (Instant::now(), 0);
                for token in tokens.iter().cycle().skip(thread * tokens.len() / threads) {
                    verify(token);
                    done += 1;
                    if done % 64 == 0 && started.elapsed() >= WHILE {
                        break;
                    }
                }
                done
            })
        };
        let workers: Vec<_> = (0..threads).map(work).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
    });
    done as f64 / WHILE.as_secs_f64()
}

/// A guard starts after a million revocations whose tokens are still unexpired.
async fn a_million(service: &Service) {
    let insert = format!(
        "WITH writer AS (INSERT INTO feed_writers (id, opened_at) VALUES (7, now()) RETURNING id)
         INSERT INTO revocations (project_id, id, at, reason, session_id, user_id, access_expires_at, actor, writer, seq)
         SELECT '{PROJECT}', gen_random_uuid(), now(), 1, gen_random_uuid(), 'user-' || n, now() + interval '1 hour', 1,
           writer.id, n FROM writer, generate_series(1, {REVOCATIONS}) AS n"
    );
    service.database.run(&insert).await;
    let replica = service.replica().await;
    eventually("the replica has read them", async || replica.app.feed().age().is_some()).await;
    for _ in 0..3 {
        let mut guard = Command::new(env::current_exe().expect("has a name"));
        guard.args(["--begin", &format!("http://{}", replica.addr), service.server_key.expose_secret()]);
        let status = tokio::task::spawn_blocking(move || guard.status()).await.expect("no panic");
        assert!(status.expect("runs").success());
    }
}

/// The guard in its own process.
async fn begin(url: &str, key: &str) {
    let (before, worked) = (resident_bytes(), cpu_seconds());
    let started = Instant::now();
    let options =
        GuardOptions { startup_timeout: Duration::from_secs(60), ..GuardOptions::new(url, PROJECT, ISSUER, key) };
    let guard = Guard::connect(options).await.expect("connects");
    let took = started.elapsed();
    let stats = guard.stats();
    let bytes = resident_bytes() - before;
    println!(
        "{} revocations: ready after {:.2} s, of which {:.2} s of its own work; {} MB more, {} bytes each",
        stats.entries,
        took.as_secs_f64(),
        (cpu_seconds() - worked),
        bytes / 1_000_000,
        bytes / stats.entries
    );
}

/// CPU time of this process, on all threads: independent of other work on the machine.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("reads");
    let fields: Vec<&str> = stat.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    // In user mode and in the kernel, in hundredths of a second.
    (ticks(13) + ticks(14)) / 100.0
}

/// The resident memory of this process.
fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").expect("reads");
    let resident: usize = pages.split(' ').nth(1).expect("a number").parse().expect("a number");
    resident * 4096
}
