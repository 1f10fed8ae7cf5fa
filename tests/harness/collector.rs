//! An OpenTelemetry collector: receives spans over gRPC and HTTP on one port, decodes them, and answers as the test says.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use prost::Message as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::authority::{Authority, Kind};

/// The fields of `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest` that the tests read.
#[derive(Clone, PartialEq, prost::Message)]
struct Exported {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

/// A span.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub parent: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(int32, tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start: u64,
    #[prost(fixed64, tag = "8")]
    pub end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    pub links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(int64, tag = "3")]
    number: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Accepted {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// The kinds of spans.
pub const INTERNAL: i32 = 1;
pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;

impl Span {
    /// An attribute as text; empty if there is none.
    pub fn attribute(&self, key: &str) -> String {
        let found = self.attributes.iter().find(|attribute| attribute.key == key);
        let value = found.and_then(|attribute| attribute.value.clone()).unwrap_or_default();
        if value.text.is_empty() && value.number != 0 { value.number.to_string() } else { value.text }
    }

    pub fn has_failed(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.code == 2)
    }
}

/// What the collector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It accepts all spans.
    Accepts,
    /// It accepts all but one span of each request.
    RejectsOne,
    /// Over HTTP this status, over gRPC UNAUTHENTICATED for 401 and else UNAVAILABLE.
    Fails(u16),
    /// It answers with text that is no message.
    Nonsense,
    /// It answers with a body that is far too large.
    Floods,
    /// It never answers.
    Hangs,
}

/// See the module. Closed on drop.
pub struct Collector {
    pub addr: SocketAddr,
    scheme: &'static str,
    received: Arc<Received>,
    task: JoinHandle<()>,
}

struct Received {
    answer: Mutex<Answer>,
    spans: Mutex<Vec<Span>>,
    resource: Mutex<HashMap<String, String>>,
    requests: Mutex<Vec<(HeaderMap, Bytes)>>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::answering(Answer::Accepts).await
    }

    pub async fn answering(answer: Answer) -> Self {
        Self::start_as(answer, None).await
    }

    /// Over TLS, with a certificate of this authority.
    pub async fn start_secure(authority: &Authority) -> Self {
        authority.issue(Kind::Good);
        let certificate = CertificateDer::from_pem_file(authority.path("cert.pem")).expect("reads");
        let key = PrivateKeyDer::from_pem_file(authority.path("key.pem")).expect("reads");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::start_as(Answer::Accepts, Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn start_as(answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let received = Arc::new(Received {
            answer: Mutex::new(answer),
            spans: Mutex::default(),
            resource: Mutex::default(),
            requests: Mutex::default(),
        });
        let shared = Arc::clone(&received);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (received, tls) = (Arc::clone(&shared), tls.clone());
                let service = service_fn(move |request| {
                    let received = Arc::clone(&received);
                    async move { Ok::<_, Infallible>(received.answer(request).await) }
                });
                let builder = Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(builder.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Self { addr, scheme, received, task }
    }

    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.addr.port())
    }

    pub fn answers(&self, answer: Answer) {
        *self.received.answer.lock().expect("no panic") = answer;
    }

    /// The spans that it has accepted.
    pub fn spans(&self) -> Vec<Span> {
        self.received.spans.lock().expect("no panic").clone()
    }

    /// The spans of a trace.
    pub fn trace(&self, id: &[u8]) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace == id).collect()
    }

    /// The attributes of the resource.
    pub fn resource(&self) -> HashMap<String, String> {
        self.received.resource.lock().expect("no panic").clone()
    }

    /// Every request's headers and body.
    pub fn requests(&self) -> Vec<(HeaderMap, Bytes)> {
        self.received.requests.lock().expect("no panic").clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Received {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_grpc = match request.uri().path() {
            "/v1/traces" => false,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => true,
            other => panic!("{other} is requested"),
        };
        let expected = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
        assert_eq!(request.headers()["content-type"], expected);
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return Response::new(Full::default().boxed_unsync()) };
        let body = if is_grpc { body.to_bytes().slice(5..) } else { body.to_bytes() };
        self.requests.lock().expect("no panic").push((head.headers, body.clone()));
        let exported = Exported::decode(body).expect("decodes");
        let answer = *self.answer.lock().expect("no panic");
        if matches!(answer, Answer::Accepts | Answer::RejectsOne) {
            for ResourceSpans { resource, scope_spans } in exported.resource_spans {
                let attributes = resource.unwrap_or_default().attributes.into_iter();
                let attributes = attributes.map(|attribute| (attribute.key, attribute.value.unwrap_or_default().text));
                self.resource.lock().expect("no panic").extend(attributes);
                self.spans.lock().expect("no panic").extend(scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        let accepted = |rejected_spans: i64| {
            let error_message = "one too many\n\u{1b}[31m".repeat(usize::try_from(rejected_spans).expect("few"));
            Accepted { partial_success: Some(PartialSuccess { rejected_spans, error_message }) }.encode_to_vec()
        };
        let (status, message) = match answer {
            Answer::Accepts => (200, vec![]),
            Answer::RejectsOne => (200, accepted(1)),
            Answer::Fails(status) => (status, b"<html>down</html>".to_vec()),
            Answer::Nonsense => (200, b"<html>\xff</html>".to_vec()),
            Answer::Floods => (200, vec![b'x'; 32 * 1024 * 1024]),
            Answer::Hangs => return std::future::pending().await,
        };
        let status = StatusCode::from_u16(status).expect("a status");
        let mut response = Response::new(match is_grpc {
            false => Full::from(message).boxed_unsync(),
            true if status != StatusCode::OK => Full::default().boxed_unsync(),
            true => {
                let length = u32::try_from(message.len()).expect("small").to_be_bytes();
                let frame = [&[0][..], &length, &message].concat();
                let trailers = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), 0.into())]);
                Full::from(frame).with_trailers(async { Some(Ok(trailers)) }).boxed_unsync()
            }
        });
        if is_grpc {
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            if status != StatusCode::OK {
                let code = if status == StatusCode::UNAUTHORIZED { 16 } else { 14 };
                response.headers_mut().insert("grpc-status", code.into());
            }
        } else {
            *response.status_mut() = status;
        }
        response
    }
}
