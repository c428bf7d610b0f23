//! Where messages go: the kernel log, and every console that the kernel does not show them on itself.
//!
//! The kernel prints a record of its log on all consoles if its level is below the console log level. What it would not print (`quiet`), this module
//! writes to the consoles of `/proc/consoles`; so each message is seen once, everywhere.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// The kernel refuses records of 1024 bytes; its own prefix needs some.
const RECORD_LIMIT: usize = 960;
/// A console that takes nothing for so long (flow control, a dead line) loses the rest of the message.
const CONSOLE_PATIENCE: Duration = Duration::from_millis(200);
const PREFIX: &str = "freshroot: ";

/// Sends the log to the kernel log and the consoles below `root` (`/` but for tests). Once per process; [`log::set_max_level`] changes the level later.
pub fn init(root: &Path, level: LevelFilter) {
    // Ten records in five seconds are the limit otherwise, and the rest is lost.
    if let Err(error) = fs::write(root.join("proc/sys/kernel/printk_devkmsg"), "on\n") {
        tell_stderr(&format!("the kernel log may drop messages: {error}"));
    }
    let sink = Sink {
        root: root.to_owned(),
        kmsg: OpenOptions::new().write(true).open(root.join("dev/kmsg")).ok(),
    };
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module("freshroot", LevelFilter::Trace)
        .format(|line, record| {
            let prefix = if record.level() <= log::Level::Warn {
                format!("{}: ", record.level().as_str().to_lowercase())
            } else {
                String::new()
            };
            writeln!(line, "<{}>{PREFIX}{prefix}{}", priority(record.level()), record.args())
        });
    if builder.target(env_logger::Target::Pipe(Box::new(sink))).try_init().is_err() {
        tell_stderr("the log was set up before");
    }
    log::set_max_level(level);
}

/// Sends the log to standard error: for commands that a person runs.
pub fn init_stderr(level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder
        // The HTTP library's own trace holds what it sends, credentials too.
        .filter_level(level.min(LevelFilter::Warn))
        .filter_module("freshroot", level)
        .format(|line, record| writeln!(line, "{PREFIX}{}: {}", record.level().as_str().to_lowercase(), record.args()));
    if builder.try_init().is_err() {
        tell_stderr("the log was set up before");
    }
}

/// Sends the log to standard error as a service does: where that is no terminal, each line begins with its level for the journal (sd-daemon(3)), which
/// shows it on the console and knows by itself who wrote it.
pub fn init_service(level: LevelFilter) {
    if io::stderr().is_terminal() {
        return init_stderr(level);
    }
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module("freshroot", LevelFilter::Trace)
        .write_style(env_logger::WriteStyle::Never)
        .format(|line, record| line.write_all(service_lines(record.level(), &record.args().to_string()).as_bytes()));
    if builder.try_init().is_err() {
        tell_stderr("the log was set up before");
    }
    log::set_max_level(level);
}

/// A message as the journal takes it: every line has its level in front.
fn service_lines(level: log::Level, text: &str) -> String {
    text.lines().map(|line| format!("<{}>{line}\n", priority(level))).collect()
}

/// Where there is no log: unlike `eprintln!` this does not panic where there is no console either.
fn tell_stderr(text: &str) {
    match writeln!(io::stderr(), "{PREFIX}{text}") {
        // Then there is nobody to tell.
        Ok(()) | Err(_) => {}
    }
}

/// The kernel's priority of a level (syslog(2)).
const fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

/// Writes text to every console, whatever the log level: what a person in front of it has to see, and what is too fleeting for the log.
pub fn announce(root: &Path, text: &str) {
    for console in consoles(root) {
        // One console less is no reason to fail, and there is nowhere else to say it.
        if let Err(error) = write_console(&console, text.as_bytes()) {
            log::trace!("{}: {error}", console.display());
        }
    }
}

/// The devices of `/proc/consoles` that exist. The first is `/dev/console`: the kernel puts the one that it prefers, the last `console=` of the
/// command line, at the head (kernel/printk/printk.c, `register_console`).
pub fn consoles(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join("proc/consoles")).unwrap_or_default();
    let names: Vec<PathBuf> = parse_consoles(&text)
        .map(|name| root.join("dev").join(name))
        .filter(|path| path.exists())
        .collect();
    if names.is_empty() { vec![root.join("dev/console")] } else { names }
}

fn parse_consoles(text: &str) -> impl Iterator<Item = &str> {
    // `tty0` is the virtual console in the foreground; each line begins with a device's name.
    text.lines().filter_map(|line| line.split_ascii_whitespace().next())
}

