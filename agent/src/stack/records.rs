//! What the running system's udev has to know of devices that were mapped where no udev ran.
//!
//! Its rules for the device mapper take no notice of a device that they meet at coldplug, unless an earlier event was that of its making
//! (`DM_UDEV_PRIMARY_SOURCE_FLAG`, kept in udev's own record; lvm2's `10-dm.rules`, in Debian `55-dm.rules`): no links, and `SYSTEMD_READY=0`, so that systemd
//! would wait for the device of a mount that has long been made.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where udev keeps its records, below the root.
const RECORDS: &str = "run/udev/data";
/// The word that the rules look for.
const RECORD: &str = "E:DM_UDEV_PRIMARY_SOURCE_FLAG=1\n";

/// Writes a record for each mapped device below `root` (`/`) that has none.
///
/// # Errors
/// Those of reading sysfs and writing to `/run`.
pub fn write(root: &Path) -> Result<()> {
    let class = root.join("sys/class/block");
    let folder = root.join(RECORDS);
    for entry in fs::read_dir(&class).with_context(|| format!("listing {}", class.display()))? {
        let device = entry.with_context(|| format!("listing {}", class.display()))?.path();
        if !device.join("dm").exists() {
            continue;
        }
        let number = fs::read_to_string(device.join("dev")).with_context(|| format!("reading the number of {}", device.display()))?;
        let record = folder.join(format!("b{}", number.trim()));
        if record.exists() {
            continue;
        }
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(&record, RECORD).with_context(|| format!("writing {}", record.display()))?;
    }
    Ok(())
}

/// Adds `link` (below `/dev`) to the record of the device with this number, which is made if there is none. What udev finds out later replaces it.
///
/// # Errors
/// Those of reading and writing `/run`.
pub fn add_link(root: &Path, number: (u32, u32), link: &Path) -> Result<()> {
    let folder = root.join(RECORDS);
    let (major, minor) = number;
    let record = folder.join(format!("b{major}:{minor}"));
    let is_mapped = root.join(format!("sys/dev/block/{major}:{minor}/dm")).exists();
    let mut text = match fs::read_to_string(&record) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => if is_mapped { RECORD } else { "" }.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", record.display())),
    };
    let link = link.strip_prefix("/dev").unwrap_or(link);
    let line = format!("S:{}\n", link.display());
    if text.contains(&line) {
        return Ok(());
    }
    text.push_str(&line);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    fs::write(&record, text).with_context(|| format!("writing {}", record.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_link_is_added_to_the_record_once() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/dev/block/253:0/dm")).unwrap();
        for (number, link) in [
            ((8, 1), "/dev/disk/by-label/a\\x20b"),
            ((8, 1), "/dev/disk/by-label/a\\x20b"),
            ((253, 0), "/dev/vg/swap"),
        ] {
            add_link(root.path(), number, Path::new(link)).unwrap();
        }
        let read = |name: &str| fs::read_to_string(root.path().join(RECORDS).join(name)).unwrap();
        assert_eq!(read("b8:1"), "S:disk/by-label/a\\x20b\n");
        assert_eq!(read("b253:0"), format!("{RECORD}S:vg/swap\n"));
    }

    #[test]
    fn mapped_devices_get_a_record_and_others_none() {
        let root = tempfile::tempdir().unwrap();
        let class = root.path().join("sys/class/block");
        for (name, number) in [("sda", "8:0"), ("dm-0", "253:0"), ("dm-1", "253:1")] {
            fs::create_dir_all(class.join(name).join(if name == "sda" { "queue" } else { "dm" })).unwrap();
            fs::write(class.join(name).join("dev"), format!("{number}\n")).unwrap();
        }
        let records = root.path().join(RECORDS);
        fs::create_dir_all(&records).unwrap();
        fs::write(records.join("b253:1"), "S:mapper/x\n").unwrap();
        write(root.path()).unwrap();
        assert_eq!(fs::read_to_string(records.join("b253:0")).unwrap(), RECORD);
        assert_eq!(fs::read_to_string(records.join("b253:1")).unwrap(), "S:mapper/x\n");
        assert!(!records.join("b8:0").exists());
    }
}
