//! The loop: waits for the kernel, for DHCP servers and for timers, over all interfaces until one is up, over that one from then on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::rand::{GetRandomFlags, getrandom};

use super::link::{self, Choice, V4, V6};
use super::netlink::message::uapi::{RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE};
use super::netlink::message::{Link, Note};
use super::netlink::socket::{Notifications, Requests};
use super::port::Port;
use super::prefix::is_link_local;
use super::resolv::{self, Server};
use super::{Family, NetError, NetSettings, Summary, dns, pci, wait};

/// After an error of the loop itself one waits this long before the next round, so that a lasting error does not spin.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Ends the loop from another thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Ends the loop, for good.
    pub fn wake(&self) -> io::Result<()> {
        rustix::io::write(&*self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }
}

/// The network's state and its sockets.
#[derive(Debug)]
pub struct Engine {
    settings: NetSettings,
    requests: Requests,
    notifications: Notifications,
    ports: BTreeMap<u32, Port>,
    left: BTreeMap<u32, String>,
    winner: Option<u32>,
    dns: (Vec<Server>, Vec<String>),
    seed: u64,
}

impl Engine {
    /// Opens the sockets. Nothing is changed yet.
    pub fn open(settings: NetSettings) -> io::Result<Self> {
        // Notifications first: what happens between this and the lists is then told twice, not never.
        let notifications = Notifications::open()?;
        let mut seed = [0; 8];
        // Never waits: early in a boot the pool may not be ready, and nobody's secret hangs on this number.
        getrandom(&mut seed, GetRandomFlags::INSECURE)?;
        Ok(Self {
            settings,
            requests: Requests::open()?,
            notifications,
            ports: BTreeMap::new(),
            left: BTreeMap::new(),
            winner: None,
            dns: (Vec::new(), Vec::new()),
            seed: u64::from_ne_bytes(seed),
        })
    }

    /// Runs until an interface is up, and leaves the others as they were.
    pub fn until_up(&mut self, deadline: Instant, observe: &mut dyn FnMut(&str)) -> Result<(), NetError> {
        let began = Instant::now();
        let kernel = |doing| move |source| NetError::Kernel { doing, source };
        if link::turned_off(&self.settings) {
            return Err(NetError::Off);
        }
        self.list(observe).map_err(kernel("listing the network interfaces"))?;
        self.ports.values_mut().for_each(Port::mark_as_before);
        let mut last = String::new();
        let winner = loop {
            let expired = Instant::now() >= deadline;
            if let Some(winner) = self.first_up(expired) {
                break winner;
            }
            if expired {
                return Err(self.failure(began.elapsed()));
            }
            let waiting = self.waiting_for();
            if waiting != last {
                observe(&waiting);
                last = waiting;
            }
            self.round(Some(deadline), None, observe)
                .map_err(kernel("waiting for the network"))?;
        };
        self.winner = Some(winner);
        let others: Vec<u32> = self.ports.keys().copied().filter(|index| *index != winner).collect();
        for index in others {
            self.close(index).iter().for_each(|trouble| log::warn!("network: {trouble}"));
        }
        self.write_dns(observe);
        let summary = self.summary();
        let addresses: Vec<String> = summary.addresses.iter().map(ToString::to_string).collect();
        observe(&format!("{} is up: {}", summary.interface, addresses.join(", ")));
        Ok(())
    }

    /// Runs until woken; renews leases and follows what routers say. `tell` gets the summary after each round in which something happened.
    pub fn until_woken(&mut self, waker: &Waker, tell: &mut dyn FnMut(Summary)) {
        let mut observe = |line: &str| log::info!("network: {line}");
        let mut last = self.summary();
        loop {
            match self.round(None, Some(waker.0.as_fd()), &mut observe) {
                Ok(true) => return,
                Ok(false) => {}
                Err(err) => {
                    log::warn!("network: waiting for the network: {err}");
                    match wait::readable(&[waker.0.as_fd()], Some(Instant::now() + AFTER_ERROR)) {
                        Ok(woken) if woken.is_empty() => {}
                        Ok(_) => return,
                        Err(err) => {
                            log::error!("network: no lease is renewed any more: {err}");
                            return;
                        }
                    }
                }
            }
            self.write_dns(&mut observe);
            let now = self.summary();
            if now != last {
                tell(now.clone());
                last = now;
            }
        }
    }

