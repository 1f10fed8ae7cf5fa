//! The three protocols, behind one interface: gRPC by tonic's own client, grpc-web over HTTP/1.1, and REST as JSON.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use serde_json::Value;
use sessiond::pb;
use tonic::{
    Code, Status,
    body::Body,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    metadata::MetadataMap,
};
use tonic_types::StatusExt as _;
use tonic_web::{GrpcWebCall, GrpcWebClientLayer, GrpcWebClientService};
use tower::ServiceBuilder;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Grpc,
    GrpcWeb,
    Rest,
}

impl Wire {
    pub const ALL: [Self; 3] = [Self::Grpc, Self::GrpcWeb, Self::Rest];
}

/// A refusal, in one form for all protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reason: String,
    pub code: Code,
    /// The invalid fields.
    pub fields: Vec<String>,
    /// The time to wait before a retry.
    pub retry_after: Option<Duration>,
    /// Only over REST.
    pub http: Option<StatusCode>,
    /// `Retry-After`, in seconds. Only over REST.
    pub retry_after_seconds: Option<u64>,
}

impl Refused {
    /// The connection ended before the answer arrived.
    fn without_answer(error: &(dyn Error + Send + Sync)) -> Self {
        let (reason, code) = (format!("no answer: {error:?}"), Code::Unavailable);
        Self { reason, code, fields: vec![], retry_after: None, http: None, retry_after_seconds: None }
    }
}

pub(super) type GrpcClient = Client<HttpConnector, Body>;
pub(super) type WebClient = GrpcWebClientService<Client<HttpConnector, GrpcWebCall<Body>>>;

/// A client of each kind.
pub struct Wires {
    pub addr: SocketAddr,
    pub(super) grpc: GrpcClient,
    pub(super) web: WebClient,
    pub(super) rest: Client<HttpConnector, Full<Bytes>>,
    rest_h2: Client<HttpConnector, Full<Bytes>>,
    pool: DescriptorPool,
}

impl Wires {
    pub fn to(addr: SocketAddr) -> Self {
        Self::from(None, addr)
    }

    /// From this address of the machine.
    pub fn from(local: Option<IpAddr>, addr: SocketAddr) -> Self {
        let client = || Client::builder(TokioExecutor::new());
        // Without it, every second packet waits for an acknowledgement: 40 ms a call.
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_local_address(local);
        let connector = || connector.clone();
        Self {
            addr,
            grpc: client().http2_only(true).build(connector()),
            web: ServiceBuilder::new().layer(GrpcWebClientLayer::new()).service(client().build(connector())),
            rest: client().build(connector()),
            rest_h2: client().http2_only(true).build(connector()),
            pool: DescriptorPool::decode(pb::DESCRIPTOR_SET).expect("the descriptors decode"),
        }
    }

    pub async fn call<A, B>(&self, wire: Wire, method: &str, headers: HeaderMap, request: &A) -> Result<B, Refused>
    where
        A: Message + Clone + 'static,
        B: Message + Default + 'static,
    {
        match wire {
            Wire::Grpc => self.grpc(method, headers, request.clone(), tonic_prost::ProstCodec::default()).await,
            Wire::GrpcWeb => self.grpc_web(method, headers, request.clone(), tonic_prost::ProstCodec::default()).await,
            Wire::Rest => {
                let descriptor = self.method(method);
                let message = DynamicMessage::decode(descriptor.input(), request.encode_to_vec().as_slice());
                let json = self.rest_call(method, headers, &message.expect("decodes")).await?;
                let message = DynamicMessage::deserialize(descriptor.output(), json).expect("ProtoJSON");
                Ok(B::decode(message.encode_to_vec().as_slice()).expect("decodes"))
            }
        }
    }

