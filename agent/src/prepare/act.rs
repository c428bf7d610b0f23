//! Carrying a plan out: the only place that writes to a disk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::device::probe::{ReadAt, signatures};
use crate::mount::loop_device::{LoopDevice, LoopOptions};
use crate::sys;
use crate::tool::{Input, Tool};

use super::content::KeyFile;
use super::grow::Growth;
use super::look::{Hold, Part};
use super::plan::{Made, Making, Preparation, Step};

/// Programs that make file systems are done in seconds; a disk that discards slowly may take minutes.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What a container is called while something is made in it.
const OPENED: &str = "freshroot-prepare";

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
            Step::Make(making) => {
                make(making, &programs, hold).with_context(|| format!("making {} on {}", making.label, preparation.device.display()))?;
            }
            Step::Write(_) | Step::Flush | Step::Reread => write(step, hold.file(), &preparation.device)?,
        }
    }
    Ok(())
}

/// Grows a partition in the table of the disk `file`, which is held.
///
/// # Errors
/// What could not be done; the next boot goes on.
pub fn carry_out_growth(growth: &Growth, file: &File, device: &Path, before: &mut dyn FnMut(&Step) -> Result<()>) -> Result<()> {
    growth.steps.iter().try_for_each(|step| {
        before(step)?;
        write(step, file, device)
    })
}

fn write(step: &Step, file: &File, device: &Path) -> Result<()> {
    let device = device.display();
    match step {
        Step::Write(piece) => file
            .write_all_at(&piece.bytes, piece.offset)
            .with_context(|| format!("writing {} to {device}", piece.what)),
        Step::Flush => file.sync_all().with_context(|| format!("flushing {device}")),
        // What was written is there in any case, and the next boot sees it.
        Step::Reread => {
            if let Err(error) = sys::reread_partitions(file.as_fd()) {
                log::warn!("the kernel does not look for partitions on {device}: {error}");
            }
            Ok(())
        }
        Step::Make(making) => anyhow::bail!("{} is not made by writing", making.label),
    }
}

/// Where the programs are that the steps need: looked for before anything is written.
///
/// # Errors
/// If one is not there.
fn programs(preparation: &Preparation, root: &Path) -> Result<Vec<(&'static str, Tool)>> {
    let mut found = Vec::new();
    for step in &preparation.steps {
        let Step::Make(making) = step else { continue };
        let refused = || format!("disks.{}: {} is not prepared", preparation.name, preparation.device.display());
        for made in making.made.layers() {
            let name = made.format.program();
            let path = Tool::find(root, name).with_context(|| {
                format!(
                    "{}: there is no {name} here; the initrd must hold it, which the NixOS module sees to",
                    refused()
                )
            })?;
            found.push((name, path));
            if let Some((key, _)) = &made.inside {
                key_arguments(key, root).with_context(refused)?;
            }
        }
    }
    Ok(found)
}

/// Makes what a partition is to hold. The place is shown to the program as a loop device over the disk that is held: nobody else sees a partition yet, and
/// the program can reach nothing else of the disk.
fn make(making: &Making, programs: &[(&str, Tool)], hold: &Hold) -> Result<()> {
    let options = LoopOptions {
        autoclear: true,
        // Also has the loop device take the disk's logical sectors over.
        direct_io: true,
        offset: making.start,
        size: Some(making.length),
        ..LoopOptions::default()
    };
    let place = LoopDevice::attach(&hold.root().join("dev"), hold.as_fd(), options)?;
    make_on(place.path(), &making.made, programs, hold.root())?;
    // What the program wrote is in the loop device's cache, then in the disk's.
    rustix::fs::fsync(place.as_fd()).context("flushing the loop device")?;
    drop(place);
    let part = Part {
        disk: hold.file(),
        start: making.start,
        length: making.length,
    };
    must_be_there(&making.made, &part, making.length)
}

/// Makes `made` on `device`, and in it what belongs there.
fn make_on(device: &Path, made: &Made, programs: &[(&str, Tool)], root: &Path) -> Result<()> {
    let program = programs.iter().find(|(name, _)| *name == made.format.program());
    let (_, program) = program.context("a program was not looked for")?;
    let run = |arguments: &[OsString]| -> Result<()> {
        let ended = program.run(arguments, Input::Nothing, PROGRAM_LIMIT)?;
        ensure!(ended.status.success(), "{} {ended}", program.path().display());
        Ok(())
    };
    let key = match &made.inside {
        Some((key, _)) => key_arguments(key, root)?,
        None => Vec::new(),
    };
    let arguments = made.arguments.iter().map(OsString::from).chain(key.iter().cloned());
    run(&arguments.chain([device.into()]).collect::<Vec<_>>())?;
    if !made.subvolumes.is_empty() {
        make_subvolumes(device, &made.subvolumes)?;
    }
    if let Some((_, Some(inside))) = &made.inside {
        let open = ["open", "--type", "luks2"].map(OsString::from).into_iter().chain(key);
        run(&open.chain([device.into(), OPENED.into()]).collect::<Vec<_>>()).context("opening the container")?;
        let mapped = root.join("dev/mapper").join(OPENED);
        let done = make_on(&mapped, inside, programs, root).and_then(|()| {
            let file = File::open(&mapped).with_context(|| format!("opening {}", mapped.display()))?;
            file.sync_all().context("flushing the container")?;
            let length = (&file).seek(SeekFrom::End(0)).context("measuring the container")?;
            must_be_there(inside, &file, length)
        });
        // In any case: what is open holds the disk.
        let closed = run(&["close", OPENED].map(OsString::from)).context("closing the container");
        done.and(closed)?;
    }
    Ok(())
}

/// Whether the program did what it said.
fn must_be_there(made: &Made, place: &dyn ReadAt, length: u64) -> Result<()> {
    let found = signatures(place, length).context("reading back what was made")?;
    ensure!(
        found
            .iter()
            .any(|signature| signature.kind.name() == made.format.name() && signature.uuid.as_deref() == Some(&made.uuid)),
        "{} says that it is done, and no {} {} is there: {found:?}",
        made.format.program(),
        made.format.name(),
        made.uuid
    );
    Ok(())
}

/// What `cryptsetup` is told of a key; its file must be there.
fn key_arguments(key: &KeyFile, root: &Path) -> Result<Vec<OsString>> {
    let path = root.join(key.path.strip_prefix("/").unwrap_or(&key.path));
    let bytes = fs::read(&path).with_context(|| format!("reading the key {}: the initrd must hold it", path.display()))?;
    let mut arguments = vec!["--key-file".into(), path.into_os_string()];
    let last = bytes.iter().rposition(|byte| !(key.typed && *byte == b'\n'));
    let length = last.map_or(0, |last| last + 1);
    ensure!(length != 0, "the key {} is empty", key.path.display());
    arguments.extend(["--keyfile-size".into(), length.to_string().into()]);
    Ok(arguments)
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
