//! Why a layer cannot be built, and the error type of bodies.

use std::error::Error;
use std::fmt;

use http::Method;

/// Any error that can be sent between threads.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why a layer or a description could not be built: every fault, not only the first.
#[derive(Debug, thiserror::Error)]
pub struct BuildErrors(pub(crate) Vec<BuildError>);

impl BuildErrors {
    /// Goes through the faults, in the order of the descriptor set.
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

/// One fault, and the method that has it.
#[derive(Debug, thiserror::Error)]
#[error("{service}/{method}: {reason}")]
pub struct BuildError {
    /// The service's full name; empty when the fault is the whole set's.
    pub service: String,
    /// The method's name; empty when the fault is the whole set's.
    pub method: String,
    /// What is wrong.
    pub reason: RuleError,
}

/// What can be wrong with a rule, or with the set that holds it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The bytes are not a file descriptor set, or files that it imports are missing.
    #[error("not a complete file descriptor set")]
    Descriptors(#[source] BoxError),
    /// A file is written in a syntax that is not served, such as an edition.
    #[error("{file} has syntax {syntax:?}; proto2 and proto3 are served, editions are not yet")]
    Syntax {
        /// The file's name.
        file: String,
        /// What it says of itself.
        syntax: String,
    },
    /// Two files of the set have the same name.
    #[error("the set has two files {0}")]
    DuplicateFile(String),
    /// The builder was given a service that the set does not have.
    #[error("the set has no service {0}")]
    UnknownService(String),
    /// The builder was given a bound for a field that the set does not have, or that has one value only.
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
    /// The kind of a custom pattern is not an HTTP method.
    #[error("custom kind {0:?} is not an HTTP method")]
    CustomKind(String),
    /// The path template breaks the grammar of http.proto.
    #[error("template {template:?}: {source}")]
    Template {
        /// The template as it was given.
        template: String,
        /// What the grammar says.
        source: BoxError,
    },
    /// No path that a client can send ever matches the template.
    #[error("template {template:?} never matches: {why}")]
    NeverMatches {
        /// The template, or the base path, as it was given.
        template: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The method's name is not a valid path.
    #[error("the method's name is not a valid path")]
    MethodName,
    /// A variable, `body` or `response_body` names what is not there.
    #[error("no field {field} in {message}")]
    UnknownField {
        /// The name as the rule has it.
        field: String,
        /// The message that has no such field.
        message: String,
    },
    /// http.proto: a variable must refer to a field that is not repeated and not a message.
    #[error("path variable {0} must be a non-repeated primitive field")]
    VariableType(String),
    /// The request has a JSON form of its own, such as `google.protobuf.Any`, and is not an object of its fields: a body could
    /// say what the path says.
    #[error("path variable {field} would be a part of {message}, which has a JSON form of its own")]
    VariableInSpecialMessage {
        /// The variable.
        field: String,
        /// The request message.
        message: String,
    },
    /// Two variables, or a variable and the body, fill the same field or two members of one oneof.
    #[error("field {0} is bound twice")]
    BoundTwice(String),
    /// http.proto: `additional_bindings` nest one level only.
    #[error("additional_bindings nest one level only")]
    NestedBindings,
    /// A stream of requests has no HTTP form (AIP-127).
    #[error("client streaming has no HTTP mapping")]
    ClientStreaming,
    /// A body on a method whose body has no meaning (RFC 9110 §9.3.1, §9.3.2).
    #[error("{0} takes no body")]
    BodyNotAllowed(Method),
    /// Another rule has the same method, shape and verb.
    #[error("ambiguous route: {template:?} has the method and shape of a rule of {other}")]
    Ambiguous {
        /// The template that came second.
        template: String,
        /// The method whose rule came first.
        other: String,
    },
    /// Proto2 groups have no JSON form here.
    #[error("field {0} is a group")]
    Group(String),
    /// The set does not have an extension that `OpenApi` was told to read.
    #[error("the set has no extension {0}")]
    UnknownExtension(String),
    /// A method lists a reason that the table of reasons does not have.
    #[error("reason {0:?} is not in the table of reasons")]
    UnknownReason(String),
    /// A method lists a credential that no security scheme stands for.
    #[error("no security scheme stands for credential {0:?}")]
    UnknownCredential(String),
}

impl BuildError {
    /// A fault of the whole set.
    pub(crate) fn of_set(reason: RuleError) -> BuildError {
        BuildError { service: String::new(), method: String::new(), reason }
    }

    pub(crate) fn of_descriptors(error: impl Into<BoxError>) -> BuildErrors {
        BuildErrors(vec![BuildError::of_set(RuleError::Descriptors(error.into()))])
    }
}
