//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as far as the hand-over needs it: where something is mounted.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The mount points of a mountinfo text, unescaped, each once. Lines that have none are passed over.
pub fn mount_points(text: &[u8]) -> BTreeSet<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let fields = text
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    fields
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .collect()
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
    fn mount_points_are_unescaped_and_counted_once() {
        let text =
            b"1 0 0:2 / / rw - rootfs rootfs rw\n22 1 0:20 / /a\\040b\\134 rw,x - tmpfs x rw\n23 1 0:20 / / rw - tmpfs x rw\nshort\n";
        assert_eq!(
            mount_points(text).into_iter().collect::<Vec<_>>(),
            [PathBuf::from("/"), "/a b\\".into()]
        );
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
