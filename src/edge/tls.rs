//! TLS for the listeners: the certificate that they present, the authorities of client certificates, and the replacement of both
//! while the server runs.
//!
//! Files are replaced by renewals: by a rename, by rewriting, or by a changed symbolic link. So they are read again at an
//! interval, and are only replaced by ones that can be used. Connections keep the certificates that they began with.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::prelude::X509Certificate;

use crate::app::ClientCertificate;
use crate::config;
use crate::every::every;
use crate::telemetry::Metrics;
use crate::tls;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::token::certificate_name::CertificateName;
use sessiond_core::token::fingerprint;
use sessiond_core::token::fingerprint_cache::Fingerprint;

/// How often the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The protocols that clients may choose (ALPN, RFC 7301), the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The most names in a client certificate. None of more counts.
const NAMES_MAX: usize = 16;

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
    certificate: Watched<2>,
    /// From when the certificate in the files is valid, if it was refused because that is still to come.
    valid_from: Mutex<Option<Timestamp>>,
    client_ca: Option<Watched<1>>,
    /// For new connections.
    current: RwLock<Arc<CurrentTls>>,
}

/// The files in use, and what is made of them.
struct CurrentTls {
    certified: Arc<CertifiedKey>,
    /// Until when the certificate is valid.
    valid_until: Timestamp,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Asks for a client certificate, if there is an authority of any.
    with_clients: TlsAcceptor,
    /// Asks for none.
    without_clients: TlsAcceptor,
}

impl CurrentTls {
    fn new(
        certified: Arc<CertifiedKey>,
        valid_until: Timestamp,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<Self, rustls::Error> {
        // Each has a cache of sessions of its own: a session that is resumed is not verified again, so none may outlive the
        // authorities that it was verified by.
        let acceptor = |clients: Option<Arc<dyn ClientCertVerifier>>| {
            let config = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
            let config = match clients {
                Some(clients) => config.with_client_cert_verifier(clients),
                None => config.with_no_client_auth(),
            };
            let mut config =
                config.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&certified))));
            config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
            Ok::<_, rustls::Error>(TlsAcceptor::from(Arc::new(config)))
        };
        let (with_clients, without_clients) = (acceptor(clients.clone())?, acceptor(None)?);
        Ok(Self { certified, valid_until, clients, with_clients, without_clients })
    }
}

impl ServerTls {
    /// Reads the certificate chain and its private key, and the authorities of client certificates if there are any; `None` without
    /// a certificate.
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn load(files: &config::Tls) -> Result<Option<Self>, TlsError> {
        let (Some(certificate), Some(key)) = (&files.tls_certificate_file, &files.tls_key_file) else {
            return Ok(None);
        };
        let certificate = Watched::new([certificate.clone(), key.clone()]);
        let client_ca = files.tls_client_ca_file.clone().map(|file| Watched::new([file]));
        let (certified, valid_until) =
            certificate.read().and_then(|[chain, key]| certified(&certificate, &chain, &key))?;
        let clients = client_ca.as_ref().map(|file| file.read().and_then(|[roots]| clients(file.first(), &roots)));
        let current = CurrentTls::new(certified, valid_until, clients.transpose()?)
            .map_err(|error| TlsError::Unusable(certificate.first().to_owned(), error))?;
        let (valid_from, current) = (Mutex::default(), RwLock::new(Arc::new(current)));
        Ok(Some(Self(Arc::new(TlsState { certificate, valid_from, client_ca, current }))))
    }

    /// Completes the handshake of a new connection, within `time`. The client may present a certificate.
    ///
    /// # Errors
    ///
    /// Fails if the client does not speak TLS 1.2 or later, presents a certificate that is not valid, gives up, or takes too long.
    pub(super) async fn accept_client(&self, stream: TcpStream, time: Duration) -> io::Result<TlsStream<TcpStream>> {
        accept(&self.current().with_clients, stream, time).await
    }

    /// Completes the handshake of a new connection, within `time`, on a listener where client certificates mean nothing.
    ///
    /// # Errors
    ///
    /// Fails if the client does not speak TLS 1.2 or later, gives up, or takes too long.
    pub(super) async fn accept(&self, stream: TcpStream, time: Duration) -> io::Result<TlsStream<TcpStream>> {
        accept(&self.current().without_clients, stream, time).await
    }

