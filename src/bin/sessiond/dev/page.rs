//! The demo page: four files, compiled in. They load nothing from elsewhere. `sessiond.js` is built from `clients/typescript`, whose
//! `check` compares it: building the server needs no npm.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use http::HeaderMap;
use http::HeaderValue;
use http::header;

use super::names::PROJECT;
use super::names::USER;

/// The page runs only our scripts, connects only to this server, and cannot be framed (CSP Level 3).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

/// The routes. The page needs the base path of the API, and the file that a shell reads the keys from.
pub(super) fn routes(base_path: &str, env: &Path) -> Router {
    let env = env.display().to_string();
    let page = [("{{base_path}}", base_path), ("{{env}}", &env), ("{{user}}", USER), ("{{project}}", PROJECT)]
        .iter()
        .fold(include_str!("page/index.html").to_owned(), |page, (name, value)| page.replace(name, &escaped(value)));
    let page: Arc<str> = page.into();
    // The page shows commands to copy, with the server's name as its visitor typed it.
    let page = async move |headers: HeaderMap| {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        file("text/html; charset=utf-8", page.replace("{{host}}", &escaped(host)))
    };
    let style = async || file("text/css; charset=utf-8", include_str!("page/style.css"));
    let app = async || file("text/javascript; charset=utf-8", include_str!("page/app.js"));
    let client = async || file("text/javascript; charset=utf-8", include_str!("page/sessiond.js"));
    Router::new()
        .route("/", get(page))
        .route("/demo/style.css", get(style))
        .route("/demo/app.js", get(app))
        .route("/demo/sessiond.js", get(client))
}

fn file(media_type: &'static str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    for (name, value) in [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next build may have other contents.
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Escapes text for HTML, or for an attribute in double quotes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
