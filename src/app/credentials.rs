//! Authenticates callers. `rpc` parses their credentials; this module verifies them.

use std::sync::Arc;

use tokio::time::Instant;

use super::App;
use super::Error;
use super::keys::Snapshot;
use crate::rates::Bucket;
use crate::store::KeyProof;
use crate::store::Privileges;
use crate::store::RefusedAttempt;
use crate::store::RefusedCredential;
use crate::store::Role;
use crate::store::ServerKeyRow;
use crate::store::SessionWithEpochs;
use crate::store::Store;
use crate::telemetry::request;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::CertificateProblem;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::epoch::Epoch;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::policy::StepUp;
use sessiond_core::token::certificate_name::CertificateName;
use sessiond_core::token::keys::SigningKey;
use sessiond_core::token::server_key::ServerKey;
use sessiond_core::token::verified::VerifiedToken;
use sessiond_core::token::verified::VerifyError;

/// An access token as it was presented. Has no `Debug`, so that it cannot reach a log.
pub struct AccessToken(pub String);

/// The caller's credential, not verified yet.
pub enum Caller {
    /// None.
    Nobody,
    /// A user's access token.
    User(AccessToken),
    /// A service's server key.
    Service(ServerKey),
    /// A malformed server key.
    MalformedServerKey,
    /// A service's client certificate.
    Certificate(ClientCertificate),
}

/// A client certificate that a trusted authority has signed. Cheap to clone; clones share the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The SPIFFE ids and DNS names in its subject alternative names.
    pub names: Arc<[CertificateName]>,
    /// The last moment of its validity. A connection may last longer.
    pub valid_until: Timestamp,
}

/// An OAuth client (RFC 6749 §2), not authenticated yet. Its requests concern its own project only.
#[derive(Clone)]
pub struct Client {
    /// Its id: the project.
    pub project: ProjectId,
    /// How it authenticates.
    pub auth: ClientAuth,
    /// The least role that its server key must have.
    pub role: Role,
}

impl Client {
    /// Whether a service with a genuine server key may act as this client.
    fn admits(&self, service: &Service) -> bool {
        service.project == self.project && service.privileges.role >= self.role
    }
}

/// How a client authenticates.
#[derive(Clone)]
pub enum ClientAuth {
    /// With its secret: a server key of the project.
    Confidential(ServerKey),
    /// With its client certificate (RFC 8705 §2.1), if that stands in for a server key of the project; else as a public client.
    /// Its connection may be that of a gateway which presents its own certificate for everyone.
    Certificate(ClientCertificate),
    /// Not at all, because it cannot keep a secret (RFC 6749 §2.1). Refused for an unknown project.
    Public,
    /// Not at all: it only names its project. Not checked here, because its tokens are checked against the project.
    Unchecked,
}

/// An authenticated service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The project it acts for.
    pub project: ProjectId,
    /// What it may do, and until when.
    pub privileges: Privileges,
    /// The server key that it proved: by its secret, or by its client certificate.
    pub key: KeyId,
}

impl Service {
    /// The service of a server key.
    fn of(row: &ServerKeyRow) -> Self {
        Self { project: row.project.clone(), privileges: row.privileges, key: row.id }
    }
}

/// The client on whose behalf a request is made.
pub(super) struct AuthenticatedClient {
    /// Its project.
    pub(super) project: ProjectId,
    /// The server key that it proved; `None` for a public client.
    pub(super) key: Option<KeyId>,
}

/// An authenticated caller.
pub(super) enum VerifiedCaller {
    /// A user with an access token that has not expired. Whether the session is live is not checked yet.
    User(VerifiedToken),
    Service(Service),
}

/// What the row of a caller's own session says.
pub(super) struct OwnRow {
    is_live: bool,
    last_used_at: Timestamp,
}

impl OwnRow {
    /// Reads it from a row, with the epochs at present.
    pub(super) fn new(session: &Session, present: Epoch, now: Timestamp) -> Self {
        Self { is_live: session.is_live(now, present), last_used_at: session.last_used_at }
    }
}

