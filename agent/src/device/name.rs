//! How a person names a device: `LABEL=…`, a udev link, or a path.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::Digest;
use crate::foreign;

/// The longest partition name that a GPT entry holds, in UTF-16 units.
const GPT_NAME_UNITS: usize = 36;

/// A device as it is named in `fileSystems.<name>.device`, in fstab or on the command line.
///
/// udev's links below `/dev/disk` are read as the tags that they stand for, because there may be no udev to make them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceName {
    /// Label of a file system (or of swap, or of a LUKS 2 container). Compared exactly.
    Label(String),
    /// UUID or serial of a file system as `blkid` prints it. Compared without regard to case.
    Uuid(String),
    /// Name of a GPT partition. Compared exactly.
    PartLabel(String),
    /// Unique id of a GPT partition, or `<disk signature>-<number>` for MBR. Compared without regard to case.
    PartUuid(String),
    /// A node in `/dev`, `/dev/mapper/<name>`, `/dev/<volume group>/<logical volume>`, or a link that udev made.
    Path(PathBuf),
}

/// Folders `/dev/disk/by-…` whose links name a disk and not what is on it.
const UDEVS: [&str; 4] = ["id", "path", "diskseq", "loop-ref"];

impl DeviceName {
    /// Whether nobody but udev knows what the path means; `by-id`, `by-path` and `by-diskseq` are told from sysfs too.
    pub fn needs_udev(&self) -> bool {
        match self {
            Self::Path(path) => path.starts_with("/dev/disk/by-loop-ref"),
            Self::Label(_) | Self::Uuid(_) | Self::PartLabel(_) | Self::PartUuid(_) => false,
        }
    }

    /// The link that udev makes by this name, or the path itself. None where the value is longer than a file name, or holds what udev leaves out.
    pub fn link(&self) -> Option<PathBuf> {
        let (folder, value) = match self {
            Self::Path(path) => return Some(path.clone()),
            Self::Label(value) => ("by-label", value),
            Self::Uuid(value) => ("by-uuid", value),
            Self::PartLabel(value) => ("by-partlabel", value),
            Self::PartUuid(value) => ("by-partuuid", value),
        };
        let name = escape(value);
        (name.len() < 256 && name != "." && name != "..").then(|| Path::new("/dev/disk").join(folder).join(name))
    }

    /// Whether both are one name, however it was written.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Uuid(one), Self::Uuid(two)) | (Self::PartUuid(one), Self::PartUuid(two)) => one.eq_ignore_ascii_case(two),
            (Self::Label(_) | Self::Uuid(_) | Self::PartLabel(_) | Self::PartUuid(_) | Self::Path(_), _) => self == other,
        }
    }
}

/// How the names begin that the kernel gives to disks in the order in which it finds them.
const BY_ORDER: [&str; 6] = ["sd", "vd", "hd", "xvd", "nvme", "mmcblk"];

impl DeviceName {
    /// Whether it names a disk, or a partition of one, by the order in which the kernel found it: after the next boot that can be another one.
    pub fn is_by_order(&self) -> bool {
        match self {
            Self::Path(path) => {
                let name = path.strip_prefix("/dev").ok().and_then(Path::to_str).unwrap_or_default();
                !name.contains('/') && BY_ORDER.iter().any(|start| name.starts_with(start))
            }
            Self::Label(_) | Self::Uuid(_) | Self::PartLabel(_) | Self::PartUuid(_) => false,
        }
    }
}

/// Why a text names no device that can be found without udev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotADeviceName {
    text: String,
    reason: String,
}

impl fmt::Display for NotADeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "«{}» does not name a device: {}; accepted are LABEL=, UUID=, PARTLABEL=, PARTUUID=, \
             /dev/disk/by-label|by-uuid|by-partlabel|by-partuuid/… and other paths below /dev",
            self.text, self.reason
        )
    }
}

impl std::error::Error for NotADeviceName {}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(value) => write!(f, "LABEL={value}"),
            Self::Uuid(value) => write!(f, "UUID={value}"),
            Self::PartLabel(value) => write!(f, "PARTLABEL={value}"),
            Self::PartUuid(value) => write!(f, "PARTUUID={value}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for DeviceName {
    type Err = NotADeviceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| NotADeviceName {
            text: foreign::word(text),
            reason: foreign::sentence(&reason),
        })
    }
}

fn parse(text: &str) -> Result<DeviceName, String> {
    if text.contains(char::is_control) {
        return Err("it holds a control character".to_owned());
    }
    if let Some(rest) = text.strip_prefix("/dev/disk/") {
        let (folder, link) = rest.split_once('/').ok_or("a link below /dev/disk/<folder>/ is missing")?;
        let kind = folder.strip_prefix("by-").unwrap_or(folder);
        if link.contains('/') {
            return Err(format!("«{link}» holds a slash; udev writes it as \\x2f"));
        }
        if UDEVS.contains(&kind) && !link.is_empty() {
            return Ok(DeviceName::Path(text.into()));
        }
        return tagged(&kind.to_ascii_uppercase(), unescape(link)?);
    }
    if text.starts_with("/dev/") {
        let path = Path::new(text);
        if text.ends_with('/') || text.split('/').any(|part| part == "." || part == "..") {
            return Err("a path below /dev has no «.», no «..» and no slash at its end".to_owned());
        }
        return Ok(DeviceName::Path(path.to_owned()));
    }
    match text.split_once('=') {
        Some((tag, value)) => tagged(tag, unquote(value)?.to_owned()),
        None => Err("it is neither TAG=value nor a path below /dev".to_owned()),
    }
}

