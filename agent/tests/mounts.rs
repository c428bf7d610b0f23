//! Real mounts, as root, each test in a mount name space of its own: what a boot mounts is mounted, read and written, and `umount -R` leaves nothing.
//!
//! A test that cannot run here fails with the reason. `FRESHROOT_TESTS_WITHOUT=vfat,xfs` leaves file systems out that the kernel does not have; the
//! test says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use freshroot::boot::medium::mount_medium;
use freshroot::mode::Mode;
use freshroot::mount::entry::{DeviceFs, FileSystemEntry, MountEntry};
use freshroot::mount::loop_device::{LoopDevice, LoopOptions};
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::options;
use freshroot::mount::order::order;
use freshroot::mount::persist::{self, FoundDevice, Outcome};
use freshroot::mount::system::{self, RwStore};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

const TOPLEVEL: &str = "/nix/store/aaaa-nixos-system-demo";

/// One test at a time: a child that another thread is just starting holds a copy of every descriptor until its exec, and keeps mounts busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Takes this thread into a mount name space of its own; its children come along.
fn private_mounts() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        panic!("this test needs root, to mount in a name space of its own: {errno}");
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    guard
}

fn run(program: &str, args: &[&str]) {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(err) => panic!("this test needs {program} (squashfs-tools, e2fsprogs, xfsprogs, btrfs-progs, dosfstools, mount): {err}"),
    }
}

/// Whether a file system is to be tested. One that the kernel lacks fails the test, unless the run asked for fewer.
fn with_fs(name: &str) -> bool {
    let without = std::env::var("FRESHROOT_TESTS_WITHOUT").unwrap_or_default();
    if without.split(',').any(|left_out| left_out == name) {
        println!("without {name}, as FRESHROOT_TESTS_WITHOUT says");
        return false;
    }
    true
}

/// An image as NixOS lays it out: store paths at its root.
fn image(dir: &Path) -> PathBuf {
    let (tree, image) = (dir.join("tree"), dir.join("store.squashfs"));
    let toplevel = tree.join(Path::new(TOPLEVEL).file_name().unwrap());
    fs::create_dir_all(&toplevel).unwrap();
    fs::write(toplevel.join("nixos-version"), "demo").unwrap();
    fs::write(tree.join("nix-path-registration"), "").unwrap();
    run(
        "mksquashfs",
        &[
            tree.to_str().unwrap(),
            image.to_str().unwrap(),
            "-all-root",
            "-root-mode",
            "0755",
            "-quiet",
            "-no-progress",
        ],
    );
    image
}

fn disk(dir: &Path, name: &str, megabytes: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
    path
}

/// Loop devices whose backing file lies in `dir`.
fn loops_of(dir: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    let backed =
        |device: &PathBuf| fs::read_to_string(device.join("loop/backing_file")).is_ok_and(|file| Path::new(&file).starts_with(dir));
    devices.filter(backed).collect()
}

/// A device goes with its last user, in some kernels (5.17 to 5.19) a moment later, in a work queue.
fn assert_no_loops_of(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !loops_of(dir).is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(loops_of(dir), Vec::<PathBuf>::new(), "loop devices are left");
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    text.lines()
        .filter(|line| Path::new(line.split(' ').nth(4).unwrap()).starts_with(dir))
        .map(str::to_owned)
        .collect()
}

fn attach(path: &Path, options: LoopOptions) -> LoopDevice {
    let file = File::options().read(true).write(!options.read_only).open(path).unwrap();
    LoopDevice::attach(
        Path::new("/dev"),
        file.as_fd(),
        LoopOptions {
            autoclear: true,
            ..options
        },
    )
    .unwrap()
}

