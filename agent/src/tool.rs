//! Programs of the initrd: found, run to their end with a time limit, their output in the log.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// A longer line is cut: a record of the kernel log holds less than 1024 bytes.
const MAX_LINE: usize = 800;
/// More lines than this are counted, not logged.
const MAX_LINES: usize = 1000;
/// So many of the last lines are part of an error.
const TAIL_LINES: usize = 10;
/// Where programs are, below the root: the last one in a running NixOS.
const FOLDERS: [&str; 5] = ["bin", "sbin", "usr/bin", "usr/sbin", "run/current-system/sw/bin"];
/// What every program is told: it finds its like here, and nobody but it makes nodes and links in `/dev`, since there is no udev.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),
    ("DM_DISABLE_UDEV", "1"),
    ("MDADM_NO_UDEV", "1"),
    ("LVM_SUPPRESS_FD_WARNINGS", "1"),
];

/// What stands before the last lines of an output.
const LAST_WORDS: &str = "; its last words: ";

/// A program that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool(PathBuf);

/// Where a program gets its input from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// Nothing.
    Nothing,
    /// A terminal, where somebody may type; its output goes there, and not to the log.
    Terminal(&'a Path),
}

/// How a program ended, and its last words.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    tail: String,
}

impl Ended {
    /// The last lines of its output, with ` | ` between them.
    pub fn said(&self) -> &str {
        self.tail.strip_prefix(LAST_WORDS).unwrap_or(&self.tail)
    }
}

impl fmt::Display for Ended {
    /// «ended with exit status 1; its last words: …»
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "ended with exit status {code}")?,
            (None, Some(signal)) => write!(f, "was ended by signal {signal}")?,
            (None, None) => write!(f, "ended: {}", self.status)?,
        }
        f.write_str(&self.tail)
    }
}

impl Tool {
    /// The program `name` below `root` (`/`), if it is there.
    pub fn find(root: &Path, name: &str) -> Option<Self> {
        let places = FOLDERS.iter().map(|folder| root.join(folder).join(name));
        places.into_iter().find(|path| path.is_file()).map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or takes longer than `limit`: then it and its process group are killed.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S], input: Input<'_>, limit: Duration) -> Result<Ended> {
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        let mut command = Command::new(&self.0);
        command.args(arguments).env_clear().envs(ENVIRONMENT).process_group(0);
        match input {
            Input::Nothing => {
                command
                    .stdin(Stdio::null())
                    .stderr(writer.try_clone().context("copying a pipe")?)
                    .stdout(writer);
            }
            Input::Terminal(path) => {
                let open = || {
                    File::options()
                        .read(true)
                        .write(true)
                        .open(path)
                        .with_context(|| format!("opening {}", path.display()))
                };
                command.stdin(open()?).stdout(open()?).stderr(open()?);
                drop(writer);
            }
        }
        let mut child = command.spawn().with_context(|| format!("starting {}", self.0.display()))?;
        // The command holds the writing end of the pipe.
        drop(command);
        watch(&mut child, OwnedFd::from(reader), &self.0, limit)
    }
}

/// Logs what comes out of `output` until the child ends, line by line, named after `program`.
///
/// # Errors
/// It takes longer than `limit`. Then, and after every other error, it and its process group are killed; the last lines of its output are in the error.
pub fn watch(child: &mut Child, output: OwnedFd, program: &Path, limit: Duration) -> Result<Ended> {
    let deadline = Instant::now() + limit;
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let mut lines = Output::new(name);
    let status = wait(child, output, deadline, &mut lines);
    lines.finish();
    let tail = lines.tail();
    if !matches!(status, Ok(Some(_))) {
        // It must not go on in what is taken down.
        kill(child).with_context(|| format!("killing {}", program.display()))?;
    }
    match status.with_context(|| format!("waiting for {}", program.display()))? {
        Some(status) => Ok(Ended { status, tail }),
        None => bail!(
            "{} did not end within {} s and was killed{tail}",
            program.display(),
            limit.as_secs()
        ),
    }
}

