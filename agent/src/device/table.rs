//! Partition tables: the names that they give their partitions.
//!
//! The kernel makes the partitions, and says their number and start. It does not say a partition's unique id before Linux 6.8, so the table
//! is read here again. GPT: UEFI specification 2.10, chapter 5. MBR: the disk signature at 440 and four entries at 446.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::io;

use super::probe::{ReadAt, array, dashed, has, le32, le64, read, text16};

/// Entries of a GPT that are read; 128 are usual. Linux itself takes no more than 256 (`block/partitions/check.h`).
const MOST_ENTRIES: u32 = 256;

/// The largest entry that is read, in bytes; 128 is usual.
const LARGEST_ENTRY: u32 = 512;

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// A GUID partition table.
    Gpt(Vec<GptEntry>),
    /// A master boot record with its disk signature. Its partitions have no labels; their ids are made of signature and number.
    Mbr(u32),
}

/// A partition of a GPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GptEntry {
    /// Counted from 1, as the kernel counts.
    pub number: u32,
    /// First sector, in logical sectors of the disk.
    pub first: u64,
    /// The unique id, in lower case.
    pub uuid: String,
    /// The name, if there is one.
    pub label: Option<String>,
}

impl Table {
    /// The partition's unique id as `PARTUUID=` names it.
    pub fn uuid(&self, number: u32) -> Option<String> {
        match self {
            Self::Gpt(entries) => entries.iter().find(|entry| entry.number == number).map(|entry| entry.uuid.clone()),
            Self::Mbr(0) => None,
            Self::Mbr(signature) => Some(format!("{signature:08x}-{number:02x}")),
        }
    }

    /// The partition's name as `PARTLABEL=` names it.
    pub fn label(&self, number: u32) -> Option<String> {
        match self {
            Self::Gpt(entries) => entries
                .iter()
                .find(|entry| entry.number == number)
                .and_then(|entry| entry.label.clone()),
            Self::Mbr(_) => None,
        }
    }
}

/// The partition table of a disk of `size` bytes with logical sectors of `sector` bytes, if it has one.
///
/// As in the kernel, a GPT counts only behind a protective MBR, and its backup at the end of the disk is asked where the primary one is damaged.
///
/// # Errors
/// Those of reading.
pub fn table(disk: &dyn ReadAt, size: u64, sector: u32) -> io::Result<Option<Table>> {
    const GPT_PROTECTIVE: u8 = 0xee;
    let record = read(disk, 0, 512)?;
    if !has(&record, 510, &[0x55, 0xaa]) {
        return Ok(None);
    }
    let kinds: Vec<u8> = (0..4).filter_map(|index| record.get(446 + 16 * index + 4).copied()).collect();
    if kinds.contains(&GPT_PROTECTIVE) {
        return gpt(disk, size, u64::from(sector)).map(|entries| entries.map(Table::Gpt));
    }
    let marks_are_sane = (0..4)
        .filter_map(|index| record.get(446 + 16 * index))
        .all(|mark| matches!(mark, 0x00 | 0x80));
    let is_mbr = marks_are_sane && kinds.iter().any(|kind| *kind != 0);
    Ok(if is_mbr { le32(&record, 440).map(Table::Mbr) } else { None })
}

fn gpt(disk: &dyn ReadAt, size: u64, sector: u64) -> io::Result<Option<Vec<GptEntry>>> {
    if !(512..=65536).contains(&sector) || !sector.is_power_of_two() {
        return Ok(None);
    }
    let Some(last) = (size / sector).checked_sub(1) else {
        return Ok(None);
    };
    for block in [1, last] {
        if let Some(entries) = gpt_at(disk, block, last, sector)? {
            return Ok(Some(entries));
        }
    }
    Ok(None)
}

/// The entries of the header in `block`, if both are intact.
fn gpt_at(disk: &dyn ReadAt, block: u64, last: u64, sector: u64) -> io::Result<Option<Vec<GptEntry>>> {
    let header = read(disk, block * sector, 512)?;
    let Some(array) = header_of(&header, block, last) else {
        return Ok(None);
    };
    let length = array.count as usize * array.entry_size as usize;
    let bytes = read(disk, array.first * sector, length)?;
    if bytes.len() != length || crc32(&bytes) != array.crc {
        return Ok(None);
    }
    Ok(Some(
        bytes
            .chunks_exact(array.entry_size as usize)
            .zip(1..)
            .filter_map(|(entry, number)| gpt_entry(entry, number))
            .collect(),
    ))
}

