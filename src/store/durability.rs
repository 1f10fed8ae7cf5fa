//! Whether a database keeps what it has acknowledged.

use diesel::ConnectionError;
use diesel::ConnectionResult;
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use diesel_async::AsyncPgConnection;
use diesel_async::RunQueryDsl as _;

/// What a database promises about what it acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A commit is on disk.
    Kept,
    /// `fsync` is off: a crash of the machine loses commits, and maybe the database.
    FsyncOff,
    /// `synchronous_commit` is off, or `local` where there are standbys to wait for: a crash or a failover loses the last
    /// commits.
    AsynchronousCommit,
}

/// What a host must promise to be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// That what it acknowledges is kept; see [`Durability`].
    Durable,
    /// Nothing.
    Nothing,
}

/// Reads what the connected database promises.
///
/// # Errors
///
/// When it does not answer.
pub(super) async fn read(connection: &mut AsyncPgConnection) -> QueryResult<Durability> {
    let setting = |name: &str| sql::<Text>(&format!("current_setting('{name}')"));
    let settings = (setting("fsync"), setting("synchronous_commit"), setting("synchronous_standby_names"));
    let rows: Vec<(String, String, String)> = diesel::select(settings).load(connection).await?;
    let judge = |(fsync, commit, standbys): &(String, String, String)| match (fsync.as_str(), commit.as_str()) {
        ("off", _) => Durability::FsyncOff,
        (_, "off") => Durability::AsynchronousCommit,
        // There are standbys to wait for, and nobody waits: a failover would lose the last commits.
        (_, "local") if !standbys.is_empty() => Durability::AsynchronousCommit,
        (_, _) => Durability::Kept,
    };
    rows.iter().map(judge).next().ok_or(diesel::result::Error::NotFound)
}

/// Refuses a connection to a database that promises less than [`Durability::Kept`].
///
/// # Errors
///
/// When it does, or does not answer.
pub(super) async fn demand(connection: &mut AsyncPgConnection) -> ConnectionResult<()> {
    match read(connection).await.map_err(ConnectionError::CouldntSetupConfiguration)? {
        Durability::Kept => Ok(()),
        Durability::FsyncOff => Err(ConnectionError::BadConnection("the host has fsync off".into())),
        Durability::AsynchronousCommit => {
            Err(ConnectionError::BadConnection("the host has synchronous_commit off".into()))
        }
    }
}
