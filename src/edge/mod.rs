//! HTTP: one port for gRPC, grpc-web, REST and OAuth, and the whole stack on this page.

mod activity;
mod admission;
mod arrival;
mod body;
mod class;
mod connections;
mod cors;
mod guardrail;
mod hosts;
mod identify;
mod jwks;
mod linger;
mod oauth;
mod observe;
mod openapi;
mod origin;
mod rate;
mod seed;
mod serve;
mod stalled;
mod supervise;
mod verify;
mod well_known;

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use axum::middleware::from_fn_with_state;
use http::HeaderValue;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;
use tower::ServiceBuilder;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

pub use cors::OriginError;
use guardrail::GuardrailLayer;
pub use openapi::document;
pub use serve::BindError;
pub use serve::Server;
use well_known::Readiness;

use crate::app::App;
use crate::config::Limits;
use crate::config::Web;
use crate::pb;
use crate::pb::envoy::authorization_server::AuthorizationServer;
use crate::pb::session_service_server::SessionServiceServer;
use crate::rpc::Authorization;
use crate::rpc::SessionService;
use crate::rpc::status;
use crate::telemetry::Metrics;
use crate::transcode::RestLayer;

/// Puts the stack together, outermost first. What stands beside the API is told where the API is, to ask it.
///
/// # Errors
///
/// When an origin is malformed.
fn stack(
    app: &App,
    web: &Web,
    limits: &Limits,
    metrics: &Metrics,
    health: HealthReporter,
    ready: Readiness,
    beside: impl FnOnce(Router) -> Router,
) -> Result<Stack, OriginError> {
    let rest = RestLayer::builder()
        .max_body_bytes(limits.body_bytes_max)
        // Bodies have arrived by then.
        .body_timeout(body::ARRIVED)
        .error_domain(status::DOMAIN)
        .snake_case_field_masks();
    let rest = web.base_paths.iter().fold(rest, |rest, path| rest.base_path(path));
    let rest = rest.build(pb::DESCRIPTOR_SET).expect("the proto's rules work: a test builds them");

    let rest_layer = rest.clone();
    let guardrail =
        GuardrailLayer::new(limits.requests_max, limits.request_timeout, app.load().clone(), metrics.clone());
    let grpc = calls(routes(app, limits.body_bytes_max, health.clone()), &guardrail, metrics);
    // Forms in, calls out; and the RFCs' own answers back.
    let oauth = oauth::routes(app.clone(), grpc.clone(), limits, &web.base_paths);
    // Proxies' requests in, Envoy's call out; and back.
    let verify = verify::routes(grpc.clone(), &web.base_paths);
    let seed = seed::Adapter::new(grpc.clone(), limits, &web.base_paths);

    let api = ServiceBuilder::new()
        // Requests of the seed's clients in, calls out; and its own words back. Whatever is not theirs passes.
        .layer(from_fn_with_state(seed, seed::adapt))
        // JSON in, a gRPC frame out; and back. Outside grpc-web, which refuses HTTP/1.1 that is not its own.
        .layer(rest)
        // The browser's framing in, gRPC's out; and back.
        .layer(GrpcWebLayer::new())
        .service(grpc);
    // One type in place of a page of them: the compiler is faster, and its messages are shorter.
    let api =
        ServiceExt::<http::Request<axum::body::Body>>::map_response(api, |answer| answer.map(axum::body::Body::new));
    let api = BoxCloneSyncService::new(api);

    let plain = well_known::routes(app.clone(), ready.clone(), web).merge(openapi::routes(&web.base_paths));
    let router = plain.merge(oauth);
    // Documents are no calls: what is refused of them is answered here, where CORS still sees it.
    let router = router.layer(from_fn(admission::refuse_document)).fallback_service(api);
    // Beside CORS too: an origin that may call the API may not call what is not the API.
    let beside = beside(router.clone());
    let router = match cors::layer(&web.cors_origins)? {
        // Outside everything: a preflight has no credentials, and every answer, even a refusal, must be readable.
        Some(cors) => router.layer(cors),
        None => router,
    };
    // Beside CORS, which would answer a preflight that a proxy asks about with a 200: the proxy would let it pass.
    let router = router.merge(verify).merge(beside);
    // What a request costs first of all: its address's bucket, its address's share, and its message's arrival.
    let admission = admission::Admission::new(app.rates().clone(), limits, metrics.clone(), rest_layer);
    let router = router.layer(from_fn_with_state(admission, admission::admit));

    // For proxies alone, on a listener of their own: nobody else reaches it, so nobody is counted there.
    let checks = calls(proxies(app, limits.body_bytes_max, health), &guardrail, metrics);
    let verify = verify::routes(checks.clone(), &web.base_paths);
    let checks = checks.map_request(|request: http::Request<axum::body::Body>| request.map(Body::new));
    let checks =
        ServiceExt::<http::Request<axum::body::Body>>::map_response(checks, |answer| answer.map(axum::body::Body::new));
    let proxy_router = well_known::health(ready).merge(verify).fallback_service(checks);
    let around = |router: Router| {
        router
            // Where the request comes from, for whoever further in limits or remembers it.
            .layer(from_fn_with_state(origin::Trust::new(web), origin::note))
            // Before anything is looked at: a request for another host is not for us.
            .layer(from_fn_with_state(hosts::Allowed::new(&web.allowed_hosts), hosts::check))
            // Every request gets an id, and every answer tells it.
            .layer(from_fn(identify::identify))
    };
    Ok(Stack { router: around(router), proxy_router: around(proxy_router) })
}

