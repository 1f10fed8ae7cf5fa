//! The doorbell between replicas: a NOTIFY, rung after the commit. It says who rings, and nothing of what there is to read; a
//! reader that misses it finds out by looking. NOTIFY inside the writing transactions would make them commit one by one.

use std::future::poll_fn;
use std::time::Duration;

use diesel_async::SimpleAsyncConnection as _;
use tokio::time::timeout;
use tokio_postgres::AsyncMessage;
use tokio_postgres::Client;
use uuid::Uuid;

use super::Store;
use super::connect::Connection;
use super::error::Error;

/// A connection that listens, and nothing else.
pub struct Doorbell {
    connection: Connection,
    /// Dropped, it would end the connection.
    _client: Client,
}

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
            let (client, mut connection) =
                self.target.connect_alone().await.map_err(|error| away(Some(error.into())))?;
            let asked = client.batch_execute("LISTEN sessiond_feed");
            // Nothing is sent or received unless somebody drives the connection.
            let driven = poll_fn(|context| connection.poll_message(context));
            tokio::select! {
                listening = asked => listening.map_err(|error| away(Some(error.into())))?,
                _ = driven => return Err(away(None)),
            }
            Ok(Doorbell { connection, _client: client })
        };
        timeout(patience, listen).await.unwrap_or_else(|_| Err(Error::late("doorbell")))
    }
}

impl Doorbell {
    /// Waits until another replica rings; `false` when the connection is lost.
    pub async fn rung(&mut self, own: Uuid) -> bool {
        let own = own.to_string();
        loop {
            match poll_fn(|context| self.connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(rung))) if rung.payload() != own => return true,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return false,
            }
        }
    }
}
