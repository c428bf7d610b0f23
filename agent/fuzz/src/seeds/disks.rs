//! Disks, as their own tools make them.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use freshroot::device::probe::{ReadAt, signatures};

use super::{Sink, shell};
use crate::sparse::pack;

const MIB: u64 = 1 << 20;
/// Where superblocks stand in the head of a disk, which is read in one piece: offset and length.
const HEAD: [(u64, u64); 10] = [
    (0, 2048),
    (4086, 522),
    (8182, 10),
    (16374, 22),
    (32758, 10),
    (32768, 256),
    (65526, 10),
    (65536, 555),
    (512, 1024),
    (2048, 512),
];

/// Name, size in MiB, and what makes it.
const FILE_SYSTEMS: [(&str, u64, &str); 17] = [
    ("ext2", 4, "mkfs.ext2 -q -L cache {}"),
    ("ext4", 16, "mkfs.ext4 -q -L sixteen-letters- {}"),
    ("journal", 16, "mkfs.ext4 -q -O journal_dev {}"),
    ("xfs", 320, "mkfs.xfs -q -L twelve-bytes {}"),
    ("btrfs", 128, "mkfs.btrfs -q -L 'grüne platte' {}"),
    ("fat12", 1, "mkfs.vfat -F 12 -n TWELVE {}"),
    ("fat16", 16, "mkfs.vfat -F 16 -n OLD {} && fatlabel {} NEW"),
    ("fat32", 64, "mkfs.vfat -F 32 -n BOOT {}"),
    ("exfat", 16, "mkfs.exfat -L exgrün {}"),
    ("f2fs", 64, "mkfs.f2fs -q -l flash {}"),
    ("swap", 4, "mkswap -q -L swap {}"),
    ("swap-64k", 4, "mkswap -q -p 65536 {}"),
    (
        "luks1",
        20,
        "echo x | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 {}",
    ),
    (
        "luks2",
        20,
        "echo x | cryptsetup -q luksFormat --type luks2 --pbkdf-force-iterations 4 --pbkdf-memory 32 --label crypt {}",
    ),
    (
        "squashfs",
        0,
        "mkdir {}.d && echo x > {}.d/x && mksquashfs {}.d {} -noappend -quiet",
    ),
    (
        "ext4-and-swap",
        4,
        "mkfs.ext4 -q {} && printf SWAPSPACE2 | dd of={} bs=1 seek=4086 conv=notrunc status=none",
    ),
    ("nothing", 1, "true"),
];

/// A file that says where it was read.
struct Recorded<'a> {
    file: &'a File,
    places: RefCell<Vec<(u64, u64)>>,
}

impl ReadAt for Recorded<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = ReadAt::read_at(self.file, buffer, offset)?;
        self.places.borrow_mut().push((offset, length as u64));
        Ok(length)
    }
}

