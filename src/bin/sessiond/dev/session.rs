//! `sessiond demo-session`: a new session for the shell, from a running `sessiond dev`.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use http::StatusCode;
use http::header;
use tokio::time::timeout;

use super::demo::TERMINAL;
use super::files::Files;
use super::files::path_in;
use super::names::DATA_DIR;
use super::names::USER;
use crate::local;
use crate::print;
use crate::result::CommandResult;

/// How long the server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of `sessiond demo-session`.
#[derive(clap::Args)]
pub(crate) struct DemoSessionArgs {
    /// The data directory of the running `sessiond dev`.
    #[arg(long, env = "SESSIOND_DATA_DIR", default_value = DATA_DIR, value_name = "DIR")]
    data_dir: PathBuf,
}

pub(crate) async fn run(args: DemoSessionArgs) -> CommandResult {
    let path = path_in(&args.data_dir, Files::ENV);
    let env = path.display();
    let help = "start one with ./run or `sessiond dev`, or give its directory with --data-dir";
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("no `sessiond dev` is running here: cannot read {env} ({error}); {help}"))?;
    let url = text.lines().find_map(|line| line.strip_prefix("export SESSIOND_URL='http://")?.strip_suffix('\''));
    let address =
        url.and_then(|address| address.parse().ok()).ok_or_else(|| format!("{env} names no server; {help}"))?;
    open(address).await.map_err(|error| format!("no `sessiond dev` answers at http://{address} ({error}); {help}"))?;
    Ok(print::done(format!("{USER} is signed in again. Load the new session with\n\n    . {env}"))?)
}

/// Signs the terminal in at the `dev` at this address, which writes `dev.env`.
pub(super) async fn open(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let request = Request::post("/demo/sign-in")
        .header(header::CONTENT_TYPE, "application/json")
        .body(format!("{{\"device\": \"{TERMINAL}\"}}").into())?;
    let answer = timeout(ANSWER_TIMEOUT, local::send(address, request)).await.map_err(|_| "no answer in time")?;
    match answer.map_err(|error| error.to_string())? {
        (StatusCode::OK, _) => Ok(()),
        (status, text) => Err(format!("{status}: {}", text.trim()).into()),
    }
}
