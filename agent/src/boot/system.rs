//! The new root: what is mounted below `/sysroot`, from a verified image to the persistent entries.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::disks::{Disks, file_system_of};
use super::{ROOT, Stage};
use crate::device::name::DeviceName;
use crate::foreign;
use crate::handover::mountinfo::whole_mount;
use crate::mode::Mode;
use crate::mount::entry::{DeviceFs, FileSystemEntry, MountEntry, MountKind};
use crate::mount::mount_log::MountLog;
use crate::mount::options;
use crate::mount::order::order;
use crate::mount::persist::{EntryOutcome, FoundDevice, Outcome, apply};
use crate::mount::shared;
use crate::mount::size::TmpfsSize;
use crate::mount::system::{self, RwStore};
use crate::report::Report;
use crate::settings::Settings;
use crate::stack::records;
use crate::store_path::StorePath;
use crate::verify::BootImage;

/// How long the device of an entry is waited for that does not say so itself; what systemd waits for a device (`DefaultDeviceTimeoutSec`).
const DEVICE_WAIT: Duration = Duration::from_secs(90);

/// The entries of `fileSystems`, validated for the mode and in order.
///
/// # Errors
/// Names the entry, what is wrong with it, and the remedy.
pub fn entries(settings: &Settings, mode: Mode) -> Result<Vec<MountEntry>> {
    let list = file_systems(settings)?;
    let cache = &settings.cache;
    if let Some(device) = &cache.device {
        shared::check(device, &cache.fs_type, &cache.options, &list)?;
    }
    Ok(order(&list, mode)?)
}

/// The entries of `fileSystems` as they were written.
///
/// # Errors
/// Names the entry and what cannot be read in it.
pub fn file_systems(settings: &Settings) -> Result<Vec<FileSystemEntry>> {
    let mut entries = Vec::new();
    for (mount_point, object) in &settings.file_systems {
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            // The key is the mount point, as in NixOS; an entry may repeat it.
            fields.entry("mountPoint").or_insert_with(|| mount_point.clone().into());
        }
        let entry: FileSystemEntry = serde_json::from_value(object).map_err(|error| {
            let (mount_point, error) = (foreign::word(mount_point), foreign::sentence(&error.to_string()));
            anyhow!("reading the entry «{mount_point}» of fileSystems: {error}")
        })?;
        anyhow::ensure!(
            entry.mount_point == *mount_point,
            "the entry «{}» of fileSystems says that its mountPoint is {}",
            foreign::word(mount_point),
            foreign::word(&entry.mount_point)
        );
        entries.push(entry);
    }
    Ok(entries)
}

/// Why the store could not be mounted, by whose fault it is.
#[derive(Debug)]
pub enum StoreError {
    /// The image's: another one may do.
    Image(anyhow::Error),
    /// The machine's: no other image helps.
    Machine(anyhow::Error),
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(error) | Self::Machine(error) => write!(f, "{error:#}"),
        }
    }
}

/// Mounts image and store below the sysroot, in standalone mode also the root itself. What was mounted is in the log, also after an error.
///
/// # Errors
/// If a mount fails: only what concerns the image itself is the image's fault.
pub fn mount_store(
    stage: &Stage,
    settings: &Settings,
    image: &BootImage,
    toplevel: &StorePath,
    disks: &mut Disks<'_>,
    log: &mut MountLog,
) -> Result<(), StoreError> {
    let sysroot = stage.sysroot.as_path();
    // Looked for first: without it, no image needs to be mounted.
    let rw_store = rw_store(settings, disks).map_err(StoreError::Machine)?;
    match stage.mode {
        Mode::Standalone => tmpfs_size(settings.root.tmpfs_size)
            .and_then(|size| system::mount_root(sysroot, &size, log))
            .map_err(StoreError::Machine)?,
        Mode::Systemd => {}
    }
    system::mount_image(sysroot, Path::new("/dev"), image.file().as_fd(), true, log).map_err(StoreError::Image)?;
    system::mount_rw_store(sysroot, &rw_store, log)
        .and_then(|()| system::mount_store(sysroot, log))
        .map_err(StoreError::Machine)?;
    system::link_toplevel(sysroot, Path::new(toplevel.as_str())).map_err(StoreError::Image)
}

fn tmpfs_size(size: crate::settings::Size) -> Result<TmpfsSize> {
    Ok(size.to_string().parse()?)
}

