//! The kinds of work: their requests, and the check of each answer.

use std::net::SocketAddr;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::header;
use http_body_util::Full;
use prost::Message as _;
use serde_json::Value;
use serde_json::json;
use sessiond::pb;

use crate::Outcome;
use crate::client::Answer;
use crate::client::Wire;
use crate::null;
use crate::sessions::Tokens;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// Sign out; each request has its own token, as if another replica had issued it.
    SignOut,
    /// The same with tokens that this server has issued, and mostly still knows.
    SignOutKnown,
    /// Refresh a session for the first time; each request has its own token.
    Refresh,
    /// Create a session.
    Create,
    /// List the caller's ten sessions.
    List,
    /// Introspect an access token that the server has seen.
    Introspect,
    /// Verify an access token that the server has seen, as a proxy does.
    Verify,
    /// The same by cookie. The project is in cookie mode then.
    VerifyCookie,
    /// More requests in progress than the server can do.
    Overload,
    /// None: the server's memory, idle and with ten thousand idle connections.
    Memory,
}

impl Work {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::SignOut => "sign-out",
            Self::SignOutKnown => "sign-out-known",
            Self::Refresh => "refresh",
            Self::Create => "create",
            Self::List => "list",
            Self::Introspect => "introspect",
            Self::Verify => "verify",
            Self::VerifyCookie => "verify-cookie",
            Self::Overload => "overload",
            Self::Memory => "memory",
        }
    }

    /// Whether each request needs a session of its own.
    pub(crate) const fn uses_up(self) -> bool {
        match self {
            Self::SignOut | Self::SignOutKnown | Self::Refresh => true,
            Self::Create | Self::List | Self::Introspect | Self::Overload | Self::Memory => false,
            Self::Verify | Self::VerifyCookie => false,
        }
    }
}

/// What an answer must say.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    SignedOut,
    Tokens,
    Page {
        session: String,
    },
    Active {
        user: String,
    },
    User {
        user: String,
    },
    /// An empty body.
    Nothing,
    /// A body that contains this.
    Text(&'static str),
}

/// A request, and what its answer must say.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) request: Request<Full<Bytes>>,
    pub(crate) expected: Expected,
}

impl Call {
    /// Checks an answer that must not say that anything had been done before, and returns its body.
    ///
    /// # Errors
    ///
    /// Fails with the refusal, or with the answer.
    pub(crate) fn check(&self, wire: Wire, answer: Answer) -> Outcome<Bytes> {
        let (headers, body) = answer.map_err(|refused| format!("refused: {}", refused.text))?;
        self.expected.check(wire, &headers, &body, Repeats::Never)?;
        Ok(body)
    }
}

/// Writes the requests to one server.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) addr: SocketAddr,
    pub(crate) wire: Wire,
    pub(crate) server_key: String,
}

impl Caller {
    /// The request of this work for this session; for a creation, `tokens` names only the user.
    pub(crate) fn call(&self, work: Work, tokens: &Tokens) -> Call {
        let user = tokens.user.clone();
        match work {
            Work::SignOut | Work::SignOutKnown | Work::Overload | Work::Memory => Call {
                request: self.request(&RPC_REVOKE_CURRENT, bearer(&tokens.access), &pb::RevokeCurrentRequest {}, None),
                expected: Expected::SignedOut,
            },
            Work::Refresh => {
                let headers = HeaderMap::from_iter([(
                    header::HeaderName::from_static("x-refresh-token"),
                    HeaderValue::from_str(&tokens.refresh).expect("a token is ASCII"),
                )]);
                let message = pb::RefreshSessionRequest::default();
                Call {
                    request: self.request(&RPC_REFRESH, headers, &message, Some(json!({}))),
                    expected: Expected::Tokens,
                }
            }
            Work::Create => {
                let body = json!({"user_id": user, "user_agent": AGENT, "ip": "198.51.100.7"});
                let message = pb::CreateSessionRequest {
                    user_id: user,
                    user_agent: Some(AGENT.to_owned()),
                    ip: Some("198.51.100.7".to_owned()),
                    ..Default::default()
                };
                Call {
                    request: self.request(&RPC_CREATE, bearer(&self.server_key), &message, Some(body)),
                    expected: Expected::Tokens,
                }
            }
            Work::List => {
                let message = pb::ListSessionsRequest { user_id: Some("me".to_owned()), ..Default::default() };
                Call {
                    request: self.request(&RPC_LIST, bearer(&tokens.access), &message, None),
                    expected: Expected::Page { session: tokens.session.clone() },
                }
            }
            Work::Introspect => {
                let body = json!({"token": tokens.access});
                let message = pb::IntrospectTokenRequest { token: tokens.access.clone() };
                Call {
                    request: self.request(&RPC_INTROSPECT, bearer(&self.server_key), &message, Some(body)),
                    expected: Expected::Active { user },
                }
            }
            Work::Verify => Call {
                request: self.request(&RPC_VERIFY, bearer(&tokens.access), &(), None),
                expected: Expected::User { user },
            },
            Work::VerifyCookie => Call {
                request: self.request(&RPC_VERIFY, cookies(tokens), &(), None),
                expected: Expected::User { user },
            },
        }
    }

    /// The same request to the service that does nothing.
    pub(crate) fn null_call(&self, work: Work, tokens: &Tokens) -> Call {
        let mut request = self.call(work, tokens).request;
        let path = match self.wire {
            Wire::Rest | Wire::GrpcWeb => null::HTTP_PATH.to_owned(),
            Wire::Grpc => format!("http://{}{}", self.addr, null::GRPC_PATH),
        };
        *request.uri_mut() = path.parse().expect("a path");
        Call { request, expected: Expected::Nothing }
    }

