//! Why there is no network, and what to do about it.

use std::time::Duration;
use std::{fmt, io};

/// Why the network did not come up.
#[derive(Debug)]
pub enum NetError {
    /// The settings turn both families off.
    Off,
    /// No interface that may be used appeared.
    NoInterface {
        /// The interfaces that are there and were left alone, each with the reason.
        left: Vec<String>,
        /// Network cards that no driver has taken.
        undriven: Vec<String>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// None of the interfaces has a carrier.
    NoCarrier {
        /// Their names.
        links: Vec<String>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// There is a carrier, and nobody who gives an address.
    NoLease {
        /// The interfaces with a carrier.
        links: Vec<String>,
        /// How often a DHCP server was asked for.
        asked: u32,
        /// What went wrong on the way, if anything did.
        troubles: Vec<String>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// There is a carrier, and the system has not configured what is needed.
    NotConfigured {
        /// The interfaces with a carrier, each with what it has.
        links: Vec<String>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The kernel refused something without which nothing works.
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl NetError {
    /// What a person can do about it, as a sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::Off => "remove ip=off (or ip=none) from the kernel command line, or turn network.ipv6 on".to_owned(),
            Self::NoInterface { undriven, .. } if !undriven.is_empty() => format!(
                "add the kernel modules of these cards to the initrd (boot.initrd.availableKernelModules; lspci -nnk on the machine names them): {}",
                undriven.join(", ")
            ),
            Self::NoInterface { left, .. } if !left.is_empty() => "check network.interface, BOOTIF= and the device in ip=".to_owned(),
            Self::NoInterface { .. } => {
                "check that the machine has a network card that is turned on in its firmware, and that its kernel module is in the initrd".to_owned()
            }
            Self::NoCarrier { .. } => "check cable, switch port and, for a virtual machine, that its card is connected".to_owned(),
            Self::NoLease { .. } => {
                "check that a DHCP server or an IPv6 router answers in this network (VLAN of the switch port, free addresses), or write the addresses \
                 out in ip="
                    .to_owned()
            }
            Self::NotConfigured { .. } => {
                "look at the service that configures the network in the initrd (networkctl status, journalctl -u systemd-networkd), or set network.by = agent"
                    .to_owned()
            }
            Self::Kernel { .. } => {
                "check that the kernel has packet sockets (af_packet) and IPv4, and that freshroot may administer the network (CAP_NET_ADMIN, CAP_NET_RAW)"
                    .to_owned()
            }
        }
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => write!(f, "the network is needed, and the settings turn it off"),
            Self::NoInterface { left, undriven, waited } => {
                write!(f, "no usable network interface appeared within {} s", seconds(waited))?;
                match undriven.len() {
                    0 => {}
                    1 => write!(f, "; this card has no driver: {}", undriven[0])?,
                    n => write!(f, "; these {n} cards have no driver: {}", undriven.join(", "))?,
                }
                if left.is_empty() {
                    Ok(())
                } else {
                    write!(f, "; left alone: {}", left.join(", "))
                }
            }
            Self::NoCarrier { links, waited } => write!(f, "no carrier on {} within {} s", links.join(", "), seconds(waited)),
            Self::NoLease {
                links,
                asked,
                troubles,
                waited,
            } => {
                write!(f, "nobody gave an address on {} within {} s", links.join(", "), seconds(waited))?;
                match asked {
                    0 => {}
                    1 => write!(f, " (DHCP asked once)")?,
                    n => write!(f, " (DHCP asked {n} times)")?,
                }
                if troubles.is_empty() {
                    Ok(())
                } else {
                    write!(f, "; {}", troubles.join("; "))
                }
            }
            Self::NotConfigured { links, waited } => write!(
                f,
                "no interface was given an address and a route by the system within {} s (network.by = system); {}",
                seconds(waited),
                links.join(", ")
            ),
            Self::Kernel { doing, source } => write!(f, "{doing}: {source}"),
        }
    }
}

/// Rounded: a wait that ended a moment early, as clocks go, was still that long.
fn seconds(waited: &Duration) -> u64 {
    waited.saturating_add(Duration::from_millis(500)).as_secs()
}

impl std::error::Error for NetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its text is part of ours already; a caller that prints the chain would print it twice.
            Self::Kernel { source, .. } => std::error::Error::source(source),
            Self::Off | Self::NoInterface { .. } | Self::NoCarrier { .. } | Self::NoLease { .. } | Self::NotConfigured { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_named_with_its_remedy() {
        let err = NetError::NoInterface {
            left: vec!["lo (loopback)".to_owned()],
            undriven: vec!["PCI 0000:00:03.0 [8086:100e]".to_owned()],
            waited: Duration::from_millis(29_999),
        };
        assert_eq!(
            err.to_string(),
            "no usable network interface appeared within 30 s; this card has no driver: PCI 0000:00:03.0 [8086:100e]; left alone: lo (loopback)"
        );
        assert!(err.remedy().contains("8086:100e"));
    }

    #[test]
    fn silence_is_told_with_how_often_somebody_was_asked() {
        let err = NetError::NoLease {
            links: vec!["eth0".to_owned()],
            asked: 3,
            troubles: Vec::new(),
            waited: Duration::from_secs(20),
        };
        assert_eq!(err.to_string(), "nobody gave an address on eth0 within 20 s (DHCP asked 3 times)");
    }
}
