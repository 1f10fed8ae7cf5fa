//! A project's policy, as flags.

use std::time::Duration;

use clap::Args;
use sessiond::config::duration;
use sessiond::session::Policy;
use sessiond::session::policy::LateRepeat;

/// What a project may set. Absent flags take the defaults.
#[derive(Args, Clone, Debug)]
pub(crate) struct PolicyArgs {
    /// How long an access token lasts at most: 1s to 1day.
    #[arg(long, default_value = "10m", value_parser = duration::<1_000, 86_400_000>, value_name = "DURATION")]
    access_token_ttl: Duration,

    /// How long after a refresh the old refresh token still gets the same new one: 0s to 1h.
    #[arg(long, default_value = "60s", value_parser = duration::<0, 3_600_000>, value_name = "DURATION")]
    refresh_grace: Duration,

    /// How long a session may stay unused, unless its creator says otherwise: 1s to 367days.
    #[arg(long, default_value = "90d", value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    idle_ttl: Duration,

    /// Take a refresh token that comes back after the grace for stolen, even when its successor was never used.
    #[arg(long)]
    strict_refresh: bool,
}

impl PolicyArgs {
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            access_token_ttl: self.access_token_ttl,
            refresh_grace: self.refresh_grace,
            idle_ttl: self.idle_ttl,
            late_repeat: if self.strict_refresh { LateRepeat::Theft } else { LateRepeat::Forgiven },
            ..Policy::default()
        }
    }
}
