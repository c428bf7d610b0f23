//! The order in which entries are mounted: parents first, sources of binds first, what is named in `depends` first.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::mode::Mode;
use crate::mount::entry::{FileSystemEntry, MountEntry, RefusedEntry};

/// Why a list of entries has no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
    /// One of them cannot be mounted.
    Refused(RefusedEntry),
    /// Two have one mount point.
    Duplicate(PathBuf),
    /// Each of these needs the next, and the last the first.
    Cycle(Vec<PathBuf>),
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => refused.fmt(f),
            Self::Duplicate(path) => write!(f, "two file system entries have the mount point {}: remove one", path.display()),
            Self::Cycle(path) => {
                let names: Vec<String> = path.iter().chain(path.first()).map(|path| path.display().to_string()).collect();
                write!(
                    f,
                    "file system entries need one another in a circle: {}; change «depends» or the source of a bind",
                    names.join(" needs ")
                )
            }
        }
    }
}

impl std::error::Error for OrderError {}

/// Validates entries and puts them into the order in which they can be mounted. The same entries always give the same order.
pub fn order(entries: &[FileSystemEntry], mode: Mode) -> Result<Vec<MountEntry>, OrderError> {
    let mut waiting = BTreeMap::new();
    for entry in entries {
        let entry = MountEntry::validate(entry, mode).map_err(OrderError::Refused)?;
        let mount_point = entry.mount_point().to_owned();
        if waiting.insert(mount_point.clone(), entry).is_some() {
            return Err(OrderError::Duplicate(mount_point));
        }
    }
    let mut needs: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for (mount_point, entry) in &waiting {
        needs.insert(mount_point.clone(), needed_by(entry, &waiting));
    }
    let mut ordered = Vec::with_capacity(waiting.len());
    loop {
        let ready = needs
            .iter()
            .find(|(_, needed)| needed.iter().all(|path| !waiting.contains_key(path)));
        let Some(next) = ready.map(|(path, _)| path.clone()) else {
            break;
        };
        needs.remove(&next);
        ordered.extend(waiting.remove(&next));
    }
    if waiting.is_empty() {
        Ok(ordered)
    } else {
        Err(OrderError::Cycle(cycle_in(&needs)))
    }
}

/// Mount points of the entries that must be mounted before `entry`.
fn needed_by(entry: &MountEntry, all: &BTreeMap<PathBuf, MountEntry>) -> BTreeSet<PathBuf> {
    let own = entry.mount_point();
    let places = entry.depends().iter().map(PathBuf::as_path).chain(entry.sources()).chain([own]);
    let ancestors = places.flat_map(Path::ancestors);
    ancestors
        .filter(|path| *path != own && all.contains_key(*path))
        .map(Path::to_owned)
        .collect()
}

