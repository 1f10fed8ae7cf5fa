//! The names of the demo.

/// The project.
pub(super) const PROJECT: &str = "demo";

/// The user's id.
pub(super) const USER: &str = "ada";

/// The default data directory.
pub(super) const DATA_DIR: &str = ".sessiond";
