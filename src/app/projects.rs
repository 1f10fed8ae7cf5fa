//! Projects and server keys, as the operator manages them from the command line.

use std::time::Duration;

use secrecy::SecretString;

use super::App;
use super::Error;
use crate::store;
use crate::store::KeyProof;
use crate::store::Narrowing;
use crate::store::Privileges;
use crate::store::Project;
use crate::store::ServerKeyFacts;
use crate::store::ServerKeyRow;
use crate::store::Tx;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::PolicyError;
use sessiond_core::token::bucket::BucketKey;
use sessiond_core::token::certificate_name::CertificateName;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::Purpose;
use sessiond_core::token::server_key::ServerKey;

/// The largest assumed difference between the clocks of two servers.
pub(super) const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Why an operation on a project or a key failed.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The project already exists.
    #[error("project {0} already exists")]
    Exists(ProjectId),
    /// The project is unknown.
    #[error("unknown project {0}; `sessiond project list` shows those that exist")]
    Missing(ProjectId),
    /// The project has no such key. Does not reveal whether another project has it.
    #[error("project {project} has no {purpose} {id}; `list` shows the keys it has")]
    MissingKey {
        /// The project.
        project: ProjectId,
        /// What the key would be for.
        purpose: Purpose,
        /// The key.
        id: KeyId,
    },
    /// The name in client certificates already stands for a project.
    #[error("{0} already stands for a project; `sessiond client-certificate list` shows the names of each")]
    NameTaken(CertificateName),
    /// The server key is unknown.
    #[error("unknown server key {0}; `list` shows the server keys of a project")]
    MissingServerKey(KeyId),
    /// A rotation is already in progress.
    #[error(
        "a rotation is in progress: {purpose} {successor} of project {project} takes over at {from}. Rotate again after that, or \
         use --now to make it take over at once"
    )]
    UnderWay {
        /// The project.
        project: ProjectId,
        /// What the key is for.
        purpose: Purpose,
        /// The key that takes over.
        successor: KeyId,
        /// When it takes over.
        from: Timestamp,
    },
    /// The policy is inconsistent.
    #[error(transparent)]
    BadPolicy(#[from] PolicyError),
    /// The sealing key is not the one that the database's keys are sealed with, or the database failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// When a server key was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKeyRevoked {
    /// By this call.
    Now,
    /// Earlier; nothing has changed.
    Before,
}

impl App {
    /// Creates a project with its first signing key and refresh-token key.
    ///
    /// # Errors
    ///
    /// Fails if the project exists, if the policy is inconsistent, or if the database operation fails.
    pub async fn project_create(&self, id: ProjectId, policy: Policy) -> Result<(), ProjectError> {
        policy.check()?;
        self.check_sealing().await?;
        let now = self.clock.now();
        // The first keys sign at once, because nobody has cached the JWKS of a project that did not exist. Also on servers whose
        // clocks are behind this one's.
        let schedule = Schedule::at_once(now - CLOCK_SKEW_MAX);
        let signing = self.keys.new_key(Purpose::Signing, &id, schedule);
        let refresh = self.keys.new_key(Purpose::Refresh, &id, schedule);
        let project = Project { id: id.clone(), policy, bucket_key: BucketKey::generate() };
        match self.store.project_insert(project, signing, refresh, now).await {
            Err(store::Error::Conflict { constraint, .. }) if constraint == "projects_pkey" => {
                Err(ProjectError::Exists(id))
            }
            outcome => outcome.map_err(|error| ProjectError::Failed(error.into())),
        }
    }

    /// Changes a project's policy, and returns the changed project. Keeps concurrent changes to other settings. Takes effect
    /// on every replica within [`super::keys::RELOAD_INTERVAL`].
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, if its policy would be inconsistent, or if the database operation fails.
    pub async fn project_update(
        &self,
        id: ProjectId,
        change: impl FnOnce(&mut Policy) + Send + 'static,
    ) -> Result<Project, ProjectError> {
        let (name, clock) = (id, self.clock.clone());
        let work = move |mut tx: Tx| async move {
            let Some(mut project) = tx.project_lock(&name).await? else {
                return tx.commit(Err(ProjectError::Missing(name))).await;
            };
            let before = project.policy.clone();
            change(&mut project.policy);
            if let Err(why) = project.policy.check() {
                return tx.commit(Err(ProjectError::BadPolicy(why))).await;
            }
            // Read while the project is locked: an earlier time could lie before another operator's change.
            tx.project_set(&project, &before, clock.now()).await?;
            tx.commit(Ok(project)).await
        };
        self.store.transact("project_update", work).await.map_err(Error::from)?
    }

