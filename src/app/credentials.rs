//! Who asks. A credential is read in `rpc`; here it is believed, or not.

use std::sync::Arc;

use super::App;
use super::Error;
use super::keys::Snapshot;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::rates::Of;
use crate::session::Epoch;
use crate::session::Refusal;
use crate::session::Session;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::store::Role;
use crate::store::Seen;
use crate::store::Store;
use crate::token::access::Presented;
use crate::token::access::Rejection;
use crate::token::keys::SigningKey;
use crate::token::server_key::ServerKey;

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

/// A user, by a genuine access token that has not expired. Whether its session still lives is for its row to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SignedIn {
    pub(super) project: ProjectId,
    pub(super) user: UserId,
    pub(super) session: SessionId,
    /// Someone else acts as the user: an impersonation can look, and end only itself.
    pub(super) is_impersonation: bool,
    /// The epoch that the session was opened under.
    pub(super) epoch: Epoch,
    /// The key that signed the token.
    pub(super) key: KeyId,
    /// When the token runs out.
    pub(super) expires_at: Timestamp,
    /// When the user proved who they are, as far as is known.
    auth_time: Option<Timestamp>,
    /// How, as far as is known.
    acr: Option<String>,
}

/// A caller that has shown who it is.
pub(super) enum Principal {
    User(SignedIn),
    Service(Service),
}

