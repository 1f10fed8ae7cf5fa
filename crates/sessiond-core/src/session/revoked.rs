//! The set of revocations, for verifiers that do not call sessiond per request. Bounded in time, because every token expires.

use std::sync::OnceLock;
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

/// What a revocation revokes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// A session.
    Session {
        /// The session.
        id: SessionId,
        /// Whether it is an impersonation.
        is_impersonation: bool,
    },
    /// All sessions of a user that were opened under a smaller epoch.
    User {
        /// The user.
        user: UserId,
        /// The epoch.
        epoch: i64,
        /// A session that is not revoked.
        spared: Option<SessionId>,
    },
    /// All sessions of the project that were opened under a smaller epoch.
    Project {
        /// The epoch.
        epoch: i64,
    },
    /// All tokens signed with this key.
    SigningKey(KeyId),
    /// A server key: closes the streams of its services.
    ServerKey(KeyId),
    /// The access tokens of a session that were issued under a smaller epoch of its own. The session continues.
    Superseded {
        /// The session.
        id: SessionId,
        /// The session's epoch.
        session_epoch: i64,
    },
}

/// Tokens of a project of which a verifier cannot know whether they are revoked: the revocation is of a kind that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Withheld {
    /// Those of a session.
    Session(SessionId),
    /// Those of a user.
    User(UserId),
    /// Those signed with a key.
    SigningKey(KeyId),
    /// All of them.
    Project,
}

/// The part of a verified token that decides whether it is revoked.
#[derive(Clone, Copy, Debug)]
pub struct Bearer<'a> {
    /// The project.
    pub project: &'a ProjectId,
    /// The user.
    pub user: &'a UserId,
    /// The session.
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

/// A moment on the caller's monotonic clock.
pub type Elapsed = Duration;

/// A set of revocations. Entries may be inserted in any order, and repeatedly.
///
/// Reads are wait-free, also during inserts. A session takes about 60 bytes.
#[derive(Debug)]
pub struct RevokedSet {
    /// Each with the second at which it is removed. A fast hash is safe, because no one else chooses the ids.
    sessions: HashMap<SessionId, u32, FxBuildHasher>,
    users: HashMap<(ProjectId, UserId), UserCutoff>,
    projects: HashMap<ProjectId, ProjectCutoff>,
    keys: HashMap<KeyId, u32>,
    /// Created with the first one, because many installations never have any.
    superseded: OnceLock<HashMap<SessionId, SessionCutoff, FxBuildHasher>>,
    /// Of a verifier's own project. Created with the first one.
    withheld: OnceLock<HashMap<Withheld, u32>>,
}

/// A map that is resized incrementally has two tables most of the time, and a lookup searches both: with a million entries that is
/// thirty times slower. Blocking inserts now and then does not affect reads.
const MODE: ResizeMode = ResizeMode::Blocking;

/// Supersedes the tokens of smaller epochs of a session.
#[derive(Clone, Copy, Debug)]
struct SessionCutoff {
    epoch: i64,
    until: u32,
}

/// Revokes smaller epochs.
#[derive(Clone, Copy, Debug)]
struct ProjectCutoff {
    epoch: i64,
    until: u32,
}

/// All revocations of a user's sessions, merged: only the one with the greatest epoch can spare a session that the others do not
/// revoke.
#[derive(Clone, Copy, Debug)]
struct UserCutoff {
    /// The greatest epoch, and the session that it spares.
    epoch: i64,
    spared: Option<SessionId>,
    /// The greatest epoch among those that do not spare that session.
    epoch_for_spared: i64,
    until: u32,
}

impl Default for RevokedSet {
    fn default() -> Self {
        Self {
            sessions: HashMap::builder().resize_mode(MODE).hasher(FxBuildHasher).build(),
            users: HashMap::builder().resize_mode(MODE).build(),
            projects: HashMap::builder().resize_mode(MODE).build(),
            keys: HashMap::builder().resize_mode(MODE).build(),
            superseded: OnceLock::new(),
            withheld: OnceLock::new(),
        }
    }
}

impl RevokedSet {
    /// Inserts a revocation, to be kept until `until`, rounded up to a second.
    pub fn insert(&self, project: &ProjectId, target: &RevocationTarget, until: Elapsed) {
        let until = ceil_seconds(until);
        match target {
            RevocationTarget::Session { id, .. } => {
                self.sessions.pin().update_or_insert(*id, |known| until.max(*known), until);
            }
            RevocationTarget::User { user, epoch, spared } => {
                let cut = UserCutoff { epoch: *epoch, spared: *spared, epoch_for_spared: i64::MIN, until };
                let key = (project.clone(), user.clone());
                self.users.pin().update_or_insert(key, |known| known.merged(cut), cut);
            }
            RevocationTarget::Project { epoch } => {
                let cut = ProjectCutoff { epoch: *epoch, until };
                self.projects.pin().update_or_insert(project.clone(), |known| known.merged(cut), cut);
            }
            RevocationTarget::SigningKey(key) | RevocationTarget::ServerKey(key) => {
                self.keys.pin().update_or_insert(*key, |known| until.max(*known), until);
            }
            RevocationTarget::Superseded { id, session_epoch: epoch } => {
                let cut = SessionCutoff { epoch: *epoch, until };
                let superseded = || HashMap::builder().resize_mode(MODE).hasher(FxBuildHasher).build();
                let superseded = self.superseded.get_or_init(superseded);
                superseded.pin().update_or_insert(*id, |known| known.merged(cut), cut);
            }
        }
    }

