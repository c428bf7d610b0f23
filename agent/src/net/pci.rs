//! Network cards that are there and have no driver: what to say when there is no interface.

use std::path::Path;
use std::{fs, io};

/// The virtio device type of a network card (virtio specification, chapter 5).
const VIRTIO_NET: &str = "0x0001";
/// More cards than this are not listed.
const MAX_LISTED: usize = 16;

/// The network cards below `sys` (where sysfs is mounted) that no driver has taken, described for people, sorted. A bus that is not there has
/// none.
pub fn without_driver(sys: &Path) -> Vec<String> {
    let pci = devices(&sys.join("bus/pci/devices"), |device| {
        // PCI class 02xxxx is «network controller».
        let class = attribute(device, "class")?;
        let (vendor, id) = (attribute(device, "vendor")?, attribute(device, "device")?);
        let hex = |t: &str| t.trim_start_matches("0x").to_owned();
        class
            .starts_with("0x02")
            .then(|| format!("PCI {} [{}:{}]", name(device), hex(&vendor), hex(&id)))
    });
    let virtio = devices(&sys.join("bus/virtio/devices"), |device| {
        (attribute(device, "device")? == VIRTIO_NET).then(|| format!("{} (driver virtio_net)", name(device)))
    });
    let mut found: Vec<String> = pci.into_iter().chain(virtio).collect();
    found.sort();
    found.truncate(MAX_LISTED);
    found
}

fn devices(bus: &Path, describe: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let entries = match fs::read_dir(bus) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(err) => {
            log::warn!("network: {}: {err}", bus.display());
            return Vec::new();
        }
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|device| fs::symlink_metadata(device.join("driver")).is_err())
        .filter_map(|device| describe(&device))
        .collect()
}

fn attribute(device: &Path, name: &str) -> Option<String> {
    let path = device.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(err) => {
            log::debug!("network: {}: {err}", path.display());
            None
        }
    }
}

fn name(device: &Path) -> String {
    device.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn cards_without_a_driver_are_listed_and_others_are_not() {
        let sys = tempfile::tempdir().unwrap();
        for (folder, files, driver) in [
            (
                "bus/pci/devices/0000:00:03.0",
                &[("class", "0x020000\n"), ("vendor", "0x8086\n"), ("device", "0x100e\n")][..],
                false,
            ),
            (
                "bus/pci/devices/0000:00:04.0",
                &[("class", "0x020000\n"), ("vendor", "0x10ec\n"), ("device", "0x8168\n")],
                true,
            ),
            (
                "bus/pci/devices/0000:00:05.0",
                &[("class", "0x010601\n"), ("vendor", "0x8086\n"), ("device", "0x2922\n")],
                false,
            ),
            ("bus/pci/devices/0000:00:06.0", &[("class", "0x020000\n")], false),
            ("bus/virtio/devices/virtio0", &[("device", "0x0001\n")], false),
            ("bus/virtio/devices/virtio1", &[("device", "0x0002\n")], false),
        ] {
            let folder = sys.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
            if driver {
                std::os::unix::fs::symlink("/nonexistent", folder.join("driver")).unwrap();
            }
        }
        assert_eq!(
            without_driver(sys.path()),
            ["PCI 0000:00:03.0 [8086:100e]", "virtio0 (driver virtio_net)"]
        );
    }

    #[test]
    fn a_machine_without_these_buses_has_none() {
        assert_eq!(without_driver(Path::new("/nonexistent")), Vec::<String>::new());
    }
}
