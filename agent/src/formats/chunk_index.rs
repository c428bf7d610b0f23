//! Chunk indexes: where an image's chunks lie, and the digest of each.

use super::Refusal;
use crate::digest::Digest;

const MAGIC: &[u8; 8] = b"FRCHUNKS";
const HEADER: usize = 24;
const ENTRY: usize = 36;
/// A chunk is held in memory until it is verified: this bounds the memory of a client.
pub const CHUNK_LIMIT: u32 = 4 << 20;

/// One chunk of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its first byte in the image.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// A chunk index: chunks one after the other, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    chunks: Vec<Chunk>,
    image_size: u64,
}

impl ChunkIndex {
    /// An index of chunks given by length and digest.
    ///
    /// # Errors
    /// If there is none, or one is empty or longer than [`CHUNK_LIMIT`].
    pub fn new(parts: impl IntoIterator<Item = (u32, Digest)>) -> Result<Self, Refusal> {
        let mut chunks = Vec::new();
        let mut offset = 0u64;
        for (number, (length, digest)) in parts.into_iter().enumerate() {
            if length == 0 || length > CHUNK_LIMIT {
                return Err(Refusal::Malformed(format!(
                    "chunk {number} has {length} bytes, 1 to {CHUNK_LIMIT} are expected"
                )));
            }
            chunks.push(Chunk { offset, length, digest });
            offset += u64::from(length);
        }
        if chunks.is_empty() {
            return Err(Refusal::Malformed("the chunk index names no chunk".to_owned()));
        }
        Ok(Self {
            chunks,
            image_size: offset,
        })
    }

    /// Reads the index of an image of `image_size` bytes.
    ///
    /// # Errors
    /// Malformed, of another version, or not of an image of this size.
    pub fn parse(bytes: &[u8], image_size: u64) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::Malformed(format!("the chunk index is malformed: {what}"));
        let (header, entries) = bytes
            .split_at_checked(HEADER)
            .ok_or_else(|| malformed("it is shorter than its header"))?;
        if header[..8] != *MAGIC {
            return Err(malformed("it does not begin with FRCHUNKS"));
        }
        let version = u64::from(u32_at(header, 8));
        if version != 1 {
            return Err(Refusal::UnknownVersion {
                what: "chunk index",
                version,
            });
        }
        let count = u32_at(header, 12) as usize;
        if Some(entries.len()) != count.checked_mul(ENTRY) {
            return Err(malformed("its length does not fit its number of chunks"));
        }
        let index = Self::new(entries.chunks_exact(ENTRY).map(|entry| {
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[4..ENTRY]);
            (u32_at(entry, 0), Digest::from_bytes(digest))
        }))?;
        if index.image_size != u64_at(header, 16) || index.image_size != image_size {
            return Err(malformed(&format!(
                "its chunks add up to {} bytes, the image has {image_size}",
                index.image_size
            )));
        }
        Ok(index)
    }

    /// The index as it is published.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + ENTRY * self.chunks.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.image_size.to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.length.to_le_bytes());
            bytes.extend_from_slice(chunk.digest.as_bytes());
        }
        bytes
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The image's length in bytes.
    pub fn image_size(&self) -> u64 {
        self.image_size
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_index_survives_its_bytes() {
        let index = ChunkIndex::new([(5, Digest::of(b"hello")), (1, Digest::of(b"!"))]).unwrap();
        assert_eq!(index.chunks()[1].offset, 5);
        assert_eq!(ChunkIndex::parse(&index.to_bytes(), 6).unwrap(), index);
        assert_eq!(index.to_bytes().len(), 24 + 2 * 36);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let good = ChunkIndex::new([(5, Digest::of(b"hello")), (1, Digest::of(b"!"))])
            .unwrap()
            .to_bytes();
        let change = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert!(ChunkIndex::parse(&good, 7).is_err(), "another size");
        for (bytes, why) in [
            (change(0, b'X'), "magic"),
            (change(8, 2), "version"),
            (change(12, 3), "count"),
            (change(16, 7), "image size"),
            (change(24, 0), "empty chunk"),
            (change(27, 1), "chunk over the limit"),
            (good[..good.len() - 1].to_vec(), "cut"),
            (Vec::new(), "nothing"),
        ] {
            assert!(ChunkIndex::parse(&bytes, 6).is_err(), "{why}");
        }
        assert!(ChunkIndex::new([]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>(), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
            }
            if let Ok(index) = ChunkIndex::parse(&bytes, size) {
                prop_assert_eq!(index.to_bytes(), bytes);
            }
        }
    }
}
