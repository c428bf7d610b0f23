//! A network of a machine's own, in a network namespace: dnsmasq as DHCP server, DNS server and router, and a cable that can be slow.
//!
//! The namespace has no name: it lasts as long as the processes in it, and these end with the harness, so that nothing is left behind.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::Tool;

/// The router's address, of which every server here has a port.
pub const ROUTER: &str = "10.77.0.1";
/// A second address of it, for what is not to be there at first.
pub const LATER: &str = "10.77.0.2";
/// The router's address in IPv6.
const ROUTER_V6: &str = "fd77::1";
/// The router's end of the machine's cable.
pub const CABLE: &str = "lan0";
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(20);

/// A program that runs in a namespace, or anywhere: it dies with the thread that starts it.
pub fn command(namespace: Option<&Path>, program: &Path) -> Command {
    let mut command = Command::new(if namespace.is_some() { "nsenter" } else { "setpriv" });
    if let Some(namespace) = namespace {
        command.arg(format!("--net={}", namespace.display())).arg("setpriv");
    }
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// What a program has said so far.
#[derive(Debug, Default)]
struct Said {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Said {
    fn count(lines: &[String], text: &str) -> usize {
        lines.iter().filter(|line| line.contains(text)).count()
    }
}

/// A program in the network, with what it says.
#[derive(Debug)]
struct Daemon {
    child: Child,
    said: Arc<Said>,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("lan: ending a program: {error}");
        }
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("lan: a thread that reads a log panicked");
        }
    }
}

/// The network.
#[derive(Debug)]
pub struct Lan {
    daemons: Vec<Daemon>,
    holder: Child,
    folder: tempfile::TempDir,
}

impl Lan {
    /// A network with a router at [`ROUTER`], [`LATER`] and `fd77::1`, and nothing that answers yet.
    pub fn new() -> Result<Self> {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("making a network namespace (unshare, as root)")?;
        let lan = Self {
            daemons: Vec::new(),
            holder,
            folder: tempfile::tempdir().context("making a folder for the network's files")?,
        };
        lan.await_namespace()?;
        lan.ip(&["link", "set", "lo", "up"])?;
        lan.ip(&["tuntap", "add", "mode", "tap", CABLE])?;
        for address in [ROUTER, LATER] {
            lan.ip(&["addr", "add", &format!("{address}/24"), "dev", CABLE])?;
        }
        // Without a wait for duplicates: dnsmasq cannot speak from an address that is not settled.
        lan.ip(&["addr", "add", &format!("{ROUTER_V6}/64"), "dev", CABLE, "nodad"])?;
        lan.ip(&["link", "set", CABLE, "up"])?;
        Ok(lan)
    }

    /// The namespace, as `nsenter --net` takes it.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// `unshare` has started once its namespace is another one than ours.
    fn await_namespace(&self) -> Result<()> {
        let ours = std::fs::read_link("/proc/self/ns/net").context("looking at the own network namespace")?;
        let deadline = Instant::now() + START_LIMIT;
        while std::fs::read_link(self.namespace()).is_ok_and(|theirs| theirs == ours) {
            ensure!(Instant::now() < deadline, "unshare --net did not make a namespace");
            std::thread::yield_now();
        }
        Ok(())
    }

    fn tool(&self, program: &str) -> Tool {
        Tool::new("nsenter", COMMAND_LIMIT)
            .arg(format!("--net={}", self.namespace().display()))
            .arg(program)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        self.tool("ip").args(arguments).run()
    }

    /// What goes to the machine has this rate from now on, as `tc` writes it. The kernel's token bucket does it, headers included.
    pub fn limit(&self, rate: &str) -> Result<()> {
        let tc = self.tool("tc").args(["qdisc", "replace", "dev", CABLE, "root", "tbf"]);
        // A burst of two frames, and as much as a poor modem holds.
        tc.args(["rate", rate, "burst", "3kb", "latency", "500ms"]).run()
    }

    /// A DHCP server and router with these further arguments of dnsmasq; leases are for `lease` (`2m` at least).
    pub fn dhcp(&mut self, lease: &str, more: &[&str]) -> Result<()> {
        let range = format!("--dhcp-range=10.77.0.10,10.77.0.99,{lease}");
        let leases = format!("--dhcp-leasefile={}", self.folder.path().join("leases").display());
        let interface = format!("--interface={CABLE}");
        let fixed = [&range, &leases, &interface, "--dhcp-authoritative", "--no-ping", "--log-dhcp"];
        self.dnsmasq(&[&fixed, more].concat(), "sockets bound")
    }

    /// A DNS server at `address` that knows `records` (`--host-record=`), and nothing else.
    pub fn dns(&mut self, address: &str, records: &[&str]) -> Result<()> {
        let address = format!("--listen-address={address}");
        self.dnsmasq(
            &[&[address.as_str(), "--log-queries", "--local=/lan/"], records].concat(),
            "started",
        )
    }

    fn dnsmasq(&mut self, more: &[&str], ready: &str) -> Result<()> {
        let mut child = command(Some(&self.namespace()), Path::new("dnsmasq"))
            .args([
                "--conf-file=/dev/null",
                "--no-daemon",
                "--log-facility=-",
                "--user=root",
                "--pid-file",
            ])
            .args(["--bind-interfaces", "--no-resolv", "--no-hosts"])
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting dnsmasq")?;
        let errors = child.stderr.take().context("dnsmasq has no log")?;
        let said = Arc::new(Said::default());
        let theirs = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                theirs.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                theirs.more.notify_all();
            }
        });
        self.daemons.push(Daemon {
            child,
            said,
            reader: Some(reader),
        });
        self.wait_for(ready, 1, START_LIMIT)
    }

    /// How often the network's daemons said this so far.
    pub fn said(&self, text: &str) -> usize {
        let count = |daemon: &Daemon| Said::count(&daemon.said.lines.lock().unwrap_or_else(PoisonError::into_inner), text);
        self.daemons.iter().map(count).sum()
    }

    /// Waits until the daemon that was started last has said this so many times.
    fn wait_for(&self, text: &str, times: usize, limit: Duration) -> Result<()> {
        let daemon = self.daemons.last().context("no daemon runs in this network")?;
        let deadline = Instant::now() + limit;
        let mut lines = daemon.said.lines.lock().unwrap_or_else(PoisonError::into_inner);
        while Said::count(&lines, text) < times {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("dnsmasq did not say «{text}»; it said:\n{}", lines.join("\n"));
            }
            lines = daemon.said.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.daemons.clear();
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait()) {
            eprintln!("lan: ending the namespace: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_network_is_apart_from_others_and_leaves_nothing() {
        let lan = Lan::new().unwrap();
        let links = lan.tool("ip").args(["-o", "-4", "addr"]).text().unwrap();
        assert!(links.contains(ROUTER) && links.contains(CABLE), "{links}");
        lan.limit("256kbit").unwrap();
        let namespace = lan.namespace();
        drop(lan);
        assert!(!namespace.exists());
        let ours = Tool::new("ip", COMMAND_LIMIT).args(["-o", "-4", "addr"]).text().unwrap();
        assert!(!ours.contains(ROUTER), "{ours}");
    }
}
