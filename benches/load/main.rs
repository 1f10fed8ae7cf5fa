//! The server under load, beside what its database can do: `cargo bench --bench load`.
//!
//! The bench starts a Postgres with full durability, the real `sessiond serve` as a process of its own, and clients. Each
//! client has its own connection and one request in progress; each sign-out, refresh and create has its own token, used
//! once. REST and grpc-web use HTTP/1.1, as curl does and as proxies send it; gRPC uses HTTP/2. Clients share two
//! threads, as pgbench's do.
//!
//! Beside each kind of work runs a baseline, in turns within each round, in reverse order every other round, so that
//! disturbances affect both. Compare the ratios:
//!
//! | work | baseline |
//! |---|---|
//! | `sign-out` | pgbench: UPDATE of one row, as wide as a session, by its key |
//! | `sign-out-known` | the same; only if it is named |
//! | `refresh` | pgbench: a transaction of SELECT FOR UPDATE and UPDATE of such a row |
//! | `create` | pgbench: INSERT of such a row, with as many indexes |
//! | `list` | none |
//! | `introspect` | an empty tonic unary method that gets the same request |
//! | `verify` | an axum handler that returns 200, and gets the same request |
//! | `verify-cookie` | `verify`, of a project in cookie mode; only if it is named |
//! | `overload` | the same work with 64 requests in progress: see `overload.rs` |
//! | `memory` | none: the server with ten thousand idle connections |
//!
//! Every answer is checked. At the end, the ended, refreshed and created sessions in the database are compared with the
//! acknowledged ones; any difference fails the bench.
//!
//! Options come after `--`: `cargo bench --bench load -- --rounds 3 --work sign-out --wire rest --clients 16,64`.

mod baseline;
mod client;
mod cpu;
mod markdown;
mod memory;
mod null;
mod overload;
mod peers;
mod plot;
mod report;
mod run;
mod sessions;
mod stage;
mod work;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::CookieScope;

use crate::baseline::Baseline;
use crate::client::Wire;
use crate::overload::Pause;
use crate::peers::PeerCommand;
use crate::peers::RunningPeer;
use crate::report::Contender;
use crate::report::Group;
use crate::stage::Stage;
use crate::work::Work;

/// The result of what can fail.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the server under load, beside baselines.
#[derive(Parser)]
struct Options {
    /// The number of rounds; results are their medians.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// The duration of each measurement, in seconds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// The kinds of work. Default: all but `sign-out-known`, `verify-cookie`, `overload` and `memory`.
    #[arg(long, value_delimiter = ',')]
    work: Vec<Work>,
    /// The protocols. Default: all three for sign-outs, REST for what users do, REST and gRPC for introspection.
    #[arg(long, value_delimiter = ',')]
    wire: Vec<Wire>,
    /// The numbers of clients. Default: 1, 16, 64 and 256 for sign-outs, 16 for the rest.
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Where to write the results as JSON. Default: `load.json` in cargo's target directory.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to write the results as Markdown tables, if anywhere.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// A directory for plots (SVG): rate and p99 by number of clients.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Where Postgres keeps its data during the run: a disk, because the bench waits for its flushes. Default: in
    /// cargo's target directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Makes each flush of Postgres this much slower, in µs, for the server and for pgbench: to measure as on a slower disk.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    flush_delay: u32,
    /// The server to measure, to compare builds. Default: the one built with the bench.
    #[arg(long, default_value = stage::SERVER)]
    server: PathBuf,
    /// In an overload, how long a refused client waits: `told`, as long as the server says, or milliseconds.
    #[arg(long, default_value = "told")]
    pause: Pause,
    /// Measure another product beside ours, as `NAME=COMMAND`; may be repeated. `benches/peers/run` passes it. Then other
    /// work is measured only if `--work` says so.
    #[arg(long)]
    peer: Vec<PeerCommand>,
    /// Serve the baselines `introspect` and `verify` are compared with; started by the bench itself.
    #[arg(long, hide = true)]
    null_service: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn includes(&self, work: Work) -> bool {
        if self.work.is_empty() {
            let must_be_named = matches!(work, Work::SignOutKnown | Work::VerifyCookie | Work::Overload | Work::Memory);
            !must_be_named && self.peer.is_empty()
        } else {
            self.work.contains(&work)
        }
    }

    fn wires(&self, work: Work) -> Vec<Wire> {
        let default: &[Wire] = match work {
            Work::SignOut => &[Wire::Rest, Wire::Grpc, Wire::GrpcWeb],
            Work::SignOutKnown | Work::Refresh | Work::Create | Work::List => &[Wire::Rest],
            Work::Verify | Work::VerifyCookie => &[Wire::Rest],
            Work::Introspect => &[Wire::Grpc, Wire::Rest],
            Work::Overload | Work::Memory => &[Wire::Grpc],
        };
        // Only on HTTP.
        let is_fixed = matches!(work, Work::Verify | Work::VerifyCookie);
        if self.wire.is_empty() || is_fixed { default.to_vec() } else { self.wire.clone() }
    }

