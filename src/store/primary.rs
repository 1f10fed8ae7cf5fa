//! Which server may be used: one that is writable, durable as required, and not deposed.

use std::sync::Mutex;

use tokio::sync::watch;
use tokio_postgres::Client;

use super::Durability;
use super::RequiredDurability;
use super::distribute::Layout;
use super::durability;
use super::durability::ServerFacts;
use super::engine;
use super::engine::Identified;
use super::refused::HostError;

/// Identifies the server of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerRef {
    /// The index of its host.
    pub(super) host: usize,
    identity: ServerTimeline,
}

impl ServerRef {
    /// The timeline of its write-ahead log.
    pub(super) const fn timeline(&self) -> u32 {
        self.identity.timeline
    }
}

/// A server's identity, to decide which one took over from which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ServerTimeline {
    /// The cluster's `system_identifier`: timelines of different clusters are not comparable.
    system: u64,
    /// The timeline of its write-ahead log. A promoted standby starts a new one with a higher number.
    timeline: u32,
}

impl ServerTimeline {
    /// The server of the same cluster that has taken over from this one, if one has.
    fn deposed_by(self, newest: &[Self]) -> Option<Self> {
        newest.iter().copied().find(|newest| newest.system == self.system && newest.timeline > self.timeline)
    }
}

/// The newest primary and its durability, across all hosts.
pub(super) struct PrimaryWatch {
    required_durability: RequiredDurability,
    /// The server with the highest timeline ever found, of each cluster that the hosts belong to: the nodes of a divided database
    /// are clusters of their own. One with a lower timeline was deposed, whatever it reports.
    newest: watch::Sender<Vec<ServerTimeline>>,
    /// The durability when last checked.
    durability: watch::Sender<Durability>,
    /// The insufficient durability of the last refused host.
    refused_as: Mutex<Option<Durability>>,
}

/// The result of examining a usable server.
pub(super) struct Primary {
    pub(super) server: ServerRef,
    pub(super) found: ServerFacts,
    /// Whether the start-up options arrived. If not, there is a pooler in between.
    pub(super) is_direct: bool,
    /// How many slots the database has; `None` before it is migrated.
    pub(super) slots: Option<u16>,
    /// Where the tables are.
    pub(super) layout: Layout,
}

impl PrimaryWatch {
    pub(super) fn new(required_durability: RequiredDurability) -> Self {
        Self {
            required_durability,
            newest: watch::Sender::new(vec![]),
            durability: watch::Sender::new(Durability::Kept),
            refused_as: Mutex::default(),
        }
    }

    /// The durability that a server must offer.
    pub(super) const fn required_durability(&self) -> RequiredDurability {
        self.required_durability
    }

    /// The durability when last checked.
    pub(super) fn durability(&self) -> Durability {
        *self.durability.borrow()
    }

    /// Records the durability, and logs a change.
    pub(super) fn note_durability(&self, found: Durability) {
        if self.durability.send_replace(found) != found {
            match found {
                Durability::Kept => tracing::info!("the database keeps acknowledged commits again"),
                lost => tracing::error!(
                    setting = lost.setting(),
                    "the database may lose acknowledged commits: writes are refused until this setting is on"
                ),
            }
        }
    }

    /// Records whether any server could be connected to.
    pub(super) fn note(&self, is_connected: bool) {
        match (self.required_durability, is_connected) {
            (RequiredDurability::Any, _) => {}
            (RequiredDurability::Durable, true) => self.note_durability(Durability::Kept),
            // The only reachable server is not durable enough: no connection is left to ask.
            (RequiredDurability::Durable, false) => {
                let lost = self.refused_as.lock().expect("no one panics while holding it").take();
                if let Some(lost) = lost {
                    self.note_durability(lost);
                }
            }
        }
    }

    /// Examines the server of a new connection. `divided`: see [`engine::identify`].
    ///
    /// # Errors
    ///
    /// Fails if it cannot be used.
    pub(super) async fn examine(
        &self,
        host: usize,
        client: &Client,
        divided: Option<u16>,
    ) -> Result<Primary, HostError> {
        let Identified { is_direct, slots, layout } = engine::identify(client, divided).await?;
        let found = durability::examine(client, self.required_durability).await?.ok_or(HostError::Unknown)?;
        match (self.required_durability, found.durability) {
            (RequiredDurability::Any, _) | (RequiredDurability::Durable, Durability::Kept) => {}
            (RequiredDurability::Durable, lost) => {
                *self.refused_as.lock().expect("no one panics while holding it") = Some(lost);
                return Err(HostError::Unsafe(lost.setting()));
            }
        }
        let server = ServerRef { host, identity: ServerTimeline { system: found.system, timeline: found.timeline } };
        self.admit(&server)?;
        Ok(Primary { server, found, is_direct, slots, layout })
    }

    /// Rejects a deposed server, and records the newest one.
    pub(super) fn admit(&self, server: &ServerRef) -> Result<(), HostError> {
        let identity = server.identity;
        let (mut deposed, mut before) = (None, None);
        self.newest.send_if_modified(|newest| {
            deposed = identity.deposed_by(newest);
            if deposed.is_some() || newest.contains(&identity) {
                return false;
            }
            before = newest.iter().copied().find(|other| other.system == identity.system).or(newest.last().copied());
            newest.retain(|other| other.system != identity.system);
            newest.push(identity);
            true
        });
        if let Some(before) = before {
            let (timeline, before) = (identity.timeline, before.timeline);
            tracing::warn!(host = server.host, timeline, before, "another database server has taken over");
        }
        match deposed {
            None => Ok(()),
            Some(newest) => Err(HostError::Deposed { timeline: identity.timeline, newest: newest.timeline }),
        }
    }

    /// Whether the server of a connection is still the primary.
    pub(super) fn is_current(&self, server: &ServerRef) -> bool {
        server.identity.deposed_by(&self.newest.borrow()).is_none()
    }

    /// Waits until another server has taken over.
    pub(super) async fn superseded(&self, server: &ServerRef) {
        let mut newest = self.newest.subscribe();
        if newest.wait_for(|newest| server.identity.deposed_by(newest).is_some()).await.is_err() {
            std::future::pending().await
        }
    }
}
