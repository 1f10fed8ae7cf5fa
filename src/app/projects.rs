//! Projects and server keys: the operator's business, from the command line.

use std::time::Duration;

use secrecy::SecretString;

use super::App;
use super::Error;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::session::Policy;
use crate::store;
use crate::store::Project;
use crate::store::Role;
use crate::store::ServerKeyRow;
use crate::token::keys::Schedule;
use crate::token::server_key::ServerKey;

/// How far apart the clocks of two servers may be.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Why the operator's wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The name is taken.
    #[error("there is already a project {0}")]
    Exists(ProjectId),
    /// There is none of this name.
    #[error("there is no project {0}")]
    Missing(ProjectId),
    /// Its keys would be sealed with another sealing key than all others, or the database failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl App {
    /// Creates a project with its first signing key and refresh-token key.
    ///
    /// # Errors
    ///
    /// When the name is taken; the store's.
    pub async fn project_create(&self, id: ProjectId, policy: Policy) -> Result<(), ProjectError> {
        self.check_sealing().await?;
        let now = self.clock.now();
        // The first keys sign at once: nobody holds a cached JWKS of a project that did not exist. At once for servers whose
        // clocks are behind ours, too.
        let schedule = Schedule { signs_from: now - CLOCK_SKEW_MAX, retired_at: None };
        let signing = self.keys.new_signing_key(&id, schedule);
        let refresh = self.keys.new_refresh_key(&id, schedule);
        let project = Project { id: id.clone(), policy };
        match self.store.project_insert(project, signing, refresh, now).await {
            Err(store::Error::Conflict { constraint, .. }) if constraint == "projects_pkey" => {
                Err(ProjectError::Exists(id))
            }
            outcome => outcome.map_err(|error| ProjectError::Failed(error.into())),
        }
    }

    /// Sets a project's policy. Takes effect on every replica within [`super::keys::RELOAD_INTERVAL`].
    ///
    /// # Errors
    ///
    /// When there is no such project; the store's.
    pub async fn project_update(&self, id: ProjectId, policy: Policy) -> Result<(), ProjectError> {
        match self.store.project_update(Project { id: id.clone(), policy }).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ProjectError::Missing(id)),
            Err(error) => Err(ProjectError::Failed(error.into())),
        }
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
}
