//! Real block devices: loop devices, found by what is on them and by the kernel's uevents. Needs root, losetup, sfdisk and the tools of the file
//! systems.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use freshroot::device::probe::Kind;
use freshroot::device::{BlockDevice, DeviceName, FindError, Match, Progress, observe, resolve, wait_for};
use freshroot::uevent::{Received, Socket, Source};

/// What the command prints; a sentence about what is missing if it fails.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("these tests need {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "these tests need root and loop devices; {program} {arguments:?} said: {errors}"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A file that can be plugged in as a disk. Unplugged when dropped.
struct Disk {
    file: tempfile::NamedTempFile,
    device: Option<String>,
}

impl Disk {
    fn new(mib: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        Self { file, device: None }
    }

    /// A disk with an ext4 of this label.
    fn ext4(label: &str) -> Self {
        let disk = Self::new(8);
        run("mkfs.ext4", &["-q", "-L", label, disk.file()]);
        disk
    }

    fn file(&self) -> &str {
        self.file.path().to_str().unwrap()
    }

    /// Its device's path.
    fn plug(&mut self) -> PathBuf {
        let device = run("losetup", &["--find", "--show", "--partscan", self.file()]);
        self.device = Some(device.clone());
        PathBuf::from(device)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let detached = Command::new("losetup").args(["--detach", device]).status();
            assert!(
                detached.is_ok_and(|status| status.success()) || thread::panicking(),
                "{device} is left behind"
            );
        }
    }
}

