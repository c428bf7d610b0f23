//! The part of a hand-over that can be undone: after an error here, the failure policy finds everything as it was.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::handover::plan::{HandOver, Step, plan};
use crate::handover::run_in_root::{run_in_root, with_variable};
use crate::handover::toplevel;
use crate::mount::api_fs::is_mount_point;
use crate::mount::below::Below;
use crate::mount::entry::Ownership;
use crate::mount::fs_context::DetachedMount;

/// Where programs are looked for while nothing else is said; `prepare-root` of NixOS sets its own.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A new root that is ready to be switched to. Only [`prepare`] makes one.
#[derive(Debug)]
pub struct Prepared {
    pub(super) handover: HandOver,
    shared: Vec<Shared>,
}

/// A folder whose mounts are in the new root now, and copies of them in the old one.
#[derive(Debug)]
struct Shared {
    /// In the old root, `/run`.
    from: PathBuf,
    /// In the new root, `/sysroot/run`.
    at: PathBuf,
}

impl Prepared {
    /// Gives up: takes the shared mounts out of the new root again. Returns what could not be undone.
    pub fn undo(mut self) -> Vec<anyhow::Error> {
        undo(&mut self.shared)
    }
}

/// Shares `/dev /proc /sys /run` with the new root, runs `prepare-root`, and looks once more at `init`.
///
/// The mounts are moved, and copies of them stay in the old root: an error here leaves a working stage 1. It has to be this way round. A
/// loop device holds the file of the image through the mount that it was opened in; if that were the one that is left behind, the new system
/// could unmount its own at shutdown, but would never reach the one that keeps the file system in use, and its journal would stay open. What is
/// mounted in the old root's `/run` after this is not seen in the new root.
pub fn prepare(handover: HandOver) -> Result<Prepared> {
    let mut shared = Vec::new();
    for step in plan(&handover) {
        if !step.can_be_undone() {
            continue;
        }
        let level = match step {
            // The same four on every machine.
            Step::ShareMounts { .. } => log::Level::Debug,
            Step::RunPrepareRoot { .. }
            | Step::CheckInit { .. }
            | Step::MoveRoot { .. }
            | Step::DetachOldMounts
            | Step::EmptyInitramfs
            | Step::OpenConsole
            | Step::Exec { .. } => log::Level::Info,
        };
        log::log!(level, "hand-over: {step}");
        if let Err(err) = act(&step, &handover, &mut shared) {
            for left in undo(&mut shared) {
                log::warn!("undoing the hand-over: {left:#}");
            }
            return Err(err.context(format!("hand-over: {step}")));
        }
    }
    Ok(Prepared { handover, shared })
}

fn act(step: &Step, handover: &HandOver, shared: &mut Vec<Shared>) -> Result<()> {
    match step {
        Step::ShareMounts { from, .. } => share(from, &handover.sysroot, shared),
        Step::RunPrepareRoot { program, limit } => {
            let env = with_variable(&handover.env, "PATH", PATH, true);
            let env = with_variable(&env, "IN_NIXOS_SYSTEMD_STAGE1", "true", false);
            run_in_root(&handover.sysroot, program, &env, *limit)
        }
        Step::CheckInit { .. } => {
            let now = toplevel::check(&handover.sysroot, handover.toplevel.path(), crate::mode::Mode::Standalone)?;
            if now.kind() != handover.toplevel.kind() {
                bail!("the toplevel was of kind {} and is now {}", handover.toplevel.kind(), now.kind());
            }
            Ok(())
        }
        Step::MoveRoot { .. } | Step::DetachOldMounts | Step::EmptyInitramfs | Step::OpenConsole | Step::Exec { .. } => Ok(()),
    }
}

fn share(from: &Path, sysroot: &Path, shared: &mut Vec<Shared>) -> Result<()> {
    // A plain folder of the initramfs would be shared too, and then be emptied with it.
    if !is_mount_point(Path::new("/"), from)? {
        bail!(
            "nothing is mounted at {}: the kernel's file systems must be mounted before the hand-over",
            from.display()
        );
    }
    let original = folder(from)?;
    let copy = DetachedMount::clone_of(original.as_fd(), true, &from.display().to_string())?;
    let below = Below::open(sysroot)?;
    let target = below.make_folder(from, Ownership::ROOT)?;
    let at = below.real_path(target.as_fd())?;
    move_onto(original.as_fd(), target.as_fd()).with_context(|| format!("moving the mounts at {} to {}", from.display(), at.display()))?;
    shared.push(Shared { from: from.to_owned(), at });
    Ok(copy.attach(from)?)
}

/// Takes what was shared back into the old root, the last first. Returns what could not be undone.
fn undo(shared: &mut Vec<Shared>) -> Vec<anyhow::Error> {
    let mut left = Vec::new();
    while let Some(one) = shared.pop() {
        if let Err(error) = take_back(&one) {
            left.push(error);
        }
    }
    left
}

fn take_back(Shared { from, at }: &Shared) -> Result<()> {
    let original = folder(at)?;
    // The copy, which nothing depends on; it is not there if attaching it was what failed.
    if is_mount_point(Path::new("/"), from)? {
        unmount(from.as_path(), UnmountFlags::DETACH).with_context(|| format!("detaching the copy at {}", from.display()))?;
    }
    let target = folder(from)?;
    move_onto(original.as_fd(), target.as_fd()).with_context(|| format!("moving the mounts at {} back to {}", at.display(), from.display()))
}

fn folder(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("opening {}", path.display()))
}

fn move_onto(mount: BorrowedFd<'_>, folder: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", folder, c"", flags)
}
