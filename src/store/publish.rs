//! What this process has committed, and who is told of it at once.

use std::sync::Arc;
use std::sync::OnceLock;

use tokio::sync::Notify;
use uuid::Uuid;

use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::revoked::Ended;

/// A revocation, as the feed publishes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRevocation {
    /// Where it stands.
    pub place: FeedPlace,
    /// The project.
    pub project: ProjectId,
    /// What.
    pub ended: Ended,
    /// Whose session it was; none for what concerns no one user, and once the user was erased.
    pub user: Option<UserId>,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
    /// Until then some verifier may hold a token that this ends.
    pub access_expires_at: Timestamp,
}

/// Where in the feed something stands: the transaction that wrote it, and its own id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeedPlace {
    /// The number of the transaction.
    pub xid: u64,
    /// The line of the audit.
    pub id: Uuid,
}

/// Publishes what this process has committed. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct Publisher {
    /// Receives the revocations: at most one listener.
    listener: Arc<OnceLock<Listener>>,
    /// Notified when a delivery is queued.
    pub(super) deliveries: Arc<Notify>,
}

type Listener = Box<dyn Fn(Vec<PublishedRevocation>) + Send + Sync>;

impl Publisher {
    /// Registers the listener, unless there is one.
    pub(super) fn register(&self, listener: impl Fn(Vec<PublishedRevocation>) + Send + Sync + 'static) {
        let _ = self.listener.set(Box::new(listener));
    }

    pub(super) fn publish(&self, revocations: Vec<PublishedRevocation>) {
        if let Some(listener) = self.listener.get()
            && !revocations.is_empty()
        {
            listener(revocations);
        }
    }
}
