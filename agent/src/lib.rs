//! freshroot: boots a system whose Nix store is one squashfs image, kept on a local disk, looked at for freshness, fetched over HTTP only when
//! it must be.
//!
//! The modules follow one line: observe → decide → plan → act. Values and decisions are pure; effects are thin, and do not import one another;
//! [`boot`] alone knows the order.

pub mod cli;
pub mod device;
pub mod digest;
pub mod formats;
pub mod handover;
pub mod kmod;
pub mod mount;
pub mod net;
mod run;
pub mod settings;
pub mod sys;
pub mod uevent;

pub use run::run;
