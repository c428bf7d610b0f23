//! Fetching: an answer, a chunk index, an image. What comes is verified before it is used or written.

pub mod answer;
pub mod hurry;
pub mod image;
pub mod pace;
mod parallel;
pub mod pipeline;
pub mod range;
pub mod retry;
pub mod validator;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::figures;
use crate::http::Client;
use retry::{Memory, Mirrors};

/// Where to fetch from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The client.
    pub client: &'a Client,
    /// Base URLs of served folders, the preferred first, without a slash at the end.
    pub mirrors: &'a [String],
    /// What went wrong with them before.
    pub memory: &'a Memory,
}

impl Source<'_> {
    /// The mirrors for one task.
    fn in_order(&self) -> Mirrors {
        Mirrors::new(&self.memory.order(self.mirrors.len()))
    }
}

/// How far a transfer is, for whoever tells the user.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    total: u64,
    reused: AtomicU64,
    done: AtomicU64,
    arrived: AtomicU64,
    moves: AtomicU64,
    waits_for: Mutex<String>,
}

impl Progress {
    /// A transfer of `total` bytes that begins now.
    pub fn new(total: u64) -> Self {
        Self {
            started: Instant::now(),
            total,
            reused: AtomicU64::new(0),
            done: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            waits_for: Mutex::new(String::new()),
        }
    }

    /// These bytes were there before.
    pub fn reuse(&self, bytes: u64) {
        self.reused.fetch_add(bytes, Ordering::Relaxed);
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// These bytes were fetched and verified.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.goes_on();
    }

    /// These bytes came; whether they are of use is not known yet.
    pub fn arrive(&self, bytes: usize) {
        self.arrived.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// It goes on, though no chunk is whole yet.
    pub fn goes_on(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Another number than before, if it went on meanwhile.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// So many bytes are there now, if that is more than before.
    pub fn reach(&self, done: u64) {
        self.done.fetch_max(done, Ordering::Relaxed);
    }

    /// What comes next comes from there.
    pub fn waits_for(&self, what: String) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Bytes that were there before.
    pub fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    /// Bytes that are there now.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes that are to come.
    pub fn missing(&self) -> u64 {
        self.total.saturating_sub(self.done())
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        f.write_str(&line(self.total, self.done(), self.come(), self.started.elapsed(), &waits_for))
    }
}

impl Progress {
    /// Bytes that have come since it began. On a slow link most of them are of a chunk that is not whole yet.
    fn come(&self) -> u64 {
        let done = self.done().saturating_sub(self.reused());
        done.max(self.arrived.load(Ordering::Relaxed))
    }
}

/// One line: `done` of `total` bytes are there, of which `come` have come within `elapsed`.
fn line(total: u64, done: u64, come: u64, elapsed: Duration, waits_for: &str) -> String {
    let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(100);
    let rate = (come as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    let mut line = format!(
        "{percent} %: {} of {}, {}",
        figures::bytes(done),
        figures::bytes(total),
        figures::rate(rate)
    );
    let left = hurry::estimate(total.saturating_sub(done), rate);
    if rate > 0 && !left.is_zero() {
        line += &format!(", {} left", figures::time(left));
    }
    if !waits_for.is_empty() && done < total {
        line += &format!("; waiting for {waits_for}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_bytes_rate_time_left_and_what_is_waited_for() {
        let seconds = Duration::from_secs;
        for (total, done, come, elapsed, from, expected) in [
            (
                412_000_000,
                82_400_000,
                82_400_000,
                seconds(110),
                "http://a:80",
                "20 %: 82 MB of 412 MB, 5.9 Mbit/s, 7 min 20 s left; waiting for http://a:80",
            ),
            (412_000_000, 400_000_000, 0, seconds(3), "", "97 %: 400 MB of 412 MB, 0 bit/s"),
            // A chunk takes longer than the time between two lines.
            (
                4_000_000,
                0,
                320_000,
                seconds(10),
                "http://a:80",
                "0 %: 0 bytes of 4.0 MB, 256 kbit/s, 2 min 5 s left; waiting for http://a:80",
            ),
            (
                4_000_000,
                4_000_000,
                4_000_000,
                seconds(4),
                "http://a:80",
                "100 %: 4.0 MB of 4.0 MB, 8 Mbit/s",
            ),
            (0, 0, 0, seconds(0), "", "100 %: 0 bytes of 0 bytes, 0 bit/s"),
        ] {
            assert_eq!(line(total, done, come, elapsed, from), expected);
        }
    }
}
