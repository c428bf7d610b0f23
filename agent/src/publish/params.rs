//! Kernel parameters as text: cut apart as the kernel does, put together for iPXE and for a shell.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use anyhow::{Result, bail, ensure};

use crate::foreign;

/// The kernel's command line may hold 2048 bytes on x86-64 and aarch64 (`COMMAND_LINE_SIZE`); some room is left for what a loader adds.
const LENGTH_LIMIT: usize = 1900;

/// Cuts a text into parameters, at ASCII white space outside double quotes (`next_arg` in Linux's `lib/cmdline.c`). Quotes stay where they are.
///
/// # Errors
/// An open quote, a control character, or more than a kernel takes.
pub fn split(text: &str) -> Result<Vec<String>> {
    let mut params = vec![String::new()];
    let mut quoted = false;
    for (position, character) in text.chars().enumerate() {
        if character.is_ascii_whitespace() && !quoted {
            params.push(String::new());
            continue;
        }
        ensure!(
            !character.is_control(),
            "a control character at position {position} of the kernel parameters"
        );
        quoted ^= character == '"';
        if let Some(last) = params.last_mut() {
            last.push(character);
        }
    }
    ensure!(
        !quoted,
        "a double quote in the kernel parameters is not closed: {}",
        foreign::word(text)
    );
    params.retain(|param| !param.is_empty());
    Ok(params)
}

/// One command line.
///
/// # Errors
/// More than a kernel takes.
pub fn join(params: &[String]) -> Result<String> {
    let line = params.join(" ");
    ensure!(
        line.len() <= LENGTH_LIMIT,
        "the kernel command line has {} bytes, over the limit of {LENGTH_LIMIT}",
        line.len()
    );
    Ok(line)
}

/// A command line as arguments of iPXE's `kernel` command.
///
/// iPXE knows no quoting (`split_command`, `expand_command` and the terminators in its `core/exec.c`): it expands `${…}`, cuts at white space, puts the words together again
/// with single spaces, and ends a command at `||`, `&&`, `;` and a word that begins with `#`. A quoted value with single spaces comes through; what does
/// not is refused here, rather than changed on the way.
///
/// # Errors
/// Names the parameter that iPXE would change.
pub fn for_ipxe(params: &[String]) -> Result<String> {
    for param in params {
        let why = if param.contains("${") {
            "iPXE would take «${» for a setting of its own"
        } else if param.contains("  ") || param.chars().any(|c| c.is_whitespace() && c != ' ') {
            "iPXE would make several spaces one"
        } else if param
            .split(' ')
            .any(|word| word.starts_with('#') || ["||", "&&", ";"].contains(&word))
        {
            "iPXE would end the command there"
        } else {
            continue;
        };
        bail!(
            "the kernel parameter «{}» cannot be written in an iPXE script: {why}",
            foreign::word(param)
        );
    }
    join(params)
}

/// A text as one word of a POSIX shell.
pub fn for_shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_types)]
    use super::*;

    #[test]
    fn parameters_are_cut_as_the_kernel_cuts_them() {
        for (text, expected) in [
            ("", vec![]),
            ("  quiet\tpanic=30\n", vec!["quiet", "panic=30"]),
            ("a=\"b c\" d", vec!["a=\"b c\"", "d"]),
            ("\"a=b c\" d", vec!["\"a=b c\"", "d"]),
            ("dyndbg=\"file x +p; file y +p\"", vec!["dyndbg=\"file x +p; file y +p\""]),
            // White space to Unicode, and not to the kernel.
            ("a=b\u{2003}c", vec!["a=b\u{2003}c"]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
        for bad in ["a=\"b", "a=\u{7}", "a=b\u{85}c", "a=\"b\nc\""] {
            assert!(split(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_ipxe_would_change_is_refused_by_name() {
        for (param, taken) in [
            ("quiet", true),
            ("a=\"b c\"", true),
            ("a=#b", true),
            ("a=$b", true),
            ("dyndbg=\"file x +p; file y +p\"", true),
            ("a=\"b  c\"", false),
            ("a=\"b # c\"", false),
            ("a=\"b #c\"", false),
            ("a=\"b || c\"", false),
            ("a=\"b ; c\"", false),
            ("a=${ip}", false),
            ("#a", false),
        ] {
            let made = for_ipxe(&[param.to_owned()]);
            assert_eq!(made.is_ok(), taken, "{param}");
            assert!(made.unwrap_or_else(|error| error.to_string()).contains(param));
        }
    }

    #[test]
    fn a_command_line_that_a_kernel_would_cut_is_refused() {
        assert!(join(&["x".repeat(1900)]).is_ok());
        assert!(join(&["x".repeat(1901)]).is_err());
    }

    #[test]
    fn a_shell_reads_back_what_was_written() {
        for text in ["plain", "it's", "a \"b\" $(c) `d` \\ ${e}", "''"] {
            let echoed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", for_shell(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(echoed.stdout).unwrap(), text);
        }
    }
}
