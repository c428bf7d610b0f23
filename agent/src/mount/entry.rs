//! Entries of a system's `fileSystems`, as they come, and as they are understood.
//!
//! [`FileSystemEntry`] has the shape of NixOS's `fileSystems.<mountPoint>`, flattened to JSON by the module; [`MountEntry`] is the same after it was
//! validated: its type is one that we mount, its options are split, its paths are clean, its place is not one of ours.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::foreign;
use crate::mode::Mode;
use crate::mount::options::{self, Bind, FsOption, MountOptions};

/// One entry of `fileSystems`, in JSON. Unknown fields are refused: a word that is not understood could be the one that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSystemEntry {
    /// Where it is mounted in the system, absolute.
    pub mount_point: String,
    /// The device by path or by name (`LABEL=`, `UUID=`, `/dev/disk/by-…`), the source folder of a bind, or nothing for tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The file system's type; `auto` takes what the device's probe finds.
    #[serde(default = "auto")]
    pub fs_type: String,
    /// The options of an fstab line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Paths that must be mounted first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends: Vec<String>,
    /// How much the boot needs it; without it, `optional` with the option `nofail` and `required` else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub need: Option<Need>,
    /// How long its device is waited for, in seconds; it wins over `x-systemd.device-timeout=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// With which mode and owner the source of a bind is made where it does not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<Create>,
    /// Not to be checked before it is mounted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_check: bool,
}

fn auto() -> String {
    "auto".to_owned()
}

/// How much the boot needs an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Without it the boot fails.
    #[default]
    Required,
    /// Without it the boot goes on, and is reported as degraded.
    Degraded,
    /// Without it the boot goes on.
    Optional,
}

/// Mode and owner of a bind's source that has to be made. Numbers only: in stage 1 there are no user names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Create {
    /// Octal digits, `0755` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// What is made; without it a folder is made, and what is there may be either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SourceKind>,
    /// Mode and owner of folders that have to be made above source and mount point; root and 0755 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parents: Option<Parents>,
}

/// What the source of a bind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A folder.
    Folder,
    /// A file; made, it is empty.
    File,
}

/// Mode and owner of folders above a source or a mount point. Numbers only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parents {
    /// Octal digits, `0755` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
}

/// How the source of a persisted path is made, validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creation {
    /// What it has to be; none: a folder is made, and what is there may be either.
    pub kind: Option<SourceKind>,
    /// Mode and owner.
    pub own: Ownership,
    /// Those of folders above.
    pub parents: Ownership,
}

impl Creation {
    /// A folder of root's, for which nobody said anything.
    const DEFAULT: Self = Self {
        kind: None,
        own: Ownership::ROOT,
        parents: Ownership::ROOT,
    };
}

/// Mode and owner, validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Mode bits.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Ownership {
    /// 0755, root: what a folder has that nobody said anything about.
    pub const ROOT: Self = Self {
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
}

/// What kind of mount an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A file system on a block device.
    Device(DeviceFs),
    /// A tmpfs of its own.
    Tmpfs,
    /// Folders of the system laid over one another.
    Overlay(Layers),
    /// Mounted by systemd, whatever it is, with its own checks and limits: it is only looked whether it is there.
    Systemds {
        /// The type as it was written.
        fs_type: String,
    },
    /// Another folder or file of the system.
    Bind {
        /// The source inside the system, absolute and clean.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// No mount, but a symlink to another folder or file of the system.
    Symlink {
        /// The target inside the system, absolute and clean.
        source: PathBuf,
    },
}

/// The type of an entry that is no mount but a symlink.
pub const SYMLINK: &str = "symlink";

/// The folders of an overlay, inside the system, absolute and clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// What is read, the topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// What takes writes, and the folder on the same file system that the kernel works in; without them the overlay is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
}

impl Layers {
    fn folders(&self) -> impl Iterator<Item = &Path> {
        let upper = self.upper.iter().flat_map(|(upper, work)| [upper, work]);
        self.lower.iter().chain(upper).map(PathBuf::as_path)
    }
}

