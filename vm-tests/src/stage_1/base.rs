//! What every initrd with systemd holds, whatever is booted: systemd, udev, the tools for disks, the kernel's modules. Packed once for each flavour.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::contents::{
    CHECKER_PACKAGES, CHECKERS, GROUPS, HARDWARE, LINKS, LOADED, MODULES, PASSWD, PROGRAMS, PROGRAMS_OF_SOME, RULES, UNITS,
};
use crate::command::Tool;
use crate::initrd::Initrd;
use crate::packages::kernel::Kernel;
use crate::packages::suite::{self, Suite};
use crate::system::busybox_static;

/// Which systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// Debian 12's, 252.
    Debian12,
    /// The newest that Debian has.
    Newest,
}

impl Flavour {
    fn suite(self) -> Suite {
        match self {
            Self::Debian12 => Suite::Bookworm,
            Self::Newest => Suite::Testing,
        }
    }

    fn packages(self) -> Vec<&'static str> {
        let mut all = vec![
            "systemd",
            "udev",
            "kmod",
            "lvm2",
            "dmsetup",
            "mdadm",
            "cryptsetup-bin",
            "mount",
            "util-linux",
            "e2fsprogs",
            "xfsprogs",
        ];
        // What systemd's tools and plugins for a TPM load; Debian's systemd only recommends them.
        match self {
            Self::Debian12 => all.extend(["libtss2-esys-3.0.2-0", "libtss2-mu0", "libtss2-rc0", "libtss2-tcti-device0"]),
            Self::Newest => all.extend([
                "systemd-cryptsetup",
                "libtss2-esys-3.0.2-0t64",
                "libtss2-mu-4.0.1-0t64",
                "libtss2-rc0t64",
                "libtss2-tcti-device0t64",
            ]),
        }
        all
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// Makes the base unless it is there, and returns where it lies.
pub fn packed(vm: &Path, kernel: &Kernel, flavour: Flavour) -> Result<PathBuf> {
    packed_with(vm, kernel, flavour, &[], PROGRAMS, MODULES)
}

/// The same with Debian 12's systemd, the programs that check file systems of every kind, and drivers of real hardware, which `kernel` must have.
pub fn packed_for_hardware(vm: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let (programs, modules) = ([PROGRAMS, CHECKERS].concat(), hardware_modules());
    packed_with(vm, kernel, Flavour::Debian12, CHECKER_PACKAGES, &programs, &modules)
}

/// Modules of an initrd for real hardware.
pub fn hardware_modules() -> Vec<&'static str> {
    [MODULES, HARDWARE].concat()
}

