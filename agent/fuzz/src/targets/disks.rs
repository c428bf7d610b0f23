//! Superblocks and partition tables: what any disk may hold that somebody plugs in.

use freshroot::device::probe::{Content, Kind, Signature, probe, signatures, squashfs_superblock};
use freshroot::device::table::{GptEntry, Table, table};

use crate::Target;
use crate::input::{Input, told};
use crate::sparse::Sparse;

/// A disk (see `sparse.rs`).
pub const SUPERBLOCK: Target = Target {
    name: "superblock",
    longest: 8192,
    // Also the disk itself, where it is small.
    memory: 1024,
    check: superblock,
};

/// Whether its sums are mended first (u8), shift of its sectors' size over 512 bytes (u8), a disk (see `sparse.rs`).
pub const PARTITION_TABLE: Target = Target {
    name: "partition_table",
    longest: 8192,
    memory: 1024,
    check: partition_table,
};

/// Disks up to this size are also looked at in one piece.
const SMALL: u64 = 512 << 10;
/// What a look at any disk may read: the head, rings and labels of ZFS, two chains of folders of FAT. A disk that sends its readers around must not keep them.
const MOST_READ: u64 = 5 << 20;
/// A table: the record, two headers, two arrays of 256 entries of 512 bytes.
const MOST_TABLE: u64 = 512 + 2 * (512 + 256 * 512);

fn superblock(input: &[u8]) {
    let disk = Sparse::take(&mut Input(input));
    let found = signatures(&disk, disk.size).unwrap();
    assert!(disk.bytes_read() <= MOST_READ, "{} bytes were read", disk.bytes_read());
    assert_eq!(signatures(&disk, disk.size).unwrap(), found);
    for signature in &found {
        named(signature);
    }
    let content = probe(&disk, disk.size);
    told(&content);
    let hidden = |kind: Kind| kind.is_member() || kind == Kind::Luks;
    match &content {
        Content::Unknown => assert!(found.is_empty()),
        Content::Known(one) => {
            // One that hides others is the only one of its kind; else there is no other.
            assert!(found.contains(one));
            let others = found.iter().filter(|other| *other != one);
            assert!(others.clone().count() == 0 || (hidden(one.kind) && others.clone().all(|other| !hidden(other.kind))));
        }
        Content::Conflict(all) => assert!(all.len() > 1 && *all == found),
        Content::Unreadable(why) => panic!("a disk that can be read is not: {why}"),
    }
    if let Some(dense) = disk.dense(SMALL) {
        assert_eq!(probe(&&dense[..], disk.size), content);
        let squashfs = squashfs_superblock(&dense).is_some_and(|block| block.version.0 == 4);
        assert_eq!(squashfs, found.iter().any(|signature| signature.kind == Kind::Squashfs));
        // What the head alone shows is no more than what all of it shows: a disk that is cut is no error.
        assert!(signatures(&&dense[..dense.len() / 2], disk.size).is_ok());
    }
}

/// Names are what a person could have written: they are compared, printed, and stand in a report.
fn named(signature: &Signature) {
    told(signature);
    for name in [&signature.label, &signature.uuid, &signature.device_uuid].into_iter().flatten() {
        assert!(!name.is_empty() && !name.contains('\0') && !name.ends_with(' '), "{name:?}");
    }
    let several = matches!(signature.kind, Kind::Btrfs | Kind::Bcachefs);
    assert!(several || signature.device_uuid.is_none());
}

fn partition_table(input: &[u8]) {
    let mut input = Input(input);
    let mend = input.u8() & 1 == 1;
    let sector = 512_u32 << (input.u8() % 5);
    let disk = Sparse::take(&mut input);
    if mend {
        // The sums are computed here a second time: the two must agree, or the fuzzer never gets behind them.
        let Some(mended) = Mended::of(&disk, u64::from(sector)) else {
            return;
        };
        let disk = disk.with(mended.at, &mended.header).with(510, &[0x55, 0xaa]).with(450, &[0xee]);
        let found = look(&disk, sector);
        if disk.size < u64::MAX / 2 && mended.header[..8] == *b"EFI PART" {
            assert!(matches!(found, Some(Table::Gpt(_))), "a table that is whole is not read");
        }
    } else {
        look(&disk, sector);
    }
}

