//! Remembers genuine server keys for a few seconds, so that a service's calls do not each look its key up: by the key's id, or by
//! the names in the client certificate that proves it.
//!
//! A revoked key is refused as soon as the feed knows of the revocation, whenever its row was read. The feed remembers a
//! revocation for a quarter of an hour at least, much longer than a row is remembered here. So a lookup that began before the
//! revocation and ends after it does no harm: its row is kept, and is not used.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::credentials::Service;
use sessiond_core::id::KeyId;
use sessiond_core::token::certificate_name::CertificateName;
use sessiond_core::token::server_key::Digest;
use sessiond_core::token::server_key::ServerKey;

/// How long a key is remembered after it was looked up. No feed reports a row that was changed by hand: this long it goes
/// unnoticed, as a change of a policy does ([`super::RELOAD_INTERVAL`]).
const LIFETIME: Duration = Duration::from_secs(5);

/// The most keys that are remembered, of either kind: about 1 MB.
const KEYS_MAX: usize = 4_096;

/// The genuine keys that were looked up lately. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct KnownServerKeys(Arc<KnownKeys>);

#[derive(Default)]
struct KnownKeys {
    by_id: Recent<KeyId, (Digest, Service)>,
    by_certificate: Recent<Arc<[CertificateName]>, Service>,
    /// Held while a use is recorded.
    recording: Arc<Mutex<()>>,
}

impl KnownServerKeys {
    /// The service of a key that was looked up lately. The key may have been revoked since.
    pub(super) fn find(&self, key: &ServerKey, now: Instant) -> Option<Service> {
        self.0.by_id.find(&key.id(), now, |(digest, service)| digest.matches(&key.digest()).then(|| service.clone()))
    }

    /// Remembers a genuine key, whose lookup began at `began_at`.
    pub(super) fn insert(&self, digest: Digest, service: Service, began_at: Instant) {
        self.0.by_id.insert(service.key, (digest, service), began_at);
    }

    /// Permits to record the use of a key; `None` while another one is recorded.
    pub(super) fn begin_record(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.0.recording).try_lock_owned().ok()
    }

    /// The service of a certificate with these names that was looked up lately. Its key may have been revoked since.
    pub(super) fn find_certificate(&self, names: &Arc<[CertificateName]>, now: Instant) -> Option<Service> {
        self.0.by_certificate.find(names, now, |service| Some(service.clone()))
    }

    /// Remembers the service of a certificate with these names, whose lookup began at `began_at`.
    pub(super) fn insert_certificate(&self, names: Arc<[CertificateName]>, service: Service, began_at: Instant) {
        self.0.by_certificate.insert(names, service, began_at);
    }
}

/// Values that were looked up lately, each with the time until which it is remembered.
struct Recent<K, V>(RwLock<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn find<T>(&self, key: &K, now: Instant, read: impl FnOnce(&V) -> Option<T>) -> Option<T> {
        let known = self.0.read().expect("no one panics while holding it");
        let (value, _) = known.get(key).filter(|(_, until)| now < *until)?;
        read(value)
    }

    fn insert(&self, key: K, value: V, began_at: Instant) {
        let mut known = self.0.write().expect("no one panics while holding it");
        if known.len() >= KEYS_MAX && !known.contains_key(&key) {
            known.retain(|_, (_, until)| began_at < *until);
            // Only genuine keys are here, so nobody can fill this with made-up ones.
            if known.len() >= KEYS_MAX {
                known.clear();
            }
        }
        known.insert(key, (value, began_at + LIFETIME));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Role;
    use sessiond_core::id::ProjectId;

    fn service(key: &ServerKey) -> Service {
        let (project, privileges) = (ProjectId::parse("demo").expect("a name"), Role::Service.into());
        Service { project, privileges, key: key.id() }
    }

    fn insert(keys: &KnownServerKeys, key: &ServerKey, began_at: Instant) {
        keys.insert(key.digest(), service(key), began_at);
    }

    /// A key with the same id and another secret.
    fn forged(key: &ServerKey) -> ServerKey {
        use secrecy::ExposeSecret as _;
        let text = key.expose().expose_secret().to_owned();
        // The secret comes last.
        let at = text.len() - 10;
        let other = if &text[at..=at] == "A" { "B" } else { "A" };
        ServerKey::parse(&format!("{}{other}{}", &text[..at], &text[at + 1..])).expect("a key")
    }

    #[test]
    fn a_key_is_known_for_a_while_and_only_with_its_secret() {
        let (keys, now, key) = (KnownServerKeys::default(), Instant::now(), ServerKey::generate());
        assert!(keys.find(&key, now).is_none());
        insert(&keys, &key, now);
        assert_eq!(keys.find(&key, now), Some(service(&key)));
        assert_eq!(forged(&key).id(), key.id());
        assert!(keys.find(&forged(&key), now).is_none(), "another secret");
        assert!(keys.find(&ServerKey::generate(), now).is_none(), "another key");
        assert!(keys.find(&key, now + LIFETIME - Duration::from_millis(1)).is_some());
        assert!(keys.find(&key, now + LIFETIME).is_none(), "it is looked up again");
        insert(&keys, &key, now + LIFETIME);
        assert!(keys.find(&key, now + LIFETIME).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let (keys, now, first) = (KnownServerKeys::default(), Instant::now(), ServerKey::generate());
        let len = || keys.0.by_id.0.read().expect("no panic").len();
        insert(&keys, &first, now);
        for _ in 1..KEYS_MAX {
            insert(&keys, &ServerKey::generate(), now + Duration::from_secs(1));
        }
        assert_eq!(len(), KEYS_MAX);
        insert(&keys, &first, now);
        assert_eq!(len(), KEYS_MAX, "a known key needs no place");
        insert(&keys, &ServerKey::generate(), now + LIFETIME);
        assert!(len() == KEYS_MAX && keys.find(&first, now).is_none(), "the expired one made way");
        insert(&keys, &ServerKey::generate(), now + LIFETIME);
        assert_eq!(len(), 1, "none had expired");
    }
    #[test]
    fn a_certificate_is_known_by_all_its_names() {
        let names = |texts: &[&str]| -> Arc<[CertificateName]> {
            texts.iter().map(|text| CertificateName::parse(text).expect("a name")).collect()
        };
        let (keys, now, key) = (KnownServerKeys::default(), Instant::now(), ServerKey::generate());
        keys.insert_certificate(names(&["a.example", "b.example"]), service(&key), now);
        assert_eq!(keys.find_certificate(&names(&["a.example", "b.example"]), now), Some(service(&key)));
        assert!(keys.find_certificate(&names(&["a.example"]), now).is_none(), "another certificate");
        assert!(keys.find_certificate(&names(&["a.example", "b.example"]), now + LIFETIME).is_none());
    }
}