fn system_root(dir: &Path, rw_store: &RwStore, log: &mut MountLog) -> Result<PathBuf> {
    let sysroot = dir.join("sysroot");
    let image = File::open(image(dir)).unwrap();
    system::mount_root(&sysroot, &"64M".parse().unwrap(), log)?;
    system::mount_image(&sysroot, Path::new("/dev"), image.as_fd(), true, log)?;
    system::mount_rw_store(&sysroot, rw_store, log)?;
    system::mount_store(&sysroot, log)?;
    system::link_toplevel(&sysroot, Path::new(TOPLEVEL))?;
    Ok(sysroot)
}

fn ram() -> RwStore {
    RwStore::Tmpfs("50%".parse().unwrap())
}

#[test]
fn the_system_tree_is_mounted_takes_writes_and_leaves_nothing() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = system_root(dir.path(), &ram(), &mut MountLog::new()).unwrap();
    system::make_standard_folders(&sysroot).unwrap();

    assert_eq!(
        fs::read_to_string(sysroot.join(&TOPLEVEL[1..]).join("nixos-version")).unwrap(),
        "demo"
    );
    assert_eq!(fs::read_link(sysroot.join("nix/.freshroot")).unwrap(), Path::new(TOPLEVEL));
    fs::write(sysroot.join("nix/store/new"), "written").unwrap();
    assert_eq!(fs::read_to_string(sysroot.join("nix/.rw-store/store/new")).unwrap(), "written");
    fs::remove_dir_all(sysroot.join(&TOPLEVEL[1..])).unwrap();
    assert!(sysroot.join("nix/.ro-store/aaaa-nixos-system-demo/nixos-version").exists());
    assert!(fs::write(sysroot.join("nix/.ro-store/x"), "").is_err());
    for (folder, mode) in [
        ("", 0o755),
        ("tmp", 0o1777),
        ("root", 0o700),
        ("nix/store", 0o755),
        ("var/tmp", 0o1777),
    ] {
        assert_eq!(
            fs::metadata(sysroot.join(folder)).unwrap().permissions().mode() & 0o7777,
            mode,
            "{folder}"
        );
    }
    assert_eq!(loops_of(dir.path()).len(), 1);

    run("umount", &["-R", sysroot.to_str().unwrap()]);
    assert_eq!(mounts_below(dir.path()), Vec::<String>::new());
    assert_no_loops_of(dir.path());
}

#[test]
fn undoing_the_log_leaves_nothing() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let mut log = MountLog::new();
    let sysroot = system_root(dir.path(), &ram(), &mut log).unwrap();
    assert_eq!(log.mounts().len(), 4);
    // One that is busy does not keep the others.
    let _busy = File::open(sysroot.join("nix/store")).unwrap();
    let errors = log.undo();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(mounts_below(dir.path()), Vec::<String>::new());
}

#[test]
fn a_store_below_a_path_that_overlayfs_would_misread_is_mounted() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("a:b,c\\d");
    fs::create_dir(&odd).unwrap();
    let sysroot = system_root(&odd, &ram(), &mut MountLog::new()).unwrap();
    fs::write(sysroot.join("nix/store/new"), "written").unwrap();
    assert!(sysroot.join("nix/store/nix-path-registration").exists());
}

#[test]
fn the_writable_layer_can_be_a_disk_and_keeps_what_was_written() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "rw.ext4", 16);
    run("mkfs.ext4", &["-q", path.to_str().unwrap()]);
    for boot in ["first", "second"] {
        let device = attach(&path, LoopOptions::default());
        let rw_store = RwStore::Device {
            path: device.path().to_owned(),
            fs: DeviceFs::Ext4,
            options: options::split(&["noatime"]).unwrap(),
        };
        let sysroot = system_root(dir.path(), &rw_store, &mut MountLog::new()).unwrap();
        drop(device);
        if boot == "first" {
            fs::write(sysroot.join("nix/store/kept"), "x").unwrap();
        }
        assert!(sysroot.join("nix/store/kept").exists(), "{boot} boot");
        run("umount", &["-R", sysroot.to_str().unwrap()]);
    }
    assert_no_loops_of(dir.path());
}

