//! TLS for the listeners: the certificate that they present, and its replacement while the server runs.
//!
//! Files are replaced by renewals: by a rename, by rewriting, or by a changed symbolic link. So they are read again at an
//! interval, and a certificate is only replaced by one that can be used. Connections keep the one that they began with.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::FromDer as _;
use x509_parser::prelude::X509Certificate;

use crate::every::every;
use crate::telemetry::Metrics;
use crate::tls;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;

/// How often the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The protocols that clients may choose (ALPN, RFC 7301), the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read {}", .0.display())]
    Unreadable(PathBuf, #[source] pem::Error),
    /// The file has no certificate.
    #[error("{} has no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// The certificate cannot be used.
    #[error("cannot use the certificate in {}", .0.display())]
    Unusable(PathBuf, #[source] rustls::Error),
    /// The certificate is malformed.
    #[error("the certificate in {} is malformed", .0.display())]
    Malformed(PathBuf),
    /// The certificate has expired, or is not valid yet.
    #[error("the certificate in {} is valid from {from} until {until} only", .file.display())]
    NotValid {
        /// The file.
        file: PathBuf,
        /// The first moment of its validity.
        from: Timestamp,
        /// The last one.
        until: Timestamp,
    },
    /// The key belongs to another certificate.
    #[error("the private key in {} does not belong to the certificate in {}", .key.display(), .certificate.display())]
    Mismatch {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the private key.
        key: PathBuf,
    },
}

/// TLS for the listeners. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct ServerTls(Arc<TlsState>);

struct TlsState {
    certificate_file: PathBuf,
    key_file: PathBuf,
    current: Arc<CurrentCertificate>,
    acceptor: TlsAcceptor,
    /// The bytes of the files when they were last read, usable or not, so that each change is considered once.
    last_read: Mutex<[Vec<u8>; 2]>,
}

/// The certificate for new connections, and until when it is valid.
struct CurrentCertificate(RwLock<Certified>);

type Certified = (Arc<CertifiedKey>, Timestamp);

impl CurrentCertificate {
    fn get(&self) -> Certified {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, certified: Certified) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
    }
}

impl std::fmt::Debug for CurrentCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CurrentCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().0)
    }
}

impl ServerTls {
    /// Reads the certificate chain and its private key, both in PEM.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn load(certificate_file: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let provider = tls::provider();
        // What cannot be read has no bytes; parsing says why.
        let last_read = [certificate_file, key_file].map(|file| std::fs::read(file).unwrap_or_default());
        let certified = parse(certificate_file, key_file, &provider, Clock::system().now())?;
        let current = Arc::new(CurrentCertificate(RwLock::new(certified)));
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let unusable = |error| TlsError::Unusable(certificate_file.to_owned(), error);
        let mut config = config
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<CurrentCertificate>::clone(&current));
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self(Arc::new(TlsState {
            certificate_file: certificate_file.to_owned(),
            key_file: key_file.to_owned(),
            current,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            last_read: Mutex::new(last_read),
        })))
    }

    /// Completes the handshake of a new connection, within `time`.
    ///
    /// # Errors
    ///
    /// Fails if the client does not speak TLS 1.2 or later, gives up, or takes too long.
    pub(super) async fn accept(&self, stream: TcpStream, time: Duration) -> io::Result<TlsStream<TcpStream>> {
        timeout(time, self.0.acceptor.accept(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Follows the files. Does not return.
    pub(super) async fn follow(self, metrics: Metrics) {
        every(RELOAD_INTERVAL, || async {
            let tls = self.clone();
            // Fails only when the runtime shuts down.
            let _ = spawn_blocking(move || tls.reload()).await;
            metrics.certificate_expiry(self.0.current.get().1);
        })
        .await;
    }

    /// Replaces the certificate, if the files have changed and can be used.
    fn reload(&self) {
        let state = &*self.0;
        let read = [&state.certificate_file, &state.key_file].map(|file| std::fs::read(file).unwrap_or_default());
        {
            let mut last_read = state.last_read.lock().unwrap_or_else(PoisonError::into_inner);
            if *last_read == read {
                return;
            }
            *last_read = read;
        }
        match parse(&state.certificate_file, &state.key_file, &tls::provider(), Clock::system().now()) {
            Ok(certified) => {
                tracing::info!(until = %certified.1, "the TLS certificate was replaced");
                state.current.set(certified);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the TLS certificate was not replaced: the previous one stays in use"
            ),
        }
    }
}

/// Reads a certificate chain and its key. Returns also until when the certificate is valid.
fn parse(
    certificate_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
    now: Timestamp,
) -> Result<Certified, TlsError> {
    let unreadable = |file: &Path| {
        let file = file.to_owned();
        move |error| TlsError::Unreadable(file, error)
    };
    let unusable = |error| TlsError::Unusable(certificate_file.to_owned(), error);
    let chain = CertificateDer::pem_file_iter(certificate_file).map_err(unreadable(certificate_file))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(unreadable(certificate_file))?;
    let own = chain.first().ok_or_else(|| TlsError::NoCertificate(certificate_file.to_owned()))?;
    let malformed = |_| TlsError::Malformed(certificate_file.to_owned());
    let validity = X509Certificate::from_der(own).map_err(malformed)?.1.validity().clone();
    let [from, until] = [validity.not_before, validity.not_after].map(|at| Timestamp::from_seconds(at.timestamp()));
    if now < from || until < now {
        return Err(TlsError::NotValid { file: certificate_file.to_owned(), from, until });
    }
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(unreadable(key_file))?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificate: certificate_file.to_owned(), key: key_file.to_owned() }
        }
        other => unusable(other),
    })?;
    Ok((Arc::new(certified), until))
}
