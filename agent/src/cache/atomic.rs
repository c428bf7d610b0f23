//! Files that are there whole or not at all: temporary name → fsync → rename → fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// What a file is called until it is whole.
pub const NEW: &str = ".new";

/// Writes `bytes` to `folder`/`name`, replacing what was there.
///
/// # Errors
/// Of any step; what was there is then untouched.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = folder.join(format!("{name}{NEW}"));
    let writing = || format!("writing {}", temporary.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(writing)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(writing)
        .and_then(|()| rename(&temporary, &folder.join(name)));
    if written.is_err() {
        clean_up(&temporary);
    }
    written
}

/// Removes what a failed step leaves, so that a full disk does not stay fuller for it. The failure itself is what is told.
pub(super) fn clean_up(path: &Path) {
    if let Err(error) = remove(path) {
        log::warn!("{error:#}");
    }
}

/// Renames within one file system, and makes the new name last.
///
/// # Errors
/// Of the rename or of the fsync.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    for folder in [to.parent(), from.parent().filter(|folder| Some(*folder) != to.parent())]
        .into_iter()
        .flatten()
    {
        sync_folder(folder)?;
    }
    Ok(())
}

/// Makes the names in a folder last.
///
/// # Errors
/// If the folder cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("synchronising the folder {}", folder.display()))
}

/// The names in a folder, sorted; none if it is not there.
///
/// # Errors
/// If the folder is there and cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading the folder {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(reading),
    };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.with_context(reading)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a file; one that is not there is as good as removed. Says whether it was there.
///
/// # Errors
/// If it is there and stays.
pub fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

/// Removes what an interrupted [`write`] left in `folder`, and returns the paths.
///
/// # Errors
/// If the folder cannot be read or a leftover stays.
pub fn remove_leftovers(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for name in names(folder)?.iter().filter(|name| name.ends_with(NEW)) {
        let path = folder.join(name);
        if remove(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.json", b"one").unwrap();
        write(folder.path(), "a.json", b"two").unwrap();
        fs::write(folder.path().join("b.json.new"), b"torn").unwrap();
        assert_eq!(remove_leftovers(folder.path()).unwrap(), [folder.path().join("b.json.new")]);
        assert_eq!(names(folder.path()).unwrap(), ["a.json"]);
        assert_eq!(fs::read(folder.path().join("a.json")).unwrap(), b"two");
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a.json.new")).unwrap();
        fs::write(folder.path().join("a.json"), b"old").unwrap();
        assert!(write(folder.path(), "a.json", b"new").is_err());
        assert_eq!(fs::read(folder.path().join("a.json")).unwrap(), b"old");
    }
}
