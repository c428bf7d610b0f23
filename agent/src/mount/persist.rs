//! Persistent mounts: the ordered entries of a system's `fileSystems`, mounted below the new root.
//!
//! A missing data disk never becomes an empty writable folder: where a degraded or optional entry is missing, its mount point is an empty
//! read-only tmpfs named `freshroot-missing`, so that a service that writes there fails instead of writing into RAM.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstat, open};
use serde::Serialize;

use crate::mount::below::{Below, is_folder, is_mount_root};
use crate::mount::check::{self, Checked, check};
use crate::mount::entry::{Creation, DeviceFs, Layers, MountEntry, MountKind, Need, Ownership, SourceKind};
use crate::mount::fs_context::{DetachedMount, FsContext};
use crate::mount::mount_log::MountLog;
use crate::mount::options::{Attributes, FsOption};
use crate::mount::quirks::Layer;
use crate::mount::size::TmpfsSize;
use crate::mount::{quirks, system};

/// The name of the tmpfs that stands where a disk is missing.
pub const MISSING: &str = "freshroot-missing";

/// A device that was found for an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundDevice {
    /// Its path, `/dev/vda1`.
    pub path: PathBuf,
    /// What its probe found on it, for entries of the type `auto`.
    pub fs_type: Option<String>,
    /// All devices of its file system, where that is a btrfs on several; else nothing.
    pub members: Vec<PathBuf>,
    /// The root below which the programs are that check it first; nothing: it is not checked.
    pub check_by: Option<PathBuf>,
    /// Files of sysfs that tell its disks from others, and what they said when it was found.
    pub identities: Vec<(PathBuf, String)>,
    /// Where it is mounted already, as the cache's disk is: it is bound from there, and not mounted or checked a second time.
    pub mounted_at: Option<PathBuf>,
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
    /// Its device and what the check of it came to, where it was checked for this entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<(PathBuf, String)>,
    /// Its device takes no writes, so that it is mounted for reading only although it was to be written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub write_protected: bool,
}

/// Mounts `entries`, which [`order`](crate::mount::order::order) has ordered. `device` finds the device of an entry, waiting as long as the entry allows.
///
/// File systems on disks are mounted first, those on different disks at the same time, as a journal that is replayed can take minutes; then all is attached in
/// order.
///
/// Errors: a required entry that cannot be mounted. What was mounted before it is in the log.
pub fn apply(
    sysroot: &Path,
    entries: &[MountEntry],
    device: &mut dyn FnMut(&MountEntry) -> Result<FoundDevice>,
    log: &mut MountLog,
) -> Result<Vec<EntryOutcome>> {
    let below = Below::open(sysroot)?;
    let mut disks = mount_disks(find_devices(entries, device)?)?;
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut places = Places::default();
    for entry in entries {
        let on_disk = disks.remove(entry.mount_point());
        let checked = on_disk.as_ref().and_then(|mounted| {
            let mounted = mounted.as_ref().ok()?;
            mounted
                .checked
                .as_ref()
                .map(|checked| (mounted.device.clone(), checked.to_string()))
        });
        let write_protected = matches!(&on_disk, Some(Ok(mounted)) if mounted.write_protected);
        let result = match places.missing_above(entry) {
            Some(reason) => Err((anyhow::anyhow!(reason), false)),
            None => attach_entry(&below, entry, on_disk, &places, log).map_err(|err| (err, true)),
        };
        let outcome = match (result, entry.need()) {
            (Ok(()), _) => Outcome::Mounted,
            (Err((err, _)), Need::Required) => return Err(required(entry, err)),
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
            write_protected: write_protected && outcome == Outcome::Mounted,
            outcome,
            checked,
        });
    }
    Ok(outcomes)
}

fn required(entry: &MountEntry, error: anyhow::Error) -> anyhow::Error {
    error.context(format!("mounting {entry}, which the boot requires"))
}

/// An entry on a disk, and its device or why it has none.
struct OnDisk<'a> {
    entry: &'a MountEntry,
    fs: DeviceFs,
    found: Result<FoundDevice>,
}

/// Finds the devices of the entries on disks, but for those that lie below a missing one.
///
/// Errors: that of a required entry, at once: nothing else is waited for then.
fn find_devices<'a>(entries: &'a [MountEntry], device: &mut dyn FnMut(&MountEntry) -> Result<FoundDevice>) -> Result<Vec<OnDisk<'a>>> {
    let mut on_disks: Vec<OnDisk<'a>> = Vec::new();
    for entry in entries {
        let &MountKind::Device(fs) = entry.kind() else { continue };
        let place = entry.mount_point();
        if on_disks
            .iter()
            .any(|above| above.found.is_err() && place.starts_with(above.entry.mount_point()))
        {
            continue;
        }
        let found = device(entry).context("looking for its device");
        match (found, entry.need()) {
            (Err(error), Need::Required) => return Err(required(entry, error)),
            (found, _) => on_disks.push(OnDisk { entry, fs, found }),
        }
    }
    Ok(on_disks)
}

