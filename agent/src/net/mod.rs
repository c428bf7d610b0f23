//! The network of the initrd: no udev, no tools, no daemon. `docs/network.md` says how it behaves.
//!
//! Pure: [`ip_param`], [`mac`], [`prefix`], [`link`] (which interface gets what), [`dns`], [`dhcp`] but for its sockets, the [`netlink`] codec, and the
//! readers of [`ra`], [`present`] (what somebody else has configured). Effects: [`port`] (one interface), [`engine`] (the loop over all of them),
//! [`systems`] (the wait for somebody else), [`resolv`], [`pci`].

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{SendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;

pub mod dhcp;
pub mod dns;
pub mod engine;
pub mod error;
pub mod ip_param;
pub mod link;
pub mod mac;
pub mod netlink;
pub mod pci;
pub mod port;
pub mod prefix;
pub mod present;
pub mod ra;
pub mod resolv;
pub mod systems;
pub mod wait;

pub use error::NetError;
pub use ip_param::IpParam;
pub use mac::Mac;
pub use prefix::Prefix;

use engine::{Engine, Waker};

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where files are that the network reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetPaths {
    /// Where sysfs is mounted; read for network cards without a driver.
    pub sys: PathBuf,
    /// Where procfs is mounted; IPv6 settings of interfaces are written below it.
    pub proc: PathBuf,
    /// The file with the DNS servers, replaced whenever they change.
    pub resolv_conf: PathBuf,
    /// The file that knows `localhost`, written if it is absent.
    pub hosts: PathBuf,
}

impl Default for NetPaths {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}

/// What the network is to be. The default is: every Ethernet interface, DHCP and router advertisements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSettings {
    /// The `ip=` parameters in their order. With none of them: DHCP, and router advertisements if `ipv6`.
    pub ip: Vec<IpParam>,
    /// Only the interface with this address (`BOOTIF=`).
    pub bootif: Option<Mac>,
    /// Only the interface of this name (`network.interface`).
    pub interface: Option<String>,
    /// DNS servers that come before those of `ip=`, DHCP and router advertisements.
    pub dns: Vec<IpAddr>,
    /// Domains to search, before those of DHCP and router advertisements.
    pub search: Vec<String>,
    /// A host name to tell DHCP servers.
    pub hostname: Option<String>,
    /// Whether router advertisements are listened to.
    pub ipv6: bool,
    /// The family that has to be there, as the image server is given by an address of it; none means that either will do.
    pub family: Option<Family>,
    /// The first delay before a DHCP message is repeated, doubled each time (RFC 2131 §4.1).
    pub dhcp_first_retry: Duration,
    /// The longest such delay. The RFC allows up to 64 s; 16 s is what a port costs at most that forwards late (spanning tree).
    pub dhcp_longest_retry: Duration,
    /// Files and folders.
    pub paths: NetPaths,
}

impl Default for NetSettings {
    fn default() -> Self {
        Self {
            ip: Vec::new(),
            bootif: None,
            interface: None,
            dns: Vec::new(),
            search: Vec::new(),
            hostname: None,
            ipv6: true,
            family: None,
            dhcp_first_retry: Duration::from_secs(4),
            dhcp_longest_retry: Duration::from_secs(16),
            paths: NetPaths::default(),
        }
    }
}

/// What the network is, for the report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The interface.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: String,
    /// The addresses, IPv4 first, link-local ones left out.
    pub addresses: Vec<Prefix>,
    /// The default gateways, IPv4 first.
    pub gateways: Vec<IpAddr>,
    /// The DNS servers, best first.
    pub dns: Vec<resolv::Server>,
    /// The domains to search.
    pub search: Vec<String>,
    /// The length of the DHCP lease in seconds; none without one, or with one for ever.
    pub lease_seconds: Option<u64>,
    /// How often a DHCP lease was granted or renewed.
    pub leases: u32,
}

/// The network while it is up. A thread renews the leases and follows what routers say; [`Network::tear_down`] ends it, and dropping does too, but
/// leaves addresses and routes as they are.
#[derive(Debug)]
pub struct Network {
    summary: Arc<Mutex<Summary>>,
    waker: Waker,
    thread: Option<JoinHandle<Option<Engine>>>,
}

impl Network {
    /// Brings the network up: sets all interfaces up that may be used, and returns as soon as the first of them has an address and a route. The
    /// others are set down again. `observe` is told what is being waited for and what comes, a line each.
    ///
    /// # Errors
    /// A [`NetError`] when the deadline has passed without an address, or the kernel refuses; what was changed is then undone.
    pub fn bring_up(settings: &NetSettings, deadline: Instant, observe: &mut dyn FnMut(&str)) -> Result<Self, NetError> {
        let kernel = |doing| move |source| NetError::Kernel { doing, source };
        if let Err(err) = resolv::write_hosts_if_absent(&settings.paths.hosts) {
            log::warn!("network: {err}");
        }
        let waker = Waker::new().map_err(kernel("making an eventfd"))?;
        let mut engine = Engine::open(settings.clone()).map_err(kernel("opening netlink sockets"))?;
        if let Err(err) = engine.until_up(deadline, observe) {
            undo(&mut engine);
            return Err(err);
        }
        let summary = Arc::new(Mutex::new(engine.summary()));
        let (shared, wake) = (Arc::clone(&summary), waker.clone());
        // Handed over through a channel, so that it is still ours if the thread cannot be started.
        let (hand_over, taken_over) = sync_channel(1);
        let spawned = thread::Builder::new().name("network".to_owned()).spawn(move || {
            let mut engine: Engine = taken_over.recv().ok()?;
            engine.until_woken(&wake, &mut |now| *shared.lock().unwrap_or_else(PoisonError::into_inner) = now);
            Some(engine)
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(err) => {
                undo(&mut engine);
                return Err(kernel("starting a thread")(err));
            }
        };
        if let Err(SendError(mut engine)) = hand_over.send(engine) {
            undo(&mut engine);
            return Err(kernel("handing over to a thread")(io::ErrorKind::BrokenPipe.into()));
        }
        Ok(Self {
            summary,
            waker,
            thread: Some(thread),
        })
    }

    /// What the network is now.
    pub fn summary(&self) -> Summary {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the thread. Unless `keep`, removes our addresses and routes, puts settings back and sets the links down that were set up here.
    ///
    /// # Errors
    /// Names everything that could not be removed; the rest has been.
    pub fn tear_down(mut self, keep: bool) -> Result<()> {
        let mut engine = self.stop()?.ok_or_else(|| anyhow!("the network is down already"))?;
        match engine.clean(keep) {
            troubles if troubles.is_empty() => Ok(()),
            troubles => Err(anyhow!("taking the network down: {}", troubles.join("; "))),
        }
    }

    fn stop(&mut self) -> Result<Option<Engine>> {
        let Some(thread) = self.thread.take() else { return Ok(None) };
        self.waker.wake().context("waking the network's thread")?;
        thread.join().map_err(|_| anyhow!("the network's thread panicked"))
    }
}

/// After a failure: what cannot be undone is said, as the failure itself is what the caller gets.
fn undo(engine: &mut Engine) {
    for trouble in engine.clean(false) {
        log::warn!("network: {trouble}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(err) = self.stop() {
            log::warn!("network: {err:#}");
        }
    }
}
