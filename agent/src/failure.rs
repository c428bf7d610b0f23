//! When nothing boots: say why on every console, wait a bounded time, then reboot, power off or offer a shell with a timer.
//!
//! Nobody is there: nothing in here waits for a key without a limit, and PID 1 never ends.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::system::RebootCommand;

use crate::console::announce;
use crate::report::Failure;
use crate::settings::{FailureAction, OnFailure};

/// Shells that an initrd may hold, the friendliest first.
const SHELLS: &[&str] = &["/bin/bash", "/bin/sh", "/bin/ash", "/bin/busybox"];
/// Between two lines of a countdown.
const COUNTDOWN: Duration = Duration::from_secs(10);
/// Between two looks at a shell that was started.
const SHELL_LOOK: Duration = Duration::from_millis(500);
/// A shell that fails sooner never was one: its interpreter is missing, or its terminal refuses.
const SHELL_START: Duration = Duration::from_secs(2);
/// A disk that does not answer for so long will not take what is left either.
const SYNC_LIMIT: Duration = Duration::from_secs(60);

/// systemd-shutdown kills what runs within its first seconds, this program too; after a minute there is no systemd that obeys.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(60);

/// Who ends the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndBy {
    /// This program, as PID 1: by reboot(2).
    Kernel,
    /// systemd, which is PID 1 and unmounts what is mounted; if it does not, this program by reboot(2).
    Systemd,
}

/// The pause before the `failures`-th reaction (from 0): it doubles, up to a limit.
pub fn back_off(settings: &OnFailure, failures: u32) -> Duration {
    settings
        .delay
        .saturating_mul(2u32.saturating_pow(failures.min(20)))
        .min(settings.max_delay.max(settings.delay))
}

/// What a person in front of the console sees.
pub fn screen(failure: &Failure, next: &str) -> String {
    format!(
        "\n*** freshroot: THE BOOT FAILED ***\n  what:   {}\n  remedy: {}\n  next:   {next}\n\n",
        failure.what, failure.remedy
    )
}

/// Words for what comes next.
pub fn next_words(settings: &OnFailure, pause: Duration) -> String {
    let seconds = pause.as_secs();
    match settings.action {
        FailureAction::Reboot => format!("reboot in {seconds} s (onFailure.action = reboot)"),
        FailureAction::Poweroff => format!("power off in {seconds} s (onFailure.action = poweroff)"),
        FailureAction::Shell => {
            format!(
                "a shell, for {} s without a key, then a reboot (onFailure.action = shell)",
                settings.shell_timeout.as_secs()
            )
        }
    }
}

/// Carries the policy out. Returns only if the kernel refuses to reboot or to power off.
pub fn act(root: &Path, settings: &OnFailure, pause: Duration, by: EndBy) -> anyhow::Error {
    match settings.action {
        FailureAction::Reboot => {
            count_down(root, pause, "reboot");
            end(root, RebootCommand::Restart, by)
        }
        FailureAction::Poweroff => {
            count_down(root, pause, "power off");
            end(root, RebootCommand::PowerOff, by)
        }
        FailureAction::Shell => {
            if let Err(error) = shell(root, settings.shell_timeout) {
                log::error!("no shell: {error:#}");
                count_down(root, pause, "reboot");
            }
            end(root, RebootCommand::Restart, by)
        }
    }
}

/// Makes everything last, as far as the disks answer, then asks the kernel.
fn end(root: &Path, command: RebootCommand, by: EndBy) -> anyhow::Error {
    if by == EndBy::Systemd {
        match ask_systemd(root, command) {
            Ok(()) => {
                let until = Instant::now() + SYSTEMD_LIMIT;
                while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    std::thread::park_timeout(left);
                }
                log::error!("systemd has not ended the machine within {} s", SYSTEMD_LIMIT.as_secs());
            }
            Err(error) => log::error!("{error:#}"),
        }
    }
    let (tell, ended) = std::sync::mpsc::channel();
    let syncing = std::thread::Builder::new().spawn(move || {
        rustix::fs::sync();
        // Nobody listens any more once the limit is over.
        tell.send(()).is_ok()
    });
    // The one thread that nobody joins: it may hang in the kernel, and the machine ends here.
    if syncing.is_err() || ended.recv_timeout(SYNC_LIMIT).is_err() {
        log::error!("not all disks are synchronised: the machine ends without that");
    }
    match rustix::system::reboot(command) {
        Ok(()) => anyhow::anyhow!("the kernel neither rebooted nor powered off"),
        Err(error) => anyhow::Error::new(error).context("asking the kernel to reboot or to power off"),
    }
}

/// `SIGRTMIN+15` reboots at once, `SIGRTMIN+14` powers off: no unit is stopped, but systemd-shutdown ends processes and unmounts (systemd(1)).
fn ask_systemd(root: &Path, command: RebootCommand) -> Result<()> {
    let libraries = fs::read_to_string(root.join("proc/1/maps")).unwrap_or_default();
    let above = if matches!(command, RebootCommand::PowerOff) { 14 } else { 15 };
    crate::sys::signal_init(first_real_time_signal(&libraries) + above).context("asking systemd to end the machine")
}

/// `SIGRTMIN` as another process sees it whose memory is mapped so: C libraries keep the kernel's first ones, from 32, for themselves; glibc two of
/// them, musl three. One off would power off a machine that is to reboot.
fn first_real_time_signal(maps: &str) -> i32 {
    if maps.contains("/ld-musl-") { 35 } else { 34 }
}

