//! What disks are stacked from in standalone mode, by the programs of the initrd: LUKS containers, LVM volume groups, MD arrays.
//!
//! [`luks`] and [`swap`] are pure: the settings, and what `cryptsetup` and the kernel are told. [`assemble`] runs `lvm` and `mdadm` for what appears while a device is waited for.
//! [`records`] is for the udev of the running system.

pub mod assemble;
pub mod luks;
pub mod records;
pub mod swap;
