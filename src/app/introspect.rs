//! What tokens are worth at this moment (RFC 7662). Looking changes nothing: no rotation, no alarm.

use std::collections::HashMap;
use std::sync::Arc;

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::keys::Snapshot;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::Epoch;
use crate::session::Refusal;
use crate::session::Session;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::session::rotation;
use crate::session::rotation::Rotation;
use crate::store;
use crate::store::Outline;
use crate::store::Seen;
use crate::token::access::Claims;
use crate::token::access::Issuer;
use crate::token::access::Presented;
use crate::token::refresh::RefreshToken;
use crate::token::verified::Verified;
use crate::token::verified::VerifiedTokens;

/// The most tokens that one request may ask about.
pub const TOKENS_MAX: usize = 1_000;

/// So many signatures are checked in one go, a few milliseconds' work, before others get a turn on the core.
const SIGNATURES_AT_ONCE: usize = 32;

/// What a token is worth.
pub enum Introspection {
    /// Nothing, for whatever cause.
    Inactive,
    /// It is a live access token, and says this.
    Access(Arc<Claims>),
    /// It is a refresh token that would be answered with new tokens.
    Refresh {
        /// Of this session.
        session: Box<Session>,
        /// Who issued it.
        issuer: String,
    },
}

/// What a token is, as far as can be seen without its session.
#[derive(Clone)]
enum Kind {
    Access(Arc<Claims>, SessionId),
    Refresh(Box<RefreshToken>),
    /// Nothing of the project's.
    Nothing,
    /// It names a key that is not known, or not yet.
    OfUnknownKey,
}

impl App {
    /// What each of the tokens is worth to a service, in their order. Another project's are worth nothing.
    ///
    /// # Errors
    ///
    /// A refusal of the caller, or of the client that it says it is; the store's.
    pub async fn introspect(
        &self,
        caller: Caller,
        client: Option<Client>,
        tokens: Vec<String>,
    ) -> Result<Vec<Introspection>, Error> {
        let project = self.service(caller).await?.project;
        if client.is_some_and(|client| client.project != project) {
            return Err(Refusal::InvalidServerKey.into());
        }
        let (tokens, now) = (Arc::new(tokens), self.clock.now());
        let mut snapshot = self.keys.snapshot();
        let mut kinds = self.kinds(&snapshot, &project, &tokens, now).await;
        if kinds.iter().any(|kind| matches!(kind, Kind::OfUnknownKey)) {
            // What is not there does not exist, or did not when we were asked.
            snapshot = self.keys.reload().await?;
            kinds = self.kinds(&snapshot, &project, &tokens, now).await;
        }
        let outlines = self.outlines(&project, &kinds).await?;
        let seen = self.seen(&project, &kinds).await?;
        let worth = |kind: Kind| match kind {
            Kind::Access(claims, session) => {
                let (outline, present) = outlines.get(&session)?;
                self.worth_of_access(&project, claims, outline, *present, now)
            }
            Kind::Refresh(token) => self.worth_of_refresh(&snapshot, &token, seen.get(&token.session())?, now),
            Kind::Nothing | Kind::OfUnknownKey => None,
        };
        Ok(kinds.into_iter().map(|kind| worth(kind).unwrap_or(Introspection::Inactive)).collect())
    }

    /// What each token is, signatures and all.
    async fn kinds(
        &self,
        snapshot: &Arc<Snapshot>,
        project: &ProjectId,
        tokens: &Arc<Vec<String>>,
        now: Timestamp,
    ) -> Vec<Kind> {
        let judge = Judge {
            snapshot: Arc::clone(snapshot),
            verified: self.verified.clone(),
            issuer: self.issuer.clone(),
            project: project.clone(),
            now,
        };
        if let [token] = tokens.as_slice() {
            return vec![judge.kind(token)];
        }
        // On threads that may be busy: a thousand signatures would hold up every other request on this one.
        let chunks = (0..tokens.len()).step_by(SIGNATURES_AT_ONCE).map(|start| {
            let (judge, tokens) = (judge.clone(), Arc::clone(tokens));
            tokio::task::spawn_blocking(move || {
                let end = tokens.len().min(start + SIGNATURES_AT_ONCE);
                tokens[start..end].iter().map(|token| judge.kind(token)).collect::<Vec<_>>()
            })
        });
        let chunks = futures_util::future::join_all(chunks).await;
        chunks.into_iter().flat_map(|chunk| chunk.expect("nothing panics, and nobody cancels it")).collect()
    }

