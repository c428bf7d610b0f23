//! Small parsers for the values of settings: durations, sizes, switches.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::time::Duration;

pub use crate::foreign::word as cut;

/// The size of a tmpfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// Of the RAM, 1 to 100.
    Percent(u8),
}

/// As the `size=` option of tmpfs takes it.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// What is known about a unit: its spellings and what one of it counts.
type Unit = (&'static str, u64);

/// Milliseconds. Months and years are left out: nothing here waits for them.
const TIME_UNITS: [Unit; 10] = [
    ("ms", 1),
    ("s", 1_000),
    ("sec", 1_000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("day", 86_400_000),
    ("days", 86_400_000),
    ("w", 604_800_000),
];

/// Bytes. Powers of 1024 as tmpfs counts; `MB` and the like are refused, as they mean something else elsewhere.
const SIZE_UNITS: [Unit; 10] = [
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
];

/// No wait is longer than a week: nobody wants one, and sums of a few of these fit every integer type in use.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Less does not hold the folders of a root file system.
const SMALLEST_TMPFS: u64 = 1 << 20;
/// No machine has more RAM than this, and sums of it do not overflow.
const LARGEST_TMPFS: u64 = 64 << 40;

/// Nobody fetches more at once, and sums of it do not overflow.
const MOST_BYTES: u64 = 1 << 50;

/// Reads `30s`, `5min`, `1h30min`, `500ms`; a bare number counts seconds.
///
/// # Errors
/// A sentence that says what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || {
        format!(
            "«{}» is not a duration: write 30s, 5min, 1h30min, 500ms or a number of seconds",
            cut(text)
        )
    };
    let too_long = || format!("«{}» is longer than 7 days", cut(text));
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.parse::<u64>().map_err(|_| too_long())?;
        return Some(Duration::from_secs(seconds)).filter(|d| *d <= LONGEST).ok_or_else(too_long);
    }
    let mut total: u64 = 0;
    let mut smallest = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(digits(rest));
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = look_up(&TIME_UNITS, unit.trim()).ok_or_else(expected)?;
        // Units fall from left to right, as in 1h30min: «30min1h» or «1h1h» is more likely a slip than a wish.
        if number.is_empty() || unit >= smallest {
            return Err(expected());
        }
        smallest = unit;
        let number = number.parse::<u64>().map_err(|_| too_long())?;
        total = number
            .checked_mul(unit)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(too_long)?;
        rest = after.trim_start();
    }
    if smallest == u64::MAX {
        return Err(expected());
    }
    Some(Duration::from_millis(total)).filter(|d| *d <= LONGEST).ok_or_else(too_long)
}

/// Reads a duration of at least `least`.
///
/// # Errors
/// A sentence that says what is expected, or why less makes no sense.
pub fn duration_of_at_least(text: &str, least: Duration) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < least {
        return Err(format!("«{}» is too short: {} is the least", cut(text), show_duration(least)));
    }
    Ok(value)
}

/// Writes a duration so that [`duration`] reads the same back, to the millisecond.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, unit) in [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

/// Reads `512M`, `2GiB`, `50%` (of the RAM); a bare number counts bytes.
///
/// # Errors
/// A sentence that says what is expected, or which bound is crossed.
pub fn size(text: &str) -> Result<Size, String> {
    let expected = || {
        format!(
            "«{}» is not a size: write 512M, 2GiB, 50% (of the RAM) or a number of bytes",
            cut(text)
        )
    };
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.parse::<u8>() {
            Ok(percent @ 1..=100) if digits(text) + 1 == text.len() => Ok(Size::Percent(percent)),
            Ok(_) | Err(_) => Err(format!("«{}» is not a share of the RAM: 1% to 100% is expected", cut(text))),
        };
    }
    let (number, unit) = text.split_at(digits(text));
    if number.is_empty() {
        return Err(expected());
    }
    let unit = look_up(&SIZE_UNITS, unit).ok_or_else(expected)?;
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(bytes @ SMALLEST_TMPFS..=LARGEST_TMPFS) => Ok(Size::Bytes(bytes)),
        Some(_) | None => Err(format!("«{}» is outside 1M to 64T", cut(text))),
    }
}

/// Reads `512K`, `2GiB`; a bare number counts bytes, and 0 is none.
///
/// # Errors
/// A sentence that says what is expected.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(digits(text));
    let unit = look_up(&SIZE_UNITS, unit).filter(|_| !number.is_empty());
    unit.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit))
        .filter(|bytes| *bytes <= MOST_BYTES)
        .ok_or_else(|| format!("«{}» is not a number of bytes: write 512K, 2GiB or a number up to 1024T", cut(text)))
}

