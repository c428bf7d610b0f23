//! What is said before a long download, and what a key press means then. Pure; explained in `docs/decisions.md`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::fetch::hurry::estimate;
use crate::figures;

/// What takes longer is announced: as long as people wait without asking what goes on.
const LONG: Duration = Duration::from_secs(30);
/// What is larger is announced where no rate is known: 10 Mbit/s are needed to have it within [`LONG`].
const LARGE: u64 = 32_000_000;

/// A download that is about to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ahead {
    /// Bytes that are to come.
    pub missing: u64,
    /// Bytes a second, as they came last from the mirror that is asked first, or as they are limited to.
    pub rate: Option<u64>,
    /// What would boot instead.
    pub cached: Option<Cached>,
    /// What may still be received.
    pub budget: Option<Budget>,
}

/// What is cached and boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cached {
    /// How long ago it was published, or accepted here.
    pub age: Option<Duration>,
    /// How long stage 1 took when it was booted from the cache last.
    pub starts_in: Option<Duration>,
}

/// What may still be received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The setting that says so.
    pub setting: &'static str,
    /// Bytes.
    pub left: u64,
}

impl Ahead {
    /// How long it takes, at the rate that is known.
    pub fn estimate(&self) -> Option<Duration> {
        self.rate.map(|rate| estimate(self.missing, rate))
    }

    /// Whether it is announced, and asked about.
    pub fn is_long(&self) -> bool {
        match self.estimate() {
            Some(time) => time > LONG,
            None => self.missing > LARGE,
        }
    }

    /// The budget that will not do for it.
    pub fn short(&self) -> Option<Budget> {
        self.budget.filter(|budget| budget.left < self.missing)
    }

    /// What is said of it; nothing where it is short and no budget ends it.
    pub fn sentence(&self) -> Option<String> {
        let short = self.short();
        if !self.is_long() && short.is_none() {
            return None;
        }
        let mut sentence = figures::bytes(self.missing);
        if let Some((rate, time)) = self.rate.zip(self.estimate()) {
            sentence += &format!(", about {} at {}", figures::about(time), figures::rate(rate));
        }
        if let Some(Budget { setting, left }) = short {
            sentence += &match left {
                0 => format!("; {setting} leaves nothing of it"),
                left => format!("; {setting} leaves {} of it, the rest has to wait", figures::bytes(left)),
            };
        }
        if let Some(Cached { age, starts_in }) = self.cached {
            let age = age.map(|age| format!(" of {} ago", figures::about(age))).unwrap_or_default();
            sentence += &match starts_in {
                Some(time) => format!(
                    "; the cached system{age} starts in {}",
                    figures::about(time.max(Duration::from_secs(1)))
                ),
                None => format!("; a cached system{age} can be booted"),
            };
        }
        Some(sentence)
    }

    /// How long keys are listened for, if the setting says so long: only where there is something to choose from.
    pub fn countdown(&self, setting: Duration) -> Option<Duration> {
        Some(setting).filter(|time| !time.is_zero() && self.is_long() && self.cached.is_some())
    }
}

/// What somebody at the keyboard wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Boot what is cached.
    Cached,
    /// Download, however long it takes.
    Download,
}

/// What is shown while keys are listened for.
pub fn question(left: Duration) -> String {
    let seconds = left.as_millis().div_ceil(1000);
    format!("press c for the cached system, d for the download; without a key the policy decides in {seconds} s")
}