/// What the listeners serve.
struct Stack {
    /// Everything.
    router: Router,
    /// What proxies ask: verify, Check and health.
    proxy_router: Router,
}

/// The gRPC services, and what every call passes on its way to them, outermost first.
fn calls(services: Routes, guardrail: &GuardrailLayer, metrics: &Metrics) -> GrpcService {
    let calls = ServiceBuilder::new()
        // Counts every call under its RPC, its wire and its code.
        .layer(observe::ObserveLayer::new(metrics.clone()))
        // Answers what was refused on its way in. Counted above like any call.
        .layer(rate::RateLayer)
        // Innermost, and as gRPC statuses, so that each wire renders them in its own way: too much under way, the deadline,
        // and a panic, which must cost one request and not the connection.
        .layer(guardrail.clone())
        .service(services);
    BoxCloneSyncService::new(calls)
}

/// What proxies ask over gRPC.
fn proxies(app: &App, bytes_max: usize, health: HealthReporter) -> Routes {
    let proxies = AuthorizationServer::new(Authorization::new(app.clone())).max_decoding_message_size(2 * bytes_max);
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health),
    );
    Routes::new(proxies).add_service(health).prepare()
}

/// The gRPC services.
fn routes(app: &App, bytes_max: usize, health: HealthReporter) -> Routes {
    // A map of short texts is larger in protobuf than in JSON; what the transcoder has let in must not fail here.
    let sessions = SessionServiceServer::new(SessionService::new(app.clone())).max_decoding_message_size(2 * bytes_max);
    let proxies = AuthorizationServer::new(Authorization::new(app.clone())).max_decoding_message_size(2 * bytes_max);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mirror = reflection().build_v1().expect("the descriptors were compiled in");
    // The same by its former name: gRPC's own client in Python still asks for nothing else.
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

/// What travels between the layers inside the transcoder.
type GrpcRequest = http::Request<Body>;
type GrpcResponse = http::Response<Body>;

/// The gRPC services and what every call passes on its way to them, whichever wire it came over.
type GrpcService = BoxCloneSyncService<GrpcRequest, GrpcResponse, Infallible>;

/// `Retry-After`: whole seconds (RFC 9110 §10.2.3), and none too few.
fn retry_after(delay: Duration) -> HeaderValue {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1).into()
}
