//! Renders one message of a reply: as JSON, as a line, as a server-sent event, or as the bytes of an `HttpBody`.

use bytes::Bytes;
use http::HeaderValue;

use crate::binding::Binding;
use crate::print::print_field;
use crate::print::print_message;
use crate::transcoder::Transcoder;
use crate::wire;
use crate::wire::Malformed;
use crate::wire::Raw;

/// The format of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON value per line. If the stream fails, the last line is `{"error": …}`.
    Lines,
    /// Server-sent events. If the stream fails, the last event has the type `error`.
    Events,
    /// The concatenated data of `google.api.HttpBody` messages. If the stream fails, the connection is aborted.
    Raw,
}

/// A comment in a stream of events, which clients ignore (HTML §9.2.6).
pub(crate) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

impl Format {
    /// The content type, unless the messages have one.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Lines => "application/x-ndjson",
            Format::Events => "text/event-stream",
            Format::Raw => "application/octet-stream",
        }
    }
}

/// Prints the response body of the rule: the message, or one field of it.
pub(crate) fn print(
    transcoder: &Transcoder,
    binding: &Binding,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let written = match binding.response_body {
        None => print_message(&transcoder.schema, binding.output, message, out),
        Some(index) => print_field(&transcoder.schema, binding.output, index, message, out),
    };
    written.map_err(|Malformed| "the reply has no JSON form")
}

/// A `google.api.HttpBody`.
pub(crate) struct HttpBody {
    pub content_type: HeaderValue,
    pub data: Bytes,
}

/// Reads the `HttpBody` of a reply: the message or its response field. An absent one is empty.
pub(crate) fn http_body(transcoder: &Transcoder, binding: &Binding, message: &Bytes) -> Result<HttpBody, &'static str> {
    let bytes = match binding.response_body {
        None => message.clone(),
        Some(index) => last_bytes(message, transcoder.schema.message(binding.output).at(index).number)?,
    };
    let content_type = last_bytes(&bytes, 1)?;
    let content_type = if content_type.is_empty() { "application/octet-stream".into() } else { content_type };
    Ok(HttpBody {
        content_type: HeaderValue::from_maybe_shared(content_type)
            .map_err(|_| "the content type is not a valid header value")?,
        data: last_bytes(&bytes, 2)?,
    })
}

/// The last value of a length-delimited field, without copying. Empty if the field is absent.
pub(crate) fn last_bytes(message: &Bytes, wanted: u32) -> Result<Bytes, &'static str> {
    let mut rest: &[u8] = message;
    let mut found = Bytes::new();
    while let Some((number, raw)) = wire::take_field(&mut rest).map_err(|Malformed| "the reply is malformed")? {
        match raw {
            Raw::Delimited(bytes) if number == wanted => found = message.slice_ref(bytes),
            _ => {}
        }
    }
    Ok(found)
}

/// The event id of a message: the value of the configured field. `None` if it is absent, if it is empty, because an empty id resets
/// the last one, or if it has characters that an id must not have (HTML §9.2.6).
fn event_id(transcoder: &Transcoder, binding: &Binding, message: &Bytes) -> Option<Bytes> {
    let output = transcoder.schema.message(binding.output);
    let field = output.at(output.field(transcoder.event_id_field.as_deref()?)?);
    let id = last_bytes(message, field.number).ok()?;
    (!id.is_empty() && !id.iter().any(|byte| b"\n\r\0".contains(byte))).then_some(id)
}

/// Writes one message of a stream, including its separator.
pub(crate) fn write(
    transcoder: &Transcoder,
    binding: &Binding,
    format: Format,
    message: &Bytes,
) -> Result<Bytes, &'static str> {
    let mut out = Vec::with_capacity(message.len() * 2 + 64);
    match format {
        Format::Raw => return Ok(http_body(transcoder, binding, message)?.data),
        Format::Lines => {
            print(transcoder, binding, message, &mut out)?;
            out.push(b'\n');
        }
        Format::Events => {
            if let Some(id) = event_id(transcoder, binding, message) {
                out.extend_from_slice(&[b"id: ", id.as_ref(), b"\n"].concat());
            }
            // The JSON is one line, so one `data:` holds it.
            out.extend_from_slice(b"data: ");
            print(transcoder, binding, message, &mut out)?;
            out.extend_from_slice(b"\n\n");
        }
    }
    Ok(out.into())
}
