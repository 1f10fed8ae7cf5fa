//! What becomes of a presented refresh token.
//!
//! A session's refresh tokens form a chain. The *head* is the present one; presenting it makes the next generation.
//! Presenting an older one R is judged by the age of R's present successor:
//!
//! 1. within the grace: that same successor, even if it is in use already. Lost answers, retries and tabs land here;
//! 2. later, and the successor was never used: a new successor, the next *attempt*; the old one is superseded;
//! 3. later, and the successor was used, or R is itself superseded: two parties hold the chain.

use std::time::Duration;

use super::policy::LateRepeat;
use super::policy::Policy;
use crate::clock::Timestamp;
use crate::token::refresh::Link;

/// The most rotations within one grace. A client that refreshes so often is out of control; it is asked to wait, and
/// the record of issues stays bounded.
pub const ROTATIONS_MAX: usize = 32;

/// A session's chain, as far as it still matters: the last links with the moment each was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The head's generation.
    generation: u32,
    /// The last generations' adopted attempts and times of issue, the head's last. Never empty.
    issues: Vec<Issue>,
}

/// One generation's adopted attempt, and when it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The attempt: how many before it were superseded unused.
    pub attempt: u32,
    /// The moment of issue.
    pub issued_at: Timestamp,
}

/// The decision on a presented token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Answer with the successor that was issued before; the chain stays as it is.
    Repeated(Link),
    /// Answer with a new successor; the chain is now this one.
    Advanced(Link, Chain),
    /// Two parties hold the chain: the session ends.
    Reused,
    /// More rotations within the grace than any honest client makes: wait.
    Throttled(Duration),
    /// A token of the future, which only a database restored from a backup can meet. Nothing changes.
    Unknown,
}

impl Chain {
    /// The chain of a new session: its first token is the head.
    pub fn start(now: Timestamp) -> Self {
        Self { generation: 0, issues: vec![Issue { attempt: 0, issued_at: now }] }
    }

    /// Takes a chain from the database; `None` when it cannot be one.
    pub fn from_parts(generation: u32, issues: Vec<Issue>) -> Option<Self> {
        let fits = !issues.is_empty() && u32::try_from(issues.len()).is_ok_and(|count| count - 1 <= generation);
        fits.then_some(Self { generation, issues })
    }

    /// The head's generation.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The recorded issues, the head's last.
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// The present token's place.
    pub fn head(&self) -> Link {
        Link { generation: self.generation, attempt: self.issues[self.issues.len() - 1].attempt }
    }

    /// The issue of a generation, while it is on record.
    fn issue(&self, generation: u32) -> Option<Issue> {
        let age = usize::try_from(self.generation.checked_sub(generation)?).ok()?;
        let at = self.issues.len().checked_sub(age + 1)?;
        Some(self.issues[at])
    }

    /// The chain with a next generation, forgetting what no longer matters: what is kept are the issues within the
    /// grace, and one before them, whose attempt tells a predecessor from one that was superseded.
    fn with_next_generation(&self, now: Timestamp, grace: Duration) -> Self {
        let mut issues = self.issues.clone();
        issues.push(Issue { attempt: 0, issued_at: now });
        let over = issues[1..issues.len() - 1].iter().take_while(|issue| issue.issued_at + grace <= now).count();
        issues.drain(..over);
        Self { generation: self.generation + 1, issues }
    }

    /// The chain with another attempt at its head.
    fn with_next_attempt(&self, now: Timestamp) -> Self {
        let mut issues = self.issues.clone();
        let head = issues.len() - 1;
        issues[head] = Issue { attempt: issues[head].attempt + 1, issued_at: now };
        Self { generation: self.generation, issues }
    }
}

