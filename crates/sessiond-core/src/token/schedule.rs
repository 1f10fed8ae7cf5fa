//! The schedule of keys, and plans for their rotation and revocation. Pure: the caller carries the plan out while it holds the lock.
//!
//! A key is *waiting* (published, so that verifiers can fetch it), then *signing*, then *retired* (verifies until its last token has
//! expired). At each moment one key signs: the successor starts at the instant at which the others retire.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::id::KeyId;

/// The allowance for clock skew between replicas and operators, and for the time until all replicas know a change in the database.
pub const MARGIN: Duration = Duration::from_secs(60);

/// When a key signs. It is published before that, and verifies until its last token has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// When it starts to sign, or to authenticate new refresh tokens.
    pub signs_from: Timestamp,
    /// When it stops. Half-open: at this moment exactly, another key signs.
    pub retired_at: Option<Timestamp>,
}

/// The stage of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Published, but does not sign yet.
    Waiting,
    /// Signs.
    Signing,
    /// No longer signs.
    Retired,
}

impl Schedule {
    /// The schedule of a key that signs from this moment on.
    pub const fn from(signs_from: Timestamp) -> Self {
        Self { signs_from, retired_at: None }
    }

    /// The schedule of a key that must sign at once, because no other does. Starts early enough for replicas whose clock is behind.
    pub fn at_once(now: Timestamp) -> Self {
        Self::from(now - MARGIN)
    }

    /// The key's stage at this moment.
    pub fn stage(&self, now: Timestamp) -> Stage {
        if now < self.signs_from {
            Stage::Waiting
        } else if self.retired_at.is_none_or(|retired| now < retired) {
            Stage::Signing
        } else {
            Stage::Retired
        }
    }

    /// Whether the key signs at this moment.
    pub fn signs_at(&self, now: Timestamp) -> bool {
        self.stage(now) == Stage::Signing
    }

    /// Whether a token that the key signed may still be valid at this moment; see [`Schedule::verifies_until`].
    pub fn verifies_at(&self, now: Timestamp, token_ttl_max: Duration) -> bool {
        self.verifies_until(token_ttl_max).is_none_or(|end| now < end)
    }

    /// When the last token has expired that a replica may have signed before it learned that the key was retired; `None` if the key
    /// is not retired. Half-open: at this moment exactly, it no longer verifies.
    pub fn verifies_until(&self, token_ttl_max: Duration) -> Option<Timestamp> {
        self.retired_at.map(|retired| retired + token_ttl_max + MARGIN)
    }
}

/// The keys of one project and purpose, without revoked ones.
pub type ScheduledKeys = [(KeyId, Schedule)];

/// A plan: from one moment on, a single key signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The moment.
    pub from: Timestamp,
    /// The key that signs from then on: a waiting one, or `None` for a new one.
    pub successor: Option<KeyId>,
    /// The keys that sign until then.
    pub retire: Vec<KeyId>,
}

/// How soon a new key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Once every verifier has fetched it, without an interruption.
    Planned,
    /// At once. Verifiers with an older JWK Set refuse its tokens until they fetch the set again.
    Emergency,
}

/// The decision on a request to rotate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRotation {
    /// Carry out this plan.
    Succeed(Succession),
    /// A rotation is in progress: a key is waiting already.
    UnderWay {
        /// The waiting key.
        successor: KeyId,
        /// When it starts to sign.
        from: Timestamp,
    },
}

/// What to do with the other keys after one was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterRevocation {
    /// Nothing: another key signs and continues to.
    Unchanged,
    /// Cancel the retirement of this key, because its successor was revoked.
    Unretire(KeyId),
    /// No key would sign, so a successor signs at once.
    Succeed(Succession),
}

/// Plans a rotation. A planned one takes effect after `lead`, the time until all verifiers have fetched the new key.
///
/// If a key is waiting, [`Urgency::Emergency`] makes that one sign at once, because some verifiers have fetched it already.
pub fn rotate(keys: &ScheduledKeys, now: Timestamp, urgency: Urgency, lead: Duration) -> KeyRotation {
    let retire: Vec<KeyId> = keys.iter().filter(|(_, schedule)| schedule.signs_at(now)).map(|(id, _)| *id).collect();
    match (urgency, waiting(keys, now)) {
        // No key signs, so waiting would only prolong that.
        (Urgency::Planned | Urgency::Emergency, successor) if retire.is_empty() => {
            KeyRotation::Succeed(at_once(successor, now))
        }
        (Urgency::Planned, Some((successor, schedule))) => {
            KeyRotation::UnderWay { successor, from: schedule.signs_from }
        }
        (Urgency::Planned, None) => KeyRotation::Succeed(Succession { from: now + lead, successor: None, retire }),
        (Urgency::Emergency, successor) => {
            KeyRotation::Succeed(Succession { from: now, successor: successor.map(|(id, _)| id), retire })
        }
    }
}

/// Plans what follows the revocation of a key; `keys` are the others.
pub fn after_revocation(keys: &ScheduledKeys, now: Timestamp) -> AfterRevocation {
    let successor = waiting(keys, now);
    let last = keys
        .iter()
        .filter(|(_, schedule)| schedule.signs_at(now))
        .max_by_key(|(id, schedule)| (schedule.retired_at.is_none(), schedule.retired_at, *id));
    match last {
        None => AfterRevocation::Succeed(at_once(successor, now)),
        Some((id, Schedule { retired_at: Some(end), .. }))
            if successor.is_none_or(|(_, next)| next.signs_from > *end) =>
        {
            AfterRevocation::Unretire(*id)
        }
        Some(_) => AfterRevocation::Unchanged,
    }
}

