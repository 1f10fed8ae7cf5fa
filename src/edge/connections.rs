//! Limits the open connections, in total and per address, and closes those that wait for their clients to make room for new
//! ones.
//!
//! An idle connection is a convenience, so it is closed for a client with a request. If none is idle, one whose requests are
//! still being received is closed: a client that sends slowly, or not at all, must not keep others out. If the address has its
//! share, one of its own connections is closed; if all slots are taken, one of the address that has the most of them, so that
//! who holds many makes room before who holds few, and does not take the room of who holds few either.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
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
    addresses: HashMap<IpAddr, HashMap<u64, Activity>>,
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
        if slot._permit.is_some() && self.0.slots.available_permits() < self.0.spare {
            self.0.make_room(&slot, !is_trusted, |wait| wait.is_idle);
        }
        let since = Instant::now();
        while slot._permit.is_none() {
            // Within this time, connections of the newcomer's own address can make room, if they wait at all.
            let spares_lighter = !is_trusted && since.elapsed() < WAIT_MIN;
            self.0.make_room(&slot, spares_lighter, |_| true);
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

    fn enter(&self, ip: IpAddr, is_trusted: bool) -> Option<(u64, Activity)> {
        let mut state = self.open.lock().expect("no one panics while holding it");
        let now = Instant::now();
        let id = state.next;
        let own = state.addresses.entry(ip).or_default();
        if !is_trusted {
            let leaving = own.values().filter(|activity| activity.is_leaving()).count();
            // Those that leave hold their slots, as long as their clients like: at most as many again.
            if leaving >= self.address_max {
                let lingering = own.values().filter_map(|activity| Some((activity.lingers_since()?, activity)));
                lingering.min_by_key(|(since, _)| *since)?.1.abort();
            }
            if own.len() - leaving >= self.address_max {
                longest_waiting(own.values(), now)?.1.evict();
                self.count(|metrics| metrics.connection_closed("share"));
            }
        }
        let activity = Activity::new();
        own.insert(id, activity.clone());
        state.next += 1;
        drop(state);
        self.count(|metrics| metrics.connections_open(1));
        Some((id, activity))
    }

    /// Asks a connection to close that waits for its client: of the address that has the most connections, the one that has
    /// waited longest. Can spare addresses that have fewer connections than the newcomer's, and those whose wait is not of a kind.
    fn make_room(&self, newcomer: &ConnectionSlot, spares_lighter: bool, is_candidate: impl Fn(&Wait) -> bool) {
        let (state, now) = (self.open.lock().expect("no one panics while holding it"), Instant::now());
        let least = match state.addresses.get(&newcomer.ip) {
            Some(own) if spares_lighter => own.len(),
            _ => 0,
        };
        let candidates = state.addresses.values().filter(|own| own.len() >= least).filter_map(|own| {
            let others = own.iter().filter(|(id, _)| **id != newcomer.id).map(|(_, activity)| activity);
            let waiting = longest_waiting(others, now).filter(|(wait, _)| is_candidate(wait));
            waiting.map(|(wait, activity)| (own.len(), wait, activity))
        });
        if let Some((.., waiting)) = candidates.max_by_key(|(count, wait, _)| (*count, *wait)) {
            waiting.evict();
            self.count(|metrics| metrics.connection_closed("room"));
        }
    }
}

fn longest_waiting<'a>(all: impl Iterator<Item = &'a Activity>, now: Instant) -> Option<(Wait, &'a Activity)> {
    let waiting = all.filter_map(|activity| Some((activity.wait(now)?, activity)));
    waiting.filter(|(wait, _)| wait.time >= WAIT_MIN).max_by_key(|(wait, _)| *wait)
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
            own.remove(&self.id);
            if own.is_empty() {
                state.addresses.remove(&self.ip);
            }
        }
        drop(state);
        shared.count(|metrics| metrics.connections_open(-1));
    }
}
