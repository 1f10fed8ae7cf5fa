//! What the demo is called.

/// The project.
pub(super) const PROJECT: &str = "demo";

/// The user's id.
pub(super) const USER: &str = "ada";

/// The data directory unless another one is named.
pub(super) const DATA_DIR: &str = ".sessiond";
