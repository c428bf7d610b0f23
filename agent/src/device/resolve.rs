//! Which device a name means.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;

use super::name::DeviceName;
use super::observe::BlockDevice;
use super::probe::{Content, Kind, Signature};

/// What a name means among the devices that were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// No device.
    None,
    /// This one.
    One(BlockDevice),
    /// Several; none of them is to be used, because there is no telling which was meant.
    Ambiguous(Vec<BlockDevice>),
    /// The name is on this device, but it carries signatures that exclude one another.
    Conflict(BlockDevice),
}

/// The device that `name` means.
///
/// | the device | counts for a label or UUID |
/// |---|---|
/// | holds one file system, swap, or LUKS container of that name | yes |
/// | is a member of an array, pool, volume group or the like | no: what is made of it has the name |
/// | is a disk with partitions | no: one of its partitions has the name |
/// | is a disk with partitions and holds an ISO 9660 image, as a stick does that one was written to | yes, unless one of its partitions has the name |
/// | has a holder that carries the same signature (multipath, RAID 1) | no: the holder counts |
/// | is a LUKS container that is open, and what is in it has the name too | no: what is in it counts |
/// | carries signatures that exclude one another, one of that name | refused |
/// | is one of several of a single btrfs or bcachefs | the first by name; [`members`] has all |
///
/// A partition label or id counts unless a device made of the partition is a copy of it. A path means the node of that name, whatever it holds.
pub fn resolve(name: &DeviceName, devices: &[BlockDevice]) -> Match {
    let named: Vec<&BlockDevice> = devices
        .iter()
        .filter(|device| bears(device, name) || is_linked_by_its_stack(device, devices, name))
        .collect();
    let mut left: Vec<&BlockDevice> = named
        .iter()
        .copied()
        .filter(|device| !is_copied(device, &named) && !gives_way(device, &named))
        .collect();
    if let Some(conflicting) = left
        .iter()
        .find(|device| matches!(device.content, Content::Conflict(_)) && by_content(name))
    {
        return Match::Conflict((*conflicting).clone());
    }
    if let [first, rest @ ..] = left.as_slice()
        && by_content(name)
        && is_one_file_system(first, rest)
    {
        left.truncate(1);
    }
    match left.as_slice() {
        [] => Match::None,
        [one] => Match::One((*one).clone()),
        [..] => Match::Ambiguous(left.into_iter().cloned().collect()),
    }
}

/// The devices of one file system, as far as they are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// All of them; of most file systems that is one.
    All(Vec<BlockDevice>),
    /// Fewer than the file system says that it has.
    Fewer {
        /// Those that are there.
        there: Vec<BlockDevice>,
        /// How many there are to be.
        of: u64,
    },
    /// One of them is there twice, as a copy that was made block by block: the kernel would take the one that it saw last.
    Twice(Vec<BlockDevice>),
}

/// The devices of the file system that is on `device`, itself first. A btrfs or bcachefs may have several, and without udev nobody else tells the kernel of them.
pub fn members(device: &BlockDevice, devices: &[BlockDevice]) -> Members {
    let of = |device: &BlockDevice| {
        let signature = device.content.signature().filter(|signature| signature.kind.spans_devices());
        signature.cloned()
    };
    let Some(own) = of(device) else {
        return Members::All(vec![device.clone()]);
    };
    let named: Vec<&BlockDevice> = devices
        .iter()
        .filter(|other| !other.partitioned && of(other).is_some_and(|signature| signature.kind == own.kind && signature.uuid == own.uuid))
        .collect();
    let mut there = vec![device.clone()];
    for other in &named {
        if other.name == device.name || is_copied(other, &named) {
            continue;
        }
        let id = |device: &BlockDevice| of(device).and_then(|signature| signature.device_uuid);
        if let Some(same) = there.iter().find(|seen| id(seen) == id(other)) {
            // Where `device` itself is what another is made of, that one was resolved, and the other way round.
            if device.holders.contains(&other.name) || same.holders.contains(&other.name) {
                continue;
            }
            return Members::Twice(vec![same.clone(), (*other).clone()]);
        }
        there.push((*other).clone());
    }
    match own.devices {
        Some(of) if of > there.len() as u64 => Members::Fewer { there, of },
        Some(_) | None => Members::All(there),
    }
}

