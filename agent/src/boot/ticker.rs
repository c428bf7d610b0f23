//! A line about the progress every now and then while something long goes on.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::console::announce;

/// Between two lines on consoles: often enough to see that something happens, rarely enough for a serial console and its log.
const CONSOLE_PAUSE: Duration = Duration::from_secs(5);
/// Between two states of a line that is written over.
const LINE_PAUSE: Duration = Duration::from_millis(200);
/// Between two lines of a terminal that can do no more.
const DUMB_PAUSE: Duration = Duration::from_secs(1);

/// Who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teller<'a> {
    /// The consoles of the machine below this root, and not the log.
    Consoles(&'a Path),
    /// The terminal that is standard error, with one line that is written over.
    Terminal,
    /// The same, line below line.
    DumbTerminal,
    /// Nobody is there.
    Nobody,
}

impl Teller<'_> {
    /// Standard error, if it is a terminal.
    pub fn of_stderr() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        match (stderr().is_terminal(), dumb) {
            (true, false) => Self::Terminal,
            (true, true) => Self::DumbTerminal,
            (false, _) => Self::Nobody,
        }
    }

    const fn pause(self) -> Duration {
        match self {
            Self::Consoles(_) => CONSOLE_PAUSE,
            Self::Terminal => LINE_PAUSE,
            Self::DumbTerminal | Self::Nobody => DUMB_PAUSE,
        }
    }

    fn tell(self, line: &str) {
        match self {
            Self::Consoles(root) => announce(root, &format!("freshroot: {line}\n")),
            Self::Terminal => write_terminal(&format!("\r{line}\x1b[K")),
            Self::DumbTerminal => write_terminal(&format!("{line}\n")),
            Self::Nobody => {}
        }
    }

    /// What is written next begins on an empty line.
    fn end(self) {
        match self {
            Self::Terminal => write_terminal("\r\x1b[K"),
            Self::Consoles(_) | Self::DumbTerminal | Self::Nobody => {}
        }
    }
}

fn write_terminal(text: &str) {
    match stderr().write_all(text.as_bytes()) {
        // A terminal that went away has nobody before it.
        Ok(()) | Err(_) => {}
    }
}

/// Does `work`, and meanwhile tells what `line` says.
pub fn while_telling<T>(teller: Teller<'_>, line: &(dyn Fn() -> String + Sync), work: impl FnOnce() -> T) -> T {
    let (ended, moved) = (Mutex::new(false), Condvar::new());
    let result = std::thread::scope(|scope| {
        let tell = || {
            let mut guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                let (next, timeout) = moved.wait_timeout(guard, teller.pause()).unwrap_or_else(PoisonError::into_inner);
                guard = next;
                if timeout.timed_out() && !*guard {
                    teller.tell(&line());
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, tell) {
            log::warn!("there is no line about the progress: starting a thread: {error}");
        }
        let result = work();
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        moved.notify_all();
        result
    });
    // After the thread: nothing of it comes later.
    teller.end();
    result
}
