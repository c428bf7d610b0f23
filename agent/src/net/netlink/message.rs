//! What rtnetlink messages mean, and the requests that we make. Numbers are those of the kernel's uapi headers, by their names there.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::codec::{Builder, Frame, attribute, u16_at, u32_at};
use crate::net::Prefix;
use crate::net::mac::Mac;
use crate::net::ra::{self, RaDns};

/// The kernel's names for message types, flags and attributes.
#[allow(missing_docs)]
pub mod uapi {
    pub const NLMSG_ERROR: u16 = 2;
    pub const NLMSG_DONE: u16 = 3;
    pub const RTM_NEWLINK: u16 = 16;
    pub const RTM_DELLINK: u16 = 17;
    pub const RTM_GETLINK: u16 = 18;
    pub const RTM_NEWADDR: u16 = 20;
    pub const RTM_DELADDR: u16 = 21;
    pub const RTM_GETADDR: u16 = 22;
    pub const RTM_NEWROUTE: u16 = 24;
    pub const RTM_DELROUTE: u16 = 25;
    pub const RTM_GETROUTE: u16 = 26;
    pub const RTM_NEWNDUSEROPT: u16 = 68;
    pub const NLM_F_REQUEST: u16 = 1;
    pub const NLM_F_ACK: u16 = 4;
    pub const NLM_F_DUMP: u16 = 0x300;
    pub const NLM_F_REPLACE: u16 = 0x100;
    pub const NLM_F_EXCL: u16 = 0x200;
    pub const NLM_F_CREATE: u16 = 0x400;
    pub const AF_INET: u8 = 2;
    pub const AF_INET6: u8 = 10;
    pub const ARPHRD_ETHER: u16 = 1;
    pub const IFF_UP: u32 = 1;
    pub const IFF_LOOPBACK: u32 = 8;
    pub const IFF_LOWER_UP: u32 = 0x1_0000;
    pub const IFLA_ADDRESS: u16 = 1;
    pub const IFLA_IFNAME: u16 = 3;
    pub const IFLA_MTU: u16 = 4;
    pub const IFLA_OPERSTATE: u16 = 16;
    pub const IFLA_LINKINFO: u16 = 18;
    pub const IFLA_INFO_KIND: u16 = 1;
    pub const IF_OPER_UNKNOWN: u8 = 0;
    pub const IF_OPER_DOWN: u8 = 2;
    pub const IF_OPER_UP: u8 = 6;
    pub const IFA_ADDRESS: u16 = 1;
    pub const IFA_LOCAL: u16 = 2;
    pub const IFA_BROADCAST: u16 = 4;
    pub const IFA_CACHEINFO: u16 = 6;
    pub const IFA_FLAGS: u16 = 8;
    pub const IFA_F_DADFAILED: u32 = 0x08;
    pub const IFA_F_TENTATIVE: u32 = 0x40;
    pub const IFA_F_OPTIMISTIC: u32 = 0x04;
    pub const IFA_F_PERMANENT: u32 = 0x80;
    pub const RT_SCOPE_UNIVERSE: u8 = 0;
    pub const RT_SCOPE_LINK: u8 = 253;
    pub const RT_TABLE_MAIN: u8 = 254;
    pub const RTPROT_BOOT: u8 = 3;
    pub const RTPROT_RA: u8 = 9;
    pub const RTPROT_DHCP: u8 = 16;
    pub const RTN_UNICAST: u8 = 1;
    pub const RTNH_F_ONLINK: u32 = 4;
    pub const RTA_DST: u16 = 1;
    pub const RTA_OIF: u16 = 4;
    pub const RTA_GATEWAY: u16 = 5;
}
use uapi::*;

/// A network interface, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name, such as `eth0`.
    pub name: String,
    /// Its Ethernet address; none for other kinds of hardware.
    pub mac: Option<Mac>,
    /// The driver's kind for virtual ones (`bond`, `dummy`, `veth`, …).
    pub kind: Option<String>,
    /// Set up (administratively).
    pub up: bool,
    /// Plugged in and talking: up, carrier, and not held back (802.1X, a sleeping lower link).
    pub carrier: bool,
    /// The kernel has taken notice of the carrier. It does so once a second only (`linkwatch`), while most cards send as soon as they have it.
    pub settled: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// The MTU, in bytes.
    pub mtu: u32,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address and its prefix length.
    pub prefix: Prefix,
    /// Routable: neither link-local nor host.
    pub global: bool,
    /// Usable: duplicate address detection is through, and found no other.
    pub usable: bool,
}