/// A mount that is not attached yet, and what it came from.
struct Mounted {
    mount: DetachedMount,
    device: PathBuf,
    fs: DeviceFs,
    checked: Option<Checked>,
    write_protected: bool,
}

/// Mounts what is on disks, by mount point: what is on one disk in order, different disks at the same time.
fn mount_disks(on_disks: Vec<OnDisk<'_>>) -> Result<BTreeMap<PathBuf, Result<Mounted>>> {
    let mut done = BTreeMap::new();
    let mut by_device: BTreeMap<PathBuf, Vec<(&MountEntry, DeviceFs, FoundDevice)>> = BTreeMap::new();
    for OnDisk { entry, fs, found } in on_disks {
        match found {
            Ok(found) => by_device.entry(found.path.clone()).or_default().push((entry, fs, found)),
            Err(error) => {
                done.insert(entry.mount_point().to_owned(), Err(error));
            }
        }
    }
    let groups: Vec<_> = by_device.into_values().collect();
    let mount_group = |group: &[(&MountEntry, DeviceFs, FoundDevice)]| -> Vec<(PathBuf, Result<Mounted>)> {
        let mut mounted: Vec<(PathBuf, Result<Mounted>)> = Vec::new();
        for (entry, fs, found) in group {
            // It is checked once, before anything of it is mounted; what a check has refused is refused to all.
            let first = !mounted.iter().any(|(_, result)| result.is_ok());
            mounted.push((entry.mount_point().to_owned(), mount_disk(entry, *fs, found, first)));
        }
        mounted
    };
    std::thread::scope(|scope| {
        let (first, rest) = groups.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        let mut threads = Vec::new();
        for group in rest {
            match std::thread::Builder::new().spawn_scoped(scope, || mount_group(group)) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    log::debug!("mounting one after the other: starting a thread: {error}");
                    done.extend(mount_group(group));
                }
            }
        }
        done.extend(first.into_iter().flat_map(|group| mount_group(group)));
        for thread in threads {
            match thread.join() {
                Ok(mounted) => done.extend(mounted),
                Err(_) => bail!("a thread that mounts panicked"),
            }
        }
        Ok(done)
    })
}

