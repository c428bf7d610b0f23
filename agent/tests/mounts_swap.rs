//! Swap space, real devices and files, as root. The kernel has no name space for it: what is turned on here is a few MiB, and is turned off again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disks;
}

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use freshroot::boot::swap::Swaps;
use freshroot::mode::Mode;
use freshroot::report::Report;
use freshroot::settings::Settings;
use support::disks::{Disk, bare_root, private_mounts, run};

/// A line of `/proc/swaps`: kind, size, used, priority.
fn swap_at(path: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string("/proc/swaps").unwrap();
    let line = text.lines().find(|line| line.split_whitespace().next() == path.to_str())?;
    Some(line.split_whitespace().skip(1).map(str::to_owned).collect())
}

/// Turned off when dropped, whatever happens.
struct Off(Vec<PathBuf>);

impl Drop for Off {
    fn drop(&mut self) {
        for path in self.0.iter().filter(|path| swap_at(path).is_some()) {
            Command::new("swapoff").arg(path).status().unwrap();
        }
    }
}

/// A root whose devices are this machine's, and whose `/run` is its own. Links, and no mounts: the folder is removed at the end, with all that is in it.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("run")).unwrap();
    for folder in ["sys", "proc", "dev"] {
        symlink(Path::new("/").join(folder), root.join(folder)).unwrap();
    }
    root
}

fn swaps(json: serde_json::Value) -> Swaps {
    let file = serde_json::json!({"version": 1, "swapDevices": json}).to_string();
    let settings = Settings::from_sources(Some(("config.json", file.as_bytes())), b"").unwrap();
    Swaps::new(&settings, Mode::Standalone)
}

#[test]
fn swap_devices_are_turned_on_by_their_names_and_what_is_none_is_named() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let [swap, asleep, data, blank] = ["swap", "asleep", "data", "blank"].map(|name| Disk::new(dir.path(), name, 8));
    run("mkswap", &["-q", "-L", "two words", swap.name()]);
    run("mkswap", &["-q", "-L", "asleep", asleep.name()]);
    run(
        "sh",
        &[
            "-c",
            &format!(
                "printf 'S1SUSPEND\\0' | dd of={} bs=1 seek=4086 conv=notrunc status=none; sync",
                asleep.name()
            ),
        ],
    );
    run("mkfs.ext4", &["-q", "-L", "data", data.name()]);
    let sum = |disk: &Disk| run("sha256sum", &[disk.name()]);
    let before = [&asleep, &data, &blank].map(sum);

    let mut left = swaps(serde_json::json!({
        "/dev/disk/by-label/two\\x20words": {"priority": 7, "discardPolicy": "pages", "options": ["nofail"]},
        "LABEL=asleep": {},
        "LABEL=data": {},
        blank.name(): {},
        "LABEL=nowhere": {},
        "LABEL=never": {"options": ["noauto"]},
    }));
    let mut report = Report::new("boot");
    let _off = Off(vec![swap.path().to_owned(), asleep.path().to_owned()]);
    left.devices(&root, &mut report);
    let line = swap_at(swap.path()).unwrap_or_else(|| panic!("{:?}", report.warnings));
    assert_eq!((line[0].as_str(), line[3].as_str()), ("partition", "7"));
    let warnings = report.warnings.join("\n");
    for (name, word) in [
        ("LABEL=asleep", "holds a hibernated system, and is left alone"),
        ("LABEL=data", "holds no swap space"),
        (blank.name(), "holds no swap space"),
    ] {
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.contains(name) && warning.contains(word)),
            "{name}: {warnings}"
        );
    }
    assert_eq!(report.warnings.len(), 3, "{warnings}");
    assert_eq!([&asleep, &data, &blank].map(sum), before, "what is not turned on is not written");
    // What systemd looks for when the running system starts.
    let number = fs::metadata(swap.path()).unwrap().rdev();
    let record = format!("run/udev/data/b{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    assert_eq!(fs::read_to_string(root.join(record)).unwrap(), "S:disk/by-label/two\\x20words\n");

    // Once more, as after a failure: it is on already, and nothing is said twice.
    left.devices(&root, &mut report);
    swaps(serde_json::json!({"LABEL=two words": {}})).devices(&root, &mut report);
    assert_eq!(report.warnings.len(), 3, "{:?}", report.warnings);
}

#[test]
fn swap_files_on_mounted_disks_are_turned_on_and_the_kernels_refusals_are_told() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let sysroot = bare_root(dir.path());
    let ext4 = Disk::new(dir.path(), "ext4", 64);
    let btrfs = Disk::new(dir.path(), "btrfs", 128);
    run("mkfs.ext4", &["-q", ext4.name()]);
    run("mkfs.btrfs", &["-q", btrfs.name()]);
    for (disk, place) in [(&ext4, "data"), (&btrfs, "pool")] {
        let at = sysroot.join(place);
        fs::create_dir(&at).unwrap();
        run("mount", &[disk.name(), at.to_str().unwrap()]);
    }
    let file = |place: &str, bytes: usize| {
        let path = sysroot.join(place);
        fs::write(&path, vec![0; bytes]).unwrap();
        run("chmod", &["0600", path.to_str().unwrap()]);
        path
    };
    let good = file("data/swap file", 4 << 20);
    run("mkswap", &["-q", good.to_str().unwrap()]);
    let holes = sysroot.join("data/holes");
    fs::File::create(&holes).unwrap().set_len(4 << 20).unwrap();
    run("mkswap", &["-q", holes.to_str().unwrap()]);
    let plain = file("data/plain", 1 << 20);
    let copied = file("pool/copied", 4 << 20);
    run("mkswap", &["-q", copied.to_str().unwrap()]);
    fs::create_dir(sysroot.join("data/folder")).unwrap();
    run("sync", &[]);

    let mut left = swaps(serde_json::json!({
        "/data/swap file": {"options": ["pri=3"]},
        "/data/holes": {}, "/data/plain": {}, "/data/folder": {}, "/pool/copied": {}, "/data/nothing": {},
    }));
    let mut report = Report::new("boot");
    // As /proc/swaps has it.
    let shown = PathBuf::from(good.to_str().unwrap().replace(' ', "\\040"));
    left.files(&sysroot, &mut report);
    let line = swap_at(&shown);
    run("swapoff", &[good.to_str().unwrap()]);
    let line = line.unwrap_or_else(|| panic!("{:?}", report.warnings));
    assert_eq!((line[0].as_str(), line[3].as_str()), ("file", "3"));
    for (name, word) in [
        // In the kernel's words, which change from version to version.
        ("/data/holes", "Invalid argument (os error 22); the kernel says:"),
        ("/data/plain", "mkswap"),
        ("/data/folder", "is no file"),
        ("/pool/copied", "copy-on-write"),
    ] {
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.contains(name) && warning.contains(word)),
            "{name}: {:?}",
            report.warnings
        );
    }
    assert_eq!(report.warnings.len(), 4);
    assert_eq!(fs::read(&plain).unwrap(), vec![0; 1 << 20]);
    run("umount", &["-R", sysroot.to_str().unwrap()]);
}
