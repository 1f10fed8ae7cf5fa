//! The table of reasons, pinned by the published text: `docs/reference/errors.md`. Run with `ACCEPT=1` to accept a change, and
//! read the diff.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use prost_reflect::DescriptorPool;
use sessiond::{pb, rpc::status::COMMON_REASONS};
use sessiond_core::reason::Reason;
use tonic_rest_layer::{Code, LayerReason, layer_reasons};

const LAYERS: &str = "\
# Errors of the HTTP layer

In the same form and domain, by the layer that turns JSON into gRPC: most often before any method is asked.

";

const BELOW: &str = "\
# Errors without a reason

Responses outside of the API have a status and a line of text:

| HTTP | |
|---|---|
| 400 | the request names no host, more than one, or a malformed one (RFC 9112 §3.2, RFC 9113 §8.3.1) |
| 421 | the server does not answer to that host name: `--allowed-host` |
| 431 | the headers are too large: `--header-bytes-max` |

The endpoints below `/oauth2` answer in the words of RFC 6749 §5.2: `error` and `error_description`.
";

const INTRODUCTION: &str = "\
# What each error means

Every error carries `google.rpc.ErrorInfo` with the domain `sessiond` and a `reason`: the one thing to branch on. The gRPC
code is the status of the call; over REST it becomes the HTTP status beside it. Messages are for people, and may change.

`verify` is `/projects/{project_id}/auth/verify`, `Check` is Envoy's external authorization: see [proxies](../guides/proxies.md).

This file is generated and checked by `tests/errors.rs`.

";

/// Reasons for proxies: not returned by methods of the API.
const TO_PROXIES: [Reason; 10] = [
    Reason::CredentialsMissing,
    Reason::UnparsableAccessToken,
    Reason::AccessTokenExpired,
    Reason::WrongProject,
    Reason::SessionRevoked,
    Reason::AccessTokenSuperseded,
    Reason::InsufficientUserAuthentication,
    Reason::CrossOriginRequest,
    Reason::AmbiguousCookie,
    Reason::ProjectNotFound,
];

/// Reasons only for gRPC clients: returned by the server itself, not by a method.
const OF_GRPC: [Reason; 2] = [Reason::MethodNotFound, Reason::UnsupportedEncoding];

/// Reasons only for clients of other services: returned by the guard in front of those.
const OF_GUARDS: [Reason; 1] = [Reason::VerificationUnavailable];

