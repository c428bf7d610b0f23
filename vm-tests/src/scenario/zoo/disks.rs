//! The disks of the zoo: every file system that is mounted here, on virtio, SATA and USB, whole and in partitions, each named in another way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::command::Tool;
use crate::disk::Disk;
use crate::lab::Generic;
use crate::qemu::{Bus, Machine};
use crate::trial::Boot;

const LIMIT: Duration = Duration::from_secs(120);
/// Partitions begin at whole MiB.
const MEBIBYTE: u64 = 1 << 20;
/// Of a GPT at either end.
const TABLE_MEBIBYTES: u64 = 1;

const EXT4_NAME: &str = "disk-main-data";
/// What disko calls the partition `chain-data-of-the-first-validator` of the disk `main` is longer than a GPT takes.
const LONG_NAME: &str = "disk-main-chain-data-of-the-first-validator";
const VFAT_ID: &str = "0b5e3c56-6d1f-4f0c-9a43-2f5a1d0e7c01";
const BTRFS_ID: &str = "7c7a9c1e-8f0b-4c57-8a52-64f1f2a7d902";
/// The folder of the volume on the btrfs that is mounted once it is there.
pub const SUBVOLUME: &str = "data";

/// One file system.
pub struct Animal {
    /// Its mount point.
    pub place: &'static str,
    /// Its type.
    pub fs_type: &'static str,
    /// What the configuration calls its device.
    pub device: String,
}

/// Disks with all of them.
pub struct Zoo {
    /// The file systems.
    pub animals: Vec<Animal>,
    disks: Vec<(Disk, &'static str, Bus)>,
    /// The disk with the swap, and where it begins and how long it is.
    swap: (PathBuf, u64, u64),
}

/// The medium that machines with the generic kernel boot from.
pub fn medium(dir: &Path, generic: &Generic) -> Result<Disk> {
    let content = dir.join("medium");
    fs::create_dir_all(&content).with_context(|| format!("making {}", content.display()))?;
    generic.served.copy(&content.join("served"))?;
    Disk::make_with(&dir.join("medium.img"), 256, crate::disk::FsType::Ext4, "MEDIUM", Some(&content))
}

/// The configuration of a machine that boots from it.
pub fn from_medium() -> Value {
    json!({
        "cache": null,
        "media": { "device": "LABEL=MEDIUM", "path": "served" },
        "policy": { "mode": "offline" },
        "verify": "size",
    })
}

impl Zoo {
    /// Makes them in `dir`, with the medium that the machine boots from.
    pub fn make(dir: &Path, generic: &Generic) -> Result<Self> {
        let make = |name: &str, mebibytes: u64, command: &[&str]| -> Result<Disk> {
            let disk = Disk::blank(&dir.join(format!("{name}.img")), mebibytes)?;
            format(disk.path(), command)?;
            Ok(disk)
        };
        let medium = medium(dir, generic)?;
        let main = Disk::blank(&dir.join("main.img"), 64 + 64 + 16 + 320 + 2 * TABLE_MEBIBYTES)?;
        let hashed = hashed(LONG_NAME);
        let starts = partition(
            &main,
            &[
                (64, &format!("uuid={VFAT_ID}"), &["mkfs.vfat", "-F", "32"]),
                (64, &format!("name={EXT4_NAME}"), EXT4),
                (16, "name=swap", &["mkswap", "-q", "-L", "SWAP"]),
                (320, &format!("name={hashed}"), &["mkfs.xfs", "-q"]),
            ],
        )?;
        let second = Disk::blank(&dir.join("second.img"), 64 + 2 * TABLE_MEBIBYTES)?;
        partition(&second, &[(64, "name=x", &["mke2fs", "-q", "-F", "-t", "ext3"])])?;
        let pair = [
            Disk::blank(&dir.join("pair-1.img"), 160)?,
            Disk::blank(&dir.join("pair-2.img"), 160)?,
        ];
        Tool::new("mkfs.btrfs", LIMIT)
            .args(["-q", "-L", "PAIR", "-d", "raid0", "-m", "raid1"])
            .args(pair.iter().map(Disk::path))
            .run()?;
        let [pair_1, pair_2] = pair;
        let disks = vec![
            (medium, "medium", Bus::Virtio),
            (make("plain", 64, EXT4)?, "plain", Bus::Virtio),
            (main.clone(), "main", Bus::Virtio),
            (make("ext2", 64, &["mke2fs", "-q", "-F", "-t", "ext2"])?, "SATA1", Bus::Sata),
            (second, "SATA2", Bus::Sata),
            (make("f2fs", 128, &["mkfs.f2fs", "-q", "-l", "F2FS"])?, "SATA3", Bus::Sata),
            (pair_1, "pair", Bus::Virtio),
            (pair_2, "SATA4", Bus::Sata),
            (make("exfat", 64, &["mkfs.exfat"])?, "USB1", Bus::Usb),
            (make("btrfs", 160, &["mkfs.btrfs", "-q", "-U", BTRFS_ID])?, "USB2", Bus::Usb),
        ];
        let animal = |place, fs_type, device: &str| Animal {
            place,
            fs_type,
            device: device.to_owned(),
        };
        let animals = vec![
            animal("/zoo/plain", "ext4", "/dev/vdb"),
            animal("/zoo/ext2", "ext2", "/dev/disk/by-path/pci-0000:00:1e.0-ata-1"),
            animal("/zoo/ext3", "ext3", "/dev/disk/by-id/ata-QEMU_HARDDISK_SATA2-part1"),
            animal("/zoo/ext4", "ext4", &format!("PARTLABEL={EXT4_NAME}")),
            animal("/zoo/xfs", "xfs", &format!("/dev/disk/by-partlabel/{hashed}")),
            animal("/zoo/vfat", "vfat", &format!("PARTUUID={VFAT_ID}")),
            animal("/zoo/f2fs", "f2fs", "LABEL=F2FS"),
            animal("/zoo/exfat", "exfat", "/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_USB1-0:0"),
            animal("/zoo/btrfs", "btrfs", &format!("UUID={BTRFS_ID}")),
            animal("/zoo/pair", "btrfs", "LABEL=PAIR"),
        ];
        let swap = (main.path().to_owned(), starts[2] * MEBIBYTE, 16 * MEBIBYTE);
        Ok(Self { animals, disks, swap })
    }

