//! What an access token is, as far as can be told without its session: by the keys alone.

use std::sync::Arc;

use super::App;
use super::keys::Snapshot;
use crate::clock::Timestamp;
use crate::feed::Feed;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::Epoch;
use crate::session::Refusal;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::session::revoked::Bearer;
use crate::token::access::Claims;
use crate::token::access::Issuer;
use crate::token::access::Presented;
use crate::token::access::Rejection;
use crate::token::verified::Verified;
use crate::token::verified::VerifiedTokens;

/// What tokens are held against before their sessions are.
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) snapshot: Arc<Snapshot>,
    verified: VerifiedTokens,
    feed: Feed,
    issuer: Issuer,
    /// Whose tokens count.
    pub(super) project: ProjectId,
    now: Timestamp,
}

/// A genuine access token of the project that has not expired. Whether its session lives is another question.
#[derive(Clone)]
pub(super) struct Genuine {
    pub(super) claims: Arc<Claims>,
    pub(super) user: UserId,
    pub(super) session: SessionId,
    /// The key that signed it.
    pub(super) key: KeyId,
}

impl Genuine {
    /// What the feed is asked about.
    pub(super) fn bearer<'a>(&'a self, project: &'a ProjectId) -> Bearer<'a> {
        let [of_project, of_user] = self.claims.epoch;
        let epoch = Epoch { project: of_project, user: of_user };
        Bearer { project, user: &self.user, session: self.session, epoch, key: self.key }
    }
}

/// Why a token is not taken for genuine.
pub(super) enum Doubt {
    /// It is not.
    Refused(Refusal),
    /// It names a key that is not known, or not yet.
    OfUnknownKey,
}

impl From<Refusal> for Doubt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Rejection> for Doubt {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection.into())
    }
}

impl Doubt {
    /// The refusal, where no newer keys are to be had: what they do not know does not exist.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::OfUnknownKey => Refusal::UnparsableAccessToken,
        }
    }
}

impl App {
    /// Judges by these keys.
    pub(super) fn judge(&self, snapshot: Arc<Snapshot>, project: ProjectId, now: Timestamp) -> Judge {
        let (verified, feed, issuer) = (self.verified.clone(), self.feed.clone(), self.issuer.clone());
        Judge { snapshot, verified, feed, issuer, project, now }
    }
}

impl Judge {
    /// Judges an access token by all but its session.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnparsableAccessToken`], [`Refusal::WrongProject`] for a genuine one of another project,
    /// [`Refusal::AccessTokenExpired`] for one that is over; or that its key is not known.
    pub(super) fn access(&self, text: &str) -> Result<Genuine, Doubt> {
        let Verified { key, claims } = match self.verified.find(text) {
            Some(known) => known,
            None => self.check(text)?,
        };
        if claims.project_id != self.project.as_str() {
            let (expected, actual) = (self.project.to_string(), claims.project_id.clone());
            return Err(Refusal::WrongProject { expected, actual }.into());
        }
        let read = || Some((UserId::parse(&claims.sub)?, SessionId::parse(&claims.sid)?));
        let (user, session) = read().ok_or(Refusal::UnparsableAccessToken)?;
        if claims.expired_at(self.now) {
            let (expired_at, project) = (Timestamp::from_seconds(claims.exp), self.project.clone());
            return Err(Refusal::AccessTokenExpired { expired_at, project, user, session }.into());
        }
        // A key that has signed nothing for so long has leaked, if a token under it says that it is fresh; one that is gone
        // was revoked.
        match self.snapshot.keyring.verifies(key, self.now, ACCESS_TOKEN_TTL_MAX) {
            Some(_) => Ok(Genuine { claims, user, session, key }),
            None => Err(Refusal::UnparsableAccessToken.into()),
        }
    }

    /// Checks the signature of one that was not seen before. Another project's too: only whoever holds a genuine one is
    /// told whose it is.
    fn check(&self, text: &str) -> Result<Verified, Doubt> {
        let presented = Presented::parse(text)?;
        let key = presented.key();
        // Known before the keys are read again; and nobody needs to read them for it.
        if self.feed.has_revoked(key) {
            return Err(Refusal::UnparsableAccessToken.into());
        }
        let signed_by = self.snapshot.keyring.signing(key).ok_or(Doubt::OfUnknownKey)?;
        let claims = self.verified.verify(&presented, signed_by, &self.issuer)?;
        Ok(Verified { key, claims })
    }
}
