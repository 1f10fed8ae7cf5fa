//! HTTP and JSON in front of any tonic service, by the `google.api.http` rules of its own protos.
//!
//! A tower [`Layer`](tower_layer::Layer), built from a `FileDescriptorSet`: it turns a request into a gRPC frame for the
//! service behind it, and the reply back into JSON. Interceptors, authentication, deadlines, metrics and limits stand
//! behind it, once, and cannot differ between gRPC and REST. gRPC and grpc-web requests pass untouched.
//!
//! # Example
//!
//! Ten lines for a service of your own; `examples/library` is a whole one. The bytes are what `protox`'s
//! `encode_file_descriptor_set` or `protoc --include_imports --descriptor_set_out` wrote, unchanged.
//!
//! ```
//! use tonic_rest_layer::RestLayer;
//! use tonic::service::Routes;
//! use tonic_web::GrpcWebLayer;
//! use tower::{Layer as _, ServiceExt as _};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Usually the build script's work.
//! let mut protos = protox::Compiler::new(["examples/library/proto"])?;
//! let descriptor_set = protos.include_imports(true).open_file("library.proto")?.encode_file_descriptor_set();
//!
//! // Every fault of every rule comes at once, with service, method and reason.
//! let layer = RestLayer::builder().base_path("/api/v1").error_domain("library.example.com").build(&descriptor_set)?;
//! // Here `Routes` is empty; `Routes::new(LibraryServiceServer::new(…))` has your service.
//! let service = layer.layer(GrpcWebLayer::new().layer(Routes::default()));
//!
//! let request = http::Request::get("/api/v1/shelves/1/books/1").body(String::new())?;
//! assert_eq!(service.clone().oneshot(request).await?.status(), 501, "routed, and nobody there");
//! let request = http::Request::get("/api/v1/shelves").body(String::new())?;
//! assert_eq!(service.oneshot(request).await?.status(), 404, "no rule has that path");
//! # Ok(())
//! # }
//! ```
//!
//! # Where it stands
//!
//! Outermost of the three: `RestLayer → GrpcWebLayer → Routes`, since tonic-web answers 400 to every HTTP/1.1 request
//! that is not grpc-web. Serve it with hyper-util or axum. `tonic::transport::Server` puts its timeout outside of every
//! layer, and a REST client would get HTTP 200 with a `grpc-status`. CORS stands outside of this layer; deadlines inside,
//! where `grpc-timeout` arrives as metadata.
//!
//! # What it does
//!
//! - **Routes**: the whole grammar of http.proto, verbs, `additional_bindings`, `custom` kinds. The most specific template
//!   that has the method wins. HEAD is answered from GET, OPTIONS by the layer where no rule has it, 405 with `Allow`. A
//!   `**` takes the rest of the path as it is, an empty last segment too: `/files/` is an empty name.
//! - **Requests**: path, query and body, and *the path always wins*: what it binds, no query may name, in either spelling
//!   or as a oneof sibling. A body may say it again, so that what was read can be edited and written back; another value,
//!   or a oneof sibling, is refused. Nothing else may be said twice. JSON must say that it is JSON. A `grpc-timeout` that
//!   is malformed is refused, since a caller who asks for a deadline must not wait without one.
//! - **Replies**: proto field names, defaults printed, 64-bit integers as strings, `google.rpc.Status` with typed details
//!   for errors, `WWW-Authenticate` on every 401, `Retry-After` from `RetryInfo`, and in errors never a `DebugInfo`,
//!   however deep. Metadata becomes headers; of unary replies the trailing metadata stands beside the initial.
//! - **Streams**: NDJSON, or server-sent events where `Accept` names them. The status line waits for the first message. A
//!   failure afterwards is a last line `{"error": …}` or an event `error`.
//! - **`google.api.HttpBody`** both ways, streamed replies included.
//! - **OpenAPI**: [`OpenApi`](crate::OpenApi) describes the same rules as an OpenAPI 3.1 document.
//! - Requests and responses carry [`MatchedRoute`](crate::MatchedRoute) as an extension, for metrics and logs.
//!
//! # Bounds
//!
//! The body (1 MiB, [`max_body_bytes`](crate::RestLayerBuilder::max_body_bytes)) and the time it takes to
//! arrive (10 s, [`body_timeout`](crate::RestLayerBuilder::body_timeout), or a smaller `grpc-timeout`); 96
//! levels, counted as protobuf's decoders count them, and 65,536 members and elements of JSON
//! ([`max_body_elements`](crate::RestLayerBuilder::max_body_elements), and for single fields
//! [`max_field_elements`](crate::RestLayerBuilder::max_field_elements)); 256 query parameters of 16 names each; 64 path segments; 64 MiB for one reply message, and 100 levels below it.
//!
//! # Limitations
//!
//! - Client streaming has no mapping; a rule on such a method fails the build.
//! - The service is asked when the body is there, so limits and metrics behind the layer do not see the wait for it; the
//!   deadline for that is the layer's own, and its timer is tokio's.
//! - A body on a rule without one is thrown away as it comes. It delays no call, and none is refused for it; when the answer
//!   comes first, the rest is not read, and HTTP/1.1 then closes the connection.
//! - A HEAD on a server stream is answered when the headers are there, and may miss a failure that comes before the first
//!   message.
//! - Files of `edition = "2023"` and later fail the build: the descriptors' library does not read them yet.
//! - A set has the services of imported files too, and the layer cannot know which stand behind it: name yours with
//!   [`service`](crate::RestLayerBuilder::service).
//! - A path variable needs a request that is an object of its fields: one inside of `google.protobuf.Any`, a wrapper or
//!   `google.api.HttpBody` fails the build.
//! - GET and HEAD rules with a `body` fail the build (RFC 9110 §9.3.1).
//! - Rules come from annotations alone; there is no service configuration in YAML, and no selector.
//! - Literals match as they are written, or fully percent-encoded, with escapes in either case; a path that escapes letters (`%63urrent`) is another
//!   path. A path with `.` or `..` for a segment, escaped or not, has no route.
//! - Extensions of proto2 messages are not read or printed, and groups fail the build.
//! - `*-bin` headers and metadata are dropped, both ways. gRPC clients have other means, REST clients no use for them.
//! - FieldMask paths are lowerCamelCase, though replies spell fields in snake_case;
//!   [`snake_case_field_masks`](crate::RestLayerBuilder::snake_case_field_masks) lets both in. A path without a
//!   lowerCamelCase form, such as `address_1`, is refused, and makes a reply a 500.
//! - An `Any` in a reply whose type is not in the descriptor set makes the reply a 500; in error details it is left out.
//! - Compressed requests are 415, and replies are not compressed here; put a compression layer outside.

mod bind;
mod binding;
mod body;
mod builder;
mod call;
mod content;
mod deadline;
mod descriptors;
mod error;
mod frame;
mod future;
mod guard;
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
