//! Which tokens are over before their time: what whoever verifies them by themselves has to remember. It forgets by itself,
//! because every token runs out.

use std::time::Duration;

use papaya::HashMap;
use papaya::ResizeMode;
use rustc_hash::FxBuildHasher;

use super::epoch::Epoch;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::token::verified::VerifiedToken;

/// What was ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// A session.
    Session {
        /// Which.
        id: SessionId,
        /// Someone else acted as the user in it.
        is_impersonation: bool,
    },
    /// Every session of a user that was opened under an epoch smaller than this one.
    User {
        /// The user.
        user: UserId,
        /// The epoch.
        epoch: i64,
        /// The one session that goes on.
        spared: Option<SessionId>,
    },
    /// Every session of the project that was opened under an epoch smaller than this one.
    Project {
        /// The epoch.
        epoch: i64,
    },
    /// Every token that was signed with this key.
    SigningKey(KeyId),
    /// Whatever a service with this key is listening to.
    ServerKey(KeyId),
}

/// A genuine token, as far as this question goes.
#[derive(Clone, Copy, Debug)]
pub struct Bearer<'a> {
    /// Its project.
    pub project: &'a ProjectId,
    /// Its user.
    pub user: &'a UserId,
    /// Its session.
    pub session: SessionId,
    /// The epoch that its session was opened under.
    pub epoch: Epoch,
    /// The key that signed it.
    pub key: KeyId,
}

impl<'a> From<&'a VerifiedToken> for Bearer<'a> {
    fn from(token: &'a VerifiedToken) -> Self {
        let [project, user] = token.epoch();
        let epoch = Epoch { project, user };
        Self { project: token.project(), user: token.user(), session: token.session(), epoch, key: token.key() }
    }
}

/// A moment on a clock that only goes forward: the time since some beginning, by the caller's reckoning.
pub type Elapsed = Duration;

/// What has ended, and is to be remembered. Entries may come in any order, and more than once.
///
/// Whoever asks takes no lock and waits for nobody, whatever is taken in meanwhile. A session takes some 60 bytes.
#[derive(Debug)]
pub struct RevokedSet {
    /// Each with the second until which it is remembered. Their ids are random, and ours: nobody chooses where they fall.
    sessions: HashMap<SessionId, u32, FxBuildHasher>,
    users: HashMap<(ProjectId, UserId), UserCutoff>,
    projects: HashMap<ProjectId, ProjectCutoff>,
    keys: HashMap<KeyId, u32>,
}

/// A smaller epoch than this is over.
#[derive(Clone, Copy, Debug)]
struct ProjectCutoff {
    epoch: i64,
    until: u32,
}

/// All cut-offs of a user in one: only the one with the greatest epoch can spare anyone that the others do not end.
#[derive(Clone, Copy, Debug)]
struct UserCutoff {
    /// The greatest epoch, and whom it spares.
    epoch: i64,
    spared: Option<SessionId>,
    /// The greatest epoch among those that do not spare that session.
    epoch_of_spared: i64,
    until: u32,
}

impl Default for RevokedSet {
    fn default() -> Self {
        // Grown bit by bit, a map of many entries would be in two halves most of the time, and each question be asked of both:
        // with a million, that takes thirty times as long. Whoever adds to it waits a moment now and then; nobody else does.
        const MODE: ResizeMode = ResizeMode::Blocking;
        Self {
            sessions: HashMap::builder().resize_mode(MODE).hasher(FxBuildHasher).build(),
            users: HashMap::builder().resize_mode(MODE).build(),
            projects: HashMap::builder().resize_mode(MODE).build(),
            keys: HashMap::builder().resize_mode(MODE).build(),
        }
    }
}

impl RevokedSet {
    /// Takes in what has ended, to be remembered until that second.
    pub fn insert(&self, project: &ProjectId, ended: &RevocationTarget, until: Elapsed) {
        let until = ceil_seconds(until);
        match ended {
            RevocationTarget::Session { id, .. } => {
                self.sessions.pin().update_or_insert(*id, |known| until.max(*known), until);
            }
            RevocationTarget::User { user, epoch, spared } => {
                let cut = UserCutoff { epoch: *epoch, spared: *spared, epoch_of_spared: i64::MIN, until };
                let key = (project.clone(), user.clone());
                self.users.pin().update_or_insert(key, |known| known.joined(cut), cut);
            }
            RevocationTarget::Project { epoch } => {
                let cut = ProjectCutoff { epoch: *epoch, until };
                self.projects.pin().update_or_insert(project.clone(), |known| known.joined(cut), cut);
            }
            RevocationTarget::SigningKey(key) | RevocationTarget::ServerKey(key) => {
                self.keys.pin().update_or_insert(*key, |known| until.max(*known), until);
            }
        }
    }

    /// Whether a token is over.
    pub fn has(&self, bearer: &Bearer<'_>) -> bool {
        let Bearer { project, user, session, epoch, key } = bearer;
        self.sessions.pin().contains_key(session)
            || self.has_key(*key)
            || self.projects.pin().get(*project).is_some_and(|cut| epoch.project < cut.epoch)
            // Most of the time nobody has ended everything at once, and then the key need not be put together.
            || (!self.users.is_empty()
                && self.users.pin().get(&((*project).clone(), (*user).clone())).is_some_and(|cut| cut.ends(*session, epoch.user)))
    }

    /// Whether a key was revoked.
    pub fn has_key(&self, key: KeyId) -> bool {
        self.keys.pin().contains_key(&key)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.sessions.pin().clear();
        self.users.pin().clear();
        self.projects.pin().clear();
        self.keys.pin().clear();
    }

