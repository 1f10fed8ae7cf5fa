//! `sessiond openapi`: the API's description, without a server or a database.

use std::io;
use std::io::Write as _;

use sessiond::config;
use sessiond::edge;

use crate::Outcome;

/// Flags of `sessiond openapi`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A path that the REST API is answered under; may be given more than once.
    #[arg(long = "base-path", env = "SESSIOND_BASE_PATHS", value_delimiter = ',', default_values = ["/", "/api/v1"], value_parser = config::base_path, value_name = "PATH")]
    base_paths: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    // Not `println!`, which panics when nobody reads to the end.
    io::stdout().write_all(edge::document(&args.base_paths).as_bytes())?;
    Ok(())
}
