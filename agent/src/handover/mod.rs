//! The hand-over: what a toplevel needs, and the switch into the new root.
