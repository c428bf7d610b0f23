//! Keys on the consoles, for a while: each is set to give keys as they are pressed, and set back.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::termios::{LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr, tcsetattr};

use crate::console::consoles;

/// Between two lines of the countdown: a console that can do no more shows one a second.
const SECOND: Duration = Duration::from_secs(1);
/// What comes with less between it belongs together: keys come one by one, an echo does not.
const TOGETHER: Duration = Duration::from_millis(50);
/// More is no key, whatever it is.
const MOST: usize = 256;
/// Where systemd's programs put what they ask a person for (systemd-ask-password(1)).
const QUESTIONS: &str = "run/systemd/ask-password";

/// On which consoles keys count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// On all: nobody else reads there.
    Everywhere,
    /// On the first one, which is `/dev/console`, as long as nobody is asked for a password there.
    First,
    /// Nowhere.
    Nowhere,
}

/// Listens for keys on the consoles below `root` for at most `limit`. What comes is judged by `key`, `tell` is called each second with the time that is left. No
/// terminal, or one that hangs up, is no key. What was typed before does not count.
pub fn listen<T>(root: &Path, keys: Keys, limit: Duration, key: impl Fn(&[u8]) -> Option<T>, tell: impl Fn(Duration)) -> Option<T> {
    let until = Instant::now() + limit;
    let count = match keys {
        Keys::Everywhere => usize::MAX,
        Keys::First => 1,
        Keys::Nowhere => 0,
    };
    let mut terminals: Vec<Terminal> = consoles(root).iter().take(count).filter_map(|path| Terminal::open(path)).collect();
    // Nobody could answer: the time is not spent.
    while !terminals.is_empty() {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        if keys == Keys::First && somebody_asks(root) {
            log::info!("keys are not listened for: a password is asked for on the console");
            return None;
        }
        tell(left);
        let second = Instant::now() + left.min(SECOND);
        while let Some(rest) = second.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            if !wait(&terminals, rest) {
                continue;
            }
            let mut pressed = None;
            terminals.retain_mut(|terminal| match terminal.read_together() {
                Some(bytes) => {
                    pressed = pressed.take().or_else(|| key(&bytes));
                    true
                }
                None => false,
            });
            if pressed.is_some() {
                return pressed;
            }
            if terminals.is_empty() {
                return None;
            }
        }
    }
    None
}

/// Whether a program of systemd's waits for a password.
fn somebody_asks(root: &Path) -> bool {
    let Ok(entries) = fs::read_dir(root.join(QUESTIONS)) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("ask."))
}

/// Whether something can be read before `rest` is over.
fn wait(terminals: &[Terminal], rest: Duration) -> bool {
    let mut fds: Vec<PollFd<'_>> = terminals
        .iter()
        .map(|terminal| PollFd::new(&terminal.file, PollFlags::IN))
        .collect();
    let timeout = Timespec {
        tv_sec: rest.as_secs() as _,
        tv_nsec: rest.subsec_nanos() as _,
    };
    matches!(poll(&mut fds, Some(&timeout)), Ok(1..))
}

/// A terminal that gives keys as they are pressed, until it is dropped.
struct Terminal {
    file: File,
    before: Termios,
}

impl Terminal {
    /// None if there is no terminal, or it is none that can be read.
    fn open(path: &Path) -> Option<Self> {
        // A serial line without a carrier must not hold anybody up, and this process gets no controlling terminal by the way.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
        let open = || -> std::io::Result<Self> {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            let before = tcgetattr(&file)?;
            let mut raw = before.clone();
            // Neither lines nor echo. Signals stay: Ctrl-C is nobody's key here, and CR is not translated for us.
            raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(&file, OptionalActions::Now, &raw)?;
            let terminal = Self { file, before };
            tcflush(&terminal.file, QueueSelector::IFlush)?;
            Ok(terminal)
        };
        open().map_err(|error| log::debug!("no keys from {}: {error}", path.display())).ok()
    }

    /// What came together; none if it hung up.
    fn read_together(&mut self) -> Option<Vec<u8>> {
        let mut together = self.read()?;
        while !together.is_empty() && together.len() < MOST && wait(std::slice::from_ref(self), TOGETHER) {
            together.extend(self.read()?);
        }
        Some(together)
    }

    /// What is there; none if it hung up.
    fn read(&mut self) -> Option<Vec<u8>> {
        let mut bytes = [0; 64];
        match self.file.read(&mut bytes) {
            Ok(0) => None,
            Ok(length) => Some(bytes.get(..length).unwrap_or_default().to_vec()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(Vec::new()),
            Err(_) => None,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.file, OptionalActions::Now, &self.before) {
            log::debug!("a terminal keeps its settings: {error}");
        }
    }
}
