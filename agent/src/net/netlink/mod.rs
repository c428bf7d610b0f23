//! rtnetlink: the few messages that an initrd needs. [`codec`] frames bytes, [`message`] gives them meaning (both pure), [`socket`] talks to the
//! kernel.
//!
//! Our own, because the crates describe all of rtnetlink: `netlink-packet-route` knows some hundred attributes of every kind of link and queue
//! (20,000 lines, with `netlink-packet-core` and its helpers); read here are links, addresses, default routes and router advertisement options.
//! Source: the kernel's `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h`.

pub mod codec;
pub mod message;
pub mod socket;