/// File systems on block devices that stage 1 mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFs {
    /// What the device's probe finds.
    Auto,
    /// ext2
    Ext2,
    /// ext3
    Ext3,
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// btrfs
    Btrfs,
    /// FAT with long names
    Vfat,
    /// F2FS
    F2fs,
    /// exFAT
    Exfat,
    /// bcachefs, which only kernels with its module have
    Bcachefs,
    /// ISO 9660, of media
    Iso9660,
    /// squashfs, of media
    Squashfs,
}

impl DeviceFs {
    /// The type of that name, or nothing where stage 1 does not mount it.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "auto" => Self::Auto,
            "ext2" => Self::Ext2,
            "ext3" => Self::Ext3,
            "ext4" => Self::Ext4,
            "xfs" => Self::Xfs,
            "btrfs" => Self::Btrfs,
            "vfat" => Self::Vfat,
            "f2fs" => Self::F2fs,
            "exfat" => Self::Exfat,
            "bcachefs" => Self::Bcachefs,
            _ => return None,
        })
    }

    /// The type of that name, where a medium may hold it that is only read; `auto` is none of its names.
    pub fn of_medium(name: &str) -> Option<Self> {
        match name {
            "auto" => None,
            "iso9660" => Some(Self::Iso9660),
            "squashfs" => Some(Self::Squashfs),
            _ => Self::of(name),
        }
    }

    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::F2fs => "f2fs",
            Self::Exfat => "exfat",
            Self::Bcachefs => "bcachefs",
            Self::Iso9660 => "iso9660",
            Self::Squashfs => "squashfs",
        }
    }
}

/// A validated entry. Only [`MountEntry::validate`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    mount_point: PathBuf,
    device: Option<String>,
    kind: MountKind,
    options: MountOptions,
    depends: Vec<PathBuf>,
    need: Need,
    timeout: Option<Duration>,
    create: Creation,
    made: bool,
    no_check: bool,
}

/// Why an entry cannot be mounted, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedEntry {
    /// The mount point as it was written.
    pub mount_point: String,
    /// Why, and the remedy.
    pub reason: String,
}

impl fmt::Display for RefusedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file system entry «{}»: {}", self.mount_point, self.reason)
    }
}

impl std::error::Error for RefusedEntry {}

impl MountEntry {
    /// Validates an entry. What systemd mounts in its mode is left to it: its type and its options are not looked at.
    pub fn validate(entry: &FileSystemEntry, mode: Mode) -> Result<Self, RefusedEntry> {
        let refuse = |reason: String| RefusedEntry {
            mount_point: foreign::word(&entry.mount_point),
            reason: foreign::sentence(&reason),
        };
        let mount_point = clean_path(&entry.mount_point).map_err(|why| refuse(format!("the mount point {why}")))?;
        if let Some(remedy) = owned_by_the_agent(&mount_point) {
            return Err(refuse(remedy.to_owned()));
        }
        let systemds = match mode {
            Mode::Standalone => false,
            Mode::Systemd => !options::is_bind(&entry.options) && entry.fs_type != SYMLINK,
        };
        let options = if systemds {
            MountOptions {
                nofail: options::words(&entry.options).any(|word| word == "nofail"),
                ..MountOptions::default()
            }
        } else {
            options::split(&entry.options).map_err(|err| refuse(err.to_string()))?
        };
        if options.noauto {
            return Err(refuse(
                "it has the option «noauto», and stage 1 mounts nothing on demand; remove the option or the entry".to_owned(),
            ));
        }
        let kind = if systemds {
            MountKind::Systemds {
                fs_type: entry.fs_type.clone(),
            }
        } else {
            kind_of(entry, &options).map_err(refuse)?
        };
        let mut depends = Vec::new();
        for path in &entry.depends {
            depends.push(clean_path(path).map_err(|why| refuse(format!("the path «{path}» in «depends» {why}")))?);
        }
        for path in &options.requires_mounts_for {
            depends.push(clean_path(path).map_err(|why| refuse(format!("the path «{path}» in «x-systemd.requires-mounts-for» {why}")))?);
        }
        let need = match (entry.need, options.nofail) {
            (Some(need), _) => need,
            (None, true) => Need::Optional,
            (None, false) => Need::Required,
        };
        let timeout = match entry.timeout {
            Some(0) => {
                return Err(refuse(
                    "a timeout of 0 seconds finds no device; leave it out, or give a limit".to_owned(),
                ));
            }
            Some(seconds) => Some(Duration::from_secs(u64::from(seconds))),
            None => options.device_timeout,
        };
        if entry.create.is_some() && !matches!(kind, MountKind::Bind { .. } | MountKind::Symlink { .. }) {
            return Err(refuse("«create» is for the source of a bind or a symlink; leave it out".to_owned()));
        }
        let create = creation(entry.create.as_ref()).map_err(refuse)?;
        Ok(Self {
            mount_point,
            device: entry.device.clone(),
            kind,
            options,
            depends,
            need,
            timeout,
            create,
            made: entry.create.is_some(),
            no_check: entry.no_check,
        })
    }

