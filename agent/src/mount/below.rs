//! Paths inside a new root, resolved as that root will see them: a symlink to `/etc` means the root's own `/etc`, and nothing leads out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, fchmod, fchown, fstat, mkdirat, open, openat,
    openat2, readlinkat, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::mount::entry::Ownership;

/// `openat2` answers EAGAIN when a rename or a mount happened while it resolved `..`; nothing does so for long.
const RESOLVE_ATTEMPTS: usize = 16;

/// A new root, held open.
#[derive(Debug)]
pub struct Below {
    root: OwnedFd,
    path: PathBuf,
}

impl Below {
    /// Opens the folder `root`, with what is mounted on it now.
    pub fn open(root: &Path) -> Result<Self> {
        let fd = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("opening the new root {}", root.display()))?;
        Ok(Self {
            root: fd,
            path: root.to_owned(),
        })
    }

    /// Where the root is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where `inside` is, as a path of ours: for messages.
    pub fn shown(&self, inside: &Path) -> PathBuf {
        self.path.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Opens `inside` with `flags`, resolved inside the root.
    pub fn open_with(&self, inside: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match openat2(
                self.root.as_fd(),
                inside,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            ) {
                Err(Errno::AGAIN) if attempts < RESOLVE_ATTEMPTS => {}
                result => return result,
            }
        }
    }

    /// Finds `inside`: a descriptor that names it and opens nothing. `None` if it does not exist.
    pub fn find(&self, inside: &Path) -> Result<Option<OwnedFd>> {
        match self.open_with(inside, OFlags::PATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(anyhow::Error::new(errno).context(format!("looking up {}", self.shown(inside).display()))),
        }
    }

    /// The folder `inside`, made where it is missing: the last part with `owner`, parents as root and 0755. What exists stays as it is.
    pub fn make_folder(&self, inside: &Path, owner: Ownership) -> Result<OwnedFd> {
        self.make_folder_in(inside, owner, Ownership::ROOT)
    }

    /// As [`Below::make_folder`], with an owner and mode for the parents too.
    pub fn make_folder_in(&self, inside: &Path, owner: Ownership, parents: Ownership) -> Result<OwnedFd> {
        let mut at = self
            .open_with(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)
            .context("opening the new root")?;
        let mut prefix = PathBuf::from("/");
        let mut names = inside.strip_prefix("/").unwrap_or(inside).iter().peekable();
        while let Some(name) = names.next() {
            prefix.push(name);
            let shown = self.shown(&prefix);
            if let Some(found) = self.find(&prefix)? {
                if !is_folder(&fstat(&found)?) {
                    bail!("{} is in the way: a folder is needed here, and it is none", shown.display());
                }
                at = found;
                continue;
            }
            match mkdirat(&at, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                Err(Errno::EXIST) => bail!("{} is a symlink to nothing: a folder is needed here", shown.display()),
                Err(errno) => return Err(anyhow::Error::new(errno).context(format!("making the folder {}", shown.display()))),
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(&at, name, flags, Mode::empty()).with_context(|| format!("opening the new folder {}", shown.display()))?;
            let owner = if names.peek().is_none() { owner } else { parents };
            own(made.as_fd(), owner).with_context(|| format!("setting owner and mode of {}", shown.display()))?;
            at = made;
        }
        Ok(at)
    }

    /// The file `inside`, made empty where it is missing: the target of a bind of a file.
    pub fn make_file(&self, inside: &Path) -> Result<OwnedFd> {
        let owner = Ownership {
            mode: 0o644,
            ..Ownership::ROOT
        };
        self.make_file_in(inside, owner, Ownership::ROOT)
    }

    /// As [`Below::make_file`], with owner and mode for the file and for parents that are missing. What exists stays as it is.
    pub fn make_file_in(&self, inside: &Path, owner: Ownership, parents: Ownership) -> Result<OwnedFd> {
        if let Some(found) = self.find(inside)? {
            if is_folder(&fstat(&found)?) {
                bail!(
                    "{} is a folder, and what is to be mounted here is a file: remove the folder",
                    self.shown(inside).display()
                );
            }
            return Ok(found);
        }
        let (Some(parent), Some(name)) = (inside.parent(), inside.file_name()) else {
            bail!("{} cannot be a file", inside.display());
        };
        let parent = self.make_folder_in(parent, parents, parents)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = self.shown(inside);
        let made = match openat(&parent, name, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::EXIST) => bail!("{} is a symlink to nothing: a file is needed here", shown.display()),
            made => made.with_context(|| format!("making the file {}", shown.display()))?,
        };
        own(made.as_fd(), owner).with_context(|| format!("setting owner and mode of {}", shown.display()))?;
        Ok(made)
    }

    /// Puts a symlink to `target` at `inside`, in place of one that is there.
    pub fn make_symlink(&self, target: &Path, inside: &Path) -> Result<()> {
        self.make_symlink_in(target, inside, Ownership::ROOT)
    }

    /// As [`Below::make_symlink`], with owner and mode for parents that are missing.
    pub fn make_symlink_in(&self, target: &Path, inside: &Path, parents: Ownership) -> Result<()> {
        let (Some(parent), Some(name)) = (inside.parent(), inside.file_name()) else {
            bail!("{} cannot be a symlink", inside.display());
        };
        let folder = self.make_folder_in(parent, parents, parents)?;
        let shown = self.shown(inside);
        match readlinkat(&folder, name, Vec::new()) {
            Ok(_) => unlinkat(&folder, name, AtFlags::empty()).with_context(|| format!("removing the old {}", shown.display()))?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(anyhow::Error::new(errno).context(format!("{} is in the way of a symlink", shown.display()))),
        }
        symlinkat(target, &folder, name).with_context(|| format!("making the symlink {}", shown.display()))
    }

    /// Where a descriptor is, as the kernel sees it: with symlinks resolved. Needs `/proc`.
    pub fn real_path(&self, fd: BorrowedFd<'_>) -> Result<PathBuf> {
        real_path(fd)
    }

    /// Where a descriptor is inside the root, with symlinks resolved. Needs `/proc`.
    pub fn inside_path(&self, fd: BorrowedFd<'_>) -> Result<PathBuf> {
        let (path, root) = (real_path(fd)?, real_path(self.root.as_fd())?);
        let inside = path
            .strip_prefix(&root)
            .with_context(|| format!("{} is not below {}", path.display(), root.display()))?;
        Ok(Path::new("/").join(inside))
    }
}

