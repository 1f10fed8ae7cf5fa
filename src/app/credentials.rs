//! Who asks. A credential is read in `rpc`; here it is believed, or not.

use std::sync::Arc;

use super::App;
use super::Error;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::rates::Of;
use crate::session::Refusal;
use crate::store::Role;
use crate::token::access::Claims;
use crate::token::access::Presented;
use crate::token::access::Rejection;
use crate::token::server_key::ServerKey;

/// An access token as it was presented. Has no `Debug`: it must not reach a log.
pub struct AccessToken(pub String);

/// Who asks, as far as the credentials say.
pub enum Caller {
    /// Nobody: no credential at all.
    Nobody,
    /// A user, by an access token.
    User(AccessToken),
    /// A service, by a server key.
    Service(ServerKey),
    /// Somebody with a server key that has not the form of one.
    MalformedServerKey,
}

/// A service that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The project it acts for.
    pub project: ProjectId,
    /// What it may do.
    pub role: Role,
}

/// What a genuine access token says, expired or not.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bearer {
    pub(super) project: ProjectId,
    pub(super) session: SessionId,
}

impl App {
    /// The service behind a server key.
    ///
    /// Only the genuine key takes from its bucket and its project's: whoever knows no more than the key's id could drain
    /// them otherwise. A stranger's attempts are bounded by the stranger's address, which pays for them; a genuine key's are
    /// not. Where nothing is left, not even the database is asked.
    ///
    /// # Errors
    ///
    /// [`Refusal::CredentialsMissing`], [`Refusal::InsufficientAccessType`] for a user, [`Refusal::InvalidServerKey`] for
    /// one that is malformed, unknown or revoked; [`Refusal::RateLimited`]; or the store's.
    pub async fn service(&self, caller: Caller) -> Result<Service, Error> {
        let key = match caller {
            Caller::Service(key) => key,
            Caller::MalformedServerKey => return Err(Refusal::InvalidServerKey.into()),
            Caller::User(_) => return Err(Refusal::InsufficientAccessType.into()),
            Caller::Nobody => return Err(Refusal::CredentialsMissing.into()),
        };
        self.rates.look(Of::ServerKey(key.id()))?;
        let row = self.store.server_key_find(key.id()).await?.ok_or(Refusal::InvalidServerKey)?;
        if !row.digest.matches(&key.digest()) {
            return Err(Refusal::InvalidServerKey.into());
        }
        self.rates.give_back();
        self.rates.take(Of::ServerKey(key.id()))?;
        self.rates.take(Of::Project(&row.project))?;
        Ok(Service { project: row.project, role: row.role })
    }

    /// What a genuine access token says, expired or not: all that a sign-out needs.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnparsableAccessToken`], [`Refusal::WrongProject`], or the store's when the key had to be looked for.
    pub(super) async fn bearer(&self, token: &AccessToken) -> Result<Bearer, Error> {
        let claims = self.claims(token).await?;
        let read =
            || Some(Bearer { project: ProjectId::parse(&claims.project_id)?, session: SessionId::parse(&claims.sid)? });
        Ok(read().ok_or(Refusal::UnparsableAccessToken)?)
    }

    async fn claims(&self, token: &AccessToken) -> Result<Claims, Error> {
        let presented = Presented::parse(&token.0).map_err(refusal)?;
        let snapshot = self.keys.with(|snapshot| snapshot.keyring.signing(presented.key()).is_some()).await?;
        let key = snapshot.keyring.signing(presented.key()).ok_or(Refusal::UnparsableAccessToken)?;
        Ok(presented.verify(&Arc::clone(key), &self.issuer).map_err(refusal)?)
    }
}

fn refusal(rejection: Rejection) -> Refusal {
    match rejection {
        Rejection::Unparsable => Refusal::UnparsableAccessToken,
        Rejection::WrongProject { expected, actual } => Refusal::WrongProject { expected, actual },
    }
}
