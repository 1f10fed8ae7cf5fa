//! A service behind the guard: it knows the signed-in user, and rejects a signed-out one at once. With `./run` in
//! another shell:
//!
//! ```sh
//! . .sessiond/dev.env && export SESSIOND_URL SESSIOND_PROJECT_ID SESSIOND_VERIFIER_KEY
//! cargo run -p sessiond-guard --example guarded
//!
//! curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 200: who you are
//! curl -X DELETE $SESSIOND_URL/auth/sessions/current -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"
//! curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 401: SESSION_REVOKED
//! ```
//!
//! The guard takes two lines of `serve`.

use std::env;
use std::error::Error;

use axum::Extension;
use axum::Router;
use axum::routing::get;
use sessiond_guard::Guard;
use sessiond_guard::GuardOptions;
use sessiond_guard::Principal;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One replica, or several separated by commas.
    let url = env::var("SESSIOND_URL")?;
    let issuer = env::var("SESSIOND_ISSUER").unwrap_or_else(|_| url.clone());
    // A server key with the role `verifier`: it can follow revocations and introspect tokens, and nothing else.
    let (project, server_key) = (env::var("SESSIOND_PROJECT_ID")?, env::var("SESSIOND_VERIFIER_KEY")?);
    let listener = TcpListener::bind(env::var("LISTEN").as_deref().unwrap_or("127.0.0.1:8082")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let endpoints = url.split(',').map(str::to_owned).collect();
    serve(listener, GuardOptions { endpoints, ..GuardOptions::new("", project, issuer, server_key) }).await
}

/// The service. Also called by a test.
pub(crate) async fn serve(listener: TcpListener, options: GuardOptions) -> Result<(), Box<dyn Error>> {
    let guard = Guard::connect(options).await?;
    let routes = Router::new().route("/", get(hello)).layer(guard.layer());
    // Outside of the guard, for probes.
    let metrics = get(async move || guard.stats().render());
    Ok(axum::serve(listener, routes.route("/metrics", metrics)).await?)
}

async fn hello(Extension(principal): Extension<Principal>) -> String {
    format!("Hello, {}! This is session {}.\n", principal.user_id().as_str(), principal.session_id())
}
