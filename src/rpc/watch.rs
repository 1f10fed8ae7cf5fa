//! The stream of revocations, on the wire.
//!
//! A subscriber says which kinds of revocations it understands. One of another kind is withheld from it: it learns which tokens
//! the revocation could concern, and decides by itself about those only. So a kind can be added without harm to older
//! subscribers.

use std::pin::Pin;
use std::sync::LazyLock;
use std::time::Duration;
use std::time::Instant;

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
use crate::pb::revocation::Ended as WireEnded;
use crate::pb::watch_revocations_response::Event;
use crate::store::PublishedRevocation;
use crate::telemetry::LogLimiter;
use sessiond_core::id::KeyId;
use sessiond_core::id::SessionId;
use sessiond_core::session::Refusal;
use sessiond_core::session::revoked::RevocationTarget;

/// The messages of a subscription. The last item is the status that says why it ended.
pub(super) type Stream = Pin<Box<dyn futures_util::Stream<Item = Result<pb::WatchRevocationsResponse, Status>> + Send>>;

/// The header with the role of the subscriber's server key.
pub(super) const KEY_ROLE: &str = "x-sessiond-key-role";

/// The most kinds that a subscriber may name, and the longest name in bytes.
const KINDS_MAX: usize = 32;
const KIND_BYTES_MAX: usize = 64;

/// A kind of revocation, by the field of `Revocation.ended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Session,
    UserCutOff,
    ProjectCutOff,
    SigningKey,
    Superseded,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Session, Self::UserCutOff, Self::ProjectCutOff, Self::SigningKey, Self::Superseded];

    const fn name(self) -> &'static str {
        match self {
            Self::Session => "session_id",
            Self::UserCutOff => "user_cut_off",
            Self::ProjectCutOff => "project_cut_off",
            Self::SigningKey => "signing_key_id",
            Self::Superseded => "superseded",
        }
    }

    /// `None` for a revocation that subscribers do not receive.
    const fn of(ended: &RevocationTarget) -> Option<Self> {
        match ended {
            RevocationTarget::Session { .. } => Some(Self::Session),
            RevocationTarget::User { .. } => Some(Self::UserCutOff),
            RevocationTarget::Project { .. } => Some(Self::ProjectCutOff),
            RevocationTarget::SigningKey(_) => Some(Self::SigningKey),
            RevocationTarget::Superseded { .. } => Some(Self::Superseded),
            RevocationTarget::ServerKey(_) => None,
        }
    }
}

/// The kinds that a subscriber understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Accepts {
    /// It does not say: those of the releases before it could.
    Unsaid,
    /// These, and `withheld`.
    Kinds(Vec<Kind>),
}

impl Accepts {
    /// Reads the names. Unknown ones are ignored: they are of a later release.
    pub(super) fn read(names: &[String]) -> Result<Self, Refusal> {
        if names.len() > KINDS_MAX || names.iter().any(|name| name.len() > KIND_BYTES_MAX) {
            return Err(Refusal::invalid("accepts", "must be at most 32 names of at most 64 bytes"));
        }
        let is_named = |kind: &Kind| names.iter().any(|name| name == kind.name());
        Ok(match names.is_empty() {
            true => Self::Unsaid,
            false => Self::Kinds(Kind::ALL.into_iter().filter(is_named).collect()),
        })
    }
}

/// The most messages that wait for one client to read them, besides those in the feed's shared buffer.
const MESSAGES_MAX: usize = 4;

/// How long a client may leave them unread. Then the stream ends, so that its slot is free for another.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The subscription runs on a task of its own: the stream of a client that does not read is not polled, but must end anyway
/// when its time is up.
pub(super) fn stream(subscription: Subscription, accepts: Accepts) -> Stream {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let key = subscription.filter().key();
    let encoder = Encoder { accepts, key, began: Instant::now(), has_logged: false };
    tokio::spawn(forward(subscription, encoder, sender));
    Box::pin(unfold(receiver, async |mut receiver| receiver.recv().await.map(|message| (message, receiver))))
}

async fn forward(
    mut subscription: Subscription,
    mut encoder: Encoder,
    sender: mpsc::Sender<Result<pb::WatchRevocationsResponse, Status>>,
) {
    loop {
        let message = tokio::select! {
            message = subscription.next() => message,
            // The client has disconnected.
            () = sender.closed() => return,
        };
        let is_last = message.is_err();
        let message = match message {
            Ok(message) => match encoder.message(message) {
                Some(message) => Ok(message),
                None => continue,
            },
            Err(end) => Err(status::ended(end)),
        };
        // A client that misses the final status sees the stream end, and resumes.
        if sender.send_timeout(message, SEND_TIMEOUT).await.is_err() || is_last {
            return;
        }
    }
}

