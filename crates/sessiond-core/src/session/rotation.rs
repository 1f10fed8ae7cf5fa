//! Rotation of refresh tokens, and detection of reuse.
//!
//! A session's refresh tokens form a chain. The *head* is the current one; presenting it creates the next generation. If an older
//! token R is presented, the decision depends on the age of R's current successor:
//!
//! 1. within the grace: the same successor again, even if it was used already. Causes are lost responses, retries and browser
//!    tabs. From another network or user agent it is reported, and by policy it is theft;
//! 2. later, and the successor was never used: a new successor, the next *attempt*; the old one is superseded;
//! 3. later, and the successor was used, or R itself is superseded: reuse. Two parties hold the chain.

use std::time::Duration;

use super::policy::LateRepeat;
use super::policy::Policy;
use super::policy::RepeatElsewhere;
use crate::clock::Timestamp;
use crate::token::refresh::Link;

/// The most rotations within one grace, which bounds the record of issues. No correct client refreshes that often; it has to
/// wait.
pub const ROTATIONS_MAX: usize = 32;

/// The most repeats of one refresh within its grace.
pub const REPEATS_MAX: u32 = 32;

/// Where a token is presented, compared with the last refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginMatch {
    /// The same network and user agent, as far as known.
    Same,
    /// Another network, or another user agent.
    Elsewhere,
}

/// The repeats of the last refresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeats {
    /// Their number.
    pub count: u32,
    /// Whether one came from elsewhere.
    pub elsewhere: bool,
}

/// The relevant part of a session's chain: the last tokens, and when each was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The head's generation.
    generation: u32,
    /// The current attempts of the last generations, ending with the head's. Never empty.
    issues: Vec<Issue>,
    /// The repeats since the head was issued.
    repeats: Repeats,
}

/// The current attempt of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issue {
    /// How many attempts before it were superseded unused.
    pub attempt: u32,
    /// When it was issued.
    pub issued_at: Timestamp,
}

/// The decision on a presented token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Return the same successor again; the chain counts the repeat.
    Repeated(Link, Chain, RepeatNotice),
    /// Return a new successor; the chain is now this one.
    Advanced(Link, Chain),
    /// Two parties hold the chain: the session ends.
    Reused,
    /// A repeat within the grace from another network or user agent, which is theft by policy: the session ends.
    ReusedElsewhere,
    /// Too many rotations or repeats within the grace: the client has to wait this long.
    Throttled(Duration),
    /// A token that is newer than the head: the database was restored from a backup. Nothing changes.
    Unknown,
}

/// What to report about a repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatNotice {
    /// Nothing: it came from the same place as the refresh.
    None,
    /// It is the first from elsewhere since the refresh.
    FirstElsewhere,
    /// It is from elsewhere, and not the first.
    AnotherElsewhere,
}

impl Chain {
    /// The chain of a new session.
    pub fn start(now: Timestamp) -> Self {
        Self { generation: 0, issues: vec![Issue { attempt: 0, issued_at: now }], repeats: Repeats::default() }
    }

    /// The chain with these parts, from the database; `None` if they are inconsistent.
    pub fn from_parts(generation: u32, issues: Vec<Issue>, repeats: Repeats) -> Option<Self> {
        let fits = !issues.is_empty() && u32::try_from(issues.len()).is_ok_and(|count| count - 1 <= generation);
        fits.then_some(Self { generation, issues, repeats })
    }

    /// The head's generation.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The recorded issues, the head's last.
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// The repeats since the head was issued.
    pub const fn repeats(&self) -> Repeats {
        self.repeats
    }

    /// The position of the current token.
    pub fn head(&self) -> Link {
        Link { generation: self.generation, attempt: self.issues[self.issues.len() - 1].attempt }
    }

    /// The issue of a generation, if it is still recorded.
    fn issue(&self, generation: u32) -> Option<Issue> {
        let age = usize::try_from(self.generation.checked_sub(generation)?).ok()?;
        let at = self.issues.len().checked_sub(age + 1)?;
        Some(self.issues[at])
    }