/// Judges a genuine token of a live session.
pub fn decide(chain: &Chain, presented: Link, now: Timestamp, policy: &Policy) -> Rotation {
    let head = chain.head();
    if presented == head {
        return advance(chain, now, policy);
    }
    let ahead = (presented.generation, presented.attempt) > (head.generation, head.attempt);
    if ahead || head.generation == u32::MAX || head.attempt == u32::MAX {
        return Rotation::Unknown;
    }
    // Within the head's generation an earlier attempt is a superseded one. Off the record is long past the grace.
    let adopted = chain.issue(presented.generation).filter(|issue| issue.attempt == presented.attempt);
    let (true, Some(_)) = (presented.generation < head.generation, adopted) else { return Rotation::Reused };
    let Some(successor) = chain.issue(presented.generation + 1) else { return Rotation::Reused };

    if now < successor.issued_at + policy.refresh_grace {
        let link = Link { generation: presented.generation + 1, attempt: successor.attempt };
        return Rotation::Repeated(link);
    }
    // The head was never used: using it would have made the next generation.
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
        // The second one is the oldest that is kept for the grace's sake; once it is over there is room again.
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

    /// A chain under the rule, as the store would keep it.
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
            match decide(&self.chain, link(generation, attempt), self.now, &self.policy) {
                Rotation::Repeated(link) => Some(link),
                Rotation::Advanced(link, next) => {
                    self.chain = next;
                    Some(link)
                }
                Rotation::Reused | Rotation::Throttled(_) | Rotation::Unknown => None,
            }
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
        assert_eq!(decide(&keeper.chain, link(0, 0), keeper.now, &keeper.policy), Rotation::Reused);
    }

    #[test]
    fn a_superseded_token_is_theft_at_once_and_for_ever() {
        let mut keeper = Keeper::new();
        keeper.present(0, 0);
        keeper.wait(GRACE);
        keeper.present(0, 0);
        assert_eq!(decide(&keeper.chain, link(1, 0), keeper.now, &keeper.policy), Rotation::Reused);
        keeper.present(1, 1);
        assert_eq!(decide(&keeper.chain, link(1, 0), keeper.now, &keeper.policy), Rotation::Reused, "a generation on");
        keeper.wait(GRACE);
        keeper.present(2, 0);
        assert_eq!(decide(&keeper.chain, link(1, 0), keeper.now, &keeper.policy), Rotation::Reused, "off the record");
    }

    #[test]
    fn strict_projects_forgive_nothing_late() {
        let mut keeper = Keeper::new();
        keeper.policy.late_repeat = LateRepeat::Theft;
        keeper.present(0, 0);
        keeper.wait(GRACE - TICK);
        assert_eq!(keeper.present(0, 0), Some(link(1, 0)));
        keeper.wait(TICK);
        assert_eq!(decide(&keeper.chain, link(0, 0), keeper.now, &keeper.policy), Rotation::Reused);
    }

    /// Two holders of one token take turns, each as long after the other as the bits say, and adopt what they are given.
    #[test]
    fn an_owner_and_a_thief_cannot_both_go_on_outside_the_grace() {
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
            // Each has had a turn after the other's at most once: the second change of turn is the last.
            let both = turns & 0xfff != 0 && turns & 0xfff != 0xfff;
            let changes = (1..12).filter(|turn| turns >> turn & 1 != turns >> (turn - 1) & 1).count();
            assert!(!both || changes < 2 || last.is_some(), "{turns:012b}");
        }
    }

    #[test]
    fn the_record_stays_bounded_and_the_wait_is_told() {
        let mut keeper = Keeper::new();
        let mut generation = 0;
        while let Some(given) = keeper.present(generation, 0) {
            generation = given.generation;
            keeper.wait(Duration::from_secs(1));
            assert!(generation < 100, "nothing stopped it");
        }
        assert!(keeper.chain.issues().len() <= ROTATIONS_MAX);
        let Rotation::Throttled(wait) = decide(&keeper.chain, link(generation, 0), keeper.now, &keeper.policy) else {
            panic!("asked to wait")
        };
        assert!(wait > Duration::ZERO && wait <= GRACE);
        assert_eq!(keeper.present(0, 0), Some(link(1, 0)), "repeats are not rotations");
        keeper.wait(wait);
        assert_eq!(keeper.present(generation, 0), Some(link(generation + 1, 0)));
    }

    #[test]
    fn a_slow_client_leaves_two_issues_on_record() {
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
            assert_eq!(decide(&keeper.chain, ahead, START, &keeper.policy), Rotation::Unknown);
        }
    }

    #[test]
    fn a_chain_from_the_database_is_checked() {
        let issue = Issue { attempt: 0, issued_at: START };
        assert!(Chain::from_parts(0, vec![]).is_none());
        assert!(Chain::from_parts(0, vec![issue; 2]).is_none());
        assert!(Chain::from_parts(1, vec![issue; 2]).is_some());
    }
}
