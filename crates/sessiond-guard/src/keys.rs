//! The project's public keys, as they were last read.

use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use http::header;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use super::inner::Inner;
use super::time::Time;
use super::upstream::UpstreamError;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::token::jwks;
use sessiond_core::token::jwks::VerifyingKeys;

/// Keys are good for so many times as long as they may be kept: as long as they may be kept, and then once more for an
/// outage. By then no key signs that was not published when they were read.
const OUTAGES: u32 = 2;

/// The least and the most that keys are kept, whatever is said of it.
const MAX_AGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));

/// Tokens under unknown keys have the keys read again at most this often: anyone can make up a `kid`.
const WISH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a token under an unknown key waits for the keys to be read.
const WISH_PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How often in a row an answer with a doubtful `Date` has the keys read again at once, for another witness of what time it
/// is. Then the clock is what most of them say, and the usual pace goes on.
const DOUBTS_MAX: u32 = 3;

#[derive(Default)]
pub(super) struct JwksCache {
    cached: ArcSwapOption<CachedKeys>,
    /// Somebody has met an unknown key.
    wish: Notify,
    attempts: watch::Sender<Attempts>,
}

/// What was read.
struct CachedKeys {
    keys: VerifyingKeys,
    /// When the question was asked, on the clock that only goes forward.
    asked_at: Duration,
    max_age: Duration,
}

#[derive(Clone, Copy, Default)]
struct Attempts {
    begun: u64,
    done: u64,
    /// When the last one began.
    began: Option<Instant>,
    has_succeeded: bool,
}

/// What is known of a key.
pub(super) enum Lookup<T> {
    Known(T),
    /// It is not among the keys.
    Unknown,
    /// The keys were never read.
    NoKeys,
}

impl JwksCache {
    /// Does something with the key of this `kid`. No lock is taken.
    pub(super) fn with<T>(
        &self,
        id: KeyId,
        on: impl FnOnce(&sessiond_core::token::keys::VerifyingKey) -> T,
    ) -> Lookup<T> {
        match &*self.cached.load() {
            None => Lookup::NoKeys,
            Some(cached) => cached.keys.find(id).map_or(Lookup::Unknown, |key| Lookup::Known(on(key))),
        }
    }

    /// Whether what was read may still be gone by.
    pub(super) fn are_good(&self, time: &Time) -> bool {
        let cached = self.cached.load();
        cached.as_ref().is_some_and(|cached| time.elapsed().saturating_sub(cached.asked_at) <= cached.max_age * OUTAGES)
    }

    pub(super) fn age(&self, time: &Time) -> Option<Duration> {
        self.cached.load().as_ref().map(|cached| time.elapsed().saturating_sub(cached.asked_at))
    }

    /// Has the keys read again, without waiting for it.
    pub(super) fn wish(&self) {
        let last = self.attempts.borrow().began;
        if last.is_none_or(|began| began.elapsed() >= WISH_INTERVAL) {
            self.wish.notify_one();
        }
    }

    /// Has the keys read again, and waits for it; not again when they were read a moment ago. Whether what is known now is
    /// all there is.
    pub(super) async fn read_again(&self) -> bool {
        let seen = *self.attempts.borrow();
        let is_recent = seen.began.is_some_and(|began| began.elapsed() < WISH_INTERVAL);
        if is_recent && seen.begun == seen.done {
            return seen.has_succeeded;
        }
        // One that is under way may have asked before the key was there; after a moment it is no longer recent.
        let awaited = if seen.begun > seen.done { seen.begun } else { seen.begun + 1 };
        self.wish.notify_one();
        let mut attempts = self.attempts.subscribe();
        let done = timeout(WISH_PATIENCE, attempts.wait_for(|attempts| attempts.done >= awaited)).await;
        matches!(done, Ok(Ok(attempts)) if attempts.has_succeeded)
    }
}

/// Reads the keys at the start, when they are half as old as they may be, and whenever somebody meets an unknown one.
pub(super) async fn run(inner: &Inner) {
    let keys = &inner.keys;
    let (mut retry, mut doubts) = (Backoff::new(RETRY_MIN, RETRY_MAX), 0);
    loop {
        let began = Instant::now();
        keys.attempts.send_modify(|attempts| {
            attempts.begun += 1;
            attempts.began = Some(began);
        });
        let outcome = read(inner).await;
        keys.attempts.send_modify(|attempts| {
            attempts.done = attempts.begun;
            attempts.has_succeeded = outcome.is_ok();
        });
        let due = match outcome {
            Ok(JwksRead { is_doubtful: true, .. }) if doubts < DOUBTS_MAX => {
                doubts += 1;
                Instant::now() + RETRY_MIN
            }
            Ok(JwksRead { max_age, is_doubtful }) => {
                doubts = if is_doubtful { doubts } else { 0 };
                retry.reset();
                inner.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.has_keys, true));
                began + max_age / 2
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "the keys cannot be read");
                inner.reject(failure);
                Instant::now() + retry.next(clock::dice())
            }
        };
        tokio::select! {
            () = sleep_until(due) => {}
            () = keys.wish.notified() => sleep_until((began + WISH_INTERVAL).min(due)).await,
        }
    }
}

/// A reading of the keys.
struct JwksRead {
    /// How long they may be kept.
    max_age: Duration,
    /// The answer's `Date` is not what time it is by all others.
    is_doubtful: bool,
}

async fn read(inner: &Inner) -> Result<JwksRead, UpstreamError> {
    let asked_at = inner.time.elapsed();
    let answer = inner.upstream.jwks().await?;
    let keys = VerifyingKeys::read(answer.body(), &inner.project)
        .map_err(|error| UpstreamError::NoAnswer(error.to_string()))?;
    let is_doubtful = date(answer.headers()).is_some_and(|now| !inner.time.hear(now));
    let max_age = max_age(answer.headers()).unwrap_or(jwks::MAX_AGE).clamp(MAX_AGE.0, MAX_AGE.1);
    inner.keys.cached.store(Some(std::sync::Arc::new(CachedKeys { keys, asked_at, max_age })));
    Ok(JwksRead { max_age, is_doubtful })
}

/// RFC 9111 §5.2.2.1.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let seconds = directives.find_map(|directive| directive.strip_prefix("max-age="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// What time it is where the tokens are issued, to the second.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    let seconds = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    Some(Timestamp::from_seconds(seconds.try_into().ok()?))
}
