//! What block devices there are, from sysfs and from what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags, fadvise};

use super::links::attribute;
use super::probe::{Content, Kind, places, probe};
use super::table::{Table, table};

/// Sysfs counts sizes and starts in these, whatever the logical sectors of the disk are.
const SECTOR: u64 = 512;

/// Major number of floppy drives. They are never read: asking an empty drive takes seconds.
const FLOPPY: u32 = 2;

/// A block device as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Name in `/sys/class/block`, e.g. `sda1`.
    pub name: String,
    /// Its node, e.g. `/dev/sda1`, without the root that it was observed below.
    pub path: PathBuf,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Counts the disks that had this number since the system started (Linux 5.15): tells a disk from its successor in the same place.
    pub sequence: Option<u64>,
    /// Size in bytes; never 0.
    pub size: u64,
    /// The kernel refuses to write to it.
    pub read_only: bool,
    /// Its medium can be taken out.
    pub removable: bool,
    /// Where it is a partition, which one.
    pub partition: Option<Partition>,
    /// It has partitions: it is not itself what a label means.
    pub partitioned: bool,
    /// Names of the devices that are made of this one: device-mapper, MD, bcache.
    pub holders: Vec<String>,
    /// Name and uuid that the device mapper has for it.
    pub mapping: Option<Mapping>,
    /// Links below `/dev` that udev made to it, or would make in `/dev/disk/by-id` and `by-path` where there is none.
    pub links: Vec<PathBuf>,
    /// What is on it.
    pub content: Content,
}

#[cfg(test)]
impl BlockDevice {
    /// A blank disk of 1 MiB that nobody uses.
    pub fn blank(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: Path::new("/dev").join(name),
            number: (8, 0),
            sequence: None,
            size: 1 << 20,
            read_only: false,
            removable: false,
            partition: None,
            partitioned: false,
            holders: Vec::new(),
            mapping: None,
            links: Vec::new(),
            content: Content::Unknown,
        }
    }
}

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Counted from 1.
    pub number: u32,
    /// The disk's name in sysfs.
    pub disk: String,
    /// Name in the GPT.
    pub label: Option<String>,
    /// Unique id in the table.
    pub uuid: Option<String>,
}

/// What the device mapper calls a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its name below `/dev/mapper`.
    pub name: String,
    /// Who made it, and its id: `LVM-…`, `CRYPT-LUKS2-…`; may be empty.
    pub uuid: String,
}

impl BlockDevice {
    /// The file of sysfs that tells this disk from one that takes its name later, and what it says (Linux 5.15).
    pub fn identity(&self, root: &Path) -> Option<(PathBuf, String)> {
        let folder = root.join("sys/class/block").join(&self.name);
        let file = match &self.partition {
            // Through the link: the folder of a partition lies in that of its disk.
            Some(_) => folder.join("../diskseq"),
            None => folder.join("diskseq"),
        };
        self.sequence.map(|sequence| (file, sequence.to_string()))
    }

    /// Whether a hibernated system is on it, also where that contradicts what else is. What is written to it may be lost, and destroys that system.
    pub fn is_hibernated(&self) -> bool {
        match &self.content {
            Content::Known(signature) => signature.kind == Kind::Hibernation,
            Content::Conflict(all) => all.iter().any(|signature| signature.kind == Kind::Hibernation),
            Content::Unknown | Content::Unreadable(_) => false,
        }
    }
}

impl fmt::Display for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} MiB", self.path.display(), self.size / (1024 * 1024))?;
        if let Some(mapping) = &self.mapping {
            write!(f, ", {}", mapping.name)?;
        }
        if let Some(label) = self.partition.as_ref().and_then(|partition| partition.label.as_ref()) {
            write!(f, ", PARTLABEL={label}")?;
        }
        match (self.partitioned, &self.content) {
            (true, _) => f.write_str(", partitioned)"),
            (false, content) => write!(f, ", {content})"),
        }
    }
}

