//! The kernel's own file systems: `/proc`, `/sys`, `/dev` and the tmpfs `/run`. As PID 1 in an initrd nobody else mounts them.

use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags, fstat, open};

use crate::mount::fs_context::FsContext;
use crate::mount::mount_log::{MountLog, Mounted};
use crate::mount::options::{AccessTime, Attributes};

struct ApiFs {
    folder: &'static str,
    fs_type: &'static str,
    options: &'static [(&'static str, &'static str)],
    attributes: Attributes,
}

const KERNEL: Attributes = Attributes {
    no_suid: true,
    no_dev: true,
    no_exec: true,
    read_only: false,
    no_dir_atime: false,
    no_symfollow: false,
    access_time: None,
};

/// In this order: `/proc` first, since reading back where a descriptor is needs it. `/dev/pts` and `/dev/shm` are left to stage 2, as nothing
/// here uses them. Attributes are those with which systemd mounts them, so that it finds them as it wants them.
const API_FILE_SYSTEMS: [ApiFs; 4] = [
    ApiFs {
        folder: "proc",
        fs_type: "proc",
        options: &[],
        attributes: KERNEL,
    },
    ApiFs {
        folder: "sys",
        fs_type: "sysfs",
        options: &[],
        attributes: KERNEL,
    },
    ApiFs {
        folder: "dev",
        fs_type: "devtmpfs",
        options: &[("mode", "0755")],
        attributes: Attributes {
            no_suid: true,
            no_dev: false,
            no_exec: false,
            access_time: Some(AccessTime::Always),
            ..KERNEL
        },
    },
    ApiFs {
        folder: "run",
        fs_type: "tmpfs",
        options: &[("mode", "0755"), ("size", "20%")],
        attributes: Attributes {
            no_exec: false,
            access_time: Some(AccessTime::Always),
            ..KERNEL
        },
    },
];

/// Mounts those that are not mounted yet below `root` (`/`), and makes missing folders. Called again, it does nothing.
pub fn mount_api_file_systems(root: &Path, log: &mut MountLog) -> Result<()> {
    for api in API_FILE_SYSTEMS {
        let at = root.join(api.folder);
        match std::fs::create_dir(&at) {
            Ok(()) => {}
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(err) => return Err(anyhow::Error::new(err).context(format!("making the folder {}", at.display()))),
        }
        if is_mount_point(root, &at)? {
            continue;
        }
        let context = FsContext::open(api.fs_type, api.fs_type)?;
        for (key, value) in api.options {
            context.set_string(key, value)?;
        }
        context.mount(api.attributes)?.attach(&at)?;
        log.add(Mounted {
            at,
            source: api.fs_type.to_owned(),
            fs_type: api.fs_type.to_owned(),
        });
    }
    Ok(())
}

/// Whether something of its own is mounted at `at`: its device number differs from its parent's. A bind of the same file system would not be
/// seen, and does not matter here: these file systems each have a device number of their own.
pub fn is_mount_point(root: &Path, at: &Path) -> Result<bool> {
    let device = |path: &Path| -> Result<u64> {
        let fd = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(fstat(&fd)
            .with_context(|| format!("reading the attributes of {}", path.display()))?
            .st_dev)
    };
    Ok(device(root)? != device(at)?)
}
