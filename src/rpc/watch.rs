//! The stream of revocations, on the wire.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tonic::Status;

use super::encode;
use super::status;
use crate::feed::FeedEvent;
use crate::feed::FeedMessage;
use crate::feed::SnapshotReason;
use crate::feed::Subscription;
use crate::pb;
use crate::pb::watch_revocations_response::Event;
use crate::store::PublishedRevocation;
use sessiond_core::id::SessionId;
use sessiond_core::session::revoked::RevocationTarget;

/// The messages of a subscription. The last item is the status that says why it ended.
pub(super) type Stream = Pin<Box<dyn futures_util::Stream<Item = Result<pb::WatchRevocationsResponse, Status>> + Send>>;

/// The most messages that wait for one client to read them, besides those in the feed's shared buffer.
const MESSAGES_MAX: usize = 4;

/// How long a client may leave them unread. Then the stream ends, so that its slot is free for another.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The subscription runs on a task of its own: the stream of a client that does not read is not polled, but must end anyway
/// when its time is up.
pub(super) fn stream(subscription: Subscription) -> Stream {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    tokio::spawn(forward(subscription, sender));
    Box::pin(unfold(receiver, async |mut receiver| receiver.recv().await.map(|message| (message, receiver))))
}

async fn forward(mut subscription: Subscription, sender: mpsc::Sender<Result<pb::WatchRevocationsResponse, Status>>) {
    loop {
        let message = tokio::select! {
            message = subscription.next() => message,
            // The client has disconnected.
            () = sender.closed() => return,
        };
        let is_last = message.is_err();
        let message = message.map(encode).map_err(status::ended);
        // A client that misses the final status sees the stream end, and resumes.
        if sender.send_timeout(message, SEND_TIMEOUT).await.is_err() || is_last {
            return;
        }
    }
}

fn encode(FeedMessage { event, cursor }: FeedMessage) -> pb::WatchRevocationsResponse {
    let event = match event {
        FeedEvent::SnapshotBegin(reason) => {
            Event::SnapshotBegin(pb::SnapshotBegin { reason: snapshot_reason(reason).into() })
        }
        FeedEvent::Revocations(revocations) => {
            let revocations =
                revocations.iter().filter_map(|(published, retain)| revocation(published, *retain)).collect();
            Event::Revocations(pb::RevocationBatch { revocations })
        }
        FeedEvent::SnapshotComplete => Event::SnapshotComplete(pb::SnapshotComplete {}),
        FeedEvent::Heartbeat(age) => Event::Heartbeat(pb::Heartbeat { age_ms: whole(age.as_millis()) }),
    };
    pb::WatchRevocationsResponse { event: Some(event), cursor }
}

const fn snapshot_reason(reason: SnapshotReason) -> pb::SnapshotReason {
    match reason {
        SnapshotReason::NoCursor => pb::SnapshotReason::NoCursor,
        SnapshotReason::CursorTooOld => pb::SnapshotReason::CursorTooOld,
        SnapshotReason::CursorOfAnotherDatabase => pb::SnapshotReason::CursorOfAnotherDatabase,
    }
}

/// `None` for a revocation that subscribers do not receive.
fn revocation(published: &PublishedRevocation, retain: Duration) -> Option<pb::Revocation> {
    use pb::revocation::Ended as WireEnded;
    let ended = match &published.ended {
        RevocationTarget::Session { id, .. } => WireEnded::SessionId(id.to_string()),
        RevocationTarget::User { user, epoch, spared } => WireEnded::UserCutOff(pb::UserCutOff {
            user_id: user.as_str().to_owned(),
            epoch: *epoch,
            spared_session_id: spared.map(|id: SessionId| id.to_string()),
        }),
        RevocationTarget::Project { epoch } => WireEnded::ProjectCutOff(pb::ProjectCutOff { epoch: *epoch }),
        RevocationTarget::SigningKey(key) => WireEnded::SigningKeyId(key.to_string()),
        RevocationTarget::ServerKey(_) => return None,
    };
    Some(pb::Revocation {
        ended: Some(ended),
        user_id: published.user.as_ref().map(|user| user.as_str().to_owned()),
        revoked_at: Some(encode::timestamp(published.at)),
        reason: encode::reason(published.reason).into(),
        // Rounded up, so that it is retained long enough.
        retain_seconds: whole(u128::from(retain.as_secs()) + 1),
    })
}

fn whole(number: u128) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}