fn by_content(name: &DeviceName) -> bool {
    match name {
        DeviceName::Label(_) | DeviceName::Uuid(_) => true,
        DeviceName::PartLabel(_) | DeviceName::PartUuid(_) | DeviceName::Path(_) => false,
    }
}

fn bears(device: &BlockDevice, name: &DeviceName) -> bool {
    let partition = device.partition.as_ref();
    match name {
        DeviceName::Label(label) => any_signature(device, |signature| signature.label.as_ref() == Some(label)),
        DeviceName::Uuid(uuid) => any_signature(device, |signature| {
            signature.uuid.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(uuid))
        }),
        DeviceName::PartLabel(label) => partition.is_some_and(|partition| partition.label.as_ref() == Some(label)),
        DeviceName::PartUuid(uuid) => partition
            .and_then(|partition| partition.uuid.as_ref())
            .is_some_and(|own| own.eq_ignore_ascii_case(uuid)),
        DeviceName::Path(path) => device.path == *path || is_mapped(device, path) || device.links.contains(path),
    }
}

fn any_signature(device: &BlockDevice, wanted: impl Fn(&Signature) -> bool) -> bool {
    match &device.content {
        // The tables of partitions in a hybrid image are there for firmware; what counts is the image as a whole.
        Content::Known(signature) if device.partitioned && signature.kind != Kind::Iso9660 => false,
        Content::Conflict(_) if device.partitioned => false,
        Content::Known(signature) => !signature.kind.is_member() && wanted(signature),
        Content::Conflict(signatures) => signatures.iter().any(wanted),
        Content::Unknown | Content::Unreadable(_) => false,
    }
}

/// Whether `path` is `/dev/mapper/<name>`, or the `/dev/<group>/<volume>` that LVM makes: its mapping is called `<group>-<volume>`, with each
/// hyphen inside of the two doubled.
fn is_mapped(device: &BlockDevice, path: &Path) -> bool {
    let Some(mapping) = &device.mapping else { return false };
    let Ok(rest) = path.strip_prefix("/dev") else { return false };
    let parts: Vec<String> = rest.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    match parts.as_slice() {
        [folder, name] if folder == "mapper" => *name == mapping.name,
        [group, volume] => {
            mapping.uuid.starts_with("LVM-") && mapping.name == format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
        }
        [..] => false,
    }
}

/// Whether `name` is a link below `/dev/disk/by-id` that the rules of the device mapper, of LVM and of mdadm make: `dm-name-`, `dm-uuid-`, `lvm-pv-uuid-`,
/// `md-name-`, `md-uuid-`. What mdadm calls an array stands in its members.
fn is_linked_by_its_stack(device: &BlockDevice, devices: &[BlockDevice], name: &DeviceName) -> bool {
    let DeviceName::Path(path) = name else { return false };
    let Some(id) = path.strip_prefix("/dev/disk/by-id").ok().and_then(Path::to_str) else {
        return false;
    };
    let (array, id) = match &device.partition {
        Some(partition) => match id.strip_suffix(&format!("-part{}", partition.number)) {
            Some(id) => (partition.disk.as_str(), id),
            None => return false,
        },
        None => (device.name.as_str(), id),
    };
    let of_members = |wanted: &dyn Fn(&Signature) -> bool| {
        let mut signatures = devices.iter().filter(|member| member.holders.iter().any(|holder| holder == array));
        signatures.any(|member| {
            member
                .content
                .signature()
                .is_some_and(|signature| signature.kind == Kind::MdMember && wanted(signature))
        })
    };
    if let Some(name) = id.strip_prefix("md-name-") {
        return of_members(&|member| member.label.as_deref() == Some(name));
    }
    if let Some(uuid) = id.strip_prefix("md-uuid-") {
        // mdadm writes four numbers where blkid writes a UUID.
        let digits = |text: &str| {
            text.chars()
                .filter(char::is_ascii_hexdigit)
                .collect::<String>()
                .to_ascii_lowercase()
        };
        return of_members(&|member| member.uuid.as_deref().map(digits) == Some(digits(uuid)));
    }
    if device.partition.is_some() {
        return false;
    }
    if let (Some(uuid), Some(signature)) = (id.strip_prefix("lvm-pv-uuid-"), device.content.signature()) {
        return signature.kind == Kind::LvmMember && signature.uuid.as_deref() == Some(uuid);
    }
    device.mapping.as_ref().is_some_and(|mapping| {
        id.strip_prefix("dm-name-").is_some_and(|name| name == mapping.name)
            || id
                .strip_prefix("dm-uuid-")
                .is_some_and(|uuid| !uuid.is_empty() && uuid == mapping.uuid)
    })
}

