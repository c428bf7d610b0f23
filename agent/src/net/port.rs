//! One interface: what it is to get, what it has got, and how that is undone.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::dhcp::client::{Config, Gone};
use super::dhcp::lease::Lease;
use super::dhcp::session::{Outcome, Session};
use super::dns::Heard;
use super::link::{self, LinkPlan, V4, V6, Wanted};
use super::netlink::message::{self, Address, Link, Route, SeenRoute};
use super::netlink::socket::Requests;
use super::ra;
use super::{NetSettings, Prefix};

/// An interface that is used.
#[derive(Debug)]
pub struct Port {
    /// The link as the kernel last described it.
    pub link: Link,
    /// What it is to get.
    pub plan: LinkPlan,
    /// What went wrong last, for the error at the end.
    pub trouble: Option<String>,
    /// The DHCP lease and when it was asked for.
    pub lease: Option<(Lease, Instant)>,
    /// How often a lease was granted or renewed.
    pub leases: u32,
    /// The global IPv6 addresses that the interface has.
    pub v6: Vec<Address>,
    /// The routes of IPv6, link-local ones left out.
    pub v6_routes: Vec<SeenRoute>,
    /// What routers said about DNS.
    pub heard: Heard,
    dhcp: Option<Session>,
    applied: Vec<Wanted>,
    set_up_by_us: bool,
    former_mtu: Option<u32>,
    sysctls: ra::Changed,
    before: (Vec<Address>, Vec<SeenRoute>),
}