impl App {
    /// Authenticates the service behind a server key, or behind the client certificate that stands in for one, and checks that
    /// it has at least this role.
    ///
    /// Only a genuine key is charged to its own bucket and its project's: otherwise anyone who knows the key's id could drain
    /// them. Other attempts are charged to the address they come from; a genuine key refunds that charge. If the bucket is
    /// empty, the database is not queried.
    ///
    /// # Errors
    ///
    /// [`Refusal::CredentialsMissing`], [`Refusal::InsufficientAccessType`] for a user, [`Refusal::InvalidServerKey`] for
    /// one that is malformed, unknown, revoked or expired, [`Refusal::InsufficientServerKey`] for one with a lesser role,
    /// [`Refusal::CertificateRefused`], [`Refusal::RateLimited`]; or if the database operation fails.
    pub async fn service(&self, caller: Caller, least: Role) -> Result<Service, Error> {
        let service = match caller {
            Caller::Service(key) => {
                if let Err(empty) = self.rates.check(Bucket::ServerKey(key.id())) {
                    // Noted only if it is certainly genuine, without asking the database.
                    if let Some(service) = self.server_keys.find(&key, Instant::now()) {
                        self.note_refused_service(&service, RefusedAttempt::RateLimited);
                    }
                    return Err(empty.into());
                }
                self.find_service(&self.store, &key).await?
            }
            Caller::Certificate(certificate) => {
                // Its key is not known before. Only the authority's certificates get here.
                let service = self.find_certified(&self.store, &certificate).await?;
                let checked = self.rates.check(Bucket::ServerKey(service.key));
                checked.inspect_err(|_| self.note_refused_service(&service, RefusedAttempt::RateLimited))?;
                service
            }
            Caller::MalformedServerKey => return Err(Refusal::InvalidServerKey.into()),
            Caller::User(_) => return Err(Refusal::InsufficientAccessType.into()),
            Caller::Nobody => return Err(Refusal::CredentialsMissing.into()),
        };
        request::note_project(&service.project);
        self.rates.refund();
        let charged = self.rates.charge(Bucket::ServerKey(service.key));
        charged.inspect_err(|_| self.note_refused_service(&service, RefusedAttempt::RateLimited))?;
        self.rates.charge(Bucket::Project(&service.project))?;
        if service.privileges.role < least {
            self.note_refused_service(&service, RefusedAttempt::ServerKeyPrivileges);
            return Err(Refusal::InsufficientServerKey(least.as_str()).into());
        }
        Ok(service)
    }

    /// Finds the service of a server key. Charges no bucket.
    ///
    /// A key that was looked up lately is not looked up again, as long as the feed is fresh and knows of no revocation: a
    /// revocation by another replica is noticed as soon as that of a session.
    async fn find_service(&self, store: &Store, key: &ServerKey) -> Result<Service, Error> {
        let now = Instant::now();
        if let Some(service) = self.server_keys.find(key, now).filter(|service| self.is_usable(service)) {
            return Ok(service);
        }
        let row = store.server_key_find(key.id()).await?.ok_or(Refusal::InvalidServerKey)?;
        let (service, is_use_due) = (Service::of(&row), row.is_use_due(self.clock.now()));
        let refused = match row.proof {
            KeyProof::Secret(digest) if !digest.matches(&key.digest()) => Some(RefusedAttempt::ServerKeySecret),
            KeyProof::Secret(_) if row.is_revoked || row.privileges.is_expired(self.clock.now()) => {
                Some(RefusedAttempt::ServerKeyRevoked)
            }
            KeyProof::Secret(digest) => {
                self.server_keys.insert(digest, service.clone(), now);
                None
            }
            KeyProof::Certificate(_) => Some(RefusedAttempt::ServerKeySecret),
        };
        if let Some(why) = refused {
            self.note_refused_service(&service, why);
            return Err(Refusal::InvalidServerKey.into());
        }
        if is_use_due {
            self.note_use(service.key);
        }
        Ok(service)
    }

