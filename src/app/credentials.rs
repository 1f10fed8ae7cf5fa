//! Who asks. A credential is read in `rpc`; here it is believed, or not.

use std::sync::Arc;

use super::App;
use super::Error;
use super::keys::Snapshot;
use crate::rates::Bucket;
use crate::store::Role;
use crate::store::SessionWithEpochs;
use crate::store::Store;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::token::keys::SigningKey;
use sessiond_core::token::server_key::ServerKey;
use sessiond_core::token::verifier::Candidate;
use sessiond_core::token::verifier::VerifiedToken;
use sessiond_core::token::verifier::VerifyError;

/// An access token as it was presented. Has no `Debug`: it must not reach a log.
pub struct AccessToken(pub String);

/// Who asks, as far as the credentials say.
pub enum Caller {
    /// Nobody: no credential at all.
    Nobody,
    /// A user, by an access token.
    User(AccessToken),
    /// A service, by a server key.
    Service(ServerKey),
    /// Somebody with a server key that has not the form of one.
    MalformedServerKey,
}

/// A client, such as OAuth knows (RFC 6749 §2), named and not yet believed. What it asks concerns its own project alone.
#[derive(Clone)]
pub struct Client {
    /// Its id: the project.
    pub project: ProjectId,
    /// What it shows for that.
    pub standing: Standing,
    /// The least role that its server key must have: it asks as a service of that role.
    pub role: Role,
}

impl Client {
    /// Whether a genuine server key lets a service ask as this client.
    fn admits(&self, service: &Service) -> bool {
        service.project == self.project && service.role >= self.role
    }
}

/// What a client shows for being one of its project.
#[derive(Clone)]
pub enum Standing {
    /// Its secret: a server key of the project.
    Confidential(ServerKey),
    /// Nothing, for it cannot keep a secret (RFC 6749 §2.1). A project that there is not has no clients.
    Public,
    /// Nothing: it only says which project it means. Whether there is one, its tokens will tell.
    Named,
}

/// A service that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The project it acts for.
    pub project: ProjectId,
    /// What it may do.
    pub role: Role,
    /// The key it did so with.
    pub key: KeyId,
}

/// A caller that has shown who it is.
pub(super) enum Principal {
    /// A user, by an access token that has not expired. Whether its session is live is for its row to tell.
    User(VerifiedToken),
    Service(Service),
}

impl App {
    /// The service behind a server key.
    ///
    /// Only the genuine key takes from its bucket and its project's: whoever knows no more than the key's id could drain
    /// them otherwise. A stranger's attempts are bounded by the stranger's address, which pays for them; a genuine key's are
    /// not. Where nothing is left, not even the database is asked.
    ///
    /// # Errors
    ///
    /// [`Refusal::CredentialsMissing`], [`Refusal::InsufficientAccessType`] for a user, [`Refusal::InvalidServerKey`] for
    /// one that is malformed, unknown or revoked; [`Refusal::RateLimited`]; or the store's.
    pub async fn service(&self, caller: Caller) -> Result<Service, Error> {
        let key = match caller {
            Caller::Service(key) => key,
            Caller::MalformedServerKey => return Err(Refusal::InvalidServerKey.into()),
            Caller::User(_) => return Err(Refusal::InsufficientAccessType.into()),
            Caller::Nobody => return Err(Refusal::CredentialsMissing.into()),
        };
        self.rates.check(Bucket::ServerKey(key.id()))?;
        let service = self.holder_of(&self.store, &key).await?;
        self.rates.refund();
        self.rates.charge(Bucket::ServerKey(key.id()))?;
        self.rates.charge(Bucket::Project(&service.project))?;
        Ok(service)
    }

    /// The service that a genuine server key is of. Takes from no bucket.
    async fn holder_of(&self, store: &Store, key: &ServerKey) -> Result<Service, Error> {
        let row = store.server_key_find(key.id()).await?.ok_or(Refusal::InvalidServerKey)?;
        if !row.digest.matches(&key.digest()) {
            return Err(Refusal::InvalidServerKey.into());
        }
        Ok(Service { project: row.project, role: row.role, key: row.id })
    }

    /// The user or the service behind a credential.
    ///
    /// # Errors
    ///
    /// As [`App::service`] and [`App::signed_in`].
    pub(super) async fn principal(&self, caller: Caller) -> Result<Principal, Error> {
        match caller {
            Caller::User(token) => Ok(Principal::User(self.signed_in(&token).await?)),
            service => Ok(Principal::Service(self.service(service).await?)),
        }
    }

