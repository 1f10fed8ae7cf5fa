//! What tokens are worth at this moment (RFC 7662). Looking changes nothing: no rotation, no alarm.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::keys::Snapshot;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::Refusal;
use crate::session::Session;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::session::rotation;
use crate::session::rotation::Rotation;
use crate::store::Seen;
use crate::token::access::Claims;
use crate::token::access::Issuer;
use crate::token::access::Presented;
use crate::token::refresh::RefreshToken;
use crate::token::verified::VerifiedTokens;

/// The most tokens that one request may ask about.
pub const TOKENS_MAX: usize = 1_000;

/// So many signatures are checked in one go, a few milliseconds' work, before others get a turn on the core.
const SIGNATURES_AT_ONCE: usize = 32;

/// What a token is worth.
pub enum Introspection {
    /// Nothing, for whatever cause.
    Inactive,
    /// It is a live access token, which says this, of this session.
    Access(Arc<Claims>, Box<Session>),
    /// It is a refresh token that would be answered with new tokens.
    Refresh {
        /// Of this session.
        session: Box<Session>,
        /// Who issued it.
        issuer: String,
    },
}

/// A token that is genuine as far as it can be seen without its session.
enum Genuine {
    Access(Arc<Claims>, SessionId),
    Refresh(RefreshToken),
}

impl Genuine {
    fn session(&self) -> SessionId {
        match self {
            Self::Access(_, session) => *session,
            Self::Refresh(token) => token.session(),
        }
    }
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
        let now = self.clock.now();
        let snapshot = self.keys.with(|snapshot| tokens.iter().all(|token| is_key_known(snapshot, token))).await?;
        let judge = Judge {
            snapshot: Arc::clone(&snapshot),
            verified: self.verified.clone(),
            issuer: self.issuer.clone(),
            project: project.clone(),
            now,
        };
        let genuine = self.genuine(judge, tokens).await;

        let ids: HashSet<SessionId> = genuine.iter().flatten().map(Genuine::session).collect();
        let found = match ids.is_empty() {
            true => vec![],
            false => self.store.sessions_find(project, ids.into_iter().collect()).await?,
        };
        let seen: HashMap<SessionId, Seen> = found.into_iter().map(|seen| (seen.stored.session.id, seen)).collect();
        let worth = |token: Option<Genuine>| {
            let token = token?;
            let seen = seen.get(&token.session())?;
            self.worth(&snapshot, token, seen, now)
        };
        Ok(genuine.into_iter().map(|token| worth(token).unwrap_or(Introspection::Inactive)).collect())
    }

    /// The tokens of a project, signatures and all; `None` for any other.
    async fn genuine(&self, judge: Judge, tokens: Vec<String>) -> Vec<Option<Genuine>> {
        if let [token] = tokens.as_slice() {
            return vec![judge.genuine(token)];
        }
        // On threads that may be busy: a thousand signatures would hold up every other request on this one.
        let tokens = Arc::new(tokens);
        let chunks = (0..tokens.len()).step_by(SIGNATURES_AT_ONCE).map(|start| {
            let (judge, tokens) = (judge.clone(), Arc::clone(&tokens));
            tokio::task::spawn_blocking(move || {
                let end = tokens.len().min(start + SIGNATURES_AT_ONCE);
                tokens[start..end].iter().map(|token| judge.genuine(token)).collect::<Vec<_>>()
            })
        });
        let chunks = futures_util::future::join_all(chunks).await;
        chunks.into_iter().flat_map(|chunk| chunk.expect("nothing panics, and nobody cancels it")).collect()
    }

    fn worth(&self, snapshot: &Snapshot, token: Genuine, seen: &Seen, now: Timestamp) -> Option<Introspection> {
        let Seen { stored, present, .. } = seen;
        if !stored.session.is_live(now, *present) {
            return None;
        }
        let session = Box::new(stored.session.clone());
        match token {
            Genuine::Access(claims, _) if claims.expired_at(now) => None,
            Genuine::Access(claims, _) => {
                self.usage.note(&session, now);
                Some(Introspection::Access(claims, session))
            }
            Genuine::Refresh(token) => {
                let key = snapshot.keyring.refresh(token.key()).filter(|key| key.has_made(&token, &stored.secret))?;
                let policy = snapshot.policy(key.project())?;
                match rotation::decide(&stored.chain, token.link(), now, policy) {
                    Rotation::Repeated(_) | Rotation::Advanced(..) | Rotation::Throttled(_) => {
                        let issuer = self.issuer.of(key.project().as_str());
                        Some(Introspection::Refresh { session, issuer })
                    }
                    Rotation::Reused | Rotation::Unknown => None,
                }
            }
        }
    }
}

/// Whether the key that a token names is there to check it; and for what names none, there is nothing to look for.
fn is_key_known(snapshot: &Snapshot, token: &str) -> bool {
    if let Some(token) = RefreshToken::parse(token) {
        return snapshot.keyring.refresh(token.key()).is_some();
    }
    Presented::parse(token).map_or(true, |presented| snapshot.keyring.signing(presented.key()).is_some())
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
    fn genuine(&self, token: &str) -> Option<Genuine> {
        let keyring = &self.snapshot.keyring;
        if let Some(token) = RefreshToken::parse(token) {
            let key = keyring.refresh(token.key()).filter(|key| *key.project() == self.project)?;
            return key.may_have_made(&token).then_some(Genuine::Refresh(token));
        }
        let presented = Presented::parse(token).ok()?;
        let key = keyring.verifies(presented.key(), self.now, ACCESS_TOKEN_TTL_MAX);
        let key = key.filter(|key| *key.project() == self.project)?;
        let claims = self.verified.verify(&presented, key, &self.issuer).ok()?;
        let session = SessionId::parse(&claims.sid)?;
        Some(Genuine::Access(claims, session))
    }
}
