//! The watchdog as a program of its own, for the tests of this crate. `sessiond` is its own watchdog.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The first argument is the command's name, which only a program with other commands has to look at.
    dev_postgres::watchdog_main(std::env::args_os().skip(2))
}
