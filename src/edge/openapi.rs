//! The API's OpenAPI 3.1 description, generated from the same descriptors as the API itself.

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::header;
use serde_json::json;

use crate::pb;
use crate::rpc::status::COMMON_REASONS;
use sessiond_core::reason::Reason;
use tonic_rest_layer::BuildErrors;
use tonic_rest_layer::Code;
use tonic_rest_layer::ErrorReason;
use tonic_rest_layer::OpenApi;

/// How long the document may be cached: an hour. It changes only with a release.
const MAX_AGE: &str = "public, max-age=3600";

const DESCRIPTION: &str = "\
The session half of auth: opens, refreshes and ends sessions. The same API is served over gRPC and grpc-web.

Every error is a `google.rpc.Status` with a `google.rpc.ErrorInfo`, whose `reason` is the one thing to branch on. Times \
are RFC 3339 strings, 64-bit integers are strings. Requests may spell names in lowerCamelCase too; a name that is \
unknown, or said twice, is refused. Responses may gain members: ignore those that you do not know.";

/// The document as text, with the API under these base paths.
pub fn document(base_paths: &[String]) -> String {
    let document = describe(base_paths).expect("the proto's options are all explained: a test builds the document");
    format!("{document:#}\n")
}

fn describe(base_paths: &[String]) -> Result<serde_json::Value, BuildErrors> {
    let api = OpenApi::new("sessiond", env!("CARGO_PKG_VERSION"))
        .description(DESCRIPTION)
        .reasons("sessiond.v1.reasons", Reason::ALL.iter().copied().map(row))
        .common_reasons(COMMON_REASONS.map(Reason::name))
        .security_scheme(
            "bearer",
            json!({
                "type": "http",
                "scheme": "bearer",
                "description": "An access token, or a server key.",
            }),
        )
        .security_scheme(
            "refreshToken",
            json!({
                "type": "apiKey",
                "in": "header",
                "name": "x-refresh-token",
                "description": "A refresh token.",
            }),
        )
        .security_scheme("accessCookie", cookie("access"))
        .security_scheme("refreshCookie", cookie("refresh"))
        .security(
            "sessiond.v1.credentials",
            [
                ("CREDENTIAL_ACCESS_TOKEN", Some("bearer")),
                ("CREDENTIAL_SERVER_KEY", Some("bearer")),
                ("CREDENTIAL_REFRESH_TOKEN", Some("refreshToken")),
                ("CREDENTIAL_REFRESH_TOKEN_FIELD", None),
                ("CREDENTIAL_ACCESS_COOKIE", Some("accessCookie")),
                ("CREDENTIAL_REFRESH_COOKIE", Some("refreshCookie")),
            ],
        )
        .response_header(
            "x-request-id",
            json!({
                "description": "Names the request in our log.",
                "required": true,
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
            }),
        )
        .response(421, "The server does not answer to that host name.")
        .response(431, "The headers are too large.");
    base_paths.iter().fold(api, |api, path| api.server(path)).build(pb::DESCRIPTOR_SET)
}

fn cookie(kind: &str) -> serde_json::Value {
    json!({
        "type": "apiKey",
        "in": "cookie",
        "name": format!("__Host-sessiond.PROJECT.{kind}"),
        "description": "From a page of the same origin, if the project uses cookies. PROJECT is the project's id.",
    })
}

fn row(reason: Reason) -> ErrorReason {
    ErrorReason::new(reason.name(), Code::from_number(reason.code() as i32), reason.message())
}

/// The document under every base path.
pub(super) fn routes(base_paths: &[String]) -> Router {
    let text = Bytes::from(document(base_paths));
    base_paths.iter().fold(Router::new(), |router, base| {
        let text = text.clone();
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, MAX_AGE)];
        let answer = move || async move { (headers, text) };
        router.route(&format!("{}/openapi.json", base.trim_end_matches('/')), get(answer))
    })
}
