//! Projects and server keys: the operator's business, from the command line.

use std::time::Duration;

use secrecy::SecretString;

use super::App;
use super::Error;
use crate::store;
use crate::store::Project;
use crate::store::Role;
use crate::store::ServerKeyFacts;
use crate::store::ServerKeyRow;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::PolicyError;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::Purpose;
use sessiond_core::token::server_key::ServerKey;

/// How far apart the clocks of two servers may be.
pub(super) const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Why the operator's wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The name is taken.
    #[error("there is already a project {0}")]
    Exists(ProjectId),
    /// There is none of this name.
    #[error("unknown project {0}; `sessiond project list` shows those that exist")]
    Missing(ProjectId),
    /// It has no such key; nothing is said of whether another project has.
    #[error("project {project} has no {purpose} {id}; `list` shows those that it has")]
    MissingKey {
        /// The project.
        project: ProjectId,
        /// What the key would be for.
        purpose: Purpose,
        /// The key.
        id: KeyId,
    },
    /// There is no such server key.
    #[error("there is no server key {0}; `list` shows those of a project")]
    MissingServerKey(KeyId),
    /// A key waits to take over already.
    #[error(
        "a rotation is under way: {purpose} {heir} of project {project} takes over at {from}. Rotate again after that, or \
         say --now to have it take over at once"
    )]
    UnderWay {
        /// The project.
        project: ProjectId,
        /// What the key is for.
        purpose: Purpose,
        /// The key that waits.
        heir: KeyId,
        /// When it takes over.
        from: Timestamp,
    },
    /// Its settings do not go together.
    #[error(transparent)]
    BadPolicy(#[from] PolicyError),
    /// Its keys would be sealed with another sealing key than all others, or the database failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A key is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// By this call.
    Now,
    /// It was before, and nothing has changed.
    Before,
}

impl App {
    /// Creates a project with its first signing key and refresh-token key.
    ///
    /// # Errors
    ///
    /// When the name is taken, or the policy does not hold together; the store's.
    pub async fn project_create(&self, id: ProjectId, policy: Policy) -> Result<(), ProjectError> {
        policy.check()?;
        self.check_sealing().await?;
        let now = self.clock.now();
        // The first keys sign at once: nobody holds a cached JWKS of a project that did not exist. At once for servers whose
        // clocks are behind ours, too.
        let schedule = Schedule::at_once(now - CLOCK_SKEW_MAX);
        let signing = self.keys.new_key(Purpose::Signing, &id, schedule);
        let refresh = self.keys.new_key(Purpose::Refresh, &id, schedule);
        let project = Project { id: id.clone(), policy };
        match self.store.project_insert(project, signing, refresh, now).await {
            Err(store::Error::Conflict { constraint, .. }) if constraint == "projects_pkey" => {
                Err(ProjectError::Exists(id))
            }
            outcome => outcome.map_err(|error| ProjectError::Failed(error.into())),
        }
    }

    /// Changes a project's policy, and answers with the project as it is now. What the change leaves alone stays as it is,
    /// whoever else changes it meanwhile. Takes effect on every replica within [`super::keys::RELOAD_INTERVAL`].
    ///
    /// # Errors
    ///
    /// When there is no such project, or its policy would not hold together; the store's.
    pub async fn project_update(
        &self,
        id: ProjectId,
        change: impl FnOnce(&mut Policy) + Send + 'static,
    ) -> Result<Project, ProjectError> {
        let name = id;
        let work = move |mut tx: Tx| async move {
            let Some(mut project) = tx.project_lock(&name).await? else {
                return tx.commit(Err(ProjectError::Missing(name))).await;
            };
            change(&mut project.policy);
            if let Err(why) = project.policy.check() {
                return tx.commit(Err(ProjectError::BadPolicy(why))).await;
            }
            tx.project_set(&project).await?;
            tx.commit(Ok(project)).await
        };
        self.store.transact("project_update", work).await.map_err(Error::from)?
    }

    /// A project.
    ///
    /// # Errors
    ///
    /// When there is no such project; the store's.
    pub async fn project(&self, id: ProjectId) -> Result<Project, ProjectError> {
        self.store.project_find(id.clone()).await.map_err(Error::from)?.ok_or(ProjectError::Missing(id))
    }

    /// Every project and when it was created, in the order of their names.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn projects(&self) -> Result<Vec<(ProjectId, Timestamp)>, ProjectError> {
        Ok(self.store.projects_list().await.map_err(Error::from)?)
    }

    /// Makes a server key. Its text is shown this once: only a digest is kept.
    ///
    /// # Errors
    ///
    /// When there is no such project; the store's.
    pub async fn server_key_create(
        &self,
        project: ProjectId,
        role: Role,
    ) -> Result<(KeyId, SecretString), ProjectError> {
        let key = ServerKey::generate();
        let row = ServerKeyRow { id: key.id(), project: project.clone(), role, digest: key.digest() };
        match self.store.server_key_insert(row, self.clock.now()).await {
            Ok(()) => Ok((key.id(), key.expose())),
            Err(store::Error::Conflict { constraint, .. }) if constraint == "server_keys_project_fkey" => {
                Err(ProjectError::Missing(project))
            }
            Err(error) => Err(ProjectError::Failed(error.into())),
        }
    }

    /// A project's server keys, the revoked ones too, oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such project; the store's.
    pub async fn server_keys(&self, project: ProjectId) -> Result<Vec<ServerKeyFacts>, ProjectError> {
        let keys = self.store.server_keys_list(project.clone()).await.map_err(Error::from)?;
        keys.ok_or(ProjectError::Missing(project))
    }

    /// Takes a server key away: every replica refuses it from this moment on, for each asks the database on each call.
    ///
    /// # Errors
    ///
    /// When there is no such key; the store's.
    pub async fn server_key_revoke(&self, id: KeyId) -> Result<Taken, ProjectError> {
        let outcome = self.store.server_key_revoke(id, self.clock.now()).await.map_err(Error::from)?;
        outcome.map(|before| if before { Taken::Before } else { Taken::Now }).ok_or(ProjectError::MissingServerKey(id))
    }
}
