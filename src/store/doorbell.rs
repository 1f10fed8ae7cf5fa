//! The doorbell between replicas: a NOTIFY after the commit. It carries the id of the sending replica and no data; a
//! reader that misses it finds the rows at its next poll. NOTIFY inside the writing transactions would serialise their
//! commits.
//!
//! In a divided database the bell is at the coordinator, whichever node a replica asks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::sql_types as sql;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::Store;
use super::connect::DatabaseHosts;
use super::error::Error;
use super::primary::ServerRef;
use super::statement::statement;

/// A connection that only listens.
pub struct Doorbell {
    rings: mpsc::Receiver<String>,
    target: Arc<DatabaseHosts>,
    server: ServerRef,
    /// Dropping it would end the connection.
    _client: Client,
}

/// The most pending notifications. More would add nothing: one is enough to wake the reader.
const RINGS_MAX: usize = 16;

/// How long to wait before checking again for a pooler, or a worker.
const SILENT_RETRY_DELAY: Duration = Duration::from_secs(60);

impl Store {
    /// Notifies all listening replicas, in the name of this one.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn ring(&self, replica: Uuid) -> Result<(), Error> {
        self.idempotent("ring", move |mut tx| async move {
            match tx.slots().is_divided() {
                true => drop(tx.rows(RingCoordinator { replica: replica.to_string() }).await?),
                false => tx.batch(&format!("NOTIFY sessiond_feed, '{replica}'")).await?,
            }
            tx.commit(()).await
        })
        .await
    }

    /// Starts to listen. Never where no ring arrives: through a pooler in transaction mode, where LISTEN would stay on a connection
    /// that others use, and at a worker.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable or does not answer in time; where no ring arrives, fails after a delay.
    pub async fn doorbell(&self, patience: Duration) -> Result<Doorbell, Error> {
        static LOGGED: AtomicBool = AtomicBool::new(false);
        let away = |source| Error::Unavailable { operation: "doorbell", source: Some(source) };
        let (bell, rings) = mpsc::channel(RINGS_MAX);
        let opened = timeout(patience, self.listening.connect_listening(bell)).await;
        let opened = opened.map_err(|_| Error::late("doorbell"))?.map_err(|error| away(error.into()))?;
        // The separate listen URL leads to Postgres itself, or through a pooler in session mode.
        let is_shared = opened.backend.state().is_shared() && Arc::ptr_eq(&self.listening, &self.target);
        let is_at_worker = timeout(patience, self.listening.leads_to_worker(&opened.client)).await;
        let is_at_worker = is_at_worker.map_err(|_| Error::late("doorbell"))?;
        let silent = if is_shared {
            Some("LISTEN does not work through the pooler before the database")
        } else if is_at_worker.map_err(|error| away(error.into()))? {
            Some("replicas of a divided database ring at the coordinator, and this is a worker")
        } else {
            None
        };
        if let Some(why) = silent {
            drop(opened);
            if !LOGGED.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    "{why}: revocations by other replicas are polled, which takes longer. Set --database-listen-url to a URL \
                     that leads to the primary or the coordinator itself"
                );
            }
            sleep(SILENT_RETRY_DELAY).await;
            return Err(Error::late("doorbell"));
        }
        match timeout(patience, opened.client.batch_execute("LISTEN sessiond_feed")).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(away(error.into())),
            Err(_) => return Err(Error::late("doorbell")),
        }
        let target = Arc::clone(&self.listening);
        Ok(Doorbell { rings, target, server: opened.server, _client: opened.client })
    }
}

statement! {
    /// Rings at the coordinator, which has this table: the function runs there.
    RingCoordinator -> bool as sql::Bool =
    "SELECT pg_notify('sessiond_feed', "
    [replica: String as sql::Text]
    ") IS NOT NULL FROM sweeps WHERE task = 'sessions'"
}

impl Doorbell {
    /// Waits until another replica rings; `false` if the connection is lost or its server was deposed.
    pub async fn rung(&mut self, own: Uuid) -> bool {
        let own = own.to_string();
        loop {
            tokio::select! {
                rung = self.rings.recv() => match rung {
                    Some(replica) if replica == own => {}
                    rung => return rung.is_some(),
                },
                () = self.target.primary().superseded(&self.server) => return false,
            }
        }
    }
}
