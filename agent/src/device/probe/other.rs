//! Swap and hibernation images, and read-only or foreign file systems.

use std::io;

use super::source::{has, le16, le32, le64, text, uuid};
use super::{Kind, Signature, Source};

/// Swap space, or a hibernated system in it. Layout: Linux `include/linux/swap.h`, `union swap_header`, whose magic ends the first page (4 to 64 KiB
/// by machine); the magics of hibernation: `kernel/power/swap.c` (`HIBERNATE_SIG`) and uswsusp in its place; TuxOnIce leaves the header as it is, and has
/// its own at 0.
pub(super) fn swap(source: &Source<'_>) -> io::Result<Option<Signature>> {
    const SUSPENDED: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
    const TUX_ON_ICE: [u8; 8] = *b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c";
    for page in [4096_u64, 8192, 16384, 32768, 65536] {
        let Some(magic) = source.bytes(page - 10, 10)? else {
            return Ok(None);
        };
        let is_swap = *magic == *b"SWAPSPACE2" || *magic == *b"SWAP-SPACE";
        let suspended = SUSPENDED.iter().any(|suspended| magic.starts_with(suspended));
        if !is_swap && !suspended {
            continue;
        }
        let Some(header) = source.bytes(1024, 44)? else { return Ok(None) };
        let kind = if suspended || source.bytes(0, 8)?.is_some_and(|start| *start == TUX_ON_ICE) {
            Kind::Hibernation
        } else {
            Kind::Swap
        };
        return Ok(Some(Signature::new(kind, text(&header, 28, 16), uuid(&header, 12))));
    }
    Ok(None)
}

/// What the superblock of a squashfs says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquashfsSuperblock {
    /// Major and minor version; 4.0 is the only one that Linux mounts.
    pub version: (u16, u16),
    /// Bytes used. The file is padded to 4 KiB after them.
    pub bytes_used: u64,
}

/// Reads the 96-byte superblock of a squashfs. Layout: Linux `fs/squashfs/squashfs_fs.h`, `struct squashfs_super_block`, little-endian.
/// `None` if `bytes` are too few or do not begin with `hsqs`.
pub fn squashfs_superblock(bytes: &[u8]) -> Option<SquashfsSuperblock> {
    let block = bytes.first_chunk::<96>().filter(|block| block.starts_with(b"hsqs"))?;
    Some(SquashfsSuperblock {
        version: (le16(block, 28)?, le16(block, 30)?),
        bytes_used: le64(block, 40)?,
    })
}

/// Squashfs 4; it has neither label nor UUID.
pub(super) fn squashfs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(0, 96)? else { return Ok(None) };
    let four = squashfs_superblock(&block).is_some_and(|superblock| superblock.version.0 == 4);
    Ok(four.then(|| Signature::new(Kind::Squashfs, None, None)))
}

/// EROFS. Layout: Linux `fs/erofs/erofs_fs.h`, `struct erofs_super_block`, at 1024.
pub(super) fn erofs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(1024, 128)? else { return Ok(None) };
    let magic = le32(&block, 0) == Some(0xe0f5_e1e2);
    Ok(magic.then(|| Signature::new(Kind::Erofs, text(&block, 64, 16), uuid(&block, 48))))
}

/// ISO 9660. Layout: ECMA-119, primary volume descriptor, at 32 KiB. The date that `blkid` prints as UUID is not read.
pub(super) fn iso9660(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(32 * 1024, 2048)? else {
        return Ok(None);
    };
    Ok(has(&block, 0, b"\x01CD001").then(|| Signature::new(Kind::Iso9660, text(&block, 40, 32), None)))
}

/// NTFS. Layout: Linux `fs/ntfs3/ntfs.h`, `struct NTFS_BOOT`, at 0. The label, which is a file, is not read.
pub(super) fn ntfs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(0, 512)? else { return Ok(None) };
    let magic = has(&block, 3, b"NTFS    ") && has(&block, 510, &[0x55, 0xaa]);
    Ok(magic.then(|| Signature::new(Kind::Ntfs, None, le64(&block, 0x48).map(|serial| format!("{serial:016X}")))))
}
