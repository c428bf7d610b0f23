//! Fetching: an answer, a chunk index, an image. What comes is verified before it is used or written.

pub mod answer;
pub mod image;
pub mod pace;
mod parallel;
pub mod pipeline;
pub mod range;
pub mod retry;
pub mod validator;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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
    moves: AtomicU64,
}

impl Progress {
    /// A transfer of `total` bytes that begins now.
    pub fn new(total: u64) -> Self {
        Self {
            started: Instant::now(),
            total,
            reused: AtomicU64::new(0),
            done: AtomicU64::new(0),
            moves: AtomicU64::new(0),
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

    /// Bytes that were there before.
    pub fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    /// Bytes that are there now.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = self.done();
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = done.saturating_sub(self.reused()) as f64 / seconds;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let percent = (done * 100).checked_div(self.total).unwrap_or(100);
        write!(
            f,
            "{percent} %: {:.1} of {:.1} MB, {:.1} MB/s",
            megabytes(done),
            megabytes(self.total),
            rate / 1e6
        )?;
        let left = self.total.saturating_sub(done) as f64 / rate.max(1.0);
        if (1.0..1e6).contains(&left) && rate > 1.0 {
            write!(f, ", {} left", duration(left))?;
        }
        Ok(())
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}
