//! TLS to the database: which certificates are accepted, and which one is presented.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::ClientCertificateFiles;
use super::url::DatabaseUrl;
use super::url::DatabaseUrlError;
use super::url::Roots;
use super::url::TlsMode;
use crate::tls;
use crate::tls::RootsError;

/// Certificates are always verified: against the URL's file, else the file of the option, else the system's.
pub(super) fn connector(
    url: &DatabaseUrl,
    beside: Option<&Path>,
    direct: bool,
) -> Result<MakeRustlsConnect, DatabaseUrlError> {
    let file = match &url.roots {
        Some(Roots::System) => None,
        Some(Roots::File(path)) => Some(path.as_path()),
        None => beside,
    };
    let roots = match file {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            tls::add_roots(&mut roots, file).map_err(|error| match error {
                RootsError::File(source) => DatabaseUrlError::Certificates(source),
                RootsError::Certificate(source) => DatabaseUrlError::Tls(source),
            })?;
            roots
        }
        None => tls::system_roots(),
    };
    let provider = tls::provider();
    let config = tls::client(Arc::clone(&provider)).map_err(DatabaseUrlError::Tls)?;
    let config = match url.mode {
        Some(TlsMode::VerifyCa) => {
            let verifier = Arc::new(AnyName { roots, provider: Arc::clone(&provider) });
            config.dangerous().with_custom_certificate_verifier(verifier)
        }
        _ => config.with_root_certificates(roots),
    };
    let mut config = match &url.client_certificate {
        Some(files) => config.with_client_cert_resolver(Arc::new(ClientCertificate::new(files.clone(), provider)?)),
        None => config.with_no_client_auth(),
    };
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

/// The client certificate. Read again for each connection, because such certificates may live for hours only; if that fails, the
/// previous one is presented.
#[derive(Debug)]
struct ClientCertificate {
    files: ClientCertificateFiles,
    provider: Arc<CryptoProvider>,
    last: Mutex<Arc<CertifiedKey>>,
}

impl ClientCertificate {
    fn new(files: ClientCertificateFiles, provider: Arc<CryptoProvider>) -> Result<Self, DatabaseUrlError> {
        let last = Mutex::new(read(&files, &provider)?);
        Ok(Self { files, provider, last })
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.files, &self.provider) {
            Ok(certified) => *last = certified,
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the client certificate for the database was not read again: the previous one is presented"
            ),
        }
        Some(Arc::clone(&last))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn read(files: &ClientCertificateFiles, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, DatabaseUrlError> {
    let chain = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect);
    let chain: Vec<_> = chain.map_err(DatabaseUrlError::ClientCertificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(DatabaseUrlError::ClientCertificate)?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(DatabaseUrlError::ClientTls)?;
    Ok(Arc::new(certified))
}

/// `verify-ca`: accepts a valid certificate of a trusted authority for any name.
#[derive(Debug)]
struct AnyName {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
