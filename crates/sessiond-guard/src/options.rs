//! What a guard has to be told.

use std::time::Duration;

use secrecy::SecretString;

use sessiond_core::clock::Clock;

/// How old the news may be at the least that a guard must put up with: it comes every second.
pub const MAX_STALENESS_MIN: Duration = Duration::from_secs(2);

/// Where a guard gets its news from, and what it does without. [`GuardOptions::new`] has the defaults.
#[derive(Clone)]
pub struct GuardOptions {
    /// sessiond's address: `http://` or `https://`, a host, and a port where it is not the usual one. Of several replicas,
    /// each: when one is gone, or its news is older than half of `max_staleness`, the guard goes on with the next. At most 64.
    pub endpoints: Vec<String>,
    /// A server key of the project. Whoever holds it can open sessions: see to it that nobody reads it.
    pub server_key: SecretString,
    /// The project whose tokens are accepted.
    pub project: String,
    /// The base URL in its tokens' `iss`, as sessiond has it in `--issuer`.
    pub issuer: String,
    /// How old the news of what has ended may be for a token to be accepted by it: 2 s at least. Default: 10 s.
    ///
    /// Longer and a service that is cut off goes on for longer, with signed-out tokens too; shorter and every hiccup of the
    /// network is felt.
    pub max_staleness: Duration,
    /// What to do with a token when it cannot be known whether its session has ended. Default: [`FailMode::Reject`].
    pub fail_mode: FailMode,
    /// How long [`super::Guard::connect`] waits for the first news. Default: 5 s.
    pub patience: Duration,
    /// What time it is: the system's, unless a test holds it in hand.
    pub clock: Clock,
}

impl GuardOptions {
    /// With the defaults.
    pub fn new(
        endpoint: impl Into<String>,
        project: impl Into<String>,
        issuer: impl Into<String>,
        server_key: impl Into<SecretString>,
    ) -> Self {
        Self {
            endpoints: vec![endpoint.into()],
            server_key: server_key.into(),
            project: project.into(),
            issuer: issuer.into(),
            max_staleness: Duration::from_secs(10),
            fail_mode: FailMode::Reject,
            patience: Duration::from_secs(5),
            clock: Clock::system(),
        }
    }
}

/// What becomes of a token when it cannot be known here whether its session has ended: the news is too old, none has come
/// yet, or the keys are unknown or too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// It is refused, with an answer that says to try again.
    Reject,
    /// sessiond is asked about it, every time. Where that cannot be asked either, it is refused.
    Introspect,
    /// It is accepted until it expires, unless it is known to be over. Before the first complete news it is refused: a guard
    /// that was just started knows nothing.
    AcceptUntilExpiry,
}

/// Why a guard cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There must be at least one endpoint, and at most 64.
    #[error("a guard needs the addresses of 1 to 64 replicas of sessiond")]
    Endpoints,
    /// An endpoint is no base URL.
    #[error("`{endpoint}` is no address of sessiond: it must be http:// or https://, a host, and perhaps a port")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// There is nothing to tell by who answers there.
    #[error("there are no certificates on this system to verify {endpoint} by")]
    Certificates {
        /// Who would be asked.
        endpoint: String,
    },
    /// The project's name is none.
    #[error("`{project}` is no project's name")]
    Project {
        /// What was given.
        project: String,
    },
    /// The issuer is no URL.
    #[error("`{issuer}` is no issuer: it must be sessiond's base URL, as in its tokens' `iss`")]
    Issuer {
        /// What was given.
        issuer: String,
    },
    /// The server key has not the form of one.
    #[error("the server key has not the form of one")]
    MalformedServerKey,
    /// The news would always be too old.
    #[error("max_staleness must be at least {MAX_STALENESS_MIN:?}")]
    MaxStaleness,
    /// Somebody else answers, or the project is not there.
    #[error(
        "{endpoint} does not issue tokens as `{issuer}`: is it another sessiond, is the issuer or the project misspelt?"
    )]
    AnotherIssuer {
        /// Who was asked.
        endpoint: String,
        /// Whom it should be.
        issuer: String,
    },
    /// The server key is unknown, revoked, or another project's.
    #[error("{endpoint} does not know the server key as one of project `{project}`")]
    ServerKey {
        /// Who was asked.
        endpoint: String,
        /// The project.
        project: String,
    },
}
