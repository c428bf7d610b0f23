//! What of the network is there, whoever configured it, from what the kernel tells. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::netlink::message::{Address, Link, Note, SeenRoute};
use super::{Family, Prefix, Summary};

/// Links, addresses and routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    links: BTreeMap<u32, Link>,
    addresses: Vec<Address>,
    routes: Vec<SeenRoute>,
}

/// What will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need<'a> {
    /// Only the interface of this name.
    pub interface: Option<&'a str>,
    /// Only this family.
    pub family: Option<Family>,
}

impl Present {
    /// Takes what the kernel says.
    pub fn note(&mut self, note: Note) {
        match note {
            Note::Link(link) => {
                self.links.insert(link.index, link);
            }
            Note::LinkGone(index) => {
                self.links.remove(&index);
                self.addresses.retain(|address| address.index != index);
                self.routes.retain(|route| route.index != index);
            }
            Note::Address(address) => {
                self.forget(&address);
                self.addresses.push(address);
            }
            Note::AddressGone(address) => self.forget(&address),
            Note::Route(route) => {
                if !self.routes.contains(&route) {
                    self.routes.push(route);
                }
            }
            Note::RouteGone(route) => self.routes.retain(|other| *other != route),
            Note::Dns(..) | Note::Answer(_) | Note::Done => {}
        }
    }

    fn forget(&mut self, gone: &Address) {
        self.addresses
            .retain(|address| (address.index, address.prefix) != (gone.index, gone.prefix));
    }

    /// The interface over which something can be asked: it has a carrier, an address and a route of one family. One with a default route comes before
    /// one without. IPv6 counts with a default route only, as routers without a way out are common, unless `anything` will do.
    pub fn up(&self, need: Need<'_>, anything: bool) -> Option<u32> {
        let ways = |link: &&Link| {
            let default = self.way(link, need.family, |route| route.destination.is_none());
            let some = self.way(link, need.family, |route| anything || !route.ipv6);
            (default, some)
        };
        let usable: Vec<(u32, (bool, bool))> = self.candidates(need).map(|link| (link.index, ways(&link))).collect();
        let with_default = usable.iter().find(|(_, (default, _))| *default);
        with_default
            .or_else(|| usable.iter().find(|(_, (_, some))| *some))
            .map(|(index, _)| *index)
    }

    fn way(&self, link: &Link, family: Option<Family>, good: impl Fn(&SeenRoute) -> bool) -> bool {
        let routes = self.routes.iter().filter(|route| route.index == link.index && good(route));
        let mut leading = routes.filter(|route| !route.destination.is_some_and(|to| is_link_local(to.address)));
        leading.any(|route| {
            let family_fits = match family {
                None => true,
                Some(Family::V4) => !route.ipv6,
                Some(Family::V6) => route.ipv6,
            };
            family_fits && self.usable(link.index).any(|address| address.is_ipv6() == route.ipv6)
        })
    }

    fn usable(&self, index: u32) -> impl Iterator<Item = IpAddr> {
        let of_link = self.addresses.iter().filter(move |address| address.index == index);
        of_link
            .filter(|address| address.global && address.usable && !is_link_local(address.prefix.address))
            .map(|address| address.prefix.address)
    }

    /// Interfaces that come into question, with a carrier.
    fn candidates(&self, need: Need<'_>) -> impl Iterator<Item = &Link> {
        self.links_for(need).filter(|link| link.carrier)
    }

    fn links_for(&self, need: Need<'_>) -> impl Iterator<Item = &Link> {
        let wanted = move |link: &&Link| need.interface.is_none_or(|name| link.name == name);
        self.links.values().filter(|link| !link.loopback).filter(wanted)
    }

    /// The names of the interfaces that come into question.
    pub fn links(&self, need: Need<'_>) -> Vec<String> {
        self.links_for(need).map(|link| link.name.clone()).collect()
    }

    /// The interfaces that do not, with the reason.
    pub fn left(&self, need: Need<'_>) -> Vec<String> {
        let others = self.links.values().filter(|link| !link.loopback);
        others
            .filter(|link| need.interface.is_some_and(|name| link.name != name))
            .map(|link| format!("{} (not network.interface)", link.name))
            .collect()
    }

    /// The interfaces with a carrier, each with what it has.
    pub fn described(&self, need: Need<'_>) -> Vec<String> {
        self.candidates(need)
            .map(|link| {
                let addresses: Vec<String> = self.usable(link.index).map(|address| address.to_string()).collect();
                let routed = self
                    .routes
                    .iter()
                    .any(|route| route.index == link.index && route.destination.is_none());
                let routed = if routed { "a default route" } else { "no default route" };
                match addresses.as_slice() {
                    [] => format!("{} has a carrier and no address", link.name),
                    [..] => format!("{} has {} and {routed}", link.name, addresses.join(", ")),
                }
            })
            .collect()
    }

