//! Real images, made by the tools of each format and compared with `blkid`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::device::DeviceName;

const MIB: u64 = 1024 * 1024;

/// A file of `size` MiB on which `command` was run; `{}` stands for its path.
fn made(size: u64, command: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(size * MIB).unwrap();
    run(&path, command);
    (folder, path)
}

fn run(path: &Path, command: &str) {
    let command = command.replace("{}", path.to_str().unwrap());
    let mut shell = Command::new("sh");
    // Labels are not ASCII alone, and mkfs.exfat refuses them in the C locale.
    let output = shell.env("LC_ALL", "C.UTF-8").args(["-c", &command]).output().unwrap();
    assert!(
        output.status.success(),
        "this test needs «{command}» to work: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn found(path: &Path) -> Content {
    probe(&File::open(path).unwrap(), fs::metadata(path).unwrap().len())
}

/// What blkid says: type, label and UUID. The latter two are read as the udev links that they would become.
fn blkid(path: &Path) -> (String, Option<DeviceName>, Option<DeviceName>) {
    let output = Command::new("blkid")
        .args(["-p", "-o", "udev"])
        .arg(path)
        .output()
        .expect("this test needs blkid (package util-linux)");
    let text = String::from_utf8(output.stdout).unwrap();
    let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let link = |folder: &str, key: &str| fields.get(key).map(|link| format!("/dev/disk/{folder}/{link}").parse().unwrap());
    let kind = fields
        .get("ID_FS_TYPE")
        .unwrap_or_else(|| panic!("blkid knows nothing of {}: {text}", path.display()));
    (
        (*kind).to_owned(),
        link("by-label", "ID_FS_LABEL_ENC"),
        link("by-uuid", "ID_FS_UUID_ENC"),
    )
}

/// Asserts that we and blkid see the same.
fn same_as_blkid(path: &Path) -> Signature {
    let content = found(path);
    let signature = content.signature().unwrap_or_else(|| panic!("{content}")).clone();
    let names = (
        signature.label.clone().map(DeviceName::Label),
        signature.uuid.clone().map(DeviceName::Uuid),
    );
    assert_eq!((signature.kind.name().to_owned(), names.0, names.1), blkid(path));
    signature
}

#[test]
fn file_systems_are_seen_as_blkid_sees_them() {
    let cases = [
        (Kind::Ext2, 4, "mkfs.ext2 -q -L cache {}", Some("cache")),
        (Kind::Ext3, 16, "mkfs.ext3 -q -L 'my cache' {}", Some("my cache")),
        (Kind::Ext4, 16, "mkfs.ext4 -q -L sixteen-letters- {}", Some("sixteen-letters-")),
        (Kind::Ext4, 16, "mkfs.ext4 -q {}", None),
        (
            Kind::Ext4,
            16,
            "mkfs.ext4 -q -O ^has_journal -b 1024 -L nojournal {}",
            Some("nojournal"),
        ),
        (Kind::ExtJournal, 16, "mkfs.ext4 -q -O journal_dev {}", None),
        (Kind::Xfs, 320, "mkfs.xfs -q -L twelve-bytes {}", Some("twelve-bytes")),
        (Kind::Btrfs, 128, "mkfs.btrfs -q -L 'grüne platte' {}", Some("grüne platte")),
        (Kind::Vfat, 1, "mkfs.vfat -F 12 -n TWELVE {}", Some("TWELVE")),
        (Kind::Vfat, 16, "mkfs.vfat -F 16 -n 'A B' {}", Some("A B")),
        (Kind::Vfat, 64, "mkfs.vfat -F 32 -n BOOT {}", Some("BOOT")),
        (Kind::Vfat, 64, "mkfs.vfat -F 32 -S 4096 -n SECTORS {}", Some("SECTORS")),
        (Kind::Vfat, 64, "mkfs.vfat -F 32 {}", None),
        (Kind::F2fs, 64, "mkfs.f2fs -q -l flash {}", Some("flash")),
        (Kind::Exfat, 16, "mkfs.exfat -L exgrün {}", Some("exgrün")),
        (Kind::Exfat, 16, "mkfs.exfat {}", None),
        (Kind::Swap, 4, "mkswap -q -L swap {}", Some("swap")),
        (Kind::Swap, 4, "mkswap -q -p 65536 {}", None),
        (
            Kind::Luks,
            20,
            "echo x | cryptsetup -q luksFormat --type luks2 --pbkdf-force-iterations 4 --pbkdf-memory 32 --label crypt {}",
            Some("crypt"),
        ),
        (
            Kind::Luks,
            20,
            "echo x | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 {}",
            None,
        ),
    ];
    for (kind, size, command, label) in cases {
        let (_folder, path) = made(size, command);
        let signature = same_as_blkid(&path);
        assert_eq!((signature.kind, signature.label.as_deref()), (kind, label), "{command}");
    }
}

#[test]
fn a_label_that_fatlabel_changed_is_that_of_the_root_folder() {
    let (_folder, path) = made(64, "mkfs.vfat -F 32 -n OLD {} && fatlabel {} NEW");
    assert_eq!(same_as_blkid(&path).label.as_deref(), Some("NEW"));
    let (_folder, path) = made(16, "mkfs.vfat -F 16 -n OLD {} && fatlabel {} NEW");
    assert_eq!(same_as_blkid(&path).label.as_deref(), Some("NEW"));
}

#[test]
fn a_squashfs_says_its_version_and_length() {
    let (_folder, path) = made(0, "mkdir {}.d && echo x > {}.d/x && mksquashfs {}.d {} -noappend -quiet");
    assert_eq!(same_as_blkid(&path).kind, Kind::Squashfs);
    let bytes = fs::read(&path).unwrap();
    let superblock = squashfs_superblock(&bytes).unwrap();
    assert_eq!(
        (superblock.version, superblock.bytes_used.next_multiple_of(4096)),
        ((4, 0), bytes.len() as u64)
    );
    assert_eq!(squashfs_superblock(&bytes[..95]), None);
}

#[test]
fn the_devices_of_a_btrfs_share_its_uuid_and_have_their_own() {
    let (_folder, path) = made(128, "truncate -s 128M {}.2 && mkfs.btrfs -q -L pool {} {}.2");
    let (first, second) = (same_as_blkid(&path), same_as_blkid(&path.with_extension("2")));
    assert_eq!((&first.uuid, &first.label), (&second.uuid, &second.label));
    assert!(first.device_uuid.is_some() && first.device_uuid != second.device_uuid);
}

/// Writes `bytes` at `offset`.
fn write(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// A superblock of MD metadata 1.x for `sector`, as `struct mdp_superblock_1` has it, with a correct checksum.
fn md_1(sector: u64) -> Vec<u8> {
    let mut block = vec![0; 256];
    block[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    block[4] = 1;
    block[16..32].copy_from_slice(&[0x5a; 16]);
    block[32..42].copy_from_slice(b"host:cache");
    block[144..152].copy_from_slice(&sector.to_le_bytes());
    let words = block
        .chunks_exact(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())));
    let sum: u64 = words.sum();
    let checksum = u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).unwrap();
    block[216..220].copy_from_slice(&checksum.to_le_bytes());
    block
}

