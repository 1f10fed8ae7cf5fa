//! The doorbell between replicas: a NOTIFY, rung after the commit. It says who rings, and nothing of what there is to read; a
//! reader that misses it finds out by looking. NOTIFY inside the writing transactions would make them commit one by one.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::SimpleAsyncConnection as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::Store;
use super::connect::Standing;
use super::connect::Target;
use super::error::Error;

/// A connection that listens, and nothing else.
pub struct Doorbell {
    rings: mpsc::Receiver<String>,
    target: Arc<Target>,
    standing: Standing,
    /// Dropped, it would end the connection.
    _client: Client,
}

/// How many rings wait to be heard. One that is not heard among as many says nothing that they do not say.
const RINGS_MAX: usize = 16;

impl Store {
    /// Rings at every replica that listens, in the name of this one.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn ring(&self, replica: Uuid) -> Result<(), Error> {
        self.once("ring", move |mut tx| async move {
            let notify = format!("NOTIFY sessiond_feed, '{replica}'");
            tx.pg().batch_execute(&notify).await.map_err(|error| tx.failed(error))?;
            tx.commit(()).await
        })
        .await
    }

    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// When the database is away, or does not answer in time.
    pub async fn doorbell(&self, patience: Duration) -> Result<Doorbell, Error> {
        let away = |source| Error::Unavailable { operation: "doorbell", source };
        let listen = async {
            let (bell, rings) = mpsc::channel(RINGS_MAX);
            let opened = self.target.connect_listening(bell).await.map_err(|error| away(Some(error.into())))?;
            let asked = opened.client.batch_execute("LISTEN sessiond_feed").await;
            asked.map_err(|error| away(Some(error.into())))?;
            Ok(Doorbell { rings, target: Arc::clone(&self.target), standing: opened.standing, _client: opened.client })
        };
        timeout(patience, listen).await.unwrap_or_else(|_| Err(Error::late("doorbell")))
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
                () = self.target.superseded(&self.standing) => return false,
            }
        }
    }
}
