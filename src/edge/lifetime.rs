//! The lifetime of a connection: kept while its client uses it, closed when it is idle or old, and gone soon after.

use std::pin::Pin;
use std::time::Duration;

use hyper_util::server::graceful::GracefulConnection;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;
use tokio::time::sleep_until;

use super::activity::Activity;
use super::activity::ConnectionFate;

/// How long a connection may be kept, and idle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// From the beginning to the end of the first request's head.
    pub(super) first: Duration,
    /// From a later request's first byte to the end of its head.
    pub(super) head: Duration,
    /// Without an open request.
    pub(super) idle: Duration,
    /// In total; a busy connection closes after its open requests.
    pub(super) age: Duration,
}

/// Keeps a connection until its client closes it, its lifetime ends, it must make room, or `closing` resolves. Reports why it was
/// closed, unless its client did or all are.
pub(super) async fn keep<C: GracefulConnection<Error: std::fmt::Display>>(
    mut connection: Pin<Box<C>>,
    activity: &Activity,
    lifetimes: Lifetimes,
    closing: impl Future<Output = ()>,
    report: impl Fn(&'static str),
) {
    // Not counted against the task's budget: a client that sends faster than it is read would use that up each time, and never be
    // closed.
    let closing = unconstrained(closing);
    tokio::pin!(closing);
    let mut wake = Instant::now();
    let mut is_leaving = false;
    loop {
        tokio::select! {
            // The connection first, so that a request that has begun is not closed.
            biased;
            // How a connection ends is up to the client.
            outcome = connection.as_mut() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "connection ended early");
                }
                return;
            }
            () = closing.as_mut(), if !is_leaving => activity.leave(),
            () = activity.evicted() => if activity.is_aborted() { return },
            () = unconstrained(sleep_until(wake)) => match activity.evaluate(Instant::now(), lifetimes) {
                ConnectionFate::Keep(until) => {
                    wake = until;
                    continue;
                }
                ConnectionFate::Close(reason) => {
                    report(reason);
                    activity.leave();
                }
                ConnectionFate::Abort(reason) => {
                    report(reason);
                    tracing::debug!(reason, "connection aborted");
                    return;
                }
            },
        }
        wake = Instant::now();
        if !is_leaving {
            is_leaving = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}
