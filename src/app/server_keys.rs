//! Remembers genuine server keys for a few seconds, so that a service's calls do not each look its key up.
//!
//! A revoked key is refused as soon as the feed knows of the revocation, whenever its row was read. The feed remembers a
//! revocation for a quarter of an hour at least, much longer than a row is remembered here. So a lookup that began before the
//! revocation and ends after it does no harm: its row is kept, and is not used.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::Duration;

use tokio::time::Instant;

use super::credentials::Service;
use crate::store::ServerKeyRow;
use sessiond_core::id::KeyId;
use sessiond_core::token::server_key::Digest;
use sessiond_core::token::server_key::ServerKey;

/// How long a key is remembered after it was looked up. No feed reports a row that was changed by hand: this long it goes
/// unnoticed, as a change of a policy does ([`super::RELOAD_INTERVAL`]).
const LIFETIME: Duration = Duration::from_secs(5);

/// The most keys that are remembered: about 1 MB.
const KEYS_MAX: usize = 4_096;

/// The genuine keys that were looked up lately. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct KnownServerKeys(Arc<RwLock<HashMap<KeyId, KnownKey>>>);

struct KnownKey {
    digest: Digest,
    service: Service,
    until: Instant,
}

impl KnownServerKeys {
    /// The service of a key that was looked up lately. The key may have been revoked since.
    pub(super) fn find(&self, key: &ServerKey, now: Instant) -> Option<Service> {
        let keys = self.0.read().expect("no one panics while holding it");
        let known = keys.get(&key.id()).filter(|known| now < known.until)?;
        known.digest.matches(&key.digest()).then(|| known.service.clone())
    }

    /// Remembers the row of a genuine key, whose lookup began at `began_at`.
    pub(super) fn insert(&self, row: ServerKeyRow, began_at: Instant) {
        let service = row.service();
        let mut keys = self.0.write().expect("no one panics while holding it");
        if keys.len() >= KEYS_MAX && !keys.contains_key(&row.id) {
            keys.retain(|_, known| began_at < known.until);
            // Only genuine keys are here, so nobody can fill this with made-up ones.
            if keys.len() >= KEYS_MAX {
                keys.clear();
            }
        }
        keys.insert(row.id, KnownKey { digest: row.digest, service, until: began_at + LIFETIME });
    }
}

impl ServerKeyRow {
    /// The service that the key authenticates.
    pub(super) fn service(&self) -> Service {
        Service { project: self.project.clone(), role: self.role, key: self.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Role;
    use sessiond_core::id::ProjectId;

    fn row(key: &ServerKey) -> ServerKeyRow {
        let project = ProjectId::parse("demo").expect("a name");
        ServerKeyRow { id: key.id(), project, role: Role::Service, digest: key.digest() }
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
        keys.insert(row(&key), now);
        assert_eq!(keys.find(&key, now), Some(row(&key).service()));
        assert_eq!(forged(&key).id(), key.id());
        assert!(keys.find(&forged(&key), now).is_none(), "another secret");
        assert!(keys.find(&ServerKey::generate(), now).is_none(), "another key");
        assert!(keys.find(&key, now + LIFETIME - Duration::from_millis(1)).is_some());
        assert!(keys.find(&key, now + LIFETIME).is_none(), "it is looked up again");
        keys.insert(row(&key), now + LIFETIME);
        assert!(keys.find(&key, now + LIFETIME).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let (keys, now, first) = (KnownServerKeys::default(), Instant::now(), ServerKey::generate());
        let len = || keys.0.read().expect("no panic").len();
        keys.insert(row(&first), now);
        for _ in 1..KEYS_MAX {
            keys.insert(row(&ServerKey::generate()), now + Duration::from_secs(1));
        }
        assert_eq!(len(), KEYS_MAX);
        keys.insert(row(&first), now);
        assert_eq!(len(), KEYS_MAX, "a known key needs no place");
        keys.insert(row(&ServerKey::generate()), now + LIFETIME);
        assert!(len() == KEYS_MAX && keys.find(&first, now).is_none(), "the expired one made way");
        keys.insert(row(&ServerKey::generate()), now + LIFETIME);
        assert_eq!(len(), 1, "none had expired");
    }
}
