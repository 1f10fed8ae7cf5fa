//! What a client receives, and how the credential is read from the request.

use serde_json::Value;
use serde_json::json;

use crate::head;
use crate::keys::SESSION;

pub(crate) fn vectors() -> Value {
    let mut file = head();
    file["refusals"] = refusals().into();
    file["credentials"] = credentials().into();
    file
}

fn refusal(reason: &str, message: &str, challenge: &str, metadata: Value) -> Value {
    let info = json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "sessiond", "metadata": metadata
    });
    json!({
        "reason": reason,
        "status": 401,
        "headers": { "www-authenticate": challenge, "content-type": "application/json", "cache-control": "no-store" },
        "body": { "code": 16, "message": message, "details": [info] },
    })
}

fn refusals() -> Vec<Value> {
    const INVALID: &str = r#"Bearer error="invalid_token""#;
    let expired = json!({
        "expired_at_millis": "1800000600000", "project_id": "demo", "user_id": "ada", "refresh_token_id": SESSION
    });
    let projects = json!({ "expected_project_id": "demo", "actual_project_id": "other" });
    let mut expired = refusal("ACCESS_TOKEN_EXPIRED", "The access token has expired.", INVALID, expired);
    expired["given"] =
        json!({ "expired_at_ms": 1_800_000_600_000_i64, "project": "demo", "user": "ada", "session": SESSION });
    let mut wrong =
        refusal("INVALID_PROJECT_FOR_ACCESS_TOKEN", "The access token is of another project.", INVALID, projects);
    wrong["given"] = json!({ "expected_project": "demo", "actual_project": "other" });
    let step_up = "A more recent or a stronger authentication is required.";
    let challenge = |parameters: &str| {
        format!("Bearer error=\"insufficient_user_authentication\", error_description=\"{step_up}\"{parameters}")
    };
    let reason = "INSUFFICIENT_USER_AUTHENTICATION";
    let mut both = refusal(
        reason,
        step_up,
        &challenge(r#", acr_values="aal2 aal3", max_age="300""#),
        json!({ "acr_values": "aal2 aal3", "max_age": "300" }),
    );
    both["given"] = json!({ "acr": ["aal2", "aal3"], "max_age": 300 });
    let mut acr = refusal(reason, step_up, &challenge(r#", acr_values="aal2""#), json!({ "acr_values": "aal2" }));
    acr["given"] = json!({ "acr": ["aal2"], "max_age": null });
    let mut age = refusal(reason, step_up, &challenge(r#", max_age="60""#), json!({ "max_age": "60" }));
    age["given"] = json!({ "acr": [], "max_age": 60 });
    let mut unavailable = refusal(
        "VERIFICATION_UNAVAILABLE",
        "Whether the session has ended is not known at the moment; try again.",
        "",
        json!({}),
    );
    unavailable["status"] = 503.into();
    unavailable["headers"] =
        json!({ "retry-after": "1", "content-type": "application/json", "cache-control": "no-store" });
    unavailable["body"]["code"] = 14.into();
    let retry = json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "1s" });
    unavailable["body"]["details"].as_array_mut().expect("a list").push(retry);
    vec![
        refusal("CREDENTIALS_MISSING", "No credential was presented.", "Bearer", json!({})),
        refusal("UNPARSABLE_ACCESS_TOKEN", "The access token is not one of ours.", INVALID, json!({})),
        expired,
        wrong,
        refusal("SESSION_REVOKED", "The session has ended.", INVALID, json!({})),
        refusal("ACCESS_TOKEN_SUPERSEDED", "The access token has outdated claims; refresh it.", INVALID, json!({})),
        both,
        acr,
        age,
        unavailable,
    ]
}

/// The values of the `Authorization` header, and the token; null if there is none.
fn credentials() -> Vec<Value> {
    let read = |headers: &[&str], token: Option<&str>| json!({ "headers": headers, "token": token });
    let refused = json!({ "headers": ["Bearer a", "Bearer a"], "verdict": "UNPARSABLE_ACCESS_TOKEN" });
    vec![
        read(&[], None),
        read(&["Bearer abc"], Some("abc")),
        read(&["bEARER  abc "], Some("abc")),
        read(&["Bearer"], Some("")),
        read(&["Bearer a b"], Some("a b")),
        read(&["Basic abc"], None),
        read(&["Bearerabc"], None),
        read(&[""], None),
        refused,
    ]
}
