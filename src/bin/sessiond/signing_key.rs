//! `sessiond signing-key …`.

use clap::Subcommand;
use sessiond::app::KeyRevoked;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond_core::id::ProjectId;
use sessiond_core::session::policy::duration_text;
use sessiond_core::token::jwks;
use sessiond_core::token::sealing::Purpose;

use crate::keys;
use crate::print;
use crate::project::project_id;
use crate::result::CommandResult;

/// Commands on signing keys.
#[derive(Subcommand)]
pub(crate) enum SigningKeyCommand {
    /// Replace the signing key. The new one is published at once and takes over after an hour and 65 seconds, when no
    /// verifier has a JWKS without it. The old one verifies until its last token has expired.
    Rotate(Box<SigningKeyRotateArgs>),
    /// List a project's keys: `waiting` to take over, `signing`, `retired`, or `revoked`.
    List(keys::KeyListArgs),
    /// Revoke a compromised key: it leaves the JWKS, and its tokens are no longer accepted, not even to sign out. If it
    /// is signing, a new key takes over at once. Users stay signed in: their next refresh returns a token under the new
    /// key. Idempotent.
    Revoke(Box<keys::KeyRevokeArgs>),
}

/// Flags of `sessiond signing-key rotate`.
#[derive(clap::Args)]
pub(crate) struct SigningKeyRotateArgs {
    /// The project of the key.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Make the new key sign at once; during a rotation, the waiting key. Verifiers with a JWKS without it refuse its
    /// tokens until they fetch the JWKS again, for up to an hour.
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

pub(crate) async fn run(command: SigningKeyCommand) -> CommandResult {
    const SIGNING: Purpose = Purpose::Signing;
    match command {
        SigningKeyCommand::Rotate(args) => {
            let SigningKeyRotateArgs { project, now, sealing, database } = *args;
            keys::rotate(SIGNING, project, keys::urgency(now), sealing, database).await?;
            if now {
                warn_of_caches()?;
            }
        }
        SigningKeyCommand::List(args) => keys::list(SIGNING, args).await?,
        SigningKeyCommand::Revoke(args) => {
            let revoked = keys::revoke(SIGNING, *args).await?;
            if revoked != KeyRevoked::Before {
                let max_age = duration_text(jwks::MAX_AGE);
                print::done(format!("verifiers with an older JWKS accept it for up to {max_age}"))?;
            }
            if matches!(revoked, KeyRevoked::Replaced(_)) {
                warn_of_caches()?;
            }
        }
    }
    Ok(())
}

fn warn_of_caches() -> Result<(), print::DoneUnprinted> {
    let max_age = duration_text(jwks::MAX_AGE);
    print::done(format!(
        "verifiers with a JWKS without the new key refuse its tokens for up to {max_age}: make them fetch it again"
    ))
}
