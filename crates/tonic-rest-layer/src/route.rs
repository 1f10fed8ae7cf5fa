//! Finds the route for a method and a path, in a trie, so that a lookup among 1,000 routes costs about as much as among 10.
//!
//! The rules, most of them from http.proto:
//! - Literals have precedence over `*`, and `*` over `**`, in any order of declaration, with backtracking.
//! - The most specific template *that has the method* wins. The status is 405 only if no matching template has it.
//! - A registered custom verb has precedence over a value that contains a colon; with an unregistered verb, `a:b` is a value.
//! - Paths are not normalised: no double slashes, no dot segments, no case folding. Literals match undecoded.

use std::borrow::Cow;

use http::Method;
use rustc_hash::FxHashMap;

use crate::template::SEGMENTS_MAX;
use crate::template::Segment;
use crate::template::Template;
use crate::template::is_dot_segment;

/// All templates under all base paths. A route is a number that the caller assigns.
#[derive(Debug)]
pub(crate) struct Router {
    nodes: Vec<Node>,
}

/// A node of the trie.
#[derive(Debug, Default)]
struct Node {
    /// The keys come from the descriptors, not from clients, so a hash without a random seed is safe.
    literals: FxHashMap<Box<str>, usize>,
    single: Option<usize>,
    /// Templates that end here.
    end: Leaf,
    /// Templates that end here with a `**`.
    rest: Leaf,
}

/// Templates of the same shape, by custom verb, then by method.
#[derive(Debug, Default)]
struct Leaf(Vec<(Option<Box<str>>, Methods)>);

/// The methods of a template, with their routes.
type Methods = Vec<(MethodPattern, usize)>;

/// The HTTP method of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MethodPattern {
    Exact(Method),
    /// `custom { kind: "*" }`.
    Any,
}

/// The result of a search.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RouteMatch {
    Route {
        route: usize,
        path: Path,
    },
    /// A template matches the path, but not with this method. Has its methods, in the order of the `Allow` header.
    OtherMethods(Vec<Method>),
    Unknown,
}

/// The ends of the segments of a path, without a registered verb. `http` limits URIs to less than 65,535 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    ends: [u16; SEGMENTS_MAX],
    count: usize,
    /// The number of segments of the base path.
    base: usize,
}

impl Router {
    pub(crate) fn new() -> Router {
        Router { nodes: vec![Node::default()] }
    }

    /// Adds a template under a base path, given as its segments.
    ///
    /// # Errors
    ///
    /// Fails with the existing route of this method, shape and custom verb.
    pub(crate) fn insert(
        &mut self,
        base: &[Box<str>],
        template: &Template,
        pattern: &MethodPattern,
        route: usize,
    ) -> Result<(), usize> {
        let mut node = 0;
        for literal in base {
            node = self.literal(node, literal);
        }
        let mut rest = false;
        for segment in &template.segments {
            match segment {
                Segment::Literal(literal) => node = self.literal(node, literal),
                Segment::Single => {
                    node = match self.nodes[node].single {
                        Some(next) => next,
                        None => {
                            let next = self.add();
                            *self.nodes[node].single.insert(next)
                        }
                    };
                }
                Segment::Rest => rest = true,
            }
        }
        let node = &mut self.nodes[node];
        let leaf = if rest { &mut node.rest } else { &mut node.end };
        leaf.insert(template.verb.as_deref(), pattern, route)
    }

    /// The existing route with the method, shape and custom verb of this template.
    pub(crate) fn existing(&self, base: &[Box<str>], template: &Template, pattern: &MethodPattern) -> Option<usize> {
        let mut node = &self.nodes[0];
        let mut rest = false;
        let literals = base.iter().map(|literal| Segment::Literal(literal.clone()));
        for segment in literals.chain(template.segments.iter().cloned()) {
            let next = match segment {
                Segment::Literal(literal) => node.literals.get(&*upper_case_escapes(&literal)).copied(),
                Segment::Single => node.single,
                Segment::Rest => {
                    rest = true;
                    continue;
                }
            };
            node = &self.nodes[next?];
        }
        let leaf = if rest { &node.rest } else { &node.end };
        let methods = leaf.with_verb(template.verb.as_deref())?;
        methods.iter().find(|(other, _)| other == pattern).map(|(_, route)| *route)
    }

