//! Sends requests to other services: only over https, only to public or permitted addresses, without retries, and within a
//! time and size limit.
//!
//! A URL from outside makes this server send a request from inside its network. So the name is resolved here, all of its
//! addresses are checked, and the connection goes to one of those: no second lookup can lead elsewhere (DNS rebinding).
//! Redirects are not followed, and the environment's proxies are not used.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Request;
use http::Uri;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use ipnet::Ipv4Net;
use ipnet::Ipv6Net;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;

use crate::tls;
use crate::tls::RootsError;

/// How long a request may take in total, from the name lookup to the end of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How long one of several addresses may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How much of an answer's head and of its body is read, in bytes each.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The longest URL, in bytes.
pub const URL_LENGTH_MAX: usize = 2_048;

/// Addresses of IPv4 that are not reachable from everywhere, or not one host (IANA's special-purpose registry, RFC 6890).
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 16] = [
    // "This network".
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    // Private (RFC 1918).
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    // Shared by carriers (RFC 6598).
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    // Loopback.
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local; cloud providers serve secrets there (RFC 3927).
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // Private.
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    // For protocols.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // For documentation (RFC 5737), here and twice below.
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    // Relays of 6to4 (RFC 7526).
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    // Private.
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    // For benchmarks (RFC 2544).
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    // Reserved; the last one is the broadcast.
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    (Ipv4Addr::new(255, 255, 255, 255), 32),
];

/// The only addresses of IPv6 that may be public (RFC 4291 §2.4). Loopback, unspecified, link-local, unique local,
/// multicast, IPv4-compatible ones and those of NAT64 (`64:ff9b::/96` and `64:ff9b:1::/48`, RFC 6052 and RFC 8215) lie outside.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The addresses among them that are not public.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    // For protocols: Teredo, which wraps an IPv4 address, benchmarks, ORCHID.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // For documentation (RFC 3849, RFC 9637).
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    // 6to4 wraps an IPv4 address.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

/// Whether an address is public: reachable from everywhere, and one host. An IPv4 address that is mapped into IPv6 is what
/// it maps (RFC 4291 §2.5.5.2).
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            !NOT_PUBLIC_V4.iter().any(|(base, length)| Ipv4Net::new_assert(*base, *length).contains(&address))
        }
        IpAddr::V6(address) => {
            let within = |(base, length): &(Ipv6Addr, u8)| Ipv6Net::new_assert(*base, *length).contains(&address);
            within(&GLOBAL_V6) && !NOT_PUBLIC_V6.iter().any(within)
        }
    }
}

/// Whether an address may be called: it is public, or the operator has permitted its network.
pub fn may_call(address: IpAddr, permitted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    is_public(address) || permitted.iter().any(|network| network.contains(&address))
}

/// Why a URL may not be called. The error does not repeat the URL, which may hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundUrlError {
    /// It is malformed, or too long.
    #[error("malformed URL: expected one such as https://app.example.org/logout, of at most {URL_LENGTH_MAX} bytes")]
    Malformed,
    /// Its scheme is not https.
    #[error("the URL must begin with https://")]
    NotHttps,
    /// It has a user name or a password.
    #[error("the URL must not contain a user name or a password")]
    UserInfo,
    /// It has a fragment.
    #[error("the URL must not have a fragment")]
    Fragment,
    /// Its host is an address that may not be called.
    #[error("the URL's address is a private one; --backchannel-allow-private permits a network")]
    Private,
}

/// A URL that may be called. Its name is not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundUrl {
    authority: String,
    host: Host,
    port: u16,
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Name(String),
    Address(IpAddr),
}