#[test]
fn what_is_attached_is_the_open_file_and_not_its_name() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let good = disk(dir.path(), "good", 1);
    fs::write(&good, [b'g'; 8192]).unwrap();
    let file = File::open(&good).unwrap();
    fs::write(dir.path().join("evil"), [b'e'; 8192]).unwrap();
    fs::rename(dir.path().join("evil"), &good).unwrap();
    let wanted = LoopOptions {
        read_only: true,
        autoclear: true,
        offset: 512,
        size: Some(1024),
        ..LoopOptions::default()
    };
    let device = LoopDevice::attach(Path::new("/dev"), file.as_fd(), wanted).unwrap();
    assert_eq!(fs::read(device.path()).unwrap(), [b'g'; 1024]);
    let written = File::options().write(true).open(device.path()).and_then(|mut file| {
        std::io::Write::write_all(&mut file, b"x")?;
        file.sync_all()
    });
    assert!(written.is_err(), "a read-only device takes writes");
    device.detach().unwrap();
    assert_no_loops_of(dir.path());
}

#[test]
fn a_device_tells_of_direct_io_what_the_kernel_does() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "disk", 1);
    for asked in [true, false] {
        let device = attach(
            &path,
            LoopOptions {
                direct_io: asked,
                ..LoopOptions::default()
            },
        );
        let attribute = Path::new("/sys/block").join(device.path().file_name().unwrap()).join("loop/dio");
        let kernel = fs::read_to_string(attribute).unwrap().trim() == "1";
        println!("direct I/O asked for: {asked}, taken: {kernel}");
        assert_eq!(device.direct_io(), kernel);
        assert!(asked || !kernel);
    }
}

#[test]
fn loop_devices_taken_at_the_same_time_are_all_different() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "disk", 1);
    let devices: Vec<LoopDevice> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| attach(&path, LoopOptions::default()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let paths: std::collections::BTreeSet<&Path> = devices.iter().map(LoopDevice::path).collect();
    assert_eq!(paths.len(), 8);
    drop(devices);
    assert_no_loops_of(dir.path());
}

fn entries(json: &str) -> Vec<MountEntry> {
    let entries: Vec<FileSystemEntry> = serde_json::from_str(json).unwrap();
    order(&entries, Mode::Standalone).unwrap()
}

/// A root with nothing but a tmpfs.
fn bare_root(dir: &Path) -> PathBuf {
    let sysroot = dir.join("sysroot");
    system::mount_root(&sysroot, &"16M".parse().unwrap(), &mut MountLog::new()).unwrap();
    sysroot
}

fn no_device(entry: &MountEntry) -> Result<FoundDevice> {
    bail!("no device «{}» within 1 s", entry.device().unwrap_or_default())
}

fn is_writable(folder: &Path) -> bool {
    fs::write(folder.join("probe"), "").is_ok()
}

