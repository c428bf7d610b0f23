//! The system's root: a tmpfs, the image, a writable layer, and the store as an overlay of both. One function for each, as NixOS's netboot images have it.
//!
//! `sysroot` is a folder of ours, normally `/sysroot`. Every function adds what it mounted to the log, so that a failure later can be undone.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::mount::below::Below;
use crate::mount::entry::{DeviceFs, Ownership};
use crate::mount::fs_context::{DetachedMount, FsContext, FsError};
use crate::mount::loop_device::{LoopDevice, LoopOptions};
use crate::mount::mount_log::{MountLog, Mounted};
use crate::mount::options::{Attributes, FsOption, MountOptions};
use crate::mount::quirks::{self, Layer};
use crate::mount::size::TmpfsSize;

/// Where the image is mounted.
pub const RO_STORE: &str = "/nix/.ro-store";
/// Where the writable layer is mounted; `store` and `work` are below.
pub const RW_STORE: &str = "/nix/.rw-store";
/// The Nix store.
pub const STORE: &str = "/nix/store";
/// The symlink to the toplevel that was chosen; generated command lines carry `init=/nix/.freshroot/init`.
pub const TOPLEVEL_LINK: &str = "/nix/.freshroot";

/// What takes the writes to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RwStore {
    /// RAM, gone with the boot.
    Tmpfs(TmpfsSize),
    /// A file system on a block device.
    Device {
        /// The device's path.
        path: PathBuf,
        /// Its type; `Auto` is refused: the caller has probed it.
        fs: DeviceFs,
        /// Its options.
        options: MountOptions,
    },
}

/// Mounts a tmpfs as the new root at `sysroot`, which is made if missing.
pub fn mount_root(sysroot: &Path, size: &TmpfsSize, log: &mut MountLog) -> Result<()> {
    std::fs::create_dir_all(sysroot).with_context(|| format!("making {}", sysroot.display()))?;
    let mount = quirks::mount_tmpfs("freshroot", size, 0o755, Attributes::default())?;
    mount.attach(sysroot)?;
    let at = std::fs::canonicalize(sysroot).with_context(|| format!("resolving {}", sysroot.display()))?;
    log.add(Mounted {
        at,
        source: format!("RAM, at most {size}"),
        fs_type: "tmpfs".to_owned(),
    });
    Ok(())
}

