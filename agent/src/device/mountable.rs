//! What is never mounted, whatever an entry says of its type.
//!
//! A kernel that is told a type looks for that type's superblock alone. A member of a RAID 1 with its metadata at the end, or an old file system's remains below a
//! container, would be mounted beside what has been made of the device, and written.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use super::observe::BlockDevice;
use super::probe::Kind;

/// A device that holds something else than a file system, or a part of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotMountable {
    device: String,
    kind: Kind,
}

impl fmt::Display for NotMountable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, and is not mounted", self.device)?;
        match remedy(self.kind) {
            Some(remedy) => write!(f, ": {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NotMountable {}

impl BlockDevice {
    /// Whether this may be mounted, as far as what was found on it says. Where nothing was found, or several things, the kernel decides.
    ///
    /// # Errors
    /// Names the device, what it holds, and what to name in its place.
    pub fn mountable(&self) -> Result<(), NotMountable> {
        match self.content.signature() {
            Some(signature) if remedy(signature.kind).is_some() => Err(NotMountable {
                device: format!("{self} holds «{}»", signature.kind),
                kind: signature.kind,
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// What to do where a device of this kind is named as one to be mounted; none for file systems.
const fn remedy(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::LvmMember => "it is a physical volume of LVM; name a volume of its group, /dev/<group>/<volume>",
        Kind::MdMember => "it is a member of an MD array; name the array, or what is on it",
        Kind::ZfsMember => "it belongs to a ZFS pool; if that is out of date, `wipefs --types zfs_member` removes the signature",
        Kind::BcacheMember => "it belongs to bcache; name what bcache makes of it, /dev/bcache<number>, or the label of what is on that",
        Kind::Luks => "it is a LUKS container; name what is in it, /dev/mapper/<name>, and open it by the setting luks",
        Kind::IntegrityMember => "it belongs to dm-integrity, which the agent does not put together; use systemd stage 1",
        Kind::VerityHash => "it is the hash tree of a dm-verity device, which the agent does not put together; use systemd stage 1",
        Kind::Swap => "it is swap space; list it in swapDevices",
        Kind::Hibernation => {
            "a hibernated system is on it, and is left alone; resume that, or give it up with `mkswap` from a system that does not need it"
        }
        Kind::ExtJournal => "it is the external journal of another file system; name the device of that",
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 | Kind::Xfs | Kind::Btrfs | Kind::Vfat | Kind::Exfat | Kind::F2fs | Kind::Bcachefs => {
            return None;
        }
        Kind::Squashfs | Kind::Erofs | Kind::Iso9660 | Kind::Ntfs => return None,
    })
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::device::probe::{Content, Signature};

    fn device(content: Content) -> BlockDevice {
        BlockDevice {
            content,
            ..BlockDevice::blank("sda1")
        }
    }

    fn refusal(kind: Kind) -> Option<String> {
        let device = device(Content::Known(Signature::new(kind, None, None)));
        device.mountable().err().map(|error| error.to_string())
    }

    #[test]
    fn parts_containers_and_swap_are_never_mounted_and_say_what_to_name_in_their_place() {
        for (kind, remedy) in [
            (Kind::LvmMember, "/dev/<group>/<volume>"),
            (Kind::MdMember, "name the array"),
            (Kind::ZfsMember, "wipefs"),
            (Kind::BcacheMember, "/dev/bcache<number>"),
            (Kind::Luks, "setting luks"),
            (Kind::IntegrityMember, "dm-integrity"),
            (Kind::VerityHash, "dm-verity"),
            (Kind::Swap, "swapDevices"),
            (Kind::Hibernation, "hibernated system"),
            (Kind::ExtJournal, "external journal"),
        ] {
            let said = refusal(kind).unwrap_or_default();
            assert!(
                said.contains("/dev/sda1") && said.contains(&format!("«{kind}»")) && said.contains(remedy),
                "{said}"
            );
            assert!(!kind.is_file_system());
        }
    }

    #[test]
    fn file_systems_and_what_cannot_be_told_are_left_to_the_kernel() {
        for kind in [
            Kind::Ext4,
            Kind::Xfs,
            Kind::Btrfs,
            Kind::Bcachefs,
            Kind::Iso9660,
            Kind::Squashfs,
            Kind::Ntfs,
        ] {
            assert!(refusal(kind).is_none() && kind.is_file_system(), "{kind}");
        }
        let two = [Kind::Ext4, Kind::Xfs].map(|kind| Signature::new(kind, None, None));
        for content in [
            Content::Unknown,
            Content::Conflict(two.into()),
            Content::Unreadable("EIO".to_owned()),
        ] {
            assert!(device(content).mountable().is_ok());
        }
    }
}
