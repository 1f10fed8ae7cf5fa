//! Forms: `application/x-www-form-urlencoded` in UTF-8 (RFC 6749 appendix B).

use std::collections::HashMap;

use axum::body::Body;
use http::HeaderMap;

use super::error::OAuthError;
use crate::edge::body;
use crate::edge::body::BodyError;

/// The known parameters; others are ignored (RFC 6749 §3.2).
const KNOWN: [&str; 6] = ["client_id", "client_secret", "grant_type", "refresh_token", "scope", "token"];

/// A form's parameters. Has no `Debug`: tokens and secrets are among them.
pub(super) struct Form(HashMap<&'static str, String>);

impl Form {
    /// Reads a request's body.
    pub(super) async fn read(headers: &HeaderMap, body: Body, limits: body::BodyLimits) -> Result<Self, OAuthError> {
        if !body::is_a(headers, body::FORM) {
            return Err(OAuthError::NOT_A_FORM);
        }
        let read = body::read(body, limits).await.map_err(|unread| match unread {
            BodyError::TooSlow => OAuthError::TOO_SLOW,
            BodyError::TooLarge => OAuthError::TOO_LARGE,
            BodyError::CutOff => OAuthError::CUT_OFF,
        })?;
        Self::parse(&read)
    }

    fn parse(body: &[u8]) -> Result<Self, OAuthError> {
        let mut parameters = HashMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            let Some(name) = KNOWN.into_iter().find(|known| *known == name) else { continue };
            if parameters.insert(name, value.into_owned()).is_some() {
                return Err(OAuthError::REPEATED);
            }
        }
        // A parameter without a value counts as missing (RFC 6749 §3.2), but must not be repeated either.
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self(parameters))
    }

    /// Takes a parameter out.
    pub(super) fn take(&mut self, name: &'static str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes out a required parameter.
    pub(super) fn required(&mut self, name: &'static str) -> Result<String, OAuthError> {
        self.take(name).ok_or(OAuthError::MISSING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_present_at_most_once() {
        let cases: [(&str, Result<Option<&str>, OAuthError>); 8] = [
            ("token=a", Ok(Some("a"))),
            ("token=a%2Bb+c%C3%A4", Ok(Some("a+b c\u{e4}"))),
            ("token=", Ok(None)),
            ("token", Ok(None)),
            ("", Ok(None)),
            ("bogus=1&token=a&bogus=2", Ok(Some("a"))),
            ("token=a&token=a", Err(OAuthError::REPEATED)),
            ("token=&to%6ben=a", Err(OAuthError::REPEATED)),
        ];
        for (body, expected) in cases {
            let token = Form::parse(body.as_bytes()).map(|mut form| form.take("token"));
            assert_eq!(token, expected.map(|token| token.map(str::to_owned)), "{body}");
        }
    }
}
