//! The cache and an entry on one file system: it is mounted once, so what `cache.options` says of the file system must not contradict the entry.
//!
//! Where both name the disk alike, that is seen when the configuration is read, and refused. Where they name it by two names (a label here, a UUID there), it is
//! seen only when the disk is there, and the entry's options hold, with a warning: a machine that nobody stands beside must come up.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use crate::device::name::DeviceName;
use crate::foreign;
use crate::mount::entry::FileSystemEntry;
use crate::mount::options::{self, MountOptions};

/// `cache.options` and the options of an entry exclude one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    mount_point: String,
    device: String,
    words: Vec<String>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cache.options and the entry «{}» of fileSystems are of one file system ({}), which is mounted once, and the entry does not say {}: \
             remove that from cache.options, or give it to the entry too",
            foreign::word(&self.mount_point),
            foreign::word(&self.device),
            self.words.join(", ")
        )
    }
}

impl std::error::Error for Conflict {}

/// The words of `cache` (`cache.options`) that a file system cannot follow that is mounted with `entry`. Attributes of the mount alone (`noatime`, `nosuid`),
/// words of userspace, and what the entry says too are none of them.
pub fn conflicts(cache: &[String], entry: &MountOptions) -> Vec<String> {
    // What cannot be split is refused elsewhere, by name.
    let Ok(own) = options::split(cache) else { return Vec::new() };
    let differing = own.file_system.iter().filter(|option| !entry.file_system.contains(option));
    let mut words: Vec<String> = differing
        .map(|option| match &option.value {
            Some(value) => format!("«{}={}»", foreign::word(&option.key), foreign::word(value)),
            None => format!("«{}»", foreign::word(&option.key)),
        })
        .collect();
    if !own.attributes.read_only && entry.attributes.read_only && options::words(cache).any(|word| word == "rw") {
        words.push("«rw»".to_owned());
    }
    words
}

/// Whether the cache may be on one file system with each of `entries` that names its device as the cache does.
///
/// A btrfs is left out: it is mounted for each of its subvolumes, and takes what the first of these mounts says.
///
/// # Errors
/// Names the entry, the words and the remedy.
pub fn check(device: &str, fs_type: &str, cache: &[String], entries: &[FileSystemEntry]) -> Result<(), Conflict> {
    let Ok(name) = device.parse::<DeviceName>() else { return Ok(()) };
    let is_btrfs = |fs_type: &str, list: &[String]| fs_type == "btrfs" || options::words(list).any(|word| word.starts_with("subvol"));
    for entry in entries {
        let Some(device) = &entry.device else { continue };
        let same = device.parse::<DeviceName>().is_ok_and(|other| other.is_same(&name));
        if !same || is_btrfs(fs_type, cache) || is_btrfs(&entry.fs_type, &entry.options) {
            continue;
        }
        let Ok(options) = options::split(&entry.options) else { continue };
        let words = conflicts(cache, &options);
        if !words.is_empty() {
            return Err(Conflict {
                mount_point: entry.mount_point.clone(),
                device: device.clone(),
                words,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn checked(cache: (&str, &str, &str), entry: (&str, &str, &str)) -> Result<(), String> {
        let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
        let json = serde_json::json!({
            "mountPoint": "/data", "device": entry.0, "fsType": entry.1, "options": list(entry.2),
        });
        let entry: FileSystemEntry = serde_json::from_value(json).unwrap();
        check(cache.0, cache.1, &list(cache.2), &[entry]).map_err(|error| error.to_string())
    }

    #[test]
    fn what_one_mount_cannot_do_is_refused_and_named() {
        for (cache, entry, words) in [
            ("ro", "defaults", "«ro»"),
            ("rw,noatime", "ro", "«rw»"),
            ("data=writeback", "noatime", "«data=writeback»"),
            ("data=writeback", "data=journal", "«data=writeback»"),
            ("discard,commit=60", "discard,commit=5", "«commit=60»"),
            ("nobarrier,ro", "", "«nobarrier», «ro»"),
        ] {
            let error = checked(("LABEL=d", "ext4", cache), ("/dev/disk/by-label/d", "auto", entry)).expect_err(cache);
            assert!(
                error.contains("«/data»") && error.contains("does not say") && error.contains(words),
                "{error}"
            );
        }
    }

    #[test]
    fn what_does_no_harm_is_not() {
        for (cache, entry) in [
            ("", "ro"),
            ("noatime", "ro"),
            ("noatime,nosuid,nofail,x-systemd.device-timeout=5s", "relatime"),
            ("rw", "defaults"),
            ("ro", "ro,noexec"),
            ("discard,data=journal", "data=journal,noatime,discard"),
        ] {
            assert_eq!(
                checked(("LABEL=d", "ext4", cache), ("LABEL=d", "ext4", entry)),
                Ok(()),
                "{cache} with {entry}"
            );
        }
        let cases = [
            // Another disk, as far as names tell.
            (("LABEL=d", "ext4", "ro"), ("LABEL=e", "ext4", "defaults")),
            (("LABEL=d", "ext4", "ro"), ("tmpfs", "tmpfs", "defaults")),
            (("LABEL=d", "ext4", "ro"), ("/data", "none", "bind")),
            // Subvolumes are mounts of their own.
            (("LABEL=d", "btrfs", "subvol=cache"), ("LABEL=d", "auto", "subvol=data")),
            (("LABEL=d", "auto", "compress=zstd"), ("LABEL=d", "btrfs", "defaults")),
        ];
        for (cache, entry) in cases {
            assert_eq!(checked(cache, entry), Ok(()), "{cache:?} with {entry:?}");
        }
    }
}
