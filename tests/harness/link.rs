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
enum LinkState {
    /// They arrive.
    Open,
    /// They are dropped, and connections stay open: as behind a dead network, or with a stopped process.
    Silent,
    /// Connections break, and new ones too: as after the process was killed.
    Cut,
}

/// See the module. Closed on drop.
pub struct Link {
    /// The proxy's address.
    pub url: String,
    state: Arc<watch::Sender<LinkState>>,
    server: Arc<watch::Sender<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Link {
    pub async fn to(server: SocketAddr) -> Self {
        let state = Arc::new(watch::Sender::new(LinkState::Open));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = Arc::new(watch::Sender::new(server));
        let (states, target) = (Arc::clone(&state), server.subscribe());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, *target.borrow(), states.subscribe()));
            }
        });
        Self { url, state, server, task }
    }

    /// Connects to another server from now on, perhaps the same one after a restart.
    pub fn connect_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.state.send_replace(LinkState::Cut);
    }

    /// Silences every connection.
    pub fn silence(&self) {
        self.state.send_replace(LinkState::Silent);
    }

    /// Restores normal operation; held-up bytes arrive now.
    pub fn restore(&self) {
        self.state.send_replace(LinkState::Open);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn relay(client: TcpStream, server: SocketAddr, state: watch::Receiver<LinkState>) {
    let mut cut = state.clone();
    let passing = async {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            () = pass(from_client, to_server, state.clone()) => {}
            () = pass(from_server, to_client, state) => {}
        }
    };
    tokio::select! {
        () = passing => {}
        _ = cut.wait_for(|state| *state == LinkState::Cut) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<LinkState>,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let is_open = state.wait_for(|state| *state == LinkState::Open).await.is_ok();
        if !is_open || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