/// Writes bytes so that [`bytes`] reads the same back.
pub fn show_bytes(bytes: u64) -> String {
    for (name, unit) in [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Reads a switch. Without a value (`freshroot.kexec` alone) it is on, which the caller passes as `1`.
///
/// # Errors
/// A sentence that says what is expected.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("«{}» is neither true (1, yes, on) nor false (0, no, off)", cut(text))),
    }
}

/// Reads a whole number within bounds.
///
/// # Errors
/// A sentence that names the bounds.
pub fn count(text: &str, least: u32, most: u32) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) && digits(text) == text.len() => Ok(number),
        Ok(_) | Err(_) => Err(format!("«{}» is not a whole number from {least} to {most}", cut(text))),
    }
}

/// How many digits `text` begins with.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

fn look_up(units: &[Unit], name: &str) -> Option<u64> {
    units.iter().find(|(spelling, _)| *spelling == name).map(|(_, unit)| *unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("30s", Some(30_000)),
            ("30", Some(30_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5min", Some(300_000)),
            ("1h30min", Some(5_400_000)),
            ("1h 30min", Some(5_400_000)),
            ("5 min", Some(300_000)),
            ("500ms", Some(500)),
            ("1m500ms", Some(60_500)),
            ("7d", Some(604_800_000)),
            ("1w", Some(604_800_000)),
            ("7d1ms", None),
            ("604801", None),
            ("99999999999999999999", None),
            ("99999999999999999999h", None),
            ("18446744073709551615d", None),
            ("", None),
            (" ", None),
            ("s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5h", None),
            ("5 parsecs", None),
            ("30min1h", None),
            ("1h1h", None),
            ("1h30", None),
            ("5S", None),
        ] {
            let expected = milliseconds.map(Duration::from_millis);
            assert_eq!(duration(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_shown_in_the_same_words() {
        for (milliseconds, text) in [
            (0, "0s"),
            (500, "500ms"),
            (300_000, "5min"),
            (5_400_000, "1h30min"),
            (86_401_001, "1d1s1ms"),
        ] {
            assert_eq!(show_duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn sizes_count_in_powers_of_1024_or_are_a_share_of_the_ram() {
        for (text, expected) in [
            ("512M", Some(Size::Bytes(512 << 20))),
            ("2GiB", Some(Size::Bytes(2 << 30))),
            ("1048576", Some(Size::Bytes(1 << 20))),
            ("1048576B", Some(Size::Bytes(1 << 20))),
            ("1024K", Some(Size::Bytes(1 << 20))),
            ("1T", Some(Size::Bytes(1 << 40))),
            ("50%", Some(Size::Percent(50))),
            ("100%", Some(Size::Percent(100))),
            ("0%", None),
            ("101%", None),
            ("300%", None),
            ("+5%", None),
            ("%", None),
            ("1K", None),
            ("0", None),
            ("65T", None),
            ("16777216T", None),
            ("99999999999999999999", None),
            ("512MB", None),
            ("512m", None),
            ("1.5G", None),
            ("-1G", None),
            ("M", None),
            ("", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
        assert_eq!(Size::Percent(50).to_string(), "50%");
        assert_eq!(Size::Bytes(1 << 20).to_string(), "1048576");
    }

    #[test]
    fn bytes_are_read_and_shown_in_powers_of_1024() {
        for (text, expected, shown) in [
            ("0", Some(0), "0"),
            ("1500", Some(1500), "1500"),
            ("1K", Some(1024), "1K"),
            ("2048K", Some(2 << 20), "2M"),
            ("3GiB", Some(3 << 30), "3G"),
            ("1024T", Some(1 << 50), "1024T"),
            ("1025T", None, ""),
            ("99999999999999999999", None, ""),
            ("1MB", None, ""),
            ("50%", None, ""),
            ("-1", None, ""),
            ("K", None, ""),
            ("", None, ""),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text}");
            assert_eq!(expected.map(show_bytes).unwrap_or_default(), shown);
        }
    }

    #[test]
    fn switches_and_numbers_take_nothing_else() {
        assert_eq!((switch("on"), switch("0")), (Ok(true), Ok(false)));
        assert!(switch("").is_err() && switch("TRUE").is_err() && switch("2").is_err());
        assert_eq!(count("5", 0, 5), Ok(5));
        for text in ["6", "-1", "+1", "", "1.0", "99999999999"] {
            assert!(count(text, 0, 5).is_err(), "{text}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut(&"ä".repeat(200)).chars().count(), 121);
        assert_eq!(cut("short"), "short");
    }
}
