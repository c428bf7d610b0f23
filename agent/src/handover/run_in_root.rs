//! A program run to its end inside another root, with a time limit and its output in the log.
//!
//! The root is changed in a thread that has its own idea of it (`unshare(CLONE_FS)`); a child of that thread starts there. So nothing
//! has to run between fork and exec, and the agent's own root stays what it was.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// A longer line is cut: a record of the kernel log holds less than 1024 bytes.
const MAX_LINE: usize = 800;
/// More lines than this are counted, not logged.
const MAX_LINES: usize = 1000;
/// So many of the last lines are part of an error.
const TAIL_LINES: usize = 10;

/// Runs `program` (a path in `root`) with `root` as its root and nothing but `env` in its environment.
///
/// Its output is logged line by line, named after the program. Errors: it cannot be started, ends with anything but 0, or takes longer than
/// `limit`; then it and its process group are killed. The last lines of its output are in the error.
pub fn run_in_root(root: &Path, program: &Path, env: &[(OsString, OsString)], limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut child = std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new()
            .spawn_scoped(scope, || spawn_in_root(root, program, env, writer))
            .context("starting a thread")?;
        spawned
            .join()
            .map_err(|_| anyhow!("the thread that starts {} panicked", program.display()))?
    })?;
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let mut output = Output::new(name);
    let status = wait(&mut child, OwnedFd::from(reader), deadline, &mut output);
    output.finish();
    let tail = output.tail();
    if status.is_err() {
        // It must not go on in a root that is taken down.
        kill(&mut child).with_context(|| format!("killing {}", program.display()))?;
    }
    match status.with_context(|| format!("waiting for {}", program.display()))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(anyhow!("{} {}{tail}", program.display(), ended(status))),
        None => {
            kill(&mut child).with_context(|| format!("killing {}", program.display()))?;
            Err(anyhow!(
                "{} did not end within {} s and was killed{tail}",
                program.display(),
                limit.as_secs()
            ))
        }
    }
}

/// How a program ended that was run here.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; none where a signal ended it.
    pub code: Option<i32>,
    /// The same in words.
    pub how: String,
    /// The last lines of its output.
    pub lines: Vec<String>,
}

/// Runs `program` in the agent's own root, with a plain environment and nothing on its standard input. Its output is logged line by line.
///
/// Errors: it cannot be started, or takes longer than `limit`; then it and its process group are killed.
pub fn run_program(program: &Path, arguments: &[OsString], limit: Duration) -> Result<Ended> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let errors = writer.try_clone().context("copying a pipe")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs([("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("LC_ALL", "C.UTF-8")])
        .stdin(std::process::Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    // Its ends of the pipe are those of the child alone.
    drop(command);
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let mut output = Output::new(name);
    let status = wait(&mut child, OwnedFd::from(reader), deadline, &mut output);
    output.finish();
    match status.with_context(|| format!("waiting for {}", program.display())) {
        Ok(Some(status)) => Ok(Ended {
            code: status.code(),
            how: ended(status),
            lines: output.tail.into(),
        }),
        Ok(None) => {
            kill(&mut child).with_context(|| format!("killing {}", program.display()))?;
            bail!(
                "{} did not end within {} s and was killed{}",
                program.display(),
                limit.as_secs(),
                output.tail()
            )
        }
        Err(error) => {
            kill(&mut child).with_context(|| format!("killing {}", program.display()))?;
            Err(error)
        }
    }
}

fn spawn_in_root(root: &Path, program: &Path, env: &[(OsString, OsString)], output: std::io::PipeWriter) -> Result<Child> {
    // Before the root changes: `Stdio::null()` would look for /dev/null in the new root.
    let input = std::fs::File::open("/dev/null").context("opening /dev/null")?;
    unshare(CloneFlags::CLONE_FS).context("taking the working folder of a thread apart")?;
    rustix::process::chroot(root).with_context(|| format!("changing the root of a thread to {}", root.display()))?;
    rustix::process::chdir("/").context("changing into the new root")?;
    let errors = output.try_clone().context("copying a pipe")?;
    Command::new(program)
        .env_clear()
        .envs(env.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str())))
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {} in {}", program.display(), root.display()))
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

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
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
        format!("; its last words: {}", lines.join(" | "))
    }
}

/// `env` with `key` set to `value`, unless it has one when `keep` is set.
pub fn with_variable(env: &[(OsString, OsString)], key: &str, value: &str, keep: bool) -> Vec<(OsString, OsString)> {
    let mut env = env.to_vec();
    match env.iter_mut().find(|(name, _)| name == OsStr::new(key)) {
        Some(_) if keep => {}
        Some((_, old)) => *old = value.into(),
        None => env.push((key.into(), value.into())),
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_variable_is_added_replaced_or_kept() {
        let env = vec![(OsString::from("A"), OsString::from("1"))];
        assert_eq!(with_variable(&env, "A", "2", true), env);
        assert_eq!(with_variable(&env, "A", "2", false), [("A".into(), "2".into())]);
        assert_eq!(with_variable(&env, "B", "2", true).len(), 2);
    }
}
