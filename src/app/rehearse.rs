//! Rehearses a sign-out: measures what one costs in this database, and leaves nothing behind.

use std::time::Duration;

use tokio::time::Instant;

use super::App;
use super::Error;
use crate::store;
use crate::store::Project;
use crate::store::Revocation;
use crate::store::StoredSession;
use crate::store::Tx;
use sessiond_core::clock;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Epoch;
use sessiond_core::session::Policy;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::Session;
use sessiond_core::session::create::NewSession;
use sessiond_core::session::rotation::Chain;
use sessiond_core::token::bucket::BucketKey;
use sessiond_core::token::refresh::RowSecret;

/// How often it is rehearsed. The median counts: the first run also prepares the statements.
const RUNS: usize = 5;

/// What a sign-out costs.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsal {
    /// The statement that revokes.
    pub revoke: Duration,
    /// A commit: until it is on disk, and on the standbys that commits wait for.
    pub commit: Duration,
}

impl App {
    /// Creates a session in a project of its own and revokes it, in a transaction that is rolled back: no other connection ever
    /// sees the project, the session, the revocation or an audit entry. The commit is measured by another transaction, which
    /// writes an empty message to the write-ahead log and changes no row.
    ///
    /// # Errors
    ///
    /// Fails if a database operation fails.
    pub async fn rehearse_sign_out(&self) -> Result<Rehearsal, Error> {
        let (mut revokes, mut commits) = ([Duration::ZERO; RUNS], [Duration::ZERO; RUNS]);
        for (revoke, commit) in revokes.iter_mut().zip(&mut commits) {
            *revoke = self.rehearse_revoke().await?;
            // From within the transaction, so that the wait for a connection does not count.
            let work = |tx: Tx| async move { tx.commit(Instant::now()).await };
            *commit = self.store.transact("rehearse_commit", work).await?.elapsed();
        }
        Ok(Rehearsal { revoke: median(revokes), commit: median(commits) })
    }

    async fn rehearse_revoke(&self) -> Result<Duration, Error> {
        let now = self.clock.now();
        let (policy, bucket_key) = (Policy::default(), BucketKey::generate());
        let parsed = ProjectId::parse(&format!("doctor-{}", clock::new_uuid())).zip(UserId::parse("doctor"));
        let (id, user) = parsed.expect("both are well-formed");
        let bucket = bucket_key.bucket(&user);
        let project = Project { id: id.clone(), policy: policy.clone(), bucket_key };
        let work = move |mut tx: Tx| async move {
            tx.project_add(&project, now).await?;
            tx.user_ensure(&id, &user, bucket).await?;
            let epoch = tx.epoch_share(&id, &user, bucket).await?.unwrap_or(Epoch { project: 0, user: 0 });
            let new = NewSession::of(user, &policy);
            let session = Session::open(clock::new_session_id(now, bucket), id.clone(), epoch, new, now);
            let access_expires_at = session.access_expires_at(now, &policy);
            let (chain, secret) = (Chain::start(now), RowSecret::generate());
            let revocation = Revocation {
                project: id,
                session: session.id,
                at: now,
                reason: RevokeReason::SignedOut,
                by: EndedBy::Operator,
                ip: None,
            };
            let stored = StoredSession { session, chain, secret, access_expires_at };
            tx.sessions_insert(vec![(stored, KeyId::from_uuid(clock::new_uuid()))]).await?;
            let started = Instant::now();
            let live = tx.sessions_revoke(&[revocation]).await?;
            let elapsed = started.elapsed();
            let outcome = if live.len() == 1 { Ok(elapsed) } else { Err(store::Error::late(OPERATION)) };
            tx.rollback(outcome).await
        };
        Ok(self.store.transact(OPERATION, work).await??)
    }
}

/// The name of the operation.
const OPERATION: &str = "rehearse_sign_out";

fn median(mut times: [Duration; RUNS]) -> Duration {
    times.sort_unstable();
    times[RUNS / 2]
}