    fn request(
        &self,
        rpc: &Rpc,
        mut headers: HeaderMap,
        message: &impl prost::Message,
        json: Option<Value>,
    ) -> Request<Full<Bytes>> {
        let service = "/sessiond.v1.SessionService/";
        let (method, uri, body) = match self.wire {
            Wire::Rest => {
                let body = json.map(|json| self.wire.body(json.to_string().as_bytes()));
                (rpc.method.clone(), rpc.path.to_owned(), body)
            }
            Wire::GrpcWeb => {
                (Method::POST, format!("{service}{}", rpc.rpc), Some(self.wire.body(&message.encode_to_vec())))
            }
            Wire::Grpc => {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
                let uri = format!("http://{}{service}{}", self.addr, rpc.rpc);
                (Method::POST, uri, Some(self.wire.body(&message.encode_to_vec())))
            }
        };
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, self.wire.content_type());
        }
        if self.wire != Wire::Grpc {
            headers.insert(header::HOST, self.addr.to_string().parse().expect("an address"));
        }
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = method;
        *request.uri_mut() = uri.parse().expect("a path");
        *request.headers_mut() = headers;
        request
    }
}

const AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";

/// A method on both kinds of protocol.
struct Rpc {
    method: Method,
    path: &'static str,
    rpc: &'static str,
}

const RPC_REVOKE_CURRENT: Rpc = Rpc { method: Method::DELETE, path: "/auth/sessions/current", rpc: "RevokeCurrent" };
const RPC_REFRESH: Rpc = Rpc { method: Method::POST, path: "/auth/sessions/current/refresh", rpc: "RefreshSession" };
const RPC_CREATE: Rpc = Rpc { method: Method::POST, path: "/auth/sessions", rpc: "CreateSession" };
const RPC_LIST: Rpc = Rpc { method: Method::GET, path: "/auth/sessions?user_id=me", rpc: "ListSessions" };
const RPC_INTROSPECT: Rpc = Rpc { method: Method::POST, path: "/auth/tokens:introspect", rpc: "IntrospectToken" };
/// Not a method of the API: of the project [`PROJECT`](crate::stage::PROJECT), and only on HTTP.
const RPC_VERIFY: Rpc = Rpc { method: Method::GET, path: "/projects/demo/auth/verify", rpc: "" };

fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII");
    HeaderMap::from_iter([(header::AUTHORIZATION, value)])
}

/// As a proxy passes on a page load.
fn cookies(tokens: &Tokens) -> HeaderMap {
    let kept = format!(
        "__Host-sessiond.demo.access={}; __Host-sessiond.demo.refresh={}; theme=dark",
        tokens.access, tokens.refresh
    );
    let header = |name, value: &str| {
        (header::HeaderName::from_static(name), HeaderValue::from_str(value).expect("a token is ASCII"))
    };
    HeaderMap::from_iter([
        header("cookie", &kept),
        header("sec-fetch-site", "same-origin"),
        header("x-forwarded-method", "GET"),
    ])
}

/// How an answer to a sign-out may say that the session had already ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// Never: each token is used once.
    Never,
    /// It may: a refused request may have been done.
    Allowed,
}

impl Expected {
    /// Checks the answer: a benchmark of errors would be fast.
    ///
    /// # Errors
    ///
    /// Fails with the answer.
    pub(crate) fn check(&self, wire: Wire, headers: &HeaderMap, body: &Bytes, repeats: Repeats) -> Outcome<()> {
        let is_right = match (self, wire) {
            (Self::SignedOut, Wire::Rest) => {
                let repeated =
                    repeats == Repeats::Allowed && body == br#"{"success":true,"already_revoked":true}"#.as_slice();
                body == br#"{"success":true}"#.as_slice() || repeated
            }
            (Self::SignedOut, Wire::Grpc | Wire::GrpcWeb) => {
                let answer = pb::RevokeCurrentResponse::decode(body.as_ref())?;
                answer.success && (repeats == Repeats::Allowed || answer.already_revoked.is_none())
            }
            (Self::Tokens, Wire::Rest) => {
                let json: Value = serde_json::from_slice(body)?;
                ["access_token", "refresh_token"].iter().all(|name| json[name].as_str().is_some_and(|it| it.len() > 32))
            }
            (Self::Tokens, Wire::Grpc | Wire::GrpcWeb) => {
                // The fields of both responses.
                let answer = pb::CreateSessionResponse::decode(body.as_ref())?;
                answer.access_token.len() > 32 && answer.refresh_token.len() > 32
            }
            (Self::Page { session }, Wire::Rest) => contains(body, session.as_bytes()),
            (Self::Page { session }, Wire::Grpc | Wire::GrpcWeb) => {
                let answer = pb::ListSessionsResponse::decode(body.as_ref())?;
                answer.items.iter().any(|item| item.id == *session && item.is_current_session)
            }
            (Self::Active { user }, Wire::Rest) => {
                let json: Value = serde_json::from_slice(body)?;
                json["active"] == true && json["sub"] == **user
            }
            (Self::Active { user }, Wire::Grpc | Wire::GrpcWeb) => {
                let answer = pb::IntrospectTokenResponse::decode(body.as_ref())?;
                answer.active && answer.sub.as_deref() == Some(user)
            }
            (Self::User { user }, _) => headers.get("x-user-id").is_some_and(|value| value == user.as_str()),
            (Self::Nothing, _) => body.is_empty(),
            (Self::Text(text), _) => contains(body, text.as_bytes()),
        };
        if is_right { Ok(()) } else { Err(format!("wrong answer, where {self:?} was expected: {body:?}").into()) }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