    /// What the access tokens are held against: no more of their sessions than whether they live.
    async fn outlines(
        &self,
        project: &ProjectId,
        kinds: &[Kind],
    ) -> Result<HashMap<SessionId, (Outline, Epoch)>, store::Error> {
        let ids = kinds.iter().filter_map(|kind| match kind {
            Kind::Access(_, session) => Some(*session),
            Kind::Refresh(_) | Kind::Nothing | Kind::OfUnknownKey => None,
        });
        let found = match distinct(ids) {
            none if none.is_empty() => vec![],
            some => self.store.outlines_find(project.clone(), some).await?,
        };
        Ok(found.into_iter().map(|(outline, present)| (outline.occupant.session, (outline, present))).collect())
    }

    /// What the refresh tokens are held against.
    async fn seen(&self, project: &ProjectId, kinds: &[Kind]) -> Result<HashMap<SessionId, Seen>, store::Error> {
        let ids = kinds.iter().filter_map(|kind| match kind {
            Kind::Refresh(token) => Some(token.session()),
            Kind::Access(..) | Kind::Nothing | Kind::OfUnknownKey => None,
        });
        let found = match distinct(ids) {
            none if none.is_empty() => vec![],
            some => self.store.sessions_find(project.clone(), some).await?,
        };
        Ok(found.into_iter().map(|seen| (seen.stored.session.id, seen)).collect())
    }

    fn worth_of_access(
        &self,
        project: &ProjectId,
        claims: Arc<Claims>,
        outline: &Outline,
        present: Epoch,
        now: Timestamp,
    ) -> Option<Introspection> {
        if claims.expired_at(now) || !outline.lifetime.is_live(now, present) {
            return None;
        }
        self.usage.note(project, outline.occupant, now);
        Some(Introspection::Access(claims))
    }

    fn worth_of_refresh(
        &self,
        snapshot: &Snapshot,
        token: &RefreshToken,
        seen: &Seen,
        now: Timestamp,
    ) -> Option<Introspection> {
        let Seen { stored, present, .. } = seen;
        let key = snapshot.keyring.refresh(token.key()).filter(|key| key.has_made(token, &stored.secret))?;
        if !stored.session.is_live(now, *present) {
            return None;
        }
        match rotation::decide(&stored.chain, token.link(), now, snapshot.policy(key.project())?) {
            Rotation::Repeated(_) | Rotation::Advanced(..) | Rotation::Throttled(_) => {
                let issuer = self.issuer.of(key.project().as_str());
                Some(Introspection::Refresh { session: Box::new(stored.session.clone()), issuer })
            }
            Rotation::Reused | Rotation::Unknown => None,
        }
    }
}

/// Each once: a service may ask about the same session several times over.
fn distinct(ids: impl Iterator<Item = SessionId>) -> Vec<SessionId> {
    let mut ids: Vec<SessionId> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What tokens are held against before their sessions are.
#[derive(Clone)]
struct Judge {
    snapshot: Arc<Snapshot>,
    verified: VerifiedTokens,
    issuer: Issuer,
    project: ProjectId,
    now: Timestamp,
}

impl Judge {
    fn kind(&self, token: &str) -> Kind {
        let kind = if token.starts_with(crate::token::refresh::PREFIX) {
            RefreshToken::parse(token).map(|token| self.refresh(token))
        } else {
            self.access(token)
        };
        kind.unwrap_or(Kind::Nothing)
    }

    fn refresh(&self, token: RefreshToken) -> Kind {
        match self.snapshot.keyring.refresh(token.key()) {
            None => Kind::OfUnknownKey,
            Some(key) if *key.project() == self.project && key.may_have_made(&token) => Kind::Refresh(Box::new(token)),
            Some(_) => Kind::Nothing,
        }
    }

    fn access(&self, text: &str) -> Option<Kind> {
        let keyring = &self.snapshot.keyring;
        let Verified { key, claims } = match self.verified.find(text) {
            Some(known) => known,
            None => {
                let presented = Presented::parse(text).ok()?;
                let Some(key) = keyring.signing(presented.key()) else { return Some(Kind::OfUnknownKey) };
                // Another project's is worth nothing, whatever its signature.
                if *key.project() != self.project {
                    return None;
                }
                let claims = self.verified.verify(&presented, key, &self.issuer).ok()?;
                Verified { key: key.id(), claims }
            }
        };
        let counts = keyring.verifies(key, self.now, ACCESS_TOKEN_TTL_MAX)?.project() == &self.project;
        let session = SessionId::parse(&claims.sid)?;
        counts.then_some(Kind::Access(claims, session))
    }
}
