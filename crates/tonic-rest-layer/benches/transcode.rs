//! The cost of the layer per call: `cargo bench --bench transcode`.
//!
//! Calls the same method over gRPC and over REST, through the same stack, without a socket. The difference between the two is the
//! cost of the layer. `routing` compares tables of 10 and 1,000 routes.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::convert::Infallible;
use std::fmt::Write;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use criterion::BatchSize;
use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use futures_util::FutureExt;
use http::Request;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::Full;
use prost::Message;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_prost::ProstCodec;
use tonic_rest_layer::RequestBody;
use tonic_rest_layer::ResponseBody;
use tonic_rest_layer::RestLayer;
use tonic_rest_layer::RestService;
use tonic_web::GrpcWebLayer;
use tonic_web::GrpcWebService;
use tower::Layer;
use tower::Service;
use tower::ServiceExt;
use tower::service_fn;

/// The approximate size of an access token.
const ACCESS_TOKEN_BYTES: usize = 520;

/// Small, so that the memory of the prepared requests does not affect the measurement.
const BATCH: BatchSize = BatchSize::NumIterations(64);

/// The messages, and the rules for them.
const PROTO: &str = r#"
syntax = "proto3";
package bench.v1;
import "google/api/annotations.proto";
service SessionService {
  rpc RevokeCurrent(RevokeCurrentRequest) returns (RevokeCurrentResponse) {
    option (google.api.http) = {delete: "/auth/sessions/current"};
  }
  rpc RefreshSession(RefreshSessionRequest) returns (RefreshSessionResponse) {
    option (google.api.http) = {post: "/auth/sessions/current/refresh" body: "*"};
  }
}
message RevokeCurrentRequest {}
message RevokeCurrentResponse { bool success = 1; optional bool already_revoked = 2; }
message RefreshSessionRequest { optional string refresh_token = 1; }
message RefreshSessionResponse { string access_token = 1; string refresh_token = 2; int64 expires_in = 3; }
"#;

#[derive(Clone, PartialEq, Message)]
struct RevokeCurrentRequest {}

