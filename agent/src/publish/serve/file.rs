//! From a request's path to an open file below the served folder, with its entity tag and its type.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::digest::{Digest, Hasher};

/// A file that is about to be served.
#[derive(Debug)]
pub struct Found {
    /// Open for reading: what is answered is this file, even if its name is replaced meanwhile.
    pub file: File,
    /// Bytes.
    pub size: u64,
    /// Strong entity tag, with its quotes.
    pub etag: String,
    /// Value of `Content-Type`.
    pub content_type: &'static str,
    /// Whether the file's name promises that its bytes never change.
    pub immutable: bool,
}

/// Turns the path of a request into a path below the served folder. `None` is a 404: a component that begins with a dot (`..` and temporary names do), a
/// slash at the end, a bad `%` escape or a NUL. Several slashes are one, as in other servers: a base URL may end with its own.
pub fn relative(path: &str) -> Option<String> {
    let decoded = decode(path.strip_prefix('/')?)?;
    let proper = |part: &str| !part.starts_with('.') && !part.contains('\0');
    if decoded.ends_with('/') || !decoded.split('/').all(proper) {
        return None;
    }
    let parts: Vec<_> = decoded.split('/').filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

/// Opens `path` (as [`relative`] made it) below `root`. `Ok(None)` is a 404: it is not there, not a regular file, or a symbolic link leads out of `root`.
pub fn open(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<Found>> {
    // NONBLOCK: opening a FIFO would otherwise wait for a writer. BENEATH (Linux 5.6): the kernel refuses what leads out.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => return Ok(None),
        Err(rustix::io::Errno::NAMETOOLONG | rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let named = digest_of_name(path);
    let etag = match named {
        Some(digest) => format!("\"{digest}\""),
        None => {
            let mut hasher = Hasher::new();
            for value in [metadata.mtime(), metadata.mtime_nsec()] {
                hasher.update(&value.to_le_bytes());
            }
            for value in [metadata.size(), metadata.ino()] {
                hasher.update(&value.to_le_bytes());
            }
            format!("\"{}\"", &hasher.finish().to_string()[..32])
        }
    };
    let size = metadata.size();
    Ok(Some(Found {
        file,
        size,
        etag,
        content_type: content_type(path),
        immutable: named.is_some(),
    }))
}

/// The digest of a file's bytes, where its name says it. A chunk index is named by its image, not by itself.
fn digest_of_name(path: &str) -> Option<Digest> {
    let (folder, name) = path.split_once('/')?;
    let stem = match folder {
        "images" => name.strip_suffix(".squashfs")?,
        "manifests" => name.strip_suffix(".json")?,
        "kernels" | "initrds" => name,
        _ => return None,
    };
    stem.parse().ok()
}

fn content_type(path: &str) -> &'static str {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => "application/json",
        Some("ipxe" | "txt") => "text/plain; charset=utf-8",
        Some("squashfs") => "application/vnd.squashfs",
        _ if name == "kexec-boot" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_plain_paths_are_looked_up() {
        for (path, expected) in [
            ("/channels/x.json", Some("channels/x.json")),
            ("/a%20b", Some("a b")),
            ("/a%2Fb", Some("a/b")),
            ("/", None),
            ("", None),
            ("channels", None),
            ("/images/", None),
            ("//etc//passwd", Some("etc/passwd")),
            ("/../etc/passwd", None),
            ("/images/../../etc/passwd", None),
            ("/%2e%2e/etc/passwd", None),
            ("/images/..%2f..%2fetc%2fpasswd", None),
            ("/.freshroot-new", None),
            ("/a%0", None),
            ("/a%+1", None),
            ("/a%zz", None),
            ("/a%00", None),
            ("/a%ff", None),
        ] {
            assert_eq!(relative(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_link_inside_is_followed_and_one_that_leads_out_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(folder.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("here"), "h").unwrap();
        std::os::unix::fs::symlink("here", root.join("inside")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let handle = File::open(&root).unwrap();
        for (name, there) in [
            ("here", true),
            ("inside", true),
            ("out", false),
            ("absolute", false),
            ("loop", false),
            ("none", false),
            ("here/x", false),
        ] {
            assert_eq!(open(handle.as_fd(), name).unwrap().is_some(), there, "{name}");
        }
    }

    #[test]
    fn the_tag_of_a_digest_named_file_is_its_digest_and_that_of_another_changes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"x");
        std::fs::create_dir(folder.path().join("images")).unwrap();
        for extension in ["squashfs", "chunks"] {
            std::fs::write(folder.path().join(format!("images/{digest}.{extension}")), "x").unwrap();
        }
        let root = File::open(folder.path()).unwrap();
        let image = open(root.as_fd(), &format!("images/{digest}.squashfs")).unwrap().unwrap();
        assert_eq!((image.etag, image.immutable), (format!("\"{digest}\""), true));
        let index = open(root.as_fd(), &format!("images/{digest}.chunks")).unwrap().unwrap();
        assert!(!index.etag.contains(&digest.to_string()) && !index.immutable);
        std::fs::write(folder.path().join(format!("images/{digest}.chunks")), "xy").unwrap();
        let changed = open(root.as_fd(), &format!("images/{digest}.chunks")).unwrap().unwrap();
        assert_ne!(changed.etag, index.etag);
    }
}
