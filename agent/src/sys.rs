//! System calls and ioctls that no crate wraps: the only file that may hold `unsafe`.
//!
//! What is here was looked for first: rustix 1.1 and nix 0.31 have neither the loop ioctls nor `mount_setattr` nor `swapon`, and the crates for loop devices
//! generate their bindings with libclang at build time. The structures and numbers are the kernel's own, as `linux-raw-sys` carries them.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use linux_raw_sys::general::mount_attr;
use linux_raw_sys::loop_device::{
    LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64, LOOP_SET_DIRECT_IO, loop_config, loop_info64,
};
use nix::libc;

/// `LO_FLAGS_*` of `linux/loop.h`; an enumeration there, so that the crate has no constants for them.
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Has errors and panics print no backtraces, whatever the environment says: the shipped agent is linked without the tables for them, and would abort where
/// one is taken, before a word of the error. A kernel command line may hold such a variable, and a person's shell too.
///
/// To be called first of all, by the only thread.
pub fn take_no_backtraces() {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: no other thread runs that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
}

/// What a loop device is made with (`LOOP_CONFIGURE`, since Linux 5.8), and what it reports back (`LOOP_GET_STATUS64`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoopSettings {
    /// Bytes of the backing file that are skipped.
    pub offset: u64,
    /// Bytes shown; 0 shows all up to the end of the backing file.
    pub size: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// Free the device when its last user closes it.
    pub autoclear: bool,
    /// Read the backing file without a second page cache.
    pub direct_io: bool,
}

nix::ioctl_none_bad!(
    /// `LOOP_CTL_GET_FREE`: the number of a free loop device, made if there is none.
    ioctl_loop_get_free,
    LOOP_CTL_GET_FREE
);
nix::ioctl_write_ptr_bad!(
    /// `LOOP_CONFIGURE`: binds a backing file and sets everything at once.
    ioctl_loop_configure,
    LOOP_CONFIGURE,
    loop_config
);
nix::ioctl_none_bad!(
    /// `LOOP_CLR_FD`: unbinds, at once or when the last user closes.
    ioctl_loop_clear,
    LOOP_CLR_FD
);
nix::ioctl_write_int_bad!(
    /// `LOOP_SET_DIRECT_IO`: 0 or 1.
    ioctl_loop_set_direct_io,
    LOOP_SET_DIRECT_IO
);
nix::ioctl_read_bad!(
    /// `LOOP_GET_STATUS64`: flags, offset and size limit.
    ioctl_loop_get_status,
    LOOP_GET_STATUS64,
    loop_info64
);

/// The number of a loop device that is free now. Another process may take it before the caller does.
pub fn loop_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the descriptor is open for as long as the borrow; the ioctl takes no argument.
    let number = unsafe { ioctl_loop_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_| io::Error::other("the kernel answered with a negative loop device number"))
}

/// Binds `backing` to the loop device `device` with `settings`; `block_size` 0 leaves the logical block size to the kernel.
/// Errors: EBUSY when the device is bound already.
pub fn loop_configure(device: BorrowedFd<'_>, backing: BorrowedFd<'_>, settings: LoopSettings, block_size: u32) -> io::Result<()> {
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let config = loop_config {
        fd,
        block_size,
        info: loop_info64 {
            lo_offset: settings.offset,
            lo_sizelimit: settings.size,
            lo_flags: flag(settings.read_only, LO_FLAGS_READ_ONLY)
                | flag(settings.autoclear, LO_FLAGS_AUTOCLEAR)
                | flag(settings.direct_io, LO_FLAGS_DIRECT_IO),
            ..NO_LOOP_INFO
        },
        __reserved: [0; 8],
    };
    // SAFETY: both descriptors are open for as long as the borrows; the kernel reads one `loop_config` from the pointer and keeps nothing of it.
    unsafe { ioctl_loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// Unbinds a loop device. While it is in use elsewhere, the kernel does so after the last close.
pub fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the borrow; the ioctl takes no argument.
    unsafe { ioctl_loop_clear(device.as_raw_fd()) }?;
    Ok(())
}

/// Turns direct I/O on or off. Errors: EINVAL when the backing file or the block size does not allow it.
pub fn loop_set_direct_io(device: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the borrow; the argument is a plain integer.
    unsafe { ioctl_loop_set_direct_io(device.as_raw_fd(), i32::from(on)) }?;
    Ok(())
}

/// What the kernel says about a bound loop device. Errors: ENXIO when it is not bound.
pub fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopSettings> {
    let mut info = NO_LOOP_INFO;
    // SAFETY: the descriptor is open for as long as the borrow; the kernel writes one `loop_info64`, for which `info` has room.
    unsafe { ioctl_loop_get_status(device.as_raw_fd(), &raw mut info) }?;
    Ok(LoopSettings {
        offset: info.lo_offset,
        size: info.lo_sizelimit,
        read_only: info.lo_flags & LO_FLAGS_READ_ONLY != 0,
        autoclear: info.lo_flags & LO_FLAGS_AUTOCLEAR != 0,
        direct_io: info.lo_flags & LO_FLAGS_DIRECT_IO != 0,
    })
}

nix::ioctl_write_int_bad!(
    /// `TIOCSCTTY`: 1 takes the terminal away from a session that owns it.
    ioctl_set_controlling_terminal,
    libc::TIOCSCTTY
);

/// Makes `terminal` the controlling terminal of this process, which leads a session without one; takes it away from another session that may own it
/// (`TIOCSCTTY` with 1, for which one has to be root). rustix has it with 0 alone.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the borrow; the argument is a plain integer.
    unsafe { ioctl_set_controlling_terminal(terminal.as_raw_fd(), 1) }?;
    Ok(())
}