    /// Records that it is unknown whether these tokens of the verifier's project are revoked, until `until`.
    pub fn withhold(&self, withheld: Withheld, until: Elapsed) {
        let until = ceil_seconds(until);
        let all = self.withheld.get_or_init(|| HashMap::builder().resize_mode(MODE).build());
        all.pin().update_or_insert(withheld, |known| until.max(*known), until);
    }

    /// Whether a token of the session with this `session_epoch` is superseded.
    pub fn has_superseded(&self, session: SessionId, session_epoch: i64) -> bool {
        let superseded = self.superseded.get().filter(|superseded| !superseded.is_empty());
        superseded.is_some_and(|all| all.pin().get(&session).is_some_and(|cut| session_epoch < cut.epoch))
    }

    /// Whether it is unknown if a token of the verifier's project is revoked.
    pub fn withholds(&self, bearer: &Bearer<'_>) -> bool {
        let Some(withheld) = self.withheld.get().filter(|withheld| !withheld.is_empty()) else { return false };
        let withheld = withheld.pin();
        withheld.contains_key(&Withheld::Project)
            || withheld.contains_key(&Withheld::Session(bearer.session))
            || withheld.contains_key(&Withheld::SigningKey(bearer.key))
            || withheld.contains_key(&Withheld::User(bearer.user.clone()))
    }

    /// Whether a token is revoked.
    pub fn has(&self, bearer: &Bearer<'_>) -> bool {
        let Bearer { project, user, session, epoch, key } = bearer;
        self.sessions.pin().contains_key(session)
            || self.has_key(*key)
            || self.projects.pin().get(*project).is_some_and(|cut| epoch.project < cut.epoch)
            // Usually empty, and then the key need not be built.
            || (!self.users.is_empty()
                && self.users.pin().get(&((*project).clone(), (*user).clone())).is_some_and(|cut| cut.revokes(*session, epoch.user)))
    }

    /// Whether a key was revoked.
    pub fn has_key(&self, key: KeyId) -> bool {
        self.keys.pin().contains_key(&key)
    }

    /// Removes all entries.
    pub fn clear(&self) {
        self.sessions.pin().clear();
        self.users.pin().clear();
        self.projects.pin().clear();
        self.keys.pin().clear();
        if let Some(superseded) = self.superseded.get() {
            superseded.pin().clear();
        }
        if let Some(withheld) = self.withheld.get() {
            withheld.pin().clear();
        }
    }