fn tagged(tag: &str, value: String) -> Result<DeviceName, String> {
    if value.is_empty() {
        return Err(format!("{tag} has no value"));
    }
    match tag {
        "LABEL" => Ok(DeviceName::Label(value)),
        "UUID" => Ok(DeviceName::Uuid(value)),
        "PARTLABEL" => Ok(DeviceName::PartLabel(value)),
        "PARTUUID" => Ok(DeviceName::PartUuid(value)),
        other => Err(format!("«{other}» is not a known kind of name")),
    }
}

/// The value without the quotes that fstab and `blkid` allow around it.
fn unquote(value: &str) -> Result<&str, String> {
    let Some(quote @ ('"' | '\'')) = value.chars().next() else {
        return Ok(value);
    };
    let inner = value[1..]
        .strip_suffix(quote)
        .ok_or_else(|| format!("the quote {quote} is not closed"))?;
    if inner.contains(quote) {
        Err(format!("there is a {quote} inside the quotes"))
    } else {
        Ok(inner)
    }
}

/// Writes a value as udev does in a link (systemd's `encode_devnode_name`).
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        if character.is_ascii_alphanumeric() || "#+-.:=@_".contains(character) || !character.is_ascii() {
            escaped.push(character);
        } else {
            // One byte, since it is ASCII.
            escaped.push_str(&format!("\\x{:02x}", u32::from(character)));
        }
    }
    escaped
}

