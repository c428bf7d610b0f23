//! Kernel modules: the configured ones, and those whose alias matches the hardware.
