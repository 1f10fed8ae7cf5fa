//! What a replica holds in memory: all projects, and all keys that are not revoked.

use std::collections::HashMap;

use super::Store;
use super::error::Error;
use super::keys::SealedKey;
use super::projects::Project;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::sealing::Purpose;

/// All projects with all their keys but the revoked ones, as of one moment.
pub struct Inventory {
    /// The projects.
    pub projects: Vec<Project>,
    /// The signing keys.
    pub signing: Vec<(ProjectId, SealedKey)>,
    /// The refresh-token keys.
    pub refresh: Vec<(ProjectId, SealedKey)>,
    /// Until when a signature of a signing key may have either of its two spellings; of all other keys it never may.
    pub either_s_until: HashMap<KeyId, Timestamp>,
}

impl Store {
    /// Reads all projects and keys. They are few; a replica holds them all in memory.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        // One snapshot: a project without its keys, or keys without their project, would be a refusal to someone.
        self.transact("inventory", |mut tx| async move {
            tx.batch("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
            let projects = tx.projects().await?;
            let signing = tx.keys_sealed(Purpose::Signing).await?;
            let refresh = tx.keys_sealed(Purpose::Refresh).await?;
            let either_s_until = tx.keys_either_s_until().await?;
            tx.end_reading(Inventory { projects, signing, refresh, either_s_until }).await
        })
        .await
    }
}
