//! Introspects tokens (RFC 7662). Changes nothing: a refresh token is neither rotated nor reported as reused.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::LazyLock;

use futures_util::StreamExt as _;
use tokio::sync::Semaphore;

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::keys::Snapshot;
use super::liveness::Standing;
use crate::store::RefusedAttempt;
use crate::store::Role;
use crate::store::SessionWithEpochs;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::rotation;
use sessiond_core::session::rotation::OriginMatch;
use sessiond_core::session::rotation::Rotation;
use sessiond_core::token::refresh;
use sessiond_core::token::refresh::RefreshToken;
use sessiond_core::token::verified::VerifiedToken;
use sessiond_core::token::verified::VerifyError;

/// The most tokens that one request may ask about.
pub const TOKENS_MAX: usize = 1_000;

/// How many signatures one blocking task checks: a few milliseconds of work.
const SIGNATURES_AT_ONCE: usize = 32;

/// How many of them wait for a thread at a time for one request.
const CHUNKS_AT_ONCE: usize = 2;

/// How many of these tasks run at a time, for all callers together: at most half of the processors check signatures, even if a
/// verifier asks about made-up tokens without end.
static SIGNATURES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(processors.div_ceil(2)))
});

/// The result for one token.
pub enum Introspection {
    /// Not active, for any reason.
    Inactive,
    /// An access token whose session is live.
    Access(VerifiedToken),
    /// A refresh token that a refresh would accept.
    Refresh {
        /// Its session.
        session: Box<Session>,
        /// Who issued it.
        issuer: String,
    },
}

/// What a token is, before its session is read.
#[derive(Clone)]
enum TokenKind {
    Access(VerifiedToken),
    Refresh(Box<RefreshToken>),
    /// Not a valid token of the project.
    Invalid,
    /// It names a key that is unknown, or not loaded yet.
    UnknownKey(KeyId),
}

impl App {
    /// Introspects tokens for a service. Returns the results in the tokens' order; tokens of other projects are inactive.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the client is refused, or if the database operation fails.
    pub async fn introspect(
        &self,
        caller: Caller,
        client: Option<Client>,
        tokens: Vec<String>,
    ) -> Result<Vec<Introspection>, Error> {
        let service = self.service(caller, Role::Verifier).await?;
        if client.is_some_and(|client| client.project != service.project) {
            self.note_refused_service(&service, RefusedAttempt::WrongProject);
            return Err(Refusal::InvalidServerKey.into());
        }
        let project = service.project;
        let (tokens, now) = (Arc::new(tokens), self.clock.now());
        let mut snapshot = self.keys.snapshot();
        let mut kinds = self.classify_all(&snapshot, &project, &tokens, now).await;
        let unknown = kinds.iter().enumerate().filter_map(|(at, kind)| Some((at, kind.unknown_key()?)));
        let (unknown, keys): (Vec<usize>, Vec<KeyId>) = unknown.unzip();
        if !unknown.is_empty() {
            // A key missing after this reload does not exist, or did not when the request came.
            snapshot = self.keys.find_all(keys, |snapshot, key| snapshot.has_key(*key)).await?;
            let again = Arc::new(unknown.iter().map(|at| tokens[*at].clone()).collect());
            let again = self.classify_all(&snapshot, &project, &again, now).await;
            unknown.into_iter().zip(again).for_each(|(at, kind)| kinds[at] = kind);
        }
        let access: Vec<VerifiedToken> = kinds.iter().filter_map(TokenKind::access).cloned().collect();
        // In the order of the access tokens, so the results are consumed one by one.
        let mut standings = self.standings(&project, &access, now).await?.into_iter();
        let seen = self.sessions_of(&project, &kinds).await?;
        let mut introspect = |kind: TokenKind| match kind {
            TokenKind::Access(token) => (standings.next()? == Standing::Good).then_some(Introspection::Access(token)),
            TokenKind::Refresh(token) => self.introspect_refresh(&snapshot, &token, seen.get(&token.session())?, now),
            TokenKind::Invalid | TokenKind::UnknownKey(_) => None,
        };
        Ok(kinds.into_iter().map(|kind| introspect(kind).unwrap_or(Introspection::Inactive)).collect())
    }

