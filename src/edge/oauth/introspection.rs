//! Renders an introspection response (RFC 7662 §2.2), with the claims' own names and times in seconds.

use prost_types::Timestamp;
use prost_types::value::Kind;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::error::OAuthError;
use crate::pb::IntrospectTokenResponse;
use crate::rpc::claims;

/// The response's body. Absent fields are omitted; for an inactive token it holds only `active` (§2.2).
pub(super) fn render(answer: IntrospectTokenResponse) -> Result<Value, OAuthError> {
    let own = answer.claims.map(claims).transpose().map_err(|_| OAuthError::SERVER_ERROR)?;
    // The host application's claims first, so that ours overwrite those of the same name.
    let mut body: Map<String, Value> = own.unwrap_or_default();
    body.insert("active".to_owned(), answer.active.into());
    let act = answer.impersonator_id.map(|sub| json!({"sub": sub}));
    let members = [
        ("token_type", answer.token_type.map(|kind| token_type(&kind).into())),
        ("sub", answer.sub.map(Value::from)),
        ("client_id", answer.client_id.map(Value::from)),
        ("aud", answer.aud.map(Value::from)),
        ("iss", answer.iss.map(Value::from)),
        ("jti", answer.jti.map(Value::from)),
        ("iat", answer.iat.map(seconds)),
        ("exp", answer.exp.map(seconds)),
        ("auth_time", answer.auth_time.map(seconds)),
        ("sid", answer.sid.map(Value::from)),
        ("project_id", answer.project_id.map(Value::from)),
        ("acr", answer.acr.map(Value::from)),
        ("amr", answer.amr.map(|methods| methods.values.into_iter().filter_map(text).collect())),
        // RFC 8693 §4.1.
        ("act", act),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    }
    Ok(body.into())
}

/// The type of RFC 6749 §7.1. A refresh token has none there; it keeps its own name, so that it is not mistaken for an access
/// token.
fn token_type(kind: &str) -> &str {
    if kind == "access_token" { "Bearer" } else { kind }
}

fn seconds(time: Timestamp) -> Value {
    time.seconds.into()
}

fn text(value: prost_types::Value) -> Option<Value> {
    match value.kind {
        Some(Kind::StringValue(text)) => Some(text.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_applications_claim_never_overwrites_ours() {
        let field = |kind| prost_types::Value { kind: Some(kind) };
        let own = [
            ("active", field(Kind::BoolValue(false))),
            ("token_type", field(Kind::StringValue("mac".into()))),
            ("level", field(Kind::NumberValue(3.0))),
        ];
        let answer = IntrospectTokenResponse {
            active: true,
            token_type: Some("access_token".into()),
            exp: Some(Timestamp { seconds: 1_800_000_000, nanos: 5 }),
            impersonator_id: Some("eve".into()),
            claims: Some(prost_types::Struct {
                fields: own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            }),
            ..IntrospectTokenResponse::default()
        };
        let expected = json!({
            "active": true, "token_type": "Bearer", "exp": 1_800_000_000, "act": {"sub": "eve"}, "level": 3,
        });
        assert_eq!(render(answer).expect("renders"), expected);
        assert_eq!(render(IntrospectTokenResponse::default()).expect("renders"), json!({"active": false}));
    }
}