impl Port {
    /// Takes an interface into use: prepares IPv6 and sets it up.
    pub fn open(link: Link, plan: LinkPlan, proc: &Path, requests: &mut Requests) -> Self {
        let mut port = Self {
            link,
            plan,
            trouble: None,
            lease: None,
            leases: 0,
            v6: Vec::new(),
            v6_routes: Vec::new(),
            heard: Heard::default(),
            dhcp: None,
            applied: Vec::new(),
            set_up_by_us: false,
            former_mtu: None,
            sysctls: ra::Changed::default(),
            before: (Vec::new(), Vec::new()),
        };
        // Before the link is up: that is when the kernel asks for routers.
        let wanted = match port.plan.v6 {
            V6::Ra => ra::LISTEN,
            V6::Static(_) => ra::FIXED,
            V6::Off => ra::IGNORE,
        };
        match ra::configure(proc, &port.link.name, wanted, &mut port.sysctls) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound && port.plan.v6 == V6::Off => {}
            Err(err) => port.note(format!("no IPv6 on {}: {err}", port.link.name)),
        }
        if !port.link.up {
            port.set_up_by_us = true;
            if let Err(err) = requests.change(message::set_up(port.link.index, true)) {
                port.note(format!("setting {} up: {err}", port.link.name));
            }
        }
        port
    }

    fn note(&mut self, trouble: String) {
        log::warn!("network: {trouble}");
        self.trouble = Some(trouble);
    }

    /// What the interface has now was there before us, and stays.
    pub fn mark_as_before(&mut self) {
        self.before = (self.v6.clone(), self.v6_routes.clone());
    }

    /// The carrier came: begin.
    pub fn start(&mut self, settings: &NetSettings, seed: u64, now: Instant, requests: &mut Requests) {
        for fixed in [self.fixed_v4(), self.fixed_v6()].into_iter().flatten() {
            self.apply(&fixed, None, requests);
        }
        if let (V4::Dhcp { hostname, requested }, None, Some(mac)) = (&self.plan.v4, &self.dhcp, self.link.mac) {
            let config = Config {
                mac,
                hostname: hostname.clone(),
                requested: *requested,
                first_retry: settings.dhcp_first_retry,
                longest_retry: settings.dhcp_longest_retry,
            };
            self.dhcp = Some(Session::new(&self.link.name, self.link.index, config, seed, now));
        }
    }

    /// The link has settled: what was sent before may have been dropped by a queue that was not there yet.
    pub const fn hurry(&mut self, now: Instant) {
        if let Some(dhcp) = &mut self.dhcp {
            dhcp.hurry(now);
        }
    }

    /// The carrier went before there was an address: forget the attempt.
    pub fn pause(&mut self) {
        if self.lease.is_none() {
            self.dhcp = None;
        }
    }

    fn fixed_v4(&self) -> Option<Wanted> {
        match &self.plan.v4 {
            V4::Static(wanted) => Some(wanted.clone()),
            V4::Off | V4::Dhcp { .. } => None,
        }
    }

    fn fixed_v6(&self) -> Option<Wanted> {
        match &self.plan.v6 {
            V6::Static(wanted) => Some(wanted.clone()),
            V6::Off | V6::Ra => None,
        }
    }

    /// When something is to be done without anybody sending anything.
    pub fn next_timer(&self) -> Option<Instant> {
        self.dhcp.as_ref().and_then(Session::next_timer)
    }

    /// How often a DHCP server was asked for.
    pub fn asked(&self) -> u32 {
        self.dhcp.as_ref().map_or(0, Session::asked)
    }

    /// The sockets to wait for.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.dhcp.iter().flat_map(Session::sockets)
    }

    /// Reads what has come in, and does what is due. Cheap if nothing has and nothing is. Says what happened.
    pub fn turn(&mut self, now: Instant, requests: &mut Requests) -> Vec<String> {
        let mut said = Vec::new();
        for outcome in self.dhcp.as_mut().map(|d| d.turn(now)).unwrap_or_default() {
            match outcome {
                Outcome::Leased(lease, since) => said.push(self.configure(lease, since, now, requests)),
                Outcome::Gone(gone) => {
                    let why = match gone {
                        Gone::Refused => "refused by the server",
                        Gone::Expired => "expired",
                    };
                    said.push(format!("{}: the lease is gone ({why})", self.link.name));
                    self.lease = None;
                    self.drop_family(true, requests);
                }
                Outcome::Trouble(trouble) => self.note(trouble),
            }
        }
        said
    }

    fn configure(&mut self, lease: Lease, since: Instant, now: Instant, requests: &mut Requests) -> String {
        let wanted = link::of_lease(&lease, self.plan.mtu);
        let valid = lease.time.map(|t| (since + t.valid).saturating_duration_since(now));
        self.apply(&wanted, valid, requests);
        self.leases += 1;
        let renewed = self.lease.as_ref().is_some_and(|(old, _)| old.address == lease.address);
        let text = format!(
            "{}: {} {} by {} for {}",
            self.link.name,
            wanted.address,
            if renewed { "renewed" } else { "leased" },
            lease.server,
            lease.time.map_or_else(|| "ever".to_owned(), |t| format!("{} s", t.valid.as_secs()))
        );
        self.lease = Some((lease, since));
        text
    }

    /// Brings the interface from what was applied in this family to `wanted`.
    fn apply(&mut self, wanted: &Wanted, valid: Option<Duration>, requests: &mut Requests) {
        let v4 = wanted.address.address.is_ipv4();
        let index = self.link.index;
        if self
            .applied
            .iter()
            .any(|a| a.address.address.is_ipv4() == v4 && a.address != wanted.address)
        {
            self.drop_family(v4, requests);
        }
        if let Some(mtu) = wanted.mtu.or(self.plan.mtu).map(u32::from).filter(|m| *m != self.link.mtu) {
            match requests.change(message::set_mtu(index, mtu)) {
                Ok(()) => {
                    self.former_mtu.get_or_insert(self.link.mtu);
                    self.link.mtu = mtu;
                }
                Err(err) => log::warn!("network: setting the MTU of {} to {mtu}: {err}", self.link.name),
            }
        }
        if let Err(err) = requests.change(message::add_address(index, wanted.address, valid)) {
            self.note(format!("adding the address {} to {}: {err}", wanted.address, self.link.name));
            return;
        }
        let former = match self.applied.iter().position(|a| a.address == wanted.address) {
            Some(at) => self.applied.remove(at).routes,
            None => Vec::new(),
        };
        for route in former.iter().filter(|r| !wanted.routes.contains(r)) {
            self.report(remove(requests, message::remove_route(index, route)), || {
                format!("removing the route to {}", route.destination)
            });
        }
        let mut routes = Vec::new();
        for route in &wanted.routes {
            let added = former.contains(route) || self.add_route(route, requests);
            routes.extend(added.then_some(*route));
        }
        self.applied.push(Wanted { routes, ..wanted.clone() });
    }

    fn add_route(&mut self, route: &Route, requests: &mut Requests) -> bool {
        match requests.change(message::add_route(self.link.index, route)) {
            Ok(()) => true,
            Err(err) => {
                self.note(format!("adding the route to {} on {}: {err}", route.destination, self.link.name));
                false
            }
        }
    }

    fn report(&mut self, result: io::Result<()>, doing: impl Fn() -> String) {
        if let Err(err) = result {
            self.note(format!("{} on {}: {err}", doing(), self.link.name));
        }
    }

    fn drop_family(&mut self, v4: bool, requests: &mut Requests) {
        let index = self.link.index;
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.applied)
            .into_iter()
            .partition(|a| a.address.address.is_ipv4() == v4);
        self.applied = stay;
        for wanted in gone {
            for route in wanted.routes.iter().rev() {
                self.report(remove(requests, message::remove_route(index, route)), || {
                    format!("removing the route to {}", route.destination)
                });
            }
            self.report(remove(requests, message::remove_address(index, wanted.address)), || {
                format!("removing the address {}", wanted.address)
            });
        }
    }

    /// Whether IPv4 is there: an address, and with it at least the route to its network.
    pub fn has_v4(&self) -> bool {
        self.applied.iter().any(|a| a.address.address.is_ipv4())
    }

    /// Whether IPv6 is there: a global address that may be used, and a default route unless the settings name none.
    pub fn has_v6(&self) -> bool {
        let routed = match &self.plan.v6 {
            V6::Off => false,
            V6::Ra => self.v6_default().next().is_some(),
            V6::Static(_) => true,
        };
        routed && self.has_v6_address()
    }

    /// Whether there is a global IPv6 address, be it without a default route.
    pub fn has_v6_address(&self) -> bool {
        self.plan.v6 != V6::Off && self.v6.iter().any(|a| a.usable)
    }

    fn v6_default(&self) -> impl Iterator<Item = &SeenRoute> {
        self.v6_routes.iter().filter(|r| r.destination.is_none())
    }

    /// The addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<Prefix> {
        let v4 = self.applied.iter().map(|a| a.address).filter(|a| a.address.is_ipv4());
        v4.chain(self.v6.iter().filter(|a| a.usable).map(|a| a.prefix)).collect()
    }

    /// The default gateways, IPv4 first.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let v4 = self.applied.iter().filter(|a| a.address.address.is_ipv4()).flat_map(|a| &a.routes);
        let v4 = v4.filter(|r| r.destination.length == 0).filter_map(|r| r.gateway);
        v4.chain(self.v6_default().filter_map(|r| r.gateway)).collect()
    }

    /// Undoes what was done. Returns what could not be undone.
    pub fn close(mut self, proc: &Path, requests: &mut Requests) -> Vec<String> {
        self.trouble = None;
        let mut troubles = Vec::new();
        let index = self.link.index;
        self.dhcp = None;
        self.drop_family(true, requests);
        self.drop_family(false, requests);
        let mut steps = Vec::new();
        if self.set_up_by_us {
            // The kernel removes what it configured itself along with that.
            steps.push((message::set_up(index, false), "setting it down".to_owned()));
        } else if self.plan.v6 == V6::Ra {
            // Addresses first; those of routers do not take the routes to their networks along.
            for address in self.v6.iter().filter(|a| !self.before.0.iter().any(|b| b.prefix == a.prefix)) {
                steps.push((
                    message::remove_address(index, address.prefix),
                    format!("removing the address {}", address.prefix),
                ));
            }
            for route in self.v6_routes.iter().filter(|r| !self.before.1.contains(r)) {
                let everywhere = Prefix {
                    address: Ipv6Addr::UNSPECIFIED.into(),
                    length: 0,
                };
                let destination = route.destination.unwrap_or(everywhere);
                let ours = Route {
                    destination,
                    gateway: route.gateway,
                    onlink: false,
                    protocol: route.protocol,
                };
                steps.push((message::remove_route(index, &ours), format!("removing the route to {destination}")));
            }
        }
        if let Some(mtu) = self.former_mtu {
            steps.push((message::set_mtu(index, mtu), format!("setting its MTU back to {mtu}")));
        }
        for (request, doing) in steps {
            if let Err(err) = remove(requests, request) {
                troubles.push(format!("{}: {doing}: {err}", self.link.name));
            }
        }
        match ra::restore(proc, &self.link.name, &self.sysctls) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => log::debug!("network: {err}"),
            Err(err) => troubles.push(err.to_string()),
        }
        troubles.extend(self.trouble);
        troubles
    }
}

/// Removing what is gone already is no error.
fn remove(requests: &mut Requests, request: super::netlink::codec::Builder) -> io::Result<()> {
    match requests.change(request) {
        Err(err)
            if [Errno::EADDRNOTAVAIL, Errno::ESRCH, Errno::ENODEV, Errno::ENOENT]
                .iter()
                .any(|e| err.raw_os_error() == Some(*e as i32)) =>
        {
            log::debug!("network: gone already: {err}");
            Ok(())
        }
        other => other,
    }
}