    /// Classifies each token, and checks its signature.
    async fn classify_all(
        &self,
        snapshot: &Arc<Snapshot>,
        project: &ProjectId,
        tokens: &Arc<Vec<String>>,
        now: Timestamp,
    ) -> Vec<TokenKind> {
        if let [token] = tokens.as_slice() {
            return vec![self.classify(snapshot, project, token, now)];
        }
        // On the blocking threads: a thousand signatures would delay every other request on this thread.
        let chunks = (0..tokens.len()).step_by(SIGNATURES_AT_ONCE).map(|start| {
            let (app, snapshot, project, tokens) =
                (self.clone(), Arc::clone(snapshot), project.clone(), Arc::clone(tokens));
            async move {
                let permit = Arc::clone(&SIGNATURES).acquire_owned().await.expect("never closed");
                let checked = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    let tokens = &tokens[start..tokens.len().min(start + SIGNATURES_AT_ONCE)];
                    tokens.iter().map(|token| app.classify(&snapshot, &project, token, now)).collect::<Vec<_>>()
                });
                checked.await.expect("the task neither panics nor is cancelled")
            }
        });
        // A few at a time, so that requests take turns.
        let checked: Vec<Vec<TokenKind>> = futures_util::stream::iter(chunks).buffered(CHUNKS_AT_ONCE).collect().await;
        checked.into_iter().flatten().collect()
    }

    /// Classifies one token, and checks its signature with the keys of a snapshot.
    fn classify(&self, snapshot: &Snapshot, project: &ProjectId, text: &str, now: Timestamp) -> TokenKind {
        if text.starts_with(refresh::PREFIX) {
            return match RefreshToken::parse(text) {
                Some(token) => classify_refresh(snapshot, project, token),
                None => TokenKind::Invalid,
            };
        }
        match self.verify_by(snapshot, project, text, now) {
            Ok(token) => TokenKind::Access(token),
            Err(VerifyError::UnknownKey(key)) => TokenKind::UnknownKey(key),
            Err(VerifyError::Unparsable | VerifyError::WrongProject { .. } | VerifyError::Expired(_)) => {
                TokenKind::Invalid
            }
        }
    }

    /// Reads the sessions of the refresh tokens.
    async fn sessions_of(
        &self,
        project: &ProjectId,
        kinds: &[TokenKind],
    ) -> Result<HashMap<SessionId, SessionWithEpochs>, Error> {
        // Without duplicates: a request may name the same session several times.
        let ids: BTreeSet<SessionId> = kinds.iter().filter_map(TokenKind::refresh).map(RefreshToken::session).collect();
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

    fn introspect_refresh(
        &self,
        snapshot: &Snapshot,
        token: &RefreshToken,
        seen: &SessionWithEpochs,
        now: Timestamp,
    ) -> Option<Introspection> {
        let SessionWithEpochs { stored, present, .. } = seen;
        let key = snapshot.keyring.refresh(token.key()).filter(|key| key.verify_token(token, &stored.secret))?;
        if !stored.session.is_live(now, *present) {
            self.feed.note_ended(key.project(), stored.session.id);
            return None;
        }
        // Where its holder is now is unknown, so it counts as unchanged.
        match rotation::decide(&stored.chain, token.link(), OriginMatch::Same, now, snapshot.policy(key.project())?) {
            Rotation::Repeated(..) | Rotation::Advanced(..) | Rotation::Throttled(_) => {
                let issuer = self.issuer.of(key.project().as_str());
                Some(Introspection::Refresh { session: Box::new(stored.session.clone()), issuer })
            }
            Rotation::Reused | Rotation::ReusedElsewhere | Rotation::Unknown => None,
        }
    }
}

impl TokenKind {
    const fn unknown_key(&self) -> Option<KeyId> {
        match self {
            Self::UnknownKey(key) => Some(*key),
            Self::Access(_) | Self::Refresh(_) | Self::Invalid => None,
        }
    }

    fn access(&self) -> Option<&VerifiedToken> {
        match self {
            Self::Access(token) => Some(token),
            Self::Refresh(_) | Self::Invalid | Self::UnknownKey(_) => None,
        }
    }

    fn refresh(&self) -> Option<&RefreshToken> {
        match self {
            Self::Refresh(token) => Some(token),
            Self::Access(_) | Self::Invalid | Self::UnknownKey(_) => None,
        }
    }
}

fn classify_refresh(snapshot: &Snapshot, project: &ProjectId, token: RefreshToken) -> TokenKind {
    match snapshot.keyring.refresh(token.key()) {
        None => TokenKind::UnknownKey(token.key()),
        Some(key) if key.project() == project && key.verify_tag(&token) => TokenKind::Refresh(Box::new(token)),
        Some(_) => TokenKind::Invalid,
    }
}