impl OutboundUrl {
    /// Parses an `https` URL.
    ///
    /// # Errors
    ///
    /// See [`OutboundUrlError`]. The addresses of a name are checked later, when it is resolved.
    pub fn parse(text: &str, permitted: &[IpNet]) -> Result<Self, OutboundUrlError> {
        // The URI parser silently drops it.
        if text.contains('#') {
            return Err(OutboundUrlError::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| OutboundUrlError::Malformed)?;
        if uri.scheme_str() != Some("https") {
            return Err(OutboundUrlError::NotHttps);
        }
        let authority = uri.authority().map(|authority| authority.as_str()).ok_or(OutboundUrlError::Malformed)?;
        if authority.contains('@') {
            return Err(OutboundUrlError::UserInfo);
        }
        let host = uri.host().unwrap_or_default();
        let port = match authority.strip_prefix(host).ok_or(OutboundUrlError::Malformed)?.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(OutboundUrlError::Malformed)?,
            None => 443,
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match (bare.parse(), ServerName::try_from(bare)) {
            (Ok(address), _) if !may_call(address, permitted) => return Err(OutboundUrlError::Private),
            (Ok(address), _) => Host::Address(address),
            (Err(_), Ok(_)) => Host::Name(bare.to_owned()),
            (Err(_), Err(_)) => return Err(OutboundUrlError::Malformed),
        };
        if text.len() > URL_LENGTH_MAX {
            return Err(OutboundUrlError::Malformed);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { authority: authority.to_owned(), host, port, path })
    }

    /// Whether both are the same URL, ignoring the case of the name, a default port and an empty path (RFC 3986 §6.2.2.1,
    /// §6.2.3).
    pub fn is(&self, other: &Self) -> bool {
        let same_host = match (&self.host, &other.host) {
            (Host::Name(one), Host::Name(other)) => {
                one.trim_end_matches('.').eq_ignore_ascii_case(other.trim_end_matches('.'))
            }
            (Host::Address(one), Host::Address(other)) => one.to_canonical() == other.to_canonical(),
            (Host::Name(_), Host::Address(_)) | (Host::Address(_), Host::Name(_)) => false,
        };
        same_host && self.port == other.port && self.path == other.path
    }
}

/// Why a request failed. Repeats nothing that the receiver sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// The name has no address.
    #[error("the name does not resolve")]
    Resolve,
    /// An address may not be called.
    #[error("the name leads to a private address")]
    Private,
    /// No address accepted a connection.
    #[error("no connection")]
    Connect,
    /// The receiver has no trusted certificate, or does not speak TLS.
    #[error("no trusted certificate, or no TLS")]
    Tls,
    /// The receiver does not speak HTTP, or disconnected.
    #[error("no HTTP answer")]
    Http,
    /// It took too long.
    #[error("no answer in time")]
    Late,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundAnswer {
    /// The status.
    pub status: u16,
    /// `Retry-After`, as sent.
    pub retry_after: Option<String>,
    /// The body, or the beginning of it: at most [`ANSWER_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
}

/// What to send.
pub struct OutboundMessage {
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// The `Accept` of the answer.
    pub accept: &'static str,
    /// The body.
    pub body: Bytes,
}

/// Finds the addresses of a name and a port.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The file does not hold certificates in PEM.
    #[error("cannot read the certificates in {} (--backchannel-trusted-certificates)", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificates cannot be used.
    #[error("the certificates to trust for back-channels cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// Sends requests. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Outbound {
    tls: TlsConnector,
    permitted: Arc<[IpNet]>,
    resolve: Resolve,
}

