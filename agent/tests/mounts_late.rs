//! A disk that comes after the boot is mounted over the stand-in that was put in its place. As root, in a mount name space of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disks;
}

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use freshroot::mode::Mode;
use freshroot::mount::entry::FileSystemEntry;
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::order::order;
use freshroot::mount::persist::{self, MISSING, Outcome};
use freshroot::stage_2::persist_retry::{persist_retry, start};
use freshroot::uevent::Socket;
use support::disks::{Disk, bare_root, no_device, private_mounts, run};

/// Between the device and its mount, however busy this machine is; `vm-tests/run bench --only late` measures it.
const LATE: Duration = Duration::from_secs(20);
const TRIES: usize = 2;

fn file_systems(label: &str) -> Vec<FileSystemEntry> {
    serde_json::from_str(&format!(
        r#"[{{"mountPoint": "/data", "device": "LABEL={label}", "fsType": "ext4", "need": "degraded"}},
            {{"mountPoint": "/var/lib/app", "device": "/data/app", "fsType": "none", "options": ["bind", "nofail"]}}]"#
    ))
    .unwrap()
}

#[test]
fn a_late_disk_is_mounted_over_its_stand_in_within_the_limit_and_what_lies_on_it_too() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let mut times = Vec::new();
    for attempt in 0..TRIES {
        let label = format!("late{attempt}-{}", std::process::id() % 100_000);
        let file = Disk::file(dir.path(), &label, 16);
        run("mkfs.ext4", &["-q", "-L", &label, file.to_str().unwrap()]);
        let sysroot = bare_root(dir.path());
        let entries = file_systems(&label);
        let ordered = order(&entries, Mode::Standalone).unwrap();
        persist::apply(&sysroot, &ordered, &mut no_device, &mut MountLog::new()).unwrap();
        for place in ["data", "var/lib/app"] {
            assert!(fs::write(sysroot.join(place).join("x"), "").is_err(), "{place} takes writes");
        }
        let mut events = Socket::open().unwrap();
        let (came, mounted, disk) = std::thread::scope(|scope| {
            let plug = scope.spawn(|| {
                // Not a wait for anything: this is how late the disk is.
                std::thread::sleep(Duration::from_millis(300));
                let disk = Disk::plug(&file);
                (Instant::now(), disk)
            });
            let outcomes = persist_retry(&sysroot, &entries, Path::new("/data"), &mut events).unwrap();
            let mounted = Instant::now();
            assert_eq!(outcomes.len(), 2);
            assert!(outcomes.iter().all(|entry| entry.outcome == Outcome::Mounted), "{outcomes:?}");
            let (came, disk) = plug.join().unwrap();
            (came, mounted, disk)
        });
        times.push(mounted.saturating_duration_since(came));
        fs::write(sysroot.join("var/lib/app/kept"), "").unwrap();
        assert!(sysroot.join("data/app/kept").exists());
        // Once it is there, there is nothing to do.
        assert!(
            persist_retry(&sysroot, &entries, Path::new("/data"), &mut events)
                .unwrap()
                .is_empty()
        );
        drop(disk);
        run("umount", &["-R", sysroot.to_str().unwrap()]);
    }
    println!("from the device to its mount: {times:?}");
    assert!(times.iter().max().unwrap() <= &LATE, "{times:?}");
}

