//! The connection to the collector: gRPC over HTTP/2, or protobuf over HTTP/1.1.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::header;
use http::uri::PathAndQuery;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::client::conn::http1;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use prost::Message as _;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::Status;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Certificate;
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use super::OtlpError;
use super::legible;
use super::message::ExportRequest;
use super::message::ExportResponse;
use crate::config::OtlpEndpoint;
use crate::config::OtlpProtocol;
use crate::config::Tracing;
use crate::tls;

/// The RPC.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The path over HTTP, below the endpoint's.
const TRACES: &str = "/v1/traces";

/// How long the collector may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection with an export in progress may be silent, and then a ping unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How much of an answer is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What became of a batch.
pub(super) enum Export {
    /// The collector accepted it, except for some spans.
    Accepted { rejected: usize, why: String },
    /// It will never accept it.
    Refused { why: String },
    /// It may accept it later.
    Unavailable { why: String, retry_after: Option<Duration> },
}

impl Export {
    fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), retry_after: None }
    }

    fn answered(answer: ExportResponse) -> Self {
        let partial = answer.partial_success.unwrap_or_default();
        let rejected = usize::try_from(partial.rejected_spans).unwrap_or_default();
        Self::Accepted { rejected, why: legible(&partial.error_message) }
    }
}

pub(super) enum Collector {
    Grpc(Box<GrpcCollector>),
    Http(Box<HttpCollector>),
}

impl Collector {
    pub(super) fn new(
        endpoint: &OtlpEndpoint,
        settings: &Tracing,
        headers: Option<&SecretString>,
    ) -> Result<Self, OtlpError> {
        let mut headers = headers.map_or_else(|| Ok(HeaderMap::new()), |text| parse_headers(text.expose_secret()))?;
        let user_agent = concat!("sessiond/", env!("CARGO_PKG_VERSION"));
        headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(user_agent));
        Ok(match settings.otlp_protocol {
            OtlpProtocol::Grpc => Self::Grpc(Box::new(GrpcCollector::new(endpoint, settings, headers)?)),
            OtlpProtocol::Http => Self::Http(Box::new(HttpCollector::new(endpoint, settings, headers)?)),
        })
    }

    /// Sends a batch once. The caller limits the time.
    pub(super) async fn export(&mut self, request: &ExportRequest) -> Export {
        match self {
            Self::Grpc(collector) => collector.export(request).await,
            Self::Http(collector) => collector.export(request).await,
        }
    }
}

/// Parses `name=value` pairs, separated by commas, with values that may be percent-encoded (OpenTelemetry, OTLP exporter
/// configuration).
fn parse_headers(text: &str) -> Result<HeaderMap, OtlpError> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let parsed = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').ok_or(OtlpError::Headers)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| OtlpError::Headers)?;
        let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| OtlpError::Headers)?;
        let mut value = HeaderValue::try_from(&*value).map_err(|_| OtlpError::Headers)?;
        value.set_sensitive(true);
        Ok((name, value))
    });
    parsed.collect()
}

/// The certificates in a file, of which there must be one at least.
fn trusted(path: &Path) -> Result<RootCertStore, OtlpError> {
    let mut roots = RootCertStore::empty();
    match tls::add_roots(&mut roots, path) {
        Ok(()) if !roots.is_empty() => Ok(roots),
        Ok(()) | Err(_) => Err(OtlpError::Certificates(path.to_owned())),
    }
}

/// Over gRPC.
pub(super) struct GrpcCollector {
    client: Grpc<Channel>,
    metadata: MetadataMap,
}

impl GrpcCollector {
    fn new(endpoint: &OtlpEndpoint, settings: &Tracing, headers: HeaderMap) -> Result<Self, OtlpError> {
        let channel = Endpoint::from(endpoint.uri().clone())
            .connect_timeout(CONNECT_TIMEOUT)
            // A connection whose network is gone looks alive, and every batch would wait on it in vain.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let channel = if endpoint.is_secure() {
            let tls = match &settings.otlp_ca_file {
                None => ClientTlsConfig::new().with_native_roots(),
                Some(path) => {
                    // tonic would accept a file without certificates, and then no collector.
                    trusted(path)?;
                    let pem = std::fs::read(path).map_err(|_| OtlpError::Certificates(path.clone()))?;
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
                }
            };
            channel.tls_config(tls).map_err(|error| OtlpError::Tls(error.into()))?
        } else {
            channel
        };
        let client = Grpc::new(channel.connect_lazy()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { client, metadata: MetadataMap::from_headers(headers) })
    }

    async fn export(&mut self, request: &ExportRequest) -> Export {
        if let Err(error) = self.client.ready().await {
            return Export::unavailable(legible(&crate::telemetry::chain(&error)));
        }
        let request = tonic::Request::from_parts(self.metadata.clone(), http::Extensions::default(), request.clone());
        let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
        match self.client.unary(request, PathAndQuery::from_static(EXPORT), codec).await {
            Ok(answer) => Export::answered(answer.into_inner()),
            Err(status) => refused(&status),
        }
    }
}

/// Whether to send the batch again (OTLP, "Failures" of gRPC).
fn refused(status: &Status) -> Export {
    let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let why = legible(&format!("{:?}: {}", status.code(), crate::telemetry::chain(status)));
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        // What a broken connection, or an answer that is not gRPC, looks like.
        | Code::Unknown
        | Code::Internal => Export::Unavailable { why, retry_after },
        Code::ResourceExhausted if retry_after.is_some() => Export::Unavailable { why, retry_after },
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => Export::Refused { why },
    }
}

