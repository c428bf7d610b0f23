//! The small initrd: the agent as `/init`, its configuration, and the kernel modules that a virtual machine needs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::Tool;
use crate::modules::Lists;
use crate::packages::kernel::{self, Kernel};

/// What a machine of ours needs to boot: disks, network, image, overlay, and the file systems that a cache may have.
pub const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "loop",
    "squashfs",
    "overlay",
    "ext4",
    "xfs",
    "btrfs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "af_packet",
];

const PACK_LIMIT: Duration = Duration::from_secs(120);

/// What goes into an initrd.
#[derive(Debug, Default)]
pub struct Initrd {
    files: Vec<(String, Source, u32)>,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Text(String),
    Link(String),
    Folder,
}

impl Initrd {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a copy of `file` at `path` (absolute, in the initrd) with `mode`.
    pub fn file(mut self, path: &str, file: &Path, mode: u32) -> Self {
        self.files.push((path.to_owned(), Source::File(file.to_owned()), mode));
        self
    }

    /// Adds a file with `text`.
    pub fn text(mut self, path: &str, text: &str, mode: u32) -> Self {
        self.files.push((path.to_owned(), Source::Text(text.to_owned()), mode));
        self
    }

    /// Adds a symlink at `path` that leads to `target`.
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.files.push((path.to_owned(), Source::Link(target.to_owned()), 0o777));
        self
    }

    /// Adds an empty folder.
    pub fn folder(mut self, path: &str) -> Self {
        self.files.push((path.to_owned(), Source::Folder, 0o755));
        self
    }

    /// Writes the initrd to `out`: the same input gives the same bytes.
    pub fn build(&self, kernel: &Kernel, modules: &[&str], out: &Path) -> Result<()> {
        let staging = staging(out)?;
        let root = staging.path();
        for folder in ["dev", "proc", "sys", "run", "etc", "tmp"] {
            fs::create_dir_all(root.join(folder)).with_context(|| format!("making {folder} in the initrd"))?;
        }
        // Where the kernel finds no console, the Rust runtime wants /dev/null before anything can be mounted, and dies without it.
        for (name, major, minor, mode) in [("console", "5", "1", "600"), ("null", "1", "3", "666")] {
            let node = root.join("dev").join(name);
            Tool::new("mknod", PACK_LIMIT)
                .args(["--mode", mode])
                .arg(&node)
                .args(["c", major, minor])
                .run()?;
        }
        self.lay_out(root)?;
        add_modules(root, kernel, modules)?;
        let names = settle(root)?;
        pack(root, &names, out)
    }

    /// Writes to `out` the initrd `base` with this one behind it: the kernel unpacks one after the other, and what comes later wins.
    pub fn build_onto(&self, base: &Path, out: &Path) -> Result<()> {
        let staging = staging(out)?;
        self.lay_out(staging.path())?;
        let names = settle(staging.path())?;
        let own = out.with_extension("own");
        pack(staging.path(), &names, &own)?;
        copy(base, out)?;
        let mut whole = OpenOptions::new()
            .append(true)
            .open(out)
            .with_context(|| format!("opening {}", out.display()))?;
        let mut part = File::open(&own).with_context(|| format!("opening {}", own.display()))?;
        io::copy(&mut part, &mut whole).with_context(|| format!("appending to {}", out.display()))?;
        fs::remove_file(&own).with_context(|| format!("removing {}", own.display()))
    }

    /// Writes it into the folder `root`, over what is there.
    pub fn lay_out(&self, root: &Path) -> Result<()> {
        // Links first: a file may lie below a folder that is a link, such as /bin.
        let (links, files): (Vec<_>, Vec<_>) = self.files.iter().partition(|(_, source, _)| matches!(source, Source::Link(_)));
        for (path, source, mode) in links.into_iter().chain(files) {
            let target = place(root, path)?;
            match source {
                Source::Link(to) => {
                    // A link to a link in the base, for example.
                    if target.is_symlink() {
                        fs::remove_file(&target).with_context(|| format!("removing {path} of the initrd"))?;
                    }
                    symlink(to, &target).with_context(|| format!("linking {path} of the initrd"))?;
                    continue;
                }
                Source::Folder => fs::create_dir_all(&target).with_context(|| format!("making {path} of the initrd"))?,
                Source::File(file) => copy(file, &target)?,
                Source::Text(text) => fs::write(&target, text).with_context(|| format!("writing {path} of the initrd"))?,
            }
            fs::set_permissions(&target, fs::Permissions::from_mode(*mode)).with_context(|| format!("setting the mode of {path}"))?;
        }
        Ok(())
    }
}

fn staging(out: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("initrd-")
        .tempdir_in(out.parent().unwrap_or(Path::new(".")))
        .context("making a folder for the initrd")
}

fn place(root: &Path, path: &str) -> Result<PathBuf> {
    let target = root.join(path.trim_start_matches('/'));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {} in the initrd", parent.display()))?;
    }
    Ok(target)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Copies the closure of `modules` and lists it anew, so that the lists name nothing that is not there.
pub fn add_modules(root: &Path, kernel: &Kernel, modules: &[&str]) -> Result<()> {
    let folder = root.join("lib/modules").join(&kernel.release);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for file in Lists::read(&kernel.modules)?.closure(modules)? {
        let target = place(&folder, &file)?;
        copy(&kernel.modules.join(&file), &target)?;
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        copy(&kernel.modules.join(list), &folder.join(list))?;
    }
    kernel::depmod(root, &folder, &kernel.release)
}

/// Gives everything below `root` one time stamp; returns the names in order, each folder before what it holds.
fn settle(root: &Path) -> Result<Vec<String>> {
    let mut names = vec![".".to_owned()];
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry?.path();
            let name = path.strip_prefix(root).context("leaving the initrd")?;
            names.push(name.to_str().context("a file name in the initrd is not UTF-8")?.to_owned());
            if !path.is_symlink() && path.is_dir() {
                open.push(path);
            }
        }
    }
    names.sort();
    Tool::new("find", PACK_LIMIT)
        .arg(root)
        .args(["-exec", "touch", "-h", "-d", "@1", "{}", "+"])
        .run()?;
    Ok(names)
}

fn pack(root: &Path, names: &[String], out: &Path) -> Result<()> {
    let list = tempfile::NamedTempFile::new().context("making a list of files")?;
    fs::write(list.path(), names.join("\n") + "\n").context("writing the list of files")?;
    let archive = out.with_extension("cpio");
    Tool::new("cpio", PACK_LIMIT)
        .args(["--quiet", "-o", "-H", "newc", "--reproducible", "--owner=0:0", "-F"])
        .arg(&archive)
        .current_dir(root)
        .stdin(list.reopen().context("opening the list of files")?)
        .run()?;
    // One thread and no checksum of the name: the same bytes on every machine.
    Tool::new("zstd", PACK_LIMIT)
        .args(["-q", "-f", "-3", "--single-thread", "--rm"])
        .arg(&archive)
        .arg("-o")
        .arg(out)
        .run()
}