fn look(disk: &Sparse<'_>, sector: u32) -> Option<Table> {
    let found = table(disk, disk.size, sector).unwrap();
    assert!(disk.bytes_read() <= MOST_TABLE, "{} bytes were read", disk.bytes_read());
    match &found {
        None => {}
        Some(Table::Mbr(signature)) => {
            let uuid = found.as_ref().and_then(|table| table.uuid(1));
            assert_eq!(uuid, (*signature != 0).then(|| format!("{signature:08x}-01")));
        }
        Some(Table::Gpt(entries)) => {
            assert!(entries.len() <= 256 && entries.is_sorted_by(|a, b| a.number < b.number));
            for entry in entries {
                assert!((1..=256).contains(&entry.number));
                assert!(entry.uuid.len() == 36 && entry.uuid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')));
                assert!(entry.label.as_ref().is_none_or(|label| !label.is_empty() && !label.contains('\0')));
            }
            assert_eq!(written_anew(entries), *entries);
        }
    }
    found
}

/// The entries of a table that is written of these.
fn written_anew(entries: &[GptEntry]) -> Vec<GptEntry> {
    let count = entries.last().map_or(1, |entry| entry.number);
    let mut array = vec![0; count as usize * 128];
    for entry in entries {
        let at = (entry.number as usize - 1) * 128;
        let slot = &mut array[at..at + 128];
        slot[..16].fill(0x11);
        let hex: Vec<u8> = entry.uuid.bytes().filter(|byte| *byte != b'-').collect();
        let id: Vec<u8> = hex
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        // First three fields little-endian.
        for (place, from) in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].into_iter().enumerate() {
            slot[16 + place] = id[from];
        }
        slot[32..40].copy_from_slice(&entry.first.to_le_bytes());
        let units = entry.label.iter().flat_map(|label| label.encode_utf16()).flat_map(u16::to_le_bytes);
        slot[56..128].iter_mut().zip(units).for_each(|(byte, unit)| *byte = unit);
    }
    let mut disk = vec![0; (1024 + array.len()).next_multiple_of(512)];
    disk[450] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[1024..1024 + array.len()].copy_from_slice(&array);
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[24..32].copy_from_slice(&1_u64.to_le_bytes());
    header[72..80].copy_from_slice(&2_u64.to_le_bytes());
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(&array).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[512..604].copy_from_slice(&header);
    // A bit more or less, in the header or among the entries, and it is no table; there is no backup on this disk.
    for at in [520, 512 + 91, 1024 + 40] {
        let mut damaged = disk.clone();
        damaged[at] ^= 1;
        assert_eq!(
            table(&&damaged[..], disk.len() as u64, 512).unwrap(),
            None,
            "byte {at} may be anything"
        );
    }
    match table(&&disk[..], disk.len() as u64, 512).unwrap() {
        Some(Table::Gpt(entries)) => entries,
        other => panic!("a table that was written is {other:?}"),
    }
}

/// A primary header whose own number and sums are right, and whose array lies on the disk.
struct Mended {
    at: u64,
    header: Vec<u8>,
}

impl Mended {
    /// None where no header could be: what it says of itself is changed as little as possible.
    fn of(disk: &Sparse<'_>, sector: u64) -> Option<Self> {
        use freshroot::device::probe::ReadAt as _;
        let last = (disk.size / sector).checked_sub(1).filter(|last| *last >= 2)?;
        let mut header = vec![0; 512];
        disk.read_at(&mut header, sector).unwrap();
        let number = |bytes: &[u8], at: usize| Input(&bytes[at..]).u32();
        let length = (number(&header, 12) as usize).clamp(92, 512);
        header[12..16].copy_from_slice(&(length as u32).to_le_bytes());
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        let count = number(&header, 80).clamp(1, 256);
        let size = number(&header, 84).clamp(128, 512);
        let first = Input(&header[72..]).u64().min(last);
        header[72..80].copy_from_slice(&first.to_le_bytes());
        header[80..84].copy_from_slice(&count.to_le_bytes());
        header[84..88].copy_from_slice(&size.to_le_bytes());
        let mut array = vec![0; count as usize * size as usize];
        // The array may overlap the header and the record, which are about to change: such a table is nobody's.
        if first.checked_mul(sector)? < sector + 512 || disk.read_at(&mut array, first * sector).unwrap() != array.len() {
            return None;
        }
        header[88..92].copy_from_slice(&crc32(&array).to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(&header[..length]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        Some(Self { at: sector, header })
    }
}

/// CRC-32 of IEEE 802.3 by its table, as the parser has it bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes
        .iter()
        .fold(u32::MAX, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}
