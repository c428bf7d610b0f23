//! Chunk indexes, part maps and the headers of partial answers.

use freshroot::digest::Digest;
use freshroot::fetch::range::{Run, body_offset, bytes_of, first_missing};
use freshroot::formats::chunk_index::{CHUNK_LIMIT, ChunkIndex};
use freshroot::formats::part_map::PartMap;

use crate::Target;
use crate::input::{Input, told};

/// A chunk index. The image's size is the one that it names, and once more another one.
pub const CHUNK_INDEX: Target = Target {
    name: "chunk_index",
    longest: 2048,
    memory: 64,
    check: chunk_index,
};

/// The map of a partial image: image size (u64), number of chunks (u16), then the file.
pub const PART_MAP: Target = Target {
    name: "part_map",
    longest: 2048,
    memory: 64,
    check: part_map,
};

/// Headers of an answer: status (u16), whether a range was asked for (u8), first and last byte, total (u64 each), whether there is a length (u8), the length (u64);
/// then `Content-Range` headers, a line each.
pub const CONTENT_RANGE: Target = Target {
    name: "content_range",
    longest: 512,
    memory: 256,
    check: content_range,
};

fn chunk_index(input: &[u8]) {
    let named = input.get(16..24).map_or(0, |bytes| Input(bytes).u64());
    for other in [named.wrapping_add(1), named.wrapping_sub(1)] {
        assert!(ChunkIndex::parse(input, other).is_err());
    }
    let index = match ChunkIndex::parse(input, named) {
        Ok(index) => index,
        Err(refusal) => return told(refusal),
    };
    assert_eq!(index.to_bytes(), input);
    assert_eq!(index.image_size(), named);
    let chunks = index.chunks();
    let mut end = 0;
    for chunk in chunks {
        assert_eq!(chunk.offset, end);
        assert!((1..=CHUNK_LIMIT).contains(&chunk.length));
        end += u64::from(chunk.length);
    }
    assert_eq!(end, named);
    // Runs of missing chunks, found one after the other, cover each missing byte once, and nothing else.
    let mut present: Vec<bool> = chunks.iter().map(|chunk| chunk.digest.as_bytes()[0] & 1 == 1).collect();
    let missing: u64 = chunks
        .iter()
        .zip(&present)
        .filter(|(_, present)| !**present)
        .map(|(chunk, _)| u64::from(chunk.length))
        .sum();
    let (mut asked_for, mut behind) = (0, 0);
    while let Some(run) = first_missing(&present) {
        let (first, last) = bytes_of(run, chunks).unwrap();
        assert!(behind <= first && first <= last && last < named);
        behind = last + 1;
        asked_for += behind - first;
        present[run.first..=run.last].fill(true);
    }
    assert_eq!(asked_for, missing);
    let beyond = Run {
        first: 0,
        last: chunks.len(),
    };
    assert_eq!(bytes_of(beyond, chunks), None);
}

fn part_map(input: &[u8]) {
    let mut input = Input(input);
    let map = PartMap {
        image_size: input.u64(),
        chunk_index: Digest::of(b"index"),
    };
    let count = usize::from(input.u16());
    let header = map.header();
    for bytes in [input.0.to_vec(), [&header, input.0].concat()] {
        let Some(numbers) = map.written(&bytes, count) else {
            assert!(!bytes.starts_with(&header));
            continue;
        };
        assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|number| (*number as usize) < count));
        // Written down anew they say the same; an entry that was torn off takes nothing else along.
        let again: Vec<u8> = header
            .iter()
            .copied()
            .chain(numbers.iter().flat_map(|number| number.to_le_bytes()))
            .collect();
        assert_eq!(map.written(&again, count).as_ref(), Some(&numbers));
        let torn = map
            .written(&again[..again.len().saturating_sub(1).max(header.len())], count)
            .unwrap();
        assert_eq!(torn, numbers[..numbers.len().saturating_sub(1)]);
        let other = PartMap {
            image_size: map.image_size ^ 1,
            ..map
        };
        assert_eq!(other.written(&bytes, count), None);
    }
}

fn content_range(input: &[u8]) {
    let mut input = Input(input);
    let status = input.u16();
    let asked = input.u8() & 1 == 1;
    let (first, last, total) = (input.u64(), input.u64(), input.u64());
    // The caller asks for bytes that a file has.
    let (first, last) = (first.min(last), first.max(last).min(u64::MAX - 1));
    let (first, total) = (first.min(last), total.max(last + 1));
    let length = (input.u8() & 1 == 1).then(|| input.u64());
    let text = String::from_utf8_lossy(input.0).into_owned();
    let headers: Vec<String> = text.lines().take(4).map(str::to_owned).collect();
    let range = asked.then_some((first, last));
    let found = body_offset(status, &headers, length, range, total);
    let right = match (status, range) {
        (200, _) if length.is_none_or(|length| length == total) => Some(0),
        (206, Some((first, last))) if length.is_none_or(|length| length == last - first + 1) => {
            (headers.len() == 1 && says(&headers[0], first, last, total)).then_some(first)
        }
        _ => None,
    };
    assert_eq!(
        found.clone().ok(),
        right,
        "{status} {headers:?} {length:?} {range:?} of {total}: {found:?}"
    );
    if let Err(why) = found {
        told(why);
    }
    // What is written as RFC 9110 has it is read.
    if let Some((first, last)) = range {
        let header = format!("bytes {first}-{last}/{total}");
        assert_eq!(
            body_offset(206, std::slice::from_ref(&header), Some(last - first + 1), range, total),
            Ok(first),
            "{header}"
        );
        let shifted = format!("bytes {}-{last}/{total}", first.wrapping_add(1));
        assert!(body_offset(206, &[shifted], None, range, total).is_err());
    }
}

/// Whether a header says exactly this, told by writing and not by reading: numbers without their leading zeros, the unit without its case.
fn says(header: &str, first: u64, last: u64, total: u64) -> bool {
    let mut plain = String::new();
    let mut in_number = false;
    let trimmed = header.trim();
    for (at, c) in trimmed.char_indices() {
        let next_is_digit = trimmed[at + c.len_utf8()..].starts_with(|c: char| c.is_ascii_digit());
        if c == '0' && !in_number && next_is_digit {
            continue;
        }
        in_number = c.is_ascii_digit();
        plain.push(c.to_ascii_lowercase());
    }
    plain == format!("bytes {first}-{last}/{total}")
}
