//! A project's policy, as flags and as text.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use sessiond::config::duration;
use sessiond::session::Policy;
use sessiond::session::policy::LateRepeat;

use crate::print;

/// What a project may set. Absent flags leave a setting as it is; a new project starts with the defaults.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyArgs {
    /// How long an access token lasts at most: 1s to 1day. A new project has 10m.
    #[arg(long, value_parser = duration::<1_000, 86_400_000>, value_name = "DURATION")]
    access_token_ttl: Option<Duration>,

    /// How long after a refresh the old refresh token still gets the same new one: 0s to 1h. A new project has 60s.
    #[arg(long, value_parser = duration::<0, 3_600_000>, value_name = "DURATION")]
    refresh_grace: Option<Duration>,

    /// How long a session may stay unused, unless its creator says otherwise: 1s to 367days. A new project has 90d.
    #[arg(long, value_parser = duration::<1_000, 31_708_800_000>, value_name = "DURATION")]
    idle_ttl: Option<Duration>,

    /// Take a refresh token that comes back after the grace for stolen, even when its successor was never used. A new
    /// project does not; `--strict-refresh=false` goes back to that.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    strict_refresh: Option<bool>,
}

impl PolicyArgs {
    /// Sets what was given, and nothing else.
    pub(crate) fn apply(&self, policy: &mut Policy) {
        let Self { access_token_ttl, refresh_grace, idle_ttl, strict_refresh } = self;
        policy.access_token_ttl = access_token_ttl.unwrap_or(policy.access_token_ttl);
        policy.refresh_grace = refresh_grace.unwrap_or(policy.refresh_grace);
        policy.idle_ttl = idle_ttl.unwrap_or(policy.idle_ttl);
        if let Some(strict) = strict_refresh {
            policy.late_repeat = if *strict { LateRepeat::Theft } else { LateRepeat::Forgiven };
        }
    }

    /// The policy of a new project.
    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        self.apply(&mut policy);
        policy
    }
}

/// Every setting under its flag's name, with an underscore, and in its flag's words.
pub(crate) fn settings(policy: &Policy) -> Vec<(&'static str, Value)> {
    vec![
        ("access_token_ttl", print::duration(policy.access_token_ttl).into()),
        ("refresh_grace", print::duration(policy.refresh_grace).into()),
        ("idle_ttl", print::duration(policy.idle_ttl).into()),
        ("strict_refresh", (policy.late_repeat == LateRepeat::Theft).into()),
    ]
}