    /// Forgets what no token outlives.
    pub fn forget(&self, now: Elapsed) {
        let now = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        self.sessions.pin().retain(|_, until| now < *until);
        self.users.pin().retain(|_, cut| now < cut.until);
        self.projects.pin().retain(|_, cut| now < cut.until);
        self.keys.pin().retain(|_, until| now < *until);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.sessions.len() + self.users.len() + self.projects.len() + self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ProjectCutoff {
    fn joined(self, other: Self) -> Self {
        Self { epoch: self.epoch.max(other.epoch), until: self.until.max(other.until) }
    }
}

impl UserCutoff {
    fn ends(&self, session: SessionId, epoch: i64) -> bool {
        let least = if self.spared == Some(session) { self.epoch_of_spared } else { self.epoch };
        epoch < least
    }

    fn joined(self, other: Self) -> Self {
        let (greater, smaller) = if self.epoch >= other.epoch { (self, other) } else { (other, self) };
        // What the smaller one says of the session that the greater one spares.
        let of_spared = if smaller.spared == greater.spared { smaller.epoch_of_spared } else { smaller.epoch };
        Self {
            epoch_of_spared: greater.epoch_of_spared.max(of_spared),
            until: greater.until.max(smaller.until),
            ..greater
        }
    }
}

/// Whole seconds, rounded up: rather remembered a second too long.
pub fn ceil_seconds(moment: Elapsed) -> u32 {
    let up = moment.as_secs() + u64::from(moment.subsec_nanos() > 0);
    u32::try_from(up).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::clock::Timestamp;

    fn project() -> ProjectId {
        ProjectId::parse("demo").expect("a name")
    }

    fn user(name: &str) -> UserId {
        UserId::parse(name).expect("an id")
    }

    fn session(at: i64) -> SessionId {
        clock::new_session_id(Timestamp::from_seconds(at))
    }

    fn ended(id: SessionId) -> RevocationTarget {
        RevocationTarget::Session { id, is_impersonation: false }
    }

    fn key() -> KeyId {
        KeyId::from_uuid(clock::new_uuid())
    }

    fn has(set: &RevokedSet, name: &str, session: SessionId, epoch: [i64; 2], key: KeyId) -> bool {
        let epoch = Epoch { project: epoch[0], user: epoch[1] };
        set.has(&Bearer { project: &project(), user: &user(name), session, epoch, key })
    }

    const UNTIL: Elapsed = Duration::from_secs(10);

    #[test]
    fn a_session_is_remembered_until_no_token_of_it_lives() {
        let (set, one, key) = (RevokedSet::default(), session(1), key());
        set.insert(&project(), &ended(one), UNTIL);
        set.insert(&project(), &ended(one), UNTIL + Duration::from_millis(1));
        set.insert(&project(), &ended(one), UNTIL);
        assert!(has(&set, "ada", one, [0, 0], key) && !has(&set, "ada", session(1), [0, 0], key));
        set.forget(UNTIL);
        assert!(has(&set, "ada", one, [0, 0], key), "the longest term counts");
        set.forget(UNTIL + Duration::from_secs(1));
        assert!(!has(&set, "ada", one, [0, 0], key) && set.is_empty());
    }

    #[test]
    fn cut_offs_end_smaller_epochs_and_keys_their_tokens() {
        let (set, one, ours) = (RevokedSet::default(), session(1), key());
        set.insert(&project(), &RevocationTarget::User { user: user("ada"), epoch: 3, spared: None }, UNTIL);
        assert!(has(&set, "ada", one, [0, 2], ours) && !has(&set, "ada", one, [0, 3], ours));
        assert!(!has(&set, "bob", one, [0, 0], ours));
        set.insert(&project(), &RevocationTarget::Project { epoch: 1 }, UNTIL);
        set.insert(&project(), &RevocationTarget::Project { epoch: 0 }, UNTIL);
        assert!(has(&set, "bob", one, [0, 0], ours) && !has(&set, "bob", one, [1, 0], ours));
        set.insert(&project(), &RevocationTarget::SigningKey(ours), UNTIL);
        assert!(has(&set, "bob", one, [1, 0], ours) && !has(&set, "bob", one, [1, 0], key()));
        set.forget(UNTIL);
        assert!(set.is_empty());
    }

    /// Against the plain reading: a token is over when any cut-off has a greater epoch and does not spare it.
    #[test]
    fn cut_offs_of_one_user_join_in_any_order() {
        let (early, late) = (session(1), session(2));
        let all = [(1, None), (1, Some(early)), (2, Some(early)), (3, Some(early)), (3, Some(late)), (4, None)];
        for bits in 0_u32..1 << all.len() {
            let chosen: Vec<_> = (0..all.len()).filter(|at| bits >> at & 1 == 1).map(|at| all[at]).collect();
            // An epoch is raised once, and so has one session spared.
            if chosen.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                continue;
            }
            let orders = [chosen.clone(), chosen.iter().rev().copied().collect()];
            for order in orders {
                let set = RevokedSet::default();
                for (epoch, spared) in order {
                    set.insert(&project(), &RevocationTarget::User { user: user("ada"), epoch, spared }, UNTIL);
                }
                for token in [early, late, session(3)] {
                    for epoch in 0..5 {
                        let over = chosen.iter().any(|(least, spared)| epoch < *least && *spared != Some(token));
                        let says = has(&set, "ada", token, [0, epoch], key());
                        assert_eq!(says, over, "{chosen:?} {epoch}");
                    }
                }
            }
        }
    }
}
