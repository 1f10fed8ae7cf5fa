//! Settings of the traces. Where OpenTelemetry has a variable for a setting, it is that one.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use http::Uri;

use super::web::Authority;

/// Where traces are sent, and which requests are traced.
#[derive(Args, Clone, Debug)]
pub struct Tracing {
    /// The OpenTelemetry collector to send traces to, as an http or https URL such as `http://127.0.0.1:4318`. Over HTTP,
    /// `/v1/traces` is appended. Without it, nothing is traced.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = OtlpEndpoint::parse, value_name = "URL")]
    pub otlp_endpoint: Option<OtlpEndpoint>,

    /// How the collector is reached: over HTTP (usually on port 4318), or gRPC (usually on port 4317).
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", default_value = "http/protobuf", value_name = "PROTOCOL")]
    pub otlp_protocol: OtlpProtocol,

    /// A file with headers for the collector, such as its API key: `name=value` pairs, separated by commas, the values
    /// percent-encoded. Instead of the file, the variable OTEL_EXPORTER_OTLP_HEADERS may have them.
    #[arg(long, env = "SESSIOND_OTLP_HEADERS_FILE", value_name = "FILE")]
    pub otlp_headers_file: Option<PathBuf>,

    /// Certificates to trust for the collector, in PEM, instead of the system's.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", value_name = "FILE")]
    pub otlp_ca_file: Option<PathBuf>,

    /// The name of this service in traces.
    #[arg(long, env = "OTEL_SERVICE_NAME", default_value = "sessiond", value_parser = service_name, value_name = "NAME")]
    pub otlp_service_name: String,

    /// An attribute of all spans, as `name=value`, such as `deployment.environment.name=staging`; may be repeated.
    #[arg(long = "otlp-resource-attribute", env = "OTEL_RESOURCE_ATTRIBUTES", value_delimiter = ',', value_parser = attribute, value_name = "NAME=VALUE")]
    pub otlp_resource_attributes: Vec<(String, String)>,

    /// The part of the requests that is traced, 0 to 1. It applies to requests without a `traceparent`; for the others the
    /// caller decides.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", default_value_t = 1.0, value_parser = ratio, value_name = "RATIO")]
    pub trace_ratio: f64,
}

/// How the collector is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OtlpProtocol {
    /// gRPC, over HTTP/2.
    #[value(name = "grpc")]
    Grpc,
    /// Protobuf over HTTP/1.1.
    #[value(name = "http/protobuf")]
    Http,
}

/// The URL of a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(Uri);

impl OtlpEndpoint {
    /// Parses an http or https URL without a user, a query and a fragment.
    ///
    /// # Errors
    ///
    /// Returns a message that says what is wrong, without the URL: it may hold a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "must be an http or https URL, such as `http://127.0.0.1:4318`";
        let text = text.trim();
        let uri: Uri = text.parse().map_err(|_| EXAMPLE)?;
        let authority = uri.authority().ok_or(EXAMPLE)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(EXAMPLE.to_owned());
        }
        if uri.query().is_some() || text.contains('#') {
            return Err("must have no query and no fragment".to_owned());
        }
        match Authority::parse(authority.as_str())? {
            Authority { port: Some(0), .. } => Err("must not have port 0".to_owned()),
            Authority { .. } => Ok(Self(uri)),
        }
    }

    /// The URL.
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Whether it is reached over TLS.
    pub fn is_secure(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The longest name or value of an attribute, in bytes.
const ATTRIBUTE_BYTES_MAX: usize = 256;

fn is_short(text: &str) -> bool {
    (1..=ATTRIBUTE_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
}

fn service_name(text: &str) -> Result<String, String> {
    let text = text.trim();
    is_short(text).then(|| text.to_owned()).ok_or_else(|| format!("must have 1 to {ATTRIBUTE_BYTES_MAX} bytes"))
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
    let pair = pair.filter(|(name, value)| is_short(name) && is_short(value));
    let (name, value) = pair.ok_or_else(|| {
        format!("must be `name=value`, such as `deployment.environment.name=staging`, of at most {ATTRIBUTE_BYTES_MAX} bytes each")
    })?;
    Ok((name.to_owned(), value.to_owned()))
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "must be a number of 0 to 1, such as `0.01`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        for good in ["http://127.0.0.1:4318", "https://otlp.example/base", "http://[::1]:4317/", "http://collector"] {
            let endpoint = OtlpEndpoint::parse(good).unwrap_or_else(|why| panic!("{good}: {why}"));
            assert_eq!(endpoint.is_secure(), good.starts_with("https"));
        }
        for bad in [
            "",
            "a",
            "collector:4317",
            "ftp://a",
            "http://u:secret@a",
            "http://a?key=secret",
            "http://a#secret",
            "http://a:0",
        ] {
            let why = OtlpEndpoint::parse(bad).expect_err(bad);
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn a_ratio_is_between_0_and_1() {
        assert_eq!((ratio("0"), ratio(" 0.01\n"), ratio("1")), (Ok(0.0), Ok(0.01), Ok(1.0)));
        for bad in ["", "-0.1", "1.1", "1%", "NaN", "inf"] {
            assert!(ratio(bad).is_err(), "{bad}");
        }
    }
}
