//! Sends random messages with fields of every kind through the layer and back, and compares them with `prost-reflect`, which
//! passes protobuf's conformance suite.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value, prost::Message,
};
use tonic_rest_layer::{RequestBody, RestLayer};
use tower::{Layer, ServiceExt, service_fn};

use super::harness::descriptor_set;

const MESSAGES: usize = 2_000;

/// A random number generator with a fixed seed, so that failures are reproducible.
struct Dice(u64);

impl Dice {
    /// splitmix64.
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// Numbers of every size, including the extremes.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << 63,
            _ => {
                let bits = self.below(64);
                self.roll() >> bits
            }
        }
    }

    fn text(&mut self) -> String {
        const PIECES: [&str; 12] = ["", "a", "\"", "\\", "\n", "\u{0}", "é", "😀", "\u{2028}", "{", "/", "\u{7f}"];
        (0..self.below(5)).map(|_| PIECES[self.below(12) as usize]).collect()
    }

    fn double(&mut self) -> f64 {
        match self.below(5) {
            0 => [0.0, -0.0, 0.1, 1e300, 5e-324, f64::INFINITY][self.below(6) as usize],
            1 => self.roll() as i32 as f64,
            _ => Some(f64::from_bits(self.roll())).filter(|value| !value.is_nan()).unwrap_or(1.5),
        }
    }

    fn scalar(&mut self, kind: &Kind, depth: u32) -> Value {
        match kind {
            Kind::Double => Value::F64(self.double()),
            Kind::Float => Value::F32(self.double() as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.number() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.number() as i64),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.number() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.number()),
            Kind::Bool => Value::Bool(self.below(2) == 1),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.roll().to_le_bytes()[..self.below(9) as usize].to_vec().into()),
            Kind::Enum(item) if item.full_name() == "google.protobuf.NullValue" => Value::EnumNumber(0),
            Kind::Enum(_) => Value::EnumNumber(self.below(4) as i32),
            Kind::Message(message) => Value::Message(self.message(message, depth + 1)),
        }
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let json = match descriptor.full_name() {
            "google.protobuf.Timestamp" => {
                let seconds = self.below(315_537_897_600) as i64 - 62_135_596_800;
                let nanos = [0, 1, 1_000, 1_000_000, 999_999_999][self.below(5) as usize];
                let mut time = DynamicMessage::new(descriptor.clone());
                time.set_field_by_name("seconds", Value::I64(seconds));
                time.set_field_by_name("nanos", Value::I32(nanos));
                return time;
            }
            "google.protobuf.Duration" => format!("\"{}.5s\"", self.number() as i32),
            "google.protobuf.FieldMask" => ["\"\"", "\"a,bC.d\""][self.below(2) as usize].to_owned(),
            "google.protobuf.Value" => {
                ["null", "1", "\"a\"", "[null]", "{\"a\": {}}"][self.below(5) as usize].to_owned()
            }
            "google.protobuf.Struct" => ["{}", "{\"b\": [1.5], \"a\": true}"][self.below(2) as usize].to_owned(),
            "google.protobuf.ListValue" => ["[]", "[1, [], {}]"][self.below(2) as usize].to_owned(),
            "google.protobuf.Any" => [
                r#"{"@type": "x/values.v1.Filter", "userId": "u"}"#,
                r#"{"@type": "x/google.protobuf.Timestamp", "value": "2024-01-02T03:04:05Z"}"#,
            ][self.below(2) as usize]
                .to_owned(),
            _ => return self.fields(descriptor, depth),
        };
        let mut deserializer = serde_json::Deserializer::from_str(&json);
        DynamicMessage::deserialize(descriptor.clone(), &mut deserializer).unwrap()
    }

    fn fields(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            if depth < 4 && self.below(3) == 0 {
                let value = self.field(&field, depth);
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, depth: u32) -> Value {
        if field.is_map() {
            let kind = field.kind();
            let entry = kind.as_message().unwrap();
            let entries = (0..self.below(3)).map(|_| {
                let key = match self.scalar(&entry.map_entry_key_field().kind(), depth) {
                    Value::Bool(key) => MapKey::Bool(key),
                    Value::I64(key) => MapKey::I64(key),
                    Value::String(key) => MapKey::String(key),
                    other => panic!("{other:?}: no key of this fixture"),
                };
                (key, self.scalar(&entry.map_entry_value_field().kind(), depth))
            });
            Value::Map(entries.collect())
        } else if field.is_list() {
            Value::List((0..self.below(4)).map(|_| self.scalar(&field.kind(), depth)).collect())
        } else {
            self.scalar(&field.kind(), depth)
        }
    }
}

