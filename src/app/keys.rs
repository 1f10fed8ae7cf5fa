//! Caches every project's policy and opened keys. They are loaded at the start, reloaded every few seconds, and reloaded at
//! once when a token names a key that is not cached.

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
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::store;
use crate::store::Inventory;
use crate::store::Project;
use crate::store::SealedKey;
use crate::store::Store;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::token::jws::SignError;
use sessiond_core::token::keys::Keyring;
use sessiond_core::token::keys::RefreshKey;
use sessiond_core::token::keys::SigningKey;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::Purpose;
use sessiond_core::token::sealing::Sealer;
use sessiond_core::token::sealing::UnsealError;

/// How often the keys are reloaded.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The keys are reloaded at most this often, however many callers ask.
const RELOAD_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The shortest interval between reloads for names that an unauthenticated caller sent, and how long such a name counts as
/// unknown: made-up names must not cost a query each.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(1);

/// The most names that are remembered as unknown; further ones are looked up each time.
const UNKNOWN_MAX: usize = 16_384;

/// Why a key cannot be used. For the operator only; callers do not see it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key is sealed with another sealing key, or was tampered with.
    #[error(transparent)]
    Sealed(#[from] UnsealError),
    /// The key opened, but is malformed.
    #[error("key {0} of project {1} opens, but is malformed")]
    Malformed(KeyId, ProjectId),
    /// None of the keys opens.
    #[error("no key in the database opens with the configured sealing key")]
    SealedByAnother,
    /// The project has no active key for the purpose.
    #[error("project {0} has no active signing or refresh-token key")]
    NoKey(ProjectId),
    /// Signing failed.
    #[error(transparent)]
    Signing(#[from] SignError),
}

/// The keys and policies as of one moment.
#[derive(Default)]
pub struct Snapshot {
    /// The keys.
    pub keyring: Keyring,
    projects: HashMap<ProjectId, Project>,
    /// Keys that did not open. Only their projects are affected.
    unopened: usize,
}

impl Snapshot {
    /// A project's policy; `None` if the project is unknown.
    pub fn policy(&self, project: &ProjectId) -> Option<&Policy> {
        self.project(project).map(|project| &project.policy)
    }

    /// A project; `None` if it is unknown.
    pub fn project(&self, project: &ProjectId) -> Option<&Project> {
        self.projects.get(project)
    }

    /// Whether it has a key of this id.
    pub fn has_key(&self, id: KeyId) -> bool {
        self.keyring.signing(id).is_some() || self.keyring.refresh(id).is_some()
    }

    /// The number of keys that do not open.
    pub const fn unopened(&self) -> usize {
        self.unopened
    }

    /// Whether keys exist but none of them opens: the sealing key is another installation's.
    pub fn is_sealed_by_another(&self) -> bool {
        self.unopened > 0 && self.keyring.projects().next().is_none()
    }
}

/// A pending or finished reload, shared by everyone who awaits it.
type Reload = Shared<BoxFuture<'static, Result<Arc<Snapshot>, Arc<store::Error>>>>;

/// A snapshot, and when its reload began; `None` for the initial, empty snapshot.
type Dated = (Option<Instant>, Arc<Snapshot>);

/// The cache of keys and policies. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct KeyCache {
    store: Store,
    sealer: Arc<Sealer>,
    current: Arc<RwLock<Dated>>,
    /// The last reload.
    last_reload: Arc<Mutex<Option<ScheduledReload>>>,
    unknown: Arc<Unknown>,
    /// A permit for each request of a proxy that waits for a reload because of a name that it may have made up.
    waiting: Arc<Semaphore>,
}

/// A reload that begins at `at`, or when the one before it has ended, so that no two overlap.
struct ScheduledReload {
    at: Instant,
    has_begun: Arc<AtomicBool>,
    reload: Reload,
}

