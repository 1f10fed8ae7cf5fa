//! Publishes what this process has committed: revocations to the feed, and wake-ups to the delivery worker.

use std::sync::Arc;
use std::sync::OnceLock;

use tokio::sync::Notify;
use uuid::Uuid;

use super::writers::WriterId;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::revoked::RevocationTarget;

/// A revocation, as published in the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRevocation {
    /// Its place in the feed.
    pub place: FeedPlace,
    /// The project.
    pub project: ProjectId,
    /// What was revoked.
    pub ended: RevocationTarget,
    /// The session's user; `None` if it concerns no single user, or once the user is erased.
    pub user: Option<UserId>,
    /// When it was revoked.
    pub at: Timestamp,
    /// Why it was revoked.
    pub reason: RevokeReason,
    /// Until when a verifier may hold an access token that it revokes.
    pub access_expires_at: Timestamp,
}

/// A place in the feed: the writer, its number, and the row's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeedPlace {
    /// The writer.
    pub writer: WriterId,
    /// The writer's number. Zero, with that of the writer, in a row from before there were writers.
    pub seq: u32,
    /// The id of the audit record.
    pub id: Uuid,
}

/// Publishes committed revocations. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct Publisher {
    /// Receives the revocations. At most one listener is registered.
    listener: Arc<OnceLock<Listener>>,
    /// Notified when a delivery is queued.
    pub(super) deliveries: Arc<Notify>,
}

type Listener = Box<dyn Fn(Vec<PublishedRevocation>) + Send + Sync>;

impl Publisher {
    /// Registers the listener, unless one is registered already.
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
