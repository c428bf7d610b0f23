//! ext2/3/4, XFS, btrfs, F2FS and bcachefs.

use std::io;

use super::source::{array, has, le32, le64, text, text16, uuid};
use super::{Kind, Signature, Source};

/// ext2, ext3, ext4 or an external journal. Layout and feature bits: Linux `fs/ext4/ext4.h`, `struct ext4_super_block`, at 1024.
///
/// Which of the three it is follows from the features that each driver supports: `EXT2_FEATURE_*_SUPP` and `EXT3_FEATURE_*_SUPP` in the
/// same header.
pub(super) fn ext(source: &Source<'_>) -> io::Result<Option<Signature>> {
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    // sparse superblocks, large files, directory trees
    const RO_COMPATIBLE: u32 = 0x7;
    // file types in directories, meta block groups
    const INCOMPATIBLE_2: u32 = 0x12;
    // … and a journal to be replayed
    const INCOMPATIBLE_3: u32 = 0x16;

    let Some(block) = source.bytes(1024, 1024)? else { return Ok(None) };
    if !has(&block, 0x38, &[0x53, 0xef]) {
        return Ok(None);
    }
    let (Some(compatible), Some(incompatible), Some(ro_compatible)) = (le32(&block, 0x5c), le32(&block, 0x60), le32(&block, 0x64)) else {
        return Ok(None);
    };
    let journal = compatible & HAS_JOURNAL != 0;
    let plain = ro_compatible & !RO_COMPATIBLE == 0;
    let kind = if incompatible & JOURNAL_DEVICE != 0 {
        Kind::ExtJournal
    } else if !journal && plain && incompatible & !INCOMPATIBLE_2 == 0 {
        Kind::Ext2
    } else if journal && plain && incompatible & !INCOMPATIBLE_3 == 0 {
        Kind::Ext3
    } else {
        Kind::Ext4
    };
    Ok(Some(Signature::new(kind, text(&block, 0x78, 16), uuid(&block, 0x68))))
}

/// XFS. Layout: Linux `fs/xfs/libxfs/xfs_format.h`, `struct xfs_dsb`, big-endian, at 0.
pub(super) fn xfs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(0, 512)? else { return Ok(None) };
    let block_size = array(&block, 4).map(u32::from_be_bytes).unwrap_or_default();
    let sane = block_size.is_power_of_two() && (512..=65536).contains(&block_size);
    Ok((has(&block, 0, b"XFSB") && sane).then(|| Signature::new(Kind::Xfs, text(&block, 108, 12), uuid(&block, 32))))
}

/// Btrfs. Layout: Linux `include/uapi/linux/btrfs_tree.h`, `struct btrfs_super_block`, at 64 KiB; its `num_devices` is at 136, its `dev_item` at 201.
pub(super) fn btrfs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(64 * 1024, 4096)? else {
        return Ok(None);
    };
    Ok(has(&block, 64, b"_BHRfS_M").then(|| Signature {
        device_uuid: uuid(&block, 267),
        devices: le64(&block, 136),
        ..Signature::new(Kind::Btrfs, text(&block, 299, 256), uuid(&block, 32))
    }))
}

/// F2FS. Layout: Linux `include/linux/f2fs_fs.h`, `struct f2fs_super_block`, at 1024.
pub(super) fn f2fs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    let Some(block) = source.bytes(1024, 1024)? else { return Ok(None) };
    let magic = has(&block, 0, &0xf2f5_2010_u32.to_le_bytes());
    Ok(magic.then(|| Signature::new(Kind::F2fs, text16(&block, 124, 512), uuid(&block, 108))))
}

/// bcachefs. Layout: bcachefs-tools `libbcachefs/bcachefs_format.h`, `struct bch_sb`, at 4096; the UUID for users is at 56, the number of this device among those
/// of the file system at 122, how many numbers were given at 123: that of a device that was taken out stays.
pub(super) fn bcachefs(source: &Source<'_>) -> io::Result<Option<Signature>> {
    const MAGIC: [u8; 16] = [
        0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
    ];
    let Some(block) = source.bytes(4096, 512)? else { return Ok(None) };
    Ok(has(&block, 24, &MAGIC).then(|| Signature {
        device_uuid: Some(block[122].to_string()),
        devices: Some(u64::from(block[123]).max(1)),
        ..Signature::new(Kind::Bcachefs, text(&block, 72, 32), uuid(&block, 56))
    }))
}