    fn add(&mut self) -> usize {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }

    fn literal(&mut self, node: usize, literal: &str) -> usize {
        // "If the LITERAL contains any reserved character, such characters should be percent-encoded before the
        // matching" (http.proto): a client may send either form, so both lead to the same node.
        let plain = upper_case_escapes(literal);
        let encoded = percent_encode(&plain);
        let known = &self.nodes[node].literals;
        let next = known.get(&*plain).or_else(|| known.get(encoded.as_str())).copied();
        let next = next.unwrap_or_else(|| self.add());
        self.nodes[node].literals.insert(plain.into(), next);
        self.nodes[node].literals.insert(encoded.into(), next);
        next
    }

    /// Finds the route of a request. The caller then sets the length of its base path with [`Path::with_base`].
    pub(crate) fn find(&self, method: &Method, text: &str) -> RouteMatch {
        let Some(mut path) = Path::split(text) else { return RouteMatch::Unknown };
        // A registered custom verb applies to all methods. Otherwise `x:cancel` would be an id for GET.
        if let Some((colon, verb)) = path.verb(text) {
            let whole = path.cut(colon);
            match self.find_with(method, text, &path, Some(verb)) {
                Search::NotFound => path.restore(whole),
                // Without the verb, the last segment may be a dot segment.
                _ if path.last(text).is_some_and(is_dot_segment) => return RouteMatch::Unknown,
                Search::Found(route) => return RouteMatch::Route { route, path },
                Search::OtherMethods(methods) => return RouteMatch::OtherMethods(methods),
            }
        }
        match self.find_with(method, text, &path, None) {
            Search::Found(route) => RouteMatch::Route { route, path },
            Search::OtherMethods(methods) => RouteMatch::OtherMethods(methods),
            Search::NotFound => RouteMatch::Unknown,
        }
    }

    fn find_with(&self, method: &Method, text: &str, path: &Path, verb: Option<&str>) -> Search {
        let mut found = None;
        self.walk(0, text, path, 0, verb, &mut |methods| {
            found = select_method(methods, method);
            found.is_some()
        });
        if let Some(route) = found {
            return Search::Found(route);
        }
        let mut known = Vec::new();
        self.walk(0, text, path, 0, verb, &mut |methods| {
            known.extend(methods.iter().map(|(pattern, _)| pattern.clone()));
            false
        });
        if known.is_empty() { Search::NotFound } else { Search::OtherMethods(allowed(&known)) }
    }

    /// Visits the matching templates, the most specific first, until `visit` returns `true`.
    ///
    /// Visits each node at most once, so the worst case is the size of the trie.
    fn walk(
        &self,
        node: usize,
        text: &str,
        path: &Path,
        position: usize,
        verb: Option<&str>,
        visit: &mut impl FnMut(&[(MethodPattern, usize)]) -> bool,
    ) -> bool {
        let node = &self.nodes[node];
        let done = match path.segment(text, position) {
            None => node.end.with_verb(verb).is_some_and(&mut *visit),
            Some("") => false,
            Some(segment) => {
                let literal = node.literals.get(&*upper_case_escapes(segment)).copied();
                [literal, node.single]
                    .into_iter()
                    .flatten()
                    .any(|next| self.walk(next, text, path, position + 1, verb, &mut *visit))
            }
        };
        done || (!node.rest.0.is_empty() && path.is_rest_from(position) && node.rest.with_verb(verb).is_some_and(visit))
    }
}

enum Search {
    Found(usize),
    OtherMethods(Vec<Method>),
    NotFound,
}

impl Leaf {
    fn insert(&mut self, verb: Option<&str>, pattern: &MethodPattern, route: usize) -> Result<(), usize> {
        let place = self.0.iter().position(|(other, _)| other.as_deref() == verb).unwrap_or_else(|| {
            self.0.push((verb.map(Into::into), Vec::new()));
            self.0.len() - 1
        });
        let methods = &mut self.0[place].1;
        if let Some((_, other)) = methods.iter().find(|(other, _)| other == pattern) {
            return Err(*other);
        }
        methods.push((pattern.clone(), route));
        Ok(())
    }

