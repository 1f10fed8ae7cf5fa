//! Signing out over REST compared with gRPC: `cargo bench --bench sign_out`.
//!
//! One server, one Postgres, one connection per protocol. The protocols take turns within each round, so that
//! disturbances affect both. Then 64 concurrent clients, each with its own connection.

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the tests, which use the rest")]
mod harness;

use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use harness::Service;
use harness::Wire;
use harness::bearer;
use harness::wire::Wires;
use http::Method;
use http::StatusCode;
use sessiond::pb::RevokeCurrentRequest;
use sessiond::pb::RevokeCurrentResponse;

const ROUNDS: usize = 20;
const CALLS: usize = 100;
const CLIENTS: usize = 64;
const CALLS_PER_CLIENT: usize = 50;

#[tokio::main]
async fn main() {
    let service = Service::start().await;
    let mut ratios = vec![];
    let mut medians = [vec![], vec![]];
    for round in 0..ROUNDS {
        // The order changes from round to round.
        let order = if round % 2 == 0 { [Wire::Grpc, Wire::Rest] } else { [Wire::Rest, Wire::Grpc] };
        let mut times = [Duration::ZERO; 2];
        for wire in order {
            times[usize::from(wire == Wire::Rest)] = one_connection(&service, wire).await;
        }
        ratios.push(times[1].as_secs_f64() / times[0].as_secs_f64());
        medians[0].push(times[0].as_secs_f64() * 1e6);
        medians[1].push(times[1].as_secs_f64() * 1e6);
    }
    println!("one connection, median of {ROUNDS} rounds of {CALLS} calls each:");
    println!(
        "  gRPC {:>7.0} µs   REST {:>7.0} µs   REST/gRPC {:.2}",
        median(&mut medians[0]),
        median(&mut medians[1]),
        median(&mut ratios)
    );
    for wire in [Wire::Grpc, Wire::Rest] {
        many_clients(&service, wire).await;
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median time of one sign-out.
async fn one_connection(service: &Service, wire: Wire) -> Duration {
    let tokens = sign_in(service, CALLS).await;
    let mut times = vec![];
    for token in &tokens {
        let started = Instant::now();
        sign_out(&service.wires, wire, token).await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times[CALLS / 2]
}

async fn many_clients(service: &Service, wire: Wire) {
    let tokens = sign_in(service, CLIENTS * CALLS_PER_CLIENT).await;
    let clients: Vec<Wires> = (0..CLIENTS).map(|_| Wires::to(service.addr)).collect();
    let started = Instant::now();
    let work = tokens.chunks(CALLS_PER_CLIENT).zip(&clients).map(|(tokens, wires)| async move {
        for token in tokens {
            sign_out(wires, wire, token).await;
        }
    });
    join_all(work).await;
    let took = started.elapsed();
    let count = CLIENTS * CALLS_PER_CLIENT;
    println!(
        "{CLIENTS} clients, {wire:?}: {count} sign-outs, no error, {:.0} a second",
        count as f64 / took.as_secs_f64()
    );
}

async fn sign_in(service: &Service, count: usize) -> Vec<String> {
    let mut tokens = vec![];
    for _ in 0..count {
        tokens.push(service.sign_in("ada", "bench").await.access_token);
    }
    tokens
}

/// Signs out, and checks the response: a benchmark of errors would be fast.
async fn sign_out(wires: &Wires, wire: Wire, token: &str) {
    match wire {
        Wire::Rest => {
            let answer = wires.http(Method::DELETE, "/auth/sessions/current", bearer(token), "").await;
            assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, br#"{"success":true}"#.as_slice()));
        }
        Wire::Grpc | Wire::GrpcWeb => {
            let answer: RevokeCurrentResponse =
                wires.call(wire, "RevokeCurrent", bearer(token), &RevokeCurrentRequest {}).await.expect("signs out");
            assert!(answer.success && answer.already_revoked.is_none());
        }
    }
}
