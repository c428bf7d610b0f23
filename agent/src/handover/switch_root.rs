//! The part of a hand-over from which there is no way back: the new root becomes `/`, and this process becomes its `init`.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::handover::empty::remove_contents;
use crate::handover::mountinfo::{mount_points, outside_of};
use crate::handover::plan::HandOver;
use crate::handover::prepare::Prepared;
use crate::mount::below::fd_path;

/// A switch that failed.
#[derive(Debug)]
pub struct SwitchError {
    /// What went wrong.
    pub error: anyhow::Error,
    /// Whether the old root is still there: then the failure policy may do all it can, else it can only reboot or power off.
    pub old_root_is_left: bool,
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)?;
        if !self.old_root_is_left {
            f.write_str(" (the initramfs is gone already: only a reboot helps)")?;
        }
        Ok(())
    }
}

impl std::error::Error for SwitchError {}

/// Makes the prepared root `/` and becomes its `init`. Returns only if that failed.
pub fn switch_root(prepared: Prepared) -> Result<Infallible, SwitchError> {
    let handover = &prepared.handover;
    let old = match move_root(handover) {
        Ok(old) => old,
        Err(error) => {
            for left in prepared.undo() {
                log::warn!("undoing the hand-over: {left:#}");
            }
            return Err(SwitchError {
                error,
                old_root_is_left: true,
            });
        }
    };
    // From here every step that fails is logged and passed over: a system that starts with some memory lost is better than none.
    old.detach_mounts();
    match remove_contents(old.root.as_fd()) {
        Ok(counts) => log::info!("initramfs: {} removed, {} kept", counts.removed, counts.kept),
        Err(err) => log::warn!("the initramfs keeps its memory: {err:#}"),
    }
    drop(old);
    if let Err(err) = open_console() {
        log::warn!("standard input and output stay as they are: {err:#}");
    }
    let init = handover.toplevel.init();
    log::info!("starting {}", init.display());
    // `exec` of the standard library empties the signal mask and takes SIGPIPE back to its default; no other signal was changed, and
    // handlers do not survive it. Descriptors are all close-on-exec but the standard three.
    let error = Command::new(&init)
        .args(&handover.args)
        .env_clear()
        .envs(handover.env.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str())))
        .exec();
    Err(SwitchError {
        error: anyhow::Error::new(error).context(format!("starting {}", init.display())),
        old_root_is_left: false,
    })
}

/// What is left of the old root once it is no longer `/`.
struct OldRoot {
    root: OwnedFd,
    mounts: Vec<(PathBuf, OwnedFd)>,
}

impl OldRoot {
    /// Detaches what is mounted in the old root. Its disks are mounted in the new root too (or were not wanted); a second mount that
    /// nobody can reach would keep them busy at shutdown.
    fn detach_mounts(&self) {
        for (path, mount) in &self.mounts {
            if let Err(errno) = unmount(fd_path(mount.as_fd()), UnmountFlags::DETACH) {
                log::warn!("detaching the old {}: {errno}", path.display());
            }
        }
    }
}

/// Moves the new root's mount onto `/` and changes into it. Everything that can fail comes before the move, or leaves the process where it was.
fn move_root(handover: &HandOver) -> Result<OldRoot> {
    let sysroot = std::fs::canonicalize(&handover.sysroot).with_context(|| format!("resolving {}", handover.sysroot.display()))?;
    let folder = |path: &Path| {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("opening {}", path.display()))
    };
    let new = folder(&sysroot)?;
    let root = folder(Path::new("/"))?;
    let mountinfo = std::fs::read("/proc/thread-self/mountinfo").context("reading the list of mounts")?;
    let mut mounts = Vec::new();
    for path in outside_of(&sysroot, &mount_points(&mountinfo)) {
        match open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => mounts.push((path, fd)),
            // A mount that another one hides, or an automount that does not answer: it goes with the name space.
            Err(errno) => log::warn!("{} stays mounted in the old root: {errno}", path.display()),
        }
    }
    move_mount(&new, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).with_context(|| {
        format!(
            "moving {} to / (in a shared mount name space this is refused: make the mounts private first)",
            sysroot.display()
        )
    })?;
    // Neither can fail for a folder that is open, short of missing privileges, which the move needed too.
    rustix::process::fchdir(&new).context("changing into the new root")?;
    rustix::process::chroot(".").context("changing the root")?;
    rustix::process::chdir("/").context("changing to /")?;
    Ok(OldRoot { root, mounts })
}

fn open_console() -> Result<()> {
    let console = open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).context("opening /dev/console")?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}
