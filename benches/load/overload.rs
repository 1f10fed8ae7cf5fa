//! More requests than the server can do: sign-outs, creations and introspections by 64, 192 and 4,096 callers at once, and
//! by 64 new ones in the two seconds after the 4,096 have stopped: in the first, the server finishes what it has accepted, which
//! counts; the latencies are those of the new callers.
//!
//! A caller has one request in progress. If it is refused, it waits as the server says (`--pause` sets another time), and
//! repeats it. Callers share connections: on HTTP/2, eight use one. Connections come from many loopback addresses, because
//! the server limits the requests in progress from each address. Goodput counts only what was done.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::str::FromStr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::Value;
use serde_json::json;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::Outcome;
use crate::client::Connection;
use crate::client::Wire;
use crate::run::Reuse;
use crate::run::Supply;
use crate::run::THREADS;
use crate::sessions::Tokens;
use crate::stage::Stage;
use crate::work::Call;
use crate::work::Caller;
use crate::work::Repeats;
use crate::work::Work;

const PEAK_CALLERS: usize = 64;
const STREAMS_PER_CONNECTION: usize = 8;
const ADDRESSES: usize = 2_000;

/// Not counted, at the start of a phase.
const SETTLE: Duration = Duration::from_secs(1);

/// The counted part of a phase.
const COUNTED: Duration = Duration::from_secs(4);

/// Each of the two phases after the overload.
const RECOVERY: Duration = Duration::from_secs(1);

/// Longer than the server's own time limit.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a caller waits if the server does not say.
const PAUSE_UNTOLD: Duration = Duration::from_millis(100);

/// How long a refused caller waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pause {
    Told,
    Fixed(Duration),
}

impl FromStr for Pause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "told" => Ok(Self::Told),
            millis => match millis.parse() {
                Ok(millis @ 1..=60_000) => Ok(Self::Fixed(Duration::from_millis(millis))),
                Ok(_) | Err(_) => Err("must be `told`, or milliseconds: 1 to 60000".to_owned()),
            },
        }
    }
}

/// The result of one phase.
pub(crate) struct OverloadRow {
    work: Work,
    wire: Wire,
    phase: String,
    goodput: f64,
    of_peak: f64,
    tally: Tally,
    refused: f64,
}

impl OverloadRow {
    /// The work, the protocol and the phase.
    pub(crate) fn names(&self) -> [&str; 3] {
        [self.work.as_str(), self.wire.as_str(), self.phase.trim_end_matches(" callers")]
    }

    /// Goodput, as a number and as a share of the peak's, and refusals, a second.
    pub(crate) const fn rates(&self) -> [f64; 3] {
        [self.goodput, self.of_peak, self.refused]
    }

    /// The median and the 99th percentile of what was done, in microseconds.
    pub(crate) fn micros(&self) -> [u32; 2] {
        [self.tally.micros_at(50), self.tally.micros_at(99)]
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "work": self.work.as_str(),
            "wire": self.wire.as_str(),
            "phase": self.phase,
            "goodput_per_s": self.goodput,
            "of_peak": self.of_peak,
            "refused_per_s": self.refused,
            "refused_without_retry_after": self.tally.untold,
            "failed": self.tally.failed,
            "p50_us": self.tally.micros_at(50),
            "p99_us": self.tally.micros_at(99),
            "first_trouble": self.tally.trouble,
        })
    }

    fn print(&self) {
        println!(
            "{:<10} {:<8} {:<24} {:>9.0} {:>8.2} {:>10.0} {:>8} {:>7} {:>9} {:>9}   {}",
            self.work.as_str(),
            self.wire.as_str(),
            self.phase,
            self.goodput,
            self.of_peak,
            self.refused,
            self.tally.untold,
            self.tally.failed,
            self.tally.micros_at(50),
            self.tally.micros_at(99),
            self.tally.trouble.as_deref().unwrap_or("")
        );
    }
}

