//! Checking a file system before it is mounted: by its superblock, where that says that it was left clean, else by `fsck.<type>` of the initrd and its exit code.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::clock;
use crate::foreign;
use crate::mount::entry::DeviceFs;
use crate::mount::ext_clean::is_clean;
use crate::tool::{Input, Tool};

/// A check that is still going on then hangs, or has more to do than a boot can wait for: large disks take minutes.
pub const LIMIT: Duration = Duration::from_secs(3600);

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Nothing was wrong.
    Clean,
    /// Something was, and was mended.
    Corrected,
    /// It could not be checked, and why; the kernel decides.
    Not(String),
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::Corrected => f.write_str("errors were corrected"),
            Self::Not(why) => write!(f, "not checked: {why}"),
        }
    }
}

/// Whether there is something to check: xfs, btrfs and bcachefs check themselves when they are mounted, media are only read.
const fn has_checker(fs: DeviceFs) -> bool {
    match fs {
        DeviceFs::Ext2 | DeviceFs::Ext3 | DeviceFs::Ext4 | DeviceFs::Vfat | DeviceFs::Exfat | DeviceFs::F2fs => true,
        DeviceFs::Auto | DeviceFs::Xfs | DeviceFs::Btrfs | DeviceFs::Bcachefs | DeviceFs::Iso9660 | DeviceFs::Squashfs => false,
    }
}

/// Checks the file system on `device`, which must not be mounted, with the programs below `root` (`/`) where that is needed; `None` where there is nothing to check.
///
/// # Errors
/// Errors are left that need a person, or the check does not end: it is not to be mounted.
pub fn check(root: &Path, device: &Path, fs: DeviceFs, limit: Duration) -> Result<Option<Checked>> {
    if matches!(fs, DeviceFs::Ext2 | DeviceFs::Ext3 | DeviceFs::Ext4) && was_left_clean(device) {
        log::info!("{} was left clean", device.display());
        return Ok(Some(Checked::Clean));
    }
    if !has_checker(fs) {
        return Ok(None);
    }
    let program = format!("fsck.{}", fs.name());
    let Some(tool) = Tool::find(root, &program) else {
        return Ok(Some(Checked::Not(format!("there is no {program} in the initrd"))));
    };
    log::info!("checking {} ({})", device.display(), fs.name());
    // «-a»: what is safe is mended without a question; all of them know the word, as fsck(8) gives it to them.
    let ended = tool.run(&["-a".as_ref(), device.as_os_str()], Input::Nothing, limit)?;
    let said = foreign::sentence(&ended.to_string());
    match ended.status.code().map(outcome) {
        Some(Outcome::Clean) => Ok(Some(Checked::Clean)),
        Some(Outcome::Corrected) => Ok(Some(Checked::Corrected)),
        Some(Outcome::Uncorrected) => bail!(
            "{} has errors that {program} does not correct by itself, so it is not mounted ({said}); run «{program} {}» by hand",
            device.display(),
            device.display()
        ),
        Some(Outcome::Failed) | None => {
            log::warn!("{program} could not check {}: {said}", device.display());
            Ok(Some(Checked::Not(format!("{program} {said}"))))
        }
    }
}

/// Whether the file system needs no program. What cannot be read is for the program to tell.
fn was_left_clean(device: &Path) -> bool {
    let looked = File::open(device).and_then(|mut file| {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(is_clean(&file, size, clock::machine()))
    });
    looked.unwrap_or(false)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Clean,
    Corrected,
    Uncorrected,
    Failed,
}

/// Exit codes are bits, as fsck(8) has them. «Reboot» (2) is for what is mounted, and here nothing is.
const fn outcome(code: i32) -> Outcome {
    match (code & 4 != 0, code & !7 != 0, code & 3 != 0) {
        (true, _, _) => Outcome::Uncorrected,
        (false, true, _) => Outcome::Failed,
        (false, false, true) => Outcome::Corrected,
        (false, false, false) => Outcome::Clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_decides() {
        for (code, expected) in [
            (0, Outcome::Clean),
            (1, Outcome::Corrected),
            (2, Outcome::Corrected),
            (3, Outcome::Corrected),
            (4, Outcome::Uncorrected),
            (5, Outcome::Uncorrected),
            (12, Outcome::Uncorrected),
            (8, Outcome::Failed),
            (9, Outcome::Failed),
            (16, Outcome::Failed),
            (127, Outcome::Uncorrected),
            (128, Outcome::Failed),
        ] {
            assert_eq!(outcome(code), expected, "{code}");
        }
    }
}
