//! The table of reasons, pinned by the published text: `docs/errors.md`. Run with `ACCEPT=1` to accept a change, and
//! read the diff.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use prost_reflect::DescriptorPool;
use sessiond::{
    pb,
    rpc::status::{COMMON_REASONS, Reason},
};
use tonic_rest_layer::{Code, LayerReason, layer_reasons};

const LAYERS: &str = "\
# What the HTTP layer says by itself

In the same form and domain, by the layer that turns JSON into gRPC: most often before any method is asked.

";

const BELOW: &str = "\
# What has no reason

Answers to what is not the API's business have a status and a line of text:

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

`verify` is `/projects/{project_id}/auth/verify`, `Check` is Envoy's external authorization: see `docs/proxies.md`.

This file is generated and checked by `tests/errors.rs`.

";

/// Reasons for proxies: not returned by methods of the API.
const TO_PROXIES: [Reason; 6] = [
    Reason::CredentialsMissing,
    Reason::UnparsableAccessToken,
    Reason::AccessTokenExpired,
    Reason::WrongProject,
    Reason::SessionRevoked,
    Reason::ProjectNotFound,
];

/// Reasons only for gRPC clients: returned by the server itself, not by a method.
const OF_GRPC: [Reason; 2] = [Reason::MethodNotFound, Reason::UnsupportedEncoding];

/// What the reader should do.
fn what_to_do(reason: Reason) -> &'static str {
    match reason {
        Reason::CredentialsMissing => "Send `authorization: Bearer …`, or a refresh token where the method takes one.",
        Reason::UnparsableAccessToken => {
            "Refresh, and use the new token. Where that happens again: is it the token of this installation, and whole?"
        }
        Reason::AccessTokenExpired => "Refresh, and repeat the call with the new token. Signing out works as it is.",
        Reason::WrongProject => "Use the token with the service of its own project; the metadata names both.",
        Reason::SessionRevoked => "Sign in again. Repeating the call or refreshing will not help.",
        Reason::InvalidServerKey => {
            "Check which key the service was given, and whether it was revoked; make a new one."
        }
        Reason::RefreshTokenNotFoundOrExpired => {
            "Sign in again. If it was reused, the audit says `REFRESH_TOKEN_REUSED`: someone may hold a copy."
        }
        Reason::ClientAuthenticationRequired => {
            "Have the session's client refresh through a backend that shows a server key: by OAuth 2.0, or as a service by the \
             Stack Auth adapter. The project's policy says so: `refresh_requires_client`."
        }
        Reason::InsufficientUserAuthentication => {
            "Have the user authenticate again, open a session with the new `auth_time` and `acr` that replaces this one, and \
             repeat the call with its token. The metadata has `max_age` in seconds and `acr_values` (RFC 9470). Signing out of \
             the current session works as it is."
        }
        Reason::InsufficientAccessType => {
            "Send the kind of credential that the method takes: a user's token, a server key, one with the role `admin`. \
             A server key must not come from a browser, and who acts as a user ends only that session."
        }
        Reason::NotYourUser => "Leave `user_id` out, or say `me`. For other users, ask as a service.",
        Reason::SessionNotFound => "Treat it as gone: it never was, was removed, or is not the caller's to know of.",
        Reason::CannotDeleteCurrentSession => "Sign out instead: `RevokeCurrent`, with the same token.",
        Reason::SessionLimitReached => {
            "Have the user end a session first, or let the project's policy make room: `evict_oldest`, `evict_idle`."
        }
        Reason::ProjectNotFound => {
            "Is the name right? A proxy names the project in its own configuration: in the path, or in Envoy's \
             `context_extensions`, where it is a 500."
        }
        Reason::Schema => {
            "Mend the request: `google.rpc.BadRequest` names each field that is wrong, and what is expected."
        }
        Reason::RateLimited => "Wait as long as `google.rpc.RetryInfo` or `Retry-After` says, then repeat.",
        Reason::FeedInterrupted => {
            "Open the stream again after `google.rpc.RetryInfo`, with the last cursor: the server stops, or the database \
             has changed hands."
        }
        Reason::SubscriberTooSlow => {
            "Open the stream again with the last cursor, which the metadata repeats, and read it faster: nothing is lost."
        }
        Reason::StoreUnavailable => {
            "Repeat after `Retry-After`: every call is safe to repeat. Operators: is Postgres up, and reachable?"
        }
        Reason::DeadlineExceeded => {
            "Whether it was done is not known. Repeat, with more time: every call is safe to repeat."
        }
        Reason::MethodNotFound => "Is it spelt as in the proto, and does this version of the server have it?",
        Reason::UnsupportedEncoding => {
            "Send messages as they are, or compressed with gzip: `grpc-accept-encoding` says so too."
        }
        Reason::Internal => "Our fault. Tell us the `request_id` in the metadata: it finds the cause in the log.",
    }
}

/// The methods that return the reason.
fn answered_by(reason: Reason) -> String {
    if COMMON_REASONS.contains(&reason) {
        return "any".to_owned();
    }
    if OF_GRPC.contains(&reason) {
        return "any, over gRPC and grpc-web alone".to_owned();
    }
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("decodes");
    let extension = pool.get_extension_by_name("sessiond.v1.reasons").expect("is there");
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let answers = |method: &prost_reflect::MethodDescriptor| {
        let options = method.options();
        let said = options.get_extension(&extension);
        said.as_list().expect("repeated").iter().any(|name| name.as_str() == Some(reason.name()))
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
        "ROUTE_NOT_FOUND" => "Is the path spelt as in `/openapi.json`, and below a base path?",
        "METHOD_NOT_ALLOWED" => "Use one of the methods in `Allow`.",
        "UNSUPPORTED_MEDIA_TYPE" => {
            "Send `content-type: application/json` and no `content-encoding`. Also told to gRPC and grpc-web clients \
             with a type that is not spoken here, such as `application/grpc+json`."
        }
        "BODY_TIMEOUT" => "Send the body faster, or in smaller pieces of work.",
        "BODY_TOO_LARGE" => "Send less at once. Operators: `--body-bytes-max`.",
        "BODY_UNREADABLE" => "Repeat: the connection broke while the body was on its way.",
        "BAD_REPLY" => "Our fault. Tell us the `x-request-id` of the answer: it finds the cause in the log.",
        other => panic!("{other} is not explained"),
    }
}

#[test]
fn every_reason_is_explained_as_published() {
    let text = published();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    if std::env::var_os("ACCEPT").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("makes it");
        fs::write(&path, &text).expect("writes");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == text, "not as in docs/errors.md: {text}");
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
        ) || OF_GRPC.contains(&reason);
        assert_eq!(status.is_server_error(), ours, "{}", reason.name());
    }
}
