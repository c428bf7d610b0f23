//! Texts of the kernel's, and our own report.

use std::path::Path;

use freshroot::handover::mountinfo::{mount_points, mounted_at, outside_of};
use freshroot::report::Report;
use freshroot::uevent;

use crate::Target;
use crate::input::told;

/// A uevent of the kernel's or of udev's, and once more as a table of mounts.
pub const UEVENT: Target = Target {
    name: "uevent",
    longest: 4096,
    memory: 256,
    check: uevents,
};

/// The report of a boot, which a running system reads.
pub const REPORT: Target = Target {
    name: "report",
    longest: 4096,
    memory: 512,
    check: report,
};

fn uevents(input: &[u8]) {
    if let Some(event) = uevent::parse(input) {
        assert!(!event.action.is_empty() && !event.action.contains('@') && event.devpath.starts_with('/'));
        assert!(!event.device().contains('/') && event.devpath.ends_with(event.device()));
        assert!(event.new_modalias().is_none() || event.action == "add");
        // Written anew it is the same; a property that stands twice is the first one's.
        let mut written = format!("{}@{}", event.action, event.devpath);
        let fields = String::from_utf8_lossy(input).into_owned();
        for field in fields.split('\0').skip(1).filter(|field| field.contains('=')) {
            written.push('\0');
            written.push_str(field);
            let (key, _) = field.split_once('=').unwrap();
            assert!(event.get(key).is_some());
        }
        assert_eq!(uevent::parse(written.as_bytes()).as_ref(), Some(&event));
    }
    if let Some(event) = uevent::parse_udev(input) {
        assert_eq!(uevent::parse(input), None, "a message of both");
        assert!(!event.action.is_empty() && event.devpath.starts_with('/'));
        assert_eq!(
            (event.get("ACTION"), event.get("DEVPATH")),
            (Some(event.action.as_str()), Some(event.devpath.as_str()))
        );
    }
    mounts(input);
}

fn mounts(input: &[u8]) {
    let points = mount_points(input);
    // As the kernel escapes them they are read back.
    let line = |path: &Path| {
        let mut line = b"1 1 0:1 / ".to_vec();
        for byte in std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => line.extend(format!("\\{byte:03o}").bytes()),
                byte => line.push(*byte),
            }
        }
        line.extend(b" rw - t s rw\n");
        line
    };
    let written: Vec<u8> = points.iter().flat_map(|path| line(path)).collect();
    assert_eq!(mount_points(&written), points);
    // Whole lines are mounts, and what is seen at a point is one of them.
    for point in &points {
        if let Some(mount) = mounted_at(input, point) {
            assert_eq!(mount.point, *point);
        }
        let mount = mounted_at(&written, point).unwrap();
        assert_eq!((mount.fs_type.as_str(), mount.source.as_str()), ("t", "s"));
    }
    let sysroot = Path::new("/sysroot");
    let outside = outside_of(sysroot, &points);
    for (at, path) in outside.iter().enumerate() {
        assert!(points.contains(path) && !path.starts_with(sysroot) && !sysroot.starts_with(path));
        assert!(
            outside[..at].iter().all(|other| !path.starts_with(other)),
            "{} is detached twice",
            path.display()
        );
    }
    for path in points
        .iter()
        .filter(|path| !path.starts_with(sysroot) && !sysroot.starts_with(path))
    {
        assert!(outside.iter().any(|other| path.starts_with(other)), "{} stays", path.display());
    }
}

fn report(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let report = match Report::parse(&text) {
        Ok(report) => report,
        Err(why) => return told(format!("{why:#}")),
    };
    let written = String::from_utf8(report.to_json().unwrap()).unwrap();
    assert_eq!(Report::parse(&written).unwrap(), report);
    assert!(!report.to_string().is_empty());
}
