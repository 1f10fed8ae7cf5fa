//! What ends many sessions at once.

/// A counter per project and one per user. Raising either ends every session that was opened under a smaller one.
/// No clocks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The project's.
    pub project: i64,
    /// The user's.
    pub user: i64,
}

impl Epoch {
    /// Whether a session opened under this epoch is ended by the present one.
    pub const fn is_before(self, present: Self) -> bool {
        self.project < present.project || self.user < present.user
    }
}