/// What bytes mean that came together from a terminal: one key, or the same one held down. An arrow comes as several bytes, and so does what a serial line with
/// nobody at its end hears of our own words: that is no key.
pub fn key(bytes: &[u8]) -> Option<Key> {
    let pressed = bytes.trim_ascii_end();
    let (first, rest) = pressed.split_first()?;
    if rest.iter().any(|byte| byte != first) {
        return None;
    }
    match first {
        b'c' | b'C' => Some(Key::Cached),
        b'd' | b'D' => Some(Key::Download),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn the_sentence_says_what_is_known_and_nothing_else() {
        let cached = Cached {
            age: Some(DAY * 3),
            starts_in: Some(SECOND * 30),
        };
        let per_day = |left| {
            Some(Budget {
                setting: "transfer.budgetPerDay",
                left,
            })
        };
        let (large, adsl) = (412_000_000, Some(750_000));
        for (ahead, expected) in [
            (
                Ahead {
                    missing: large,
                    rate: adsl,
                    cached: Some(cached),
                    budget: None,
                },
                Some("412 MB, about 9 min at 6 Mbit/s; the cached system of 3 days ago starts in 30 s"),
            ),
            (
                Ahead {
                    missing: large,
                    rate: None,
                    cached: Some(Cached::default()),
                    budget: None,
                },
                Some("412 MB; a cached system can be booted"),
            ),
            (
                Ahead {
                    missing: large,
                    rate: None,
                    cached: Some(Cached {
                        starts_in: Some(Duration::ZERO),
                        age: None,
                    }),
                    budget: None,
                },
                Some("412 MB; the cached system starts in 1 s"),
            ),
            (
                Ahead {
                    missing: large,
                    rate: adsl,
                    ..Ahead::default()
                },
                Some("412 MB, about 9 min at 6 Mbit/s"),
            ),
            // At the rate of a LAN it is none.
            (
                Ahead {
                    missing: large,
                    rate: Some(100_000_000),
                    cached: Some(cached),
                    budget: None,
                },
                None,
            ),
            (
                Ahead {
                    missing: 22_500_000,
                    rate: adsl,
                    ..Ahead::default()
                },
                None,
            ),
            (
                Ahead {
                    missing: 32_000_000,
                    rate: None,
                    ..Ahead::default()
                },
                None,
            ),
            (
                Ahead {
                    missing: 32_000_001,
                    rate: None,
                    ..Ahead::default()
                },
                Some("32 MB"),
            ),
            // On a metered link nothing is silent.
            (
                Ahead {
                    missing: 5_000_000,
                    rate: None,
                    cached: None,
                    budget: per_day(1_200_000),
                },
                Some("5.0 MB; transfer.budgetPerDay leaves 1.2 MB of it, the rest has to wait"),
            ),
            (
                Ahead {
                    missing: 5_000_000,
                    rate: None,
                    cached: Some(Cached {
                        age: Some(DAY),
                        starts_in: None,
                    }),
                    budget: per_day(0),
                },
                Some("5.0 MB; transfer.budgetPerDay leaves nothing of it; a cached system of 24 h ago can be booted"),
            ),
            (
                Ahead {
                    missing: 5_000_000,
                    rate: None,
                    cached: None,
                    budget: per_day(5_000_000),
                },
                None,
            ),
        ] {
            assert_eq!(ahead.sentence().as_deref(), expected, "{ahead:?}");
        }
    }

    #[test]
    fn keys_are_listened_for_only_where_there_is_something_to_choose() {
        let long = Ahead {
            missing: 1 << 30,
            rate: None,
            cached: Some(Cached::default()),
            budget: None,
        };
        let five = SECOND * 5;
        for (ahead, setting, expected, why) in [
            (long, five, Some(five), "a long download, and a cached system"),
            (long, Duration::ZERO, None, "it is off"),
            (Ahead { cached: None, ..long }, five, None, "nothing else boots"),
            (
                Ahead {
                    rate: Some(1 << 30),
                    ..long
                },
                five,
                None,
                "it is over in a second",
            ),
        ] {
            assert_eq!(ahead.countdown(setting), expected, "{why}");
        }
    }

    #[test]
    fn two_keys_mean_something() {
        for (bytes, expected) in [
            (&b"c"[..], Some(Key::Cached)),
            (b"C", Some(Key::Cached)),
            (b"d\r", Some(Key::Download)),
            (b"D", Some(Key::Download)),
            (b"ccc", Some(Key::Cached)),
            (b"xyc", None),
            (b"cd", None),
            (b"freshroot: press c for the cached system, d for the download\r\n", None),
            (b"", None),
            (b"\r\n", None),
            (b"\x1b[C", None),
            (b"\x1b[D", None),
            (b"\x03", None),
            ("ĉ".as_bytes(), None),
        ] {
            assert_eq!(key(bytes), expected, "{bytes:?}");
        }
        assert!(question(SECOND * 4 + SECOND / 2).contains("in 5 s"));
    }
}
