//! Which interfaces may be used, and what each is to get: settings and a link in, a plan out.

use std::net::{IpAddr, Ipv4Addr};

use super::dhcp::lease::Lease;
use super::ip_param::{IpParam, Method};
use super::netlink::message::uapi::{RTPROT_BOOT, RTPROT_DHCP};
use super::netlink::message::{Link, Route};
use super::{NetSettings, Prefix};

/// Kinds of virtual links that lead nowhere by themselves; drivers make some of them on being loaded (`bond0`, `dummy0`, `ifb0`). One that is
/// named by `network.interface` is used all the same.
const LEADS_NOWHERE: [&str; 12] = [
    "bond",
    "bridge",
    "dummy",
    "gre",
    "ifb",
    "macvlan",
    "sit",
    "team",
    "tun",
    "vlan",
    "vxlan",
    "wireguard",
];

/// Whether an interface is used, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// It is a candidate and gets this.
    Use(LinkPlan),
    /// It is left alone, for this reason.
    Leave(&'static str),
}

/// What an interface is to get. Nothing in either family does not occur.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPlan {
    /// IPv4.
    pub v4: V4,
    /// IPv6.
    pub v6: V6,
    /// The MTU, unless a lease says otherwise.
    pub mtu: Option<u16>,
    /// DNS servers of the `ip=` parameters.
    pub dns: Vec<IpAddr>,
}

/// How an interface comes by IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum V4 {
    /// Not at all.
    Off,
    /// By DHCP.
    Dhcp {
        /// A host name to tell the server.
        hostname: Option<String>,
        /// An address to ask for.
        requested: Option<Ipv4Addr>,
    },
    /// As written down.
    Static(Wanted),
}

/// How an interface comes by IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum V6 {
    /// Not at all.
    Off,
    /// By router advertisement.
    Ra,
    /// As written down.
    Static(Wanted),
}

/// An address with its routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The address.
    pub address: Prefix,
    /// The routes, in the order in which they can be added.
    pub routes: Vec<Route>,
    /// The MTU.
    pub mtu: Option<u16>,
}

/// Decides about one link.
pub fn choose(settings: &NetSettings, link: &Link) -> Choice {
    if link.loopback {
        return Choice::Leave("loopback");
    }
    if link.mac.is_none() {
        return Choice::Leave("not Ethernet");
    }
    if settings.interface.as_ref().is_some_and(|name| *name != link.name) {
        return Choice::Leave("not the interface that network.interface names");
    }
    if settings.bootif.is_some_and(|mac| link.mac != Some(mac)) {
        return Choice::Leave("not the interface that BOOTIF names");
    }
    if settings.interface.is_none() && link.kind.as_deref().is_some_and(|kind| LEADS_NOWHERE.contains(&kind)) {
        return Choice::Leave("virtual");
    }
    match plan(settings, link) {
        Some(plan) if plan.v4 != V4::Off || plan.v6 != V6::Off => Choice::Use(plan),
        Some(_) => Choice::Leave("turned off by ip="),
        None => Choice::Leave("not an interface that ip= names"),
    }
}

/// Whether the settings leave nothing to any interface, so that there is nothing to wait for.
pub fn turned_off(settings: &NetSettings) -> bool {
    let off = |p: &IpParam| p.method == Method::Off || p.method == Method::RouterAdvertisement && !settings.ipv6;
    !settings.ip.is_empty() && settings.ip.iter().all(off)
}