fn rw_store(settings: &Settings, disks: &mut Disks<'_>) -> Result<RwStore> {
    let Some(name) = &settings.store.rw_device else {
        return Ok(RwStore::Tmpfs(tmpfs_size(settings.store.tmpfs_size)?));
    };
    let device = disks.find(name, DEVICE_WAIT).context("finding store.rwDevice")?;
    let fs_type = file_system_of(&device)?;
    disks.load_file_system(&fs_type);
    let fs = DeviceFs::of(&fs_type)
        .with_context(|| format!("store.rwDevice holds {fs_type}, which is not mounted here: use ext4, xfs or btrfs"))?;
    Ok(RwStore::Device {
        path: device.path,
        fs,
        options: options::MountOptions::default(),
    })
}

/// Mounts the entries below the sysroot, in systemd mode only those that are the agent's. Warns of each that is missing. Then a root of the agent's own
/// gets the standard folders; in systemd's stage 1 switch-root and NixOS's activation make them.
///
/// # Errors
/// If a required one cannot be mounted.
pub fn mount_entries(stage: &Stage, entries: &[MountEntry], disks: &mut Disks<'_>, log: &mut MountLog, report: &mut Report) -> Result<()> {
    let started = Instant::now();
    for entry in entries.iter().filter(|entry| matches!(entry.kind(), MountKind::Device(_))) {
        let name = entry.device().unwrap_or_default();
        if name.parse().is_ok_and(|name: DeviceName| name.is_by_order()) {
            report.warn(format!(
                "{} is named {name}, which is the order in which the kernel finds disks: after another boot that can be another disk; name it by LABEL, UUID, PARTLABEL or /dev/disk/by-id",
                entry.mount_point().display()
            ));
        }
    }
    // All of them are looked for before the first is written to.
    disks.forget();
    let outcomes = apply(&stage.sysroot, entries, &mut |entry| find_device(entry, started, disks), log);
    for warning in disks.take_warnings() {
        report.warn(warning);
    }
    let outcomes = outcomes?;
    for EntryOutcome {
        mount_point,
        outcome,
        checked,
        write_protected,
        ..
    } in outcomes
    {
        if let Some((device, result)) = checked {
            report.check(&device, result);
        }
        if write_protected {
            report.warn(format!(
                "{} is mounted for reading only: its disk takes no writes; look for a switch on the disk, or give the option «ro» if that is meant",
                mount_point.display()
            ));
        }
        if let Outcome::Missing { reason } = outcome {
            report.warn(format!(
                "{} is missing: {reason}; an empty read-only tmpfs named {} stands there",
                mount_point.display(),
                crate::mount::persist::MISSING
            ));
        }
    }
    match stage.mode {
        Mode::Standalone => {
            if let Err(error) = records::write(Path::new(ROOT)) {
                report.warn(format!("the system's udev may wait for mapped devices: {error:#}"));
            }
            system::make_standard_folders(&stage.sysroot)
        }
        Mode::Systemd => Ok(()),
    }
}

/// Where the file system of a device is mounted as a whole already, as the cache's is where both are on one disk. A btrfs, which has no number of a
/// device, is mounted a second time: subvolumes are mounts of their own.
fn mounted_at(number: (u32, u32)) -> Option<PathBuf> {
    let text = match std::fs::read(Path::new(ROOT).join("proc/self/mountinfo")) {
        Ok(text) => text,
        Err(error) => {
            log::warn!("looking what is mounted: {error}");
            return None;
        }
    };
    whole_mount(&text, number)
}

fn find_device(entry: &MountEntry, started: Instant, disks: &mut Disks<'_>) -> Result<FoundDevice> {
    let name = entry.device().context("the entry names no device")?;
    let limit = entry.timeout().unwrap_or(DEVICE_WAIT);
    let device = disks.find_also(name, started, limit)?;
    device.mountable()?;
    // None is no error yet: with a type in the entry the kernel decides, and without one the mount says what is lacking.
    let fs_type = file_system_of(&device).ok();
    let degraded = entry.options().file_system.iter().any(|option| option.key == "degraded");
    let members = disks.members(&device, degraded, started, limit)?;
    match entry.kind() {
        MountKind::Device(DeviceFs::Auto) => fs_type.iter().for_each(|name| disks.load_file_system(name)),
        MountKind::Device(fs) => disks.load_file_system(fs.name()),
        MountKind::Tmpfs | MountKind::Overlay(_) | MountKind::Bind { .. } | MountKind::Symlink { .. } | MountKind::Systemds { .. } => {}
    }
    Ok(FoundDevice {
        identities: members.iter().filter_map(|member| member.identity(Path::new(ROOT))).collect(),
        path: device.path,
        fs_type,
        members: match members.as_slice() {
            [_] => Vec::new(),
            members => members.iter().map(|member| member.path.clone()).collect(),
        },
        // In systemd's stage 1 no entry of ours is on a disk.
        check_by: (!entry.no_check()).then(|| PathBuf::from(ROOT)),
        mounted_at: mounted_at(device.number),
    })
}
