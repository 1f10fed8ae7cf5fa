//! `users`: the epoch of each user, and with it the project's.

use diesel_async::RunQueryDsl as _;

use super::Tx;
use super::error::Error;
use super::statements::EpochShare;
use super::statements::UserEnsure;
use crate::id::ProjectId;
use crate::id::UserId;
use crate::session::Epoch;

impl Tx {
    /// Sees to it that a user has an epoch: zero, unless there is one.
    pub async fn user_ensure(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let statement = UserEnsure { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    /// The present epochs; the user's stays as it is until the end of the transaction. `None` for an unknown user.
    pub async fn epoch_share(&mut self, project: &ProjectId, user: &UserId) -> Result<Option<Epoch>, Error> {
        let statement = EpochShare { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        let rows: Result<Vec<(i64, i64)>, _> = statement.get_results(self.pg()).await;
        let epoch = rows.map_err(|error| self.failed(error))?.pop();
        Ok(epoch.map(|(project, user)| Epoch { project, user }))
    }
}
