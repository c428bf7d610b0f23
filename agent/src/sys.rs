//! System calls and ioctls that no crate wraps: the only file that may hold `unsafe`.