/// Over HTTP/1.1, on one connection that is kept open.
pub(super) struct HttpCollector {
    host: String,
    port: u16,
    authority: String,
    path: String,
    headers: HeaderMap,
    tls: Option<TlsConnector>,
    open: Option<OpenConnection>,
}

/// A connection, which closes when dropped.
struct OpenConnection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl HttpCollector {
    fn new(endpoint: &OtlpEndpoint, settings: &Tracing, headers: HeaderMap) -> Result<Self, OtlpError> {
        let tls = endpoint.is_secure().then(|| {
            let roots = match &settings.otlp_ca_file {
                None => tls::system_roots(),
                Some(path) => trusted(path)?,
            };
            let tls = tls::client(tls::provider()).map_err(|error| OtlpError::Tls(error.into()))?;
            let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(TlsConnector::from(Arc::new(tls)))
        });
        let uri = endpoint.uri();
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let path = uri.path().trim_end_matches('/');
        // Some name the whole path, as for a single signal.
        let path = path.strip_suffix(TRACES).unwrap_or(path);
        Ok(Self {
            host: uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if endpoint.is_secure() { 443 } else { 80 }),
            path: format!("{path}{TRACES}"),
            authority,
            headers,
            tls: tls.transpose()?,
            open: None,
        })
    }

    async fn export(&mut self, request: &ExportRequest) -> Export {
        let body = Bytes::from(request.encode_to_vec());
        // The collector may have closed an idle connection; then the request is sent on a new one.
        if let Some(open) = self.open.take()
            && let Ok(export) = self.post(open, body.clone()).await
        {
            return export;
        }
        match self.connect().await {
            Err(why) => Export::unavailable(why),
            Ok(open) => {
                let export = self.post(open, body).await;
                export.unwrap_or_else(|_| {
                    Export::unavailable("no HTTP answer: check --otlp-endpoint and --otlp-protocol")
                })
            }
        }
    }

    async fn connect(&self) -> Result<OpenConnection, String> {
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port)));
        let stream = connecting.await.map_err(|_| "no connection in time".to_owned())?;
        let stream = stream.map_err(|error| format!("no connection: {error}"))?;
        let Some(tls) = &self.tls else { return open(stream).await };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        let stream = tls.connect(name, stream).await.map_err(|error| legible(&format!("no TLS: {error}")))?;
        open(stream).await
    }

    /// Sends a batch; an error if there is no HTTP answer.
    async fn post(&mut self, mut open: OpenConnection, body: Bytes) -> hyper::Result<Export> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.path.parse().expect("a path of a URL");
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(header::HOST, HeaderValue::try_from(&self.authority).expect("an authority is ASCII"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        open.sender.ready().await?;
        let (head, body) = open.sender.send_request(request).await?.into_parts();
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let answer = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        Ok(match head.status {
            StatusCode::OK => {
                let Ok(answer) = answer else {
                    return Ok(Export::unavailable("the answer is too large, or was cut off"));
                };
                self.open = Some(open);
                match ExportResponse::decode(answer.to_bytes()) {
                    Ok(answer) => Export::answered(answer),
                    Err(_) => Export::Refused { why: "the answer is not OTLP: check --otlp-endpoint".to_owned() },
                }
            }
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => {
                let retry_after = retry_after.map(Duration::from_secs);
                Export::Unavailable { why: format!("status {status}"), retry_after }
            }
            status => Export::Refused { why: format!("status {status}") },
        })
    }
}

async fn open(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<OpenConnection, String> {
    let builder = http1::Builder::new().max_buf_size(ANSWER_BYTES_MAX).clone();
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| legible(&error.to_string()))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // The request reports why it ended.
        let _ = connection.await;
    });
    Ok(OpenConnection { sender, _driver: driver })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &OtlpEndpoint) -> Tracing {
        Tracing {
            otlp_endpoint: Some(endpoint.clone()),
            otlp_protocol: OtlpProtocol::Http,
            otlp_headers_file: None,
            otlp_ca_file: None,
            otlp_service_name: "sessiond".to_owned(),
            otlp_resource_attributes: vec![],
            trace_ratio: 1.0,
        }
    }

    #[test]
    fn headers_are_pairs_and_never_repeated_in_an_error() {
        let headers = parse_headers(" api-key = a%2Cb%20c , x=1,,").expect("two pairs");
        assert_eq!((headers.len(), headers["api-key"].to_str().expect("text")), (2, "a,b c"));
        assert!(headers["api-key"].is_sensitive());
        for bad in ["secret", "a b=c", "a=\u{1}", "=x", "a=%ff"] {
            let error = parse_headers(bad).expect_err(bad).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_path_of_traces_is_below_the_endpoint() {
        for (endpoint, authority, path) in [
            ("http://127.0.0.1:4318", "127.0.0.1:4318", "/v1/traces"),
            ("http://[::1]:4318/", "[::1]:4318", "/v1/traces"),
            ("http://a.example/otlp/", "a.example", "/otlp/v1/traces"),
            ("http://a.example/v1/traces", "a.example", "/v1/traces"),
        ] {
            let endpoint = OtlpEndpoint::parse(endpoint).expect("a URL");
            let settings = settings(&endpoint);
            let collector = HttpCollector::new(&endpoint, &settings, HeaderMap::new()).expect("needs no file");
            assert_eq!((collector.authority.as_str(), collector.path.as_str()), (authority, path));
        }
    }
}