/// Sends PID 1 a signal by its number: the real-time signals have no names in rustix and nix.
pub fn signal_init(number: i32) -> io::Result<()> {
    // SAFETY: kill takes two plain integers and touches no memory of ours.
    nix::errno::Errno::result(unsafe { libc::kill(1, number) })?;
    Ok(())
}

nix::ioctl_none!(
    /// `BLKRRPART` of `linux/fs.h`: the kernel looks for partitions anew.
    ioctl_reread_partitions,
    0x12,
    95
);

/// Has the kernel look for partitions on `disk`. Errors: EBUSY when one of them is in use, EINVAL when the device cannot have any.
pub fn reread_partitions(disk: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the borrow; the ioctl takes no argument.
    unsafe { ioctl_reread_partitions(disk.as_raw_fd()) }?;
    Ok(())
}

/// `struct btrfs_ioctl_vol_args` of `linux/btrfs.h`.
#[repr(C)]
pub struct BtrfsVolume {
    fd: i64,
    name: [u8; 4088],
}

nix::ioctl_write_ptr!(
    /// `BTRFS_IOC_SUBVOL_CREATE`.
    ioctl_make_subvolume,
    0x94,
    14,
    BtrfsVolume
);

/// Makes the subvolume `name` in the folder `folder` of a btrfs. Errors: ENAMETOOLONG beyond 255 bytes, EEXIST.
pub fn make_subvolume(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut volume = BtrfsVolume { fd: 0, name: [0; 4088] };
    let bytes = name.as_bytes();
    if bytes.len() > 255 {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename));
    }
    volume.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the descriptor is open for as long as the borrow; the kernel reads one structure of this size, whose name ends in a NUL, and keeps nothing.
    unsafe { ioctl_make_subvolume(folder.as_raw_fd(), &raw const volume) }?;
    Ok(())
}

/// Turns on swap space with `flags` (`SWAP_FLAG_*`).
pub fn swapon(path: &Path, flags: i32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string that lives as long as the call; the kernel keeps nothing of it.
    nix::errno::Errno::result(unsafe { libc::swapon(path.as_ptr(), flags) })?;
    Ok(())
}

nix::ioctl_write_ptr!(
    /// `BTRFS_IOC_RESIZE`.
    ioctl_resize_btrfs,
    0x94,
    3,
    BtrfsVolume
);

/// `struct btrfs_ioctl_fs_info_args` of `linux/btrfs.h`, as far as it is looked at here.
#[repr(C)]
pub struct BtrfsInfo {
    largest_device_id: u64,
    devices: u64,
    rest: [u64; 126],
}

nix::ioctl_read!(
    /// `BTRFS_IOC_FS_INFO`.
    ioctl_btrfs_info,
    0x94,
    31,
    BtrfsInfo
);

