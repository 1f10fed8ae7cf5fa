//! The `Retry-After` header.

use std::time::Duration;

use http::HeaderValue;

/// `Retry-After`: whole seconds (RFC 9110 §10.2.3), rounded up, and at least one.
pub(super) fn retry_after(delay: Duration) -> HeaderValue {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1).into()
}