fn packed_with(
    vm: &Path,
    kernel: &Kernel,
    flavour: Flavour,
    packages: &[&'static str],
    programs: &[&'static str],
    modules: &[&str],
) -> Result<PathBuf> {
    let tree = suite::unpacked(vm, flavour.suite(), &[&flavour.packages(), packages].concat())?;
    let recipe = format!(
        "1 {} {} {programs:?} {PROGRAMS_OF_SOME:?} {LINKS:?} {LOADED:?} {UNITS:?} {RULES:?} {modules:?} {PASSWD} {GROUPS:?}",
        tree.display(),
        kernel.release
    );
    let key: String = Sha256::digest(recipe.as_bytes())
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let out = vm.join(format!("stage-1-{}-{key}", flavour.suite().name()));
    if !out.exists() {
        eprintln!("stage 1: packing {}", version(&tree)?);
        let making = out.with_extension("making");
        base(vm, &tree, programs)?.build(kernel, modules, &making)?;
        fs::rename(&making, &out).with_context(|| format!("renaming {}", making.display()))?;
    }
    Ok(out)
}

/// The first line of `systemd --version`.
fn version(tree: &Path) -> Result<String> {
    let text = in_tree(tree, "/usr/lib/systemd/systemd", &["--version"])?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Runs a program of the unpacked packages in their folder.
pub fn in_tree(tree: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    Tool::new("chroot", LIMIT).arg(tree).arg(program).args(arguments).text()
}

fn base(vm: &Path, tree: &Path, programs: &[&str]) -> Result<Initrd> {
    let mut initrd = Initrd::new();
    for name in ["bin", "sbin", "lib", "lib64"] {
        initrd = initrd.link(&format!("/{name}"), &format!("usr/{name}"));
    }
    for folder in ["/sysroot", "/root", "/var", "/usr/lib64"] {
        initrd = initrd.folder(folder);
    }
    let mut programs: Vec<String> = programs.iter().map(|name| format!("usr/{name}")).collect();
    for name in PROGRAMS_OF_SOME.iter().map(|name| format!("usr/{name}")) {
        if tree.join(&name).exists() {
            programs.push(name);
        }
    }
    let mut libraries = BTreeSet::new();
    for program in &programs {
        ensure!(
            real(tree, program)?.is_file(),
            "the packages in {} hold no {program}",
            tree.display()
        );
        libraries.extend(libraries_of(tree, program)?);
    }
    for name in LOADED {
        let library = format!("usr/lib/x86_64-linux-gnu/{name}");
        if real(tree, &library)?.is_file() {
            libraries.extend(libraries_of(tree, &library)?);
            libraries.insert(library);
        }
    }
    for file in programs.iter().chain(&libraries) {
        initrd = initrd.file(&format!("/{file}"), &real(tree, file)?, 0o755);
    }
    for (name, target) in LINKS {
        initrd = initrd.link(&format!("/usr/sbin/{name}"), target);
    }
    initrd = busybox(vm, initrd, &programs)?;
    initrd = folder(initrd, tree, "usr/lib/udev/rules.d", |name| RULES.contains(&name))?;
    initrd = folder(initrd, tree, "usr/lib/systemd/network", |name| name == "99-default.link")?;
    initrd = folder(initrd, tree, "usr/lib/modprobe.d", |_| true)?;
    initrd = units(initrd, tree)?;
    let groups: String = GROUPS.iter().enumerate().map(|(id, name)| format!("{name}:x:{id}:\n")).collect();
    Ok(initrd
        .link("/init", "usr/lib/systemd/systemd")
        .text("/etc/passwd", PASSWD, 0o644)
        .text(
            "/etc/group",
            &format!("{groups}systemd-network:x:192:\nsystemd-resolve:x:193:\n"),
            0o644,
        )
        // No emergency access, as NixOS has it unless it is asked for.
        .text("/etc/shadow", "root:*:::::::\n", 0o600)
        .text(
            "/etc/os-release",
            "ID=nixos\nNAME=NixOS\nPRETTY_NAME=\"stage 1 of the demo\"\n",
            0o644,
        )
        .link("/etc/initrd-release", "os-release")
        .text("/etc/hostname", "demo\n", 0o644)
        .text("/etc/sysctl.d/nixos.conf", "kernel.modprobe = /sbin/modprobe\n", 0o644)
        .text("/etc/machine-id", "", 0o444)
        .text("/etc/lvm/lvm.conf", "", 0o644)
        // Every array may be assembled, whatever host it was made on.
        .text("/etc/mdadm/mdadm.conf", "HOMEHOST <ignore>\n", 0o644))
}

/// Shared libraries and the loader, with links resolved as far as their names matter to the loader.
fn libraries_of(tree: &Path, file: &str) -> Result<BTreeSet<String>> {
    let listed = in_tree(tree, "/lib64/ld-linux-x86-64.so.2", &["--list", &format!("/{file}")])?;
    let mut all = BTreeSet::from(["usr/lib64/ld-linux-x86-64.so.2".to_owned()]);
    for library in parse_libraries(&listed) {
        ensure!(tree.join(&library).exists(), "{file} needs {library}, which no package holds");
        all.insert(library);
    }
    Ok(all)
}

/// The file that `path` leads to: an absolute link in the folder of the packages means that folder, and not the host.
fn real(tree: &Path, path: &str) -> Result<PathBuf> {
    let mut file = tree.join(path);
    // No chain of links in a package is longer.
    for _ in 0..8 {
        let Ok(target) = fs::read_link(&file) else {
            return Ok(file);
        };
        file = match target.strip_prefix("/") {
            Ok(inside) => tree.join(inside),
            Err(_) => file.parent().unwrap_or(tree).join(target),
        };
    }
    bail!("{path} is a link that leads in a circle")
}

/// The paths in what the loader lists, without the first `/` and below `usr`.
fn parse_libraries(listed: &str) -> Vec<String> {
    listed
        .lines()
        .filter_map(|line| line.split_once("=> "))
        .filter_map(|(_, found)| found.split_whitespace().next())
        .map(|path| path.trim_start_matches('/'))
        .map(|path| match path.strip_prefix("usr/") {
            Some(_) => path.to_owned(),
            None => format!("usr/{path}"),
        })
        .collect()
}

/// The shell, and tools for the scripts of stage 1 that no package of the initrd brings.
fn busybox(vm: &Path, initrd: Initrd, programs: &[String]) -> Result<Initrd> {
    let busybox = busybox_static(vm)?;
    let applets = Tool::new(&busybox.to_string_lossy(), LIMIT).arg("--list").text()?;
    let taken: BTreeSet<&str> = programs
        .iter()
        .filter_map(|path| path.rsplit('/').next())
        .chain(LINKS.iter().map(|(name, _)| *name))
        .chain(["busybox", "init", "linuxrc", "halt"])
        .collect();
    let initrd = initrd.file("/usr/bin/busybox", &busybox, 0o755);
    Ok(applets
        .lines()
        .filter(|name| !taken.contains(name))
        .fold(initrd, |initrd, name| initrd.link(&format!("/usr/bin/{name}"), "busybox")))
}

fn folder(mut initrd: Initrd, tree: &Path, path: &str, wanted: impl Fn(&str) -> bool) -> Result<Initrd> {
    let dir = tree.join(path);
    for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
        let name = entry.file_name();
        let name = name.to_str().context("a file name that is not UTF-8")?;
        if entry.path().is_file() && wanted(name) {
            initrd = initrd.file(&format!("/{path}/{name}"), &entry.path(), 0o644);
        }
    }
    Ok(initrd)
}

/// The units, and of the wishes among them those for units that are there.
fn units(mut initrd: Initrd, tree: &Path) -> Result<Initrd> {
    let from = "usr/lib/systemd/system";
    let there: BTreeSet<&str> = UNITS.iter().copied().filter(|name| tree.join(from).join(name).is_file()).collect();
    for name in &there {
        initrd = initrd.file(&format!("/{from}/{name}"), &tree.join(from).join(name), 0o644);
    }
    for unit in &there {
        let wants = tree.join(from).join(format!("{unit}.wants"));
        if !wants.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&wants).with_context(|| format!("listing {}", wants.display()))? {
            let name = entry?.file_name();
            let name = name.to_str().context("a unit's name that is not UTF-8")?;
            if there.contains(name) {
                initrd = initrd.link(&format!("/{from}/{unit}.wants/{name}"), &format!("../{name}"));
            }
        }
    }
    initrd = initrd
        .link("/etc/systemd/system/default.target", "/usr/lib/systemd/system/initrd.target")
        .link("/etc/systemd/system/ctrl-alt-del.target", "/usr/lib/systemd/system/reboot.target");
    Ok(initrd)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\tlibx.so => /usr/lib/x/libx.so (0x3)\n\t/lib64/ld-linux-x86-64.so.2 (0x4)\n";
        assert_eq!(parse_libraries(listed), ["usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x/libx.so"]);
    }
}