    /// The configuration with an entry for each of them, each required; the one on USB mounts `subvolume`, where there is one.
    pub fn config(&self, subvolume: Option<&str>) -> Value {
        let mut entries = json!({});
        for animal in &self.animals {
            let options: Vec<String> = match animal.place {
                "/zoo/btrfs" => subvolume.iter().map(|name| format!("subvol={name}")).collect(),
                "/zoo/vfat" => vec!["umask=0077".to_owned()],
                _ => Vec::new(),
            };
            entries[animal.place] = json!({ "device": animal.device, "fsType": animal.fs_type, "options": options, "timeout": 60 });
        }
        let mut config = from_medium();
        config["fileSystems"] = entries;
        config
    }

    /// Plugs all of them in.
    pub fn plugged<'a>(&self, boot: Boot<'a>) -> Boot<'a> {
        self.disks
            .iter()
            .fold(boot, |boot, (disk, serial, bus)| boot.attach(disk, serial, *bus))
    }

    /// The same for a machine of its own.
    pub fn plugged_into(&self, machine: Machine) -> Machine {
        let disks = self.disks.iter();
        disks.fold(machine, |machine, (disk, serial, bus)| machine.attach(disk, serial, *bus))
    }

    /// An fstab that mounts all of them below `root`; those that a program checks are checked by `fsck -A`.
    pub fn fstab(&self, root: &str) -> String {
        let lines = self.animals.iter().map(|animal| {
            let options = if animal.place == "/zoo/vfat" { "umask=0077" } else { "defaults" };
            let pass = if ["xfs", "btrfs"].contains(&animal.fs_type) { 0 } else { 2 };
            format!("{} {root}{} {} {options} 0 {pass}\n", animal.device, animal.place, animal.fs_type)
        });
        lines.collect()
    }

    /// udev's link of each device, and its mount point.
    pub fn links(&self) -> String {
        let link = |device: &str| match device.split_once('=') {
            Some((tag, value)) => format!("/dev/disk/by-{}/{value}", tag.to_lowercase()),
            None => device.to_owned(),
        };
        let lines = self
            .animals
            .iter()
            .map(|animal| format!("{} {}\n", link(&animal.device), animal.place));
        lines.collect()
    }

    /// The bytes of the swap.
    pub fn swap(&self) -> Result<Vec<u8>> {
        use std::os::unix::fs::FileExt as _;
        let (path, start, length) = &self.swap;
        let mut bytes = vec![0; usize::try_from(*length)?];
        fs::File::open(path)
            .and_then(|file| file.read_exact_at(&mut bytes, *start))
            .with_context(|| format!("reading the swap of {}", path.display()))?;
        ensure!(bytes.windows(10).any(|window| window == b"SWAPSPACE2"), "there is no swap");
        Ok(bytes)
    }
}

const EXT4: &[&str] = &["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0"];

/// The partition label of a name that is too long, as disko makes it.
fn hashed(name: &str) -> String {
    let digits: String = Sha256::digest(name.as_bytes())
        .iter()
        .take(18)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    digits
}

fn format(path: &Path, command: &[&str]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program makes this file system")?;
    Tool::new(program, LIMIT).args(arguments).arg(path).run()
}

/// Writes a partition table with (MiB, words for sfdisk, what makes the file system); returns where the partitions begin, in MiB.
fn partition(disk: &Disk, parts: &[(u64, &str, &[&str])]) -> Result<Vec<u64>> {
    let mut table = "label: gpt\n".to_owned();
    let mut start = TABLE_MEBIBYTES;
    let mut starts = Vec::new();
    for (mebibytes, words, _) in parts {
        table += &format!("start={start}MiB, size={mebibytes}MiB, {words}\n");
        starts.push(start);
        start += mebibytes;
    }
    let input = disk.path().with_extension("table");
    fs::write(&input, table).with_context(|| format!("writing {}", input.display()))?;
    let opened = fs::File::open(&input).with_context(|| format!("opening {}", input.display()))?;
    Tool::new("sfdisk", LIMIT).arg("--quiet").arg(disk.path()).stdin(opened).run()?;
    for ((mebibytes, _, command), start) in parts.iter().zip(&starts) {
        let part = Disk::blank(&disk.path().with_extension("part"), *mebibytes)?;
        format(part.path(), command)?;
        Tool::new("dd", LIMIT)
            .args(["bs=1M", "conv=notrunc,sparse", "status=none"])
            .arg(format!("seek={start}"))
            .arg(format!("if={}", part.path().display()))
            .arg(format!("of={}", disk.path().display()))
            .run()?;
        fs::remove_file(part.path()).with_context(|| format!("removing {}", part.path().display()))?;
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_the_first_36_digits_of_its_digest() {
        // printf 'disk-main-%s' $(printf 'x%.0s' {1..27}) | sha256sum | cut -c-36
        let name = format!("disk-main-{}", "x".repeat(27));
        assert_eq!(hashed(&name), "d2452d3cbd6efc517654f6d4507fdc8073d0");
        assert!(LONG_NAME.len() > 36 && EXT4_NAME.len() <= 36);
    }
}
