//! `users`: the epoch of each user, and with it the project's.

use diesel_async::RunQueryDsl as _;

use super::Tx;
use super::error::Error;
use super::rows::to_pg;
use super::statements::EpochRaise;
use super::statements::EpochRead;
use super::statements::EpochShare;
use super::statements::UserBegin;
use super::statements::UserDelete;
use super::statements::UserEnsure;
use super::statements::UserQueue;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::UserId;
use crate::session::Epoch;

impl Tx {
    /// Sees to it that a user has an epoch.
    pub async fn user_ensure(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let (user, project) = (user.as_str().to_owned(), project.as_str().to_owned());
        let statement = UserEnsure { user: user.clone(), project: project.clone() };
        let begun: Result<Vec<i64>, _> = statement.get_results(self.pg()).await;
        if begun.map_err(|error| self.failed(error))?.is_empty() {
            return Ok(());
        }
        // It may have waited for the same user to be forgotten, and have read where to begin before that.
        UserBegin { project, user }.execute(self.pg()).await.map(drop).map_err(|error| self.failed(error))
    }

    /// The present epochs; the user's stays as it is until the end of the transaction. `None` for an unknown user.
    pub async fn epoch_share(&mut self, project: &ProjectId, user: &UserId) -> Result<Option<Epoch>, Error> {
        let statement = EpochShare { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        let rows: Result<Vec<(i64, i64)>, _> = statement.get_results(self.pg()).await;
        let epoch = rows.map_err(|error| self.failed(error))?.pop();
        Ok(epoch.map(|(project, user)| Epoch { project, user }))
    }

    /// The present epochs, which may be raised at any time. `None` for an unknown user.
    pub async fn epoch_read(&mut self, project: &ProjectId, user: &UserId) -> Result<Option<Epoch>, Error> {
        let statement = EpochRead { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        let rows: Result<Vec<(i64, i64)>, _> = statement.get_results(self.pg()).await;
        let epoch = rows.map_err(|error| self.failed(error))?.pop();
        Ok(epoch.map(|(project, user)| Epoch { project, user }))
    }

    /// Raises a user's epoch, and answers with it; `None` for an unknown user. The user's row stays locked.
    pub async fn epoch_raise(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Option<i64>, Error> {
        let statement =
            EpochRaise { at: to_pg(now), project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        let rows: Result<Vec<i64>, _> = statement.get_results(self.pg()).await;
        Ok(rows.map_err(|error| self.failed(error))?.pop())
    }

    /// Waits until nobody else who called this for the user is under way. Comes before every lock on a row.
    pub async fn user_queue(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let statement = UserQueue { user: user.as_str().to_owned(), project: project.as_str().to_owned() };
        let rows: Result<Vec<bool>, _> = statement.get_results(self.pg()).await;
        rows.map(drop).map_err(|error| self.failed(error))
    }

    /// Forgets a user's epoch. To be called when no session of the user is left, and none can be opened.
    pub async fn user_delete(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let statement = UserDelete { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        statement.execute(self.pg()).await.map(drop).map_err(|error| self.failed(error))
    }
}
