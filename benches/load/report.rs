//! Runs what is compared in turns, and reports the results: as a table and as JSON.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::Value;
use serde_json::json;

use crate::Outcome;
use crate::baseline::Baseline;
use crate::baseline::Latencies;
use crate::client::Connection;
use crate::client::Wire;
use crate::cpu;
use crate::overload::OverloadRow;
use crate::peers::Peer;
use crate::run::Measured;
use crate::run::Reuse;
use crate::run::Supply;
use crate::run::run;
use crate::sessions::Tokens;
use crate::stage::Stage;
use crate::work::Call;
use crate::work::Caller;
use crate::work::Work;

/// How many tokens the server has seen, where it must have seen them.
const KNOWN_TOKENS: usize = 1_000;

/// How many connections refresh sessions before a run.
const REISSUERS: usize = 16;

/// The first run is not counted: it fills caches, and shows how many tokens the next one needs.
const WARM_UP: Duration = Duration::from_millis(500);

/// More sign-outs a second than expected of any machine of two cores.
const FIRST_RATE: f64 = 10_000.0;

/// The same of a peer.
const FIRST_RATE_OF_PEER: f64 = 4_000.0;

/// One of those that take turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Contender {
    /// Our server.
    Server { work: Work, wire: Wire, clients: usize },
    /// What it is compared with.
    Baseline { baseline: Baseline, clients: usize },
    /// The running peer.
    Peer { peer: Peer, work: Work, clients: usize },
}

/// What runs in turns: one kind of work with one number of clients, and its baseline.
pub(crate) struct Group {
    pub(crate) contenders: Vec<Contender>,
}

/// The results of one contender.
struct Series {
    contender: Contender,
    rates: Vec<f64>,
    total: Measured,
}

/// The result of one kind of work, beside its baseline.
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) wire: Wire,
    pub(crate) clients: usize,
    pub(crate) rates: Vec<f64>,
    pub(crate) p50: u32,
    pub(crate) p99: u32,
    /// The processor time of an operation at the server and at Postgres, in microseconds.
    pub(crate) cpu: [f64; 2],
    pub(crate) baseline: Option<Compared>,
    /// REST compared with gRPC.
    pub(crate) grpc: Option<Compared>,
}

/// A baseline, and the ratios to it in each round.
pub(crate) struct Compared {
    pub(crate) name: &'static str,
    pub(crate) rates: Vec<f64>,
    pub(crate) ratios: Vec<f64>,
    pub(crate) p50: u32,
    pub(crate) p99: u32,
}

impl Group {
    /// Measures all contenders in turns.
    pub(crate) async fn measure(&self, stage: &mut Stage, rounds: u32, seconds: u32) -> Outcome<Vec<Row>> {
        let new = |contender: &Contender| Series { contender: *contender, rates: vec![], total: Measured::default() };
        let mut all: Vec<Series> = self.contenders.iter().map(new).collect();
        let mut materials =
            Materials { known: stage.sessions.take(KNOWN_TOKENS).await?, unused: vec![], issued: vec![] };
        for round in 0..=rounds {
            let order: Vec<usize> =
                if round % 2 == 0 { (0..all.len()).collect() } else { (0..all.len()).rev().collect() };
            for at in order {
                let series = &mut all[at];
                if round == 0 {
                    let warm_up = measure(stage, series.contender, &mut materials, FIRST_RATE, Span::WarmUp).await?;
                    series.rates.push(warm_up.rate());
                    continue;
                }
                let expected = series.rates.iter().copied().fold(0.0, f64::max) * 1.5;
                let measured =
                    measure(stage, series.contender, &mut materials, expected, Span::Seconds(seconds)).await?;
                if round == 1 {
                    series.rates.clear();
                }
                series.rates.push(measured.rate());
                series.total.add(measured);
            }
        }
        for series in &mut all {
            if let Contender::Baseline { baseline, clients } = series.contender
                && series.total.micros.is_empty()
            {
                series.total.micros = stage.pgbench.run(baseline, clients, seconds.max(2), Latencies::Logged)?.micros;
            }
            series.total.micros.sort_unstable();
        }
        Ok(all.iter().filter_map(|series| row(series, &all)).collect())
    }
}

