//! What was mounted, in order: to be reported, and to be undone backwards when a later step fails.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::Serialize;

/// One mount that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mounted {
    /// Where, as a path of ours, with symlinks resolved.
    pub at: PathBuf,
    /// From what: a device, a folder, a name.
    pub source: String,
    /// The file system's type, or `bind`.
    pub fs_type: String,
}

impl fmt::Display for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) at {}", self.source, self.fs_type, self.at.display())
    }
}

/// Mounts in the order in which they were made.
#[derive(Debug, Default)]
pub struct MountLog {
    mounts: Vec<Mounted>,
}

impl MountLog {
    /// A log without mounts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a mount, here and in the kernel log.
    pub fn add(&mut self, mounted: Mounted) {
        log::info!("mounted {mounted}");
        self.mounts.push(mounted);
    }

    /// The mounts, oldest first.
    pub fn mounts(&self) -> &[Mounted] {
        &self.mounts
    }

    /// Unmounts everything, newest first, and goes on after errors. Returns what could not be unmounted; the log is empty then.
    pub fn undo(&mut self) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        while let Some(mounted) = self.mounts.pop() {
            match unmount_or_detach(&mounted.at) {
                Ok(()) => log::info!("unmounted {mounted}"),
                Err(err) => {
                    log::warn!("{err:#}");
                    errors.push(err);
                }
            }
        }
        errors
    }
}

/// Unmounts; what is busy is detached, so that it goes with its last user.
fn unmount_or_detach(at: &Path) -> Result<()> {
    match unmount(at, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => {
            log::warn!("{} is busy, detaching it", at.display());
            unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).with_context(|| format!("detaching {}", at.display()))
        }
        Err(errno) => Err(anyhow::Error::new(errno).context(format!("unmounting {}", at.display()))),
    }
}
