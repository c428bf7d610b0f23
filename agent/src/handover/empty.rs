//! Freeing the memory of the initramfs: everything in the old root is removed, and nothing outside of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2, statat, unlinkat};
use rustix::io::Errno;

/// `statfs` magics of what an initramfs can be: ramfs (`0x858458f6`) and tmpfs (`0x01021994`), from `linux/magic.h`.
const RAMFS: u64 = 0x8584_58f6;
const TMPFS: u64 = 0x0102_1994;

/// Deeper trees do not come in an initramfs (a path is at most 4096 bytes), and each level holds a descriptor.
const MAX_DEPTH: usize = 128;

/// How much was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Files, links and folders that are gone.
    pub removed: u64,
    /// Entries that stayed: on another file system, holding such, or refused by the kernel.
    pub kept: u64,
}

/// Removes everything in the folder `root` if it lies on a ramfs or tmpfs, else nothing and an error.
///
/// By descriptor, never through a symlink, never across a mount: `openat2` refuses to (`RESOLVE_NO_XDEV` sees binds too), and the
/// device numbers are compared as well. What cannot be removed is logged and left.
pub fn remove_contents(root: BorrowedFd<'_>) -> Result<Removed> {
    let magic = fstatfs(root).context("asking for the file system of the old root")?.f_type as u64;
    if magic != RAMFS && magic != TMPFS {
        bail!("the old root lies on a file system that is no initramfs (statfs magic {magic:#x}): nothing is removed from it");
    }
    let device = fstat(root).context("reading the attributes of the old root")?.st_dev;
    let mut counts = Removed::default();
    let folder = open_folder(root, c".").context("opening the old root")?;
    empty(&folder, device, 0, &mut counts).context("listing the old root")?;
    Ok(counts)
}

fn open_folder<P: rustix::path::Arg>(at: BorrowedFd<'_>, name: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    openat2(at, name, flags, Mode::empty(), resolve)
}

/// Names first, removal after: removing while listing may move the position, so that entries are passed over.
fn names_in(folder: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn empty(folder: &OwnedFd, device: u64, depth: usize, counts: &mut Removed) -> Result<(), Errno> {
    for name in names_in(folder)? {
        match remove(folder.as_fd(), &name, device, depth, counts) {
            Ok(()) => counts.removed += 1,
            Err(errno) => {
                log::debug!("keeping {} of the initramfs: {errno}", name.to_string_lossy());
                counts.kept += 1;
            }
        }
    }
    Ok(())
}

fn remove(folder: BorrowedFd<'_>, name: &CStr, device: u64, depth: usize, counts: &mut Removed) -> Result<(), Errno> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if stat.st_dev != device {
        return Err(Errno::XDEV);
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(folder, name, AtFlags::empty());
    }
    if depth >= MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    empty(&open_folder(folder, name)?, device, depth + 1, counts)?;
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}
