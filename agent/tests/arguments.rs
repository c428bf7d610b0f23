//! The program's face: exit codes, where texts go, and that the manual page knows all of it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use freshroot::cli::COMMANDS;

fn freshroot(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_freshroot")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_and_version_go_to_standard_output_and_succeed() {
    for arguments in [&["help"][..], &["--help"], &["plan", "--help"], &["help", "status"], &["--version"]] {
        let output = freshroot(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            text(&output.stdout).starts_with("freshroot ") && output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn wrong_arguments_exit_with_2_and_one_line_on_standard_error() {
    for arguments in [&[][..], &["plna"], &["plan", "--jsn"], &["plan", "--root"]] {
        let output = freshroot(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let message = text(&output.stderr);
        assert!(message.starts_with("freshroot: ") && message.lines().count() == 1, "{message}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_manual_page_names_every_command_and_option() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/freshroot.8.md")).unwrap();
    for command in COMMANDS {
        assert!(
            page.contains(&format!("\n`{}`\n: ", command.name)),
            "{} is not in the manual page",
            command.name
        );
        for (option, placeholder, _) in command.options {
            let entry = if placeholder.is_empty() {
                format!("\n`{option}`\n: ")
            } else {
                format!("\n`{option}` *{placeholder}*\n: ")
            };
            assert!(page.contains(&entry), "{option} is not in the manual page");
        }
    }
}
