//! REST and JSON for any tonic service, from the `google.api.http` rules of its protos.
//!
//! - [`RestLayer`] is a tower layer that serves the rules of a descriptor set. It needs no generated code.
//! - [`RestLayerBuilder`] has the options: paths, limits, JSON, errors and streams.
//! - [`OpenApi`] writes an OpenAPI 3.1 document of the same rules.
//!
//! The layer turns a REST request into a gRPC call to the inner service, and turns the reply into JSON. Interceptors,
//! authentication, deadlines, metrics and limits are inside the layer, so gRPC and REST share them. gRPC and grpc-web requests
//! pass through unchanged.
//!
//! # Example
//!
//! The descriptor set is the output of `protox`'s `encode_file_descriptor_set` or of
//! `protoc --include_imports --descriptor_set_out`. Use the bytes unchanged: a tool that decodes and re-encodes them drops the
//! rules if it does not know `google.api.http`.
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
//! // Fails with all invalid rules at once, each with its service, method and reason.
//! let rest = RestLayer::builder().base_path("/api/v1").error_domain("library.example.com").build(&descriptor_set)?;
//! // Your service goes here: `Routes::new(LibraryServiceServer::new(…))`. These routes are empty.
//! let grpc = GrpcWebLayer::new().layer(Routes::default());
//! let app: Router = Router::new().fallback_service(rest.layer(grpc));
//! // axum::serve(listener, app).await?;
//!
//! let request = http::Request::get("/api/v1/shelves/1/books/1").body(axum::body::Body::empty())?;
//! assert_eq!(app.clone().oneshot(request).await?.status(), 501, "a rule has this path, but no service is registered");
//! let request = http::Request::get("/api/v1/shelves").body(axum::body::Body::empty())?;
//! assert_eq!(app.oneshot(request).await?.status(), 404, "no rule has this path");
//! # Ok(())
//! # }
//! ```
//!
//! The [README](https://crates.io/crates/tonic-rest-layer) has a complete server, with its proto and its build script.
//!
//! # Position in the stack
//!
//! `RestLayer → GrpcWebLayer → Routes`, outermost first, because tonic-web responds with 400 to every HTTP/1.1 request that is not
//! grpc-web. Serve the stack with axum or hyper-util. `tonic::transport::Server` applies its timeout outside all layers, so a REST
//! client would get HTTP 200 with a `grpc-status`. Put CORS and compression outside this layer. Put deadlines inside, where
//! `grpc-timeout` arrives as metadata.
//!
//! Wrap the whole router. `axum::Router::layer` wraps each route separately, after routing, so no REST path reaches the layer;
//! [`RestLayer`] panics in that case. With [`fall_through`](RestLayerBuilder::fall_through), requests without a rule reach the
//! pages and health checks of the inner router.
//!
//! # Features
//!
//! - **Routes**: the whole template grammar of http.proto, custom verbs, `additional_bindings`, `custom` patterns. Of the templates
//!   that match path and method, the most specific one wins. HEAD uses the rule for GET. The layer responds to OPTIONS unless a rule
//!   matches, and sends `Allow` with 405. A `**` captures the rest of the path unchanged, including an empty last segment: `/files/`
//!   is an empty name.
//! - **Requests**: fields from path, query and body. *The path always wins*: a query parameter for a field that the path binds is
//!   rejected, under either of its names, and so is another member of its oneof. A body may repeat the field with the same value,
//!   so that a client can read, edit and write back a resource; a different value is rejected. No other field may be set twice.
//!   JSON needs a JSON content type. A malformed `grpc-timeout` is rejected, so that no client waits without the deadline it asked
//!   for.
//! - **Replies**: ProtoJSON with proto field names, default values and 64-bit integers as strings. Metadata becomes headers; in
//!   unary replies, so does trailing metadata.
//! - **Errors**: `google.rpc.Status` with typed details, `WWW-Authenticate` on every 401, `Retry-After` from `RetryInfo`.
//!   `DebugInfo` is removed at any depth. [`layer_reasons`] lists the errors of the layer itself.
//! - **Server streams**: NDJSON, or server-sent events if `Accept` names them. The layer sends the status line with the first
//!   message. A later failure is a last line `{"error": …}` or an event `error`.
//! - **`google.api.HttpBody`** in requests, replies and streams.
//! - **Metrics and logs**: requests and responses have a [`MatchedRoute`] extension.
//!
//! # Bounds
//!
//! | input | bound | option |
//! |---|---|---|
//! | request body | 1 MiB | [`max_body_bytes`](RestLayerBuilder::max_body_bytes) |
//! | time until it has arrived | 10 s, or a smaller `grpc-timeout` | [`body_timeout`](RestLayerBuilder::body_timeout) |
//! | members and elements of its JSON | 65,536 | [`max_body_elements`](RestLayerBuilder::max_body_elements) |
//! | elements of one field | none | [`max_field_elements`](RestLayerBuilder::max_field_elements) |
//! | depth of its JSON, counted as protobuf decoders count | 96 levels | |
//! | query parameters | 256, each nested up to 16 levels | |
//! | path | 64 segments | |
//! | reply message | 64 MiB, 100 nested levels | |
//!
//! # Limitations
//!
//! - Client streaming has no mapping; a rule on such a method is an error of the build.
//! - The layer calls the service after the body has arrived, so limits and metrics inside the layer do not include that time. Its
//!   timeout for the body needs tokio's timer.
//! - A body for a rule without `body` is discarded while the call runs; it neither delays nor fails the call. If the response is
//!   ready first, the rest of the body is not read, and HTTP/1.1 closes the connection.
//! - The response to HEAD on a server stream does not wait for the first message, so it may miss a failure before that.
//! - Files of `edition = "2023"` and later are an error of the build: prost-reflect does not support them yet.
//! - A descriptor set also has the services of imported files, and the layer cannot know which ones are registered. Name yours with
//!   [`service`](RestLayerBuilder::service).
//! - A path variable cannot bind a field inside `google.protobuf.Any`, a wrapper, `google.api.HttpBody` or another message with a
//!   JSON form of its own; this is an error of the build.
//! - GET and HEAD rules with a `body` are an error of the build (RFC 9110 §9.3.1).
//! - Rules come from annotations only, not from service configuration in YAML.
//! - Literals match as written or fully percent-encoded, with escapes in either case. A path that escapes letters (`%63urrent`) is a
//!   different path. A path with a segment `.` or `..`, escaped or not, matches no rule.
//! - Extensions of proto2 messages are neither read nor printed. Groups are an error of the build.
//! - `*-bin` headers and metadata are dropped in both directions.
//! - FieldMask paths are in lowerCamelCase; with
//!   [`snake_case_field_masks`](RestLayerBuilder::snake_case_field_masks), requests may also use proto names. A path without a
//!   lowerCamelCase form, such as `address_1`, is rejected in requests and turns a reply into a 500.
//! - An `Any` in a reply whose type is not in the descriptor set turns the reply into a 500; in error details it is omitted.
//! - Compressed requests are rejected with 415, and replies are not compressed. Put a compression layer outside.
//! - Field names in error details (`field_violations`) are proto names.

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
