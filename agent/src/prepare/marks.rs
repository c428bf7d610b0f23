//! What gives the kind of a disk's content away besides the superblocks that `device::probe` reads: copies, tables, members of foreign arrays.
//!
//! A blank disk is told by its zeros, not by this list. The list is for the message: a person wants to know *what* is on the disk. Offsets and magics are
//! those of the formats' own headers, as libblkid and the kernel have them too.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::io;

use crate::device::probe::{ReadAt, read};

/// Something that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What it is.
    pub what: &'static str,
    /// Where.
    pub offset: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.what, self.offset)
    }
}

/// Where a magic stands.
#[derive(Debug, Clone, Copy)]
enum At {
    /// So many bytes from the beginning.
    Start(u64),
    /// So many bytes before the end.
    End(u64),
    /// So many bytes before the last multiple of the second number, then so many on.
    EndOf(u64, u64, u64),
}
use At::{End, EndOf, Start};

/// Name, place and magic.
const MARKS: [(&str, At, &[u8]); 68] = [
    ("a boot sector or MBR", Start(510), b"\x55\xaa"),
    ("a GPT", Start(512), b"EFI PART"),
    ("a GPT", Start(4096), b"EFI PART"),
    ("the backup of a GPT", End(512), b"EFI PART"),
    ("the backup of a GPT", End(4096), b"EFI PART"),
    ("BSD disklabel", Start(512), b"\x57\x45\x56\x82"),
    ("Apple partition map", Start(0), b"ER"),
    ("ZFS label", EndOf(512 << 10, 256 << 10, 128 << 10), b"\x0c\xb1\xba\x00"),
    ("ZFS label", EndOf(256 << 10, 256 << 10, 128 << 10), b"\x0c\xb1\xba\x00"),
    (
        "ZFS label",
        EndOf(512 << 10, 256 << 10, 128 << 10),
        b"\x00\x00\x00\x00\x00\xba\xb1\x0c",
    ),
    (
        "ZFS label",
        EndOf(256 << 10, 256 << 10, 128 << 10),
        b"\x00\x00\x00\x00\x00\xba\xb1\x0c",
    ),
    ("header of LUKS 2 (second)", Start(0x4000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x8000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x1_0000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x2_0000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x4_0000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x8_0000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x10_0000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x20_0000), b"SKUL\xba\xbe"),
    ("header of LUKS 2 (second)", Start(0x40_0000), b"SKUL\xba\xbe"),
    ("BitLocker", Start(3), b"-FVE-FS-"),
    ("ReFS", Start(3), b"ReFS\0"),
    ("backup of NTFS's boot sector", End(509), b"NTFS    "),
    ("backup of exFAT's boot sector", Start(12 * 512 + 3), b"EXFAT   "),
    ("copy of ext's superblock", Start((8 << 20) + 1024 + 56), b"\x53\xef"),
    ("copy of ext's superblock", Start((32 << 20) + 56), b"\x53\xef"),
    ("copy of ext's superblock", Start((128 << 20) + 56), b"\x53\xef"),
    ("copy of btrfs's superblock", Start((64 << 20) + 64), b"_BHRfS_M"),
    ("copy of btrfs's superblock", Start((256 << 30) + 64), b"_BHRfS_M"),
    ("copy of F2FS's superblock", Start(4096 + 1024), b"\x10\x20\xf5\xf2"),
    ("ReiserFS", Start((64 << 10) + 52), b"ReIsEr"),
    ("ReiserFS", Start((8 << 10) + 52), b"ReIsEr"),
    ("JFS", Start(32 << 10), b"JFS1"),
    ("NILFS", Start(1024 + 6), b"\x34\x34"),
    ("copy of NILFS's superblock", EndOf(4096, 4096, 6), b"\x34\x34"),
    ("OCFS2", Start(1024), b"OCFSV2"),
    ("OCFS2", Start(2048), b"OCFSV2"),
    ("OCFS2", Start(4096), b"OCFSV2"),
    ("OCFS2", Start(8192), b"OCFSV2"),
    ("GFS2", Start(64 << 10), b"\x01\x16\x19\x70"),
    ("HFS+", Start(1024), b"H+"),
    ("HFS+", Start(1024), b"HX"),
    ("HFS", Start(1024), b"BD"),
    ("copy of HFS+'s header", End(1024), b"H+"),
    ("APFS", Start(32), b"NXSB"),
    ("UFS", Start((64 << 10) + 1372), b"\x19\x01\x54\x19"),
    ("UFS", Start((8 << 10) + 1372), b"\x54\x19\x01\x00"),
    ("UDF", Start((32 << 10) + 1), b"BEA01"),
    ("cramfs", Start(0), b"\x45\x3d\xcd\x28"),
    ("VMFS volume", Start(1 << 20), b"\x0d\xd0\x01\xc0"),
    ("VMFS", Start(2 << 20), b"\x5e\xf1\xab\x2f"),
    ("DRBD", EndOf(4096, 4096, 60), b"\x83\x74\x02\x6b"),
    ("DRBD", EndOf(4096, 4096, 60), b"\x83\x74\x02\x6d"),
    ("DRBD", EndOf(4096, 4096, 60), b"\x83\x74\x02\x67"),
    ("Oracle ASM", Start(32), b"ORCLDISK"),
    ("Stratis", Start(512 + 4), b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("VDO", Start(0), b"dmvdo001"),
    ("dm-integrity", Start(0), b"integrt\0"),
    ("dm-verity", Start(0), b"verity\0\0"),
    ("Ceph BlueStore", Start(0), b"bluestore block device"),
    ("snapshot of LVM", Start(0), b"SnAp"),
    ("firmware RAID of Intel", End(1024), b"Intel Raid ISM Cfg Sig. "),
    ("firmware RAID (DDF)", End(512), b"\xde\x11\xde\x11"),
    ("firmware RAID (DDF)", End(512), b"\x11\xde\x11\xde"),
    ("firmware RAID of Adaptec", End(512), b"DPTM"),
    ("firmware RAID of NVIDIA", End(1024), b"NVIDIA"),
    ("firmware RAID of Promise", End(63 * 512), b"Promise Technology, Inc."),
    ("a mark of minix", Start(1024 + 16), b"\x8f\x13"),
];

impl At {
    /// The offset on a disk of `size` bytes, if it is on it.
    fn offset(self, size: u64) -> Option<u64> {
        match self {
            Start(offset) => Some(offset),
            End(before) => size.checked_sub(before),
            EndOf(before, unit, on) => (size - size % unit).checked_sub(before).map(|at| at + on),
        }
    }
}

/// All that is recognised on `image`, which is `size` bytes long, each once.
///
/// # Errors
/// Those of reading.
pub fn marks(image: &dyn ReadAt, size: u64) -> io::Result<Vec<Mark>> {
    let mut found: Vec<Mark> = Vec::new();
    for (what, at, magic) in MARKS {
        let Some(offset) = at.offset(size).filter(|offset| offset.saturating_add(magic.len() as u64) <= size) else {
            continue;
        };
        if read(image, offset, magic.len())? == magic && !found.iter().any(|mark| mark.what == what) {
            found.push(Mark { what, offset });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_mark_is_found_where_it_stands_and_a_zero_disk_has_none() {
        const SIZE: u64 = 2 << 20;
        let mut disk = vec![0; SIZE as usize];
        assert_eq!(marks(&disk.as_slice(), SIZE).unwrap(), []);
        for (what, at, magic) in MARKS {
            let Some(offset) = at.offset(SIZE).filter(|offset| offset + magic.len() as u64 <= SIZE) else {
                continue;
            };
            let range = offset as usize..offset as usize + magic.len();
            disk[range.clone()].copy_from_slice(magic);
            let found = marks(&disk.as_slice(), SIZE).unwrap();
            assert!(found.contains(&Mark { what, offset }), "{what}: {found:?}");
            disk[range].fill(0);
        }
        assert_eq!(marks(&[].as_slice(), 0).unwrap(), []);
    }
}
