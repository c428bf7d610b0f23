//! The meaning of single values.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use crate::store_path::StorePath;

/// A time in seconds since 1970: a date (its end), a time in UTC, or a duration from `now`.
pub fn time(text: &str, now: u64) -> Result<u64> {
    let point = humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T23:59:59Z")));
    if let Ok(point) = point {
        let since = point
            .duration_since(SystemTime::UNIX_EPOCH)
            .with_context(|| format!("«{text}» lies before 1970"))?;
        return Ok(since.as_secs());
    }
    let duration: Option<Duration> = humantime::parse_duration(text).ok();
    duration
        .and_then(|duration| now.checked_add(duration.as_secs()))
        .with_context(|| format!("«{text}» is neither a date (2027-01-31), nor a time (2027-01-31T12:00:00Z), nor a duration (30d)"))
}

/// `NAME=TOPLEVEL`.
pub fn system(text: &str) -> Result<(String, StorePath)> {
    let (name, toplevel) = text
        .split_once('=')
        .with_context(|| format!("--system «{text}»: NAME=TOPLEVEL is expected"))?;
    let toplevel = toplevel.parse().with_context(|| format!("--system «{text}»"))?;
    Ok((name.to_owned(), toplevel))
}

/// `ADDRESS:PORT`.
pub fn listen(text: &str) -> Result<SocketAddr> {
    text.parse()
        .with_context(|| format!("--listen «{text}»: ADDRESS:PORT is expected, such as 0.0.0.0:8080 or [::]:8080"))
}

/// Bytes per second.
pub fn rate(text: &str) -> Result<NonZeroU64> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        Some((at, 'G')) => (&text[..at], 1_000_000_000),
        Some(_) | None => (text, 1),
    };
    let rate = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .and_then(NonZeroU64::new);
    rate.with_context(|| format!("--rate «{text}»: a number of bytes per second is expected, such as 750k"))
}

/// A store path given as a link that leads to one, such as `/run/current-system`; anything else as it is.
pub fn linked(text: &str) -> Result<String> {
    match std::fs::read_link(text) {
        // Only a link itself is followed, once: a store path may be a link too, and is then meant as such.
        Ok(target) if target.is_absolute() && crate::store_path::StorePath::from_store_name(last(text)).is_err() => target
            .into_os_string()
            .into_string()
            .ok()
            .with_context(|| format!("«{text}» leads to a path that is not UTF-8")),
        Ok(_) | Err(_) => Ok(text.to_owned()),
    }
}

fn last(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_time_is_a_date_a_time_or_a_duration() {
        for (text, expected) in [
            ("1970-01-02", Some(2 * 86400 - 1)),
            ("1970-01-02T00:00:00Z", Some(86400)),
            ("1970-01-02 00:00:01", Some(86401)),
            ("30d", Some(1000 + 30 * 86400)),
            ("1h 30m", Some(1000 + 5400)),
            ("30", None),
            ("", None),
            ("1969-12-31", None),
            ("tomorrow", None),
        ] {
            assert_eq!(time(text, 1000).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_rate_has_a_unit_or_none() {
        for (text, expected) in [
            ("1", Some(1)),
            ("750k", Some(750_000)),
            ("2M", Some(2_000_000)),
            ("0", None),
            ("k", None),
            ("", None),
            ("1é", None),
        ] {
            assert_eq!(rate(text).ok().map(NonZeroU64::get), expected, "{text}");
        }
    }
}
