//! The server's memory: idle, and with idle HTTP/2 connections.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::TryStreamExt as _;
use futures_util::stream;
use serde_json::Value;
use serde_json::json;

use crate::Outcome;
use crate::client::Connection;
use crate::client::Wire;
use crate::stage::Stage;
use crate::work::Caller;
use crate::work::Work;

/// As many as the server accepts by default.
const CONNECTIONS: usize = 10_000;

/// Opened at the same time.
const OPENING: usize = 64;

/// Until the server has done what follows a request.
const SETTLE: Duration = Duration::from_secs(2);

/// Opens connections with one request each, and reports the server's resident memory before and with them.
pub(crate) async fn measure(stage: &mut Stage) -> Outcome<Value> {
    let known = stage.sessions.take(1).await?;
    let caller = Caller { addr: stage.addr, wire: Wire::Grpc, server_key: stage.server_key.clone() };
    let call = caller.call(Work::Introspect, known.first().ok_or("a session")?);
    let before = resident_kib(stage.server_pid())?;
    let open = async |at: usize| {
        // An address may have a quarter of all connections.
        let octet = |number: usize| u8::try_from(number).unwrap_or(1);
        let source = Ipv4Addr::new(127, 0, octet(at % 100 + 1), octet(at / 250 % 100 + 1));
        let mut connection = Connection::open(Wire::Grpc, caller.addr, source).await?;
        // The server closes a connection that has never sent a request.
        connection.call(call.request.clone()).await?.map_err(|refused| refused.text)?;
        Outcome::Ok(connection)
    };
    let held: Vec<Connection> = stream::iter(0..CONNECTIONS).map(open).buffer_unordered(OPENING).try_collect().await?;
    tokio::time::sleep(SETTLE).await;
    let with = resident_kib(stage.server_pid())?;
    let alive = held.iter().filter(|connection| connection.is_open()).count();
    println!("\nresident memory of the server, in MiB:");
    println!("  {:<36} {:>7.1}", "before any request of the clients", mib(before));
    println!("  {:<36} {:>7.1}", format!("with {alive} idle HTTP/2 connections"), mib(with));
    Ok(json!({"before_kib": before, "connections": alive, "with_connections_kib": with}))
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// A process's resident memory, in KiB.
fn resident_kib(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
