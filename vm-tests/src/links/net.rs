//! Network namespaces, what connects them, and processes in them. All of it lives in a process tree and a mount namespace of its own (see `inside`), and is
//! gone with them.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fd::AsFd as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::link::Link;
use super::shape::Shape;
use super::tun;
use crate::command::{Tool, tail};

const IP_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(20);
/// How TCP finds its speed, of the namespace of who looks.
pub const CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
/// Between two looks whether a server listens.
const LOOK: Duration = Duration::from_millis(20);

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Net {
    name: String,
}

/// An end of a link or a cable: its name there, and its addresses with their prefixes.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// In this namespace.
    pub net: &'a Net,
    /// Its name.
    pub device: &'a str,
    /// Addresses with their prefixes.
    pub addresses: &'a [&'a str],
}

impl Net {
    /// A new namespace with nothing but its loopback.
    pub fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let net = Self { name: name.to_owned() };
        net.ip(&["link", "set", "lo", "up"])?;
        net.control("reno")?;
        Ok(net)
    }

    /// Has its TCP find its speed by `algorithm`. Kernels have different ones by default; every kernel has Reno, which suffers most from loss.
    pub fn control(&self, algorithm: &str) -> Result<()> {
        self.within(|| fs::write(CONTROL, algorithm).with_context(|| format!("setting {CONTROL} to {algorithm}")))
    }

    /// `ip` in it.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// The file that it is entered by.
    fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.file().display()))
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Does `work` in it, by a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let there = || {
            let file = File::open(self.file()).with_context(|| format!("opening the namespace {}", self.name))?;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering the namespace {}", self.name))?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(there).join())
            .map_err(|_| anyhow::anyhow!("a thread in the namespace {} panicked", self.name))?
    }

    fn set_up(&self, end: &End<'_>) -> Result<()> {
        for address in end.addresses {
            let more: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            self.ip(&[&["address", "add", address, "dev", end.device], more].concat())?;
        }
        self.ip(&["link", "set", end.device, "up"])
    }
}

/// `ip` from iproute2.
fn ip(arguments: &[&str]) -> Result<()> {
    Tool::new("ip", IP_LIMIT).args(arguments).run()
}

/// A link of ours between two namespaces. `down` shapes the way from `far` to `near`, `up` the other.
pub fn link(near: End<'_>, far: End<'_>, down: Shape, up: Shape) -> Result<Link> {
    let files = (tun::open(&near.net.file(), near.device)?, tun::open(&far.net.file(), far.device)?);
    let link = Link::open(files.0, files.1, down, up)?;
    near.net.set_up(&near)?;
    far.net.set_up(&far)?;
    Ok(link)
}

/// A cable between two namespaces, as fast as the machine.
pub fn cable(one: End<'_>, other: End<'_>) -> Result<()> {
    ip(&[
        "link",
        "add",
        one.device,
        "netns",
        &one.net.name,
        "type",
        "veth",
        "peer",
        "name",
        other.device,
        "netns",
        &other.net.name,
    ])?;
    one.net.set_up(&one)?;
    other.net.set_up(&other)
}

/// A server that runs, until it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, whose output goes to a file `<name>.log` in `dir`, and waits until it listens at `address` in `net`.
    pub fn start(net: &Net, name: &str, mut command: Command, address: SocketAddr, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let errors = file.try_clone().context("opening a log twice")?;
        let child = command
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let mut process = Self {
            name: name.to_owned(),
            child,
            log,
        };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if net.within(|| Ok(TcpStream::connect_timeout(&address, START_LIMIT).is_ok()))? {
                return Ok(process);
            }
            if let Some(status) = process.child.try_wait().context("looking at a server")? {
                bail!("{name} ended at once ({status}): {}", process.said());
            }
            ensure!(Instant::now() < deadline, "{name} does not listen at {address}: {}", process.said());
            std::thread::sleep(LOOK);
        }
    }

    fn said(&self) -> String {
        fs::read(&self.log).map_or_else(|error| error.to_string(), |bytes| tail(&bytes))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("{}: ending it: {error}", self.name);
        }
    }
}
