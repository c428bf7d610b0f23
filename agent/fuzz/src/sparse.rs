//! A disk of any size in a few bytes: its size, and pieces of what is not zero.
//!
//! Form of an input: the size in bytes (u64), then pieces: offset (u64), length (u16), so many bytes; all little-endian. Where pieces overlap, the
//! later one counts.

use std::cell::Cell;
use std::io;

use freshroot::device::probe::ReadAt;

use crate::input::Input;

/// More pieces than that only cost time.
const MOST_PIECES: usize = 64;

/// A disk that says how much of it was read.
pub struct Sparse<'a> {
    /// Its size in bytes.
    pub size: u64,
    pieces: Vec<(u64, &'a [u8])>,
    read: Cell<u64>,
}

impl<'a> Sparse<'a> {
    /// Takes a disk off an input.
    pub fn take(input: &mut Input<'a>) -> Self {
        let size = input.u64();
        let mut pieces = Vec::new();
        while !input.is_empty() && pieces.len() < MOST_PIECES {
            let offset = input.u64();
            let length = input.u16();
            pieces.push((offset, input.bytes(length.into())));
        }
        Self {
            size,
            pieces,
            read: Cell::new(0),
        }
    }

    /// Bytes that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read.get()
    }

    /// All of it, if that is not too much.
    pub fn dense(&self, most: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.size.min(most.saturating_add(1))).ok()?];
        (self.size <= most).then(|| {
            self.fill(&mut bytes, 0);
            bytes
        })
    }

    /// Replaces what is there by one piece more.
    pub fn with(&self, offset: u64, bytes: &'a [u8]) -> Self {
        let mut pieces = self.pieces.clone();
        pieces.push((offset, bytes));
        Self {
            size: self.size,
            pieces,
            read: Cell::new(0),
        }
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) {
        buffer.fill(0);
        let end = offset.saturating_add(buffer.len() as u64);
        for (at, bytes) in &self.pieces {
            let (from, to) = (offset.max(*at), end.min(at.saturating_add(bytes.len() as u64)));
            if from < to {
                let length = (to - from) as usize;
                let (target, source) = ((from - offset) as usize, (from - at) as usize);
                buffer[target..target + length].copy_from_slice(&bytes[source..source + length]);
            }
        }
    }
}

impl ReadAt for Sparse<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        self.fill(&mut buffer[..length], offset);
        self.read.set(self.read.get() + length as u64);
        Ok(length)
    }
}

/// The form that [`Sparse::take`] reads, of an image: only what is not zero, cut at the borders of 256 bytes.
pub fn pack(image: &[u8], size: u64) -> Vec<u8> {
    const BLOCK: usize = 256;
    let mut packed = size.to_le_bytes().to_vec();
    let mut blocks = image
        .chunks(BLOCK)
        .enumerate()
        .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
        .peekable();
    while let Some((number, block)) = blocks.next() {
        let mut piece = block.to_vec();
        let mut next = number + 1;
        while piece.len() + BLOCK <= usize::from(u16::MAX)
            && let Some((_, more)) = blocks.next_if(|(at, _)| *at == next)
        {
            piece.extend(more);
            next += 1;
        }
        while piece.last() == Some(&0) {
            piece.pop();
        }
        packed.extend(((number * BLOCK) as u64).to_le_bytes());
        packed.extend((piece.len() as u16).to_le_bytes());
        packed.extend(piece);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_taken_back() {
        let mut image = vec![0; 3000];
        image[5] = 1;
        image[255..300].fill(7);
        image[2999] = 9;
        let packed = pack(&image, 3000);
        let sparse = Sparse::take(&mut Input(&packed));
        assert_eq!(sparse.dense(4096), Some(image.clone()));
        let mut some = [0; 60];
        assert_eq!(sparse.read_at(&mut some, 250).unwrap(), 60);
        assert_eq!((&some[..], sparse.bytes_read()), (&image[250..310], 60));
        assert_eq!(sparse.read_at(&mut some, 2990).unwrap(), 10);
        assert_eq!(sparse.dense(2000), None);
    }
}
