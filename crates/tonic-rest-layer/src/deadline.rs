//! The `grpc-timeout` header: how long the client waits.

use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Returns the `grpc-timeout` of a request: at most eight digits and a unit (gRPC over HTTP/2, "Requests"). `None` if it is absent
/// or malformed; [`RestLayer`](super::RestLayer) rejects REST requests with a malformed one.
///
/// For layers inside the [`RestLayer`](super::RestLayer) that enforce deadlines.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    read(headers.get(GRPC_TIMEOUT)?)
}

/// Whether the header is malformed or repeated. Such a request is rejected: a client that asks for a deadline must not wait without
/// one.
pub(crate) fn is_malformed(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(GRPC_TIMEOUT).iter();
    values.next().is_some_and(|first| read(first).is_none() || values.next().is_some())
}

fn read(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Sets the remaining time, in the smallest unit for which it has at most eight digits.
pub(crate) fn write(headers: &mut HeaderMap, remaining: Duration) {
    const END: u128 = 100_000_000;
    let (count, unit) = match (remaining.as_micros(), remaining.as_millis(), u128::from(remaining.as_secs())) {
        (micros, ..) if micros < END => (micros, 'u'),
        (_, millis, _) if millis < END => (millis, 'm'),
        (.., seconds) if seconds < END => (seconds, 'S'),
        (.., seconds) => (seconds / 3_600, 'H'),
    };
    if let Ok(value) = HeaderValue::try_from(format!("{count}{unit}")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_round_trips_and_malformed_ones_are_rejected() {
        for (text, written) in [
            ("0n", "0u"),
            ("50m", "50000u"),
            ("99999999u", "99999999u"),
            ("1000S", "1000000m"),
            ("99999999m", "99999999m"),
            ("99999999S", "99999999S"),
            ("99999999H", "99999999H"),
        ] {
            let mut headers = HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(text))]);
            let timeout = grpc_timeout(&headers).unwrap();
            write(&mut headers, timeout);
            assert_eq!(headers[GRPC_TIMEOUT], written);
            assert_eq!(grpc_timeout(&headers), Some(timeout));
        }
        for malformed in ["", "m", "50", "-5m", "123456789m", "5x", "5 m"] {
            let headers = HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(malformed))]);
            assert_eq!(grpc_timeout(&headers), None, "{malformed:?}");
            assert!(is_malformed(&headers), "{malformed:?}");
        }
    }
}
