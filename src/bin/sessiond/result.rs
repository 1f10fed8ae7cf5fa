//! What a command comes to.

use std::error::Error;

/// The result of a command. Errors are shown to people: each level describes only its own part.
pub(crate) type CommandResult = Result<(), Box<dyn Error>>;