    /// Until when the certificate is valid.
    pub fn valid_until(&self) -> Timestamp {
        self.current().valid_until
    }

    fn current(&self) -> Arc<CurrentTls> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows the files. Does not return.
    pub(super) async fn follow(self, metrics: Metrics) {
        every(RELOAD_INTERVAL, || async {
            let (tls, gauges) = (self.clone(), metrics.clone());
            // Fails only when the runtime shuts down.
            let _ = spawn_blocking(move || tls.reload(&gauges)).await;
            metrics.certificate_expiry(self.valid_until());
        })
        .await;
    }

    /// Replaces the certificate, and the authorities of client certificates, if their files have changed and can be used. One
    /// does not depend on the other.
    fn reload(&self, metrics: &Metrics) {
        let (state, now) = (&*self.0, Clock::system().now());
        let mut valid_from = state.valid_from.lock().unwrap_or_else(PoisonError::into_inner);
        if valid_from.take_if(|from| *from <= now).is_some() {
            state.certificate.forget();
        }
        let certificate = state.certificate.changed().map(|read| {
            let parsed = read.and_then(|[chain, key]| certified(&state.certificate, &chain, &key));
            (state.certificate.first(), parsed)
        });
        if let Some((file, parsed)) = certificate {
            *valid_from = match parsed {
                Err(TlsError::NotValid { from, .. }) if now < from => Some(from),
                Ok(_) | Err(_) => None,
            };
            let replaced = parsed.and_then(|(certified, valid_until)| {
                self.replace(file, |current| CurrentTls::new(certified, valid_until, current.clients.clone()))
            });
            metrics.tls_file_rejected("certificate", replaced.is_err());
            match replaced {
                Ok(current) => tracing::info!(until = %current.valid_until, "the TLS certificate was replaced"),
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the TLS certificate was not replaced: the previous one stays in use"
                ),
            }
        }
        let Some(watched) = &state.client_ca else { return };
        let Some(read) = watched.changed() else { return };
        let replaced = read.and_then(|[roots]| clients(watched.first(), &roots)).and_then(|clients| {
            self.replace(watched.first(), |current| {
                CurrentTls::new(Arc::clone(&current.certified), current.valid_until, Some(clients))
            })
        });
        metrics.tls_file_rejected("client_ca", replaced.is_err());
        match replaced {
            Ok(_) => tracing::info!("the authorities of client certificates were replaced"),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the authorities of client certificates were not replaced: the previous ones stay in use"
            ),
        }
    }

    /// Only the one task that follows the files replaces anything.
    fn replace(
        &self,
        file: &Path,
        next: impl FnOnce(&CurrentTls) -> Result<CurrentTls, rustls::Error>,
    ) -> Result<Arc<CurrentTls>, TlsError> {
        let next = next(&self.current()).map_err(|error| TlsError::Unusable(file.to_owned(), error))?;
        let next = Arc::new(next);
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        Ok(next)
    }
}

