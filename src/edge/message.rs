//! Opens the message of a unary call before it is decoded: one frame, inflated within the byte budget, with a bounded number of
//! elements. What is left for tonic is small, whatever the client has sent.
//!
//! tonic decodes every frame of a unary call's body before it answers, inflates each within its size limit, and does so without a
//! pause. And two bytes of a message can be an empty element that takes seventy bytes of memory. So what a message may have depends
//! on the method, and that of an unknown method is not read.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BufMut as _;
use bytes::Bytes;
use bytes::BytesMut;
use flate2::read::GzDecoder;
use http::HeaderMap;
use prost::encoding::WireType;
use prost::encoding::decode_key;
use prost::encoding::decode_varint;
use prost_reflect::DescriptorPool;
use prost_reflect::Kind;
use prost_reflect::MessageDescriptor;

use super::arrival::ByteLease;
use super::class;
use super::media;
use crate::pb;

/// The most members and elements of a JSON body: several times what any of our messages may have.
pub(super) const JSON_ELEMENTS_MAX: usize = 8_192;

/// The same for a message, those of messages in it included. A member of a map is three: an entry, a key and a value.
const ELEMENTS_MAX: usize = 3 * JSON_ELEMENTS_MAX;

/// The same for the call of a proxy, which is mostly the headers of a request, each of three elements: an entry, a name and a value.
/// Envoy passes on 100 headers by default.
const CHECK_ELEMENTS_MAX: usize = 4_096;

/// The largest message of a call that anybody may make often: a sign-out, and the headers of a request with an access token and
/// cookies. And the most to which another is inflated: several times what any may have. One that is sent as large as it is may have
/// more, so that its caller learns which field is too large.
const BYTES_MAX: usize = 128 * 1024;

/// The same for a probe, which has the name of a service.
const PROBE_BYTES_MAX: usize = 1_024;
const PROBE_ELEMENTS_MAX: usize = 8;

/// The method whose message has many tokens.
const BATCH: &str = "/sessiond.v1.SessionService/BatchIntrospect";

/// How deep messages may be in each other, as in prost, which rejects deeper ones.
const DEPTH_MAX: usize = 100;

/// A frame's flag and length.
const FRAME_HEADER: usize = 5;

/// All methods.
static METHODS: LazyLock<Methods> = LazyLock::new(|| {
    let (mut methods, mut known) = (Methods::default(), HashMap::new());
    for set in [pb::DESCRIPTOR_SET, pb::envoy::DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
        let pool = DescriptorPool::decode(set).expect("the descriptors were compiled in");
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let input = methods.shape(&method.input(), &mut known);
            methods.inputs.insert(path, input);
        }
    }
    methods
});

/// The methods, and what their messages consist of: only what counting their elements needs.
#[derive(Default)]
struct Methods {
    /// The shape of each method's input, by path.
    inputs: HashMap<String, usize>,
    shapes: Vec<Shape>,
}

/// The fields of a message that are messages: their numbers, and their shapes.
type Shape = HashMap<u32, usize>;

impl Methods {
    /// The shape of a message, which is made unless it is known by its name.
    fn shape(&mut self, message: &MessageDescriptor, known: &mut HashMap<String, usize>) -> usize {
        if let Some(at) = known.get(message.full_name()) {
            return *at;
        }
        // First, because a message may be in itself.
        let at = self.shapes.len();
        known.insert(message.full_name().to_owned(), at);
        self.shapes.push(Shape::new());
        for field in message.fields() {
            if let Kind::Message(inner) = field.kind() {
                let inner = self.shape(&inner, known);
                self.shapes[at].insert(field.number(), inner);
            }
        }
        at
    }
}

/// Reads the descriptors, so that no request has to wait for it.
pub(super) fn prepare() {
    LazyLock::force(&METHODS);
}

/// The path of a method, if there is one.
pub(super) fn known_path(path: &str) -> Option<&'static str> {
    METHODS.inputs.get_key_value(path).map(|(path, _)| path.as_str())
}

/// What the message of a method may have.
#[derive(Clone, Copy)]
pub(super) struct MessageLimits {
    /// Its size as it arrives, with the frame's header.
    pub(super) bytes_max: usize,
    /// The same when inflated; `None` if it must not be compressed.
    inflated_max: Option<usize>,
    elements_max: usize,
    /// The shape of the message.
    input: usize,
}

impl MessageLimits {
    /// The limits for a method. `large` is the size of the largest message, for a call with many tokens, and for one that a proxy
    /// makes for many clients. `None` if there is no such method: then its message is not read.
    pub(super) fn of(path: &str, large: usize, is_for_many: bool) -> Option<Self> {
        let input = *METHODS.inputs.get(path)?;
        let is_check = class::is_check(path);
        Some(if class::is_health(path) {
            // tonic's service for the health accepts no compression, and says so.
            Self { bytes_max: PROBE_BYTES_MAX, inflated_max: None, elements_max: PROBE_ELEMENTS_MAX, input }
        } else {
            let (small, is_sign_out) = (large.min(BYTES_MAX), path == class::SIGN_OUT);
            let inflated_max = if path == BATCH || is_check && is_for_many { large } else { small };
            let bytes_max = if is_sign_out || is_check { inflated_max } else { large };
            let elements_max = if is_check { CHECK_ELEMENTS_MAX } else { ELEMENTS_MAX };
            Self { bytes_max, inflated_max: Some(inflated_max), elements_max, input }
        })
    }