/// Mounts one file system from a disk of its own, writes, unmounts, mounts again, reads.
fn survives(fs_type: &str, mkfs: &[&str], megabytes: u64, fs_options: &str, subvolume: Option<&str>) {
    if !with_fs(fs_type) {
        return;
    }
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "disk", megabytes);
    let mut args = mkfs[1..].to_vec();
    args.push(path.to_str().unwrap());
    run(mkfs[0], &args);
    if let Some(subvolume) = subvolume {
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        run("mount", &["-o", "loop", path.to_str().unwrap(), top.to_str().unwrap()]);
        run("btrfs", &["subvolume", "create", top.join(subvolume).to_str().unwrap()]);
        run("umount", &[top.to_str().unwrap()]);
    }
    let json =
        format!(r#"[{{"mountPoint": "/data", "device": "LABEL=x", "fsType": "auto", "options": ["{fs_options}", "x-systemd.growfs"]}}]"#);
    for round in 0..2 {
        let sysroot = bare_root(dir.path());
        let mut held = Vec::new();
        let mut find = |_: &MountEntry| {
            let device = attach(&path, LoopOptions::default());
            let found = FoundDevice {
                path: device.path().to_owned(),
                fs_type: Some(fs_type.to_owned()),
                ..FoundDevice::default()
            };
            held.push(device);
            Ok(found)
        };
        let outcomes = persist::apply(&sysroot, &entries(&json), &mut find, &mut MountLog::new()).unwrap();
        assert_eq!(outcomes[0].outcome, Outcome::Mounted);
        drop(held);
        let file = sysroot.join("data/file");
        if round == 0 {
            fs::write(&file, "kept").unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        run("umount", &["-R", sysroot.to_str().unwrap()]);
    }
    assert_no_loops_of(dir.path());
}

#[test]
fn ext4_keeps_what_was_written() {
    survives("ext4", &["mkfs.ext4", "-q"], 16, "noatime,nodev,commit=30", None);
}

#[test]
fn ext2_keeps_what_was_written() {
    survives("ext2", &["mkfs.ext2", "-q"], 16, "defaults", None);
}

#[test]
fn xfs_keeps_what_was_written() {
    survives("xfs", &["mkfs.xfs", "-q"], 320, "noatime,nosuid", None);
}

#[test]
fn a_btrfs_subvolume_keeps_what_was_written() {
    survives("btrfs", &["mkfs.btrfs", "-q"], 128, "subvol=@data,compress=zstd", Some("@data"));
}

#[test]
fn vfat_keeps_what_was_written() {
    survives("vfat", &["mkfs.vfat"], 16, "umask=0077", None);
}

#[test]
fn a_device_that_is_read_only_is_not_written_to() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "disk", 16);
    run("mkfs.ext4", &["-q", path.to_str().unwrap()]);
    let before = fs::read(&path).unwrap();
    let sysroot = bare_root(dir.path());
    let device = attach(&path, LoopOptions::default());
    let mut find = |_: &MountEntry| {
        Ok(FoundDevice {
            path: device.path().to_owned(),
            ..FoundDevice::default()
        })
    };
    let list = entries(r#"[{"mountPoint": "/data", "device": "x", "fsType": "ext4", "options": ["ro", "noload"]}]"#);
    persist::apply(&sysroot, &list, &mut find, &mut MountLog::new()).unwrap();
    assert!(!is_writable(&sysroot.join("data")));
    drop(device);
    run("umount", &["-R", sysroot.to_str().unwrap()]);
    assert!(fs::read(&path).unwrap() == before, "a read-only mount changed the disk");
}

#[test]
fn binds_of_folders_and_files_are_made_in_order_with_their_sources() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list = entries(
        r#"[{"mountPoint": "/var/lib/app", "device": "/persist/app", "fsType": "none", "options": ["bind", "nosuid", "noexec"],
             "create": {"mode": "0750", "uid": 12, "gid": 34}},
            {"mountPoint": "/persist", "fsType": "tmpfs", "options": ["size=1M,mode=0711"]},
            {"mountPoint": "/etc/machine-id", "device": "/persist/machine-id", "fsType": "none", "options": ["bind", "ro"],
             "depends": ["/made"]},
            {"mountPoint": "/made", "fsType": "tmpfs"}]"#,
    );
    // The file has to be there before it is bound: the device of another entry is a place to make it.
    let mut log = MountLog::new();
    let (first, second): (Vec<MountEntry>, Vec<MountEntry>) =
        list.into_iter().partition(|entry| entry.mount_point() == Path::new("/persist"));
    persist::apply(&sysroot, &first, &mut no_device, &mut log).unwrap();
    fs::write(sysroot.join("persist/machine-id"), "abc").unwrap();
    fs::create_dir(sysroot.join("persist/app")).unwrap();
    persist::apply(&sysroot, &second, &mut no_device, &mut log).unwrap();

    fs::write(sysroot.join("var/lib/app/x"), "").unwrap();
    assert!(sysroot.join("persist/app/x").exists());
    assert_eq!(fs::read_to_string(sysroot.join("etc/machine-id")).unwrap(), "abc");
    assert!(
        fs::write(sysroot.join("etc/machine-id"), "x").is_err(),
        "a read-only bind takes writes"
    );
    assert!(
        fs::write(sysroot.join("persist/machine-id"), "y").is_ok(),
        "the source of a read-only bind is read-only too"
    );
    let info = mounts_below(&sysroot.join("var/lib/app")).join("");
    assert!(info.contains("nosuid") && info.contains("noexec"), "{info}");
    assert!(log.undo().is_empty());
}

