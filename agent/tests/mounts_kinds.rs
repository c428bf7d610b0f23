//! Real mounts of what an entry can be besides one file system on one disk: several devices, a folder of a file system, an overlay. As root, each test in a
//! mount name space of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disks;
}

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use freshroot::device::{FindError, observe, wait_for_members};
use freshroot::mount::entry::DeviceFs;
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::persist::{self, FoundDevice, Outcome};
use freshroot::uevent::Socket;
use support::disks::{Disk, bare_root, entries, found_by, no_device, private_mounts, run};

#[test]
fn a_btrfs_on_several_devices_waits_for_all_and_is_mounted_whatever_names_the_entry_gives_them() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let files = [Disk::file(dir.path(), "a", 128), Disk::file(dir.path(), "b", 128)];
    run(
        "mkfs.btrfs",
        &[
            "-q",
            "-d",
            "raid1",
            "-m",
            "raid1",
            files[0].to_str().unwrap(),
            files[1].to_str().unwrap(),
        ],
    );
    let mut events = Socket::open().unwrap();
    let first = Disk::plug(&files[0]);
    let seen = observe(Path::new("/")).unwrap();
    let device = seen.iter().find(|device| device.path == first.path()).unwrap().clone();
    let wait = |events: &mut Socket, limit: u64| {
        wait_for_members(
            Path::new("/"),
            &device,
            Instant::now() + Duration::from_millis(limit),
            events,
            &mut |_| {},
        )
    };
    let error = wait(&mut events, 50).unwrap_err();
    assert!(matches!(&error, FindError::Fewer { there, of: 2 } if there.len() == 1), "{error}");
    assert!(error.to_string().contains("has 2 devices, and of these there are 1"), "{error}");

    // It comes while it is waited for.
    let (second, members) = std::thread::scope(|scope| {
        let late = scope.spawn(|| Disk::plug(&files[1]));
        let members = wait(&mut events, 30_000).unwrap();
        (late.join().unwrap(), members)
    });
    let found = FoundDevice {
        path: first.path().to_owned(),
        members: members.iter().map(|member| member.path.clone()).collect(),
        ..FoundDevice::default()
    };
    assert!(found.members.contains(&second.path().to_owned()));
    let sysroot = bare_root(dir.path());
    let list = entries(
        r#"[{"mountPoint": "/data", "device": "/dev/disk/by-partlabel/disk-a-x", "fsType": "btrfs",
             "options": ["device=/dev/disk/by-partlabel/disk-a-x,device=/dev/disk/by-partlabel/disk-b-x,noatime"]}]"#,
    );
    persist::apply(&sysroot, &list, &mut |_| Ok(found.clone()), &mut MountLog::new()).unwrap();
    fs::write(sysroot.join("data/kept"), "x").unwrap();
    let shown = run("btrfs", &["filesystem", "show", sysroot.join("data").to_str().unwrap()]);
    assert!(!shown.contains("MISSING") && shown.contains("Total devices 2"), "{shown}");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn two_subvolumes_and_another_disk_are_mounted_beside_one_another() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (pool, other) = (Disk::new(dir.path(), "pool", 128), Disk::new(dir.path(), "other", 16));
    run("mkfs.btrfs", &["-q", pool.name()]);
    run("mkfs.ext4", &["-q", other.name()]);
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    run("mount", &[pool.name(), top.to_str().unwrap()]);
    for subvolume in ["@home", "@log"] {
        run("btrfs", &["subvolume", "create", top.join(subvolume).to_str().unwrap()]);
        fs::write(top.join(subvolume).join("name"), subvolume).unwrap();
    }
    run("umount", &[top.to_str().unwrap()]);
    let sysroot = bare_root(dir.path());
    let list = entries(
        r#"[{"mountPoint": "/home", "device": "pool", "fsType": "btrfs", "options": ["subvol=@home"]},
            {"mountPoint": "/home/more", "device": "other", "fsType": "ext4"},
            {"mountPoint": "/var/log", "device": "pool", "fsType": "btrfs", "options": ["subvol=/@log", "nofail"]},
            {"mountPoint": "/gone", "device": "pool", "fsType": "btrfs", "options": ["subvol=@gone", "nofail"]}]"#,
    );
    let mut find = found_by(&[("pool", &pool), ("other", &other)]);
    let outcomes = persist::apply(&sysroot, &list, &mut find, &mut MountLog::new()).unwrap();
    assert_eq!(fs::read_to_string(sysroot.join("home/name")).unwrap(), "@home");
    assert_eq!(fs::read_to_string(sysroot.join("var/log/name")).unwrap(), "@log");
    assert!(sysroot.join("home/more/lost+found").is_dir());
    let missing: Vec<_> = outcomes.iter().filter(|entry| entry.outcome != Outcome::Mounted).collect();
    assert!(missing.len() == 1 && missing[0].mount_point == Path::new("/gone"), "{missing:?}");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn a_folder_of_a_file_system_is_mounted_alone() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), "disk", 16);
    let content = dir.path().join("content");
    fs::create_dir_all(content.join("subvolumes/home/alice")).unwrap();
    run("mkfs.ext4", &["-q", "-d", content.to_str().unwrap(), disk.name()]);
    let sysroot = bare_root(dir.path());
    let list = entries(
        r#"[{"mountPoint": "/home", "device": "disk", "fsType": "ext4", "options": ["X-mount.subdir=subvolumes/home", "noatime"]},
            {"mountPoint": "/none", "device": "disk", "fsType": "ext4", "options": ["X-mount.subdir=subvolumes/none", "nofail"]}]"#,
    );
    let mut log = MountLog::new();
    let outcomes = persist::apply(&sysroot, &list, &mut found_by(&[("disk", &disk)]), &mut log).unwrap();
    assert!(sysroot.join("home/alice").is_dir() && !sysroot.join("home/subvolumes").exists());
    fs::write(sysroot.join("home/alice/kept"), "").unwrap();
    let Outcome::Missing { reason } = &outcomes[1].outcome else {
        panic!("{outcomes:?}")
    };
    assert!(reason.contains("subvolumes/none") && reason.contains("X-mount.subdir"), "{reason}");
    assert!(log.undo().is_empty());
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!mounts.contains(disk.name()), "{mounts}");
}

