//! The boot, in order: the only module that knows it.
//!
//! 1. API file systems, log, settings (`standalone`)
//! 2. drivers (from here on: `attempt`)
//! 3. cache disk
//! 4. decide, and act, until an image is ready (the network comes up here, if it must)
//! 5. root, image, store, persistent mounts
//! 6. report, hand-over (`standalone`)
//! 7. after any failure: say why (`failing`), then the failure policy (`fail`, where systemd is PID 1)

pub mod acquire;
mod attempt;
pub mod cache_disk;
pub mod disks;
mod download;
pub mod fail;
mod failing;
pub mod online;
pub mod ram;
pub mod standalone;
pub mod system;
pub mod ticker;

/// Where the cache disk is mounted, in stage 1 and after it.
pub const CACHE: &str = "/run/freshroot/cache";
const ROOT: &str = "/";
