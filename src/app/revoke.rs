//! Signing out. It always works: any genuine token of the session ends it, valid or expired, current or older, and it is
//! idempotent. So it is charged to no bucket that others can drain, such as the project's: only the sign-outs per address are
//! limited (`edge::rate`).

use std::collections::HashSet;

use futures_util::future::join_all;

use super::AccessToken;
use super::App;
use super::Client;
use super::Error;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::group::Groups;
use super::keys::Snapshot;
use crate::store;
use crate::store::RefusedAttempt;
use crate::store::Revocation;
use crate::store::Revoked;
use crate::store::SESSIONS_REVOKE;
use crate::store::Store;
use crate::telemetry::request;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::token::refresh::RefreshToken;
use sessiond_core::token::verified::VerifyError;

/// The credentials presented with a sign-out.
#[derive(Default)]
pub struct TokenHolder {
    /// Access tokens.
    pub access: Vec<AccessToken>,
    /// Refresh tokens; `None` for a malformed one.
    pub refresh: Vec<Option<RefreshToken>>,
    /// Whether a server key was presented, which this method does not accept.
    pub server_key: bool,
}

/// Sign-outs, carried out in groups.
pub(super) type SignOuts = Groups<SignOut, SignedOut>;

/// The sessions that one request ends.
type SignOut = Vec<Revocation>;

/// What a group has done for a request.
pub(super) struct SignedOut {
    /// The sessions that were live until now. The others had ended before, or are locked.
    ended: HashSet<(ProjectId, SessionId)>,
    /// Whether another transaction has locked a session, so that the request must be carried out alone.
    has_locked: bool,
}

/// The session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// Whether it had ended before this call.
    pub already: bool,
}

/// A token that was presented.
enum Presented {
    Access(AccessToken),
    /// `None` for a malformed one.
    Refresh(Option<RefreshToken>),
}

impl Presented {
    /// The refusal of one whose key does not exist.
    fn unknown(&self) -> Refusal {
        match self {
            Self::Access(_) => Refusal::UnparsableAccessToken,
            Self::Refresh(_) => REFUSED,
        }
    }
}

/// The refusal of a refresh token that is not genuine.
const REFUSED: Refusal = Refusal::RefreshTokenNotFoundOrExpired;

/// A genuine token's session.
struct Target {
    project: ProjectId,
    session: SessionId,
}

impl Target {
    /// Refuses a target outside the project: a client of one project must not end sessions in another.
    fn within(self, project: Option<&ProjectId>) -> Result<Self, NoTarget> {
        match project {
            Some(project) if *project != self.project => {
                let (expected, actual) = (project.to_string(), self.project.to_string());
                Err(Refusal::WrongProject { expected, actual }.into())
            }
            Some(_) | None => Ok(self),
        }
    }
}

/// Why a token has no session to end.
enum NoTarget {
    /// Its key is not in the snapshot.
    UnknownKey(KeyId),
    /// It is not genuine, or that could not be checked.
    Error(Error),
}