#[test]
fn a_disk_that_cannot_be_mounted_leaves_the_stand_in_and_is_waited_for_again() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let label = format!("bad-{}", std::process::id() % 100_000);
    let file = Disk::file(dir.path(), "disk", 16);
    let path = file.to_str().unwrap();
    run("mkfs.ext4", &["-q", "-L", &label, path]);
    for command in ["ssv state 0", "clri <2>"] {
        run("debugfs", &["-w", "-R", command, path]);
    }
    let sysroot = bare_root(dir.path());
    let entries = file_systems(&label);
    let ordered = order(&entries, Mode::Standalone).unwrap();
    persist::apply(&sysroot, &ordered, &mut no_device, &mut MountLog::new()).unwrap();
    let mut events = Socket::open().unwrap();
    let bad = Disk::plug(&file);
    let outcomes = std::thread::scope(|scope| {
        let repaired = scope.spawn(|| {
            // Long enough for the first try to have been refused; if not, there is one refusal less, and the outcome is the same.
            std::thread::sleep(Duration::from_millis(500));
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert!(mounts.contains(MISSING), "{mounts}");
            // A person makes it anew, and the kernel tells of the change.
            run("mkfs.ext4", &["-q", "-F", "-L", &label, bad.name()]);
            let name = bad.path().file_name().unwrap().to_str().unwrap();
            fs::write(format!("/sys/class/block/{name}/uevent"), "change").unwrap();
        });
        let outcomes = persist_retry(&sysroot, &entries, Path::new("/data"), &mut events).unwrap();
        repaired.join().unwrap();
        outcomes
    });
    assert!(outcomes.iter().all(|entry| entry.outcome == Outcome::Mounted), "{outcomes:?}");
    assert!(sysroot.join("data/lost+found").is_dir());
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn a_member_of_an_array_is_not_mounted_in_the_place_of_what_is_made_of_it() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let file = Disk::file(dir.path(), "member", 16);
    run("mkfs.ext4", &["-q", file.to_str().unwrap(), "8M"]);
    // MD metadata 1.0, near the end: the file system of a RAID 1 begins where the member begins.
    let sector = ((16_u64 << 20) / 512 - 16) & !7;
    let mut metadata = vec![0; 256];
    metadata[..8].copy_from_slice(b"\xfc\x4e\x2b\xa9\x01\0\0\0");
    metadata[144..152].copy_from_slice(&sector.to_le_bytes());
    let write = |bytes: &[u8]| {
        let file = fs::File::options().write(true).open(&file).unwrap();
        file.write_all_at(bytes, sector * 512).unwrap();
        file.sync_all().unwrap();
    };
    write(&metadata);
    let disk = Disk::plug(&file);
    let sysroot = bare_root(dir.path());
    let entries: Vec<FileSystemEntry> = serde_json::from_str(&format!(
        r#"[{{"mountPoint": "/data", "device": "{}", "fsType": "ext4", "need": "degraded"}}]"#,
        disk.name()
    ))
    .unwrap();
    let ordered = order(&entries, Mode::Standalone).unwrap();
    persist::apply(&sysroot, &ordered, &mut no_device, &mut MountLog::new()).unwrap();
    let mut events = Socket::open().unwrap();
    let before = fs::read(&file).unwrap();
    let outcomes = std::thread::scope(|scope| {
        let freed = scope.spawn(|| {
            // Long enough for it to have been refused; if not, it would be found mounted.
            std::thread::sleep(Duration::from_millis(500));
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let untouched = fs::read(&file).unwrap() == before;
            write(&[0; 256]);
            let name = disk.path().file_name().unwrap().to_str().unwrap();
            run("blockdev", &["--flushbufs", disk.name()]);
            fs::write(format!("/sys/class/block/{name}/uevent"), "change").unwrap();
            (mounts.contains(MISSING), mounts.contains(disk.name()), untouched)
        });
        let outcomes = persist_retry(&sysroot, &entries, Path::new("/data"), &mut events).unwrap();
        assert_eq!(freed.join().unwrap(), (true, false, true));
        outcomes
    });
    assert!(outcomes.iter().all(|entry| entry.outcome == Outcome::Mounted), "{outcomes:?}");
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}

#[test]
fn units_are_started_by_systemd_and_its_refusal_is_told() {
    let root = tempfile::tempdir().unwrap();
    let units = ["data.service".to_owned(), "x.target".to_owned()];
    assert!(start(root.path(), &units).unwrap_err().to_string().contains("no systemctl"));
    fs::create_dir(root.path().join("bin")).unwrap();
    let systemctl = root.path().join("bin/systemctl");
    let told = root.path().join("told");
    fs::write(
        &systemctl,
        format!("#!/bin/sh\necho \"$@\" >{}; exit $(cat {}.code)\n", told.display(), told.display()),
    )
    .unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.path().join("told.code"), "0").unwrap();
    start(root.path(), &units).unwrap();
    assert_eq!(fs::read_to_string(&told).unwrap(), "--no-block start -- data.service x.target\n");
    fs::write(root.path().join("told.code"), "5").unwrap();
    assert!(start(root.path(), &units).unwrap_err().to_string().contains("exit status 5"));
}
