//! Kernel uevents, as netlink delivers them.