#[test]
fn a_missing_source_is_made_on_a_mounted_entry_with_owner_and_mode() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list = entries(
        r#"[{"mountPoint": "/persist", "fsType": "tmpfs"},
            {"mountPoint": "/var/lib/app", "device": "/persist/deep/app", "fsType": "none", "options": ["bind"],
             "create": {"mode": "0750", "uid": 12, "gid": 34}}]"#,
    );
    persist::apply(&sysroot, &list, &mut no_device, &mut MountLog::new()).unwrap();
    let meta = fs::metadata(sysroot.join("var/lib/app")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o750, 12, 34));
    assert_eq!(fs::metadata(sysroot.join("persist/deep")).unwrap().uid(), 0);
}

#[test]
fn a_source_that_would_be_made_in_ram_is_an_error() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list = entries(r#"[{"mountPoint": "/var/lib/app", "device": "/persist/app", "fsType": "none", "options": ["bind"]}]"#);
    let err = persist::apply(&sysroot, &list, &mut no_device, &mut MountLog::new()).unwrap_err();
    assert!(
        format!("{err:#}").contains("/persist/app does not exist and lies on no mounted entry"),
        "{err:#}"
    );
    assert!(!sysroot.join("persist").exists());
}

#[test]
fn a_missing_disk_never_becomes_an_empty_writable_folder() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list = entries(
        r#"[{"mountPoint": "/data", "device": "LABEL=gone", "fsType": "ext4", "options": ["nofail"]},
            {"mountPoint": "/data/more", "device": "LABEL=gone-too", "fsType": "ext4", "need": "degraded"},
            {"mountPoint": "/srv", "device": "/data/srv", "fsType": "none", "options": ["bind"], "need": "optional"},
            {"mountPoint": "/scratch", "fsType": "tmpfs"}]"#,
    );
    let mut log = MountLog::new();
    let outcomes = persist::apply(&sysroot, &list, &mut no_device, &mut log).unwrap();
    let missing: Vec<String> = outcomes
        .iter()
        .filter_map(|entry| match &entry.outcome {
            Outcome::Missing { reason } => Some(format!("{}: {reason}", entry.mount_point.display())),
            Outcome::Mounted => None,
        })
        .collect();
    assert_eq!(missing.len(), 3, "{missing:?}");
    assert!(
        missing[0].starts_with("/data: ") && missing[0].contains("«LABEL=gone»"),
        "{missing:?}"
    );
    for place in ["data", "srv"] {
        let info = mounts_below(&sysroot.join(place)).join("");
        assert!(info.contains(persist::MISSING), "{place}: {info}");
        assert!(!is_writable(&sysroot.join(place)), "{place} takes writes");
    }
    assert!(is_writable(&sysroot.join("scratch")));
    for (place, is_its_own) in [("data", false), ("data/more", false), ("srv", false), ("scratch", true)] {
        // A child is in this thread's name space.
        let mut check = Command::new(env!("CARGO_BIN_EXE_freshroot"));
        let output = check.arg("check-mount").arg(sysroot.join(place)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), is_its_own, "{place}: {said}");
        assert_eq!(said.contains("is missing"), !is_its_own, "{place}: {said}");
    }
    assert!(log.undo().is_empty());
}