#[test]
fn what_is_mounted_already_is_bound_with_attributes_of_its_own_and_never_for_writing_where_it_is_read_only() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), "disk", 16);
    run("mkfs.ext4", &["-q", disk.name()]);
    let cache = dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let list = entries(
        r#"[{"mountPoint": "/data", "device": "disk", "fsType": "ext4", "options": ["noexec"]},
            {"mountPoint": "/below", "device": "disk", "fsType": "ext4", "options": ["X-mount.subdir=lost+found", "nofail"]}]"#,
    );
    let mut find = |_: &freshroot::mount::entry::MountEntry| {
        Ok(FoundDevice {
            path: disk.path().to_owned(),
            mounted_at: Some(cache.clone()),
            // It would fail on what is mounted.
            check_by: Some("/".into()),
            ..FoundDevice::default()
        })
    };
    run("mount", &[disk.name(), cache.to_str().unwrap()]);
    let sysroot = bare_root(dir.path());
    let outcomes = persist::apply(&sysroot, &list, &mut find, &mut MountLog::new()).unwrap();
    assert!(outcomes.iter().all(|entry| entry.outcome == Outcome::Mounted), "{outcomes:?}");
    fs::write(sysroot.join("data/kept"), "").unwrap();
    assert!(cache.join("kept").exists() && !sysroot.join("below/kept").exists());
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = |place: &Path| {
        mounts
            .lines()
            .find(|line| line.contains(&format!(" {} ", place.display())))
            .unwrap()
            .to_owned()
    };
    assert!(
        line(&sysroot.join("data")).contains("noexec") && !line(&cache).contains("noexec"),
        "{mounts}"
    );
    run("umount", &["-R", sysroot.to_str().unwrap()]);
    run("umount", &[cache.to_str().unwrap()]);

    run("mount", &["-o", "ro", disk.name(), cache.to_str().unwrap()]);
    let sysroot = bare_root(dir.path());
    let error = persist::apply(&sysroot, &list, &mut find, &mut MountLog::new()).unwrap_err();
    assert!(format!("{error:#}").contains("mounted for reading only"), "{error:#}");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
    run("umount", &[cache.to_str().unwrap()]);
}

