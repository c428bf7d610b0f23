//! From a command to its effects.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::{Command, help_text};

/// Exit code of a command that this build does not have.
const ABSENT: u8 = 3;

/// Runs a command; gives the exit code of the process.
///
/// # Errors
/// What went wrong, for `main` to print once.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Help(about) => print(&help_text(about)),
        Command::Version => print(concat!("freshroot ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Boot => absent("boot"),
        Command::Plan { .. } => absent("plan"),
        Command::Status { .. } => absent("status"),
        Command::ChrootExec { .. } => absent("chroot-exec"),
    }
}

fn print(text: &str) -> Result<ExitCode> {
    stdout().write_all(text.as_bytes()).context("writing to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn absent(command: &str) -> Result<ExitCode> {
    eprintln!("freshroot: this build does not have the command {command} yet");
    Ok(ExitCode::from(ABSENT))
}
