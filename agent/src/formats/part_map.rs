//! Part maps: which chunks of a partial image have been written. A hint: each chunk is verified again before it is relied on.

use crate::digest::Digest;

const MAGIC: &[u8; 8] = b"FRPARTMP";
/// Length of a map that names no chunk.
pub const HEADER: usize = 56;

/// The identity of a partial image: a map of another one says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartMap {
    /// The image's length in bytes.
    pub image_size: u64,
    /// The digest of its chunk index.
    pub chunk_index: Digest,
}

impl PartMap {
    /// The header of a map.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&self.image_size.to_le_bytes());
        bytes.extend_from_slice(self.chunk_index.as_bytes());
        bytes
    }

    /// The chunks that a map names, each once, in order; none if the map is not one of this image. `count` is the image's number of chunks.
    pub fn written(&self, map: &[u8], count: usize) -> Option<Vec<u32>> {
        let entries = map.strip_prefix(self.header().as_slice())?;
        let mut numbers: Vec<u32> = entries
            .chunks_exact(4)
            .map(|entry| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]))
            .filter(|number| (*number as usize) < count)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map() -> PartMap {
        PartMap {
            image_size: 10,
            chunk_index: Digest::of(b"index"),
        }
    }

    #[test]
    fn a_torn_entry_and_a_number_out_of_range_are_ignored() {
        let mut bytes = map().header();
        assert_eq!(bytes.len(), HEADER);
        for number in [2u32, 0, 2, 9] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&[1, 0]);
        assert_eq!(map().written(&bytes, 3), Some(vec![0, 2]));
    }

    #[test]
    fn the_map_of_another_image_says_nothing() {
        let other = PartMap { image_size: 11, ..map() };
        assert_eq!(map().written(&other.header(), 3), None);
        assert_eq!(map().written(&map().header()[..HEADER - 1], 3), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0usize..100) {
            let map = map();
            let with_header = [map.header(), bytes.clone()].concat();
            prop_assert!(map.written(&with_header, count).is_some_and(|numbers| numbers.iter().all(|n| (*n as usize) < count)));
            prop_assert!(map.written(&bytes, count).is_none());
        }
    }
}
