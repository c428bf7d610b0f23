//! Dates as HTTP writes them (RFC 9110, 5.6.7), and as messages show them. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY: u64 = 24 * 3600;

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, and of the two older forms that a client has to take. Nothing for what is no such date,
/// or lies before 1970.
pub fn parse(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let (year, month, day, time) = match *words.as_slice() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [_, day, month, year, time, "GMT"] => (digits(year, 4)?, month_of(month)?, digits(day, 2)?, time),
        // Sunday, 06-Nov-94 08:49:37 GMT
        [_, date, time, "GMT"] => {
            let mut parts = date.splitn(3, '-');
            let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
            // Two digits are of a year that is at most 50 years ahead; before 1970 nothing here was made.
            let year = digits(year, 2)?;
            (year + if year < 70 { 2000 } else { 1900 }, month_of(month)?, digits(day, 2)?, time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => (digits(year, 4)?, month_of(month)?, digits(day, day.len().min(2))?, time),
        _ => return None,
    };
    let mut parts = time.splitn(3, ':');
    let (hour, minute, second) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    // A second of 60 is a leap second.
    if year < 1970 || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days_until(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
}

/// `1994-11-06 08:49 UTC`.
pub fn show(seconds: u64) -> String {
    let (mut year, mut days) = (1970, seconds / DAY);
    while days >= year_length(year) {
        days -= year_length(year);
        year += 1;
        // Far beyond every certificate; the number of a broken clock may be any.
        if year > 9999 {
            return "after the year 9999".to_owned();
        }
    }
    let mut month = 1;
    while days >= month_length(year, month) {
        days -= month_length(year, month);
        month += 1;
    }
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02} UTC", days + 1)
}

fn digits(text: &str, length: usize) -> Option<u64> {
    (text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn month_of(name: &str) -> Option<u64> {
    MONTHS.iter().position(|month| *month == name).map(|position| position as u64 + 1)
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

const fn year_length(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

const fn month_length(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_until(year: u64, month: u64, day: u64) -> u64 {
    let years: u64 = (1970..year).map(year_length).sum();
    let months: u64 = (1..month).map(|month| month_length(year, month)).sum();
    years + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_three_forms_are_read_and_nothing_else() {
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Sat, 21 Nov 2026 12:00:00 GMT", Some(1_795_262_400)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1969 08:49:37 GMT", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 nov 1994 08:49:37 GMT", None),
            ("120", None),
            ("", None),
        ] {
            assert_eq!(parse(text), seconds, "{text}");
        }
    }

    #[test]
    fn dates_are_shown_to_the_minute() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (784_111_777, "1994-11-06 08:49 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (u64::MAX, "after the year 9999"),
        ] {
            assert_eq!(show(seconds), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_by_the_rules_is_read_back(days in 0u64..2_000_000, rest in 0u64..DAY) {
            let seconds = days * DAY + rest;
            let shown = show(seconds);
            let (year, month, day) = (&shown[..4], shown[5..7].parse::<usize>().unwrap_or(1), &shown[8..10]);
            let second = rest % 60;
            let text = format!("Mon, {day} {} {year} {}:{second:02} GMT", MONTHS[month - 1], &shown[11..16]);
            prop_assert_eq!(parse(&text), Some(seconds), "{}", text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            parse(&text);
        }
    }
}