#[test]
fn a_missing_required_disk_stops_the_boot_with_its_name() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list = entries(r#"[{"mountPoint": "/data", "device": "LABEL=gone", "fsType": "ext4"}]"#);
    let err = persist::apply(&sysroot, &list, &mut no_device, &mut MountLog::new()).unwrap_err();
    let text = format!("{err:#}");
    assert!(
        text.contains("/data") && text.contains("LABEL=gone") && text.contains("requires"),
        "{text}"
    );
}

#[test]
fn an_option_that_the_kernel_refuses_is_in_the_error_with_its_words() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let list = entries(r#"[{"mountPoint": "/data", "fsType": "tmpfs", "options": ["nonsense=1"]}]"#);
    let err = persist::apply(&sysroot, &list, &mut no_device, &mut MountLog::new()).unwrap_err();
    let text = format!("{err:#}");
    assert!(text.contains("nonsense") && text.contains("the kernel says"), "{text}");
}

#[test]
fn api_file_systems_are_mounted_once() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let root = bare_root(dir.path());
    let mut log = MountLog::new();
    freshroot::mount::api_fs::mount_api_file_systems(&root, &mut log).unwrap();
    assert!(root.join("proc/self/mountinfo").exists() && root.join("sys/kernel").exists() && root.join("dev/null").exists());
    assert_eq!(log.mounts().len(), 4);
    freshroot::mount::api_fs::mount_api_file_systems(&root, &mut log).unwrap();
    assert_eq!(log.mounts().len(), 4, "a second call mounted something again");
    assert!(log.undo().is_empty());
}

/// ISO 9660 is left to the boots: few kernels of build machines have it.
#[test]
fn a_medium_is_mounted_for_reading_alone_and_an_image_on_it_in_place() {
    let _alone = private_mounts();
    for mkfs in ["ext4", "squashfs"] {
        let dir = tempfile::tempdir().unwrap();
        let content = dir.path().join("content/freshroot/images");
        fs::create_dir_all(&content).unwrap();
        fs::copy(image(dir.path()), content.join("store.squashfs")).unwrap();
        let root = dir.path().join("content");
        let path = if mkfs == "ext4" {
            let path = disk(dir.path(), "disk", 16);
            run("mkfs.ext4", &["-q", "-d", root.to_str().unwrap(), path.to_str().unwrap()]);
            path
        } else {
            let path = dir.path().join("disk");
            run(
                "mksquashfs",
                &[root.to_str().unwrap(), path.to_str().unwrap(), "-quiet", "-no-progress"],
            );
            path
        };
        let before = fs::read(&path).unwrap();
        let device = attach(&path, LoopOptions::default());
        let at = dir.path().join("media");
        mount_medium(device.path(), mkfs, &at).unwrap();
        assert!(!is_writable(&at.join("freshroot")));
        let mount = mounts_below(&at).pop().unwrap();
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(mount.split([' ', ',']).any(|word| word == option), "{option}: {mount}");
        }
        let sysroot = dir.path().join("sysroot");
        let mut log = MountLog::new();
        system::mount_root(&sysroot, &"64M".parse().unwrap(), &mut log).unwrap();
        let image = File::open(at.join("freshroot/images/store.squashfs")).unwrap();
        system::mount_image(&sysroot, Path::new("/dev"), image.as_fd(), true, &mut log).unwrap();
        assert!(sysroot.join("nix/.ro-store/nix-path-registration").exists());
        drop((image, device));
        run("umount", &["-R", sysroot.to_str().unwrap()]);
        run("umount", &[at.to_str().unwrap()]);
        assert!(fs::read(&path).unwrap() == before, "the medium was changed");
        assert_no_loops_of(dir.path());
    }
    let dir = tempfile::tempdir().unwrap();
    let error = mount_medium(Path::new("/dev/null"), "ntfs", &dir.path().join("media")).unwrap_err();
    assert!(error.to_string().contains("holds ntfs"), "{error:#}");
}
