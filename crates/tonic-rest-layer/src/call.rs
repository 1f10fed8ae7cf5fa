//! Turns a REST request into a gRPC call.

use bytes::Bytes;
use http::Method;
use http::Uri;
use http::Version;
use http::header;
use http::request;
use http::uri::PathAndQuery;

use crate::bind;
use crate::bind::Content;
use crate::binding::Binding;
use crate::binding::Body;
use crate::frame;
use crate::headers;
use crate::route::Path;
use crate::status::Refusal;
use crate::transcoder::Transcoder;

/// Returns the head and the frame of the gRPC call.
pub(crate) fn call_parts(
    transcoder: &Transcoder,
    binding: &Binding,
    path: &Path,
    mut parts: request::Parts,
    body: &[u8],
) -> Result<(request::Parts, Bytes), Refusal> {
    let content = if binding.body == Body::None {
        Content::None
    } else if binding.raw_body {
        let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        Content::Raw { content_type, data: body }
    } else if body.is_empty() {
        Content::None
    } else if headers::is_json(&parts.headers) {
        Content::Json(body)
    } else {
        return Err(Refusal::UnsupportedMediaType);
    };
    let is_empty_request =
        matches!(content, Content::None) && binding.variables.is_empty() && parts.uri.query().is_none();
    let frame = if is_empty_request {
        frame::EMPTY
    } else {
        let mut frame = Vec::with_capacity(frame::HEAD + body.len() + 64);
        frame.extend_from_slice(&[0; frame::HEAD]);
        let limits = bind::Limits { ignored: &transcoder.ignored, elements_max: transcoder.body_elements_max };
        bind::bind(&transcoder.schema, binding, path, &parts.uri, limits, content, &mut frame)
            .map_err(Refusal::Schema)?;
        frame::finish(frame)
    };
    parts.uri = call_uri(parts.uri, &binding.matched.grpc_path);
    parts.method = Method::POST;
    // Of requests other than grpc-web, tonic-web accepts HTTP/2 only.
    parts.version = Version::HTTP_2;
    headers::to_metadata(&mut parts.headers);
    parts.extensions.insert(binding.matched.clone());
    Ok((parts, frame))
}

/// The URI of the gRPC method, with the scheme and authority of the request.
fn call_uri(uri: Uri, grpc_path: &PathAndQuery) -> Uri {
    let mut call = uri.into_parts();
    call.path_and_query = Some(grpc_path.clone());
    if call.scheme.is_none() || call.authority.is_none() {
        (call.scheme, call.authority) = (None, None);
    }
    Uri::from_parts(call).unwrap_or_else(|_| Uri::from(grpc_path.clone()))
}