    /// Finds the service of a client certificate. Charges no bucket. The same holds as for [`App::find_service`].
    ///
    /// Several names may stand for the same project and privileges, for example while a service is renamed; then the oldest counts.
    /// If they stand for different ones, the certificate is refused: the order of names in a certificate means nothing.
    async fn find_certified(&self, store: &Store, certificate: &ClientCertificate) -> Result<Service, Error> {
        let refused = |problem| Error::from(Refusal::CertificateRefused(problem));
        if certificate.valid_until < self.clock.now() {
            return Err(refused(CertificateProblem::Expired));
        }
        let (names, now) = (&certificate.names, Instant::now());
        let known = self.server_keys.find_certificate(names, now);
        if let Some(service) = known.filter(|service| self.is_usable(service)) {
            return Ok(service);
        }
        let mut rows = if names.is_empty() { vec![] } else { store.server_keys_of_certificate(names).await? };
        rows.retain(|row| !row.privileges.is_expired(self.clock.now()));
        let mut services = rows.iter().map(Service::of);
        let service = services.next().ok_or_else(|| refused(CertificateProblem::Unknown))?;
        if services.any(|other| (&other.project, other.privileges) != (&service.project, service.privileges)) {
            return Err(refused(CertificateProblem::Ambiguous));
        }
        self.server_keys.insert_certificate(Arc::clone(names), service.clone(), now);
        if rows.first().is_some_and(|row| row.is_use_due(self.clock.now())) {
            self.note_use(service.key);
        }
        Ok(service)
    }

    /// Whether the key of a remembered service is certainly neither revoked nor expired.
    fn is_usable(&self, service: &Service) -> bool {
        // In this order: a feed that starts again ceases to be fresh, and then forgets what was revoked.
        !self.feed.has_revoked(service.key) && self.feed.is_fresh() && !service.privileges.is_expired(self.clock.now())
    }