/// A pause with a line every few seconds; `what` comes after it.
pub fn pause(root: &Path, length: Duration, what: &str) {
    count_down(root, length, what);
}

fn count_down(root: &Path, pause: Duration, what: &str) {
    let until = Instant::now() + pause;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        announce(root, &format!("freshroot: {what} in {} s\n", left.as_secs_f64().ceil()));
        let step = Instant::now() + left.min(COUNTDOWN);
        while let Some(rest) = step.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            std::thread::park_timeout(rest);
        }
    }
}

/// A shell on the first console, which is `/dev/console`; ended after `limit` without a key.
fn shell(root: &Path, limit: Duration) -> Result<()> {
    let program = SHELLS
        .iter()
        .map(|shell| root.join(shell.trim_start_matches('/')))
        .find(|path| path.exists());
    let Some(program) = program else {
        bail!("the initrd holds none of {}", SHELLS.join(", "));
    };
    let console = crate::console::consoles(root).into_iter().next().context("there is no console")?;
    let own = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(own)
        .arg("tty-exec")
        .arg(&console)
        .arg(&program)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let outcome = watch(&mut child, &console, limit);
    if outcome.is_err() || child.try_wait().is_ok_and(|status| status.is_none()) {
        child.kill().and_then(|()| child.wait().map(|_| ())).context("ending the shell")?;
    }
    outcome
}

/// Waits until the shell ends, or its terminal was not read from for `limit`: the kernel notes each read in the device's access time, eight seconds
/// coarse (drivers/tty/tty_io.c, `tty_update_time`).
fn watch(child: &mut Child, console: &Path, limit: Duration) -> Result<()> {
    let touched = || fs::metadata(console).map(|metadata| metadata.atime()).unwrap_or_default();
    let started = Instant::now();
    let (mut last, mut since) = (touched(), started);
    loop {
        match child.try_wait().context("waiting for the shell")? {
            Some(status) if !status.success() && started.elapsed() < SHELL_START => bail!("it ended at once ({status})"),
            Some(_) => return Ok(()),
            None => {}
        }
        let now = touched();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() >= limit {
            log::warn!("nobody used the shell for {} s", limit.as_secs());
            return Ok(());
        }
        std::thread::park_timeout(SHELL_LOOK);
    }
}

/// Becomes `program` on the terminal `tty`, as leader of a session that owns it. The body of the hidden command `tty-exec`.
///
/// # Errors
/// If the terminal or the program refuses; on success it does not return.
pub fn tty_exec(tty: &Path, program: &Path) -> Result<std::convert::Infallible> {
    rustix::process::setsid().context("beginning a session")?;
    let terminal = rustix::fs::open(tty, OFlags::RDWR, Mode::empty()).with_context(|| format!("opening {}", tty.display()))?;
    // systemd gives a service with StandardInput=tty-force the console for its own.
    crate::sys::take_terminal(terminal.as_fd()).with_context(|| format!("owning {}", tty.display()))?;
    rustix::stdio::dup2_stdin(&terminal)?;
    rustix::stdio::dup2_stdout(&terminal)?;
    rustix::stdio::dup2_stderr(&terminal)?;
    let name: PathBuf = program.file_name().map(PathBuf::from).unwrap_or_default();
    let mut command = Command::new(program);
    // busybox is told by its first argument which of its programs it is.
    if name.as_os_str() == "busybox" {
        command.arg("sh");
    }
    Err(
        anyhow::Error::new(command.arg0(if name.as_os_str() == "busybox" { "busybox" } else { "-sh" }).exec())
            .context(format!("starting {}", program.display())),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings(action: FailureAction) -> OnFailure {
        OnFailure {
            action,
            delay: Duration::from_secs(30),
            max_delay: Duration::from_secs(600),
            shell_timeout: Duration::from_secs(600),
            retries: 0,
        }
    }

    #[test]
    fn a_shell_that_cannot_start_is_an_error_so_that_a_pause_follows() {
        let limit = Duration::from_secs(60);
        let watched = |program: &str| watch(&mut Command::new(program).spawn().unwrap(), Path::new("/dev/null"), limit);
        assert!(watched("false").unwrap_err().to_string().contains("ended at once"));
        assert!(watched("true").is_ok());
    }

    #[test]
    fn real_time_signals_are_counted_as_the_c_library_of_pid_1_counts() {
        let line = |library: &str| format!("7f00-7f01 r-xp 00000000 00:1b 42 /nix/store/x/lib/{library}\n");
        assert_eq!(first_real_time_signal(&line("libc.so.6")), 34);
        assert_eq!(first_real_time_signal(&line("ld-musl-x86_64.so.1")), 35);
        assert_eq!(first_real_time_signal(""), 34, "systemd is built with glibc nearly everywhere");
    }

    #[test]
    fn the_pause_doubles_up_to_its_limit() {
        let settings = settings(FailureAction::Reboot);
        let pauses: Vec<u64> = (0..7).map(|failures| back_off(&settings, failures).as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(back_off(&settings, u32::MAX).as_secs(), 600);
    }

    #[test]
    fn the_screen_says_what_and_what_to_do_and_what_comes() {
        let failure = Failure::new("no answer", "start the server");
        for (action, word) in [
            (FailureAction::Reboot, "reboot in 30 s"),
            (FailureAction::Poweroff, "power off in 30 s"),
            (FailureAction::Shell, "a shell, for 600 s"),
        ] {
            let settings = settings(action);
            let text = screen(&failure, &next_words(&settings, back_off(&settings, 0)));
            for part in ["no answer", "start the server", word] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
