//! The doorbell between replicas: a NOTIFY, rung after the commit. It says who rings, and nothing of what there is to read; a
//! reader that misses it finds out by looking. NOTIFY inside the writing transactions would make them commit one by one.

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

/// A connection that listens, and nothing else.
pub struct Doorbell {
    rings: mpsc::Receiver<String>,
    target: Arc<DatabaseHosts>,
    server: ServerRef,
    /// Dropped, it would end the connection.
    _client: Client,
}

/// How many rings wait to be heard. One that is not heard among as many says nothing that they do not say.
const RINGS_MAX: usize = 16;

/// How long before it is looked again whether a pooler still stands between.
const POOLER_PATIENCE: Duration = Duration::from_secs(60);

impl Store {
    /// Rings at every replica that listens, in the name of this one.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn ring(&self, replica: Uuid) -> Result<(), Error> {
        self.idempotent("ring", move |mut tx| async move {
            let notify = format!("NOTIFY sessiond_feed, '{replica}'");
            tx.batch(&notify).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Begins to listen. Never through a pooler that gives each transaction another connection: LISTEN would be heard by
    /// nobody, and stay with a connection that others use.
    ///
    /// # Errors
    ///
    /// When the database is away, or does not answer in time; after a while, when there is such a pooler.
    pub async fn doorbell(&self, patience: Duration) -> Result<Doorbell, Error> {
        static SAID: AtomicBool = AtomicBool::new(false);
        let away = |source| Error::Unavailable { operation: "doorbell", source: Some(source) };
        let (bell, rings) = mpsc::channel(RINGS_MAX);
        let opened = timeout(patience, self.listening.connect_listening(bell)).await;
        let opened = opened.map_err(|_| Error::late("doorbell"))?.map_err(|error| away(error.into()))?;
        // A URL given for this purpose leads to Postgres itself, or through session mode.
        if opened.backend.state().is_shared() && Arc::ptr_eq(&self.listening, &self.target) {
            drop(opened);
            if !SAID.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    "a pooler stands before the database, and LISTEN does not work through it: revocations of other replicas \
                     come by a poll. --database-listen-url is for a way around it"
                );
            }
            sleep(POOLER_PATIENCE).await;
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
    /// Waits until another replica rings; `false` when the connection is lost, or leads to a server that was deposed.
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