    /// Removes entries that every token has outlived.
    pub fn forget(&self, now: Elapsed) {
        let now = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        self.sessions.pin().retain(|_, until| now < *until);
        self.users.pin().retain(|_, cut| now < cut.until);
        self.projects.pin().retain(|_, cut| now < cut.until);
        self.keys.pin().retain(|_, until| now < *until);
        if let Some(superseded) = self.superseded.get() {
            superseded.pin().retain(|_, cut| now < cut.until);
        }
        if let Some(withheld) = self.withheld.get() {
            withheld.pin().retain(|_, until| now < *until);
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        let revoked = self.sessions.len() + self.users.len() + self.projects.len() + self.keys.len();
        revoked + self.superseded.get().map_or(0, HashMap::len) + self.withheld.get().map_or(0, HashMap::len)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl SessionCutoff {
    fn merged(self, other: Self) -> Self {
        Self { epoch: self.epoch.max(other.epoch), until: self.until.max(other.until) }
    }
}

impl ProjectCutoff {
    fn merged(self, other: Self) -> Self {
        Self { epoch: self.epoch.max(other.epoch), until: self.until.max(other.until) }
    }
}

impl UserCutoff {
    fn revokes(&self, session: SessionId, epoch: i64) -> bool {
        let least = if self.spared == Some(session) { self.epoch_for_spared } else { self.epoch };
        epoch < least
    }

    fn merged(self, other: Self) -> Self {
        let (greater, smaller) = if self.epoch >= other.epoch { (self, other) } else { (other, self) };
        // The epoch of the smaller one for the session that the greater one spares.
        let of_spared = if smaller.spared == greater.spared { smaller.epoch_for_spared } else { smaller.epoch };
        Self {
            epoch_for_spared: greater.epoch_for_spared.max(of_spared),
            until: greater.until.max(smaller.until),
            ..greater
        }
    }
}

/// Whole seconds, rounded up: better kept a second too long.
pub fn ceil_seconds(moment: Elapsed) -> u32 {
    let up = moment.as_secs() + u64::from(moment.subsec_nanos() > 0);
    u32::try_from(up).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::clock::Timestamp;
    use crate::id::Bucket;

    fn project() -> ProjectId {
        ProjectId::parse("demo").expect("a name")
    }

    fn user(name: &str) -> UserId {
        UserId::parse(name).expect("an id")
    }

    fn session(at: i64) -> SessionId {
        clock::new_session_id(Timestamp::from_seconds(at), Bucket::from_number(1))
    }

    fn revoked_session(id: SessionId) -> RevocationTarget {
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
    fn a_session_is_kept_until_its_tokens_have_expired() {
        let (set, one, key) = (RevokedSet::default(), session(1), key());
        set.insert(&project(), &revoked_session(one), UNTIL);
        set.insert(&project(), &revoked_session(one), UNTIL + Duration::from_millis(1));
        set.insert(&project(), &revoked_session(one), UNTIL);
        assert!(has(&set, "ada", one, [0, 0], key) && !has(&set, "ada", session(1), [0, 0], key));
        set.forget(UNTIL);
        assert!(has(&set, "ada", one, [0, 0], key), "the latest time counts");
        set.forget(UNTIL + Duration::from_secs(1));
        assert!(!has(&set, "ada", one, [0, 0], key) && set.is_empty());
    }

    #[test]
    fn epochs_revoke_smaller_ones_and_keys_their_tokens() {
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

    #[test]
    fn superseded_tokens_are_those_of_a_smaller_epoch() {
        let (set, one, other) = (RevokedSet::default(), session(1), session(2));
        let supersede = |session_epoch, until| {
            let target = RevocationTarget::Superseded { id: one, session_epoch };
            set.insert(&project(), &target, until);
        };
        supersede(2, UNTIL);
        supersede(1, UNTIL + Duration::from_secs(1));
        assert!(set.has_superseded(one, 0) && set.has_superseded(one, 1) && !set.has_superseded(one, 2));
        assert!(!set.has_superseded(other, 0) && !has(&set, "ada", one, [0, 0], key()), "the session continues");
        assert_eq!(set.len(), 1);
        set.forget(UNTIL);
        assert!(set.has_superseded(one, 1), "the latest time counts");
        set.forget(UNTIL + Duration::from_secs(1));
        assert!(!set.has_superseded(one, 0) && set.is_empty());
    }

    #[test]
    fn what_is_withheld_concerns_only_the_tokens_that_it_names() {
        let (ours, one, other) = (key(), session(1), session(2));
        let withholds = |set: &RevokedSet, name: &str, session, key| {
            let epoch = Epoch { project: 0, user: 0 };
            set.withholds(&Bearer { project: &project(), user: &user(name), session, epoch, key })
        };
        for (withheld, expected) in [
            (Withheld::Session(one), [true, false, false]),
            (Withheld::User(user("ada")), [true, true, false]),
            (Withheld::SigningKey(ours), [true, false, true]),
            (Withheld::Project, [true, true, true]),
        ] {
            let set = RevokedSet::default();
            set.withhold(withheld.clone(), UNTIL);
            let found = [("ada", one, ours), ("ada", other, key()), ("bob", other, ours)]
                .map(|(name, session, key)| withholds(&set, name, session, key));
            assert_eq!(found, expected, "{withheld:?}");
            assert!(!has(&set, "ada", one, [0, 0], ours) && set.len() == 1);
            set.forget(UNTIL);
            assert!(set.is_empty() && !withholds(&set, "ada", one, ours));
        }
    }

    /// Compared with the definition: a token is revoked if any revocation has a greater epoch and does not spare its session.
    #[test]
    fn revocations_of_one_user_merge_in_any_order() {
        let (early, late) = (session(1), session(2));
        let all = [(1, None), (1, Some(early)), (2, Some(early)), (3, Some(early)), (3, Some(late)), (4, None)];
        for bits in 0_u32..1 << all.len() {
            let chosen: Vec<_> = (0..all.len()).filter(|at| bits >> at & 1 == 1).map(|at| all[at]).collect();
            // An epoch is raised once, with at most one spared session.
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
                        let expected = chosen.iter().any(|(least, spared)| epoch < *least && *spared != Some(token));
                        let revoked = has(&set, "ada", token, [0, epoch], key());
                        assert_eq!(revoked, expected, "{chosen:?} {epoch}");
                    }
                }
            }
        }
    }
}
