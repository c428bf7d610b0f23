//! Growing mounted file systems: the kernel does it, by an ioctl of each.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::fstatvfs;

use crate::sys;

/// Grows the file system of type `kind` that is mounted at `point` to its device of `size` bytes. Its bytes before and after, as statvfs(3) counts them.
///
/// # Errors
/// If the kernel refuses, or the type cannot be grown.
pub fn grow(point: &Path, kind: &str, size: u64) -> Result<(u64, u64)> {
    let folder = File::open(point).with_context(|| format!("opening {}", point.display()))?;
    let bytes = || -> Result<(u64, u64)> {
        let stat = fstatvfs(&folder).context("asking for its size")?;
        Ok((stat.f_frsize, stat.f_blocks.saturating_mul(stat.f_frsize)))
    };
    let (block, before) = bytes()?;
    match kind {
        "ext4" => sys::grow_ext4(folder.as_fd(), size.checked_div(block).unwrap_or_default()),
        "xfs" => sys::grow_xfs(folder.as_fd(), size),
        "btrfs" => sys::grow_btrfs(folder.as_fd()).and_then(|devices| match devices {
            1 => Ok(()),
            several => Err(io::Error::other(format!("it is on {several} devices: grow it by hand"))),
        }),
        other => bail!("{other} cannot be grown: ext4, xfs and btrfs can"),
    }
    .with_context(|| format!("growing {kind}"))?;
    Ok((before, bytes()?.1))
}