    /// The service behind a server key, on behalf of a client only in the client's project.
    ///
    /// # Errors
    ///
    /// As [`App::service`] and [`App::client_project`]; [`Refusal::InvalidServerKey`] for a service of another project.
    pub(super) async fn service_within(&self, caller: Caller, client: Option<Client>) -> Result<Service, Error> {
        self.client_project(client.clone()).await?;
        let service = self.service(caller).await?;
        match client.is_none_or(|client| client.admits(&service)) {
            true => Ok(service),
            false => Err(Refusal::InvalidServerKey.into()),
        }
    }

    /// The user or the service behind a credential, on behalf of a client only in the client's project.
    ///
    /// # Errors
    ///
    /// As [`App::principal`] and [`App::client_project`]; [`Refusal::WrongProject`] for a user of another project,
    /// [`Refusal::InvalidServerKey`] for a service of one.
    pub(super) async fn principal_within(&self, caller: Caller, client: Option<Client>) -> Result<Principal, Error> {
        self.client_project(client.clone()).await?;
        let principal = self.principal(caller).await?;
        let Some(client) = client else { return Ok(principal) };
        match &principal {
            Principal::User(token) => token.check_project(&client.project)?,
            Principal::Service(service) if client.admits(service) => {}
            Principal::Service(_) => return Err(Refusal::InvalidServerKey.into()),
        }
        Ok(principal)
    }

    /// The user behind a caller, where no one else will do.
    ///
    /// # Errors
    ///
    /// [`Refusal::CredentialsMissing`], [`Refusal::InsufficientAccessType`] for a service; as [`App::signed_in`].
    pub(super) async fn user(&self, caller: Caller) -> Result<VerifiedToken, Error> {
        match caller {
            Caller::User(token) => self.signed_in(&token).await,
            Caller::Service(_) | Caller::MalformedServerKey => Err(Refusal::InsufficientAccessType.into()),
            Caller::Nobody => Err(Refusal::CredentialsMissing.into()),
        }
    }

    /// The user behind an access token, which must not have expired. A genuine one takes from its project's bucket.
    async fn signed_in(&self, AccessToken(text): &AccessToken) -> Result<VerifiedToken, Error> {
        let candidate = self.verifier.read(text)?;
        let key = self.key_of(candidate.key()).await?;
        self.rates.check(Bucket::Project(key.project()))?;
        let token = self.verifier.verify(candidate, key.verifying())?;
        // The user before the project: no user can use up what the project has.
        self.rates.charge(Bucket::User(key.project(), token.user()))?;
        self.rates.charge(Bucket::Project(key.project()))?;
        check_current(&token, &self.keys.snapshot(), self.clock.now())?;
        Ok(token)
    }

    /// Verifies an access token of a project by the keys of a snapshot: everything except its session.
    ///
    /// # Errors
    ///
    /// As [`VerifyError`] says; [`VerifyError::WrongProject`] only for a genuine token, so that nobody else learns whose
    /// it is.
    pub(super) fn verify_by(
        &self,
        snapshot: &Snapshot,
        project: &ProjectId,
        text: &str,
        now: Timestamp,
    ) -> Result<VerifiedToken, VerifyError> {
        let token = match self.verifier.read(text)? {
            Candidate::Verified(token) => token,
            candidate @ Candidate::Unverified(..) => {
                let key = self.known_key(snapshot, candidate.key())?;
                self.verifier.verify(candidate, key.verifying())?
            }
        };
        token.check_project(project)?;
        check_current(&token, snapshot, now)?;
        Ok(token)
    }

    /// Checks that a user who is about to end other sessions has authenticated as the project asks: a stolen access token
    /// may be of any age.
    ///
    /// # Errors
    ///
    /// [`Refusal::InsufficientUserAuthentication`]; the store's, when the policy had to be looked for.
    pub(super) async fn may_revoke_others(&self, token: &VerifiedToken, now: Timestamp) -> Result<(), Error> {
        let snapshot = self.keys.with(|snapshot| snapshot.policy(token.project()).is_some()).await?;
        let revoking = snapshot.policy(token.project()).map(|policy| policy.revoking.clone()).unwrap_or_default();
        let auth_time = token.claims().auth_time.map(Timestamp::from_seconds);
        match revoking.admits(auth_time, token.claims().acr.as_deref(), now) {
            true => Ok(()),
            false => Err(Refusal::InsufficientUserAuthentication(revoking).into()),
        }
    }

