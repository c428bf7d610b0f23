//! What is answered to a request for a file: a pure decision over the request's headers and the file's size and entity tag.
//!
//! RFC 9110: conditional requests (§ 13) come before ranges (§ 14). Several ranges in one request are answered with the whole file, which § 14.2
//! allows: the agent never asks for more than one, and a `multipart/byteranges` body is something that caches and clients get wrong.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The headers of a request that matter for a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// HEAD instead of GET: no body, and `Range` has no meaning (RFC 9110 § 14.2).
    pub head: bool,
    /// `Range`.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
}

/// What of the file is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 200: all of it.
    Whole,
    /// 206: `length` bytes from `start`.
    Part {
        /// Offset of the first byte.
        start: u64,
        /// Number of bytes, at least 1.
        length: u64,
    },
    /// 304: the client has it.
    NotModified,
    /// 416: no byte of the wanted range exists.
    Unsatisfiable,
}

/// Decides what is answered for a file of `size` bytes with the strong entity tag `etag` (with its quotes).
pub fn answer(asked: Asked<'_>, size: u64, etag: &str) -> Answer {
    if asked.if_none_match.is_some_and(|tags| lists(tags, etag)) {
        return Answer::NotModified;
    }
    let Some(range) = asked.range.filter(|_| !asked.head) else {
        return Answer::Whole;
    };
    // A date or a weak tag never matches: only equality of strong tags proves that a part fits what the client has.
    if asked.if_range.is_some_and(|tag| tag.trim() != etag) {
        return Answer::Whole;
    }
    part(range, size)
}

/// Whether an `If-None-Match` list names `etag`, by the weak comparison that RFC 9110 § 13.1.2 asks for. Our tags hold no comma.
fn lists(tags: &str, etag: &str) -> bool {
    tags.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Reads a `Range` value. A malformed one is ignored, as RFC 9110 § 14.2 asks for.
fn part(range: &str, size: u64) -> Answer {
    let Some((unit, spec)) = range.split_once('=') else {
        return Answer::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Answer::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Answer::Whole;
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => return Answer::Whole,
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => (first, size),
        (None, Some(suffix)) if first.is_empty() => (size - suffix.min(size), size),
        (Some(_) | None, Some(_) | None) => return Answer::Whole,
    };
    if start >= end {
        return Answer::Unsatisfiable;
    }
    Answer::Part {
        start,
        length: end - start,
    }
}

/// A decimal number; one that is too large is the largest that there is, since it then lies beyond the end of any file.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"abc\"";

    #[test]
    fn a_range_is_answered_by_this_table() {
        let part = |start, length| Answer::Part { start, length };
        for (range, size, expected) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=2-5", 10, part(2, 4)),
            ("bytes=2-5 ", 10, part(2, 4)),
            ("BYTES=2-5", 10, part(2, 4)),
            ("bytes=2-", 10, part(2, 8)),
            ("bytes=-3", 10, part(7, 3)),
            ("bytes=-30", 10, part(0, 10)),
            ("bytes=9-100", 10, part(9, 1)),
            ("bytes=9-99999999999999999999999", 10, part(9, 1)),
            ("bytes=0-18446744073709551615", 10, part(0, 10)),
            ("bytes=10-", 10, Answer::Unsatisfiable),
            ("bytes=10-20", 10, Answer::Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Answer::Unsatisfiable),
            ("bytes=-0", 10, Answer::Unsatisfiable),
            ("bytes=0-", 0, Answer::Unsatisfiable),
            ("bytes=-1", 0, Answer::Unsatisfiable),
            ("bytes=5-2", 10, Answer::Whole),
            ("bytes=0-1,4-5", 10, Answer::Whole),
            ("bytes=-", 10, Answer::Whole),
            ("bytes=", 10, Answer::Whole),
            ("bytes", 10, Answer::Whole),
            ("", 10, Answer::Whole),
            ("bytes=a-b", 10, Answer::Whole),
            ("bytes=+1-2", 10, Answer::Whole),
            ("bytes=1-2-3", 10, Answer::Whole),
            ("bytes=1-x", 10, Answer::Whole),
            ("lines=0-1", 10, Answer::Whole),
        ] {
            let asked = Asked {
                range: Some(range),
                ..Asked::default()
            };
            assert_eq!(answer(asked, size, TAG), expected, "{range:?} of {size}");
        }
    }

    #[test]
    fn a_condition_decides_before_the_range() {
        let part = Answer::Part { start: 0, length: 1 };
        for (if_range, if_none_match, expected) in [
            (None, None, part),
            (Some(TAG), None, part),
            (Some("\"other\""), None, Answer::Whole),
            (Some("W/\"abc\""), None, Answer::Whole),
            (Some("Sat, 21 Nov 2026 00:00:00 GMT"), None, Answer::Whole),
            (None, Some(TAG), Answer::NotModified),
            (None, Some("W/\"abc\""), Answer::NotModified),
            (None, Some("\"x\", \"abc\""), Answer::NotModified),
            (None, Some("*"), Answer::NotModified),
            (None, Some("\"x\""), part),
            (Some("\"other\""), Some(TAG), Answer::NotModified),
        ] {
            let asked = Asked {
                head: false,
                range: Some("bytes=0-0"),
                if_range,
                if_none_match,
            };
            assert_eq!(answer(asked, 10, TAG), expected, "{if_range:?} {if_none_match:?}");
        }
    }

    #[test]
    fn a_range_means_nothing_to_head() {
        let asked = Asked {
            head: true,
            range: Some("bytes=0-0"),
            ..Asked::default()
        };
        assert_eq!(answer(asked, 10, TAG), Answer::Whole);
    }
}
