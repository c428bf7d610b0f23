//! An image in RAM: for machines without a cache disk, or with one that has no room.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

use crate::cache::Cache;
use crate::digest::Digest;
use crate::formats::manifest::Image;
use crate::mount::options::Attributes;
use crate::mount::quirks::mount_tmpfs;

/// What has to stay free for the system itself: a NixOS that has reached its login prompt uses about as much.
const RESERVE: u64 = 256 << 20;
/// Generation, map and folders.
const SLACK: u64 = 4 << 20;

/// A cache in a tmpfs of its own, gone when this value is dropped before the image was used.
#[derive(Debug)]
pub struct RamStore {
    /// The cache.
    pub cache: Cache,
    /// The image that there is room for.
    pub image: Digest,
    place: Option<PathBuf>,
}

impl RamStore {
    /// A store for one image at `place`, after measuring that it fits; memory is looked up below `root`.
    ///
    /// # Errors
    /// If there is too little memory; says both figures.
    pub fn make(root: &Path, place: &Path, image: &Image) -> Result<Self> {
        let needed = image.size.saturating_add(image.chunk_index.size).saturating_add(SLACK);
        let available = available(&fs::read_to_string(root.join("proc/meminfo")).context("reading /proc/meminfo")?)
            .context("/proc/meminfo does not say MemAvailable")?;
        if available < needed.saturating_add(RESERVE) {
            bail!(
                "the image takes {} MB of RAM and the system needs {} MB besides, {} MB are available: configure a cache disk, or give the machine more memory",
                needed / 1_000_000,
                RESERVE / 1_000_000,
                available / 1_000_000
            );
        }
        fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
        let size = needed.to_string().parse().with_context(|| format!("a tmpfs of {needed} bytes"))?;
        mount_tmpfs("freshroot-ram", &size, 0o700, Attributes::default())?.attach(place)?;
        let cache = Cache::open(&place.join("freshroot"), Instant::now() + Duration::from_secs(1))?;
        log::warn!(
            "the image is kept in RAM ({} MB): it is fetched again at the next boot",
            needed / 1_000_000
        );
        Ok(Self {
            cache,
            image: image.sha256,
            place: Some(place.to_owned()),
        })
    }

    /// It stays mounted: the image in it is in use.
    pub fn keep(mut self) {
        self.place = None;
    }
}

impl Drop for RamStore {
    fn drop(&mut self) {
        let Some(place) = &self.place else { return };
        // Lazily: the lock of the cache is closed a moment later.
        if let Err(error) = unmount(place, UnmountFlags::DETACH) {
            log::warn!("{} stays mounted: {error}", place.display());
        }
    }
}

/// `MemAvailable` in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(available("MemTotal: 100 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        for bad in [
            "",
            "MemAvailable: x kB",
            "MemAvailable: 2048",
            "MemAvailable: 99999999999999999999 kB",
        ] {
            assert_eq!(available(bad), None, "{bad}");
        }
    }
}
