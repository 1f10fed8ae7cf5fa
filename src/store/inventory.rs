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

/// A consistent snapshot of all projects and all keys that are not revoked.
pub struct Inventory {
    /// All projects.
    pub projects: Vec<Project>,
    /// The signing keys.
    pub signing: Vec<(ProjectId, SealedKey)>,
    /// The refresh-token keys.
    pub refresh: Vec<(ProjectId, SealedKey)>,
    /// Until when a signing key accepts both encodings of a signature (high and low S); other keys never do.
    pub high_s_until: HashMap<KeyId, Timestamp>,
}

impl Store {
    /// Reads all projects and keys. They are few: each replica holds them in memory.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        // In one snapshot: a project without its keys, or the reverse, would cause refusals.
        self.transact("inventory", |mut tx| async move {
            tx.batch("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
            let projects = tx.projects().await?;
            let signing = tx.keys_sealed(Purpose::Signing).await?;
            let refresh = tx.keys_sealed(Purpose::Refresh).await?;
            let high_s_until = tx.keys_either_s_until().await?;
            tx.end_reading(Inventory { projects, signing, refresh, high_s_until }).await
        })
        .await
    }
}
