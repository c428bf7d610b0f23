//! What types of disko's library come to in standalone mode: layouts that are usual for them, as NixOS flattens them (`fileSystems`), on real disks with real partition
//! tables, found by the names that disko gives them. Each entry is mounted, or refused or missed by name; the table is in the output. What needs the device mapper
//! or MD is in the boots (`stack-…`), since few kernels of build machines have them. As root, in a mount name space of its own; needs losetup and sfdisk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disko;
    pub mod disks;
}

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use freshroot::device::name::disko_partlabel;
use freshroot::mode::Mode;
use freshroot::mount::entry::{FileSystemEntry, MountEntry, MountKind};
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::order::order;
use freshroot::mount::persist::{Outcome, apply};
use freshroot::uevent::Socket;
use support::disko::{Partitioned, find};
use support::disks::{Disk, bare_root, private_mounts, run};

/// The types of disko's library, `lib/types` at commit 878ec37d (14 March 2026).
const TYPES: [&str; 18] = [
    "bcachefs",
    "bcachefs_filesystem",
    "btrfs",
    "disk",
    "filesystem",
    "gpt",
    "luks",
    "lvm_pv",
    "lvm_vg",
    "mdadm",
    "mdraid",
    "nodev",
    "swap",
    "table",
    "zfs",
    "zfs_fs",
    "zfs_volume",
    "zpool",
];

