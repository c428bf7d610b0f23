//! Arguments of the program: syntax only. What a command means, and whether its folders exist, is not looked at here.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};
use lexopt::{Arg, Parser};

use crate::mode::{MODES, Mode};
use crate::settings::nearest::nearest;

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Boot: the job of PID 1, or of a unit in systemd's stage 1.
    Boot {
        /// Which of the two.
        mode: Mode,
        /// Where the new root is, or is to be.
        sysroot: PathBuf,
    },
    /// Say what `boot` would do.
    Plan {
        /// Everything is read below this folder.
        root: PathBuf,
        /// In place of `proc/cmdline` below the root.
        cmdline: Option<OsString>,
        /// In place of `etc/freshroot/config.json` below the root.
        config: Option<PathBuf>,
        /// As JSON instead of text.
        json: bool,
        /// Which part of stage 1 it would be.
        mode: Mode,
    },
    /// Show the report of the last boot.
    Status {
        /// Everything is read below this folder.
        root: PathBuf,
        /// As JSON instead of text.
        json: bool,
    },
    /// Refresh the cache from the running system.
    Fetch,
    /// Mark the running boot as good.
    Bless,
    /// Say whether a persistent mount is its disk.
    CheckMount {
        /// Its mount point.
        path: PathBuf,
    },
    /// Carry the failure policy out, in systemd's stage 1.
    Fail {
        /// The unit that led here, if it is not that of the boot.
        unit: Option<String>,
    },
    /// Become a program on a terminal; the failure policy's shell uses it.
    TtyExec {
        /// The terminal.
        tty: PathBuf,
        /// The program.
        program: PathBuf,
    },
    /// Print the help of one command, or of the program.
    Help(Option<&'static CommandHelp>),
    /// Print the version.
    Version,
}

/// Why arguments cannot be understood, and what was most likely meant. The exit code is [`USAGE_EXIT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Where the new root is, unless told otherwise.
pub const SYSROOT: &str = "/sysroot";

/// Exit code for arguments that cannot be understood.
pub const USAGE_EXIT: u8 = 2;

/// What is said about a command.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandHelp {
    /// Its name.
    pub name: &'static str,
    /// What stands behind the name.
    pub arguments: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Options: spelling, placeholder of the value (empty: none) and meaning.
    pub options: &'static [(&'static str, &'static str, &'static str)],
    /// More, with examples.
    pub text: &'static str,
}

const ROOT: (&str, &str, &str) = ("--root", "DIR", "read everything below DIR (default /)");
const MODE: (&str, &str, &str) = (
    "--mode",
    "MODE",
    "standalone (PID 1, the default) or systemd (a unit of its stage 1)",
);
const JSON: (&str, &str, &str) = ("--json", "", "print JSON instead of text");