    /// Stops everything and, unless `keep`, undoes it. Returns what could not be undone.
    pub fn clean(&mut self, keep: bool) -> Vec<String> {
        if keep {
            self.ports.clear();
            return Vec::new();
        }
        let all: Vec<u32> = self.ports.keys().copied().collect();
        all.into_iter().flat_map(|index| self.close(index)).collect()
    }

    fn close(&mut self, index: u32) -> Vec<String> {
        self.ports
            .remove(&index)
            .map(|port| port.close(&self.settings.paths.proc, &mut self.requests))
            .unwrap_or_default()
    }

    /// One wait and what follows from it. True if `waker` ended the wait.
    fn round(&mut self, limit: Option<Instant>, waker: Option<BorrowedFd<'_>>, observe: &mut dyn FnMut(&str)) -> io::Result<bool> {
        let timers = self.ports.values().filter_map(Port::next_timer);
        let deadline = timers.chain(limit).min();
        let mut fds: Vec<BorrowedFd<'_>> = waker.into_iter().collect();
        fds.push(self.notifications.as_fd());
        fds.extend(self.ports.values().flat_map(Port::sockets));
        let ready = wait::readable(&fds, deadline)?;
        if waker.is_some() && ready.first() == Some(&0) {
            return Ok(true);
        }
        match self.notifications.read() {
            Ok(notes) => notes.into_iter().for_each(|note| self.note(note, observe)),
            Err(err) if err.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                log::warn!("network: the kernel said more than could be read; listing everything again");
                self.list(observe)?;
            }
            Err(err) => return Err(err),
        }
        let now = Instant::now();
        for port in self.ports.values_mut() {
            port.turn(now, &mut self.requests).iter().for_each(|line| observe(line));
        }
        Ok(false)
    }

    fn list(&mut self, observe: &mut dyn FnMut(&str)) -> io::Result<()> {
        for kind in [RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE] {
            for note in self.requests.list(kind)? {
                self.note(note, observe);
            }
        }
        Ok(())
    }

    fn note(&mut self, note: Note, observe: &mut dyn FnMut(&str)) {
        match note {
            Note::Link(link) => self.link(link, observe),
            Note::LinkGone(index) => {
                self.left.remove(&index);
                if let Some(port) = self.ports.remove(&index) {
                    observe(&format!("{} is gone", port.link.name));
                }
            }
            Note::Address(address) if address.global && address.prefix.address.is_ipv6() => {
                if let Some(port) = self.ports.get_mut(&address.index) {
                    let known = port.v6.iter().any(|a| a.prefix == address.prefix && a.usable == address.usable);
                    port.v6.retain(|a| a.prefix != address.prefix);
                    port.v6.push(address);
                    if address.usable && !known {
                        observe(&format!("{}: {}", port.link.name, address.prefix));
                    }
                }
            }
            Note::AddressGone(address) => {
                if let Some(port) = self.ports.get_mut(&address.index) {
                    port.v6.retain(|a| a.prefix != address.prefix);
                }
            }
            Note::Route(route) if route.ipv6 && !route.destination.is_some_and(|d| is_link_local(d.address)) => {
                if let Some(port) = self.ports.get_mut(&route.index)
                    && !port.v6_routes.contains(&route)
                {
                    port.v6_routes.push(route);
                }
            }
            Note::RouteGone(route) => {
                if let Some(port) = self.ports.get_mut(&route.index) {
                    port.v6_routes.retain(|r| *r != route);
                }
            }
            Note::Dns(index, dns) => {
                if let Some(port) = self.ports.get_mut(&index).filter(|p| p.plan.v6 == V6::Ra) {
                    port.heard.hear(dns, Instant::now());
                }
            }
            Note::Address(_) | Note::Route(_) | Note::Answer(_) | Note::Done => {}
        }
    }

    fn link(&mut self, link: Link, observe: &mut dyn FnMut(&str)) {
        let index = link.index;
        if !self.ports.contains_key(&index) && self.winner.is_none() {
            match link::choose(&self.settings, &link) {
                Choice::Leave(why) if !link.loopback => {
                    self.left.insert(index, format!("{} ({why})", link.name));
                }
                Choice::Leave(_) => {}
                Choice::Use(plan) => {
                    if let Some(mac) = link.mac {
                        observe(&format!("{} found ({mac})", link.name));
                    }
                    // What the kernel says about it from now on (carrier, too) follows as notifications.
                    let had_carrier = link.carrier;
                    let mut port = Port::open(link, plan, &self.settings.paths.proc, &mut self.requests);
                    if had_carrier {
                        port.start(&self.settings, next_seed(&mut self.seed), Instant::now(), &mut self.requests);
                    }
                    self.ports.insert(index, port);
                }
            }
            return;
        }
        let Some(port) = self.ports.get_mut(&index) else { return };
        if link.carrier != port.link.carrier {
            observe(&format!(
                "{}: {}",
                link.name,
                if link.carrier { "carrier" } else { "the carrier is lost" }
            ));
        }
        let (before, now) = (port.link.carrier, link.carrier);
        let settles = link.settled && !port.link.settled;
        port.link = link;
        match (before, now) {
            (false, true) => port.start(&self.settings, next_seed(&mut self.seed), Instant::now(), &mut self.requests),
            (true, false) => port.pause(),
            (true, true) if settles => port.hurry(Instant::now()),
            (true, true) | (false, false) => {}
        }
    }

    /// The interface that is up. With `anything`, an address without a default route will do.
    fn first_up(&self, anything: bool) -> Option<u32> {
        let up = |port: &Port| {
            let v6 = port.has_v6() || anything && port.has_v6_address();
            port.link.carrier
                && match self.settings.family {
                    None => port.has_v4() || v6,
                    Some(Family::V4) => port.has_v4(),
                    Some(Family::V6) => v6,
                }
        };
        self.ports.iter().find(|(_, port)| up(port)).map(|(index, _)| *index)
    }

    fn names(&self, filter: impl Fn(&Port) -> bool) -> Vec<String> {
        self.ports.values().filter(|p| filter(p)).map(|p| p.link.name.clone()).collect()
    }

    fn waiting_for(&self) -> String {
        let with = self.names(|p| p.link.carrier);
        if self.ports.is_empty() {
            return "waiting for a network interface".to_owned();
        }
        if with.is_empty() {
            return format!("waiting for a carrier on {}", self.names(|_| true).join(", "));
        }
        match self.asked() {
            0 => format!("waiting for an address on {}", with.join(", ")),
            1 => format!("waiting for an address on {} (DHCP asked once)", with.join(", ")),
            n => format!("waiting for an address on {} (DHCP asked {n} times)", with.join(", ")),
        }
    }

    fn asked(&self) -> u32 {
        self.ports.values().map(Port::asked).sum()
    }

    fn failure(&self, waited: Duration) -> NetError {
        let with = self.names(|p| p.link.carrier);
        if self.ports.is_empty() {
            let undriven = pci::without_driver(&self.settings.paths.sys);
            return NetError::NoInterface {
                left: self.left.values().cloned().collect(),
                undriven,
                waited,
            };
        }
        if with.is_empty() {
            return NetError::NoCarrier {
                links: self.names(|_| true),
                waited,
            };
        }
        let troubles = self.ports.values().filter_map(|p| p.trouble.clone()).collect();
        NetError::NoLease {
            links: with,
            asked: self.asked(),
            troubles,
            waited,
        }
    }

    /// Writes `resolv.conf` if what it should say has changed.
    fn write_dns(&mut self, observe: &mut dyn FnMut(&str)) {
        let Some(port) = self.winner.and_then(|index| self.ports.get(&index)) else {
            return;
        };
        let lease = port.lease.as_ref().map(|(lease, _)| lease);
        let chosen = dns::collect(&self.settings, &port.link, &port.plan, lease, &port.heard, Instant::now());
        if chosen == self.dns {
            return;
        }
        match resolv::write(&self.settings.paths.resolv_conf, &resolv::render(&chosen.0, &chosen.1)) {
            Ok(()) => {
                let list: Vec<String> = chosen.0.iter().map(ToString::to_string).collect();
                observe(&format!(
                    "DNS servers: {}",
                    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
                ));
                self.dns = chosen;
            }
            Err(err) => log::warn!("network: {err}"),
        }
    }

    /// What the network is.
    pub fn summary(&self) -> Summary {
        let Some(port) = self.winner.and_then(|index| self.ports.get(&index)) else {
            return Summary::default();
        };
        Summary {
            interface: port.link.name.clone(),
            mac: port.link.mac.map(|m| m.to_string()).unwrap_or_default(),
            addresses: port.addresses(),
            gateways: port.gateways(),
            dns: self.dns.0.clone(),
            search: self.dns.1.clone(),
            lease_seconds: match port.plan.v4 {
                V4::Dhcp { .. } => port.lease.as_ref().and_then(|(l, _)| l.time).map(|t| t.valid.as_secs()),
                V4::Off | V4::Static(_) => None,
            },
            leases: port.leases,
        }
    }
}

/// Another number for each client, and for each time that it begins again.
const fn next_seed(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    *seed
}
