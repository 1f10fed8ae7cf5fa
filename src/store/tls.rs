//! TLS to the database: which certificates are accepted.

use std::path::Path;
use std::sync::Arc;

use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::server::ParsedCertificate;
use tokio_postgres_rustls::MakeRustlsConnect;

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
    let mut config = match url.mode {
        Some(TlsMode::VerifyCa) => {
            let verifier = Arc::new(AnyName { roots, provider });
            config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        _ => config.with_root_certificates(roots).with_no_client_auth(),
    };
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
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
