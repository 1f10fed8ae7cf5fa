//! A receiver of back-channel deliveries: https with its own certificate, scripted responses, and tokens verified by an
//! independent JWT library.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt as _;
use http::{HeaderMap, Method, StatusCode};
use jwt_compact::{
    AlgorithmExt as _, UntrustedToken,
    alg::{Es256, VerifyingKey as _},
    jwk::JsonWebKey,
};
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use sessiond::{
    app::{App, Deliverer, NewEndpoint},
    outbound::{Outbound, Resolve},
    telemetry::Metrics,
};
use sessiond_core::{id::ProjectId, session::backchannel::EndpointKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use uuid::Uuid;

use super::{PROJECT, Service, database::fresh_dir};

/// The name in the receiver's certificate.
pub const NAME: &str = "receiver.example.org";

/// A receiver's response.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status, headers and a body.
    Status(u16, &'static str, &'static str),
    /// A 200 with a body that never ends.
    Endless,
    /// No response.
    Hang,
}

/// A request that a receiver got.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Delivery {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The token in it, of either kind.
    pub fn token(&self) -> &str {
        match self.header("content-type").expect("a type") {
            "application/x-www-form-urlencoded" => self.body.strip_prefix("logout_token=").expect("the one field"),
            "application/secevent+jwt" => &self.body,
            other => panic!("{other}"),
        }
    }

    /// The token's claims, unverified.
    pub fn claims(&self) -> Value {
        let payload = self.token().split('.').nth(1).expect("three parts");
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64url")).expect("JSON")
    }

    pub fn jti(&self) -> String {
        self.claims()["jti"].as_str().expect("a jti").to_owned()
    }
}

pub struct Receiver {
    pub port: u16,
    pub certificate: PathBuf,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    pub connections: Arc<AtomicUsize>,
    /// How many bytes of endless bodies were sent.
    pub poured: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

fn certified() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("makes a certificate")
}

impl Receiver {
    /// With the certificate of all the tests' receivers.
    pub async fn start() -> Self {
        static CERTIFIED: LazyLock<CertifiedKey<KeyPair>> = LazyLock::new(certified);
        Self::start_as(&CERTIFIED).await
    }

    /// With the same name, and another certificate.
    pub async fn start_untrusted() -> Self {
        Self::start_as(&certified()).await
    }

    async fn start_as(made: &CertifiedKey<KeyPair>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let certificate = fresh_dir(&format!("certificate-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&certificate, made.cert.pem()).expect("writes");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate");
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let (deliveries, replies) = (Arc::<Mutex<Vec<Delivery>>>::default(), Arc::<Mutex<VecDeque<Reply>>>::default());
        let (connections, poured) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let shared = (Arc::clone(&deliveries), Arc::clone(&replies), Arc::clone(&connections), Arc::clone(&poured));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (deliveries, replies, connections, poured) = shared.clone();
                connections.fetch_add(1, Ordering::SeqCst);
                let tls = tls.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = tls.accept(stream).await else { return };
                    let Some(message) = read(&mut stream).await else { return };
                    deliveries.lock().expect("no one panics while holding it").push(message);
                    let reply = replies.lock().expect("no one panics while holding it").pop_front();
                    answer(stream, reply.unwrap_or(Reply::Status(204, "", "")), &poured).await;
                });
            }
        });
        Self { port, certificate, deliveries, replies, connections, poured, task }
    }

    /// Sets the response to the next requests; those after them get a 204.
    pub fn reply_with(&self, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().expect("no one panics while holding it").extend(replies);
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().expect("no one panics while holding it").clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{NAME}:{}{path}", self.port)
    }

    /// Adds itself as an endpoint of the usual project.
    pub async fn register(&self, app: &App, kind: EndpointKind, path: &str) -> Uuid {
        let project = ProjectId::parse(PROJECT).expect("a name");
        let new = NewEndpoint { project, kind, url: self.url(path), audience: "the-shop".to_owned() };
        app.endpoint_add(new, &[]).await.expect("adds it")
    }

    /// May call loopback, to which every name resolves, and trusts this receiver's certificate.
    pub fn outbound(&self) -> Outbound {
        self.outbound_to(&["127.0.0.0/8"], |_| vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
    }

    pub fn outbound_to(
        &self,
        permitted: &[&str],
        addresses: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static,
    ) -> Outbound {
        let permitted = permitted.iter().map(|net| net.parse().expect("a network")).collect();
        let outbound = Outbound::new(permitted, Some(&self.certificate)).expect("reads the certificate");
        let resolve: Resolve = Arc::new(move |name: String, port| {
            let found = addresses(&name).into_iter().map(|address| SocketAddr::new(address, port)).collect();
            async move { io::Result::Ok(found) }.boxed()
        });
        outbound.resolving(resolve)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.certificate);
    }
}