/// All block devices that have a size, in the order of their names. Reads `<root>/sys/class/block` and the nodes in `<root>/dev`, read-only.
///
/// A device that vanishes meanwhile is left out; one that cannot be read is listed with the reason.
///
/// # Errors
/// Only if `/sys/class/block` cannot be listed.
pub fn observe(root: &Path) -> io::Result<Vec<BlockDevice>> {
    observe_again(root, &[], &BTreeSet::new())
}

/// As [`observe`], but does not read again what a device of `previous` held, unless it or its disk is named in `changed` or is another one now.
///
/// # Errors
/// As of [`observe`].
pub fn observe_again(root: &Path, previous: &[BlockDevice], changed: &BTreeSet<String>) -> io::Result<Vec<BlockDevice>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("sys/class/block"))? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    let sysfs: Vec<Sysfs> = names.iter().filter_map(|name| Sysfs::read(root, name)).collect();
    let partitioned: BTreeSet<&str> = sysfs
        .iter()
        .filter_map(|device| device.partition.as_ref().map(|(_, disk)| disk.as_str()))
        .collect();
    let mut tables = BTreeMap::new();
    let mut devices = Vec::new();
    for device in sysfs.iter().filter(|device| device.number.0 != FLOPPY) {
        let disk = device.partition.as_ref().map_or(device.name.as_str(), |(_, disk)| disk.as_str());
        let stale = changed.contains(&device.name) || changed.contains(disk);
        let known = previous.iter().find(|known| !stale && device.is(known));
        let partition = device
            .partition
            .as_ref()
            .map(|(number, disk)| match known.and_then(|known| known.partition.clone()) {
                Some(partition) => partition,
                None => {
                    let table = tables
                        .entry(disk.clone())
                        .or_insert_with(|| sysfs.iter().find(|other| other.name == *disk)?.table(root));
                    device.named(*number, disk, table.as_ref())
                }
            });
        let partitioned = partitioned.contains(device.name.as_str());
        let content = match known {
            Some(known) if !matches!(known.content, Content::Unreadable(_)) => known.content.clone(),
            Some(_) | None => device.content(root),
        };
        devices.push(device.observed(partition, partitioned, content));
    }
    Ok(devices)
}

/// What sysfs says of a device.
struct Sysfs {
    name: String,
    number: (u32, u32),
    sequence: Option<u64>,
    size: u64,
    read_only: bool,
    removable: bool,
    /// Number and disk.
    partition: Option<(u32, String)>,
    /// In units of 512 bytes.
    start: u64,
    logical_sector: u32,
    holders: Vec<String>,
    mapping: Option<Mapping>,
    links: Vec<PathBuf>,
}

impl Sysfs {
    /// `None` where the device is gone, or has no size.
    fn read(root: &Path, name: &str) -> Option<Self> {
        // A link into `/sys/devices`, where a partition's folder is in that of its disk. Looking at each part of it, as it is done for others, takes long.
        let link = root.join("sys/class/block").join(name);
        let target = fs::read_link(&link).unwrap_or_default();
        let folder = match target
            .strip_prefix("../..")
            .map_or_else(|_| fs::canonicalize(&link), |target| Ok(root.join("sys").join(target)))
        {
            Ok(folder) => folder,
            Err(error) => {
                log::debug!("passing over the block device {name}: {error}");
                return None;
            }
        };
        // First, since most of what has none is there in crowds.
        let size = number_in::<u64>(&folder, "size")?.saturating_mul(SECTOR);
        if size == 0 {
            return None;
        }
        let number = attribute(&folder, "dev")?;
        let (major, minor) = number.split_once(':')?;
        let partition = attribute(&folder, "partition").and_then(|text| decimal(&text)).zip(
            folder
                .parent()
                .and_then(Path::file_name)
                .map(|disk| disk.to_string_lossy().into_owned()),
        );
        let disk = if partition.is_some() { folder.parent()? } else { &folder };
        let mut holders = match fs::read_dir(folder.join("holders")) {
            Ok(entries) => entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Err(_) => Vec::new(),
        };
        holders.sort();
        let mapping = attribute(&folder, "dm/name").map(|name| Mapping {
            name,
            uuid: attribute(&folder, "dm/uuid").unwrap_or_default(),
        });
        let sequence = number_in(disk, "diskseq");
        Some(Self {
            name: name.to_owned(),
            number: (decimal(major)?, decimal(minor)?),
            sequence,
            size,
            read_only: number_in::<u8>(&folder, "ro") == Some(1),
            removable: number_in::<u8>(disk, "removable") == Some(1),
            start: number_in(&folder, "start").unwrap_or(0),
            logical_sector: number_in(disk, "queue/logical_block_size").unwrap_or(512),
            holders,
            mapping,
            links: match fs::read_to_string(root.join(format!("run/udev/data/b{number}"))) {
                Ok(record) => links(&record),
                Err(_) => without_udev(root, name, disk, sequence, partition.as_ref().map(|(number, _)| *number)),
            },
            partition,
        })
    }

