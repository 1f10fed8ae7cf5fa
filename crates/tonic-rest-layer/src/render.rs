//! One message of a reply as the client reads it: JSON, a line of it, an event, or the bytes of an `HttpBody`.

use bytes::Bytes;
use http::HeaderValue;

use crate::binding::Binding;
use crate::print::print_field;
use crate::print::print_message;
use crate::transcoder::Transcoder;
use crate::wire;
use crate::wire::Malformed;
use crate::wire::Raw;

/// How the messages of a stream are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON value per line. A stream that fails ends with the line `{"error": …}`.
    Lines,
    /// Server-sent events. A stream that fails ends with an event of the type `error`.
    Events,
    /// `google.api.HttpBody`: the data, one piece behind the other. A stream that fails breaks the connection off.
    Raw,
}

/// A comment among events, which clients pass over (HTML §9.2.6).
pub(crate) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

impl Format {
    /// The content type, unless the messages themselves name one.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Lines => "application/x-ndjson",
            Format::Events => "text/event-stream",
            Format::Raw => "application/octet-stream",
        }
    }
}

/// Writes what the rule answers with: the message, or one field of it.
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

/// Reads the `HttpBody` that a reply is, or has as its response field. An absent one is empty.
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

/// The last value of a length-delimited field, without copying; empty when there is none.
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

/// The id of the event that a message is written as: the value of the field that the layer was told of. `None` where it is
/// absent or empty, because an empty id would take the last one back, and where it holds what an id cannot (HTML §9.2.6).
fn event_id(transcoder: &Transcoder, binding: &Binding, message: &Bytes) -> Option<Bytes> {
    let output = transcoder.schema.message(binding.output);
    let field = output.at(output.field(transcoder.event_id_field.as_deref()?)?);
    let id = last_bytes(message, field.number).ok()?;
    (!id.is_empty() && !id.iter().any(|byte| b"\n\r\0".contains(byte))).then_some(id)
}

/// Writes one message, with what sets it apart from the next.
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