/// What happened to some callers.
#[derive(Default)]
struct Tally {
    /// Done in the counted time.
    counted: u64,
    /// Done at any time.
    done: u64,
    /// Refused in the counted time.
    refused: u64,
    /// Refused without a time to wait.
    untold: u64,
    /// Connections that failed, and requests without an answer.
    failed: u64,
    /// May have been done.
    uncertain: u64,
    /// Done after the counted time: what the server had accepted before.
    left_over: u64,
    /// The durations of what was done in the counted time, in microseconds.
    micros: Vec<u32>,
    /// What the first refusal or failure said.
    trouble: Option<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.counted += other.counted;
        self.done += other.done;
        self.refused += other.refused;
        self.untold += other.untold;
        self.failed += other.failed;
        self.uncertain += other.uncertain;
        self.left_over += other.left_over;
        self.micros.extend(other.micros);
        self.trouble = self.trouble.take().or(other.trouble);
    }

    /// Counts a request that may have been done.
    fn failed_by(mut self, text: String) -> Self {
        self.failed += 1;
        self.uncertain += 1;
        self.trouble.get_or_insert(text);
        self
    }

    fn micros_at(&self, percent: usize) -> u32 {
        self.micros
            .get((self.micros.len() * percent / 100).min(self.micros.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    }
}

/// Measures each kind of work.
pub(crate) async fn measure(stage: &mut Stage, wire: Wire, pause: Pause) -> Outcome<Vec<OverloadRow>> {
    let waits = match pause {
        Pause::Told => "as long as the server says".to_owned(),
        Pause::Fixed(time) => format!("{} ms", time.as_millis()),
    };
    println!("\noverload; refused callers wait {waits}");
    println!(
        "{:<10} {:<8} {:<24} {:>9} {:>8} {:>10} {:>8} {:>7} {:>9} {:>9}",
        "work", "wire", "phase", "goodput/s", "of peak", "refused/s", "untold", "failed", "p50", "p99"
    );
    let mut rows = vec![];
    for work in [Work::SignOut, Work::Create, Work::Introspect] {
        let known = stage.sessions.take(1_000).await?;
        let mut peak = 0.0;
        for callers in [PEAK_CALLERS, 3 * PEAK_CALLERS, 4_096] {
            let seconds = (SETTLE + COUNTED + 2 * RECOVERY).as_secs_f64();
            // At the peak nothing is known yet.
            let expected = if peak == 0.0 { 25_000.0 } else { peak * 2.0 };
            let tokens = materials(stage, work, (expected * seconds) as usize + callers, &known).await?;
            let caller = Caller { addr: stage.addr, wire, server_key: stage.server_key.clone() };
            let calls: Vec<Call> = tokens.iter().map(|tokens| caller.call(work, tokens)).collect();
            let supply = Supply::new(&calls, if work == Work::SignOut { Reuse::Once } else { Reuse::Always });
            let crowd = Crowd { addr: stage.addr, wire, supply: &supply, pause };
            let (during, after) = crowd.run_and_recover(callers)?;
            let [mut first, second] = after;
            // Work like any other, which the server does in this second.
            first.counted += during.left_over;
            if work == Work::SignOut && supply.used() == calls.len() {
                return Err("the tokens ran out".into());
            }
            let acknowledged = &mut stage.sessions.acknowledged;
            for tally in [&during, &first, &second] {
                match work {
                    Work::SignOut => acknowledged.sign_outs += tally.done,
                    Work::Create => acknowledged.creations += tally.done,
                    _ => continue,
                }
                acknowledged.uncertain += tally.uncertain;
            }
            if peak == 0.0 {
                peak = during.counted as f64 / COUNTED.as_secs_f64();
            }
            let row = |phase: String, tally: Tally, time: Duration| {
                let goodput = tally.counted as f64 / time.as_secs_f64();
                let refused = tally.refused as f64 / time.as_secs_f64();
                OverloadRow { work, wire, phase, goodput, of_peak: goodput / peak, tally, refused }
            };
            let mut results = vec![row(format!("{callers} callers"), during, COUNTED)];
            if callers > 3 * PEAK_CALLERS {
                results.push(row("the second afterwards".to_owned(), first, RECOVERY));
                results.push(row("the one after that".to_owned(), second, RECOVERY));
            }
            results.iter().for_each(OverloadRow::print);
            rows.extend(results);
        }
    }
    Ok(rows)
}

async fn materials(stage: &mut Stage, work: Work, count: usize, known: &[Tokens]) -> Outcome<Vec<Tokens>> {
    Ok(match work {
        Work::SignOut => stage.sessions.take(count).await?,
        Work::Create => stage.sessions.users(count),
        _ => known.to_vec(),
    })
}

/// Callers that do the same work.
struct Crowd<'a> {
    addr: SocketAddr,
    wire: Wire,
    supply: &'a Supply<'a>,
    pause: Pause,
}