impl<E: Into<Error>> From<E> for NoTarget {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// How far a sign-out has come.
struct Progress {
    /// The client's project.
    within: Option<ProjectId>,
    origin: Origin,
    is_any_genuine: bool,
    /// The sessions that were live until now.
    ended: HashSet<(ProjectId, SessionId)>,
    /// Why sessions could not be ended.
    failure: Option<Error>,
    /// Why tokens have no session to end, with the position of each.
    errors: Vec<(usize, Error)>,
}

impl Progress {
    fn new(within: Option<ProjectId>, origin: Origin) -> Self {
        Self { within, origin, is_any_genuine: false, ended: HashSet::new(), failure: None, errors: vec![] }
    }
}

impl App {
    /// Ends the session of every genuine token presented; on behalf of a client, only in the client's project.
    ///
    /// # Errors
    ///
    /// Fails if no token is genuine (with the refusal of the first), if the client is refused, or if the database operation
    /// fails.
    pub async fn revoke_current(
        &self,
        holder: TokenHolder,
        client: Option<Client>,
        origin: Origin,
    ) -> Result<RevokeOutcome, Error> {
        let within = self.client_project(client).await?;
        let otherwise = if holder.server_key { Refusal::InsufficientAccessType } else { Refusal::CredentialsMissing };
        let mut progress = Progress::new(within, origin);
        let access = holder.access.into_iter().map(Presented::Access);
        let presented = access.chain(holder.refresh.into_iter().map(Presented::Refresh)).enumerate().collect();
        // What is known here ends first. Other keys may be made up, and planted in a browser by another host: all are looked up
        // together, because a lookup may wait for a second.
        let unknown = self.end_presented(&self.keys.snapshot(), presented, &mut progress).await;
        if let Some((first, ..)) = unknown.first() {
            let keys = unknown.iter().map(|(.., key)| *key);
            match self.keys.find_all(keys, |snapshot, key| snapshot.has_key(*key)).await {
                Ok(snapshot) => {
                    let presented = unknown.into_iter().map(|(at, token, _)| (at, token)).collect();
                    let unknown = self.end_presented(&snapshot, presented, &mut progress).await;
                    progress.errors.extend(unknown.into_iter().map(|(at, token, _)| (at, token.unknown().into())));
                }
                Err(error) => progress.errors.push((*first, error)),
            }
        }
        let Progress { is_any_genuine, ended, failure, mut errors, .. } = progress;
        if let Some(failure) = failure {
            return Err(failure);
        }
        errors.sort_by_key(|(at, _)| *at);
        let errors: Vec<Error> = errors.into_iter().map(|(_, error)| error).collect();
        if !is_any_genuine {
            return Err(first_failure(errors).unwrap_or(otherwise.into()));
        }
        // Everything that could be ended has ended; a token that could not be checked may be genuine, so the caller must retry.
        match errors.into_iter().find(|error| !matches!(error, Error::Refused(_))) {
            Some(failure) => Err(failure),
            None => Ok(RevokeOutcome { already: ended.is_empty() }),
        }
    }

    /// Ends the sessions of the tokens that are genuine by the keys of a snapshot. Returns the tokens whose key it lacks.
    async fn end_presented(
        &self,
        snapshot: &Snapshot,
        presented: Vec<(usize, Presented)>,
        progress: &mut Progress,
    ) -> Vec<(usize, Presented, KeyId)> {
        let (mut targets, mut unknown, now) = (vec![], vec![], self.clock.now());
        for (at, token) in presented {
            let target = match &token {
                Presented::Access(token) => match self.session_by(snapshot, token) {
                    Ok((project, session)) => Ok(Target { project, session }),
                    Err(VerifyError::UnknownKey(key)) => Err(NoTarget::UnknownKey(key)),
                    Err(error) => Err(error.into()),
                },
                Presented::Refresh(token) => self.session_of(snapshot, token.as_ref()).await,
            };
            if let (Ok(target), Some(project)) = (&target, &progress.within)
                && target.project != *project
            {
                self.note_refused_session(&target.project, target.session, RefusedAttempt::WrongProject);
            }
            match target.and_then(|one| one.within(progress.within.as_ref())) {
                Ok(target) => targets.push(target),
                Err(NoTarget::UnknownKey(key)) => unknown.push((at, token, key)),
                Err(NoTarget::Error(error)) => progress.errors.push((at, error)),
            }
        }
        if targets.is_empty() {
            return unknown;
        }
        progress.is_any_genuine = true;
        let revocation = |Target { project, session }| Revocation {
            project,
            session,
            at: now,
            reason: RevokeReason::SignedOut,
            by: EndedBy::Holder,
            ip: progress.origin.ip,
        };
        let sessions: Vec<(ProjectId, SessionId)> =
            targets.iter().map(|target| (target.project.clone(), target.session)).collect();
        let ended = match self.sign_out(targets.into_iter().map(revocation).collect()).await {
            Ok(ended) => ended,
            Err(error) => {
                progress.failure.get_or_insert(error);
                return unknown;
            }
        };
        // The feed may not have delivered yet what another replica has revoked.
        sessions.iter().filter(|one| !ended.contains(one)).for_each(|(project, id)| self.feed.note_ended(project, *id));
        progress.ended.extend(ended);
        unknown
    }

    /// Signs a browser out: as [`App::revoke_current`], but succeeds if its cookies hold no genuine token. That signs nobody in,
    /// and the user wants to be rid of it.
    ///
    /// # Errors
    ///
    /// Fails if a session may live on: if too many wait for it, or if the database operation fails.
    pub async fn sign_out_browser(
        &self,
        holder: TokenHolder,
        client: Client,
        origin: Origin,
    ) -> Result<RevokeOutcome, Error> {
        match self.revoke_current(holder, Some(client), origin).await {
            Err(Error::Refused(refusal)) if refusal.is_of_no_session() => Ok(RevokeOutcome { already: true }),
            ended => ended,
        }
    }

