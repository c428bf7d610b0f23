//! What is made in a partition: a declared content, checked.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::foreign::word;
use crate::mount::entry::clean_path;

/// What is made in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The format.
    pub format: Format,
    /// Its label.
    pub label: Option<String>,
    /// Further arguments of the program that makes it.
    pub arguments: Vec<String>,
    /// Subvolumes of a btrfs, relative paths, parents first.
    pub subvolumes: Vec<String>,
    /// What opens a LUKS container, and what is made in it.
    pub inside: Option<Inside>,
}

/// The inside of a LUKS container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// Its key.
    pub key: KeyFile,
    /// What is made in it; none: nothing.
    pub content: Option<Box<Content>>,
}

/// A file of the initrd whose bytes are a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// Whether the ends of lines at its end are not part of the key: a passphrase, to be typed later.
    pub typed: bool,
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without = if self.typed { " (without line ends)" } else { "" };
        write!(f, "--key-file {}{without}", self.path.display())
    }
}

impl Content {
    /// In words: «ext4», «crypto_LUKS with ext4».
    pub fn shown(&self) -> String {
        let inside = self.inside.as_ref().and_then(|inside| inside.content.as_ref());
        match inside {
            Some(content) => format!("{} with {}", self.format.name(), content.shown()),
            None => self.format.name().to_owned(),
        }
    }

    /// The formats of it and of what is in it.
    pub fn formats(&self) -> Vec<Format> {
        let inside = self.inside.as_ref().and_then(|inside| inside.content.as_ref());
        std::iter::once(self.format)
            .chain(inside.into_iter().flat_map(|content| content.formats()))
            .collect()
    }
}

/// Formats that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT.
    Vfat,
    /// Swap space.
    Swap,
    /// A LUKS 2 container.
    Luks,
}

impl Format {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Swap => "swap",
            // As probes call it.
            Self::Luks => "crypto_LUKS",
        }
    }

    /// The program that makes it.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Ext4 => "mkfs.ext4",
            Self::Xfs => "mkfs.xfs",
            Self::Btrfs => "mkfs.btrfs",
            Self::Vfat => "mkfs.vfat",
            Self::Swap => "mkswap",
            Self::Luks => "cryptsetup",
        }
    }

    /// Options of that program that are given here already.
    const fn own_options(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["-U", "-L", "-F", "-n", "-S"],
            Self::Xfs => &["-L", "-f", "-N", "-p"],
            Self::Btrfs => &["-U", "--uuid", "-L", "--label", "-f", "--force", "-r", "--rootdir", "-b"],
            Self::Vfat => &["-i", "-n", "-C", "-I"],
            Self::Swap => &["-U", "--uuid", "-L", "--label", "-f", "--force"],
            Self::Luks => &[
                "--uuid",
                "--label",
                "-M",
                "--type",
                "-d",
                "--key-file",
                "-l",
                "--keyfile-size",
                "--keyfile-offset",
                "--header",
                "--volume-key-file",
                "--master-key-file",
                "-q",
                "--batch-mode",
                "-I",
                "--integrity",
            ],
        }
    }

    /// Bytes that a label of it has room for.
    const fn longest_label(self) -> usize {
        match self {
            Self::Ext4 => 16,
            Self::Xfs => 12,
            Self::Btrfs => 255,
            Self::Vfat => 11,
            Self::Swap => 15,
            Self::Luks => 47,
        }
    }
}

/// As it is declared.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawContent {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    format: Option<String>,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    extra_args: Vec<String>,
    #[serde(default)]
    subvolumes: Vec<String>,
    // Of LUKS, as disko has it.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    settings: Option<RawSettings>,
    #[serde(default)]
    password_file: Option<String>,
    #[serde(default)]
    extra_format_args: Vec<String>,
    #[serde(default)]
    content: Option<Box<RawContent>>,
}

/// How a container is opened: the setting `luks` says that at boot. The key is needed here too.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSettings {
    #[serde(default)]
    key_file: Option<String>,
    #[serde(default, rename = "allowDiscards")]
    _allow_discards: bool,
    #[serde(default, rename = "bypassWorkqueues")]
    _bypass_workqueues: bool,
}

