//! The boot, in order: the only module that knows it.
//!
//! | | standalone: PID 1 (`standalone`) | a unit of systemd's stage 1 (`in_systemd`) |
//! |---|---|---|
//! | 1 | API file systems | `/run` of the sysroot, which systemd has mounted |
//! | 2 | log, settings | the same |
//! | 3 | drivers (from here on: `attempt`) | a file system's at most: the rest is udev's |
//! | | declared disks that are blank are prepared | what came of it is taken over: a unit before this one has done it (`prepare`) |
//! | 4 | LUKS containers; cache disk, medium | without LUKS, which is systemd's; below the sysroot's `/run` |
//! | 5 | decide, and act, until an image is ready (the network comes up here, if it must) | the same |
//! | 6 | root, image, store, persistent mounts | image, store, binds; whether systemd's mounts are there |
//! | 7 | report, hand-over | report; systemd switches root |
//! | 8 | after any failure: say why (`failing`), then the failure policy | say why, undo, end: a unit of its own has the failure policy (`fail`) |

pub mod acquire;
mod ahead;
mod attempt;
pub mod cache_disk;
pub mod deadline;
pub mod disks;
pub mod download;
pub mod fail;
mod failing;
pub mod generations;
pub mod in_systemd;
pub mod ledger;
pub mod medium;
pub mod online;
pub mod prepare;
pub mod ram;
pub mod standalone;
pub mod swap;
pub mod system;
pub mod ticker;
mod unlock;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::keyboard::Keys;
use crate::mode::Mode;
use deadline::Deadline;
use ram::RamStore;

/// Where the cache disk is mounted, as the running system sees it.
pub const CACHE: &str = "/run/freshroot/cache";
/// Where an image that is kept in RAM is mounted, as the running system sees it.
const RAM: &str = "/run/freshroot/ram";
/// Where a medium with a served folder is mounted, as the running system sees it.
const MEDIA: &str = "/run/freshroot/media";
const ROOT: &str = "/";

/// Which part of stage 1 this is, and where the new root is.
#[derive(Debug)]
pub struct Stage {
    /// Which part.
    pub mode: Mode,
    /// The new root, normally `/sysroot`.
    pub sysroot: PathBuf,
    /// When somebody else ends it.
    pub deadline: Deadline,
    /// What an attempt that failed has left in RAM, for the next one.
    ram: Mutex<Option<RamStore>>,
}

impl Stage {
    /// A stage at `sysroot`.
    pub fn new(mode: Mode, sysroot: PathBuf) -> Self {
        let deadline = match mode {
            Mode::Standalone => Deadline::none(),
            Mode::Systemd => Deadline::of_initrd(Path::new(ROOT)),
        };
        let ram = Mutex::default();
        Self {
            mode,
            sysroot,
            deadline,
            ram,
        }
    }

    /// Leaves an image in RAM to the next attempt.
    fn leave(&self, store: RamStore) {
        *self.ram.lock().unwrap_or_else(PoisonError::into_inner) = Some(store);
    }

    /// What the attempt before has left.
    fn left(&self) -> Option<RamStore> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// On which consoles keys count.
    const fn keys(&self) -> Keys {
        match self.mode {
            Mode::Standalone => Keys::Everywhere,
            Mode::Systemd => Keys::First,
        }
    }

    /// Where the cache disk is mounted.
    pub fn cache(&self) -> PathBuf {
        self.kept(CACHE)
    }

    /// Where an image that is kept in RAM is mounted.
    pub fn ram(&self) -> PathBuf {
        self.kept(RAM)
    }

    /// Where a medium with a served folder is mounted.
    pub fn media(&self) -> PathBuf {
        self.kept(MEDIA)
    }

    /// Where something below `/run` is mounted so that the running system has it. systemd's stage 1 has bound `/run` into the sysroot by then, and takes
    /// down what lies outside of it.
    fn kept(&self, path: &str) -> PathBuf {
        match self.mode {
            Mode::Standalone => PathBuf::from(path),
            Mode::Systemd => self.sysroot.join(Path::new(path).strip_prefix(ROOT).unwrap_or(Path::new(path))),
        }
    }
}
