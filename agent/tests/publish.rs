//! `freshroot-publish` as it is used: real images by mksquashfs, the program as a process, curl as the client.
#![cfg(feature = "publish")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "publish/images.rs"]
mod images;
#[path = "publish/publishing.rs"]
mod publishing;
#[path = "publish/rotating.rs"]
mod rotating;
#[path = "publish/serving.rs"]
mod serving;
