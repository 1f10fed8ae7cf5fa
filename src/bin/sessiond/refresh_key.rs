//! `sessiond refresh-key …`.

use clap::Subcommand;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::id::ProjectId;
use sessiond::token::schedule::Urgency;
use sessiond::token::sealing::Purpose;

use crate::Outcome;
use crate::keys;
use crate::project::project_id;

/// Commands on refresh keys, which authenticate refresh tokens.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Replace the key that makes refresh tokens. The new one takes over after 75 seconds, when every server knows it.
    /// Refresh tokens under the old one keep working, and each refresh returns one under the new key.
    Rotate(Box<Rotate>),
    /// List a project's keys: `waiting` to take over, `signing` (the one that makes tokens), `retired`, or `revoked`.
    List(keys::List),
    /// Revoke a compromised key: refresh tokens under it are no longer accepted, so their users must sign in again. If
    /// it makes tokens at present, a new key takes over at once. Idempotent.
    Revoke(Box<keys::Revoke>),
}

/// Flags of `sessiond refresh-key rotate`.
#[derive(clap::Args)]
pub(crate) struct Rotate {
    /// The project of the key.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Make the new key take over at once; during a rotation, the waiting key. A server loads a key that it does not
    /// know, so clients notice nothing.
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
            let urgency = if now { Urgency::Emergency } else { Urgency::Planned };
            keys::rotate(REFRESH, project, urgency, sealing, database).await
        }
        Command::List(args) => keys::list(REFRESH, args).await,
        Command::Revoke(args) => keys::revoke(REFRESH, *args).await.map(drop),
    }
}
