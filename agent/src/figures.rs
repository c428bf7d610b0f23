//! Figures as people read them: bytes, rates, times, ages. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

/// «412 MB», «4.1 MB», «37 kB», «12 bytes». Powers of 1000, as disks and links are sold.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_000_000 => format!("{} kB", bytes / 1000),
        1_000_000..10_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        10_000_000_000.. => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// «6 Mbit/s», «6.4 Mbit/s», «256 kbit/s», of bytes a second: links are sold by bits.
pub fn rate(bytes_per_second: u64) -> String {
    let bits = bytes_per_second.saturating_mul(8);
    match bits {
        0..1000 => format!("{bits} bit/s"),
        1000..1_000_000 => format!("{} kbit/s", bits / 1000),
        1_000_000..10_000_000 if !(bits / 100_000).is_multiple_of(10) => format!("{}.{} Mbit/s", bits / 1_000_000, bits / 100_000 % 10),
        1_000_000..10_000_000_000 => format!("{} Mbit/s", bits / 1_000_000),
        10_000_000_000.. => format!("{} Gbit/s", bits / 1_000_000_000),
    }
}

/// A time, to two places at most: «12 s», «9 min 5 s», «1 h 20 min», «3 days».
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d @ 1..10_000, ..) => plural(d, "day"),
        _ => "more than 10000 days".to_owned(),
    }
}

/// A time of which nobody wants to know the second: «12 s», «9 min», «3 h», «3 days».
pub fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..90 => format!("{seconds} s"),
        90..5400 => format!("{} min", (seconds + 30) / 60),
        5400..129_600 => format!("{} h", (seconds + 1800) / 3600),
        129_600..864_000_000 => plural((seconds + 43_200) / 86_400, "day"),
        864_000_000.. => "more than 10000 days".to_owned(),
    }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_as_short_as_they_are_useful() {
        for (number, shown) in [
            (0, "0 bytes"),
            (9999, "9999 bytes"),
            (10_000, "10 kB"),
            (999_999, "999 kB"),
            (4_150_000, "4.1 MB"),
            (412_345_678, "412 MB"),
            (9_999_999_999, "9999 MB"),
            (12_000_000_000, "12 GB"),
        ] {
            assert_eq!(bytes(number), shown);
        }
        for (number, shown) in [
            (0, "0 bit/s"),
            (32_000, "256 kbit/s"),
            (750_000, "6 Mbit/s"),
            (800_000, "6.4 Mbit/s"),
            (12_500_000, "100 Mbit/s"),
            (u64::MAX, "18446744073 Gbit/s"),
        ] {
            assert_eq!(rate(number), shown);
        }
        for (seconds, exactly, roughly) in [
            (0, "0 s", "0 s"),
            (59, "59 s", "59 s"),
            (89, "1 min 29 s", "89 s"),
            (549, "9 min 9 s", "9 min"),
            (5399, "1 h 29 min", "90 min"),
            (10_000, "2 h 46 min", "3 h"),
            (86_400, "1 day", "24 h"),
            (259_200, "3 days", "3 days"),
            (u64::MAX, "more than 10000 days", "more than 10000 days"),
        ] {
            assert_eq!(
                (
                    time(Duration::from_secs(seconds)).as_str(),
                    about(Duration::from_secs(seconds)).as_str()
                ),
                (exactly, roughly)
            );
        }
    }
}