/// Folders that every system expects in its root, with their modes. What activation makes itself (`/bin`, `/usr`) is left to it.
pub const STANDARD_FOLDERS: [(&str, u32); 11] = [
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/home", 0o755),
    ("/nix", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var", 0o755),
    ("/var/tmp", 0o1777),
];

/// Makes the standard folders that do not exist yet. After the persistent mounts, so that a `/var` of theirs is left as it is.
pub fn make_standard_folders(sysroot: &Path) -> Result<()> {
    let below = Below::open(sysroot)?;
    for (folder, mode) in STANDARD_FOLDERS {
        below.make_folder(Path::new(folder), Ownership { mode, ..Ownership::ROOT })?;
    }
    Ok(())
}

/// Attaches the image, as it is open, to a loop device and mounts that at `/nix/.ro-store`. The device goes with the mount.
pub fn mount_image(sysroot: &Path, root_dev: &Path, image: BorrowedFd<'_>, direct_io: bool, log: &mut MountLog) -> Result<()> {
    let options = LoopOptions {
        read_only: true,
        autoclear: true,
        direct_io,
        offset: 0,
        size: None,
    };
    let device = LoopDevice::attach(root_dev, image, options).context("attaching the image to a loop device")?;
    log::info!(
        "image on {}, direct I/O {}",
        device.path().display(),
        if device.direct_io() { "on" } else { "off" }
    );
    // The device is held open until it is mounted: an autoclear device without a user is gone.
    mount_image_device(sysroot, device.path(), log)
}

/// Mounts a block device that holds the image (a loop device, a verity device) at `/nix/.ro-store`.
pub fn mount_image_device(sysroot: &Path, device: &Path, log: &mut MountLog) -> Result<()> {
    let name = utf8(device)?;
    let mount = quirks::mount_squashfs(name).context("mounting the image")?;
    attach(&Below::open(sysroot)?, &mount, Path::new(RO_STORE), name, "squashfs", log)
}

/// Mounts the writable layer at `/nix/.rw-store` and makes `store` and `work` in it.
pub fn mount_rw_store(sysroot: &Path, rw_store: &RwStore, log: &mut MountLog) -> Result<()> {
    let below = Below::open(sysroot)?;
    match rw_store {
        RwStore::Tmpfs(size) => {
            let mount = quirks::mount_tmpfs("freshroot-rw-store", size, 0o755, quirks::STORE_ATTRIBUTES)?;
            attach(&below, &mount, Path::new(RW_STORE), &format!("RAM, at most {size}"), "tmpfs", log)?;
        }
        RwStore::Device { path, fs, options } => {
            let mount = mount_device(path, *fs, options).context("mounting the writable layer of the store")?;
            attach(&below, &mount, Path::new(RW_STORE), utf8(path)?, fs.name(), log)?;
        }
    }
    for folder in ["store", "work"] {
        below.make_folder(&Path::new(RW_STORE).join(folder), Ownership::ROOT)?;
    }
    Ok(())
}

/// Mounts the overlay of image and writable layer at `/nix/store`.
pub fn mount_store(sysroot: &Path, log: &mut MountLog) -> Result<()> {
    let below = Below::open(sysroot)?;
    let lower = layer(&below, Path::new(RO_STORE))?;
    let upper = layer(&below, &Path::new(RW_STORE).join("store"))?;
    let work = layer(&below, &Path::new(RW_STORE).join("work"))?;
    let mount = quirks::mount_overlay("freshroot-store", lower.as_layer(), upper.as_layer(), work.as_layer())
        .context("mounting the store as an overlay (is the kernel module «overlay» loaded?)")?;
    attach(&below, &mount, Path::new(STORE), "freshroot-store", "overlay", log)
}

/// Makes `/nix/.freshroot` a symlink to the chosen toplevel, a store path.
pub fn link_toplevel(sysroot: &Path, toplevel: &Path) -> Result<()> {
    if toplevel.strip_prefix(STORE).map_or(true, |rest| rest.as_os_str().is_empty()) {
        bail!("the toplevel {} is not a path in {STORE}", toplevel.display());
    }
    Below::open(sysroot)?.make_symlink(toplevel, Path::new(TOPLEVEL_LINK))
}

/// A detached mount of the file system on a block device.
pub fn mount_device(device: &Path, fs: DeviceFs, options: &MountOptions) -> Result<DetachedMount> {
    mount_devices(device, &[], fs, options)
}

/// A detached mount of the file system on a block device; `members` are all its devices, where it is a btrfs or bcachefs that has several.
pub fn mount_devices(device: &Path, members: &[PathBuf], fs: DeviceFs, options: &MountOptions) -> Result<DetachedMount> {
    if fs == DeviceFs::Auto {
        bail!(
            "the file system type of {} is not known: its probe found none; give it as «fsType»",
            device.display()
        );
    }
    if fs == DeviceFs::Bcachefs && !members.is_empty() {
        let all: Vec<&str> = members.iter().map(|member| utf8(member)).collect::<Result<_>>()?;
        let context = FsContext::open(fs.name(), &all.join(":"))?;
        context.set_options(&options.file_system)?;
        return Ok(context.mount(options.attributes)?);
    }
    let context = FsContext::open(fs.name(), utf8(device)?)?;
    if members.is_empty() {
        context.set_options(&options.file_system)?;
    } else {
        // What was found by the file system's id, and not the names that the entry may have for it: without udev these lead nowhere.
        for member in members.iter().filter(|member| *member != device) {
            context.set_string("device", utf8(member)?)?;
        }
        let others: Vec<FsOption> = options
            .file_system
            .iter()
            .filter(|option| option.key != "device")
            .cloned()
            .collect();
        context.set_options(&others)?;
    }
    Ok(context.mount(options.attributes)?)
}

/// As [`mount_devices`], or for reading only where the device takes no writes; true where that was so.
pub fn mount_devices_as_they_are(
    device: &Path,
    members: &[PathBuf],
    fs: DeviceFs,
    options: &MountOptions,
) -> Result<(DetachedMount, bool)> {
    match mount_devices(device, members, fs, options) {
        Err(error) if is_write_protected(&error) && !options.attributes.read_only => {
            log::warn!("{} takes no writes ({error:#}): it is mounted for reading only", device.display());
            let mut options = options.clone();
            options.make_read_only();
            Ok((mount_devices(device, members, fs, &options)?, true))
        }
        other => Ok((other?, false)),
    }
}

/// Looks whether files of sysfs still say of a disk what they said: a disk that is pulled out gives its name to the next one that comes.
///
/// # Errors
/// It is gone.
pub fn is_still_there(identities: &[(PathBuf, String)]) -> Result<()> {
    for (file, said) in identities {
        if std::fs::read_to_string(file).map_or(true, |says| says.trim_end() != said) {
            bail!("its disk was pulled out after it was found, and another one may have its name now");
        }
    }
    Ok(())
}

fn is_write_protected(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let errno = cause
            .downcast_ref::<FsError>()
            .map(|error| error.errno)
            .or_else(|| cause.downcast_ref::<Errno>().copied());
        matches!(errno, Some(Errno::ROFS | Errno::ACCESS))
    })
}

