//! When a key does what, and what becomes of a project's keys when one is rotated or revoked. Values in, a plan out: who
//! holds the lock carries it out.
//!
//! A key *waits* (published, so that verifiers get to know it), *signs*, and is *retired* (no longer signs, and verifies
//! until its last token expired). At each moment one key signs: the successor begins in the instant in which the others retire.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::id::KeyId;

/// How far the clocks of replicas and operators may be apart, and how long a change in the database may take beyond its
/// due time to be known to all.
pub const MARGIN: Duration = Duration::from_secs(60);

/// When a key does what. A key is published before it signs, and verifies for as long as its tokens last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// From when on it signs (or makes refresh tokens).
    pub signs_from: Timestamp,
    /// From when on it no longer does. Half-open: at this moment exactly, another one signs.
    pub retired_at: Option<Timestamp>,
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is published, and does not sign yet.
    Waiting,
    /// It signs.
    Signing,
    /// It signs no longer.
    Retired,
}

impl Schedule {
    /// Of a key that signs from this moment on.
    pub const fn from(signs_from: Timestamp) -> Self {
        Self { signs_from, retired_at: None }
    }

    /// Of a key that has to sign at once, because no other does: on a replica whose clock is behind, too.
    pub fn at_once(now: Timestamp) -> Self {
        Self::from(now - MARGIN)
    }

    /// Where the key is at this moment.
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

    /// Whether a token that the key signed may still be good at this moment: see [`Schedule::verifies_until`].
    pub fn verifies_at(&self, now: Timestamp, token_ttl_max: Duration) -> bool {
        self.verifies_until(token_ttl_max).is_none_or(|end| now < end)
    }

    /// When the longest-lived token has expired that a replica may have signed before it knew that the key was retired;
    /// `None` as long as nobody has retired it. Half-open: at this moment exactly, it verifies no longer.
    pub fn verifies_until(&self, token_ttl_max: Duration) -> Option<Timestamp> {
        self.retired_at.map(|retired| retired + token_ttl_max + MARGIN)
    }
}

/// The keys of one project and purpose that are not revoked.
pub type ScheduledKeys = [(KeyId, Schedule)];

/// From one moment on, one key signs alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The moment.
    pub from: Timestamp,
    /// Who signs from then on: a key that waits already, or a new one.
    pub successor: Option<KeyId>,
    /// Who signs until then.
    pub retire: Vec<KeyId>,
}

/// How soon a new key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Once every verifier knows it, so that nobody notices.
    Planned,
    /// At once. Verifiers with an older JWKS refuse its tokens until they fetch it again.
    Emergency,
}

/// What a wish to rotate comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRotation {
    /// The keys change.
    Succeed(Succession),
    /// A key is waiting already.
    UnderWay {
        /// Which.
        successor: KeyId,
        /// When it begins to sign.
        from: Timestamp,
    },
}

/// What the end of one key means for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterRevocation {
    /// Nothing: another key signs, and goes on to.
    Unchanged,
    /// It was the successor of a key that would have retired, and now signs on.
    Unretire(KeyId),
    /// Nobody would sign: so an successor does, at once.
    Succeed(Succession),
}

/// Plans the change to a new key. A planned one signs after the `lead`, the time that verifiers take to learn of it.
///
/// With a key waiting, [`Urgency::Emergency`] makes that one sign instead: some verifiers know it already.
pub fn rotate(keys: &ScheduledKeys, now: Timestamp, urgency: Urgency, lead: Duration) -> KeyRotation {
    let retire: Vec<KeyId> = keys.iter().filter(|(_, schedule)| schedule.signs_at(now)).map(|(id, _)| *id).collect();
    match (urgency, waiting(keys, now)) {
        // Nobody signs: waiting would only prolong it.
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

/// Plans what follows when a key is taken away; `keys` are the others.
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

/// The key that is the next to sign.
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
    fn a_key_begins_and_ends_to_the_instant() {
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

    /// Whatever the moment, one key signs: the successor begins in the instant in which the other retires.
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
    fn where_nobody_signs_somebody_does_at_once() {
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
    fn a_key_that_is_taken_away_leaves_one_that_signs() {
        let now = at(100);
        let successor =
            |successor| AfterRevocation::Succeed(Succession { from: now - MARGIN, successor, retire: vec![] });
        // The one that signed: a new key, or the one that waits.
        assert_eq!(after_revocation(&[], now), successor(None));
        assert_eq!(after_revocation(&[key(1, 0, Some(50))], now), successor(None));
        assert_eq!(after_revocation(&[key(2, 500, None)], now), successor(Some(id(2))));
        // The one that waited: whoever was to retire signs on.
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