/// Tokens for the clients of a group.
struct Materials {
    known: Vec<Tokens>,
    unused: Vec<Tokens>,
    /// Unused as well, and issued by the server.
    issued: Vec<Tokens>,
}

impl Materials {
    /// The unused tokens for a kind of work.
    const fn unused(&mut self, work: Work) -> &mut Vec<Tokens> {
        match work {
            Work::SignOutKnown => &mut self.issued,
            _ => &mut self.unused,
        }
    }
}

#[derive(Clone, Copy)]
enum Span {
    WarmUp,
    Seconds(u32),
}

impl Span {
    const fn duration(self) -> Duration {
        match self {
            Self::WarmUp => WARM_UP,
            Self::Seconds(seconds) => Duration::from_secs(seconds as u64),
        }
    }
}

/// Refreshes sessions, so that the server itself has issued their access tokens: it caches up to 16,384 tokens. In the order of
/// their issue.
async fn reissued(stage: &mut Stage, tokens: Vec<Tokens>) -> Outcome<Vec<Tokens>> {
    let (addr, wire) = (stage.addr, Wire::Rest);
    let caller = Caller { addr, wire, server_key: stage.server_key.clone() };
    let refresh = async |part: &[Tokens]| {
        let mut connection = Connection::open(wire, addr, Ipv4Addr::LOCALHOST).await?;
        let mut issued = vec![];
        for tokens in part {
            let call = caller.call(Work::Refresh, tokens);
            let answer = connection.call(call.request.clone()).await?;
            let answer: Value = serde_json::from_slice(&call.check(wire, answer)?)?;
            let access = answer["access_token"].as_str().ok_or("a token")?.to_owned();
            issued.push(Tokens { access, ..tokens.clone() });
        }
        Outcome::Ok(issued)
    };
    let mut issued = vec![];
    for together in tokens.chunks(REISSUERS * 64) {
        let parts = together.chunks(together.len().div_ceil(REISSUERS)).map(refresh);
        issued.extend(try_join_all(parts).await?.concat());
    }
    stage.sessions.acknowledged.refreshes += issued.len() as u64;
    Ok(issued)
}

