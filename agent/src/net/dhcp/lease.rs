//! What a server grants, taken from its answer.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;
use std::time::Duration;

use super::message::{Message, code};
use crate::net::ip_param::{class_length, is_domain, mask_length};

/// `0xffff_ffff` seconds mean for ever.
const INFINITE: u32 = u32::MAX;
/// What is assumed where a server names no time; RFC 2131 leaves it open, an hour is what servers commonly give.
const DEFAULT_LEASE: u32 = 3600;
/// A lease shorter than this could not be renewed in order; it is treated as this long.
const MIN_LEASE: u32 = 10;
/// More routes than this from one server are a mistake; the rest is dropped.
const MAX_ROUTES: usize = 64;
/// The MTU below which IPv4 hosts need not work (RFC 791).
const MIN_MTU: u16 = 576;

/// A route of option 121; an unspecified gateway means that the destination is on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClasslessRoute {
    /// The destination, host bits cleared.
    pub destination: Ipv4Addr,
    /// Its prefix length, 0 to 32.
    pub length: u8,
    /// The gateway.
    pub gateway: Ipv4Addr,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// The prefix length of its network.
    pub length: u8,
    /// The server, for renewals.
    pub server: Ipv4Addr,
    /// The gateways, best first. Empty where option 121 was sent: RFC 3442 says that it replaces them.
    pub routers: Vec<Ipv4Addr>,
    /// The routes of option 121.
    pub routes: Vec<ClasslessRoute>,
    /// The DNS servers, best first.
    pub dns: Vec<Ipv4Addr>,
    /// The domain to search.
    pub domain: Option<String>,
    /// The MTU.
    pub mtu: Option<u16>,
    /// How long the address is ours; none means for ever.
    pub time: Option<Times>,
}

/// The times of a lease, counted from when it was asked for; `t1 ≤ t2 ≤ valid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Ask our server to renew.
    pub t1: Duration,
    /// Ask any server.
    pub t2: Duration,
    /// Give the address up.
    pub valid: Duration,
}

/// Why an offer or an acknowledgement cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// The address is no host address.
    Address(Ipv4Addr),
    /// No server identifier: it could not be asked again.
    NoServer,
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address} cannot be the address of an interface"),
            Self::NoServer => write!(f, "the server does not say who it is (option 54)"),
        }
    }
}

impl Lease {
    /// Takes the lease out of an OFFER or ACK. Options that make no sense are left out; only an address and a server are required.
    pub fn from_message(message: &Message) -> Result<Self, Unusable> {
        let address = message.yiaddr;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() || address.octets()[0] >= 240 {
            return Err(Unusable::Address(address));
        }
        let server = message
            .address(code::SERVER_ID)
            .filter(|s| !s.is_unspecified())
            .ok_or(Unusable::NoServer)?;
        let mask = message.address(code::SUBNET_MASK).and_then(mask_length).filter(|n| *n > 0);
        let routes = message
            .option(code::CLASSLESS_ROUTES)
            .and_then(classless_routes)
            .unwrap_or_default();
        let usable =
            |list: Vec<Ipv4Addr>| -> Vec<Ipv4Addr> { list.into_iter().filter(|a| !a.is_unspecified() && !a.is_multicast()).collect() };
        Ok(Self {
            address,
            length: mask.unwrap_or_else(|| class_length(address)),
            server,
            routers: if routes.is_empty() {
                usable(message.addresses(code::ROUTER))
            } else {
                Vec::new()
            },
            routes,
            dns: usable(message.addresses(code::DNS)),
            domain: message.text(code::DOMAIN).filter(|d| is_domain(d)).map(str::to_owned),
            mtu: message
                .option(code::MTU)
                .and_then(|v| <[u8; 2]>::try_from(v).ok())
                .map(u16::from_be_bytes)
                .filter(|m| *m >= MIN_MTU),
            time: times(message),
        })
    }
}

fn times(message: &Message) -> Option<Times> {
    let valid = match message.seconds(code::LEASE_TIME).unwrap_or(DEFAULT_LEASE) {
        INFINITE => return None,
        seconds => seconds.max(MIN_LEASE),
    };
    // RFC 2131 §4.4.5: one half and seven eighths, unless the server says otherwise and means something by it.
    let (half, most) = (valid / 2, valid - valid / 8);
    let (t1, t2) = match (message.seconds(code::T1), message.seconds(code::T2)) {
        (Some(t1), Some(t2)) if 0 < t1 && t1 < t2 && t2 < valid => (t1, t2),
        (Some(t1), None) if 0 < t1 && t1 < most => (t1, most),
        (None, Some(t2)) if half < t2 && t2 < valid => (half, t2),
        (Some(_) | None, Some(_) | None) => (half, most),
    };
    let seconds = |s: u32| Duration::from_secs(s.into());
    Some(Times {
        t1: seconds(t1),
        t2: seconds(t2),
        valid: seconds(valid),
    })
}