    /// Ends sessions together with those of other requests; see [`Groups`]. Returns those that were live until now.
    async fn sign_out(&self, asked: SignOut) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        let Some(first) = asked.first() else { return Ok(HashSet::new()) };
        request::note_project(&first.project);
        // Of those with sessions in several slots, all wait for the slowest.
        let group = self.sign_outs.of(self.urgent.slot_number(first.session.bucket()));
        let joined = group.join(&first.project, asked.clone(), &self.urgent, sign_out_all);
        let mut ended = match joined.await? {
            Some(SignedOut { ended, has_locked: false }) => return Ok(ended),
            Some(SignedOut { ended, has_locked: true }) => ended,
            None => HashSet::new(),
        };
        let keys = asked.iter().map(|one| Key::Session(one.project.clone(), one.session));
        let permit = self.bulkhead.acquire(SESSIONS_REVOKE, Lane::SignOut, keys).await?;
        ended.extend(self.urgent.sessions_revoke(asked, permit).await?);
        Ok(ended)
    }

    /// The session of a refresh token that is genuine by the keys of a snapshot.
    async fn session_of(&self, snapshot: &Snapshot, token: Option<&RefreshToken>) -> Result<Target, NoTarget> {
        let token = token.ok_or(REFUSED)?;
        let key = snapshot.keyring.refresh(token.key()).ok_or(NoTarget::UnknownKey(token.key()))?;
        if !key.verify_tag(token) {
            return Err(REFUSED.into());
        }
        let target = Target { project: key.project().clone(), session: token.session() };
        // A session that was swept has no secret to check; the tag has already shown that the token is ours, and the session has
        // ended.
        let stored = self.urgent.session_find(target.project.clone(), target.session).await.map_err(Error::from)?;
        if stored.is_some_and(|seen| !key.verify_token(token, &seen.stored.secret)) {
            return Err(REFUSED.into());
        }
        Ok(target)
    }
}

/// Ends the sessions of a group of requests, those of each slot in one statement.
async fn sign_out_all(store: Store, requests: Vec<SignOut>) -> Result<Vec<Option<SignedOut>>, store::Error> {
    let mut seen = HashSet::new();
    // Each session once: the first request to name it ends it, and the others find it ended.
    let first = requests.iter().flatten().filter(|one| seen.insert((&one.project, one.session)));
    let asked: Vec<Revocation> = first.cloned().collect();
    let mut parts = store.by_slot(asked, |one| one.session.bucket());
    let revoke = |part: Vec<(usize, Revocation)>| {
        let asked: Vec<Revocation> = part.into_iter().map(|(_, one)| one).collect();
        let store = &store;
        async move { store.sessions_revoke_unlocked(&asked).await }
    };
    let Revoked { mut live, locked } = match parts.len() {
        0 => Revoked::default(),
        1 => revoke(parts.pop().unwrap_or_default()).await?,
        _ => {
            let mut all = Revoked::default();
            let sessions = |part: &[(usize, Revocation)]| -> Vec<_> {
                part.iter().map(|(_, one)| (one.project.clone(), one.session)).collect()
            };
            let named: Vec<_> = parts.iter().map(|part| sessions(part)).collect();
            for (named, outcome) in named.into_iter().zip(join_all(parts.into_iter().map(revoke)).await) {
                match outcome {
                    Ok(part) => {
                        all.live.extend(part.live);
                        all.locked.extend(part.locked);
                    }
                    // Each waits for itself, and fails if its slot still does. What the others ended is not repeated.
                    Err(_) => all.locked.extend(named),
                }
            }
            all
        }
    };
    let signed_out = |request: SignOut| {
        let sessions: Vec<_> = request.into_iter().map(|one| (one.project, one.session)).collect();
        let has_locked = sessions.iter().any(|session| locked.contains(session));
        let ended = sessions.into_iter().filter_map(|session| live.take(&session)).collect();
        Some(SignedOut { ended, has_locked })
    };
    Ok(requests.into_iter().map(signed_out).collect())
}

/// The first failure, or else the first refusal: if one token could not be checked, it is unknown whether any is genuine.
fn first_failure(mut errors: Vec<Error>) -> Option<Error> {
    let failure = errors.iter().position(|error| !matches!(error, Error::Refused(_))).unwrap_or(0);
    (failure < errors.len()).then(|| errors.swap_remove(failure))
}
