//! Persisted paths, as impermanence and preservation have them: binds and symlinks of folders and files, made where they are missing. As root, each test in
//! a mount name space of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disks;
}

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use freshroot::mode::Mode;
use freshroot::mount::entry::FileSystemEntry;
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::order::order;
use freshroot::mount::persist::{self, EntryOutcome, Outcome};
use support::disks::{Disk, bare_root, entries, found_by, no_device, private_mounts, run};

/// Mode, user and group.
fn owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

/// An ext4 disk with this content, and a root.
fn with_disk(dir: &Path, content: impl FnOnce(&Path)) -> (Disk, PathBuf) {
    let disk = Disk::new(dir, "disk", 16);
    let folder = dir.join("content");
    fs::create_dir(&folder).unwrap();
    content(&folder);
    run("mkfs.ext4", &["-q", "-d", folder.to_str().unwrap(), disk.name()]);
    (disk, bare_root(dir))
}

/// The entries with the disk at `/state`, whose options are given.
fn apply(disk: &Disk, sysroot: &Path, options: &str, rest: &str) -> Vec<EntryOutcome> {
    let json = format!(r#"[{{"mountPoint": "/state", "device": "disk", "fsType": "ext4", "options": [{options}]}}, {rest}]"#);
    persist::apply(sysroot, &entries(&json), &mut found_by(&[("disk", disk)]), &mut MountLog::new()).unwrap()
}

fn missing<'a>(outcomes: &'a [EntryOutcome], place: &str) -> &'a str {
    let entry = outcomes.iter().find(|entry| entry.mount_point == Path::new(place)).unwrap();
    match &entry.outcome {
        Outcome::Missing { reason } => reason,
        Outcome::Mounted => panic!("{place} is mounted"),
    }
}

const ALL: &str = r#"
    {"mountPoint": "/etc/machine-id", "device": "/state/etc/machine-id", "fsType": "none", "options": ["bind"], "create": {"kind": "file", "mode": "0444"}},
    {"mountPoint": "/etc/ssh", "device": "/state/etc/ssh", "fsType": "none", "options": ["bind"], "create": {"kind": "folder", "mode": "0700"}},
    {"mountPoint": "/var/lib/nixos", "device": "/state/var/lib/nixos", "fsType": "none", "options": ["bind"]},
    {"mountPoint": "/var/log", "device": "/state/var/log", "fsType": "none", "options": ["bind"], "create": {"mode": "0755"}},
    {"mountPoint": "/home/alice/.config/app", "device": "/state/home/alice/.config/app", "fsType": "none", "options": ["bind"],
     "create": {"mode": "0700", "uid": 1000, "gid": 100, "parents": {"mode": "0750", "uid": 1000, "gid": 100}}},
    {"mountPoint": "/home/alice/.history", "device": "/state/home/alice/.history", "fsType": "symlink",
     "create": {"kind": "file", "mode": "0600", "uid": 1000, "gid": 100, "parents": {"uid": 1000, "gid": 100}}},
    {"mountPoint": "/var/lib/linked", "device": "/state/linked", "fsType": "symlink"}"#;

#[test]
fn folders_and_files_are_made_once_with_owner_mode_and_parents_and_are_kept() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (disk, sysroot) = with_disk(dir.path(), |_| {});
    let at = |path: &str| sysroot.join(path);
    for boot in 0..2 {
        if boot == 1 {
            let _ = bare_root(dir.path());
        }
        let outcomes = apply(&disk, &sysroot, "", ALL);
        assert!(outcomes.iter().all(|entry| entry.outcome == Outcome::Mounted), "{outcomes:?}");
        for (path, expected) in [
            ("etc/ssh", (0o700, 0, 0)),
            ("var/lib/nixos", (0o755, 0, 0)),
            ("home/alice", (0o750, 1000, 100)),
            ("home/alice/.config/app", (0o700, 1000, 100)),
            ("state/home/alice/.config", (0o750, 1000, 100)),
            ("state/home/alice/.history", (0o600, 1000, 100)),
        ] {
            assert_eq!(owner(&at(path)), expected, "{path}");
        }
        assert_eq!(
            fs::read_link(at("home/alice/.history")).unwrap(),
            Path::new("/state/home/alice/.history")
        );
        // Nobody said that it is to be made: it leads to nothing until somebody does.
        assert!(!at("state/linked").exists());
        assert_eq!(fs::read_link(at("var/lib/linked")).unwrap(), Path::new("/state/linked"));
        if boot == 0 {
            assert_eq!(owner(&at("etc/machine-id")), (0o444, 0, 0));
            fs::write(at("etc/machine-id"), "0123").unwrap();
            // What the system changes stays: the entry is for what is missing.
            fs::set_permissions(at("var/log"), std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
        }
        assert_eq!(fs::read_to_string(at("etc/machine-id")).unwrap(), "0123");
        assert_eq!(owner(&at("var/log")), (0o750, 0, 0));
        run("umount", &["-R", sysroot.to_str().unwrap()]);
    }
}