fn mount_disk(entry: &MountEntry, fs: DeviceFs, found: &FoundDevice, first: bool) -> Result<Mounted> {
    let fs = resolve_type(fs, found)?;
    if let Some(at) = &found.mounted_at {
        return Ok(Mounted {
            mount: bind_whole(at, entry)?,
            device: found.path.clone(),
            fs,
            checked: None,
            write_protected: false,
        });
    }
    system::is_still_there(&found.identities)?;
    let checked = match &found.check_by {
        Some(root) if first => check(root, &found.path, fs, check::LIMIT).context("checking its file system")?,
        Some(_) | None => None,
    };
    let (mount, write_protected) = system::mount_devices_as_they_are(&found.path, &found.members, fs, entry.options())?;
    // What it said before and says now it said in between: no other disk was mounted.
    system::is_still_there(&found.identities)?;
    Ok(Mounted {
        mount,
        device: found.path.clone(),
        fs,
        checked,
        write_protected,
    })
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

fn attach_entry(below: &Below, entry: &MountEntry, on_disk: Option<Result<Mounted>>, places: &Places, log: &mut MountLog) -> Result<()> {
    let inside = entry.mount_point();
    match entry.kind() {
        MountKind::Device(_) => {
            let Mounted { mount, device, fs, .. } = on_disk.context("its device was not looked for")??;
            let source = device.display().to_string();
            match &entry.options().subdir {
                Some(subdir) => system::attach_subdir(below, &mount, subdir, inside, &source, fs.name(), log),
                None => system::attach(below, &mount, inside, &source, fs.name(), log),
            }
        }
        MountKind::Tmpfs => {
            let context = FsContext::open("tmpfs", entry.device().unwrap_or("tmpfs"))?;
            context.set_options(&entry.options().file_system)?;
            let mount = context.mount(entry.options().attributes)?;
            system::attach(below, &mount, inside, "RAM", "tmpfs", log)
        }
        MountKind::Overlay(layers) => mount_overlay(below, entry, layers, places, log),
        MountKind::Systemds { .. } => look_for_systemds(below, inside),
        MountKind::Bind { source, recursive } => {
            let from = bind_source(below, entry, source, places)?;
            let mount = DetachedMount::clone_of(from.as_fd(), *recursive, &source.display().to_string())?;
            if entry.options().attributes != Attributes::default() {
                mount.set_attributes(entry.options().attributes, false)?;
            }
            let parents = entry.create().parents;
            let target = if is_folder(&fstat(&from)?) {
                let mode = entry.options().mkdir_mode.unwrap_or(Ownership::ROOT.mode);
                below.make_folder_in(inside, Ownership { mode, ..Ownership::ROOT }, parents)?
            } else {
                let owner = Ownership {
                    mode: 0o644,
                    ..Ownership::ROOT
                };
                below.make_file_in(inside, owner, parents)?
            };
            system::attach_to(below, &mount, target.as_fd(), inside, &source.display().to_string(), "bind", log)
        }
        MountKind::Symlink { source } => {
            // Where the disk is missing, the link leads to its stand-in, which takes no writes either.
            if entry.says_create() && !matches!(places.nearest(source), Some((_, false))) {
                bind_source(below, entry, source, places)?;
            }
            below.make_symlink_in(source, inside, entry.create().parents)?;
            log::info!("{} is a symlink to {}", inside.display(), source.display());
            Ok(())
        }
    }
}

/// Mounts an overlay. Its lower folders must be there; the others are made, as the source of a bind is.
fn mount_overlay(below: &Below, entry: &MountEntry, layers: &Layers, places: &Places, log: &mut MountLog) -> Result<()> {
    let open = |path: &Path, made: bool| -> Result<OwnedFd> {
        if made {
            return bind_source(below, entry, path, places);
        }
        if let Some((place, false)) = places.nearest(path) {
            bail!("its folder {} lies below {}, which is missing", path.display(), place.display());
        }
        below
            .find(path)?
            .with_context(|| format!("its lower folder {} does not exist", path.display()))
    };
    let open_layer = |path: &Path, made: bool| -> Result<(PathBuf, OwnedFd)> {
        let folder = open(path, made)?;
        Ok((below.real_path(folder.as_fd())?, folder))
    };
    let lower = layers
        .lower
        .iter()
        .map(|path| open_layer(path, false))
        .collect::<Result<Vec<_>>>()?;
    let upper = match &layers.upper {
        Some((upper, work)) => Some((open_layer(upper, true)?, open_layer(work, true)?)),
        None => None,
    };
    let lower: Vec<Layer<'_>> = lower.iter().map(as_layer).collect();
    let upper = upper.as_ref().map(|(upper, work)| (as_layer(upper), as_layer(work)));
    let options: Vec<FsOption> = entry.overlay_options().cloned().collect();
    let name = entry.device().filter(|name| !name.is_empty()).unwrap_or("overlay");
    let mount = quirks::mount_layers(name, &lower, upper, &options, entry.options().attributes)?;
    system::attach(below, &mount, entry.mount_point(), name, "overlay", log)
}

fn as_layer((path, folder): &(PathBuf, OwnedFd)) -> Layer<'_> {
    Layer {
        path,
        folder: folder.as_fd(),
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

/// A copy of the mount at `at`, for an entry on the same file system.
fn bind_whole(at: &Path, entry: &MountEntry) -> Result<DetachedMount> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(at, flags, Mode::empty()).with_context(|| format!("opening {}", at.display()))?;
    let read_only = rustix::fs::statvfs(at)
        .with_context(|| format!("asking for the file system at {}", at.display()))?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY);
    if read_only && !entry.options().attributes.read_only {
        bail!(
            "it is on one file system with {}, which is mounted for reading only; a warning before this one says why",
            at.display()
        );
    }
    let mount = DetachedMount::clone_of(root.as_fd(), false, &at.display().to_string())?;
    if entry.options().attributes != Attributes::default() {
        mount.set_attributes(entry.options().attributes, false)?;
    }
    Ok(mount)
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
    let Creation { kind, own, parents } = entry.create();
    if let Some(found) = below.find(source)? {
        return match (kind, is_folder(&fstat(&found)?)) {
            (Some(SourceKind::File), true) => bail!(
                "its source {} is a folder, and «create» says that it is a file: correct the entry, or remove the folder",
                source.display()
            ),
            (Some(SourceKind::Folder), false) => bail!(
                "its source {} is no folder, and «create» says that it is one: correct the entry, or remove what is there",
                source.display()
            ),
            (Some(SourceKind::File) | None, false) | (Some(SourceKind::Folder) | None, true) => Ok(found),
        };
    }
    if nearest.is_none() {
        bail!(
            "its source {} does not exist and lies on no mounted entry, so that it would be made in RAM and lost at each boot; \
             mount the disk that holds it first (neededForBoot = true), or correct the path",
            source.display()
        );
    }
    log::info!("making {}, the source of {}", source.display(), entry.mount_point().display());
    match kind {
        Some(SourceKind::File) => below.make_file_in(source, own, parents),
        // What is there already says what it is to be.
        None if is_file_at(below, entry.mount_point())? => below.make_file_in(source, Ownership { mode: 0o644, ..own }, parents),
        Some(SourceKind::Folder) | None => below.make_folder_in(source, own, parents),
    }
}

/// Whether there is something else than a folder at `inside`.
fn is_file_at(below: &Below, inside: &Path) -> Result<bool> {
    Ok(match below.find(inside)? {
        Some(found) => !is_folder(&fstat(&found)?),
        None => false,
    })
}

/// Covers the mount point of a missing entry with an empty tmpfs that takes no writes. A file stays as it is: nothing can be put into it by its name.
fn mount_missing(below: &Below, entry: &MountEntry, log: &mut MountLog) -> Result<()> {
    if is_file_at(below, entry.mount_point())? {
        return Ok(());
    }
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
