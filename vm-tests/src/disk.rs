//! Disk images on the host: made, filled and looked into without mounting them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Tool;

const LIMIT: Duration = Duration::from_secs(120);
/// Reading a large image out of a disk image and hashing it.
const READ_LIMIT: Duration = Duration::from_secs(300);
/// Blocks of ext4 on all but the smallest disks.
const BLOCK: u64 = 4096;
/// Bytes of a sector of most disks.
const SECTOR: u32 = 512;

/// File systems that a disk can be made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsType {
    /// ext4.
    Ext4,
    /// XFS; needs 300 MB at least.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT32.
    Vfat,
}

/// A raw disk image without a partition table, and how it is plugged in.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    read_only: bool,
    unreadable: Option<u64>,
    sector_size: u32,
}

impl Disk {
    /// Makes a sparse image of `mebibytes` at `path`, with a file system called `label`.
    pub fn make(path: &Path, mebibytes: u64, fs_type: FsType, label: &str) -> Result<Self> {
        Self::make_with(path, mebibytes, fs_type, label, None)
    }

    /// As [`Disk::make`], filled with what lies below `content` (not for vfat).
    pub fn make_with(path: &Path, mebibytes: u64, fs_type: FsType, label: &str, content: Option<&Path>) -> Result<Self> {
        Self::blank(path, mebibytes)?;
        let tool = match fs_type {
            FsType::Ext4 => {
                let tool = Tool::new("mke2fs", LIMIT).args(["-q", "-F", "-t", "ext4", "-L", label, "-E", "lazy_itable_init=1"]);
                match content {
                    Some(dir) => tool.arg("-d").arg(dir),
                    None => tool,
                }
            }
            FsType::Btrfs => {
                let tool = Tool::new("mkfs.btrfs", LIMIT).args(["-q", "-L", label]);
                match content {
                    Some(dir) => tool.arg("--rootdir").arg(dir),
                    None => tool,
                }
            }
            FsType::Xfs | FsType::Vfat if content.is_some() => bail!("a disk of type {fs_type:?} cannot be filled here"),
            FsType::Xfs => Tool::new("mkfs.xfs", LIMIT).args(["-q", "-L", label]),
            FsType::Vfat => Tool::new("mkfs.vfat", LIMIT).args(["-F", "32", "-n", label]),
        };
        tool.arg(path).run()?;
        Ok(Self::at(path))
    }

    /// A sparse image of `mebibytes` at `path` with an ext4 of blocks of 4096 bytes, made with `options`.
    pub fn make_ext4(path: &Path, mebibytes: u64, label: &str, options: &[&str]) -> Result<Self> {
        Self::blank(path, mebibytes)?;
        let tool = Tool::new("mke2fs", LIMIT).args(["-q", "-F", "-t", "ext4", "-b", &BLOCK.to_string(), "-L", label]);
        tool.args(options).arg(path).run()?;
        Ok(Self::at(path))
    }

    /// A sparse image of `mebibytes` at `path` with nothing on it.
    pub fn blank(path: &Path, mebibytes: u64) -> Result<Self> {
        File::create(path)
            .and_then(|file| file.set_len(mebibytes << 20))
            .with_context(|| format!("making the disk {}", path.display()))?;
        Ok(Self::at(path))
    }