fn plan(settings: &NetSettings, link: &Link) -> Option<LinkPlan> {
    let dhcp = |hostname: Option<&String>, requested| V4::Dhcp {
        hostname: hostname.or(settings.hostname.as_ref()).cloned(),
        requested,
    };
    let ra = if settings.ipv6 { V6::Ra } else { V6::Off };
    let mut plan = LinkPlan {
        v4: V4::Off,
        v6: V6::Off,
        mtu: None,
        dns: Vec::new(),
    };
    if settings.ip.is_empty() {
        return Some(LinkPlan {
            v4: dhcp(None, None),
            v6: ra,
            ..plan
        });
    }
    let mine: Vec<_> = settings
        .ip
        .iter()
        .filter(|p| p.device.as_ref().is_none_or(|d| *d == link.name))
        .collect();
    // Later parameters win in their family, as everywhere on the command line.
    for param in &mine {
        let requested = param.client.and_then(|c| match c.address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        match (param.method, param.client) {
            (Method::Dhcp, _) => plan.v4 = dhcp(param.hostname.as_ref(), requested),
            (Method::RouterAdvertisement, _) => plan.v6 = ra.clone(),
            (Method::Both, _) => (plan.v4, plan.v6) = (dhcp(param.hostname.as_ref(), requested), ra.clone()),
            (Method::Static, Some(client)) if client.address.is_ipv4() => plan.v4 = V4::Static(fixed(client, param.gateway, param.mtu)),
            (Method::Static, Some(client)) => plan.v6 = V6::Static(fixed(client, param.gateway, param.mtu)),
            (Method::Static, None) | (Method::Off, _) => {}
        }
        plan.mtu = param.mtu.or(plan.mtu);
        plan.dns.extend(&param.dns);
    }
    (!mine.is_empty()).then_some(plan)
}

fn fixed(address: Prefix, gateway: Option<IpAddr>, mtu: Option<u16>) -> Wanted {
    let everywhere = if address.address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let routes = gateway.map(|g| {
        through(
            address,
            Prefix {
                address: everywhere,
                length: 0,
            },
            Some(g),
            RTPROT_BOOT,
        )
    });
    Wanted {
        address,
        routes: routes.into_iter().collect(),
        mtu,
    }
}

/// What a lease means for the interface.
pub fn of_lease(lease: &Lease, mtu: Option<u16>) -> Wanted {
    let address = Prefix {
        address: lease.address.into(),
        length: lease.length,
    };
    let classless = lease.routes.iter().map(|r| {
        let gateway = (!r.gateway.is_unspecified()).then_some(IpAddr::V4(r.gateway));
        through(
            address,
            Prefix {
                address: r.destination.into(),
                length: r.length,
            },
            gateway,
            RTPROT_DHCP,
        )
    });
    let default = lease.routers.first().map(|router| {
        let everywhere = Prefix {
            address: Ipv4Addr::UNSPECIFIED.into(),
            length: 0,
        };
        through(address, everywhere, Some((*router).into()), RTPROT_DHCP)
    });
    let mut routes: Vec<Route> = Vec::new();
    for route in classless.chain(default) {
        // The first of two routes to one place counts.
        if routes.iter().all(|r| r.destination != route.destination) {
            routes.push(route);
        }
    }
    // A gateway may be reached by another of these routes, so those on the link come first.
    routes.sort_by_key(|r| r.gateway.is_some());
    Wanted {
        address,
        routes,
        mtu: lease.mtu.or(mtu),
    }
}

/// A gateway outside our network is declared to be on the link: hosters with /32 leases mean just that.
fn through(address: Prefix, destination: Prefix, gateway: Option<IpAddr>, protocol: u8) -> Route {
    let onlink = gateway.is_some_and(|g| g.is_ipv4() && !address.contains(g));
    Route {
        destination,
        gateway,
        onlink,
        protocol,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::ip_param;
    use super::super::mac::Mac;
    use super::*;
    use crate::net::dhcp::lease::ClasslessRoute;

    fn link(name: &str, last: u8) -> Link {
        Link {
            index: last.into(),
            name: name.to_owned(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, last])),
            kind: None,
            up: false,
            carrier: false,
            settled: false,
            loopback: false,
            mtu: 1500,
        }
    }

    fn settings(ip: &[&str]) -> NetSettings {
        NetSettings {
            ip: ip.iter().map(|t| ip_param::parse(t).unwrap()).collect(),
            ..NetSettings::default()
        }
    }

    const DHCP: V4 = V4::Dhcp {
        hostname: None,
        requested: None,
    };

    #[test]
    fn every_ethernet_link_is_a_candidate_unless_settings_say_otherwise() {
        let (eth0, eth1) = (link("eth0", 1), link("eth1", 2));
        let used = |settings: &NetSettings, link: &Link| matches!(choose(settings, link), Choice::Use(_));
        let any = settings(&[]);
        let by_name = NetSettings {
            interface: Some("eth1".to_owned()),
            ..settings(&[])
        };
        let by_mac = NetSettings {
            bootif: eth1.mac,
            ..settings(&[])
        };
        for (settings, expected) in [
            (&any, (true, true)),
            (&by_name, (false, true)),
            (&by_mac, (false, true)),
            (&settings(&["eth1:dhcp"]), (false, true)),
            (&settings(&["off"]), (false, false)),
            (&settings(&["dhcp"]), (true, true)),
        ] {
            assert_eq!((used(settings, &eth0), used(settings, &eth1)), expected, "{settings:?}");
        }
        for other in [
            Link {
                loopback: true,
                ..eth0.clone()
            },
            Link { mac: None, ..eth0.clone() },
            Link {
                kind: Some("dummy".to_owned()),
                ..eth0.clone()
            },
        ] {
            assert!(!used(&any, &other), "{other:?}");
        }
        assert!(
            used(
                &by_name,
                &Link {
                    kind: Some("bridge".to_owned()),
                    ..eth1
                }
            ),
            "a virtual link that is named is used"
        );
    }

    #[test]
    fn the_methods_of_ip_mean_what_the_table_in_the_docs_says() {
        let plan = |ip: &[&str]| match choose(&settings(ip), &link("eth0", 1)) {
            Choice::Use(plan) => (plan.v4, plan.v6),
            Choice::Leave(why) => panic!("{why}"),
        };
        assert_eq!(plan(&[]), (DHCP, V6::Ra));
        assert_eq!(plan(&["dhcp"]), (DHCP, V6::Off));
        assert_eq!(plan(&["auto6"]), (V4::Off, V6::Ra));
        assert_eq!(plan(&["either6"]), (DHCP, V6::Ra));
        assert_eq!(plan(&["dhcp", "auto6"]), (DHCP, V6::Ra));
        let (v4, v6) = plan(&["192.0.2.9::192.0.2.1:24", "[2001:db8::9]::[fe80::1]:64"]);
        assert!(matches!(v4, V4::Static(w) if w.routes.len() == 1 && !w.routes[0].onlink));
        assert!(matches!(v6, V6::Static(w) if w.address.length == 64 && w.routes.len() == 1));
        let (v4, _) = plan(&["192.0.2.9::::web-1::dhcp"]);
        assert_eq!(
            v4,
            V4::Dhcp {
                hostname: Some("web-1".to_owned()),
                requested: Some(Ipv4Addr::new(192, 0, 2, 9))
            }
        );
    }

    #[test]
    fn ipv6_can_be_turned_off_as_a_whole() {
        let off = NetSettings {
            ipv6: false,
            ..settings(&[])
        };
        assert!(matches!(choose(&off, &link("eth0", 1)), Choice::Use(LinkPlan { v6: V6::Off, .. })));
    }

    fn lease() -> Lease {
        Lease {
            address: Ipv4Addr::new(192, 0, 2, 9),
            length: 24,
            server: Ipv4Addr::new(192, 0, 2, 1),
            routers: vec![Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)],
            routes: Vec::new(),
            dns: Vec::new(),
            domain: None,
            mtu: None,
            time: None,
        }
    }

    #[test]
    fn the_first_router_of_a_lease_is_the_default_route() {
        let wanted = of_lease(&lease(), Some(1400));
        let text: Vec<_> = wanted
            .routes
            .iter()
            .map(|r| (r.destination.to_string(), r.gateway.unwrap().to_string(), r.onlink))
            .collect();
        assert_eq!(text, [("0.0.0.0/0".to_owned(), "192.0.2.1".to_owned(), false)]);
        assert_eq!(wanted.mtu, Some(1400));
    }

    #[test]
    fn a_router_outside_the_network_is_on_the_link() {
        assert!(of_lease(&Lease { length: 32, ..lease() }, None).routes[0].onlink);
    }

    #[test]
    fn classless_routes_on_the_link_come_first_and_each_destination_once() {
        let route = |d: [u8; 4], length, g: [u8; 4]| ClasslessRoute {
            destination: d.into(),
            length,
            gateway: g.into(),
        };
        let routes = vec![
            route([0; 4], 0, [198, 51, 100, 1]),
            route([198, 51, 100, 1], 32, [0; 4]),
            route([0; 4], 0, [192, 0, 2, 1]),
        ];
        let wanted = of_lease(
            &Lease {
                routers: Vec::new(),
                routes,
                ..lease()
            },
            None,
        );
        let text: Vec<_> = wanted
            .routes
            .iter()
            .map(|r| (r.destination.to_string(), r.gateway.map(|g| g.to_string())))
            .collect();
        assert_eq!(
            text,
            [
                ("198.51.100.1/32".to_owned(), None),
                ("0.0.0.0/0".to_owned(), Some("198.51.100.1".to_owned()))
            ]
        );
    }
}