fn at_once(successor: Option<(KeyId, Schedule)>, now: Timestamp) -> Succession {
    Succession { from: Schedule::at_once(now).signs_from, successor: successor.map(|(id, _)| id), retire: vec![] }
}

/// The waiting key that signs next.
fn waiting(keys: &ScheduledKeys, now: Timestamp) -> Option<(KeyId, Schedule)> {
    let waiting = keys.iter().filter(|(_, schedule)| schedule.stage(now) == Stage::Waiting);
    waiting.min_by_key(|(id, schedule)| (schedule.signs_from, *id)).copied()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const INSTANT: Duration = Duration::from_micros(1);

    fn id(number: u128) -> KeyId {
        KeyId::from_uuid(Uuid::from_u128(number))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    fn key(number: u128, from: i64, retired: Option<i64>) -> (KeyId, Schedule) {
        (id(number), Schedule { signs_from: at(from), retired_at: retired.map(at) })
    }

    #[test]
    fn stages_are_half_open() {
        let (_, schedule) = key(1, 10, Some(20));
        let stages = [
            (at(10) - INSTANT, Stage::Waiting),
            (at(10), Stage::Signing),
            (at(20) - INSTANT, Stage::Signing),
            (at(20), Stage::Retired),
        ];
        for (now, stage) in stages {
            assert_eq!(schedule.stage(now), stage, "{now:?}");
        }
        let end = at(20) + HOUR + MARGIN;
        assert!(schedule.verifies_at(end - INSTANT, HOUR) && !schedule.verifies_at(end, HOUR));
        assert!(Schedule::from(at(0)).verifies_at(at(1_000_000_000), HOUR), "never retired");
    }

    /// At every moment exactly one key signs.
    #[test]
    fn a_rotation_leaves_no_gap_and_no_overlap() {
        let now = at(100);
        let KeyRotation::Succeed(plan) = rotate(&[key(1, 0, None)], now, Urgency::Planned, HOUR) else {
            panic!("refused")
        };
        assert_eq!(plan, Succession { from: now + HOUR, successor: None, retire: vec![id(1)] });
        let old = Schedule { retired_at: Some(plan.from), ..Schedule::from(at(0)) };
        let new = Schedule::from(plan.from);
        for moment in [now, plan.from - INSTANT, plan.from, plan.from + INSTANT] {
            assert_ne!(old.signs_at(moment), new.signs_at(moment), "{moment:?}");
        }
    }

    #[test]
    fn a_second_rotation_waits_for_the_first_unless_it_is_urgent() {
        let keys = [key(1, 0, Some(500)), key(2, 500, None)];
        let under_way = KeyRotation::UnderWay { successor: id(2), from: at(500) };
        assert_eq!(rotate(&keys, at(500) - INSTANT, Urgency::Planned, HOUR), under_way);
        // At this moment it is over, and the next may begin.
        let next = Succession { from: at(500) + HOUR, successor: None, retire: vec![id(2)] };
        assert_eq!(rotate(&keys, at(500), Urgency::Planned, HOUR), KeyRotation::Succeed(next));

        let brought_forward = Succession { from: at(100), successor: Some(id(2)), retire: vec![id(1)] };
        assert_eq!(rotate(&keys, at(100), Urgency::Emergency, HOUR), KeyRotation::Succeed(brought_forward));
        let at_once = Succession { from: at(100), successor: None, retire: vec![id(1)] };
        assert_eq!(rotate(&keys[..1], at(100), Urgency::Emergency, HOUR), KeyRotation::Succeed(at_once));
    }

    #[test]
    fn if_no_key_signs_one_does_at_once() {
        let from = at(100) - MARGIN;
        for urgency in [Urgency::Planned, Urgency::Emergency] {
            let new = Succession { from, successor: None, retire: vec![] };
            assert_eq!(rotate(&[], at(100), urgency, HOUR), KeyRotation::Succeed(new));
            let waiting = Succession { from, successor: Some(id(2)), retire: vec![] };
            assert_eq!(rotate(&[key(2, 500, None)], at(100), urgency, HOUR), KeyRotation::Succeed(waiting));
        }
        assert!(Schedule::at_once(at(100)).signs_at(from), "on a replica whose clock is behind, too");
    }

    #[test]
    fn after_a_revocation_one_key_signs() {
        let now = at(100);
        let successor =
            |successor| AfterRevocation::Succeed(Succession { from: now - MARGIN, successor, retire: vec![] });
        // The one that signed: a new key, or the one that waits.
        assert_eq!(after_revocation(&[], now), successor(None));
        assert_eq!(after_revocation(&[key(1, 0, Some(50))], now), successor(None));
        assert_eq!(after_revocation(&[key(2, 500, None)], now), successor(Some(id(2))));
        // The one that waited: its predecessor is not retired.
        assert_eq!(after_revocation(&[key(1, 0, Some(500))], now), AfterRevocation::Unretire(id(1)));
        // One that was retired: the others go on as planned.
        assert_eq!(after_revocation(&[key(1, 0, None)], now), AfterRevocation::Unchanged);
        assert_eq!(after_revocation(&[key(1, 0, Some(500)), key(2, 500, None)], now), AfterRevocation::Unchanged);
        assert_eq!(
            after_revocation(&[key(1, 0, Some(500)), key(2, 501, None)], now),
            AfterRevocation::Unretire(id(1)),
            "a gap"
        );
    }
}