    /// A call with ProtoJSON in both directions, on any protocol.
    pub async fn ask(&self, wire: Wire, method: &str, headers: HeaderMap, request: &Value) -> Result<Value, Refused> {
        let descriptor = self.method(method);
        let message = DynamicMessage::deserialize(descriptor.input(), request).expect("ProtoJSON");
        let codec = DynamicCodec(descriptor.output());
        let answer = match wire {
            Wire::Grpc => self.grpc(method, headers, message, codec).await?,
            Wire::GrpcWeb => self.grpc_web(method, headers, message, codec).await?,
            Wire::Rest => return self.rest_call(method, headers, &message).await,
        };
        Ok(json(&answer))
    }

    async fn grpc<C: Codec<Encode: Sync, Decode: Sync>>(
        &self,
        method: &str,
        headers: HeaderMap,
        request: C::Encode,
        codec: C,
    ) -> Result<C::Decode, Refused> {
        unary(Grpc::with_origin(self.grpc.clone(), self.origin()), method, headers, request, codec).await
    }

    async fn grpc_web<C: Codec<Encode: Sync, Decode: Sync>>(
        &self,
        method: &str,
        headers: HeaderMap,
        request: C::Encode,
        codec: C,
    ) -> Result<C::Decode, Refused> {
        unary(Grpc::with_origin(self.web.clone(), self.origin()), method, headers, request, codec).await
    }

    /// A plain HTTP/1.1 request.
    pub async fn http(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        self.try_http(method, path, headers, body).await.expect("answers")
    }

    /// The same, if the server may be killed before it has answered.
    pub async fn try_http(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn Error + Send + Sync>> {
        let response = self.rest.request(self.request(method, path, headers, body.into())).await?;
        let (head, body) = response.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    /// The same over HTTP/2.
    pub async fn http2(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        collect(self.rest_h2.request(self.request(method, path, headers, body.into())).await.expect("answers")).await
    }

    async fn rest_call(&self, method: &str, headers: HeaderMap, message: &DynamicMessage) -> Result<Value, Refused> {
        let Value::Object(mut fields) = json(message) else { panic!("a message is an object") };
        let (verb, mut path) = match method {
            "RevokeCurrent" => (Method::DELETE, "/auth/sessions/current".to_owned()),
            "CreateSession" => (Method::POST, "/auth/sessions".to_owned()),
            "RefreshSession" => (Method::POST, "/auth/sessions/current/refresh".to_owned()),
            "ListSessions" => (Method::GET, "/auth/sessions".to_owned()),
            "GetCurrentSession" => (Method::GET, "/auth/sessions/current".to_owned()),
            "RevokeSession" => (Method::DELETE, format!("/auth/sessions/{}", segment(fields.remove("id")))),
            "RevokeAllSessions" => (Method::POST, "/auth/sessions:revokeAll".to_owned()),
            "RevokeProjectSessions" => (Method::POST, "/auth/sessions:revokeProject".to_owned()),
            "UpdateSession" => {
                let session = fields.get_mut("session").and_then(Value::as_object_mut).expect("a session");
                (Method::PATCH, format!("/auth/sessions/{}", segment(session.remove("id"))))
            }
            "EraseUser" => (Method::POST, "/auth/users:erase".to_owned()),
            "IntrospectToken" => (Method::POST, "/auth/tokens:introspect".to_owned()),
            "BatchIntrospect" => (Method::POST, "/auth/tokens:batchIntrospect".to_owned()),
            other => panic!("{other} has no REST path here"),
        };
        let mut headers = headers;
        let mut body = Bytes::new();
        let json = http::HeaderValue::from_static("application/json");
        if verb == Method::POST {
            headers.insert(http::header::CONTENT_TYPE, json);
            body = Value::Object(fields).to_string().into();
        } else {
            if verb == Method::PATCH {
                headers.insert(http::header::CONTENT_TYPE, json);
                body = fields.remove("session").expect("a session").to_string().into();
            }
            path = query(path, &fields);
        }
        let response =
            self.try_http(verb, &path, headers, body).await.map_err(|error| Refused::without_answer(&*error))?;
        let json: Value = serde_json::from_slice(response.body()).expect("a JSON body");
        if response.status() != StatusCode::OK {
            let header = response.headers().get(http::header::RETRY_AFTER);
            let retry_after_seconds = header.map(|value| value.to_str().expect("text").parse().expect("a number"));
            return Err(Refused { retry_after_seconds, ..refused_json(response.status(), &json) });
        }
        // If `response_body` names a field, the body is that field's value.
        Ok(match method {
            "GetCurrentSession" | "UpdateSession" => serde_json::json!({"session": json}),
            _ => json,
        })
    }

    pub(super) fn request(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://{}{path}", self.addr).parse().expect("a URI");
        *request.headers_mut() = headers;
        request
    }

    pub(super) fn method(&self, name: &str) -> MethodDescriptor {
        let service = self.pool.get_service_by_name("sessiond.v1.SessionService").expect("the service");
        service.methods().find(|method| method.name() == name).expect("the method")
    }

    pub(super) fn origin(&self) -> Uri {
        format!("http://{}", self.addr).parse().expect("a URI")
    }
}

async fn collect(response: Response<Incoming>) -> Response<Bytes> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Response::from_parts(head, body)
}

/// A message as REST clients write it.
fn json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).expect("serializes")
}

