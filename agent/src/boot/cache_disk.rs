//! The cache disk: mounted, and its cache opened.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::ROOT;
use super::disks::{Disks, file_system_of};
use crate::cache::{Cache, atomic};
use crate::device::observe::{BlockDevice, observe};
use crate::device::probe::Kind;
use crate::device::resolve::{Match, resolve};
use crate::mode::Mode;
use crate::mount::check::{self, check};
use crate::mount::entry::{DeviceFs, MountEntry, MountKind};
use crate::mount::shared::conflicts;
use crate::mount::{options, system};
use crate::report::Report;
use crate::settings::Settings;

/// Mounts the cache disk at `at`; where it cannot be written, for reading only.
///
/// # Errors
/// If its file system is none that is mounted here, or the kernel refuses.
pub fn mount_cache(at: &Path, settings: &Settings, entries: &[MountEntry], disks: &mut Disks<'_>, report: &mut Report) -> Result<PathBuf> {
    let cache = &settings.cache;
    let name = cache.device.as_ref().context("no cache.device is configured")?;
    let device = disks.find(name, cache.wait)?;
    device.mountable()?;
    let fs_type = if cache.fs_type == "auto" {
        file_system_of(&device)?
    } else {
        cache.fs_type.clone()
    };
    disks.load_file_system(&fs_type);
    let fs = DeviceFs::of(&fs_type).with_context(|| {
        format!(
            "{} holds {fs_type}, which cannot hold the cache: use ext4, xfs, btrfs or vfat",
            device.path.display()
        )
    })?;
    let mut options = options::split(&cache.options)?;
    if let Some(entry) = shared(&device, entries, disks) {
        log::info!("the cache is on one file system with {entry}, whose options hold");
        // Where both had one name this was refused before.
        let conflicts = conflicts(&cache.options, entry.options());
        if !conflicts.is_empty() {
            report.warn(format!(
                "of cache.options, {} is left aside: the cache ({name}) is on one file system with {entry}, which is mounted once, with the entry's options; \
                 remove it from cache.options, or give it to the entry too",
                conflicts.join(", ")
            ));
        }
        options = entry.options().clone();
    }
    // In systemd's stage 1 systemd-fsck comes before the agent.
    if disks.mode() == Mode::Standalone {
        match check(Path::new(ROOT), &device.path, fs, check::LIMIT) {
            Ok(Some(checked)) => report.check(&device.path, checked.to_string()),
            Ok(None) => {}
            // What is read from it is verified, wherever it comes from.
            Err(error) => {
                report.check(&device.path, format!("{error:#}"));
                report.warn(format!("the cache is mounted for reading only: {error:#}"));
                options.make_read_only();
            }
        }
    }
    std::fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
    let identity: Vec<_> = device.identity(Path::new(ROOT)).into_iter().collect();
    system::is_still_there(&identity)?;
    let (mounted, _) = system::mount_devices_as_they_are(&device.path, &[], fs, &options)?;
    system::is_still_there(&identity)?;
    mounted.attach(at)?;
    log::info!("cache: {device} at {}", at.display());
    Ok(device.path)
}

/// The entry that is on the same file system as the cache. A btrfs is mounted for each of its subvolumes.
fn shared<'a>(device: &BlockDevice, entries: &'a [MountEntry], disks: &Disks<'_>) -> Option<&'a MountEntry> {
    if disks.mode() == Mode::Systemd || device.content.signature().is_some_and(|signature| signature.kind == Kind::Btrfs) {
        return None;
    }
    let on_disks = entries.iter().filter(|entry| matches!(entry.kind(), MountKind::Device(_)));
    let mut named = on_disks.filter_map(|entry| Some((entry, entry.device()?.parse().ok()?))).peekable();
    named.peek()?;
    let seen = observe(Path::new(ROOT)).unwrap_or_else(|error| {
        log::warn!("looking whether something is on the cache's disk: {error}");
        Vec::new()
    });
    named
        .find(|(_, name)| matches!(resolve(name, &seen), Match::One(other) if other.number == device.number))
        .map(|(entry, _)| entry)
}

/// The folder of a cache on the file system that is mounted at `mounted`.
pub fn cache_folder(mounted: &Path, settings: &Settings) -> PathBuf {
    mounted.join(&settings.cache.path)
}

/// Opens the cache, waiting a moment for a refresh that may hold it.
///
/// # Errors
/// See [`Cache::open`].
pub fn open_cache(folder: &Path) -> Result<Cache> {
    /// At boot nobody else should be there at all.
    const LOCK_WAIT: Duration = Duration::from_secs(5);
    let cache = match Cache::open(folder, Instant::now() + LOCK_WAIT) {
        // What cannot be written, locked or tidied up can be read: a full disk must not make a good image useless.
        Err(error) if folder.join("generations").is_dir() => {
            log::warn!("{error:#}");
            Cache::for_reading(folder)
        }
        other => other?,
    };
    if !cache.writable() {
        log::warn!(
            "the cache {} cannot be written: what it holds can be booted, nothing new is kept",
            folder.display()
        );
    }
    if let Ok(names) = atomic::names(folder) {
        log::debug!("{}: {}", folder.display(), names.join(" "));
    }
    Ok(cache)
}
