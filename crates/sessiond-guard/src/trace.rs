//! Passes the trace of a request on to sessiond (W3C Trace Context), as the application's own headers name it.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use tonic::metadata::MetadataMap;
use tonic::metadata::MetadataValue;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest `traceparent` and `tracestate` that are passed on, in bytes. §3.3.1.5 asks for at least 512.
const BYTES_MAX: usize = 512;

/// The headers of a request's trace; none if it has no trace.
#[derive(Clone, Debug, Default)]
pub(super) struct TraceHeaders {
    parent: Option<HeaderValue>,
    state: Option<HeaderValue>,
}

impl TraceHeaders {
    /// The trace of a request. sessiond checks the form.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let parent = only(headers, TRACEPARENT);
        let state = parent.as_ref().and_then(|_| only(headers, TRACESTATE));
        Self { parent, state }
    }

    /// Adds them to a call.
    pub(super) fn add_to(&self, metadata: &mut MetadataMap) {
        for (name, value) in [("traceparent", &self.parent), ("tracestate", &self.state)] {
            let value = value.as_ref().and_then(|value| MetadataValue::try_from(value.as_bytes()).ok());
            if let Some(value) = value {
                metadata.insert(name, value);
            }
        }
    }
}

/// The value of a header, if there is exactly one and it is short.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.len() <= BYTES_MAX => Some(value.clone()),
        (_, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed_on(headers: &[(&'static str, &str)]) -> Vec<(String, String)> {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")));
        let headers = headers.fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
        let mut metadata = MetadataMap::new();
        TraceHeaders::of(&headers).add_to(&mut metadata);
        let headers = metadata.into_headers();
        let mut passed: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned())).collect();
        passed.sort();
        passed
    }

    #[test]
    fn only_the_trace_is_passed_on() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let all =
            [("traceparent", "00-a-b-01"), ("tracestate", "a=1"), ("authorization", "secret"), ("baggage", "user=ada")];
        assert_eq!(passed_on(&all), [pair("traceparent", "00-a-b-01"), pair("tracestate", "a=1")]);
        assert_eq!(passed_on(&[("tracestate", "a=1")]), []);
        assert_eq!(passed_on(&[("traceparent", "a"), ("traceparent", "b")]), []);
        assert_eq!(passed_on(&[("traceparent", &"a".repeat(513))]), []);
        let long = "a".repeat(513);
        assert_eq!(passed_on(&[("traceparent", "a"), ("tracestate", &long)]), [pair("traceparent", "a")]);
    }
}