    /// A disk that exists.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read_only: false,
            unreadable: None,
            sector_size: SECTOR,
        }
    }

    /// The same disk, as a medium that takes no writes.
    pub fn read_only(&self) -> Self {
        Self {
            read_only: true,
            ..self.clone()
        }
    }

    /// The same disk, with a sector (of 512 bytes) that cannot be read, until [`crate::qemu::Vm::remap`] has mended it.
    pub fn unreadable(&self, sector: u64) -> Self {
        Self {
            unreadable: Some(sector),
            ..self.clone()
        }
    }

    /// The same disk, with logical and physical sectors of so many bytes, on virtio: QEMU's SATA and USB disks have none but 512.
    pub fn sector_size(&self, bytes: u32) -> Self {
        Self {
            sector_size: bytes,
            ..self.clone()
        }
    }

    /// Bytes of its sectors.
    pub fn sector_bytes(&self) -> u32 {
        self.sector_size
    }

    /// Whether it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The sector that cannot be read.
    pub fn unreadable_sector(&self) -> Option<u64> {
        self.unreadable
    }

    /// The sector (of 512 bytes) that holds the byte `at` of a file of an ext4 disk with blocks of 4096 bytes.
    pub fn sector_of(&self, file: &str, at: u64) -> Result<u64> {
        let shown = self.debugfs(&format!("bmap {file} {}", at / BLOCK))?;
        let block: u64 = shown
            .trim()
            .parse()
            .with_context(|| format!("debugfs has no block for {file}: «{shown}»"))?;
        Ok((block * BLOCK + at % BLOCK) / 512)
    }

    /// A disk that holds `script` as it is, padded to whole sectors with newlines: a shell reads it from the device.
    pub fn script(path: &Path, script: &str) -> Result<Self> {
        let mut bytes = script.as_bytes().to_vec();
        bytes.extend_from_slice(b"\nexit 0\n");
        bytes.resize(bytes.len().next_multiple_of(512), b'\n');
        fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self::at(path))
    }

    /// Its image file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names in `dir` of an ext4 disk, sorted, without `.` and `..`. A folder that is not there is empty.
    pub fn list(&self, dir: &str) -> Result<Vec<String>> {
        let shown = self.debugfs(&format!("ls -p {dir}"))?;
        Ok(parse_listing(&shown))
    }

    /// The bytes of one file of an ext4 disk.
    pub fn read(&self, file: &str) -> Result<Vec<u8>> {
        let out = tempfile::NamedTempFile::new().context("making a file for what is read")?;
        self.dump(file, out.path())?;
        fs::read(out.path()).with_context(|| format!("reading {file} of {}", self.path.display()))
    }

    /// (path, SHA-256) of each file in `dirs` of an ext4 disk, sorted.
    pub fn digests(&self, dirs: &[&str]) -> Result<Vec<(String, String)>> {
        let mut digests = Vec::new();
        for dir in dirs {
            for name in self.list(dir)? {
                let path = format!("{dir}/{name}");
                let out = tempfile::NamedTempFile::new().context("making a file for what is read")?;
                self.dump(&path, out.path())?;
                let line = Tool::new("sha256sum", READ_LIMIT).arg(out.path()).text()?;
                let digest = line.split_whitespace().next().unwrap_or_default().to_owned();
                digests.push((path, digest));
            }
        }
        digests.sort();
        Ok(digests)
    }

    /// Writes `bytes` to `file` of an ext4 disk, over what is there.
    pub fn overwrite(&self, file: &str, bytes: &[u8]) -> Result<()> {
        let source = tempfile::NamedTempFile::new().context("making a file to write from")?;
        fs::write(source.path(), bytes).context("writing the file to write from")?;
        let path = source.path().display();
        // Removing what is not there is no error to debugfs.
        for request in [format!("rm {file}"), format!("write {path} {file}")] {
            Tool::new("debugfs", LIMIT).args(["-w", "-R", &request]).arg(&self.path).run()?;
        }
        if self.read(file)? != bytes {
            bail!("debugfs did not write {file} to {}", self.path.display());
        }
        Ok(())
    }

    /// Copies the files of the folder `from` into the new folder `to` of an ext4 disk.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        let mut requests = String::new();
        for (at, _) in to.match_indices('/').filter(|(at, _)| *at > 0) {
            requests += &format!("mkdir {}\n", &to[..at]);
        }
        requests += &format!("mkdir {to}\n");
        let mut names = Vec::new();
        for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
            let path = entry.with_context(|| format!("listing {}", from.display()))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .context("a file name is not UTF-8")?;
            requests += &format!("write {} {to}/{name}\n", path.display());
            names.push(name.to_owned());
        }
        let script = tempfile::NamedTempFile::new().context("making a file for debugfs")?;
        fs::write(script.path(), requests).context("writing the file for debugfs")?;
        Tool::new("debugfs", READ_LIMIT)
            .args(["-w", "-f"])
            .args([script.path(), &self.path])
            .run()?;
        // debugfs succeeds whatever its requests do.
        names.sort();
        if self.list(to)? != names {
            bail!("debugfs did not copy {} to {to} of {}", from.display(), self.path.display());
        }
        Ok(())
    }

    /// Whether an ext4 disk was left clean: unmounted or read-only, with an empty journal.
    pub fn is_clean(&self) -> Result<bool> {
        let shown = Tool::new("dumpe2fs", LIMIT).arg("-h").arg(&self.path).env("LC_ALL", "C").text()?;
        Ok(parse_clean(&shown))
    }

    /// Checks an ext4 disk, replaying its journal first as a mount would; an error holds what e2fsck says.
    pub fn check(&self) -> Result<()> {
        // 1 is «the journal was replayed»; inconsistencies that -p can mend without asking are also 1, and -f makes it look at all.
        let output = Tool::new("e2fsck", READ_LIMIT).args(["-p", "-f"]).arg(&self.path).output()?;
        match output.status.code() {
            Some(0 | 1) => Ok(()),
            code => bail!(
                "e2fsck of {} ends with {code:?}: {}",
                self.path.display(),
                crate::command::tail(&output.stdout)
            ),
        }
    }

    fn dump(&self, file: &str, out: &Path) -> Result<()> {
        let shown = self.debugfs(&format!("stat {file}"))?;
        if !shown.contains("Inode:") {
            bail!("{} has no {file}", self.path.display());
        }
        self.debugfs(&format!("dump {file} {}", out.display())).map(drop)
    }

    fn debugfs(&self, request: &str) -> Result<String> {
        // -c: without the bitmaps, so that a disk whose machine was killed can be read too.
        Tool::new("debugfs", READ_LIMIT).args(["-c", "-R", request]).arg(&self.path).text()
    }
}