#[test]
fn an_overlay_has_its_folders_on_entries_that_are_mounted_first() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    for (folder, file) in [("base/one", "low"), ("base/two", "lower")] {
        fs::create_dir_all(sysroot.join(folder)).unwrap();
        fs::write(sysroot.join(folder).join(file), folder).unwrap();
    }
    let list = entries(
        r#"[{"mountPoint": "/var/lib/app", "device": "overlay", "fsType": "overlay",
             "options": ["lowerdir=/sysroot/base/one:/sysroot/base/two,upperdir=/sysroot/state/up,workdir=/sysroot/state/work", "nodev"]},
            {"mountPoint": "/state", "fsType": "tmpfs"},
            {"mountPoint": "/ro", "fsType": "overlay", "options": ["lowerdir=/base/one:/base/two"]},
            {"mountPoint": "/in-ram", "fsType": "overlay", "options": ["lowerdir=/base/one,upperdir=/up,workdir=/work", "nofail"]}]"#,
    );
    let mut log = MountLog::new();
    let outcomes = persist::apply(&sysroot, &list, &mut no_device, &mut log).unwrap();
    let app = sysroot.join("var/lib/app");
    assert!(app.join("low").exists() && app.join("lower").exists());
    fs::write(app.join("new"), "").unwrap();
    assert!(sysroot.join("state/up/new").exists());
    assert!(
        fs::write(sysroot.join("ro/new"), "").is_err(),
        "an overlay without an upper folder takes writes"
    );
    let in_ram = outcomes.iter().find(|entry| entry.mount_point == Path::new("/in-ram")).unwrap();
    assert!(
        matches!(&in_ram.outcome, Outcome::Missing { reason } if reason.contains("would be made in RAM")),
        "{in_ram:?}"
    );
    assert!(log.undo().is_empty());
}

#[test]
fn what_a_file_system_refuses_is_named_in_the_kernels_words_however_it_takes_its_options() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    for (fs_type, size) in [("ext4", 16), ("xfs", 320), ("btrfs", 128)] {
        let disk = Disk::new(dir.path(), fs_type, size);
        run(&format!("mkfs.{fs_type}"), &["-q", disk.name()]);
        let sysroot = bare_root(dir.path());
        let list = entries(&format!(
            r#"[{{"mountPoint": "/data", "device": "disk", "fsType": "{fs_type}", "options": ["nonsense=1"]}}]"#
        ));
        let error = persist::apply(&sysroot, &list, &mut found_by(&[("disk", &disk)]), &mut MountLog::new()).unwrap_err();
        let text = format!("{error:#}");
        println!("{text}");
        assert!(text.contains("nonsense") && text.contains("the kernel says"), "{text}");
        run("umount", &[sysroot.to_str().unwrap()]);
    }
}

#[test]
fn a_file_system_that_the_kernel_has_not_is_named() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), "disk", 64);
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    for fs_type in ["f2fs", "exfat", "bcachefs", "vfat"] {
        let sysroot = bare_root(dir.path());
        let list = entries(&format!(r#"[{{"mountPoint": "/data", "device": "disk", "fsType": "{fs_type}"}}]"#));
        let error = persist::apply(&sysroot, &list, &mut found_by(&[("disk", &disk)]), &mut MountLog::new()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(fs_type), "{text}");
        if !known.lines().any(|line| line.trim().ends_with(fs_type)) {
            assert!(text.contains("does not know this file system"), "{text}");
        }
        run("umount", &[sysroot.to_str().unwrap()]);
    }
}

#[test]
fn a_bcachefs_on_several_devices_is_asked_for_by_all_of_them() {
    // Whether this kernel has bcachefs or not: neither device holds one, and what was asked for is in the error.
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disks = [Disk::new(dir.path(), "a", 4), Disk::new(dir.path(), "b", 4)];
    let members = [disks[0].path().to_owned(), disks[1].path().to_owned()];
    let options = freshroot::mount::options::split(&["verbose"]).unwrap();
    let mounted = freshroot::mount::system::mount_devices(&members[0], &members, DeviceFs::Bcachefs, &options);
    let error = mounted.map(drop).expect_err("an empty disk was mounted").to_string();
    assert!(
        error.contains(&format!("bcachefs from {}:{}", disks[0].name(), disks[1].name())),
        "{error}"
    );
}
