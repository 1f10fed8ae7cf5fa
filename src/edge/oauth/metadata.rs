//! Authorization server metadata (RFC 8414), and the same under the name of OpenID Connect Discovery for verifiers that look only
//! there. Every project is an issuer of its own, so each has a document; nothing in it depends on the request.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use http::Uri;
use http::header;
use serde_json::json;

use crate::app::App;
use crate::edge::jwks::cache_control;
use crate::edge::jwks::no_project;
use crate::edge::plain::unavailable;
use sessiond_core::id::ProjectId;

/// §3.1: the well-known name is between the issuer's host and its path, so it is not under a base path. Many clients append it
/// to the path, as OpenID Connect does, so it is also below every base path and the issuer's own.
pub(super) fn routes(app: App, base_paths: &[String]) -> Router {
    let own = Some(path_of(app.issuer.base()));
    let mut below: Vec<String> = base_paths.iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
    below.extend(own.filter(|own| !below.contains(own)));
    let named = |router: Router<App>, name: &'static str| {
        let relative = |router: Router<App>, base: &String| {
            // Literally: braces would be a path parameter.
            router.route(&format!("{base}/projects/{{project_id}}/.well-known/{name}"), get(relative_document))
        };
        let router = router.route(&format!("/.well-known/{name}/{{*issuer}}"), get(document));
        below.iter().fold(router, relative)
    };
    NAMES.into_iter().fold(Router::new(), named).with_state(app)
}

/// RFC 8414 §3; OpenID Connect Discovery §4, in whose form the document is too.
const NAMES: [&str; 2] = ["oauth-authorization-server", "openid-configuration"];

/// The path of the base URL, without a slash at its end.
fn path_of(base: &str) -> String {
    base.parse::<Uri>().map(|uri| uri.path().trim_end_matches('/').to_owned()).unwrap_or_default()
}

async fn document(State(app): State<App>, Path(issuer_path): Path<String>) -> Response {
    let below = format!("{}/projects/", path_of(app.issuer.base()));
    let project = format!("/{issuer_path}").strip_prefix(&below).and_then(ProjectId::parse);
    of_project(&app, project).await
}

async fn relative_document(State(app): State<App>, Path(project): Path<String>) -> Response {
    of_project(&app, ProjectId::parse(&project)).await
}

async fn of_project(app: &App, project: Option<ProjectId>) -> Response {
    let base = app.issuer.base();
    let Some(project) = project else { return no_project() };
    match app.keys().find(&project, |snapshot| snapshot.policy(&project).is_some()).await {
        Ok(snapshot) if snapshot.policy(&project).is_none() => return no_project(),
        Ok(_) => {}
        // Cached projects are still answered; whether another project exists is unknown while the database is unavailable.
        Err(_) => return unavailable(),
    }
    let issuer = app.issuer.of(project.as_str());
    let any_client = ["client_secret_basic", "client_secret_post", "none"];
    let body = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "token_endpoint": format!("{base}/oauth2/token"),
        "token_endpoint_auth_methods_supported": any_client,
        "grant_types_supported": ["refresh_token"],
        // Required, though there is no authorization endpoint that could respond (§2).
        "response_types_supported": [],
        "revocation_endpoint": format!("{base}/oauth2/revoke"),
        "revocation_endpoint_auth_methods_supported": any_client,
        "introspection_endpoint": format!("{base}/oauth2/introspect"),
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        // OpenID Connect Discovery §3 requires these two. No ID token is issued: this is how verifiers learn which algorithm signs.
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    ([(header::CACHE_CONTROL, cache_control())], Json(body)).into_response()
}
