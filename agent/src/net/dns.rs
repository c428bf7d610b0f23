//! Which DNS servers and domains count, from all who name some.

use std::time::Instant;

use super::NetSettings;
use super::dhcp::lease::Lease;
use super::link::LinkPlan;
use super::netlink::message::Link;
use super::ra::RaDns;
use super::resolv::{self, Server};

/// What routers say about DNS is kept for so many options: more are a mistake or an attack.
const MAX_KEPT: usize = 16;

/// What routers said, and until when it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard(Vec<(RaDns, Instant)>);

impl Heard {
    /// Takes in what a router says. The same servers or domains said again are refreshed; a lifetime of zero takes them back.
    pub fn hear(&mut self, dns: RaDns, now: Instant) {
        let lifetime = match &dns {
            RaDns::Servers(_, lifetime) | RaDns::Domains(_, lifetime) => *lifetime,
        };
        let same = |old: &RaDns| match (old, &dns) {
            (RaDns::Servers(a, _), RaDns::Servers(b, _)) => a == b,
            (RaDns::Domains(a, _), RaDns::Domains(b, _)) => a == b,
            (RaDns::Servers(..), RaDns::Domains(..)) | (RaDns::Domains(..), RaDns::Servers(..)) => false,
        };
        let known = self.0.iter().position(|(old, _)| same(old));
        match (known, now.checked_add(lifetime)) {
            (Some(at), _) if lifetime.is_zero() => drop(self.0.remove(at)),
            (Some(at), Some(until)) => self.0[at] = (dns, until),
            (None, Some(until)) if !lifetime.is_zero() => {
                self.0.retain(|(_, until)| *until > now);
                if self.0.len() < MAX_KEPT {
                    self.0.push((dns, until));
                }
            }
            (None, Some(_)) | (Some(_) | None, None) => {}
        }
    }
}

/// Servers and domains, best first: configured, `ip=`, DHCP, router advertisements.
pub fn collect(
    settings: &NetSettings,
    link: &Link,
    plan: &LinkPlan,
    lease: Option<&Lease>,
    heard: &Heard,
    now: Instant,
) -> (Vec<Server>, Vec<String>) {
    let server = |address| Server::new(address, &link.name);
    let mut servers: Vec<Server> = settings.dns.iter().chain(&plan.dns).copied().map(server).collect();
    let mut domains = settings.search.clone();
    if let Some(lease) = lease {
        servers.extend(lease.dns.iter().map(|a| server((*a).into())));
        domains.extend(lease.domain.clone());
    }
    for (dns, _) in heard.0.iter().filter(|(_, until)| *until > now) {
        match dns {
            RaDns::Servers(list, _) => servers.extend(list.iter().map(|a| server((*a).into()))),
            RaDns::Domains(list, _) => domains.extend(list.iter().cloned()),
        }
    }
    resolv::choose(servers, domains)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::link::{V4, V6};
    use super::*;
    use std::time::Duration;

    fn servers(text: &str, seconds: u64) -> RaDns {
        RaDns::Servers(vec![text.parse().unwrap()], Duration::from_secs(seconds))
    }

    #[test]
    fn configured_servers_come_first_then_ip_then_dhcp_then_routers() {
        let now = Instant::now();
        let ip = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
        let settings = NetSettings {
            dns: vec![ip("192.0.2.1")],
            search: vec!["one".to_owned()],
            ..NetSettings::default()
        };
        let link = Link {
            index: 1,
            name: "eth0".to_owned(),
            mac: None,
            kind: None,
            up: true,
            carrier: true,
            settled: true,
            loopback: false,
            mtu: 1500,
        };
        let plan = |dns| LinkPlan {
            v4: V4::Off,
            v6: V6::Ra,
            mtu: None,
            dns,
        };
        let lease = Lease {
            address: [192, 0, 2, 9].into(),
            length: 24,
            server: [192, 0, 2, 1].into(),
            routers: Vec::new(),
            routes: Vec::new(),
            dns: vec![[192, 0, 2, 3].into()],
            domain: Some("two".to_owned()),
            mtu: None,
            time: None,
        };
        let mut heard = Heard::default();
        heard.hear(servers("fe80::4", 10), now);
        let text = |plan: &LinkPlan, lease, now| {
            let (servers, domains) = collect(&settings, &link, plan, lease, &heard, now);
            (
                servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                domains.join(" "),
            )
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let with_ip = plan(vec![ip("192.0.2.2")]);
        assert_eq!(text(&with_ip, Some(&lease), now), pair("192.0.2.1 192.0.2.2 192.0.2.3", "one two"));
        assert_eq!(
            text(&plan(Vec::new()), Some(&lease), now),
            pair("192.0.2.1 192.0.2.3 fe80::4%eth0", "one two")
        );
        assert_eq!(
            text(&with_ip, None, now + Duration::from_secs(11)),
            pair("192.0.2.1 192.0.2.2", "one")
        );
    }

    #[test]
    fn what_routers_say_is_refreshed_expires_and_can_be_taken_back() {
        let now = Instant::now();
        let mut heard = Heard::default();
        heard.hear(servers("2001:db8::1", 10), now);
        heard.hear(servers("2001:db8::1", 20), now);
        heard.hear(servers("2001:db8::2", 5), now);
        assert_eq!(heard.0.len(), 2);
        heard.hear(servers("2001:db8::1", 0), now);
        assert_eq!(heard.0.len(), 1);
        heard.hear(servers("2001:db8::3", 5), now + Duration::from_secs(6));
        assert_eq!(
            heard.0.iter().map(|(d, _)| d.clone()).collect::<Vec<_>>(),
            [servers("2001:db8::3", 5)]
        );
    }

    #[test]
    fn a_router_that_names_servers_without_end_is_cut_off() {
        let now = Instant::now();
        let mut heard = Heard::default();
        for i in 1..100 {
            heard.hear(servers(&format!("2001:db8::{i}"), 100), now);
        }
        assert_eq!(heard.0.len(), MAX_KEPT);
    }
}
