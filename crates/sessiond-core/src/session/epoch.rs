//! Epochs, which end many sessions at once.

/// The epochs of a project and a user: counters. Raising either ends all sessions opened under a smaller value. No clocks are
/// involved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The project's epoch.
    pub project: i64,
    /// The user's epoch.
    pub user: i64,
}

impl Epoch {
    /// Whether the present epoch ends a session opened under this one.
    pub const fn is_before(self, present: Self) -> bool {
        self.project < present.project || self.user < present.user
    }
}
