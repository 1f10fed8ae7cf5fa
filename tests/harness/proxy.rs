//! A proxy to a database, controlled by the test.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

use super::database::Database;

/// A proxy to a database. Closed on drop.
pub struct Proxy {
    /// The proxy's address.
    pub url: String,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Passes every connection, with its own one to the database, to the test.
    pub async fn to<W>(database: &Database, relay: impl Fn(TcpStream, UnixStream) -> W + Send + Sync + 'static) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let rest = database.url.strip_prefix("postgres://postgres@").expect("the tests' own");
        let (dir, name) = rest.split_once('/').expect("a database");
        let dir = percent_encoding::percent_decode_str(dir).decode_utf8().expect("UTF-8");
        Self::to_socket(format!("{dir}/.s.PGSQL.5432").into(), name, relay).await
    }

    async fn to_socket<W>(
        socket: PathBuf,
        name: &str,
        relay: impl Fn(TcpStream, UnixStream) -> W + Send + Sync + 'static,
    ) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("postgres://postgres@{}/{name}?sslmode=disable", listener.local_addr().expect("bound"));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // While the server is down, connections wait here.
                if let Ok(server) = UnixStream::connect(&socket).await {
                    tokio::spawn(relay(client, server));
                }
            }
        });
        Self { url, task }
    }

    /// A proxy on which selected connections can be silenced: those that ever contained certain words. They stay open,
    /// as behind a dead network.
    pub async fn that_swallows(database: &Database, marker: &'static str) -> (Self, Silence) {
        let (relay, silence) = swallowing(marker);
        (Self::to(database, relay).await, silence)
    }

    /// A proxy on which the answers of selected connections can be held: those that ever contained certain words. Their
    /// requests pass.
    pub async fn that_holds_answers(database: &Database, marker: &'static str) -> (Self, Silence) {
        let silence = Silence::default();
        (Self::to(database, relaying(marker, Silence::default(), silence.clone())).await, silence)
    }

    /// The same as [`Proxy::that_swallows`], to the given cluster.
    pub async fn that_swallows_at(socket: PathBuf, name: &str, marker: &'static str) -> (Self, Silence) {
        let (relay, silence) = swallowing(marker);
        (Self::to_socket(socket, name, relay).await, silence)
    }
}

fn swallowing(
    marker: &'static str,
) -> (impl Fn(TcpStream, UnixStream) -> BoxFuture<'static, ()> + Send + Sync + 'static, Silence) {
    let silence = Silence::default();
    (relaying(marker, silence.clone(), silence.clone()), silence)
}

/// Relays connections, except during the silence of requests and that of answers.
fn relaying(
    marker: &'static str,
    of_requests: Silence,
    of_answers: Silence,
) -> impl Fn(TcpStream, UnixStream) -> BoxFuture<'static, ()> + Send + Sync + 'static {
    move |client: TcpStream, server: UnixStream| {
        let (of_requests, of_answers) = (of_requests.clone(), of_answers.clone());
        let marked = Arc::new(AtomicBool::new(false));
        Box::pin(async move {
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::join!(
                pass(from_client, to_server, Some(marker), Arc::clone(&marked), of_requests),
                pass(from_server, to_client, None, marked, of_answers)
            );
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the connections are silent now.
#[derive(Clone, Default)]
pub struct Silence(Arc<watch::Sender<bool>>);

impl Silence {
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    pub fn end(&self) {
        self.0.send_replace(false);
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    marker: Option<&'static str>,
    marked: Arc<AtomicBool>,
    silence: Silence,
) {
    let mut silent = silence.0.subscribe();
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let contains = |marker: &str| buffer[..count].windows(marker.len()).any(|window| window == marker.as_bytes());
        if marker.is_some_and(contains) {
            marked.store(true, Ordering::SeqCst);
        }
        while marked.load(Ordering::SeqCst) && *silent.borrow_and_update() {
            if silent.changed().await.is_err() {
                return;
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
