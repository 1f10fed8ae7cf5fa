//! Path templates: the segments to match, and the ranges of segments to capture.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The maximum number of segments of a path.
pub(crate) const SEGMENTS_MAX: usize = 64;

/// A parsed path template.
#[derive(Debug)]
pub(crate) struct Template {
    pub segments: Vec<Segment>,
    pub verb: Option<Box<str>>,
    pub variables: Vec<Variable>,
}

/// A segment of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Segment {
    Literal(Box<str>),
    /// `*`: one segment, not empty.
    Single,
    /// `**`: the rest of the path, possibly nothing. Always last.
    Rest,
}

/// `{field.path=…}`: a field, and the segments that are its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub field_path: Box<str>,
    /// The first segment.
    pub start: usize,
    /// The segment after the last one.
    pub end: usize,
    /// Whether it can match several segments. `%2F` is then not decoded, to differ from `/`.
    pub multi: bool,
}

/// A captured value has invalid escapes, or is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected percent-encoded UTF-8")]
pub(crate) struct InvalidUtf8;

/// Whether the segment is `.` or `..`, escaped or not.
pub(crate) fn is_dot_segment(segment: &str) -> bool {
    // Excludes most segments without allocating.
    segment.len() <= 6
        && segment.starts_with(['.', '%'])
        && matches!(segment.replace("%2e", ".").replace("%2E", ".").as_str(), "." | "..")
}

/// A syntax error of a template (http.proto, "Path template syntax").
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("template must begin with '/'")]
    MissingSlash,
    #[error("template contains an empty path segment")]
    EmptySegment,
    #[error("template contains unbalanced '{{' or '}}'")]
    UnbalancedBraces,
    #[error("variable sub-templates may not contain nested variables")]
    NestedVariable,
    #[error("variable has an empty field path")]
    EmptyFieldPath,
    #[error("variable field path contains an invalid identifier")]
    FieldName,
    #[error("literal contains an invalid character or percent escape")]
    Literal,
    #[error("'**' may only appear as the final segment")]
    RestNotLast,
    #[error("custom verb after ':' is empty")]
    EmptyVerb,
    #[error("custom verb after ':' is not a valid path-template literal")]
    Verb,
    #[error("template contains more than one ':' verb separator")]
    SeveralVerbs,
}

impl Template {
    /// Parses a template (http.proto, "Path template syntax").
    ///
    /// # Errors
    ///
    /// Fails with the first syntax error.
    pub(crate) fn parse(text: &str) -> Result<Template, TemplateError> {
        if !text.starts_with('/') {
            return Err(TemplateError::MissingSlash);
        }
        let (path, verb) = split_verb(text)?;
        let mut template = Template { segments: Vec::new(), verb: verb.map(Into::into), variables: Vec::new() };
        if path != "/" {
            template.push_all(&path[1..])?;
        }
        let mut before_last = template.segments.iter().rev().skip(1);
        if before_last.any(|segment| *segment == Segment::Rest) {
            return Err(TemplateError::RestNotLast);
        }
        Ok(template)
    }

    /// The reason why no path can match under a base path of `base` segments. `None` if a path can match.
    pub(crate) fn unreachable(&self, base: usize) -> Option<&'static str> {
        let dots = |segment: &Segment| matches!(segment, Segment::Literal(text) if is_dot_segment(text));
        if self.segments.iter().any(dots) {
            Some("paths with dot segments have no route")
        } else if base + self.segments.len() > SEGMENTS_MAX {
            Some("paths of more than 64 segments have no route")
        } else {
            None
        }
    }

    /// Parses segments, separated by slashes outside of braces.
    fn push_all(&mut self, path: &str) -> Result<(), TemplateError> {
        let (mut depth, mut start) = (0_i32, 0);
        for (position, byte) in path.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b'/' if depth == 0 => {
                    self.push(&path[start..position])?;
                    start = position + 1;
                }
                _ => {}
            }
        }
        if depth == 0 { self.push(&path[start..]) } else { Err(TemplateError::UnbalancedBraces) }
    }

    fn push(&mut self, segment: &str) -> Result<(), TemplateError> {
        match segment.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
            Some(inner) => self.push_variable(inner),
            None => {
                self.segments.push(plain_segment(segment)?);
                Ok(())
            }
        }
    }

    /// Parses a variable: `field.path=segments`, or `field.path`, which means `field.path=*`.
    fn push_variable(&mut self, inner: &str) -> Result<(), TemplateError> {
        let (field_path, segments) = inner.split_once('=').unwrap_or((inner, "*"));
        if field_path.is_empty() {
            return Err(TemplateError::EmptyFieldPath);
        }
        if !field_path.split('.').all(is_identifier) {
            return Err(TemplateError::FieldName);
        }
        let start = self.segments.len();
        for segment in segments.split('/') {
            if segment.contains('{') {
                return Err(TemplateError::NestedVariable);
            }
            self.segments.push(plain_segment(segment)?);
        }
        let end = self.segments.len();
        let multi = end - start > 1 || self.segments.last() == Some(&Segment::Rest);
        self.variables.push(Variable { field_path: field_path.into(), start, end, multi });
        Ok(())
    }
}