/// Undoes udev's `\xNN`.
fn unescape(link: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(link.len());
    let mut rest = link.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let byte = match tail {
            [b'x', high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            [..] => None,
        };
        bytes.push(byte.ok_or("a backslash is not followed by x and two hexadecimal digits")?);
        rest = &tail[3..];
    }
    let text = String::from_utf8(bytes).map_err(|_| "its escapes are not UTF-8")?;
    if text.contains(char::is_control) {
        Err("it holds an escaped control character".to_owned())
    } else {
        Ok(text)
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The partition label that disko gives the partition `partition` of `<parent_type> <parent_name>`, e.g. `disk-main-root`.
///
/// Longer than 36 bytes it is the first 36 hexadecimal digits of its SHA-256, as disko 1.13 (`lib/types/gpt.nix`) has it.
pub fn disko_partlabel(parent_type: &str, parent_name: &str, partition: &str) -> String {
    let label = format!("{parent_type}-{parent_name}-{partition}");
    if label.len() <= GPT_NAME_UNITS {
        return label;
    }
    let mut digest = Digest::of(label.as_bytes()).to_string();
    digest.truncate(GPT_NAME_UNITS);
    digest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_accepted_form_is_read_as_what_it_stands_for() {
        let cases: [(&str, DeviceName); 16] = [
            ("LABEL=cache", DeviceName::Label("cache".into())),
            ("LABEL=\"my disk\"", DeviceName::Label("my disk".into())),
            ("LABEL='it=s'", DeviceName::Label("it=s".into())),
            ("LABEL=a\"b", DeviceName::Label("a\"b".into())),
            ("UUID=26A3-91F0", DeviceName::Uuid("26A3-91F0".into())),
            ("PARTLABEL=disk-main-root", DeviceName::PartLabel("disk-main-root".into())),
            ("PARTUUID=8d3c1a2b-01", DeviceName::PartUuid("8d3c1a2b-01".into())),
            ("/dev/disk/by-label/my\\x20disk", DeviceName::Label("my disk".into())),
            ("/dev/disk/by-label/a\\x2fb\\x5cc", DeviceName::Label("a/b\\c".into())),
            ("/dev/disk/by-label/gr\\xc3\\xbcn", DeviceName::Label("grün".into())),
            ("/dev/disk/by-uuid/26A3-91F0", DeviceName::Uuid("26A3-91F0".into())),
            (
                "/dev/disk/by-partlabel/disk-main-root",
                DeviceName::PartLabel("disk-main-root".into()),
            ),
            ("/dev/disk/by-partuuid/8d3c1a2b-01", DeviceName::PartUuid("8d3c1a2b-01".into())),
            ("/dev/mapper/vg-root", DeviceName::Path("/dev/mapper/vg-root".into())),
            ("/dev/disk/by-id/ata-WDC", DeviceName::Path("/dev/disk/by-id/ata-WDC".into())),
            ("/dev/disk/by-path/pci-0", DeviceName::Path("/dev/disk/by-path/pci-0".into())),
        ];
        for (text, name) in cases {
            assert_eq!(text.parse::<DeviceName>(), Ok(name), "{text}");
        }
    }

    #[test]
    fn a_name_has_the_link_that_udev_makes_of_it() {
        for (text, link) in [
            ("LABEL=my disk", r"/dev/disk/by-label/my\x20disk"),
            ("LABEL=a/b\\c", r"/dev/disk/by-label/a\x2fb\x5cc"),
            ("PARTLABEL=grün", "/dev/disk/by-partlabel/grün"),
            ("PARTLABEL=disk-main-a+b:c", "/dev/disk/by-partlabel/disk-main-a+b:c"),
            ("UUID=26A3-91F0", "/dev/disk/by-uuid/26A3-91F0"),
            ("/dev/vg/lv", "/dev/vg/lv"),
        ] {
            let name: DeviceName = text.parse().unwrap();
            let made = name.link().unwrap();
            assert_eq!(made.to_str(), Some(link), "{text}");
            assert_eq!(link.parse::<DeviceName>(), Ok(name));
        }
        assert_eq!(DeviceName::Label("..".to_owned()).link(), None);
    }

    #[test]
    fn one_name_may_be_written_in_several_ways() {
        for (one, two, same) in [
            ("LABEL=a b", r"/dev/disk/by-label/a\x20b", true),
            ("LABEL=a", "LABEL=A", false),
            ("UUID=26A3-91F0", "/dev/disk/by-uuid/26a3-91f0", true),
            ("PARTUUID=8d3c1a2b-01", "PARTUUID=8D3C1A2B-01", true),
            ("PARTUUID=8d3c1a2b-01", "UUID=8d3c1a2b-01", false),
            ("/dev/vda1", "/dev/vda1", true),
        ] {
            let [one, two] = [one, two].map(|text| text.parse::<DeviceName>().unwrap());
            assert_eq!(one.is_same(&two), same, "{one} {two}");
        }
    }

    #[test]
    fn the_kernels_own_names_are_those_that_may_change() {
        for (text, by_order) in [
            ("/dev/vda", true),
            ("/dev/sdb1", true),
            ("/dev/nvme0n1p2", true),
            ("/dev/mmcblk0p1", true),
            ("/dev/disk/by-id/ata-WDC", false),
            ("/dev/disk/by-label/sda", false),
            ("/dev/mapper/sda", false),
            ("/dev/vda/data", false),
            ("/dev/md0", false),
            ("LABEL=sda", false),
        ] {
            assert_eq!(text.parse::<DeviceName>().unwrap().is_by_order(), by_order, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_found_is_refused_with_the_text_the_reason_and_the_accepted_forms() {
        let cases = [
            ("", "neither TAG=value"),
            ("sda1", "neither TAG=value"),
            ("LABEL=", "has no value"),
            ("LABEL=\"\"", "has no value"),
            ("LABEL=\"open", "not closed"),
            ("LABEL=\"a\"b\"", "inside the quotes"),
            ("label=x", "«label» is not a known kind"),
            ("ID=ata-WDC", "not a known kind"),
            ("/dev/disk/by-id/", "has no value"),
            ("/dev/disk/by-colour/red", "not a known kind"),
            ("/dev/disk/by-label", "is missing"),
            ("/dev/disk/by-label/a/b", "slash"),
            ("/dev/disk/by-label/a\\x2", "two hexadecimal digits"),
            ("/dev/disk/by-label/\\xff", "not UTF-8"),
            ("/dev/disk/by-label/\\x00", "control character"),
            ("/dev/../etc/passwd", "«..»"),
            ("/dev/", "slash at its end"),
            ("/tmp/disk", "neither TAG=value"),
        ];
        for (text, reason) in cases {
            let error = text.parse::<DeviceName>().expect_err(text).to_string();
            assert!(
                error.contains(&format!("«{text}»")) && error.contains(reason) && error.contains("LABEL="),
                "{error}"
            );
        }
    }

    #[test]
    fn a_long_disko_label_is_the_head_of_its_digest() {
        assert_eq!(disko_partlabel("disk", "main", "root"), "disk-main-root");
        let at_the_limit = disko_partlabel("disk", "main", &"x".repeat(26));
        assert_eq!(at_the_limit, format!("disk-main-{}", "x".repeat(26)));
        // printf 'disk-main-%s' $(printf 'x%.0s' {1..27}) | sha256sum | cut -c-36
        assert_eq!(
            disko_partlabel("disk", "main", &"x".repeat(27)),
            "d2452d3cbd6efc517654f6d4507fdc8073d0"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_prints_as_itself(text in ".{0,60}") {
            if let Ok(name) = text.parse::<DeviceName>() {
                let printed = name.to_string();
                if !printed.contains(['"', '\'']) {
                    prop_assert_eq!(printed.parse::<DeviceName>(), Ok(name));
                }
            }
        }
    }
}
