//! The hand-over: what a toplevel needs, and the switch into the new root.
//!
//! [`toplevel`] looks and decides, [`plan`] is the list of steps, [`prepare`] does those that can be undone, [`switch_root`] those that cannot.

pub mod empty;
pub mod mountinfo;
pub mod plan;
pub mod prepare;
pub mod run_in_root;
pub mod switch_root;
pub mod toplevel;