    /// The chain with the next generation. Keeps the issues within the grace and the one before them, whose attempt tells a
    /// predecessor from a superseded token.
    fn with_next_generation(&self, now: Timestamp, grace: Duration) -> Self {
        let mut issues = self.issues.clone();
        issues.push(Issue { attempt: 0, issued_at: now });
        let over = issues[1..issues.len() - 1].iter().take_while(|issue| issue.issued_at + grace <= now).count();
        issues.drain(..over);
        Self { generation: self.generation + 1, issues, repeats: Repeats::default() }
    }

    /// The chain with another attempt at its head.
    fn with_next_attempt(&self, now: Timestamp) -> Self {
        let mut issues = self.issues.clone();
        let head = issues.len() - 1;
        issues[head] = Issue { attempt: issues[head].attempt + 1, issued_at: now };
        Self { generation: self.generation, issues, repeats: Repeats::default() }
    }

    /// The chain with one more repeat.
    fn with_repeat(&self, origin_match: OriginMatch) -> Self {
        let Repeats { count, elsewhere } = self.repeats;
        let repeats = Repeats { count: count + 1, elsewhere: elsewhere || origin_match == OriginMatch::Elsewhere };
        Self { repeats, ..self.clone() }
    }
}

/// Decides on a genuine token of a live session.
pub fn decide(chain: &Chain, presented: Link, origin_match: OriginMatch, now: Timestamp, policy: &Policy) -> Rotation {
    let head = chain.head();
    if presented == head {
        return advance(chain, now, policy);
    }
    let ahead = (presented.generation, presented.attempt) > (head.generation, head.attempt);
    if ahead || head.generation == u32::MAX || head.attempt == u32::MAX {
        return Rotation::Unknown;
    }
    // In the head's generation, an earlier attempt is superseded. A generation that is not recorded is long past the grace.
    let adopted = chain.issue(presented.generation).filter(|issue| issue.attempt == presented.attempt);
    let (true, Some(_)) = (presented.generation < head.generation, adopted) else { return Rotation::Reused };
    let Some(successor) = chain.issue(presented.generation + 1) else { return Rotation::Reused };

    if now < successor.issued_at + policy.refresh_grace {
        if (origin_match, policy.repeat_elsewhere) == (OriginMatch::Elsewhere, RepeatElsewhere::Theft) {
            return Rotation::ReusedElsewhere;
        }
        if chain.repeats.count >= REPEATS_MAX {
            return Rotation::Throttled((successor.issued_at + policy.refresh_grace).since(now));
        }
        let link = Link { generation: presented.generation + 1, attempt: successor.attempt };
        let notice = match (origin_match, chain.repeats.elsewhere) {
            (OriginMatch::Same, _) => RepeatNotice::None,
            (OriginMatch::Elsewhere, false) => RepeatNotice::FirstElsewhere,
            (OriginMatch::Elsewhere, true) => RepeatNotice::AnotherElsewhere,
        };
        return Rotation::Repeated(link, chain.with_repeat(origin_match), notice);
    }
    // The head was never used; using it would have created the next generation.
    match policy.late_repeat {
        LateRepeat::Forgiven if presented.generation + 1 == head.generation => {
            let next = chain.with_next_attempt(now);
            Rotation::Advanced(next.head(), next)
        }
        LateRepeat::Forgiven | LateRepeat::Theft => Rotation::Reused,
    }
}

