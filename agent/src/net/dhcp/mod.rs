//! A DHCPv4 client: codec ([`message`]), frames ([`frame`]), what a lease is ([`lease`]) and the protocol ([`client`]) are pure; [`session`] and
//! [`socket`] touch the network.
//!
//! Our own, because the codec crates cost more than they bring: dhcproto takes some 55 crates and 280 KB of a binary whose size is a figure of
//! the project, for two dozen options of which an initrd reads ten. Sources: RFC 2131 (protocol), 2132 (options), 3396 (long options),
//! 3442 (classless routes).

pub mod client;
pub mod frame;
pub mod lease;
pub mod message;
pub mod session;
pub mod socket;

/// The port a server listens on.
pub const SERVER_PORT: u16 = 67;
/// The port a client listens on.
pub const CLIENT_PORT: u16 = 68;
