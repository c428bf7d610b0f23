//! The part of a hand-over that can be undone: after an error here, the failure policy finds everything as it was.

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags, open};

use crate::handover::plan::{HandOver, Step, plan};
use crate::handover::run_in_root::{run_in_root, with_variable};
use crate::handover::toplevel;
use crate::mount::api_fs::is_mount_point;
use crate::mount::below::Below;
use crate::mount::entry::Ownership;
use crate::mount::fs_context::DetachedMount;
use crate::mount::mount_log::{MountLog, Mounted};

/// Where programs are looked for while nothing else is said; `prepare-root` of NixOS sets its own.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A new root that is ready to be switched to. Only [`prepare`] makes one.
#[derive(Debug)]
pub struct Prepared {
    pub(super) handover: HandOver,
    shared: MountLog,
}

impl Prepared {
    /// Gives up: takes the shared mounts out of the new root again. Returns what could not be undone.
    pub fn undo(mut self) -> Vec<anyhow::Error> {
        self.shared.undo()
    }
}

/// Shares `/dev /proc /sys /run` with the new root, runs `prepare-root`, and looks once more at `init`.
///
/// The mounts are copied, not moved: the old root keeps its own until the switch, so that an error here leaves a working stage 1. What is
/// mounted in the old root's `/run` after this is not seen in the new root.
pub fn prepare(handover: HandOver) -> Result<Prepared> {
    let mut shared = MountLog::new();
    for step in plan(&handover) {
        if !step.can_be_undone() {
            continue;
        }
        log::info!("hand-over: {step}");
        if let Err(err) = act(&step, &handover, &mut shared) {
            for left in shared.undo() {
                log::warn!("undoing the hand-over: {left:#}");
            }
            return Err(err.context(format!("hand-over: {step}")));
        }
    }
    Ok(Prepared { handover, shared })
}

fn act(step: &Step, handover: &HandOver, shared: &mut MountLog) -> Result<()> {
    match step {
        Step::ShareMounts { from, .. } => share(from, &handover.sysroot, shared),
        Step::RunPrepareRoot { program, limit } => {
            let env = with_variable(&handover.env, "PATH", PATH, true);
            let env = with_variable(&env, "IN_NIXOS_SYSTEMD_STAGE1", "true", false);
            run_in_root(&handover.sysroot, program, &env, *limit)
        }
        Step::CheckInit { .. } => {
            let now = toplevel::check(&handover.sysroot, handover.toplevel.path())?;
            if now.kind() != handover.toplevel.kind() {
                bail!("the toplevel was of kind {} and is now {}", handover.toplevel.kind(), now.kind());
            }
            Ok(())
        }
        Step::MoveRoot { .. } | Step::DetachOldMounts | Step::EmptyInitramfs | Step::OpenConsole | Step::Exec { .. } => Ok(()),
    }
}

fn share(from: &Path, sysroot: &Path, shared: &mut MountLog) -> Result<()> {
    // A plain folder of the initramfs would be shared too, and then be emptied with it.
    if !is_mount_point(Path::new("/"), from)? {
        bail!(
            "nothing is mounted at {}: the kernel's file systems must be mounted before the hand-over",
            from.display()
        );
    }
    let source = open(from, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", from.display()))?;
    let name = from.display().to_string();
    let mount = DetachedMount::clone_of(source.as_fd(), true, &name)?;
    let below = Below::open(sysroot)?;
    let target = below.make_folder(from, Ownership::ROOT)?;
    let at = below.real_path(target.as_fd())?;
    mount.attach_to(target.as_fd(), &below.shown(from))?;
    shared.add(Mounted {
        at,
        source: name,
        fs_type: "bind".to_owned(),
    });
    Ok(())
}
