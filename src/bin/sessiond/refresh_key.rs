//! `sessiond refresh-key …`.

use clap::Subcommand;
use sessiond::app::Haste;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::id::ProjectId;
use sessiond::token::sealing::Purpose;

use crate::Outcome;
use crate::keys;
use crate::project::project_id;

/// Commands on refresh keys: the keys that authenticate refresh tokens.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Put a new key in place of the one that makes refresh tokens. It takes over in a minute and a quarter, when every
    /// server knows it; refresh tokens under the old one go on working, and each refresh brings one under the new.
    Rotate(Box<Rotate>),
    /// List a project's keys: `waiting` to take over, `signing` (the one that makes tokens), `retired`, or `revoked`.
    List(keys::List),
    /// Take a compromised key away: no refresh token under it is accepted any more, so whoever holds one has to sign in
    /// again. If it was the one that makes tokens, a new one takes over at once. Once more is as good as once.
    Revoke(Box<keys::Revoke>),
}

/// Flags of `sessiond refresh-key rotate`.
#[derive(clap::Args)]
pub(crate) struct Rotate {
    /// The project whose key it is.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Have the new key take over at once; with a rotation under way, the key that waits. A server that meets a key that
    /// it does not know looks for it, so nobody notices.
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

pub(crate) async fn run(command: Command) -> Outcome {
    const REFRESH: Purpose = Purpose::Refresh;
    match command {
        Command::Rotate(args) => {
            let Rotate { project, now, sealing, database } = *args;
            let haste = if now { Haste::Emergency } else { Haste::Planned };
            keys::rotate(REFRESH, project, haste, sealing, database).await
        }
        Command::List(args) => keys::list(REFRESH, args).await,
        Command::Revoke(args) => keys::revoke(REFRESH, *args).await.map(drop),
    }
}
