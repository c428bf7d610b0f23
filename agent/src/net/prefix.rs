//! An address with the length of its network's prefix.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::foreign;
use serde::{Serialize, Serializer};

/// An address and its prefix length, printed as `192.0.2.9/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The address, host bits included.
    pub address: IpAddr,
    /// The prefix length: at most 32 or 128.
    pub length: u8,
}

impl Prefix {
    /// Whether `other` lies in the network that this address is in.
    pub fn contains(&self, other: IpAddr) -> bool {
        let (mine, theirs, width) = match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        let host_bits = u32::from(width - self.length.min(width));
        (mine ^ theirs).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

/// Whether an address holds on its link only (`fe80::/10`).
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
        IpAddr::V4(_) => false,
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text is not an address with a prefix length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAPrefix(String);

impl fmt::Display for NotAPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "«{}» is not an address with a prefix length, as in 192.0.2.9/24", self.0)
    }
}

impl std::error::Error for NotAPrefix {}

impl FromStr for Prefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let fail = || NotAPrefix(foreign::word(text));
        let (address, length) = text.split_once('/').ok_or_else(fail)?;
        let address: IpAddr = address.parse().map_err(|_| fail())?;
        let length: u8 = length.parse().map_err(|_| fail())?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        if length > max { Err(fail()) } else { Ok(Self { address, length }) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_network_contains_its_hosts_and_no_others() {
        for (net, host, inside) in [
            ("192.0.2.9/24", "192.0.2.254", true),
            ("192.0.2.9/24", "192.0.3.1", false),
            ("192.0.2.9/32", "192.0.2.9", true),
            ("192.0.2.9/32", "192.0.2.8", false),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("2001:db8::9/64", "2001:db8::ffff:1", true),
            ("2001:db8::9/64", "2001:db8:0:1::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.1", false),
        ] {
            let net: Prefix = net.parse().unwrap();
            assert_eq!(net.contains(host.parse().unwrap()), inside, "{net} {host}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "192.0.2.9", "192.0.2.9/33", "x/24", "2001:db8::/129", "192.0.2.9/-1"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }
}
