//! Path templates of http.proto as OpenAPI paths, in which a parameter is one segment.
//!
//! `{name=shelves/*}` becomes `shelves/{name}`. The URL is the same, and a client that escapes parameter values does not escape the
//! slash of a `name`.

use std::collections::HashMap;

use crate::template::Segment;
use crate::template::Template;
use crate::template::Variable;

/// A path and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathItem {
    pub text: String,
    pub wildcards: Vec<Wildcard>,
}

/// A path parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wildcard {
    pub name: String,
    /// The field whose value, or part of whose value, it is.
    pub field: Option<String>,
    /// Whether it is the complete value of the field.
    pub whole: bool,
    /// Whether it is the rest of the path, including slashes.
    pub rest: bool,
    pub note: Option<String>,
}

/// The paths by their shape. Paths that differ only in parameter names are one path in OpenAPI, with the names of the first.
#[derive(Debug, Default)]
pub(super) struct Paths(HashMap<String, PathItem>);

impl Paths {
    pub(super) fn add(&mut self, template: &Template) -> PathItem {
        let mut path = PathItem { text: String::new(), wildcards: Vec::new() };
        let mut shape = String::new();
        for (position, segment) in template.segments.iter().enumerate() {
            path.text.push('/');
            shape.push('/');
            match segment {
                Segment::Literal(literal) => {
                    path.text.push_str(literal);
                    shape.push_str(literal);
                }
                Segment::Single | Segment::Rest => {
                    let wildcard = wildcard(template, position, path.wildcards.len());
                    path.text.push_str(&format!("{{{}}}", wildcard.name));
                    shape.push_str(if wildcard.rest { "**" } else { "*" });
                    path.wildcards.push(wildcard);
                }
            }
        }
        if template.segments.is_empty() {
            path.text.push('/');
            shape.push('/');
        }
        if let Some(verb) = &template.verb {
            path.text.push_str(&format!(":{verb}"));
            shape.push_str(&format!(":{verb}"));
        }
        match self.0.get(&shape) {
            Some(first) => path.rename(first),
            None => drop(self.0.insert(shape, path.clone())),
        }
        path
    }
}

impl PathItem {
    fn rename(&mut self, first: &PathItem) {
        self.text.clone_from(&first.text);
        for (wildcard, first) in self.wildcards.iter_mut().zip(&first.wildcards) {
            if wildcard.name != first.name {
                let note = format!("The field `{}` of the request.", wildcard.name);
                wildcard.note =
                    Some([Some(note), wildcard.note.take()].into_iter().flatten().collect::<Vec<_>>().join("\n\n"));
                wildcard.name.clone_from(&first.name);
            }
        }
    }
}

fn wildcard(template: &Template, position: usize, count: usize) -> Wildcard {
    let rest = template.segments[position] == Segment::Rest;
    let slashes = rest.then(|| "The rest of the path. Slashes are not escaped.".to_owned());
    let Some(variable) = template.variables.iter().find(|variable| (variable.start..variable.end).contains(&position))
    else {
        // Binds no field. No field can have this name.
        return Wildcard { name: format!("*{}", count + 1), field: None, whole: false, rest, note: slashes };
    };
    let field = Some(variable.field_path.to_string());
    let segments = &template.segments[variable.start..variable.end];
    let is_wild = |segment: &&Segment| !matches!(segment, Segment::Literal(_));
    if segments.iter().filter(is_wild).count() > 1 {
        let number = template.segments[variable.start..=position].iter().filter(is_wild).count();
        let name = format!("{}.{number}", variable.field_path);
        return Wildcard { name, field, whole: false, rest, note: Some(part_note(variable, segments, slashes)) };
    }
    let whole = segments.len() == 1;
    let note = if whole { slashes } else { Some(part_note(variable, segments, slashes)) };
    Wildcard { name: variable.field_path.to_string(), field, whole, rest, note }
}

fn part_note(variable: &Variable, segments: &[Segment], slashes: Option<String>) -> String {
    let pattern: Vec<&str> = segments
        .iter()
        .map(|segment| match segment {
            Segment::Literal(literal) => literal,
            Segment::Single => "*",
            Segment::Rest => "**",
        })
        .collect();
    let part = format!("A part of `{}`, which has the form `{}`.", variable.field_path, pattern.join("/"));
    [Some(part), slashes].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_keeps_its_literals() {
        let mut paths = Paths::default();
        let mut text = |template: &str| paths.add(&Template::parse(template).unwrap()).text;
        assert_eq!(text("/v1/{session.id}:cancel"), "/v1/{session.id}:cancel");
        assert_eq!(text("/v1/{name=shelves/*}"), "/v1/shelves/{name}");
        assert_eq!(text("/v1/{name=shelves/*/books/*}/x"), "/v1/shelves/{name.1}/books/{name.2}/x");
        assert_eq!(text("/files/{path=**}"), "/files/{path}");
        assert_eq!(text("/any/*/of/{it}"), "/any/{*1}/of/{it}");
        // OpenAPI: a path begins with a slash, the one without segments too.
        assert_eq!(text("/"), "/");
        assert_eq!(text("/:poll"), "/:poll");
    }

    #[test]
    fn paths_of_one_shape_have_the_same_names() {
        let mut paths = Paths::default();
        paths.add(&Template::parse("/sessions/{id}").unwrap());
        let path = paths.add(&Template::parse("/sessions/{session.id}").unwrap());
        assert_eq!(path.text, "/sessions/{id}");
        let wildcard = &path.wildcards[0];
        assert_eq!((wildcard.name.as_str(), wildcard.field.as_deref()), ("id", Some("session.id")));
    }
}