async fn measure(
    stage: &mut Stage,
    contender: Contender,
    materials: &mut Materials,
    expected_rate: f64,
    span: Span,
) -> Outcome<Measured> {
    let duration = span.duration();
    match contender {
        Contender::Server { work, wire, clients } => {
            let wanted = wanted(expected_rate, duration, clients);
            let caller = Caller { addr: stage.addr, wire, server_key: stage.server_key.clone() };
            if work.uses_up() {
                let taken = stage.sessions.take(wanted.saturating_sub(materials.unused(work).len())).await?;
                match work {
                    // The newest first: the server still knows them.
                    Work::SignOutKnown => {
                        let newest = reissued(stage, taken).await?.into_iter().rev();
                        materials.issued.splice(0..0, newest);
                    }
                    _ => materials.unused.extend(taken),
                }
            }
            let created = if work == Work::Create { stage.sessions.users(wanted) } else { vec![] };
            let (tokens, reuse) = match work {
                Work::SignOut | Work::SignOutKnown | Work::Refresh => (&*materials.unused(work), Reuse::Once),
                Work::Create => (&created, Reuse::Once),
                Work::List | Work::Introspect | Work::Overload | Work::Memory => (&materials.known, Reuse::Always),
                Work::Verify | Work::VerifyCookie => (&materials.known, Reuse::Always),
            };
            let calls: Vec<Call> = tokens.iter().map(|tokens| caller.call(work, tokens)).collect();
            let supply = Supply::new(&calls, reuse);
            let cpu = || [cpu::of_process(stage.server_pid()), cpu::with_children(stage.postgres_pid())];
            let (mut measured, before, after) = run(stage.addr, wire, clients, &supply, duration, cpu)?;
            measured.cpu = Some([after[0].saturating_sub(before[0]), after[1].saturating_sub(before[1])]);
            let acknowledged = &mut stage.sessions.acknowledged;
            match work {
                Work::SignOut | Work::SignOutKnown => acknowledged.sign_outs += measured.done,
                Work::Refresh => acknowledged.refreshes += measured.done,
                Work::Create => acknowledged.creations += measured.done,
                Work::List | Work::Introspect | Work::Overload | Work::Memory => {}
                Work::Verify | Work::VerifyCookie => {}
            }
            if work.uses_up() {
                let used = supply.used();
                materials.unused(work).drain(..used);
            }
            Ok(measured)
        }
        Contender::Peer { peer: Peer::Envoy, work, clients } => {
            // It has no sessions of its own: it calls our server.
            let addr = stage.peer.as_ref().ok_or("Envoy runs")?.addr;
            let missing = wanted(expected_rate, duration, clients).saturating_sub(materials.unused.len());
            materials.unused.extend(stage.sessions.take(missing).await?);
            let caller = Caller { addr, wire: Wire::Rest, server_key: stage.server_key.clone() };
            let calls: Vec<Call> = materials.unused.iter().map(|tokens| caller.call(work, tokens)).collect();
            let supply = Supply::new(&calls, Reuse::Once);
            let (measured, (), ()) = run(addr, Wire::Rest, clients, &supply, duration, || ())?;
            stage.sessions.acknowledged.sign_outs += measured.done;
            materials.unused.drain(..supply.used());
            Ok(measured)
        }
        Contender::Peer { work, clients, .. } => {
            let peer = stage.peer.as_mut().ok_or("the peer runs")?;
            // Peers are slower, and create their sessions slowly.
            let expected_rate = if matches!(span, Span::WarmUp) { FIRST_RATE_OF_PEER } else { expected_rate };
            let calls = peer.calls(work, wanted(expected_rate, duration, clients))?;
            let supply = Supply::new(&calls, if work.uses_up() { Reuse::Once } else { Reuse::Always });
            let (measured, (), ()) = run(peer.addr, Wire::Rest, clients, &supply, duration, || ())?;
            if work.uses_up() {
                peer.acknowledged += measured.done;
                peer.use_up(supply.used());
            }
            Ok(measured)
        }
        Contender::Baseline { baseline, clients } => match baseline {
            Baseline::Update | Baseline::LockAndUpdate | Baseline::Insert => match span {
                // Its tables are already in memory.
                Span::WarmUp => Ok(Measured { done: 1, elapsed: Duration::from_secs(1), ..Measured::default() }),
                Span::Seconds(seconds) => stage.pgbench.run(baseline, clients, seconds, Latencies::NotLogged),
            },
            Baseline::Bearer => {
                let caller = Caller { addr: stage.addr, wire: Wire::Rest, server_key: stage.server_key.clone() };
                let calls: Vec<Call> = materials.known.iter().map(|tokens| caller.call(Work::Verify, tokens)).collect();
                let supply = Supply::new(&calls, Reuse::Always);
                run(stage.addr, Wire::Rest, clients, &supply, duration, || ()).map(|(measured, (), ())| measured)
            }
            Baseline::NullGrpc | Baseline::NullHttp => {
                let (wire, work) = match baseline {
                    Baseline::NullGrpc => (Wire::Grpc, Work::Introspect),
                    _ => (Wire::Rest, Work::Verify),
                };
                let caller = Caller { addr: stage.null.addr, wire, server_key: stage.server_key.clone() };
                let calls: Vec<Call> = materials.known.iter().map(|tokens| caller.null_call(work, tokens)).collect();
                let supply = Supply::new(&calls, Reuse::Always);
                run(stage.null.addr, wire, clients, &supply, duration, || ()).map(|(measured, (), ())| measured)
            }
        },
    }
}

/// The number of requests that will not be used up in this time.
fn wanted(expected_rate: f64, duration: Duration, clients: usize) -> usize {
    (expected_rate * duration.as_secs_f64()) as usize + clients
}

impl Measured {
    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.elapsed += other.elapsed;
        self.micros.extend(other.micros);
        if let Some([server, postgres]) = other.cpu {
            let [all_server, all_postgres] = self.cpu.get_or_insert_default();
            *all_server += server;
            *all_postgres += postgres;
        }
    }

    fn micros_at(&self, percent: usize) -> u32 {
        let last = self.micros.len().saturating_sub(1);
        self.micros.get((self.micros.len() * percent / 100).min(last)).copied().unwrap_or(0)
    }
}

