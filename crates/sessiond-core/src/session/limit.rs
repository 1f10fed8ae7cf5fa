//! The limit on the live sessions of a user.

use super::policy::Overflow;
use super::policy::SessionLimit;
use crate::clock::Timestamp;
use crate::id::SessionId;

/// A live session that counts toward the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSession {
    /// The id; ids sort by time of creation.
    pub session: SessionId,
    /// When it was last used.
    pub last_used_at: Timestamp,
}

/// The decision on another sign-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Admitted. These sessions are evicted: usually none or one, and several after the limit was lowered.
    Admitted(Vec<SessionId>),
    /// Refused.
    Refused,
}

impl Admission {
    /// The sessions to evict.
    pub fn evicted(&self) -> &[SessionId] {
        match self {
            Self::Admitted(evicted) => evicted,
            Self::Refused => &[],
        }
    }
}

/// Decides on another sign-in of a user with these live sessions, in any order.
pub fn admit(mut live: Vec<LiveSession>, limit: SessionLimit) -> Admission {
    let excess = (live.len() + 1).saturating_sub(usize::try_from(limit.max).unwrap_or(usize::MAX));
    match limit.overflow {
        Overflow::Reject if excess > 0 => return Admission::Refused,
        Overflow::Reject | Overflow::EvictOldest => live.sort_unstable_by_key(|one| one.session),
        Overflow::EvictIdle => live.sort_unstable_by_key(|one| (one.last_used_at, one.session)),
    }
    live.truncate(excess);
    Admission::Admitted(live.into_iter().map(|one| one.session).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::id::Bucket;

    /// In order of creation; the middle one was used least recently.
    fn live() -> Vec<LiveSession> {
        [(1, 30), (2, 10), (3, 20)]
            .map(|(opened, used)| LiveSession {
                session: clock::new_session_id(Timestamp::from_seconds(opened), Bucket::from_number(1)),
                last_used_at: Timestamp::from_seconds(used),
            })
            .into()
    }

    fn admit(live: &[LiveSession], max: u32, overflow: Overflow) -> Admission {
        super::admit(live.to_vec(), SessionLimit { max, overflow })
    }

    #[test]
    fn below_the_limit_no_session_is_evicted() {
        for overflow in [Overflow::Reject, Overflow::EvictOldest, Overflow::EvictIdle] {
            assert_eq!(admit(&live(), 4, overflow), Admission::Admitted(vec![]), "{overflow:?}");
        }
    }

    #[test]
    fn at_the_limit_the_policy_decides() {
        let live = live();
        assert_eq!(admit(&live, 3, Overflow::Reject), Admission::Refused);
        assert_eq!(admit(&live, 3, Overflow::EvictOldest), Admission::Admitted(vec![live[0].session]));
        assert_eq!(admit(&live, 3, Overflow::EvictIdle), Admission::Admitted(vec![live[1].session]));
    }

    #[test]
    fn a_lowered_limit_evicts_several_sessions() {
        let live = live();
        let all_but_newest = vec![live[0].session, live[1].session];
        assert_eq!(admit(&live, 2, Overflow::EvictOldest), Admission::Admitted(all_but_newest));
        let all = vec![live[1].session, live[2].session, live[0].session];
        assert_eq!(admit(&live, 1, Overflow::EvictIdle), Admission::Admitted(all));
    }
}