/// What the reader should do.
fn what_to_do(reason: Reason) -> &'static str {
    match reason {
        Reason::CredentialsMissing => "Send `authorization: Bearer …`, or a refresh token where the method takes one.",
        Reason::UnparsableAccessToken => {
            "Refresh, and use the new token. If it happens again, check that the token is complete and of this installation."
        }
        Reason::AccessTokenExpired => {
            "Refresh, and repeat the call with the new token. Signing out works without that."
        }
        Reason::WrongProject => "Use the token only in its own project. The metadata names both projects.",
        Reason::SessionRevoked => "Sign in again. A retry or a refresh does not help.",
        Reason::AccessTokenSuperseded => {
            "Refresh, and repeat the call with the new token, which has the session's present claims. A service has changed them \
             (`supersede_tokens`). Guards refuse such a token too."
        }
        Reason::InvalidServerKey => {
            "Check which key the service uses, and whether it was revoked. Create a new one if necessary. If the service presents \
             a client certificate in its place, the message says why that does not count."
        }
        Reason::RefreshTokenNotFoundOrExpired => {
            "Sign in again. If it was reused, the audit log says `REFRESH_TOKEN_REUSED`: someone may hold a copy."
        }
        Reason::ClientAuthenticationRequired => {
            "Refresh through a backend that also sends a server key: by OAuth 2.0, or as a service through the Stack Auth \
             adapter. The project's policy requires it: `refresh_requires_client`."
        }
        Reason::InsufficientUserAuthentication => {
            "Ask the user to authenticate again, create a session that replaces this one, with the new `auth_time` and `acr`, and \
             repeat the call with its token. For proxies and guards: the route requires it. The metadata has `max_age` in seconds and `acr_values` (RFC 9470). Signing out of \
             the current session works without that."
        }
        Reason::InsufficientAccessType => {
            "Send the kind of credential that the method accepts: a user's token, or a server key whose role is at least \
             `least_role` in the metadata ([Privileges](privileges.md)). Impersonations need a key that is granted them. A server key must not come from a browser. An impersonation can revoke only its own session."
        }
        Reason::CrossOriginRequest => {
            "Call from a page of the API's own origin. A client that sends neither `Sec-Fetch-Site` nor `Origin` must send \
             `x-sessiond-csrf`. Behind a proxy: does it pass on `Host`? Pages of other origins use tokens."
        }
        Reason::AmbiguousCookie => {
            "Two values of one cookie: another host of the domain has set one. Sign out, which ends both, or clear the site's \
             cookies. Cookies of two projects: name one in `x-sessiond-project`."
        }
        Reason::NotYourUser => "Omit `user_id`, or send `me`. Only services can ask about other users.",
        Reason::SessionNotFound => {
            "Treat the session as ended: it does not exist, was deleted, or is not visible to the caller."
        }
        Reason::CannotDeleteCurrentSession => "Call `RevokeCurrent` with the same token.",
        Reason::SessionLimitReached => {
            "Ask the user to end a session first, or set the project's policy to `evict_oldest` or `evict_idle`."
        }
        Reason::ProjectNotFound => {
            "Check the project's id in the proxy's configuration: in the path, or in Envoy's `context_extensions`, where this \
             is a 500."
        }
        Reason::Schema => {
            "Correct the request: `google.rpc.BadRequest` names each invalid field, and what is expected."
        }
        Reason::RateLimited => "Wait as long as `google.rpc.RetryInfo` or `Retry-After` says, then retry.",
        Reason::FeedInterrupted => {
            "Reopen the stream after `google.rpc.RetryInfo`, with the last cursor: the server is stopping, or the database \
             has failed over."
        }
        Reason::TooManyEntries => {
            "Raise the subscriber's `max_entries`, if it has the memory: `entries` in the metadata is how many there are. They are \
             forgotten once their tokens have expired."
        }
        Reason::SubscriberTooSlow => {
            "Reopen the stream with the last cursor, which is also in the metadata, and read faster. Nothing is lost."
        }
        Reason::VerificationUnavailable => {
            "Repeat after `Retry-After`, with the same token. Operators: is sessiond up, and does the service reach it?"
        }
        Reason::StoreUnavailable => {
            "Retry after `Retry-After`: every call is safe to repeat. Operators: check that Postgres is up and reachable."
        }
        Reason::DeadlineExceeded => {
            "The call may or may not have succeeded. Retry with a longer deadline: every call is safe to repeat."
        }
        Reason::MethodNotFound => "Check the spelling against the proto, and the version of the server.",
        Reason::UnsupportedEncoding => {
            "Send messages uncompressed, or compressed with gzip: see `grpc-accept-encoding`."
        }
        Reason::Internal => {
            "A bug in the server. Report the `request_id` in the metadata: the log has the cause under this id."
        }
    }
}

/// The methods that return the reason.
fn answered_by(reason: Reason) -> String {
    if COMMON_REASONS.contains(&reason) {
        return "any".to_owned();
    }
    if OF_GRPC.contains(&reason) {
        return "any, only over gRPC and grpc-web".to_owned();
    }
    if OF_GUARDS.contains(&reason) {
        return "any of another service, behind a guard".to_owned();
    }
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("decodes");
    let extension = pool.get_extension_by_name("sessiond.v1.reasons").expect("is there");
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let answers = |method: &prost_reflect::MethodDescriptor| {
        let options = method.options();
        let reasons = options.get_extension(&extension);
        reasons.as_list().expect("repeated").iter().any(|name| name.as_str() == Some(reason.name()))
    };
    let names = methods.filter(answers).map(|method| method.name().to_owned());
    let to_proxies = TO_PROXIES.contains(&reason).then(|| ["verify", "Check"].map(str::to_owned));
    names.chain(to_proxies.into_iter().flatten()).collect::<Vec<_>>().join(", ")
}

