//! freshroot: boots a system whose Nix store is one squashfs image, kept on a local disk, looked at for freshness, fetched over HTTP only when
//! it must be.
//!
//! The modules follow one line: observe → decide → plan → act. Values and decisions are pure; effects are thin, and do not import one another;
//! [`boot`] alone knows the order.

pub mod allowance;
pub mod boot;
pub mod cache;
pub mod candidates;
pub mod cli;
pub mod clock;
pub mod cmdline;
pub mod console;
pub mod decide;
pub mod device;
pub mod digest;
pub mod failure;
pub mod fetch;
pub mod figures;
pub mod floors;
pub mod foreign;
pub mod formats;
pub mod handover;
pub mod http;
pub mod keyboard;
pub mod kmod;
pub mod long_download;
pub mod mode;
pub mod mount;
pub mod net;
pub mod plan;
pub mod prepare;
pub mod publish;
pub mod report;
mod run;
pub mod select;
pub mod settings;
pub mod stack;
pub mod stage_2;
pub mod store_path;
pub mod sys;
pub mod tool;
pub mod uevent;
pub mod verify;

pub use run::run;
