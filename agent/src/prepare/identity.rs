//! Which disk a lasting name means.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::{Path, PathBuf};

use crate::device::observe::BlockDevice;
use crate::foreign::word;

use super::declaration::{DiskId, bare_wwn};

/// What a disk says of itself, as sysfs has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ids {
    /// Its serial number.
    pub serial: Option<String>,
    /// Its world wide name, with its kind in front (`naa.`, `eui.`).
    pub wwn: Option<String>,
}

/// A disk and its ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The disk.
    pub disk: BlockDevice,
    /// Its ids.
    pub ids: Ids,
}

impl Known {
    /// As a message names it.
    pub fn shown(&self) -> String {
        let mut ids = Vec::new();
        ids.extend(self.ids.serial.as_ref().map(|serial| format!("serial={}", word(serial))));
        ids.extend(self.ids.wwn.as_ref().map(|wwn| format!("wwn={}", word(&bare_wwn(wwn)))));
        let ids = if ids.is_empty() {
            "no serial number".to_owned()
        } else {
            ids.join(", ")
        };
        format!("{} ({} MiB, {ids})", self.disk.path.display(), self.disk.size >> 20)
    }
}

/// The disks that `id` means, whole ones only. Several are a reason to touch none of them.
pub fn meant<'a>(id: &DiskId, disks: &'a [Known]) -> Vec<&'a Known> {
    disks
        .iter()
        .filter(|known| known.disk.partition.is_none() && known.disk.mapping.is_none() && bears(id, known))
        .collect()
}

fn bears(id: &DiskId, known: &Known) -> bool {
    match id {
        DiskId::Serial(serial) => known.ids.serial.as_deref() == Some(serial),
        DiskId::Wwn(wwn) => known.ids.wwn.as_deref().is_some_and(|own| bare_wwn(own) == *wwn),
        DiskId::ById(link) => known.disk.links.contains(&linked("by-id", link)),
        DiskId::ByPath(link) => known.disk.links.contains(&linked("by-path", link)),
    }
}

fn linked(folder: &str, link: &str) -> PathBuf {
    Path::new("/dev/disk").join(folder).join(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::tests::disk;

    fn known(name: &str, serial: &str, wwn: &str) -> Known {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Known {
            disk: disk(name),
            ids: Ids {
                serial: some(serial),
                wwn: some(wwn),
            },
        }
    }

    #[test]
    fn a_disk_is_known_by_what_stays_with_it() {
        let mut linked = known("sdb", "", "");
        linked.disk.links = vec!["/dev/disk/by-id/ata-X_1".into(), "/dev/disk/by-path/pci-1-ata-1".into()];
        let disks = [
            known("vda", "SCRATCH 1", ""),
            known("nvme0n1", "S4X", "eui.0025388b710116a1"),
            known("sda", "Z1", "naa.5000c500a1b2c3d4"),
            linked,
        ];
        for (id, expected) in [
            (DiskId::Serial("SCRATCH 1".into()), "vda"),
            (DiskId::Wwn("0025388b710116a1".into()), "nvme0n1"),
            (DiskId::Wwn("5000c500a1b2c3d4".into()), "sda"),
            (DiskId::ById("ata-X_1".into()), "sdb"),
            (DiskId::ByPath("pci-1-ata-1".into()), "sdb"),
        ] {
            let names: Vec<&str> = meant(&id, &disks).iter().map(|known| known.disk.name.as_str()).collect();
            assert_eq!(names, [expected], "{id}");
        }
        for id in [
            DiskId::Serial("SCRATCH".into()),
            DiskId::ById("ata-X_1-part1".into()),
            DiskId::ByPath("ata-X_1".into()),
        ] {
            assert!(meant(&id, &disks).is_empty(), "{id}");
        }
    }

    #[test]
    fn two_paths_to_one_disk_are_two_disks_and_a_mapping_is_none() {
        let (first, second) = (known("sda", "Z1", ""), known("sdb", "Z1", ""));
        assert_eq!(meant(&DiskId::Serial("Z1".into()), &[first.clone(), second]).len(), 2);
        let mut mapped = first;
        mapped.disk.mapping = Some(crate::device::observe::Mapping {
            name: "mpatha".to_owned(),
            uuid: "mpath-x".to_owned(),
        });
        assert!(meant(&DiskId::Serial("Z1".into()), &[mapped]).is_empty());
    }
}