    /// Records that a server key is in use, without waiting for it. If another record is being written, or it fails, one of the
    /// next lookups makes up for it.
    fn note_use(&self, key: KeyId) {
        let Some(permit) = self.server_keys.begin_record() else { return };
        let (store, now) = (self.store.clone(), self.clock.now());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = store.server_key_note_use(key, now).await;
        });
    }

    /// Counts a refused attempt with a server key for the audit.
    pub(super) fn note_refused_service(&self, service: &Service, why: RefusedAttempt) {
        self.note_refused(&service.project, why, RefusedCredential::ServerKey(service.key));
    }

    /// Counts a refused attempt with a token of a session for the audit.
    pub(super) fn note_refused_session(&self, project: &ProjectId, session: SessionId, why: RefusedAttempt) {
        self.note_refused(project, why, RefusedCredential::Session(session));
    }

    /// Refuses a service whose genuine server key is not the client's.
    fn check_client(&self, client: &Client, service: &Service) -> Result<(), Error> {
        if client.admits(service) {
            return Ok(());
        }
        let why = match client.project == service.project {
            true => RefusedAttempt::ServerKeyPrivileges,
            false => RefusedAttempt::WrongProject,
        };
        self.note_refused_service(service, why);
        Err(Refusal::InvalidServerKey.into())
    }

    /// Refuses a genuine token of another project.
    pub(super) fn check_project(&self, token: &VerifiedToken, project: &ProjectId) -> Result<(), VerifyError> {
        token.check_project(project).inspect_err(|_| {
            self.note_refused_session(token.project(), token.session(), RefusedAttempt::WrongProject);
        })
    }

    /// Authenticates the user behind a credential, or the service, which must have at least this role.
    ///
    /// # Errors
    ///
    /// As [`App::service`] and [`App::signed_in`].
    pub(super) async fn principal(&self, caller: Caller, least: Role) -> Result<VerifiedCaller, Error> {
        match caller {
            Caller::User(token) => Ok(VerifiedCaller::User(self.signed_in(&token).await?)),
            service => Ok(VerifiedCaller::Service(self.service(service, least).await?)),
        }
    }

    /// Authenticates the service behind a server key, which must have at least this role; on behalf of a client, only in the
    /// client's project.
    ///
    /// # Errors
    ///
    /// As [`App::service`] and [`App::client_project`]; [`Refusal::InvalidServerKey`] for a service of another project.
    pub(super) async fn service_within(
        &self,
        caller: Caller,
        client: Option<Client>,
        least: Role,
    ) -> Result<Service, Error> {
        self.client_project(client.clone()).await?;
        let service = self.service(caller, least).await?;
        if let Some(client) = &client {
            self.check_client(client, &service)?;
        }
        Ok(service)
    }

    /// Authenticates the user behind a credential, or the service, which must have at least this role; on behalf of a client,
    /// only in the client's project.
    ///
    /// # Errors
    ///
    /// As [`App::principal`] and [`App::client_project`]; [`Refusal::WrongProject`] for a user of another project,
    /// [`Refusal::InvalidServerKey`] for a service of one.
    pub(super) async fn principal_within(
        &self,
        caller: Caller,
        client: Option<Client>,
        least: Role,
    ) -> Result<VerifiedCaller, Error> {
        self.client_project(client.clone()).await?;
        let principal = self.principal(caller, least).await?;
        let Some(client) = client else { return Ok(principal) };
        match &principal {
            VerifiedCaller::User(token) => self.check_project(token, &client.project)?,
            VerifiedCaller::Service(service) => self.check_client(&client, service)?,
        }
        Ok(principal)
    }

    /// Authenticates a caller that must be a user.
    ///
    /// # Errors
    ///
    /// [`Refusal::CredentialsMissing`], [`Refusal::InsufficientAccessType`] for a service; as [`App::signed_in`].
    pub(super) async fn user(&self, caller: Caller) -> Result<VerifiedToken, Error> {
        match caller {
            Caller::User(token) => self.signed_in(&token).await,
            Caller::Service(_) | Caller::MalformedServerKey | Caller::Certificate(_) => {
                Err(Refusal::InsufficientAccessType.into())
            }
            Caller::Nobody => Err(Refusal::CredentialsMissing.into()),
        }
    }

    /// Verifies an access token that must not have expired. A genuine one is charged to its user and its project.
    async fn signed_in(&self, AccessToken(text): &AccessToken) -> Result<VerifiedToken, Error> {
        let candidate = self.verifier.read(text)?;
        let key = self.key_of(candidate.key()).await?;
        self.rates.check(Bucket::Project(key.project()))?;
        let token = self.verifier.verify(candidate, key.verifying())?;
        request::note_project(key.project());
        // The user before the project, so that no user can drain the project's bucket.
        self.rates.charge(Bucket::User(key.project(), token.user())).inspect_err(|_| {
            self.note_refused_session(key.project(), token.session(), RefusedAttempt::RateLimited);
        })?;
        self.rates.charge(Bucket::Project(key.project()))?;
        check_current(&token, &self.keys.snapshot(), self.clock.now())?;
        Ok(token)
    }

    /// Verifies an access token of a project by the keys of a snapshot: everything except its session.
    ///
    /// # Errors
    ///
    /// See [`VerifyError`]. [`VerifyError::WrongProject`] only for a genuine token, so that nobody else learns its project.
    pub(super) fn verify_by(
        &self,
        snapshot: &Snapshot,
        project: &ProjectId,
        text: &str,
        now: Timestamp,
    ) -> Result<VerifiedToken, VerifyError> {
        let token = self.genuine_by(snapshot, text)?;
        token.check_project(project)?;
        check_current(&token, snapshot, now)?;
        Ok(token)
    }

    /// As [`App::verify_by`], for an attempt to use the token: the audit counts it if the token is another project's.
    pub(super) fn admit_by(
        &self,
        snapshot: &Snapshot,
        project: &ProjectId,
        text: &str,
        now: Timestamp,
    ) -> Result<VerifiedToken, VerifyError> {
        let token = self.genuine_by(snapshot, text)?;
        self.check_project(&token, project)?;
        check_current(&token, snapshot, now)?;
        Ok(token)
    }

    /// Checks a token's signature by the keys of a snapshot, and nothing else.
    fn genuine_by(&self, snapshot: &Snapshot, text: &str) -> Result<VerifiedToken, VerifyError> {
        let candidate = self.verifier.read(text)?;
        let key = self.known_key(snapshot, candidate.key())?;
        self.verifier.verify(candidate, key.verifying())
    }

    /// Checks that a user who is about to end other sessions has authenticated as the project requires, because an access
    /// token may be stolen.
    ///
    /// # Errors
    ///
    /// [`Refusal::InsufficientUserAuthentication`]; or if the policy had to be reloaded and the database operation fails.
    pub(super) async fn may_revoke_others(&self, token: &VerifiedToken, now: Timestamp) -> Result<(), Error> {
        let snapshot = self.keys.with(|snapshot| snapshot.policy(token.project()).is_some()).await?;
        let revoking = snapshot.policy(token.project()).map(|policy| policy.revoking.clone()).unwrap_or_default();
        Ok(check_authentication(token, &revoking, now)?)
    }

    /// Checks that the user of a verified token has authenticated as required (RFC 9470).
    ///
    /// # Errors
    ///
    /// [`Refusal::InsufficientUserAuthentication`].
    pub fn check_authentication(&self, token: &VerifiedToken, required: &StepUp) -> Result<(), Refusal> {
        check_authentication(token, required, self.clock.now())
    }

    /// Reads the session of a signed-in user, and records that it is in use.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionRevoked`] if it has ended for any reason; as [`App::check_trusted`]; or if the database operation
    /// fails.
    pub(super) async fn own_session(&self, token: &VerifiedToken) -> Result<Session, Error> {
        let now = self.clock.now();
        let found = self.store.session_find(token.project().clone(), token.session()).await?;
        self.check_trusted()?;
        let Some(SessionWithEpochs { stored, present, .. }) = found else {
            self.note_refused_session(token.project(), token.session(), RefusedAttempt::SessionRevoked);
            return Err(Refusal::SessionRevoked.into());
        };
        self.check_own(token, &OwnRow::new(&stored.session, present, now), now)?;
        Ok(stored.session)
    }

    /// Checks that the session of a signed-in user has not ended, and records that it is in use.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionRevoked`].
    pub(super) fn check_own(&self, token: &VerifiedToken, row: &OwnRow, now: Timestamp) -> Result<(), Refusal> {
        if !row.is_live {
            self.feed.note_ended(token.project(), token.session());
            self.note_refused_session(token.project(), token.session(), RefusedAttempt::SessionRevoked);
            return Err(Refusal::SessionRevoked);
        }
        self.usage.note(token.project(), token.session(), row.last_used_at, now);
        Ok(())
    }

    /// Authenticates a client and returns its project, to which the request is confined; `None` without a client. Charges no
    /// bucket, because a sign-out must not be limited by one.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidServerKey`] if the client's secret is not a server key, if the key belongs to another project or lacks the role, or if a public client names an
    /// unknown project; or if the database operation fails.
    pub(super) async fn client_project(&self, client: Option<Client>) -> Result<Option<ProjectId>, Error> {
        let Some(client) = client else { return Ok(None) };
        Ok(Some(self.authenticated_client(client).await?.project))
    }

    async fn authenticated_client(&self, client: Client) -> Result<AuthenticatedClient, Error> {
        let exists = |snapshot: &Snapshot| snapshot.policy(&client.project).is_some();
        let service = match &client.auth {
            ClientAuth::Confidential(key) => {
                let service = self.find_service(&self.urgent, key).await?;
                self.check_client(&client, &service)?;
                Some(service)
            }
            ClientAuth::Certificate(certificate) => match self.find_certified(&self.urgent, certificate).await {
                Ok(service) => Some(service).filter(|service| client.admits(service)),
                Err(Error::Refused(Refusal::CertificateRefused(_))) => None,
                Err(error) => return Err(error),
            },
            ClientAuth::Public | ClientAuth::Unchecked => None,
        };
        let is_admitted = match (&service, &client.auth) {
            (Some(_), _) | (None, ClientAuth::Unchecked) => true,
            (None, _) => exists(&*self.keys.find(&client.project, exists).await?),
        };
        match is_admitted {
            true => Ok(AuthenticatedClient { project: client.project, key: service.map(|service| service.key) }),
            false => Err(Refusal::InvalidServerKey.into()),
        }
    }

    /// As [`App::client_project`], and charges the client's server key. The operation itself charges the project.
    ///
    /// # Errors
    ///
    /// As [`App::client_project`], and [`Refusal::RateLimited`].
    pub(super) async fn paying_client(&self, client: Option<Client>) -> Result<Option<AuthenticatedClient>, Error> {
        let Some(client) = client else { return Ok(None) };
        if let ClientAuth::Confidential(key) = &client.auth {
            self.rates.check(Bucket::ServerKey(key.id()))?;
        }
        let client = self.authenticated_client(client).await?;
        if let Some(key) = client.key {
            self.rates.check(Bucket::ServerKey(key))?;
            self.rates.refund();
            self.rates.charge(Bucket::ServerKey(key))?;
        }
        Ok(Some(client))
    }

    /// The session of an access token that may have expired: all that a sign-out needs.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnparsableAccessToken`], [`Refusal::WrongProject`]; or if the keys had to be reloaded and the database
    /// operation fails.
    pub(super) async fn session_of_access(&self, token: &AccessToken) -> Result<(ProjectId, SessionId), Error> {
        let AccessToken(text) = token;
        let candidate = self.verifier.read(text)?;
        let key = self.key_of(candidate.key()).await?;
        Ok(self.verifier.verify_session(candidate, key.verifying())?)
    }

    /// As [`App::session_of_access`], by the keys of a snapshot.
    ///
    /// # Errors
    ///
    /// See [`VerifyError`].
    pub(super) fn session_by(
        &self,
        snapshot: &Snapshot,
        AccessToken(text): &AccessToken,
    ) -> Result<(ProjectId, SessionId), VerifyError> {
        let candidate = self.verifier.read(text)?;
        let key = self.known_key(snapshot, candidate.key())?;
        self.verifier.verify_session(candidate, key.verifying())
    }

    /// The key that a token names. Reloads the keys if it is unknown.
    async fn key_of(&self, id: KeyId) -> Result<Arc<SigningKey>, Error> {
        // The feed knows that the key is revoked: no need to reload the keys.
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

fn check_authentication(token: &VerifiedToken, required: &StepUp, now: Timestamp) -> Result<(), Refusal> {
    let auth_time = token.claims().auth_time.map(Timestamp::from_seconds);
    match required.admits(auth_time, token.claims().acr.as_deref(), now) {
        true => Ok(()),
        false => Err(Refusal::InsufficientUserAuthentication(required.clone())),
    }
}

/// Checks that neither the token nor its key has expired.
fn check_current(token: &VerifiedToken, snapshot: &Snapshot, now: Timestamp) -> Result<(), VerifyError> {
    token.check_expiry(now)?;
    // A key retired longer ago than any token lives signs no valid token: a fresh one means that the key has leaked. A key
    // missing from the snapshot was revoked.
    match snapshot.keyring.verifies(token.key(), now, ACCESS_TOKEN_TTL_MAX) {
        Some(_) => Ok(()),
        None => Err(VerifyError::Unparsable),
    }
}
