//! Every project's policy and opened keys, in memory: read at the start, again every few seconds, and at once when a
//! token names a key that is not there.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::hash::Hash;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::Shared;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::store;
use crate::store::Inventory;
use crate::store::SealedKey;
use crate::store::Store;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::token::access::CannotSign;
use sessiond_core::token::keys::Keyring;
use sessiond_core::token::keys::RefreshKey;
use sessiond_core::token::keys::SigningKey;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::CannotOpen;
use sessiond_core::token::sealing::Purpose;
use sessiond_core::token::sealing::Sealer;

/// How often the keys are read again.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The keys are read again at most this often, however many ask.
const RELOAD_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// For what a stranger has named they are read at most this often, and a name that was not found is not looked for again
/// for as long: made-up ones must not become a query each.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(1);

/// The most names that are remembered as unknown; further ones are looked for again.
const UNKNOWN_MAX: usize = 16_384;

/// What is wrong with a key. Our operator's business, and nobody else's.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is sealed with another sealing key, or was tampered with.
    #[error(transparent)]
    Sealed(#[from] CannotOpen),
    /// It opened, and is not a key.
    #[error("the key {0} of project {1} opens, but is no key")]
    Malformed(KeyId, ProjectId),
    /// Not one key opens.
    #[error("no key in the database opens with the configured sealing key")]
    SealedByAnother,
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
    /// Keys that did not open: their projects cannot work, and all others can.
    unopened: usize,
}

impl Snapshot {
    /// A project's settings; `None` when there is no such project.
    pub fn policy(&self, project: &ProjectId) -> Option<&Policy> {
        self.policies.get(project)
    }

    /// How many keys do not open.
    pub const fn unopened(&self) -> usize {
        self.unopened
    }

    /// Whether there are keys, and not one of them opens: the sealing key is another installation's.
    pub fn is_sealed_by_another(&self) -> bool {
        self.unopened > 0 && self.keyring.projects().next().is_none()
    }
}

/// A reading under way or done, which all who want one share.
type Reading = Shared<BoxFuture<'static, Result<Arc<Snapshot>, Arc<store::Error>>>>;

/// A snapshot, and when its reading began; that which there is before the first one has none.
type Dated = (Option<Instant>, Arc<Snapshot>);

/// The present snapshot, shared. Clones are one and the same.
#[derive(Clone)]
pub struct KeyCache {
    store: Store,
    sealer: Arc<Sealer>,
    present: Arc<RwLock<Dated>>,
    /// The last reading.
    reading: Arc<Mutex<Option<Scheduled>>>,
    unknown: Arc<Unknown>,
}

/// A reading that begins at a moment, or when the one before it has ended: no two overlap.
struct Scheduled {
    at: Instant,
    has_begun: Arc<AtomicBool>,
    reading: Reading,
}

/// What was looked for and not found, until when: by a hash under a key of this process.
#[derive(Default)]
struct Unknown {
    hasher: RandomState,
    names: Mutex<HashMap<u64, Instant>>,
}

impl Unknown {
    fn has(&self, name: u64, now: Instant) -> bool {
        self.names.lock().expect("no one panics while holding it").get(&name).is_some_and(|until| now < *until)
    }

    fn remember(&self, name: u64, now: Instant) {
        let mut names = self.names.lock().expect("no one panics while holding it");
        if names.len() >= UNKNOWN_MAX {
            names.retain(|_, until| now < *until);
        }
        if names.len() < UNKNOWN_MAX {
            names.insert(name, now + UNKNOWN_INTERVAL);
        }
    }
}

impl KeyCache {
    /// Prepares an empty cache; see [`KeyCache::reload`].
    pub fn new(store: Store, sealer: Sealer) -> Self {
        Self {
            store,
            sealer: Arc::new(sealer),
            present: Arc::default(),
            reading: Arc::default(),
            unknown: Arc::default(),
        }
    }