    /// An interface, for the report.
    pub fn summary(&self, index: u32) -> Summary {
        let Some(link) = self.links.get(&index) else {
            return Summary::default();
        };
        let own = self
            .addresses
            .iter()
            .filter(|address| address.index == index && address.global && address.usable);
        let mut addresses: Vec<Prefix> = own.map(|address| address.prefix).collect();
        addresses.sort_by_key(|prefix| prefix.address.is_ipv6());
        let defaults = self
            .routes
            .iter()
            .filter(|route| route.index == index && route.destination.is_none());
        let mut gateways: Vec<IpAddr> = defaults.filter_map(|route| route.gateway).collect();
        gateways.sort_by_key(IpAddr::is_ipv6);
        gateways.dedup();
        Summary {
            interface: link.name.clone(),
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            addresses,
            gateways,
            ..Summary::default()
        }
    }
}

/// Whether an address reaches no further than the link: what machines give themselves when nobody gives them one.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ANY: Need<'_> = Need {
        interface: None,
        family: None,
    };

    fn link(index: u32, name: &str, carrier: bool) -> Note {
        Note::Link(Link {
            index,
            name: name.to_owned(),
            mac: None,
            kind: None,
            up: true,
            carrier,
            settled: true,
            loopback: name == "lo",
            mtu: 1500,
        })
    }

    fn address(index: u32, text: &str, usable: bool) -> Note {
        let address: IpAddr = text.parse().unwrap();
        Note::Address(Address {
            index,
            prefix: Prefix { address, length: 24 },
            global: !is_link_local(address),
            usable,
        })
    }

    fn route(index: u32, to: Option<&str>, ipv6: bool) -> Note {
        Note::Route(SeenRoute {
            index,
            destination: to.map(|text| Prefix {
                address: text.parse().unwrap(),
                length: 24,
            }),
            ipv6,
            gateway: None,
            protocol: 16,
        })
    }

    fn present(notes: Vec<Note>) -> Present {
        let mut present = Present::default();
        for note in [link(1, "lo", true), address(1, "127.0.0.1", true), route(1, None, false)]
            .into_iter()
            .chain(notes)
        {
            present.note(note);
        }
        present
    }

    #[test]
    fn an_interface_is_up_with_carrier_address_and_route_of_one_family() {
        let v4 = || {
            vec![
                link(2, "eth0", true),
                address(2, "10.0.2.15", true),
                route(2, Some("10.0.2.0"), false),
            ]
        };
        let v6 = || vec![link(2, "eth0", true), address(2, "fd00::15", true), route(2, Some("fd00::"), true)];
        let with = |mut notes: Vec<Note>, more: Note| {
            notes.push(more);
            notes
        };
        for (notes, expected, at_the_end) in [
            (vec![], None, None),
            (vec![link(2, "eth0", true)], None, None),
            (v4(), Some(2), Some(2)),
            (with(v4(), link(2, "eth0", false)), None, None),
            (with(v4(), Note::LinkGone(2)), None, None),
            (vec![link(2, "eth0", true), address(2, "10.0.2.15", true)], None, None),
            (
                vec![
                    link(2, "eth0", true),
                    address(2, "169.254.3.4", true),
                    route(2, Some("169.254.0.0"), false),
                ],
                None,
                None,
            ),
            (v6(), None, Some(2)),
            (with(v6(), route(2, None, true)), Some(2), Some(2)),
            (with(with(v6(), route(2, None, true)), address(2, "fd00::15", false)), None, None),
            // Of two, the one with a default route; the other costs nothing.
            (
                with(
                    [v4(), vec![link(3, "eth1", true), address(3, "10.9.9.9", true)]].concat(),
                    route(3, None, false),
                ),
                Some(3),
                Some(3),
            ),
            (with(v4(), link(3, "eth1", true)), Some(2), Some(2)),
        ] {
            let present = present(notes.clone());
            assert_eq!((present.up(ANY, false), present.up(ANY, true)), (expected, at_the_end), "{notes:?}");
        }
    }

    #[test]
    fn the_named_interface_and_the_family_of_the_server_are_waited_for() {
        let present = present(vec![
            link(2, "eth0", true),
            address(2, "10.0.2.15", true),
            route(2, None, false),
            link(3, "eth1", true),
            address(3, "fd00::15", true),
            route(3, None, true),
        ]);
        let need = |interface, family| Need { interface, family };
        assert_eq!(present.up(need(Some("eth1"), None), false), Some(3));
        assert_eq!(present.up(need(Some("eth2"), None), false), None);
        assert_eq!(present.up(need(None, Some(Family::V6)), false), Some(3));
        assert_eq!(present.up(need(Some("eth0"), Some(Family::V6)), true), None);
        assert_eq!(present.left(need(Some("eth1"), None)), ["eth0 (not network.interface)"]);
        assert_eq!(
            present.described(ANY),
            ["eth0 has 10.0.2.15 and a default route", "eth1 has fd00::15 and a default route"]
        );
        assert_eq!(present.summary(2).interface, "eth0");
    }
}
