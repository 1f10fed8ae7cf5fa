//! Limits the open connections, in total and per address, and closes those that wait for their clients to make room for new
//! ones.
//!
//! An idle connection is a convenience, so it is closed for a client with a request. If none is idle, one whose requests are
//! still being received is closed: a client that sends slowly, or not at all, must not keep others out. If the address has its
//! share, one of its own connections is closed; if all slots are taken, one of the address that has the most of them, so that
//! who holds many makes room before who holds few, and does not take the room of who holds few either.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout;

use super::activity::Activity;
use super::activity::Wait;
use crate::rates::network;
use crate::telemetry::Metrics;

/// A connection that has waited for less is not closed: a client that has just connected is about to send a request.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// One of this many slots is kept free.
const SPARE: usize = 32;

/// How long to wait for a slot before one more connection is asked to make room.
const ROOM_INTERVAL: Duration = Duration::from_millis(50);

/// The open connections. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Connections(Arc<ConnectionTable>);

struct ConnectionTable {
    slots: Arc<Semaphore>,
    /// How many slots are kept free while connections wait for their clients.
    spare: usize,
    address_max: usize,
    /// `None` if they are not counted.
    metrics: Option<Metrics>,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    next: u64,
    addresses: HashMap<IpAddr, OfAddress>,
    /// When idle connections may be looked for again, to keep slots free.
    spare_at: Option<Instant>,
}

/// The connections of one address.
#[derive(Default)]
struct OfAddress {
    open: HashMap<u64, Activity>,
    /// How many of them are shutting down.
    leaving: Arc<AtomicUsize>,
    /// Until when none of them can make room.
    busy_until: Option<Instant>,
}

impl Connections {
    pub(super) fn new(max: usize, address_max: usize, metrics: Option<Metrics>) -> Self {
        let slots = Arc::new(Semaphore::new(max));
        Self(Arc::new(ConnectionTable { slots, spare: max / SPARE, address_max, metrics, open: Mutex::default() }))
    }

    /// Acquires a slot for a connection from this address; `None` if the address has its share of connections and all of them
    /// are busy. Waits while no slot is free. A trusted proxy has no share, because it has many clients.
    pub(super) async fn slot(&self, ip: IpAddr, is_trusted: bool) -> Option<ConnectionSlot> {
        let ip = network(ip);
        let entered = self.0.enter(ip, is_trusted);
        let Some((id, activity)) = entered else {
            self.0.count(|metrics| metrics.connection_refused("address"));
            return None;
        };
        let mut slot = ConnectionSlot { connections: self.clone(), ip, id, activity, _permit: None };
        slot._permit = Arc::clone(&self.0.slots).try_acquire_owned().ok();
        // One that makes room may take its time, so room is made before it is needed.
        let missing = self.0.spare.saturating_sub(self.0.slots.available_permits());
        if slot._permit.is_some() && missing > 0 && self.0.may_look_for_spare() {
            self.0.make_room(&slot, !is_trusted, missing, |wait| wait.is_idle);
        }
        let since = Instant::now();
        while slot._permit.is_none() {
            // Within this time, connections of the newcomer's own address can make room, if they wait at all.
            let spares_lighter = !is_trusted && since.elapsed() < WAIT_MIN;
            self.0.make_room(&slot, spares_lighter, 1, |_| true);
            let waiting = timeout(ROOM_INTERVAL, Arc::clone(&self.0.slots).acquire_owned());
            slot._permit = waiting.await.ok().map(|permit| permit.expect("never closed"));
        }
        Some(slot)
    }
}

impl ConnectionTable {
    fn count(&self, count: impl Fn(&Metrics)) {
        if let Some(metrics) = &self.metrics {
            count(metrics);
        }
    }

    /// Whether to look for idle connections now: all of them are looked at, which takes too long to do with every new one.
    fn may_look_for_spare(&self) -> bool {
        let (mut state, now) = (self.open.lock().expect("no one panics while holding it"), Instant::now());
        let is_due = state.spare_at.is_none_or(|at| now >= at);
        if is_due {
            state.spare_at = Some(now + ROOM_INTERVAL);
        }
        is_due
    }

    fn enter(&self, ip: IpAddr, is_trusted: bool) -> Option<(u64, Activity)> {
        let mut state = self.open.lock().expect("no one panics while holding it");
        let id = state.next;
        let own = state.addresses.entry(ip).or_default();
        if !is_trusted {
            self.make_room_within(own, Instant::now())?;
        }
        let activity = Activity::new(Arc::clone(&own.leaving));
        own.open.insert(id, activity.clone());
        state.next += 1;
        drop(state);
        self.count(|metrics| metrics.connections_open(1));
        Some((id, activity))
    }

