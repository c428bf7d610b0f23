//! A root that systemd has mounted, and its `/run`: the one that the running system will have, while stage 1 still has its own.
//!
//! NixOS binds `/run` into the sysroot (`sysroot-run.mount`); switch-root finds a mount there and leaves it, and takes down what is mounted outside the
//! sysroot (systemd's `src/shared/switch-root.c`). systemd makes all mounts shared, so that both `/run` are of one peer group, and a mount below one would
//! appear below the other: twice there, and one of the two out of everybody's reach after the switch, which would keep its file system busy for ever.
//! Hence the sysroot's `/run` becomes a slave of the other: it still gets what comes to that, and keeps what is mounted below it to itself.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Access, Mode, OFlags, access, fstat, open};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::mount::below::{Below, is_mount_root, real_path};
use crate::mount::entry::Ownership;
use crate::mount::fs_context::DetachedMount;
use crate::mount::mount_log::MountLog;
use crate::mount::system::attach_to;

/// Looks whether `sysroot` is a mount that can be written.
///
/// # Errors
/// What it is instead.
pub fn check_sysroot(sysroot: &Path) -> Result<()> {
    let below = Below::open(sysroot)?;
    let root = below.find(Path::new("/"))?.context("the new root vanished")?;
    if !is_mount_root(root.as_fd()).with_context(|| format!("looking what is mounted at {}", sysroot.display()))? {
        bail!("nothing is mounted at {}", sysroot.display());
    }
    // Also for root this is an error where the file system is mounted read-only.
    access(sysroot, Access::WRITE_OK).with_context(|| format!("looking whether {} can be written", sysroot.display()))
}

/// Makes `/run` inside `sysroot` the one below `root` (`/` but in tests), if nobody has, and keeps mounts below it from going elsewhere.
///
/// # Errors
/// If something else is mounted there, or the kernel refuses.
pub fn open_run(sysroot: &Path, root: &Path, log: &mut MountLog) -> Result<()> {
    let inside = Path::new("/run");
    let below = Below::open(sysroot)?;
    let ours = root.join("run");
    let ours = open(&ours, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", ours.display()))?;
    let mut theirs = below.make_folder(inside, Ownership::ROOT)?;
    let shown = below.shown(inside);
    if !is_mount_root(theirs.as_fd()).with_context(|| format!("looking what is mounted at {}", shown.display()))? {
        log::warn!(
            "/run is not bound at {}, as sysroot-run.mount does: it is bound now",
            shown.display()
        );
        let mount = DetachedMount::clone_of(ours.as_fd(), false, "/run")?;
        attach_to(&below, &mount, theirs.as_fd(), inside, "/run", "bind", log)?;
        theirs = below.find(inside)?.context("the folder run vanished")?;
    }
    if !is_same_folder(ours.as_fd(), theirs.as_fd())? {
        bail!(
            "something else than /run is mounted at {}: what is left in /run would not reach the running system",
            shown.display()
        );
    }
    let at = real_path(theirs.as_fd())?;
    mount_change(&at, MountPropagationFlags::DOWNSTREAM)
        .with_context(|| format!("keeping mounts below {} from going elsewhere", at.display()))
}

fn is_same_folder(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    let place = |fd: BorrowedFd<'_>| -> Result<(u64, u64)> {
        let stat = fstat(fd).context("reading the attributes of /run")?;
        Ok((stat.st_dev, stat.st_ino))
    };
    Ok(place(one)? == place(other)?)
}
