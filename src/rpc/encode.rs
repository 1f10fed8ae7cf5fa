//! From the words of the app onto the wire.

use secrecy::ExposeSecret as _;

use crate::app::Ended;
use crate::app::Grant;
use crate::clock::Timestamp;
use crate::pb;
use crate::session::RevokeReason;
use crate::session::Session;
use crate::session::lifecycle::Impersonator;

pub(super) fn ended(ended: Ended) -> pb::RevokeCurrentResponse {
    pb::RevokeCurrentResponse { success: true, already_revoked: ended.already.then_some(true) }
}

pub(super) fn created(grant: Grant) -> pb::CreateSessionResponse {
    pb::CreateSessionResponse {
        access_token: grant.access_token.expose_secret().to_owned(),
        refresh_token: grant.refresh_token.expose_secret().to_owned(),
        expires_in: grant.expires_in,
        session: Some(session(grant.session)),
    }
}

pub(super) fn refreshed(grant: &Grant) -> pb::RefreshSessionResponse {
    pb::RefreshSessionResponse {
        access_token: grant.access_token.expose_secret().to_owned(),
        refresh_token: grant.refresh_token.expose_secret().to_owned(),
        expires_in: grant.expires_in,
    }
}

fn session(session: Session) -> pb::Session {
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
        // The caller is the service that opens it, and not in it.
        is_current_session: false,
        is_impersonation: session.impersonator.is_some(),
        impersonator_id: session.impersonator.map(|Impersonator(id)| id),
        ip: session.device.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        user_agent: session.device.user_agent.unwrap_or_default(),
        device_name: session.device.name,
        labels: session.labels,
    }
}

const fn reason(reason: RevokeReason) -> pb::RevokeReason {
    match reason {
        RevokeReason::SignedOut => pb::RevokeReason::SignedOut,
        RevokeReason::RefreshTokenReused => pb::RevokeReason::RefreshTokenReused,
        RevokeReason::Replaced => pb::RevokeReason::Replaced,
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros().rem_euclid(1_000_000);
    prost_types::Timestamp { seconds: time.as_seconds(), nanos: i32::try_from(micros * 1_000).unwrap_or(0) }
}
