//! Fetches documents as a client of this server does: for an operator who asks whether it can be reached. Bounded in time and
//! size; does not follow redirects.
//!
//! Only for addresses that the operator names: unlike `outbound`, this calls every network.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Uri;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Empty;
use http_body_util::Limited;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::FromDer as _;
use x509_parser::prelude::X509Certificate;

use crate::tls;
use crate::tls::RootsError;
use sessiond_core::clock::Timestamp;

/// How long one request may take, from the name lookup to the end of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// How much of an answer is read, in bytes. The JWK Set of a project with many keys fits.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The URL is malformed.
    #[error("`{0}` is not an http or https URL")]
    Url(String),
    /// The name does not resolve, or nothing accepts connections.
    #[error("{0} cannot be reached")]
    Connect(String, #[source] std::io::Error),
    /// It took too long.
    #[error("{0} does not answer within {limit}", limit = humantime::format_duration(TIMEOUT))]
    Late(String),
    /// The certificate is not trusted, or the server does not speak TLS.
    #[error("TLS with {0} fails")]
    Tls(String, #[source] std::io::Error),
    /// The server does not speak HTTP, or disconnects.
    #[error("{0} does not answer in HTTP")]
    Http(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeSetupError {
    /// The file does not hold certificates in PEM.
    #[error("it does not hold certificates in PEM")]
    File(#[source] rustls::pki_types::pem::Error),
    /// A certificate cannot be used.
    #[error("a certificate cannot be used")]
    Certificate(#[source] rustls::Error),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct ProbeAnswer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
    /// Until when the server's certificate is valid; `None` without TLS.
    pub certificate_until: Option<Timestamp>,
}

/// Sends requests.
pub struct Probe {
    tls: TlsConnector,
}

impl Probe {
    /// Trusts the system's certificates and, if given, those of a PEM file.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be used.
    pub fn new(trusted: Option<&Path>) -> Result<Self, ProbeSetupError> {
        let mut roots = tls::system_roots();
        if let Some(path) = trusted {
            tls::add_roots(&mut roots, path).map_err(|error| match error {
                RootsError::File(error) => ProbeSetupError::File(error),
                RootsError::Certificate(error) => ProbeSetupError::Certificate(error),
            })?;
        }
        let tls = tls::client(tls::provider()).map_err(ProbeSetupError::Certificate)?;
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// Fetches a document.
    ///
    /// # Errors
    ///
    /// [`ProbeError`].
    pub async fn get(&self, url: &str) -> Result<ProbeAnswer, ProbeError> {
        let (uri, place) = parse(url)?;
        // Drives the connection; aborted when this call returns.
        let mut driver = JoinSet::new();
        let fetch = self.fetch(&uri, &place, &mut driver);
        timeout(TIMEOUT, fetch).await.unwrap_or_else(|_| Err(ProbeError::Late(place.name())))
    }

    async fn fetch(&self, uri: &Uri, place: &Place, driver: &mut JoinSet<()>) -> Result<ProbeAnswer, ProbeError> {
        let unreachable = |error| ProbeError::Connect(place.name(), error);
        let stream = TcpStream::connect((place.host.as_str(), place.port)).await.map_err(unreachable)?;
        if !place.is_tls {
            let (status, body) = exchange(stream, uri, place, driver).await?;
            return Ok(ProbeAnswer { status, body, certificate_until: None });
        }
        let name = ServerName::try_from(place.host.clone()).map_err(|_| ProbeError::Url(uri.to_string()))?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| ProbeError::Tls(place.name(), error))?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate_until = certificate.and_then(|certificate| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            Some(Timestamp::from_seconds(parsed.validity().not_after.timestamp()))
        });
        let (status, body) = exchange(stream, uri, place, driver).await?;
        Ok(ProbeAnswer { status, body, certificate_until })
    }
}

/// Where a URL leads.
struct Place {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Place {
    /// The host and the port, for messages.
    fn name(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn parse(url: &str) -> Result<(Uri, Place), ProbeError> {
    let bad = || ProbeError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let is_tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad()),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
    // A password would be repeated in messages.
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(ProbeError::Url("a URL with a user name".to_owned()));
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    Ok((uri, Place { host, port, is_tls }))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    uri: &Uri,
    place: &Place,
    driver: &mut JoinSet<()>,
) -> Result<(u16, Bytes), ProbeError> {
    let failed = |error: hyper::Error| ProbeError::Http(place.name(), error.into());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    driver.spawn(async move {
        // The request reports why it ended.
        let _ = connection.await;
    });
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::USER_AGENT, "sessiond-doctor")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| ProbeError::Http(place.name(), error.into()))?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| ProbeError::Http(place.name(), error))?.to_bytes();
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_without_a_user_are_fetched() {
        let place = |url: &str| parse(url).map(|(_, place)| (place.name(), place.is_tls));
        assert_eq!(place("https://auth.example.org/a").expect("good"), ("auth.example.org:443".to_owned(), true));
        assert_eq!(place("http://[::1]:8080").expect("good"), ("[::1]:8080".to_owned(), false));
        for bad in ["", "auth.example.org", "ftp://a/", "/readyz"] {
            assert!(matches!(place(bad), Err(ProbeError::Url(_))), "{bad}");
        }
        let error = place("https://ada:secret@a/").expect_err("refused").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
