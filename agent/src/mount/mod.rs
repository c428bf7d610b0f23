//! Mounts: the kernel's new mount API, loop devices, and the mount plan of a system.
//!
//! Pure: [`options`], [`entry`], [`order`], [`shared`], [`size`], [`ext_clean`]. Thin effects: [`loop_device`], [`fs_context`], [`check`], [`kernel_log`], [`quirks`], [`below`], [`mount_log`]. Put together
//! from them: [`system`] (root, image, store), [`persist`] (entries of `fileSystems`) and [`api_fs`];
//! [`sysroot`] is for a root that systemd has mounted.

pub mod api_fs;
pub mod below;
pub mod check;
pub mod entry;
pub mod ext_clean;
pub mod fs_context;
pub mod growfs;
pub mod kernel_log;
pub mod loop_device;
pub mod mount_log;
pub mod options;
pub mod order;
pub mod persist;
pub mod quirks;
pub mod shared;
pub mod size;
pub mod sysroot;
pub mod system;
