//! The Debian root of the demo system: bootstrapped once for each recipe, kept as an archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::command::Tool;

/// 18 s on a fast line; a slow mirror takes longer.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(30 * 60);
const UNPACK_LIMIT: Duration = Duration::from_secs(300);

/// What is in it besides `minbase`.
const INCLUDE: &str = "systemd,systemd-sysv,udev,kmod,iproute2,procps,login";
/// What a server has besides: LVM's rules for udev, for disks that come late, and a way in.
const SERVER: &str = ",lvm2,openssh-server";
/// Nothing reads these in a demo; half of the size goes with them.
const EXCLUDE: &[&str] = &[
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/i18n/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
];

/// The root as an archive, and what tells it from others.
#[derive(Debug)]
pub struct Userland {
    archive: PathBuf,
    key: String,
}

impl Userland {
    /// Bootstraps the distribution that the host runs, unless it was done before; `server` says whether with LVM and sshd.
    pub fn prepare(vm: &Path, server: bool) -> Result<Self> {
        let suite = suite_of(&fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?)?;
        // The systemd version stands for the state of the archive: a point release makes a new root.
        let state = crate::packages::candidate("systemd")?;
        let include = format!("{INCLUDE}{}", if server { SERVER } else { "" });
        let recipe = format!("1 {suite} {state} {include} {EXCLUDE:?}");
        let key: String = Sha256::digest(recipe.as_bytes())
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let archive = vm.join(format!("debian-{suite}-{key}.tar"));
        if !archive.exists() {
            eprintln!("system: bootstrapping Debian {suite} (once)");
            bootstrap(&suite, &include, &archive)?;
        }
        Ok(Self { archive, key })
    }

    /// What tells this root from others.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Unpacks it to `dir` in the form that a store path has: `usr`, `etc`, `var` and nothing that belongs to one machine.
    pub fn unpack(&self, dir: &Path) -> Result<()> {
        Tool::new("tar", UNPACK_LIMIT)
            .arg("-xf")
            .arg(&self.archive)
            .arg("-C")
            .arg(dir)
            .args(["./usr", "./etc", "./var"])
            .run()?;
        for gone in [
            "etc/machine-id",
            "etc/hostname",
            "etc/resolv.conf",
            "etc/fstab",
            "var/lib/apt/lists",
            "var/cache",
            "var/log",
        ] {
            remove(&dir.join(gone))?;
        }
        // Made when sshd was installed: every machine makes its own.
        for kind in ["ecdsa", "ed25519", "rsa"] {
            remove(&dir.join(format!("etc/ssh/ssh_host_{kind}_key")))?;
            remove(&dir.join(format!("etc/ssh/ssh_host_{kind}_key.pub")))?;
        }
        // The modules are those of the booted kernel, as on NixOS.
        remove(&dir.join("usr/lib/modules"))?;
        std::os::unix::fs::symlink("/run/booted-system/kernel-modules/lib/modules", dir.join("usr/lib/modules"))
            .context("linking the modules")
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
    .with_context(|| format!("removing {}", path.display()))
}

fn bootstrap(suite: &str, include: &str, archive: &Path) -> Result<()> {
    let making = archive.with_extension("making.tar");
    Tool::new("mmdebstrap", BOOTSTRAP_LIMIT)
        .args(["--quiet", "--variant=minbase", "--include", include])
        .args(EXCLUDE.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .env("SOURCE_DATE_EPOCH", "315532800")
        .arg(suite)
        .arg(&making)
        .run()?;
    fs::rename(&making, archive).with_context(|| format!("renaming {}", making.display()))
}

/// `VERSION_CODENAME` of `/etc/os-release`.
fn suite_of(os_release: &str) -> Result<String> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|value| value.trim_matches('"').to_owned())
        .context("/etc/os-release has no VERSION_CODENAME: the demo needs Debian 12 or 13")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_suite_is_that_of_the_host() {
        assert_eq!(suite_of("ID=debian\nVERSION_CODENAME=trixie\n").unwrap(), "trixie");
        assert!(suite_of("ID=arch\n").is_err());
    }
}
