//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as far as it is needed here: where something is mounted, and what.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    /// Its type, as the kernel names it.
    pub fs_type: String,
    /// Its device, or the name that it was given.
    pub source: String,
}

/// What is seen at `point`: of several mounts there the last one, which lies on top. None if nothing is mounted exactly there.
pub fn mounted_at(text: &[u8], point: &Path) -> Option<Mount> {
    all(text).filter(|mount| mount.point == point).last()
}

/// All mounts.
pub fn all(text: &[u8]) -> impl Iterator<Item = Mount> + '_ {
    text.split(|&byte| byte == b'\n').filter_map(mount)
}

/// The first mount of all of the file system on the device of this number.
pub fn whole_mount(text: &[u8], (major, minor): (u32, u32)) -> Option<PathBuf> {
    let number = format!("{major}:{minor}");
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let whole = fields.next()? == number.as_bytes() && fields.next()? == b"/";
        let point = path(fields.next()?);
        whole.then_some(point)
    })
}

/// A line: six fields, any number of optional ones, a hyphen, then type, source and options.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let point = path(fields.nth(4)?);
    fields.find(|field| *field == b"-")?;
    let mut word = || Some(String::from_utf8_lossy(&unescape(fields.next()?)).into_owned());
    Some(Mount {
        point,
        fs_type: word()?,
        source: word()?,
    })
}

fn path(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    PathBuf::from(std::ffi::OsString::from_vec(unescape(field)))
}

/// The mount points of a mountinfo text, unescaped, each once. Lines that have none are passed over.
pub fn mount_points(text: &[u8]) -> BTreeSet<PathBuf> {
    let fields = text
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    fields.map(path).collect()
}

/// Of `points`, those to detach when `sysroot` becomes the root: outside of it and not leading to it, each without what lies below it.
pub fn outside_of(sysroot: &Path, points: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let mut outside: Vec<PathBuf> = Vec::new();
    // A set of paths is sorted by component, so that a parent comes before what lies below it.
    for point in points {
        let leads_to_root = sysroot.starts_with(point) || point.starts_with(sysroot);
        let below_another = outside.last().is_some_and(|last| point.starts_with(last));
        if !leads_to_root && !below_another {
            outside.push(point.clone());
        }
    }
    outside
}

/// The kernel writes blank, tab, newline, backslash (and `#`) as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_where_all_of_it_is_mounted() {
        let text = b"20 1 8:1 /folder /bound rw - ext4 /dev/sda1 rw\n21 1 8:1 / /run/a\\040b rw - ext4 /dev/sda1 rw\n22 1 8:11 / /c rw - xfs /dev/sdb rw\n";
        assert_eq!(whole_mount(text, (8, 1)), Some("/run/a b".into()));
        assert_eq!(whole_mount(text, (8, 11)), Some("/c".into()));
        assert_eq!(whole_mount(text, (8, 2)), None);
    }

    #[test]
    fn mount_points_are_unescaped_and_counted_once() {
        let text =
            b"1 0 0:2 / / rw - rootfs rootfs rw\n22 1 0:20 / /a\\040b\\134 rw,x - tmpfs x rw\n23 1 0:20 / / rw - tmpfs x rw\nshort\n";
        assert_eq!(
            mount_points(text).into_iter().collect::<Vec<_>>(),
            [PathBuf::from("/"), "/a b\\".into()]
        );
    }

    #[test]
    fn the_last_mount_at_a_point_is_the_one_that_is_seen() {
        let text = b"20 1 8:1 / /data rw,noatime shared:1 master:2 - ext4 /dev/sda1 rw\n\
            21 20 0:30 / /data ro - tmpfs freshroot-missing ro\n\
            22 1 8:2 / /data/a\\040b rw - xfs /dev/mapper/a\\040b rw\n\
            23 1 8:3 / /short rw -\nshort\n";
        let seen = |point: &str| mounted_at(text, Path::new(point)).map(|mount| (mount.fs_type, mount.source));
        let words = |fs_type: &str, source: &str| Some((fs_type.to_owned(), source.to_owned()));
        assert_eq!(
            seen("/data/"),
            words("tmpfs", "freshroot-missing"),
            "a slash at the end is the same place"
        );
        assert_eq!(seen("/data/a b"), words("xfs", "/dev/mapper/a b"));
        for nothing in ["/data/a", "/", "/short", "data"] {
            assert_eq!(seen(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn what_lies_outside_the_new_root_is_detached_once() {
        let points: BTreeSet<PathBuf> = [
            "/",
            "/dev",
            "/dev/pts",
            "/dev-x",
            "/run",
            "/run/freshroot/cache",
            "/mnt",
            "/mnt/root",
            "/mnt/root/proc",
            "/mnt/other",
        ]
        .iter()
        .map(PathBuf::from)
        .collect();
        let expected: Vec<PathBuf> = ["/dev", "/dev-x", "/mnt/other", "/run"].iter().map(PathBuf::from).collect();
        assert_eq!(outside_of(Path::new("/mnt/root"), &points), expected);
    }
}
