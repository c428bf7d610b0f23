//! Carrying a plan out: the only place that writes to a disk.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::device::probe::signatures;
use crate::mount::loop_device::{LoopDevice, LoopOptions};
use crate::sys;
use crate::tool::{Input, Tool};

use super::look::{Hold, Part};
use super::plan::{Making, Preparation, Step};

/// Programs that make file systems are done in seconds; a disk that discards slowly may take minutes.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Carries all steps out, in their order. `before` is asked before each one, and may end it there; what is begun is recognised later.
///
/// # Errors
/// What could not be done. Before the first write that is a refusal, and the disk is as it was.
pub fn carry_out(preparation: &Preparation, hold: &Hold, before: &mut dyn FnMut(&Step) -> Result<()>) -> Result<()> {
    let programs = programs(preparation, hold.root())?;
    // The last thing before the first write.
    hold.look_again()?;
    for step in &preparation.steps {
        before(step)?;
        match step {
            Step::Write(piece) => hold
                .file()
                .write_all_at(&piece.bytes, piece.offset)
                .with_context(|| format!("writing {} to {}", piece.what, preparation.device.display()))?,
            Step::Flush => hold
                .file()
                .sync_all()
                .with_context(|| format!("flushing {}", preparation.device.display()))?,
            Step::Make(making) => {
                let program = programs.iter().find(|(name, _)| *name == making.format.program());
                let (_, program) = program.context("a program was not looked for")?;
                make(making, program, hold).with_context(|| format!("making {} on {}", making.label, preparation.device.display()))?;
            }
            // The file systems and the table are there in any case, and the next boot sees them.
            Step::Reread => {
                if let Err(error) = sys::reread_partitions(hold.as_fd()) {
                    log::warn!(
                        "the kernel does not look for partitions on {}: {error}",
                        preparation.device.display()
                    );
                }
            }
        }
    }
    Ok(())
}

/// Where the programs are that the steps need: looked for before anything is written.
///
/// # Errors
/// If one is not there.
fn programs(preparation: &Preparation, root: &Path) -> Result<Vec<(&'static str, Tool)>> {
    let mut found = Vec::new();
    for step in &preparation.steps {
        let Step::Make(making) = step else { continue };
        let name = making.format.program();
        let path = Tool::find(root, name).with_context(|| {
            format!(
                "disks.{}: {} is not prepared: there is no {name} here; the initrd must hold it, which the NixOS module sees to",
                preparation.name,
                preparation.device.display()
            )
        })?;
        found.push((name, path));
    }
    Ok(found)
}

/// Makes what a partition is to hold. The place is shown to the program as a loop device over the disk that is held: nobody else sees a partition yet, and
/// the program can reach nothing else of the disk.
fn make(making: &Making, program: &Tool, hold: &Hold) -> Result<()> {
    let options = LoopOptions {
        autoclear: true,
        // Also has the loop device take the disk's logical sectors over.
        direct_io: true,
        offset: making.start,
        size: Some(making.length),
        ..LoopOptions::default()
    };
    let place = LoopDevice::attach(&hold.root().join("dev"), hold.as_fd(), options)?;
    let mut arguments: Vec<&OsStr> = making.arguments.iter().map(OsStr::new).collect();
    arguments.push(place.path().as_os_str());
    let ended = program.run(&arguments, Input::Nothing, PROGRAM_LIMIT)?;
    let program = program.path();
    ensure!(ended.status.success(), "{} {ended}", program.display());
    if !making.subvolumes.is_empty() {
        make_subvolumes(place.path(), &making.subvolumes)?;
    }
    // What the program wrote is in the loop device's cache, then in the disk's.
    rustix::fs::fsync(place.as_fd()).context("flushing the loop device")?;
    drop(place);
    let part = Part {
        disk: hold.file(),
        start: making.start,
        length: making.length,
    };
    let found = signatures(&part, making.length).context("reading back what was made")?;
    ensure!(
        found
            .iter()
            .any(|signature| signature.kind.name() == making.format.name() && signature.uuid.as_deref() == Some(&making.uuid)),
        "{} says that it is done, and no {} {} is there: {found:?}",
        program.display(),
        making.format.name(),
        making.uuid
    );
    Ok(())
}

/// Makes subvolumes on a btrfs that is mounted nowhere: the mount is a descriptor, and ends with it.
fn make_subvolumes(device: &Path, paths: &[String]) -> Result<()> {
    let context = rustix::mount::fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC).context("opening btrfs (is its module loaded?)")?;
    rustix::mount::fsconfig_set_string(&context, "source", device).context("naming the device")?;
    rustix::mount::fsconfig_create(&context).with_context(|| format!("reading the btrfs on {}", device.display()))?;
    let mounted: OwnedFd =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context("mounting it")?;
    let folder = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&mounted, path, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))
    };
    for path in paths {
        let path = Path::new(path);
        let parent = path.parent().unwrap_or(Path::new(""));
        let ancestors: Vec<&Path> = parent.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).collect();
        for ancestor in ancestors.into_iter().rev() {
            match rustix::fs::mkdirat(&mounted, ancestor, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno).with_context(|| format!("making the folder {}", ancestor.display())),
            }
        }
        let name = path.file_name().context("a subvolume has no name")?;
        sys::make_subvolume(folder(parent)?.as_fd(), name).with_context(|| format!("making the subvolume {}", path.display()))?;
    }
    rustix::fs::syncfs(folder(Path::new(""))?).context("flushing the btrfs")
}
