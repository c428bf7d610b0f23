//! What `disks.<name>` declares, read from JSON and checked. The shape is that of disko's trees, cut down to what is prepared here.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::device::name::disko_partlabel;
use crate::digest::Digest;
use crate::foreign::{sentence, word};
use crate::settings::value::{bytes, show_bytes};

use super::content::{Content, Format, RawContent, content};

/// The longest partition name that a GPT entry holds, in UTF-16 units.
const GPT_NAME_UNITS: usize = 36;
/// A GPT has room for so many partitions.
const MOST_PARTITIONS: usize = 128;
/// Names of disks become parts of labels and of messages.
const LONGEST_NAME: usize = 64;
/// Every file system that is made here needs more than this.
const LEAST_PARTITION: u64 = 1 << 20;
/// A disk that a GPT, one partition and the borders around it fit on.
const LEAST_DISK: u64 = 16 << 20;

/// A declared disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    /// Its name in the configuration.
    pub name: String,
    /// Which disk it is.
    pub device: DiskId,
    /// The least size that it may have, in bytes.
    pub min: u64,
    /// The largest.
    pub max: u64,
    /// Whether it is prepared where it is blank.
    pub prepare: bool,
    /// How a blank disk is told; none: by its size.
    pub blank_check: Option<BlankCheck>,
    /// Whether its last partition is grown where the disk has become larger.
    pub grow: bool,
    /// Whether it may be a stick or a card.
    pub removable: bool,
    /// Its partitions, in the order in which they lie.
    pub partitions: Vec<DeclaredPartition>,
    /// The declaration as it was written.
    pub source: Value,
}

impl Declared {
    /// Tells this declaration from any other: a preparation that was interrupted goes on only with the one that it began with.
    pub fn digest(&self) -> Digest {
        Digest::of(format!("{}\n{}", self.name, self.source).as_bytes())
    }
}

/// By what a disk is known: something that stays with it, or with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskId {
    /// The name of a link in `/dev/disk/by-id`.
    ById(String),
    /// The name of a link in `/dev/disk/by-path`.
    ByPath(String),
    /// Its serial number.
    Serial(String),
    /// Its world wide name, without `0x`, `naa.` or `eui.`, in lower case.
    Wwn(String),
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ById(link) => write!(f, "/dev/disk/by-id/{link}"),
            Self::ByPath(link) => write!(f, "/dev/disk/by-path/{link}"),
            Self::Serial(serial) => write!(f, "serial={serial}"),
            Self::Wwn(wwn) => write!(f, "wwn={wwn}"),
        }
    }
}

/// How a blank disk is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlankCheck {
    /// Both ends, where superblocks and their copies stand, and samples in between.
    Sampled,
    /// All of it is read.
    Full,
}

/// A declared partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredPartition {
    /// Its name in the GPT.
    pub label: String,
    /// Its size in bytes; none: what is left.
    pub size: Option<u64>,
    /// Its type, as a GUID is written.
    pub kind: [u8; 16],
    /// What is made in it; none: nothing.
    pub content: Option<Content>,
}