/// Limits the log lines about kinds that subscribers do not understand.
static KINDS_LOG: LazyLock<LogLimiter> = LazyLock::new(LogLimiter::default);

/// Encodes the messages for one subscriber.
struct Encoder {
    accepts: Accepts,
    /// The server key of a service; `None` for a user.
    key: Option<KeyId>,
    began: Instant,
    /// Whether the log says that the subscriber does not understand a revocation.
    has_logged: bool,
}

impl Encoder {
    /// `None` for revocations none of which the subscriber receives.
    fn message(&mut self, FeedMessage { event, cursor }: FeedMessage) -> Option<pb::WatchRevocationsResponse> {
        let event = match event {
            FeedEvent::SnapshotBegin(reason) => {
                Event::SnapshotBegin(pb::SnapshotBegin { reason: snapshot_reason(reason).into() })
            }
            FeedEvent::Revocations(revocations) => {
                let revocations = revocations.iter();
                let revocations: Vec<_> =
                    revocations.filter_map(|(published, retain)| self.revocation(published, *retain)).collect();
                if revocations.is_empty() && cursor.is_none() {
                    return None;
                }
                Event::Revocations(pb::RevocationBatch { revocations })
            }
            FeedEvent::SnapshotComplete => Event::SnapshotComplete(pb::SnapshotComplete {}),
            FeedEvent::Heartbeat(age) => Event::Heartbeat(pb::Heartbeat {
                age_ms: whole(age.as_millis()),
                stream_age_ms: self.began.elapsed().as_millis().try_into().ok(),
            }),
        };
        Some(pb::WatchRevocationsResponse { event: Some(event), cursor })
    }

    /// `None` for a revocation that the subscriber does not receive.
    fn revocation(&mut self, published: &PublishedRevocation, retain: Duration) -> Option<pb::Revocation> {
        Some(pb::Revocation {
            ended: Some(self.ended(&published.ended)?),
            user_id: published.user.as_ref().map(|user| user.as_str().to_owned()),
            revoked_at: Some(encode::timestamp(published.at)),
            reason: encode::reason(published.reason).into(),
            // Rounded up, so that it is retained long enough.
            retain_seconds: whole(u128::from(retain.as_secs()) + 1),
        })
    }

    fn ended(&mut self, ended: &RevocationTarget) -> Option<WireEnded> {
        let kind = Kind::of(ended)?;
        match &self.accepts {
            Accepts::Kinds(kinds) if kinds.contains(&kind) => {}
            Accepts::Kinds(_) => {
                self.log(kind);
                return Some(WireEnded::Withheld(withheld(kind, ended)));
            }
            Accepts::Unsaid => {
                if let RevocationTarget::Superseded { id, .. } = ended {
                    // It would believe nothing more of the stream, of any session. A page verifies no tokens.
                    self.key?;
                    self.log(kind);
                    return Some(WireEnded::SessionId(id.to_string()));
                }
            }
        }
        Some(match ended {
            RevocationTarget::Session { id, .. } => WireEnded::SessionId(id.to_string()),
            RevocationTarget::User { user, epoch, spared } => WireEnded::UserCutOff(pb::UserCutOff {
                user_id: user.as_str().to_owned(),
                epoch: *epoch,
                spared_session_id: spared.map(|id: SessionId| id.to_string()),
            }),
            RevocationTarget::Project { epoch } => WireEnded::ProjectCutOff(pb::ProjectCutOff { epoch: *epoch }),
            RevocationTarget::SigningKey(key) => WireEnded::SigningKeyId(key.to_string()),
            RevocationTarget::Superseded { id, session_epoch } => WireEnded::Superseded(pb::SupersededTokens {
                session_id: id.to_string(),
                session_epoch: *session_epoch,
            }),
            RevocationTarget::ServerKey(_) => return None,
        })
    }

    fn log(&mut self, kind: Kind) {
        if let Some(key) = self.key.filter(|_| !std::mem::replace(&mut self.has_logged, true))
            && let Some(suppressed) = KINDS_LOG.admit()
        {
            let kind = kind.name();
            tracing::warn!(
                %key, kind, suppressed,
                "a subscriber does not understand a kind of revocation, and cannot decide on the tokens concerned: upgrade it \
                 (logged once per stream, and every 10 s at most)"
            );
        }
    }
}

/// The tokens that a revocation could concern.
fn withheld(kind: Kind, ended: &RevocationTarget) -> pb::Withheld {
    use pb::withheld::Concerns;
    let concerns = match ended {
        RevocationTarget::Session { id, .. } | RevocationTarget::Superseded { id, .. } => {
            Some(Concerns::SessionId(id.to_string()))
        }
        RevocationTarget::User { user, .. } => Some(Concerns::UserId(user.as_str().to_owned())),
        RevocationTarget::SigningKey(key) => Some(Concerns::SigningKeyId(key.to_string())),
        RevocationTarget::Project { .. } | RevocationTarget::ServerKey(_) => None,
    };
    pb::Withheld { kind: kind.name().to_owned(), concerns }
}

