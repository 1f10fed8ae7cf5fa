//! Why a connection could not be made: the database's own message if there is one, and else advice.

use std::fmt;
use std::io;

use diesel::ConnectionError;
use rustls::CertificateError;
use tokio_postgres::error::SqlState;

use super::engine::UnsupportedEngine;
use super::slots::SlotsChanged;
use super::wire::InsecureAuth;
use crate::telemetry::chain;

/// No host could be used. The message starts with the first host's error.
#[derive(Debug)]
pub struct CannotConnect(pub(super) Vec<(String, HostError)>);

impl CannotConnect {
    /// Whether retrying is pointless until someone changes the configuration.
    pub fn is_lasting(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(_, error)| error.is_lasting())
    }
}

impl fmt::Display for CannotConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no host answered in time");
        }
        for (at, (host, error)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{} (database host {host})", chain(error))?;
        }
        Ok(())
    }
}

impl std::error::Error for CannotConnect {}

/// Why one host could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error(transparent)]
    Refused(#[from] DatabaseRefusal),
    #[error("it did not answer in time")]
    Late,
    #[error("it closed the connection")]
    Closed,
    #[error("it cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("it has no TLS, but sslmode requires it; on a trusted network, set sslmode=disable in the URL")]
    NoTls,
    #[error(
        "{0}; the password was not sent. Use scram-sha-256: set `password_encryption`, set the password again, and adapt \
         pg_hba.conf (for a pooler, `auth_type`). Or use TLS, with sslmode=require"
    )]
    InsecureAuth(InsecureAuth),
    #[error("TLS with it failed: {advice}")]
    Tls { advice: &'static str, source: rustls::Error },
    #[error("it is read-only: a standby, or default_transaction_read_only is on")]
    ReadOnly,
    #[error("its encoding is {0}, and must be UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")]
    Encoding(String),
    #[error(transparent)]
    Engine(#[from] UnsupportedEngine),
    #[error(transparent)]
    Slots(#[from] SlotsChanged),
    #[error("it has {0} off: acknowledged commits may be lost")]
    Unsafe(&'static str),
    #[error("it does not identify itself")]
    Unknown,
    #[error("it was deposed: it is on timeline {timeline}, but a server on timeline {newest} was found")]
    Deposed { timeline: u32, newest: u32 },
    #[error(
        "the URL names no user, and the user that sessiond runs as has no name on this system. Add one, as in \
         postgres://user@host/database"
    )]
    NoUser,
    #[error("the connection failed")]
    Driver(#[source] tokio_postgres::Error),
    #[error("the connection cannot be set up")]
    Setup(#[source] ConnectionError),
}

/// An error that the database returned.
#[derive(Debug, thiserror::Error)]
#[error("{message} (SQLSTATE {})", code.code())]
pub(super) struct DatabaseRefusal {
    pub(super) message: String,
    pub(super) code: SqlState,
}

impl DatabaseRefusal {
    /// Poolers that reject start-up options respond with these: pgbouncer with 08P01, others with 0A000. Engines that do
    /// not know a setting respond with 42704 or 22023; without the options they can be identified.
    pub(super) fn may_be_for_the_options(&self) -> bool {
        [
            SqlState::PROTOCOL_VIOLATION,
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::UNDEFINED_OBJECT,
            SqlState::INVALID_PARAMETER_VALUE,
        ]
        .contains(&self.code)
    }

    /// A wrong password, an unknown role or database, or an option that the database does not know.
    fn is_lasting(&self) -> bool {
        let code = self.code.code();
        code.starts_with("28") || ["3D000", "42501", "42704", "22023"].contains(&code)
    }
}

impl HostError {
    fn is_lasting(&self) -> bool {
        match self {
            Self::Refused(refused) => refused.is_lasting(),
            Self::NoTls
            | Self::InsecureAuth(_)
            | Self::Tls { .. }
            | Self::Encoding(_)
            | Self::Engine(_)
            | Self::Slots(_)
            | Self::NoUser
            | Self::Driver(_) => true,
            Self::Late
            | Self::Closed
            | Self::Unreachable(_)
            | Self::ReadOnly
            | Self::Unsafe(_)
            | Self::Unknown
            | Self::Deposed { .. }
            | Self::Setup(_) => false,
        }
    }

    /// Classifies a failed handshake.
    pub(super) fn from_tls(error: io::Error) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(source) => Self::Tls { advice: advice(&source), source },
            Err(error) => Self::Unreachable(error),
        }
    }
}

impl From<tokio_postgres::Error> for HostError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(refusal) = error.as_db_error() {
            return Self::Refused(DatabaseRefusal {
                message: refusal.message().to_owned(),
                code: refusal.code().clone(),
            });
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let io = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        let Some(io) = io else { return Self::Driver(error) };
        match io.get_ref().and_then(|inner| inner.downcast_ref::<InsecureAuth>()) {
            Some(insecure) => Self::InsecureAuth(*insecure),
            // The stream is open, so nothing else can be missing: without a user in the URL the driver looks up our own.
            None if io.kind() == io::ErrorKind::NotFound => Self::NoUser,
            None => Self::Unreachable(io::Error::new(io.kind(), io.to_string())),
        }
    }
}

/// What is wrong with the server's certificate, and what to do about it.
fn advice(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate_advice(error),
        rustls::Error::PeerIncompatible(_) => {
            "it offers no TLS version and cipher suite that is accepted here. Allow TLS 1.2 or 1.3 with the default ciphers \
             (ssl_min_protocol_version, ssl_max_protocol_version, ssl_ciphers)"
        }
        _ => "the handshake failed",
    }
}

fn certificate_advice(error: &CertificateError) -> &'static str {
    match error {
        // Signed by an untrusted authority; or by one with the name of a trusted authority and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by a trusted authority. Name the authority's certificate, or a self-signed one \
             itself, with sslrootcert=FILE in the URL or with --database-ca-file; on a trusted network, \
             sslmode=disable switches TLS off"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name. Use that name in the URL, or sslmode=verify-ca to accept any name of a \
             trusted authority"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired, or this machine's clock is wrong. Renew the certificate on the database server; \
             on a trusted network, sslmode=disable switches TLS off meanwhile"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet, or this machine's clock is wrong"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers. Make one with extendedKeyUsage=serverAuth, or without that extension"
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate is signed by an algorithm that is no longer accepted, such as SHA-1. Make a new one, signed with \
             SHA-256 or better"
        }
        CertificateError::BadEncoding => "its certificate is malformed. Make a new one",
        // rustls has no variants for these.
        CertificateError::Other(other) => match format!("{other:?}") {
            other if other.contains("UnsupportedCertVersion") => {
                "its certificate has a version before X.509v3, as Citus and old scripts create it, and cannot be verified, \
                 not even if sslrootcert names it. Make a new one, for example with `openssl req -x509 \
                 -newkey rsa:2048 -nodes -subj /CN=HOST -addext subjectAltName=DNS:HOST -addext \
                 basicConstraints=critical,CA:FALSE -keyout server.key -out server.crt`, and name it with sslrootcert=FILE; \
                 on a trusted network, sslmode=disable switches TLS off"
            }
            other if other.contains("CaUsedAsEndEntity") => {
                "its certificate is that of an authority. Make one for the server, with basicConstraints=CA:FALSE; on a \
                 trusted network, sslmode=disable switches TLS off"
            }
            _ => UNACCEPTED,
        },
        _ => UNACCEPTED,
    }
}

const UNACCEPTED: &str = "its certificate is not accepted. Make a new one of X.509 version 3 for the host's name; on a trusted \
     network, sslmode=disable switches TLS off";
