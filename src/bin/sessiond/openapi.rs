//! `sessiond openapi`: prints the OpenAPI document, without a server or a database.

use sessiond::config;
use sessiond::edge;

use crate::print;
use crate::result::CommandResult;

/// Flags of `sessiond openapi`.
#[derive(clap::Args)]
pub(crate) struct OpenapiArgs {
    /// A path that the REST API is served under; may be repeated.
    #[arg(long = "base-path", env = "SESSIOND_BASE_PATHS", value_delimiter = ',', default_values = ["/", "/api/v1"], value_parser = config::base_path, value_name = "PATH")]
    base_paths: Vec<String>,
}

pub(crate) fn run(args: &OpenapiArgs) -> CommandResult {
    Ok(print::raw(edge::document(&args.base_paths))?)
}
