//! What the kernel says of disks: which there are, what they are called, and who uses them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::device::observe::{BlockDevice, observe};

use super::blank::Uses;
use super::identity::{Ids, Known};

/// All disks, with what they say of themselves.
///
/// # Errors
/// If they cannot be listed.
pub fn known(root: &Path) -> Result<Vec<Known>> {
    let disks = observe(root).context("listing /sys/class/block")?;
    Ok(disks
        .into_iter()
        .filter(|disk| disk.partition.is_none())
        .map(|disk| Known {
            ids: ids(root, &disk.name),
            disk,
        })
        .collect())
}

/// What sysfs says of the disk `name`. Attributes that are absent are those that this kind of disk does not have.
pub fn ids(root: &Path, name: &str) -> Ids {
    let folder = root.join("sys/class/block").join(name);
    let attribute = |path: &str| match fs::read(folder.join(path)) {
        Ok(bytes) => {
            // A page of vital product data has a header of four bytes.
            let bytes = if path.ends_with("vpd_pg80") {
                bytes.get(4..).unwrap_or_default()
            } else {
                &bytes
            };
            let text = String::from_utf8_lossy(bytes);
            let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
            (!text.is_empty()).then(|| text.to_owned())
        }
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                log::debug!("{name}: {path}: {error}");
            }
            None
        }
    };
    Ids {
        serial: ["serial", "device/serial", "device/vpd_pg80"]
            .iter()
            .find_map(|path| attribute(path)),
        wwn: ["wwid", "device/wwid"].iter().find_map(|path| attribute(path)),
    }
}

/// The node of a disk.
pub fn node(root: &Path, disk: &BlockDevice) -> PathBuf {
    root.join(disk.path.strip_prefix("/").unwrap_or(&disk.path))
}

/// Bytes of its logical sectors.
///
/// # Errors
/// If sysfs does not say.
pub fn sector(root: &Path, name: &str) -> Result<u32> {
    let path = root.join("sys/class/block").join(name).join("queue/logical_block_size");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().with_context(|| format!("reading {}", path.display()))
}

/// Who uses a disk or its partitions.
///
/// # Errors
/// If it is gone or has changed, or it cannot be told.
pub fn uses(root: &Path, disk: &BlockDevice) -> Result<Uses> {
    let all = observe(root).context("listing /sys/class/block")?;
    let now = all.iter().find(|other| other.name == disk.name && other.sequence == disk.sequence);
    let now = now.with_context(|| format!("{} is gone", disk.path.display()))?;
    anyhow::ensure!(now.size == disk.size, "its size has changed to {} bytes", now.size);
    let parts: Vec<&BlockDevice> = all
        .iter()
        .filter(|other| other.partition.as_ref().is_some_and(|partition| partition.disk == disk.name))
        .collect();
    let mut uses = Uses {
        partitions: parts.iter().map(|part| part.name.clone()).collect(),
        by: Vec::new(),
    };
    if !now.holders.is_empty() && disk.holders.is_empty() {
        uses.by.push(format!("it is held by {}", now.holders.join(", ")));
    }
    let ours = |number: (u32, u32)| number == disk.number || parts.iter().any(|part| part.number == number);
    let mounts = root.join("proc/self/mountinfo");
    let mounts = fs::read_to_string(&mounts).with_context(|| format!("reading {}", mounts.display()))?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let number = words.nth(2).and_then(|number| number.split_once(':'));
        let number = number.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        if number.is_some_and(ours) {
            uses.by.push(format!("it is mounted at {}", words.nth(1).unwrap_or_default()));
        }
    }
    let is_one = |path: &str| std::iter::once(&disk).chain(&parts).any(|device| device.path == Path::new(path));
    match fs::read_to_string(root.join("proc/swaps")) {
        Ok(swaps) => {
            for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
                if is_one(path) {
                    uses.by.push(format!("{path} is swapped to"));
                }
            }
        }
        // A kernel without swap has no such file.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("reading /proc/swaps"),
    }
    for other in &all {
        let backing = root.join("sys/class/block").join(&other.name).join("loop/backing_file");
        if let Ok(file) = fs::read_to_string(backing)
            && is_one(file.trim_end())
        {
            uses.by.push(format!("it is behind {}", other.path.display()));
        }
    }
    Ok(uses)
}