    /// Whether `known` is this very device.
    fn is(&self, known: &BlockDevice) -> bool {
        self.name == known.name && self.number == known.number && self.sequence == known.sequence && self.size == known.size
    }

    /// The node in `/dev`: sysfs writes a slash in a name as `!`.
    fn path(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }

    /// Opens the node for reading.
    fn open(&self, root: &Path) -> io::Result<File> {
        let path = root.join("dev").join(self.name.replace('!', "/"));
        // O_NONBLOCK: a drive is not to close its tray, nor to wait for a medium.
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let metadata = file.metadata()?;
        let node = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        if metadata.file_type().is_block_device() && node != self.number {
            return Err(io::Error::other(format!("the node belongs to the device {}:{}", node.0, node.1)));
        }
        Ok(file)
    }

    fn content(&self, root: &Path) -> Content {
        match self.open(root) {
            Ok(file) => {
                // A slow disk then looks for all places at once, and not for one after the other.
                for (offset, length) in places(self.size) {
                    if let Err(error) = fadvise(&file, offset, NonZero::new(length), Advice::WillNeed) {
                        log::trace!("reading {} ahead: {error}", self.name);
                    }
                }
                probe(&file, self.size)
            }
            Err(error) => Content::Unreadable(error.to_string()),
        }
    }

    fn table(&self, root: &Path) -> Option<Table> {
        match self.open(root).and_then(|file| table(&file, self.size, self.logical_sector)) {
            Ok(table) => table,
            Err(error) => {
                log::warn!(
                    "reading the partition table of {}: {error}; its partitions have no names",
                    self.path().display()
                );
                None
            }
        }
    }

    /// The names of this partition. A table that has it start elsewhere is not the one that the kernel went by.
    fn named(&self, number: u32, disk: &str, table: Option<&Table>) -> Partition {
        let table = table.filter(|table| match table {
            Table::Gpt(entries) => entries.iter().any(|entry| {
                entry.number == number && entry.first.saturating_mul(u64::from(self.logical_sector)) == self.start.saturating_mul(SECTOR)
            }),
            Table::Mbr(_) => true,
        });
        Partition {
            number,
            disk: disk.to_owned(),
            label: table.and_then(|table| table.label(number)),
            uuid: table.and_then(|table| table.uuid(number)),
        }
    }

    fn observed(&self, partition: Option<Partition>, partitioned: bool, content: Content) -> BlockDevice {
        BlockDevice {
            name: self.name.clone(),
            path: self.path(),
            number: self.number,
            sequence: self.sequence,
            size: self.size,
            read_only: self.read_only,
            removable: self.removable,
            partition,
            partitioned,
            holders: self.holders.clone(),
            mapping: self.mapping.clone(),
            links: self.links.clone(),
            content,
        }
    }
}