/// Forwards the output until the child ends: `None` if the deadline comes first.
///
/// The end is that of the process, not of the pipe: a daemon that it left behind keeps the pipe open for ever.
fn wait(child: &mut Child, reader: OwnedFd, deadline: Instant, output: &mut Output) -> Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("the process has no id")?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).context("opening a descriptor of the process")?;
    rustix::io::ioctl_fionbio(&reader, true).context("making the pipe non-blocking")?;
    let mut reader = std::fs::File::from(reader);
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec::try_from(left).context("the time limit is too long")?;
        let mut polled = [
            PollFd::new(&ended, PollFlags::IN),
            PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN),
        ];
        let asked = if open { &mut polled[..] } else { &mut polled[..1] };
        match poll(asked, Some(&timeout)) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => bail!("polling: {errno}"),
        }
        let has_ended = !asked[0].revents().is_empty();
        open = open && forward(&mut reader, output)?;
        if has_ended {
            return Ok(Some(child.wait()?));
        }
    }
}

/// Takes what is in the pipe now, at most a pipe's worth; false when it was closed.
fn forward(reader: &mut std::fs::File, output: &mut Output) -> Result<bool> {
    let mut buffer = [0; 4096];
    for _ in 0..16 {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => output.feed(&buffer[..length]),
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => return Ok(true),
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            Err(err) => return Err(anyhow::Error::new(err).context("reading its output")),
        }
    }
    Ok(true)
}

fn kill(child: &mut Child) -> Result<()> {
    let group = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("the process has no id")?;
    match kill_process_group(group, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    child.wait()?;
    Ok(())
}

/// Output cut into lines, logged, and its last lines kept.
struct Output {
    name: String,
    line: Vec<u8>,
    lines: usize,
    tail: VecDeque<String>,
}

impl Output {
    const fn new(name: String) -> Self {
        Self {
            name,
            line: Vec::new(),
            lines: 0,
            tail: VecDeque::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if text.is_empty() {
            return;
        }
        self.lines += 1;
        if self.lines <= MAX_LINES {
            log::info!("{}: {text}", self.name);
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }

    fn finish(&mut self) {
        self.end_line();
        if self.lines > MAX_LINES {
            log::warn!("{}: {} more lines are not shown", self.name, self.lines - MAX_LINES);
        }
    }

    fn tail(&self) -> String {
        if self.tail.is_empty() {
            return String::new();
        }
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        format!("{LAST_WORDS}{}", lines.join(" | "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Ended> {
        Tool::find(Path::new("/"), "sh")
            .unwrap()
            .run(&["-c", script], Input::Nothing, limit)
    }

    #[test]
    fn a_program_is_found_run_and_its_last_words_are_kept() {
        assert_eq!(Tool::find(Path::new("/"), "no-such-program"), None);
        let ended = shell("echo one; echo two >&2; exit 3", Duration::from_secs(60)).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.to_string(), "ended with exit status 3; its last words: one | two");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_all_that_it_started() {
        let error = shell("echo begun; sleep 1000 & sleep 1000", Duration::from_millis(300))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("did not end within 0 s and was killed; its last words: begun"),
            "{error}"
        );
    }

    #[test]
    fn output_is_cut_into_bounded_lines() {
        let mut output = Output::new("x".to_owned());
        output.feed(b"a\n\nb");
        output.feed(b"c\n");
        output.feed(&vec![b'y'; 5000]);
        output.finish();
        assert_eq!(output.tail.len(), 3);
        assert_eq!(output.tail[1], "bc");
        assert_eq!(output.tail[2].len(), MAX_LINE);
        for _ in 0..5000 {
            output.feed(b"line\n");
        }
        assert_eq!(output.tail.len(), TAIL_LINES);
        assert!(output.tail().ends_with("| line"));
    }
}
