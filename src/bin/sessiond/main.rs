//! The binary.

use std::process::ExitCode;

use sessiond::cluster;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == cluster::WATCHDOG_COMMAND) {
        return cluster::watchdog_main(args);
    }
    ExitCode::SUCCESS
}
