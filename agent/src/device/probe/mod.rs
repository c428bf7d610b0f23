//! What a block device holds, told from its superblocks.
//!
//! Recognised are the file systems that the agent mounts, and everything that must never be taken for one of them: members of arrays, pools and
//! volume groups, encrypted containers, swap and hibernation images. The names of the kinds are those that `blkid` prints as `TYPE`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod fat;
mod file_systems;
mod members;
mod other;
mod source;

use std::fmt;
use std::io;

use crate::foreign;

pub use other::{SquashfsSuperblock, squashfs_superblock};
pub use source::{ReadAt, places};
pub(crate) use source::{Source, array, dashed, has, le16, le32, le64, read, text16};

/// What a signature belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// ext2: no journal.
    Ext2,
    /// ext3: a journal, none of ext4's features.
    Ext3,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs; one file system may span several devices.
    Btrfs,
    /// FAT12, FAT16 or FAT32.
    Vfat,
    /// exFAT.
    Exfat,
    /// F2FS.
    F2fs,
    /// bcachefs; one file system may span several devices.
    Bcachefs,
    /// Squashfs 4.
    Squashfs,
    /// EROFS.
    Erofs,
    /// ISO 9660.
    Iso9660,
    /// NTFS.
    Ntfs,
    /// An external journal of ext3 or ext4.
    ExtJournal,
    /// Swap space.
    Swap,
    /// Swap space that holds a hibernated system: writing to what that system has mounted destroys it.
    Hibernation,
    /// A LUKS 1 or 2 container.
    Luks,
    /// A physical volume of LVM 2.
    LvmMember,
    /// A member of a Linux software RAID.
    MdMember,
    /// A device of a ZFS pool.
    ZfsMember,
    /// A backing or cache device of bcache.
    BcacheMember,
    /// A device that dm-integrity keeps its tags on, beside the data.
    IntegrityMember,
    /// The hashes of a dm-verity device.
    VerityHash,
}

impl Kind {
    /// The name that `blkid` prints as `TYPE`; for a file system also its name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Exfat => "exfat",
            Self::F2fs => "f2fs",
            Self::Bcachefs => "bcachefs",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Iso9660 => "iso9660",
            Self::Ntfs => "ntfs",
            Self::ExtJournal => "jbd",
            Self::Swap => "swap",
            Self::Hibernation => "swsuspend",
            Self::Luks => "crypto_LUKS",
            Self::LvmMember => "LVM2_member",
            Self::MdMember => "linux_raid_member",
            Self::ZfsMember => "zfs_member",
            Self::BcacheMember => "bcache",
            Self::IntegrityMember => "DM_integrity",
            Self::VerityHash => "DM_verity_hash",
        }
    }

    /// Whether the device is a part of something else. What looks like a file system on it belongs to that, and has its label there.
    pub const fn is_member(self) -> bool {
        match self {
            Self::LvmMember | Self::MdMember | Self::ZfsMember | Self::BcacheMember | Self::IntegrityMember | Self::VerityHash => true,
            Self::Ext2 | Self::Ext3 | Self::Ext4 | Self::Xfs | Self::Btrfs | Self::Vfat | Self::Exfat | Self::F2fs | Self::Bcachefs => {
                false
            }
            Self::Squashfs | Self::Erofs | Self::Iso9660 | Self::Ntfs => false,
            Self::ExtJournal | Self::Swap | Self::Hibernation | Self::Luks => false,
        }
    }

    /// Whether a signature of this kind hides those of file systems beneath it: a RAID 1 with its metadata at the end shows the file system
    /// of the array at its start, and a LUKS header may stand before old data.
    const fn shadows(self) -> bool {
        self.is_member() || matches!(self, Self::Luks)
    }

    /// Whether a file system of this kind may span several devices.
    pub const fn spans_devices(self) -> bool {
        matches!(self, Self::Btrfs | Self::Bcachefs)
    }

    /// Whether this is a file system.
    pub const fn is_file_system(self) -> bool {
        !self.is_member() && !matches!(self, Self::ExtJournal | Self::Swap | Self::Hibernation | Self::Luks)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A superblock, header or label that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What it belongs to.
    pub kind: Kind,
    /// The label; never empty.
    pub label: Option<String>,
    /// The UUID or serial, written as `blkid` writes it.
    pub uuid: Option<String>,
    /// What tells the devices of one btrfs or bcachefs apart; of no use as a name.
    pub device_uuid: Option<String>,
    /// How many devices a btrfs or bcachefs has.
    pub devices: Option<u64>,
}

