//! The doorbell between replicas: a NOTIFY after the commit. It carries the id of the sending replica and no data; a
//! reader that misses it finds the rows at its next poll. NOTIFY inside the writing transactions would serialise their
//! commits.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::Store;
use super::connect::DatabaseHosts;
use super::error::Error;
use super::primary::ServerRef;

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

/// How long to wait before checking again for a pooler.
const POOLER_RETRY_DELAY: Duration = Duration::from_secs(60);

impl Store {
    /// Notifies all listening replicas, in the name of this one.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn ring(&self, replica: Uuid) -> Result<(), Error> {
        self.idempotent("ring", move |mut tx| async move {
            let notify = format!("NOTIFY sessiond_feed, '{replica}'");
            tx.batch(&notify).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Starts to listen. Never through a pooler in transaction mode: LISTEN would have no effect there, and would stay
    /// on a connection that others use.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable or does not answer in time; with such a pooler, fails after a delay.
    pub async fn doorbell(&self, patience: Duration) -> Result<Doorbell, Error> {
        static LOGGED: AtomicBool = AtomicBool::new(false);
        let away = |source| Error::Unavailable { operation: "doorbell", source: Some(source) };
        let (bell, rings) = mpsc::channel(RINGS_MAX);
        let opened = timeout(patience, self.listening.connect_listening(bell)).await;
        let opened = opened.map_err(|_| Error::late("doorbell"))?.map_err(|error| away(error.into()))?;
        // The separate listen URL leads to Postgres itself, or through a pooler in session mode.
        if opened.backend.state().is_shared() && Arc::ptr_eq(&self.listening, &self.target) {
            drop(opened);
            if !LOGGED.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    "LISTEN does not work through the pooler before the database: revocations by other replicas are polled, \
                     which takes longer. Set --database-listen-url to a URL that bypasses the pooler"
                );
            }
            sleep(POOLER_RETRY_DELAY).await;
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