/// Sends JSON through the layer to a service that echoes its request. Returns the message and the JSON of the response.
async fn echo(layer: &RestLayer, json: String) -> (Bytes, Bytes) {
    let (status, got, body) = try_echo(layer, json.clone()).await;
    assert_eq!(status, 200, "{json}: {body:?}");
    (got, body)
}

async fn try_echo(layer: &RestLayer, json: String) -> (u16, Bytes, Bytes) {
    let got = Arc::new(Mutex::new(Bytes::new()));
    let kept = Arc::clone(&got);
    let service = service_fn(move |request: Request<RequestBody<Full<Bytes>>>| {
        let kept = Arc::clone(&kept);
        async move {
            let frame = request.into_body().collect().await.unwrap().to_bytes();
            *kept.lock().unwrap() = frame.slice(5..);
            let mut end = HeaderMap::new();
            end.insert("grpc-status", HeaderValue::from_static("0"));
            let frames =
                futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(frame)), Ok(Frame::trailers(end))]);
            Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
        }
    });
    let request = Request::post("/x").header("content-type", "application/json").body(Full::from(json)).unwrap();
    let response = layer.layer(service).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let got = got.lock().unwrap().clone();
    (status, got, body)
}

/// The layer counts the depth of a body as decoders do, so that the service can decode what the layer accepts.
#[tokio::test]
async fn accepted_depths_are_decodable() {
    let descriptors = descriptor_set("values");
    let pool = DescriptorPool::decode(descriptors.as_slice()).unwrap();
    let layer = RestLayer::new(&descriptors).unwrap();
    let everything = pool.get_message_by_name("values.v1.Everything").unwrap();
    for (prefix, open, innermost, close) in [
        ("", r#"{"inner":"#, "{}", "}"),
        ("", r#"{"inner":"#, r#"{"at":"2024-01-02T03:04:05Z"}"#, "}"),
        ("", r#"{"any":{"@type":"x/values.v1.Everything","inner":"#, "{}", "}}"),
        (r#"{"any":"#, r#"{"@type":"x/values.v1.Everything","any":"#, "{}", "}"),
        (r#"{"object":"#, r#"{"a":"#, "{}", "}"),
        (r#"{"value":"#, r#"{"a":"#, "1", "}"),
        (r#"{"list":"#, "[", "[]", "]"),
        (r#"{"list":"#, r#"[{"a":"#, "null", "}]"),
    ] {
        let mut answers = std::collections::BTreeSet::new();
        for depth in 1..110 {
            let end = if prefix.is_empty() { "" } else { "}" };
            let json = format!("{prefix}{}{innermost}{}{end}", open.repeat(depth), close.repeat(depth));
            let (status, bound, printed) = try_echo(&layer, json.clone()).await;
            assert!(status == 200 || status == 400, "{status} at depth {depth}: {json} {printed:?}");
            answers.insert(status);
            if status == 200 {
                DynamicMessage::decode(everything.clone(), bound).unwrap();
            }
        }
        assert_eq!(answers.into_iter().collect::<Vec<_>>(), [200, 400], "{open}");
    }
}

#[tokio::test]
async fn messages_round_trip() {
    let descriptors = descriptor_set("values");
    let pool = DescriptorPool::decode(descriptors.as_slice()).unwrap();
    let layer = RestLayer::new(&descriptors).unwrap();
    let everything = pool.get_message_by_name("values.v1.Everything").unwrap();
    let mut dice = Dice(1);
    for _ in 0..MESSAGES {
        let message = dice.message(&everything, 0);
        // As JSON: the `Debug` output of a recursive message type does not terminate.
        let text = serde_json::to_string(&message).unwrap();
        let (bound, printed) = echo(&layer, text.clone()).await;
        let decoded = DynamicMessage::decode(everything.clone(), bound).unwrap();
        assert_eq!(serde_json::to_value(&decoded).unwrap(), serde_json::to_value(&message).unwrap(), "{text}");

        let mut deserializer = serde_json::Deserializer::from_slice(&printed);
        let read = DynamicMessage::deserialize(everything.clone(), &mut deserializer).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&message).unwrap(), "{printed:?}");

        let (bound, again) = echo(&layer, String::from_utf8(printed.to_vec()).unwrap()).await;
        assert_eq!(again, printed);
        let decoded = DynamicMessage::decode(everything.clone(), bound).unwrap();
        assert_eq!(serde_json::to_value(&decoded).unwrap(), serde_json::to_value(&message).unwrap(), "{text}");
    }
}

/// The response to arbitrary bytes of a service is valid JSON: a message or an error with status 500.
#[tokio::test]
async fn arbitrary_replies_do_not_panic() {
    let descriptors = descriptor_set("values");
    let pool = DescriptorPool::decode(descriptors.as_slice()).unwrap();
    let layer = RestLayer::new(&descriptors).unwrap();
    let everything = pool.get_message_by_name("values.v1.Everything").unwrap();
    let mut dice = Dice(2);
    for _ in 0..MESSAGES {
        let mut message = dice.message(&everything, 0).encode_to_vec();
        for _ in 0..dice.below(4) {
            if !message.is_empty() {
                let position = dice.below(message.len() as u64) as usize;
                message[position] = dice.roll() as u8;
            }
        }
        let frame = Bytes::from([&[0], (message.len() as u32).to_be_bytes().as_slice(), &message].concat());
        let service = service_fn(move |_: Request<RequestBody<Full<Bytes>>>| {
            let mut end = HeaderMap::new();
            end.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [Ok::<_, Infallible>(Frame::data(frame.clone())), Ok(Frame::trailers(end))];
            std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames)))))
        });
        let response = layer.layer(service).oneshot(Request::get("/x").body(Full::default()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(status == 200 || status == 500, "{status}: {body:?}");
        serde_json::from_slice::<serde_json::Value>(&body).unwrap();
    }
}

/// Arbitrary requests never cause a panic or a 5xx.
#[tokio::test]
async fn arbitrary_requests_do_not_panic() {
    const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "OPTIONS", "BREW"];
    const PIECES: [&str; 24] = [
        "/",
        "x",
        "tags",
        "%2F",
        "%2e",
        "%",
        "%C3",
        "%A9",
        ":",
        "?",
        "&",
        "=",
        ".",
        "inner",
        "b=true",
        "seq=1e9",
        "at=",
        "kinds=9",
        "v1",
        "any",
        "+",
        "f.user_id",
        "é",
        "%00",
    ];
    let descriptors = descriptor_set("values");
    let pool = DescriptorPool::decode(descriptors.as_slice()).unwrap();
    let layer = RestLayer::new(&descriptors).unwrap();
    let everything = pool.get_message_by_name("values.v1.Everything").unwrap();
    let service = service_fn(|_: Request<RequestBody<Full<Bytes>>>| {
        let mut end = HeaderMap::new();
        end.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(end))];
        std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames)))))
    });
    let service = layer.layer(service);
    let mut dice = Dice(3);
    let mut answered = std::collections::BTreeMap::new();
    for _ in 0..MESSAGES {
        let mut target = ["/x", "/x/", "/x/tags", "/x?", "/v1/any"][dice.below(5) as usize].to_owned();
        for _ in 0..dice.below(6) {
            target.push_str(PIECES[dice.below(24) as usize]);
        }
        let mut json = serde_json::to_vec(&dice.message(&everything, 0)).unwrap();
        for _ in 0..dice.below(3) {
            let position = dice.below(json.len() as u64) as usize;
            json[position] = dice.roll() as u8;
        }
        let request = Request::builder().method(METHODS[dice.below(6) as usize]).uri(&target);
        // `http` rejects invalid URIs before the layer.
        let Ok(request) = request.header("content-type", "application/json").body(Full::from(json)) else { continue };
        let response = service.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        assert!(status < 500, "{status} to {target}");
        *answered.entry(status).or_insert(0) += 1;
    }
    for status in [200, 204, 400, 404, 405] {
        assert!(answered.contains_key(&status), "{status} was never answered: {answered:?}");
    }
}