impl Signature {
    pub(crate) fn new(kind: Kind, label: Option<String>, uuid: Option<String>) -> Self {
        Self {
            kind,
            label,
            uuid,
            device_uuid: None,
            devices: None,
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(label) = &self.label {
            write!(f, " LABEL={}", foreign::word(label))?;
        }
        self.uuid.as_ref().map_or(Ok(()), |uuid| write!(f, " UUID={}", foreign::word(uuid)))
    }
}

/// What a device holds, all signatures taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No signature that is known. It may hold data all the same.
    Unknown,
    /// One signature, or one that shadows the others.
    Known(Signature),
    /// Signatures that exclude one another, such as an old file system's beside a new one's. Which one is meant cannot be told.
    Conflict(Vec<Signature>),
    /// It could not be read, and why.
    Unreadable(String),
}

impl Content {
    /// The one signature, if it is clear.
    pub const fn signature(&self) -> Option<&Signature> {
        match self {
            Self::Known(signature) => Some(signature),
            Self::Unknown | Self::Conflict(_) | Self::Unreadable(_) => None,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("nothing known"),
            Self::Known(signature) => write!(f, "{signature}"),
            Self::Conflict(all) => {
                let all: Vec<String> = all.iter().map(Signature::to_string).collect();
                write!(f, "conflicting: {}", all.join(", "))
            }
            Self::Unreadable(why) => write!(f, "unreadable: {why}"),
        }
    }
}

type Prober = fn(&Source<'_>) -> io::Result<Option<Signature>>;

/// All kinds, those that shadow others first.
const PROBERS: [Prober; 18] = [
    members::luks,
    members::lvm,
    members::md,
    members::zfs,
    members::bcache,
    members::device_mapper,
    other::swap,
    file_systems::ext,
    file_systems::xfs,
    file_systems::btrfs,
    file_systems::f2fs,
    file_systems::bcachefs,
    fat::vfat,
    fat::exfat,
    other::squashfs,
    other::erofs,
    other::iso9660,
    other::ntfs,
];

/// Every signature on `image`, which is `size` bytes long, the shadowing ones first. Reads at most some hundred KiB.
///
/// # Errors
/// Those of reading. An image that is shorter than `size` is no error: what is missing holds no signature.
pub fn signatures(image: &dyn ReadAt, size: u64) -> io::Result<Vec<Signature>> {
    let source = Source::new(image, size)?;
    let mut found = Vec::new();
    for prober in PROBERS {
        found.extend(prober(&source)?);
    }
    Ok(found)
}

/// What `image` holds, which is `size` bytes long.
pub fn probe(image: &dyn ReadAt, size: u64) -> Content {
    match signatures(image, size) {
        Ok(found) => classify(found),
        Err(error) => Content::Unreadable(error.to_string()),
    }
}

/// The rule: a member of something, or a LUKS container, is that and nothing else; of other signatures there may be only one.
fn classify(mut found: Vec<Signature>) -> Content {
    let shadowing = found.iter().filter(|signature| signature.kind.shadows()).count();
    match (shadowing, found.len()) {
        (_, 0) => Content::Unknown,
        (1, _) | (0, 1) => Content::Known(found.swap_remove(0)),
        (_, _) => Content::Conflict(found),
    }
}

#[cfg(test)]
mod tests;
