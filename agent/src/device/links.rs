//! The names of a disk below `/dev/disk/by-id` and `/dev/disk/by-path`, where there is no udev that makes the links.
//!
//! They are those that systemd's own rules give (`rules.d/60-persistent-storage.rules`, and its `ata_id`, `scsi_id`, `usb_id`, `path_id`), told from sysfs alone: a
//! disk is asked nothing. Links of the device mapper's and mdadm's rules are told in `resolve`; sg3-utils' `scsi-S…` are not known.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// All links of a disk, or of its partition `partition`. `folder` is the disk's folder in `/sys/devices`, without symlinks.
pub(super) fn links(folder: &Path, sequence: Option<u64>, partition: Option<u32>) -> Vec<PathBuf> {
    let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let suffix = partition.map(|number| format!("-part{number}")).unwrap_or_default();
    let by = |kind: &str, id: &str| PathBuf::from(format!("/dev/disk/by-{kind}/{id}{suffix}"));
    let ids = ids(folder, name).into_iter().map(|id| by("id", &id));
    let paths = paths(folder, name).into_iter().map(|path| by("path", &path));
    let sequence = sequence.map(|sequence| by("diskseq", &sequence.to_string()));
    ids.chain(paths).chain(sequence).collect()
}

fn ids(folder: &Path, name: &str) -> Vec<String> {
    let attribute = |path: &str| attribute(folder, path).filter(|text| !text.trim().is_empty());
    if name.starts_with("vd") {
        return attribute("serial")
            .map(|serial| format!("virtio-{}", replaced(&serial)))
            .into_iter()
            .collect();
    }
    if name.starts_with("nvme") {
        let mut ids: Vec<String> = attribute("wwid")
            .map(|wwid| format!("nvme-{}", replaced(&wwid)))
            .into_iter()
            .collect();
        if let (Some(model), Some(serial)) = (attribute("device/model"), attribute("device/serial")) {
            let id = format!("nvme-{}_{}", replaced(&model), replaced(&serial));
            ids.extend(attribute("nsid").map(|nsid| format!("{id}_{nsid}")));
            ids.push(id);
        }
        return ids;
    }
    if name.starts_with("mmcblk") {
        let name_and_serial = attribute("device/name").zip(attribute("device/serial"));
        return name_and_serial
            .map(|(name, serial)| format!("mmc-{}_{}", replaced(&name), replaced(&serial)))
            .into_iter()
            .collect();
    }
    if name.starts_with("sd") || name.starts_with("sr") {
        return scsi_ids(folder);
    }
    Vec::new()
}

/// A disk behind the SCSI layer: SATA, USB, SAS, virtio.
fn scsi_ids(folder: &Path) -> Vec<String> {
    let attribute = |path: &str| attribute(folder, path).unwrap_or_default();
    let (vendor, model) = (attribute("device/vendor"), attribute("device/model"));
    if let Some(serial) = usb_serial(folder) {
        // The target and unit in the disk's address: a card reader has several.
        let Some(address) = address(folder) else { return Vec::new() };
        let parts: Vec<String> = [vendor.as_str(), &model, &serial]
            .into_iter()
            .map(collapsed)
            .filter(|part| !part.is_empty())
            .collect();
        return vec![format!("usb-{}-{}:{}", parts.join("_"), address[2], address[3])];
    }
    let designators = match fs::read(folder.join("device/vpd_pg83")) {
        Ok(page) => designators(&page),
        Err(_) => BTreeMap::new(),
    };
    let mut ids = Vec::new();
    if let Some(name) = designators.get(&NAA) {
        let hex = hexadecimal(name);
        // `ID_WWN_WITH_EXTENSION`: both halves of a long one.
        ids.push(format!("wwn-0x{hex}"));
        if vendor.trim() != "ATA" {
            ids.push(format!("scsi-3{hex}"));
        }
    } else if vendor.trim() != "ATA" {
        if let Some(id) = designators.get(&EUI_64) {
            ids.push(format!("scsi-2{}", hexadecimal(id)));
        } else if let Some(id) = designators.get(&T10) {
            ids.push(format!("scsi-1{}", collapsed(&text(id))));
        } else if let Some(id) = designators.get(&OWN) {
            ids.push(format!("scsi-0{}", collapsed(&format!("{vendor:8}{model:16}{}", text(id)))));
        }
    }
    // libata's designator: «ATA     », 40 characters of model, 20 of serial number.
    if let Some(id) = designators.get(&T10).map(|id| text(id))
        && vendor.trim() == "ATA"
        && let (Some(model), Some(serial)) = (id.get(8..48), id.get(48..68))
    {
        ids.push(format!("ata-{}_{}", collapsed(model), collapsed(serial)));
    }
    ids
}

/// Types of designators in the device identification page (SPC-4, 7.8.6), in the order of their worth.
const NAA: u8 = 3;
const EUI_64: u8 = 2;
const T10: u8 = 1;
const OWN: u8 = 0;