#[test]
fn what_stands_in_the_place_of_a_source_is_named_and_not_replaced() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (disk, sysroot) = with_disk(dir.path(), |content| {
        fs::write(content.join("file"), "kept").unwrap();
        fs::create_dir(content.join("folder")).unwrap();
        symlink("/nowhere", content.join("dangling")).unwrap();
        symlink("/state/folder", content.join("leads")).unwrap();
    });
    let entry = |place: &str, source: &str, kind: &str| {
        format!(
            r#"{{"mountPoint": "/{place}", "device": "/state/{source}", "fsType": "none", "options": ["bind", "nofail"], "create": {{"kind": "{kind}"}}}}"#
        )
    };
    let list = [
        entry("a", "file", "folder"),
        entry("b", "folder", "file"),
        entry("c", "dangling", "folder"),
        entry("d", "dangling", "file"),
        entry("e", "file/below", "folder"),
        entry("f", "leads", "folder"),
    ];
    let outcomes = apply(&disk, &sysroot, "", &list.join(","));
    for (place, word) in [
        ("/a", "is no folder, and «create» says that it is one"),
        ("/b", "is a folder, and «create» says that it is a file"),
        ("/c", "is a symlink to nothing: a folder is needed here"),
        ("/d", "is a symlink to nothing: a file is needed here"),
        ("/e", "file"),
    ] {
        assert!(missing(&outcomes, place).contains(word), "{place}: {}", missing(&outcomes, place));
        assert!(fs::write(sysroot.join(&place[1..]).join("x"), "").is_err(), "{place} takes writes");
    }
    fs::write(sysroot.join("f/through"), "").unwrap();
    assert!(
        sysroot.join("state/folder/through").exists(),
        "a link inside the disk is followed inside the root"
    );
    assert_eq!(fs::read_to_string(sysroot.join("state/file")).unwrap(), "kept");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn on_a_disk_that_is_read_only_what_is_there_is_bound_and_nothing_is_made() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (disk, sysroot) = with_disk(dir.path(), |content| fs::create_dir(content.join("there")).unwrap());
    let list = r#"
        {"mountPoint": "/there", "device": "/state/there", "fsType": "none", "options": ["bind"], "create": {}},
        {"mountPoint": "/new", "device": "/state/new", "fsType": "none", "options": ["bind", "nofail"], "create": {"kind": "file"}}"#;
    let outcomes = apply(&disk, &sysroot, r#""ro", "noload""#, list);
    assert!(fs::write(sysroot.join("there/x"), "").is_err());
    assert!(missing(&outcomes, "/new").contains("Read-only file system"), "{outcomes:?}");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn a_mount_point_that_is_a_file_says_that_its_source_is_one() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (disk, sysroot) = with_disk(dir.path(), |_| {});
    fs::create_dir(sysroot.join("etc")).unwrap();
    fs::write(sysroot.join("etc/machine-id"), "").unwrap();
    let bind = r#"{"mountPoint": "/etc/machine-id", "device": "/state/machine-id", "fsType": "none", "options": ["bind", "nofail"]}"#;
    apply(&disk, &sysroot, "", bind);
    fs::write(sysroot.join("etc/machine-id"), "0123").unwrap();
    assert_eq!(fs::read_to_string(sysroot.join("state/machine-id")).unwrap(), "0123");
    run("umount", &["-R", sysroot.to_str().unwrap()]);

    // Without the disk the file is as the system has it, and the boot goes on.
    let sysroot = bare_root(dir.path());
    fs::create_dir(sysroot.join("etc")).unwrap();
    fs::write(sysroot.join("etc/machine-id"), "uninitialized").unwrap();
    let json = format!(r#"[{{"mountPoint": "/state", "device": "disk", "fsType": "ext4", "need": "degraded"}}, {bind}]"#);
    let outcomes = persist::apply(&sysroot, &entries(&json), &mut no_device, &mut MountLog::new()).unwrap();
    assert!(missing(&outcomes, "/etc/machine-id").contains("below /state, which is missing"));
    assert_eq!(fs::read_to_string(sysroot.join("etc/machine-id")).unwrap(), "uninitialized");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn where_the_disk_is_missing_a_symlink_leads_to_its_stand_in() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list: Vec<FileSystemEntry> = serde_json::from_str(
        r#"[{"mountPoint": "/state", "device": "disk", "fsType": "ext4", "need": "degraded"},
            {"mountPoint": "/var/lib/app", "device": "/state/app", "fsType": "symlink", "create": {"mode": "0700"}}]"#,
    )
    .unwrap();
    let ordered = order(&list, Mode::Standalone).unwrap();
    persist::apply(&sysroot, &ordered, &mut no_device, &mut MountLog::new()).unwrap();
    assert_eq!(fs::read_link(sysroot.join("var/lib/app")).unwrap(), Path::new("/state/app"));
    assert!(fs::create_dir(sysroot.join("state/app")).is_err(), "the stand-in takes writes");
    // Under systemd a symlink is the agent's as well.
    let ordered = order(&list[1..], Mode::Systemd).unwrap();
    assert!(ordered[0].to_string().contains("symlink to /state/app"), "{}", ordered[0]);
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}