/// Splits off the verb, at the first colon outside of braces.
fn split_verb(text: &str) -> Result<(&str, Option<&str>), TemplateError> {
    let mut depth = 0_usize;
    let mut colon = None;
    for (position, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b'}' if colon.is_none() => return Err(TemplateError::UnbalancedBraces),
            b':' if depth == 0 && colon.is_some() => return Err(TemplateError::SeveralVerbs),
            b':' if depth == 0 => colon = Some(position),
            _ => {}
        }
    }
    let Some(colon) = colon else { return Ok((text, None)) };
    match &text[colon + 1..] {
        "" => Err(TemplateError::EmptyVerb),
        verb if is_literal(verb) => Ok((&text[..colon], Some(verb))),
        _ => Err(TemplateError::Verb),
    }
}

/// Parses a segment without a variable.
fn plain_segment(text: &str) -> Result<Segment, TemplateError> {
    match text {
        "" => Err(TemplateError::EmptySegment),
        "*" => Ok(Segment::Single),
        "**" => Ok(Segment::Rest),
        text if is_literal(text) => Ok(Segment::Literal(text.into())),
        _ => Err(TemplateError::Literal),
    }
}

fn is_identifier(name: &str) -> bool {
    let is_letter = |byte: u8| byte == b'_' || byte.is_ascii_alphabetic();
    name.bytes().next().is_some_and(is_letter) && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

/// Whether the text is a path segment (RFC 3986 §3.3, `pchar`) without `*`, the wildcard.
fn is_literal(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let valid = match byte {
            b'%' => [bytes.next(), bytes.next()]
                .into_iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())),
            byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte),
        };
        if !valid {
            return false;
        }
    }
    true
}

impl Variable {
    /// Decodes a captured value, once. If the variable can match several segments, `%2F` and `%2f` are not decoded (http.proto, "Path
    /// template syntax").
    pub(crate) fn decode<'p>(&self, raw: &'p str) -> Result<Cow<'p, str>, InvalidUtf8> {
        if !raw.contains('%') {
            return Ok(Cow::Borrowed(raw));
        }
        let mut text = String::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(position) = rest.find('%') {
            let (before, escape) = rest.split_at(position);
            text.push_str(before);
            // Consecutive escapes are decoded together, because one character may have several.
            let run = escape_run(escape)?;
            let (escapes, after) = escape.split_at(run);
            if self.multi {
                let mut pending = escapes;
                while let Some(slash) = find_escaped_slash(pending) {
                    decode_into(&pending[..slash], &mut text)?;
                    text.push_str(&pending[slash..slash + 3]);
                    pending = &pending[slash + 3..];
                }
                decode_into(pending, &mut text)?;
            } else {
                decode_into(escapes, &mut text)?;
            }
            rest = after;
        }
        text.push_str(rest);
        Ok(Cow::Owned(text))
    }
}

