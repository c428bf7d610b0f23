//! Whether a transfer will be done in time, while something else could be booted meanwhile. Pure; explained in `docs/decisions.md`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

/// A mirror has so long to show what it can: TCP's slow start and a modem that wakes up are over by then.
const FAIR: Duration = Duration::from_secs(10);
/// This share of the limit belongs to every transfer, whatever is expected of it: each boot gets further.
const SHARE: u32 = 10;
/// Between two judgements.
const LOOK: Duration = Duration::from_secs(1);
/// It may take longer than the limit by this share of it: rates vary by as much from one minute to the next, and it is cut off at the limit in any case.
const TOLERANCE: u32 = 4;

/// How long a transfer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hurry {
    /// In all (`policy.fetchWait`).
    pub limit: Duration,
    /// What each mirror has to show what it can.
    pub fair: Duration,
}

impl Hurry {
    /// With this limit in all.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            fair: FAIR.min(limit),
        }
    }

    /// What belongs to every transfer.
    fn share(self) -> Duration {
        (self.limit / SHARE).max(self.fair).min(self.limit)
    }
}

/// Watches a transfer.
#[derive(Debug)]
pub struct Watch {
    hurry: Option<Hurry>,
    /// Since this mirror began.
    mirror: Amount,
    /// Since the window that is open began.
    window: Amount,
    /// Bytes a second of the last window.
    recent: f64,
    /// Since the last judgement.
    looked: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Amount {
    bytes: u64,
    time: Duration,
}

impl Amount {
    fn add(&mut self, bytes: usize, time: Duration) {
        self.bytes += bytes as u64;
        self.time += time;
    }

    fn rate(self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-3)
    }
}

/// It will not be done in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow {
    /// Bytes a second.
    pub rate: u64,
    /// What is missing takes so long.
    pub estimate: Duration,
    /// So much time is left.
    pub left: Duration,
}

impl Watch {
    /// Without a hurry nothing is too slow.
    pub fn new(hurry: Option<Hurry>) -> Self {
        Self {
            hurry,
            mirror: Amount::default(),
            window: Amount::default(),
            recent: 0.0,
            looked: Duration::ZERO,
        }
    }

    /// Another mirror has its own time.
    pub fn begin_mirror(&mut self) {
        *self = Self::new(self.hurry);
    }

    /// So many bytes have come after so long a wait; since the transfer began `elapsed` is over, and `missing` bytes are to come.
    pub fn came(&mut self, bytes: usize, after: Duration, elapsed: Duration, missing: u64) -> Option<TooSlow> {
        let hurry = self.hurry?;
        self.mirror.add(bytes, after);
        self.window.add(bytes, after);
        self.looked += after;
        if self.window.time >= hurry.fair {
            self.recent = self.window.rate();
            self.window = Amount::default();
        }
        if self.looked < LOOK || elapsed < hurry.share() || self.mirror.time < hurry.fair {
            return None;
        }
        self.looked = Duration::ZERO;
        let rate = self.mirror.rate().max(self.recent);
        let estimate = estimate(missing, rate as u64);
        let left = hurry.limit.saturating_sub(elapsed);
        (elapsed.saturating_add(estimate) > hurry.limit + hurry.limit / TOLERANCE).then_some(TooSlow {
            rate: rate as u64,
            estimate,
            left,
        })
    }
}

/// How long so many bytes take at so many a second; for ever, if none come.
pub fn estimate(bytes: u64, rate: u64) -> Duration {
    match rate {
        0 if bytes > 0 => Duration::MAX,
        rate => Duration::from_secs(bytes / rate.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// When a transfer of `missing` bytes that come at these rates, second by second, is given up; nothing if it is not until they end.
    fn given_up(limit: u32, missing: u64, rates: impl IntoIterator<Item = u64>) -> Option<u32> {
        let mut watch = Watch::new(Some(Hurry::new(SECOND * limit)));
        let mut missing = missing;
        for (second, rate) in (1..).zip(rates) {
            missing = missing.saturating_sub(rate);
            if watch.came(rate as usize, SECOND, SECOND * second, missing).is_some() {
                return Some(second);
            }
        }
        None
    }

    #[test]
    fn a_transfer_is_given_up_once_its_share_is_over_and_it_cannot_be_done() {
        let steady = |rate: u64| std::iter::repeat_n(rate, 300);
        for (limit, missing, rate, expected, why) in [
            (300, 10_000, 100, None, "done in 100 s"),
            (300, 30_000, 100, None, "done in 300 s, which is the limit"),
            (300, 36_000, 100, None, "a little late is within what rates vary by"),
            (300, 60_000, 100, Some(30), "a tenth of 300 s is its share"),
            (300, 1 << 40, 0, Some(30), "nothing comes at all"),
            (20, 60_000, 100, Some(10), "ten seconds are the least share"),
            (5, 60_000, 100, Some(5), "there is no more than all of it"),
        ] {
            assert_eq!(given_up(limit, missing, steady(rate)), expected, "{why}");
        }
    }

    #[test]
    fn a_slow_start_and_a_bad_minute_are_forgiven() {
        // Modems wake up: nothing for 20 s, then enough.
        let late = std::iter::repeat_n(0, 20).chain(std::iter::repeat_n(1000, 280));
        assert_eq!(given_up(300, 200_000, late), None);
        // Most has come when the rate falls: the mean decides, as long as it is the better one.
        let falls = std::iter::repeat_n(1000, 150).chain(std::iter::repeat_n(10, 60));
        assert_eq!(given_up(300, 200_000, falls), None);
        // It was fast for a moment only.
        let burst = std::iter::repeat_n(1000, 5).chain(std::iter::repeat_n(10, 200));
        assert!(given_up(300, 1_000_000, burst).is_some());
        // What is slow at last, with a lot to come, is given up before the end.
        let dies = std::iter::repeat_n(1000, 100).chain(std::iter::repeat_n(0, 200));
        let second = given_up(300, 300_000, dies);
        assert!(second.is_some_and(|second| (101..250).contains(&second)), "{second:?}");
    }

    #[test]
    fn another_mirror_has_its_own_time_and_without_a_hurry_there_is_all_the_time() {
        let hurry = Hurry::new(SECOND * 100);
        let mut watch = Watch::new(Some(hurry));
        assert!(watch.came(1, SECOND * 60, SECOND * 60, 1 << 30).is_some());
        watch.begin_mirror();
        assert!(watch.came(1, SECOND * 9, SECOND * 69, 1 << 30).is_none());
        assert!(watch.came(1, SECOND, SECOND * 70, 1 << 30).is_some());
        assert!(Watch::new(None).came(0, SECOND * 999, SECOND * 999, 1 << 30).is_none());
    }

    #[test]
    fn an_estimate_of_what_never_comes_is_for_ever() {
        assert_eq!(estimate(0, 0), Duration::ZERO);
        assert_eq!(estimate(1, 0), Duration::MAX);
        assert_eq!(estimate(412_000_000, 750_000), Duration::from_secs(549));
        assert_eq!(estimate(u64::MAX, 1), Duration::from_secs(u64::MAX));
    }
}
