//! Growing the last partition of a disk over what the disk has more than its table knows.
//!
//! | step | what a power cut behind it leaves |
//! |---|---|
//! | 1. the new backup, at the new end of the disk | the old table, whole |
//! | 2. the new entries, behind the old ones | the old table |
//! | 3. the header, which names them: one sector | the new table |
//! | 4. the new entries, over the old ones; the protective MBR | the new table |
//! | 5. the header, which names those | the new table |
//!
//! So there is a whole table at each moment, and the next boot goes on. A partition that is not the last one is never touched, and none is made smaller.
//! Nothing is written over but zeros, the table itself, and what an interrupted growth has left.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use crate::device::probe::{ReadAt, le32, le64, read, text16};
use crate::device::table::{crc32, header_of};

use super::blank::Area;
use super::layout::{ALIGNMENT, Geometry, Piece};
use super::plan::Step;

/// Bytes of a table's entries: 128 of 128 bytes, as every tool makes them.
const ENTRIES: u64 = 128 * 128;

/// What growing a partition comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// Its label.
    pub label: String,
    /// Its first byte.
    pub start: u64,
    /// Its bytes, as they are.
    pub from: u64,
    /// Its bytes, as they will be; the same where only the table is to be completed.
    pub to: u64,
    /// What lies behind it and is not of the table: it must be zero.
    pub free: Vec<Area>,
    /// What is written.
    pub steps: Vec<Step>,
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {} grows from {} to {} bytes, then its file system",
            self.label, self.from, self.to
        )?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

