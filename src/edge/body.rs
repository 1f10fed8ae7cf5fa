//! Reads whole bodies, for the adapters beside the transcoder.

use std::time::Duration;

use axum::body::Body;
use axum::body::to_bytes;
use bytes::Bytes;
use http::HeaderMap;
use http::header;
use http_body::Body as _;
use http_body_util::LengthLimitError;
use tokio::time::timeout;

use crate::config;

/// The media type of forms (RFC 6749 appendix B).
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// The media type of JSON (RFC 8259 §11).
pub(super) const JSON: &str = "application/json";

/// How long to wait for a body that should already have arrived.
pub(super) const ARRIVED: Duration = Duration::from_millis(50);

/// The limits of a body.
#[derive(Clone, Copy)]
pub(super) struct BodyLimits {
    bytes_max: usize,
    timeout: Duration,
}

impl BodyLimits {
    /// Limits as configured. The body has already arrived, or was abandoned (see [`super::admission`]).
    pub(super) const fn new(limits: &config::Limits) -> Self {
        Self { bytes_max: limits.body_bytes_max, timeout: ARRIVED }
    }
}

/// Why a body could not be read.
pub(super) enum BodyError {
    /// It did not end in time.
    TooSlow,
    /// It is too large.
    TooLarge,
    /// It ended early.
    CutOff,
}

/// Reads a body to its end.
pub(super) async fn read(body: Body, limits: BodyLimits) -> Result<Bytes, BodyError> {
    if body.size_hint().lower() > limits.bytes_max as u64 {
        return Err(BodyError::TooLarge);
    }
    let reading = timeout(limits.timeout, to_bytes(body, limits.bytes_max));
    reading.await.map_err(|_| BodyError::TooSlow)?.map_err(|error| match error.into_inner() {
        error if error.is::<LengthLimitError>() => BodyError::TooLarge,
        _ => BodyError::CutOff,
    })
}

/// Whether a body is declared with exactly this media type. Its parameters are ignored: the encoding is always UTF-8.
pub(super) fn is_a(headers: &HeaderMap, media_type: &str) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let value = value.to_str().unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(media_type)
}
