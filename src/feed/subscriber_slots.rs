//! Limits how many may subscribe at once: in total, per project's users, per user, and per project's services.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::limits::SUBSCRIBERS_MAX;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;

/// The most streams of one project's services at once, on each replica.
const SERVICE_STREAMS_MAX: usize = 1_024;

/// The most streams of one user at once, on each replica.
const USER_STREAMS_MAX: usize = 32;

/// Who subscribes, as far as slots are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subscriber {
    /// The services of a project.
    Services(ProjectId),
    /// A user.
    User(ProjectId, UserId),
}

/// The slots of one replica's feed. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct SubscriberSlots(Arc<Mutex<TakenSlots>>);

/// The slots that are taken.
struct TakenSlots {
    max: usize,
    count: usize,
    by_subscriber: HashMap<Subscriber, usize>,
    by_users_of: HashMap<ProjectId, usize>,
}

impl Default for TakenSlots {
    fn default() -> Self {
        Self { max: SUBSCRIBERS_MAX, count: 0, by_subscriber: HashMap::new(), by_users_of: HashMap::new() }
    }
}

impl SubscriberSlots {
    /// Sets the total number of slots.
    pub(super) fn set_max(&self, subscribers_max: usize) {
        self.lock().max = subscribers_max;
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().count
    }

    /// Takes a slot; `None` if there is none left for this subscriber.
    pub(super) fn take(&self, subscriber: Subscriber) -> Option<SubscriberSlot> {
        let has_taken = self.lock().take(&subscriber);
        has_taken.then(|| SubscriberSlot { slots: self.clone(), subscriber })
    }

    fn lock(&self) -> MutexGuard<'_, TakenSlots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TakenSlots {
    fn take(&mut self, subscriber: &Subscriber) -> bool {
        let (own_max, all_max) = match subscriber {
            Subscriber::Services(_) => (SERVICE_STREAMS_MAX, self.max),
            // One project's users never take all slots, so there is room for another project's.
            Subscriber::User(project, _)
                if self.by_users_of.get(project).copied().unwrap_or(0) >= self.max.div_ceil(2) =>
            {
                return false;
            }
            // All users together never take all slots, so there is room for services.
            Subscriber::User(..) => (USER_STREAMS_MAX, self.max - self.max / 4),
        };
        let own = self.by_subscriber.get(subscriber).copied().unwrap_or(0);
        if own >= own_max || self.count >= all_max {
            return false;
        }
        self.by_subscriber.insert(subscriber.clone(), own + 1);
        if let Subscriber::User(project, _) = subscriber {
            *self.by_users_of.entry(project.clone()).or_default() += 1;
        }
        self.count += 1;
        true
    }

    fn release(&mut self, subscriber: &Subscriber) {
        self.count -= 1;
        decrement(&mut self.by_subscriber, subscriber);
        if let Subscriber::User(project, _) = subscriber {
            decrement(&mut self.by_users_of, project);
        }
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// A subscriber's slot. Released when dropped.
pub(super) struct SubscriberSlot {
    slots: SubscriberSlots,
    subscriber: Subscriber,
}

impl Drop for SubscriberSlot {
    fn drop(&mut self) {
        self.slots.lock().release(&self.subscriber);
    }
}
