//! The TLS client for the database and for back-channels: the trusted certificates, and the cryptography.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::ConfigBuilder;
use rustls::RootCertStore;
use rustls::WantsVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject as _;

/// Why certificates cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    /// The file does not hold certificates in PEM.
    #[error("cannot read certificates")]
    File(#[source] pem::Error),
    /// A certificate cannot be used.
    #[error("cannot use a certificate")]
    Certificate(#[source] rustls::Error),
}

/// The certificates that the system trusts.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // The system's store may hold certificates that rustls cannot read; the others are usable.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Adds the certificates of a PEM file.
///
/// # Errors
///
/// Fails if the file is unreadable or malformed.
pub(crate) fn add_roots(roots: &mut RootCertStore, file: &Path) -> Result<(), RootsError> {
    for certificate in CertificateDer::pem_file_iter(file).map_err(RootsError::File)? {
        roots.add(certificate.map_err(RootsError::File)?).map_err(RootsError::Certificate)?;
    }
    Ok(())
}

/// The cryptography of every TLS client.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The builder of a client's configuration, for which the server certificates to trust are still to be set.
///
/// # Errors
///
/// Fails if the provider supports no safe protocol version.
pub(crate) fn client(
    provider: Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}