/// A route of the main table, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenRoute {
    /// The interface.
    pub index: u32,
    /// Where to; none is everywhere.
    pub destination: Option<Prefix>,
    /// The family by its unspecified address, as a default route has no other address to tell.
    pub ipv6: bool,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// Who made it (`RTPROT_…`).
    pub protocol: u8,
}

/// What the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// An interface is there, or changed.
    Link(Link),
    /// An interface is gone.
    LinkGone(u32),
    /// An address is there, or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is there.
    Route(SeenRoute),
    /// A route is gone.
    RouteGone(SeenRoute),
    /// A router advertised DNS servers or domains on this interface.
    Dns(u32, RaDns),
    /// The answer to a request: 0 or an errno.
    Answer(i32),
    /// The end of a list.
    Done,
}

/// Reads a message. None for what is of no interest, and for what is too short to be what it says.
pub fn read(frame: &Frame<'_>) -> Option<Note> {
    let body = frame.body;
    Some(match frame.kind {
        // A bridge tells of its ports with a family of its own; only without one is it about the interface itself.
        RTM_NEWLINK if body.first() == Some(&0) => Note::Link(link(body)?),
        RTM_DELLINK if body.first() == Some(&0) => Note::LinkGone(u32_at(body, 4)?),
        RTM_NEWADDR => Note::Address(address(body)?),
        RTM_DELADDR => Note::AddressGone(address(body)?),
        RTM_NEWROUTE => Note::Route(route(body)?),
        RTM_DELROUTE => Note::RouteGone(route(body)?),
        RTM_NEWNDUSEROPT => {
            let length = usize::from(u16_at(body, 2)?);
            let index = u32_at(body, 4)?;
            Note::Dns(index, ra::parse_option(body.get(16..16 + length)?)?)
        }
        NLMSG_ERROR => Note::Answer(u32_at(body, 0)?.cast_signed().saturating_neg()),
        // A list that failed on the way ends with an errno.
        NLMSG_DONE => match u32_at(body, 0).map_or(0, u32::cast_signed) {
            errno if errno < 0 => Note::Answer(errno.saturating_neg()),
            _ => Note::Done,
        },
        _ => return None,
    })
}

fn link(body: &[u8]) -> Option<Link> {
    let (hardware, index, flags) = (u16_at(body, 2)?, u32_at(body, 4)?, u32_at(body, 8)?);
    let rest = body.get(16..)?;
    let text = |v: &[u8]| String::from_utf8_lossy(v.strip_suffix(&[0]).unwrap_or(v)).into_owned();
    let mac = attribute(rest, IFLA_ADDRESS)
        .and_then(|v| <[u8; 6]>::try_from(v).ok())
        .map(Mac::new);
    let operstate = attribute(rest, IFLA_OPERSTATE)
        .and_then(|v| v.first().copied())
        .unwrap_or(IF_OPER_UNKNOWN);
    let settled = matches!(operstate, IF_OPER_UP | IF_OPER_UNKNOWN);
    Some(Link {
        index,
        name: text(attribute(rest, IFLA_IFNAME)?),
        mac: mac.filter(|_| hardware == ARPHRD_ETHER),
        kind: attribute(rest, IFLA_LINKINFO)
            .and_then(|info| attribute(info, IFLA_INFO_KIND))
            .map(text),
        up: flags & IFF_UP != 0,
        carrier: flags & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP && (settled || operstate == IF_OPER_DOWN),
        settled,
        loopback: flags & IFF_LOOPBACK != 0,
        mtu: attribute(rest, IFLA_MTU).and_then(|v| u32_at(v, 0)).unwrap_or(1500),
    })
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|v6| Ipv6Addr::from(v6).into())
}

fn address(body: &[u8]) -> Option<Address> {
    let [_family, length, short_flags, scope, ..] = *body else {
        return None;
    };
    let rest = body.get(8..)?;
    let flags = attribute(rest, IFA_FLAGS).and_then(|v| u32_at(v, 0)).unwrap_or(short_flags.into());
    let waiting = flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0;
    Some(Address {
        index: u32_at(body, 4)?,
        prefix: Prefix {
            address: ip(attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS))?)?,
            length,
        },
        // Site-local ones (fec0::/10, deprecated by RFC 3879) are still given out, and reach what is on the site.
        global: scope < RT_SCOPE_LINK,
        usable: !waiting && flags & IFA_F_DADFAILED == 0,
    })
}

