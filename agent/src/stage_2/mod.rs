//! Commands for the running system.

pub mod check_mount;
