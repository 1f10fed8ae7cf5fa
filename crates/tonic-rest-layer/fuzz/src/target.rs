//! Properties that hold for every request. The fuzzer generates requests; a test replays its corpus.
//!
//! An input has the format of HTTP: a line with method and target, header lines, an empty line, the body.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http_body::Body;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::StreamBody;
use prost_reflect::DescriptorPool;
use prost_reflect::DynamicMessage;
use prost_reflect::MethodDescriptor;
use tonic_rest_layer::RestLayer;
use tower::Layer;
use tower::ServiceExt;
use tower::service_fn;

/// Fields of every kind; `HttpBody` in both directions; queries; variables with several segments; verbs, streams and oneofs; unusual
/// protos.
const PROTOS: [&str; 6] =
    ["values.proto", "library.proto", "lists.proto", "names.proto", "sessions.proto", "foreign.proto"];

/// The layer in front of a service that echoes its input, if its method can.
pub(crate) struct Target {
    layer: RestLayer,
    pool: DescriptorPool,
}

/// A call that the service received: its method and its request.
type Call = (MethodDescriptor, DynamicMessage);

impl Target {
    /// Compiles the tests' protos, found below the repository's root.
    pub(crate) fn new(root: &Path) -> Target {
        let mut compiler = protox::Compiler::new([root.join("tests/proto"), root.join("proto")]).expect("the folders");
        compiler.include_imports(true).open_files(PROTOS).expect("the protos compile");
        let set = compiler.encode_file_descriptor_set();
        let layer = RestLayer::builder().base_path("/").base_path("/api/v1").ignore_query_parameter("utm");
        // One imported file has invalid rules.
        let layer = layer.skip_faulty_rules();
        Target {
            layer: layer.build(&set).expect("the rules work"),
            pool: DescriptorPool::decode(set.as_slice()).expect("a descriptor set"),
        }
    }

    /// Panics if a property fails.
    pub(crate) fn check(&self, input: &[u8]) {
        let Some(request) = parse(input) else { return };
        let is_head = request.method() == http::Method::HEAD;
        let (status, answer, call) = self.send(request);
        assert!(status < 500, "{status}: {}", String::from_utf8_lossy(&answer));
        let Some((method, message)) = call else {
            assert_ne!(status, 200, "an answer without a call");
            return;
        };
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        let is_whole = method.input().full_name() == "values.v1.Everything" && method.name() != "Tags" && !is_head;
        if is_whole {
            self.check_that_it_reads_back(&message, &answer);
        }
    }

    /// bind(render(message)) = message.
    fn check_that_it_reads_back(&self, message: &DynamicMessage, printed: &Bytes) {
        let request = Request::post("/x").header("content-type", "application/json").body(Full::from(printed.clone()));
        let (status, again, call) = self.send(request.expect("a request"));
        assert_eq!(status, 200, "{printed:?} is printed and not read: {again:?}");
        let (_, read) = call.expect("a call");
        assert_eq!(&again, printed, "what is printed is printed again");
        if read != *message {
            // A NaN does not equal itself; its text does.
            let text = |message: &DynamicMessage| serde_json::to_value(message).map_err(|error| error.to_string());
            assert_eq!(text(&read), text(message), "{printed:?}");
        }
    }

    fn send(&self, request: Request<Full<Bytes>>) -> (u16, Bytes, Option<Call>) {
        let call = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&call);
        let pool = self.pool.clone();
        let service = service_fn(move |request: Request<_>| {
            let (seen, pool) = (Arc::clone(&seen), pool.clone());
            async move {
                let (call, response) = serve(&pool, request).await;
                *seen.lock().expect("no panic before") = Some(call);
                Ok::<_, Infallible>(response)
            }
        });
        let answer = async {
            let response = self.layer.layer(service).oneshot(request).await.unwrap_or_else(|never| match never {});
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.expect("an answer to its end").to_bytes())
        };
        // Nothing waits, so the future is ready immediately.
        let (status, body) = answer.now_or_never().expect("an answer at once");
        let call = call.lock().expect("no panic before").take();
        (status, body, call)
    }
}

/// Decodes the frame, as the service behind the layer would, and echoes the message if the method can.
async fn serve<B: Body<Data = Bytes>>(
    pool: &DescriptorPool,
    request: Request<B>,
) -> (Call, Response<impl Body<Data = Bytes, Error = Infallible> + Send + 'static + use<B>>) {
    let (service, name) = request.uri().path()[1..].split_once('/').expect("a gRPC path");
    let service = pool.get_service_by_name(service).expect("a service");
    let method = service.methods().find(|method| method.name() == name).expect("a method");
    assert_eq!(request.method(), http::Method::POST);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let Ok(frame) = request.into_body().collect().await else { panic!("a frame") };
    let frame = frame.to_bytes();
    assert_eq!(frame[0], 0);
    assert_eq!(u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize, frame.len() - 5);
    let message = DynamicMessage::decode(method.input(), frame.slice(5..)).expect("accepted requests are decodable");
    let reply = if method.input() == method.output() { frame } else { Bytes::from_static(&[0; 5]) };
    let mut end = HeaderMap::new();
    end.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = stream::iter([Ok::<_, Infallible>(Frame::data(reply)), Ok(Frame::trailers(end))]);
    ((method, message), Response::new(StreamBody::new(frames)))
}

/// `None` if `http` refuses it, so that it never reaches the layer.
fn parse(input: &[u8]) -> Option<Request<Full<Bytes>>> {
    let (line, mut rest) = split(input)?;
    let space = line.iter().position(|byte| *byte == b' ')?;
    let mut request = Request::builder().method(&line[..space]).uri(&line[space + 1..]);
    while let Some((line, after)) = split(rest) {
        rest = after;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    let request = request.body(Full::from(Bytes::copy_from_slice(rest))).ok()?;
    // gRPC requests are passed on unchanged.
    let grpc = request.headers().get("content-type").is_some_and(|value| {
        value.as_bytes().get(..16).is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
    });
    if grpc { None } else { Some(request) }
}

fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((&input[..end], &input[end + 1..]))
}