fn route(body: &[u8]) -> Option<SeenRoute> {
    let [family, length, _src, _tos, table, protocol, _scope, kind, ..] = *body else {
        return None;
    };
    let rest = body.get(12..)?;
    if table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    let destination = match attribute(rest, RTA_DST) {
        Some(value) => Some(Prefix {
            address: ip(value)?,
            length,
        }),
        None => None,
    };
    Some(SeenRoute {
        index: attribute(rest, RTA_OIF).and_then(|v| u32_at(v, 0))?,
        destination,
        ipv6: family == AF_INET6,
        gateway: attribute(rest, RTA_GATEWAY).and_then(ip),
        protocol,
    })
}

/// Asks for a list: `RTM_GETLINK`, `RTM_GETADDR` or `RTM_GETROUTE`.
pub fn dump(kind: u16) -> Builder {
    // All three accept the longest of their fixed parts zeroed: family 0 is every family.
    Builder::new(kind, NLM_F_REQUEST | NLM_F_DUMP, &[0; 16])
}

fn link_change(index: u32, flags: u32, mask: u32) -> Builder {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&mask.to_ne_bytes());
    Builder::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &fixed)
}

/// Sets a link up or down.
pub fn set_up(index: u32, up: bool) -> Builder {
    link_change(index, if up { IFF_UP } else { 0 }, IFF_UP)
}

/// Sets the MTU of a link.
pub fn set_mtu(index: u32, mtu: u32) -> Builder {
    link_change(index, 0, 0).with(IFLA_MTU, &mtu.to_ne_bytes())
}

/// Adds an address or, for one that is there, sets its lifetime. With a lifetime the kernel removes the address when it has passed, even if
/// nobody is left to do so.
pub fn add_address(index: u32, prefix: Prefix, valid: Option<Duration>) -> Builder {
    let message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, prefix);
    let message = match prefix.address {
        IpAddr::V4(v4) if prefix.length <= 30 => {
            message.with(IFA_BROADCAST, &Ipv4Addr::from(u32::from(v4) | u32::MAX >> prefix.length).octets())
        }
        IpAddr::V4(_) | IpAddr::V6(_) => message,
    };
    // struct ifa_cacheinfo: preferred, valid, created, changed.
    let seconds = valid.map_or(u32::MAX, |v| u32::try_from(v.as_secs().max(1)).unwrap_or(u32::MAX));
    let cache: Vec<u8> = [seconds, seconds, 0, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
    message.with(IFA_CACHEINFO, &cache)
}

/// Removes an address.
pub fn remove_address(index: u32, prefix: Prefix) -> Builder {
    address_message(RTM_DELADDR, 0, index, prefix)
}

fn address_message(kind: u16, flags: u16, index: u32, prefix: Prefix) -> Builder {
    let (family, bytes) = octets(prefix.address);
    let mut fixed = [family, prefix.length, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    Builder::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags, &fixed)
        .with(IFA_LOCAL, &bytes)
        .with(IFA_ADDRESS, &bytes)
}

/// A route that we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to; length 0 is everywhere.
    pub destination: Prefix,
    /// Through whom; none means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link although no address of ours says so.
    pub onlink: bool,
    /// Who made it: `RTPROT_DHCP` or `RTPROT_BOOT`.
    pub protocol: u8,
}

/// Adds a route, or fails with EEXIST.
pub fn add_route(index: u32, route: &Route) -> Builder {
    route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, index, route)
}

/// Removes a route.
pub fn remove_route(index: u32, route: &Route) -> Builder {
    route_message(RTM_DELROUTE, 0, index, route)
}