/// What a row of the table is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Mounted,
    /// Mounted if this kernel knows the type, else named.
    IfKnown(&'static str),
    /// Mounted, unless this kernel was built without it and says so.
    UnlessSaid(&'static str),
    /// Refused before anything is mounted, in words that hold this.
    Refused(&'static str),
    /// No such device, since nothing of ours makes it; the reason holds this.
    Missing(&'static str),
}

struct Row {
    what: &'static str,
    json: String,
    expected: Expected,
}

fn row(what: &'static str, expected: Expected, json: &str) -> Row {
    Row {
        what,
        json: json.to_owned(),
        expected,
    }
}

/// What came of a row, and whether that was expected.
fn outcome(row: &Row, dir: &Path, events: &mut Socket) -> (String, bool) {
    let list: Vec<FileSystemEntry> = serde_json::from_str(&row.json).unwrap();
    let ordered = match order(&list, Mode::Standalone) {
        Ok(ordered) => ordered,
        Err(error) => {
            let text = error.to_string();
            let good = matches!(row.expected, Expected::Refused(word) if text.contains(word));
            return (format!("refused: {text}"), good);
        }
    };
    let sysroot = bare_root(dir);
    let outcomes = apply(&sysroot, &ordered, &mut |entry| find(entry, events), &mut MountLog::new()).unwrap();
    let reason = outcomes.iter().find_map(|entry| match &entry.outcome {
        Outcome::Missing { reason } => Some(reason.clone()),
        Outcome::Mounted => None,
    });
    let written = outcomes.iter().filter(|entry| entry.outcome == Outcome::Mounted).all(|entry| {
        let file = sysroot.join(entry.mount_point.strip_prefix("/").unwrap()).join("kept");
        fs::write(file, "x").is_ok()
    });
    run("umount", &["-R", sysroot.to_str().unwrap()]);
    let known = |fs: &str| {
        let text = fs::read_to_string("/proc/filesystems").unwrap();
        text.lines().any(|line| line.split_whitespace().last() == Some(fs))
    };
    match (reason, row.expected) {
        (None, expected) => (
            "mounted, and written".to_owned(),
            written && matches!(expected, Expected::Mounted | Expected::IfKnown(_) | Expected::UnlessSaid(_)),
        ),
        (Some(reason), Expected::IfKnown(fs)) => (
            format!("missing: {reason}"),
            !known(fs) && reason.contains("does not know this file system"),
        ),
        (Some(reason), Expected::UnlessSaid(word)) => (
            format!("missing: {reason}"),
            reason.contains("the kernel says") && reason.contains(word),
        ),
        (Some(reason), Expected::Missing(word)) => (format!("missing: {reason}"), reason.contains(word)),
        (Some(reason), Expected::Mounted | Expected::Refused(_)) => (format!("missing: {reason}"), false),
    }
}

/// Whose the entries are in the other mode.
fn under_systemd(row: &Row) -> String {
    let list: Vec<FileSystemEntry> = serde_json::from_str(&row.json).unwrap();
    let whose = |entry: &MountEntry| match entry.kind() {
        MountKind::Systemds { .. } => "systemd's",
        MountKind::Device(_) | MountKind::Tmpfs | MountKind::Overlay(_) | MountKind::Bind { .. } | MountKind::Symlink { .. } => {
            "the agent's"
        }
    };
    let whose: BTreeSet<&str> = order(&list, Mode::Systemd).unwrap().iter().map(whose).collect();
    whose.into_iter().collect::<Vec<_>>().join(" and ")
}

#[test]
fn every_type_of_diskos_library_is_mounted_or_named() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let long = disko_partlabel("disk", "a-name-that-nobody-would-choose", "with-a-partition");
    assert_eq!(long.len(), 36);
    let main = Partitioned::new(
        dir.path(),
        "main",
        "gpt",
        &[
            ("disk-main-root", 40),
            ("disk-main-xfs", 320),
            ("disk-main-two words", 40),
            (&long, 40),
            ("disk-main-pool", 140),
            ("disk-main-flash", 60),
            ("disk-main-ESP", 40),
            ("disk-main-share", 40),
            ("disk-main-a+b:c", 40),
            ("disk-main-bcachefs", 40),
        ],
    );
    let pair = ["one", "two"].map(|disk| {
        let name = format!("disk-{disk}-root");
        Partitioned::new(dir.path(), disk, "gpt", &[(name.as_str(), 140)])
    });
    let legacy = Partitioned::new(dir.path(), "legacy", "dos", &[("", 40)]);
    let whole = Disk::new(dir.path(), "whole", 40);
    for part in [1, 3, 4, 9] {
        run("mkfs.ext4", &["-q", &main.partition(part)]);
    }
    run("mkfs.xfs", &["-q", &main.partition(2)]);
    run("mkfs.btrfs", &["-q", &main.partition(5)]);
    run("mkfs.f2fs", &["-q", &main.partition(6)]);
    run("mkfs.vfat", &[&main.partition(7)]);
    run("mkfs.exfat", &[&main.partition(8)]);
    run(
        "mkfs.btrfs",
        &["-q", "-d", "raid1", "-m", "raid1", &pair[0].partition(1), &pair[1].partition(1)],
    );
    run("mkfs.ext4", &["-q", &legacy.partition(1)]);
    run("mkfs.ext4", &["-q", whole.name()]);
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    run("mount", &[&main.partition(5), top.to_str().unwrap()]);
    for subvolume in ["rootfs", "home"] {
        run("btrfs", &["subvolume", "create", top.join(subvolume).to_str().unwrap()]);
    }
    run("umount", &[top.to_str().unwrap()]);
    let legacy_uuid = run("blkid", &["-p", "-s", "PART_ENTRY_UUID", "-o", "value", &legacy.partition(1)]);

    let by_label = |label: &str, fs: &str, options: &str| {
        format!(
            r#"[{{"mountPoint": "/data", "device": "/dev/disk/by-partlabel/{label}", "fsType": "{fs}", "options": [{options}], "need": "degraded"}}]"#
        )
    };
    let device = |device: &str, fs: &str| {
        format!(r#"[{{"mountPoint": "/data", "device": "{device}", "fsType": "{fs}", "options": ["defaults"], "need": "degraded"}}]"#)
    };
    let rows = [
        row(
            "gpt, filesystem: ext4",
            Expected::Mounted,
            &by_label("disk-main-root", "ext4", r#""defaults""#),
        ),
        row(
            "filesystem: xfs with quota",
            Expected::UnlessSaid("quota support not available"),
            &by_label("disk-main-xfs", "xfs", r#""defaults", "pquota""#),
        ),
        row(
            "gpt: a name with a blank",
            Expected::Mounted,
            &by_label(r"disk-main-two\\x20words", "ext4", ""),
        ),
        row(
            "gpt: a name with other characters",
            Expected::Mounted,
            &by_label("disk-main-a+b:c", "ext4", ""),
        ),
        row(
            "gpt: a name too long, as its digest",
            Expected::Mounted,
            &by_label(&long, "ext4", ""),
        ),
        row(
            "disk: a file system without a table",
            Expected::Mounted,
            &device(whole.name(), "ext4"),
        ),
        row(
            "table: MBR, by its id",
            Expected::Mounted,
            &device(&format!("PARTUUID={}", legacy_uuid.trim()), "ext4"),
        ),
        row(
            "btrfs with subvolumes",
            Expected::Mounted,
            r#"[{"mountPoint": "/rootfs", "device": "/dev/disk/by-partlabel/disk-main-pool", "fsType": "btrfs", "options": ["subvol=/rootfs"], "need": "degraded"},
                {"mountPoint": "/home", "device": "/dev/disk/by-partlabel/disk-main-pool", "fsType": "btrfs", "options": ["compress=zstd", "subvol=/home"], "need": "degraded"}]"#,
        ),
        row(
            "btrfs on two disks",
            Expected::Mounted,
            &by_label("disk-two-root", "btrfs", r#""device=/dev/disk/by-partlabel/disk-one-root""#),
        ),
        row(
            "filesystem: f2fs",
            Expected::IfKnown("f2fs"),
            &by_label("disk-main-flash", "f2fs", ""),
        ),
        row(
            "filesystem: vfat, the ESP",
            Expected::IfKnown("vfat"),
            &by_label("disk-main-ESP", "vfat", r#""umask=0077""#),
        ),
        row(
            "filesystem: exfat",
            Expected::IfKnown("exfat"),
            &by_label("disk-main-share", "exfat", ""),
        ),
        row(
            "bcachefs, bcachefs_filesystem: with a subvolume",
            Expected::IfKnown("bcachefs"),
            &by_label("disk-main-bcachefs", "bcachefs", r#""X-mount.subdir=subvolumes/home", "verbose""#),
        ),
        row(
            "nodev: tmpfs",
            Expected::Mounted,
            r#"[{"mountPoint": "/tmp", "device": "tmpfs", "fsType": "tmpfs", "options": ["size=20M"]}]"#,
        ),
        row(
            "nodev: a bind of another mount",
            Expected::Mounted,
            r#"[{"mountPoint": "/data", "device": "/dev/disk/by-partlabel/disk-main-root", "fsType": "ext4", "options": []},
                {"mountPoint": "/srv", "device": "/data/srv", "fsType": "none", "options": ["bind"]}]"#,
        ),
        row("zpool, zfs, zfs_fs", Expected::Refused("«zfs»"), &device("zroot/zfs_fs", "zfs")),
        row(
            "zfs_volume",
            Expected::Missing("/dev/zvol/zroot/volume"),
            &device("/dev/zvol/zroot/volume", "ext4"),
        ),
        row(
            "filesystem: reiserfs",
            Expected::Refused("«reiserfs»"),
            &by_label("disk-main-root", "reiserfs", ""),
        ),
        row("bcache", Expected::Missing("/dev/bcache0"), &device("/dev/bcache0", "ext4")),
        row(
            "luks (boot: stack-luks)",
            Expected::Missing("/dev/mapper/crypted"),
            &device("/dev/mapper/crypted", "ext4"),
        ),
        row(
            "lvm_pv, lvm_vg (boot: stack-lvm)",
            Expected::Missing("/dev/pool/root"),
            &device("/dev/pool/root", "ext4"),
        ),
        row(
            "mdadm, mdraid (boot: stack-md)",
            Expected::Missing("/dev/md/raid1"),
            &device("/dev/md/raid1", "ext4"),
        ),
        row(
            "mdadm: with a table (boot: stack-md)",
            Expected::Missing("mdadm-raid1-bla"),
            &by_label("mdadm-raid1-bla", "ext4", ""),
        ),
        row(
            "verity",
            Expected::Missing("/dev/mapper/store-verity"),
            &device("/dev/mapper/store-verity", "erofs").replace("erofs", "ext4"),
        ),
        row(
            "swap: as the type of an entry (as swapDevices: mounts_swap; boot: persistence)",
            Expected::Refused("swapDevices"),
            &device("/dev/disk/by-partlabel/disk-main-swap", "swap"),
        ),
    ];
    let mut events = Socket::open().unwrap();
    let mut wrong = Vec::new();
    println!("| disko | in standalone mode | in systemd's stage 1 |\n|---|---|---|");
    for row in &rows {
        let (text, good) = outcome(row, dir.path(), &mut events);
        println!(
            "| {} | {} | {} |",
            row.what,
            text.split("; there are").next().unwrap_or_default(),
            under_systemd(row)
        );
        if !good {
            wrong.push(format!("{}: {text} ({:?} was expected)", row.what, row.expected));
        }
    }
    let words: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.what.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')))
        .collect();
    let untold: Vec<&&str> = TYPES.iter().filter(|name| !words.contains(**name)).collect();
    assert!(untold.is_empty(), "no row is about {untold:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
