//! A line about the progress every now and then while something long goes on.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    let result = every(teller.pause(), &|| teller.tell(&line()), work);
    // After the thread: nothing of it comes later.
    teller.end();
    result
}

/// Does `work`, and meanwhile does `tick` with so long a pause before each.
pub fn every<T>(length: Duration, tick: &(dyn Fn() + Sync), work: impl FnOnce() -> T) -> T {
    let (ended, moved) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let ticking = || {
            let mut guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
            let mut next = Instant::now() + length;
            while !*guard {
                // A wait may end early.
                let rest = next.saturating_duration_since(Instant::now());
                (guard, _) = moved.wait_timeout(guard, rest).unwrap_or_else(PoisonError::into_inner);
                if !*guard && Instant::now() >= next {
                    tick();
                    next = Instant::now() + length;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, ticking) {
            log::warn!("there is no line about the progress: starting a thread: {error}");
        }
        let result = work();
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        moved.notify_all();
        result
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn ticks_come_one_after_the_other_and_end_with_the_work() {
        let pause = Duration::from_millis(30);
        let ticks = Mutex::new(Vec::new());
        let (tell, told) = channel();
        let started = Instant::now();
        every(
            pause,
            &|| {
                ticks.lock().unwrap().push(Instant::now());
                tell.send(()).unwrap();
            },
            || {
                for _ in 0..3 {
                    told.recv_timeout(Duration::from_secs(10)).unwrap();
                }
            },
        );
        let ticks = ticks.into_inner().unwrap();
        let mut before = started;
        for tick in &ticks {
            assert!(*tick - before >= pause, "{:?}", *tick - before);
            before = *tick;
        }
        assert!((3..=4).contains(&ticks.len()), "{}", ticks.len());
    }

    #[test]
    fn no_teller_that_writes_line_below_line_does_so_more_than_once_a_second() {
        let root = Path::new("/");
        for teller in [Teller::Consoles(root), Teller::DumbTerminal] {
            assert!(teller.pause() >= Duration::from_secs(1));
        }
    }
}