fn row(series: &Series, all: &[Series]) -> Option<Row> {
    let Contender::Server { work, wire, clients } = series.contender else { return None };
    let compared = |other: &Series, name: &'static str| Compared {
        name,
        ratios: series.rates.iter().zip(&other.rates).map(|(own, other)| own / other).collect(),
        rates: other.rates.clone(),
        p50: other.total.micros_at(50),
        p99: other.total.micros_at(99),
    };
    let baseline = all.iter().find_map(|other| match other.contender {
        Contender::Baseline { baseline, .. } => Some(compared(other, baseline.as_str())),
        Contender::Peer { peer, work, .. } => Some(compared(other, peer.as_str(work))),
        Contender::Server { .. } => None,
    });
    let own_grpc = Contender::Server { work, wire: Wire::Grpc, clients };
    let grpc = all.iter().find(|other| wire == Wire::Rest && other.contender == own_grpc);
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / series.total.done.max(1) as f64;
    Some(Row {
        work,
        wire,
        clients,
        rates: series.rates.clone(),
        p50: series.total.micros_at(50),
        p99: series.total.micros_at(99),
        cpu: series.total.cpu.unwrap_or_default().map(micros),
        baseline,
        grpc: grpc.map(|other| compared(other, "own gRPC")),
    })
}

/// The middle one; the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

pub(crate) fn print_head() {
    println!(
        "{:<14} {:<8} {:>7} {:>8}   {:<33} {:>8} {:>6} {:>9} {:>7} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "work",
        "wire",
        "clients",
        "per s",
        "baseline",
        "per s",
        "ratio",
        "/own gRPC",
        "server",
        "Postgres",
        "p50",
        "p99",
        "its p50",
        "its p99"
    );
}

pub(crate) fn print_row(row: &Row) {
    let none = || "-".to_owned();
    let baseline = row.baseline.as_ref();
    let [server, postgres] = row.cpu;
    println!(
        "{:<14} {:<8} {:>7} {:>8.0}   {:<33} {:>8} {:>6} {:>9} {:>7.0} {:>9.0} {:>8} {:>8} {:>8} {:>8}",
        row.work.as_str(),
        row.wire.as_str(),
        row.clients,
        median(&row.rates),
        baseline.map_or("-", |it| it.name),
        baseline.map_or_else(none, |it| format!("{:.0}", median(&it.rates))),
        baseline.map_or_else(none, |it| format!("{:.2}", median(&it.ratios))),
        row.grpc.as_ref().map_or_else(none, |it| format!("{:.2}", median(&it.ratios))),
        server,
        postgres,
        row.p50,
        row.p99,
        baseline.map_or_else(none, |it| it.p50.to_string()),
        baseline.map_or_else(none, |it| it.p99.to_string()),
    );
}

/// Writes the results as JSON.
pub(crate) fn write(
    path: &Path,
    facts: &[(&'static str, String)],
    seconds: u32,
    rows: &[Row],
    overloads: &[OverloadRow],
    memory: &Value,
) -> Outcome<()> {
    let facts: serde_json::Map<String, Value> =
        facts.iter().map(|(name, fact)| ((*name).to_owned(), fact.as_str().into())).collect();
    let compared = |it: &Compared| {
        json!({
            "name": it.name,
            "rate_per_s": median(&it.rates),
            "rates_per_s": it.rates,
            "ratio": median(&it.ratios),
            "ratios": it.ratios,
            "p50_us": it.p50,
            "p99_us": it.p99,
        })
    };
    let row = |row: &Row| {
        json!({
            "work": row.work.as_str(),
            "wire": row.wire.as_str(),
            "clients": row.clients,
            "rate_per_s": median(&row.rates),
            "rates_per_s": row.rates,
            "server_cpu_us": row.cpu[0],
            "postgres_cpu_us": row.cpu[1],
            "p50_us": row.p50,
            "p99_us": row.p99,
            "baseline": row.baseline.as_ref().map(compared),
            "own_grpc": row.grpc.as_ref().map(compared),
        })
    };
    let all = json!({
        "facts": facts,
        "seconds": seconds,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "memory": memory,
        "overload": overloads.iter().map(OverloadRow::json).collect::<Vec<_>>(),
    });
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    Ok(fs::write(path, format!("{all:#}\n"))?)
}