    /// Whether its file system is mounted without a check.
    pub const fn no_check(&self) -> bool {
        self.no_check
    }

    /// Where it is mounted in the system: absolute, without `.` and `..`.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The device as it was written.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// What kind of mount it is.
    pub const fn kind(&self) -> &MountKind {
        &self.kind
    }

    /// Its options.
    pub const fn options(&self) -> &MountOptions {
        &self.options
    }

    /// Paths that must be mounted first.
    pub fn depends(&self) -> &[PathBuf] {
        &self.depends
    }

    /// How much the boot needs it.
    pub const fn need(&self) -> Need {
        self.need
    }

    /// How long its device is waited for, where the entry says so.
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// How the source of a bind or symlink is made that is not there.
    pub const fn create(&self) -> Creation {
        self.create
    }

    /// Whether the entry says how its source is made.
    pub const fn says_create(&self) -> bool {
        self.made
    }

    /// The folders of the system that it is made of: the source of a bind, the layers of an overlay.
    pub fn sources(&self) -> Vec<&Path> {
        match &self.kind {
            MountKind::Bind { source, .. } | MountKind::Symlink { source } => vec![source],
            MountKind::Overlay(layers) => layers.folders().collect(),
            MountKind::Device(_) | MountKind::Tmpfs | MountKind::Systemds { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for MountEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.as_deref().unwrap_or("none");
        match &self.kind {
            MountKind::Device(fs) => write!(f, "{} ({} on {device})", self.mount_point.display(), fs.name()),
            MountKind::Tmpfs => write!(f, "{} (tmpfs)", self.mount_point.display()),
            MountKind::Overlay(_) => write!(f, "{} (overlay)", self.mount_point.display()),
            MountKind::Systemds { fs_type } => write!(f, "{} ({fs_type} on {device})", self.mount_point.display()),
            MountKind::Bind { source, .. } => write!(f, "{} (bind of {})", self.mount_point.display(), source.display()),
            MountKind::Symlink { source } => write!(f, "{} (symlink to {})", self.mount_point.display(), source.display()),
        }
    }
}

fn kind_of(entry: &FileSystemEntry, options: &MountOptions) -> Result<MountKind, String> {
    let fs_type = entry.fs_type.as_str();
    if let Some(bind) = options.bind {
        if !matches!(fs_type, "none" | "auto" | "bind") {
            return Err(format!(
                "it has the option «bind» and the type «{fs_type}»; a bind has the type «none»"
            ));
        }
        let Some(source) = &entry.device else {
            return Err("a bind needs its source folder as «device»".to_owned());
        };
        return Ok(MountKind::Bind {
            source: clean_path(source).map_err(|why| format!("the source «{source}» of the bind {why}"))?,
            recursive: match bind {
                Bind::Single => false,
                Bind::Recursive => true,
            },
        });
    }
    if fs_type == SYMLINK {
        if options::words(&entry.options)
            .next()
            .is_some_and(|word| word != "defaults" && word != "nofail")
        {
            return Err("a symlink has no options; leave them out".to_owned());
        }
        let source = entry.device.as_deref().ok_or("a symlink needs its target as «device»")?;
        return Ok(MountKind::Symlink {
            source: clean_path(source).map_err(|why| format!("the target «{source}» of the symlink {why}"))?,
        });
    }
    if options.subdir.is_some() && DeviceFs::of(fs_type).is_none() {
        return Err(format!(
            "«X-mount.subdir» is for a file system on a disk, and type «{fs_type}» is none; leave it out"
        ));
    }
    if fs_type == "tmpfs" {
        return Ok(MountKind::Tmpfs);
    }
    if fs_type == "overlay" {
        return layers(&options.file_system).map(MountKind::Overlay);
    }
    if let Some(fs) = DeviceFs::of(fs_type) {
        return match &entry.device {
            Some(device) if !device.is_empty() => Ok(MountKind::Device(fs)),
            Some(_) | None => Err(format!("type «{fs_type}» needs a device")),
        };
    }
    Err(match fs_type {
        "none" | "bind" => format!("type «{fs_type}» is for binds; add the option «bind», or give the type of the device"),
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" | "fuse.sshfs" | "ceph" => format!(
            "type «{fs_type}» is not mounted by the agent; use systemd stage 1 (it has the helpers), or set neededForBoot = false so that stage 2 mounts it"
        ),
        "zfs" => "type «zfs»: pools are imported by the tools of ZFS, which the agent does not run; use systemd stage 1 (NixOS brings zfs-import there), or set neededForBoot = false so that stage 2 mounts it".to_owned(),
        "swap" => "swap space has no mount point; list it in swapDevices".to_owned(),
        _ => format!(
            "type «{fs_type}» is not mounted by the agent (it knows ext2, ext3, ext4, xfs, btrfs, f2fs, bcachefs, vfat, exfat, tmpfs, overlay and binds); use systemd stage 1, or set neededForBoot = false so that stage 2 mounts it"
        ),
    })
}

/// Options of an overlay that name folders.
const LAYERS: [&str; 3] = ["lowerdir", "upperdir", "workdir"];

/// Where NixOS's own stages 1 have the new root: `fileSystems.<name>.overlay` writes it before the folders of an overlay that they are to mount.
const SYSROOTS: [&str; 2] = ["/sysroot", "/mnt-root"];

impl MountEntry {
    /// The options of an overlay that are not its folders.
    pub fn overlay_options(&self) -> impl Iterator<Item = &FsOption> {
        self.options
            .file_system
            .iter()
            .filter(|option| !LAYERS.contains(&option.key.as_str()))
    }
}

fn layers(options: &[FsOption]) -> Result<Layers, String> {
    let value = |name: &str| {
        options
            .iter()
            .rev()
            .find(|option| option.key == name)
            .and_then(|option| option.value.as_deref())
    };
    let folder = |name: &str, text: &str| {
        let prefix = SYSROOTS
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix).filter(|rest| rest.starts_with('/')));
        clean_path(prefix.unwrap_or(text)).map_err(|why| format!("the folder «{text}» in «{name}» {why}"))
    };
    let lower = value("lowerdir").ok_or("an overlay needs the option «lowerdir=»")?;
    if lower.contains(['\\', '\'', '"']) || lower.contains("::") {
        return Err(format!(
            "«lowerdir={lower}»: folders are separated by one colon each, and have neither backslashes nor quotes"
        ));
    }
    let lower = lower.split(':').map(|text| folder("lowerdir", text)).collect::<Result<_, _>>()?;
    let upper = match (value("upperdir"), value("workdir")) {
        (Some(upper), Some(work)) => Some((folder("upperdir", upper)?, folder("workdir", work)?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err("an overlay has «upperdir=» and «workdir=» together, or neither".to_owned()),
    };
    Ok(Layers { lower, upper })
}

fn creation(create: Option<&Create>) -> Result<Creation, String> {
    let Some(create) = create else {
        return Ok(Creation::DEFAULT);
    };
    let default = match create.kind {
        Some(SourceKind::File) => 0o644,
        Some(SourceKind::Folder) | None => Ownership::ROOT.mode,
    };
    let parents = match &create.parents {
        Some(parents) => ownership(parents.mode.as_deref(), Ownership::ROOT.mode, parents.uid, parents.gid)?,
        None => Ownership::ROOT,
    };
    Ok(Creation {
        kind: create.kind,
        own: ownership(create.mode.as_deref(), default, create.uid, create.gid)?,
        parents,
    })
}

fn ownership(mode: Option<&str>, default: u32, uid: u32, gid: u32) -> Result<Ownership, String> {
    let mode = match mode {
        None => default,
        Some(text) => options::parse_mode(text).ok_or_else(|| format!("the mode «{text}» is not written in octal digits, as «0750»"))?,
    };
    Ok(Ownership { mode, uid, gid })
}

/// An absolute path without `//`, `.` and a slash at the end; `..` is refused, since it depends on what is mounted.
pub fn clean_path(text: &str) -> Result<PathBuf, &'static str> {
    if !text.starts_with('/') {
        return Err("is not absolute; write it from the root of the system");
    }
    if text.contains('\0') || text.len() > 4000 {
        return Err("is not a path");
    }
    let mut path = PathBuf::from("/");
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("contains «..»; write it without"),
            part => path.push(part),
        }
    }
    Ok(path)
}

