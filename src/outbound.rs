//! Asks other services, and only those that may be asked: over https, at an address that is nobody's private one, once,
//! within a time and a size.
//!
//! Whoever names a URL has us send a request from inside our network. So the name is resolved here, every address that it
//! has is checked, and the connection goes to one of those: no second look-up could lead elsewhere in between (DNS
//! rebinding). Redirects are answers like any other, and the environment's proxies are not asked.

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
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;

/// How long a request may take in all, from the name to the end of the answer.
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
    // Link-local; clouds answer with their secrets there (RFC 3927).
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

/// Those among them that are not.
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

/// Why a URL is not one that may be called. The URL is not repeated: there may be a secret in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is none, or too long.
    #[error("the URL is not one such as https://app.example.org/logout of at most {URL_LENGTH_MAX} bytes")]
    Malformed,
    /// Its scheme is another one.
    #[error("the URL must begin with https://")]
    NotHttps,
    /// It has a user name or a password.
    #[error("the URL must not hold a user name or a password")]
    UserInfo,
    /// It has a fragment.
    #[error("the URL must not have a fragment")]
    Fragment,
    /// Its host is an address that may not be called.
    #[error("the URL's address is a private one; --backchannel-allow-private permits a network")]
    Private,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
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

impl Target {
    /// Reads an `https` URL.
    ///
    /// # Errors
    ///
    /// As [`UrlError`] says; of a name, nothing is known before it is resolved.
    pub fn parse(text: &str, permitted: &[IpNet]) -> Result<Self, UrlError> {
        // A reader of URIs drops it without a word.
        if text.contains('#') {
            return Err(UrlError::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        if uri.scheme_str() != Some("https") {
            return Err(UrlError::NotHttps);
        }
        let authority = uri.authority().map(|authority| authority.as_str()).ok_or(UrlError::Malformed)?;
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let host = uri.host().unwrap_or_default();
        let port = match authority.strip_prefix(host).ok_or(UrlError::Malformed)?.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Malformed)?,
            None => 443,
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match (bare.parse(), ServerName::try_from(bare)) {
            (Ok(address), _) if !may_call(address, permitted) => return Err(UrlError::Private),
            (Ok(address), _) => Host::Address(address),
            (Err(_), Ok(_)) => Host::Name(bare.to_owned()),
            (Err(_), Err(_)) => return Err(UrlError::Malformed),
        };
        if text.len() > URL_LENGTH_MAX {
            return Err(UrlError::Malformed);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { authority: authority.to_owned(), host, port, path })
    }

    /// Whether both lead to the same place, however they are spelled: letters of a name, a port that is the usual one, an
    /// empty path (RFC 3986 §6.2.2.1, §6.2.3).
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

/// Why there is no answer. Says nothing of the other side's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The name has no address.
    #[error("the name does not resolve")]
    Resolve,
    /// An address may not be called.
    #[error("the name leads to a private address")]
    Private,
    /// Nobody listens there.
    #[error("no connection")]
    Connect,
    /// The other side is not who it should be, or speaks no TLS.
    #[error("no trusted certificate, or no TLS")]
    Tls,
    /// The other side speaks no HTTP, or stopped.
    #[error("no HTTP answer")]
    Http,
    /// It took too long.
    #[error("no answer in time")]
    Late,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// When to come again, as it was said.
    pub retry_after: Option<String>,
    /// The body, or the beginning of it: at most [`ANSWER_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
}

/// What to send.
pub struct Message {
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// The `Accept` of the answer.
    pub accept: &'static str,
    /// The body.
    pub body: Bytes,
}

/// Finds the addresses of a name and a port.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Why requests cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The file is not one of certificates.
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

/// Sends requests. Clones are one and the same.
#[derive(Clone)]
pub struct Outbound {
    tls: TlsConnector,
    permitted: Arc<[IpNet]>,
    resolve: Resolve,
}

impl Outbound {
    /// Trusts the system's certificates and, where there is one, those of a file in PEM; calls public addresses, and the
    /// permitted networks.
    ///
    /// # Errors
    ///
    /// When the file is malformed.
    pub fn new(permitted: Vec<IpNet>, trusted: Option<&Path>) -> Result<Self, CertificatesError> {
        let mut roots = rustls::RootCertStore::empty();
        // The system's store may hold what rustls cannot read; the rest is good.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = trusted {
            let unread = |source| CertificatesError::File { path: path.to_owned(), source };
            for certificate in CertificateDer::pem_file_iter(path).map_err(unread)? {
                roots.add(certificate.map_err(unread)?).map_err(CertificatesError::Unusable)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut tls = tls.map_err(CertificatesError::Unusable)?.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let resolve: Resolve =
            Arc::new(|name, port| async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) }.boxed());
        Ok(Self { tls: TlsConnector::from(Arc::new(tls)), permitted: permitted.into(), resolve })
    }

    /// Asks another one than the system for addresses.
    #[must_use]
    pub fn resolving(self, resolve: Resolve) -> Self {
        Self { resolve, ..self }
    }

    /// The networks that may be called although they are private.
    pub fn permitted(&self) -> &[IpNet] {
        &self.permitted
    }