    /// Makes room within the address's share, if it has none; `None` if it cannot. A part of the share at once, and seldom in vain:
    /// all connections of the address are looked at.
    fn make_room_within(&self, own: &mut OfAddress, now: Instant) -> Option<()> {
        let leaving = own.leaving.load(Ordering::Relaxed);
        let (is_full, lingers) = (own.open.len() - leaving >= self.address_max, leaving >= self.address_max);
        if !is_full && !lingers {
            return Some(());
        }
        if own.busy_until.is_some_and(|until| now < until) {
            return None;
        }
        let at_once = (self.address_max / SPARE).max(1);
        let made = {
            // Those that leave hold their slots, as long as their clients like: at most as many again.
            let lingering = own.open.values().filter_map(|activity| Some((activity.lingers_since()?, activity)));
            let aborted = if lingers { first(lingering, at_once) } else { vec![] };
            aborted.iter().for_each(|(_, activity)| activity.abort());
            let evicted = if is_full { longest_waiting(own.open.values(), now, at_once) } else { vec![] };
            for (_, activity) in &evicted {
                activity.evict();
                self.count(|metrics| metrics.connection_closed("share"));
            }
            (!lingers || !aborted.is_empty()) && (!is_full || !evicted.is_empty())
        };
        own.busy_until = (!made).then(|| now + ROOM_INTERVAL);
        made.then_some(())
    }

    /// Asks connections to close that wait for their clients: each time, of the address that has the most connections, the one that
    /// has waited longest. Can spare addresses that have fewer connections than the newcomer's, and those whose wait is not of a kind.
    fn make_room(
        &self,
        newcomer: &ConnectionSlot,
        spares_lighter: bool,
        how_many: usize,
        is_candidate: impl Fn(&Wait) -> bool,
    ) {
        let (state, now) = (self.open.lock().expect("no one panics while holding it"), Instant::now());
        let least = match state.addresses.get(&newcomer.ip) {
            Some(own) if spares_lighter => own.open.len(),
            _ => 0,
        };
        let candidates = state.addresses.values().filter(|own| own.open.len() >= least).filter_map(|own| {
            let others = own.open.iter().filter(|(id, _)| **id != newcomer.id).map(|(_, activity)| activity);
            let mut waiting = longest_waiting(others, now, usize::MAX);
            waiting.retain(|(wait, _)| is_candidate(wait));
            waiting.reverse();
            waiting.last().map(|(wait, _)| (own.open.len(), *wait)).map(|rank| (rank, waiting))
        });
        // A number makes the ranks different.
        let mut ranked: BTreeMap<_, _> =
            candidates.enumerate().map(|(number, (rank, waiting))| ((rank, number), waiting)).collect();
        for _ in 0..how_many {
            let Some((((count, _), number), mut waiting)) = ranked.pop_last() else { break };
            let Some((_, longest)) = waiting.pop() else { continue };
            longest.evict();
            self.count(|metrics| metrics.connection_closed("room"));
            if let Some((wait, _)) = waiting.last().filter(|_| count > least) {
                ranked.insert(((count - 1, *wait), number), waiting);
            }
        }
    }
}

/// Those that have waited longest, longest first.
fn longest_waiting<'a>(
    all: impl Iterator<Item = &'a Activity>,
    now: Instant,
    count: usize,
) -> Vec<(Wait, &'a Activity)> {
    let waiting = all.filter_map(|activity| Some((activity.wait(now)?, activity)));
    let waiting = waiting.filter(|(wait, _)| wait.time >= WAIT_MIN).map(|(wait, activity)| (Reverse(wait), activity));
    first(waiting, count).into_iter().map(|(Reverse(wait), activity)| (wait, activity)).collect()
}

/// The first of them in order.
fn first<'a, K: Ord + Copy>(all: impl Iterator<Item = (K, &'a Activity)>, count: usize) -> Vec<(K, &'a Activity)> {
    let mut all: Vec<_> = all.collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    all.truncate(count);
    all
}

/// A connection's slot. Released when dropped.
pub(super) struct ConnectionSlot {
    connections: Connections,
    ip: IpAddr,
    id: u64,
    pub(super) activity: Activity,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let Connections(shared) = &self.connections;
        let mut state = shared.open.lock().expect("no one panics while holding it");
        if let Some(own) = state.addresses.get_mut(&self.ip) {
            own.open.remove(&self.id);
            // Nothing asks it to leave any more.
            if self.activity.is_leaving() {
                own.leaving.fetch_sub(1, Ordering::Relaxed);
            }
            if own.open.is_empty() {
                state.addresses.remove(&self.ip);
            }
        }
        drop(state);
        shared.count(|metrics| metrics.connections_open(-1));
    }
}