/// How the partition `label`, the last one of a disk, is grown to its end; none: there is no MiB to be had.
///
/// # Errors
/// Why it is not grown, though there may be room.
pub fn growth(disk: &dyn ReadAt, geometry: Geometry, label: &str) -> Result<Option<Growth>, String> {
    let damaged = |what: &str| format!("{what} is damaged or not of the usual shape: look at it by hand (sgdisk --verify)");
    let sector = u64::from(geometry.sector);
    if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
        return Err(format!("its sectors of {sector} bytes are not supported: 512 to 4096 are"));
    }
    let array = ENTRIES / sector;
    let Some(last) = (geometry.size / sector).checked_sub(1).filter(|last| *last > 3 * array + 2) else {
        return Err("it is too small for a GPT".to_owned());
    };
    let bytes = |block: u64, length: u64| match read(disk, block * sector, usize::try_from(length).unwrap_or_default()) {
        Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
        Ok(_) => Err("the disk ends before its table".to_owned()),
        Err(error) => Err(format!("its table cannot be read: {error}")),
    };
    let header = bytes(1, sector)?;
    let first_table = || damaged("its first table");
    let found = header_of(&header, 1, last).ok_or_else(first_table)?;
    // Where an interrupted growth has put its entries.
    let behind = 2 + array;
    if (found.count, found.entry_size) != (128, 128) || le32(&header, 12) != Some(92) || ![2, behind].contains(&found.first) {
        return Err(first_table());
    }
    let old = bytes(found.first, ENTRIES)?;
    if crc32(&old) != found.crc {
        return Err(first_table());
    }
    let used: Vec<Entry> = old.chunks_exact(128).enumerate().filter_map(Entry::read).collect();
    let Some(one) = used.iter().max_by_key(|entry| entry.end).filter(|one| one.label == label) else {
        return Err(format!(
            "{label} is not the partition that lies last: what lies behind it is not moved"
        ));
    };
    if one.end > last {
        return Err(format!("{label} ends behind the end of the disk: nothing is made smaller here"));
    }
    if used.iter().any(|entry| entry.first > entry.end) {
        return Err(first_table());
    }
    let end = (geometry.size / ALIGNMENT).saturating_sub(1) * ALIGNMENT / sector - 1;
    let unfinished = found.first == behind;
    if end.saturating_sub(one.end) < ALIGNMENT / sector && !unfinished {
        return Ok(None);
    }
    if used.iter().any(|entry| entry.first < behind + array) {
        return Err("its first partition begins too near to the table: grow it by hand (growpart)".to_owned());
    }
    let mut record = bytes(0, sector)?;
    if !protective(&record) {
        return Err("its MBR lists more than what protects a GPT: grow it by hand (growpart)".to_owned());
    }
    // What was begun comes to its end first: its entries are in use where those of another growth would be put.
    let to = if unfinished { one.end } else { end };
    let mut entries = old.clone();
    entries[one.at + 40..one.at + 48].copy_from_slice(&to.to_le_bytes());

    let (Some(backup), Some(usable)) = (le64(&header, 32), le64(&header, 48)) else {
        return Err(first_table());
    };
    let (new_backup, new_usable) = if unfinished { (backup, usable) } else { (last, last - 1 - array) };
    let table = |own: u64, other: u64, at: u64| table_header(&header, own, other, new_usable, at, crc32(&entries));
    let write = |block: u64, bytes: Vec<u8>, what| {
        let offset = block * sector;
        Step::Write(Piece { offset, bytes, what })
    };
    let nothing = vec![0; entries.len()];
    // Whether each sector of the entries at a place is one of those that may be there: a write that was cut off is done by sectors.
    let holds = |block: u64, allowed: &[&[u8]]| -> Result<bool, String> {
        let there = bytes(block, ENTRIES)?;
        let size = geometry.sector as usize;
        Ok((0..there.len() / size).all(|at| {
            let at = at * size..(at + 1) * size;
            allowed.iter().any(|allowed| allowed[at.clone()] == there[at.clone()])
        }))
    };

    let mut steps = Vec::new();
    let mut free = Vec::new();
    if unfinished {
        // Ours: what is in the usual place differs by the end of that partition at most.
        let mut before = bytes(2, ENTRIES)?;
        before[one.at + 40..one.at + 48].copy_from_slice(&to.to_le_bytes());
        if before != entries {
            return Err(first_table());
        }
    } else {
        let header_at_end = table(last, 1, last - array);
        let moved = backup == last;
        let places_are_usual = backup.checked_sub(array).is_some_and(|at| at > one.end) && (moved || backup < last - array);
        if !places_are_usual {
            return Err(damaged("its table's backup"));
        }
        let its_header = bytes(backup, sector)?;
        let whole = header_of(&its_header, backup, last).is_some_and(|its| its.crc == found.crc && its.first == backup - array);
        let begun = moved && its_header == header_at_end;
        let allowed: &[&[u8]] = if moved { &[&old, &entries] } else { &[&old] };
        if !(whole || begun) || !holds(backup - array, allowed)? {
            return Err(damaged("its table's backup"));
        }
        let in_use = |what: &str| format!("{what} holds something that no table names: grow it by hand (growpart)");
        if !holds(behind, &[&nothing, &old, &entries])? {
            return Err(in_use("what lies between its table and its first partition"));
        }
        let mut gap = |first: u64, end: u64| {
            if end > first {
                let (offset, length) = (first * sector, (end - first) * sector);
                free.push(Area { offset, length });
            }
        };
        gap(one.end + 1, backup - array);
        if !moved {
            let header_there = bytes(last, sector)?;
            if !holds(last - array, &[&nothing, &entries])? || (header_there != header_at_end && header_there.iter().any(|byte| *byte != 0))
            {
                return Err(in_use("its end"));
            }
            gap(backup + 1, last - array);
        }
        steps.extend([
            write(last - array, entries.clone(), "entries of the backup GPT"),
            write(last, header_at_end, "header of the backup GPT"),
            Step::Flush,
            write(behind, entries.clone(), "entries of the GPT, behind the old ones"),
            Step::Flush,
            write(1, table(1, last, behind), "header of the GPT"),
            Step::Flush,
        ]);
    }
    steps.push(write(2, entries.clone(), "entries of the GPT"));
    let size = u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes();
    if record[458..462] != size {
        record[458..462].copy_from_slice(&size);
        steps.push(write(0, record, "protective MBR"));
    }
    steps.extend([
        Step::Flush,
        write(1, table(1, new_backup, 2), "header of the GPT"),
        Step::Flush,
        write(behind, nothing, "zeros behind the entries"),
        Step::Flush,
        Step::Reread,
    ]);
    let length = |end: u64| (end + 1 - one.first) * sector;
    Ok(Some(Growth {
        label: label.to_owned(),
        start: one.first * sector,
        from: length(one.end),
        to: length(to),
        free,
        steps,
    }))
}