/// Where the entries are.
pub(crate) struct Array {
    /// Their first sector.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Bytes of each.
    pub entry_size: u32,
    /// Their checksum.
    pub crc: u32,
}

/// What an intact header says, which is that of sector `block`, on a disk whose last sector is `last`.
pub(crate) fn header_of(header: &[u8], block: u64, last: u64) -> Option<Array> {
    let size = usize::try_from(le32(header, 12)?).unwrap_or(usize::MAX);
    if !has(header, 0, b"EFI PART") || size < 92 || le64(header, 24)? != block {
        return None;
    }
    // The checksum is over the header with the checksum itself as zero.
    let mut bytes = header.get(..size)?.to_vec();
    bytes.get_mut(16..20)?.fill(0);
    if crc32(&bytes) != le32(header, 16)? {
        return None;
    }
    let array = Array {
        first: le64(header, 72)?,
        count: le32(header, 80)?,
        entry_size: le32(header, 84)?,
        crc: le32(header, 88)?,
    };
    let sane = array.first <= last && (1..=MOST_ENTRIES).contains(&array.count) && (128..=LARGEST_ENTRY).contains(&array.entry_size);
    sane.then_some(array)
}

/// CRC-32 of IEEE 802.3.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !Crc::new(0xedb8_8320).of(u32::MAX, bytes)
}

/// A checksum whose bits are counted from the lowest one. Its table is made when it is needed: the crates for it bring 16 KiB of tables along.
pub(crate) struct Crc([u32; 256]);

impl Crc {
    /// By its polynomial, reversed, of 32 bits or less.
    pub(crate) fn new(polynomial: u32) -> Self {
        let mut table = [0; 256];
        for (entry, byte) in table.iter_mut().zip(0_u32..) {
            *entry = (0..8).fold(byte, |crc, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ polynomial });
        }
        Self(table)
    }

    /// `crc` gone on with over `bytes`.
    pub(crate) fn of(&self, crc: u32, bytes: &[u8]) -> u32 {
        bytes
            .iter()
            .fold(crc, |crc, byte| (crc >> 8) ^ self.0[usize::from(crc.to_le_bytes()[0] ^ byte)])
    }
}

