//! Where users are in a divided database (see `store::Slot`): a group of requests is one transaction for each slot.

use futures_util::future::join_all;

use super::App;
use super::Error;
use super::KeyError;
use crate::store;
use crate::store::Store;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;

impl App {
    /// The bucket of a user.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, or if the database operation fails.
    pub(super) async fn bucket(&self, project: &ProjectId, user: &UserId) -> Result<Bucket, Error> {
        // The caller was authenticated, so the project exists; it may be newer than the snapshot.
        let snapshot = self.keys.with(|snapshot| snapshot.project(project).is_some()).await?;
        let found = snapshot.project(project).ok_or_else(|| KeyError::NoKey(project.clone()))?;
        Ok(found.bucket_key.bucket(user))
    }
}

/// Carries out a group of requests, those of each slot by a call of its own, concurrently. Returns an outcome for each request, in
/// order. If a part of several fails, its requests have none: the others may have been committed, and must not be repeated.
///
/// # Errors
///
/// Fails as the call does if all requests are in one slot.
pub(super) async fn apart<Q, T, W>(
    store: &Store,
    requests: Vec<Q>,
    bucket: impl Fn(&Q) -> Bucket,
    carry_out: impl Fn(Vec<Q>) -> W,
) -> Result<Vec<Option<T>>, store::Error>
where
    W: Future<Output = Result<Vec<Option<T>>, store::Error>>,
{
    let count = requests.len();
    let mut parts = store.by_slot(requests, bucket);
    if parts.len() < 2 {
        let requests = parts.pop().unwrap_or_default().into_iter().map(|(_, request)| request).collect();
        return carry_out(requests).await;
    }
    let carry_out = |part: Vec<(usize, Q)>| {
        let (places, requests): (Vec<usize>, Vec<Q>) = part.into_iter().unzip();
        let done = carry_out(requests);
        async move { (places, done.await) }
    };
    let mut outcomes: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for (places, done) in join_all(parts.into_iter().map(carry_out)).await {
        for (place, outcome) in places.into_iter().zip(done.unwrap_or_default()) {
            outcomes[place] = outcome;
        }
    }
    Ok(outcomes)
}