/// The names that were not found, and until when they count as unknown. Keyed by a hash that is random per process.
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
    /// Creates an empty cache; see [`KeyCache::reload`].
    pub fn new(store: Store, sealer: Sealer) -> Self {
        Self {
            store,
            sealer: Arc::new(sealer),
            current: Arc::default(),
            last_reload: Arc::default(),
            unknown: Arc::default(),
            waiting: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }

    /// Limits how many requests of proxies wait for a reload because of a name that they may have made up; see
    /// [`KeyCache::find_for_proxy`].
    #[must_use]
    pub fn with_waiting_max(self, count: usize) -> Self {
        Self { waiting: Arc::new(Semaphore::new(count)), ..self }
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().expect("no one panics while holding it").1)
    }

    /// Returns the snapshot if `has` accepts it; otherwise one that is loaded after this call, whether `has` accepts it or
    /// not. So what the returned snapshot lacks does not exist, or did not when this was called.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`]: if the database is unavailable, whether the key exists is unknown.
    pub async fn with(&self, has: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>, super::Error> {
        let snapshot = self.snapshot();
        if has(&snapshot) {
            return Ok(snapshot);
        }
        self.reload().await
    }

    /// As [`KeyCache::with`], for a name that an unauthenticated caller may have made up. A name that was not found is not
    /// looked up again within a second, and all lookups of a second share one reload.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`].
    pub async fn find(&self, name: impl Hash, has: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>, super::Error> {
        self.find_all([name], |snapshot, _| has(snapshot)).await
    }

    /// As [`KeyCache::find`], for a request of a proxy. While a request waits it holds one of the places for verifications, and one
    /// client of the proxy can make up any number of names. So only a part of the places may wait.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`]; also if too many wait already.
    pub async fn find_for_proxy(
        &self,
        name: impl Hash,
        has: impl Fn(&Snapshot) -> bool,
    ) -> Result<Arc<Snapshot>, super::Error> {
        let snapshot = self.snapshot();
        if has(&snapshot) {
            return Ok(snapshot);
        }
        let waiting = self.waiting.try_acquire();
        let _waiting = waiting.map_err(|_| store::Error::late("inventory"))?;
        self.find(name, has).await
    }

    /// As [`KeyCache::find`], for several names, which share one reload: it may be a second until the next.
    ///
    /// # Errors
    ///
    /// As [`KeyCache::reload`].
    pub async fn find_all<N: Hash>(
        &self,
        names: impl IntoIterator<Item = N>,
        has: impl Fn(&Snapshot, &N) -> bool,
    ) -> Result<Arc<Snapshot>, super::Error> {
        let (snapshot, now) = (self.snapshot(), Instant::now());
        let hash = |name: &N| self.unknown.hasher.hash_one(name);
        let is_missing = |name: &N| !has(&snapshot, name) && !self.unknown.has(hash(name), now);
        let missing: Vec<N> = names.into_iter().filter(is_missing).collect();
        if missing.is_empty() {
            return Ok(snapshot);
        }
        let snapshot = self.schedule_reload(UNKNOWN_INTERVAL).await?;
        for name in missing.iter().filter(|name| !has(&snapshot, name)) {
            self.unknown.remember(hash(name), Instant::now());
        }
        Ok(snapshot)
    }

    /// Reloads everything. Calls made before a scheduled reload begins share it.
    ///
    /// # Errors
    ///
    /// Fails if the database operation fails; the cached snapshot stays in use.
    pub async fn reload(&self) -> Result<Arc<Snapshot>, super::Error> {
        Ok(self.schedule_reload(RELOAD_INTERVAL_MIN).await?)
    }

    fn schedule_reload(&self, interval: Duration) -> Reload {
        let now = Instant::now();
        let mut last = self.last_reload.lock().expect("no one panics while holding it");
        // A reload that has begun may miss what the caller looks for; one that has not begun cannot.
        if let Some(ScheduledReload { has_begun, reload, .. }) = &*last
            && !has_begun.load(Ordering::Acquire)
        {
            return reload.clone();
        }
        let at = last.as_ref().map_or(now, |last| now.max(last.at + interval));
        let before = last.take().map(|last| last.reload);
        let has_begun = Arc::new(AtomicBool::new(false));
        let (cache, begun) = (self.clone(), Arc::clone(&has_begun));
        // On a task of its own: the caller may disconnect while others still wait.
        let task = tokio::spawn(async move {
            sleep_until(at).await;
            if let Some(before) = before {
                // Its result belongs to those who awaited it.
                let _ = before.await;
            }
            begun.store(true, Ordering::Release);
            cache.load(Instant::now()).await
        });
        let stopped = |_| Err(Arc::new(store::Error::Unavailable { operation: "inventory", source: None }));
        let reload = async move { task.await.unwrap_or_else(stopped) }.boxed().shared();
        *last = Some(ScheduledReload { at, has_begun, reload: reload.clone() });
        reload
    }

    async fn load(&self, began_at: Instant) -> Result<Arc<Snapshot>, Arc<store::Error>> {
        let inventory = self.store.inventory().await?;
        let snapshot = Arc::new(open(inventory, &self.sealer, &self.snapshot()));
        let mut current = self.current.write().expect("no one panics while holding it");
        // A slow reload must not restore a key that a later one found revoked.
        if current.0.is_none_or(|last| last < began_at) {
            *current = (Some(began_at), Arc::clone(&snapshot));
        }
        drop(current);
        Ok(snapshot)
    }

    /// Generates a key for a project, and seals it.
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

    /// The sealer.
    pub(super) fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer)
    }
}