/// The first designator of each type that names the unit itself, and not its port or target.
fn designators(page: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut rest = page.get(4..).unwrap_or_default();
    while let Some((&[_, kind, _, length], tail)) = rest.split_first_chunk::<4>() {
        let Some(id) = tail.get(..usize::from(length)) else { break };
        if kind & 0x30 == 0 && !id.is_empty() {
            found.entry(kind & 0x0f).or_insert_with(|| id.to_vec());
        }
        rest = &tail[usize::from(length)..];
    }
    found
}

/// The serial number of the USB device that the disk is behind.
fn usb_serial(folder: &Path) -> Option<String> {
    let devices = folder.ancestors().take_while(|path| *path != Path::new("/"));
    let mut usb = devices.filter(|path| path.join("idVendor").exists() && path.join("serial").exists());
    attribute(usb.next()?, "serial")
}

/// Host, channel, target and unit.
fn address(folder: &Path) -> Option<[u32; 4]> {
    let name = folder.parent()?.parent()?.file_name()?.to_str()?;
    let numbers: Vec<u32> = name.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.try_into().ok()
}

/// How the disk is connected, from the PCI function on.
fn paths(folder: &Path, name: &str) -> Vec<String> {
    let parts: Vec<&str> = folder.iter().filter_map(|part| part.to_str()).collect();
    let Some(at) = parts.iter().rposition(|part| is_pci_function(part)) else {
        return Vec::new();
    };
    let pci = format!("pci-{}", parts[at]);
    let behind = &parts[at + 1..];
    if name.starts_with("vd") {
        return vec![pci.clone(), format!("virtio-{pci}")];
    }
    if name.starts_with("nvme") {
        let nsid = attribute(folder, "nsid");
        return nsid.map(|nsid| format!("{pci}-nvme-{nsid}")).into_iter().collect();
    }
    let Some(host) = behind.iter().position(|part| part.starts_with("host")) else {
        return Vec::new();
    };
    let parent: PathBuf = parts[..=at + host].iter().collect();
    if let Some(port) = behind.iter().find(|part| is_numbered(part, "ata")) {
        let number = attribute(&parent, &format!("ata_port/{port}/port_no")).unwrap_or_else(|| port[3..].to_owned());
        return vec![format!("{pci}-ata-{number}.0"), format!("{pci}-ata-{number}")];
    }
    let Some([_, channel, target, unit]) = address(folder) else {
        return Vec::new();
    };
    let scsi = format!("scsi-{}:{channel}:{target}:{unit}", host_among_its_siblings(&parent, behind[host]));
    let interface = behind
        .iter()
        .filter(|part| part.contains(':') && part.contains('-'))
        .find_map(|part| part.split_once('-'));
    match interface {
        Some((_, port)) => vec![format!("{pci}-usb-0:{port}-{scsi}"), format!("{pci}-usbv2-0:{port}-{scsi}")],
        None => vec![format!("{pci}-{scsi}")],
    }
}

fn is_pci_function(name: &str) -> bool {
    let shape: String = name.chars().map(|c| if c.is_ascii_hexdigit() { 'x' } else { c }).collect();
    shape == "xxxx:xx:xx.x"
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The number of a SCSI host counted from the first one of the same device: the kernel's own number changes from boot to boot.
fn host_among_its_siblings(parent: &Path, host: &str) -> u32 {
    let number = |name: &str| name.strip_prefix("host").and_then(|number| number.parse::<u32>().ok());
    let own = number(host).unwrap_or(0);
    let siblings = match fs::read_dir(parent) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| number(&entry.file_name().to_string_lossy()))
            .min(),
        Err(_) => None,
    };
    own - siblings.unwrap_or(own).min(own)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As udev's `string_escape=replace` writes an attribute: no blanks at its end, and `_` for every character that has no place in a link.
fn replaced(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii();
    text.trim_end().chars().map(|c| if harmless(c) { c } else { '_' }).collect()
}

/// As udev's helpers write a fixed-width field: blanks around it gone, each run of blanks one `_`.
fn collapsed(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    replaced(&words.join("_"))
}

