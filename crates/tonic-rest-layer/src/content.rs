//! Request bodies: checks their headers, then collects or discards them within a limit.

use std::pin::Pin;
use std::pin::pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::header;
use http_body::Body as HttpBody;
use http_body_util::BodyExt;

use crate::binding::Binding;
use crate::binding::Body;
use crate::headers;
use crate::status::Refusal;
use crate::transcoder::Transcoder;

/// Checks the headers of a body before it is read.
pub(crate) fn check_content<B>(
    transcoder: &Transcoder,
    binding: &Binding,
    headers: &HeaderMap,
    body: &B,
) -> Result<(), Refusal>
where
    B: HttpBody,
{
    if binding.body == Body::None {
        return Ok(());
    }
    if !headers::is_unencoded(headers) {
        return Err(Refusal::ContentEncoding);
    }
    let announced = body.size_hint().lower();
    // Other types are rejected even with an empty body: a page of another origin can send them without a CORS preflight.
    if !binding.raw_body && (announced > 0 || headers.contains_key(header::CONTENT_TYPE)) && !headers::is_json(headers)
    {
        return Err(Refusal::UnsupportedMediaType);
    }
    if announced > transcoder.body_bytes_max as u64 {
        return Err(Refusal::BodyTooLarge(transcoder.body_bytes_max));
    }
    Ok(())
}

/// Collects a body of up to `limit` bytes.
pub(crate) async fn collect<B: HttpBody<Data = Bytes>>(body: B, limit: usize) -> Result<Bytes, Refusal> {
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|_| Refusal::BodyUnreadable)?.into_data() else { continue };
        if data.len() > limit - first.len().max(more.len()) {
            return Err(Refusal::BodyTooLarge(limit));
        }
        if first.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

/// Discards a body that the rule does not read, while the call runs, so that the connection can be reused. The call does not wait
/// for it. Bytes beyond the limit are not read.
pub(crate) struct Discard<B> {
    body: Pin<Box<B>>,
    remaining: usize,
}

impl<B: HttpBody<Data = Bytes>> Discard<B> {
    pub(crate) fn new(body: B, limit: usize) -> Discard<B> {
        Discard { body: Box::pin(body), remaining: limit }
    }

    /// Ready at the end of the body, at an error, or at the limit.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(Ok(frame)) = ready!(self.body.as_mut().poll_frame(cx)) {
            // An empty frame counts as one byte, so that empty frames are bounded too.
            let length = frame.data_ref().map_or(0, Bytes::len) + 1;
            match self.remaining.checked_sub(length) {
                Some(remaining) => self.remaining = remaining,
                None => break,
            }
        }
        Poll::Ready(())
    }
}
