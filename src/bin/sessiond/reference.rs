//! Man pages and shell completions, from the definitions of the commands. Written by a test, so that their generators
//! are not part of the server: `deploy/build` runs it.

use std::env;
use std::fs;
use std::io;
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
    for (name, page) in pages() {
        fs::write(man.join(format!("{name}.1")), page).expect("writes");
    }
}

/// The page of every command, by its name.
fn pages() -> Vec<(String, Vec<u8>)> {
    // The names of subcommands, and the flags that every command has.
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let mut pages = vec![];
    let mut commands = vec![&cli];
    while let Some(command) = commands.pop() {
        let name = command.get_display_name().unwrap_or(command.get_name()).replace(' ', "-");
        let mut page = vec![];
        write(command, &name, &mut page).expect("a vector takes everything");
        pages.push((name, page));
        commands.extend(command.get_subcommands().filter(|below| !below.is_hide_set()));
    }
    pages
}

/// As [`Man::render`], but with a synopsis that does not repeat sixty flags.
fn write(command: &Command, name: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let source = concat!("sessiond ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name.to_uppercase()).source(source).manual("sessiond");
    man.render_title(page)?;
    man.render_name_section(page)?;
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace('-', "\\-");
    page.extend_from_slice(format!(".SH SYNOPSIS\n{usage}\n").as_bytes());
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let status = "0 on success, 1 if it failed, 2 if an argument or a variable is malformed, 143 if it was stopped before it finished.";
    page.extend_from_slice(format!(".SH EXIT STATUS\n{status}\n").as_bytes());
    if name != "sessiond" {
        page.extend_from_slice(b".SH SEE ALSO\n.BR sessiond (1)\n");
    }
    Ok(())
}

/// A page of each command, with what an operator looks for: the variables, the defaults, and whose page it is.
#[test]
fn every_command_has_a_page_and_completions() {
    let pages = pages();
    let page = |name: &str| {
        let page = pages.iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("no page {name}"));
        String::from_utf8(page.1.clone()).expect("text")
    };
    for name in ["sessiond", "sessiond-serve", "sessiond-doctor", "sessiond-signing-key-rotate", "sessiond-audit"] {
        let page = page(name);
        for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS", ".SH EXIT STATUS"] {
            assert!(page.contains(section), "{section} in {name}");
        }
        assert!(page.contains(&format!(".TH {} 1", name.to_uppercase())), "{page}");
    }
    let serve = page("sessiond-serve");
    assert!(serve.contains("\nsessiond serve [OPTIONS] \\-\\-database\\-url <URL>\n"), "{serve}");
    assert!(serve.contains("SESSIOND_DRAIN_DELAY") && serve.contains("[default: 5s]"), "{serve}");
    assert!(page("sessiond").contains("sessiond\\-doctor(1)"));

    let mut cli = Cli::command();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let mut completions = vec![];
        clap_complete::generate(shell, &mut cli, "sessiond", &mut completions);
        let completions = String::from_utf8(completions).expect("text");
        for command in cli.get_subcommands().map(Command::get_name) {
            assert!(completions.contains(command), "{shell}: {command}");
        }
        assert!(completions.contains("drain-delay"), "{shell}");
    }
}
