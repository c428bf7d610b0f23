//! A network that somebody else configures: it is waited for, by the kernel's events, and never touched.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use super::netlink::message::uapi::{RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE};
use super::netlink::socket::{Notifications, Requests};
use super::present::{Need, Present};
use super::{NetError, NetSettings, Summary, pci, wait};

/// Waits until `deadline` for an interface that has an address and a route. `observe` is told what is being waited for, a line each.
///
/// # Errors
/// What there is instead.
pub fn wait_for_systems(settings: &NetSettings, deadline: Instant, observe: &mut dyn FnMut(&str)) -> Result<Summary, NetError> {
    let began = Instant::now();
    let kernel = |doing| move |source| NetError::Kernel { doing, source };
    let need = Need {
        interface: settings.interface.as_deref(),
        family: settings.family,
    };
    // First of all: what happens between this and the lists is then told twice, not never.
    let mut notifications = Notifications::open().map_err(kernel("opening a netlink socket"))?;
    let mut present = list().map_err(kernel("listing the network interfaces"))?;
    let mut last = String::new();
    loop {
        let expired = Instant::now() >= deadline;
        if let Some(index) = present.up(need, expired) {
            let summary = present.summary(index);
            let addresses: Vec<String> = summary.addresses.iter().map(ToString::to_string).collect();
            observe(&format!("{} is up: {}", summary.interface, addresses.join(", ")));
            return Ok(summary);
        }
        if expired {
            let waited = began.elapsed();
            let links = present.links(need);
            let described = present.described(need);
            return Err(match (links.is_empty(), described.is_empty()) {
                (true, _) => NetError::NoInterface {
                    left: present.left(need),
                    undriven: pci::without_driver(&settings.paths.sys),
                    waited,
                },
                (false, true) => NetError::NoCarrier { links, waited },
                (false, false) => NetError::NotConfigured { links: described, waited },
            });
        }
        let waiting = waiting_for(&present, need);
        if waiting != last {
            observe(&waiting);
            last = waiting;
        }
        wait::readable(&[notifications.as_fd()], Some(deadline)).map_err(kernel("waiting for the network"))?;
        match notifications.read() {
            Ok(notes) => notes.into_iter().for_each(|note| present.note(note)),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                present = list().map_err(kernel("listing the network interfaces"))?;
            }
            Err(error) => return Err(kernel("waiting for the network")(error)),
        }
    }
}

fn list() -> io::Result<Present> {
    let mut requests = Requests::open()?;
    let mut present = Present::default();
    for kind in [RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE] {
        requests.list(kind)?.into_iter().for_each(|note| present.note(note));
    }
    Ok(present)
}

fn waiting_for(present: &Present, need: Need<'_>) -> String {
    let (links, described) = (present.links(need), present.described(need));
    match (links.as_slice(), described.as_slice()) {
        ([], _) => "waiting for a network interface".to_owned(),
        (links, []) => format!("waiting for a carrier on {}", links.join(", ")),
        (_, described) => format!("waiting for the system to configure the network: {}", described.join(", ")),
    }
}
