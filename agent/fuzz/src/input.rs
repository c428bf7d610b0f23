//! What targets share: taking an input apart, and what holds for every message.

use std::fmt::Display;

/// No message is longer: a console shows 80 × 25 characters.
const LONGEST_MESSAGE: usize = 4096;

/// An input that is taken apart from its beginning; zeros follow its end.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `length` bytes, or what is left.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A little-endian number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A little-endian number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A little-endian number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// The text before the first byte 0xff, which no UTF-8 holds, and the rest behind it.
pub fn split_at_ff(input: &[u8]) -> (&[u8], Option<&[u8]>) {
    match input.iter().position(|byte| *byte == 0xff) {
        Some(at) => (&input[..at], Some(&input[at + 1..])),
        None => (input, None),
    }
}

/// What a refusal says goes to consoles and logs: it says something, is bounded, and holds nothing that would move a cursor or begin a line of its own.
///
/// # Panics
/// If it is not so.
pub fn told(message: impl Display) {
    let text = format!("{message:#}");
    assert!(!text.is_empty(), "a refusal without words");
    assert!(text.len() <= LONGEST_MESSAGE, "a message of {} bytes", text.len());
    let acts = |c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
    assert!(
        !text.contains(acts),
        "a character that a console acts upon in «{}»",
        text.escape_debug()
    );
}

/// Pieces of a text between `separator`, at most `most`.
pub fn pieces(text: &str, separator: char, most: usize) -> impl Iterator<Item = &str> {
    text.split(separator).take(most)
}
