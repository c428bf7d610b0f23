//! What makes a device a part of something else: LUKS, LVM, MD, ZFS, bcache, dm-integrity, dm-verity.

use std::io;

use super::source::{array, dashed, has, le32, le64, text, uuid};
use super::{Kind, Signature, Source};

const SECTOR: u64 = 512;

/// LUKS 1 and 2. Layout: the LUKS1 and LUKS2 on-disk format specifications of cryptsetup; big-endian, at 0.
pub(super) fn luks(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(header) = source.bytes(0, 512)? else { return Ok(None) };
    if !has(&header, 0, b"LUKS\xba\xbe") {
        return Ok(None);
    }
    let label = match array(&header, 6).map(u16::from_be_bytes) {
        Some(1) => None,
        Some(2) => text(&header, 24, 48),
        Some(_) | None => return Ok(None),
    };
    Ok(Some(Signature::new(Kind::Luks, label, text(&header, 168, 40))))
}

/// A physical volume of LVM 2. Layout: LVM2 `lib/format_text/layout.h` and `lib/label/label.h`: a label in one of the first four sectors.
pub(super) fn lvm(source: &Source<'_>) -> io::Result<Option<Signature>> {
    for sector in 0..4 {
        let Some(label) = source.bytes(sector * SECTOR, 512)? else {
            return Ok(None);
        };
        if !has(&label, 0, b"LABELONE") || !has(&label, 24, b"LVM2 001") || le64(&label, 8) != Some(sector) {
            continue;
        }
        let id = le32(&label, 20).and_then(|at| text(&label, usize::try_from(at).unwrap_or(usize::MAX), 32));
        return Ok(Some(Signature::new(Kind::LvmMember, None, id.and_then(|id| lvm_uuid(&id)))));
    }
    Ok(None)
}

/// LVM writes its 32 characters as 6-4-4-4-4-4-6.
fn lvm_uuid(id: &str) -> Option<String> {
    if id.len() != 32 || !id.is_ascii() {
        return None;
    }
    let mut text = String::with_capacity(38);
    for (index, character) in id.chars().enumerate() {
        if matches!(index, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(character);
    }
    Some(text)
}

/// A member of a Linux software RAID. Layout: Linux `include/uapi/linux/raid/md_p.h`. Metadata 1.1 is at 0, 1.2 at 4 KiB, 1.0 and 0.90
/// near the end.
pub(super) fn md(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let sectors = source.size() / SECTOR;
    let late = sectors.checked_sub(16).map(|sector| sector & !7);
    for sector in [Some(0), Some(8), late].into_iter().flatten() {
        let Some(block) = source.bytes(sector * SECTOR, 256)? else {
            continue;
        };
        if has(&block, 0, &MD_MAGIC.to_le_bytes()) && le32(&block, 4) == Some(1) && le64(&block, 144) == Some(sector) {
            return Ok(Some(Signature::new(Kind::MdMember, text(&block, 32, 32), uuid(&block, 16))));
        }
    }
    md_0_90(source)
}

const MD_MAGIC: u32 = 0xa92b_4efc;

fn md_0_90(source: &Source<'_>) -> io::Result<Option<Signature>> {
    const RESERVED: u64 = 64 * 1024;
    let Some(at) = (source.size() & !(RESERVED - 1)).checked_sub(RESERVED) else {
        return Ok(None);
    };
    let Some(block) = source.bytes(at, 256)? else { return Ok(None) };
    // In the byte order of the machine that made it.
    let little = has(&block, 0, &MD_MAGIC.to_le_bytes());
    if !little && !has(&block, 0, &MD_MAGIC.to_be_bytes()) {
        return Ok(None);
    }
    let word = |at: usize| array(&block, at).map(|raw| if little { u32::from_le_bytes(raw) } else { u32::from_be_bytes(raw) });
    if word(4) != Some(0) || word(8) != Some(90) {
        return Ok(None);
    }
    let mut id = [0; 16];
    for (part, at) in id.chunks_exact_mut(4).zip([20, 52, 56, 60]) {
        // `blkid` and mdadm print the words as numbers.
        part.copy_from_slice(&word(at).unwrap_or_default().to_be_bytes());
    }
    Ok(Some(Signature::new(Kind::MdMember, None, Some(dashed(&id)))))
}

/// A device of a ZFS pool. Layout: OpenZFS `include/sys/vdev_impl.h`: label 0 is at 0, label 1 at 256 KiB; each has a packed name-value list at
/// 16 KiB and a ring of uberblocks at 128 KiB. Both are asked for, because an old uberblock outlives many a mkfs. Name and id of the
/// pool, which stand in the list, are not read.
pub(super) fn zfs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    const LABEL: u64 = 256 * 1024;
    const UBERBLOCK: u64 = 0x00ba_b10c;
    for label in [0, LABEL] {
        let Some(list) = source.bytes(label + 16 * 1024, 12)? else {
            return Ok(None);
        };
        // Encoding XDR, a byte order, two reserved bytes; then version 0 and «names are unique», both big-endian.
        let packed = list[0] == 1 && list[1] <= 1 && list[2..] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        if !packed {
            continue;
        }
        let Some(ring) = source.bytes(label + LABEL / 2, 128 * 1024)? else {
            return Ok(None);
        };
        if ring
            .chunks_exact(1024)
            .any(|slot| has(slot, 0, &UBERBLOCK.to_le_bytes()) || has(slot, 0, &UBERBLOCK.to_be_bytes()))
        {
            return Ok(Some(Signature::new(Kind::ZfsMember, None, None)));
        }
    }
    Ok(None)
}

/// A backing or cache device of bcache. Layout: Linux `drivers/md/bcache/bcache_ondisk.h`, `struct cache_sb_disk`, at 4096. Early bcachefs
/// used the same magic; it is then a member of something that this kernel cannot mount anyway.
pub(super) fn bcache(source: &Source<'_>) -> io::Result<Option<Signature>> {
    const MAGIC: [u8; 16] = [
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
    ];
    let Some(block) = source.bytes(4096, 512)? else { return Ok(None) };
    Ok(has(&block, 24, &MAGIC).then(|| Signature::new(Kind::BcacheMember, text(&block, 72, 32), uuid(&block, 40))))
}

/// What dm-integrity or dm-verity have on a device of their own. Layouts: Linux `drivers/md/dm-integrity.c`, `struct superblock`; `struct verity_sb` of
/// cryptsetup's `lib/verity/verity.c`; both at 0.
pub(super) fn device_mapper(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(0, 512)? else { return Ok(None) };
    if has(&block, 0, b"integrt\0") {
        return Ok(Some(Signature::new(Kind::IntegrityMember, None, None)));
    }
    let verity = has(&block, 0, b"verity\0\0") && le32(&block, 8) == Some(1);
    Ok(verity.then(|| Signature::new(Kind::VerityHash, None, uuid(&block, 16))))
}