async fn accept(acceptor: &TlsAcceptor, stream: TcpStream, time: Duration) -> io::Result<TlsStream<TcpStream>> {
    timeout(time, acceptor.accept(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether a handshake failed because of the client's certificate.
pub(super) fn is_about_client_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// The certificate that the client has presented; `None` without one.
pub(super) fn client_certificate(stream: &TlsStream<TcpStream>) -> Option<ClientCertificate> {
    let chain = stream.get_ref().1.peer_certificates()?;
    // It was verified, so it can be parsed. If not, it has no name, and stands for nothing.
    let nothing = || ClientCertificate { names: Arc::from([]), valid_until: Timestamp::from_seconds(0) };
    let Ok((_, certificate)) = X509Certificate::from_der(chain.first()?) else { return Some(nothing()) };
    let valid_until = Timestamp::from_seconds(certificate.validity().not_after.timestamp());
    Some(ClientCertificate { names: names(&certificate), valid_until })
}

/// The SPIFFE ids and DNS names in the subject alternative names. The subject itself names nobody (RFC 9525 §2).
fn names(certificate: &X509Certificate<'_>) -> Arc<[CertificateName]> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Arc::from([]) };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(text) => CertificateName::spiffe(text),
        GeneralName::DNSName(text) => CertificateName::dns(text),
        _ => None,
    });
    let mut names: Vec<_> = names.take(NAMES_MAX + 1).collect();
    names.sort();
    names.dedup();
    if names.len() <= NAMES_MAX { names.into() } else { Arc::from([]) }
}

/// Files that belong together. Knows what was last read, usable or not, so that each change is considered once.
struct Watched<const N: usize> {
    files: [PathBuf; N],
    last_read: Mutex<Option<[Fingerprint; N]>>,
}

impl<const N: usize> Watched<N> {
    const fn new(files: [PathBuf; N]) -> Self {
        Self { files, last_read: Mutex::new(None) }
    }

    /// The file that names them in errors.
    fn first(&self) -> &Path {
        &self.files[0]
    }

    /// Reads the files.
    fn read(&self) -> Result<[Vec<u8>; N], TlsError> {
        let read = self.read_all();
        self.note(&read);
        read
    }

    /// Reads the files; `None` if they are as they were read last.
    fn changed(&self) -> Option<Result<[Vec<u8>; N], TlsError>> {
        let read = self.read_all();
        self.note(&read).then_some(read)
    }

    fn read_all(&self) -> Result<[Vec<u8>; N], TlsError> {
        let mut contents = [const { Vec::new() }; N];
        for (file, bytes) in self.files.iter().zip(&mut contents) {
            *bytes = std::fs::read(file).map_err(|error| TlsError::Unreadable(file.clone(), pem::Error::Io(error)))?;
        }
        Ok(contents)
    }

    /// Takes the files for changed the next time.
    fn forget(&self) {
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Records what was read, and returns whether it differs from the last.
    fn note(&self, read: &Result<[Vec<u8>; N], TlsError>) -> bool {
        let prints = read.as_ref().ok().map(|contents| contents.each_ref().map(|bytes| fingerprint(bytes)));
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changed = *last_read != prints;
        *last_read = prints;
        is_changed
    }
}

/// Parses a certificate chain and its key. Returns also until when the certificate is valid.
fn certified(files: &Watched<2>, chain: &[u8], key: &[u8]) -> Result<(Arc<CertifiedKey>, Timestamp), TlsError> {
    let [certificate_file, key_file] = &files.files;
    let chain = certificates(certificate_file, chain)?;
    let own = chain.first().ok_or_else(|| TlsError::NoCertificate(certificate_file.clone()))?;
    let parsed = X509Certificate::from_der(own).map_err(|_| TlsError::Malformed(certificate_file.clone()))?;
    let validity = parsed.1.validity();
    let [from, until] = [validity.not_before, validity.not_after].map(|at| Timestamp::from_seconds(at.timestamp()));
    let now = Clock::system().now();
    if now < from || until < now {
        return Err(TlsError::NotValid { file: certificate_file.clone(), from, until });
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Unreadable(key_file.clone(), error))?;
    let certified = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificate: certificate_file.clone(), key: key_file.clone() }
        }
        other => TlsError::Unusable(certificate_file.clone(), other),
    })?;
    Ok((Arc::new(certified), until))
}

/// Parses the authorities of client certificates. A client without a certificate is accepted too: it has a server key, or serves a
/// user.
fn clients(file: &Path, roots: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in certificates(file, roots)? {
        store.add(root).map_err(|error| TlsError::Unusable(file.to_owned(), error))?;
    }
    if store.is_empty() {
        return Err(TlsError::NoCertificate(file.to_owned()));
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), tls::provider());
    // Fails without a root, and there is one; and for a malformed revocation list, and there is none.
    let inner = verifier
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Unusable(file.to_owned(), rustls::Error::General(error.to_string())))?;
    Ok(Arc::new(ShortChains(inner)))
}

/// The most intermediate certificates that a client may send.
const INTERMEDIATES_MAX: usize = 3;

/// Verifies client certificates with short chains only. A path is looked for before the client has proved anything, in every order of
/// the certificates that it sent: with sixty of one name that takes a tenth of a second, without a pause.
#[derive(Debug)]
struct ShortChains(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ShortChains {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() > INTERMEDIATES_MAX {
            return Err(CertificateError::UnknownIssuer.into());
        }
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Unreadable(file.to_owned(), error))
}
