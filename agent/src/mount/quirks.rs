//! What differs from kernel to kernel, and from file system to file system. Each difference says since when, and why it matters.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::mount::below::fd_path;
use crate::mount::fs_context::{DetachedMount, FsContext, FsError};
use crate::mount::options::{Attributes, FsOption};
use crate::mount::size::TmpfsSize;

/// `fsconfig` takes strings below this length (`strndup_user(value, 256)` in `fs/fsopen.c`, Linux 5.2 to today).
const MAX_VALUE: usize = 255;

/// No device files and no set-id programs: neither belongs into a Nix store.
pub const STORE_ATTRIBUTES: Attributes = Attributes {
    no_suid: true,
    no_dev: true,
    read_only: false,
    no_exec: false,
    no_dir_atime: false,
    no_symfollow: false,
    access_time: None,
};

/// A squashfs, with a decompressor per CPU where the kernel has one.
///
/// `threads=multi` came with Linux 6.2. Before it, and in kernels built for a single decompressor, the option is EINVAL; the mount is
/// then the same, only slower to read from several CPUs.
pub fn mount_squashfs(device: &str) -> Result<DetachedMount, FsError> {
    let context = FsContext::open("squashfs", device)?;
    context.set_flag("ro")?;
    match context.set_string("threads", "multi") {
        Ok(()) => {}
        Err(err) if err.errno == Errno::INVAL => log::debug!("reading the image with one decompressor: {err}"),
        Err(err) => return Err(err),
    }
    context.mount(Attributes {
        read_only: true,
        ..STORE_ATTRIBUTES
    })
}

/// A tmpfs. `mode` is the mode of its root folder; its options are the same in all kernels that have the mount API.
pub fn mount_tmpfs(name: &str, size: &TmpfsSize, mode: u32, attributes: Attributes) -> Result<DetachedMount, FsError> {
    let context = FsContext::open("tmpfs", name)?;
    context.set_string("size", &size.to_string())?;
    context.set_string("mode", &format!("{mode:04o}"))?;
    context.mount(attributes)
}

/// A folder that an overlay is made of: where it is, and a descriptor of it.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Its path, as mountinfo is to show it.
    pub path: &'a Path,
    /// The folder itself.
    pub folder: BorrowedFd<'a>,
}

/// An overlay of a lower folder and an upper one.
///
/// Overlayfs took the mount API in Linux 6.5. Before it the options pass through the legacy parser, which refuses a comma in a value; in
/// all versions a colon separates lower folders, and a backslash escapes. Layers by descriptor (`fsconfig(FSCONFIG_SET_FD)`) came only with 6.13. A path
/// that none of this touches is given as it is, so that mountinfo is readable; any other goes through `/proc/self/fd`, which all versions follow.
pub fn mount_overlay(name: &str, lower: Layer<'_>, upper: Layer<'_>, work: Layer<'_>) -> Result<DetachedMount, FsError> {
    mount_layers(name, &[lower], Some((upper, work)), &[], STORE_ATTRIBUTES)
}

/// As [`mount_overlay`], with any number of lower folders (the topmost first), with or without an upper one.
pub fn mount_layers(
    name: &str,
    lower: &[Layer<'_>],
    upper: Option<(Layer<'_>, Layer<'_>)>,
    options: &[FsOption],
    attributes: Attributes,
) -> Result<DetachedMount, FsError> {
    let context = FsContext::open("overlay", name)?;
    let whole: Vec<String> = lower.iter().map(|layer| layer_value(*layer)).collect();
    let mut lowerdir = whole.join(":");
    if lowerdir.len() > MAX_VALUE {
        let short: Vec<String> = lower.iter().map(|layer| fd_path(layer.folder).display().to_string()).collect();
        lowerdir = short.join(":");
    }
    context.set_string("lowerdir", &lowerdir)?;
    if let Some((upper, work)) = upper {
        context.set_string("upperdir", &layer_value(upper))?;
        context.set_string("workdir", &layer_value(work))?;
    }
    context.set_options(options)?;
    context.mount(attributes)
}

fn layer_value(layer: Layer<'_>) -> String {
    match layer.path.to_str() {
        Some(path) if path.len() <= MAX_VALUE && !path.contains([',', ':', '\\']) => path.to_owned(),
        Some(_) | None => fd_path(layer.folder).display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn paths_that_overlayfs_would_misread_go_by_descriptor() {
        let dir = tempfile::tempfile().unwrap();
        let value = |path: &str| {
            layer_value(Layer {
                path: Path::new(path),
                folder: dir.as_fd(),
            })
        };
        assert_eq!(value("/sysroot/nix/.ro-store"), "/sysroot/nix/.ro-store");
        for path in ["/a:b", "/a,b", "/a\\b", &format!("/{}", "a".repeat(255))] {
            assert!(value(path).starts_with("/proc/self/fd/"), "{path}");
        }
    }
}
