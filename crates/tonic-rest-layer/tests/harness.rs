//! Protos compiled at test time, a scripted gRPC service, and an HTTP client.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic_rest_layer::{MatchedRoute, RestLayer};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt, service_fn};

/// Compiles `tests/proto/<name>.proto`, as a build script does.
pub(super) fn descriptor_set(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root.join("tests/proto"), root.join("proto")]).unwrap();
    compiler.include_imports(true).open_file(format!("{name}.proto")).unwrap();
    compiler.encode_file_descriptor_set()
}

/// The behaviour of the inner service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Script {
    /// The reply, as JSON of the method's output. Default: empty.
    reply: Option<Value>,
    /// The messages of a stream, instead of one reply.
    stream: Option<Vec<Value>>,
    #[serde(default)]
    metadata: std::collections::BTreeMap<String, String>,
    status: Option<Status>,
    /// Sends the status in trailers, after headers and messages.
    #[serde(default)]
    late: bool,
    /// Responds with this HTTP status and without gRPC, as a proxy does.
    http_status: Option<u16>,
    /// Requires an `authorization` header, in an interceptor.
    #[serde(default)]
    auth: bool,
    sleep_ms: Option<u64>,
    /// The deadline of calls without `grpc-timeout`.
    deadline_ms: Option<u64>,
    /// Sends the messages of a stream, and does not end it.
    #[serde(default)]
    pub hang: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Status {
    pub code: i32,
    pub message: String,
    #[serde(default)]
    pub details: Vec<Value>,
    /// Adds a detail of an unknown type.
    #[serde(default)]
    pub unknown_detail: bool,
}

impl Script {
    pub(super) fn failing(code: i32) -> Script {
        let status = Status { code, message: "no".to_owned(), details: Vec::new(), unknown_detail: false };
        Script { status: Some(status), ..Script::default() }
    }
}

/// A call that the service received.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub message: Bytes,
    pub principal: bool,
    pub remote_addr: bool,
    pub matched: Option<MatchedRoute>,
}

/// The caller, set by the auth layer.
#[derive(Debug, Clone)]
struct Principal;

/// A running server: layer, grpc-web, auth, deadline, service.
pub(super) struct Fixture {
    pub address: SocketAddr,
    pub pool: DescriptorPool,
    seen: Arc<Mutex<Vec<Seen>>>,
    dropped: Arc<AtomicBool>,
}

impl Fixture {
    pub(super) async fn start(layer: RestLayer, descriptors: &[u8], script: Script) -> Fixture {
        let pool = DescriptorPool::decode(descriptors).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let dropped = Arc::new(AtomicBool::new(false));
        let behind = Behind { pool: pool.clone(), script, seen: Arc::clone(&seen), dropped: Arc::clone(&dropped) };
        let inner = service_fn(move |request| behind.clone().auth(request));
        let service = layer.layer(GrpcWebLayer::new().layer(inner));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, remote)) = listener.accept().await {
                let service = service.clone().map_request(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(remote);
                    request
                });
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await);
                });
            }
        });
        Fixture { address, pool, seen, dropped }
    }

    /// The last call that the service received.
    pub(super) fn seen(&self) -> Option<Seen> {
        self.seen.lock().unwrap().last().cloned()
    }

    /// Whether a call was cancelled before its response.
    pub(super) fn dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }
}

/// The inner service.
#[derive(Clone)]
struct Behind {
    pool: DescriptorPool,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
    dropped: Arc<AtomicBool>,
}

impl Behind {
    /// An interceptor, as in tonic.
    async fn auth(self, mut request: Request<Body>) -> Result<Response<Body>, Infallible> {
        if self.script.auth {
            if !request.headers().contains_key("authorization") {
                return Ok(trailers_only(16, "no credentials"));
            }
            request.extensions_mut().insert(Principal);
        }
        self.deadline(request).await
    }

