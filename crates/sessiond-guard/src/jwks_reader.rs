//! Reads the project's public keys: at the start, before they expire, and when a token names an unknown one.

use std::time::Duration;

use http::HeaderMap;
use http::header;
use tokio::time::Instant;
use tokio::time::sleep_until;

use super::jwks_cache::READ_INTERVAL_MIN;
use super::state::GuardState;
use super::upstream::UpstreamError;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::token::jwks;
use sessiond_core::token::jwks::VerifyingKeys;

/// The bounds of `max-age`, whatever the response says.
const MAX_AGE_MIN: Duration = Duration::from_secs(1);
const MAX_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long to wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How many responses in a row with an implausible `Date` are followed by another read at once, to collect more `Date`s.
/// After that the median of them is trusted, and the usual interval applies.
const IMPLAUSIBLE_MAX: u32 = 3;

/// Reads the keys at the start, at half of their `max-age`, and whenever a token names an unknown one.
pub(super) async fn run(guard: &GuardState) {
    let keys = &guard.keys;
    let (mut retry, mut implausible) = (Backoff::new(RETRY_MIN, RETRY_MAX), 0);
    loop {
        let begun_at = Instant::now();
        keys.begin_read(begun_at);
        let outcome = read(guard).await;
        keys.end_read(outcome.is_ok());
        let due = match outcome {
            Ok(JwksRead { is_date_plausible: false, .. }) if implausible < IMPLAUSIBLE_MAX => {
                implausible += 1;
                Instant::now() + RETRY_MIN
            }
            Ok(JwksRead { max_age, is_date_plausible }) => {
                implausible = if is_date_plausible { 0 } else { implausible };
                retry.reset();
                guard.startup.send_if_modified(|startup| !std::mem::replace(&mut startup.has_keys, true));
                begun_at + max_age / 2
            }
            Err(error) => {
                tracing::warn!(%error, "failed to read the JWK Set");
                guard.record_misconfiguration(error);
                Instant::now() + retry.next(clock::random_u32())
            }
        };
        tokio::select! {
            () = sleep_until(due) => {}
            () = keys.requested() => sleep_until((begun_at + READ_INTERVAL_MIN).min(due)).await,
        }
    }
}

struct JwksRead {
    max_age: Duration,
    /// Whether the response's `Date` agrees with the clock.
    is_date_plausible: bool,
}

async fn read(guard: &GuardState) -> Result<JwksRead, UpstreamError> {
    let requested_at = guard.time.elapsed();
    let response = guard.upstream.jwks().await?;
    let keys = VerifyingKeys::read(response.body(), &guard.project)
        .map_err(|error| UpstreamError::Unavailable(error.to_string()))?;
    let is_date_plausible = date(response.headers()).is_none_or(|now| guard.time.observe(now));
    let max_age = max_age(response.headers()).unwrap_or(jwks::MAX_AGE).clamp(MAX_AGE_MIN, MAX_AGE_MAX);
    guard.keys.store(keys, requested_at, max_age);
    Ok(JwksRead { max_age, is_date_plausible })
}

/// RFC 9111 §5.2.2.1.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let seconds = directives.find_map(|directive| directive.strip_prefix("max-age="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// The issuer's time of day, in whole seconds.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    let seconds = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    Some(Timestamp::from_seconds(seconds.try_into().ok()?))
}
