//! `sessiond reseal`.

use sessiond::app::Resealed;
use sessiond::config::Database;
use sessiond::config::Sealing;

use crate::print;
use crate::result::CommandResult;
use crate::setup;

/// Flags of `sessiond reseal`.
#[derive(clap::Args)]
pub(crate) struct ResealArgs {
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

pub(crate) async fn run(args: ResealArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::sealer(&args.sealing)?).await?;
    let Resealed { resealed, present, unopened } = app.reseal().await?;
    let printed =
        print::done(format!("resealed {resealed} keys; {present} were already under the present sealing key"));
    match unopened.as_slice() {
        [] => Ok(printed?),
        lost => {
            lost.iter().for_each(|error| print::note(format_args!("{error}, present or previous")));
            let what = "pass the sealing key that they were sealed with as --previous-sealing-key-file, or revoke them";
            Err(format!("{} keys open with neither sealing key and were left unchanged; {what}", lost.len()).into())
        }
    }
}