/// Of each image what the probe reads, and not all of the head.
pub(super) fn file_systems(sink: &mut Sink<'_>) -> Result<()> {
    for (name, mib, command) in FILE_SYSTEMS {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("image");
        let file = made(&path, mib, command)?;
        let size = file.metadata()?.len();
        let recorded = Recorded {
            file: &file,
            places: RefCell::default(),
        };
        signatures(&recorded, size)?;
        // The first read is that of the head.
        let beyond: Vec<(u64, u64)> = recorded
            .places
            .take()
            .into_iter()
            .skip(1)
            .map(|(offset, length)| (offset, length.min(4096)))
            .collect();
        sink.put("superblock", name, packed(&file, size, HEAD.into_iter().chain(beyond))?)?;
    }
    for (name, pieces) in MEMBERS {
        let mut image = vec![0; 600 << 10];
        for (at, bytes) in *pieces {
            image[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        sink.put("superblock", name, pack(&image, image.len() as u64))?;
    }
    Ok(())
}

/// Where bytes stand.
type Piece = (usize, &'static [u8]);

/// What no tool of the tests makes, by its documented layout (see `agent/src/device/probe`).
const MEMBERS: &[(&str, &[Piece])] = &[
    (
        "lvm",
        &[
            (512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0"),
            (536, b"LVM2 0010123456789abcdefghijABCDEFGHIJKL"),
        ],
    ),
    (
        "md-1.2",
        &[
            (4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
            (4112, b"0123456789abcdefhost:0"),
            (4240, b"\x08\0\0\0\0\0\0\0"),
        ],
    ),
    (
        "zfs",
        &[(16384, b"\x01\x01\0\0\0\0\0\0\0\0\0\x01"), (131072, b"\x0c\xb1\xba\0\0\0\0\0")],
    ),
    (
        "iso9660",
        &[(32768, b"\x01CD001\x01"), (32808, b"NIXOS                           ")],
    ),
    ("erofs", &[(1024, b"\xe2\xe1\xf5\xe0"), (1072, b"0123456789abcdefname")]),
    (
        // FAT32 whose root folder is one cluster of deleted entries, and then the same again.
        "fat32-in-a-circle",
        &[
            (0, b"\xeb"),
            (11, b"\0\x02\x08\xc8\0\x01"),
            (21, b"\xf8"),
            (36, b"\x01"),
            (44, b"\x02"),
            (510, b"\x55\xaa"),
            (102_408, b"\x02"),
            (102_912, &[0xe5; 4096]),
        ],
    ),
    (
        "bcachefs",
        &[
            (4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
            (4152, b"0123456789abcdeflabel"),
        ],
    ),
];

/// Whether sums are mended, sectors of 512 bytes, then the disk.
pub(super) fn tables(sink: &mut Sink<'_>) -> Result<()> {
    const TABLES: [(&str, u64, &str); 4] = [
        (
            "gpt",
            4,
            r#"printf 'label: gpt\n size=1MiB, name=disk-main-root, uuid=01234567-89AB-CDEF-0123-456789ABCDEF\n size=512KiB, name="grün"\n' | sfdisk -q {}"#,
        ),
        (
            "mbr",
            4,
            r"printf 'label: dos\nlabel-id: 0x12345678\n size=1MiB\n size=1MiB\n' | sfdisk -q {}",
        ),
        (
            "gpt-backup",
            4,
            r"printf 'label: gpt\n size=1MiB\n' | sfdisk -q {} && dd if=/dev/zero of={} bs=512 seek=1 count=1 conv=notrunc status=none",
        ),
        ("nothing", 1, "true"),
    ];
    for (name, mib, command) in TABLES {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("image");
        let file = made(&path, mib, command)?;
        let size = file.metadata()?.len();
        let disk = packed(&file, size, [(0, 4096), (size - 34 * 512, 34 * 512)])?;
        for mended in 0..2 {
            sink.put("partition_table", &format!("{name}-{mended}"), [&[mended, 0], &disk[..]].concat())?;
        }
    }
    Ok(())
}

fn made(path: &Path, mib: u64, command: &str) -> Result<File> {
    File::create(path)?.set_len(mib * MIB)?;
    shell(&command.replace("{}", path.to_str().context("a folder with an odd name")?))?;
    Ok(File::open(path)?)
}

/// Of an image only what lies in `places`.
fn packed(file: &File, size: u64, places: impl IntoIterator<Item = (u64, u64)>) -> Result<Vec<u8>> {
    let mut places: Vec<(u64, u64)> = places
        .into_iter()
        .filter(|(at, _)| *at < size)
        .map(|(at, length)| (at, at.saturating_add(length).min(size)))
        .collect();
    places.sort_unstable();
    let mut packed = size.to_le_bytes().to_vec();
    let mut done = 0;
    for (from, to) in places {
        let from = from.max(done);
        if from >= to {
            continue;
        }
        done = to;
        let mut bytes = vec![0; (to - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        // `pack` writes the size first, which stands there already, and offsets from the beginning of what it is given.
        let pieces = pack(&bytes, 0);
        let mut rest = &pieces[8..];
        while let Some((offset, more)) = rest.split_first_chunk::<8>() {
            let (length, more) = more.split_first_chunk::<2>().context("a piece without a length")?;
            let (piece, more) = more.split_at(u16::from_le_bytes(*length).into());
            packed.extend((u64::from_le_bytes(*offset) + from).to_le_bytes());
            packed.extend(length);
            packed.extend(piece);
            rest = more;
        }
    }
    Ok(packed)
}
