//! The guest's kernel: Debian's newest, unpacked, with its module lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::command::Tool;
use crate::workspace::once;

/// Which of Debian's builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: small, virtio only.
    Cloud,
    /// For any hardware: AHCI, device-mapper targets and file systems that the cloud build lacks.
    Generic,
}

impl Flavour {
    /// The package that depends on the newest kernel of this flavour.
    fn meta_package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }
}

/// A kernel on the host's disk.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` says, `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The folder that holds `modules.dep` and `kernel/`.
    pub modules: PathBuf,
    /// Which modules were left in it, where not all were.
    pub selection: Option<String>,
}

/// Downloads and unpacks the newest kernel that this distribution has, unless it is there already.
pub fn newest(vm: &Path, flavour: Flavour) -> Result<Kernel> {
    let meta = flavour.meta_package();
    super::candidate(meta)?;
    let shown = Tool::new("apt-cache", super::QUERY_LIMIT)
        .args(["depends", "--important", meta])
        .env("LC_ALL", "C")
        .text()?;
    let package = parse_dependency(&shown).with_context(|| format!("{meta} depends on no linux-image package:\n{shown}"))?;
    let release = package.strip_prefix("linux-image-").unwrap_or_default().to_owned();
    let dir = super::unpacked(vm, &package)?;
    // Debian 13 moved /lib below /usr in the package itself.
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|folder| dir.join(folder).join(&release))
        .find(|folder| folder.is_dir())
        .with_context(|| format!("{package} holds no modules for {release}"))?;
    let kernel = Kernel {
        image: dir.join("boot").join(format!("vmlinuz-{release}")),
        release,
        modules,
        selection: None,
    };
    if !kernel.modules.join("modules.dep").exists() {
        depmod(&dir, &kernel.modules, &kernel.release)?;
    }
    fs::metadata(&kernel.image).with_context(|| format!("looking for {}", kernel.image.display()))?;
    Ok(kernel)
}

/// `kernel` with these modules and what they need, and no others: a folder of its own below `vm`. An image with all of a generic kernel's would be
/// twice as large.
pub fn with_modules(vm: &Path, kernel: &Kernel, modules: &[&str]) -> Result<Kernel> {
    let selection = modules.join(" ");
    let key: String = Sha256::digest(selection.as_bytes())
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dir = vm.join(format!("modules-{}-{key}", kernel.release));
    once(&dir, |making| crate::initrd::add_modules(making, kernel, modules))?;
    Ok(Kernel {
        modules: dir.join("lib/modules").join(&kernel.release),
        selection: Some(selection),
        ..kernel.clone()
    })
}

/// Writes `modules.dep`, `modules.alias` and their kin for the modules below `root`.
pub fn depmod(root: &Path, modules: &Path, release: &str) -> Result<()> {
    // depmod wants <base>/lib/modules/<release>; the base is three levels up, wherever the distribution put it.
    let base = modules.ancestors().nth(3).unwrap_or(root);
    Tool::new("depmod", Duration::from_secs(60)).arg("-b").arg(base).arg(release).run()
}

/// The concrete kernel package among the dependencies of a meta package.
fn parse_dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends:"))
        .map(str::trim)
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_meta_package_names_the_kernel() {
        let shown = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(parse_dependency(shown).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(parse_dependency("x\n  Depends: initramfs-tools\n"), None);
    }
}
