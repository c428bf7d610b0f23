//! A line on the consoles every few seconds while something long goes on.

use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::console::announce;

/// Between two lines: often enough to see that something happens, rarely enough for a serial console and its log.
const PAUSE: Duration = Duration::from_secs(5);

/// Does `work`, and meanwhile writes what `line` says to the consoles, not to the log.
pub fn while_telling<T>(root: &Path, line: &(dyn Fn() -> String + Sync), work: impl FnOnce() -> T) -> T {
    let (ended, moved) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let teller = || {
            let mut guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                let (next, timeout) = moved.wait_timeout(guard, PAUSE).unwrap_or_else(PoisonError::into_inner);
                guard = next;
                if timeout.timed_out() && !*guard {
                    announce(root, &format!("freshroot: {}\n", line()));
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, teller) {
            log::warn!("there is no line about the progress: starting a thread: {error}");
        }
        let result = work();
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        moved.notify_all();
        result
    })
}