    /// Checks the number of elements.
    fn check(&self, message: &[u8]) -> Result<(), OpenError> {
        let mut left = self.elements_max;
        count(&METHODS.shapes, self.input, message, DEPTH_MAX, &mut left)
    }
}

/// Why a message is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    /// It is not one message of the method, or too large.
    Undecodable,
    /// The budget has no room for it.
    OverBudget,
}

/// Opens the body of a gRPC or grpc-web request: returns one with one frame that is not compressed, and adapts the headers. What
/// tonic refuses anyway, such as an unknown encoding, is returned as it is.
///
/// # Errors
///
/// See [`OpenError`].
pub(super) fn open(
    limits: &MessageLimits,
    headers: &mut HeaderMap,
    body: Bytes,
    lease: &mut ByteLease,
) -> Result<Bytes, OpenError> {
    let body = match media::take_text_framing(headers) {
        true if !lease.extend(body.len()) => return Err(OpenError::OverBudget),
        true => Bytes::from(STANDARD.decode(body).map_err(|_| OpenError::Undecodable)?),
        false => body,
    };
    let Some((header, message)) = body.split_first_chunk::<FRAME_HEADER>() else { return Ok(body) };
    let [flag, length @ ..] = *header;
    if usize::try_from(u32::from_be_bytes(length)).ok() != Some(message.len()) {
        return Err(OpenError::Undecodable);
    }
    let is_gzip = headers.get("grpc-encoding").is_some_and(|encoding| encoding == "gzip");
    match flag {
        0 => limits.check(message)?,
        1 if is_gzip && let Some(inflated_max) = limits.inflated_max => {
            let body = inflate(message, inflated_max, lease)?;
            limits.check(&body[FRAME_HEADER..])?;
            return Ok(body);
        }
        _ => {}
    }
    Ok(body)
}

/// Inflates a message into a frame of its own. The budget is charged piece by piece.
fn inflate(message: &[u8], bytes_max: usize, lease: &mut ByteLease) -> Result<Bytes, OpenError> {
    let mut inflated = BytesMut::zeroed(FRAME_HEADER);
    let (mut decoder, mut piece) = (GzDecoder::new(message), [0; 8 * 1024]);
    loop {
        let read = decoder.read(&mut piece).map_err(|_| OpenError::Undecodable)?;
        if read == 0 {
            break;
        }
        if inflated.len() + read > bytes_max {
            return Err(OpenError::Undecodable);
        }
        if !lease.extend(read) {
            return Err(OpenError::OverBudget);
        }
        inflated.extend_from_slice(&piece[..read]);
    }
    let length = u32::try_from(inflated.len() - FRAME_HEADER).map_err(|_| OpenError::Undecodable)?;
    (&mut inflated[1..FRAME_HEADER]).put_u32(length);
    Ok(inflated.freeze())
}