/// As [`attach`], but of the folder `subdir` of the file system alone, as `X-mount.subdir=` has it.
///
/// A detached mount cannot be copied in part before Linux 6.15: it is attached, copied, and taken away again; nobody else is there to see it.
pub fn attach_subdir(
    below: &Below,
    mount: &DetachedMount,
    subdir: &Path,
    inside: &Path,
    source: &str,
    fs_type: &str,
    log: &mut MountLog,
) -> Result<()> {
    let target = below.make_folder(inside, Ownership::ROOT)?;
    mount.attach_to(target.as_fd(), &below.shown(inside))?;
    let copied = below.find(inside).and_then(|top| {
        let top = top.with_context(|| format!("{} vanished", below.shown(inside).display()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat2(&top, subdir, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            .with_context(|| format!("opening the folder {} of {source}, which X-mount.subdir names", subdir.display()))?;
        Ok(DetachedMount::clone_of(folder.as_fd(), false, source)?)
    });
    let at = below.shown(inside);
    unmount(&at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .with_context(|| format!("taking the whole of {source} away from {} again", at.display()))?;
    attach_to(below, &copied?, target.as_fd(), inside, source, fs_type, log)
}

/// Attaches a mount at a folder inside the new root, made if missing, and notes it.
pub fn attach(below: &Below, mount: &DetachedMount, inside: &Path, source: &str, fs_type: &str, log: &mut MountLog) -> Result<()> {
    let target = below.make_folder(inside, Ownership::ROOT)?;
    attach_to(below, mount, target.as_fd(), inside, source, fs_type, log)
}

/// Attaches a mount at an open folder or file inside the new root, and notes it.
pub fn attach_to(
    below: &Below,
    mount: &DetachedMount,
    target: BorrowedFd<'_>,
    inside: &Path,
    source: &str,
    fs_type: &str,
    log: &mut MountLog,
) -> Result<()> {
    let at = below.real_path(target)?;
    mount.attach_to(target, &below.shown(inside))?;
    log.add(Mounted {
        at,
        source: source.to_owned(),
        fs_type: fs_type.to_owned(),
    });
    Ok(())
}

struct OpenLayer {
    path: PathBuf,
    folder: OwnedFd,
}

impl OpenLayer {
    fn as_layer(&self) -> Layer<'_> {
        Layer {
            path: &self.path,
            folder: self.folder.as_fd(),
        }
    }
}

fn layer(below: &Below, inside: &Path) -> Result<OpenLayer> {
    let Some(folder) = below.find(inside)? else {
        bail!(
            "{} does not exist: a layer of the store is not mounted",
            below.shown(inside).display()
        );
    };
    Ok(OpenLayer {
        path: below.real_path(folder.as_fd())?,
        folder,
    })
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}