/// One circle among entries none of which is ready: each of them needs another, so that following the first need of each must come back.
fn cycle_in(needs: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> = Vec::new();
    let mut at = needs.keys().next();
    while let Some(here) = at {
        if let Some(start) = path.iter().position(|seen| seen == here) {
            return path.split_off(start);
        }
        path.push(here.clone());
        at = needs
            .get(here)
            .and_then(|needed| needed.iter().find(|path| needs.contains_key(*path)));
    }
    path
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn tmpfs(mount_point: &str, depends: &[&str]) -> FileSystemEntry {
        FileSystemEntry {
            mount_point: mount_point.to_owned(),
            device: None,
            fs_type: "tmpfs".to_owned(),
            options: Vec::new(),
            depends: depends.iter().map(|&path| path.to_owned()).collect(),
            need: None,
            timeout: None,
            create: None,
            no_check: false,
        }
    }

    fn bind(source: &str, mount_point: &str) -> FileSystemEntry {
        FileSystemEntry {
            device: Some(source.to_owned()),
            fs_type: "none".to_owned(),
            options: vec!["bind".to_owned()],
            ..tmpfs(mount_point, &[])
        }
    }

    fn overlay(lower: &str, upper: &str, mount_point: &str) -> FileSystemEntry {
        FileSystemEntry {
            device: Some("overlay".to_owned()),
            fs_type: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={lower}"),
                format!("upperdir=/sysroot{upper}/up"),
                format!("workdir=/sysroot{upper}/work"),
            ],
            ..tmpfs(mount_point, &[])
        }
    }

    fn names(entries: &[FileSystemEntry]) -> Vec<String> {
        order(entries, Mode::Standalone)
            .unwrap()
            .iter()
            .map(|entry| entry.mount_point().display().to_string())
            .collect()
    }

    #[test]
    fn parents_sources_and_dependencies_come_first() {
        for (entries, expected) in [
            (vec![tmpfs("/a/b", &[]), tmpfs("/a", &[])], vec!["/a", "/a/b"]),
            (vec![bind("/persist/x", "/a"), tmpfs("/persist", &[])], vec!["/persist", "/a"]),
            (vec![bind("/z", "/a"), tmpfs("/z", &[])], vec!["/z", "/a"]),
            (vec![tmpfs("/a", &["/b/c"]), tmpfs("/b", &[])], vec!["/b", "/a"]),
            (vec![tmpfs("/ab", &[]), tmpfs("/a", &["/ab"])], vec!["/ab", "/a"]),
            (
                vec![overlay("/y:/z/1", "/x", "/a"), tmpfs("/x", &[]), tmpfs("/y", &[]), tmpfs("/z", &[])],
                vec!["/x", "/y", "/z", "/a"],
            ),
            (vec![bind("/a", "/a")], vec!["/a"]),
            (vec![bind("/a/b", "/a")], vec!["/a"]),
            (
                vec![bind("/y/1", "/x"), bind("/z/1", "/y"), tmpfs("/z", &[])],
                vec!["/z", "/y", "/x"],
            ),
            (vec![], vec![]),
        ] {
            assert_eq!(names(&entries), expected);
        }
    }

    #[test]
    fn a_circle_is_refused_with_the_names_in_it() {
        let entries = [
            tmpfs("/lonely", &[]),
            bind("/b/x", "/a"),
            bind("/a/x", "/b"),
            tmpfs("/a/behind", &[]),
        ];
        let err = order(&entries, Mode::Standalone).unwrap_err();
        assert!(matches!(&err, OrderError::Cycle(path) if path.len() == 2), "{err}");
        assert!(err.to_string().contains("/a needs /b needs /a"), "{err}");
    }

    #[test]
    fn one_mount_point_twice_is_refused_even_if_written_differently() {
        let err = order(&[tmpfs("/a/", &[]), tmpfs("//a", &[])], Mode::Standalone).unwrap_err();
        assert_eq!(err, OrderError::Duplicate("/a".into()));
    }

    fn path() -> impl Strategy<Value = String> {
        proptest::collection::vec("[abc]", 1..4).prop_map(|parts| format!("/{}", parts.join("/")))
    }

    proptest! {
        #[test]
        fn the_order_has_parents_and_sources_first(
            places in proptest::collection::btree_set(path(), 1..12),
            sources in proptest::collection::vec(proptest::option::of(path()), 12),
            depends in proptest::collection::vec(proptest::option::weighted(0.2, path()), 12),
        ) {
            let entries: Vec<FileSystemEntry> = places.iter().zip(&sources).zip(&depends).map(|((place, source), depends)| {
                let mut entry = match source {
                    Some(source) => bind(source, place),
                    None => tmpfs(place, &[]),
                };
                entry.depends.extend(depends.clone());
                entry
            }).collect();
            match order(&entries, Mode::Standalone) {
                Ok(ordered) => {
                    prop_assert_eq!(ordered.len(), entries.len());
                    for (at, entry) in ordered.iter().enumerate() {
                        for later in &ordered[at + 1..] {
                            prop_assert!(!entry.mount_point().starts_with(later.mount_point()));
                            for source in entry.sources() {
                                prop_assert!(!source.starts_with(later.mount_point()));
                            }
                            for path in entry.depends() {
                                prop_assert!(!path.starts_with(later.mount_point()));
                            }
                        }
                    }
                }
                Err(OrderError::Cycle(circle)) => prop_assert!(circle.len() > 1),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