impl Crowd<'_> {
    /// Runs this many callers, and then a new 64 for a second, twice.
    fn run_and_recover(&self, callers: usize) -> Outcome<(Tally, [Tally; 2])> {
        thread::scope(|scope| {
            let begin = Instant::now();
            let end = begin + SETTLE + COUNTED;
            let during = scope.spawn(move || self.run(callers, begin + SETTLE, end));
            thread::sleep(end.saturating_duration_since(Instant::now()));
            let first = self.run(PEAK_CALLERS, end, end + RECOVERY)?;
            let second = self.run(PEAK_CALLERS, end + RECOVERY, end + 2 * RECOVERY)?;
            let after = [first, second];
            Ok((during.join().map_err(|_| "a caller panicked")??, after))
        })
    }

    /// Runs this many callers until `end`. What happens after `from` counts.
    fn run(&self, callers: usize, from: Instant, end: Instant) -> Outcome<Tally> {
        let streams = if self.wire == Wire::Grpc && callers > PEAK_CALLERS { STREAMS_PER_CONNECTION } else { 1 };
        let connections = callers / streams;
        thread::scope(|scope| {
            let work = |thread: usize| {
                scope.spawn(move || -> Outcome<Tally> {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    let own = (thread..connections).step_by(THREADS);
                    let tallies = runtime.block_on(join_all(own.map(|at| self.connection(at, streams, from, end))));
                    Ok(tallies.into_iter().fold(Tally::default(), |mut all, one| {
                        all.add(one);
                        all
                    }))
                })
            };
            let workers: Vec<_> = (0..THREADS).map(work).collect();
            let mut all = Tally::default();
            for worker in workers {
                all.add(worker.join().map_err(|_| "a caller panicked")??);
            }
            all.micros.sort_unstable();
            Ok(all)
        })
    }

    /// The callers of one connection.
    async fn connection(&self, at: usize, streams: usize, from: Instant, end: Instant) -> Tally {
        let host = at % ADDRESSES;
        let octet = |number: usize| u8::try_from(number).unwrap_or(1);
        let source = Ipv4Addr::new(127, 0, octet(host / 250 + 1), octet(host % 250 + 1));
        let mut all = Tally::default();
        while Instant::now() < end {
            let Ok(Ok(first)) = timeout(PATIENCE, Connection::open(self.wire, self.addr, source)).await else {
                all.failed += 1;
                pause(PAUSE_UNTOLD, end).await;
                continue;
            };
            let mut callers: Vec<Connection> = (1..streams).filter_map(|_| first.another_stream()).collect();
            callers.push(first);
            let work = callers.into_iter().map(|connection| self.caller(connection, from, end));
            // They end early only if the connection fails.
            join_all(work).await.into_iter().for_each(|one| all.add(one));
        }
        all
    }

    async fn caller(&self, mut connection: Connection, from: Instant, end: Instant) -> Tally {
        let mut tally = Tally::default();
        while Instant::now() < end {
            let Some(call) = self.supply.next() else { break };
            // Whether an earlier try may have done it.
            let mut may_be_done = false;
            while Instant::now() < end {
                let begun = Instant::now();
                let answer = timeout(PATIENCE, connection.call(call.request.clone())).await;
                let is_counted = (from..end).contains(&Instant::now());
                let answer = match answer {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => {
                        let causes =
                            std::iter::successors(Some(&*error as &dyn std::error::Error), |error| error.source());
                        let causes: Vec<String> = causes.map(ToString::to_string).collect();
                        return tally.failed_by(format!("the connection failed: {}", causes.join(": ")));
                    }
                    Err(late) => return tally.failed_by(format!("no answer: {late}")),
                };
                match answer {
                    Ok((headers, body)) => {
                        if call.expected.check(self.wire, &headers, &body, Repeats::Allowed).is_err() {
                            tally.failed += 1;
                        }
                        tally.done += 1;
                        may_be_done = false;
                        if Instant::now() >= end {
                            tally.left_over += 1;
                        }
                        if is_counted {
                            tally.counted += 1;
                            tally.micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
                        }
                        break;
                    }
                    Err(refused) => {
                        may_be_done |= refused.may_be_done;
                        tally.refused += u64::from(is_counted);
                        tally.untold += u64::from(refused.retry_after.is_none());
                        tally.trouble.get_or_insert(refused.text);
                        let told = refused.retry_after.unwrap_or(PAUSE_UNTOLD);
                        pause(if let Pause::Fixed(fixed) = self.pause { fixed } else { told }, end).await;
                    }
                }
            }
            tally.uncertain += u64::from(may_be_done);
        }
        tally
    }
}

async fn pause(time: Duration, end: Instant) {
    sleep_until((Instant::now() + time).min(end).into()).await;
}
