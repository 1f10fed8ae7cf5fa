//! Tokens for back-channel endpoints: logout tokens (OpenID Connect Back-Channel Logout 1.0 §2.4) and security event tokens
//! (RFC 8417) in the profile of OpenID CAEP 1.0. Signed with the project's signing key, as access tokens are; the `typ` prevents
//! confusion.

use std::time::Duration;

use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::jws::SignError;
use super::keys::SigningKey;
use crate::clock::Timestamp;
use crate::id::SessionId;

/// The `typ` of a logout token (OpenID Connect Back-Channel Logout 1.0 §2.4).
const LOGOUT_TYPE: &str = "logout+jwt";

/// The `typ` of a security event token (RFC 8417 §2.3).
const EVENT_TYPE: &str = "secevent+jwt";

/// The event of a logout token.
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// The event of CAEP 1.0 §3.1.
const REVOKED_EVENT: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";

/// The lifetime of a logout token: two minutes, the most that OpenID Connect Back-Channel Logout 1.0 §2.4 recommends. Each attempt
/// sends a new token.
pub const LOGOUT_TOKEN_TTL: Duration = Duration::from_secs(2 * 60);

/// The revoked subject. Always names a session or a user; otherwise no receiver could act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// One session. The user is absent once erased.
    Session {
        /// The session.
        session: SessionId,
        /// The user.
        user: Option<&'a str>,
    },
    /// All sessions of a user.
    User(&'a str),
}

/// Who ended a session, as CAEP 1.0 §2 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The user.
    User,
    /// An administrator.
    Admin,
    /// A rule.
    Policy,
    /// Another system.
    System,
}

impl Initiator {
    const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
            Self::Policy => "policy",
            Self::System => "system",
        }
    }
}

/// A revocation, as delivered to one receiver.
#[derive(Clone, Copy, Debug)]
pub struct RevocationNotice<'a> {
    /// The `iss` of the project's access tokens.
    pub issuer: &'a str,
    /// The receiver.
    pub audience: &'a str,
    /// The same in every attempt, so that the receiver can detect a repeat (RFC 7519 §4.1.7).
    pub id: &'a str,
    /// The same for every receiver of this revocation (RFC 8417 §2.2).
    pub transaction: &'a str,
    /// The revoked subject.
    pub subject: Subject<'a>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Who ended it.
    pub initiator: Initiator,
    /// The reason in English, for the receiver's log.
    pub reason: &'a str,
}

#[derive(Serialize)]
struct LogoutClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    events: Value,
}

/// Without `exp` and `sub`: the Shared Signals Framework 1.0 forbids both, to prevent confusion with other tokens.
#[derive(Serialize)]
struct EventClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    jti: &'a str,
    txn: &'a str,
    sub_id: Value,
    events: Value,
}

impl SigningKey {
    /// Signs a logout token. It must not have a `nonce`, which would make it an ID token.
    ///
    /// # Errors
    ///
    /// See [`SignError`].
    pub fn sign_logout(&self, notice: &RevocationNotice<'_>, now: Timestamp) -> Result<SecretString, SignError> {
        let (sub, sid) = match notice.subject {
            Subject::Session { session, user } => (user, Some(session.to_string())),
            Subject::User(user) => (Some(user), None),
        };
        let claims = LogoutClaims {
            iss: notice.issuer,
            aud: notice.audience,
            iat: now.as_seconds(),
            exp: (now + LOGOUT_TOKEN_TTL).as_seconds(),
            jti: notice.id,
            sub,
            sid,
            events: json!({ LOGOUT_EVENT: {} }),
        };
        self.sign_jwt(LOGOUT_TYPE, &claims)
    }

    /// Signs a CAEP `session-revoked` event.
    ///
    /// # Errors
    ///
    /// See [`SignError`].
    pub fn sign_revoked(&self, notice: &RevocationNotice<'_>, now: Timestamp) -> Result<SecretString, SignError> {
        let event = json!({
            "event_timestamp": notice.ended_at.as_seconds(),
            "initiating_entity": notice.initiator.as_str(),
            "reason_admin": { "en": notice.reason },
        });
        let claims = EventClaims {
            iss: notice.issuer,
            aud: notice.audience,
            iat: now.as_seconds(),
            jti: notice.id,
            txn: notice.transaction,
            sub_id: subject_identifier(notice),
            events: json!({ REVOKED_EVENT: event }),
        };
        self.sign_jwt(EVENT_TYPE, &claims)
    }
}

