//! REST and JSON for any tonic service, by the `google.api.http` rules of its own protos.
//!
//! - To serve: [`RestLayer`], a tower layer built from a descriptor set. No code is generated.
//! - To adapt it: [`RestLayerBuilder`], with an option for paths, limits, JSON, errors and streams each.
//! - To describe it: [`OpenApi`], the same rules as an OpenAPI 3.1 document.
//!
//! The layer turns a REST request into a gRPC call of the service behind it, and the reply back into JSON. Interceptors,
//! authentication, deadlines, metrics and limits stand behind it once, and cannot differ between gRPC and REST. gRPC and grpc-web
//! requests pass through passthrough.
//!
//! # Example
//!
//! The descriptor set is what `protox`'s `encode_file_descriptor_set` or `protoc --include_imports --descriptor_set_out` writes.
//! Use the bytes unchanged: a tool that decodes and encodes them drops the rules if it does not know them.
//!
//! ```
//! use axum::Router;
//! use tonic::service::Routes;
//! use tonic_rest_layer::RestLayer;
//! use tonic_web::GrpcWebLayer;
//! use tower::{Layer as _, ServiceExt as _};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tonic_rest_layer::BoxError> {
//! // Usually in build.rs.
//! let mut protos = protox::Compiler::new(["examples/library/proto"])?;
//! let descriptor_set = protos.include_imports(true).open_file("library.proto")?.encode_file_descriptor_set();
//!
//! // Every fault of every rule is reported at once, with service, method and reason.
//! let rest = RestLayer::builder().base_path("/api/v1").error_domain("library.example.com").build(&descriptor_set)?;
//! // `Routes::new(LibraryServiceServer::new(…))` has your service; these routes are empty.
//! let grpc = GrpcWebLayer::new().layer(Routes::default());
//! let app: Router = Router::new().fallback_service(rest.layer(grpc));
//! // axum::serve(listener, app).await?;
//!
//! let request = http::Request::get("/api/v1/shelves/1/books/1").body(axum::body::Body::empty())?;
//! assert_eq!(app.clone().oneshot(request).await?.status(), 501, "routed, but no service is there");
//! let request = http::Request::get("/api/v1/shelves").body(axum::body::Body::empty())?;
//! assert_eq!(app.oneshot(request).await?.status(), 404, "no rule has this path");
//! # Ok(())
//! # }
//! ```
//!
//! The README has a whole server, with its proto and its build script.
//!
//! # Position in the stack
//!
//! `RestLayer → GrpcWebLayer → Routes`, outermost first: tonic-web answers 400 to every HTTP/1.1 request that is not grpc-web.
//! Serve it with axum or hyper-util. `tonic::transport::Server` puts its timeout outside all layers, and a REST client would get
//! HTTP 200 with a `grpc-status`. CORS and compression belong outside this layer; deadlines belong inside, where `grpc-timeout`
//! arrives as metadata.
//!
//! Put the layer around the whole router. `axum::Router::layer` puts it around single routes, which no REST path leads to;
//! [`RestLayer`] panics there. Pages and health checks of the same router are reached with
//! [`fall_through`](RestLayerBuilder::fall_through).
//!
//! # Behaviour
//!
//! - **Routes**: the whole grammar of http.proto, verbs, `additional_bindings`, `custom` kinds. The most specific template that has
//!   the method wins. HEAD is answered from GET, OPTIONS by the layer unless a rule has it, 405 with `Allow`. A `**` takes the
//!   rest of the path as it is, an empty last segment too: `/files/` is an empty name.
//! - **Requests**: path, query and body, and *the path always wins*. A query cannot name what the path binds, in either spelling
//!   or as a oneof sibling. A body may repeat it, so that a resource can be read, edited and written back; another value, or a
//!   oneof sibling, is refused. Nothing else may be given twice. JSON needs a JSON content type. A malformed `grpc-timeout` is
//!   refused, since a caller who asks for a deadline must not wait without one.
//! - **Replies**: proto field names, defaults printed, 64-bit integers as strings, `google.rpc.Status` with typed details for errors,
//!   `WWW-Authenticate` on every 401, `Retry-After` from `RetryInfo`, and never a `DebugInfo` in an error, at any depth. Metadata
//!   becomes headers; in unary replies trailing metadata too.
//! - **Streams**: NDJSON, or server-sent events if `Accept` names them. The status line waits for the first message. A later
//!   failure is a last line `{"error": …}` or an event `error`.
//! - **`google.api.HttpBody`** both ways, in streams too.
//! - Requests and responses carry a [`MatchedRoute`] as an extension, for metrics and logs.
//! - [`layer_reasons`] lists every error that the layer itself answers with.
//!
//! # Bounds
//!
//! | what | bound | option |
//! |---|---|---|
//! | request body | 1 MiB | [`max_body_bytes`](RestLayerBuilder::max_body_bytes) |
//! | time for it to arrive | 10 s, or a smaller `grpc-timeout` | [`body_timeout`](RestLayerBuilder::body_timeout) |
//! | members and elements of its JSON | 65,536 | [`max_body_elements`](RestLayerBuilder::max_body_elements) |
//! | elements of one field | none | [`max_field_elements`](RestLayerBuilder::max_field_elements) |
//! | depth of its JSON, counted as protobuf decoders count | 96 levels | |
//! | query parameters | 256, each of 16 names | |
//! | path | 64 segments | |
//! | reply message | 64 MiB, 100 levels below it | |
//!
//! # Limitations
//!
//! - Client streaming has no mapping; a rule on such a method fails the build.
//! - The service is called when the body has arrived, so limits and metrics behind the layer do not see the wait for it. The
//!   deadline for that is the layer's own, and uses tokio's timer.
//! - A body on a rule without one is discarded as it arrives. It delays no call, and no call is refused for it. If the answer comes
//!   first, the rest is not read, and HTTP/1.1 then closes the connection.
//! - A HEAD on a server stream is answered when the headers are there, and may miss a failure before the first message.
//! - Files of `edition = "2023"` and later fail the build: prost-reflect does not read them yet.
//! - A set holds the services of imported files too, and the layer cannot know which of them are served: name yours with
//!   [`service`](RestLayerBuilder::service).
//! - A path variable needs a request that is an object of its fields: one inside `google.protobuf.Any`, a wrapper or
//!   `google.api.HttpBody` fails the build.
//! - GET and HEAD rules with a `body` fail the build (RFC 9110 §9.3.1).
//! - Rules come from annotations alone; there is no service configuration in YAML, and no selector.
//! - Literals match as written, or fully percent-encoded, with escapes in either case; a path that escapes letters (`%63urrent`) is
//!   another path. A path with a segment `.` or `..`, escaped or not, has no route.
//! - Extensions of proto2 messages are not read or printed, and groups fail the build.
//! - `*-bin` headers and metadata are dropped, both ways. gRPC clients have other means, REST clients no use for them.
//! - FieldMask paths are lowerCamelCase;
//!   [`snake_case_field_masks`](RestLayerBuilder::snake_case_field_masks) accepts proto names too. A path without a lowerCamelCase
//!   form, such as `address_1`, is refused in requests, and makes a reply a 500.
//! - An `Any` in a reply whose type is not in the descriptor set makes the reply a 500; in error details it is omitted.
//! - Compressed requests are 415, and replies are not compressed; put a compression layer outside.
//! - Field names in error details (`field_violations`) are those of the proto.

#![warn(missing_debug_implementations)]

mod bind;
mod binding;
mod body;
mod bound_fields;
mod builder;
mod call;
mod content;
mod deadline;
mod descriptors;
mod error;
mod frame;
mod future;
mod headers;
mod hooks;
mod layer;
mod openapi;
mod print;
mod read;
mod render;
mod reply;
mod route;
mod rule;
mod scalar;
mod schema;
mod status;
mod stream;
mod template;
mod transcoder;
mod violation;
mod well_known;
mod wire;

pub use binding::MatchedRoute;
pub use body::RequestBody;
pub use body::ResponseBody;
pub use builder::RestLayerBuilder;
pub use deadline::grpc_timeout;
pub use error::BoxError;
pub use error::BuildError;
pub use error::BuildErrors;
pub use error::RuleError;
pub use future::ResponseFuture;
pub use layer::RestLayer;
pub use layer::RestService;
pub use openapi::ErrorReason;
pub use openapi::OpenApi;
pub use status::Code;
pub use status::LayerReason;
pub use status::RestError;
pub use status::layer_reasons;