/// Whether an MBR is nothing but protective: one partition over all.
fn protective(record: &[u8]) -> bool {
    let kinds = [450, 466, 482, 498].map(|at| record.get(at).copied());
    kinds == [Some(0xee), Some(0), Some(0), Some(0)] && record.get(510..512) == Some(&[0x55, 0xaa])
}

/// An entry that is used.
struct Entry {
    /// Where it stands among the entries.
    at: usize,
    first: u64,
    end: u64,
    label: String,
}

impl Entry {
    fn read((number, bytes): (usize, &[u8])) -> Option<Self> {
        if bytes.get(..16)? == [0; 16] {
            return None;
        }
        Some(Self {
            at: number * 128,
            first: le64(bytes, 32)?,
            end: le64(bytes, 40)?,
            label: text16(bytes, 56, 72).unwrap_or_default(),
        })
    }
}

/// The header `old` with other places in it.
fn table_header(old: &[u8], own: u64, other: u64, last_usable: u64, entries_at: u64, crc: u32) -> Vec<u8> {
    let mut bytes = old.to_vec();
    for (at, value) in [(24, own), (32, other), (48, last_usable), (72, entries_at)] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[88..92].copy_from_slice(&crc.to_le_bytes());
    bytes[16..20].fill(0);
    let crc = crc32(&bytes[..92]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_types, clippy::disallowed_methods)]
    use super::*;
    use crate::device::table::{Table, table};
    use crate::prepare::declaration::{Declared, declared};
    use crate::prepare::layout::{self, places};
    use proptest::prelude::*;

    const OLD: u64 = 20 << 20;

    fn three() -> Declared {
        let source = serde_json::json!({
            "device": "serial=x", "size": {"min": "16M", "max": "8T"}, "grow": true,
            "partitions": [{"name": "one", "size": "1M"}, {"name": "swap", "size": "2M"}, {"name": "data", "size": "100%"}],
        });
        declared("main", &source).unwrap()
    }

    fn geometry(size: u64) -> Geometry {
        Geometry { size, sector: 512 }
    }

    /// A disk that was prepared, and has `size` bytes now.
    fn disk(size: u64) -> Vec<u8> {
        let mut disk = vec![0; OLD.max(size) as usize];
        let places = places(&three(), geometry(OLD), &[3; 16]).unwrap();
        for piece in layout::table(&places, geometry(OLD), &[3; 16]) {
            disk[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        disk.truncate(size as usize);
        disk
    }

    fn carry_out(disk: &mut [u8], steps: &[Step]) {
        for step in steps {
            if let Step::Write(piece) = step {
                disk[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
            }
        }
    }

    fn grown(disk: &[u8]) -> Result<Option<Growth>, String> {
        growth(&disk, geometry(disk.len() as u64), "disk-main-data")
    }

    fn labels(disk: &[u8]) -> Vec<String> {
        match table(&disk, disk.len() as u64, 512).unwrap() {
            Some(Table::Gpt(entries)) => entries.into_iter().filter_map(|entry| entry.label).collect(),
            Some(Table::Mbr(_)) | None => panic!("no GPT"),
        }
    }

    #[test]
    fn a_disk_of_its_old_size_and_one_that_is_less_than_a_mib_larger_have_nothing_to_grow() {
        assert_eq!(grown(&disk(OLD)), Ok(None));
        assert_eq!(grown(&disk(OLD + (1 << 20) - 512)), Ok(None));
    }

    #[test]
    fn only_the_last_partition_grows_and_no_disk_that_has_become_smaller_is_touched() {
        let larger = disk(OLD + (5 << 20));
        let growth = grown(&larger).unwrap().unwrap();
        assert_eq!((growth.from, growth.to), (OLD - (5 << 20), OLD));
        assert!(
            super::growth(&larger.as_slice(), geometry(larger.len() as u64), "disk-main-swap")
                .unwrap_err()
                .contains("lies last")
        );
        assert!(grown(&disk(OLD - (3 << 20))).unwrap_err().contains("nothing is made smaller"));
    }

    /// A disk that has become larger, and what is done to it.
    type Damage = (&'static str, fn(&mut Vec<u8>));

    #[test]
    fn a_table_that_is_damaged_or_foreign_is_left_alone() {
        const MORE: u64 = OLD + (5 << 20);
        /// Writes the first header's checksum anew.
        fn sum(disk: &mut [u8]) {
            disk[528..532].fill(0);
            let crc = crc32(&disk[512..604]);
            disk[528..532].copy_from_slice(&crc.to_le_bytes());
        }
        let cases: [Damage; 10] = [
            ("first table is damaged", |disk| disk[512 + 60] ^= 1),
            ("first table is damaged", |disk| disk[1024 + 60] ^= 1),
            ("backup is damaged", |disk| disk[OLD as usize - 512 + 60] ^= 1),
            ("backup is damaged", |disk| disk[OLD as usize - 512 - 1024] ^= 1),
            ("MBR lists more", |disk| disk[466] = 0x83),
            // Boot loaders of some boards stand here.
            ("between its table and its first partition", |disk| disk[64 * 512] = 1),
            ("its end holds something", |disk| disk[MORE as usize - 1] = 1),
            // Its entries where an interrupted growth has them, and something else in their usual place.
            ("first table is damaged", |disk| {
                disk.copy_within(1024..1024 + ENTRIES as usize, 34 * 512);
                disk[584..592].copy_from_slice(&34_u64.to_le_bytes());
                sum(disk);
                disk[1024..4096].fill(7);
            }),
            // 64 entries of 256 bytes.
            ("first table is damaged", |disk| {
                disk[592..600].copy_from_slice(&[64, 0, 0, 0, 0, 1, 0, 0]);
                sum(disk);
            }),
            ("backup is damaged", |disk| {
                disk[544..552].copy_from_slice(&u64::MAX.to_le_bytes());
                sum(disk);
            }),
        ];
        for (words, damage) in cases {
            let mut disk = disk(MORE);
            damage(&mut disk);
            let refusal = grown(&disk).unwrap_err();
            assert!(refusal.contains(words), "{words}: {refusal}");
        }
        let odd = Geometry { size: MORE, sector: 8192 };
        assert!(growth(&disk(MORE).as_slice(), odd, "disk-main-data").unwrap_err().contains("8192"));
    }

    #[test]
    fn all_that_lies_behind_the_partition_is_named_as_free_but_both_backups() {
        let mut disk = disk(OLD + (5 << 20));
        let growth = grown(&disk).unwrap().unwrap();
        let (old, new) = (33 * 512, disk.len() as u64 - 33 * 512);
        let end = growth.start + growth.from;
        let free: Vec<(u64, u64)> = growth.free.iter().map(|area| (area.offset, area.offset + area.length)).collect();
        assert_eq!(free, [(end, OLD - old), (OLD, new)]);
        // Also where the backup has been moved to the end before, as `sgdisk --move-second-header` does.
        let Step::Write(entries) = &growth.steps[0] else { panic!() };
        disk[OLD as usize - 33 * 512..OLD as usize].fill(0);
        let moved = table_header(
            &disk[512..1024],
            1,
            disk.len() as u64 / 512 - 1,
            OLD / 512 - 34,
            2,
            crc32(&disk[1024..1024 + ENTRIES as usize]),
        );
        disk[512..1024].copy_from_slice(&moved);
        assert!(grown(&disk).unwrap_err().contains("backup is damaged"));
        let header = table_header(
            &moved,
            disk.len() as u64 / 512 - 1,
            1,
            OLD / 512 - 34,
            entries.offset / 512,
            crc32(&disk[1024..1024 + ENTRIES as usize]),
        );
        disk.copy_within(1024..1024 + ENTRIES as usize, entries.offset as usize);
        let at = disk.len() - 512;
        disk[at..].copy_from_slice(&header);
        let growth = grown(&disk).unwrap().unwrap();
        let free: Vec<(u64, u64)> = growth.free.iter().map(|area| (area.offset, area.offset + area.length)).collect();
        assert_eq!(free, [(end, new)]);
        cuts(&disk, &growth);
    }

    /// Between two flushes a disk writes sectors in any order: each of a hundred choices of them leaves a whole first table, which grows to the same end.
    fn cuts(larger: &[u8], growth: &Growth) {
        let expected = labels(larger);
        let mut whole = larger.to_vec();
        carry_out(&mut whole, &growth.steps);
        assert_eq!(grown(&whole), Ok(None));
        let mut state = 1_u32;
        let mut before = larger.to_vec();
        for epoch in growth.steps.split(|step| *step == Step::Flush) {
            for round in 0..16 {
                let mut cut = before.clone();
                for step in epoch {
                    let Step::Write(piece) = step else { continue };
                    for (number, sector) in piece.bytes.chunks(512).enumerate() {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        if (state >> 16) % 16 <= round {
                            cut[piece.offset as usize + number * 512..][..512].copy_from_slice(sector);
                        }
                    }
                }
                // The first table alone is what a kernel looks at.
                let end = cut.len() - (64 << 10);
                let tail = cut.split_off(end);
                cut.resize(end + tail.len(), 0);
                assert_eq!(labels(&cut), expected, "{epoch:?}");
                cut.truncate(end);
                cut.extend(tail);
                let growth = grown(&cut).unwrap_or_else(|error| panic!("{error}: {epoch:?}"));
                if let Some(growth) = growth {
                    carry_out(&mut cut, &growth.steps);
                }
                let past = 2 * 512 + ENTRIES as usize;
                assert!(cut[..past] == whole[..past] && cut[end..] == whole[end..], "{epoch:?}");
            }
            carry_out(&mut before, epoch);
        }
    }

    #[test]
    fn whatever_a_power_cut_leaves_is_a_whole_first_table_and_growing_again_comes_to_the_same() {
        let size = OLD + (9 << 20);
        let steps = grown(&disk(size)).unwrap().unwrap().steps;
        let mut whole = disk(size);
        carry_out(&mut whole, &steps);
        assert_eq!(grown(&whole), Ok(None));
        let expected = labels(&whole);
        assert_eq!(expected.len(), 3);
        let outputs = |verify: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut file.as_file(), verify).unwrap();
            let output = std::process::Command::new("sgdisk")
                .arg("--verify")
                .arg(file.path())
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(outputs(&whole).contains("No problems found"), "{}", outputs(&whole));
        cuts(&disk(size), &grown(&disk(size)).unwrap().unwrap());
    }

    #[test]
    fn a_disk_that_grows_once_more_before_its_growth_is_complete_comes_to_its_end_too() {
        let steps = grown(&disk(OLD + (4 << 20))).unwrap().unwrap().steps;
        // The header that names the entries behind the old ones has been written.
        let mut twice = disk(OLD + (4 << 20));
        carry_out(&mut twice, &steps[..6]);
        twice.resize(OLD as usize + (9 << 20), 0);
        let first = grown(&twice).unwrap().unwrap();
        assert_eq!(first.to, first.from);
        carry_out(&mut twice, &first.steps);
        let second = grown(&twice).unwrap().unwrap();
        assert_eq!(second.to - second.from, 5 << 20);
        carry_out(&mut twice, &second.steps);
        assert_eq!(grown(&twice), Ok(None));
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic_or_write_outside_of_the_tables(at in 512_usize..1024 + (16 << 10), value in any::<u8>(), more in 0_u64..20) {
            let size = OLD + (more << 20);
            let mut disk = disk(size);
            disk[at] = value;
            if let Ok(Some(growth)) = grown(&disk) {
                prop_assert!(growth.to >= growth.from);
                for step in growth.steps {
                    if let Step::Write(piece) = step {
                        let end = piece.offset + piece.bytes.len() as u64;
                        prop_assert!(end <= 1 << 20 || (piece.offset >= size - (64 << 10) && end <= size));
                    }
                }
            }
        }
    }
}