fn advance(chain: &Chain, now: Timestamp, policy: &Policy) -> Rotation {
    if chain.generation == u32::MAX {
        return Rotation::Unknown;
    }
    let next = chain.with_next_generation(now, policy.refresh_grace);
    if next.issues.len() > ROTATIONS_MAX {
        // The second issue is the oldest within the grace. It is removed once the grace has passed.
        return Rotation::Throttled((next.issues[1].issued_at + policy.refresh_grace).since(now));
    }
    Rotation::Advanced(next.head(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_seconds(1_000_000);
    const GRACE: Duration = Duration::from_secs(60);
    const TICK: Duration = Duration::from_micros(1);

    fn policy() -> Policy {
        Policy { refresh_grace: GRACE, ..Policy::default() }
    }

    fn link(generation: u32, attempt: u32) -> Link {
        Link { generation, attempt }
    }

    /// Applies decisions to a chain, as the store does.
    struct Keeper {
        chain: Chain,
        now: Timestamp,
        policy: Policy,
    }

    impl Keeper {
        fn new() -> Self {
            Self { chain: Chain::start(START), now: START, policy: policy() }
        }

        fn present(&mut self, generation: u32, attempt: u32) -> Option<Link> {
            match self.decide(generation, attempt, OriginMatch::Same) {
                Rotation::Repeated(link, next, _) | Rotation::Advanced(link, next) => {
                    self.chain = next;
                    Some(link)
                }
                Rotation::Reused | Rotation::ReusedElsewhere | Rotation::Throttled(_) | Rotation::Unknown => None,
            }
        }

        fn decide(&self, generation: u32, attempt: u32, origin_match: OriginMatch) -> Rotation {
            decide(&self.chain, link(generation, attempt), origin_match, self.now, &self.policy)
        }

        fn wait(&mut self, time: Duration) {
            self.now = self.now + time;
        }
    }

    #[test]
    fn within_the_grace_a_predecessor_gets_the_same_successor() {
        let mut keeper = Keeper::new();
        assert_eq!(keeper.present(0, 0), Some(link(1, 0)));
        keeper.wait(GRACE - TICK);
        assert_eq!(keeper.present(0, 0), Some(link(1, 0)), "just before");
        keeper.wait(TICK);
        assert_eq!(keeper.present(0, 0), Some(link(1, 1)), "at exactly the grace it is late");
    }

    #[test]
    fn within_the_grace_even_a_successor_in_use_is_repeated() {
        let mut keeper = Keeper::new();
        for generation in 0..5 {
            assert_eq!(keeper.present(generation, 0), Some(link(generation + 1, 0)));
            keeper.wait(Duration::from_secs(1));
        }
        for generation in 0..5 {
            assert_eq!(keeper.present(generation, 0), Some(link(generation + 1, 0)), "generation {generation}");
        }
    }

    #[test]
    fn late_with_the_successor_unused_gets_the_next_attempt() {
        let mut keeper = Keeper::new();
        keeper.present(0, 0);
        for attempt in 1..5 {
            keeper.wait(GRACE);
            assert_eq!(keeper.present(0, 0), Some(link(1, attempt)), "a client that ignores successors keeps working");
        }
        assert_eq!(keeper.present(1, 4), Some(link(2, 0)));
    }

    #[test]
    fn late_with_the_successor_used_is_theft() {
        let mut keeper = Keeper::new();
        keeper.present(0, 0);
        keeper.present(1, 0);
        keeper.wait(GRACE);
        assert_eq!(keeper.decide(0, 0, OriginMatch::Same), Rotation::Reused);
    }

    #[test]
    fn a_superseded_token_is_always_theft() {
        let mut keeper = Keeper::new();
        keeper.present(0, 0);
        keeper.wait(GRACE);
        keeper.present(0, 0);
        assert_eq!(keeper.decide(1, 0, OriginMatch::Same), Rotation::Reused);
        keeper.present(1, 1);
        assert_eq!(keeper.decide(1, 0, OriginMatch::Same), Rotation::Reused, "in the next generation");
        keeper.wait(GRACE);
        keeper.present(2, 0);
        assert_eq!(keeper.decide(1, 0, OriginMatch::Same), Rotation::Reused, "no longer recorded");
    }

    #[test]
    fn strict_projects_forgive_no_late_repeat() {
        let mut keeper = Keeper::new();
        keeper.policy.late_repeat = LateRepeat::Theft;
        keeper.present(0, 0);
        keeper.wait(GRACE - TICK);
        assert_eq!(keeper.present(0, 0), Some(link(1, 0)));
        keeper.wait(TICK);
        assert_eq!(keeper.decide(0, 0, OriginMatch::Same), Rotation::Reused);
    }

    /// Two holders of one token take turns in the order of the bits, and adopt what they are given.
    #[test]
    fn an_owner_and_a_thief_cannot_both_continue_outside_the_grace() {
        for turns in 0_u32..1 << 12 {
            let mut keeper = Keeper::new();
            let mut holds = [link(0, 0); 2];
            let mut last = None;
            for turn in 0..12 {
                let who = usize::try_from(turns >> turn & 1).expect("a bit");
                let held = holds[who];
                let Some(given) = keeper.present(held.generation, held.attempt) else {
                    last = Some(turn);
                    break;
                };
                holds[who] = given;
                keeper.wait(GRACE);
            }
            // At most one change of turns succeeds; the second is refused.
            let both = turns & 0xfff != 0 && turns & 0xfff != 0xfff;
            let changes = (1..12).filter(|turn| turns >> turn & 1 != turns >> (turn - 1) & 1).count();
            assert!(!both || changes < 2 || last.is_some(), "{turns:012b}");
        }
    }

    #[test]
    fn the_record_is_bounded_and_the_wait_is_returned() {
        let mut keeper = Keeper::new();
        let mut generation = 0;
        while let Some(given) = keeper.present(generation, 0) {
            generation = given.generation;
            keeper.wait(Duration::from_secs(1));
            assert!(generation < 100, "nothing stopped it");
        }
        assert!(keeper.chain.issues().len() <= ROTATIONS_MAX);
        let Rotation::Throttled(wait) = keeper.decide(generation, 0, OriginMatch::Same) else {
            panic!("asked to wait")
        };
        assert!(wait > Duration::ZERO && wait <= GRACE);
        assert_eq!(keeper.present(0, 0), Some(link(1, 0)), "repeats are not rotations");
        keeper.wait(wait);
        assert_eq!(keeper.present(generation, 0), Some(link(generation + 1, 0)));
    }

    #[test]
    fn a_slow_client_leaves_two_issues() {
        let mut keeper = Keeper::new();
        for generation in 0..10 {
            keeper.present(generation, 0);
            keeper.wait(GRACE);
        }
        assert_eq!(keeper.chain.issues().len(), 2);
    }

    #[test]
    fn a_token_from_the_future_changes_nothing() {
        let keeper = Keeper::new();
        for ahead in [link(1, 0), link(0, 1), link(u32::MAX, u32::MAX)] {
            assert_eq!(decide(&keeper.chain, ahead, OriginMatch::Same, START, &keeper.policy), Rotation::Unknown);
        }
    }

    #[test]
    fn a_chain_from_the_database_is_checked() {
        let issue = Issue { attempt: 0, issued_at: START };
        let from_parts = |generation, issues| Chain::from_parts(generation, issues, Repeats::default());
        assert!(from_parts(0, vec![]).is_none());
        assert!(from_parts(0, vec![issue; 2]).is_none());
        assert!(from_parts(1, vec![issue; 2]).is_some());
    }

    #[test]
    fn a_repeat_from_elsewhere_is_reported_once_and_by_policy_is_theft() {
        let mut keeper = Keeper::new();
        keeper.present(0, 0);
        for (origin_match, expected) in [
            (OriginMatch::Same, RepeatNotice::None),
            (OriginMatch::Elsewhere, RepeatNotice::FirstElsewhere),
            (OriginMatch::Same, RepeatNotice::None),
            (OriginMatch::Elsewhere, RepeatNotice::AnotherElsewhere),
        ] {
            let Rotation::Repeated(_, next, notice) = keeper.decide(0, 0, origin_match) else { panic!("repeated") };
            assert_eq!(notice, expected);
            keeper.chain = next;
        }
        keeper.present(1, 0);
        assert_eq!(keeper.chain.repeats(), Repeats::default(), "they belonged to the previous refresh");
        keeper.policy.repeat_elsewhere = RepeatElsewhere::Theft;
        assert_eq!(keeper.decide(1, 0, OriginMatch::Elsewhere), Rotation::ReusedElsewhere);
        assert!(matches!(keeper.decide(1, 0, OriginMatch::Same), Rotation::Repeated(..)));
        assert!(matches!(keeper.decide(2, 0, OriginMatch::Elsewhere), Rotation::Advanced(..)), "no repeat");
    }

    #[test]
    fn repeats_are_bounded_and_end_with_the_grace() {
        let mut keeper = Keeper::new();
        keeper.present(0, 0);
        keeper.wait(Duration::from_secs(1));
        for _ in 0..REPEATS_MAX {
            assert_eq!(keeper.present(0, 0), Some(link(1, 0)));
        }
        assert_eq!(keeper.decide(0, 0, OriginMatch::Same), Rotation::Throttled(GRACE - Duration::from_secs(1)));
        assert!(
            matches!(keeper.decide(1, 0, OriginMatch::Same), Rotation::Advanced(..)),
            "the holder of the successor continues"
        );
        keeper.wait(GRACE);
        assert_eq!(keeper.present(0, 0), Some(link(1, 1)));
    }
}