    fn clients(&self, work: Work) -> Vec<usize> {
        match (self.clients.as_slice(), work) {
            ([], Work::SignOut | Work::SignOutKnown) => vec![1, 16, 64, 256],
            ([], _) => vec![16],
            (given, _) => given.to_vec(),
        }
    }
}

fn main() -> ExitCode {
    match run_all(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(options: &Options) -> Outcome<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    if options.null_service {
        return runtime.block_on(null::serve());
    }
    stage::raise_open_files();
    runtime.block_on(async {
        let mut policy = Policy::default();
        if options.includes(Work::VerifyCookie) {
            policy.cookies.scope = CookieScope::Host;
        }
        let mut stage = Stage::start(options.dir.clone(), &options.server, policy, options.flush_delay).await?;
        let measured = measure(options, &mut stage).await;
        let stopped = stage.stop().await;
        measured.and(stopped)
    })
}

async fn measure(options: &Options, stage: &mut Stage) -> Outcome<()> {
    // First, while the server is as it started.
    let memory = if options.includes(Work::Memory) { memory::measure(stage).await? } else { Value::Null };
    let mut rows = vec![];
    let groups = groups(options);
    if !groups.is_empty() || !options.peer.is_empty() {
        println!("{} rounds of {} s; medians; times in µs\n", options.rounds, options.seconds);
        report::print_head();
    }
    for group in groups {
        let results = group.measure(stage, options.rounds, options.seconds).await?;
        results.iter().for_each(report::print_row);
        rows.extend(results);
    }
    for command in &options.peer {
        stage.peer = Some(RunningPeer::start(stage, command).await?);
        for group in peer_groups(options, command) {
            let results = group.measure(stage, options.rounds, options.seconds).await?;
            results.iter().for_each(report::print_row);
            rows.extend(results);
        }
        if let Some(peer) = stage.peer.take() {
            peer.compare_with_database().await?;
        }
    }
    let mut overloads = vec![];
    if options.includes(Work::Overload) {
        for wire in options.wires(Work::Overload) {
            overloads.extend(overload::measure(stage, wire, options.pause).await?);
        }
    }
    stage.sessions.compare_with_database().await?;
    if let Some(size) = stage.sessions.size("revocations").await? {
        println!("a revocation takes {size}");
        stage.facts.push(("a revocation", size));
    }
    let json = options.json.clone().unwrap_or_else(|| stage::target_dir().join("load.json"));
    report::write(&json, &stage.facts, options.seconds, &rows, &overloads, &memory)?;
    println!("results: {}", json.display());
    if let Some(file) = &options.markdown {
        markdown::write(file, &stage.facts, &rows, &overloads)?;
        println!("tables: {}", file.display());
    }
    if let Some(dir) = &options.plots {
        for file in plot::write(dir, &rows)? {
            println!("plot: {}", file.display());
        }
    }
    Ok(())
}

/// What runs in turns.
fn groups(options: &Options) -> Vec<Group> {
    // The works of one group take turns, beside one baseline.
    let works: [&[Work]; 7] = [
        &[Work::SignOut, Work::SignOutKnown],
        &[Work::Refresh],
        &[Work::Create],
        &[Work::List],
        &[Work::Introspect],
        &[Work::Verify],
        &[Work::VerifyCookie],
    ];
    let mut groups = vec![];
    for works in works {
        let works: Vec<Work> = works.iter().copied().filter(|work| options.includes(*work)).collect();
        let Some(first) = works.first().copied() else { continue };
        for clients in options.clients(first) {
            let of = |work| options.wires(work).into_iter().map(move |wire| Contender::Server { work, wire, clients });
            let baseline = Baseline::of(first).map(|baseline| Contender::Baseline { baseline, clients });
            groups.push(Group { contenders: works.iter().copied().flat_map(of).chain(baseline).collect() });
        }
    }
    groups
}

/// A peer in turns with ours, over REST.
fn peer_groups(options: &Options, command: &PeerCommand) -> Vec<Group> {
    let peer = command.peer;
    let clients = if options.clients.is_empty() { vec![16] } else { options.clients.clone() };
    let pairs = peer.works().iter().flat_map(|work| clients.iter().map(|clients| (*work, *clients)));
    let group = |(work, clients)| {
        let own = Contender::Server { work, wire: Wire::Rest, clients };
        Group { contenders: vec![own, Contender::Peer { peer, work, clients }] }
    };
    pairs.map(group).collect()
}