    /// Enforces `grpc-timeout`, as a layer inside the RestLayer does.
    async fn deadline(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let asked = request.headers().get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned());
        let asked = asked.map(|value| value.strip_suffix('m').unwrap().parse().unwrap());
        match asked.or(self.script.deadline_ms) {
            None => self.serve(request).await,
            Some(millis) => match tokio::time::timeout(Duration::from_millis(millis), self.serve(request)).await {
                Ok(response) => response,
                Err(_) => Ok(trailers_only(4, "deadline exceeded")),
            },
        }
    }

    async fn serve(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let frame = body.collect().await.unwrap().to_bytes();
        assert_eq!(frame.len(), 5 + u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize);
        assert_eq!(parts.method, Method::POST);
        self.seen.lock().unwrap().push(Seen {
            path: parts.uri.path().to_owned(),
            headers: parts.headers,
            message: frame.slice(5..),
            principal: parts.extensions.get::<Principal>().is_some(),
            remote_addr: parts.extensions.get::<SocketAddr>().is_some(),
            matched: parts.extensions.get::<MatchedRoute>().cloned(),
        });
        if let Some(millis) = self.script.sleep_ms {
            let guard = DropGuard(Arc::clone(&self.dropped));
            tokio::time::sleep(Duration::from_millis(millis)).await;
            std::mem::forget(guard);
        }
        Ok(self.answer(parts.uri.path()))
    }

    fn answer(&self, path: &str) -> Response<Body> {
        let script = &self.script;
        if let Some(status) = script.http_status {
            return Response::builder().status(status).body(Body::empty()).unwrap();
        }
        let mut response = Response::new(());
        let mut end = HeaderMap::new();
        end.insert("grpc-status", HeaderValue::from(0));
        if let Some(status) = &script.status {
            end = trailers(status);
        }
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        for (name, value) in &script.metadata {
            headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        if script.status.is_some() && !script.late {
            headers.extend(end);
            return response.map(|()| Body::empty());
        }
        let output = method(&self.pool, path).output();
        let messages = match (&script.stream, &script.reply) {
            (Some(messages), _) => messages.clone(),
            (None, Some(reply)) => vec![reply.clone()],
            (None, None) if script.status.is_some() => Vec::new(),
            (None, None) => vec![Value::Object(serde_json::Map::new())],
        };
        let frames = messages.into_iter().map(move |json| {
            let message = DynamicMessage::deserialize(output.clone(), json).unwrap().encode_to_vec();
            let frame = [&[0], (message.len() as u32).to_be_bytes().as_slice(), &message].concat();
            Ok::<_, Infallible>(Frame::data(Bytes::from(frame)))
        });
        let body = stream::iter(frames.collect::<Vec<_>>());
        if script.hang {
            let guard = DropGuard(Arc::clone(&self.dropped));
            let silence = stream::once(async move {
                let _guard = guard;
                std::future::pending().await
            });
            return response.map(|()| Body::new(StreamBody::new(Box::pin(body.chain(silence)))));
        }
        let end = stream::iter([Ok(Frame::trailers(end))]);
        response.map(|()| Body::new(StreamBody::new(body.chain(end))))
    }
}

struct DropGuard(Arc<AtomicBool>);

impl Drop for DropGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The descriptor of `/package.Service/Method`.
pub(super) fn method(pool: &DescriptorPool, path: &str) -> prost_reflect::MethodDescriptor {
    let (service, name) = path[1..].split_once('/').unwrap();
    pool.get_service_by_name(service).unwrap().methods().find(|method| method.name() == name).unwrap()
}

fn trailers_only(code: i32, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let status = Status { code, message: message.to_owned(), details: Vec::new(), unknown_detail: false };
    *response.headers_mut() = trailers(&status);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.code.into());
    let message = utf8_percent_encode(&status.message, NON_ALPHANUMERIC).to_string();
    trailers.insert("grpc-message", message.parse().unwrap());
    if !status.details.is_empty() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut compiler = protox::Compiler::new([root.join("proto")]).unwrap();
        let protos = ["google/rpc/status.proto", "google/rpc/error_details.proto"];
        compiler.include_imports(true).open_files(protos).unwrap();
        let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap();
        let descriptor = pool.get_message_by_name("google.rpc.Status").unwrap();
        let json = serde_json::json!({"code": status.code, "message": status.message, "details": status.details});
        let mut packed = DynamicMessage::deserialize(descriptor, json).unwrap().encode_to_vec();
        if status.unknown_detail {
            packed.extend_from_slice(b"\x1a\x0d\x0a\x0bx/nope.Nope");
        }
        let packed = BASE64_STANDARD_NO_PAD.encode(packed);
        trailers.insert("grpc-status-details-bin", packed.parse().unwrap());
    }
    trailers
}

/// The protocols that every case is run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Http1,
    Http2,
}

pub(super) const WIRES: [Wire; 2] = [Wire::Http1, Wire::Http2];

/// A response, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    /// Whether the body was aborted.
    pub broken: bool,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

/// Sends one request on a new connection, with the path unchanged, and returns the response without reading its body.
pub(super) async fn open(address: SocketAddr, wire: Wire, request: Request<Bytes>) -> Response<Incoming> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut parts, body) = request.into_parts();
    let body = Full::new(body);
    match wire {
        Wire::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            parts.headers.insert("host", address.to_string().parse().unwrap());
            sender.send_request(Request::from_parts(parts, body)).await.unwrap()
        }
        Wire::Http2 => {
            let executor = TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            let target = parts.uri.path_and_query().unwrap().clone();
            let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(target);
            parts.uri = uri.build().unwrap();
            sender.send_request(Request::from_parts(parts, body)).await.unwrap()
        }
    }
}

/// Sends one request and reads the complete response.
pub(super) async fn send(address: SocketAddr, wire: Wire, request: Request<Bytes>) -> Answer {
    let response = open(address, wire, request).await;
    let (parts, mut incoming) = response.into_parts();
    let (mut body, mut trailers, mut broken) = (Vec::new(), None, false);
    while let Some(frame) = incoming.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => body.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            Err(_) => {
                broken = true;
                break;
            }
        }
    }
    Answer { status: parts.status, headers: parts.headers, body: body.into(), trailers, broken }
}
