//! Which bytes are asked for, and whether an answer holds them. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::foreign;
use crate::formats::chunk_index::Chunk;

/// A run of chunks that are missing, by number: `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first chunk.
    pub first: usize,
    /// The last chunk.
    pub last: usize,
}

/// The first run of chunks that are not present.
pub fn first_missing(present: &[bool]) -> Option<Run> {
    let first = present.iter().position(|present| !present)?;
    let length = present[first..]
        .iter()
        .position(|present| *present)
        .unwrap_or(present.len() - first);
    Some(Run {
        first,
        last: first + length - 1,
    })
}

/// The first and the last byte of a run.
pub fn bytes_of(run: Run, chunks: &[Chunk]) -> Option<(u64, u64)> {
    let (first, last) = (chunks.get(run.first)?, chunks.get(run.last)?);
    Some((first.offset, last.offset + u64::from(last.length) - 1))
}

/// Where the body of an answer begins in the file.
///
/// `range` is what was asked for (none: the whole), `total` the file's length. A 200 is the whole file, whatever was asked for. A 206 has to be exactly what was asked for.
///
/// # Errors
/// What is wrong with the answer; nothing of its body may be used.
pub fn body_offset(
    status: u16,
    content_ranges: &[String],
    content_length: Option<u64>,
    range: Option<(u64, u64)>,
    total: u64,
) -> Result<u64, String> {
    let length_is = |expected: u64| match content_length {
        Some(length) if length != expected => Err(format!("its length is {length} bytes, {expected} are expected")),
        Some(_) | None => Ok(()),
    };
    match (status, range) {
        (200, _) => {
            length_is(total)?;
            Ok(0)
        }
        (206, Some((first, last))) => {
            let [content_range] = content_ranges else {
                return Err(format!("a partial answer has {} Content-Range headers", content_ranges.len()));
            };
            let parsed = parse_content_range(content_range)
                .ok_or_else(|| format!("«Content-Range: {}» cannot be read", foreign::word(content_range)))?;
            if parsed != (first, last, total) {
                let (a, b, c) = parsed;
                return Err(format!("bytes {first}-{last} of {total} were asked for, {a}-{b} of {c} came"));
            }
            length_is(last - first + 1)?;
            Ok(first)
        }
        (416, Some(_)) => Err(match content_ranges {
            [one] => match unsatisfied(one) {
                Some(length) if length != total => format!("the file there has {length} bytes, the manifest says {total}"),
                Some(_) | None => "the server says that it has no such range (416)".to_owned(),
            },
            _ => "the server says that it has no such range (416)".to_owned(),
        }),
        (206, None) => Err("a partial answer came, though the whole was asked for".to_owned()),
        (other, _) => Err(format!("status {other} is no answer to a download")),
    }
}

/// Total of `bytes */c`, as a server tells it that has no such range (RFC 9110, 14.4).
fn unsatisfied(text: &str) -> Option<u64> {
    let total = text.trim().strip_prefix("bytes */")?;
    total
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| total.parse().ok())
        .flatten()
}

/// First byte, last byte and total of `bytes a-b/c` (RFC 9110, 14.4). A total of `*` is not taken.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    let (first, last, total) = (number(first)?, number(last)?, number(total)?);
    (unit.eq_ignore_ascii_case("bytes") && first <= last && last < total).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;

    #[test]
    fn runs_of_missing_chunks_are_found_in_order() {
        for (present, run) in [
            (&[true, true][..], None),
            (&[false, false], Some((0, 1))),
            (&[true, false, false, true, false], Some((1, 2))),
            (&[true, true, false], Some((2, 2))),
            (&[], None),
        ] {
            assert_eq!(first_missing(present), run.map(|(first, last)| Run { first, last }), "{present:?}");
        }
        let chunk = |offset| Chunk {
            offset,
            length: 10,
            digest: Digest::of(b""),
        };
        assert_eq!(
            bytes_of(Run { first: 1, last: 2 }, &[chunk(0), chunk(10), chunk(20)]),
            Some((10, 29))
        );
    }

    #[test]
    fn only_the_bytes_that_were_asked_for_are_taken() {
        let asked = Some((100, 199));
        let check = |status, ranges: &[&str], length, range| {
            body_offset(
                status,
                &ranges.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>(),
                length,
                range,
                1000,
            )
        };
        assert_eq!(check(200, &[], Some(1000), None), Ok(0));
        assert_eq!(check(200, &[], None, asked), Ok(0), "the server ignores Range");
        assert_eq!(check(206, &["bytes 100-199/1000"], Some(100), asked), Ok(100));
        assert_eq!(check(206, &["BYTES 100-199/1000"], None, asked), Ok(100));
        for (status, ranges, length, range, why) in [
            (200, &[][..], Some(999), None, "short"),
            (200, &[], Some(1001), asked, "long"),
            (200, &[], Some(0), None, "empty"),
            (206, &["bytes 100-199/1000"], Some(99), asked, "length of the part"),
            (206, &["bytes 101-199/1000"], None, asked, "start"),
            (206, &["bytes 100-198/1000"], None, asked, "end"),
            (206, &["bytes 100-199/1001"], None, asked, "total"),
            (206, &["bytes 100-199/*"], None, asked, "unknown total"),
            (206, &["bytes */1000"], None, asked, "unsatisfied"),
            (206, &["bytes 100-199/1000", "bytes 100-199/1000"], None, asked, "two headers"),
            (206, &[], None, asked, "no header"),
            (206, &["lines 100-199/1000"], None, asked, "unit"),
            (206, &["bytes +100-199/1000"], None, asked, "sign"),
            (206, &["bytes 0-999/1000"], None, None, "nobody asked for a part"),
            (204, &[], None, None, "status"),
            (416, &[], None, None, "status"),
            (416, &["bytes */1000"], None, asked, "no such range"),
            (416, &["bytes */999"], None, asked, "a shorter file"),
        ] {
            assert!(check(status, ranges, length, range).is_err(), "{why}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(text in ".{0,40}") {
            parse_content_range(&text);
        }
    }
}