/// Where a descriptor is, by `/proc/self/fd`.
pub fn real_path(fd: BorrowedFd<'_>) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let link = fd_path(fd);
    let target = readlinkat(CWD, &link, Vec::new()).with_context(|| format!("reading {} (is /proc mounted?)", link.display()))?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
}

/// A path that leads to an open descriptor, whatever its name has become.
pub fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether a descriptor is the root of a mount (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
pub fn is_mount_root(place: BorrowedFd<'_>) -> Result<bool> {
    let stat = statx(place, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, StatxFlags::empty())?;
    anyhow::ensure!(
        stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT),
        "the kernel does not say what is a mount (Linux 5.8 does)"
    );
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether `stat` is that of a folder.
pub fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn own(fd: BorrowedFd<'_>, owner: Ownership) -> Result<(), Errno> {
    use rustix::fs::{Gid, Uid};
    if (owner.uid, owner.gid) != (0, 0) {
        fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    // After the owner: chown clears the set-id bits. And explicitly: mkdir's mode is cut by the umask.
    fchmod(fd, Mode::from_raw_mode(owner.mode))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn missing_folders_are_made_and_existing_ones_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("old")).unwrap();
        fs::set_permissions(dir.path().join("old"), fs::Permissions::from_mode(0o711)).unwrap();
        let below = Below::open(dir.path()).unwrap();
        below
            .make_folder(
                Path::new("/old/a/b"),
                Ownership {
                    mode: 0o1750,
                    ..Ownership::ROOT
                },
            )
            .unwrap();
        assert_eq!(mode(&dir.path().join("old")), 0o711);
        assert_eq!(mode(&dir.path().join("old/a")), 0o755);
        assert_eq!(mode(&dir.path().join("old/a/b")), 0o1750);
        below.make_folder(Path::new("/old/a/b"), Ownership::ROOT).unwrap();
        assert_eq!(mode(&dir.path().join("old/a/b")), 0o1750);
    }

    #[test]
    fn symlinks_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/real", dir.path().join("absolute")).unwrap();
        symlink("../../../../real", dir.path().join("climbing")).unwrap();
        symlink("/nothing", dir.path().join("dangling")).unwrap();
        let below = Below::open(dir.path()).unwrap();
        below.make_folder(Path::new("/absolute/a"), Ownership::ROOT).unwrap();
        below.make_folder(Path::new("/climbing/b"), Ownership::ROOT).unwrap();
        assert!(dir.path().join("real/a").is_dir() && dir.path().join("real/b").is_dir());
        let err = below.make_folder(Path::new("/dangling/c"), Ownership::ROOT).unwrap_err();
        assert!(err.to_string().contains("symlink to nothing"), "{err}");
        let fd = below.find(Path::new("/absolute/a")).unwrap().unwrap();
        assert_eq!(below.inside_path(fd.as_fd()).unwrap(), Path::new("/real/a"));
    }

    #[test]
    fn what_is_in_the_way_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let below = Below::open(dir.path()).unwrap();
        assert!(below.make_folder(Path::new("/file/a"), Ownership::ROOT).is_err());
        assert!(below.make_folder(Path::new("/file"), Ownership::ROOT).is_err());
        assert!(below.make_symlink(Path::new("/x"), Path::new("/file")).is_err());
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
        below.make_file(Path::new("/file")).unwrap();
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
        below.make_file(Path::new("/new/file")).unwrap();
        assert!(below.make_file(Path::new("/new")).is_err());
    }

    #[test]
    fn a_symlink_of_ours_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let below = Below::open(dir.path()).unwrap();
        for target in ["/nix/store/a", "/nix/store/b"] {
            below.make_symlink(Path::new(target), Path::new("/nix/.freshroot")).unwrap();
            assert_eq!(fs::read_link(dir.path().join("nix/.freshroot")).unwrap(), Path::new(target));
        }
    }
}
