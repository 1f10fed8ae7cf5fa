//! The configuration of a guard.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use sessiond_core::clock::Clock;
use sessiond_core::token::verifier;

/// The smallest [`GuardOptions::max_staleness`]: the feed sends a heartbeat every second.
pub const MAX_STALENESS_MIN: Duration = Duration::from_secs(2);

/// The default of [`GuardOptions::max_entries`].
pub const MAX_ENTRIES: usize = 1_000_000;

/// The default of [`GuardOptions::cached_tokens`].
pub const CACHED_TOKENS: usize = verifier::TOKENS_MAX;

/// The configuration of a guard. [`GuardOptions::new`] fills in the defaults.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// The base URLs of sessiond's replicas, 1 to 64: `http://` or `https://`, a host, and optionally a port.
    ///
    /// The guard switches to the next one when a replica is unavailable, or its feed is older than half of
    /// `max_staleness`.
    pub endpoints: Vec<String>,
    /// Certificates to trust for `https://` endpoints in place of the system's, in PEM. Default: the system's.
    pub trusted_certificates: Option<String>,
    /// A server key of the project. The role `verifier` is enough: such a key can follow revocations and introspect tokens, and
    /// nothing else. May be omitted with a `client_certificate` whose name stands in for one.
    pub server_key: Option<SecretString>,
    /// The certificate that connections to `https://` endpoints present (mTLS). Default: none.
    pub client_certificate: Option<ClientCertificate>,
    /// The project whose tokens are accepted.
    pub project: String,
    /// The base URL in the tokens' `iss`, equal to sessiond's `--issuer`.
    pub issuer: String,
    /// How old the feed of revocations may be for a token to be accepted. At least [`MAX_STALENESS_MIN`]. Default: 10 s.
    ///
    /// Too long, and a service that is cut off accepts revoked tokens for longer; too short, and every brief network failure
    /// rejects requests.
    pub max_staleness: Duration,
    /// What happens to a token when the guard cannot know whether its session is revoked. Default: [`FailMode::Reject`].
    pub fail_mode: FailMode,
    /// How many revocations the guard holds: about 80 bytes each, and twice as many while it reads a snapshot. If the project has
    /// more, the guard stops following, so its feed grows old. Default: [`MAX_ENTRIES`]. 0 counts as 1.
    pub max_entries: usize,
    /// How many verified tokens are cached, so that their signatures are not checked again: about 2 kB each. Default:
    /// [`CACHED_TOKENS`].
    pub cached_tokens: usize,
    /// How long [`Guard::connect`](super::Guard::connect) waits for the keys and the first snapshot. Default: 5 s.
    pub startup_timeout: Duration,
    /// The clock. Default: the system's.
    pub clock: Clock,
}

impl GuardOptions {
    /// Options with the defaults.
    pub fn new(
        endpoint: impl Into<String>,
        project: impl Into<String>,
        issuer: impl Into<String>,
        server_key: impl Into<SecretString>,
    ) -> Self {
        Self {
            endpoints: vec![endpoint.into()],
            trusted_certificates: None,
            server_key: Some(server_key.into()),
            client_certificate: None,
            project: project.into(),
            issuer: issuer.into(),
            max_staleness: Duration::from_secs(10),
            fail_mode: FailMode::Reject,
            max_entries: MAX_ENTRIES,
            cached_tokens: CACHED_TOKENS,
            startup_timeout: Duration::from_secs(5),
            clock: Clock::system(),
        }
    }

    /// Options with the defaults, for a guard that authenticates with a client certificate and has no server key.
    pub fn with_client_certificate(
        endpoint: impl Into<String>,
        project: impl Into<String>,
        issuer: impl Into<String>,
        client_certificate: ClientCertificate,
    ) -> Self {
        let client_certificate = Some(client_certificate);
        Self { server_key: None, client_certificate, ..Self::new(endpoint, project, issuer, String::new()) }
    }
}

