//! Classifies a request by its method and path, before anything of it is read.
//!
//! The class decides which bucket is charged and which slots it uses, so that a flood of one class never blocks another.
//! Sign-outs share neither with other classes.

use http::Method;

use crate::telemetry::RequestClass;
use crate::telemetry::request::Route;

/// Paths of gRPC and grpc-web.
pub(super) const SIGN_OUT: &str = "/sessiond.v1.SessionService/RevokeCurrent";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/";
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";

/// Our own services.
const OURS: [&str; 2] = ["/sessiond.v1.SessionService/", CHECK];

/// Methods that change nothing, by the end of their paths on every wire.
const READS: [&str; 9] = [
    "/ListSessions",
    "/GetCurrentSession",
    "/IntrospectToken",
    "/BatchIntrospect",
    "/WatchRevocations",
    ":introspect",
    ":batchIntrospect",
    "/oauth2/introspect",
    "/auth/verify",
];

/// The class of a request.
///
/// A path that only looks like one of a class, such as one under a base path that is not served, is charged to that class and
/// answered with "not found".
pub(super) fn of(method: &Method, path: &str) -> RequestClass {
    // A browser sends a preflight once a day, and it is answered without any lookup.
    let is_public = || method == Method::OPTIONS || path.contains("/.well-known/") || path.ends_with("/openapi.json");
    if path == SIGN_OUT
        || (method == Method::DELETE && path.ends_with("/auth/sessions/current"))
        || path.ends_with("/oauth2/revoke")
    {
        RequestClass::SignOut
    } else if path.starts_with(CHECK) || (path.contains("/projects/") && path.ends_with("/auth/verify")) {
        RequestClass::Verify
    } else if path.starts_with(HEALTH) || path == "/healthz" || path == "/readyz" {
        RequestClass::Probe
    } else if path.starts_with(REFLECTION) {
        RequestClass::Reflection
    } else if is_public() {
        RequestClass::Public
    } else {
        RequestClass::Other
    }
}

/// The documents, by the end of their paths.
const DOCUMENTS: [&str; 4] = [
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    "/openapi.json",
];

/// The name under which a request is logged and traced until it becomes a call.
pub(super) fn route(method: &Method, path: &str) -> Route {
    let document = || DOCUMENTS.into_iter().find(|document| path.ends_with(document) || is_below(path, document));
    match of(method, path) {
        RequestClass::Probe if path == "/readyz" => Route { name: "/readyz", is_probe: true },
        RequestClass::Probe if path == "/healthz" => Route { name: "/healthz", is_probe: true },
        RequestClass::Probe => Route { name: "grpc.health.v1.Health", is_probe: true },
        RequestClass::Public if method == Method::OPTIONS => Route { name: "preflight", is_probe: false },
        _ => Route { name: document().unwrap_or("unknown"), is_probe: false },
    }
}

/// Whether a document's path is followed by another segment: RFC 8414 §3.1 appends the issuer's path.
fn is_below(path: &str, document: &str) -> bool {
    path.split_once(document).is_some_and(|(_, rest)| rest.starts_with('/'))
}

/// Whether a path is one of our own services' on gRPC and grpc-web.
pub(super) fn is_of_our_services(path: &str) -> bool {
    OURS.iter().any(|service| path.starts_with(service))
}

/// Whether a request is carried out even if its client disconnects: every request that is not read-only.
pub(super) fn is_carried_out(method: &Method, path: &str) -> bool {
    let changes_nothing = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
        || [CHECK, HEALTH, REFLECTION].iter().any(|service| path.starts_with(service))
        || READS.iter().any(|read| path.ends_with(read));
    !changes_nothing
}

/// Whether a request is for a stream of revocations, on any wire.
pub(super) fn is_watch(path: &str) -> bool {
    path.ends_with("/WatchRevocations") || path.ends_with("/revocations:watch")
}

/// Whether a path is that of the call which a proxy makes.
pub(super) fn is_check(path: &str) -> bool {
    path.starts_with(CHECK)
}

/// Whether a path is one of the health's.
pub(super) fn is_health(path: &str) -> bool {
    path.starts_with(HEALTH)
}