/// Grows the btrfs at `folder` to all of its device, where it has one alone. Its devices.
pub fn grow_btrfs(folder: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = BtrfsInfo {
        largest_device_id: 0,
        devices: 0,
        rest: [0; 126],
    };
    // SAFETY: the descriptor is open for as long as the borrow; the kernel fills one structure of this size.
    unsafe { ioctl_btrfs_info(folder.as_raw_fd(), &raw mut info) }?;
    if info.devices == 1 {
        let mut volume = BtrfsVolume { fd: 0, name: [0; 4088] };
        let wanted = format!("{}:max", info.largest_device_id);
        volume.name[..wanted.len()].copy_from_slice(wanted.as_bytes());
        // SAFETY: as of `make_subvolume`.
        unsafe { ioctl_resize_btrfs(folder.as_raw_fd(), &raw const volume) }?;
    }
    Ok(info.devices)
}

nix::ioctl_write_ptr!(
    /// `EXT4_IOC_RESIZE_FS` of `linux/ext4.h`: blocks of the file system.
    ioctl_resize_ext4,
    b'f',
    16,
    u64
);

/// Grows the ext4 at `folder` to so many of its blocks.
pub fn grow_ext4(folder: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the borrow; the kernel reads one number.
    unsafe { ioctl_resize_ext4(folder.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// `struct xfs_fsop_geom_v1` of `xfs_fs.h`, as far as it is looked at here.
#[repr(C)]
pub struct XfsGeometry {
    block_size: u32,
    others: [u32; 6],
    most_inodes: u32,
    data_blocks: u64,
    rest: [u64; 9],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
pub struct XfsGrowth {
    blocks: u64,
    most_inodes: u32,
}

nix::ioctl_read!(
    /// `XFS_IOC_FSGEOMETRY_V1`.
    ioctl_xfs_geometry,
    b'X',
    100,
    XfsGeometry
);
nix::ioctl_write_ptr!(
    /// `XFS_IOC_FSGROWFSDATA`.
    ioctl_grow_xfs,
    b'X',
    110,
    XfsGrowth
);

/// Grows the XFS at `folder` to a device of `size` bytes, where it has less.
pub fn grow_xfs(folder: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    let mut geometry = XfsGeometry {
        block_size: 0,
        others: [0; 6],
        most_inodes: 0,
        data_blocks: 0,
        rest: [0; 9],
    };
    // SAFETY: the descriptor is open for as long as the borrow; the kernel fills one structure of this size.
    unsafe { ioctl_xfs_geometry(folder.as_raw_fd(), &raw mut geometry) }?;
    let blocks = size.checked_div(geometry.block_size.into()).unwrap_or_default();
    if blocks <= geometry.data_blocks {
        return Ok(());
    }
    let growth = XfsGrowth {
        blocks,
        most_inodes: geometry.most_inodes,
    };
    // SAFETY: the same; the kernel reads one structure.
    unsafe { ioctl_grow_xfs(folder.as_raw_fd(), &raw const growth) }?;
    Ok(())
}

const NO_LOOP_INFO: loop_info64 = loop_info64 {
    lo_device: 0,
    lo_inode: 0,
    lo_rdevice: 0,
    lo_offset: 0,
    lo_sizelimit: 0,
    lo_number: 0,
    lo_encrypt_type: 0,
    lo_encrypt_key_size: 0,
    lo_flags: 0,
    lo_file_name: [0; 64],
    lo_crypt_name: [0; 64],
    lo_encrypt_key: [0; 32],
    lo_init: [0; 2],
};

/// Sets and clears attributes (`MOUNT_ATTR_*`) of the mount whose root `mount` is, and of all below it if `recursive` (`mount_setattr`, since
/// Linux 5.12). On a detached tree this is atomic: the mount is never seen without them.
pub fn mount_set_attributes(mount: BorrowedFd<'_>, recursive: bool, set: u64, clear: u64) -> io::Result<()> {
    let attributes = mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open for as long as the borrow; the path is a constant C string; the kernel reads one `mount_attr` of the size
    // given and keeps nothing of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<mount_attr>(),
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_structures_have_the_sizes_of_its_headers() {
        assert_eq!(size_of::<loop_info64>(), 232);
        assert_eq!(size_of::<loop_config>(), 304);
        assert_eq!(size_of::<mount_attr>(), 32);
        assert_eq!(size_of::<BtrfsVolume>(), 4096);
        assert_eq!(size_of::<BtrfsInfo>(), 1024);
        assert_eq!(size_of::<XfsGeometry>(), 112);
        assert_eq!(size_of::<XfsGrowth>(), 16);
    }
}