impl Outbound {
    /// Trusts the system's certificates and, if given, those of a PEM file; calls public addresses and the permitted networks.
    ///
    /// # Errors
    ///
    /// Fails if the file is malformed.
    pub fn new(permitted: Vec<IpNet>, trusted: Option<&Path>) -> Result<Self, CertificatesError> {
        let mut roots = tls::system_roots();
        if let Some(path) = trusted {
            tls::add_roots(&mut roots, path).map_err(|error| match error {
                RootsError::File(source) => CertificatesError::File { path: path.to_owned(), source },
                RootsError::Certificate(source) => CertificatesError::Unusable(source),
            })?;
        }
        let tls = tls::client(tls::provider()).map_err(CertificatesError::Unusable)?;
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let resolve: Resolve =
            Arc::new(|name, port| async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) }.boxed());
        Ok(Self { tls: TlsConnector::from(Arc::new(tls)), permitted: permitted.into(), resolve })
    }

    /// Resolves names with this function in place of the system's resolver.
    #[must_use]
    pub fn resolving(self, resolve: Resolve) -> Self {
        Self { resolve, ..self }
    }

    /// The networks that may be called although they are private.
    pub fn permitted(&self) -> &[IpNet] {
        &self.permitted
    }

    /// Sends a POST, and returns the answer. Does not follow a redirect.
    ///
    /// # Errors
    ///
    /// See [`OutboundError`]. The receiver may have read the message even so.
    pub async fn post(&self, url: &OutboundUrl, message: OutboundMessage) -> Result<OutboundAnswer, OutboundError> {
        let deadline = Instant::now() + TIMEOUT;
        // Drives the connection; aborted when this call returns.
        let mut driver = JoinSet::new();
        let head =
            timeout_at(deadline, self.exchange(url, message, &mut driver)).await.map_err(|_| OutboundError::Late)?;
        let (head, body) = head?.into_parts();
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let mut answer =
            OutboundAnswer { status: head.status.as_u16(), retry_after: retry_after.map(str::to_owned), body: vec![] };
        // Only the status matters: a body that does not end is cut off.
        let _ = timeout_at(deadline, read(body, &mut answer.body)).await;
        Ok(answer)
    }

    async fn exchange(
        &self,
        url: &OutboundUrl,
        message: OutboundMessage,
        driver: &mut JoinSet<()>,
    ) -> Result<http::Response<Incoming>, OutboundError> {
        let stream = self.connect(url).await?;
        let name = match &url.host {
            Host::Name(name) => ServerName::try_from(name.clone()).expect("it was parsed as one"),
            Host::Address(address) => ServerName::from(*address),
        };
        let stream = self.tls.connect(name, stream).await.map_err(|error| {
            tracing::debug!(%error, "back-channel certificate refused");
            OutboundError::Tls
        })?;
        let builder = hyper::client::conn::http1::Builder::new().max_buf_size(ANSWER_BYTES_MAX).clone();
        let (mut sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|_| OutboundError::Http)?;
        driver.spawn(async move {
            // The request reports why it ended.
            let _ = connection.await;
        });
        let request = Request::post(&url.path)
            .header(header::HOST, &url.authority)
            .header(header::USER_AGENT, "sessiond")
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, message.content_type)
            .header(header::ACCEPT, message.accept)
            .body(Full::new(message.body))
            .map_err(|_| OutboundError::Http)?;
        sender.send_request(request).await.map_err(|_| OutboundError::Http)
    }

    /// Connects to one of the addresses that were checked.
    async fn connect(&self, url: &OutboundUrl) -> Result<TcpStream, OutboundError> {
        let addresses = match &url.host {
            Host::Name(name) => (self.resolve)(name.clone(), url.port).await.map_err(|_| OutboundError::Resolve)?,
            Host::Address(address) => vec![SocketAddr::new(*address, url.port)],
        };
        if addresses.is_empty() {
            return Err(OutboundError::Resolve);
        }
        // One private address disqualifies the others: a name that mixes them is suspicious.
        if !addresses.iter().all(|address| may_call(address.ip(), &self.permitted)) {
            return Err(OutboundError::Private);
        }
        for address in addresses {
            if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                return Ok(stream);
            }
        }
        Err(OutboundError::Connect)
    }
}

