//! The watchdog as a separate program, for this crate's tests. `sessiond` acts as its own watchdog.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The first argument is the command's name, which matters only to a program with other commands.
    dev_postgres::watchdog_main(std::env::args_os().skip(2))
}
