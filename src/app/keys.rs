//! Every project's policy and opened keys, in memory: read at the start, again every few seconds, and at once when a
//! token names a key that is not there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::session::Policy;
use crate::store;
use crate::store::Inventory;
use crate::store::SealedKey;
use crate::store::Store;
use crate::token::access::CannotSign;
use crate::token::keys::Keyring;
use crate::token::keys::RefreshKey;
use crate::token::keys::SigningKey;
use crate::token::sealing::CannotOpen;
use crate::token::sealing::Purpose;
use crate::token::sealing::Sealer;

/// How often the keys are read again.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// An unknown key is looked for at most this often: made-up ones must not become a query each.
const RELOAD_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// What is wrong with a key. Our operator's business, and nobody else's.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is sealed with another sealing key, or was tampered with.
    #[error(transparent)]
    Sealed(#[from] CannotOpen),
    /// It opened, and is not a key.
    #[error("the key {0} of project {1} opens, but is no key")]
    Malformed(KeyId, ProjectId),
    /// The project has none for the purpose at this moment.
    #[error("project {0} has no key that signs now")]
    NoKey(ProjectId),
    /// Signing failed.
    #[error(transparent)]
    Signing(#[from] CannotSign),
}

/// The keys and policies as of one moment.
#[derive(Default)]
pub struct Snapshot {
    /// The keys.
    pub keyring: Keyring,
    policies: HashMap<ProjectId, Policy>,
}

impl Snapshot {
    /// A project's settings; `None` when there is no such project.
    pub fn policy(&self, project: &ProjectId) -> Option<&Policy> {
        self.policies.get(project)
    }
}

/// The present snapshot, shared. Clones are one and the same.
#[derive(Clone)]
pub struct KeyCache {
    store: Store,
    sealer: Arc<Sealer>,
    present: Arc<RwLock<Arc<Snapshot>>>,
    /// When the last reading began. Held while one is under way, so that many ask once.
    reloaded: Arc<Mutex<Option<Instant>>>,
}

impl KeyCache {
    /// Prepares an empty cache; see [`KeyCache::reload`].
    pub fn new(store: Store, sealer: Sealer) -> Self {
        Self { store, sealer: Arc::new(sealer), present: Arc::default(), reloaded: Arc::default() }
    }

    /// What is known now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.present.read().expect("no one panics while holding it"))
    }

    /// Reads everything anew.
    ///
    /// # Errors
    ///
    /// When the database is away, or a key does not open: what was known stays.
    pub async fn reload(&self) -> Result<Arc<Snapshot>, super::Error> {
        self.reload_if(|_| true).await
    }

    /// The snapshot, once it has what is looked for or is fresh: a project or a key may be a moment old.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`]: when the database is away, that a key is unknown is not known.
    pub async fn with(&self, has: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>, super::Error> {
        let snapshot = self.snapshot();
        if has(&snapshot) {
            return Ok(snapshot);
        }
        self.reload_if(|last| last.is_none_or(|last| last.elapsed() >= RELOAD_INTERVAL_MIN)).await
    }

    async fn reload_if(&self, due: impl Fn(Option<Instant>) -> bool) -> Result<Arc<Snapshot>, super::Error> {
        let mut reloaded = self.reloaded.lock().await;
        if !due(*reloaded) {
            return Ok(self.snapshot());
        }
        let began = Instant::now();
        let snapshot = Arc::new(open(self.store.inventory().await?, &self.sealer)?);
        *self.present.write().expect("no one panics while holding it") = Arc::clone(&snapshot);
        *reloaded = Some(began);
        Ok(snapshot)
    }

    /// Seals a new signing key for its project.
    pub(super) fn new_signing_key(&self, project: &ProjectId, schedule: crate::token::keys::Schedule) -> SealedKey {
        let (key, private) = SigningKey::generate(project.clone());
        SealedKey { id: key.id(), sealed: self.sealer.seal(Purpose::Signing, project, key.id(), &private), schedule }
    }

    /// Seals a new refresh-token key for its project.
    pub(super) fn new_refresh_key(&self, project: &ProjectId, schedule: crate::token::keys::Schedule) -> SealedKey {
        let key = RefreshKey::generate(project.clone());
        SealedKey {
            id: key.id(),
            sealed: self.sealer.seal(Purpose::Refresh, project, key.id(), key.secret()),
            schedule,
        }
    }
}

impl Snapshot {
    /// The key that signs for a project now.
    ///
    /// # Errors
    ///
    /// When it has none: `project create` gives it one, so somebody took it away.
    pub fn signs_for(&self, project: &ProjectId, now: Timestamp) -> Result<&Arc<SigningKey>, KeyError> {
        self.keyring.signs_for(project, now).ok_or_else(|| KeyError::NoKey(project.clone()))
    }

    /// The key that makes a project's refresh tokens now.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::signs_for`].
    pub fn refreshes_for(&self, project: &ProjectId, now: Timestamp) -> Result<&Arc<RefreshKey>, KeyError> {
        self.keyring.refreshes_for(project, now).ok_or_else(|| KeyError::NoKey(project.clone()))
    }
}

fn open(inventory: store::Inventory, sealer: &Sealer) -> Result<Snapshot, KeyError> {
    let Inventory { projects, signing, refresh } = inventory;
    let mut keyring = Keyring::default();
    for (project, SealedKey { id, sealed, schedule }) in signing {
        let private = sealer.open(Purpose::Signing, &project, id, &sealed)?;
        let key = SigningKey::from_private(id, project.clone(), &private);
        keyring.add_signing(key.map_err(|_| KeyError::Malformed(id, project))?, schedule);
    }
    for (project, SealedKey { id, sealed, schedule }) in refresh {
        let secret = sealer.open(Purpose::Refresh, &project, id, &sealed)?;
        let key = RefreshKey::from_secret(id, project.clone(), &secret);
        keyring.add_refresh(key.ok_or(KeyError::Malformed(id, project))?, schedule);
    }
    let policies = projects.into_iter().map(|project| (project.id, project.policy)).collect();
    Ok(Snapshot { keyring, policies })
}