    fn with_verb(&self, verb: Option<&str>) -> Option<&[(MethodPattern, usize)]> {
        self.0.iter().find(|(other, _)| other.as_deref() == verb).map(|(_, methods)| methods.as_slice())
    }
}

/// Selects the rule for the method, else the one for GET if the method is HEAD (RFC 9110 §9.3.2), else the one for every method.
fn select_method(methods: &[(MethodPattern, usize)], method: &Method) -> Option<usize> {
    let find = |wanted: &MethodPattern| methods.iter().find(|(pattern, _)| pattern == wanted).map(|(_, route)| *route);
    find(&MethodPattern::Exact(method.clone()))
        .or_else(|| if method == Method::HEAD { find(&MethodPattern::Exact(Method::GET)) } else { None })
        .or_else(|| find(&MethodPattern::Any))
}

/// The methods for `Allow`, without duplicates, in an order independent of that of the rules.
fn allowed(known: &[MethodPattern]) -> Vec<Method> {
    const COMMON: [Method; 6] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let has =
        |method: &Method| known.contains(&MethodPattern::Any) || known.contains(&MethodPattern::Exact(method.clone()));
    let mut methods: Vec<Method> =
        COMMON.into_iter().filter(|method| has(method) || (*method == Method::HEAD && has(&Method::GET))).collect();
    for pattern in known {
        if let MethodPattern::Exact(method) = pattern
            && !methods.contains(method)
        {
            methods.push(method.clone());
        }
    }
    methods
}

impl Path {
    fn split(text: &str) -> Option<Path> {
        let rest = text.strip_prefix('/')?;
        let mut path = Path { ends: [0; SEGMENTS_MAX], count: 0, base: 0 };
        // "/" is the template without segments, not one empty segment.
        if !rest.is_empty() {
            let mut end = 0;
            for segment in rest.split('/') {
                // Proxies may resolve dot segments, and not all in the same way.
                if is_dot_segment(segment) {
                    return None;
                }
                end += 1 + segment.len();
                *path.ends.get_mut(path.count)? = u16::try_from(end).ok()?;
                path.count += 1;
            }
        }
        Some(path)
    }

    fn bounds(&self, position: usize) -> (usize, usize) {
        let before = position.checked_sub(1).map_or(0, |before| self.ends[before].into());
        (before + 1, self.ends[position].into())
    }

    fn segment<'p>(&self, text: &'p str, position: usize) -> Option<&'p str> {
        let (start, end) = if position < self.count { self.bounds(position) } else { return None };
        text.get(start..end)
    }

    fn last<'p>(&self, text: &'p str) -> Option<&'p str> {
        self.segment(text, self.count.checked_sub(1)?)
    }

    /// The position of the last colon in the last segment, and the text after it.
    fn verb<'p>(&self, text: &'p str) -> Option<(usize, &'p str)> {
        let (start, end) = self.bounds(self.count.checked_sub(1)?);
        let colon = start + text[start..end].rfind(':')?;
        Some((colon, &text[colon + 1..end]))
    }

    /// Ends the path before the colon. Returns the state for [`Path::restore`].
    fn cut(&mut self, colon: usize) -> (usize, u16) {
        let whole = (self.count, self.ends[self.count - 1]);
        // `/:verb` is a path without segments; `/a/:verb` has an empty last segment.
        if colon == 1 {
            self.count = 0;
        } else {
            self.ends[self.count - 1] = colon as u16;
        }
        whole
    }

    fn restore(&mut self, (count, end): (usize, u16)) {
        self.count = count;
        self.ends[count - 1] = end;
    }

    /// Whether a `**` matches the rest of the path. Only the last segment may be empty: `/files/` is the expansion of
    /// `/files/{name=**}` with an empty name (http.proto, "Path template syntax").
    fn is_rest_from(&self, position: usize) -> bool {
        let before_last = self.count.saturating_sub(1);
        (position..before_last).map(|position| self.bounds(position)).all(|(start, end)| start < end)
    }

    /// Sets the number of segments of the base path.
    pub(crate) fn with_base(mut self, base: usize) -> Path {
        self.base = base;
        self
    }

    /// Returns the part of `text`, undecoded, that the template's segments `start..end` match. `text` is the path of the request. A
    /// `**` at the end matches the rest.
    pub(crate) fn capture<'p>(&self, text: &'p str, start: usize, end: usize, template_length: usize) -> &'p str {
        let first = self.base + start;
        let last = if end == template_length { self.count } else { self.base + end };
        if first >= last || last > self.count {
            return "";
        }
        text.get(self.bounds(first).0..self.bounds(last - 1).1).unwrap_or_default()
    }
}

