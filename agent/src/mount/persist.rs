//! Persistent mounts: the ordered entries of a system's `fileSystems`, mounted below the new root.
//!
//! A missing data disk never becomes an empty writable folder: where a degraded or optional entry is missing, its mount point is an empty
//! read-only tmpfs named `freshroot-missing`, so that a service that writes there fails instead of writing into RAM.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::fstat;
use serde::Serialize;

use crate::mount::below::{Below, is_folder, is_mount_root};
use crate::mount::entry::{DeviceFs, MountEntry, MountKind, Need, Ownership};
use crate::mount::fs_context::{DetachedMount, FsContext};
use crate::mount::mount_log::MountLog;
use crate::mount::options::Attributes;
use crate::mount::size::TmpfsSize;
use crate::mount::{quirks, system};

/// The name of the tmpfs that stands where a disk is missing.
pub const MISSING: &str = "freshroot-missing";

/// A device that was found for an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevice {
    /// Its path, `/dev/vda1`.
    pub path: PathBuf,
    /// What its probe found on it, for entries of the type `auto`.
    pub fs_type: Option<String>,
}

/// How an entry came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is mounted.
    Mounted,
    /// It is not; an empty read-only tmpfs is in its place, or in that of the missing entry it lies below.
    Missing {
        /// Why.
        reason: String,
    },
}

/// An entry and how it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryOutcome {
    /// Where it is (or would be) mounted in the system.
    pub mount_point: PathBuf,
    /// How much the boot needs it.
    pub need: Need,
    /// How it came out.
    pub outcome: Outcome,
}

/// Mounts `entries`, which [`order`](crate::mount::order::order) has ordered. `device` finds the device of an entry, waiting as long as the entry allows.
///
/// Errors: a required entry that cannot be mounted. What was mounted before it is in the log.
pub fn apply(
    sysroot: &Path,
    entries: &[MountEntry],
    device: &mut dyn FnMut(&MountEntry) -> Result<FoundDevice>,
    log: &mut MountLog,
) -> Result<Vec<EntryOutcome>> {
    let below = Below::open(sysroot)?;
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut places = Places::default();
    for entry in entries {
        let result = match places.missing_above(entry) {
            Some(reason) => Err((anyhow::anyhow!(reason), false)),
            None => mount_entry(&below, entry, &places, device, log).map_err(|err| (err, true)),
        };
        let outcome = match (result, entry.need()) {
            (Ok(()), _) => Outcome::Mounted,
            (Err((err, _)), Need::Required) => return Err(err.context(format!("mounting {entry}, which the boot requires"))),
            (Err((err, own_place)), Need::Degraded | Need::Optional) => {
                let reason = format!("{err:#}");
                // The caller warns, by the outcome.
                log::debug!("{entry} is missing: {reason}");
                if own_place {
                    mount_missing(&below, entry, log)
                        .with_context(|| format!("keeping the place of {entry}, which is missing ({reason})"))?;
                }
                Outcome::Missing { reason }
            }
        };
        places.note(entry, &outcome);
        outcomes.push(EntryOutcome {
            mount_point: entry.mount_point().to_owned(),
            need: entry.need(),
            outcome,
        });
    }
    Ok(outcomes)
}

/// Which mount points came out how, so far.
#[derive(Debug, Default)]
struct Places {
    mounted: BTreeMap<PathBuf, bool>,
}

impl Places {
    fn note(&mut self, entry: &MountEntry, outcome: &Outcome) {
        self.mounted
            .insert(entry.mount_point().to_owned(), matches!(outcome, Outcome::Mounted));
    }

    /// The nearest entry at or above `path`, and whether it is mounted.
    fn nearest(&self, path: &Path) -> Option<(&Path, bool)> {
        path.ancestors()
            .find_map(|place| self.mounted.get_key_value(place))
            .map(|(place, mounted)| (place.as_path(), *mounted))
    }

    /// Why an entry is missing because of another: its mount point or the source of its bind lies below a missing one.
    fn missing_above(&self, entry: &MountEntry) -> Option<String> {
        if let Some((place, false)) = self.nearest(entry.mount_point()) {
            return Some(format!("its mount point lies below {}, which is missing", place.display()));
        }
        None
    }
}

