//! What tokens are worth at this moment (RFC 7662). Looking changes nothing: no rotation, no alarm.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::keys::Snapshot;
use crate::store::SessionWithEpochs;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::rotation;
use sessiond_core::session::rotation::Rotation;
use sessiond_core::session::rotation::Whence;
use sessiond_core::token::refresh;
use sessiond_core::token::refresh::RefreshToken;
use sessiond_core::token::verifier::VerifiedToken;
use sessiond_core::token::verifier::VerifyError;

/// The most tokens that one request may ask about.
pub const TOKENS_MAX: usize = 1_000;

/// So many signatures are checked in one go, a few milliseconds' work, before others get a turn on the core.
const SIGNATURES_AT_ONCE: usize = 32;

/// What a token is worth.
pub enum Introspection {
    /// Nothing, for whatever cause.
    Inactive,
    /// It is an access token whose session is live.
    Access(VerifiedToken),
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
    Access(VerifiedToken),
    Refresh(Box<RefreshToken>),
    /// Nothing of the project's.
    Nothing,
    /// It names a key that is unknown, or not known yet.
    UnknownKey,
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
        if kinds.iter().any(|kind| matches!(kind, Kind::UnknownKey)) {
            // What is not there does not exist, or did not when we were asked.
            snapshot = self.keys.look_again().await?;
            kinds = self.kinds(&snapshot, &project, &tokens, now).await;
        }
        let access: Vec<VerifiedToken> = kinds.iter().filter_map(Kind::access).cloned().collect();
        // In the order of the access tokens, and so taken off one by one.
        let mut live = self.are_live(&project, &access, now).await?.into_iter();
        let seen = self.seen(&project, &kinds).await?;
        let worth = |kind: Kind| match kind {
            Kind::Access(token) => live.next()?.then_some(Introspection::Access(token)),
            Kind::Refresh(token) => self.worth_of_refresh(&snapshot, &token, seen.get(&token.session())?, now),
            Kind::Nothing | Kind::UnknownKey => None,
        };
        Ok(kinds.into_iter().map(worth).map(|worth| worth.unwrap_or(Introspection::Inactive)).collect())
    }

    /// What each token is, signatures and all.
    async fn kinds(
        &self,
        snapshot: &Arc<Snapshot>,
        project: &ProjectId,
        tokens: &Arc<Vec<String>>,
        now: Timestamp,
    ) -> Vec<Kind> {
        if let [token] = tokens.as_slice() {
            return vec![self.kind(snapshot, project, token, now)];
        }
        // On threads that may be busy: a thousand signatures would hold up every other request on this one.
        let chunks = (0..tokens.len()).step_by(SIGNATURES_AT_ONCE).map(|start| {
            let (app, snapshot, project, tokens) =
                (self.clone(), Arc::clone(snapshot), project.clone(), Arc::clone(tokens));
            tokio::task::spawn_blocking(move || {
                let end = tokens.len().min(start + SIGNATURES_AT_ONCE);
                tokens[start..end].iter().map(|token| app.kind(&snapshot, &project, token, now)).collect::<Vec<_>>()
            })
        });
        let chunks = futures_util::future::join_all(chunks).await;
        chunks.into_iter().flat_map(|chunk| chunk.expect("nothing panics, and nobody cancels it")).collect()
    }

    /// What one token is, by the keys of a snapshot.
    fn kind(&self, snapshot: &Snapshot, project: &ProjectId, text: &str, now: Timestamp) -> Kind {
        if text.starts_with(refresh::PREFIX) {
            return match RefreshToken::parse(text) {
                Some(token) => kind_of_refresh(snapshot, project, token),
                None => Kind::Nothing,
            };
        }
        match self.verify_by(snapshot, project, text, now) {
            Ok(token) => Kind::Access(token),
            Err(VerifyError::UnknownKey(_)) => Kind::UnknownKey,
            Err(VerifyError::Unparsable | VerifyError::WrongProject { .. } | VerifyError::Expired(_)) => Kind::Nothing,
        }
    }

    /// What the refresh tokens are held against.
    async fn seen(&self, project: &ProjectId, kinds: &[Kind]) -> Result<HashMap<SessionId, SessionWithEpochs>, Error> {
        // Each once: a service may ask about the same session several times over.
        let ids: BTreeSet<SessionId> = kinds.iter().filter_map(Kind::refresh).map(RefreshToken::session).collect();
        let found = match ids.is_empty() {
            true => vec![],
            false => {
                let found = self.store.sessions_find(project.clone(), ids.into_iter().collect()).await?;
                self.check_trusted()?;
                found
            }
        };
        Ok(found.into_iter().map(|seen| (seen.stored.session.id, seen)).collect())
    }

    fn worth_of_refresh(
        &self,
        snapshot: &Snapshot,
        token: &RefreshToken,
        seen: &SessionWithEpochs,
        now: Timestamp,
    ) -> Option<Introspection> {
        let SessionWithEpochs { stored, present, .. } = seen;
        let key = snapshot.keyring.refresh(token.key()).filter(|key| key.has_made(token, &stored.secret))?;
        if !stored.session.is_live(now, *present) {
            self.feed.note_ended(key.project(), stored.session.id);
            return None;
        }
        // Where its holder is, nobody says here.
        match rotation::decide(&stored.chain, token.link(), Whence::Same, now, snapshot.policy(key.project())?) {
            Rotation::Repeated(..) | Rotation::Advanced(..) | Rotation::Throttled(_) => {
                let issuer = self.issuer.of(key.project().as_str());
                Some(Introspection::Refresh { session: Box::new(stored.session.clone()), issuer })
            }
            Rotation::Reused | Rotation::ReusedElsewhere | Rotation::Unknown => None,
        }
    }
}

impl Kind {
    fn access(&self) -> Option<&VerifiedToken> {
        match self {
            Self::Access(token) => Some(token),
            Self::Refresh(_) | Self::Nothing | Self::UnknownKey => None,
        }
    }

    fn refresh(&self) -> Option<&RefreshToken> {
        match self {
            Self::Refresh(token) => Some(token),
            Self::Access(_) | Self::Nothing | Self::UnknownKey => None,
        }
    }
}

fn kind_of_refresh(snapshot: &Snapshot, project: &ProjectId, token: RefreshToken) -> Kind {
    match snapshot.keyring.refresh(token.key()) {
        None => Kind::UnknownKey,
        Some(key) if key.project() == project && key.may_have_made(&token) => Kind::Refresh(Box::new(token)),
        Some(_) => Kind::Nothing,
    }
}