/// What to do about an entry for a place that the agent itself mounts, or nothing where the place is free.
fn owned_by_the_agent(mount_point: &Path) -> Option<&'static str> {
    const STORE: &str = "the agent mounts the Nix store itself (image, writable layer, overlay); remove the entry, and configure the writable layer in freshroot's settings";
    const API: &str = "the agent and systemd mount this kernel file system; remove the entry";
    for (place, remedy) in [
        ("/nix/store", STORE),
        ("/nix/.ro-store", STORE),
        ("/nix/.rw-store", STORE),
        ("/nix/.freshroot", STORE),
        ("/proc", API),
        ("/sys", API),
        ("/dev", API),
        (
            "/run/freshroot",
            "the agent keeps its report and its cache here; choose another mount point",
        ),
    ] {
        if mount_point.starts_with(place) {
            return Some(remedy);
        }
    }
    match mount_point.to_str() {
        Some("/") => Some("the agent makes / as a tmpfs; remove the entry, and set its size in freshroot's settings"),
        Some("/nix") => {
            Some("it would hide the store that the agent mounts below; mount what is to be kept at a folder such as /nix/persist")
        }
        Some("/run") => Some(API),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn parsed(json: &str) -> FileSystemEntry {
        serde_json::from_str(json).unwrap()
    }

    fn valid(json: &str) -> MountEntry {
        MountEntry::validate(&parsed(json), Mode::Standalone).unwrap()
    }

    #[test]
    fn an_entry_has_the_shape_of_nixos() {
        let entry = valid(
            r#"{"mountPoint": "/var/lib/", "device": "/dev/disk/by-label/data", "fsType": "btrfs",
                "options": ["subvol=lib", "noatime", "x-systemd.device-timeout=20s"], "depends": ["/persist"]}"#,
        );
        assert_eq!(entry.mount_point(), Path::new("/var/lib"));
        assert_eq!(entry.kind(), &MountKind::Device(DeviceFs::Btrfs));
        assert_eq!(entry.need(), Need::Required);
        assert_eq!(entry.timeout(), Some(Duration::from_secs(20)));
        assert_eq!(entry.depends(), [PathBuf::from("/persist")]);
    }

    #[test]
    fn what_systemd_mounts_is_left_to_it_and_binds_are_not() {
        let kinds =
            |json: &str| [Mode::Standalone, Mode::Systemd].map(|mode| MountEntry::validate(&parsed(json), mode).map(|entry| entry.kind));
        let [alone, with_systemd] =
            kinds(r#"{"mountPoint": "/a", "device": "h:/x", "fsType": "nfs", "options": ["X-mount.subdir=b", "nofail"]}"#);
        assert!(alone.is_err());
        assert_eq!(with_systemd.unwrap(), MountKind::Systemds { fs_type: "nfs".into() });
        let bind = r#"{"mountPoint": "/a", "device": "/b", "fsType": "none", "options": ["nofail,bind"]}"#;
        let [alone, with_systemd] = kinds(bind);
        assert_eq!(alone, with_systemd);
        assert_eq!(MountEntry::validate(&parsed(bind), Mode::Systemd).unwrap().need(), Need::Optional);
        for (options, need) in [(r#"["noatime"]"#, Need::Required), (r#"["noatime,nofail"]"#, Need::Optional)] {
            let entry = parsed(&format!(r#"{{"mountPoint": "/a", "device": "/dev/sda1", "options": {options}}}"#));
            assert_eq!(MountEntry::validate(&entry, Mode::Systemd).unwrap().need(), need);
        }
    }

    #[test]
    fn the_type_is_probed_where_none_is_given() {
        let entry = valid(r#"{"mountPoint": "/data", "device": "/dev/sda1"}"#);
        assert_eq!(entry.kind(), &MountKind::Device(DeviceFs::Auto));
    }

    #[test]
    fn need_is_what_the_entry_says_then_nofail_then_required() {
        for (rest, expected) in [
            ("", Need::Required),
            (r#", "options": ["nofail"]"#, Need::Optional),
            (r#", "options": ["nofail"], "need": "degraded""#, Need::Degraded),
            (r#", "need": "optional""#, Need::Optional),
        ] {
            assert_eq!(
                valid(&format!(r#"{{"mountPoint": "/d", "fsType": "tmpfs"{rest}}}"#)).need(),
                expected,
                "{rest}"
            );
        }
    }

    #[test]
    fn a_bind_needs_the_option_and_a_source_inside_the_system() {
        let bind = |fs_type: &str| {
            format!(r#"{{"mountPoint": "/etc/ssh", "device": "/persist/etc/ssh", "fsType": "{fs_type}", "options": ["rbind"]}}"#)
        };
        for fs_type in ["none", "auto", "bind"] {
            let expected = MountKind::Bind {
                source: "/persist/etc/ssh".into(),
                recursive: true,
            };
            assert_eq!(valid(&bind(fs_type)).kind(), &expected);
        }
        assert!(MountEntry::validate(&parsed(&bind("ext4")), Mode::Standalone).is_err());
        assert!(
            MountEntry::validate(
                &parsed(r#"{"mountPoint": "/a", "fsType": "none", "options": ["bind"]}"#),
                Mode::Standalone
            )
            .is_err()
        );
        assert!(
            MountEntry::validate(
                &parsed(r#"{"mountPoint": "/a", "device": "../b", "fsType": "none", "options": ["bind"]}"#),
                Mode::Standalone
            )
            .is_err()
        );
    }

    #[test]
    fn places_of_the_agent_are_refused_with_a_remedy() {
        for (place, free) in [
            ("/", false),
            ("//", false),
            ("/nix", false),
            ("/nix/", false),
            ("/nix/store", false),
            ("/nix/store/abc", false),
            ("/nix/.ro-store", false),
            ("/nix/.rw-store", false),
            ("/nix/./.rw-store/store", false),
            ("/nix/.freshroot", false),
            ("/proc", false),
            ("/sys/fs/cgroup", false),
            ("/dev/shm", false),
            ("/run", false),
            ("/run/freshroot/cache", false),
            ("/nix/persist", true),
            ("/nix/var", true),
            ("/nix/storefront", true),
            ("/run/keys", true),
            ("/home", true),
            ("/development", true),
        ] {
            let entry = parsed(&format!(r#"{{"mountPoint": "{place}", "fsType": "tmpfs"}}"#));
            assert_eq!(MountEntry::validate(&entry, Mode::Standalone).is_ok(), free, "{place}");
        }
    }

    #[test]
    fn mount_points_are_absolute_and_without_dots() {
        for bad in ["", "a", "./a", "/a/../b", "..", "/a/.."] {
            let entry = parsed(&format!(r#"{{"mountPoint": "{bad}", "fsType": "tmpfs"}}"#));
            assert!(MountEntry::validate(&entry, Mode::Standalone).is_err(), "{bad}");
        }
    }

    #[test]
    fn types_that_are_not_ours_are_refused_by_name() {
        for fs_type in [
            "nfs", "nfs4", "virtiofs", "9p", "cifs", "zfs", "squashfs", "none", "swap", "ntfs", "EXT4", "",
        ] {
            let entry = parsed(&format!(r#"{{"mountPoint": "/a", "device": "/dev/sda", "fsType": "{fs_type}"}}"#));
            let refused = MountEntry::validate(&entry, Mode::Standalone).expect_err(fs_type);
            let named = refused.reason.contains(&format!("«{fs_type}»")) || (fs_type == "swap" && refused.reason.contains("swapDevices"));
            assert!(named, "{refused}");
        }
    }

    #[test]
    fn an_overlay_has_its_folders_inside_the_system() {
        let layers = |options: &str| {
            let entry = parsed(&format!(
                r#"{{"mountPoint": "/a", "device": "overlay", "fsType": "overlay", "options": ["{options}"]}}"#
            ));
            MountEntry::validate(&entry, Mode::Standalone).map(|entry| {
                let folders: Vec<String> = entry.sources().iter().map(|path| path.display().to_string()).collect();
                folders.join(" ")
            })
        };
        for (options, folders) in [
            ("lowerdir=/b", "/b"),
            (
                "lowerdir=/sysroot/b:/mnt-root/c,upperdir=/sysroot/d/up,workdir=/sysroot/d/work",
                "/b /c /d/up /d/work",
            ),
            ("lowerdir=/sysrooted/b", "/sysrooted/b"),
        ] {
            assert_eq!(layers(options).unwrap(), folders, "{options}");
        }
        for bad in [
            "defaults",
            "lowerdir=b",
            "lowerdir=/a::/b",
            "lowerdir=/a,upperdir=/b",
            "lowerdir=/a,workdir=/b",
        ] {
            assert!(layers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_fields_words_and_zero_limits_are_refused() {
        assert!(
            MountEntry::validate(
                &parsed(r#"{"mountPoint": "/a", "fsType": "tmpfs", "options": ["noauto"]}"#),
                Mode::Standalone
            )
            .is_err()
        );
        assert!(serde_json::from_str::<FileSystemEntry>(r#"{"mountPoint": "/a", "autoFormat": true}"#).is_err());
        assert!(serde_json::from_str::<FileSystemEntry>(r#"{"mountPoint": "/a", "need": "maybe"}"#).is_err());
        assert!(
            MountEntry::validate(
                &parsed(r#"{"mountPoint": "/a", "fsType": "tmpfs", "timeout": 0}"#),
                Mode::Standalone
            )
            .is_err()
        );
        assert!(
            MountEntry::validate(
                &parsed(r#"{"mountPoint": "/a", "fsType": "tmpfs", "create": {}}"#),
                Mode::Standalone
            )
            .is_err()
        );
        let bind = |create: &str| format!(r#"{{"mountPoint": "/a", "device": "/b", "options": ["bind"], "create": {create}}}"#);
        assert_eq!(
            valid(&bind(r#"{"mode": "0700", "uid": 1}"#)).create().own,
            Ownership {
                mode: 0o700,
                uid: 1,
                gid: 0
            }
        );
        assert!(MountEntry::validate(&parsed(&bind(r#"{"mode": "rwx"}"#)), Mode::Standalone).is_err());
    }
}
