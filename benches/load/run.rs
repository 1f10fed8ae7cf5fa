//! A timed run: clients with one request in progress each, on two threads.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::try_join_all;

use crate::Outcome;
use crate::client::Connection;
use crate::client::Wire;
use crate::work::Call;

/// Each has its own runtime, so no work moves between them. pgbench gets as many.
pub(crate) const THREADS: usize = 2;

/// The result of a run.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) done: u64,
    pub(crate) elapsed: Duration,
    /// The duration of each operation, in microseconds.
    pub(crate) micros: Vec<u32>,
    /// The processor time of the server and of Postgres, if they did the work.
    pub(crate) cpu: Option<[Duration; 2]>,
}

impl Measured {
    /// Operations a second.
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }
}

/// The requests of a run.
pub(crate) struct Supply<'a> {
    pub(crate) calls: &'a [Call],
    pub(crate) reuse: Reuse,
    pub(crate) next: AtomicUsize,
}

/// Whether requests are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    Once,
    Always,
}

impl<'a> Supply<'a> {
    pub(crate) fn new(calls: &'a [Call], reuse: Reuse) -> Self {
        Self { calls, reuse, next: AtomicUsize::new(0) }
    }

    pub(crate) fn next(&self) -> Option<&'a Call> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        match self.reuse {
            Reuse::Once => self.calls.get(next),
            Reuse::Always => self.calls.get(next % self.calls.len()),
        }
    }

    /// How many requests were taken.
    pub(crate) fn used(&self) -> usize {
        self.next.load(Ordering::Relaxed).min(self.calls.len())
    }
}

/// Runs the clients for a while, or until all requests are used. Calls `cpu` right before and right after.
///
/// # Errors
///
/// Fails at the first answer that is not as expected.
pub(crate) fn run<C>(
    addr: SocketAddr,
    wire: Wire,
    clients: usize,
    supply: &Supply<'_>,
    duration: Duration,
    cpu: impl Fn() -> C,
) -> Outcome<(Measured, C, C)> {
    let threads = THREADS.min(clients);
    let (connected, began) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    thread::scope(|scope| {
        let work = |thread: usize| {
            let (connected, began) = (&connected, &began);
            let clients = clients / threads + usize::from(thread < clients % threads);
            scope.spawn(move || -> Outcome<Measured> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let open = (0..clients).map(|_| Connection::open(wire, addr, Ipv4Addr::LOCALHOST));
                    let opened = try_join_all(open).await;
                    connected.wait();
                    began.wait();
                    let end = Instant::now() + duration;
                    let work = opened?.into_iter().map(|connection| one_client(connection, wire, supply, end));
                    let micros = try_join_all(work).await?.concat();
                    Ok(Measured { done: micros.len() as u64, micros, ..Measured::default() })
                })
            })
        };
        let workers: Vec<_> = (0..threads).map(work).collect();
        connected.wait();
        let before = cpu();
        let started = Instant::now();
        began.wait();
        let mut measured = Measured::default();
        for worker in workers {
            let part = worker.join().map_err(|_| "a client panicked")??;
            measured.done += part.done;
            measured.micros.extend(part.micros);
        }
        measured.elapsed = started.elapsed();
        Ok((measured, before, cpu()))
    })
}

async fn one_client(mut connection: Connection, wire: Wire, supply: &Supply<'_>, end: Instant) -> Outcome<Vec<u32>> {
    let mut micros = vec![];
    let mut now = Instant::now();
    while now < end {
        let Some(call) = supply.next() else { break };
        let answer = connection.call(call.request.clone()).await?;
        let done = Instant::now();
        micros.push(u32::try_from((done - now).as_micros())?);
        now = done;
        call.check(wire, answer)?;
    }
    Ok(micros)
}
