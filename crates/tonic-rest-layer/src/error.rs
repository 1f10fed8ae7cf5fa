//! The errors of building a layer, and the error type of bodies.

use std::error::Error;
use std::fmt;

use http::Method;

/// A boxed error, as in tower.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// All errors that prevent a layer or a document from being built.
#[derive(Debug, thiserror::Error)]
pub struct BuildErrors(pub(crate) Vec<BuildError>);

impl BuildErrors {
    /// Iterates over the errors, in the order of the descriptor set.
    pub fn iter(&self) -> std::slice::Iter<'_, BuildError> {
        self.0.iter()
    }
}

impl fmt::Display for BuildErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// An error, and the method whose rule has it.
#[derive(Debug, thiserror::Error)]
#[error("{service}/{method}: {reason}")]
pub struct BuildError {
    /// The service's full name; empty if the error is not one of a method.
    pub service: String,
    /// The method's name; empty if the error is not one of a method.
    pub method: String,
    /// What is wrong.
    pub reason: RuleError,
}

/// What is wrong with a rule, a descriptor set or an option.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The bytes are not a file descriptor set, or files that it imports are missing.
    #[error("not a complete file descriptor set")]
    Descriptors(#[source] BoxError),
    /// A file has an unsupported syntax, such as an edition.
    #[error("{file} has syntax {syntax:?}; proto2 and proto3 are supported, editions are not yet")]
    Syntax {
        /// The file's name.
        file: String,
        /// Its syntax.
        syntax: String,
    },
    /// Two files of the set have the same name.
    #[error("the set has two files with the name {0}")]
    DuplicateFile(String),
    /// The builder has a service that the set does not have.
    #[error("the set has no service {0}")]
    UnknownService(String),
    /// The builder has a bound for a field that the set does not have, or that is neither repeated nor a map.
    #[error("the set has no repeated field or map {0}")]
    UnknownRepeatedField(String),
    /// No method has a rule. Re-encoding a set with a tool that does not know `google.api.http` drops them silently.
    #[error("no method has a google.api.http rule; was the descriptor set re-encoded without its extensions?")]
    NoRules,
    /// A base path that is not `/` or `/segments/like/these`.
    #[error("the base path {0:?} is not \"/\" or literal segments after a \"/\"")]
    BasePath(String),
    /// The rule names no HTTP method and path.
    #[error("the rule has no pattern")]
    NoPattern,
    /// The `kind` of a custom pattern is not an HTTP method.
    #[error("custom kind {0:?} is not an HTTP method")]
    CustomKind(String),
    /// The path template has a syntax error (http.proto, "Path template syntax").
    #[error("template {template:?}: {source}")]
    Template {
        /// The template.
        template: String,
        /// The syntax error.
        source: BoxError,
    },
    /// No path can match the template.
    #[error("template {template:?} never matches: {why}")]
    NeverMatches {
        /// The template or the base path.
        template: String,
        /// Why it never matches.
        why: &'static str,
    },
    /// The method's name is not a valid path.
    #[error("the method's name is not a valid path")]
    MethodName,
    /// A variable, `body` or `response_body` names a field that does not exist.
    #[error("no field {field} in {message}")]
    UnknownField {
        /// The name in the rule.
        field: String,
        /// The message without this field.
        message: String,
    },
    /// A variable binds a repeated field or a message (forbidden by http.proto).
    #[error("path variable {0} must be a non-repeated primitive field")]
    VariableType(String),
    /// A variable binds a field of a message with a JSON form of its own, such as `google.protobuf.Any`. The layer could not detect
    /// that a body changes this field.
    #[error("path variable {field} is a field of {message}, which has a JSON form of its own")]
    VariableInSpecialMessage {
        /// The variable.
        field: String,
        /// The request message.
        message: String,
    },
    /// Two variables, or a variable and the body, bind the same field or two members of one oneof.
    #[error("field {0} is bound twice")]
    BoundTwice(String),
    /// `additional_bindings` are nested (forbidden by http.proto).
    #[error("additional_bindings nest one level only")]
    NestedBindings,
    /// The method is client-streaming, which has no HTTP mapping (AIP-127).
    #[error("client streaming has no HTTP mapping")]
    ClientStreaming,
    /// A rule for GET or HEAD has a body (RFC 9110 §9.3.1, §9.3.2).
    #[error("{0} takes no body")]
    BodyNotAllowed(Method),
    /// Another rule has the same HTTP method and matches the same paths.
    #[error("ambiguous route: {template:?} has the method and shape of a rule of {other}")]
    Ambiguous {
        /// The template of the second rule.
        template: String,
        /// The gRPC method of the first rule.
        other: String,
    },
    /// A message of the method has a proto2 group.
    #[error("field {0} is a group")]
    Group(String),
    /// `OpenApi` has a method option that the set does not have.
    #[error("the set has no extension {0}")]
    UnknownExtension(String),
    /// A method lists a reason that is not in the table of reasons.
    #[error("reason {0:?} is not in the table of reasons")]
    UnknownReason(String),
    /// A method lists a credential without a security scheme.
    #[error("credential {0:?} has no security scheme")]
    UnknownCredential(String),
}

impl BuildError {
    /// An error that is not one of a method.
    pub(crate) fn of_set(reason: RuleError) -> BuildError {
        BuildError { service: String::new(), method: String::new(), reason }
    }

    pub(crate) fn of_descriptors(error: impl Into<BoxError>) -> BuildErrors {
        BuildErrors(vec![BuildError::of_set(RuleError::Descriptors(error.into()))])
    }
}
