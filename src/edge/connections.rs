//! Limits the open connections, in total and per address, and closes idle ones to make room for new ones.
//!
//! An idle connection is a convenience, so it is closed for a client with a request. If the address has its share, one of its
//! own connections is closed; if all slots are taken, the connection that has been idle longest.

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
use crate::rates::network;
use crate::telemetry::Metrics;

/// A connection that has been idle for less is not closed: a client that has just connected is about to send a request.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// How long to wait for a slot before another connection is asked to make room.
const ROOM_INTERVAL: Duration = Duration::from_millis(50);

/// The open connections. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Connections(Arc<ConnectionTable>);

struct ConnectionTable {
    slots: Arc<Semaphore>,
    address_max: usize,
    metrics: Metrics,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    next: u64,
    addresses: HashMap<IpAddr, HashMap<u64, Activity>>,
}

impl Connections {
    pub(super) fn new(max: usize, address_max: usize, metrics: Metrics) -> Self {
        let slots = Arc::new(Semaphore::new(max));
        Self(Arc::new(ConnectionTable { slots, address_max, metrics, open: Mutex::default() }))
    }

    /// Acquires a slot for a connection from this address; `None` if the address has its share of connections and all of them
    /// are busy. Waits while no slot is free. A trusted proxy has no share, because it has many clients.
    pub(super) async fn slot(&self, ip: IpAddr, is_trusted: bool) -> Option<ConnectionSlot> {
        let ip = network(ip);
        let entered = self.enter(ip, is_trusted);
        let Some((id, activity)) = entered else {
            self.0.metrics.connection_refused("address");
            return None;
        };
        let mut slot = ConnectionSlot { connections: self.clone(), ip, id, activity, _permit: None };
        loop {
            let waiting = Arc::clone(&self.0.slots).acquire_owned();
            if let Ok(permit) = timeout(ROOM_INTERVAL, waiting).await {
                slot._permit = Some(permit.expect("never closed"));
                return Some(slot);
            }
            self.make_room(id);
        }
    }

    fn enter(&self, ip: IpAddr, is_trusted: bool) -> Option<(u64, Activity)> {
        let mut state = self.0.open.lock().expect("no one panics while holding it");
        let now = Instant::now();
        let id = state.next;
        let own = state.addresses.entry(ip).or_default();
        let staying = own.values().filter(|activity| !activity.is_leaving()).count();
        if !is_trusted && staying >= self.0.address_max {
            let idlest = idlest(own.values(), now)?;
            idlest.evict();
            self.0.metrics.connection_closed("share");
        }
        let activity = Activity::new();
        own.insert(id, activity.clone());
        state.next += 1;
        drop(state);
        self.0.metrics.connections_open(1);
        Some((id, activity))
    }

    /// Asks the connection that has been idle longest to close.
    fn make_room(&self, but: u64) {
        let state = self.0.open.lock().expect("no one panics while holding it");
        let all = state.addresses.values().flatten().filter(|(id, _)| **id != but).map(|(_, activity)| activity);
        if let Some(idlest) = idlest(all, Instant::now()) {
            idlest.evict();
            self.0.metrics.connection_closed("room");
        }
    }
}

fn idlest<'a>(all: impl Iterator<Item = &'a Activity>, now: Instant) -> Option<&'a Activity> {
    let idle = all.filter_map(|activity| Some((activity.idle_for(now)?, activity)));
    idle.filter(|(idle, _)| *idle >= IDLE_MIN).max_by_key(|(idle, _)| *idle).map(|(_, activity)| activity)
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
        shared.metrics.connections_open(-1);
    }
}
