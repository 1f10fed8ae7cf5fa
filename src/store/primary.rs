//! Which server may be used: one that takes writes, keeps what it acknowledges, and was not deposed.

use std::sync::Mutex;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;

use super::Durability;
use super::RequiredDurability;
use super::durability;
use super::durability::ServerFacts;
use super::refused::HostError;
use super::settings::SETTINGS_MARK;

/// Which server a connection leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerRef {
    /// Which of the hosts it is on.
    pub(super) host: usize,
    identity: ServerTimeline,
}

impl ServerRef {
    /// The timeline of its log.
    pub(super) const fn timeline(&self) -> u32 {
        self.identity.timeline
    }
}

/// A server, as far as it matters who took over from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ServerTimeline {
    /// The cluster's `system_identifier`: timelines of two clusters cannot be compared.
    system: u64,
    /// The timeline of its log. A standby that is promoted begins a new one, with a higher number.
    timeline: u32,
}

impl ServerTimeline {
    /// Whether another one has taken over from this one.
    fn is_deposed_by(self, newest: Option<Self>) -> bool {
        newest.is_some_and(|newest| newest.system == self.system && newest.timeline > self.timeline)
    }
}

/// What is known of all servers together.
pub(super) struct PrimaryWatch {
    required_durability: RequiredDurability,
    /// The server with the highest timeline that was ever found. One with a lower timeline was deposed, whatever it says of
    /// itself.
    newest: watch::Sender<Option<ServerTimeline>>,
    /// What the database promised when it was last asked.
    durability: watch::Sender<Durability>,
    /// What the last host promised that was refused because that is too little.
    refused_as: Mutex<Option<Durability>>,
}

/// What was found out about a server that may be used.
pub(super) struct Primary {
    pub(super) server: ServerRef,
    pub(super) found: ServerFacts,
    /// Whether the start-up options have arrived. If not, a pooler stands between.
    pub(super) is_direct: bool,
}

impl PrimaryWatch {
    pub(super) fn new(required_durability: RequiredDurability) -> Self {
        Self {
            required_durability,
            newest: watch::Sender::new(None),
            durability: watch::Sender::new(Durability::Kept),
            refused_as: Mutex::default(),
        }
    }

    /// What hosts must promise.
    pub(super) const fn required_durability(&self) -> RequiredDurability {
        self.required_durability
    }

    /// What the database promised when it was last asked.
    pub(super) fn durability(&self) -> Durability {
        *self.durability.borrow()
    }

    /// Notes what the database promises.
    pub(super) fn note_durability(&self, found: Durability) {
        if self.durability.send_replace(found) != found {
            match found {
                Durability::Kept => tracing::info!("the database keeps what it acknowledges"),
                lost => tracing::error!(
                    setting = lost.setting(),
                    "the database may lose what it acknowledges: refusing to write"
                ),
            }
        }
    }

    /// Notes whether a server could be had at all.
    pub(super) fn note(&self, is_connected: bool) {
        match (self.required_durability, is_connected) {
            (RequiredDurability::Any, _) => {}
            (RequiredDurability::Durable, true) => self.note_durability(Durability::Kept),
            // The only one to be had promises too little: no connection is left that could be asked.
            (RequiredDurability::Durable, false) => {
                let lost = self.refused_as.lock().expect("no one panics while holding it").take();
                if let Some(lost) = lost {
                    self.note_durability(lost);
                }
            }
        }
    }

    /// Finds out about the server of a new connection.
    ///
    /// # Errors
    ///
    /// If it cannot be used.
    pub(super) async fn examine(&self, host: usize, client: &Client) -> Result<Primary, HostError> {
        let is_direct = is_direct(client).await?;
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
        Ok(Primary { server, found, is_direct })
    }

    /// Refuses a server that was deposed, and remembers the newest one.
    pub(super) fn admit(&self, server: &ServerRef) -> Result<(), HostError> {
        let identity = server.identity;
        let (mut deposed, mut before) = (None, None);
        self.newest.send_if_modified(|newest| {
            deposed = newest.filter(|newest| identity.is_deposed_by(Some(*newest)));
            let is_new = deposed.is_none() && *newest != Some(identity);
            if is_new {
                before = newest.replace(identity);
            }
            is_new
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

    /// Whether the server of a connection is still the one to use.
    pub(super) fn is_current(&self, server: &ServerRef) -> bool {
        !server.identity.is_deposed_by(*self.newest.borrow())
    }

    /// Waits until another server has taken over.
    pub(super) async fn superseded(&self, server: &ServerRef) {
        let mut newest = self.newest.subscribe();
        if newest.wait_for(|newest| server.identity.is_deposed_by(*newest)).await.is_err() {
            std::future::pending().await
        }
    }
}

/// What must be known of a new connection, in one round trip, without a named statement.
const FACTS: &str = "SELECT current_setting('transaction_read_only'), current_setting('server_encoding'), \
     current_setting('server_version_num'), current_setting('server_version'), current_setting('sessiond.settings', true)";

/// The first version with `xid8`, which the feed is ordered by.
const VERSION_MIN: u32 = 130_000;

/// Refuses what cannot be used; whether the start-up options have arrived. If not, a pooler stands between.
async fn is_direct(client: &Client) -> Result<bool, HostError> {
    let facts = client.simple_query(FACTS).await?;
    let row = facts.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let fact = |at| row.and_then(|row| row.get(at)).unwrap_or_default();
    if fact(0) == "on" {
        return Err(HostError::ReadOnly);
    }
    if fact(1) != "UTF8" {
        return Err(HostError::Encoding(fact(1).to_owned()));
    }
    if fact(2).parse::<u32>().is_ok_and(|version| version < VERSION_MIN) {
        return Err(HostError::Version(fact(3).to_owned()));
    }
    Ok(fact(4) == SETTINGS_MARK)
}