/// RFC 3442: width of the destination in bits, its significant bytes, the gateway. None if the bytes do not come out even.
fn classless_routes(mut bytes: &[u8]) -> Option<Vec<ClasslessRoute>> {
    let mut routes = Vec::new();
    while let [length, rest @ ..] = bytes {
        let significant = usize::from(*length).div_ceil(8);
        if *length > 32 {
            return None;
        }
        let (net, rest) = rest.split_at_checked(significant)?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut octets = [0; 4];
        octets[..significant].copy_from_slice(net);
        let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
        if routes.len() < MAX_ROUTES {
            routes.push(ClasslessRoute {
                destination: Ipv4Addr::from(u32::from_be_bytes(octets) & mask),
                length: *length,
                gateway: Ipv4Addr::from(*gateway),
            });
        }
        bytes = rest;
    }
    Some(routes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::message::{Kind, tests::answer};
    use super::*;
    use crate::net::mac::Mac;
    use proptest::prelude::*;

    fn lease(options: Vec<(u8, Vec<u8>)>) -> Lease {
        let mut all = vec![(code::SERVER_ID, vec![192, 0, 2, 1])];
        all.extend(options);
        Lease::from_message(&answer(Kind::Ack, 1, Mac::new([2; 6]), Ipv4Addr::new(192, 0, 2, 9), all)).unwrap()
    }

    #[test]
    fn classless_routes_replace_the_routers() {
        let routes = vec![0, 192, 0, 2, 1, 17, 10, 1, 255, 192, 0, 2, 7, 32, 198, 51, 100, 1, 0, 0, 0, 0];
        let lease = lease(vec![(code::ROUTER, vec![192, 0, 2, 254]), (code::CLASSLESS_ROUTES, routes)]);
        let route = |d: [u8; 4], length, g: [u8; 4]| ClasslessRoute {
            destination: d.into(),
            length,
            gateway: g.into(),
        };
        assert_eq!(lease.routers, Vec::<Ipv4Addr>::new());
        assert_eq!(
            lease.routes,
            vec![
                route([0; 4], 0, [192, 0, 2, 1]),
                route([10, 1, 128, 0], 17, [192, 0, 2, 7]),
                route([198, 51, 100, 1], 32, [0; 4])
            ]
        );
    }

    #[test]
    fn broken_classless_routes_leave_the_routers_in_place() {
        for bad in [vec![33, 1, 2, 3, 4, 5, 1, 1, 1, 1], vec![24, 10, 0], vec![0, 1, 2, 3]] {
            let lease = lease(vec![(code::ROUTER, vec![192, 0, 2, 254]), (code::CLASSLESS_ROUTES, bad)]);
            assert_eq!((lease.routers.len(), lease.routes.len()), (1, 0));
        }
    }

    #[test]
    fn times_are_the_servers_if_they_are_in_order_and_the_rfcs_otherwise() {
        let option = |code: u8, s: u32| (code, s.to_be_bytes().to_vec());
        for (sent, expected) in [
            ((Some(800), None, None), Some((400, 700, 800))),
            ((Some(800), Some(3), Some(10)), Some((3, 10, 800))),
            ((Some(800), Some(10), Some(3)), Some((400, 700, 800))),
            ((Some(800), Some(3), None), Some((3, 700, 800))),
            ((Some(0), None, None), Some((5, 9, 10))),
            ((None, None, None), Some((1800, 3150, 3600))),
            ((Some(u32::MAX), Some(1), Some(2)), None),
        ] {
            let (valid, t1, t2) = sent;
            let options = [
                valid.map(|s| option(code::LEASE_TIME, s)),
                t1.map(|s| option(code::T1, s)),
                t2.map(|s| option(code::T2, s)),
            ];
            let times = lease(options.into_iter().flatten().collect()).time;
            assert_eq!(
                times.map(|t| (t.t1.as_secs(), t.t2.as_secs(), t.valid.as_secs())),
                expected,
                "{sent:?}"
            );
        }
    }

    #[test]
    fn what_could_break_resolv_conf_or_the_link_is_left_out() {
        let lease = lease(vec![
            (code::DOMAIN, b"lan\nnameserver 203.0.113.1".to_vec()),
            (code::MTU, vec![0, 68]),
            (code::SUBNET_MASK, vec![255, 0, 255, 0]),
            (code::DNS, vec![0, 0, 0, 0, 192, 0, 2, 53, 9]),
        ]);
        assert_eq!((lease.domain, lease.mtu, lease.length), (None, None, 24));
        assert_eq!(lease.dns, vec![Ipv4Addr::new(192, 0, 2, 53)]);
    }

    #[test]
    fn an_answer_without_a_host_address_or_a_server_is_unusable() {
        let id = || vec![(code::SERVER_ID, vec![192, 0, 2, 1])];
        let from = |ip: [u8; 4], options| Lease::from_message(&answer(Kind::Offer, 1, Mac::new([2; 6]), ip.into(), options)).unwrap_err();
        for ip in [[0; 4], [224, 0, 0, 1], [127, 0, 0, 1], [255; 4]] {
            assert_eq!(from(ip, id()), Unusable::Address(ip.into()));
        }
        assert_eq!(from([192, 0, 2, 9], Vec::new()), Unusable::NoServer);
    }

    proptest! {
        #[test]
        fn any_routes_are_read_or_refused_and_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            prop_assert!(classless_routes(&bytes).is_none_or(|r| r.len() <= MAX_ROUTES));
        }

        #[test]
        fn times_are_always_in_order(valid: u32, t1: u32, t2: u32) {
            let option = |code: u8, s: u32| (code, s.to_be_bytes().to_vec());
            if let Some(t) = lease(vec![option(code::LEASE_TIME, valid), option(code::T1, t1), option(code::T2, t2)]).time {
                prop_assert!(Duration::ZERO < t.t1 && t.t1 <= t.t2 && t.t2 <= t.valid);
            }
        }
    }
}