/// Changes escapes to upper case, because `%2b` and `%2B` are equivalent (RFC 3986 §6.2.2.1).
fn upper_case_escapes(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut remaining = 0;
    let letters = segment.chars().map(|letter| {
        remaining = if letter == '%' { 2 } else { i32::max(remaining - 1, -1) };
        if remaining >= 0 { letter.to_ascii_uppercase() } else { letter }
    });
    Cow::Owned(letters.collect())
}

/// Escapes all characters but `[-_.~0-9a-zA-Z]` and `%`, in upper case.
fn percent_encode(literal: &str) -> String {
    use percent_encoding::AsciiSet;
    use percent_encoding::NON_ALPHANUMERIC;
    use percent_encoding::utf8_percent_encode;
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'%');
    utf8_percent_encode(literal, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Routes are numbered in the order of `rules`.
    fn router(rules: &[(&str, &str)]) -> (Router, Vec<Template>) {
        let mut router = Router::new();
        let mut templates = Vec::new();
        for (route, (method, template)) in rules.iter().enumerate() {
            let pattern =
                if *method == "*" { MethodPattern::Any } else { MethodPattern::Exact(method.parse().unwrap()) };
            let template = Template::parse(template).unwrap();
            router.insert(&[], &template, &pattern, route).unwrap();
            templates.push(template);
        }
        (router, templates)
    }

    /// The route, or the allowed methods.
    fn find(router: &Router, method: &str, path: &str) -> Result<usize, String> {
        match router.find(&method.parse().unwrap(), path) {
            RouteMatch::Route { route, .. } => Ok(route),
            RouteMatch::OtherMethods(methods) => Err(methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")),
            RouteMatch::Unknown => Err("404".to_owned()),
        }
    }

    #[test]
    fn literals_have_precedence_in_any_order_of_declaration() {
        for rules in [[("GET", "/s/current"), ("GET", "/s/{id}")], [("GET", "/s/{id}"), ("GET", "/s/current")]] {
            let (router, templates) = router(&rules);
            let route = find(&router, "GET", "/s/current").unwrap();
            assert!(templates[route].variables.is_empty());
            let route = find(&router, "GET", "/s/other").unwrap();
            assert!(!templates[route].variables.is_empty());
        }
    }

    #[test]
    fn the_search_backtracks() {
        let (router, _) = router(&[("GET", "/a/b/c"), ("GET", "/a/*/d"), ("GET", "/{rest=**}")]);
        assert_eq!(find(&router, "GET", "/a/b/c"), Ok(0));
        assert_eq!(find(&router, "GET", "/a/b/d"), Ok(1));
        assert_eq!(find(&router, "GET", "/a/b/e"), Ok(2));
        assert_eq!(find(&router, "GET", "/"), Ok(2));
    }

    #[test]
    fn a_less_specific_template_with_the_method_wins() {
        let (router, _) = router(&[("GET", "/s/current"), ("DELETE", "/s/{id}"), ("*", "/any")]);
        assert_eq!(find(&router, "DELETE", "/s/current"), Ok(1));
        assert_eq!(find(&router, "HEAD", "/s/current"), Ok(0));
        assert_eq!(find(&router, "PUT", "/s/current"), Err("GET, HEAD, DELETE".to_owned()));
        assert_eq!(find(&router, "PURGE", "/any"), Ok(2));
        assert_eq!(find(&router, "OPTIONS", "/any"), Ok(2));
    }

    #[test]
    fn registered_verbs_have_precedence_and_others_are_values() {
        let (router, _) = router(&[("POST", "/i/{id}:cancel"), ("GET", "/i/{id}"), ("POST", "/{n=**}:read")]);
        assert_eq!(find(&router, "POST", "/i/x:cancel"), Ok(0));
        assert_eq!(find(&router, "GET", "/i/x:cancel"), Err("POST".to_owned()));
        assert_eq!(find(&router, "GET", "/i/x:other"), Ok(1));
        assert_eq!(find(&router, "GET", "/i/x%3Acancel"), Ok(1));
        assert_eq!(find(&router, "POST", "/a/b/c:read"), Ok(2));
        assert_eq!(find(&router, "POST", "/:read"), Ok(2));
        assert_eq!(
            find(&router, "GET", "/i/:cancel"),
            Ok(1),
            "the id before the verb is empty, so `:cancel` is a value"
        );
    }

    #[test]
    fn paths_are_not_normalised() {
        let (router, _) = router(&[("GET", "/a/{id}"), ("GET", "/f/{n=**}"), ("GET", "/@me")]);
        for path in
            ["//a/b", "/a//b", "/a/", "/a/b/", "/A/b", "/a/..", "/a/%2e%2E", "/f/../a", "/f/x//y", "a/b", "", "*"]
        {
            assert_eq!(find(&router, "GET", path), Err("404".to_owned()), "{path}");
        }
        assert_eq!(find(&router, "GET", "/f"), Ok(1));
        assert_eq!(find(&router, "GET", "/f/x/y"), Ok(1));
        assert_eq!(find(&router, "GET", "/f/"), Ok(1));
        assert_eq!(find(&router, "GET", "/f//"), Err("404".to_owned()));
        assert_eq!(find(&router, "GET", "/@me"), Ok(2));
        assert_eq!(find(&router, "GET", "/%40me"), Ok(2));
        assert_eq!(find(&router, "GET", &"/x".repeat(70_000)), Err("404".to_owned()));
    }

    #[test]
    fn dot_segments_before_a_verb_are_rejected() {
        let (router, _) = router(&[("POST", "/i/{id}:cancel"), ("POST", "/o/{n=**}:cancel"), ("GET", "/i/{id}")]);
        for path in ["/i/..:cancel", "/i/%2e%2E:cancel", "/i/.:cancel", "/o/a/..:cancel", "/o/%2e:cancel"] {
            assert_eq!(find(&router, "POST", path), Err("404".to_owned()), "{path}");
        }
        assert_eq!(find(&router, "POST", "/i/...:cancel"), Ok(0));
        assert_eq!(find(&router, "GET", "/i/..:other"), Ok(2), "no verb, so no dot segment");
    }

    #[test]
    fn escapes_match_in_either_case() {
        let (router, _) = router(&[("GET", "/langs/c++"), ("GET", "/langs/{id}"), ("GET", "/x/c%2b")]);
        for path in ["/langs/c++", "/langs/c%2B%2B", "/langs/c%2b%2b", "/langs/c%2b%2B"] {
            assert_eq!(find(&router, "GET", path), Ok(0), "{path}");
        }
        assert_eq!(find(&router, "GET", "/langs/C%2b%2b"), Ok(1), "letters keep their case");
        assert_eq!(find(&router, "GET", "/x/c%2B"), Ok(2));
        assert_eq!(find(&router, "GET", "/x/c%2b"), Ok(2));
    }

    #[test]
    fn captures_keep_their_escapes() {
        let (router, templates) = router(&[("GET", "/v1/{name=shelves/*/books/**}:read")]);
        let RouteMatch::Route { route, path } = router.find(&Method::GET, "/v1/shelves/a%2Fb/books/c/d:read") else {
            panic!("no route");
        };
        let variable = &templates[route].variables[0];
        let text = "/v1/shelves/a%2Fb/books/c/d:read";
        let captured = path.capture(text, variable.start, variable.end, templates[route].segments.len());
        assert_eq!(captured, "shelves/a%2Fb/books/c/d");
    }

    #[test]
    fn duplicate_shapes_are_rejected() {
        let mut router = Router::new();
        let get = MethodPattern::Exact(Method::GET);
        let insert =
            |router: &mut Router, text: &str, route| router.insert(&[], &Template::parse(text).unwrap(), &get, route);
        assert_eq!(insert(&mut router, "/a/{x}", 0), Ok(()));
        assert_eq!(insert(&mut router, "/a/{y=*}", 1), Err(0));
        assert_eq!(insert(&mut router, "/a/{x}:verb", 2), Ok(()));
        assert_eq!(insert(&mut router, "/a/{y=**}", 3), Ok(()));
    }
}