/// Subtracts the elements of a message. One that is malformed is counted up to there, as far as it will be decoded.
fn count(shapes: &[Shape], shape: usize, mut message: &[u8], depth: usize, left: &mut usize) -> Result<(), OpenError> {
    while !message.is_empty() {
        *left = left.checked_sub(1).ok_or(OpenError::Undecodable)?;
        let Ok((number, wire_type)) = decode_key(&mut message) else { return Ok(()) };
        let length = match wire_type {
            WireType::Varint => match decode_varint(&mut message) {
                Ok(_) => 0,
                Err(_) => return Ok(()),
            },
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => match decode_varint(&mut message).map(usize::try_from) {
                Ok(Ok(length)) => length,
                _ => return Ok(()),
            },
            // None of our messages has any, and what is in one would have to be counted.
            WireType::StartGroup | WireType::EndGroup => return Err(OpenError::Undecodable),
        };
        let Some((value, rest)) = message.split_at_checked(length) else { return Ok(()) };
        message = rest;
        if wire_type == WireType::LengthDelimited
            && let Some(inner) = shapes[shape].get(&number)
            && let Some(depth) = depth.checked_sub(1)
        {
            count(shapes, *inner, value, depth, left)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::IpAddr;
    use std::net::Ipv4Addr;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http::HeaderValue;
    use http::header;

    use super::super::arrival::Budget;
    use super::*;

    const CREATE: &str = "/sessiond.v1.SessionService/CreateSession";
    const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const LIMIT: usize = 1_000_000;

    fn frame(flag: u8, message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        [&[flag], length.as_slice(), message].concat().into()
    }

    fn gzip(message: &[u8]) -> Bytes {
        let mut encoder = GzEncoder::new(vec![], Compression::best());
        encoder.write_all(message).expect("compresses");
        frame(1, &encoder.finish().expect("compresses"))
    }

    /// Opens it with a budget of a megabyte for the address.
    fn opened(path: &str, content_type: &'static str, body: Bytes) -> Result<(Bytes, HeaderMap), OpenError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        let mut lease = Budget::new(4 * LIMIT).lease(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let limits = MessageLimits::of(path, LIMIT, false).expect("a method");
        open(&limits, &mut headers, body, &mut lease).map(|body| (body, headers))
    }

    fn result(path: &str, body: Bytes) -> Result<Bytes, OpenError> {
        opened(path, "application/grpc", body).map(|(body, _)| body)
    }

    #[test]
    fn one_frame_is_opened() {
        let message = b"\x0a\x03ada";
        for body in [frame(0, message), gzip(message)] {
            assert_eq!(result(CREATE, body), Ok(frame(0, message)));
        }
        // tonic says what is wrong with these.
        for odd in [Bytes::new(), frame(7, message)] {
            assert_eq!(result(CREATE, odd.clone()), Ok(odd));
        }
        let (text, headers) =
            opened(CREATE, "application/grpc-web-text", STANDARD.encode(gzip(message)).into()).expect("opens");
        assert_eq!(text, frame(0, message));
        assert_eq!(headers[header::CONTENT_TYPE], "application/grpc-web+proto");
        assert_eq!(headers[header::ACCEPT], "application/grpc-web-text+proto");
    }

    #[test]
    fn several_frames_a_part_of_one_and_what_inflates_too_far_are_refused() {
        let one = frame(0, b"\x0a\x03ada");
        let twice: Bytes = [one.clone(), one.clone()].concat().into();
        for bad in [twice, one.slice(..7), gzip(&vec![0; LIMIT]), frame(1, b"no gzip")] {
            assert_eq!(result(CREATE, bad), Err(OpenError::Undecodable));
        }
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        let mut lease = Budget::new(4_000).lease(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let body = gzip(&[0; 2_000]);
        let limits = MessageLimits::of(CREATE, LIMIT, false).expect("a method");
        assert_eq!(open(&limits, &mut headers, body, &mut lease), Err(OpenError::OverBudget));
    }

    #[test]
    fn a_method_has_the_message_that_it_needs() {
        let sizes = |limits: MessageLimits| (limits.bytes_max, limits.inflated_max);
        let limits = |path, is_for_many| MessageLimits::of(path, LIMIT, is_for_many).map(sizes);
        assert_eq!(limits("/x/.well-known/y", false), None);
        assert_eq!(limits(CREATE, false), Some((LIMIT, Some(BYTES_MAX))));
        assert_eq!(limits(BATCH, false), Some((LIMIT, Some(LIMIT))));
        assert_eq!(limits(class::SIGN_OUT, false), Some((BYTES_MAX, Some(BYTES_MAX))));
        assert_eq!(limits(CHECK, false), Some((BYTES_MAX, Some(BYTES_MAX))));
        assert_eq!(limits(CHECK, true), Some((LIMIT, Some(LIMIT))));
        assert_eq!(limits(HEALTH, true), Some((PROBE_BYTES_MAX, None)));
        assert_eq!(MessageLimits::of(CREATE, 100, false).map(sizes), Some((100, Some(100))), "a lower setting");
        // tonic says that it accepts no compression.
        let compressed = gzip(&[0x0a, 0].repeat(100));
        assert_eq!(result(HEALTH, compressed.clone()), Ok(compressed));
        assert_eq!(result(HEALTH, frame(0, &[0x0a, 0].repeat(9))), Err(OpenError::Undecodable));
    }

    #[test]
    fn elements_are_counted_at_every_depth() {
        fn field(number: u8, value: &[u8]) -> Vec<u8> {
            let mut field = vec![number << 3 | 2];
            prost::encoding::encode_varint(value.len() as u64, &mut field);
            [field.as_slice(), value].concat()
        }
        // attributes.request.http.header_map.headers
        let check = |headers: usize| {
            let map = vec![field(1, &[field(1, b"cookie"), field(2, b"a=1")].concat()); headers].concat();
            frame(0, &field(1, &field(4, &field(2, &field(13, &map)))))
        };
        assert!(result(CHECK, check(1_300)).is_ok());
        assert_eq!(result(CHECK, check(1_400)), Err(OpenError::Undecodable));
        // Strings have no elements in them.
        assert!(result(CREATE, frame(0, &field(1, &vec![0x0a; 100_000]))).is_ok());
        for tag in [0x0a, 0x20] {
            let many = [tag, 0].repeat(ELEMENTS_MAX + 1);
            assert_eq!(result(CREATE, frame(0, &many)), Err(OpenError::Undecodable));
        }
        assert_eq!(result(CREATE, frame(0, b"\x0b\x0c")), Err(OpenError::Undecodable), "a group");
        // Cut off in every place.
        let whole = [field(1, b"ada"), vec![0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0x25, 1, 2, 3, 4, 0x80, 0x01, 0x80]].concat();
        for end in 0..whole.len() {
            assert!(result(CREATE, frame(0, &whole[..end])).is_ok(), "{end}");
        }
    }
}