    /// The session of a signed-in user, as it is now. Notes that it is in use.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionRevoked`] when it has ended, one way or another; the store's; as [`App::check_trusted`].
    pub(super) async fn own_session(&self, token: &VerifiedToken) -> Result<Session, Error> {
        let now = self.clock.now();
        let found = self.store.session_find(token.project().clone(), token.session()).await?;
        self.check_trusted()?;
        let Some(SessionWithEpochs { stored, present, .. }) = found else { return Err(Refusal::SessionRevoked.into()) };
        if !stored.session.is_live(now, present) {
            self.feed.note_ended(token.project(), token.session());
            return Err(Refusal::SessionRevoked.into());
        }
        self.usage.note(&stored.session.project, stored.session.id, stored.session.last_used_at, now);
        Ok(stored.session)
    }

    /// The project that a client is confined to; `None` for a caller that is none. Takes from no bucket: a sign-out
    /// has to get through.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidServerKey`] when the key is not one of that project or has too small a role, or a public client
    /// names an unknown project; or the store's.
    pub(super) async fn client_project(&self, client: Option<Client>) -> Result<Option<ProjectId>, Error> {
        let Some(client) = client else { return Ok(None) };
        let exists = |snapshot: &Snapshot| snapshot.policy(&client.project).is_some();
        let believed = match &client.standing {
            Standing::Confidential(key) => client.admits(&self.holder_of(&self.urgent, key).await?),
            Standing::Public => exists(&*self.keys.find(&client.project, exists).await?),
            Standing::Named => true,
        };
        if believed { Ok(Some(client.project)) } else { Err(Refusal::InvalidServerKey.into()) }
    }

    /// The same, where a client's server key pays for the call, as any service's does. The project pays for what is asked.
    ///
    /// # Errors
    ///
    /// As [`App::client_project`], and [`Refusal::RateLimited`].
    pub(super) async fn paying_client_project(&self, client: Option<Client>) -> Result<Option<ProjectId>, Error> {
        let Some(Client { standing: Standing::Confidential(key), .. }) = &client else {
            return self.client_project(client).await;
        };
        let key = key.id();
        self.rates.check(Bucket::ServerKey(key))?;
        let project = self.client_project(client).await?;
        self.rates.refund();
        self.rates.charge(Bucket::ServerKey(key))?;
        Ok(project)
    }

    /// Verifies an access token that may have expired: all that a sign-out needs.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnparsableAccessToken`], [`Refusal::WrongProject`], or the store's when the key had to be looked for.
    pub(super) async fn verified(&self, AccessToken(text): &AccessToken) -> Result<VerifiedToken, Error> {
        let candidate = self.verifier.read(text)?;
        let key = self.key_of(candidate.key()).await?;
        Ok(self.verifier.verify(candidate, key.verifying())?)
    }

    /// The key that a token names. Reads the keys again if it is unknown.
    async fn key_of(&self, id: KeyId) -> Result<Arc<SigningKey>, Error> {
        // Nobody needs to read the keys again for a key that the feed knows to be revoked.
        if self.feed.has_revoked(id) {
            return Err(Refusal::UnparsableAccessToken.into());
        }
        let snapshot = self.keys.find(id, |snapshot| snapshot.keyring.signing(id).is_some()).await?;
        Ok(Arc::clone(self.known_key(&snapshot, id)?))
    }

    /// The key of this id in a snapshot.
    fn known_key<'s>(&self, snapshot: &'s Snapshot, id: KeyId) -> Result<&'s Arc<SigningKey>, VerifyError> {
        if self.feed.has_revoked(id) {
            return Err(VerifyError::Unparsable);
        }
        snapshot.keyring.signing(id).ok_or(VerifyError::UnknownKey(id))
    }
}

/// Checks that neither the token nor its key is past its time.
fn check_current(token: &VerifiedToken, snapshot: &Snapshot, now: Timestamp) -> Result<(), VerifyError> {
    token.check_expiry(now)?;
    // A key retired for so long has leaked if a fresh token is signed with it; a key that is gone was revoked.
    match snapshot.keyring.verifies(token.key(), now, ACCESS_TOKEN_TTL_MAX) {
        Some(_) => Ok(()),
        None => Err(VerifyError::Unparsable),
    }
}