/// The length of the escapes at the start of the text, in bytes.
fn escape_run(text: &str) -> Result<usize, InvalidUtf8> {
    let bytes = text.as_bytes();
    let mut length = 0;
    while let Some(b'%') = bytes.get(length) {
        match bytes.get(length + 1..length + 3) {
            Some([high, low]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => length += 3,
            _ => return Err(InvalidUtf8),
        }
    }
    Ok(length)
}

/// Finds `%2F` in consecutive escapes of three bytes each.
fn find_escaped_slash(escapes: &str) -> Option<usize> {
    (0..escapes.len()).step_by(3).find(|&position| escapes[position..position + 3].eq_ignore_ascii_case("%2f"))
}

fn decode_into(escapes: &str, text: &mut String) -> Result<(), InvalidUtf8> {
    text.push_str(&percent_decode_str(escapes).decode_utf8().map_err(|_| InvalidUtf8)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(multi: bool, raw: &str) -> Option<String> {
        Variable { field_path: "name".into(), start: 0, end: 1, multi }.decode(raw).ok().map(Cow::into_owned)
    }

    #[test]
    fn templates_are_parsed() {
        let template = Template::parse("/v1/{parent=shelves/*}/books/{book.name=**}:read").unwrap();
        assert_eq!(template.segments.len(), 5);
        assert_eq!(template.verb.as_deref(), Some("read"));
        let spans: Vec<_> = template.variables.iter().map(|v| (&*v.field_path, v.start, v.end, v.multi)).collect();
        assert_eq!(spans, [("parent", 1, 3, true), ("book.name", 4, 5, true)]);
        assert!(Template::parse("/v1/{a=**}/b").is_err());
        assert!(Template::parse("v1").is_err());
    }

    #[test]
    fn syntax_errors_are_reported() {
        for (text, error) in [
            ("", TemplateError::MissingSlash),
            ("v1/{a}", TemplateError::MissingSlash),
            ("/a//b", TemplateError::EmptySegment),
            ("/a/", TemplateError::EmptySegment),
            ("/{a=}", TemplateError::EmptySegment),
            ("/{a", TemplateError::UnbalancedBraces),
            ("/a}", TemplateError::UnbalancedBraces),
            ("/{a={b}}", TemplateError::NestedVariable),
            ("/{}", TemplateError::EmptyFieldPath),
            ("/{=*}", TemplateError::EmptyFieldPath),
            ("/{a..b}", TemplateError::FieldName),
            ("/{1a}", TemplateError::FieldName),
            ("/a*", TemplateError::Literal),
            ("/a{b}", TemplateError::Literal),
            ("/%4", TemplateError::Literal),
            ("/caf\u{e9}", TemplateError::Literal),
            ("/**/a", TemplateError::RestNotLast),
            ("/{a=**}/{b=**}", TemplateError::RestNotLast),
            ("/a:", TemplateError::EmptyVerb),
            ("/a:b*", TemplateError::Verb),
            ("/a:b/c", TemplateError::Verb),
            ("/a:b:c", TemplateError::SeveralVerbs),
        ] {
            assert_eq!(Template::parse(text).map(|template| template.segments.len()), Err(error), "{text}");
        }
        for text in ["/", "/:poll", "/a:b", "/*/{a}/**", "/{a=x:y/*}", "/{_a.b1=**}:v", "/%2Fa@b"] {
            assert!(Template::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn templates_that_never_match_are_reported() {
        for text in ["/a/../b", "/.", "/a/%2e", "/a/%2E."] {
            assert!(Template::parse(text).unwrap().unreachable(0).is_some(), "{text}");
        }
        let long = Template::parse(&"/a".repeat(64)).unwrap();
        assert_eq!(long.unreachable(0), None);
        assert!(long.unreachable(1).is_some());
    }

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(decode(false, "a%2Fb").as_deref(), Some("a/b"));
        assert_eq!(decode(false, "a%252Fb").as_deref(), Some("a%2Fb"));
        assert_eq!(decode(false, "caf%C3%A9").as_deref(), Some("café"));
        assert_eq!(decode(false, "a+b").as_deref(), Some("a+b"));
        assert_eq!(decode(true, "x/a%2Fb/c%20d").as_deref(), Some("x/a%2Fb/c d"));
        assert_eq!(decode(true, "%C3%A9%2f%41").as_deref(), Some("é%2fA"));
    }

    #[test]
    fn invalid_escapes_and_invalid_utf8_are_rejected() {
        for raw in ["%", "%2", "%zz", "a%C3", "%FF", "%C3%2F%A9"] {
            assert_eq!(decode(true, raw), None, "{raw}");
        }
        assert_eq!(decode(false, "%2g"), None);
    }
}
