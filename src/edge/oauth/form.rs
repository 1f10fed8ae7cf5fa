//! Forms: `application/x-www-form-urlencoded` in UTF-8 (RFC 6749 appendix B).

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::body::to_bytes;
use http::HeaderMap;
use http::header;
use http_body_util::LengthLimitError;
use tokio::time::timeout;

use super::failure::Failure;

/// The parameters that mean something here; any other is ignored (RFC 6749 §3.2).
const KNOWN: [&str; 6] = ["client_id", "client_secret", "grant_type", "refresh_token", "scope", "token"];

/// What a form may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// How large it may be.
    pub(super) bytes_max: usize,
    /// How long it may be on its way.
    pub(super) timeout: Duration,
}

/// A form's parameters. Has no `Debug`: tokens and secrets are among them.
pub(super) struct Form(HashMap<&'static str, String>);

impl Form {
    /// Reads a request's body.
    pub(super) async fn read(headers: &HeaderMap, body: Body, limits: Limits) -> Result<Self, Failure> {
        if !is_form(headers) {
            return Err(Failure::NOT_A_FORM);
        }
        let reading = timeout(limits.timeout, to_bytes(body, limits.bytes_max));
        let body = reading.await.map_err(|_| Failure::TOO_SLOW)?.map_err(|error| match error.into_inner() {
            error if error.is::<LengthLimitError>() => Failure::TOO_LARGE,
            _ => Failure::CUT_OFF,
        })?;
        Self::parse(&body)
    }

    fn parse(body: &[u8]) -> Result<Self, Failure> {
        let mut parameters = HashMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            let Some(name) = KNOWN.into_iter().find(|known| *known == name) else { continue };
            if parameters.insert(name, value.into_owned()).is_some() {
                return Err(Failure::REPEATED);
            }
        }
        // A parameter without a value is one that is not there (RFC 6749 §3.2); that it is said once holds for it too.
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self(parameters))
    }

    /// Takes a parameter out.
    pub(super) fn take(&mut self, name: &'static str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a parameter out that must be there.
    pub(super) fn required(&mut self, name: &'static str) -> Result<String, Failure> {
        self.take(name).ok_or(Failure::MISSING)
    }
}

/// Whether the content type is a form's. Parameters of the type change nothing: there is one encoding, UTF-8.
fn is_form(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_there_once_or_not_at_all() {
        let cases: [(&str, Result<Option<&str>, Failure>); 8] = [
            ("token=a", Ok(Some("a"))),
            ("token=a%2Bb+c%C3%A4", Ok(Some("a+b c\u{e4}"))),
            ("token=", Ok(None)),
            ("token", Ok(None)),
            ("", Ok(None)),
            ("bogus=1&token=a&bogus=2", Ok(Some("a"))),
            ("token=a&token=a", Err(Failure::REPEATED)),
            ("token=&to%6ben=a", Err(Failure::REPEATED)),
        ];
        for (body, expected) in cases {
            let token = Form::parse(body.as_bytes()).map(|mut form| form.take("token"));
            assert_eq!(token, expected.map(|token| token.map(str::to_owned)), "{body}");
        }
    }
}
