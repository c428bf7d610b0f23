//! What most tests begin with: a machine, a link, and a server behind it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Ground;
use super::images::Offer;
use super::link::{Counts, Link};
use super::machine::Machine;
use super::net::{self, End, Net, Process};
use super::packet::Head;
use super::servers;
use super::shape::Shape;

/// Where the server is.
pub const SERVER: &str = "10.77.0.1:80";
/// The machine's addresses.
pub const NEAR: &[&str] = &["10.77.0.2/24", "fd77::2/64"];
const FAR: &[&str] = &["10.77.0.1/24", "fd77::1/64"];
/// The machine's end of the link.
pub const DEVICE: &str = "link0";

/// Two namespaces and the link between them.
#[derive(Debug)]
pub struct World<'a> {
    /// What is given.
    pub ground: &'a Ground,
    /// The machine's side.
    pub near: Net,
    /// The servers' side.
    pub far: Net,
    /// Between them.
    pub link: Link,
}

impl<'a> World<'a> {
    /// With these shapes.
    pub fn new(ground: &'a Ground, down: Shape, up: Shape) -> Result<Self> {
        let (near, far) = (Net::new("near")?, Net::new("far")?);
        let end = |net, addresses| End {
            net,
            device: DEVICE,
            addresses,
        };
        let link = net::link(end(&near, NEAR), end(&far, FAR), down, up)?;
        Ok(Self { ground, near, far, link })
    }

    /// The link is the same both ways.
    pub fn even(ground: &'a Ground, shape: Shape) -> Result<Self> {
        Self::new(ground, shape, shape)
    }

    /// The folder that servers serve: what it is can be changed by [`World::show`].
    pub fn root(&self) -> PathBuf {
        self.ground.dir.join("served")
    }

    /// Serves this from now on.
    pub fn show(&self, offer: &Offer) -> Result<()> {
        let (link, making) = (self.root(), self.ground.dir.join("served.making"));
        symlink(&offer.dir, &making).with_context(|| format!("making {}", making.display()))?;
        fs::rename(&making, &link).with_context(|| format!("making {}", link.display()))
    }

    /// nginx with that folder.
    pub fn serve(&self, offer: &Offer) -> Result<Process> {
        self.show(offer)?;
        servers::nginx_folder(&self.far, address(SERVER)?, &self.root(), &self.ground.dir)
    }

    /// A machine that asks the server, with these settings.
    pub fn machine(&self, name: &str, settings: &Value) -> Result<Machine> {
        self.ground.machine(&self.near, name, &format!("http://{SERVER}"))?.set(settings)
    }

    /// Where the counters stand.
    pub fn mark(&self) -> Mark {
        mark(&self.link)
    }

    /// What has gone over the link since then.
    pub fn since(&self, mark: &Mark) -> Cost {
        since(&self.link, mark)
    }
}

/// Where the counters of a link stood.
#[derive(Debug)]
pub struct Mark {
    down: Counts,
    heads: usize,
}

/// What went over a link.
#[derive(Debug)]
pub struct Cost {
    /// Bytes that came down, heads of IP and TCP included.
    pub bytes: u64,
    /// Requests, in order.
    pub requests: Vec<Head>,
    /// The statuses of the answers.
    pub statuses: Vec<u16>,
}

/// Where the counters of `link` stand.
pub fn mark(link: &Link) -> Mark {
    Mark {
        down: link.down(),
        heads: link.heads().len(),
    }
}

/// What has gone over `link` since then.
pub fn since(link: &Link, mark: &Mark) -> Cost {
    let heads = link.heads().split_off(mark.heads);
    Cost {
        bytes: link.down().bytes - mark.down.bytes,
        statuses: heads.iter().filter_map(Head::status).collect(),
        requests: heads.into_iter().filter(|head| head.asks().is_some()).collect(),
    }
}

/// An address that stands in the source.
pub fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("{text} is no address"))
}