/// A complex subject even for a user alone, which means every matching session by CAEP 1.0 §3.1.
fn subject_identifier(notice: &RevocationNotice<'_>) -> Value {
    let user = |user: &str| json!({ "format": "iss_sub", "iss": notice.issuer, "sub": user });
    let session = |session: SessionId| json!({ "format": "opaque", "id": session.to_string() });
    match notice.subject {
        Subject::Session { session: id, user: Some(name) } => {
            json!({ "format": "complex", "session": session(id), "user": user(name) })
        }
        Subject::Session { session: id, user: None } => json!({ "format": "complex", "session": session(id) }),
        Subject::User(name) => json!({ "format": "complex", "user": user(name) }),
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;
    use jsonwebtoken::DecodingKey;
    use jsonwebtoken::Validation;
    use secrecy::ExposeSecret as _;

    use super::super::access::tests::issuer;
    use super::super::access::tests::key;
    use super::super::encode;
    use super::super::unverified::UnverifiedToken;
    use super::super::verified::VerifyError;
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(2_000);
    const SESSION: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn session(user: Option<&str>) -> Subject<'_> {
        Subject::Session { session: SessionId::parse(SESSION).expect("an id"), user }
    }

    fn notice<'a>(issuer: &'a str, subject: Subject<'a>) -> RevocationNotice<'a> {
        RevocationNotice {
            issuer,
            audience: "shop",
            id: "jti",
            transaction: "txn",
            subject,
            ended_at: Timestamp::from_micros(1_999_900_000),
            initiator: Initiator::User,
            reason: "signed out",
        }
    }

    fn read(key: &SigningKey, token: &SecretString, typ: &str) -> Value {
        let mut checks = Validation::new(Algorithm::ES256);
        checks.required_spec_claims.clear();
        (checks.validate_exp, checks.validate_aud) = (false, false);
        let (x, y) = key.verifying().coordinates();
        let theirs = DecodingKey::from_ec_components(&encode(x), &encode(y)).expect("a key");
        let read = jsonwebtoken::decode::<Value>(token.expose_secret(), &theirs, &checks);
        let read = read.expect("its own key");
        let kid = key.id().to_string();
        assert_eq!((read.header.typ.as_deref(), read.header.kid.as_deref()), (Some(typ), Some(&*kid)));
        read.claims
    }

    #[test]
    fn logout_tokens_follow_the_specification() {
        let (key, iss) = (key(), issuer().of("demo"));
        let claims = |subject| {
            let token = key.sign_logout(&notice(&iss, subject), NOW).expect("signs");
            read(&key, &token, "logout+jwt")
        };
        let events = json!({ "http://schemas.openid.net/event/backchannel-logout": {} });
        let common = json!({ "iss": iss, "aud": "shop", "iat": 2_000, "exp": 2_120, "jti": "jti", "events": events });
        let with = |more: Value| {
            let mut all = common.clone();
            all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            all
        };
        assert_eq!(claims(session(Some("ada"))), with(json!({ "sub": "ada", "sid": SESSION })));
        assert_eq!(claims(session(None)), with(json!({ "sid": SESSION })));
        assert_eq!(claims(Subject::User("ada")), with(json!({ "sub": "ada" })));
    }

    #[test]
    fn events_follow_the_specification() {
        let (key, iss) = (key(), issuer().of("demo"));
        let claims = |subject| {
            let token = key.sign_revoked(&notice(&iss, subject), NOW).expect("signs");
            read(&key, &token, "secevent+jwt")
        };
        let (opaque, user) =
            (json!({ "format": "opaque", "id": SESSION }), json!({ "format": "iss_sub", "iss": iss, "sub": "ada" }));
        let event = json!({
            "event_timestamp": 1_999, "initiating_entity": "user", "reason_admin": { "en": "signed out" },
        });
        let with = |sub_id: Value| {
            json!({
                "iss": iss, "aud": "shop", "iat": 2_000, "jti": "jti", "txn": "txn", "sub_id": sub_id,
                "events": { "https://schemas.openid.net/secevent/caep/event-type/session-revoked": event },
            })
        };
        let both = json!({ "format": "complex", "session": opaque, "user": user });
        assert_eq!(claims(session(Some("ada"))), with(both));
        assert_eq!(claims(session(None)), with(json!({ "format": "complex", "session": opaque })));
        assert_eq!(claims(Subject::User("ada")), with(json!({ "format": "complex", "user": user })));
    }

    /// The same key signs them; only the `typ` differs.
    #[test]
    fn neither_is_accepted_as_an_access_token() {
        let (key, iss) = (key(), issuer().of("demo"));
        let notice = notice(&iss, session(Some("ada")));
        for token in [key.sign_logout(&notice, NOW), key.sign_revoked(&notice, NOW)] {
            let token = token.expect("signs");
            let refused = UnverifiedToken::parse(token.expose_secret()).map(|_| ()).expect_err("another kind");
            assert_eq!(refused, VerifyError::Unparsable);
        }
    }
}