/// Messages whose type is known only by its descriptor.
struct DynamicCodec(MessageDescriptor);

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

async fn unary<S, R, C>(
    mut client: Grpc<S>,
    method: &str,
    headers: HeaderMap,
    request: C::Encode,
    codec: C,
) -> Result<C::Decode, Refused>
where
    S: tonic::client::GrpcService<Body, ResponseBody = R>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C: Codec<Encode: Sync, Decode: Sync>,
{
    let path = PathAndQuery::try_from(format!("/sessiond.v1.SessionService/{method}")).expect("a path");
    let request = tonic::Request::from_parts(MetadataMap::from_headers(headers), http::Extensions::new(), request);
    if client.ready().await.is_err() {
        panic!("the client is not ready");
    }
    let answer = client.unary(request, path, codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| refused(&status))
}

pub(super) fn refused(status: &Status) -> Refused {
    let details = status.get_error_details();
    let reason = details.error_info().map_or_else(|| format!("{status:?}"), |info| info.reason.clone());
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    let fields = violations.into_iter().map(|violation| violation.field).collect();
    let retry_after = details.retry_info().and_then(|info| info.retry_delay);
    Refused { reason, code: status.code(), fields, retry_after, http: None, retry_after_seconds: None }
}

pub fn refused_json(http: StatusCode, json: &Value) -> Refused {
    let details = json["details"].as_array().cloned().unwrap_or_default();
    let of_type =
        |name: &str| details.iter().find(|one| one["@type"] == format!("type.googleapis.com/google.rpc.{name}"));
    let reason =
        of_type("ErrorInfo").map_or_else(|| json.to_string(), |info| info["reason"].as_str().unwrap_or("").to_owned());
    let violations = of_type("BadRequest").map(|bad| bad["field_violations"].clone());
    let violations = violations.and_then(|list| list.as_array().cloned()).unwrap_or_default();
    let fields = violations.iter().map(|one| one["field"].as_str().unwrap_or("").to_owned()).collect();
    let code = Code::from_i32(json["code"].as_i64().and_then(|code| code.try_into().ok()).unwrap_or(2));
    let retry_after = of_type("RetryInfo").map(|info| info["retry_delay"].as_str().unwrap_or("").trim_end_matches('s'));
    let retry_after = retry_after.map(|seconds| Duration::from_secs_f64(seconds.parse().expect("a number")));
    Refused { reason, code, fields, retry_after, http: Some(http), retry_after_seconds: None }
}

/// A value as one path segment.
fn segment(value: Option<Value>) -> String {
    let text = value.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The path with these fields as its query.
fn query(path: String, fields: &serde_json::Map<String, Value>) -> String {
    let pairs = fields.iter().flat_map(|(name, value)| match value {
        Value::Array(items) => items.iter().map(|item| (name, item)).collect(),
        one => vec![(name, one)],
    });
    let pairs: Vec<String> = pairs
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{name}={}", percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC))
        })
        .collect();
    if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
}
