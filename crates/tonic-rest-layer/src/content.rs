//! Request bodies: checked by their headers, then collected within a limit, or discarded.

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

/// Refuses what the headers alone condemn, before any of the body is read.
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
    // A type that is not JSON is refused on an empty body too: a page of another origin can send one without asking.
    if !binding.raw_body && (announced > 0 || headers.contains_key(header::CONTENT_TYPE)) && !headers::is_json(headers)
    {
        return Err(Refusal::UnsupportedMediaType);
    }
    if announced > transcoder.body_bytes_max as u64 {
        return Err(Refusal::BodyTooLarge(transcoder.body_bytes_max));
    }
    Ok(())
}

/// Puts a body together, within the limit.
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

/// A body that its rule has no place for. It is thrown away as it comes, beside the call, so that the connection can go
/// on; the call does not wait for it, and what is beyond the limit is not read at all.
pub(crate) struct Discard<B> {
    body: Pin<Box<B>>,
    left: usize,
}

impl<B: HttpBody<Data = Bytes>> Discard<B> {
    pub(crate) fn new(body: B, limit: usize) -> Discard<B> {
        Discard { body: Box::pin(body), left: limit }
    }

    /// Ready when there is nothing more to read, or nothing more that will be.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(Ok(frame)) = ready!(self.body.as_mut().poll_frame(cx)) {
            // A frame counts even if it is empty.
            let length = frame.data_ref().map_or(0, Bytes::len) + 1;
            match self.left.checked_sub(length) {
                Some(left) => self.left = left,
                None => break,
            }
        }
        Poll::Ready(())
    }
}
