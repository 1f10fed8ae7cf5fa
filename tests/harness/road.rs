//! A proxy to a server, controlled by the test: it can be cut or silenced.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What happens to bytes that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// They arrive.
    Fair,
    /// They are dropped, and connections stay open: as behind a dead network, or with a stopped process.
    Silent,
    /// Connections break, and new ones too: as after the process was killed.
    Cut,
}

/// See the module. Closed on drop.
pub struct Road {
    /// The proxy's address.
    pub url: String,
    weather: Arc<watch::Sender<Weather>>,
    server: Arc<watch::Sender<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Road {
    pub async fn to(server: SocketAddr) -> Self {
        let weather = Arc::new(watch::Sender::new(Weather::Fair));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = Arc::new(watch::Sender::new(server));
        let (told, leads_to) = (Arc::clone(&weather), server.subscribe());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, *leads_to.borrow(), told.subscribe()));
            }
        });
        Self { url, weather, server, task }
    }

    /// Connects to another server from now on, perhaps the same one after a restart.
    pub fn lead_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    /// Silences every connection.
    pub fn silence(&self) {
        self.weather.send_replace(Weather::Silent);
    }

    /// Restores normal operation; held-up bytes arrive now.
    pub fn mend(&self) {
        self.weather.send_replace(Weather::Fair);
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn relay(client: TcpStream, server: SocketAddr, weather: watch::Receiver<Weather>) {
    let mut cut = weather.clone();
    let passing = async {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            () = pass(from_client, to_server, weather.clone()) => {}
            () = pass(from_server, to_client, weather) => {}
        }
    };
    tokio::select! {
        () = passing => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let fair = weather.wait_for(|weather| *weather == Weather::Fair).await.is_ok();
        if !fair || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