/// Whether anyone may begin a response that does not end by itself: a watch of the health, and reflection.
pub(super) fn is_endless(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/Watch") || path.starts_with(REFLECTION)
}

/// Whether a request's body is read before the request is admitted. A DELETE's never is.
pub(super) fn has_message(method: &Method, class: RequestClass) -> bool {
    // Reflection is a bidirectional stream: its request body has no end to wait for.
    matches!(*method, Method::POST | Method::PUT | Method::PATCH) && class != RequestClass::Reflection
}

/// Whether an adapter beside the transcoder reads a body at this path.
pub(super) fn is_form(path: &str) -> bool {
    ["/oauth2/token", "/oauth2/revoke", "/oauth2/introspect", "/auth/oauth/token"].iter().any(|end| path.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_classified_on_every_wire() {
        for (method, path) in [
            (Method::POST, "/sessiond.v1.SessionService/RevokeCurrent"),
            (Method::DELETE, "/auth/sessions/current"),
            (Method::DELETE, "/api/v1/auth/sessions/current"),
            (Method::POST, "/oauth2/revoke"),
            (Method::POST, "/api/v1/oauth2/revoke"),
        ] {
            assert_eq!(of(&method, path), RequestClass::SignOut, "{method} {path}");
            assert!(is_carried_out(&method, path), "{method} {path}");
        }
        for (method, path, class) in [
            (Method::GET, "/auth/sessions/current", RequestClass::Other),
            (Method::POST, "/auth/sessions/current/refresh", RequestClass::Other),
            (Method::POST, "/sessiond.v1.SessionService/RevokeCurrentX", RequestClass::Other),
            (Method::GET, "/projects/demo/auth/verify", RequestClass::Verify),
            (Method::POST, "/envoy.service.auth.v3.Authorization/Check", RequestClass::Verify),
            (Method::POST, "/grpc.health.v1.Health/Watch", RequestClass::Probe),
            (Method::GET, "/readyz", RequestClass::Probe),
            (Method::GET, "/projects/demo/.well-known/jwks.json", RequestClass::Public),
            (Method::POST, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", RequestClass::Reflection),
        ] {
            assert_eq!(of(&method, path), class, "{method} {path}");
        }
    }

    #[test]
    fn a_route_has_one_of_few_names() {
        for (method, path, name) in [
            (Method::GET, "/projects/demo/.well-known/jwks.json", "/.well-known/jwks.json"),
            (Method::GET, "/projects/demo/.well-known/openid-configuration", "/.well-known/openid-configuration"),
            (
                Method::GET,
                "/.well-known/oauth-authorization-server/projects/demo",
                "/.well-known/oauth-authorization-server",
            ),
            (Method::GET, "/api/v1/openapi.json", "/openapi.json"),
            (Method::GET, "/readyz", "/readyz"),
            (Method::OPTIONS, "/auth/sessions", "preflight"),
            (Method::GET, "/auth/sessions/0199d4a0", "unknown"),
            (Method::GET, "/a?token=secret", "unknown"),
        ] {
            assert_eq!(route(&method, path).name, name, "{method} {path}");
        }
        assert!(
            route(&Method::GET, "/healthz").is_probe && route(&Method::POST, "/grpc.health.v1.Health/Check").is_probe
        );
    }

    #[test]
    fn only_read_only_requests_end_when_their_client_disconnects() {
        for (method, path) in [
            (Method::GET, "/auth/sessions"),
            (Method::POST, "/sessiond.v1.SessionService/ListSessions"),
            (Method::POST, "/auth/tokens:introspect"),
            (Method::POST, "/oauth2/introspect"),
            (Method::POST, "/envoy.service.auth.v3.Authorization/Check"),
        ] {
            assert!(!is_carried_out(&method, path), "{method} {path}");
        }
        for (method, path) in [
            (Method::POST, "/auth/sessions:revokeAll"),
            (Method::POST, "/oauth2/token"),
            (Method::DELETE, "/auth/sessions/x"),
            (Method::PATCH, "/auth/sessions/x"),
            (Method::POST, "/sessiond.v1.SessionService/EraseUser"),
        ] {
            assert!(is_carried_out(&method, path), "{method} {path}");
        }
    }
}
