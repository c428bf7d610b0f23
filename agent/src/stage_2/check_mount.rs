//! Whether a persistent mount is its disk, or the empty read-only tmpfs that stage 1 puts where a disk is missing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::handover::mountinfo::{Mount, mounted_at};
use crate::mount::persist::MISSING;

const MOUNTINFO: &str = "proc/self/mountinfo";

/// Succeeds if something is mounted at `path`, and if that is not the stand-in for a missing disk.
///
/// # Errors
/// What is there instead, and what to do about it.
pub fn check_mount(root: &Path, path: &Path) -> Result<()> {
    ensure!(
        path.is_absolute(),
        "«{}» is no absolute path: give the mount point as fileSystems has it",
        path.display()
    );
    let mountinfo = root.join(MOUNTINFO);
    let text = fs::read(&mountinfo).with_context(|| format!("reading {}", mountinfo.display()))?;
    let exactly = mounted_at(&text, path);
    // Below a stand-in there are no folders to mount anything on.
    let missing = match &exactly {
        Some(mount) => Some(mount).filter(|mount| is_stand_in(mount)).cloned(),
        None => path.ancestors().find_map(|above| mounted_at(&text, above)).filter(is_stand_in),
    };
    match (missing, exactly) {
        (Some(missing), _) => bail!(
            "the disk of {} is missing: at the boot it was not there or could not be mounted, and an empty read-only tmpfs stands in its place; «freshroot status» says why: connect or repair the disk; «freshroot persist-retry» mounts it when it comes, where it waits for it, else reboot",
            missing.point.display()
        ),
        (None, Some(_)) => Ok(()),
        (None, None) => bail!(
            "nothing is mounted at {}: look whether fileSystems has it under exactly this path, and what «freshroot status» and «systemctl status» say about it",
            path.display()
        ),
    }
}

fn is_stand_in(mount: &Mount) -> bool {
    mount.fs_type == "tmpfs" && mount.source == MISSING
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_real_mount_at_exactly_this_path_passes() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(
            root.path().join(MOUNTINFO),
            "20 1 8:1 / /data rw - ext4 /dev/sda1 rw\n21 1 0:30 / /gone ro - tmpfs freshroot-missing ro\n\
             22 1 0:31 / /back ro - tmpfs freshroot-missing ro\n23 22 8:2 / /back rw - xfs /dev/sdb1 rw\n\
             24 1 0:32 / /tmp rw - tmpfs tmpfs rw\n",
        )
        .unwrap();
        let check = |path: &str| check_mount(root.path(), Path::new(path)).map_err(|error| error.to_string());
        for there in ["/data", "/data/", "/back", "/tmp"] {
            assert_eq!(check(there), Ok(()), "{there}");
        }
        for (path, word) in [
            ("/gone", "the disk of /gone is missing"),
            ("/gone/below", "the disk of /gone is missing"),
            ("/data/below", "nothing is mounted at /data/below"),
            ("data", "no absolute path"),
        ] {
            assert!(check(path).unwrap_err().contains(word), "{path}");
        }
    }
}
