//! How fast bytes come, over a window: what is slower than the least rate is given up, and what is not counts as progress. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

/// The slowest that a transfer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slowest {
    /// Bytes a second; 0: a transfer is never too slow.
    pub rate: u64,
    /// The time over which that is measured.
    pub window: Duration,
}

/// Measures one transfer after the other.
#[derive(Debug)]
pub struct Pace {
    slowest: Slowest,
    time: Duration,
    bytes: u64,
}

/// What the bytes so far mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The window is not over.
    Unknown,
    /// Fast enough for so long.
    FastEnough(Duration),
    /// Too slow; bytes a second.
    TooSlow(u64),
}

impl Pace {
    /// Nothing is measured yet.
    pub const fn new(slowest: Slowest) -> Self {
        Self {
            slowest,
            time: Duration::ZERO,
            bytes: 0,
        }
    }

    /// A new connection: what was measured of the last one says nothing about it.
    pub const fn begin(&mut self) {
        self.time = Duration::ZERO;
        self.bytes = 0;
    }

    /// So many bytes have come after so long a wait. Time in which nobody was ready to receive is not to be counted.
    pub fn came(&mut self, bytes: usize, after: Duration) -> Found {
        self.time += after;
        self.bytes += bytes as u64;
        if self.time < self.slowest.window {
            return Found::Unknown;
        }
        let (time, bytes) = (self.time, self.bytes);
        self.begin();
        let rate = (bytes as f64 / time.as_secs_f64().max(1e-9)) as u64;
        if rate < self.slowest.rate {
            Found::TooSlow(rate)
        } else {
            Found::FastEnough(time)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_window_is_judged_as_a_whole_and_begins_anew() {
        let mut pace = Pace::new(Slowest {
            rate: 1000,
            window: 10 * SECOND,
        });
        assert_eq!(pace.came(0, 9 * SECOND), Found::Unknown);
        assert_eq!(pace.came(10_000, SECOND), Found::FastEnough(10 * SECOND));
        assert_eq!(pace.came(5000, 5 * SECOND), Found::Unknown);
        assert_eq!(pace.came(4999, 5 * SECOND), Found::TooSlow(999));
        assert_eq!(pace.came(1, 9 * SECOND), Found::Unknown);
        pace.begin();
        assert_eq!(pace.came(1, 9 * SECOND), Found::Unknown, "a new connection has its own time");
    }

    #[test]
    fn without_a_least_rate_nothing_is_too_slow() {
        let mut pace = Pace::new(Slowest { rate: 0, window: SECOND });
        assert_eq!(pace.came(0, 2 * SECOND), Found::FastEnough(2 * SECOND));
    }
}
