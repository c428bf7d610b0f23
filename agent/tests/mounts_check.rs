//! File systems are checked before they are mounted, by the programs of the initrd. As root, each test in a mount name space of its own; needs e2fsprogs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disks;
}

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use freshroot::mount::check::{self, Checked};
use freshroot::mount::entry::{DeviceFs, MountEntry};
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::persist::{self, EntryOutcome, FoundDevice, Outcome};
use support::disks::{Disk, bare_root, entries, private_mounts, run};

/// A disk with an ext4 that `debugfs` has changed by these commands.
fn ext4(dir: &Path, name: &str, commands: &[&str]) -> Disk {
    let disk = Disk::new(dir, name, 16);
    run("mkfs.ext4", &["-q", disk.name()]);
    for command in commands {
        run("debugfs", &["-w", "-R", command, disk.name()]);
    }
    disk
}

const DIRTY: &[&str] = &["ssv state 0", "ssv free_blocks_count 1"];
/// Without a root folder no check goes on by itself.
const BROKEN: &[&str] = &["ssv state 0", "clri <2>"];

fn apply(sysroot: &Path, disk: &Disk, root: &Path, json: &str) -> Result<Vec<EntryOutcome>> {
    let mut find = |entry: &MountEntry| {
        Ok(FoundDevice {
            path: disk.path().to_owned(),
            check_by: (!entry.no_check()).then(|| root.to_owned()),
            ..FoundDevice::default()
        })
    };
    persist::apply(sysroot, &entries(json), &mut find, &mut MountLog::new())
}

#[test]
fn the_check_comes_before_the_mount_once_for_each_disk_and_its_result_is_kept() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    for (name, commands, result) in [("clean", &[][..], "clean"), ("dirty", DIRTY, "errors were corrected")] {
        let disk = ext4(dir.path(), name, commands);
        let sysroot = bare_root(dir.path());
        let json = r#"[{"mountPoint": "/data", "device": "d", "fsType": "ext4"},
                       {"mountPoint": "/srv", "device": "d", "fsType": "ext4", "options": ["X-mount.subdir=lost+found"]}]"#;
        let outcomes = apply(&sysroot, &disk, Path::new("/"), json).unwrap();
        assert_eq!(
            outcomes[0].checked,
            Some((disk.path().to_owned(), result.to_owned())),
            "{name}: {outcomes:?}"
        );
        assert_eq!(outcomes[1].checked, None, "a disk was checked while it was mounted");
        fs::write(sysroot.join("data/kept"), "").unwrap();
        run("umount", &["-R", sysroot.to_str().unwrap()]);
    }
}

#[test]
fn a_disk_that_takes_no_writes_is_mounted_for_reading_and_that_is_told() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let file = Disk::file(dir.path(), "protected", 16);
    run("mkfs.ext4", &["-q", file.to_str().unwrap()]);
    let disk = Disk::plug_as(&file, true);
    for (options, protected) in [("defaults", true), ("ro", false)] {
        let sysroot = bare_root(dir.path());
        let json = format!(r#"[{{"mountPoint": "/data", "device": "d", "fsType": "ext4", "options": ["{options}"]}}]"#);
        let outcomes = apply(&sysroot, &disk, dir.path(), &json).unwrap();
        assert_eq!(
            (&outcomes[0].outcome, outcomes[0].write_protected),
            (&Outcome::Mounted, protected),
            "{outcomes:?}"
        );
        assert!(sysroot.join("data/lost+found").is_dir() && fs::write(sysroot.join("data/x"), "").is_err());
        run("umount", &["-R", sysroot.to_str().unwrap()]);
    }
}

#[test]
fn a_disk_that_has_taken_the_name_of_another_is_not_mounted_in_its_place() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "second", &[]);
    let sysroot = bare_root(dir.path());
    let name = disk.path().file_name().unwrap();
    let file = Path::new("/sys/class/block").join(name).join("diskseq");
    let own = fs::read_to_string(&file).unwrap().trim_end().to_owned();
    for (said, mounted) in [("1", false), (own.as_str(), true)] {
        let mut find = |_: &MountEntry| {
            Ok(FoundDevice {
                path: disk.path().to_owned(),
                identities: vec![(file.clone(), said.to_owned())],
                ..FoundDevice::default()
            })
        };
        let json = r#"[{"mountPoint": "/data", "device": "d", "fsType": "ext4", "need": "degraded"}]"#;
        let outcomes = persist::apply(&sysroot, &entries(json), &mut find, &mut MountLog::new()).unwrap();
        match &outcomes[0].outcome {
            Outcome::Missing { reason } => assert!(!mounted && reason.contains("was pulled out"), "{reason}"),
            Outcome::Mounted => assert!(mounted, "{said} is not {own}"),
        }
    }
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn what_needs_a_person_is_not_mounted_and_need_decides() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "disk", BROKEN);
    let sysroot = bare_root(dir.path());
    let entry = |more: &str| format!(r#"[{{"mountPoint": "/data", "device": "d", "fsType": "ext4", {more} "options": []}}]"#);
    let outcomes = apply(&sysroot, &disk, Path::new("/"), &entry(r#""need": "degraded","#)).unwrap();
    let Outcome::Missing { reason } = &outcomes[0].outcome else {
        panic!("{outcomes:?}")
    };
    assert!(
        reason.contains("does not correct by itself") && reason.contains("by hand"),
        "{reason}"
    );
    assert!(fs::write(sysroot.join("data/x"), "").is_err(), "the stand-in takes writes");
    let error = apply(&sysroot, &disk, Path::new("/"), &entry("")).unwrap_err();
    assert!(format!("{error:#}").contains("which the boot requires"), "{error:#}");
    // Whoever says so gets no check.
    let unchecked = apply(&sysroot, &disk, Path::new("/"), &entry(r#""noCheck": true, "need": "optional","#)).unwrap();
    let Outcome::Missing { reason } = &unchecked[0].outcome else {
        panic!("a file system without a root folder was mounted")
    };
    assert!(!reason.contains("fsck"), "{reason}");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn without_the_program_the_kernel_decides_and_it_is_said() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "dirty", DIRTY);
    let checked = check::check(dir.path(), disk.path(), DeviceFs::Ext4, check::LIMIT).unwrap();
    assert_eq!(checked, Some(Checked::Not("there is no fsck.ext4 in the initrd".to_owned())));
    // A clean one needs none.
    let disk = ext4(dir.path(), "clean", &[]);
    let checked = check::check(dir.path(), disk.path(), DeviceFs::Ext4, check::LIMIT).unwrap();
    assert_eq!(checked, Some(Checked::Clean));
    for fs in [DeviceFs::Xfs, DeviceFs::Btrfs, DeviceFs::Bcachefs] {
        assert_eq!(check::check(dir.path(), disk.path(), fs, check::LIMIT).unwrap(), None, "{fs:?}");
    }
}

#[test]
fn a_check_that_does_not_end_is_killed_and_one_that_fails_is_told() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("bin/fsck.ext4");
    fs::create_dir(program.parent().unwrap()).unwrap();
    let check = |script: &str| {
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        check::check(dir.path(), Path::new("/dev/null"), DeviceFs::Ext4, Duration::from_millis(500))
    };
    let started = Instant::now();
    let error = check("echo pass 1; exec sleep 1000").unwrap_err().to_string();
    assert!(error.contains("was killed") && error.contains("pass 1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let told = check("echo \"what is $2?\"; exit 8").unwrap().unwrap();
    assert!(
        matches!(&told, Checked::Not(why) if why.contains("exit status 8") && why.contains("what is /dev/null?")),
        "{told}"
    );
}