/// The files of a client certificate, in PEM. They are read again every minute, and after every interruption, so a renewed
/// certificate needs no restart. The stream of revocations goes on with the certificate that it began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, then its chain.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// What happens to a token when the guard cannot know whether its session is revoked: the feed is too old or has not sent a
/// complete snapshot yet, a newer sessiond has withheld a revocation that this release does not understand, or the keys are missing
/// or too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// Rejects it, and tells the client to try again.
    Reject,
    /// Asks sessiond about it on every request. Rejects it if sessiond does not answer.
    Introspect,
    /// Accepts it until it expires, unless it is known to be revoked. Rejects it before the first complete snapshot: a guard
    /// that has just started knows no revocation.
    AcceptUntilExpiry,
}

/// Why a guard cannot start: an error that only an operator can correct.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint, or more than 64.
    #[error("a guard needs 1 to 64 endpoints")]
    EndpointCount,
    /// An endpoint is not a base URL.
    #[error("invalid endpoint `{endpoint}`: expected http:// or https://, a host, and optionally a port")]
    InvalidEndpoint {
        /// The endpoint.
        endpoint: String,
    },
    /// The system has no root certificates.
    #[error("cannot verify {endpoint}: this system has no root certificates")]
    NoRootCertificates {
        /// The endpoint.
        endpoint: String,
    },
    /// [`GuardOptions::trusted_certificates`] has no usable certificate.
    #[error("trusted_certificates has no usable certificate in PEM")]
    MalformedCertificates,
    /// Neither [`GuardOptions::server_key`] nor [`GuardOptions::client_certificate`].
    #[error("a guard needs a server key or a client certificate")]
    NoCredential,
    /// A file of the client certificate cannot be read.
    #[error("cannot read {}: {reason}", .file.display())]
    UnreadableCertificate {
        /// The file.
        file: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The client certificate and its key cannot be used: they are malformed, or do not belong together.
    #[error("cannot use the client certificate in {}, or its key", .file.display())]
    UnusableCertificate {
        /// The file with the certificate.
        file: PathBuf,
    },
    /// A client certificate, but an endpoint without TLS.
    #[error("{endpoint} gets no client certificate: that needs https://")]
    CertificateWithoutTls {
        /// The endpoint.
        endpoint: String,
    },
    /// The client certificate stands for no project, or for another one.
    #[error(
        "{endpoint} rejects the client certificate: it does not ask for one (`--tls-client-ca-file`), or no name in it stands for \
         project `{project}` (`sessiond client-certificate add`)"
    )]
    RejectedCertificate {
        /// The endpoint.
        endpoint: String,
        /// The project.
        project: String,
    },
    /// The project's name is malformed.
    #[error("invalid project `{project}`: expected 1 to 64 of `A-Z a-z 0-9 - _`")]
    InvalidProject {
        /// The name.
        project: String,
    },
    /// The issuer is not a URL.
    #[error("invalid issuer `{issuer}`: expected sessiond's base URL, as in its tokens' `iss`")]
    InvalidIssuer {
        /// The issuer.
        issuer: String,
    },
    /// The server key is malformed.
    #[error("malformed server key: expected `sdsk_` followed by 64 characters")]
    MalformedServerKey,
    /// [`GuardOptions::max_staleness`] is below [`MAX_STALENESS_MIN`].
    #[error("max_staleness must be at least {MAX_STALENESS_MIN:?}")]
    MaxStalenessTooShort,
    /// The endpoint has another issuer, or does not know the project.
    #[error(
        "{endpoint} does not issue tokens as `{issuer}`: is it another sessiond, or is the issuer or the project misspelt?"
    )]
    WrongIssuer {
        /// The endpoint.
        endpoint: String,
        /// The expected `iss`.
        issuer: String,
    },
    /// The server key is unknown, revoked, or another project's.
    #[error("{endpoint} rejects the server key: it is unknown, revoked, or not one of project `{project}`")]
    InvalidServerKey {
        /// The endpoint.
        endpoint: String,
        /// The project.
        project: String,
    },
}
