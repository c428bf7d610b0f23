//! The claim: one sector that says that a disk was blank, and whose preparation has begun on it. It is the first that is written, and the last that goes.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::device::probe::{has, le64};
use crate::digest::Digest;

use super::layout::{Piece, Seed};

/// Where it is: behind any GPT, before the first partition of every tool in use.
pub const OFFSET: u64 = 512 << 10;
/// Bytes of it. A disk writes so many at once, or none of them.
pub const LENGTH: usize = 512;

const MAGIC: &[u8; 16] = b"freshroot claim\n";
const VERSION: u64 = 1;
/// Bytes that the digest behind them is of.
const SIGNED: usize = 80;

/// What a claim says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The declaration that is carried out.
    pub declaration: Digest,
    /// What ids are made of.
    pub seed: Seed,
    /// The size of the disk.
    pub size: u64,
}

/// What stands where a claim would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No claim.
    Nothing,
    /// A claim that is not whole, or of a version that is not known.
    Damaged,
    /// A claim.
    Claim(Claim),
}

impl Claim {
    /// As it is written.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..24].copy_from_slice(&VERSION.to_le_bytes());
        bytes[24..56].copy_from_slice(self.declaration.as_bytes());
        bytes[56..72].copy_from_slice(&self.seed);
        bytes[72..80].copy_from_slice(&self.size.to_le_bytes());
        let digest = Digest::of(&bytes[..SIGNED]);
        bytes[SIGNED..SIGNED + 32].copy_from_slice(digest.as_bytes());
        bytes
    }

    /// Where and what is written.
    pub fn piece(self) -> Piece {
        Piece {
            offset: OFFSET,
            bytes: self.to_bytes(),
            what: "claim",
        }
    }
}

/// Reads the sector at [`OFFSET`].
pub fn read(sector: &[u8]) -> Found {
    if !has(sector, 0, MAGIC) {
        return Found::Nothing;
    }
    let claim = || {
        let field = |range: std::ops::Range<usize>| sector.get(range);
        let claim = Claim {
            declaration: Digest::from_bytes(field(24..56)?.try_into().ok()?),
            seed: field(56..72)?.try_into().ok()?,
            size: le64(sector, 72)?,
        };
        (sector.get(..LENGTH)? == claim.to_bytes()).then_some(claim)
    };
    claim().map_or(Found::Damaged, Found::Claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_as_it_was_written_and_any_damage_shows() {
        let claim = Claim {
            declaration: Digest::of(b"x"),
            seed: [3; 16],
            size: 1 << 40,
        };
        let bytes = claim.to_bytes();
        assert_eq!(read(&bytes), Found::Claim(claim));
        assert_eq!(read(&[0; LENGTH]), Found::Nothing);
        assert_eq!(read(&bytes[..100]), Found::Damaged);
        for at in 0..LENGTH {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let expected = if at < 16 { Found::Nothing } else { Found::Damaged };
            assert_eq!(read(&damaged), expected, "damaged at {at}");
        }
    }
}