/// Whether a device that is made of `device` carries the same signature: then `device` is a path to it or a copy, and the holder is meant.
fn is_copied(device: &BlockDevice, named: &[&BlockDevice]) -> bool {
    named.iter().any(|other| {
        device.holders.contains(&other.name)
            && device.content.signature().is_some()
            && device.content.signature() == other.content.signature()
    })
}

/// Whether one of the partitions of `device` has the name too, or what was opened of the LUKS container on it.
fn gives_way(device: &BlockDevice, named: &[&BlockDevice]) -> bool {
    let is_container = device.content.signature().is_some_and(|signature| signature.kind == Kind::Luks);
    if is_container && named.iter().any(|other| device.holders.contains(&other.name)) {
        return true;
    }
    let mut partitions = named.iter().filter_map(|other| other.partition.as_ref());
    device.partitioned && partitions.any(|partition| partition.disk == device.name)
}

/// Whether all are devices of a single btrfs or bcachefs: one file system id, and as many device ids as devices. A copy made block by block has the
/// same device id.
fn is_one_file_system(first: &BlockDevice, rest: &[&BlockDevice]) -> bool {
    let signature = |device: &BlockDevice| {
        device
            .content
            .signature()
            .filter(|signature| signature.kind.spans_devices() && signature.device_uuid.is_some())
            .cloned()
    };
    let Some(own) = signature(first) else { return false };
    let mut seen = vec![own.device_uuid.clone()];
    rest.iter().all(|device| {
        signature(device).is_some_and(|other| {
            let new = other.kind == own.kind && other.uuid == own.uuid && !seen.contains(&other.device_uuid);
            seen.push(other.device_uuid);
            new
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::observe::{Mapping, Partition};
    use super::*;

    fn signature(kind: Kind, label: &str, uuid: &str) -> Signature {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Signature {
            kind,
            label: some(label),
            uuid: some(uuid),
            device_uuid: None,
            devices: None,
        }
    }

    fn holding(name: &str, kind: Kind, label: &str, uuid: &str) -> BlockDevice {
        BlockDevice {
            content: Content::Known(signature(kind, label, uuid)),
            ..BlockDevice::blank(name)
        }
    }

    fn btrfs(name: &str, device_uuid: &str) -> BlockDevice {
        part(Kind::Btrfs, name, device_uuid)
    }

    fn part(kind: Kind, name: &str, device_uuid: &str) -> BlockDevice {
        let signature = Signature {
            device_uuid: Some(device_uuid.to_owned()),
            ..signature(kind, "pool", "f5")
        };
        BlockDevice {
            content: Content::Known(signature),
            ..BlockDevice::blank(name)
        }
    }

    fn partition(name: &str, label: &str, uuid: &str) -> BlockDevice {
        let partition = Partition {
            number: 1,
            disk: "sda".into(),
            label: Some(label.to_owned()),
            uuid: Some(uuid.to_owned()),
        };
        BlockDevice {
            partition: Some(partition),
            ..BlockDevice::blank(name)
        }
    }

    /// The names of what was found, with a word for how.
    fn found(name: &str, devices: &[BlockDevice]) -> String {
        match resolve(&name.parse().unwrap(), devices) {
            Match::None => "none".to_owned(),
            Match::One(device) => device.name,
            Match::Ambiguous(devices) => format!(
                "ambiguous {}",
                devices.iter().map(|device| device.name.clone()).collect::<Vec<_>>().join(" ")
            ),
            Match::Conflict(device) => format!("conflict {}", device.name),
        }
    }

    #[test]
    fn a_name_means_the_one_device_that_bears_it() {
        let devices = [
            holding("sda", Kind::Ext4, "cache", "1b3e-aa"),
            holding("sdb", Kind::Vfat, "ESP", "26A3-91F0"),
            holding("sdc", Kind::Luks, "", "99-luks"),
            partition("sdd1", "disk-main-root", "8c3b-11"),
        ];
        for (name, device) in [
            ("LABEL=cache", "sda"),
            ("LABEL=CACHE", "none"),
            ("LABEL=1b3e-aa", "none"),
            ("UUID=1B3E-AA", "sda"),
            ("UUID=26a3-91f0", "sdb"),
            ("UUID=99-luks", "sdc"),
            ("PARTLABEL=disk-main-root", "sdd1"),
            ("PARTUUID=8C3B-11", "sdd1"),
            ("/dev/disk/by-label/cache", "sda"),
            ("/dev/sdd1", "sdd1"),
            ("/dev/sde", "none"),
        ] {
            assert_eq!(found(name, &devices), device, "{name}");
        }
    }

    #[test]
    fn a_name_that_two_bear_is_refused_and_both_are_named() {
        let two = [
            holding("sda", Kind::Ext4, "cache", "1"),
            holding("sdb", Kind::Xfs, "cache", "2"),
            holding("sdc", Kind::Xfs, "other", "3"),
        ];
        assert_eq!(found("LABEL=cache", &two), "ambiguous sda sdb");
        assert_eq!(found("UUID=2", &two), "sdb");
        assert_eq!(
            found("PARTLABEL=x", &[partition("sda1", "x", "1"), partition("sdb1", "x", "2")]),
            "ambiguous sda1 sdb1"
        );
    }

    #[test]
    fn a_member_is_never_taken_for_what_is_made_of_it() {
        let member = BlockDevice {
            holders: vec!["md0".into()],
            ..holding("sda1", Kind::MdMember, "cache", "1")
        };
        let array = holding("md0", Kind::Ext4, "cache", "2");
        assert_eq!(found("LABEL=cache", &[member.clone(), array]), "md0");
        assert_eq!(found("LABEL=cache", std::slice::from_ref(&member)), "none");
        assert_eq!(found("UUID=1", &[member]), "none");
    }

    #[test]
    fn a_device_whose_holder_carries_the_same_signature_is_shadowed() {
        let mut path = BlockDevice {
            holders: vec!["dm-0".into()],
            ..holding("sda", Kind::Ext4, "cache", "1")
        };
        let multipath = holding("dm-0", Kind::Ext4, "cache", "1");
        assert_eq!(found("LABEL=cache", &[path.clone(), multipath.clone()]), "dm-0");
        path.holders.clear();
        assert_eq!(found("LABEL=cache", &[path, multipath]), "ambiguous sda dm-0");
    }

    #[test]
    fn a_disk_with_partitions_gives_way_to_them() {
        let disk = BlockDevice {
            partitioned: true,
            ..holding("sda", Kind::Iso9660, "LIVE", "")
        };
        let same = BlockDevice {
            partition: partition("sda1", "x", "1").partition,
            ..holding("sda1", Kind::Iso9660, "LIVE", "")
        };
        assert_eq!(found("LABEL=LIVE", &[disk.clone(), same]), "sda1");
        // Firmware reads a hybrid image's partitions, whose label is another one.
        assert_eq!(found("LABEL=LIVE", &[disk.clone(), partition("sda1", "x", "1")]), "sda");
        assert_eq!(found("/dev/sda", &[disk]), "sda");
        let formatted = BlockDevice {
            partitioned: true,
            ..holding("sda", Kind::Ext4, "LIVE", "")
        };
        assert_eq!(found("LABEL=LIVE", &[formatted]), "none");
    }

    #[test]
    fn conflicting_signatures_are_refused_by_label_and_left_alone_by_path() {
        let content = Content::Conflict(vec![signature(Kind::Ext4, "cache", "1"), signature(Kind::Btrfs, "old", "2")]);
        let devices = [BlockDevice {
            content,
            ..BlockDevice::blank("sda")
        }];
        assert_eq!(found("LABEL=cache", &devices), "conflict sda");
        assert_eq!(found("LABEL=else", &devices), "none");
        assert_eq!(found("/dev/sda", &devices), "sda");
    }

    #[test]
    fn an_open_container_gives_way_to_what_is_in_it() {
        let container = |holders: &[&str]| BlockDevice {
            holders: holders.iter().map(|&name| name.to_owned()).collect(),
            ..holding("sda", Kind::Luks, "data", "1")
        };
        assert_eq!(found("LABEL=data", &[container(&[])]), "sda");
        assert_eq!(
            found("LABEL=data", &[container(&["dm-0"]), holding("dm-0", Kind::Ext4, "data", "2")]),
            "dm-0"
        );
        assert_eq!(
            found("LABEL=data", &[container(&[]), holding("sdb", Kind::Ext4, "data", "2")]),
            "ambiguous sda sdb"
        );
    }

    #[test]
    fn the_devices_of_one_btrfs_are_one_file_system_but_a_copy_of_one_is_not() {
        let devices = [btrfs("sda", "d1"), btrfs("sdb", "d2"), holding("sdc", Kind::Btrfs, "other", "f6")];
        assert_eq!(found("LABEL=pool", &devices), "sda");
        assert_eq!(found("UUID=f5", &devices), "sda");
        let of = |count: u64, names: &[(&str, &str)]| -> String {
            let mut devices: Vec<BlockDevice> = names.iter().map(|(name, id)| btrfs(name, id)).collect();
            for device in &mut devices {
                if let Content::Known(signature) = &mut device.content {
                    signature.devices = Some(count);
                }
            }
            let shown = |devices: Vec<BlockDevice>| devices.iter().map(|device| device.name.clone()).collect::<Vec<_>>().join(" ");
            match members(&devices[0], &devices) {
                Members::All(devices) => format!("all {}", shown(devices)),
                Members::Fewer { there, of } => format!("of {of} {}", shown(there)),
                Members::Twice(devices) => format!("twice {}", shown(devices)),
            }
        };
        assert_eq!(of(2, &[("sda", "d1"), ("sdb", "d2")]), "all sda sdb");
        assert_eq!(of(3, &[("sdb", "d2"), ("sda", "d1")]), "of 3 sdb sda");
        assert_eq!(of(2, &[("sda", "d1"), ("sdb", "d2"), ("sdc", "d2")]), "twice sdb sdc");
        assert_eq!(of(1, &[("sda", "d1")]), "all sda");
        assert_eq!(found("LABEL=pool", &[btrfs("sda", "d1"), btrfs("sdb", "d1")]), "ambiguous sda sdb");
        assert_eq!(
            found("LABEL=pool", &[btrfs("sda", "d1"), holding("sdb", Kind::Ext4, "pool", "f5")]),
            "ambiguous sda sdb"
        );
    }

    #[test]
    fn a_bcachefs_on_several_devices_is_found_by_its_one_uuid() {
        let mut devices = ["sda", "sdb", "sdc"].map(|name| part(Kind::Bcachefs, name, name));
        for device in &mut devices {
            if let Content::Known(signature) = &mut device.content {
                signature.devices = Some(3);
            }
        }
        assert_eq!(found("UUID=f5", &devices), "sda");
        assert!(matches!(members(&devices[1], &devices), Members::All(all) if all.len() == 3 && all[0].name == "sdb"));
        assert!(matches!(members(&devices[0], &devices[..2]), Members::Fewer { of: 3, .. }));
        let copy = part(Kind::Bcachefs, "sdd", "sda");
        assert_eq!(found("UUID=f5", &[devices[0].clone(), copy]), "ambiguous sda sdd");
        let other = part(Kind::Btrfs, "sdd", "sdd");
        assert_eq!(found("UUID=f5", &[devices[0].clone(), other]), "ambiguous sda sdd");
    }

    #[test]
    fn arrays_volumes_and_containers_are_found_by_the_links_of_their_rules() {
        let member = |name: &str| BlockDevice {
            holders: vec!["md127".to_owned()],
            ..holding(name, Kind::MdMember, "host:data", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
        };
        let mapped = |name: &str, mapping: &str, uuid: &str| BlockDevice {
            mapping: Some(Mapping {
                name: mapping.to_owned(),
                uuid: uuid.to_owned(),
            }),
            ..BlockDevice::blank(name)
        };
        let mut part = partition("md127p2", "root", "u");
        if let Some(partition) = &mut part.partition {
            (partition.disk, partition.number) = ("md127".to_owned(), 2);
        }
        let devices = [
            member("sda"),
            member("sdb"),
            BlockDevice::blank("md127"),
            part,
            mapped("dm-0", "vg-root", "LVM-abc"),
            mapped("dm-1", "crypt", ""),
            holding("sdc", Kind::LvmMember, "", "abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345"),
        ];
        for (id, device) in [
            ("md-name-host:data", "md127"),
            ("md-name-host:data-part2", "md127p2"),
            ("md-name-data", "none"),
            ("md-uuid-0a1b2c3d:4e5f6071:8293a4b5:c6d7e8f9", "md127"),
            ("md-uuid-0a1b2c3d:4e5f6071:8293a4b5:c6d7e8f9-part2", "md127p2"),
            ("md-uuid-0a1b2c3d:4e5f6071:8293a4b5:c6d7e8f9-part3", "none"),
            ("md-uuid-", "none"),
            ("dm-name-vg-root", "dm-0"),
            ("dm-uuid-LVM-abc", "dm-0"),
            ("dm-uuid-", "none"),
            ("lvm-pv-uuid-abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345", "sdc"),
        ] {
            assert_eq!(found(&format!("/dev/disk/by-id/{id}"), &devices), device, "{id}");
        }
    }

    #[test]
    fn links_that_udev_made_are_found_and_two_that_claim_one_are_refused() {
        let linked = |name: &str, link: &str| BlockDevice {
            links: vec![link.into(), format!("/dev/disk/by-path/{name}").into()],
            ..BlockDevice::blank(name)
        };
        let devices = [
            linked("sda", "/dev/disk/by-id/ata-A"),
            linked("md127", "/dev/md/data"),
            linked("sdb", "/dev/disk/by-id/ata-twice"),
            linked("sdc", "/dev/disk/by-id/ata-twice"),
        ];
        for (name, device) in [
            ("/dev/disk/by-id/ata-A", "sda"),
            ("/dev/md/data", "md127"),
            ("/dev/disk/by-path/sdc", "sdc"),
            ("/dev/disk/by-id/ata-B", "none"),
            ("/dev/disk/by-id/ata-twice", "ambiguous sdb sdc"),
        ] {
            assert_eq!(found(name, &devices), device, "{name}");
        }
    }

    #[test]
    fn mappings_are_found_by_the_paths_that_lvm_and_the_device_mapper_make() {
        let mapping = |uuid: &str| {
            Some(Mapping {
                name: "my--vg-root".into(),
                uuid: uuid.into(),
            })
        };
        let volume = BlockDevice {
            mapping: mapping("LVM-x"),
            ..BlockDevice::blank("dm-0")
        };
        for (path, device) in [
            ("/dev/mapper/my--vg-root", "dm-0"),
            ("/dev/my-vg/root", "dm-0"),
            ("/dev/my--vg/root", "none"),
            ("/dev/dm-0", "dm-0"),
            ("/dev/my-vg", "none"),
        ] {
            assert_eq!(found(path, std::slice::from_ref(&volume)), device, "{path}");
        }
        let crypt = BlockDevice {
            mapping: mapping("CRYPT-LUKS2-x"),
            ..BlockDevice::blank("dm-0")
        };
        assert_eq!(found("/dev/my-vg/root", &[crypt]), "none");
    }
}
