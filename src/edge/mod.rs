//! HTTP: one port for gRPC, grpc-web, REST and OAuth, and the whole stack on this page.

mod activity;
mod admission;
mod answer;
mod arrival;
mod body;
mod class;
mod connection;
mod connections;
mod cors;
mod explain;
mod grpc;
mod guardrail;
mod hosts;
mod identify;
mod internal;
mod jwks;
mod lifetime;
mod linger;
mod listener;
mod media;
mod message;
mod metrics;
mod oauth;
mod observe;
mod openapi;
mod origin;
mod parting;
mod plain;
mod rate;
mod readiness;
mod resume;
mod retry_after;
mod serve;
mod setting;
mod shared;
mod sidecar;
mod stack_auth;
mod stalled;
mod tls;
mod verify;
mod well_known;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::middleware::from_fn;
use axum::response::Response;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;
use tower::ServiceBuilder;
use tower::ServiceExt;
use tower::service_fn;

use grpc::GrpcService;
use guardrail::GuardrailLayer;
use listener::ListenerParts;
use listener::ListenerService;
pub use openapi::document;
pub use serve::BindError;
pub use serve::Ports;
pub use serve::Server;
pub use setting::SettingError;
use setting::read;
use shared::SharedService;
pub use sidecar::Sidecar;
pub use sidecar::SidecarListener;
pub use tls::ServerTls;
pub use tls::TlsError;
use verify::Verify;
use well_known::Readiness;

use crate::app::App;
use crate::config;
use crate::config::Limits;
use crate::config::Web;
use crate::forwarded::Trust;
use crate::pb;
use crate::pb::envoy::authorization_server::AuthorizationServer;
use crate::pb::session_service_server::SessionServiceServer;
use crate::rpc::Authorization;
use crate::rpc::SessionService;
use crate::telemetry::Metrics;
use sessiond_core::reason;
use sessiond_core::session::violation::LABELS_MAX;
use tonic_rest_layer::RestLayer;

