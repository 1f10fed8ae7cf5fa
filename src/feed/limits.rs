//! How old the feed may be, and how many may subscribe to it.

use std::time::Duration;

/// The greatest age at which the feed alone answers. An older feed defers to the database.
pub const AGE_MAX: Duration = Duration::from_secs(2);

/// The greatest age at which the database is trusted, by default; see [`super::Feed::is_trusted`].
pub const STALENESS_MAX: Duration = Duration::from_secs(5);

/// How often subscribers receive a heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How many subscribers there may be at once, by default.
pub const SUBSCRIBERS_MAX: usize = 4_096;

/// How long a revocation is retained beyond the last token that it revokes, for verifiers whose clocks are behind.
pub(super) const LEEWAY: Duration = Duration::from_secs(5 * 60);