/// The links in udev's record of a device (`/run/udev/data/b<major>:<minor>`): lines `S:<path below /dev>`, written before udev tells of the device
/// (systemd's `src/libsystemd/sd-device/device-private.c`, `device_update_db`).
fn links(record: &str) -> Vec<PathBuf> {
    let links = record.lines().filter_map(|line| line.strip_prefix("S:"));
    links.map(|link| Path::new("/dev").join(link)).collect()
}

/// The links of a device that no udev has a record of: those that its disk's attributes give, and those that `mdadm` makes by itself then.
fn without_udev(root: &Path, name: &str, disk: &Path, sequence: Option<u64>, partition: Option<u32>) -> Vec<PathBuf> {
    let mut links = super::links::links(disk, sequence, partition);
    if name.starts_with("md")
        && let Ok(entries) = fs::read_dir(root.join("dev/md"))
    {
        let named = entries.flatten().filter(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            target.file_name().is_some_and(|target| target == name)
        });
        links.extend(named.map(|entry| Path::new("/dev/md").join(entry.file_name())));
    }
    links
}

fn number_in<T: std::str::FromStr>(folder: &Path, name: &str) -> Option<T> {
    decimal(&attribute(folder, name)?)
}

fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    // A number that sysfs does not write as one is as good as absent.
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// A device in a made-up root; `folder` is relative to `/sys/devices`.
    fn device(root: &Path, folder: &str, attributes: &[(&str, &str)], bytes: &[u8]) {
        let name = folder.rsplit('/').next().unwrap();
        let devices = root.join("sys/devices").join(folder);
        for (attribute, value) in attributes {
            let path = devices.join(attribute);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let class = root.join("sys/class/block");
        fs::create_dir_all(&class).unwrap();
        std::os::unix::fs::symlink(format!("../../devices/{folder}"), class.join(name)).unwrap();
        let node = root.join("dev").join(name.replace('!', "/"));
        fs::create_dir_all(node.parent().unwrap()).unwrap();
        fs::write(node, bytes).unwrap();
    }

    fn squashfs() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[28] = 4;
        bytes
    }

    #[test]
    fn the_links_of_a_device_are_those_of_udevs_record() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "virtual/md127", &[("dev", "9:127"), ("size", "8")], &squashfs());
        let links = || observe(root.path()).unwrap().remove(0).links;
        assert!(links().is_empty());
        fs::create_dir(root.path().join("dev/md")).unwrap();
        std::os::unix::fs::symlink("../md127", root.path().join("dev/md/alone")).unwrap();
        std::os::unix::fs::symlink("../md126", root.path().join("dev/md/other")).unwrap();
        assert_eq!(links(), [Path::new("/dev/md/alone")], "that of mdadm, where there is no udev");
        fs::create_dir_all(root.path().join("run/udev/data")).unwrap();
        fs::write(
            root.path().join("run/udev/data/b9:127"),
            "S:md/data\nS:disk/by-id/md-name-x\nL:100\nI:2000000\nE:ID_FS_TYPE=squashfs\nG:systemd\n",
        )
        .unwrap();
        assert_eq!(links(), [Path::new("/dev/md/data"), Path::new("/dev/disk/by-id/md-name-x")]);
    }

    #[test]
    fn a_partition_belongs_to_the_disk_whose_folder_it_is_in() {
        let root = tempfile::tempdir().unwrap();
        device(
            root.path(),
            "pci0/sda",
            &[("dev", "8:0"), ("size", "8"), ("removable", "1"), ("diskseq", "7"), ("ro", "1")],
            &[0; 4096],
        );
        let attributes = [
            ("dev", "8:1"),
            ("size", "8"),
            ("partition", "1"),
            ("start", "64"),
            ("holders/dm-0", ""),
        ];
        device(root.path(), "pci0/sda/sda1", &attributes, &squashfs());
        let devices = observe(root.path()).unwrap();
        let [disk, partition] = devices.as_slice() else {
            panic!("{devices:?}")
        };
        assert!(
            disk.partitioned && disk.read_only && disk.removable && !partition.partitioned && !partition.read_only && partition.removable
        );
        assert_eq!(
            partition
                .partition
                .as_ref()
                .map(|partition| (partition.number, partition.disk.as_str())),
            Some((1, "sda"))
        );
        assert_eq!(
            (partition.path.as_path(), partition.number, partition.size),
            (Path::new("/dev/sda1"), (8, 1), 4096)
        );
        assert_eq!(
            (partition.sequence, partition.holders.as_slice()),
            (Some(7), ["dm-0".to_owned()].as_slice())
        );
        assert_eq!(partition.to_string(), "/dev/sda1 (0 MiB, squashfs)");
        for device in &devices {
            let (file, said) = device.identity(root.path()).unwrap();
            assert_eq!(fs::read_to_string(file).unwrap().trim_end(), said);
        }
    }

    #[test]
    fn devices_without_a_medium_and_floppies_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "virtual/loop0", &[("dev", "7:0"), ("size", "0")], &[]);
        device(root.path(), "platform/fd0", &[("dev", "2:0"), ("size", "8")], &[]);
        device(root.path(), "virtual/gone", &[], &[]);
        assert_eq!(observe(root.path()).unwrap(), []);
    }

    #[test]
    fn a_device_that_cannot_be_read_is_listed_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "pci0/sda", &[("dev", "8:0"), ("size", "8")], &[]);
        fs::remove_file(root.path().join("dev/sda")).unwrap();
        let devices = observe(root.path()).unwrap();
        assert!(devices[0].to_string().contains("unreadable: No such file"), "{}", devices[0]);
    }

    #[test]
    fn a_mapping_keeps_its_name_and_an_exclamation_mark_is_a_slash() {
        let root = tempfile::tempdir().unwrap();
        device(
            root.path(),
            "virtual/dm-0",
            &[("dev", "253:0"), ("size", "8"), ("dm/name", "vg-root"), ("dm/uuid", "LVM-x")],
            &squashfs(),
        );
        device(root.path(), "pci0/cciss!c0d0", &[("dev", "104:0"), ("size", "8")], &squashfs());
        let devices = observe(root.path()).unwrap();
        assert_eq!(devices[0].path, Path::new("/dev/cciss/c0d0"));
        assert_eq!(
            devices[0].content.signature().map(|signature| signature.kind),
            Some(super::super::probe::Kind::Squashfs)
        );
        assert_eq!(
            devices[1].mapping,
            Some(Mapping {
                name: "vg-root".into(),
                uuid: "LVM-x".into()
            })
        );
    }

    #[test]
    fn a_second_look_reads_only_what_has_changed_or_could_not_be_read() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "pci0/sda", &[("dev", "8:0"), ("size", "8")], &squashfs());
        device(
            root.path(),
            "pci0/sdb",
            &[("dev", "8:16"), ("size", "8"), ("diskseq", "2")],
            &squashfs(),
        );
        let first = observe(root.path()).unwrap();
        for name in ["sda", "sdb"] {
            fs::write(root.path().join("dev").join(name), [0; 4096]).unwrap();
        }
        let look = |changed: &[&str]| {
            let changed = changed.iter().map(|name| (*name).to_owned()).collect();
            observe_again(root.path(), &first, &changed)
                .unwrap()
                .iter()
                .map(|device| device.content == Content::Unknown)
                .collect::<Vec<_>>()
        };
        assert_eq!(look(&[]), [false, false]);
        assert_eq!(look(&["sda"]), [true, false]);
        fs::write(root.path().join("sys/devices/pci0/sdb/diskseq"), "3\n").unwrap();
        assert_eq!(look(&[]), [false, true], "another disk in the same place");
    }
}
