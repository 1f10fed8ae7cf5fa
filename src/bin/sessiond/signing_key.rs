//! `sessiond signing-key …`.

use clap::Subcommand;
use sessiond::app::Haste;
use sessiond::app::KeyRevoked;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::id::ProjectId;
use sessiond::session::policy::duration_text;
use sessiond::token::jwks;
use sessiond::token::sealing::Purpose;

use crate::Outcome;
use crate::keys;
use crate::print;
use crate::project::project_id;

/// Commands on signing keys.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Put a new key in place of the one that signs. It is published at once and takes over in an hour and a minute, when
    /// no verifier holds a JWKS without it any more; the old one verifies until its last token has expired.
    Rotate(Box<Rotate>),
    /// List a project's keys: `waiting` to take over, `signing`, `retired`, or `revoked`.
    List(keys::List),
    /// Take a compromised key away: out of the JWKS, and nothing under it is accepted any more, not even to sign out. If
    /// it was the one that signs, a new one takes over at once. Users stay signed in: their next refresh brings a token
    /// under the new key. Once more is as good as once.
    Revoke(Box<keys::Revoke>),
}

/// Flags of `sessiond signing-key rotate`.
#[derive(clap::Args)]
pub(crate) struct Rotate {
    /// The project whose key it is.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// Have the new key sign at once; with a rotation under way, the key that waits. Verifiers that hold a JWKS without
    /// it refuse its tokens until they ask again: for up to an hour.
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

pub(crate) async fn run(command: Command) -> Outcome {
    const SIGNING: Purpose = Purpose::Signing;
    match command {
        Command::Rotate(args) => {
            let Rotate { project, now, sealing, database } = *args;
            let haste = if now { Haste::Emergency } else { Haste::Planned };
            keys::rotate(SIGNING, project, haste, sealing, database).await?;
            if now {
                warn_of_caches()?;
            }
        }
        Command::List(args) => keys::list(SIGNING, args).await?,
        Command::Revoke(args) => {
            let revoked = keys::revoke(SIGNING, *args).await?;
            if revoked != KeyRevoked::Before {
                let max_age = duration_text(jwks::MAX_AGE);
                print::done(format!("verifiers that hold an older JWKS believe it for up to {max_age}"))?;
            }
            if matches!(revoked, KeyRevoked::Replaced(_)) {
                warn_of_caches()?;
            }
        }
    }
    Ok(())
}

fn warn_of_caches() -> Result<(), print::Unsaid> {
    let max_age = duration_text(jwks::MAX_AGE);
    print::done(format!(
        "verifiers that hold a JWKS without the new key refuse its tokens for up to {max_age}: have them ask again"
    ))
}