/// A replica's delivery worker. Stops on drop like a kill, whatever is in progress.
pub struct Worker {
    pub metrics: Metrics,
    task: JoinHandle<()>,
}

impl Worker {
    pub fn start(app: &App, outbound: Outbound) -> Self {
        let metrics = Metrics::default();
        let task = tokio::spawn(Deliverer::new(app, outbound, metrics.clone()).run());
        Self { metrics, task }
    }

    /// The value of a metric; 0 if it does not exist yet.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.metrics.render();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a number"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    /// The claims of a token that is signed with a key of the JWKS and has this `typ`.
    pub async fn verified(&self, deliveries: &Delivery, typ: &str) -> Value {
        let jwks = format!("/projects/{PROJECT}/.well-known/jwks.json");
        let answer = self.wires.http(Method::GET, &jwks, HeaderMap::new(), "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        let jwks: Value = serde_json::from_slice(answer.body()).expect("JSON");
        let token = UntrustedToken::new(deliveries.token()).expect("a JWT");
        assert_eq!((token.algorithm(), token.header().token_type.as_deref()), ("ES256", Some(typ)));
        let kid = token.header().key_id.as_deref().expect("a kid");
        let key = jwks["keys"].as_array().expect("keys").iter().find(|key| key["kid"] == kid).expect("it is published");
        let JsonWebKey::EllipticCurve { x, y, .. } = serde_json::from_value(key.clone()).expect("a JWK") else {
            panic!("another kind of key")
        };
        let point = [&[4][..], &x, &y].concat();
        let key = <Es256 as jwt_compact::Algorithm>::VerifyingKey::from_slice(&point).expect("a point");
        Es256.validator::<Value>(&key).validate(&token).expect("a good signature");
        deliveries.claims()
    }
}

/// Reads a request: its headers, and a body of the declared length.
async fn read(stream: &mut TlsStream<TcpStream>) -> Option<Delivery> {
    let mut bytes = vec![];
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).expect("ASCII");
    let mut lines = text.lines();
    let (method, rest) = lines.next()?.split_once(' ')?;
    assert_eq!(method, "POST");
    let path = rest.split_once(' ')?.0.to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let deliveries = Delivery { path, headers, body: String::new() };
    let length: usize = deliveries.header("content-length").expect("a length").parse().expect("a number");
    while bytes.len() < head + 4 + length {
        stream.read_buf(&mut bytes).await.ok().filter(|read| *read > 0)?;
    }
    Some(Delivery { body: String::from_utf8(bytes[head + 4..].to_vec()).expect("ASCII"), ..deliveries })
}

async fn answer(mut stream: TlsStream<TcpStream>, reply: Reply, poured: &AtomicUsize) {
    match reply {
        Reply::Status(status, headers, body) => {
            let length = body.len();
            let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Reply::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await;
            let chunk = [b'x'; 16 * 1024];
            while stream.write_all(&chunk).await.is_ok() {
                poured.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        }
        Reply::Hang => tokio::time::sleep(Duration::from_secs(60)).await,
    }
}
