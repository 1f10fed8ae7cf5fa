//! Man pages and shell completions, from the definitions of the commands. Written by a test, so that their generators
//! are not part of the server: `deploy/build` runs it.

use std::env;
use std::fs;
use std::path::PathBuf;

use clap::Command;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Cli;

/// Writes `man/*.1` and `completions/*` to the directory in `SESSIOND_REFERENCE_DIR`.
#[test]
#[ignore = "writes files: run by deploy/build"]
fn man_pages_and_completions_are_written() {
    let dir = PathBuf::from(env::var_os("SESSIOND_REFERENCE_DIR").expect("SESSIOND_REFERENCE_DIR is set"));
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    fs::create_dir_all(&man).expect("creates");
    fs::create_dir_all(&completions).expect("creates");

    let mut cli = Cli::command();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut cli, "sessiond", &completions).expect("writes");
    }
    // The names of subcommands, and the flags that every command has.
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    write(&cli, &man);
}

/// Writes the page of a command, and those of its subcommands.
fn write(command: &Command, dir: &std::path::Path) {
    let name = command.get_display_name().unwrap_or(command.get_name()).replace(' ', "-");
    let page = dir.join(format!("{name}.1"));
    let mut file = fs::File::create(&page).expect("creates");
    Man::new(command.clone()).title(name.to_uppercase()).render(&mut file).expect("writes");
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, dir);
    }
}
