//! What goes through a client is counted, slowed down and ended: `transfer.rateLimit` and `transfer.budget`. All connections share one meter.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::figures;

/// A limit of speed is kept in steps of this share of a second: fine enough for other users of the link.
const STEPS: u64 = 10;
/// A read takes at least that much, so that a slow limit does not end in single bytes.
const LEAST_STEP: u64 = 512;
/// A connection may be ahead of its rate by that much: what was not used is not saved up for longer.
const AHEAD: Duration = Duration::from_millis(200);

/// Counts bytes of bodies.
#[derive(Debug)]
pub(super) struct Meter {
    received: AtomicU64,
    budget: Option<Budget>,
    /// Bytes a second.
    rate: Option<u64>,
    /// When the bytes that have come so far were due.
    due: Mutex<Instant>,
}

/// What a client may receive in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Bytes of a boot.
    Boot(u64),
    /// Bytes that are left of those of a day.
    Day(u64),
}

impl Budget {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Boot(bytes) | Self::Day(bytes) => bytes,
        }
    }

    /// The setting that says so.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Boot(_) => "transfer.budget",
            Self::Day(_) => "transfer.budgetPerDay",
        }
    }
}

/// The budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BudgetSpent(Budget);

impl fmt::Display for BudgetSpent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Budget::Boot(bytes) => write!(
                f,
                "the {} that one boot may fetch (transfer.budget) are used up; what came is kept for the next",
                figures::bytes(bytes)
            ),
            Budget::Day(0) => {
                f.write_str("nothing is left of what may be fetched today (transfer.budgetPerDay): wait for tomorrow, or raise it")
            }
            Budget::Day(bytes) => write!(
                f,
                "the {} that were left of what may be fetched today (transfer.budgetPerDay) are used up; what came is kept: wait for tomorrow, or raise it",
                figures::bytes(bytes)
            ),
        }
    }
}

impl std::error::Error for BudgetSpent {}

impl Meter {
    pub(super) fn new(rate: Option<u64>, budget: Option<Budget>) -> Self {
        Self {
            received: AtomicU64::new(0),
            budget,
            rate,
            due: Mutex::new(Instant::now()),
        }
    }

    /// Bytes so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Fails if the budget is used up.
    pub(super) fn check(&self) -> Result<(), BudgetSpent> {
        self.left().map(|_| ())
    }

    fn left(&self) -> Result<u64, BudgetSpent> {
        match self.budget {
            None => Ok(u64::MAX),
            Some(budget) => match budget.bytes().saturating_sub(self.received()) {
                0 => Err(BudgetSpent(budget)),
                left => Ok(left),
            },
        }
    }

    /// How many of `wanted` bytes may be read now. Waits while the rate is exceeded, a fraction of a second at most.
    pub(super) fn allowance(&self, wanted: usize) -> Result<usize, BudgetSpent> {
        let left = self.left()?;
        let step = self.rate.map_or(u64::MAX, |rate| (rate / STEPS).max(LEAST_STEP));
        if self.rate.is_some() {
            let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ahead) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(ahead);
            }
        }
        // What is wanted is a number of bytes in memory.
        Ok(left.min(step).min(wanted as u64) as usize)
    }

    /// So many bytes have come.
    pub(super) fn count(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(rate) = self.rate {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = Instant::now().checked_sub(AHEAD).unwrap_or(*due);
            *due = (*due).max(earliest) + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_budget_ends_at_its_last_byte() {
        let meter = Meter::new(None, Some(Budget::Boot(10)));
        assert_eq!(meter.allowance(100), Ok(10));
        meter.count(7);
        assert_eq!((meter.allowance(100), meter.allowance(2)), (Ok(3), Ok(2)));
        meter.count(3);
        assert_eq!(meter.allowance(1), Err(BudgetSpent(Budget::Boot(10))));
        assert!(
            meter
                .check()
                .unwrap_err()
                .to_string()
                .contains("the 10 bytes that one boot may fetch (transfer.budget)")
        );
        for (left, word) in [(0, "nothing is left"), (7, "the 7 bytes that were left")] {
            let meter = Meter::new(None, Some(Budget::Day(left)));
            meter.count(7);
            let told = meter.check().unwrap_err().to_string();
            assert!(told.contains(word) && told.contains("transfer.budgetPerDay"), "{told}");
        }
    }

    #[test]
    fn a_rate_is_kept_over_any_number_of_reads() {
        let (meter, started) = (Meter::new(Some(100_000), None), Instant::now());
        let mut bytes = 0;
        while bytes < 50_000 {
            let allowed = meter.allowance(8192).unwrap();
            meter.count(allowed);
            bytes += allowed;
        }
        let rate = bytes as f64 / started.elapsed().as_secs_f64();
        // The last step is not waited for.
        assert!(rate <= 130_000.0, "{rate}");
    }

    #[test]
    fn without_limits_everything_may_be_read_at_once() {
        let meter = Meter::new(None, None);
        assert_eq!(meter.allowance(usize::MAX), Ok(usize::MAX));
        assert_eq!(meter.check(), Ok(()));
    }
}