#[derive(Clone, PartialEq, Message)]
struct RevokeCurrentResponse {
    #[prost(bool, tag = "1")]
    success: bool,
    #[prost(bool, optional, tag = "2")]
    already_revoked: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct RefreshSessionRequest {
    #[prost(string, optional, tag = "1")]
    refresh_token: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct RefreshSessionResponse {
    #[prost(string, tag = "1")]
    access_token: String,
    #[prost(string, tag = "2")]
    refresh_token: String,
    #[prost(int64, tag = "3")]
    expires_in: i64,
}

/// Responds immediately, so that only the stack is measured. Written like tonic's generated code.
#[derive(Clone)]
struct Sessions {
    access_token: Arc<str>,
}

impl NamedService for Sessions {
    const NAME: &'static str = "bench.v1.SessionService";
}

impl Service<Request<Body>> for Sessions {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let access_token = Arc::clone(&self.access_token);
        match request.uri().path() {
            "/bench.v1.SessionService/RevokeCurrent" => Box::pin(async move {
                let revoke = service_fn(|_: tonic::Request<RevokeCurrentRequest>| {
                    ready(Ok(tonic::Response::new(RevokeCurrentResponse { success: true, already_revoked: None })))
                });
                Ok(Grpc::new(ProstCodec::default()).unary(revoke, request).await)
            }),
            _ => Box::pin(async move {
                let refresh = service_fn(move |request: tonic::Request<RefreshSessionRequest>| {
                    ready(Ok(tonic::Response::new(RefreshSessionResponse {
                        access_token: access_token.to_string(),
                        refresh_token: request.into_inner().refresh_token.unwrap_or_default(),
                        expires_in: 600,
                    })))
                });
                Ok(Grpc::new(ProstCodec::default()).unary(refresh, request).await)
            }),
        }
    }
}

type Stack = RestService<GrpcWebService<Routes>>;

fn stack() -> Stack {
    let routes = Routes::new(Sessions { access_token: "a".repeat(ACCESS_TOKEN_BYTES).into() });
    RestLayer::new(&compile(PROTO.to_owned())).unwrap().layer(GrpcWebLayer::new().layer(routes.prepare()))
}

fn grpc(method: &str, message: &impl Message) -> Request<Full<Bytes>> {
    let mut frame = vec![0; 5];
    message.encode(&mut frame).unwrap();
    let length = frame.len() as u32 - 5;
    frame[1..5].copy_from_slice(&length.to_be_bytes());
    Request::post(format!("http://localhost/bench.v1.SessionService/{method}"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "bench/1")
        .header("authorization", "Bearer token")
        .body(Full::from(frame))
        .unwrap()
}

fn rest(method: &str, path: &str, json: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://localhost{path}"))
        .version(http::Version::HTTP_2)
        .header("accept", "*/*")
        .header("user-agent", "bench/1")
        .header("authorization", "Bearer token");
    if !json.is_empty() {
        request = request.header("content-type", "application/json").header("content-length", json.len());
    }
    request.body(Full::from(json)).unwrap()
}

/// Runs a call to the end of its response. Nothing waits, so no runtime is measured.
fn call(stack: Stack, request: Request<Full<Bytes>>) -> Bytes {
    let read = async {
        let response = stack.oneshot(request).await.unwrap_or_else(|never| match never {});
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap().to_bytes()
    };
    read.now_or_never().expect("the stub does not wait")
}

fn empty_message(criterion: &mut Criterion) {
    let stack = stack();
    let mut group = criterion.benchmark_group("empty_message");
    group.bench_function("grpc", |bencher| {
        let request = || (stack.clone(), grpc("RevokeCurrent", &RevokeCurrentRequest {}));
        bencher.iter_batched(request, |(stack, request)| call(stack, request), BATCH);
    });
    group.bench_function("rest", |bencher| {
        let request = || (stack.clone(), rest("DELETE", "/auth/sessions/current", ""));
        bencher.iter_batched(request, |(stack, request)| call(stack, request), BATCH);
    });
    group.finish();
}

fn small_message(criterion: &mut Criterion) {
    const TOKEN: &str = "sr_k1_0199c6f6e1f07a0c8d3c6c1c5f7e2d91_12_1_q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";
    const JSON: &str = r#"{"refresh_token":"sr_k1_0199c6f6e1f07a0c8d3c6c1c5f7e2d91_12_1_q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA"}"#;
    let stack = stack();
    let answer = call(stack.clone(), rest("POST", "/auth/sessions/current/refresh", JSON));
    assert!(answer.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()), "both transports return the same");
    let message = RefreshSessionRequest { refresh_token: Some(TOKEN.to_owned()) };
    let mut group = criterion.benchmark_group("small_message");
    group.bench_function("grpc", |bencher| {
        let request = || (stack.clone(), grpc("RefreshSession", &message));
        bencher.iter_batched(request, |(stack, request)| call(stack, request), BATCH);
    });
    group.bench_function("rest", |bencher| {
        let request = || (stack.clone(), rest("POST", "/auth/sessions/current/refresh", JSON));
        bencher.iter_batched(request, |(stack, request)| call(stack, request), BATCH);
    });
    group.finish();
}

/// A service with `routes` methods, half of them below a variable.
fn table(routes: usize) -> RestLayer {
    let mut proto = String::from(
        "syntax = \"proto3\";\npackage table.v1;\nimport \"google/api/annotations.proto\";\n\
         message M { string id = 1; }\nservice Table {\n",
    );
    for number in 0..routes {
        let path = if number % 2 == 0 { format!("/v1/r{number}/{{id}}/end") } else { format!("/v1/{{id}}/s{number}") };
        writeln!(proto, "rpc R{number}(M) returns (M) {{ option (google.api.http) = {{get: \"{path}\"}}; }}").unwrap();
    }
    proto.push('}');
    RestLayer::new(&compile(proto)).unwrap()
}

fn compile(proto: String) -> Vec<u8> {
    let mut files = protox::file::ChainFileResolver::new();
    files.add(Text(proto));
    files.add(protox::file::IncludeFileResolver::new(concat!(env!("CARGO_MANIFEST_DIR"), "/proto").into()));
    files.add(protox::file::GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(files);
    compiler.include_imports(true).open_file("bench.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

struct Text(String);

impl protox::file::FileResolver for Text {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        match name {
            "bench.proto" => protox::file::File::from_source(name, &self.0),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    for routes in [10, 1_000] {
        // The service does nothing, so only the layer is measured.
        let service = table(routes).layer(service_fn(|_: Request<RequestBody<Full<Bytes>>>| {
            let response = Response::builder().header("grpc-status", "5").body(Full::<Bytes>::default());
            std::future::ready(Ok::<_, Infallible>(response.unwrap()))
        }));
        for path in [format!("/v1/r{}/x/end", routes - 2), format!("/v1/x/s{}", routes - 1)] {
            let kind = if path.ends_with("end") { "literal" } else { "variable" };
            group.bench_function(format!("{kind}/{routes}"), |bencher| {
                bencher.iter_batched(
                    || (service.clone(), rest("GET", &path, "")),
                    |(service, request)| {
                        let response: Response<ResponseBody<_>> =
                            service.oneshot(request).now_or_never().unwrap().unwrap();
                        assert_eq!(response.status(), 404);
                        response
                    },
                    BATCH,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, empty_message, small_message, routing);
criterion_main!(benches);
