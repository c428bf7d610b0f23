//! Loop devices, attached to a descriptor that is open already: what was verified is what is mounted, whatever happens to the path meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;

use crate::sys::{self, LoopSettings};

/// Between asking for a free number and binding it another process can take it. So many times in a row is no longer a coincidence.
const ATTEMPTS: usize = 16;

/// The logical block size of a loop device unless something else is asked for.
const DEFAULT_BLOCK_SIZE: u32 = 512;

/// How a loop device is to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoopOptions {
    /// Refuse writes, whatever the descriptor allows.
    pub read_only: bool,
    /// The device goes when its last user does; that is, with its mount.
    pub autoclear: bool,
    /// Ask for direct I/O, so that the image is not cached twice. A wish: see [`LoopDevice::direct_io`].
    pub direct_io: bool,
    /// Bytes of the backing file that are skipped.
    pub offset: u64,
    /// Bytes shown; `None` shows all up to the end.
    pub size: Option<u64>,
}

/// An attached loop device, held open. With `autoclear` it is gone when this is dropped, unless something has it mounted.
#[derive(Debug)]
pub struct LoopDevice {
    device: OwnedFd,
    path: PathBuf,
    direct_io: bool,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device below `root_dev` (`/dev`).
    ///
    /// Direct I/O is a wish: the kernel's answer is read back and logged, and never an error.
    pub fn attach(root_dev: &Path, backing: BorrowedFd<'_>, options: LoopOptions) -> Result<Self> {
        let control_path = root_dev.join("loop-control");
        let control = open(&control_path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("opening {} (is the kernel module «loop» loaded?)", control_path.display()))?;
        let block_size = if options.direct_io {
            block_size_for_direct_io(backing, options)
        } else {
            0
        };
        let mut settings = LoopSettings {
            offset: options.offset,
            size: options.size.unwrap_or(0),
            read_only: options.read_only,
            autoclear: options.autoclear,
            direct_io: options.direct_io,
        };
        let mut attempts = 0;
        let (device, path) = loop {
            attempts += 1;
            let number = sys::loop_get_free(control.as_fd()).context("asking for a free loop device")?;
            let path = root_dev.join(format!("loop{number}"));
            let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
            let device =
                open(&path, access | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("opening loop device {}", path.display()))?;
            match sys::loop_configure(device.as_fd(), backing, settings, block_size) {
                Ok(()) => break (device, path),
                Err(err) if err.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && attempts < ATTEMPTS => {
                    log::debug!("{} was taken by another process, trying the next", path.display());
                }
                Err(err) if err.raw_os_error() == Some(Errno::INVAL.raw_os_error()) && settings.direct_io => {
                    log::info!("{} refuses direct I/O ({err}): attaching without it", path.display());
                    settings.direct_io = false;
                }
                Err(err) => {
                    let why = format!("attaching {} (attempt {attempts} of {ATTEMPTS})", path.display());
                    return Err(anyhow::Error::new(err).context(why));
                }
            }
        };
        let status = sys::loop_status(device.as_fd()).with_context(|| format!("reading back the state of {}", path.display()))?;
        if status.offset != settings.offset || status.size != settings.size || (options.read_only && !status.read_only) {
            bail!("{} was attached as {status:?}, not as asked for: {settings:?}", path.display());
        }
        if options.direct_io && !status.direct_io {
            log::info!(
                "{}: the kernel did not take direct I/O; the image is cached twice in memory",
                path.display()
            );
        }
        Ok(Self {
            device,
            path,
            direct_io: status.direct_io,
        })
    }

    /// The device's path, `/dev/loop<N>`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel took direct I/O, as it said itself.
    pub const fn direct_io(&self) -> bool {
        self.direct_io
    }

    /// Detaches; while the device is mounted, the kernel waits for the unmount.
    pub fn detach(self) -> Result<()> {
        sys::loop_clear(self.device.as_fd()).with_context(|| format!("detaching {}", self.path.display()))
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// The logical block size that direct I/O needs on this backing file, or 0 for the kernel's default.
///
/// A disk with 4096-byte sectors takes no 512-byte requests. `STATX_DIOALIGN` (Linux 6.1) tells the file's alignment; a larger block
/// size is only asked for where it loses no tail of the image.
fn block_size_for_direct_io(backing: BorrowedFd<'_>, options: LoopOptions) -> u32 {
    let asked = StatxFlags::DIOALIGN | StatxFlags::SIZE;
    let stat = match statx(backing, c"", AtFlags::EMPTY_PATH, asked) {
        Ok(stat) => stat,
        Err(err) => {
            log::debug!("asking for the alignment of direct I/O: {err}");
            return 0;
        }
    };
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return 0;
    }
    let shown = options.size.unwrap_or_else(|| stat.stx_size.saturating_sub(options.offset));
    fitting_block_size(stat.stx_dio_offset_align, options.offset, shown)
}

/// `alignment` as a block size where it is one and divides offset and size, else 0.
fn fitting_block_size(alignment: u32, offset: u64, size: u64) -> u32 {
    let fits = alignment > DEFAULT_BLOCK_SIZE && alignment <= 4096 && alignment.is_power_of_two();
    let align = u64::from(alignment);
    if fits && offset.is_multiple_of(align) && size.is_multiple_of(align) {
        alignment
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_block_size_is_used_only_where_it_loses_nothing() {
        for (alignment, offset, size, expected) in [
            (0, 0, 8192, 0),
            (512, 0, 8192, 0),
            (4096, 0, 8192, 4096),
            (4096, 512, 8192, 0),
            (4096, 0, 8193, 0),
            (3000, 0, 6000, 0),
            (65536, 0, 65536, 0),
        ] {
            assert_eq!(fitting_block_size(alignment, offset, size), expected, "{alignment} {offset} {size}");
        }
    }
}