fn route_message(kind: u16, flags: u16, index: u32, route: &Route) -> Builder {
    let (family, destination) = octets(route.destination.address);
    let scope = if route.gateway.is_none() && family == AF_INET {
        RT_SCOPE_LINK
    } else {
        RT_SCOPE_UNIVERSE
    };
    let mut fixed = [
        family,
        route.destination.length,
        0,
        0,
        RT_TABLE_MAIN,
        route.protocol,
        scope,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    if route.onlink {
        fixed[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut message = Builder::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags, &fixed);
    if route.destination.length > 0 {
        message = message.with(RTA_DST, &destination);
    }
    if let Some(gateway) = route.gateway {
        message = message.with(RTA_GATEWAY, &octets(gateway).1);
    }
    message.with(RTA_OIF, &index.to_ne_bytes())
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::codec::frames;
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn read_back(builder: Builder) -> Option<Note> {
        let bytes = builder.finish(1);
        let frame = frames(&bytes).next().unwrap();
        read(&frame)
    }

    #[test]
    fn an_address_that_is_added_reads_as_a_usable_one() {
        for text in ["192.0.2.9/24", "2001:db8::9/64"] {
            let expected = Address {
                index: 3,
                prefix: prefix(text),
                global: true,
                usable: true,
            };
            assert_eq!(read_back(add_address(3, prefix(text), None)), Some(Note::Address(expected)));
            assert_eq!(read_back(remove_address(3, prefix(text))), Some(Note::AddressGone(expected)));
        }
    }

    #[test]
    fn an_address_under_duplicate_detection_is_not_usable_and_an_optimistic_one_is() {
        for (flags, usable) in [
            (0, true),
            (IFA_F_PERMANENT, true),
            (IFA_F_TENTATIVE, false),
            (IFA_F_TENTATIVE | IFA_F_OPTIMISTIC, true),
            (IFA_F_TENTATIVE | IFA_F_DADFAILED, false),
        ] {
            let message = add_address(3, prefix("2001:db8::9/64"), None).with(IFA_FLAGS, &flags.to_ne_bytes());
            let Some(Note::Address(address)) = read_back(message) else {
                panic!("no address")
            };
            assert_eq!(address.usable, usable, "{flags:#x}");
        }
    }

    #[test]
    fn a_route_that_is_added_reads_as_that_route() {
        let default = Route {
            destination: prefix("0.0.0.0/0"),
            gateway: Some([192, 0, 2, 1].into()),
            onlink: false,
            protocol: RTPROT_DHCP,
        };
        let seen = SeenRoute {
            index: 3,
            destination: None,
            ipv6: false,
            gateway: default.gateway,
            protocol: RTPROT_DHCP,
        };
        assert_eq!(read_back(add_route(3, &default)), Some(Note::Route(seen)));
        let link = Route {
            destination: prefix("198.51.100.0/24"),
            gateway: None,
            ..default
        };
        let seen = SeenRoute {
            destination: Some(link.destination),
            gateway: None,
            ..seen
        };
        assert_eq!(read_back(remove_route(3, &link)), Some(Note::RouteGone(seen)));
    }

    #[test]
    fn a_link_has_carrier_only_if_it_is_up_plugged_in_and_not_held_back() {
        for (flags, operstate, carrier) in [
            (IFF_UP | IFF_LOWER_UP, IF_OPER_UP, true),
            (IFF_UP | IFF_LOWER_UP, IF_OPER_UNKNOWN, true),
            (IFF_UP | IFF_LOWER_UP, IF_OPER_DOWN, true),
            (IFF_UP | IFF_LOWER_UP, 5, false),
            (IFF_UP, IF_OPER_DOWN, false),
            (IFF_LOWER_UP, IF_OPER_UP, false),
        ] {
            let mut fixed = [0; 16];
            fixed[2] = 1;
            fixed[4] = 7;
            fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
            let message = Builder::new(RTM_NEWLINK, 0, &fixed)
                .with(IFLA_IFNAME, b"eth0\0")
                .with(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
                .with(IFLA_OPERSTATE, &[operstate])
                .with(IFLA_LINKINFO, &[9, 0, 1, 0, b'v', b'e', b't', b'h', 0]);
            let Some(Note::Link(link)) = read_back(message) else {
                panic!("no link")
            };
            assert_eq!((link.index, link.name.as_str(), link.kind.as_deref()), (7, "eth0", Some("veth")));
            assert_eq!(
                (link.mac, link.carrier),
                (Some(Mac::new([2, 0, 0, 0, 0, 1])), carrier),
                "{flags:#x} {operstate}"
            );
        }
    }

    #[test]
    fn an_error_reads_as_its_errno() {
        assert_eq!(
            read_back(Builder::new(NLMSG_ERROR, 0, &(-17i32).to_ne_bytes())),
            Some(Note::Answer(17))
        );
        assert_eq!(
            read_back(Builder::new(NLMSG_DONE, 0, &(-4i32).to_ne_bytes())),
            Some(Note::Answer(4))
        );
        assert_eq!(read_back(Builder::new(NLMSG_DONE, 0, &0i32.to_ne_bytes())), Some(Note::Done));
        assert_eq!(read_back(Builder::new(NLMSG_ERROR, 0, &0i32.to_ne_bytes())), Some(Note::Answer(0)));
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_passed_over(kind in 0u16..80, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Builder::new(kind, 0, &body).finish(0);
            for frame in frames(&bytes) {
                let note = read(&frame);
                prop_assert!(note.is_none() || frame.kind == kind);
            }
        }
    }
}