/// Reads a body to its end, or up to [`ANSWER_BYTES_MAX`] bytes.
async fn read(mut body: Incoming, into: &mut Vec<u8>) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        let room = ANSWER_BYTES_MAX - into.len();
        into.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() >= room {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
    }

    /// The first and the last address of each range, and the neighbours that are public.
    #[test]
    fn only_public_addresses_are_called() {
        let private = "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 \
             127.255.255.255 169.254.0.0 169.254.169.254 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.255 \
             192.0.2.1 192.88.99.1 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.7 \
             203.0.113.255 224.0.0.1 239.255.255.255 240.0.0.0 255.255.255.255 :: ::1 ::127.0.0.1 ::8.8.8.8 \
             64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:2::1 2001:10::1 \
             2001:1ff:ffff::1 2001:db8::1 2002:7f00:1::1 2002:808:808::1 3fff::1 3fff:fff::1 4000::1 5f00::1 \
             fc00::1 fdff::1 fe80::1 febf::1 fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 \
             ::ffff:169.254.169.254 ::ffff:0.0.0.0";
        for one in private.split(' ') {
            assert!(!is_public(address(one)), "{one}");
        }
        let public = "1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 \
             169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.88.98.255 \
             192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.101.0 203.0.112.255 223.255.255.255 \
             2001:200::1 2001:4860:4860::8888 2001:db7::1 2001:db9::1 2003::1 2606:4700::1111 3ffe::1 \
             3fff:1000::1 ::ffff:8.8.8.8";
        for one in public.split(' ') {
            assert!(is_public(address(one)), "{one}");
        }
    }

    #[test]
    fn a_permitted_network_permits_nothing_else() {
        let permitted: Vec<IpNet> = ["10.1.0.0/16", "fd00::/8"].map(|net| net.parse().expect("a network")).to_vec();
        for one in ["10.1.255.255", "::ffff:10.1.0.1", "fd12::1", "8.8.8.8"] {
            assert!(may_call(address(one), &permitted), "{one}");
        }
        for one in ["10.2.0.0", "127.0.0.1", "fc00::1"] {
            assert!(!may_call(address(one), &permitted), "{one}");
        }
    }

    #[test]
    fn only_https_urls_are_accepted() {
        let parsed = |text: &str| OutboundUrl::parse(text, &[]);
        let target = parsed("https://app.example.org:8443/logout?a=b").expect("a good one");
        assert_eq!(
            (target.authority.as_str(), target.port, target.path.as_str()),
            ("app.example.org:8443", 8443, "/logout?a=b")
        );
        let target = parsed("https://app.example.org").expect("a good one");
        assert_eq!((target.port, target.path.as_str()), (443, "/"));
        assert!(parsed("https://8.8.8.8/").is_ok() && parsed("https://[2606:4700::1111]/").is_ok());

        let long = format!("https://app.example.org/{}", "x".repeat(URL_LENGTH_MAX));
        let refused = [
            ("http://app.example.org/", OutboundUrlError::NotHttps),
            ("ftp://app.example.org/", OutboundUrlError::NotHttps),
            ("/logout", OutboundUrlError::NotHttps),
            ("app.example.org", OutboundUrlError::NotHttps),
            ("https://ada@app.example.org/", OutboundUrlError::UserInfo),
            ("https://ada:secret@app.example.org/", OutboundUrlError::UserInfo),
            ("https://app.example.org@127.0.0.1/", OutboundUrlError::UserInfo),
            ("https://app.example.org/#top", OutboundUrlError::Fragment),
            ("https://127.0.0.1/", OutboundUrlError::Private),
            ("https://[::1]:8443/", OutboundUrlError::Private),
            ("https://[::ffff:10.0.0.1]/", OutboundUrlError::Private),
            ("https://169.254.169.254/latest", OutboundUrlError::Private),
            ("", OutboundUrlError::Malformed),
            ("https://", OutboundUrlError::Malformed),
            ("https://a b/", OutboundUrlError::Malformed),
            ("https://app.example.org:0/", OutboundUrlError::Malformed),
            ("https://app.example.org:99999/", OutboundUrlError::Malformed),
            ("https://app.example.org:/", OutboundUrlError::Malformed),
            ("https://[fe80::1%25eth0]/", OutboundUrlError::Malformed),
            ("https://b\u{fc}cher.example/", OutboundUrlError::Malformed),
            ("https://app.example.org/\r\nx: y", OutboundUrlError::Malformed),
            (&long, OutboundUrlError::Malformed),
        ];
        for (text, why) in refused {
            assert_eq!(parsed(text), Err(why), "{text:?}");
        }
        assert!(OutboundUrl::parse("https://127.0.0.1/", &["127.0.0.0/8".parse().expect("a network")]).is_ok());
    }
}