/// The commands that people use, in the order of the help.
pub static COMMANDS: &[CommandHelp] = &[
    CommandHelp {
        name: "boot",
        arguments: "[--mode standalone|systemd] [--sysroot DIR]",
        summary: "boot the wanted system; what the agent does in the initrd",
        options: &[
            MODE,
            ("--sysroot", "DIR", "the new root (default /sysroot)"),
        ],
        text: "As PID 1 under a name that ends in «init» the program boots whatever its arguments are: the kernel passes words of its command line that it
does not know. In systemd mode it is one unit of systemd's stage 1: it leaves a store, a symlink to the system and a report below the sysroot, which systemd has
mounted, and ends; it fails where nothing can be booted. Settings come from /etc/freshroot/config.json and from freshroot.* words on the kernel command line.",
    },
    CommandHelp {
        name: "plan",
        arguments: "[--mode standalone|systemd] [--root DIR] [--cmdline TEXT] [--config FILE] [--json]",
        summary: "print what boot would do, and why, without doing it",
        options: &[
            MODE,
            ROOT,
            ("--cmdline", "TEXT", "use TEXT as the kernel command line"),
            ("--config", "FILE", "use FILE as the configuration"),
            JSON,
        ],
        text: "Examples:
  freshroot plan
  freshroot plan --json | jq .decision
  freshroot plan --mode systemd    where systemd has stage 1
  freshroot plan --cmdline 'freshroot.policy.mode=offline' --config ./config.json",
    },
    CommandHelp {
        name: "status",
        arguments: "[--root DIR] [--json]",
        summary: "show how the running system was booted: decision, source, bytes, times",
        options: &[ROOT, JSON],
        text: "Examples:
  freshroot status
  freshroot status --json | jq .warnings",
    },
    CommandHelp {
        name: "fetch",
        arguments: "",
        summary: "refresh the cache from the running system, for the boots to come",
        options: &[],
        text: "Asks the servers for the newest release of the channel, over the network of the running system, and fetches what is missing of its image. It is verified
as at a boot. What runs and what was blessed last is never removed for it. A fetch that was interrupted is gone on with. Without a channel, what this boot
has selected is completed. policy.mode is for boots: this asks in any case.

Example:
  freshroot fetch && reboot",
    },
    CommandHelp {
        name: "bless",
        arguments: "",
        summary: "mark the running boot as good: its generation has all its tries again",
        options: &[],
        text: "With policy.tries each boot uses up a try. A generation that has none left gives way to another one: a system that came up well says so with this
command, once. Its generation is then not evicted from the cache as long as it is the last one that was blessed.

Example:
  freshroot bless",
    },
    CommandHelp {
        name: "fail",
        arguments: "[--unit NAME]",
        summary: "say why the boot failed, and carry out the failure policy; units of the initrd call it",
        options: &[("--unit", "NAME", "the unit that led here, if it is not that of the boot")],
        text: "It ends the machine as onFailure.action says, after a pause that grows from failure to failure. It works in an initrd whose PID 1 is systemd, and
nowhere else. Of two at once the second has nothing to do.

Example:
  ExecStart=/bin/freshroot fail --unit emergency.service",
    },
    CommandHelp {
        name: "check-mount",
        arguments: "PATH",
        summary: "succeed if a persistent mount is its disk, not the stand-in for a missing one",
        options: &[],
        text: "Where the disk of a degraded or optional mount is missing at boot, an empty read-only tmpfs named freshroot-missing stands at its mount point. Services
that need the disk are ordered after a unit that runs this command.

Example:
  freshroot check-mount /var/lib/data && systemctl start data.service",
    },
    CommandHelp {
        name: "help",
        arguments: "[COMMAND]",
        summary: "show this help, or that of a command",
        options: &[],
        text: "Example:
  freshroot help plan",
    },
];

/// Reads the arguments of a process, its name among them, whose process id is `pid`.
///
/// # Errors
/// [`Usage`], with the nearest word that would do.
pub fn parse(arguments: impl IntoIterator<Item = OsString>, pid: u32) -> Result<Command, Usage> {
    let mut arguments = arguments.into_iter().peekable();
    if pid == 1 && arguments.peek().is_some_and(|name| name.as_bytes().ends_with(b"init")) {
        return Ok(standalone());
    }
    let mut parser = Parser::from_iter(arguments);
    let Some(first) = next(&mut parser, None)? else {
        return Err(Usage(format!(
            "a command is missing: one of {}",
            names().collect::<Vec<_>>().join(", ")
        )));
    };
    let name = match first {
        Short('h') | Long("help") => return Ok(Command::Help(None)),
        Short('V') | Long("version") => return Ok(Command::Version),
        Value(name) => name,
        Short(_) | Long(_) => return Err(unexpected(first, None)),
    };
    match name.to_str() {
        Some("boot") => boot(&mut parser),
        Some("fetch") => fetch(&mut parser),
        Some("bless") => bless(&mut parser),
        Some("plan") => plan(&mut parser),
        Some("status") => status(&mut parser),
        Some("fail") => fail(&mut parser),
        Some("check-mount") => check_mount(&mut parser),
        Some("help") => help(&mut parser),
        Some("tty-exec") => tty_exec(&mut parser),
        Some(_) | None => Err(no_command(&name)),
    }
}