/// Names of GPT types as sgdisk and disko write them. GUIDs: UEFI specification 2.10, table 5.7, and the Discoverable Partitions Specification.
const TYPES: [(&str, &str); 7] = [
    ("8300", "0fc63daf-8483-4772-8e79-3d69d8477de4"),
    ("8200", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"),
    ("8309", "ca7d7ccb-63ed-4c53-861c-1742536059cc"),
    ("8e00", "e6d6d379-f507-44c2-a23c-238f2a3df928"),
    ("ea00", "bc13c2ff-59e6-4262-a352-b275fd6f7172"),
    ("ef00", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
    ("ef02", "21686148-6449-6e6f-744e-656564454649"),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawDisk {
    device: String,
    size: RawRange,
    #[serde(default)]
    prepare: bool,
    #[serde(default)]
    blank_check: Option<String>,
    #[serde(default)]
    removable: bool,
    #[serde(default)]
    grow: bool,
    #[serde(default)]
    table: Option<String>,
    partitions: Vec<RawPartition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    min: Value,
    max: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPartition {
    name: String,
    #[serde(default)]
    label: Option<String>,
    size: Value,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    content: Option<RawContent>,
}

/// Reads the declaration `source` of the disk `name`.
///
/// # Errors
/// A sentence that names the place, what is wrong there, and what to write.
pub fn declared(name: &str, source: &Value) -> Result<Declared, String> {
    let at = |place: &str, what: String| format!("{}{place}: {what}", word(name));
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(good) {
        return Err(format!(
            "«{}» is no name of a disk: 1 to {LONGEST_NAME} letters, digits and _ - . are expected",
            word(name)
        ));
    }
    let raw: RawDisk = serde_json::from_value(source.clone()).map_err(|error| at("", sentence(&error.to_string())))?;
    let device = disk_id(&raw.device).map_err(|what| at(".device", what))?;
    let min = size(&raw.size.min).map_err(|what| at(".size.min", what))?;
    let max = size(&raw.size.max).map_err(|what| at(".size.max", what))?;
    if min < LEAST_DISK || max < min {
        return Err(at(
            ".size",
            format!(
                "{} to {} is no range: min must be at least {}, and max not less than min",
                show_bytes(min),
                show_bytes(max),
                show_bytes(LEAST_DISK)
            ),
        ));
    }
    if let Some(table) = raw.table.filter(|table| table != "gpt") {
        return Err(at(
            ".table",
            format!("«{}» is not made here: write gpt, or leave it out", word(&table)),
        ));
    }
    let blank_check = match raw.blank_check.as_deref() {
        None => None,
        Some("sampled") => Some(BlankCheck::Sampled),
        Some("full") => Some(BlankCheck::Full),
        Some(other) => return Err(at(".blankCheck", format!("«{}» is neither sampled nor full", word(other)))),
    };
    if raw.partitions.is_empty() || raw.partitions.len() > MOST_PARTITIONS {
        return Err(at(".partitions", format!("1 to {MOST_PARTITIONS} partitions are expected")));
    }
    let count = raw.partitions.len();
    let mut partitions: Vec<DeclaredPartition> = Vec::with_capacity(count);
    for (index, one) in raw.partitions.into_iter().enumerate() {
        let place = format!(".partitions[{index}]");
        let one = partition(name, one, index + 1 == count).map_err(|(field, what)| at(&format!("{place}{field}"), what))?;
        if partitions.iter().any(|other| other.label == one.label) {
            return Err(at(
                &place,
                format!(
                    "another partition has the label «{}» too: give them different names",
                    word(&one.label)
                ),
            ));
        }
        partitions.push(one);
    }
    if raw.grow && partitions.last().is_none_or(|last| last.size.is_some()) {
        return Err(at(
            ".grow",
            "only a last partition whose size is \"100%\" grows: give it that size, or remove grow".to_owned(),
        ));
    }
    let inside = partitions.last().and_then(|last| last.content.as_ref());
    let stays = inside.and_then(|content| {
        content
            .formats()
            .into_iter()
            .find(|format| matches!(format, Format::Vfat | Format::Swap))
    });
    if let (true, Some(format)) = (raw.grow, stays) {
        let what = format!("{} does not grow: ext4, xfs and btrfs do; remove grow", format.name());
        return Err(at(".grow", what));
    }
    // Every size is at most 1 PiB, and there are at most 128.
    let sum: u64 = partitions.iter().map(|partition| partition.size.unwrap_or(LEAST_PARTITION)).sum();
    if sum.saturating_add(2 << 20) > min {
        return Err(at(
            ".partitions",
            format!(
                "together they need more than the least disk has ({}): make them smaller, or raise size.min",
                show_bytes(min)
            ),
        ));
    }
    Ok(Declared {
        name: name.to_owned(),
        device,
        min,
        max,
        prepare: raw.prepare,
        grow: raw.grow,
        blank_check,
        removable: raw.removable,
        partitions,
        source: source.clone(),
    })
}

/// A name that stays with the disk or its place: anything else could mean another disk tomorrow.
fn disk_id(text: &str) -> Result<DiskId, String> {
    let wrong = |why: &str| {
        Err(format!(
            "«{}» is no lasting name of a disk: {why}; write /dev/disk/by-id/…, /dev/disk/by-path/…, serial=… or wwn=…",
            word(text)
        ))
    };
    if text.len() > 255 || text.contains(char::is_control) {
        return wrong("it is too long, or holds a control character");
    }
    let of_partition = |link: &str| {
        link.rsplit_once("-part")
            .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    for (folder, make) in [
        ("/dev/disk/by-id/", DiskId::ById as fn(String) -> DiskId),
        ("/dev/disk/by-path/", DiskId::ByPath),
    ] {
        let Some(link) = text.strip_prefix(folder) else { continue };
        if link.is_empty() || link.contains('/') || link == "." || link == ".." {
            return wrong("no link of udev has such a name");
        }
        if of_partition(link) {
            return wrong("it is that of a partition");
        }
        return Ok(make(link.to_owned()));
    }
    match text.split_once('=') {
        Some(("serial", serial)) if !serial.trim().is_empty() => Ok(DiskId::Serial(serial.trim().to_owned())),
        Some(("wwn", wwn)) if !bare_wwn(wwn).is_empty() => Ok(DiskId::Wwn(bare_wwn(wwn))),
        Some(("serial" | "wwn", _)) => wrong("nothing stands behind the ="),
        Some(_) => wrong("a label or id of what is on the disk says nothing about a blank one"),
        None => wrong("which disk has this name depends on the order in which disks are found"),
    }
}

/// A world wide name without what says of which kind it is.
pub fn bare_wwn(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase();
    ["0x", "naa.", "eui.", "uuid."]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(&text)
        .to_owned()
}

fn size(value: &Value) -> Result<u64, String> {
    match value {
        Value::String(text) => bytes(text),
        Value::Number(number) => bytes(&number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err("a number of bytes such as \"500G\" is expected".to_owned())
        }
    }
}

/// A partition, or the field and what is wrong with it.
fn partition(disk: &str, raw: RawPartition, last: bool) -> Result<DeclaredPartition, (&'static str, String)> {
    if raw.name.is_empty() || raw.name.contains(char::is_control) {
        return Err((".name", "a partition needs a name".to_owned()));
    }
    let label = raw.label.unwrap_or_else(|| disko_partlabel("disk", disk, &raw.name));
    if label.is_empty() || label.contains(char::is_control) || label.trim() != label || label.encode_utf16().count() > GPT_NAME_UNITS {
        let what = format!(
            "«{}» is no label of a partition: 1 to {GPT_NAME_UNITS} characters are expected, no blanks at its ends",
            word(&label)
        );
        return Err((".label", what));
    }
    let size = match (raw.size.as_str() == Some("100%"), last) {
        (true, true) => None,
        (true, false) => {
            let what = "only the last partition takes what is left: write a size such as 20G".to_owned();
            return Err((".size", what));
        }
        (false, _) => Some(size(&raw.size).map_err(|what| (".size", what))?),
    };
    if let Some(size) = size.filter(|size| *size < LEAST_PARTITION || !size.is_multiple_of(LEAST_PARTITION)) {
        return Err((
            ".size",
            format!(
                "{} is not a whole number of MiB: partitions begin and end at these",
                show_bytes(size)
            ),
        ));
    }
    let content = raw.content.map(content).transpose()?;
    let kind = match (&raw.kind, content.as_ref().map(|content| content.format)) {
        (Some(kind), _) => partition_type(kind).map_err(|what| (".type", what))?,
        (None, Some(Format::Swap)) => partition_type("8200").map_err(|what| (".type", what))?,
        (None, Some(Format::Ext4 | Format::Xfs | Format::Btrfs | Format::Vfat | Format::Luks) | None) => {
            partition_type("8300").map_err(|what| (".type", what))?
        }
    };
    Ok(DeclaredPartition {
        label,
        size,
        kind,
        content,
    })
}

fn partition_type(text: &str) -> Result<[u8; 16], String> {
    let known = TYPES.iter().find(|(code, _)| code.eq_ignore_ascii_case(text));
    let digits: Vec<u8> = known.map_or(text, |(_, guid)| guid).bytes().filter(|byte| *byte != b'-').collect();
    let shape = known.is_some()
        || (text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-'))
            && digits.len() == 32
            && digits.iter().all(u8::is_ascii_hexdigit);
    let mut guid = [0; 16];
    if shape {
        for (byte, pair) in guid.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
            *byte = digit(pair[0]) * 16 + digit(pair[1]);
        }
    }
    if guid == [0; 16] {
        let codes: Vec<String> = TYPES.iter().map(|(code, _)| code.to_ascii_uppercase()).collect();
        return Err(format!(
            "«{}» is no type of a partition: write {}, or a GUID as 8-4-4-4-12 hexadecimal digits",
            word(text),
            codes.join(", ")
        ));
    }
    Ok(guid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn disk() -> Value {
        json!({
            "device": "/dev/disk/by-id/nvme-WD_1234", "size": {"min": "100G", "max": "2T"}, "prepare": true,
            "partitions": [
                {"name": "ESP", "size": "512M", "type": "EF00", "content": {"type": "filesystem", "format": "vfat", "label": "BOOT"}},
                {"name": "swap", "size": "8G", "content": {"type": "swap"}},
                {"name": "data", "size": "100%", "content": {"type": "btrfs", "extraArgs": ["-O", "block-group-tree"], "subvolumes": ["/logs", "keys"]}},
            ],
        })
    }

    /// `disk()` with `value` at `pointer`.
    fn with(pointer: &str, value: Value) -> Value {
        let mut disk = disk();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = disk.pointer_mut(parent).unwrap();
        match parent.as_array_mut() {
            Some(list) => list[field.parse::<usize>().unwrap()] = value,
            None => parent[field] = value,
        }
        disk
    }

    #[test]
    fn a_declaration_in_diskos_shape_is_read_with_its_defaults() {
        let disk = declared("main", &disk()).unwrap();
        assert_eq!(disk.device, DiskId::ById("nvme-WD_1234".into()));
        assert_eq!(
            (disk.min, disk.max, disk.prepare, disk.removable),
            (100 << 30, 2 << 40, true, false)
        );
        assert_eq!(disk.blank_check, None);
        let labels: Vec<&str> = disk.partitions.iter().map(|partition| partition.label.as_str()).collect();
        assert_eq!(labels, ["disk-main-ESP", "disk-main-swap", "disk-main-data"]);
        assert_eq!(disk.partitions[0].kind[..4], [0xc1, 0x2a, 0x73, 0x28]);
        assert_eq!(disk.partitions[1].kind[..4], [0x06, 0x57, 0xfd, 0x6d]);
        assert_eq!(disk.partitions[2].size, None);
        assert_eq!(disk.partitions[2].content.as_ref().unwrap().subvolumes, ["keys", "logs"]);
        let long = declared("main", &with("/partitions/0/name", json!("x".repeat(27)))).unwrap();
        assert_eq!(long.partitions[0].label, "d2452d3cbd6efc517654f6d4507fdc8073d0");
    }

    #[test]
    fn a_luks_container_is_declared_as_disko_has_it() {
        let source = json!({
            "type": "luks", "name": "crypt", "label": "box", "settings": {"keyFile": "/etc/key", "allowDiscards": true},
            "extraFormatArgs": ["--pbkdf", "argon2id"], "content": {"type": "btrfs", "subvolumes": ["a"]},
        });
        let disk = declared("main", &with("/partitions/2/content", source)).unwrap();
        let content = disk.partitions[2].content.as_ref().unwrap();
        assert_eq!(content.shown(), "crypto_LUKS with btrfs");
        assert_eq!(content.arguments, ["--pbkdf", "argon2id"]);
        let inside = content.inside.as_ref().unwrap();
        assert_eq!(inside.key.to_string(), "--key-file /etc/key");
        assert_eq!(inside.content.as_ref().unwrap().subvolumes, ["a"]);
        let typed = declared(
            "main",
            &with("/partitions/2/content", json!({"type": "luks", "passwordFile": "/pw"})),
        )
        .unwrap();
        let inside = typed.partitions[2].content.as_ref().unwrap().inside.clone().unwrap();
        assert_eq!(inside.key.to_string(), "--key-file /pw (without line ends)");
    }

    #[test]
    fn only_lasting_names_of_whole_disks_are_taken() {
        for (text, expected) in [
            ("/dev/disk/by-path/pci-0000:00:05.0", DiskId::ByPath("pci-0000:00:05.0".into())),
            ("serial=S4X1", DiskId::Serial("S4X1".into())),
            ("wwn=0x5000C500A1B2C3D4", DiskId::Wwn("5000c500a1b2c3d4".into())),
            ("wwn=eui.0025388b710116a1", DiskId::Wwn("0025388b710116a1".into())),
        ] {
            assert_eq!(declared("a", &with("/device", json!(text))).unwrap().device, expected, "{text}");
        }
        for (text, why) in [
            ("/dev/sda", "order in which disks are found"),
            ("/dev/disk/by-label/data", "order in which"),
            ("LABEL=data", "says nothing about a blank one"),
            ("PARTLABEL=x", "says nothing about a blank one"),
            ("/dev/disk/by-id/ata-X-part1", "that of a partition"),
            ("/dev/disk/by-id/../sda", "no link of udev"),
            ("/dev/disk/by-id/", "no link of udev"),
            ("serial=", "behind the ="),
            ("wwn=0x", "behind the ="),
            ("", "order in which"),
        ] {
            let error = declared("a", &with("/device", json!(text))).unwrap_err();
            assert!(
                error.contains(why) && error.contains("a.device") && error.contains("write /dev/disk/by-id/"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_what_to_write() {
        for (pointer, value, place, remedy) in [
            ("/colour", json!("red"), "unknown field `colour`", "expected one of"),
            ("/size", json!({"min": "1G"}), "missing field `max`", "a: "),
            ("/size/min", json!("3T"), "a.size", "not less than min"),
            ("/size/min", json!("1M"), "a.size", "at least 16M"),
            ("/size/max", json!(true), "a.size.max", "\"500G\""),
            ("/grow", json!("yes"), "a: ", "a boolean"),
            ("/table", json!("msdos"), "a.table", "write gpt"),
            ("/blankCheck", json!("none"), "a.blankCheck", "sampled nor full"),
            ("/partitions", json!([]), "a.partitions", "1 to 128"),
            ("/partitions/0/size", json!("100%"), "a.partitions[0].size", "20G"),
            ("/partitions/0/size", json!("1000K"), "a.partitions[0].size", "whole number of MiB"),
            ("/partitions/0/size", json!("99G"), "a.partitions", "raise size.min"),
            ("/partitions/0/type", json!("linux"), "a.partitions[0].type", "EF00"),
            ("/partitions/0/label", json!("x".repeat(37)), "a.partitions[0].label", "1 to 36"),
            ("/partitions/0/name", json!("data"), "a.partitions[2]", "different names"),
            (
                "/partitions/0/mountpoint",
                json!("/boot"),
                "unknown field `mountpoint`",
                "expected one of",
            ),
            (
                "/partitions/0/content/label",
                json!("lower"),
                "a.partitions[0].content.label",
                "in capitals",
            ),
            (
                "/partitions/0/content/format",
                json!("zfs"),
                "a.partitions[0].content.format",
                "write ext4",
            ),
            (
                "/partitions/0/content",
                json!({"type": "lvm_pv"}),
                "a.partitions[0].content.type",
                "by hand",
            ),
            (
                "/partitions/0/content",
                json!({"type": "luks", "content": {"type": "swap"}}),
                "a.partitions[0].content: one key",
                "settings.keyFile",
            ),
            (
                "/partitions/0/content",
                json!({"type": "luks", "passwordFile": "/p", "settings": {"keyFile": "/k"}}),
                "a.partitions[0].content: one key",
                "or passwordFile",
            ),
            (
                "/partitions/0/content",
                json!({"type": "luks", "settings": {"keyFile": "/dev/sdb"}}),
                "a.partitions[0].content",
                "a file of the initrd is expected",
            ),
            (
                "/partitions/0/content",
                json!({"type": "luks", "passwordFile": "/k", "content": {"type": "luks", "passwordFile": "/k"}}),
                "a.partitions[0].content.content.type",
                "what is in it",
            ),
            (
                "/partitions/0/content",
                json!({"type": "luks", "passwordFile": "/k", "extraFormatArgs": ["--header", "x"]}),
                "a.partitions[0].content.extraFormatArgs",
                "remove it",
            ),
            (
                "/partitions/1/content",
                json!({"type": "swap", "passwordFile": "/k"}),
                "a.partitions[1].content",
                "belong to the type luks",
            ),
            (
                "/partitions/0/content",
                json!({"type": "disk"}),
                "a.partitions[0].content.type",
                "write filesystem",
            ),
            (
                "/partitions/1/content",
                json!({"type": "swap", "subvolumes": ["a"]}),
                "a.partitions[1].content.subvolumes",
                "remove them",
            ),
            (
                "/partitions/2/content/subvolumes",
                json!(["a/../b"]),
                "a.partitions[2].content.subvolumes",
                "names with /",
            ),
            (
                "/partitions/2/content/subvolumes",
                json!(["a", "/a"]),
                "a.partitions[2].content.subvolumes",
                "remove one",
            ),
        ] {
            let error = declared("a", &with(pointer, value)).unwrap_err();
            assert!(error.contains(place) && error.contains(remedy), "{pointer}: {error}");
        }
        let mut fixed = with("/partitions/2/size", json!("20G"));
        fixed["grow"] = json!(true);
        let error = declared("a", &fixed).unwrap_err();
        assert!(error.contains("a.grow: only a last partition whose size is \"100%\""), "{error}");
        assert!(declared("a", &with("/grow", json!(true))).unwrap().grow);
        for (kind, name) in [
            (json!({"type": "swap"}), "swap"),
            (json!({"type": "filesystem", "format": "vfat"}), "vfat"),
        ] {
            let mut stays = with("/partitions/2/content", kind);
            stays["grow"] = json!(true);
            let error = declared("a", &stays).unwrap_err();
            assert!(error.contains(&format!("a.grow: {name} does not grow")), "{error}");
        }
        assert!(declared("a b", &disk()).unwrap_err().contains("no name of a disk"));
    }

    #[test]
    fn arguments_name_no_other_device_and_take_no_option_of_ours() {
        for arguments in [
            json!(["/dev/sdb"]),
            json!(["sdb"]),
            json!(["-O", "x", "sdb"]),
            json!(["-d", "/dev/sdb"]),
            json!(["--"]),
            json!(["-U", "random"]),
            json!(["-Lx"]),
            json!(["--label=x"]),
            json!([""]),
        ] {
            assert!(
                declared("a", &with("/partitions/2/content/extraArgs", arguments.clone())).is_err(),
                "{arguments}"
            );
        }
        for arguments in [json!(["-O", "x", "-m", "single"]), json!(["--nodesize", "16k", "--nodiscard"])] {
            assert!(
                declared("a", &with("/partitions/2/content/extraArgs", arguments.clone())).is_ok(),
                "{arguments}"
            );
        }
    }

    #[test]
    fn any_change_of_a_declaration_changes_its_digest() {
        let digest = |name: &str, source: Value| declared(name, &source).unwrap().digest();
        let own = digest("a", disk());
        assert_eq!(digest("a", disk()), own);
        assert_ne!(digest("b", disk()), own);
        assert_ne!(digest("a", with("/partitions/1/size", json!("9G"))), own);
    }
}