impl Snapshot {
    /// The key that signs for a project now.
    ///
    /// # Errors
    ///
    /// Fails if the project has none: `project create` makes one, so somebody has deleted it.
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

/// Opens the new keys, and takes the others from the last snapshot: a key never changes, only its schedule. Keys that are
/// missing from the inventory, because they were revoked, are dropped.
fn open(inventory: Inventory, sealer: &Sealer, last: &Snapshot) -> Snapshot {
    let Inventory { projects, signing, refresh, high_s_until } = inventory;
    let mut next = Snapshot::default();
    for (project, SealedKey { id, sealed, schedule }) in signing {
        let known = last.keyring.signing(id).filter(|key| *key.project() == project).cloned();
        match known.map_or_else(|| open_signing(sealer, &project, id, &sealed, high_s_until.get(&id)), Ok) {
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
    next.projects = projects.into_iter().map(|project| (project.id.clone(), project)).collect();
    next
}

impl Snapshot {
    /// Leaves out a key that does not open, so that only its project is affected.
    fn skip(&mut self, error: &KeyError) {
        tracing::error!(%error, "cannot use a key; it is left out");
        self.unopened += 1;
    }
}

fn open_signing(
    sealer: &Sealer,
    project: &ProjectId,
    id: KeyId,
    sealed: &[u8],
    high_s_until: Option<&Timestamp>,
) -> Result<Arc<SigningKey>, KeyError> {
    let private = sealer.open(Purpose::Signing, project, id, sealed)?;
    let key = SigningKey::from_private(id, project.clone(), &private);
    let key = key.map_err(|_| KeyError::Malformed(id, project.clone()))?;
    Ok(Arc::new(match high_s_until {
        Some(until) => key.with_high_s_until(*until),
        None => key,
    }))
}

fn open_refresh(sealer: &Sealer, project: &ProjectId, id: KeyId, sealed: &[u8]) -> Result<Arc<RefreshKey>, KeyError> {
    let secret = sealer.open(Purpose::Refresh, project, id, sealed)?;
    let key = RefreshKey::from_secret(id, project.clone(), &secret);
    key.map(Arc::new).ok_or_else(|| KeyError::Malformed(id, project.clone()))
}