/// Checks what is declared for a partition; an error names the field and what is wrong.
pub fn content(raw: RawContent) -> Result<Content, (&'static str, String)> {
    let is_luks = raw.kind == "luks";
    let of_luks = raw.name.is_some()
        || raw.settings.is_some()
        || raw.password_file.is_some()
        || !raw.extra_format_args.is_empty()
        || raw.content.is_some();
    if of_luks && !is_luks {
        let what = format!(
            "name, settings, passwordFile, extraFormatArgs and content belong to the type luks, not to {}: remove them",
            word(&raw.kind)
        );
        return Err((".content", what));
    }
    let format = match (raw.kind.as_str(), raw.format.as_deref()) {
        ("filesystem", Some("ext4")) => Format::Ext4,
        ("filesystem", Some("xfs")) => Format::Xfs,
        ("filesystem", Some("btrfs")) | ("btrfs", None) => Format::Btrfs,
        ("filesystem", Some("vfat")) => Format::Vfat,
        ("swap", None) => Format::Swap,
        ("filesystem", other) => {
            let what = format!(
                "«{}» is not made here: write ext4, xfs, btrfs or vfat",
                word(other.unwrap_or_default())
            );
            return Err((".content.format", what));
        }
        ("luks", None) => Format::Luks,
        ("btrfs" | "swap" | "luks", Some(_)) => {
            return Err((".content.format", "it belongs to the type filesystem: remove it".to_owned()));
        }
        ("lvm_pv" | "mdraid" | "zfs" | "bcachefs", _) => {
            let what = format!(
                "{} is not prepared here: make it by hand, once, and only declare its mounts",
                raw.kind
            );
            return Err((".content.type", what));
        }
        (other, _) => {
            let what = format!("«{}» is not known: write filesystem, btrfs, swap or luks", word(other));
            return Err((".content.type", what));
        }
    };
    if let Some(label) = &raw.label {
        let good = !label.is_empty()
            && label.len() <= format.longest_label()
            && !label.contains(char::is_control)
            && !label.starts_with('-')
            && label.trim() == label
            && (format != Format::Vfat || vfat_label(label));
        if !good {
            let what = format!(
                "«{}» is no label of {}: 1 to {} bytes are expected, no blank at its ends, no - in front{}",
                word(label),
                format.name(),
                format.longest_label(),
                if format == Format::Vfat {
                    ", in capitals, digits, - and _"
                } else {
                    ""
                }
            );
            return Err((".content.label", what));
        }
    }
    arguments(format, &raw.extra_args).map_err(|what| (".content.extraArgs", what))?;
    if is_luks && !raw.extra_args.is_empty() {
        let what = "those of luks are called extraFormatArgs: write them there".to_owned();
        return Err((".content.extraArgs", what));
    }
    arguments(format, &raw.extra_format_args).map_err(|what| (".content.extraFormatArgs", what))?;
    if format != Format::Btrfs && !raw.subvolumes.is_empty() {
        return Err((".content.subvolumes", format!("{} has none: remove them", format.name())));
    }
    let subvolumes = subvolumes(&raw.subvolumes).map_err(|what| (".content.subvolumes", what))?;
    let inside = if is_luks {
        let key = key_file(raw.settings.and_then(|settings| settings.key_file), raw.password_file)?;
        let content = raw.content.map(|raw| content(*raw)).transpose()?;
        if content.as_ref().is_some_and(|content| content.format == Format::Luks) {
            return Err((
                ".content.content.type",
                "luks in luks is not made here: write what is in it".to_owned(),
            ));
        }
        Some(Inside {
            key,
            content: content.map(Box::new),
        })
    } else {
        None
    };
    Ok(Content {
        format,
        label: raw.label,
        arguments: if is_luks { raw.extra_format_args } else { raw.extra_args },
        subvolumes,
        inside,
    })
}

fn key_file(key: Option<String>, password: Option<String>) -> Result<KeyFile, (&'static str, String)> {
    let typed = password.is_some();
    let (Some(path), false) = (key.as_ref().or(password.as_ref()), key.is_some() && typed) else {
        let what = "one key is expected, as a file of the initrd: settings.keyFile, or passwordFile, whose line end is not part of it";
        return Err((".content", what.to_owned()));
    };
    clean_path(path).map_err(|why| (".content", format!("the key file «{}» {why}", word(path))))?;
    if path.starts_with("/dev/") {
        let what = format!("the key file «{}» is a device: a file of the initrd is expected", word(path));
        return Err((".content", what));
    }
    Ok(KeyFile {
        path: PathBuf::from(path),
        typed,
    })
}

fn vfat_label(label: &str) -> bool {
    label
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"_- ".contains(&b))
}

/// Arguments go to the program as they stand, before the device: none may name another place to write to, or take the place of what is given here.
fn arguments(format: Format, arguments: &[String]) -> Result<(), String> {
    let mut before_is_option = false;
    for argument in arguments {
        let option = argument.starts_with('-');
        let own = format
            .own_options()
            .iter()
            .any(|own| argument == own || (own.len() == 2 && !argument.starts_with("--") && argument.starts_with(own)));
        let long_own = argument
            .split_once('=')
            .is_some_and(|(name, _)| format.own_options().contains(&name));
        if own || long_own || (format == Format::Xfs && argument.contains("uuid=")) {
            return Err(format!("{} is not left to extraArgs: remove it", word(argument)));
        }
        if argument.is_empty() || argument == "--" || argument.contains(|c: char| c == '/' || c.is_control()) {
            return Err(format!(
                "«{}» may not stand here: options and their values are expected, no paths",
                word(argument)
            ));
        }
        if !option && !before_is_option {
            return Err(format!(
                "«{}» is neither an option nor follows one: the device is given to {} already",
                word(argument),
                format.program()
            ));
        }
        before_is_option = option;
    }
    Ok(())
}

/// Relative paths without `.` and `..`, each parent that is declared too in front of it.
fn subvolumes(paths: &[String]) -> Result<Vec<String>, String> {
    let mut all: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        let bare = path.strip_prefix('/').unwrap_or(path);
        let good = !bare.is_empty()
            && bare.len() <= 255
            && !bare.contains(char::is_control)
            && Path::new(bare)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !good || bare.ends_with('/') || bare.contains("//") {
            return Err(format!(
                "«{}» is no path of a subvolume: names with / between them are expected",
                word(path)
            ));
        }
        if all.iter().any(|other| other == bare) {
            return Err(format!("«{}» stands there twice: remove one", word(path)));
        }
        all.push(bare.to_owned());
    }
    all.sort();
    Ok(all)
}
