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
use sessiond_core::token::fingerprint;
use sessiond_core::token::fingerprint_cache::Fingerprint;

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
    /// Distinguishes the files as they were last read, usable or not, so that each change is considered once.
    last_read: Mutex<Option<[Fingerprint; 2]>>,
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
        let [certificate, key] = read(certificate_file, key_file)?;
        let last_read = [&certificate, &key].map(|bytes| fingerprint(bytes));
        let files = Files { certificate_file, key_file, certificate: &certificate, key: &key };
        let certified = files.parse(&provider, Clock::system().now())?;
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
            last_read: Mutex::new(Some(last_read)),
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
        let read = read(&state.certificate_file, &state.key_file);
        let fingerprints = read.as_ref().ok().map(|files| files.each_ref().map(|bytes| fingerprint(bytes)));
        {
            let mut last_read = state.last_read.lock().unwrap_or_else(PoisonError::into_inner);
            if *last_read == fingerprints {
                return;
            }
            *last_read = fingerprints;
        }
        let parsed = read.and_then(|[certificate, key]| {
            let (certificate_file, key_file) = (&state.certificate_file, &state.key_file);
            let files = Files { certificate_file, key_file, certificate: &certificate, key: &key };
            files.parse(&tls::provider(), Clock::system().now())
        });
        match parsed {
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

/// Reads both files.
fn read(certificate_file: &Path, key_file: &Path) -> Result<[Vec<u8>; 2], TlsError> {
    let read =
        |file: &Path| std::fs::read(file).map_err(|error| TlsError::Unreadable(file.to_owned(), pem::Error::Io(error)));
    Ok([read(certificate_file)?, read(key_file)?])
}

/// The files, as they were read.
struct Files<'a> {
    certificate_file: &'a Path,
    key_file: &'a Path,
    certificate: &'a [u8],
    key: &'a [u8],
}

impl Files<'_> {
    /// Parses a certificate chain and its key. Returns also until when the certificate is valid.
    fn parse(&self, provider: &CryptoProvider, now: Timestamp) -> Result<Certified, TlsError> {
        let (certificate_file, key_file) = (|| self.certificate_file.to_owned(), || self.key_file.to_owned());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.certificate).collect();
        let chain = chain.map_err(|error| TlsError::Unreadable(certificate_file(), error))?;
        let own = chain.first().ok_or_else(|| TlsError::NoCertificate(certificate_file()))?;
        let parsed = X509Certificate::from_der(own).map_err(|_| TlsError::Malformed(certificate_file()))?;
        let validity = parsed.1.validity();
        let [from, until] = [validity.not_before, validity.not_after].map(|at| Timestamp::from_seconds(at.timestamp()));
        if now < from || until < now {
            return Err(TlsError::NotValid { file: certificate_file(), from, until });
        }
        let key = PrivateKeyDer::from_pem_slice(self.key).map_err(|error| TlsError::Unreadable(key_file(), error))?;
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatch { certificate: certificate_file(), key: key_file() }
            }
            other => TlsError::Unusable(certificate_file(), other),
        })?;
        Ok((Arc::new(certified), until))
    }
}
