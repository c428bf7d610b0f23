//! Following links inside an image whose root is a store: `/nix/store/<x>` there is `/<x>`.
//!
//! libsquashfs does not follow links on its way down, and squashfs-ng resolves absolute ones against the image's root, where no `/nix/store` is.

use std::collections::VecDeque;

use anyhow::{Result, bail};

use crate::store_path::STORE;

/// As the kernel: more links on one path are taken for a loop.
const LINK_LIMIT: usize = 40;

/// What stands at a path of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder.
    Folder,
    /// A regular file; whether anybody may execute it.
    File {
        /// Any of the three execute bits.
        executable: bool,
    },
    /// A symbolic link and its target.
    Link(String),
    /// A device, a FIFO or a socket.
    Special,
}

/// Where a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Absolute path in the image, free of links.
    pub path: String,
    /// What is there; never a link.
    pub entry: Entry,
}

/// Follows `path` (absolute, in the image). `look` says what stands at a path whose parent is a folder, without following a link.
///
/// # Errors
/// A loop, a link that leads out of the store, or what `look` fails with. `Ok(None)`: nothing is there.
pub fn resolve(path: &str, mut look: impl FnMut(&str) -> Result<Option<Entry>>) -> Result<Option<Resolved>> {
    let mut todo: VecDeque<String> = components(path).collect();
    let mut done: Vec<String> = Vec::new();
    let mut here = Entry::Folder;
    let mut links = 0;
    while let Some(component) = todo.pop_front() {
        if here != Entry::Folder {
            return Ok(None);
        }
        if component == ".." {
            done.pop();
            continue;
        }
        done.push(component);
        let at = format!("/{}", done.join("/"));
        here = match look(&at)? {
            None => return Ok(None),
            Some(Entry::Link(target)) => {
                links += 1;
                if links > LINK_LIMIT {
                    bail!("{path} leads through more than {LINK_LIMIT} symbolic links: a loop");
                }
                done.pop();
                let rest = if target.starts_with('/') {
                    let Some(rest) = target.strip_prefix(STORE).filter(|rest| rest.starts_with('/')) else {
                        bail!("{at} is a symbolic link to {target}, which is not in the store and so not in the image");
                    };
                    done.clear();
                    rest
                } else {
                    &target
                };
                for component in components(rest).rev() {
                    todo.push_front(component);
                }
                Entry::Folder
            }
            Some(entry) => entry,
        };
    }
    Ok(Some(Resolved {
        path: format!("/{}", done.join("/")),
        entry: here,
    }))
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = String> + '_ {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(path: &str) -> Result<Option<Entry>> {
        let link = |target: &str| Some(Entry::Link(target.to_owned()));
        Ok(match path {
            "/a" | "/a/sub" | "/b" => Some(Entry::Folder),
            "/b/file" => Some(Entry::File { executable: true }),
            "/a/absolute" => link("/nix/store/b/file"),
            "/a/relative" => link("../b/file"),
            "/a/sub/up" => link("../../b/./file"),
            "/a/folder" => link("/nix/store/b"),
            "/a/dangling" => link("/nix/store/c/file"),
            "/a/out" => link("/etc/passwd"),
            "/a/beside" => link("/nix/storehouse/x"),
            "/a/loop" => link("loop"),
            _ => None,
        })
    }

    #[test]
    fn links_are_followed_as_if_the_image_were_mounted_at_the_store() {
        for (path, expected) in [
            ("/a/absolute", Some("/b/file")),
            ("/a/relative", Some("/b/file")),
            ("/a/sub/up", Some("/b/file")),
            ("/a/folder/file", Some("/b/file")),
            ("/a/folder", Some("/b")),
            ("/a/dangling", None),
            ("/b/file/more", None),
            ("/none", None),
            ("/", Some("/")),
        ] {
            let found = resolve(path, tree).unwrap().map(|found| found.path);
            assert_eq!(found.as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn what_leads_out_or_round_is_refused_by_name() {
        for (path, words) in [("/a/out", "/etc/passwd"), ("/a/beside", "/nix/storehouse/x"), ("/a/loop", "loop")] {
            let error = resolve(path, tree).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