/// Names of `ls -p`, whose lines are `/inode/mode/uid/gid/name/size/`.
fn parse_listing(shown: &str) -> Vec<String> {
    let mut names: Vec<String> = shown
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .filter(|name| !name.is_empty() && *name != "." && *name != "..")
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

fn parse_clean(dumpe2fs: &str) -> bool {
    let value = |name: &str| dumpe2fs.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    value("Filesystem state:") == Some("clean")
        && value("Filesystem features:").is_some_and(|all| !all.split_whitespace().any(|one| one == "needs_recovery"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn what_was_put_on_a_disk_is_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let content = temp.path().join("content/images");
        fs::create_dir_all(&content).unwrap();
        fs::write(content.join("a"), "one").unwrap();
        let disk = Disk::make_with(&temp.path().join("d"), 16, FsType::Ext4, "cache", content.parent()).unwrap();
        assert_eq!(disk.list("/images").unwrap(), ["a"]);
        assert_eq!(disk.list("/nowhere").unwrap(), Vec::<String>::new());
        assert_eq!(disk.read("/images/a").unwrap(), b"one");
        assert!(disk.read("/images/b").is_err());
        disk.overwrite("/images/a", b"two").unwrap();
        fs::write(content.join("b"), "three").unwrap();
        disk.put(&content, "/boot/x").unwrap();
        assert_eq!(disk.list("/boot/x").unwrap(), ["a", "b"]);
        assert_eq!(disk.read("/boot/x/b").unwrap(), b"three");
        let digests = disk.digests(&["/images"]).unwrap();
        assert_eq!(digests.len(), 1);
        assert!(digests[0].1.starts_with("3fc4ccfe7458"), "{digests:?}");
        assert!(disk.is_clean().unwrap());
        disk.check().unwrap();
    }

    #[test]
    fn a_journal_that_needs_a_replay_is_not_clean() {
        let shown = "Filesystem features:      has_journal ext_attr needs_recovery extent\nFilesystem state:         clean\n";
        assert!(!parse_clean(shown));
        assert!(parse_clean(&shown.replace("needs_recovery ", "")));
        assert!(!parse_clean("Filesystem state:         not clean\nFilesystem features: x\n"));
    }

    #[test]
    fn a_script_disk_is_whole_sectors_of_shell() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::script(&temp.path().join("s"), "echo hello").unwrap();
        let bytes = fs::read(disk.path()).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.starts_with(b"echo hello\nexit 0\n\n"));
    }
}