/// What a genuine access token says, expired or not.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bearer {
    pub(super) project: ProjectId,
    pub(super) session: SessionId,
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
        self.rates.look(Of::ServerKey(key.id()))?;
        let service = self.holder_of(&self.store, &key).await?;
        self.rates.give_back();
        self.rates.take(Of::ServerKey(key.id()))?;
        self.rates.take(Of::Project(&service.project))?;
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
            Principal::User(SignedIn { project, .. }) if *project != client.project => {
                Err(Refusal::WrongProject { expected: client.project.to_string(), actual: project.to_string() }.into())
            }
            Principal::Service(service) if !client.admits(service) => Err(Refusal::InvalidServerKey.into()),
            Principal::User(_) | Principal::Service(_) => Ok(principal),
        }
    }

    /// The user behind a caller, where no one else will do.
    ///
    /// # Errors
    ///
    /// [`Refusal::CredentialsMissing`], [`Refusal::InsufficientAccessType`] for a service; as [`App::signed_in`].
    pub(super) async fn user(&self, caller: Caller) -> Result<SignedIn, Error> {
        match caller {
            Caller::User(token) => self.signed_in(&token).await,
            Caller::Service(_) | Caller::MalformedServerKey => Err(Refusal::InsufficientAccessType.into()),
            Caller::Nobody => Err(Refusal::CredentialsMissing.into()),
        }
    }

    /// The user behind an access token, which must not have expired. A genuine one takes from its project's bucket.
    async fn signed_in(&self, token: &AccessToken) -> Result<SignedIn, Error> {
        let presented = Presented::parse(&token.0).map_err(Refusal::from)?;
        let key = self.key_of(&presented).await?;
        self.rates.look(Of::Project(key.project()))?;
        let claims = self.verified.verify(&presented, &key, &self.issuer).map_err(Refusal::from)?;
        // The user before the project: no user can use up what the project has.
        if let Some(user) = UserId::parse(&claims.sub) {
            self.rates.take(Of::User(key.project(), &user))?;
        }
        self.rates.take(Of::Project(key.project()))?;
        let read = || {
            Some(SignedIn {
                project: ProjectId::parse(&claims.project_id)?,
                user: UserId::parse(&claims.sub)?,
                session: SessionId::parse(&claims.sid)?,
                is_impersonation: claims.act.is_some(),
                epoch: Epoch { project: claims.epoch[0], user: claims.epoch[1] },
                key: presented.key(),
                expires_at: Timestamp::from_seconds(claims.exp),
                auth_time: claims.auth_time.map(Timestamp::from_seconds),
                acr: claims.acr.clone(),
            })
        };
        let signed_in = read().ok_or(Refusal::UnparsableAccessToken)?;
        let now = self.clock.now();
        if claims.expired_at(now) {
            let SignedIn { project, user, session, expires_at: expired_at, .. } = signed_in;
            return Err(Refusal::AccessTokenExpired { expired_at, project, user, session }.into());
        }
        // A key that has signed nothing for so long has leaked, if a token under it says that it is fresh.
        match self.keys.snapshot().keyring.verifies(presented.key(), now, ACCESS_TOKEN_TTL_MAX) {
            Some(_) => Ok(signed_in),
            None => Err(Refusal::UnparsableAccessToken.into()),
        }
    }

    /// Checks that a user who is about to end other sessions has authenticated as the project asks: a stolen access token
    /// may be of any age.
    ///
    /// # Errors
    ///
    /// [`Refusal::InsufficientUserAuthentication`]; the store's, when the policy had to be looked for.
    pub(super) async fn may_revoke_others(&self, signed_in: &SignedIn, now: Timestamp) -> Result<(), Error> {
        let snapshot = self.keys.with(|snapshot| snapshot.policy(&signed_in.project).is_some()).await?;
        let revoking = snapshot.policy(&signed_in.project).map(|policy| policy.revoking.clone()).unwrap_or_default();
        match revoking.admits(signed_in.auth_time, signed_in.acr.as_deref(), now) {
            true => Ok(()),
            false => Err(Refusal::InsufficientUserAuthentication(revoking).into()),
        }
    }

    /// The session of a signed-in user, as it is now. Notes that it is in use.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionRevoked`] when it has ended, one way or another; the store's; as [`App::check_trusted`].
    pub(super) async fn own_session(&self, signed_in: &SignedIn) -> Result<Session, Error> {
        let now = self.clock.now();
        let found = self.store.session_find(signed_in.project.clone(), signed_in.session).await?;
        self.check_trusted()?;
        let Some(Seen { stored, present, .. }) = found else { return Err(Refusal::SessionRevoked.into()) };
        if !stored.session.is_live(now, present) {
            self.feed.note_ended(&signed_in.project, signed_in.session);
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
        self.rates.look(Of::ServerKey(key))?;
        let project = self.client_project(client).await?;
        self.rates.give_back();
        self.rates.take(Of::ServerKey(key))?;
        Ok(project)
    }

    /// What a genuine access token says, expired or not: all that a sign-out needs.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnparsableAccessToken`], [`Refusal::WrongProject`], or the store's when the key had to be looked for.
    pub(super) async fn bearer(&self, token: &AccessToken) -> Result<Bearer, Error> {
        let presented = Presented::parse(&token.0).map_err(Refusal::from)?;
        let key = self.key_of(&presented).await?;
        let claims = self.verified.verify(&presented, &key, &self.issuer).map_err(Refusal::from)?;
        let read =
            || Some(Bearer { project: ProjectId::parse(&claims.project_id)?, session: SessionId::parse(&claims.sid)? });
        Ok(read().ok_or(Refusal::UnparsableAccessToken)?)
    }

    /// The key that a token says it was signed with.
    async fn key_of(&self, presented: &Presented<'_>) -> Result<Arc<SigningKey>, Error> {
        // Known before the keys are read again; and nobody needs to read them for it.
        if self.feed.has_revoked(presented.key()) {
            return Err(Refusal::UnparsableAccessToken.into());
        }
        let snapshot =
            self.keys.find(presented.key(), |snapshot| snapshot.keyring.signing(presented.key()).is_some()).await?;
        Ok(Arc::clone(snapshot.keyring.signing(presented.key()).ok_or(Refusal::UnparsableAccessToken)?))
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Unparsable => Self::UnparsableAccessToken,
            Rejection::WrongProject { expected, actual } => Self::WrongProject { expected, actual },
        }
    }
}
