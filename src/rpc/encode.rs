//! Encodes responses for the wire.

use prost_types::value::Kind;
use secrecy::ExposeSecret as _;

use crate::app::Grant;
use crate::app::Introspection;
use crate::app::Listed;
use crate::app::Page;
use crate::app::RevokeOutcome;
use crate::cookies::SetCookies;
use crate::pb;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::Session;
use sessiond_core::session::lifecycle::Authentication;
use sessiond_core::session::lifecycle::Impersonator;
use sessiond_core::token::access::Claims;

pub(super) fn ended(outcome: RevokeOutcome) -> pb::RevokeCurrentResponse {
    pb::RevokeCurrentResponse { success: true, already_revoked: outcome.already.then_some(true) }
}

pub(super) fn created(grant: Grant, set: Option<&SetCookies>) -> pb::CreateSessionResponse {
    pb::CreateSessionResponse {
        access_token: grant.access_token.expose_secret().to_owned(),
        refresh_token: grant.refresh_token.expose_secret().to_owned(),
        expires_in: grant.expires_in,
        // The caller is the service that creates the session, so it is not the caller's own.
        session: Some(session(grant.session, false)),
        set_cookies: set.map(|set| set.values().map(str::to_owned).into()).unwrap_or_default(),
    }
}

pub(super) fn refreshed(grant: &Grant) -> pb::RefreshSessionResponse {
    pb::RefreshSessionResponse {
        access_token: grant.access_token.expose_secret().to_owned(),
        refresh_token: grant.refresh_token.expose_secret().to_owned(),
        expires_in: grant.expires_in,
    }
}

/// Without the tokens, which script must not read.
pub(super) fn refreshed_by_cookie(grant: &Grant) -> pb::RefreshSessionResponse {
    pb::RefreshSessionResponse { expires_in: grant.expires_in, ..pb::RefreshSessionResponse::default() }
}

pub(super) fn revoked(outcome: RevokeOutcome) -> pb::RevokeSessionResponse {
    pb::RevokeSessionResponse { success: true, already_revoked: outcome.already.then_some(true) }
}

pub(super) fn page(page: Page) -> pb::ListSessionsResponse {
    pb::ListSessionsResponse { items: page.items.into_iter().map(listed).collect(), next_page_token: page.next }
}

pub(super) fn current(current: Listed) -> pb::GetCurrentSessionResponse {
    pb::GetCurrentSessionResponse { session: Some(listed(current)) }
}

pub(super) fn updated(updated: Session) -> pb::UpdateSessionResponse {
    pb::UpdateSessionResponse { session: Some(session(updated, false)) }
}

pub(super) fn introspection(result: Introspection) -> pb::IntrospectTokenResponse {
    match result {
        Introspection::Inactive => pb::IntrospectTokenResponse::default(),
        Introspection::Access(token) => access(token.claims()),
        Introspection::Refresh { session, issuer } => refresh(*session, issuer),
    }
}

/// The claims of an access token.
fn access(claims: &Claims) -> pb::IntrospectTokenResponse {
    let moment = |seconds| timestamp(Timestamp::from_seconds(seconds));
    pb::IntrospectTokenResponse {
        active: true,
        token_type: Some("access_token".to_owned()),
        sub: Some(claims.sub.clone()),
        client_id: Some(claims.client_id.clone()),
        aud: Some(claims.aud.clone()),
        iss: Some(claims.iss.clone()),
        jti: Some(claims.jti.clone()),
        iat: Some(moment(claims.iat)),
        exp: Some(moment(claims.exp)),
        auth_time: claims.auth_time.map(moment),
        sid: Some(claims.sid.clone()),
        project_id: Some(claims.project_id.clone()),
        acr: claims.acr.clone(),
        amr: methods(&claims.amr),
        impersonator_id: claims.act.as_ref().map(|actor| actor.sub.clone()),
        claims: (!claims.own.is_empty()).then(|| object(claims.own.clone())),
    }
}

/// The session of a refresh token.
fn refresh(session: Session, issuer: String) -> pb::IntrospectTokenResponse {
    let Authentication { time, acr, amr } = session.authentication;
    pb::IntrospectTokenResponse {
        active: true,
        token_type: Some("refresh_token".to_owned()),
        sub: Some(session.user.as_str().to_owned()),
        client_id: Some(session.project.to_string()),
        aud: Some(session.project.to_string()),
        iss: Some(issuer),
        jti: None,
        iat: None,
        exp: Some(timestamp(session.expires_at.min(session.idle_expires_at))),
        auth_time: time.map(timestamp),
        sid: Some(session.id.to_string()),
        project_id: Some(session.project.to_string()),
        acr,
        amr: methods(&amr),
        impersonator_id: session.impersonator.map(|Impersonator(id)| id),
        claims: (!session.claims.is_empty()).then(|| object(session.claims)),
    }
}

fn methods(amr: &[String]) -> Option<prost_types::ListValue> {
    let values: Vec<prost_types::Value> = amr.iter().map(|method| Kind::StringValue(method.clone()).into()).collect();
    (!values.is_empty()).then_some(prost_types::ListValue { values })
}

fn listed(listed: Listed) -> pb::Session {
    session(listed.session, listed.is_current)
}

fn session(session: Session, is_current: bool) -> pb::Session {
    pb::Session {
        id: session.id.to_string(),
        project_id: session.project.to_string(),
        user_id: session.user.as_str().to_owned(),
        created_at: Some(timestamp(session.created_at)),
        last_used_at: Some(timestamp(session.last_used_at)),
        expires_at: Some(timestamp(session.expires_at)),
        idle_expires_at: Some(timestamp(session.idle_expires_at)),
        revoked_at: session.revoked.map(|(at, _)| timestamp(at)),
        revoke_reason: session.revoked.map(|(_, why)| reason(why).into()),
        is_current_session: is_current,
        is_impersonation: session.impersonator.is_some(),
        impersonator_id: session.impersonator.map(|Impersonator(id)| id),
        ip: session.device.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        user_agent: session.device.user_agent.unwrap_or_default(),
        device_name: session.device.name,
        labels: session.labels,
        claims: Some(object(session.claims)),
    }
}

fn object(object: serde_json::Map<String, serde_json::Value>) -> prost_types::Struct {
    prost_types::Struct { fields: object.into_iter().map(|(name, field)| (name, value(field))).collect() }
}

fn value(json: serde_json::Value) -> prost_types::Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // It was decoded from a double.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(0.0)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(value).collect() })
        }
        Json::Object(fields) => Kind::StructValue(object(fields)),
    };
    kind.into()
}

pub(super) const fn reason(reason: RevokeReason) -> pb::RevokeReason {
    match reason {
        RevokeReason::SignedOut => pb::RevokeReason::SignedOut,
        RevokeReason::RefreshTokenReused => pb::RevokeReason::RefreshTokenReused,
        RevokeReason::Replaced => pb::RevokeReason::Replaced,
        RevokeReason::Revoked => pb::RevokeReason::Revoked,
        RevokeReason::RevokedAll => pb::RevokeReason::RevokedAll,
        RevokeReason::Evicted => pb::RevokeReason::Evicted,
        RevokeReason::Erased => pb::RevokeReason::Erased,
        RevokeReason::KeyRevoked => pb::RevokeReason::KeyRevoked,
        RevokeReason::Restored => pb::RevokeReason::Restored,
        RevokeReason::Superseded => pb::RevokeReason::Superseded,
    }
}

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros().rem_euclid(1_000_000);
    prost_types::Timestamp { seconds: time.as_seconds(), nanos: i32::try_from(micros * 1_000).unwrap_or(0) }
}