#[test]
fn a_member_of_a_raid_shadows_the_file_system_beneath_it() {
    let size = 16 * MIB;
    for sector in [0, 8, (size / 512 - 16) & !7] {
        let (_folder, path) = made(16, "mkfs.ext4 -q -L cache {}");
        write(&path, sector * 512, &md_1(sector));
        let signature = same_as_blkid(&path);
        assert_eq!((signature.kind, signature.label.as_deref()), (Kind::MdMember, Some("host:cache")));
        assert_eq!(
            signatures(&File::open(&path).unwrap(), size).unwrap().len(),
            2,
            "the file system is there too"
        );
        assert_eq!(found(&path).signature().map(|signature| signature.kind), Some(Kind::MdMember));
    }
}

#[test]
fn a_raid_superblock_of_version_0_90_is_found_at_the_end() {
    let (_folder, path) = made(16, "mkfs.ext4 -q -L cache {}");
    let mut block = vec![0; 4096];
    for (at, word) in [
        (0, 0xa92b_4efc),
        (8, 90),
        (20, 0x0102_0304),
        (52, 0x0506_0708),
        (56, 0x090a_0b0c),
        (60, 0x0d0e_0f10_u32),
    ] {
        block[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    write(&path, 16 * MIB - 64 * 1024, &block);
    assert_eq!(same_as_blkid(&path).uuid.as_deref(), Some("01020304-0506-0708-090a-0b0c0d0e0f10"));
}

#[test]
fn a_physical_volume_of_lvm_is_a_member() {
    let (_folder, path) = made(16, "true");
    let mut label = vec![0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"abcdefGHIJklmnOPQRstuvWXYZ012345");
    write(&path, 512, &label);
    assert_eq!(found(&path).to_string(), "LVM2_member UUID=abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345");
}

#[test]
fn a_device_of_a_pool_or_of_bcache_is_a_member() {
    let (_folder, path) = made(16, "true");
    write(&path, 16 * 1024, &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(found(&path), Content::Unknown, "a list without an uberblock");
    write(&path, 128 * 1024 + 7 * 1024, &0x00ba_b10c_u64.to_le_bytes());
    assert_eq!(found(&path).signature().map(|signature| signature.kind), Some(Kind::ZfsMember));

    let (_folder, path) = made(16, "true");
    write(
        &path,
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    );
    assert_eq!(found(&path).signature().map(|signature| signature.kind), Some(Kind::BcacheMember));
    write(
        &path,
        4096 + 24,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    );
    write(&path, 4096 + 122, &[2, 4]);
    let signature = found(&path).signature().cloned().unwrap();
    assert_eq!(
        (signature.kind, signature.device_uuid.as_deref(), signature.devices),
        (Kind::Bcachefs, Some("2"), Some(4))
    );
}

#[test]
fn a_hibernated_system_is_not_mere_swap() {
    // The kernel's own, uswsusp's, and TuxOnIce's, which stands in another place.
    for (at, magic) in [
        (4086, &b"S1SUSPEND\0"[..]),
        (4086, b"S2SUSPEND\0"),
        (4086, b"ULSUSPEND\0"),
        (4086, b"LINHIB0001"),
        (0, b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"),
    ] {
        let (_folder, path) = made(4, "mkswap -q -L sleep {}");
        write(&path, at, magic);
        let signature = found(&path).signature().cloned().unwrap();
        assert_eq!((signature.kind, signature.label.as_deref()), (Kind::Hibernation, Some("sleep")));
        assert!(!signature.kind.is_file_system());
        assert_eq!(blkid(&path).0, "swsuspend", "{magic:?}");
    }
}

#[test]
fn devices_of_dm_integrity_and_dm_verity_are_members() {
    // Old superblocks of a file system may be left behind both.
    let cases = [
        (&b"integrt\0\x04"[..], Kind::IntegrityMember, "DM_integrity"),
        (b"verity\0\0\x01\0\0\0", Kind::VerityHash, "DM_verity_hash"),
    ];
    for (bytes, kind, name) in cases {
        let (_folder, path) = made(4, "mkfs.ext4 -q {}");
        write(&path, 0, bytes);
        let signature = found(&path).signature().cloned().unwrap();
        assert_eq!((signature.kind, signature.kind.name()), (kind, name));
        assert!(kind.is_member());
    }
    let (_folder, path) = made(4, "true");
    write(&path, 0, b"verity\0\0\x01\0\0\0\x01\0\0\0abcdefghijklmnop");
    assert!(same_as_blkid(&path).uuid.is_some());
    let (_folder, path) = made(4, "true");
    write(&path, 0, b"integrt\0\x01");
    assert_eq!(blkid(&path).0, "DM_integrity");
}

#[test]
fn old_and_new_signatures_side_by_side_are_a_conflict() {
    let (_folder, path) = made(128, "mkfs.btrfs -q -L old {}");
    let (_other, ext4) = made(16, "mkfs.ext4 -q -L new {}");
    write(&path, 1024, &fs::read(ext4).unwrap()[1024..2048]);
    let Content::Conflict(all) = found(&path) else {
        panic!("{}", found(&path))
    };
    assert_eq!(
        all.iter().map(|signature| signature.kind).collect::<Vec<_>>(),
        [Kind::Ext4, Kind::Btrfs]
    );
}

#[test]
fn what_cannot_be_read_says_why() {
    struct Broken;
    impl ReadAt for Broken {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    assert_eq!(probe(&Broken, MIB).to_string(), "unreadable: Input/output error (os error 5)");
    assert_eq!(probe(&&[][..], MIB), Content::Unknown, "shorter than it says");
}

/// The heads of real images, with their sizes.
fn heads() -> Vec<Vec<u8>> {
    let commands = [
        (16, "mkfs.ext4 -q -L cache {}"),
        (1, "mkfs.vfat -F 12 -n TWELVE {}"),
        (64, "mkfs.vfat -F 32 -n BOOT {}"),
        (16, "mkfs.exfat -L label {}"),
        (128, "mkfs.btrfs -q {}"),
        (4, "mkswap -q {}"),
    ];
    commands
        .map(|(size, command)| fs::read(made(size, command).1).unwrap())
        .map(|mut bytes| {
            bytes.truncate(100 * 1024);
            bytes
        })
        .to_vec()
}

#[test]
fn truncated_and_damaged_images_are_probed_without_panic() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(2000));
    let images = heads();
    let spots = prop::sample::select(vec![0_usize, 512, 1024, 4096, 4064, 32768, 65536]);
    let strategy = (
        0..images.len(),
        prop::collection::vec((spots, 0_usize..512, any::<u8>()), 0..12),
        any::<u64>(),
        0_usize..100 * 1024,
    );
    runner
        .run(&strategy, |(image, damages, size, length)| {
            let mut bytes = images[image].clone();
            for (base, offset, byte) in damages {
                bytes[(base + offset) % (100 * 1024)] = byte;
            }
            let whole = signatures(&bytes.as_slice(), bytes.len() as u64).map(|found| found.len());
            prop_assert!(whole.is_ok());
            bytes.truncate(length);
            prop_assert!(signatures(&bytes.as_slice(), length as u64).is_ok());
            prop_assert!(signatures(&bytes.as_slice(), size).is_ok());
            Ok(())
        })
        .unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_probed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000), size in any::<u64>()) {
        prop_assert!(signatures(&bytes.as_slice(), size).is_ok());
    }
}