fn gpt_entry(entry: &[u8], number: u32) -> Option<GptEntry> {
    let used = array::<16>(entry, 0)? != [0; 16];
    let mut id: [u8; 16] = array(entry, 16)?;
    // A GUID's first three fields are little-endian.
    id[..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    let first = le64(entry, 32)?;
    used.then(|| GptEntry {
        number,
        first,
        uuid: dashed(&id),
        label: text16(entry, 56, 72),
    })
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::disallowed_methods,
        clippy::disallowed_types
    )]
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    const SIZE: usize = 8 * 1024 * 1024;

    /// A disk that sfdisk partitioned by `script`.
    fn disk(script: &str) -> (tempfile::NamedTempFile, Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE as u64).unwrap();
        let mut sfdisk = Command::new("sfdisk")
            .args(["--quiet", "--no-reread"])
            .arg(file.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("this test needs sfdisk (package fdisk)");
        sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success(), "sfdisk failed");
        let bytes = std::fs::read(file.path()).unwrap();
        (file, bytes)
    }

    fn gpt_disk() -> (tempfile::NamedTempFile, Vec<u8>) {
        disk(
            "label: gpt\nfirst-lba: 64\nstart=64, size=2048, name=disk-main-boot, uuid=8C3B5A1E-92B1-4D7E-9E0B-0F4E0C7A1D11\n\
             start=4096, size=2048, name=\"Grüne Daten\"\n9 : start=8000, size=100\n",
        )
    }

    fn read_table(bytes: &[u8]) -> Option<Table> {
        table(&bytes, bytes.len() as u64, 512).unwrap()
    }

    /// What blkid says of the partition that begins at `sector`.
    fn blkid(file: &tempfile::NamedTempFile, sector: u64) -> String {
        let output = Command::new("partx")
            .args(["--raw", "--noheadings", "--bytes", "-o", "START,NR,UUID,NAME"])
            .arg(file.path())
            .output()
            .expect("this test needs partx (package util-linux)");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .find(|line| line.starts_with(&format!("{sector} ")))
            .unwrap_or_else(|| panic!("no {sector} in {text}"))
            .to_owned()
    }

    #[test]
    fn a_gpt_names_its_partitions_as_libblkid_does() {
        let (file, bytes) = gpt_disk();
        let Some(Table::Gpt(entries)) = read_table(&bytes) else {
            panic!("no GPT")
        };
        assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 9]);
        for entry in &entries {
            let label = entry.label.clone().unwrap_or_default();
            let escaped: String = label
                .bytes()
                .map(|byte| {
                    if byte == b' ' || byte > 126 {
                        format!("\\x{byte:02x}")
                    } else {
                        char::from(byte).to_string()
                    }
                })
                .collect();
            assert_eq!(
                blkid(&file, entry.first).trim_end(),
                format!("{} {} {} {escaped}", entry.first, entry.number, entry.uuid).trim_end()
            );
        }
        assert_eq!(entries[0].uuid, "8c3b5a1e-92b1-4d7e-9e0b-0f4e0c7a1d11");
        assert_eq!(entries[1].label.as_deref(), Some("Grüne Daten"));
    }

    #[test]
    fn an_mbr_names_partitions_by_signature_and_number_as_libblkid_does() {
        let (file, bytes) =
            disk("label: dos\nlabel-id: 0x1a2b3c0d\nstart=64, size=2048\nstart=4096, size=4096, type=5\nstart=4200, size=512\n");
        let table = read_table(&bytes).expect("no MBR");
        assert_eq!(table, Table::Mbr(0x1a2b_3c0d));
        for (start, number) in [(64, 1), (4096, 2), (4200, 5)] {
            assert_eq!(
                blkid(&file, start).trim_end(),
                format!("{start} {number} {}", table.uuid(number).unwrap())
            );
        }
        assert_eq!(table.label(1), None);
    }

    #[test]
    fn a_damaged_primary_table_is_replaced_by_its_backup() {
        let (_file, intact) = gpt_disk();
        let names = read_table(&intact);
        for damage in [512, 512 + 40, 1024 + 60] {
            let mut bytes = intact.clone();
            bytes[damage] ^= 0xff;
            assert_eq!(read_table(&bytes), names, "damaged at {damage}");
        }
    }

    #[test]
    fn a_gpt_damaged_twice_or_without_its_protective_mbr_is_none() {
        let (_file, intact) = gpt_disk();
        let mut twice = intact.clone();
        twice[512] ^= 0xff;
        twice[SIZE - 512] ^= 0xff;
        assert_eq!(read_table(&twice), None);
        let mut unprotected = intact;
        unprotected[446..510].fill(0);
        assert_eq!(read_table(&unprotected), None);
    }

    #[test]
    fn a_boot_sector_of_a_file_system_is_no_partition_table() {
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(read_table(&sector), None);
        sector[446..510].fill(b'x');
        assert_eq!(read_table(&sector), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn any_header_behind_a_protective_mbr_is_read_without_panic(
            header in prop::collection::vec(any::<u8>(), 100), size in 0_u32..600, count in any::<u32>(), entry_size in any::<u32>(),
            first in any::<u64>(), honest in any::<bool>(), length in 0_usize..4096, sector in prop::sample::select(vec![0, 1, 512, 4096, u32::MAX])
        ) {
            let mut bytes = vec![0; 4096];
            bytes[450] = 0xee;
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            bytes[512..612].copy_from_slice(&header);
            bytes[512..520].copy_from_slice(b"EFI PART");
            bytes[524..528].copy_from_slice(&size.to_le_bytes());
            bytes[536..544].copy_from_slice(&1_u64.to_le_bytes());
            bytes[584..592].copy_from_slice(&first.to_le_bytes());
            bytes[592..596].copy_from_slice(&count.to_le_bytes());
            bytes[596..600].copy_from_slice(&entry_size.to_le_bytes());
            if honest {
                bytes[528..532].fill(0);
                let crc = crc32(&bytes[512..512 + size as usize]);
                bytes[528..532].copy_from_slice(&crc.to_le_bytes());
            }
            bytes.truncate(length);
            table(&bytes.as_slice(), length as u64, sector).unwrap();
            table(&bytes.as_slice(), u64::MAX, sector).unwrap();
        }
    }
}
