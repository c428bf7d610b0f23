//! Where partitions lie, and the GPT that says so.
//!
//! UEFI specification 2.10, chapter 5. The first and the last MiB of a disk belong to the table alone, so that what is there can be compared byte by byte.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::device::table::crc32;
use crate::digest::Digest;

use super::declaration::Declared;

/// Partitions begin and end at multiples of this.
pub const ALIGNMENT: u64 = 1 << 20;
/// Entries of a table, and bytes of each: what every tool makes.
const ENTRIES: u64 = 128;
const ENTRY: u64 = 128;

/// What all random numbers of a preparation are made of: drawn once, so that it can be gone on with.
pub type Seed = [u8; 16];

/// A disk as far as a layout needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub sector: u32,
}

/// Where a partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub label: String,
    /// Its type.
    pub kind: [u8; 16],
    /// Its unique id.
    pub id: [u8; 16],
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// Bytes at a place of a disk.
#[derive(Clone, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub offset: u64,
    /// What is written there.
    pub bytes: Vec<u8>,
    /// What it is.
    pub what: &'static str,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes at {})", self.what, self.bytes.len(), self.offset)
    }
}

/// An id of 16 bytes that follows from the seed, as a random UUID (RFC 9562, version 4) in the order in which it is written.
pub fn id(seed: &Seed, what: &str) -> [u8; 16] {
    let mut text = seed.to_vec();
    text.extend_from_slice(what.as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&Digest::of(&text).as_bytes()[..16]);
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// The bytes of a disk that partitions may lie in.
///
/// # Errors
/// If its sectors are of a size that no disk has.
fn usable(geometry: Geometry) -> Result<(u64, u64), String> {
    if !(512..=4096).contains(&geometry.sector) || !geometry.sector.is_power_of_two() {
        return Err(format!(
            "its sectors of {} bytes are not supported: 512 to 4096 are",
            geometry.sector
        ));
    }
    let end = (geometry.size / ALIGNMENT).saturating_sub(1) * ALIGNMENT;
    Ok((ALIGNMENT, end))
}

/// Lays the declared partitions out, one behind the other; the last one takes what is left if it says so.
///
/// # Errors
/// If they do not fit.
pub fn places(declared: &Declared, geometry: Geometry, seed: &Seed) -> Result<Vec<Place>, String> {
    let (mut start, end) = usable(geometry)?;
    let mut places = Vec::with_capacity(declared.partitions.len());
    for (index, partition) in declared.partitions.iter().enumerate() {
        let left = end.saturating_sub(start);
        let length = partition.size.unwrap_or(left);
        if length == 0 || length > left {
            return Err(format!("{} does not fit: {} bytes are left for it", partition.label, left));
        }
        places.push(Place {
            label: partition.label.clone(),
            kind: partition.kind,
            id: id(seed, &format!("partition {index}")),
            start,
            length,
        });
        start += length;
    }
    Ok(places)
}

/// The table, in the order in which it is written: the copy at the end, the one at the beginning, and last the sector without which neither counts.
pub fn table(places: &[Place], geometry: Geometry, seed: &Seed) -> Vec<Piece> {
    let sector = u64::from(geometry.sector);
    let last = geometry.size / sector - 1;
    let array_sectors = ENTRIES * ENTRY / sector;
    let entries = entries(places, sector);
    let header = |own: u64, other: u64, array: u64| {
        let mut bytes = vec![0; geometry.sector as usize];
        bytes[..8].copy_from_slice(b"EFI PART");
        bytes[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&92_u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&own.to_le_bytes());
        bytes[32..40].copy_from_slice(&other.to_le_bytes());
        bytes[40..48].copy_from_slice(&(2 + array_sectors).to_le_bytes());
        bytes[48..56].copy_from_slice(&(last - 1 - array_sectors).to_le_bytes());
        bytes[56..72].copy_from_slice(&on_disk(id(seed, "disk")));
        bytes[72..80].copy_from_slice(&array.to_le_bytes());
        bytes[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
        bytes[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        bytes[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let crc = crc32(&bytes[..92]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let piece = |at: u64, bytes: Vec<u8>, what| Piece {
        offset: at * sector,
        bytes,
        what,
    };
    vec![
        piece(last - array_sectors, entries.clone(), "entries of the backup GPT"),
        piece(last, header(last, 1, last - array_sectors), "header of the backup GPT"),
        piece(2, entries.clone(), "entries of the GPT"),
        piece(1, header(1, last, 2), "header of the GPT"),
        piece(0, protective_mbr(geometry.sector, last), "protective MBR"),
    ]
}

fn entries(places: &[Place], sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; (ENTRIES * ENTRY) as usize];
    for (entry, place) in bytes.chunks_exact_mut(ENTRY as usize).zip(places) {
        entry[..16].copy_from_slice(&on_disk(place.kind));
        entry[16..32].copy_from_slice(&on_disk(place.id));
        entry[32..40].copy_from_slice(&(place.start / sector).to_le_bytes());
        entry[40..48].copy_from_slice(&((place.start + place.length) / sector - 1).to_le_bytes());
        for (unit, target) in place.label.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
            target.copy_from_slice(&unit.to_le_bytes());
        }
    }
    bytes
}

/// A GUID's first three fields are little-endian.
fn on_disk(mut id: [u8; 16]) -> [u8; 16] {
    id[..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    id
}

/// One partition over all, so that old programs do not take the disk for an empty one.
fn protective_mbr(sector: u32, last: u64) -> Vec<u8> {
    let mut bytes = vec![0; sector as usize];
    // From cylinder 0, head 0, sector 2 to as far as it can be said.
    bytes[446..454].copy_from_slice(&[0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
    bytes[454..458].copy_from_slice(&1_u32.to_le_bytes());
    bytes[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::disallowed_types)]
    use super::*;
    use crate::device::table::{Table, table as read_table};
    use crate::prepare::declaration::declared;
    use serde_json::json;
    use std::os::unix::fs::FileExt as _;
    use std::process::Command;

    fn three() -> Declared {
        let source = json!({
            "device": "serial=x", "size": {"min": "64M", "max": "8T"},
            "partitions": [
                {"name": "one", "size": "4M", "type": "EF00"}, {"name": "two", "label": "grüne Daten", "size": "10M"},
                {"name": "three", "size": "100%"},
            ],
        });
        declared("main", &source).unwrap()
    }

    #[test]
    fn partitions_lie_one_behind_the_other_and_leave_both_ends_to_the_table() {
        let geometry = Geometry {
            size: (64 << 20) + 512 * 77,
            sector: 512,
        };
        let places = places(&three(), geometry, &[7; 16]).unwrap();
        let spans: Vec<(u64, u64)> = places.iter().map(|place| (place.start >> 20, place.length >> 20)).collect();
        assert_eq!(spans, [(1, 4), (5, 10), (15, 48)]);
        let small = Geometry {
            size: 15 << 20,
            sector: 512,
        };
        assert!(super::places(&three(), small, &[7; 16]).unwrap_err().contains("does not fit"));
        assert!(
            super::places(
                &three(),
                Geometry {
                    size: 1 << 30,
                    sector: 520
                },
                &[7; 16]
            )
            .is_err()
        );
    }

    #[test]
    fn our_reader_and_sfdisk_take_the_table_and_see_the_same_with_either_sector() {
        for (sector, size) in [(512, 64 << 20), (4096, 80 << 20), (512, (64 << 20) + 7 * 512)] {
            let geometry = Geometry { size, sector };
            let places = places(&three(), geometry, &[9; 16]).unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(size).unwrap();
            let pieces = table(&places, geometry, &[9; 16]);
            for piece in &pieces {
                file.as_file().write_all_at(&piece.bytes, piece.offset).unwrap();
                assert!(
                    piece.offset + piece.bytes.len() as u64 <= ALIGNMENT || piece.offset >= (size / ALIGNMENT - 1) * ALIGNMENT,
                    "{piece:?}"
                );
            }
            let Some(Table::Gpt(entries)) = read_table(file.as_file(), size, sector).unwrap() else {
                panic!("no GPT")
            };
            let seen: Vec<_> = entries.iter().map(|entry| (entry.label.clone().unwrap(), entry.first)).collect();
            let made: Vec<_> = places
                .iter()
                .map(|place| (place.label.clone(), place.start / u64::from(sector)))
                .collect();
            assert_eq!(seen, made);
            // sfdisk reads files as if their sectors had 512 bytes.
            if sector == 512 {
                let output = Command::new("sfdisk").arg("--verify").arg(file.path()).output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.contains("No errors detected"), "{said}");
                let output = Command::new("sgdisk").arg("--verify").arg(file.path()).output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.contains("No problems found"), "{said}");
            }
            // The backup alone is enough.
            file.as_file().write_all_at(&[0; 512], u64::from(sector)).unwrap();
            assert!(matches!(read_table(file.as_file(), size, sector).unwrap(), Some(Table::Gpt(same)) if same == entries));
        }
    }

    #[test]
    fn until_its_last_sector_is_written_the_table_is_none() {
        let geometry = Geometry {
            size: 64 << 20,
            sector: 512,
        };
        let places = places(&three(), geometry, &[1; 16]).unwrap();
        let mut disk = vec![0; 64 << 20];
        let pieces = table(&places, geometry, &[1; 16]);
        for (number, piece) in pieces.iter().enumerate() {
            assert_eq!(
                read_table(&disk.as_slice(), geometry.size, 512).unwrap(),
                None,
                "before piece {number}"
            );
            disk[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        assert!(read_table(&disk.as_slice(), geometry.size, 512).unwrap().is_some());
    }

    #[test]
    fn ids_follow_from_the_seed_and_differ() {
        assert_eq!(id(&[1; 16], "disk"), id(&[1; 16], "disk"));
        assert_ne!(id(&[1; 16], "disk"), id(&[2; 16], "disk"));
        assert_ne!(id(&[1; 16], "disk"), id(&[1; 16], "partition 0"));
        assert_eq!((id(&[1; 16], "x")[6] >> 4, id(&[1; 16], "x")[8] >> 6), (4, 2));
    }
}
