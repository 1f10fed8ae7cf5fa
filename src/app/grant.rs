//! Issues the tokens of a session. Nothing is stored per issued token.

use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use super::App;
use super::Error;
use super::keys::Snapshot;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::Session;
use sessiond_core::session::lifecycle::Impersonator;
use sessiond_core::token::access::Actor;
use sessiond_core::token::access::Claims;
use sessiond_core::token::refresh::Link;
use sessiond_core::token::refresh::RowSecret;

/// The tokens for a client, and its session.
pub struct Grant {
    /// The access token.
    pub access_token: SecretString,
    /// The refresh token.
    pub refresh_token: SecretString,
    /// The lifetime of the access token, in seconds.
    pub expires_in: i32,
    /// The session.
    pub session: Session,
}

/// What the store has committed, from which a grant is made.
pub(super) struct Granted {
    pub(super) session: Session,
    pub(super) secret: RowSecret,
    pub(super) link: Link,
    pub(super) access_expires_at: Timestamp,
}

/// The host application's own claims.
type Own = serde_json::Map<String, serde_json::Value>;

impl App {
    /// Issues the tokens of a session.
    ///
    /// # Errors
    ///
    /// Fails if the project has no usable key.
    pub(super) fn grant(&self, snapshot: &Snapshot, granted: Granted, now: Timestamp) -> Result<Grant, Error> {
        let Granted { session, secret, link, access_expires_at } = granted;
        let claims = self.claims_of(&session, default_claims(snapshot, &session), access_expires_at, now);
        let expires_in = i32::try_from(claims.exp - claims.iat).unwrap_or(i32::MAX);
        let key = snapshot.signs_for(&session.project, now)?;
        let access_token = self.verifier.issue(key, claims).map_err(super::KeyError::from)?;
        let refresh_token = snapshot.refreshes_for(&session.project, now)?.mint(session.id, link, &secret);
        Ok(Grant { access_token, refresh_token, expires_in, session })
    }

    /// The length of a session's access token.
    ///
    /// # Errors
    ///
    /// Fails if the project has no usable key.
    pub(super) fn access_token_bytes(
        &self,
        snapshot: &Snapshot,
        session: &Session,
        now: Timestamp,
    ) -> Result<usize, Error> {
        let claims = self.claims_of(session, default_claims(snapshot, session), now, now);
        let token = snapshot.signs_for(&session.project, now)?.sign(&claims).map_err(super::KeyError::from)?;
        Ok(token.expose_secret().len())
    }

    fn claims_of(&self, session: &Session, defaults: Option<&Own>, expires_at: Timestamp, now: Timestamp) -> Claims {
        let project = session.project.as_str();
        let mut own = defaults.cloned().unwrap_or_default();
        own.extend(session.claims.clone());
        // A name that was not reserved when the claims were set.
        own.remove("session_epoch");
        Claims {
            iss: self.issuer.of(project),
            sub: session.user.as_str().to_owned(),
            aud: project.to_owned(),
            client_id: project.to_owned(),
            iat: now.as_seconds(),
            // Rounded down, so that a token never outlives its session.
            exp: expires_at.as_seconds(),
            jti: clock::new_uuid().to_string(),
            sid: session.id.to_string(),
            epoch: [session.epoch.project, session.epoch.user],
            session_epoch: session.own_epoch,
            project_id: project.to_owned(),
            refresh_token_id: session.id.to_string(),
            auth_time: session.authentication.time.map(Timestamp::as_seconds),
            acr: session.authentication.acr.clone(),
            amr: session.authentication.amr.clone(),
            act: session.impersonator.clone().map(|Impersonator(sub)| Actor { sub }),
            own,
        }
    }
}

fn default_claims<'s>(snapshot: &'s Snapshot, session: &Session) -> Option<&'s Own> {
    snapshot.policy(&session.project).map(|policy| &*policy.default_claims)
}