/// A label that no other test and no disk of this machine has.
fn label(what: &str) -> String {
    format!("{what}-{}", std::process::id())
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

fn look() -> Vec<BlockDevice> {
    observe(Path::new("/")).unwrap()
}

/// Paths of what the name means.
fn found(text: &str) -> Vec<PathBuf> {
    match resolve(&name(text), &look()) {
        Match::None => Vec::new(),
        Match::One(device) | Match::Conflict(device) => vec![device.path],
        Match::Ambiguous(devices) => devices.into_iter().map(|device| device.path).collect(),
    }
}

fn wait(events: &mut Socket, text: &str, limit: Duration) -> Result<BlockDevice, FindError> {
    wait_for(Path::new("/"), &name(text), Instant::now() + limit, events, &mut |_| {})
}

#[test]
fn a_disk_is_found_by_label_uuid_and_path() {
    let label = label("one");
    let mut disk = Disk::ext4(&label);
    let path = disk.plug();
    let uuid = run("blkid", &["-p", "-s", "UUID", "-o", "value", disk.file()]);
    for text in [
        format!("LABEL={label}"),
        format!("UUID={}", uuid.to_uppercase()),
        format!("/dev/disk/by-uuid/{uuid}"),
        path.display().to_string(),
    ] {
        assert_eq!(found(&text), [path.as_path()], "{text}");
    }
    let device = look().into_iter().find(|device| device.path == path).unwrap();
    assert_eq!((device.size, device.read_only, device.partitioned), (8 << 20, false, false));
    assert_eq!(device.content.signature().map(|signature| signature.kind), Some(Kind::Ext4));
}

#[test]
fn partitions_are_found_by_what_either_table_calls_them() {
    for (kind, extra) in [("gpt", ", name=\"my data\""), ("dos", "")] {
        let mut disk = Disk::new(16);
        let mut sfdisk = Command::new("sfdisk")
            .args(["--quiet", disk.file()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("these tests need sfdisk");
        let script = format!("label: {kind}\nstart=2048, size=4096\nstart=8192, size=8192{extra}\n");
        sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        let path = disk.plug();
        // A kernel may be built without the formats of partition tables; then it is told.
        run("partx", &["--update", path.to_str().unwrap()]);
        let second = PathBuf::from(format!("{}p2", path.display()));
        let label = label(kind);
        run("mkfs.ext4", &["-q", "-L", &label, second.to_str().unwrap()]);
        let uuid = run("blkid", &["-p", "-s", "PART_ENTRY_UUID", "-o", "value", second.to_str().unwrap()]);
        assert_eq!(found(&format!("PARTUUID={uuid}")), [second.as_path()], "{kind}");
        assert_eq!(found(&format!("LABEL={label}")), [second.as_path()], "{kind}");
        let devices = look();
        let at = |path: &Path| devices.iter().find(|device| device.path == path).unwrap();
        let (whole, part) = (at(&path), at(&second));
        assert!(whole.partitioned && whole.partition.is_none());
        let partition = part.partition.as_ref().unwrap();
        assert_eq!(
            (partition.number, partition.disk.as_str(), part.size),
            (2, whole.name.as_str(), 4 << 20)
        );
        assert_eq!(partition.label.as_deref(), (kind == "gpt").then_some("my data"));
    }
}

#[test]
fn two_disks_with_one_label_are_refused_and_both_are_named() {
    let label = label("two");
    let (mut first, mut second) = (Disk::ext4(&label), Disk::ext4(&label));
    let (first, second) = (first.plug(), second.plug());
    let mut events = Socket::open().unwrap();
    let begin = Instant::now();
    let error = wait(&mut events, &format!("LABEL={label}"), Duration::from_secs(60)).unwrap_err();
    assert!(matches!(error, FindError::Ambiguous { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(first.to_str().unwrap()) && text.contains(second.to_str().unwrap()),
        "{text}"
    );
    assert!(begin.elapsed() < Duration::from_secs(30), "it waited in vain");
}

#[test]
fn a_late_disk_is_found_by_its_event_long_before_the_deadline() {
    let label = label("late");
    let mut disk = Disk::ext4(&label);
    let mut events = Socket::open().unwrap();
    let (looked, first_look) = mpsc::channel();
    let text = format!("LABEL={label}");
    let waiting = thread::spawn(move || {
        let mut progress = |progress: Progress<'_>| {
            if matches!(progress, Progress::Looked(_)) {
                looked.send(()).expect("nobody is there for the later looks");
            }
        };
        let found = wait_for(
            Path::new("/"),
            &name(&text),
            Instant::now() + Duration::from_secs(60),
            &mut events,
            &mut progress,
        );
        (found, Instant::now())
    });
    // The receiver stays for the later looks.
    first_look.recv().expect("there was no first look");
    let path = disk.plug();
    let plugged = Instant::now();
    let (device, at) = waiting.join().unwrap();
    assert_eq!(
        device
            .expect("no uevent came: does this network namespace belong to the initial user namespace?")
            .path,
        path
    );
    // losetup ends after the event was sent, so this may well be zero. The figure is a matter of the machine, the limit is not.
    let late = at.saturating_duration_since(plugged);
    println!("found {late:?} after losetup had ended");
    assert!(late < Duration::from_secs(10), "found {late:?} late");
}

#[test]
fn at_the_deadline_the_disks_that_are_there_are_named() {
    let label = label("other");
    let mut disk = Disk::ext4(&label);
    let path = disk.plug();
    let mut events = Socket::open().unwrap();
    let begin = Instant::now();
    let error = wait(&mut events, "LABEL=there-is-none", Duration::from_millis(300))
        .unwrap_err()
        .to_string();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(error.contains(&format!("{} (8 MiB, ext4 LABEL={label}", path.display())), "{error}");
}

#[test]
fn the_kernels_own_events_name_the_device() {
    let mut events = Socket::open().unwrap();
    let mut disk = Disk::new(1);
    let path = disk.plug();
    let device = path.file_name().unwrap().to_str().unwrap().to_owned();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match events.next(deadline).unwrap() {
            Received::Event(event) if event.device() == device => {
                assert_eq!(
                    (event.get("SUBSYSTEM"), event.get("DEVNAME"), event.is_block_news()),
                    (Some("block"), Some(device.as_str()), true)
                );
                return;
            }
            Received::Event(_) | Received::Overrun => {}
            Received::Deadline => panic!("no uevent of {device}: does this network namespace belong to the initial user namespace?"),
        }
    }
}