fn write_console(path: &Path, text: &[u8]) -> io::Result<()> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let mut console = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let mut rest: &[u8] = &text
        .iter()
        .flat_map(|byte| if *byte == b'\n' { b"\r\n".to_vec() } else { vec![*byte] })
        .collect::<Vec<u8>>();
    while !rest.is_empty() {
        match console.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(&console)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_writable(console: &File) -> io::Result<()> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: CONSOLE_PATIENCE.as_nanos() as _,
    };
    match poll(&mut [PollFd::new(console, PollFlags::OUT)], Some(&timeout))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

struct Sink {
    root: PathBuf,
    kmsg: Option<File>,
}

impl Write for Sink {
    /// Takes one whole record, `<priority>text`, as the formatter above makes it.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let (priority, text) = split_priority(record);
        let logged = match &mut self.kmsg {
            Some(kmsg) => kmsg.write(cut(record)).is_ok(),
            None => false,
        };
        if !logged || !shown_by_kernel(&self.root, priority) {
            let text = String::from_utf8_lossy(text);
            announce(&self.root, &text);
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn split_priority(record: &[u8]) -> (u8, &[u8]) {
    match record {
        [b'<', digit @ b'0'..=b'7', b'>', text @ ..] => (digit - b'0', text),
        text => (6, text),
    }
}

/// A record that the kernel takes, cut at a character's border.
fn cut(record: &[u8]) -> &[u8] {
    let record = record.trim_ascii_end();
    if record.len() <= RECORD_LIMIT {
        return record;
    }
    let mut end = RECORD_LIMIT;
    while record[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &record[..end]
}

fn shown_by_kernel(root: &Path, priority: u8) -> bool {
    let levels = fs::read_to_string(root.join("proc/sys/kernel/printk")).unwrap_or_default();
    levels
        .split_ascii_whitespace()
        .next()
        .and_then(|level| level.parse::<u8>().ok())
        .is_some_and(|level| priority < level)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn world(printk: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(
            root.path().join("proc/consoles"),
            "tty0                 -WU (EC  p  )    4:1\nttyS0                -W- (E   p a)    4:64\n",
        )
        .unwrap();
        fs::write(root.path().join("proc/sys/kernel/printk"), printk).unwrap();
        for name in ["tty0", "ttyS0", "kmsg"] {
            fs::write(root.path().join("dev").join(name), "").unwrap();
        }
        root
    }

    fn sink(root: &Path) -> Sink {
        Sink {
            root: root.to_owned(),
            kmsg: OpenOptions::new().append(true).open(root.join("dev/kmsg")).ok(),
        }
    }

    #[test]
    fn a_message_is_seen_once_on_every_console() {
        let quiet = world("4 4 1 7\n");
        sink(quiet.path()).write_all(b"<6>freshroot: hello\n").unwrap();
        for console in ["tty0", "ttyS0"] {
            assert_eq!(
                fs::read(quiet.path().join("dev").join(console)).unwrap(),
                b"freshroot: hello\r\n",
                "the kernel is quiet"
            );
        }
        let loud = world("7 4 1 7\n");
        sink(loud.path()).write_all(b"<6>freshroot: hello\n").unwrap();
        assert_eq!(fs::read(loud.path().join("dev/ttyS0")).unwrap(), b"", "the kernel shows it itself");
        assert_eq!(fs::read(loud.path().join("dev/kmsg")).unwrap(), b"<6>freshroot: hello");
    }

    #[test]
    fn the_journal_gets_the_level_of_every_line() {
        assert_eq!(service_lines(log::Level::Warn, "one\ntwo"), "<4>one\n<4>two\n");
        assert_eq!(service_lines(log::Level::Info, "one"), "<6>one\n");
    }

    #[test]
    fn without_a_kernel_log_the_consoles_still_tell() {
        let root = world("7 4 1 7\n");
        fs::remove_file(root.path().join("dev/kmsg")).unwrap();
        sink(root.path()).write_all(b"<3>freshroot: no\n").unwrap();
        assert_eq!(fs::read(root.path().join("dev/ttyS0")).unwrap(), b"freshroot: no\r\n");
    }

    #[test]
    fn a_long_record_is_cut_between_characters() {
        let record = format!("<6>{}", "é".repeat(1000));
        let cut = cut(record.as_bytes());
        assert!(cut.len() <= RECORD_LIMIT && std::str::from_utf8(cut).is_ok());
    }
}
