//! `sessiond refresh-key …`.

use clap::Subcommand;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond_core::id::ProjectId;
use sessiond_core::token::sealing::Purpose;

use crate::keys;
use crate::project::project_id;
use crate::result::CommandResult;

/// Commands on refresh keys, which authenticate refresh tokens.
#[derive(Subcommand)]
pub(crate) enum RefreshKeyCommand {
    /// Replace the key that makes refresh tokens. The new one takes over after 75 seconds, when every server knows it.
    /// Refresh tokens under the old one keep working, and each refresh returns one under the new key.
    Rotate(Box<RefreshKeyRotateArgs>),
    /// List a project's keys: `waiting` to take over, `signing` (the one that makes tokens), `retired`, or `revoked`.
    List(keys::KeyListArgs),
    /// Revoke a compromised key: refresh tokens under it are no longer accepted, so their users must sign in again. If
    /// it makes tokens at present, a new key takes over at once. Idempotent.
    Revoke(Box<keys::KeyRevokeArgs>),
}

/// Flags of `sessiond refresh-key rotate`.
#[derive(clap::Args)]
pub(crate) struct RefreshKeyRotateArgs {
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

pub(crate) async fn run(command: RefreshKeyCommand) -> CommandResult {
    const REFRESH: Purpose = Purpose::Refresh;
    match command {
        RefreshKeyCommand::Rotate(args) => {
            let RefreshKeyRotateArgs { project, now, sealing, database } = *args;
            keys::rotate(REFRESH, project, keys::urgency(now), sealing, database).await
        }
        RefreshKeyCommand::List(args) => keys::list(REFRESH, args).await,
        RefreshKeyCommand::Revoke(args) => keys::revoke(REFRESH, *args).await.map(drop),
    }
}