    /// A project.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, or if the database operation fails.
    pub async fn project(&self, id: ProjectId) -> Result<Project, ProjectError> {
        self.store.project_find(id.clone()).await.map_err(Error::from)?.ok_or(ProjectError::Missing(id))
    }

    /// Every project and when it was created, ordered by name.
    ///
    /// # Errors
    ///
    /// Fails if the database operation fails.
    pub async fn projects(&self) -> Result<Vec<(ProjectId, Timestamp)>, ProjectError> {
        Ok(self.store.projects_list().await.map_err(Error::from)?)
    }

    /// Creates a server key. Its text is returned only here: the database keeps a digest. A role alone means its least
    /// privileges.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, or if the database operation fails.
    pub async fn server_key_create(
        &self,
        project: ProjectId,
        privileges: impl Into<Privileges>,
    ) -> Result<(KeyId, SecretString), ProjectError> {
        let key = ServerKey::generate();
        self.server_key_insert(key.id(), project, privileges.into(), KeyProof::Secret(key.digest())).await?;
        Ok((key.id(), key.expose()))
    }

    /// Narrows what a server key may do, and returns its privileges before and after. Every replica applies it within five
    /// seconds: that long a key that was looked up is remembered.
    ///
    /// # Errors
    ///
    /// Fails if the key is unknown, or if the database operation fails.
    pub async fn server_key_narrow(
        &self,
        id: KeyId,
        limits: Narrowing,
    ) -> Result<(Privileges, Privileges), ProjectError> {
        let narrowed = self.store.server_key_narrow(id, limits, self.clock.now()).await.map_err(Error::from)?;
        narrowed.ok_or(ProjectError::MissingServerKey(id))
    }

    /// Lets client certificates with this name stand in for a server key of the project. Returns the key's id.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, if the name already stands for a project, or if the database operation fails.
    pub async fn client_certificate_add(
        &self,
        project: ProjectId,
        privileges: impl Into<Privileges>,
        name: CertificateName,
    ) -> Result<KeyId, ProjectError> {
        let id = KeyId::from_uuid(clock::new_uuid());
        self.server_key_insert(id, project, privileges.into(), KeyProof::Certificate(name)).await?;
        Ok(id)
    }

    async fn server_key_insert(
        &self,
        id: KeyId,
        project: ProjectId,
        privileges: Privileges,
        proof: KeyProof,
    ) -> Result<(), ProjectError> {
        let name = match &proof {
            KeyProof::Certificate(name) => Some(name.clone()),
            KeyProof::Secret(_) => None,
        };
        let row =
            ServerKeyRow { id, project: project.clone(), privileges, proof, last_used_at: None, is_revoked: false };
        match (self.store.server_key_insert(row, self.clock.now()).await, name) {
            (Err(store::Error::Conflict { constraint, .. }), _) if constraint == "server_keys_project_fkey" => {
                Err(ProjectError::Missing(project))
            }
            (Err(store::Error::Conflict { constraint, .. }), Some(name))
                if constraint == "server_keys_certificate_name_key" =>
            {
                Err(ProjectError::NameTaken(name))
            }
            (outcome, _) => outcome.map_err(|error| ProjectError::Failed(error.into())),
        }
    }

    /// A project's server keys, including revoked ones, oldest first.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, or if the database operation fails.
    pub async fn server_keys(&self, project: ProjectId) -> Result<Vec<ServerKeyFacts>, ProjectError> {
        let keys = self.store.server_keys_list(project.clone()).await.map_err(Error::from)?;
        keys.ok_or(ProjectError::Missing(project))
    }

    /// Revokes a server key. This replica refuses it from now on, and every other one as soon as its feed has read the
    /// revocation.
    ///
    /// # Errors
    ///
    /// Fails if the key is unknown, or if the database operation fails.
    pub async fn server_key_revoke(&self, id: KeyId) -> Result<ServerKeyRevoked, ProjectError> {
        let outcome = self.store.server_key_revoke(id, self.clock.now()).await.map_err(Error::from)?;
        outcome
            .map(|before| if before { ServerKeyRevoked::Before } else { ServerKeyRevoked::Now })
            .ok_or(ProjectError::MissingServerKey(id))
    }
}