/// An attribute's text, if it is there. Absence is an answer in sysfs: `partition` exists in partitions only.
pub(super) fn attribute(folder: &Path, name: &str) -> Option<String> {
    // Sysfs gives all of an attribute at once, and a page of it at most.
    let mut page = [0; 4096];
    let read = File::open(folder.join(name)).and_then(|mut file| file.read(&mut page));
    let text = str::from_utf8(page.get(..read.unwrap_or(0))?).unwrap_or_default();
    (!text.is_empty()).then(|| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// The links of a disk with these attributes, by-id and by-path without what stands before them.
    fn found(folder: &str, attributes: &[(&str, &[u8])], partition: Option<u32>) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("sys/devices");
        let folder = devices.join(folder);
        fs::create_dir_all(&folder).unwrap();
        if !folder.join("device").exists() && folder.parent().unwrap().ends_with("block") {
            std::os::unix::fs::symlink("../..", folder.join("device")).unwrap();
        }
        for (name, value) in attributes {
            let path = match name.strip_prefix('^') {
                Some(above) => devices.join(above),
                None => folder.join(name),
            };
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        links(&folder, None, partition)
            .iter()
            .map(|link| link.strip_prefix("/dev/disk").unwrap().display().to_string())
            .collect()
    }

    /// A device identification page of these (code set, type, designator).
    fn page(designators: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let mut page = vec![0, 0x83, 0, 0];
        for (code_set, kind, id) in designators {
            page.extend([*code_set, *kind, 0, u8::try_from(id.len()).unwrap()]);
            page.extend_from_slice(id);
        }
        page
    }

    #[test]
    fn a_virtio_disk_is_known_by_its_serial_and_its_slot() {
        let folder = "pci0000:00/0000:00:05.0/virtio2/block/vda";
        assert_eq!(
            found(folder, &[("serial", b"data 1")], Some(2)),
            [
                "by-id/virtio-data_1-part2",
                "by-path/pci-0000:00:05.0-part2",
                "by-path/virtio-pci-0000:00:05.0-part2"
            ]
        );
        assert_eq!(found(folder, &[("serial", b"\n")], None).len(), 2, "no serial is no name");
    }

    #[test]
    fn an_nvme_disk_is_known_by_model_and_serial_and_by_its_wwid() {
        let folder = "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1";
        let attributes: &[(&str, &[u8])] = &[
            ("device/model", b"Samsung SSD 970 EVO 1TB          \n"),
            ("device/serial", b"S5H9NS0N 986704R  \n"),
            ("wwid", b"eui.0025385b01404dc8\n"),
            ("nsid", b"1\n"),
        ];
        assert_eq!(
            found(folder, attributes, None),
            [
                "by-id/nvme-eui.0025385b01404dc8",
                "by-id/nvme-Samsung_SSD_970_EVO_1TB_S5H9NS0N_986704R_1",
                "by-id/nvme-Samsung_SSD_970_EVO_1TB_S5H9NS0N_986704R",
                "by-path/pci-0000:03:00.0-nvme-1"
            ]
        );
    }

    #[test]
    fn a_sata_disk_is_known_by_its_whole_model_and_its_port() {
        let folder = "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0/block/sda";
        let id = format!("ATA     {:40}{:20}", "WDC WD40EFRX-68N32N0", "     WD-WCC7K1234567");
        let page = page(&[
            (2, 0, b"WD-WCC7K1234567"),
            (2, 1, id.as_bytes()),
            (1, 3, &[0x50, 0x01, 0x4e, 0xe2, 0xb8, 0x12, 0x34, 0x56]),
        ]);
        let attributes: &[(&str, &[u8])] = &[
            ("device/vendor", b"ATA     \n"),
            ("device/model", b"WDC WD40EFRX-68N\n"),
            ("device/vpd_pg83", &page),
            ("^pci0000:00/0000:00:1f.2/ata3/ata_port/ata3/port_no", b"3\n"),
        ];
        assert_eq!(
            found(folder, attributes, None),
            [
                "by-id/wwn-0x50014ee2b8123456",
                "by-id/ata-WDC_WD40EFRX-68N32N0_WD-WCC7K1234567",
                "by-path/pci-0000:00:1f.2-ata-3.0",
                "by-path/pci-0000:00:1f.2-ata-3"
            ]
        );
    }

    #[test]
    fn a_usb_stick_is_known_by_its_serial_and_a_scsi_disk_by_what_it_says_of_itself() {
        let stick = "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:1/block/sdb";
        let attributes: &[(&str, &[u8])] = &[
            ("device/vendor", b"SanDisk \n"),
            ("device/model", b"Ultra Fit       \n"),
            ("^pci0000:00/0000:00:14.0/usb1/1-2/idVendor", b"0781\n"),
            ("^pci0000:00/0000:00:14.0/usb1/1-2/serial", b"4C530001\n"),
        ];
        assert_eq!(
            found(stick, attributes, Some(1)),
            [
                "by-id/usb-SanDisk_Ultra_Fit_4C530001-0:1-part1",
                "by-path/pci-0000:00:14.0-usb-0:2:1.0-scsi-0:0:0:1-part1",
                "by-path/pci-0000:00:14.0-usbv2-0:2:1.0-scsi-0:0:0:1-part1"
            ]
        );
        let scsi = "pci0000:00/0000:00:06.0/virtio3/host3/target3:0:2/3:0:2:0/block/sdc";
        let own = page(&[(2, 0, b"drive-scsi2"), (1, 0x13, &[1; 8])]);
        let attributes: &[(&str, &[u8])] = &[
            ("device/vendor", b"QEMU    \n"),
            ("device/model", b"QEMU HARDDISK   \n"),
            ("device/vpd_pg83", &own),
        ];
        assert_eq!(
            found(scsi, attributes, None),
            [
                "by-id/scsi-0QEMU_QEMU_HARDDISK_drive-scsi2",
                "by-path/pci-0000:00:06.0-scsi-0:0:2:0"
            ]
        );
    }

    #[test]
    fn a_page_that_is_cut_names_what_is_whole() {
        let whole = page(&[(1, 3, &[1; 8]), (2, 1, b"vendor")]);
        for length in 0..whole.len() {
            assert!(designators(&whole[..length]).len() <= 1, "{length}");
        }
        assert_eq!(designators(&whole).len(), 2);
    }
}