fn boot(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("boot");
    let (mut mode, mut sysroot) = (Mode::default(), PathBuf::from(SYSROOT));
    while let Some(argument) = next(parser, about)? {
        match argument {
            Long("mode") => mode = mode_of(&value(parser, about)?, about)?,
            Long("sysroot") => sysroot = value(parser, about)?.into(),
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    Ok(Command::Boot { mode, sysroot })
}

/// What the kernel starts.
fn standalone() -> Command {
    Command::Boot {
        mode: Mode::Standalone,
        sysroot: SYSROOT.into(),
    }
}

fn mode_of(word: &OsStr, about: Option<&CommandHelp>) -> Result<Mode, Usage> {
    let word = word.to_string_lossy();
    word.parse().map_err(|error| {
        let names = MODES.iter().map(|(name, _)| *name);
        Usage(format!("{error}; {}{}", meant(nearest(&word, names)), see(about)))
    })
}

fn plan(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("plan");
    let (mut root, mut cmdline, mut config, mut json) = (PathBuf::from("/"), None, None, false);
    let mut mode = Mode::default();
    while let Some(argument) = next(parser, about)? {
        match argument {
            Long("mode") => mode = mode_of(&value(parser, about)?, about)?,
            Long("root") => root = value(parser, about)?.into(),
            Long("cmdline") => cmdline = Some(value(parser, about)?),
            Long("config") => config = Some(value(parser, about)?.into()),
            Long("json") => json = true,
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    Ok(Command::Plan {
        root,
        cmdline,
        config,
        json,
        mode,
    })
}

fn status(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("status");
    let (mut root, mut json) = (PathBuf::from("/"), false);
    while let Some(argument) = next(parser, about)? {
        match argument {
            Long("root") => root = value(parser, about)?.into(),
            Long("json") => json = true,
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    Ok(Command::Status { root, json })
}

fn fetch(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("fetch");
    match next(parser, about)? {
        None => Ok(Command::Fetch),
        Some(Short('h') | Long("help")) => Ok(Command::Help(about)),
        Some(other) => Err(unexpected(other, about)),
    }
}

fn bless(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("bless");
    match next(parser, about)? {
        None => Ok(Command::Bless),
        Some(Short('h') | Long("help")) => Ok(Command::Help(about)),
        Some(other) => Err(unexpected(other, about)),
    }
}

fn fail(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("fail");
    let mut unit = None;
    while let Some(argument) = next(parser, about)? {
        match argument {
            // The name is for the eye alone: one that is not UTF-8 must not keep a machine from rebooting.
            Long("unit") => unit = Some(value(parser, about)?.to_string_lossy().into_owned()),
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    Ok(Command::Fail { unit })
}

fn check_mount(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("check-mount");
    let mut path = None;
    while let Some(argument) = next(parser, about)? {
        match argument {
            Value(value) if path.is_none() => path = Some(PathBuf::from(value)),
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    match path {
        Some(path) => Ok(Command::CheckMount { path }),
        None => Err(Usage(format!("check-mount takes PATH; {}", see(about)))),
    }
}

fn help(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("help");
    let topic = match next(parser, about)? {
        None => None,
        Some(Short('h') | Long("help")) => about,
        Some(Value(name)) => Some(name.to_str().and_then(command).ok_or_else(|| no_command(&name))?),
        Some(other) => return Err(unexpected(other, about)),
    };
    match next(parser, about)? {
        None => Ok(Command::Help(topic)),
        Some(other) => Err(unexpected(other, about)),
    }
}

/// Not in the help: the failure policy calls it.
fn tty_exec(parser: &mut Parser) -> Result<Command, Usage> {
    let mut rest = parser.raw_args().map_err(|error| Usage(error.to_string()))?;
    match (rest.next(), rest.next(), rest.next()) {
        (Some(tty), Some(program), None) if !tty.is_empty() && !program.is_empty() => Ok(Command::TtyExec {
            tty: tty.into(),
            program: program.into(),
        }),
        (Some(_) | None, Some(_) | None, Some(_) | None) => Err(Usage("tty-exec takes TTY PROGRAM".to_owned())),
    }
}

/// The help of the program, or of one command.
pub fn help_text(about: Option<&CommandHelp>) -> String {
    let Some(about) = about else {
        let mut text =
            "freshroot boots a system whose Nix store is one verified image, kept on a local disk.\n\nUsage: freshroot COMMAND\n\n"
                .to_owned();
        for command in COMMANDS {
            text += &format!("  {:<11} {}\n", command.name, command.summary);
        }
        text += "\n  -h, --help      show this help; behind a command, its own\n  -V, --version   show the version\n";
        text += "\nExamples:\n  freshroot plan      what would a boot do now?\n  freshroot status    what did the last one do?\n";
        text += "\nExit codes: 0 done, 1 failed, 2 arguments not understood.\n";
        return text;
    };
    let mut text = format!(
        "freshroot {}: {}\n\nUsage: freshroot {} {}",
        about.name, about.summary, about.name, about.arguments
    )
    .trim_end()
    .to_owned();
    text += "\n";
    if !about.options.is_empty() {
        text += "\n";
        for (option, placeholder, meaning) in about.options {
            let option = format!("{option} {placeholder}");
            text += &format!("  {option:<15} {meaning}\n");
        }
    }
    text + "\n" + about.text + "\n"
}

/// The help of the command `name`.
fn command(name: &str) -> Option<&'static CommandHelp> {
    COMMANDS.iter().find(|command| command.name == name)
}

fn names() -> impl Iterator<Item = &'static str> + Clone {
    COMMANDS.iter().map(|command| command.name)
}

fn next<'a>(parser: &'a mut Parser, about: Option<&CommandHelp>) -> Result<Option<Arg<'a>>, Usage> {
    parser.next().map_err(|error| Usage(format!("{error}; {}", see(about))))
}

fn value(parser: &mut Parser, about: Option<&CommandHelp>) -> Result<OsString, Usage> {
    parser.value().map_err(|error| Usage(format!("{error}; {}", see(about))))
}

fn no_command(name: &OsStr) -> Usage {
    let name = name.to_string_lossy();
    Usage(format!(
        "there is no command «{name}»; {}{}",
        meant(nearest(&name, names())),
        see(None)
    ))
}

fn unexpected(argument: Arg<'_>, about: Option<&CommandHelp>) -> Usage {
    let word = match argument {
        Short(letter) => format!("-{letter}"),
        Long(name) => format!("--{name}"),
        Value(value) => value.to_string_lossy().into_owned(),
    };
    let options = about.map_or(&[][..], |about| about.options).iter().map(|(option, ..)| *option);
    let guess = nearest(
        &word,
        options.chain(["--help", "--version"].into_iter().take(if about.is_some() { 1 } else { 2 })),
    );
    let whose = about.map_or("freshroot", |about| about.name);
    Usage(format!("{whose} does not take «{word}»; {}{}", meant(guess), see(about)))
}

fn meant(guess: Option<&str>) -> String {
    guess.map(|word| format!("is {word} meant? ")).unwrap_or_default()
}

fn see(about: Option<&CommandHelp>) -> String {
    match about {
        Some(about) => format!("«freshroot help {}» shows what there is", about.name),
        None => "«freshroot help» shows what there is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn plan(root: &str, cmdline: Option<&str>, config: Option<&str>, json: bool) -> Command {
        Command::Plan {
            root: root.into(),
            cmdline: cmdline.map(OsString::from),
            config: config.map(PathBuf::from),
            json,
            mode: Mode::Standalone,
        }
    }

    fn boot(mode: Mode, sysroot: &str) -> Command {
        Command::Boot {
            mode,
            sysroot: sysroot.into(),
        }
    }

    #[test]
    fn arguments_become_commands() {
        for (line, expected) in [
            ("freshroot boot", boot(Mode::Standalone, "/sysroot")),
            ("freshroot boot --mode=systemd", boot(Mode::Systemd, "/sysroot")),
            ("freshroot boot --sysroot /new --mode standalone", boot(Mode::Standalone, "/new")),
            ("freshroot plan", plan("/", None, None, false)),
            (
                "freshroot plan --root=/x --cmdline a=b=c --config c.json --json",
                plan("/x", Some("a=b=c"), Some("c.json"), true),
            ),
            ("freshroot plan --cmdline=--x", plan("/", Some("--x"), None, false)),
            (
                "freshroot status --json",
                Command::Status {
                    root: "/".into(),
                    json: true,
                },
            ),
            ("freshroot fetch", Command::Fetch),
            ("freshroot bless", Command::Bless),
            ("freshroot fail", Command::Fail { unit: None }),
            (
                "freshroot fail --unit emergency.service",
                Command::Fail {
                    unit: Some("emergency.service".to_owned()),
                },
            ),
            ("freshroot check-mount /data", Command::CheckMount { path: "/data".into() }),
            ("freshroot --version", Command::Version),
            ("freshroot -V", Command::Version),
            ("freshroot help", Command::Help(None)),
            ("freshroot -h", Command::Help(None)),
            ("freshroot help plan", Command::Help(command("plan"))),
            ("freshroot plan --json --help", Command::Help(command("plan"))),
            ("freshroot status --help", Command::Help(command("status"))),
            (
                "freshroot tty-exec /dev/ttyS0 /bin/sh",
                Command::TtyExec {
                    tty: "/dev/ttyS0".into(),
                    program: "/bin/sh".into(),
                },
            ),
        ] {
            assert_eq!(parse(words(line), 2).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn wrong_arguments_name_the_nearest_word() {
        for (line, parts) in [
            ("freshroot", ["command is missing", "boot, plan, status"]),
            ("freshroot plna", ["«plna»", "is plan meant?"]),
            ("freshroot help stauts", ["«stauts»", "is status meant?"]),
            ("freshroot something-else", ["«something-else»; «freshroot help»", ""]),
            ("freshroot --verson", ["--verson", "is --version meant?"]),
            ("freshroot plan --rot /x", ["plan does not take «--rot»", "is --root meant?"]),
            ("freshroot plan extra", ["«extra»", "freshroot help plan"]),
            ("freshroot plan --root", ["--root", "freshroot help plan"]),
            ("freshroot plan --json=1", ["--json", "freshroot help plan"]),
            ("freshroot check-mount", ["check-mount takes PATH", "freshroot help check-mount"]),
            ("freshroot check-mount /a /b", ["«/b»", ""]),
            ("freshroot boot now", ["boot does not take «now»", ""]),
            ("freshroot boot --mode sytemd", ["«sytemd» is no mode", "is systemd meant?"]),
            ("freshroot plan --mod systemd", ["plan does not take «--mod»", "is --mode meant?"]),
            ("freshroot help plan x", ["«x»", ""]),
            ("freshroot tty-exec /x", ["TTY PROGRAM", ""]),
            ("freshroot tty-exec /x /y z", ["TTY PROGRAM", ""]),
        ] {
            let usage = parse(words(line), 2).unwrap_err().to_string();
            assert!(parts.iter().all(|part| usage.contains(part)), "{line}: {usage}");
        }
    }

    #[test]
    fn init_boots_whatever_words_the_kernel_passes_on() {
        for line in ["/init", "/init quiet splash", "/sbin/init --help plan -x", "init single"] {
            assert_eq!(parse(words(line), 1), Ok(standalone()), "{line}");
            assert_ne!(parse(words(line), 2), Ok(standalone()), "{line}");
        }
        // As PID 1 of a container under its own name it is a program like others.
        assert_eq!(parse(words("/bin/freshroot --version"), 1), Ok(Command::Version));
        assert!(parse([], 1).is_err());
    }

    #[test]
    fn words_that_are_not_utf_8_are_kept_or_refused_without_a_panic() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = OsString::from_vec(vec![b'/', 0xff]);
        let parsed = parse([words("freshroot plan --cmdline"), vec![odd.clone()]].concat(), 2).unwrap();
        assert!(matches!(parsed, Command::Plan { cmdline: Some(text), .. } if text == odd));
        assert!(parse(["freshroot".into(), odd], 2).is_err());
    }

    #[test]
    fn every_option_of_the_help_is_taken_and_every_help_has_a_usage() {
        for about in COMMANDS {
            for (option, placeholder, _) in about.options {
                let value = if *option == "--mode" { "systemd" } else { placeholder };
                let line = format!("freshroot {} {option} {value}", about.name);
                assert!(parse(words(&line), 2).is_ok(), "{line}");
            }
            let text = help_text(Some(about));
            assert!(text.contains(&format!("Usage: freshroot {}", about.name)) && about.options.iter().all(|(o, ..)| text.contains(o)));
            assert!(help_text(None).contains(about.summary));
        }
        assert!(!help_text(None).contains("tty-exec"));
    }
}