    /// What is known now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.present.read().expect("no one panics while holding it").1)
    }

    /// The snapshot, when it has what is looked for; else one that was read after this call, with or without it. So what
    /// is not there does not exist, or did not when we were asked.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`]: when the database is away, that a key is unknown is not known.
    pub async fn with(&self, has: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>, super::Error> {
        let snapshot = self.snapshot();
        if has(&snapshot) {
            return Ok(snapshot);
        }
        self.reload().await
    }

    /// As [`KeyCache::with`], for a name that anyone can make up. One that was not found is not looked for again within a
    /// second, and all that are looked for in a second share one reading.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`].
    pub async fn find(&self, name: impl Hash, has: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>, super::Error> {
        let snapshot = self.snapshot();
        let name = self.unknown.hasher.hash_one(name);
        if has(&snapshot) || self.unknown.has(name, Instant::now()) {
            return Ok(snapshot);
        }
        let snapshot = self.next_reading(UNKNOWN_INTERVAL).await?;
        if !has(&snapshot) {
            self.unknown.remember(name, Instant::now());
        }
        Ok(snapshot)
    }

    /// Reads everything again, for what a caller that has shown who it is has asked about; at most once a second.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`].
    pub(super) async fn look_again(&self) -> Result<Arc<Snapshot>, super::Error> {
        Ok(self.next_reading(UNKNOWN_INTERVAL).await?)
    }

    /// Reads everything again. All who ask while a reading is still to begin share it.
    ///
    /// # Errors
    ///
    /// When the database is away: what was known stays.
    pub async fn reload(&self) -> Result<Arc<Snapshot>, super::Error> {
        Ok(self.next_reading(RELOAD_INTERVAL_MIN).await?)
    }

    fn next_reading(&self, interval: Duration) -> Reading {
        let now = Instant::now();
        let mut last = self.reading.lock().expect("no one panics while holding it");
        // One that has begun may have missed what we look for; one that has not will not.
        if let Some(Scheduled { has_begun, reading, .. }) = &*last
            && !has_begun.load(Ordering::Acquire)
        {
            return reading.clone();
        }
        let at = last.as_ref().map_or(now, |last| now.max(last.at + interval));
        let before = last.take().map(|last| last.reading);
        let has_begun = Arc::new(AtomicBool::new(false));
        let (cache, begun) = (self.clone(), Arc::clone(&has_begun));
        // On a task of its own: whoever asked may hang up, and others wait for it too.
        let task = tokio::spawn(async move {
            sleep_until(at).await;
            if let Some(before) = before {
                // How it ended is for those who waited for it.
                let _ = before.await;
            }
            begun.store(true, Ordering::Release);
            cache.read(Instant::now()).await
        });
        let stopped = |_| Err(Arc::new(store::Error::Unavailable { operation: "inventory", source: None }));
        let reading = async move { task.await.unwrap_or_else(stopped) }.boxed().shared();
        *last = Some(Scheduled { at, has_begun, reading: reading.clone() });
        reading
    }

    async fn read(&self, begins: Instant) -> Result<Arc<Snapshot>, Arc<store::Error>> {
        let inventory = self.store.inventory().await?;
        let snapshot = Arc::new(open(inventory, &self.sealer, &self.snapshot()));
        let mut present = self.present.write().expect("no one panics while holding it");
        // A reading that took long must not bring back what a later one has found revoked.
        if present.0.is_none_or(|last| last < begins) {
            *present = (Some(begins), Arc::clone(&snapshot));
        }
        drop(present);
        Ok(snapshot)
    }

    /// Makes a key for a project, and seals it.
    pub(super) fn new_key(&self, purpose: Purpose, project: &ProjectId, schedule: Schedule) -> SealedKey {
        let (id, sealed) = match purpose {
            Purpose::Signing => {
                let (key, private) = SigningKey::generate(project.clone());
                (key.id(), self.sealer.seal(purpose, project, key.id(), &private))
            }
            Purpose::Refresh => {
                let key = RefreshKey::generate(project.clone());
                (key.id(), self.sealer.seal(purpose, project, key.id(), key.secret()))
            }
        };
        SealedKey { id, sealed, schedule }
    }

    /// Seals, and opens.
    pub(super) fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer)
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

/// Opens what is new. What the last snapshot had opened is taken from there: a key never changes, only its schedule. What
/// the inventory no longer has, a revoked key, is gone from here too.
fn open(inventory: Inventory, sealer: &Sealer, last: &Snapshot) -> Snapshot {
    let Inventory { projects, signing, refresh, either_s_until } = inventory;
    let mut next = Snapshot::default();
    for (project, SealedKey { id, sealed, schedule }) in signing {
        let known = last.keyring.signing(id).filter(|key| *key.project() == project).cloned();
        match known.map_or_else(|| open_signing(sealer, &project, id, &sealed, either_s_until.get(&id)), Ok) {
            Ok(key) => next.keyring.add_signing(key, schedule),
            Err(error) => next.skip(&error),
        }
    }
    for (project, SealedKey { id, sealed, schedule }) in refresh {
        let known = last.keyring.refresh(id).filter(|key| *key.project() == project).cloned();
        match known.map_or_else(|| open_refresh(sealer, &project, id, &sealed), Ok) {
            Ok(key) => next.keyring.add_refresh(key, schedule),
            Err(error) => next.skip(&error),
        }
    }
    next.policies = projects.into_iter().map(|project| (project.id, project.policy)).collect();
    next
}

impl Snapshot {
    /// One key that does not open is the trouble of one project.
    fn skip(&mut self, error: &KeyError) {
        tracing::error!(%error, "a key is left out");
        self.unopened += 1;
    }
}

fn open_signing(
    sealer: &Sealer,
    project: &ProjectId,
    id: KeyId,
    sealed: &[u8],
    either_s_until: Option<&Timestamp>,
) -> Result<Arc<SigningKey>, KeyError> {
    let private = sealer.open(Purpose::Signing, project, id, sealed)?;
    let key = SigningKey::from_private(id, project.clone(), &private);
    let key = key.map_err(|_| KeyError::Malformed(id, project.clone()))?;
    Ok(Arc::new(match either_s_until {
        Some(until) => key.with_either_s_until(*until),
        None => key,
    }))
}

fn open_refresh(sealer: &Sealer, project: &ProjectId, id: KeyId, sealed: &[u8]) -> Result<Arc<RefreshKey>, KeyError> {
    let secret = sealer.open(Purpose::Refresh, project, id, sealed)?;
    let key = RefreshKey::from_secret(id, project.clone(), &secret);
    key.map(Arc::new).ok_or_else(|| KeyError::Malformed(id, project.clone()))
}