    /// Sends a POST, and hands over whatever is answered: a redirect is not followed.
    ///
    /// # Errors
    ///
    /// As [`Failure`] says. The other side may have read the message all the same.
    pub async fn post(&self, target: &Target, message: Message) -> Result<Answer, Failure> {
        let deadline = Instant::now() + TIMEOUT;
        // What drives the connection; it ends with this call.
        let mut driver = JoinSet::new();
        let head =
            timeout_at(deadline, self.exchange(target, message, &mut driver)).await.map_err(|_| Failure::Late)?;
        let (head, body) = head?.into_parts();
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let mut answer =
            Answer { status: head.status.as_u16(), retry_after: retry_after.map(str::to_owned), body: vec![] };
        // The status is what counts: a body that never ends takes nothing from it.
        let _ = timeout_at(deadline, read(body, &mut answer.body)).await;
        Ok(answer)
    }

    async fn exchange(
        &self,
        target: &Target,
        message: Message,
        driver: &mut JoinSet<()>,
    ) -> Result<http::Response<Incoming>, Failure> {
        let stream = self.connect(target).await?;
        let name = match &target.host {
            Host::Name(name) => ServerName::try_from(name.clone()).expect("it was read as one"),
            Host::Address(address) => ServerName::from(*address),
        };
        let stream = self.tls.connect(name, stream).await.map_err(|error| {
            tracing::debug!(%error, "a back-channel's certificate is refused");
            Failure::Tls
        })?;
        let builder = hyper::client::conn::http1::Builder::new().max_buf_size(ANSWER_BYTES_MAX).clone();
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Http)?;
        driver.spawn(async move {
            // Why it ended is told to whoever waits for the answer.
            let _ = connection.await;
        });
        let request = Request::post(&target.path)
            .header(header::HOST, &target.authority)
            .header(header::USER_AGENT, "sessiond")
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, message.content_type)
            .header(header::ACCEPT, message.accept)
            .body(Full::new(message.body))
            .map_err(|_| Failure::Http)?;
        sender.send_request(request).await.map_err(|_| Failure::Http)
    }

    /// Connects to one of the addresses that were checked.
    async fn connect(&self, target: &Target) -> Result<TcpStream, Failure> {
        let addresses = match &target.host {
            Host::Name(name) => (self.resolve)(name.clone(), target.port).await.map_err(|_| Failure::Resolve)?,
            Host::Address(address) => vec![SocketAddr::new(*address, target.port)],
        };
        if addresses.is_empty() {
            return Err(Failure::Resolve);
        }
        // One that may not be called taints the others: whoever controls the name is up to something.
        if !addresses.iter().all(|address| may_call(address.ip(), &self.permitted)) {
            return Err(Failure::Private);
        }
        for address in addresses {
            if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                return Ok(stream);
            }
        }
        Err(Failure::Connect)
    }
}

/// Reads a body as far as it goes, and as far as it may.
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
    fn a_permitted_network_is_no_wider_than_it_says() {
        let permitted: Vec<IpNet> = ["10.1.0.0/16", "fd00::/8"].map(|net| net.parse().expect("a network")).to_vec();
        for one in ["10.1.255.255", "::ffff:10.1.0.1", "fd12::1", "8.8.8.8"] {
            assert!(may_call(address(one), &permitted), "{one}");
        }
        for one in ["10.2.0.0", "127.0.0.1", "fc00::1"] {
            assert!(!may_call(address(one), &permitted), "{one}");
        }
    }

    #[test]
    fn a_url_is_https_and_nothing_else() {
        let parsed = |text: &str| Target::parse(text, &[]);
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
            ("http://app.example.org/", UrlError::NotHttps),
            ("ftp://app.example.org/", UrlError::NotHttps),
            ("/logout", UrlError::NotHttps),
            ("app.example.org", UrlError::NotHttps),
            ("https://ada@app.example.org/", UrlError::UserInfo),
            ("https://ada:secret@app.example.org/", UrlError::UserInfo),
            ("https://app.example.org@127.0.0.1/", UrlError::UserInfo),
            ("https://app.example.org/#top", UrlError::Fragment),
            ("https://127.0.0.1/", UrlError::Private),
            ("https://[::1]:8443/", UrlError::Private),
            ("https://[::ffff:10.0.0.1]/", UrlError::Private),
            ("https://169.254.169.254/latest", UrlError::Private),
            ("", UrlError::Malformed),
            ("https://", UrlError::Malformed),
            ("https://a b/", UrlError::Malformed),
            ("https://app.example.org:0/", UrlError::Malformed),
            ("https://app.example.org:99999/", UrlError::Malformed),
            ("https://app.example.org:/", UrlError::Malformed),
            ("https://[fe80::1%25eth0]/", UrlError::Malformed),
            ("https://b\u{fc}cher.example/", UrlError::Malformed),
            ("https://app.example.org/\r\nx: y", UrlError::Malformed),
            (&long, UrlError::Malformed),
        ];
        for (text, why) in refused {
            assert_eq!(parsed(text), Err(why), "{text:?}");
        }
        assert!(Target::parse("https://127.0.0.1/", &["127.0.0.0/8".parse().expect("a network")]).is_ok());
    }
}