const fn snapshot_reason(reason: SnapshotReason) -> pb::SnapshotReason {
    match reason {
        SnapshotReason::NoCursor => pb::SnapshotReason::NoCursor,
        SnapshotReason::CursorTooOld => pb::SnapshotReason::CursorTooOld,
        SnapshotReason::CursorOfAnotherDatabase => pb::SnapshotReason::CursorOfAnotherDatabase,
    }
}

fn whole(number: u128) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessiond_core::clock;
    use sessiond_core::clock::Clock;
    use sessiond_core::id::Bucket;
    use sessiond_core::id::UserId;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn targets() -> Vec<RevocationTarget> {
        let id = clock::new_session_id(Clock::system().now(), Bucket::from_number(1));
        let user = UserId::parse("ada").expect("an id");
        vec![
            RevocationTarget::Session { id, is_impersonation: false },
            RevocationTarget::User { user, epoch: 3, spared: None },
            RevocationTarget::Project { epoch: 2 },
            RevocationTarget::SigningKey(KeyId::from_uuid(clock::new_uuid())),
            RevocationTarget::Superseded { id, session_epoch: 1 },
        ]
    }

    fn encoder(accepts: &[&str], key: Option<KeyId>) -> Encoder {
        Encoder {
            accepts: Accepts::read(&names(accepts)).expect("short"),
            key,
            began: Instant::now(),
            has_logged: false,
        }
    }

    /// The names on the wire are those of the fields, and each kind is named by its own.
    #[test]
    fn a_kind_is_named_by_its_field() {
        let proto = include_str!("../../proto/sessiond/v1/session_service.proto");
        let (_, revocation) = proto.split_once("\nmessage Revocation {").expect("is there");
        let (fields, _) = revocation.split_once("\n  }\n").expect("the oneof ends");
        let fields = fields.lines().filter_map(|line| line.trim().split_once(" = ")).map(|(field, _)| field);
        let fields: Vec<&str> = fields.filter_map(|field| field.split(' ').next_back()).collect();
        let known: Vec<&str> = Kind::ALL.map(Kind::name).into_iter().chain(["withheld"]).collect();
        assert_eq!(fields, known);
        assert_eq!(targets().iter().filter_map(Kind::of).collect::<Vec<_>>(), Kind::ALL);
    }

    #[test]
    fn what_is_not_accepted_is_withheld_with_the_tokens_that_it_concerns() {
        let key = Some(KeyId::from_uuid(clock::new_uuid()));
        let all: Vec<&str> = Kind::ALL.map(Kind::name).into();
        for (at, target) in targets().iter().enumerate() {
            let plain = encoder(&all, key).ended(target).expect("is sent");
            assert!(!matches!(plain, WireEnded::Withheld(_)));
            for others in [vec!["of_a_later_release"], all.iter().copied().filter(|name| *name != all[at]).collect()] {
                let Some(WireEnded::Withheld(withheld)) = encoder(&others, key).ended(target) else {
                    panic!("{target:?} is withheld from {others:?}")
                };
                assert_eq!(withheld.kind, all[at]);
                assert_eq!(withheld.concerns.is_none(), matches!(target, RevocationTarget::Project { .. }));
            }
        }
    }

    #[test]
    fn a_service_of_an_earlier_release_refuses_a_superseded_session_and_a_page_is_not_told() {
        let key = Some(KeyId::from_uuid(clock::new_uuid()));
        let targets = targets();
        let [others @ .., superseded @ RevocationTarget::Superseded { id, .. }] = targets.as_slice() else {
            panic!("the last")
        };
        assert_eq!(encoder(&[], key).ended(superseded), Some(WireEnded::SessionId(id.to_string())));
        assert_eq!(encoder(&[], None).ended(superseded), None);
        for target in others {
            let sent = encoder(&[], key).ended(target).expect("is sent");
            assert!(!matches!(sent, WireEnded::Withheld(_)), "{sent:?}");
        }
    }

    #[test]
    fn names_are_bounded_and_unknown_ones_ignored() {
        let read = |accepts: &[&str]| Accepts::read(&names(accepts));
        assert_eq!(read(&[]), Ok(Accepts::Unsaid));
        assert_eq!(read(&["", "x", "session_id"]), Ok(Accepts::Kinds(vec![Kind::Session])));
        assert_eq!(read(&["x"; KINDS_MAX]), Ok(Accepts::Kinds(vec![])));
        assert!(read(&["x"; KINDS_MAX + 1]).is_err());
        assert!(read(&["x".repeat(KIND_BYTES_MAX).as_str()]).is_ok());
        assert!(read(&["x".repeat(KIND_BYTES_MAX + 1).as_str()]).is_err());
    }
}
