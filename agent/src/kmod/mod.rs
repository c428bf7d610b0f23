//! Kernel modules: the configured ones, and those whose alias matches the hardware.
//!
//! [`index`] reads what `depmod` wrote, [`pattern`] compares aliases, and [`options`] takes parameters and blacklists from the kernel's
//! command line; all three are pure but for one reader. [`loader`] loads a module and what it needs, [`insert`] hands the file to the
//! kernel, and [`coldplug`] loads drivers for the devices that are there and those that come.
//!
//! Firmware needs nothing from here: the kernel reads it itself from `/lib/firmware` of the initrd.

pub mod coldplug;
pub mod index;
pub mod insert;
pub mod loader;
pub mod options;
pub mod pattern;

pub use coldplug::{Settled, settle};
pub use index::Index;
pub use insert::{Insert, Kernel};
pub use loader::{LoadError, Loader, Outcome, Report};
pub use options::Options;