/// Builds the stack, outermost layer first. `beside` gets the API's router and returns what to serve beside it.
///
/// # Errors
///
/// Fails if a setting cannot work.
fn stack(
    app: &App,
    web: &Web,
    limits: &Limits,
    metrics: &Metrics,
    health: HealthReporter,
    ready: Readiness,
    beside: impl FnOnce(Router) -> Router,
) -> Result<Stack, BindError> {
    let base_paths = read(&web.base_paths, config::base_path)?;
    let allowed_hosts = read(&web.allowed_hosts, config::host)?;
    let web = &Web { base_paths, allowed_hosts, ..web.clone() };
    let rest = RestLayer::builder()
        .max_body_bytes(limits.body_bytes_max)
        // Bodies have arrived by then.
        .body_timeout(body::ARRIVED)
        .max_body_elements(message::JSON_ELEMENTS_MAX)
        // The rules refuse more labels anyway: refuse at the first one too many, without reading the rest.
        .max_field_elements("sessiond.v1.CreateSessionRequest.labels", LABELS_MAX)
        .error_domain(reason::DOMAIN)
        .event_id_field("cursor")
        // Responses use these names, and clients copy them.
        .snake_case_field_masks();
    let rest = web.base_paths.iter().fold(rest, |rest, path| rest.base_path(path));
    let rest = rest.build(pb::DESCRIPTOR_SET)?;

    let rest_layer = rest.clone();
    let guardrail =
        GuardrailLayer::new(limits.requests_max, limits.request_timeout, app.load().clone(), metrics.clone());
    let trust = Trust::new(web);
    let authorization = Authorization::new(app.clone(), trust.clone());
    let services = routes(app, &authorization, limits.body_bytes_max, health.clone());
    let grpc = calls(services, &guardrail, metrics);
    // Forms in, calls out; and the RFCs' own answers back.
    let oauth = oauth::routes(app.clone(), grpc.clone(), limits, &web.base_paths);
    // Proxies' requests in, Envoy's call out; and back.
    let observe = observe::ObserveLayer::new(metrics.clone());
    let verify = Arc::new(Verify::new(authorization.clone(), observe, guardrail.clone(), &web.base_paths));
    let stack_auth = Arc::new(stack_auth::Adapter::new(grpc.clone(), limits, &web.base_paths));

    let api = ServiceBuilder::new()
        // JSON in, a gRPC frame out; and back. Outside grpc-web, which refuses other HTTP/1.1 requests.
        .layer(rest)
        // The browser's framing in, gRPC's out; and back.
        .layer(GrpcWebLayer::new())
        .service(grpc.clone());
    // One type in place of a page of them: the compiler is faster, and its messages are shorter.
    let api = ServiceExt::<Request>::map_response(api, |answer| answer.map(Body::new));
    let api = SharedService::new(api);
    // Turns the requests of Stack Auth clients into calls, and answers in their terms. Passes on all others.
    let api = service_fn(move |request: Request| {
        let (adapter, api) = (Arc::clone(&stack_auth), api.clone());
        async move { Ok::<_, Infallible>(stack_auth::adapt(&adapter, request, api).await) }
    });

    let plain = well_known::routes(app.clone(), ready.clone(), web).merge(openapi::routes(&web.base_paths));
    let router = plain.merge(oauth).fallback_service(api).layer(from_fn(prepare));
    // Beside CORS too: an origin that may call the API may not call what is not the API.
    let beside = beside(router.clone());
    let cors = cors::layer(&web.cors_origins, &web.cors_headers)?;
    // CORS adds headers to every response, also over gRPC.
    let direct = cors.is_none().then_some(grpc);
    let router = match cors {
        // Outside everything: a preflight has no credentials, and every answer, even a refusal, must be readable.
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router.merge(beside);
    let admission = admission::AdmissionControl::new(app.rates().clone(), limits, metrics.clone(), rest_layer);

    // For proxies only, on a listener of their own: nobody else reaches it, so no address is limited there.
    let checks = calls(proxies(&authorization, limits.body_bytes_max, health), &guardrail, metrics);
    let checks = checks.map_request(|request: Request| request.map(tonic::body::Body::new));
    let checks = ServiceExt::<Request>::map_response(checks, |answer| answer.map(Body::new));
    let proxy_router = well_known::health(ready).fallback_service(checks);
    let allowed = hosts::Allowed::new(&web.allowed_hosts);
    let parts = |admission, grpc, router| ListenerParts {
        trust: trust.clone(),
        allowed: allowed.clone(),
        admission,
        verify: Arc::clone(&verify),
        grpc,
        router,
    };
    Ok(Stack {
        public: ListenerService::new(parts(Some(admission), direct, router)),
        proxies: ListenerService::new(parts(None, None, proxy_router)),
    })
}

/// What the listeners serve.
struct Stack {
    /// Everything.
    public: ListenerService,
    /// What proxies call: verify, Check and health.
    proxies: ListenerService,
}

/// Prepares a request for the API or a document, inside CORS.
async fn prepare(mut request: Request, next: Next) -> Response {
    // Inner layers know gRPC's media types in one spelling.
    if let Err(refusal) = media::normalize(&mut request) {
        return refusal;
    }
    // The id of the last event becomes the cursor, before either is read.
    resume::resume(&mut request);
    // Documents are not calls: their refusals are answered here.
    match admission::document_refusal(&request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// The gRPC services, and what every call passes on its way to them, outermost first.
fn calls(services: Routes, guardrail: &GuardrailLayer, metrics: &Metrics) -> GrpcService {
    let calls = ServiceBuilder::new()
        // Counts every call under its RPC, its wire and its code.
        .layer(observe::ObserveLayer::new(metrics.clone()))
        // Answers requests that admission control refused. Counted above like any call.
        .layer(rate::RateLayer)
        // Innermost, and as gRPC statuses, so that each wire renders them in its own way: too many requests, the deadline, and a
        // panic, which must cost one request and not the connection.
        .layer(guardrail.clone())
        // Adds our details to tonic's own statuses.
        .map_response(explain::explain)
        .service(services);
    SharedService::new(calls)
}

/// The gRPC services for proxies.
fn proxies(authorization: &Authorization, bytes_max: usize, health: HealthReporter) -> Routes {
    let proxies = envoy(authorization, bytes_max);
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health),
    );
    Routes::new(proxies).add_service(health).prepare()
}

/// The gRPC services.
fn routes(app: &App, authorization: &Authorization, bytes_max: usize, health: HealthReporter) -> Routes {
    // A map of short strings is larger in protobuf than in JSON; a message that the transcoder accepted must not fail here.
    // Compressed messages are accepted, with the same limit after decompression. Responses are not compressed: they are small,
    // and the compressed length of a secret beside text that the caller has chosen could reveal the secret.
    let sessions = SessionServiceServer::new(SessionService::new(app.clone()))
        .max_decoding_message_size(2 * bytes_max)
        .accept_compressed(CompressionEncoding::Gzip);
    let proxies = envoy(authorization, bytes_max);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mirror = reflection().build_v1().expect("the descriptors were compiled in");
    // The same under its former name: gRPC's own Python client still uses only that.
    let mirror_alpha = reflection().build_v1alpha().expect("the descriptors were compiled in");
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health),
    );
    Routes::new(sessions)
        .add_service(proxies)
        .add_service(mirror)
        .add_service(mirror_alpha)
        .add_service(health)
        .prepare()
}

/// The service that Envoy calls.
fn envoy(authorization: &Authorization, bytes_max: usize) -> AuthorizationServer<Authorization> {
    AuthorizationServer::new(authorization.clone())
        .max_decoding_message_size(2 * bytes_max)
        .accept_compressed(CompressionEncoding::Gzip)
}
