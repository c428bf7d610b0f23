//! Which time it is, as far as that can be known: machines without a battery begin in 1970, and a clock that is behind makes every certificate
//! invalid. What is signed was signed after the time that it names, so the clock is never earlier than that ([`crate::floors`]).

use std::time::{SystemTime, UNIX_EPOCH};

/// When this version was released, in seconds since 1970: 2026-11-21.
const RELEASED: u64 = 1_795_219_200;

/// The earliest time at which this program can run: its release, or `SOURCE_DATE_EPOCH` of its build, whichever is later.
pub const BUILT: u64 = {
    let built = match option_env!("SOURCE_DATE_EPOCH") {
        Some(text) => decimal(text.as_bytes()),
        None => 0,
    };
    if built > RELEASED { built } else { RELEASED }
};

/// A clock that is never earlier than its floor.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Seconds since 1970 that have passed for sure.
    pub floor: u64,
    /// What the machine's own clock says, in seconds since 1970.
    pub machine: fn() -> u64,
}

impl Clock {
    /// The machine's clock, not earlier than [`BUILT`] and `floor`.
    pub fn not_before(floor: u64) -> Self {
        Self {
            floor: floor.max(BUILT),
            machine,
        }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        (self.machine)().max(self.floor)
    }

    /// Whether the machine's own clock is behind what is known for sure: then nobody knows which day it is.
    pub fn is_behind(&self) -> bool {
        (self.machine)() < self.floor
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::not_before(BUILT)
    }
}

/// This machine's clock, in seconds since 1970.
pub fn machine() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A number, or 0 for what is none.
const fn decimal(text: &[u8]) -> u64 {
    let (mut number, mut at) = (0u64, 0);
    while at < text.len() {
        if !text[at].is_ascii_digit() || number > u64::MAX / 100 {
            return 0;
        }
        number = number * 10 + (text[at] - b'0') as u64;
        at += 1;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_the_later_of_machine_and_floor() {
        for (floor, machine, now) in [
            (100, (|| 0) as fn() -> u64, 100),
            (100, || 99, 100),
            (100, || 101, 101),
            (0, || u64::MAX, u64::MAX),
        ] {
            let clock = Clock { floor, machine };
            assert_eq!((clock.now(), clock.is_behind()), (now, machine() < floor));
        }
        assert!(Clock::default().floor >= RELEASED);
        assert_eq!(Clock::not_before(u64::MAX).floor, u64::MAX);
        assert_eq!(Clock::not_before(5).floor, BUILT);
    }

    #[test]
    fn the_time_of_a_build_is_a_number_or_nothing() {
        for (text, number) in [
            ("1795219200", 1_795_219_200),
            ("", 0),
            ("-1", 0),
            ("12x", 0),
            ("99999999999999999999999", 0),
        ] {
            assert_eq!(decimal(text.as_bytes()), number, "{text}");
        }
    }
}
