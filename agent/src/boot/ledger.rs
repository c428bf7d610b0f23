//! What is remembered of transfers from boot to boot: how much came today, how fast each mirror was. A convenience: what
//! cannot be kept is a line in the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::allowance;
use crate::cache::Cache;
use crate::cache::state::read_state;
use crate::clock::Clock;
use crate::formats::state::State;
use crate::http::{Budget, mirror_of};
use crate::settings::{Settings, Transfer};

/// While a budget of the day is counted, it is written down as often as this: a power cut hides what came since.
pub const RECORD: Duration = Duration::from_secs(10);

/// What is remembered.
#[derive(Debug)]
pub struct Ledger {
    state: State,
    clock: Clock,
    transfer: Transfer,
    /// Of what this process received, so much is written down.
    recorded: AtomicU64,
}

impl Ledger {
    /// With what the cache remembers.
    pub fn new(settings: &Settings, state: State, clock: Clock) -> Self {
        Self {
            state,
            clock,
            transfer: settings.transfer.clone(),
            recorded: AtomicU64::new(0),
        }
    }

    /// The time.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What this process may receive.
    pub fn budget(&self) -> Option<Budget> {
        allowance::budget(&self.transfer, &self.state, &self.clock)
    }

    /// Bytes a second that are expected of a mirror.
    pub fn rate(&self, url: &str) -> Option<u64> {
        allowance::rate(&self.transfer, &self.state, url)
    }

    /// Whether bytes are counted by the day.
    pub const fn counts_days(&self) -> bool {
        self.transfer.budget_per_day > 0
    }

    /// This process has received so many bytes so far.
    pub fn received(&self, disk: Option<&Cache>, total: u64) {
        let new = total.saturating_sub(self.recorded.swap(total, Ordering::Relaxed));
        if new > 0 && self.counts_days() {
            keep(disk, |state| state.add_received(allowance::today(state, &self.clock), new));
        }
    }

    /// How fast mirrors were.
    pub fn measured(&self, disk: Option<&Cache>, rates: &[(&String, u64)]) {
        if !rates.is_empty() {
            keep(disk, |state| {
                for (url, rate) in rates {
                    state.see_rate(&mirror_of(url), *rate);
                }
            });
        }
    }
}

/// Changes what is kept on the disk now: another one may have written meanwhile.
fn keep(disk: Option<&Cache>, change: impl FnOnce(&mut State)) {
    let Some(cache) = disk.filter(|cache| cache.writable()) else {
        return;
    };
    let (mut state, _) = read_state(cache.folder());
    change(&mut state);
    if let Err(error) = cache.commit_state(&state) {
        log::warn!("what came and how fast is not remembered: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    use crate::allowance::DAY;
    const SUNDAY: u64 = 25_000;
    static NOW: AtomicU64 = AtomicU64::new(0);

    /// What is left of 100 bytes after what happened on these days by the machine's clock.
    fn left(cache: &Cache, days: &[(u64, u64)]) -> Vec<u64> {
        let settings = Settings::from_sources(Some(("c", br#"{"version": 1, "transfer": {"budgetPerDay": 100}}"#)), b"").unwrap();
        let clock = Clock {
            floor: SUNDAY * DAY,
            machine: || NOW.load(Ordering::Relaxed),
        };
        days.iter()
            .map(|(day, bytes)| {
                NOW.store(day * DAY + 5, Ordering::Relaxed);
                let ledger = Ledger::new(&settings, read_state(cache.folder()).0, clock);
                let left = ledger.budget().unwrap().bytes();
                ledger.received(Some(cache), *bytes);
                ledger.received(Some(cache), *bytes);
                left
            })
            .collect()
    }

    #[test]
    fn a_day_is_counted_over_boots_and_no_clock_that_is_set_back_begins_it_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), Instant::now() + Duration::from_secs(1)).unwrap();
        let happened = [
            (SUNDAY + 1, 30),
            (SUNDAY + 1, 30),
            // Set back: the count goes along, and ends at the next midnight.
            (SUNDAY, 10),
            (SUNDAY, 0),
            (SUNDAY + 1, 90),
            // 1970: nobody knows which day it is.
            (0, 30),
            (0, 1),
            (SUNDAY + 1, 0),
            (SUNDAY + 2, 0),
        ];
        let expected = [100, 70, 40, 30, 100, 10, 0, 0, 100];
        assert_eq!(left(&cache, &happened), expected);
    }

    #[test]
    fn without_a_disk_nothing_is_remembered_and_nothing_fails() {
        let settings = Settings::from_sources(Some(("c", br#"{"version": 1, "transfer": {"budgetPerDay": 100}}"#)), b"").unwrap();
        let ledger = Ledger::new(&settings, State::default(), Clock::default());
        assert_eq!(ledger.budget(), Some(Budget::Day(100)));
        ledger.received(None, 50);
        ledger.measured(None, &[(&"http://a".to_owned(), 5)]);
    }
}