fn mount_entry(
    below: &Below,
    entry: &MountEntry,
    places: &Places,
    device: &mut dyn FnMut(&MountEntry) -> Result<FoundDevice>,
    log: &mut MountLog,
) -> Result<()> {
    let inside = entry.mount_point();
    match entry.kind() {
        MountKind::Device(fs) => {
            let found = device(entry).context("looking for its device")?;
            let fs = resolve_type(*fs, &found)?;
            let mount = system::mount_device(&found.path, fs, entry.options())?;
            system::attach(below, &mount, inside, &found.path.display().to_string(), fs.name(), log)
        }
        MountKind::Tmpfs => {
            let context = FsContext::open("tmpfs", entry.device().unwrap_or("tmpfs"))?;
            context.set_options(&entry.options().file_system)?;
            let mount = context.mount(entry.options().attributes)?;
            system::attach(below, &mount, inside, "RAM", "tmpfs", log)
        }
        MountKind::Systemds { .. } => look_for_systemds(below, inside),
        MountKind::Bind { source, recursive } => {
            let from = bind_source(below, entry, source, places)?;
            let mount = DetachedMount::clone_of(from.as_fd(), *recursive, &source.display().to_string())?;
            if entry.options().attributes != Attributes::default() {
                mount.set_attributes(entry.options().attributes, false)?;
            }
            let target = if is_folder(&fstat(&from)?) {
                let mode = entry.options().mkdir_mode.unwrap_or(Ownership::ROOT.mode);
                below.make_folder(inside, Ownership { mode, ..Ownership::ROOT })?
            } else {
                below.make_file(inside)?
            };
            system::attach_to(below, &mount, target.as_fd(), inside, &source.display().to_string(), "bind", log)
        }
    }
}

/// Whether something is mounted where systemd was to mount it.
fn look_for_systemds(below: &Below, inside: &Path) -> Result<()> {
    let found = below.find(inside)?;
    let mounted = match &found {
        Some(place) => {
            is_mount_root(place.as_fd()).with_context(|| format!("looking what is mounted at {}", below.shown(inside).display()))?
        }
        None => false,
    };
    if !mounted {
        bail!(
            "systemd mounted nothing at {}; «systemctl status» and the journal say why",
            below.shown(inside).display()
        );
    }
    Ok(())
}

/// The type of an entry's file system: its own, or what the probe found.
fn resolve_type(fs: DeviceFs, found: &FoundDevice) -> Result<DeviceFs> {
    if fs != DeviceFs::Auto {
        return Ok(fs);
    }
    let path = found.path.display();
    match &found.fs_type {
        None => bail!("no known file system was found on {path}; give its type as «fsType»"),
        Some(name) => match DeviceFs::of(name) {
            Some(fs) if fs != DeviceFs::Auto => Ok(fs),
            Some(_) | None => {
                bail!("{path} holds «{name}», which stage 1 does not mount; set neededForBoot = false so that stage 2 mounts it")
            }
        },
    }
}

/// The source of a bind, made where it is missing and where that makes sense.
///
/// It is made only on something that another entry mounted. Anywhere else it would be a folder in RAM: what is meant to persist would be lost
/// at each boot, silently.
fn bind_source(below: &Below, entry: &MountEntry, source: &Path, places: &Places) -> Result<OwnedFd> {
    let nearest = places.nearest(source);
    if let Some((place, false)) = nearest {
        bail!("its source lies below {}, which is missing", place.display());
    }
    if let Some(found) = below.find(source)? {
        return Ok(found);
    }
    if nearest.is_none() {
        bail!(
            "its source {} does not exist and lies on no mounted entry, so that it would be made in RAM and lost at each boot; \
             mount the disk that holds it first (neededForBoot = true), or correct the path",
            source.display()
        );
    }
    log::info!("making {}, the source of {}", source.display(), entry.mount_point().display());
    below.make_folder(source, entry.create())
}

/// Covers the mount point of a missing entry with an empty tmpfs that takes no writes.
fn mount_missing(below: &Below, entry: &MountEntry, log: &mut MountLog) -> Result<()> {
    let attributes = Attributes {
        read_only: true,
        no_suid: true,
        no_dev: true,
        no_exec: true,
        ..Attributes::default()
    };
    let size: TmpfsSize = "4k".parse()?;
    let mount = quirks::mount_tmpfs(MISSING, &size, 0o555, attributes)?;
    system::attach(below, &mount, entry.mount_point(), MISSING, "tmpfs", log)
}