/// The code in protocol spelling: `NotFound` is `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let name = format!("{code:?}");
    let spelled = name.chars().enumerate().map(|(at, letter)| {
        let gap = if at > 0 && letter.is_ascii_uppercase() { "_" } else { "" };
        format!("{gap}{}", letter.to_ascii_uppercase())
    });
    spelled.collect()
}

fn published() -> String {
    let mut text = INTRODUCTION.to_owned();
    for reason in Reason::ALL.iter().copied() {
        let code = Code::from_number(reason.code() as i32);
        writeln!(text, "## `{}`\n", reason.name()).expect("writes");
        writeln!(text, "| gRPC | HTTP | methods |\n|---|---|---|").expect("writes");
        let methods = answered_by(reason);
        writeln!(text, "| `{}` | {} | {methods} |\n", code_name(code), code.http_status().as_u16()).expect("writes");
        writeln!(text, "{} {}\n", reason.message(), what_to_do(reason)).expect("writes");
    }
    text.push_str(LAYERS);
    for LayerReason { name, code, status, description, .. } in of_the_layer() {
        let methods = "any, over REST alone";
        writeln!(text, "## `{name}`\n").expect("writes");
        writeln!(text, "| gRPC | HTTP | methods |\n|---|---|---|").expect("writes");
        writeln!(text, "| `{}` | {} | {methods} |\n", code_name(code), status.as_u16()).expect("writes");
        writeln!(text, "{description} {}\n", what_to_do_about(name)).expect("writes");
    }
    text.push_str(BELOW);
    text.trim_end().to_owned() + "\n"
}

/// The layer's own reasons, except those that the service has too.
fn of_the_layer() -> Vec<LayerReason> {
    let is_ours = |name: &str| Reason::ALL.iter().any(|reason| reason.name() == name);
    layer_reasons().into_iter().filter(|reason| !is_ours(reason.name)).collect()
}

/// What the reader of the layer's own reasons should do.
fn what_to_do_about(name: &str) -> &'static str {
    match name {
        "ROUTE_NOT_FOUND" => "Check the path against `/openapi.json`, and that it is under a base path.",
        "METHOD_NOT_ALLOWED" => "Use one of the methods in `Allow`.",
        "UNSUPPORTED_MEDIA_TYPE" => {
            "Send `content-type: application/json` and no `content-encoding`. Also returned to gRPC and grpc-web clients \
             with an unsupported type, such as `application/grpc+json`."
        }
        "BODY_TIMEOUT" => "Send the body faster, or send less at once.",
        "BODY_TOO_LARGE" => "Send less at once. Operators: `--body-bytes-max`.",
        "BODY_UNREADABLE" => "Retry: the connection broke while the body was being sent.",
        "BAD_REPLY" => {
            "A bug in the server. Report the `x-request-id` of the response: the log has the cause under this id."
        }
        other => panic!("{other} is not explained"),
    }
}

#[test]
fn every_reason_is_explained_as_published() {
    let text = published();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/errors.md");
    if std::env::var_os("ACCEPT").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("makes it");
        fs::write(&path, &text).expect("writes");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == text, "not as in docs/reference/errors.md: {text}");
}

/// The page also covers the layer's reasons: every reason that a client can get.
#[test]
fn the_layers_own_reasons_are_explained() {
    let page = published();
    let own = of_the_layer();
    assert_eq!(own.len(), 7, "{own:?}");
    for reason in layer_reasons() {
        assert!(page.contains(&format!("## `{}`", reason.name)), "{}", reason.name);
    }
}

/// Every reason is returned by some method, and no two share a name.
#[test]
fn every_reason_is_returned_by_some_method() {
    let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for reason in Reason::ALL.iter().copied() {
        assert!(!answered_by(reason).is_empty(), "{}", reason.name());
    }
}

/// A client error is never reported as a server fault, nor the reverse.
#[test]
fn codes_and_statuses_agree() {
    for reason in Reason::ALL.iter().copied() {
        let status = Code::from_number(reason.code() as i32).http_status();
        let ours = matches!(
            reason,
            Reason::StoreUnavailable | Reason::FeedInterrupted | Reason::DeadlineExceeded | Reason::Internal
        ) || OF_GRPC.contains(&reason)
            || OF_GUARDS.contains(&reason);
        assert_eq!(status.is_server_error(), ours, "{}", reason.name());
    }
}
