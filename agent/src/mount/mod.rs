//! Mounts: the kernel's new mount API, loop devices, and the mount plan of a system.
