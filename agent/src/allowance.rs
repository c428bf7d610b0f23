//! What may be received, and how fast it is expected to come, from settings and what is remembered. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::clock::Clock;
use crate::formats::state::State;
use crate::http::{Budget, mirror_of};
use crate::settings::Transfer;

/// Seconds.
pub const DAY: u64 = 24 * 3600;

/// What a boot, or a refresh, may receive.
pub fn budget(transfer: &Transfer, state: &State, clock: &Clock) -> Option<Budget> {
    tighter(transfer.budget, transfer.budget_per_day, state.received_on(today(state, clock)))
}

/// Bytes a second that are expected of a mirror.
pub fn rate(transfer: &Transfer, state: &State, url: &str) -> Option<u64> {
    expected_rate(state.rate(&mirror_of(url)), transfer.rate_limit)
}

/// The day to count on, in days since 1970.
pub fn today(state: &State, clock: &Clock) -> u64 {
    day(clock.now() / DAY, clock.is_behind(), state.received_day())
}

/// A machine whose clock is behind does not know the day: the count of the one that is known goes on, and none before it is begun anew.
fn day(by_the_clock: u64, clock_is_behind: bool, counted: Option<u64>) -> u64 {
    match counted {
        Some(day) if clock_is_behind => day.max(by_the_clock),
        Some(_) | None => by_the_clock,
    }
}

/// The tighter one of both budgets; 0: there is none.
fn tighter(per_boot: u64, per_day: u64, received_today: u64) -> Option<Budget> {
    let boot = (per_boot > 0).then_some(Budget::Boot(per_boot));
    let day = (per_day > 0).then(|| Budget::Day(per_day.saturating_sub(received_today)));
    [boot, day].into_iter().flatten().min_by_key(|budget| budget.bytes())
}

/// What is known of a mirror's rate; it is never more than what is allowed (0: any).
fn expected_rate(measured: Option<u64>, limit: u64) -> Option<u64> {
    match (measured, limit) {
        (measured, 0) => measured,
        (Some(measured), limit) => Some(measured.min(limit)),
        (None, limit) => Some(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_budget_holds() {
        for (per_boot, per_day, received, expected) in [
            (0, 0, 9, None),
            (5, 0, 9, Some(Budget::Boot(5))),
            (0, 10, 4, Some(Budget::Day(6))),
            (0, 10, 11, Some(Budget::Day(0))),
            (5, 10, 4, Some(Budget::Boot(5))),
            (5, 10, 6, Some(Budget::Day(4))),
        ] {
            assert_eq!(tighter(per_boot, per_day, received), expected);
        }
    }

    #[test]
    fn what_is_expected_is_never_more_than_what_is_allowed() {
        for (measured, limit, expected) in [
            (None, 0, None),
            (Some(7), 0, Some(7)),
            (Some(7), 5, Some(5)),
            (Some(3), 5, Some(3)),
            (None, 5, Some(5)),
        ] {
            assert_eq!(expected_rate(measured, limit), expected);
        }
    }

    #[test]
    fn a_clock_that_is_behind_stays_on_the_day_that_is_known() {
        for (by_the_clock, behind, counted, expected) in [
            (9, false, None, 9),
            (9, false, Some(8), 9),
            (9, false, Some(10), 9),
            (9, true, None, 9),
            (9, true, Some(8), 9),
            (9, true, Some(10), 10),
        ] {
            assert_eq!(day(by_the_clock, behind, counted), expected);
        }
    }
}
