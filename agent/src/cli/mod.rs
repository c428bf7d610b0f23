//! Arguments of the program: syntax only. What a command means, and whether its folders exist, is not looked at here.

pub mod help;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};
use lexopt::{Arg, Parser};

use crate::formats::release::ChannelName;
use crate::mode::{MODES, Mode};
use crate::settings::nearest::nearest;
pub use help::{COMMANDS, CommandHelp, help_text};

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
    /// Prepare declared disks that are blank.
    Prepare {
        /// Everything is read below this folder.
        root: PathBuf,
        /// In place of `etc/freshroot/config.json` below the root.
        config: Option<PathBuf>,
        /// Only say what would be written.
        dry_run: bool,
    },
    /// The same in systemd's stage 1, before disks are mounted.
    PrepareInStage1,
    /// Show the report of the last boot.
    Status {
        /// Everything is read below this folder.
        root: PathBuf,
        /// As JSON instead of text.
        json: bool,
    },
    /// Refresh the cache from the running system.
    Fetch {
        /// In place of the setting `resetFloor`.
        reset_floor: Option<ChannelName>,
    },
    /// Mark the running boot as good.
    Bless,
    /// Say whether a persistent mount is its disk.
    CheckMount {
        /// Its mount point.
        path: PathBuf,
    },
    /// Mount a disk that was missing at the boot when it comes.
    PersistRetry {
        /// Its mount point.
        path: PathBuf,
        /// Units that systemd is to start then.
        units: Vec<String>,
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
        Some("bless") => bare(&mut parser, "bless", Command::Bless),
        Some("plan") => plan(&mut parser),
        Some("prepare") => prepare(&mut parser),
        Some("status") => status(&mut parser),
        Some("fail") => fail(&mut parser),
        Some("check-mount") => check_mount(&mut parser),
        Some("persist-retry") => persist_retry(&mut parser),
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

fn prepare(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("prepare");
    let (mut root, mut config, mut dry_run, mut stage_1) = (PathBuf::from("/"), None, false, false);
    while let Some(argument) = next(parser, about)? {
        match argument {
            Long("root") => root = value(parser, about)?.into(),
            Long("config") => config = Some(value(parser, about)?.into()),
            Long("dry-run") => dry_run = true,
            Long("stage-1") => stage_1 = true,
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    if stage_1 {
        return Ok(Command::PrepareInStage1);
    }
    Ok(Command::Prepare { root, config, dry_run })
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
    let mut reset_floor = None;
    while let Some(argument) = next(parser, about)? {
        match argument {
            Long("reset-floor") => {
                let channel = value(parser, about)?.to_string_lossy().parse();
                reset_floor = Some(channel.map_err(|error| Usage(format!("--reset-floor: {error}; {}", see(about))))?);
            }
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) | Value(_) => return Err(unexpected(argument, about)),
        }
    }
    Ok(Command::Fetch { reset_floor })
}

/// A command without arguments.
fn bare(parser: &mut Parser, name: &str, bare: Command) -> Result<Command, Usage> {
    let about = command(name);
    match next(parser, about)? {
        None => Ok(bare),
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

fn persist_retry(parser: &mut Parser) -> Result<Command, Usage> {
    let about = command("persist-retry");
    let (mut path, mut units) = (None, Vec::new());
    while let Some(argument) = next(parser, about)? {
        match argument {
            Value(value) if path.is_none() => path = Some(PathBuf::from(value)),
            Value(value) => match value.into_string() {
                Ok(unit) => units.push(unit),
                Err(unit) => return Err(Usage(format!("«{}» is no unit; {}", unit.to_string_lossy(), see(about)))),
            },
            Short('h') | Long("help") => return Ok(Command::Help(about)),
            Short(_) | Long(_) => return Err(unexpected(argument, about)),
        }
    }
    match path {
        Some(path) => Ok(Command::PersistRetry { path, units }),
        None => Err(Usage(format!("persist-retry takes PATH, then UNITs; {}", see(about)))),
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
            ("freshroot fetch", Command::Fetch { reset_floor: None }),
            (
                "freshroot fetch --reset-floor stable",
                Command::Fetch {
                    reset_floor: "stable".parse().ok(),
                },
            ),
            (
                "freshroot prepare --dry-run --config c.json",
                Command::Prepare {
                    root: "/".into(),
                    config: Some("c.json".into()),
                    dry_run: true,
                },
            ),
            ("freshroot prepare --stage-1", Command::PrepareInStage1),
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
            ("freshroot", ["command is missing", "boot, plan, prepare"]),
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
            ("freshroot fetch --reset-flor x", ["--reset-flor", "is --reset-floor meant?"]),
            (
                "freshroot fetch --reset-floor a/b",
                ["«a/b» is not a channel's name", "freshroot help fetch"],
            ),
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
